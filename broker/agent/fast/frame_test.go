package fast

import (
	"bytes"
	"encoding/hex"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var requests = map[string]Request{
	"nothing but an operation": {Operation: Status, Body: []byte{}},
	"everything": {
		Operation: Resolve, Config: "/etc/broker.yaml", BackendDir: "/backends", Audience: "sts.example", HasAudience: true, Body: []byte(`{"image":"registry.example"}`),
	},
	"the empty audience": {Operation: Get, HasAudience: true, Body: []byte("{}")},
	"a long body":        {Operation: Forget, Body: bytes.Repeat([]byte("0123456789abcdef"), 1<<16)},
}

var replies = map[string]Reply{
	"nothing":     {},
	"everything":  {Status: 2, Stdout: []byte("out"), Stderr: []byte("err"), Unserved: "other configuration"},
	"an answer":   {Stdout: bytes.Repeat([]byte("0123456789abcdef"), 1<<16)},
	"a failure":   {Status: 255, Stderr: []byte("provider \"x\": refused\n")},
	"no service":  {Unserved: "shutting down"},
	"zero values": {Stdout: []byte{0, 0, 0}},
}

func decodeRequest(t *testing.T, frame []byte) (Request, string) {
	t.Helper()
	h, problem := ParseHeader(frame)
	if problem != "" {
		return Request{}, problem
	}
	return DecodeRequest(h, frame[HeaderSize:])
}

func decodeReply(t *testing.T, frame []byte) (Reply, string) {
	t.Helper()
	h, problem := ParseHeader(frame)
	if problem != "" {
		return Reply{}, problem
	}
	return DecodeReply(h, frame[HeaderSize:])
}

func TestFramesAreReadAsTheyWereWritten(t *testing.T) {
	for name, want := range requests {
		got, problem := decodeRequest(t, AppendRequest([]byte("before")[:0:0], want))
		if problem != "" || !cmp.Equal(got, want) {
			t.Errorf("request with %s: problem %q, difference %s", name, problem, cmp.Diff(want, got))
		}
	}
	for name, want := range replies {
		got, problem := decodeReply(t, AppendReply(nil, want))
		if problem != "" || !cmp.Equal(got, want) {
			t.Errorf("reply with %s: problem %q, difference %s", name, problem, cmp.Diff(want, got))
		}
	}
	if h, problem := ParseHeader(AppendWorking(nil)); problem != "" || h != (Header{Version: Version, Minimum: 1, Kind: KindWorking}) {
		t.Errorf("working: problem %q, header %+v", problem, h)
	}
}

func TestFramesAreAppended(t *testing.T) {
	before := []byte("before")
	for name, after := range map[string]func(dst []byte) []byte{
		"request": func(dst []byte) []byte { return AppendRequest(dst, requests["everything"]) },
		"reply":   func(dst []byte) []byte { return AppendReply(dst, replies["everything"]) },
		"working": AppendWorking,
	} {
		if got, want := after(before), append([]byte("before"), after(nil)...); !bytes.Equal(got, want) {
			t.Errorf("%s: %x, want %x", name, got, want)
		}
	}
}

// golden reads bytes that were once written down: hexadecimal, with comments.
func golden(t *testing.T, file string) []byte {
	t.Helper()
	text, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	text = regexp.MustCompile(`#.*|\s+`).ReplaceAll(text, nil)
	frame, err := hex.DecodeString(string(text))
	if err != nil {
		t.Fatal(err)
	}
	return frame
}

func TestVersion1StaysAsItIs(t *testing.T) {
	request, reply := golden(t, "request-v1.hex"), golden(t, "reply-v1.hex")
	if got, problem := decodeRequest(t, request); problem != "" || !cmp.Equal(got, requests["everything"]) {
		t.Errorf("reading a request: problem %q, difference %s", problem, cmp.Diff(requests["everything"], got))
	}
	if got, problem := decodeReply(t, reply); problem != "" || !cmp.Equal(got, replies["everything"]) {
		t.Errorf("reading a reply: problem %q, difference %s", problem, cmp.Diff(replies["everything"], got))
	}
	if got := AppendRequest(nil, requests["everything"]); !bytes.Equal(got, request) {
		t.Errorf("writing a request:\n%x, want\n%x", got, request)
	}
	if got := AppendReply(nil, replies["everything"]); !bytes.Equal(got, reply) {
		t.Errorf("writing a reply:\n%x, want\n%x", got, reply)
	}
}

// newer is a frame as a later version may write it: with fields that this one does not know, before, between and behind those that it does.
func newer(frame []byte, version, minimum uint8) []byte {
	unknown := []byte{200, 0, 0, 0, 3, 'n', 'e', 'w'}
	empty := []byte{201, 0, 0, 0, 0}
	later := append([]byte{}, frame[:HeaderSize]...)
	later[4], later[5] = version, minimum
	later = append(later, unknown...)
	for payload := frame[HeaderSize:]; len(payload) > 0; {
		_, value, rest, _ := cutField(payload)
		later = append(later, payload[:fieldHead+len(value)]...)
		later = append(later, empty...)
		payload = rest
	}
	later = append(later, unknown...)
	putBigEndian(later[8:], len(later)-HeaderSize)
	return later
}

func TestFramesOfALaterVersion(t *testing.T) {
	for name, want := range requests {
		got, problem := decodeRequest(t, newer(AppendRequest(nil, want), 2, 1))
		if problem != "" || !cmp.Equal(got, want) {
			t.Errorf("request with %s: problem %q, difference %s", name, problem, cmp.Diff(want, got))
		}
	}
	for name, want := range replies {
		got, problem := decodeReply(t, newer(AppendReply(nil, want), 2, 1))
		if problem != "" || !cmp.Equal(got, want) {
			t.Errorf("reply with %s: problem %q, difference %s", name, problem, cmp.Diff(want, got))
		}
	}
	if _, problem := ParseHeader(newer(AppendReply(nil, Reply{}), 2, 2)); !strings.Contains(problem, "speaks version 2") || !strings.Contains(problem, "at least version 2") {
		t.Errorf("a frame that wants version 2: problem %q", problem)
	}
}

func TestFramesThatAreRefused(t *testing.T) {
	request, reply := AppendRequest(nil, requests["everything"]), AppendReply(nil, replies["everything"])
	changed := func(frame []byte, at int, to byte) []byte {
		frame = append([]byte{}, frame...)
		frame[at] = to
		return frame
	}
	withLength := func(payload ...byte) []byte {
		frame := append(appendHeader(nil, KindReply), payload...)
		putBigEndian(frame[8:], len(payload))
		return frame
	}
	for name, test := range map[string]struct {
		frame []byte
		want  string
	}{
		"another program's bytes":       {[]byte("HTTP/1.1 400 Bad Request\r\n\r\n"), "no frame"},
		"nothing":                       {nil, "no frame"},
		"version 0":                     {changed(reply, 4, 0), "no frame"},
		"minimum 0":                     {changed(reply, 5, 0), "no frame"},
		"another kind":                  {request, "kind 1 where one of kind 2"},
		"longer than a frame may be":    {changed(reply, 8, 1), "more than 4194304 bytes"},
		"a byte longer than it may be":  {append(append([]byte{}, reply[:8]...), 0, 0x40, 0, 1), "more than 4194304 bytes"},
		"shorter than it says":          {reply[:len(reply)-1], "cut off"},
		"longer than it says":           {append(append([]byte{}, reply...), 0), "cut off"},
		"a field longer than the frame": {changed(reply, HeaderSize+1, 255), "field that is cut off"},
		"a field a byte too long":       {withLength(1, 0, 0, 0, 2, 0), "field that is cut off"},
		"a head of a field only":        {withLength(1, 0, 0, 0), "field that is cut off"},
		"no exit status":                {withLength(2, 0, 0, 0, 1, 'x'), "without an exit status"},
		"an exit status of two bytes":   {withLength(1, 0, 0, 0, 2, 0, 0), "without an exit status"},
	} {
		if _, problem := decodeReply(t, test.frame); !strings.Contains(problem, test.want) {
			t.Errorf("%s: problem %q, want one with %q", name, problem, test.want)
		}
	}
	for name, test := range map[string]struct {
		frame []byte
		want  string
	}{
		"another kind":         {reply, "kind 2 where one of kind 1"},
		"an unknown operation": {changed(request, HeaderSize+fieldHead, 6), "operation 6"},
		"operation 0":          {changed(request, HeaderSize+fieldHead, 0), "operation 0"},
		"a field cut off":      {changed(request, HeaderSize+fieldHead+2, 255), "field that is cut off"},
	} {
		if _, problem := decodeRequest(t, test.frame); !strings.Contains(problem, test.want) {
			t.Errorf("request with %s: problem %q, want one with %q", name, problem, test.want)
		}
	}
}

func TestAFrameCutAnywhereIsRefused(t *testing.T) {
	request, reply := golden(t, "request-v1.hex"), golden(t, "reply-v1.hex")
	for end := range request {
		if _, problem := decodeRequest(t, request[:end]); problem == "" {
			t.Errorf("a request of %d bytes was read", end)
		}
	}
	for end := range reply {
		if _, problem := decodeReply(t, reply[:end]); problem == "" {
			t.Errorf("a reply of %d bytes was read", end)
		}
	}
}

func TestAnAnswerTooLongForAFrameIsSaidToBe(t *testing.T) {
	got, problem := decodeReply(t, AppendReply(nil, Reply{Stdout: make([]byte, MaxFrame)}))
	if problem != "" || len(got.Stdout) != 0 || !strings.Contains(got.Unserved, "longer than") {
		t.Errorf("problem %q, %d bytes, unserved %q", problem, len(got.Stdout), got.Unserved)
	}
	longest := Reply{Stdout: make([]byte, MaxFrame-4*fieldHead-1)}
	if got, problem = decodeReply(t, AppendReply(nil, longest)); problem != "" || len(got.Stdout) != len(longest.Stdout) {
		t.Errorf("the longest: problem %q, %d bytes, unserved %q", problem, len(got.Stdout), got.Unserved)
	}
}

func FuzzParseHeader(f *testing.F) {
	f.Add(AppendWorking(nil))
	f.Add([]byte("HTTP/1.1 400 Bad Request"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, problem := ParseHeader(b)
		if problem == "" && (h.Minimum == 0 || h.Minimum > Version || h.Length < 0 || h.Length > MaxFrame) {
			t.Errorf("%+v was taken", h)
		}
	})
}

func FuzzDecodeRequest(f *testing.F) {
	for _, r := range requests {
		if len(r.Body) < 1000 {
			f.Add(AppendRequest(nil, r)[HeaderSize:])
		}
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		r, problem := DecodeRequest(Header{Version: 1, Minimum: 1, Kind: KindRequest, Length: len(payload)}, payload)
		if problem != "" {
			return
		}
		again, problem := decodeRequest(t, AppendRequest(nil, r))
		if problem != "" || again.Config != r.Config || again.BackendDir != r.BackendDir || again.Audience != r.Audience || again.HasAudience != r.HasAudience ||
			again.Operation != r.Operation || !bytes.Equal(again.Body, r.Body) {
			t.Errorf("%+v became %+v (problem %q)", r, again, problem)
		}
	})
}

func FuzzDecodeReply(f *testing.F) {
	for _, r := range replies {
		if len(r.Stdout) < 1000 {
			f.Add(AppendReply(nil, r)[HeaderSize:])
		}
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		r, problem := DecodeReply(Header{Version: 1, Minimum: 1, Kind: KindReply, Length: len(payload)}, payload)
		if problem != "" {
			return
		}
		again, problem := decodeReply(t, AppendReply(nil, r))
		if problem != "" || again.Status != r.Status || again.Unserved != r.Unserved || !bytes.Equal(again.Stdout, r.Stdout) || !bytes.Equal(again.Stderr, r.Stderr) {
			t.Errorf("%+v became %+v (problem %q)", r, again, problem)
		}
	})
}
