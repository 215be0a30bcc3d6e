package fast

// What passes over the agent's socket is frames, one request of the asker's and then the agent's: any number that say it is working, and one reply. A frame is a header, and fields of a tag (1 byte), a
// length (4 bytes, big endian) and a value. A receiver skips fields that it does not know, and takes the last one where a field is repeated.
const (
	// Version of the frames that this package writes.
	Version = 1
	// HeaderSize is the length of a frame's header in bytes: "crbk", version, minimum, kind, a reserved byte, and the length of what follows in 4 bytes, big endian.
	HeaderSize = 12
	// MaxFrame bounds what follows a header, in bytes.
	MaxFrame = 4 << 20
)

const magic = "crbk"

// The kinds of frames.
const (
	KindRequest uint8 = 1
	KindReply   uint8 = 2
	// KindWorking is sent by the agent several times a second while it works on a request, so that silence means a hung agent.
	KindWorking uint8 = 3
)

// The fields of a request and of a reply. A tag is never used for something else, in no version.
const (
	fieldOperation  = 1
	fieldConfig     = 2
	fieldBackendDir = 3
	fieldAudience   = 4
	fieldBody       = 5

	fieldStatus   = 1
	fieldStdout   = 2
	fieldStderr   = 3
	fieldUnserved = 4
)

// fieldHead is the length of a field's tag and length in bytes.
const fieldHead = 5

// Header of a frame.
type Header struct {
	Version uint8 // what the sender speaks
	Minimum uint8 // the oldest version whose reader understands this frame
	Kind    uint8
	Length  int // bytes after the header, at most MaxFrame
}

// ParseHeader reads a frame's header, the first HeaderSize bytes of b. The problem is "" if it is one that this version can take; Kind is the caller's to judge.
func ParseHeader(b []byte) (h Header, problem string) {
	if len(b) < HeaderSize || string(b[:len(magic)]) != magic || b[4] == 0 || b[5] == 0 {
		return Header{}, "what came is no frame of an agent's"
	}
	if b[5] > Version {
		return Header{}, join("it speaks version ", decimal(int(b[4])), " of the agent's language and wants at least version ", decimal(int(b[5])), ", this is version ", decimal(Version))
	}
	length := bigEndian(b[8:])
	if length > MaxFrame {
		return Header{}, join("a frame of more than ", decimal(MaxFrame), " bytes")
	}
	return Header{Version: b[4], Minimum: b[5], Kind: b[6], Length: int(length)}, ""
}

// Operation is what is asked of the agent.
type Operation uint8

// The operations. The body of Resolve is the kubelet's request as it is; those of the others are JSON, and none of this package's business.
const (
	Resolve Operation = iota + 1
	Status
	Forget
	Get
	// Ping is answered with nothing, by an agent that is not stuck.
	Ping
)

// Request to an agent.
type Request struct {
	Operation  Operation
	Config     string // absolute path of the configuration; empty: the default places
	BackendDir string // absolute; empty: the agent's own default
	// Audience of the providers that take part, where HasAudience says that one was given: the empty one is that of providers without a token.
	Audience    string
	HasAudience bool
	Body        []byte
}

// AppendRequest appends r as a whole frame. One that is longer than MaxFrame is refused by whoever receives it.
func AppendRequest(dst []byte, r Request) []byte {
	start := len(dst)
	dst = appendRequestHead(dst, r)
	body := len(dst)
	dst = append(dst, r.Body...)
	endRequest(dst, start, body)
	return dst
}

// requestHead is the length of what appendRequestHead appends, in bytes, or a little more.
func requestHead(r Request) int {
	const fields = 5
	return HeaderSize + fields*fieldHead + 1 + len(r.Config) + len(r.BackendDir) + len(r.Audience)
}

// appendRequestHead appends all of a request but its body, which is to follow; endRequest then fills in the two lengths.
func appendRequestHead(dst []byte, r Request) []byte {
	dst = appendHeader(dst, KindRequest)
	dst = append(dst, fieldOperation, 0, 0, 0, 1, byte(r.Operation))
	if r.Config != "" {
		dst = appendField(dst, fieldConfig, r.Config)
	}
	if r.BackendDir != "" {
		dst = appendField(dst, fieldBackendDir, r.BackendDir)
	}
	if r.HasAudience {
		dst = appendField(dst, fieldAudience, r.Audience)
	}
	return append(dst, fieldBody, 0, 0, 0, 0)
}

func endRequest(frame []byte, start, body int) {
	putBigEndian(frame[body-4:], len(frame)-body)
	putBigEndian(frame[start+8:], len(frame)-start-HeaderSize)
}

// DecodeRequest reads what followed the header h. Body lies within payload.
func DecodeRequest(h Header, payload []byte) (r Request, problem string) {
	if problem := misfit(h, KindRequest, payload); problem != "" {
		return Request{}, problem
	}
	for len(payload) > 0 {
		tag, value, rest, ok := cutField(payload)
		if !ok {
			return Request{}, "a request with a field that is cut off"
		}
		payload = rest
		switch tag {
		case fieldOperation:
			if len(value) == 1 {
				r.Operation = Operation(value[0])
			}
		case fieldConfig:
			r.Config = string(value)
		case fieldBackendDir:
			r.BackendDir = string(value)
		case fieldAudience:
			r.Audience, r.HasAudience = string(value), true
		case fieldBody:
			r.Body = value
		}
	}
	if r.Operation < Resolve || r.Operation > Ping {
		return Request{}, join("a request for operation ", decimal(int(r.Operation)), ", which is not known here")
	}
	return r, ""
}

// Reply of an agent.
type Reply struct {
	Status         uint8 // exit status
	Stdout, Stderr []byte
	// Unserved says why the agent cannot serve this request at all: the asker does the work itself.
	Unserved string
}

// AppendReply appends r as a whole frame. An answer that no frame can hold makes one that says so in Unserved.
func AppendReply(dst []byte, r Reply) []byte {
	const heads = 4*fieldHead + 1
	if len(r.Stdout)+len(r.Stderr)+len(r.Unserved)+heads > MaxFrame {
		r = Reply{Unserved: join("the answer is longer than the ", decimal(MaxFrame), " bytes of a frame")}
	}
	start := len(dst)
	dst = appendHeader(dst, KindReply)
	dst = append(dst, fieldStatus, 0, 0, 0, 1, r.Status)
	if len(r.Stdout) > 0 {
		dst = appendField(dst, fieldStdout, r.Stdout)
	}
	if len(r.Stderr) > 0 {
		dst = appendField(dst, fieldStderr, r.Stderr)
	}
	if r.Unserved != "" {
		dst = appendField(dst, fieldUnserved, r.Unserved)
	}
	putBigEndian(dst[start+8:], len(dst)-start-HeaderSize)
	return dst
}

// AppendWorking appends a frame that says that the agent works on the request.
func AppendWorking(dst []byte) []byte { return appendHeader(dst, KindWorking) }

// DecodeReply reads what followed the header h. All of the reply lies within payload.
func DecodeReply(h Header, payload []byte) (r Reply, problem string) {
	if problem := misfit(h, KindReply, payload); problem != "" {
		return Reply{}, problem
	}
	hasStatus := false
	for len(payload) > 0 {
		tag, value, rest, ok := cutField(payload)
		if !ok {
			return Reply{}, "a reply with a field that is cut off"
		}
		payload = rest
		switch tag {
		case fieldStatus:
			if hasStatus = len(value) == 1; hasStatus {
				r.Status = value[0]
			}
		case fieldStdout:
			r.Stdout = value
		case fieldStderr:
			r.Stderr = value
		case fieldUnserved:
			r.Unserved = view(value)
		}
	}
	if !hasStatus {
		return Reply{}, "a reply without an exit status"
	}
	return r, ""
}

// misfit says what is wrong with a payload for its header, and with a header where a frame of kind was wanted.
func misfit(h Header, kind uint8, payload []byte) (problem string) {
	switch {
	case h.Kind != kind:
		return join("a frame of kind ", decimal(int(h.Kind)), " where one of kind ", decimal(int(kind)), " was expected")
	case h.Length != len(payload):
		return "a frame that is cut off"
	}
	return ""
}

func appendHeader(dst []byte, kind uint8) []byte {
	dst = append(dst, magic...)
	return append(dst, Version, 1, kind, 0, 0, 0, 0, 0)
}

func appendField[V string | []byte](dst []byte, tag uint8, value V) []byte {
	n := len(value)
	dst = append(dst, tag, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	return append(dst, value...)
}

// cutField takes the first field from b.
func cutField(b []byte) (tag uint8, value, rest []byte, ok bool) {
	if len(b) < fieldHead {
		return 0, nil, nil, false
	}
	tag, length, b := b[0], bigEndian(b[1:]), b[fieldHead:]
	if uint64(length) > uint64(len(b)) {
		return 0, nil, nil, false
	}
	return tag, b[:length:length], b[length:], true
}

// These two are in the standard library, which is what this package must not wait for.

func bigEndian(b []byte) uint32 {
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func putBigEndian(b []byte, n int) {
	b[0], b[1], b[2], b[3] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n)
}
