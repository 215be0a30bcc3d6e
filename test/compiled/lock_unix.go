//go:build unix

package compiled

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Lock takes a lock, and waits for it if asked to. It ends with Close, or with this process, should that be killed; the file stays.
func Lock(path string, wait bool) (io.Closer, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	how := unix.LOCK_EX
	if !wait {
		how |= unix.LOCK_NB
	}
	for {
		if err = unix.Flock(int(file.Fd()), how); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}
