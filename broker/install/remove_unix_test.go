//go:build unix

package install

import (
	"bytes"
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
