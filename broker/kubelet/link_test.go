package kubelet

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// linkTest is a broker's file and a bin directory.
func linkTest(t *testing.T) (broker, bin string) {
	t.Helper()
	dir := t.TempDir()
	broker, bin = filepath.Join(dir, "libexec", "credential-broker"), filepath.Join(dir, "bin")
	for _, d := range []string{filepath.Dir(broker), bin} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(broker, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return broker, bin
}

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		to, _ := os.Readlink(filepath.Join(dir, e.Name()))
		out = append(out, e.Name()+">"+filepath.Base(to))
	}
	return strings.Join(out, " ")
}

func TestLinkMakesTheLinksOnce(t *testing.T) {
	broker, bin := linkTest(t)
	want := []string{"credential-broker", "credential-broker-vault"}
	for _, made := range []bool{true, false} {
		links, err := Link(bin, broker, want)
		if err != nil {
			t.Fatal(err)
		}
		for i, link := range links {
			if link.Made != made || link.Path != filepath.Join(bin, want[i]) {
				t.Errorf("%+v", link)
			}
		}
	}
	if got := names(t, bin); got != "credential-broker>credential-broker credential-broker-vault>credential-broker" {
		t.Error(got)
	}
}

func TestLinkReplacesALinkToAnotherBroker(t *testing.T) {
	broker, bin := linkTest(t)
	if err := os.Symlink("/opt/of/yesterday/credential-broker", filepath.Join(bin, "credential-broker-vault")); err != nil {
		t.Fatal(err)
	}
	links, err := Link(bin, broker, []string{"credential-broker-vault"})
	if err != nil || !links[0].Made {
		t.Fatal(links, err)
	}
	if to, _ := os.Readlink(links[0].Path); to != broker {
		t.Error(to)
	}
	if got := names(t, bin); got != "credential-broker-vault>credential-broker" {
		t.Errorf("something was left behind: %s", got)
	}
}

func TestLinkSyncsWhatItHasMade(t *testing.T) {
	broker, bin := linkTest(t)
	if err := os.Symlink("/opt/of/yesterday/credential-broker", filepath.Join(bin, "credential-broker")); err != nil {
		t.Fatal(err)
	}
	var synced []string
	l := linker{now: time.Now, sync: func(dir string) error {
		synced = append(synced, dir+": "+names(t, dir))
		return nil
	}}
	for range 2 { // the second time nothing is to do, which a directory that cannot be written allows too
		if _, err := l.link(bin, broker, []string{"credential-broker", "credential-broker-a"}); err != nil {
			t.Fatal(err)
		}
	}
	if to, _ := os.Readlink(filepath.Join(bin, "credential-broker")); to != broker {
		t.Error(to)
	}
	if diff := cmp.Diff([]string{bin + ": credential-broker>credential-broker credential-broker-a>credential-broker"}, synced); diff != "" {
		t.Error(diff)
	}
	l.sync = func(string) error { return syscall.EIO }
	if _, err := l.link(bin, broker, []string{"credential-broker-b"}); !errors.Is(err, syscall.EIO) {
		t.Errorf("got %v", err)
	}
}

func TestLinkSweepsWhatKilledRunsOfItLeft(t *testing.T) {
	broker, bin := linkTest(t)
	for name, to := range map[string]string{
		".credential-broker-OURS":   "/opt/of/yesterday/credential-broker",
		".credential-broker-THEIRS": "/bin/sh",
		".ecr-OTHER":                "/opt/of/yesterday/credential-broker",
	} {
		if err := os.Symlink(to, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(bin, ".credential-broker-FILE"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	synced := 0
	l := linker{now: time.Now, sync: func(string) error { synced++; return nil }}
	if _, err := l.link(bin, broker, []string{"credential-broker"}); err != nil {
		t.Fatal(err)
	}
	const others = ".credential-broker-FILE>. .credential-broker-THEIRS>sh .ecr-OTHER>credential-broker credential-broker>credential-broker"
	if got := names(t, bin); got != strings.Replace(others, " .credential-broker-T", " .credential-broker-OURS>credential-broker .credential-broker-T", 1) {
		t.Errorf("another run may be at work on it: %s", got)
	}
	l.now = func() time.Time { return time.Now().Add(2 * time.Hour) }
	if _, err := l.link(bin, broker, []string{"credential-broker"}); err != nil {
		t.Fatal(err)
	}
	if got := names(t, bin); got != others || synced != 2 {
		t.Errorf("synced %d times: %s", synced, got)
	}
}

func TestLinkLeavesTheBrokersOwnFileAlone(t *testing.T) {
	broker, _ := linkTest(t)
	links, err := Link(filepath.Dir(broker), broker, []string{"credential-broker", "credential-broker-a"})
	if err != nil || links[0].Made || !links[1].Made {
		t.Error(links, err)
	}
	if info, err := os.Lstat(broker); err != nil || !info.Mode().IsRegular() {
		t.Error("the broker is no file any more")
	}
}

func TestLinkChangesNothingWhereSomethingElseIs(t *testing.T) {
	for name, foreign := range map[string]func(path string) error{
		"a file":             func(path string) error { return os.WriteFile(path, nil, 0o755) },
		"a directory":        func(path string) error { return os.Mkdir(path, 0o755) },
		"a link":             func(path string) error { return os.Symlink("/bin/sh", path) },
		"a link to nowhere":  func(path string) error { return os.Symlink("nowhere", path) },
		"a link in a circle": func(path string) error { return os.Symlink(filepath.Base(path), path) },
	} {
		t.Run(name, func(t *testing.T) {
			broker, bin := linkTest(t)
			if err := foreign(filepath.Join(bin, "credential-broker-z")); err != nil {
				t.Fatal(err)
			}
			before := names(t, bin)
			_, err := Link(bin, broker, []string{"credential-broker", "credential-broker-z"})
			if path := filepath.Join(bin, "credential-broker-z"); err == nil || !strings.Contains(err.Error(), path+" is ") || !strings.Contains(err.Error(), "not the broker") {
				t.Errorf("%v", err)
			}
			if got := names(t, bin); got != before {
				t.Errorf("was %s, is %s", before, got)
			}
		})
	}
}

func TestLinkSaysWhatIsMissing(t *testing.T) {
	broker, bin := linkTest(t)
	for _, tt := range []struct{ bin, broker, name, want string }{
		{filepath.Join(bin, "none"), broker, "a", "name the directory of --image-credential-provider-bin-dir"},
		{broker, broker, "a", "is no directory"},
		{bin, filepath.Join(bin, "none"), "a", "no such file"},
		{bin, "credential-broker", "a", "is not absolute"},
		{bin, broker, "../a", "no file name"},
		{bin, broker, "", "no file name"},
		{bin, broker, "..", "no file name"},
	} {
		if _, err := Link(tt.bin, tt.broker, []string{tt.name}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %s", err, tt.want)
		}
	}
}
