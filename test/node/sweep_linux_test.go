package node

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/credential-broker/credential-broker/test/compiled"
)

// What a rig whose test was killed leaves behind is removed by the next; one that is at work is left alone.
func TestWhatAKilledRigLeavesIsRemovedAndARigAtWorkIsNot(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	dead, alive := filepath.Join(os.TempDir(), prefix+"1"), filepath.Join(os.TempDir(), prefix+"2")
	for _, dir := range []string{dead, alive} {
		if err := os.MkdirAll(filepath.Join(dir, "mounted"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	held, err := compiled.Lock(filepath.Join(alive, "lock"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if os.Geteuid() == 0 {
		if err := unix.Mount("tmpfs", filepath.Join(dead, "mounted"), "tmpfs", 0, ""); err != nil {
			t.Logf("NOT RUN: with something mounted: %v", err)
		}
	}
	// A process that looks like a container's: its command line is a shim's.
	shim := &exec.Cmd{Path: "/bin/sh", Args: []string{"containerd-shim-runc-v2", "-c", "sleep 300; :", "-address", dead + "/containerd.sock"}}
	if err := shim.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- shim.Wait() }()
	if err := sweepOthers(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err == nil {
		t.Error("the shim has ended by itself")
	}
	if _, err := os.Stat(dead); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the killed rig's directory is there: %v", err)
	}
	if _, err := os.Stat(alive); err != nil {
		t.Errorf("the directory of the rig at work: %v", err)
	}
}
