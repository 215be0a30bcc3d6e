//go:build unix

package backends

import (
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// streams are what the standard streams were when the process started.
type streams struct {
	lifeline  *os.File // standard input: its end is the broker's
	handshake *os.File // standard output: for go-plugin's line and nothing else
}

// takeStreams keeps the process's standard input and output to itself. From then on descriptor 0 is empty and descriptor 1 leads to where descriptor 2 does, for Go code,
// C libraries and child processes alike.
func takeStreams() (streams, error) {
	keep := func(fd int, name string) (*os.File, error) {
		// Above the standard three, and closed in child processes.
		private, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return nil, os.NewSyscallError("keeping the "+name, err)
		}
		return os.NewFile(uintptr(private), name), nil
	}
	var s streams
	var err error
	if s.lifeline, err = keep(0, "lifeline"); err != nil {
		return s, err
	}
	if s.handshake, err = keep(1, "handshake"); err != nil {
		return s, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return s, err
	}
	defer null.Close()
	if err := unix.Dup2(int(null.Fd()), 0); err != nil {
		return s, os.NewSyscallError("emptying standard input", err)
	}
	if err := unix.Dup2(2, 1); err != nil {
		return s, os.NewSyscallError("leading standard output to standard error", err)
	}
	return s, nil
}

// ignoreInterrupts leaves ctrl-C, which a terminal sends to the whole process group, to the broker. A handler
// rather than SIG_IGN, which child processes would inherit.
func ignoreInterrupts() { signal.Notify(make(chan os.Signal, 1), unix.SIGINT) }
