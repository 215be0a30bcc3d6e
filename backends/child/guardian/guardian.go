//go:build unix

// Package guardian is the process between a backend and a program it runs: the backend's own executable, started once more, which takes over before anything else in it is
// initialised. It starts the program, and ends it with everything the program started as soon as the program is done or the backend is gone, SIGKILLed included.
//
// The takeover is an initialisation function, so that a guardian costs a few milliseconds and no gRPC: Go initialises a package once its imports are, the first
// in import path order first (go.dev/ref/spec, "Package initialization"), so one that imports nothing but syscall comes before nearly all else. Nothing may be imported here
// but syscall and unsafe; a test keeps it so.
package guardian

import "syscall"

// Variable is the environment variable that makes a process a guardian when its value is "1". The program does not see it.
const Variable = "CREDENTIAL_BROKER_GUARDIAN"

// Control is the descriptor of the guardian's end of a stream socket pair. The backend writes one request and keeps its end open for as long as it lives; the
// guardian writes one report.
const Control = 3

// A request is its length in four bytes, most significant first, and then strings that each end with a zero byte: the program's path, the number of arguments in
// decimal, the arguments with the program's name first, the environment. There is no secret in it.

// ReportBytes is the length of a report: its kind, the value in four bytes, most significant first, and 1 if some descendant could not be killed.
const ReportBytes = 6

// The kinds of report.
const (
	NotStarted = 'S' // the value is the errno
	Ended      = 'E' // the value is the wait status
)

// ExitBroken is the guardian's exit status if it could not do its work at all.
const ExitBroken = 70

func init() { //nolint:gochecknoinits // before all else of the program is initialised is what a guardian is about
	if v, ok := syscall.Getenv(Variable); ok && v == "1" {
		guard()
	}
}

// guard never returns. It runs on the process's main thread, which an initialisation function is bound to: the program's parent-death signal needs a thread that stays.
func guard() {
	syscall.CloseOnExec(Control)
	adopt()
	path, args, env, ok := request()
	if !ok {
		complain("this process was started as the guardian of another (" + Variable + " is set) and got no request: unset the variable\n")
		syscall.Exit(ExitBroken)
	}
	pid, err := syscall.ForkExec(path, args, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}, Env: env, Sys: attributes()})
	letGo()
	if err != nil {
		errno, _ := err.(syscall.Errno) //nolint:errorlint // ForkExec has no other, and package errors is not to be imported
		report(NotStarted, uint32(errno), false)
		syscall.Exit(0)
	}
	gone, ended := make(chan struct{}), make(chan struct{})
	go func() {
		var b [1]byte
		for {
			if n, err := syscall.Read(Control, b[:]); n > 0 || err == syscall.EINTR {
				continue
			}
			close(gone)
			return
		}
	}()
	p := &program{pid: pid}
	go func() {
		p.await()
		close(ended)
	}()
	select {
	case <-gone:
	case <-ended:
	}
	status, left := p.end(ended)
	report(Ended, uint32(status), left)
	syscall.Exit(0)
}

func request() (path string, args, env []string, ok bool) {
	var head [4]byte
	if !readFull(head[:]) {
		return "", nil, nil, false
	}
	body := make([]byte, int(head[0])<<24|int(head[1])<<16|int(head[2])<<8|int(head[3]))
	if !readFull(body) {
		return "", nil, nil, false
	}
	var all []string
	for from, i := 0, 0; i < len(body); i++ {
		if body[i] == 0 {
			all = append(all, string(body[from:i]))
			from = i + 1
		}
	}
	if len(all) < 2 {
		return "", nil, nil, false
	}
	n := 0
	for _, digit := range []byte(all[1]) {
		n = n*10 + int(digit-'0')
	}
	if n < 1 || n > len(all)-2 {
		return "", nil, nil, false
	}
	return all[0], all[2 : 2+n], all[2+n:], true
}

func readFull(b []byte) bool {
	for len(b) > 0 {
		n, err := syscall.Read(Control, b)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return false
		}
		b = b[n:]
	}
	return true
}

// report tells the backend, if it is still there. The socket's buffer has room for it.
func report(kind byte, value uint32, left bool) {
	b := [ReportBytes]byte{kind, byte(value >> 24), byte(value >> 16), byte(value >> 8), byte(value)}
	if left {
		b[5] = 1
	}
	for {
		if _, err := syscall.Write(Control, b[:]); err != syscall.EINTR {
			return
		}
	}
}

// letGo closes the guardian's copies of the program's standard streams, so that their other ends see when the program closes them.
func letGo() {
	null, err := syscall.Open("/dev/null", syscall.O_RDWR, 0)
	for fd := range 3 {
		_ = syscall.Close(fd)
		if err == nil {
			_, _ = syscall.Dup(null) // the lowest free descriptor, which is this one
		}
	}
}

func complain(text string) { _, _ = syscall.Write(2, []byte(text)) }
