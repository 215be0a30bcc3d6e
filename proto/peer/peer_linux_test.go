package peer

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestUIDIsTheOtherEnds(t *testing.T) {
	dir, err := os.MkdirTemp("", "cb-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	asker, err := net.DialUnix("unix", nil, listener.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer asker.Close()
	served, err := listener.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer served.Close()
	for name, conn := range map[string]*net.UnixConn{"who listens": asker, "who asks": served} {
		if uid, known, err := UID(conn); err != nil || !known || uid != os.Geteuid() {
			t.Errorf("%s: %d, %v, %v; want %d", name, uid, known, err, os.Geteuid())
		}
	}
}
