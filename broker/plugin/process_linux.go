package plugin

import (
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// processAttributes: a group of its own, and death when the thread that started it dies. The kernel sends that signal even where this process is killed and can do nothing
// any more; it is lost where the backend's file is set-user-ID or has capabilities, and for what a backend starts. The lifeline remains for those.
func processAttributes(a *account) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Credential: credentialOf(a)}
}

// keepThread keeps the goroutine's thread alive, and to itself, until the function it returns is called.
func keepThread() (release func()) {
	runtime.LockOSThread()
	return runtime.UnlockOSThread
}

// awaitExit waits until a child has ended, and leaves it unreaped, so that its process id stays taken. It returns false where the system cannot do that.
func awaitExit(pid int) bool {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			return err == nil
		}
	}
}

// markAll marks all descriptors from the first on as not to be inherited (Linux 5.11).
func markAll(first uint) bool {
	return unix.CloseRange(first, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC) == nil
}
