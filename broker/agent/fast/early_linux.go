//go:build amd64 || arm64 || loong64 || riscv64

package fast

// buffers are as large as what they are for may become, since they cannot grow: before Go's runtime there is no heap, and after it the first object of a size costs as many instructions as all of the
// rest here. What is not used of them costs nothing.
var buffers rooms

type rooms struct {
	arguments   [128 << 10]byte
	environment [1 << 20]byte
	request     [maxHead + maxInput + 1]byte // as a frame
	reply       [HeaderSize + MaxFrame]byte  // as a frame
}

// maxHead bounds what a request says besides its body, in bytes: a place of a configuration and one of backends, and an audience.
const maxHead = 64 << 10

// early tries to be done with the whole process. If it returns, main goes on from a.
func early(a *Attempt) {
	a.Began = monotonic()
	smallPages(&buffers)
	arguments, ok := ownArguments(buffers.arguments[:])
	if !ok {
		return
	}
	socket, config := ownEnvironment(buffers.environment[:])
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
	if relative(request.Config) || relative(request.BackendDir) || relative(socket) || requestHead(request) > maxHead || !isInput(0) {
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
	if agent.fd <= 2 {
		// Standard output or error is closed, and what is written there would go to the agent. Go's runtime opens something in their place; main asks then.
		closeFile(agent.fd)
		a.Tried = false
		return
	}
	frame := appendRequestHead(buffers.request[:0], request)
	body := len(frame)
	frame, end := readInput(0, frame, a.Began+usual.input)
	a.Stdin, a.StdinEnded, a.StdinOverdue = frame[body:], end == inputEnded, end == inputOverdue
	if end != inputEnded {
		closeFile(agent.fd)
		a.Reason = string(end)
		return
	}
	endRequest(frame, 0, body)
	reply, reason := agent.exchange(frame, buffers.reply[:])
	if reason != "" {
		closeFile(agent.fd)
		a.Reason = reason
		return
	}
	exit(deliver(reply))
}

// ownArguments reads this process's arguments, which nobody has handed over yet, into buffer.
func ownArguments(buffer []byte) (Arguments, bool) {
	return ParseArguments(view(ownFile("/proc/self/cmdline", buffer)))
}

const (
	agentVariable  = "CREDENTIAL_BROKER_AGENT"
	configVariable = "CREDENTIAL_BROKER_CONFIG"
)

// ownEnvironment gives what this process's environment says of agent and configuration. An environment that is empty or too long says nothing; main then asks the agent that it finds.
func ownEnvironment(buffer []byte) (agent, config string) {
	environ := ownFile("/proc/self/environ", buffer)
	return findVariable(environ, agentVariable), findVariable(environ, configVariable)
}

// findVariable gives a variable's value, the first where there are several. It lies within environ.
func findVariable(environ []byte, name string) string {
	for start, i := 0, 0; i < len(environ); i++ {
		if environ[i] != 0 {
			continue
		}
		entry := environ[start:i]
		start = i + 1
		if len(entry) > len(name) && entry[len(name)] == '=' && string(entry[:len(name)]) == name {
			return view(entry[len(name)+1:])
		}
	}
	return ""
}

// ownFile reads a file of /proc into buffer; nil where it cannot be read, is empty, or too long.
func ownFile(path string, buffer []byte) []byte {
	fd, err := openFile(path)
	if err != success {
		return nil
	}
	n := 0
	for n < len(buffer) {
		got, err := readFile(fd, buffer[n:])
		switch {
		case err == eintr:
		case err != success:
			n = len(buffer) // as if it were too long
		case got == 0:
			closeFile(fd)
			return buffer[:n]
		}
		n += got
	}
	closeFile(fd)
	return nil
}

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

// readInput appends what comes from fd until its end, waiting for that no longer than until the deadline. There has to be room for the longest request and a byte.
func readInput(fd int, to []byte, deadline int64) ([]byte, inputEnd) {
	limit := len(to) + maxInput + 1
	for {
		switch wait(fd, pollIn, deadline) {
		case waitOver:
			return to, inputOverdue
		case waitFailed:
			return to, inputUnusable
		case waitReady:
		}
		n, err := readFile(fd, to[len(to):limit])
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
	ignoreBrokenPipes()
	answered := write(1, view(r.Stdout))
	_ = write(2, view(r.Stderr)) // nobody is left to tell
	if !answered {
		_ = write(2, "credential-broker: writing the response to standard output failed: is whoever asked still there?\n")
		return 1
	}
	return int(r.Status)
}

// write writes all of the text to fd.
func write(fd int, text string) bool {
	for text != "" {
		n, err := writeFile(fd, text)
		switch err {
		case success:
			text = text[n:]
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
