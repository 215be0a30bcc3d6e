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

	"github.com/credential-broker/credential-broker/proto/trust"
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
	i.ConfigFrom = configMap(t, "fine")
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := i.Apply(t.Context()); err == nil || !strings.Contains(err.Error(), "somebody else's") {
			t.Errorf("got %v", err)
		}
		if err := i.Remove(); err != nil || !strings.Contains(log.String(), "left alone") {
			t.Errorf("got %v, %s", err, log.String())
		}
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("it waits")
	}
}

// TestWhatSomebodyElseHasMadeIsRefused is of a host whose directory everybody could write for a while.
func TestWhatSomebodyElseHasMadeIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it needs root, to give a file to somebody else")
	}
	for _, name := range []string{"versions", "configs", "pairs", "bin", "in-use", "current", "config", "bin/credential-broker", "bin/credential-broker-sts.example"} {
		dir := host(t)
		i := newInstaller(release(t, "one"), dir, configMap(t, "with an audience"), nil)
		apply(t, i)
		before := i.inUse()
		if err := os.Lchown(filepath.Join(dir, name), 12345, 12345); err != nil {
			t.Fatal(err)
		}
		if err := i.Apply(t.Context()); err == nil || !strings.Contains(err.Error(), "owner uid 12345") || !strings.Contains(err.Error(), "chown") {
			t.Errorf("%s: got %v", name, err)
		}
		if name == "current" || name == "config" || filepath.Dir(name) == "bin" {
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

	// Nothing in the kubelet's configuration is worth keeping: it is made anew, unless it is the host's own.
	var log bytes.Buffer
	dir := host(t)
	i := newInstaller(release(t, "one"), dir, configMap(t, "fine"), &log)
	apply(t, i)
	given := func() {
		t.Helper()
		if err := os.Chown(i.kubeletConfig(), 12345, 12345); err != nil {
			t.Fatal(err)
		}
	}
	given()
	log.Reset()
	apply(t, i)
	if said := log.String(); trust.File(i.kubeletConfig()) != nil || !strings.Contains(said, "msg=repaired") || !strings.Contains(said, "owner uid 12345") {
		t.Errorf("%v, and the log says %s", trust.File(i.kubeletConfig()), said)
	}
	put(t, i.kubeletConfig(), "the host's own")
	i.ConfigFrom = ""
	apply(t, i)
	given()
	if err := i.Apply(t.Context()); err == nil || !strings.Contains(err.Error(), "owner uid 12345") {
		t.Errorf("the host's own: got %v", err)
	}
}
