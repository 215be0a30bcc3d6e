//go:build linux

package steady

import (
	"fmt"
	"io"
	"os"
	"syscall"
	"unsafe"
)

// pendingIn is the number of bytes that a pipe holds. Either end can be asked.
func pendingIn(pipe io.WriteCloser) (int, error) {
	file, ok := pipe.(*os.File)
	if !ok {
		return 0, fmt.Errorf("a %T is no pipe's end", pipe)
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return 0, err
	}
	var pending int32
	var errno syscall.Errno
	err = raw.Control(func(fd uintptr) {
		_, _, errno = syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCINQ, uintptr(unsafe.Pointer(&pending)))
	})
	if err == nil && errno != 0 {
		err = errno
	}
	return int(pending), err
}
