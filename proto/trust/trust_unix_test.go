//go:build unix

package trust

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// as makes the package judge for another user while a test runs. The files of the tests belong to whoever runs them, so a foreign file is made by being somebody else.
func as(t *testing.T, uid, gid uint32) {
	t.Helper()
	before := self
	self = func() (uint32, uint32) { return uid, gid }
	t.Cleanup(func() { self = before })
}

func mkdir(t *testing.T, path string, mode fs.FileMode) string {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	chmod(t, path, mode)
	return path
}

func write(t *testing.T, path, content string, mode fs.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	chmod(t, path, mode)
	return path
}

func chmod(t *testing.T, path string, mode fs.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func symlink(t *testing.T, target, path string) string {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFile(t *testing.T) {
	me, group := uint32(os.Geteuid()), uint32(os.Getegid())
	const other = 4_000_000_000
	tests := []struct {
		name     string
		uid, gid uint32 // 0, 0: as the test's own user and group
		make     func(t *testing.T, dir string) string
		element  string // of the error, below dir; "": no error
		says     []string
	}{
		{
			name: "a file and directories of one's own are trusted",
			make: func(t *testing.T, dir string) string { return write(t, dir+"/f", "", 0o644) },
		},
		{
			name:    "a file that everybody can write is refused",
			make:    func(t *testing.T, dir string) string { return write(t, dir+"/f", "", 0o646) },
			element: "f", says: []string{"everybody", "-rw-r--rw-", "chmod o-w "},
		},
		{
			name:    "a file that group and others can write names one command for both",
			uid:     me,
			gid:     other,
			make:    func(t *testing.T, dir string) string { return write(t, dir+"/f", "", 0o666) },
			element: "f", says: []string{"chmod go-w "},
		},
		{
			name:    "a file that a foreign group can write is refused",
			uid:     me,
			gid:     other,
			make:    func(t *testing.T, dir string) string { return write(t, dir+"/f", "", 0o664) },
			element: "f", says: []string{"its group (gid ", "chmod g-w "},
		},
		{
			name: "a directory above that everybody can write is refused",
			make: func(t *testing.T, dir string) string {
				mkdir(t, dir+"/open", 0o777)
				return write(t, dir+"/open/f", "", 0o644)
			},
			element: "open", says: []string{"everybody", "drwxrwxrwx"},
		},
		{
			name: "a sticky directory above is no danger to what one owns in it",
			make: func(t *testing.T, dir string) string {
				mkdir(t, dir+"/tmp", 0o777|fs.ModeSticky)
				return write(t, dir+"/tmp/f", "", 0o644)
			},
		},
		{
			name:    "a sticky directory at the end of the path is refused, since others can add to it",
			make:    func(t *testing.T, dir string) string { return mkdir(t, dir+"/tmp", 0o777|fs.ModeSticky) },
			element: "tmp", says: []string{"everybody"},
		},
		{
			name: "a directory of one's own at the end of the path is trusted",
			make: func(t *testing.T, dir string) string { return mkdir(t, dir+"/d", 0o755) },
		},
		{
			name: "the directory of a symbolic link counts",
			make: func(t *testing.T, dir string) string {
				mkdir(t, dir+"/open", 0o777)
				write(t, dir+"/f", "", 0o644)
				return symlink(t, "../f", dir+"/open/link")
			},
			element: "open",
		},
		{
			name: "the directory of a symbolic link's target counts",
			make: func(t *testing.T, dir string) string {
				mkdir(t, dir+"/open", 0o777)
				write(t, dir+"/open/f", "", 0o644)
				return symlink(t, dir+"/open/f", dir+"/link")
			},
			element: "open",
		},
		{
			name: "a directory that is a symbolic link is followed",
			make: func(t *testing.T, dir string) string {
				mkdir(t, dir+"/open", 0o777)
				mkdir(t, dir+"/open/sub", 0o755)
				write(t, dir+"/open/sub/f", "", 0o644)
				symlink(t, "open/sub", dir+"/link")
				return dir + "/link/f"
			},
			element: "open",
		},
		{
			name: "dot dot behind a symbolic link goes up from the link's target",
			make: func(t *testing.T, dir string) string {
				mkdir(t, dir+"/open", 0o777)
				mkdir(t, dir+"/open/sub", 0o755)
				write(t, dir+"/open/f", "", 0o644)
				write(t, dir+"/f", "", 0o644)
				symlink(t, "open/sub", dir+"/link")
				return dir + "/link/../f"
			},
			element: "open",
		},
		{
			name: "dot dot, dot and double slashes on a trusted way are fine",
			make: func(t *testing.T, dir string) string {
				mkdir(t, dir+"/a", 0o755)
				write(t, dir+"/f", "", 0o644)
				return dir + "//a/.././f"
			},
		},
		{
			name: "a path that ends above judges that directory as the end",
			make: func(t *testing.T, dir string) string {
				mkdir(t, dir+"/tmp", 0o777|fs.ModeSticky)
				mkdir(t, dir+"/tmp/a", 0o755)
				return dir + "/tmp/a/.."
			},
			element: "tmp",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			uid, gid := me, group
			if tt.gid != 0 {
				uid, gid = tt.uid, tt.gid
			}
			as(t, uid, gid)
			dir, err := filepath.EvalSymlinks(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			path := tt.make(t, dir)
			err = File(path)
			if tt.element == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("got %v, want an error about %s", err, tt.element)
			}
			if want := filepath.Join(dir, tt.element); e.Element != want {
				t.Errorf("the error is about %s, want %s", e.Element, want)
			}
			for _, want := range append(tt.says, path, e.Element) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
		})
	}
}

func TestFileByOwnerAndGroup(t *testing.T) {
	// The files here belong to the user who runs the test; the judge is somebody else.
	st := func(t *testing.T, path string) (uid, gid uint32) {
		t.Helper()
		return uint32(os.Geteuid()), fileGID(t, path)
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f := write(t, dir+"/f", "", 0o664)
	uid, gid := st(t, f)

	t.Run("a private group may write where the user is not root", func(t *testing.T) {
		as(t, 1234, gid)
		err := File(f)
		if uid == 0 {
			if err != nil {
				t.Fatal(err)
			}
		} else if err == nil { // the files are neither root's nor 1234's
			t.Fatal("a stranger's file is trusted")
		}
	})
	t.Run("root's own group may not write", func(t *testing.T) {
		as(t, 0, gid)
		if err := File(f); err == nil {
			t.Fatal("root trusts a file that its group can write")
		}
	})
	t.Run("a file of another user is refused, in a sticky directory too", func(t *testing.T) {
		chown := uid == 0
		if chown {
			if err := os.Chown(f, 1234, -1); err != nil {
				t.Fatal(err)
			}
			as(t, 0, 0)
		} else {
			as(t, 4_000_000_000, gid)
		}
		err := File(f)
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), "chown") {
			t.Fatalf("got %v, want an error that says chown", err)
		}
	})
	t.Run("a symbolic link of another user is refused", func(t *testing.T) {
		if uid != 0 {
			as(t, 4_000_000_000, gid)
			if err := File(symlink(t, "/", dir+"/link")); err == nil {
				t.Fatal("a stranger's link is trusted")
			}
			return
		}
		as(t, 0, 0)
		link := symlink(t, "/", dir+"/link")
		if err := os.Lchown(link, 1234, -1); err != nil {
			t.Fatal(err)
		}
		var e *Error
		if err := File(link); !errors.As(err, &e) || e.Element != link || !strings.Contains(e.Remedy, "chown -h") {
			t.Fatalf("got %v, want an error about the link", err)
		}
	})
}

func TestFileThatCannotBeFollowed(t *testing.T) {
	dir := t.TempDir()
	f := write(t, dir+"/f", "", 0o644)
	for name, path := range map[string]string{
		"a missing file":                        dir + "/none",
		"a missing directory":                   dir + "/none/f",
		"an empty path":                         "",
		"a dangling symbolic link":              symlink(t, "nowhere", dir+"/dangling"),
		"a file where a directory is wanted":    f + "/x",
		"a symbolic link that points to itself": symlink(t, "loop", dir+"/loop"),
	} {
		t.Run(name, func(t *testing.T) {
			err := File(path)
			if _, ok := errors.AsType[*fs.PathError](err); !ok {
				t.Fatalf("got %v, want a *fs.PathError", err)
			}
		})
	}
	if err := File(dir + "/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
}

func TestFileWithARelativePath(t *testing.T) {
	dir := mkdir(t, t.TempDir()+"/open", 0o777)
	write(t, dir+"/f", "", 0o644)
	t.Chdir(dir)
	var e *Error
	if err := File("f"); !errors.As(err, &e) {
		t.Fatalf("got %v, want the working directory refused", err)
	}
}

func TestExecutable(t *testing.T) {
	dir := t.TempDir()
	sum := sha256.Sum256([]byte("#!/bin/sh\n"))
	digest := hex.EncodeToString(sum[:])
	good := write(t, dir+"/good", "#!/bin/sh\n", 0o755)
	tests := []struct {
		name    string
		path    string
		digests []string
		says    string // "": no error
	}{
		{"a program without a list of digests", good, nil, ""},
		{"a program whose digest is in the list", good, []string{strings.Repeat("0", 64), digest}, ""},
		{"a digest in capitals", good, []string{strings.ToUpper(digest)}, ""},
		{"a program behind a symbolic link", symlink(t, good, dir+"/link"), []string{digest}, ""},
		{"a digest that is not in the list is named", good, []string{strings.Repeat("0", 64)}, digest},
		{"a file that is not executable", write(t, dir+"/plain", "", 0o644), nil, "chmod +x "},
		{"a directory", mkdir(t, dir+"/d", 0o755), nil, "it is a directory"},
		{"a name that a shell would take apart is quoted", write(t, dir+"/it's a file", "", 0o644), nil, `'\''s a file'`},
		{"a program that everybody can write", write(t, dir+"/open", "", 0o777), nil, "everybody"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := Executable(tt.path, tt.digests)
			switch {
			case tt.says == "" && err != nil:
				t.Fatal(err)
			case tt.says != "" && err == nil:
				t.Fatal("no error")
			case tt.says != "" && !strings.Contains(err.Error(), tt.says):
				t.Fatalf("%q does not say %q", err, tt.says)
			}
		})
	}
}

func BenchmarkFile(b *testing.B) {
	path, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		_ = File(path)
	}
}

func fileGID(t *testing.T, path string) uint32 {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Gid
}

func TestFileInARootLooksNowhereElse(t *testing.T) {
	root := mkdir(t, filepath.Join(t.TempDir(), "open", "root"), 0o755)
	chmod(t, filepath.Dir(root), 0o777) // above it nothing is judged
	mkdir(t, filepath.Join(root, "bin"), 0o755)
	write(t, filepath.Join(root, "bin", "program"), "content", 0o755)
	symlink(t, "/bin/program", filepath.Join(root, "absolute"))
	symlink(t, "../../../../../bin/program", filepath.Join(root, "bin", "upwards"))
	mkdir(t, filepath.Join(root, "loose"), 0o777)
	symlink(t, "/bin/program", filepath.Join(root, "loose", "link"))
	sum := sha256.Sum256([]byte("content"))
	for _, path := range []string{"/bin/program", "/absolute", "/bin/upwards", "/../bin/program"} {
		if err := ExecutableIn(root, path, []string{hex.EncodeToString(sum[:])}); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	for path, want := range map[string]string{"/absolute": "/bin/program", "/bin/upwards": "/bin/program", "/loose/link": "/bin/program", "/": "/", "/../bin": "/bin"} {
		if got, err := Resolve(root, path); got != want || err != nil {
			t.Errorf("%s leads to %s, %v; want %s", path, got, err, want)
		}
	}
	symlink(t, "/round", filepath.Join(root, "round"))
	if _, err := Resolve(root, "/round"); err == nil {
		t.Error("a link to itself leads somewhere")
	}
	err := FileIn(root, "/loose/link")
	found, ok := errors.AsType[*Error](err)
	if !ok || found.Path != "/loose/link" || found.Element != "/loose" || found.Remedy != "chmod go-w /loose" && found.Remedy != "chmod o-w /loose" {
		t.Errorf("a link in a directory that everybody can write: %v", err)
	}
	if err := FileIn(root, "/etc/passwd"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that only this system has: %v", err)
	}
}
