//go:build amd64 || arm64 || loong64 || riscv64

package fast

// Supported says that there can be an agent on this platform.
const Supported = true

// The bounds of asking, in nanoseconds.
type bounds struct {
	silence int64 // of an agent, in accepting a connection, taking what is sent, and answering
	whole   int64 // from the first step to the end of the reply
	input   int64 // for standard input to end
}

const second = 1_000_000_000

// The kubelet kills what it started after a minute. It writes its request at once; main has the same bound for that. An agent that works says so every half second.
var usual = bounds{silence: 2 * second, whole: 59 * second, input: 10 * second}

// Ask asks the agent that listens on socket, an absolute path. The reason is "" if it answered, else why it did not, for a log. absent says that there is no agent, so that starting one makes sense.
//
// The directory of the socket, the socket and whoever listens have to be root's or this user's, and nobody else may write the directory or connect. An agent that is silent for two seconds counts as
// hung; for longer than a minute nobody is waited for.
func Ask(socket string, r Request) (reply Reply, reason string, absent bool) {
	return ask(socket, r, usual)
}

func ask(socket string, r Request, within bounds) (reply Reply, reason string, absent bool) {
	agent, reason, absent := connect(socket, within, monotonic()+within.whole)
	if reason != "" {
		return Reply{}, reason, absent
	}
	reply, reason = agent.exchange(AppendRequest(nil, r), make([]byte, 4<<10))
	closeFile(agent.fd)
	return reply, reason, false
}

// connection to an agent.
type connection struct {
	fd       int
	socket   string
	silence  int64 // that is put up with, in nanoseconds
	deadline int64
}

// connect connects to the agent, if all that is on the way to it is in the right hands.
func connect(socket string, within bounds, deadline int64) (c connection, reason string, absent bool) {
	euid := effectiveUID()
	if reason, absent := distrust(socket, euid); reason != "" {
		return connection{}, reason, absent
	}
	fd, err := newUnixSocket()
	if err != success {
		return connection{}, join("making a socket: ", err.Error()), false
	}
	c = connection{fd: fd, socket: socket, silence: within.silence, deadline: deadline}
	if reason, absent = c.connect(); reason == "" {
		reason = c.distrustPeer(euid)
	}
	if reason != "" {
		closeFile(fd)
		return connection{}, reason, absent
	}
	return c, "", false
}

// connect waits for an agent that has more connections waiting than it accepts. There is nothing to poll for that; the bound is the one for sending, which connecting heeds.
func (c connection) connect() (reason string, absent bool) {
	if err := limitSending(c.fd, c.silence); err != success {
		return join("preparing a socket: ", err.Error()), false
	}
	until := monotonic() + c.silence
	for {
		switch err := connectUnix(c.fd, c.socket); err {
		case success:
			return "", false
		case eintr: // with each call the bound begins anew
			if monotonic() >= until {
				return join("the agent on ", c.socket, " accepts no connection"), false
			}
		case eagain:
			return join("the agent on ", c.socket, " accepts no connection"), false
		case econnrefused, enoent:
			return join("nobody listens on ", c.socket), true
		default:
			return join("connecting to ", c.socket, ": ", err.Error()), false
		}
	}
}

// distrust says what is wrong with the socket's place: whoever else could write there could give himself out as the agent, and would be told tokens.
func distrust(socket string, euid uint32) (reason string, absent bool) {
	slash := len(socket) - 1
	for slash >= 0 && socket[slash] != '/' {
		slash--
	}
	switch {
	case slash < 0 || socket[0] != '/' || slash == len(socket)-1:
		return join("the agent's socket is not the absolute path of a file: ", socket), false
	case len(socket) >= len(unixAddress{}.path):
		return join("the path of the agent's socket is longer than the ", decimal(len(unixAddress{}.path)-1), " bytes that the system allows: ", socket), false
	}
	dir := socket[:max(slash, 1)]
	if reason, absent := distrustFile(dir, typeDirectory, "directory", 0o022, euid); reason != "" {
		return reason, absent
	}
	return distrustFile(socket, typeSocket, "socket", 0o077, euid)
}

// distrustFile says what is wrong with a file: it has to be of the kind, of root's or our own, and without the permissions that are forbidden. A symbolic link is a file of another kind.
func distrustFile(path string, kind uint16, kindName string, forbidden uint16, euid uint32) (reason string, absent bool) {
	status, err := statusOf(currentDirectory, path)
	switch {
	case err == enoent:
		return join(path, " does not exist"), true
	case err != success:
		return join("looking at ", path, ": ", err.Error()), false
	case status.mode&typeMask != kind:
		return join(path, " is no ", kindName), false
	case status.uid != 0 && status.uid != euid:
		return join("another user (uid ", decimal(int(status.uid)), ") owns ", path), false
	case status.mode&forbidden != 0:
		return join(path, " is open to other users (mode ", octal(status.mode&0o7777), "): take mode ", octal(forbidden), " from it"), false
	}
	return "", false
}

// distrustPeer says what is wrong with whoever listens: the socket could have been exchanged since it was looked at.
func (c connection) distrustPeer(euid uint32) (reason string) {
	peer, err := peerOf(c.fd)
	switch {
	case err != success:
		return join("asking who listens on ", c.socket, ": ", err.Error())
	case peer.uid != 0 && peer.uid != euid:
		return join("another user (uid ", decimal(int(peer.uid)), ") listens on ", c.socket)
	}
	return ""
}

// exchange sends a request and waits for its reply, which may lie within buffer.
func (c connection) exchange(frame, buffer []byte) (Reply, string) {
	if len(frame) > HeaderSize+MaxFrame {
		return Reply{}, join("the request is longer than the ", decimal(MaxFrame), " bytes of a frame")
	}
	if reason := c.send(frame); reason != "" {
		return Reply{}, reason
	}
	reply, reason := c.receive(buffer)
	if reason == "" && reply.Unserved != "" {
		return Reply{}, join("the agent on ", c.socket, " does not serve this request: ", reply.Unserved)
	}
	return reply, reason
}

func (c connection) send(b []byte) (reason string) {
	for len(b) > 0 {
		n, err := sendSocket(c.fd, b)
		switch err {
		case success:
			b = b[n:]
		case eintr:
		case eagain:
			if reason := c.wait(pollOut); reason != "" {
				return reason
			}
		default:
			return join("sending to the agent on ", c.socket, ": ", err.Error())
		}
	}
	return ""
}

// receive reads frames until the reply, into buffer or, where that is too small, a larger one.
func (c connection) receive(buffer []byte) (Reply, string) {
	got := 0 // bytes in buffer
	for {
		for got >= HeaderSize {
			h, problem := ParseHeader(buffer)
			if problem != "" {
				return Reply{}, c.nonsense(problem)
			}
			end := HeaderSize + h.Length
			if end > len(buffer) {
				buffer = append(make([]byte, 0, end), buffer[:got]...)[:end]
			}
			if got < end {
				break
			}
			if h.Kind != KindWorking {
				reply, problem := DecodeReply(h, buffer[HeaderSize:end])
				if problem != "" {
					return Reply{}, c.nonsense(problem)
				}
				return reply, ""
			}
			got = copy(buffer, buffer[end:got])
		}
		if reason := c.wait(pollIn); reason != "" {
			return Reply{}, reason
		}
		n, err := readFile(c.fd, buffer[got:])
		switch {
		case err == eintr || err == eagain:
		case err != success:
			return Reply{}, join("reading from the agent on ", c.socket, ": ", err.Error())
		case n == 0:
			return Reply{}, join("the agent on ", c.socket, " hung up without an answer")
		default:
			got += n
		}
	}
}

func (c connection) nonsense(problem string) string {
	return join("the agent on ", c.socket, " cannot be understood: ", problem)
}

// wait waits until the agent has taken or sent something, as long as silence is put up with.
func (c connection) wait(event int16) (reason string) {
	deadline := min(monotonic()+c.silence, c.deadline)
	switch wait(c.fd, event, deadline) {
	case waitOver:
		if deadline == c.deadline {
			return join("the agent on ", c.socket, " has not answered in time")
		}
		return join("the agent on ", c.socket, " is silent")
	case waitFailed:
		return join("waiting for the agent on ", c.socket, " failed")
	case waitReady:
	}
	return ""
}

// The events of ppoll(2).
const (
	pollIn  int16 = 1
	pollOut int16 = 4
)

// How a wait ended.
type waitEnd uint8

const (
	waitReady waitEnd = iota
	waitOver
	waitFailed
)

// forever is a deadline that does not come.
const forever = 1<<63 - 1

// wait waits until fd has an event, an error or the other side's end, or until the deadline of the monotonic clock, in nanoseconds.
func wait(fd int, event int16, deadline int64) waitEnd {
	wanted := pollFD{fd: int32(fd), events: event}
	for {
		n, err := poll(&wanted, max(deadline-monotonic(), 0))
		switch {
		case err == eintr:
		case err != success:
			return waitFailed
		case n == 0:
			return waitOver
		default:
			return waitReady
		}
	}
}
