package fast

import "syscall"

// This is the point of the package: it has to be before main, see the package's comment.
func init() { //nolint:gochecknoinits // what is initialised after this does not happen where an agent answers
	early(&attempt)
}

// buffers are large enough for nearly all requests and answers. They are not of the heap, whose first object of a size costs as many instructions as all of the rest here.
var buffers struct {
	scratch [4 << 10]byte // for the command line, the environment, and then the reply
	frame   [4 << 10]byte // for the request
}

// early tries to be done with the whole process. If it returns, main goes on from a.
func early(a *Attempt) {
	a.Began = monotonic()
	scratch := buffers.scratch[:]
	arguments, ok := ownArguments(scratch)
	if !ok {
		return
	}
	socket, config := ownEnvironment(scratch)
	if arguments.HasAgent {
		socket = arguments.Agent
	}
	if socket == "" {
		return
	}
	request := Request{Operation: Resolve, Config: arguments.Config, BackendDir: arguments.BackendDir, Audience: arguments.Audience, HasAudience: arguments.HasAudience}
	if request.Config == "" {
		request.Config = config
	}
	if relative(request.Config) || relative(request.BackendDir) || relative(socket) || !isInput(0) {
		return
	}

	a.Tried, a.Socket = true, socket
	harden()
	deadline := a.Began + usual.whole
	// Before a byte of standard input is read, so that a node without an agent has lost nothing yet; and the agent accepts while we read.
	agent, reason, absent := connect(socket, usual, deadline)
	if reason != "" {
		a.Reason, a.Absent = reason, absent
		return
	}
	frame := appendRequestHead(buffers.frame[:0], request)
	body := len(frame)
	frame, end := readInput(0, frame, a.Began+usual.input)
	a.Stdin, a.StdinEnded, a.StdinOverdue = frame[body:], end == inputEnded, end == inputOverdue
	if end != inputEnded {
		_ = syscall.Close(agent.fd)
		a.Reason = string(end)
		return
	}
	endRequest(frame, 0, body)
	reply, reason := agent.exchange(frame, scratch)
	if reason != "" {
		_ = syscall.Close(agent.fd)
		a.Reason = reason
		return
	}
	syscall.Exit(deliver(reply))
}

// ownArguments reads this process's arguments, which such an early package is not given.
func ownArguments(scratch []byte) (Arguments, bool) {
	cmdline := ownFile("/proc/self/cmdline", scratch)
	if cmdline == nil {
		return Arguments{}, false
	}
	return ParseArguments(string(cmdline))
}

const (
	agentVariable  = "CREDENTIAL_BROKER_AGENT"
	configVariable = "CREDENTIAL_BROKER_CONFIG"
)

// ownEnvironment gives what this process's environment says of agent and configuration. syscall.Getenv would first file all of the environment in a map, at several times the price of all else here.
func ownEnvironment(scratch []byte) (agent, config string) {
	environ := ownFile("/proc/self/environ", scratch)
	if environ == nil { // empty, which costs nothing, or too long
		agent, _ = syscall.Getenv(agentVariable)
		config, _ = syscall.Getenv(configVariable)
		return agent, config
	}
	return findVariable(environ, agentVariable), findVariable(environ, configVariable)
}

// findVariable gives a variable's value, the first where there are several.
func findVariable(environ []byte, name string) string {
	for start, i := 0, 0; i < len(environ); i++ {
		if environ[i] != 0 {
			continue
		}
		entry := environ[start:i]
		start = i + 1
		if len(entry) > len(name) && entry[len(name)] == '=' && string(entry[:len(name)]) == name {
			return string(entry[len(name)+1:])
		}
	}
	return ""
}

// ownFile reads a file of /proc; nil where it cannot be read, is empty, or may not fit.
func ownFile(path string, scratch []byte) []byte {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	n, err := syscall.Read(fd, scratch)
	_ = syscall.Close(fd)
	if err != nil || n <= 0 || n == len(scratch) {
		return nil
	}
	return scratch[:n]
}

func relative(path string) bool { return path != "" && path[0] != '/' }

// isInput says whether fd is what a request comes from: for a terminal or another device main has something to say first.
func isInput(fd int) bool {
	var stat syscall.Stat_t
	if syscall.Fstat(fd, &stat) != nil {
		return false
	}
	switch stat.Mode & syscall.S_IFMT {
	case syscall.S_IFIFO, syscall.S_IFSOCK, syscall.S_IFREG:
		return true
	}
	return false
}

// harden is what main does first, and for the same reasons: the request may hold a pod's token, and the reply has passwords. It is done here since main is not reached.
func harden() {
	const prSetDumpable, rlimitCore = 4, 4
	_ = syscall.Setrlimit(rlimitCore, &syscall.Rlimit{Cur: 1, Max: 1})
	_, _, _ = syscall.RawSyscall6(syscall.SYS_PRCTL, prSetDumpable, 0, 0, 0, 0, 0)
}

// How the reading of standard input ended; as text it is a reason not to ask the agent.
type inputEnd string

const (
	inputEnded    inputEnd = ""
	inputOverdue  inputEnd = "standard input did not end in time"
	inputTooLong  inputEnd = "the request is too long"
	inputUnusable inputEnd = "standard input could not be read"
)

// maxInput bounds a request, in bytes. It is broker/kubelet's MaxRequestSize; a byte more is read, so that the excess is seen.
const maxInput = 1 << 20

// readInput appends what comes from fd until its end, waiting for that no longer than until the deadline.
func readInput(fd int, to []byte, deadline int64) ([]byte, inputEnd) {
	limit := len(to) + maxInput + 1
	for {
		if len(to) == cap(to) {
			to = append(make([]byte, 0, min(4*cap(to), limit)), to...)
		}
		switch wait(fd, pollIn, deadline) {
		case waitOver:
			return to, inputOverdue
		case waitFailed:
			return to, inputUnusable
		case waitReady:
		}
		n, err := syscall.Read(fd, to[len(to):min(cap(to), limit)])
		switch {
		case err == syscall.EINTR || err == syscall.EAGAIN:
		case err != nil:
			return to, inputUnusable
		case n == 0:
			return to, inputEnded
		}
		to = to[:len(to)+max(n, 0)]
		if len(to) == limit {
			return to, inputTooLong
		}
	}
}

// deliver hands the reply to whoever started this process, and gives the exit status.
func deliver(r Reply) (status int) {
	status = int(r.Status)
	if !write(1, r.Stdout) {
		status = 1
		r.Stderr = append(r.Stderr, "credential-broker: writing the response to standard output failed: is whoever asked still there?\n"...)
	}
	_ = write(2, r.Stderr) // nobody is left to tell
	return status
}

// write writes all of b to fd. A pipe that nobody reads any more is an error here and no signal that ends the process: Go's runtime sees to that.
func write(fd int, b []byte) bool {
	for len(b) > 0 {
		n, err := syscall.Write(fd, b)
		switch err {
		case nil:
			b = b[n:]
		case syscall.EINTR:
		case syscall.EAGAIN: // whoever started us has left it non-blocking
			if wait(fd, pollOut, forever) != waitReady {
				return false
			}
		default:
			return false
		}
	}
	return true
}
