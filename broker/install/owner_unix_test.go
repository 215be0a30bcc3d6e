//go:build unix

package install

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestWhatIsNoFileIsNotWaitedFor has a pipe where the kubelet's configuration was: who opens one waits for a writer.
func TestWhatIsNoFileIsNotWaitedFor(t *testing.T) {
	var log bytes.Buffer
	dir, open := host(t), host(t)
	i := newInstaller(release(t, "one"), dir, "", &log)
	i.KubeletConfig = filepath.Join(open, "credential-broker.yaml")
	apply(t, i)
	if err := syscall.Mkfifo(i.KubeletConfig, 0o600); err != nil {
		t.Fatal(err)
	}
	removed := make(chan error, 1)
	go func() { removed <- i.Remove() }()
	select {
	case err := <-removed:
		if err != nil || !strings.Contains(log.String(), "left alone") {
			t.Errorf("got %v, %s", err, log.String())
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it waits")
	}
}

// TestWhatSomebodyElseHasMadeIsRefused is of a host whose directory everybody could write for a while.
func TestWhatSomebodyElseHasMadeIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it needs root, to give a file to somebody else")
	}
	for _, name := range []string{"versions", "configs", "pairs", "bin", "in-use", "current", "config"} {
		dir := host(t)
		i := newInstaller(release(t, "one"), dir, configMap(t, "fine"), nil)
		apply(t, i)
		before := i.inUse()
		if err := os.Lchown(filepath.Join(dir, name), 12345, 12345); err != nil {
			t.Fatal(err)
		}
		if err := i.Apply(t.Context()); err == nil || !strings.Contains(err.Error(), "owner uid 12345") || !strings.Contains(err.Error(), "chown") {
			t.Errorf("%s: got %v", name, err)
		}
		if name == "current" || name == "config" {
			continue
		}
		i.From = release(t, "two")
		err := i.Apply(t.Context())
		if name == "in-use" { // it is made anew by each swap
			if err != nil {
				t.Error(err)
			}
			continue
		}
		if now := i.inUse(); err == nil || now != before {
			t.Errorf("%s: %v is used instead of %v, and the error is %v", name, now, before, err)
		}
	}
}
