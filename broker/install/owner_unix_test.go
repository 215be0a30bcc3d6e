//go:build unix

package install

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
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
	if err := i.Remove(); err != nil || !strings.Contains(log.String(), "left alone") {
		t.Errorf("got %v, %s", err, log.String())
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
		if err := os.Lchown(filepath.Join(dir, name), 12345, 12345); err != nil {
			t.Fatal(err)
		}
		if err := i.Apply(t.Context()); err == nil || !strings.Contains(err.Error(), "owner uid 12345") || !strings.Contains(err.Error(), "chown") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
