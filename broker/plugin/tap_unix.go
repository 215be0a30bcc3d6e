//go:build unix

package plugin

import (
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
)

// tap hands what comes through a pipe on to a writer, in one goroutine that waits for more; another can have it hand on, at once and without waiting, all that has
// already been written into the pipe. A backend that is killed right after its answer has written its last lines by then.
type tap struct {
	from *os.File // non-blocking, as the ends of os.Pipe are
	to   io.Writer

	mu     sync.Mutex // held from reading something until it has been handed on
	buffer [8 << 10]byte
}

// maxPending is the largest amount in bytes that a pipe holds, unless root says otherwise.
const maxPending = 1 << 20

// run returns when the pipe ends or its read deadline has passed.
func (t *tap) run() {
	raw, err := t.from.SyscallConn()
	if err != nil {
		return
	}
	// Read looks at the deadline whenever it is called, which a survivor of the backend that never stops writing must not keep it from.
	for ended := false; !ended && err == nil; {
		err = raw.Read(func(fd uintptr) (done bool) {
			var empty bool
			empty, ended = t.round(int(fd))
			return ended || !empty
		})
	}
}

// catchUp hands on what is in the pipe.
func (t *tap) catchUp() {
	if raw, err := t.from.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { t.round(int(fd)) })
	}
}

// round hands on what is in the pipe, at most maxPending bytes, since a survivor of the backend may go on writing. Empty: there is no more for now; ended: nor will there be.
func (t *tap) round(fd int) (empty, ended bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for total := 0; total < maxPending; {
		n, err := syscall.Read(fd, t.buffer[:])
		switch {
		case n > 0:
			_, _ = t.to.Write(t.buffer[:n])
			total += n
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.EAGAIN):
			return true, false
		default:
			return true, true
		}
	}
	return false, false
}
