package peers

import (
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"
)

// unreachable is the URL of a port on loopback to which no connection comes about: its queue is full, so that the kernel drops what asks for more, as a network does without a route.
func unreachable(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port)
	for range 8 {
		connection, err := (&net.Dialer{Timeout: 300 * time.Millisecond}).DialContext(t.Context(), "tcp", address)
		if err != nil {
			return "http://" + address
		}
		t.Cleanup(func() { _ = connection.Close() })
	}
	t.Log("NOT RUN: this machine's kernel goes on taking connections that nobody accepts")
	return ""
}
