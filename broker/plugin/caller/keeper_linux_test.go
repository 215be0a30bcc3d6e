package caller

import (
	"io/fs"
	"os"
	"testing"
)

// touch changes a file's time of change and nothing else. The clock of a file system may stand still for some milliseconds.
func touch(t *testing.T, file *os.File) fs.FileInfo {
	t.Helper()
	info := func() fs.FileInfo {
		info, err := file.Stat()
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	before := info()
	waitFor(t, "another time of change", func() bool {
		if err := file.Chmod(before.Mode()); err != nil {
			t.Fatal(err)
		}
		return !changed(info()).Equal(changed(before))
	})
	return info()
}

// What a call sees of a file while another one is being renamed over it depends on the file system, and on the moment.
func TestAFileThatIsJustBeingReplacedCostsNoProcessOfItsOwn(t *testing.T) {
	var seen []fs.FileInfo
	asked := func(t *testing.T) (st *stage, old *os.File) {
		t.Helper()
		st, seen = newStage(t, KeeperOptions{}, nil), nil
		st.stat = func(path string) (fs.FileInfo, error) {
			if len(seen) == 0 {
				return os.Stat(path)
			}
			info := seen[0]
			seen = seen[1:]
			return info, nil
		}
		st.mustAsk(t, "1")
		old, err := os.Open(st.file)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = old.Close() })
		return st, old
	}
	t.Run("no name any more", func(t *testing.T) { // as on ext4
		st, old := asked(t)
		defer st.end(t)
		touch(t, old)
		st.replaceFile(t, "2")
		nameless, err := old.Stat()
		if err != nil || !unlinked(nameless) {
			t.Fatalf("the old file still has a name; %v", err)
		}
		seen = []fs.FileInfo{nameless, nameless, nameless}
		st.mustAsk(t, "1")
		seen = nil
		st.mustAsk(t, "2")
		st.mustAsk(t, "2")
	})
	t.Run("a name still", func(t *testing.T) { // as on tmpfs, whose order is the other one
		st, old := asked(t)
		defer st.end(t)
		touched := touch(t, old)
		st.replaceFile(t, "2")
		seen = []fs.FileInfo{touched}
		st.mustAsk(t, "2")
		st.mustAsk(t, "2")
	})
	t.Run("a change for good", func(t *testing.T) {
		st, old := asked(t)
		defer st.end(t)
		touch(t, old)
		st.mustAsk(t, "2")
		st.mustAsk(t, "2")
		if err := os.Chmod(st.file, 0o500); err != nil { // permissions are what the file is trusted by
			t.Fatal(err)
		}
		st.mustAsk(t, "3")
	})
	t.Run("a look that comes too late", func(t *testing.T) { // another call has started a process from the new file meanwhile
		st, old := asked(t)
		defer st.end(t)
		touched := touch(t, old)
		looks := 0
		st.stat = func(path string) (fs.FileInfo, error) {
			switch looks++; looks {
			case 1:
				return touched, nil
			case 2:
				st.replaceFile(t, "2")
				st.mustAsk(t, "2")
				return touched, nil
			default:
				return os.Stat(path)
			}
		}
		st.mustAsk(t, "2")
		st.mustAsk(t, "2")
	})
	t.Run("never the same twice", func(t *testing.T) { // a call must not look for ever
		st, old := asked(t)
		defer st.end(t)
		st.stat = func(string) (fs.FileInfo, error) { return touch(t, old), nil }
		st.mustAsk(t, "2")
		st.mustAsk(t, "3")
	})
}
