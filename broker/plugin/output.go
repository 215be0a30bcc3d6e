package plugin

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"iter"
	"log/slog"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/credential-broker/credential-broker/proto/secret"
)

// Bounds on what is kept of a backend's output: its beginning and its end.
const (
	maxLine  = 4 << 10
	maxFirst = 32 << 10
	maxLast  = 32 << 10
	// lineCost is what a line counts besides its bytes, so that empty ones are bounded too.
	lineCost = 64
)

// output is what a backend prints: on standard output and standard error, before its handshake or after, by itself or through go-plugin. It is kept, within bounds, until
// the answer is in and every secret that could be in it is known; only then it is logged.
type output struct {
	secrets secrets
	streams []*stream

	mu      sync.Mutex
	first   []printed
	last    []printed
	room    int // bytes left for first
	lastLen int
	dropped int // lines between first and last
}

// printed is one line of output.
type printed struct {
	stream string
	text   string
	cut    bool // the line went on
}

func newOutput() *output { return &output{room: maxFirst} }

// stream is a writer for one of the backend's streams.
func (o *output) stream(name string) *stream {
	s := &stream{name: name, output: o}
	s.lines.emit = s.line
	o.streams = append(o.streams, s)
	return s
}

// stream may be written by one goroutine while another ends it.
type stream struct {
	name   string
	output *output

	mu    sync.Mutex
	lines splitter
}

func (s *stream) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lines.Write(b)
}

// end keeps a last line that was not ended.
func (s *stream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines.end()
}

func (s *stream) line(line []byte, cut bool) { s.output.keep(printed{s.name, string(line), cut}) }

func (o *output) keep(p printed) {
	o.mu.Lock()
	defer o.mu.Unlock()
	size := len(p.text) + lineCost
	if o.room >= size && len(o.last) == 0 {
		o.room -= size
		o.first = append(o.first, p)
		return
	}
	o.last = append(o.last, p)
	o.lastLen += size
	for o.lastLen > maxLast {
		o.lastLen -= len(o.last[0].text) + lineCost
		o.last = o.last[1:]
		o.dropped++
	}
}

// take returns what has been kept, and forgets it.
func (o *output) take() (first, last []printed, dropped int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	first, last, dropped = o.first, o.last, o.dropped
	o.first, o.last, o.room, o.lastLen, o.dropped = nil, nil, maxFirst, 0, 0
	return first, last, dropped
}

// lastWords are the last lines, for an error: from the message of a panic on, if there is one. Empty if nothing was printed.
func (o *output) lastWords() string {
	const lines, length = 5, 1 << 10
	o.mu.Lock()
	all := slices.Concat(o.first, o.last)
	o.mu.Unlock()
	all = slices.DeleteFunc(all, func(p printed) bool { return strings.TrimSpace(p.text) == "" })
	from := max(0, len(all)-lines)
	for i, p := range all {
		if strings.HasPrefix(p.text, "panic: ") || strings.HasPrefix(p.text, "fatal error: ") {
			from = i
			break
		}
	}
	words := make([]string, 0, lines)
	for _, p := range all[from:min(len(all), from+lines)] {
		text := o.secrets.redact(p.text, p.cut)
		if r, ok := parseRecord(text); ok {
			text = o.secrets.redact(r.message, p.cut) // which may have been escaped in a way of its own
		}
		words = append(words, clean(text, length))
	}
	return clean(strings.Join(words, "; "), length)
}

// log writes what has been kept to the logger, each line at the level it names for itself, and forgets it.
func (o *output) log(logger *slog.Logger, provider, path string) {
	for _, s := range o.streams {
		s.end()
	}
	first, last, dropped := o.take()
	if len(first) == 0 {
		return
	}
	logger = logger.With("provider", provider, "backend", path)
	for _, p := range first {
		o.logLine(logger, p)
	}
	if dropped > 0 {
		logger.Warn("the backend printed too much", "linesDropped", dropped)
	}
	for _, p := range last {
		o.logLine(logger, p)
	}
}

func (o *output) logLine(logger *slog.Logger, p printed) {
	if strings.TrimSpace(p.text) == "" {
		return
	}
	text := o.secrets.redact(p.text, p.cut)
	r, ok := parseRecord(text)
	if !ok {
		logger.Info(clean(text, maxLine), "stream", p.stream)
		return
	}
	attrs := make([]any, 0, len(r.attrs))
	for _, a := range r.attrs {
		attrs = append(attrs, slog.String(clean(o.secrets.redact(a[0], false), 200), clean(o.secrets.redact(a[1], false), maxLine)))
	}
	log := logger.Info
	switch {
	case r.level < slog.LevelInfo:
		log = logger.Debug
	case r.level >= slog.LevelError:
		log = logger.Error
	case r.level >= slog.LevelWarn:
		log = logger.Warn
	}
	log(clean(o.secrets.redact(r.message, false), maxLine), "stream", p.stream, slog.Group("said", attrs...))
}

// record is a line of a structured log.
type record struct {
	level   slog.Level
	message string
	attrs   [][2]string
}

// parseRecord reads a line as slog (level, msg, time) or hclog (@level, @message, @timestamp, @module) writes it.
func parseRecord(line string) (r record, ok bool) {
	if !strings.HasPrefix(line, "{") {
		return r, false
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal([]byte(line), &fields) != nil {
		return r, false
	}
	take := func(names ...string) string {
		for _, name := range names {
			if raw, ok := fields[name]; ok {
				delete(fields, name)
				return textOf(raw)
			}
		}
		return ""
	}
	level, message := take("level", "@level"), take("msg", "@message")
	if level == "" || message == "" {
		return r, false
	}
	_, _ = take("time", "@timestamp"), take("@module")
	r.level, r.message = levelOf(level), message
	for name, raw := range fields {
		r.attrs = append(r.attrs, [2]string{name, textOf(raw)})
	}
	slices.SortFunc(r.attrs, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	return r, true
}

func textOf(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	return string(raw)
}

func levelOf(name string) slog.Level {
	switch strings.ToLower(name) {
	case "trace", "debug":
		return slog.LevelDebug
	case "warn", "warning":
		return slog.LevelWarn
	case "error", "fatal", "panic":
		return slog.LevelError
	}
	var level slog.Level
	if level.UnmarshalText([]byte(name)) == nil { // slog's "DEBUG+2"
		return level
	}
	return slog.LevelInfo
}

// splitter is a writer that hands on whole lines, each cut at maxLine bytes.
type splitter struct {
	emit func(line []byte, cut bool)
	line []byte
	cut  bool
}

func (s *splitter) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		line, rest, ended := bytes.Cut(b, []byte{'\n'})
		s.add(line)
		if ended {
			s.flush()
		}
		b = rest
	}
	return n, nil
}

func (s *splitter) add(b []byte) {
	if room := maxLine - len(s.line); len(b) > room {
		b, s.cut = b[:room], true
	}
	s.line = append(s.line, b...)
}

func (s *splitter) flush() {
	s.emit(s.line, s.cut)
	s.line, s.cut = s.line[:0], false
}

// end hands on a last line that was not ended. It counts as cut: its writer may have been killed, or left behind, in the middle of it.
func (s *splitter) end() {
	if len(s.line) > 0 {
		s.cut = true
		s.flush()
	}
}

// secrets are what must not be logged or reported, in every spelling it is likely to be printed in.
type secrets struct {
	mu      sync.Mutex
	known   []string
	seen    map[string]bool
	tooMany bool
}

// maxSpellings bounds what is looked for in every line. A backend that gives more secrets than that, or one of very many lines, gets none of its output logged.
const maxSpellings = 2000

// minPart is the length in bytes from which a piece of a secret, at the edge of a line that was cut or a line of its own, counts as secret.
const minPart = 4

func (s *secrets) add(secrets ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen == nil {
		s.seen = map[string]bool{}
	}
	for _, secret := range secrets {
		for spelling := range spellings(secret) {
			if s.tooMany = s.tooMany || len(s.known) == maxSpellings; s.tooMany {
				return
			}
			if spelling != "" && !s.seen[spelling] {
				s.seen[spelling] = true
				s.known = append(s.known, spelling)
			}
		}
	}
}

// addLogin adds a password, and the pair of name and password as an Authorization header has it.
func (s *secrets) addLogin(username, password string) {
	if password == "" {
		return
	}
	pair := []byte(username + ":" + password)
	s.add(password, base64.RawStdEncoding.EncodeToString(pair), base64.RawURLEncoding.EncodeToString(pair))
}

func spellings(secret string) iter.Seq[string] {
	return func(yield func(string) bool) {
		if secret == "" {
			return
		}
		asJSON, _ := json.Marshal(secret)
		goQuoted, inASCII := strconv.Quote(secret), strconv.QuoteToASCII(secret) // the latter as many languages write JSON
		for _, spelling := range []string{
			secret, string(asJSON[1 : len(asJSON)-1]), goQuoted[1 : len(goQuoted)-1], inASCII[1 : len(inASCII)-1], url.QueryEscape(secret), url.PathEscape(secret),
		} {
			if !yield(spelling) {
				return
			}
		}
		if !strings.Contains(secret, "\n") {
			return
		}
		for line := range strings.Lines(secret) { // such as a key file as the password: each of its lines is printed as a line
			if line = strings.TrimSpace(line); len(line) >= minPart && !yield(line) {
				return
			}
		}
	}
}

// redact replaces every secret in the text. Of a text that was cut, a beginning of a secret at its end is replaced too.
func (s *secrets) redact(text string, cut bool) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tooMany {
		return secret.Mask
	}
	// What is to be hidden is marked first and replaced at the end, since secrets that are parts of the mask would else multiply it.
	var hide []bool
	mark := func(from, to int) {
		if hide == nil {
			hide = make([]bool, len(text))
		}
		for i := from; i < to; i++ {
			hide[i] = true
		}
	}
	for _, known := range s.known {
		for from := 0; ; {
			i := strings.Index(text[from:], known)
			if i < 0 {
				break
			}
			mark(from+i, from+i+len(known))
			from += i + len(known)
		}
		for n := min(len(known)-1, len(text)); cut && n >= minPart; n-- {
			if strings.HasSuffix(text, known[:n]) {
				mark(len(text)-n, len(text))
				break
			}
		}
	}
	if hide == nil {
		return text
	}
	var b strings.Builder
	for i := range len(text) {
		switch {
		case !hide[i]:
			b.WriteByte(text[i])
		case i == 0 || !hide[i-1]:
			b.WriteString(secret.Mask)
		}
	}
	return b.String()
}
