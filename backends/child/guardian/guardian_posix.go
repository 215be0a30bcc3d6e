//go:build unix && !linux

package guardian

import "syscall"

// adopt does nothing: only Linux lets a process adopt orphans. What a program starts in a session of its own gets away there.
func adopt() {}

func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

type program struct {
	pid    int
	status syscall.WaitStatus
}

func (p *program) await() {
	for {
		if _, err := syscall.Wait4(p.pid, &p.status, 0, nil); err != syscall.EINTR {
			return
		}
	}
}

// end kills the program's group. Where the program has ended by itself, its group's id can be anew somebody's only if the group is empty and the system has gone
// through all its process ids in the meantime.
func (p *program) end(ended <-chan struct{}) (status syscall.WaitStatus, left bool) {
	_ = syscall.Kill(-p.pid, syscall.SIGKILL)
	<-ended
	return p.status, false
}
