//go:build amd64 || arm64 || loong64 || riscv64

package fast

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
		closeFile(agent.fd)
		a.Reason = string(end)
		return
	}
	endRequest(frame, 0, body)
	reply, reason := agent.exchange(frame, scratch)
	if reason != "" {
		closeFile(agent.fd)
		a.Reason = reason
		return
	}
	exit(deliver(reply))
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

// ownEnvironment gives what this process's environment says of agent and configuration. An environment that is empty or too long says nothing; main then asks the agent that it finds.
func ownEnvironment(scratch []byte) (agent, config string) {
	environ := ownFile("/proc/self/environ", scratch)
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

// ownFile reads a file of /proc; nil where it cannot be read or is empty. It may lie within scratch.
func ownFile(path string, scratch []byte) []byte {
	fd, err := openFile(path)
	if err != success {
		return nil
	}
	defer closeFile(fd)
	n := 0
	for n < maxOwnFile {
		if n == len(scratch) {
			scratch = append(make([]byte, 0, 8*n), scratch...)[:8*n]
		}
		got, err := readFile(fd, scratch[n:])
		switch {
		case err == eintr:
		case err != success:
			return nil
		case got == 0:
			return scratch[:n]
		}
		n += got
	}
	return nil
}

// maxOwnFile bounds a command line and an environment, in bytes: a kernel allows six MiB for both together.
const maxOwnFile = 8 << 20

func relative(path string) bool { return path != "" && path[0] != '/' }

// isInput says whether fd is what a request comes from: for a terminal or another device main has something to say first.
func isInput(fd int) bool {
	status, err := statusOf(uintptr(fd), "")
	if err != success {
		return false
	}
	switch status.mode & typeMask {
	case typeFIFO, typeSocket, typeRegular:
		return true
	}
	return false
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
		n, err := readFile(fd, to[len(to):min(cap(to), limit)])
		switch {
		case err == eintr || err == eagain:
		case err != success:
			return to, inputUnusable
		case n == 0:
			return to, inputEnded
		}
		to = to[:len(to)+n]
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
		n, err := writeFile(fd, b)
		switch err {
		case success:
			b = b[n:]
		case eintr:
		case eagain: // whoever started us has left it non-blocking
			if wait(fd, pollOut, forever) != waitReady {
				return false
			}
		default:
			return false
		}
	}
	return true
}
