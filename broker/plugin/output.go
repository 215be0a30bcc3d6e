package plugin

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"iter"
	"log/slog"
	"maps"
	"math"
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
// the calls under way are done and every secret that could be in it is known; only then it is logged.
type output struct {
	secrets secrets
	streams []*stream

	mu      sync.Mutex
	calls   map[*call]struct{} // those under way
	count   int                // of lines, ever
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
	number int  // how many lines came before it
	size   int  // what it counts, see lineCost
}

func newOutput() *output {
	o := &output{room: maxFirst, calls: map[*call]struct{}{}}
	o.secrets.forgetting = o.redactKept
	return o
}

// call is a call under way. What is printed meanwhile is not logged before it is over, since its answer brings the secrets that may be in there.
type call struct {
	output *output
	from   int // the number of the first line that belongs to its time
	held   []*spelling
}

// begin notes that a call has begun, which must be ended.
func (o *output) begin() *call {
	o.mu.Lock()
	defer o.mu.Unlock()
	c := &call{output: o, from: o.count}
	o.calls[c] = struct{}{}
	return c
}

// redact keeps secrets that pass through the call out of what is logged and reported: until its end for certain, and then until others take their place.
func (c *call) redact(secrets ...string) {
	c.held = append(c.held, c.output.secrets.hold(secrets...)...)
}

func (c *call) end() {
	c.output.secrets.release(c.held)
	c.output.mu.Lock()
	defer c.output.mu.Unlock()
	delete(c.output.calls, c)
}

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

func (s *stream) line(line []byte, cut bool) {
	s.output.keep(printed{stream: s.name, text: string(line), cut: cut})
}

func (o *output) keep(p printed) {
	o.mu.Lock()
	defer o.mu.Unlock()
	p.number, p.size = o.count, len(p.text)+lineCost
	o.count++
	if o.room >= p.size && len(o.last) == 0 {
		o.room -= p.size
		o.first = append(o.first, p)
		return
	}
	o.last = append(o.last, p)
	o.lastLen += p.size
	for o.lastLen > maxLast {
		o.lastLen -= o.last[0].size
		o.last = o.last[1:]
		o.dropped++
	}
}

// take returns what has been kept, and forgets it; whole is false: but for what belongs to the time of a call under way.
func (o *output) take(whole bool) (first, last []printed, dropped int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	before := o.count
	for c := range o.calls {
		if !whole {
			before = min(before, c.from)
		}
	}
	first, o.first = cutAt(o.first, before)
	last, o.last = cutAt(o.last, before)
	if len(o.first) == 0 { // what is left follows on nothing that is still here
		dropped, o.dropped = o.dropped, 0
		o.first, o.last = slices.Clone(o.last), nil
	}
	o.room, o.lastLen = maxFirst-sizeOf(o.first), sizeOf(o.last)
	return first, last, dropped
}

// cutAt parts the lines before that number from the others.
func cutAt(lines []printed, number int) (before, others []printed) {
	i := 0
	for i < len(lines) && lines[i].number < number {
		i++
	}
	return lines[:i:i], lines[i:]
}

func sizeOf(lines []printed) (size int) {
	for _, p := range lines {
		size += p.size
	}
	return size
}

// redactKept takes the secrets out of what is still to be logged, because some of them are about to be forgotten.
func (o *output) redactKept(redact redactor) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, lines := range [][]printed{o.first, o.last} {
		for i := range lines {
			line := &lines[i]
			line.text = line.read(redact).encode()
			if len(line.text) > maxLine { // masks are longer than some secrets
				line.text, line.cut = line.text[:maxLine], true
			}
		}
	}
}

// lastWords are the last lines, for an error: from the message of a panic on, if there is one. What may belong to other calls under way than mine is withheld: it may hold secrets of theirs. Empty
// if nothing else was printed.
func (o *output) lastWords(mine *call) (words string, withheld bool) {
	const lines, length = 5, 1 << 10
	var all []printed
	redact := o.secrets.with(func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		before := o.count
		for c := range o.calls {
			if c != mine {
				before = min(before, c.from)
			}
		}
		var others []printed
		all, others = cutAt(slices.Concat(o.first, o.last), before)
		withheld = len(others) > 0
		return len(all) > 0
	})
	all = slices.DeleteFunc(all, func(p printed) bool { return strings.TrimSpace(p.text) == "" })
	from := max(0, len(all)-lines)
	for i, p := range all {
		if strings.HasPrefix(p.text, "panic: ") || strings.HasPrefix(p.text, "fatal error: ") {
			from = i
			break
		}
	}
	said := make([]string, 0, lines)
	for _, p := range all[from:min(len(all), from+lines)] {
		said = append(said, clean(p.read(redact).message, length))
	}
	return clean(strings.Join(said, "; "), length), withheld
}

// log writes what has been kept to the logger, each line at the level it names for itself, and forgets it. It is for the end: a line that has none ends here.
func (o *output) log(logger *slog.Logger, provider, path string) {
	for _, s := range o.streams {
		s.end()
	}
	o.write(logger, provider, path, true)
}

// flush is log for a backend that goes on: of what belongs to the time of a call under way it logs nothing, nor of a line that has not ended.
func (o *output) flush(logger *slog.Logger, provider, path string) {
	o.write(logger, provider, path, false)
}

func (o *output) write(logger *slog.Logger, provider, path string, whole bool) {
	var first, last []printed
	var dropped int
	// At one moment, so that no secret in these lines is learned or forgotten in between.
	redact := o.secrets.with(func() bool {
		first, last, dropped = o.take(whole)
		return len(first) > 0
	})
	if len(first) == 0 {
		return
	}
	logger = logger.With("provider", provider, "backend", path)
	for _, p := range first {
		logLine(logger, p, redact)
	}
	if dropped > 0 {
		logger.Warn("the backend printed too much", "linesDropped", dropped)
	}
	for _, p := range last {
		logLine(logger, p, redact)
	}
}

func logLine(logger *slog.Logger, p printed, redact redactor) {
	if strings.TrimSpace(p.text) == "" {
		return
	}
	r := p.read(redact)
	message := clean(r.message, maxLine)
	if r.plain {
		logger.Info(message, "stream", p.stream)
		return
	}
	attrs := make([]any, 0, len(r.attrs))
	for _, a := range r.attrs {
		attrs = append(attrs, slog.String(clean(a[0], 200), clean(a[1], maxLine)))
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
	log(message, "stream", p.stream, slog.Group("said", attrs...))
}

// record is a line of a structured log, or another line.
type record struct {
	plain   bool // message is all there is
	level   slog.Level
	message string
	attrs   [][2]string
}

// read gives the line as it may be logged.
func (p printed) read(redact redactor) record {
	text := redact(p.text, p.cut)
	r, ok := parseRecord(text)
	if !ok {
		return record{plain: true, message: text}
	}
	// Again, since it may have been escaped in a way of its own.
	r.message = redact(r.message, p.cut)
	for i, a := range r.attrs {
		r.attrs[i] = [2]string{redact(a[0], false), redact(a[1], false)}
	}
	return r
}

// encode gives the line that reads so.
func (r record) encode() string {
	if r.plain {
		return r.message
	}
	fields := make(map[string]string, len(r.attrs)+2)
	for _, a := range r.attrs {
		fields[a[0]] = a[1]
	}
	fields["level"], fields["msg"] = r.level.String(), r.message
	line, _ := json.Marshal(fields) //nolint:errchkjson // strings can always be encoded
	return string(line)
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

// redactor replaces every secret in a text. Of a text that was cut, a beginning of a secret at its end is replaced too.
type redactor func(text string, cut bool) string

// secrets are what must not be logged or reported, in every spelling it is likely to be printed in. Those that were added are remembered for good; those that passed through calls
// until they make room for others, the one that passed longest ago first, lest a backend that runs for days need ever more memory, and ever more time for each line.
type secrets struct {
	// forgetting, if set, is called before something is forgotten, with what still knows it.
	forgetting func(redactor)

	mu    sync.Mutex
	known map[string]*spelling
	texts []string // of what is known; only ever appended to, or replaced, so that whoever has it may read it without the lock
	bytes int      // of all that is known
	clock uint64   // counts what is added and held
	// blind is more than zero while there is a secret that found no room: for how many further spellings, after which it would have been forgotten. Everything is masked until then.
	blind int
}

// spelling is one way to write a secret.
type spelling struct {
	text  string
	used  uint64 // the clock when it was last added or held
	holds int    // by calls under way; one that was added is held for good
}

// Bounds on what is looked for in every line. A backend that gives more secrets than that at once, or one of very many lines, gets none of its output logged for a while.
const (
	maxSpellings     = 2000
	maxSpellingBytes = 2 << 20
)

// minPart is the length in bytes from which a piece of a secret, at the edge of a line that was cut or a line of its own, counts as secret.
const minPart = 4

// add remembers secrets for good.
func (s *secrets) add(secrets ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, all := s.remember(secrets); !all {
		s.blind = math.MaxInt
	}
}

// hold remembers secrets at least until what it returns is released.
func (s *secrets) hold(secrets ...string) []*spelling {
	s.mu.Lock()
	defer s.mu.Unlock()
	held, all := s.remember(secrets)
	if !all {
		s.blind = max(s.blind, maxSpellings)
	}
	return held
}

// release ends the hold.
func (s *secrets) release(held []*spelling) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range held {
		one.holds--
	}
}

// remember holds each spelling of the secrets, or as many as there is room for.
func (s *secrets) remember(secrets []string) (held []*spelling, all bool) {
	if s.known == nil {
		s.known = map[string]*spelling{}
	}
	for _, secret := range secrets {
		for text := range spellings(secret) {
			if text == "" {
				continue
			}
			one := s.known[text]
			if one == nil {
				if !s.makeRoom(len(text)) {
					return held, false
				}
				one = &spelling{text: text}
				s.known[text] = one
				s.texts = append(s.texts, text)
				s.bytes += len(text)
				if s.blind > 0 && s.blind < math.MaxInt {
					s.blind--
				}
			}
			s.clock++
			one.used = s.clock
			one.holds++
			held = append(held, one)
		}
	}
	return held, true
}

// makeRoom says whether there is room for one more spelling of so many bytes. Where there is none, it forgets much at once, since what is still to be logged has to be redacted before.
func (s *secrets) makeRoom(size int) bool {
	full := func(atMost, bytesAtMost int) bool {
		return len(s.known) >= atMost || s.bytes+size > bytesAtMost
	}
	if !full(maxSpellings, maxSpellingBytes) {
		return true
	}
	var idle []*spelling
	for _, one := range s.known {
		if one.holds == 0 {
			idle = append(idle, one)
		}
	}
	if len(idle) == 0 {
		return false
	}
	if s.forgetting != nil {
		s.forgetting(s.redactLocked)
	}
	slices.SortFunc(idle, func(a, b *spelling) int { return cmp.Compare(a.used, b.used) })
	for _, one := range idle {
		if !full(maxSpellings/2, maxSpellingBytes/2) {
			break
		}
		delete(s.known, one.text)
		s.bytes -= len(one.text)
	}
	s.texts = slices.Collect(maps.Keys(s.known))
	return !full(maxSpellings, maxSpellingBytes)
}

// login are the secrets of a credential: the password, and the pair of name and password as an Authorization header has it.
func login(username, password string) []string {
	if password == "" {
		return nil
	}
	pair := []byte(username + ":" + password)
	return []string{password, base64.RawStdEncoding.EncodeToString(pair), base64.RawURLEncoding.EncodeToString(pair)}
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

// redact is a redactor by what is known now.
func (s *secrets) redact(text string, cut bool) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.redactLocked(text, cut)
}

func (s *secrets) redactLocked(text string, cut bool) string {
	if s.blind > 0 {
		return secret.Mask
	}
	return redact(text, cut, s.texts)
}

// with gives a redactor by what is known at the moment when do runs, if do says that one is needed.
func (s *secrets) with(do func() (needed bool)) redactor {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !do():
		return nil
	case s.blind > 0:
		return func(string, bool) string { return secret.Mask }
	}
	known := s.texts
	return func(text string, cut bool) string { return redact(text, cut, known) }
}

func redact(text string, cut bool, secrets []string) string {
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
	for _, known := range secrets {
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
