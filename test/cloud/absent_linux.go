package cloud

import (
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
)

// unreachable is a URL where connections are neither made nor refused: the queue of a socket that nobody accepts from is full, and Linux drops what comes after.
func (c *Cloud) unreachable() string {
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		panic(os.NewSyscallError("socket", err))
	}
	c.atClose(func() { _ = syscall.Close(socket) })
	if err := syscall.Bind(socket, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		panic(os.NewSyscallError("bind", err))
	}
	if err := syscall.Listen(socket, 0); err != nil {
		panic(os.NewSyscallError("listen", err))
	}
	at, err := syscall.Getsockname(socket)
	if err != nil {
		panic(os.NewSyscallError("getsockname", err))
	}
	v4, ok := at.(*syscall.SockaddrInet4)
	if !ok {
		panic("a socket of IPv4 has another kind of address")
	}
	address := fmt.Sprintf("127.0.0.1:%d", v4.Port)
	dialer := net.Dialer{Timeout: 100 * time.Millisecond}
	for { // a handful fit in
		conn, err := dialer.DialContext(c.done, "tcp", address)
		if err != nil {
			return "http://" + address
		}
		c.atClose(func() { _ = conn.Close() })
	}
}
