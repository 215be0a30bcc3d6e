package agent

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Elsewhere such a socket refuses connections as one that nobody serves does.
func TestASocketWhoseQueueIsFullIsNotReplaced(t *testing.T) {
	s := prepare(t)
	if err := os.Mkdir(filepath.Dir(s.socket), 0o700); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: s.socket}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	var waiting []net.Conn
	defer func() {
		for _, conn := range waiting {
			_ = conn.Close()
		}
	}()
	for range 100 {
		conn, err := net.Dial("unix", s.socket)
		if err != nil {
			break
		}
		waiting = append(waiting, conn)
	}
	if _, err := Listen(s.socket); !errors.Is(err, ErrServed) {
		t.Errorf("%v, with %d that wait", err, len(waiting))
	}
}
