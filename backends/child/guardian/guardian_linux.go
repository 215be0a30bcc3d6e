package guardian

import (
	"syscall"
	"unsafe"
)

// From prctl(2), waitid(2) and linux/wait.h, which package syscall does not have.
const (
	prSetChildSubreaper = 36
	pPid                = 1
	wExited             = 4
	wNoWait             = 0x01000000
)

// adopt makes the guardian the parent of every descendant whose own parent dies, so that none gets away: neither by a double fork nor by a session of its own.
func adopt() {
	_, _, _ = syscall.Syscall6(syscall.SYS_PRCTL, prSetChildSubreaper, 1, 0, 0, 0, 0)
}

// attributes: a process group of its own, so that one signal reaches most of what the program starts; death with the guardian, should somebody kill that.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

type program struct{ pid int }

// await waits until the program has ended, and leaves it unreaped: its process id, which is its group's too, stays taken until nobody is sent a signal by it any more.
func (p *program) await() {
	var info [128]byte // siginfo_t
	for {
		_, _, errno := syscall.Syscall6(syscall.SYS_WAITID, pPid, uintptr(p.pid), uintptr(unsafe.Pointer(&info)), wExited|wNoWait, 0, 0) //nolint:gosec // package syscall has no waitid
		if errno != syscall.EINTR {
			return
		}
	}
}

// end kills the program's group and then, until there are none left, all children of the guardian: each that dies leaves its own to the guardian, which finds
// them in the next round. A descendant that cannot be killed (another user's, or deep in the kernel) is given two seconds.
func (p *program) end(<-chan struct{}) (status syscall.WaitStatus, left bool) {
	_ = syscall.Kill(-p.pid, syscall.SIGKILL)
	_ = syscall.Kill(p.pid, syscall.SIGKILL)
	const most = int64(2e9)
	for waited, pause := int64(0), int64(50e3); ; {
		for _, child := range children() {
			_ = syscall.Kill(child, syscall.SIGKILL)
		}
		for {
			var ws syscall.WaitStatus
			pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
			if err == syscall.EINTR {
				continue
			}
			if err != nil {
				return status, false // ECHILD: nobody is left
			}
			if pid == 0 {
				break
			}
			if pid == p.pid {
				status = ws
			}
		}
		if waited >= most {
			return status, true
		}
		rest := syscall.NsecToTimespec(pause)
		_ = syscall.Nanosleep(&rest, nil)
		waited += pause
		pause = min(2*pause, 5e6)
	}
}

// children are the guardian's children, those it has adopted included. Each is its child until the guardian itself reaps it, so a process id from
// here never means somebody else.
func children() []int {
	if pids, ok := childrenOfThreads(); ok {
		return pids
	}
	return childrenByParent()
}

// childrenOfThreads reads /proc/self/task/*/children (proc(5); the kernel's CONFIG_PROC_CHILDREN).
func childrenOfThreads() (pids []int, ok bool) {
	for _, thread := range list("/proc/self/task") {
		content, found := readFile("/proc/self/task/" + thread + "/children")
		if !found {
			continue // a thread that has just ended
		}
		ok = true
		n := 0
		for _, c := range content {
			if c >= '0' && c <= '9' {
				n = n*10 + int(c-'0')
				continue
			}
			if n > 0 {
				pids = append(pids, n)
			}
			n = 0
		}
		if n > 0 {
			pids = append(pids, n)
		}
	}
	return pids, ok
}

// childrenByParent looks at every process for its parent: slower, but there with any /proc.
func childrenByParent() (pids []int) {
	self := syscall.Getpid()
	for _, name := range list("/proc") {
		pid := number(name)
		if pid <= 0 {
			continue
		}
		if stat, ok := readFile("/proc/" + name + "/stat"); ok && parent(stat) == self {
			pids = append(pids, pid)
		}
	}
	return pids
}

// parent is the fourth field of /proc/PID/stat. The second, in parentheses, may hold anything, parentheses and spaces included.
func parent(stat []byte) int {
	i := len(stat) - 1
	for i >= 0 && stat[i] != ')' {
		i--
	}
	if i < 0 || i+4 >= len(stat) {
		return 0
	}
	rest := stat[i+4:] // behind ") S "
	end := 0
	for end < len(rest) && rest[end] != ' ' {
		end++
	}
	return number(string(rest[:end]))
}

// number is s as a decimal number, or -1.
func number(s string) int {
	if s == "" || len(s) > 10 {
		return -1
	}
	n := 0
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return -1
		}
		n = n*10 + int(c-'0')
	}
	return n
}

func list(dir string) (names []string) {
	fd, err := syscall.Open(dir, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer func() { _ = syscall.Close(fd) }()
	buf := make([]byte, 8<<10)
	for {
		n, err := syscall.ReadDirent(fd, buf)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return names
		}
		_, _, names = syscall.ParseDirent(buf[:n], -1, names)
	}
}

func readFile(path string) (content []byte, ok bool) {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, false
	}
	defer func() { _ = syscall.Close(fd) }()
	buf := make([]byte, 4<<10)
	for {
		n, err := syscall.Read(fd, buf)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return nil, false
		}
		if n == 0 {
			return content, true
		}
		content = append(content, buf[:n]...)
	}
}
