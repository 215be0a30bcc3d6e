package backends

import (
	"context"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/credential-broker/credential-broker/backends/internal/redact"
	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

// Span notes that a step of the current call's work begins, and end that it is done. People who look for what was slow see it in `credential-broker get`, and in their traces: the name
// says in a few words what is done, "registry token", and nothing secret. Steps may overlap, lie within each other and be noted from many goroutines; of one
// call, the first 100 are kept. Outside a call, or after it, it does nothing.
//
//	defer backends.Span(ctx, "registry token")()
func Span(ctx context.Context, name string) (end func()) {
	s, _ := ctx.Value(spansKey{}).(*spans)
	if s == nil {
		return func() {}
	}
	return s.begin(name)
}

// TraceParent is the trace that the current call belongs to, as the header `traceparent` of the W3C's Trace Context: for a backend's own requests to carry on. Empty where the broker traces nothing.
func TraceParent(ctx context.Context) string {
	values := metadata.ValueFromIncomingContext(ctx, backendv1.TraceParentHeader)
	if len(values) != 1 || !backendv1.IsTraceParent(values[0]) {
		return ""
	}
	return values[0]
}

type spansKey struct{}

// spans are the steps of one call.
type spans struct {
	began time.Time

	mu    sync.Mutex
	steps []*step
}

type step struct {
	name        string
	start, took time.Duration
	ended       bool
}

// withSpans gives a context whose steps are noted.
func withSpans(ctx context.Context) (context.Context, *spans) {
	s := &spans{began: time.Now()}
	return context.WithValue(ctx, spansKey{}, s), s
}

func (s *spans) begin(name string) (end func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.steps) == backendv1.MaxSpans {
		return func() {}
	}
	one := &step{name: name, start: time.Since(s.began)}
	s.steps = append(s.steps, one)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		one.end(time.Since(s.began))
	}
}

func (s *step) end(now time.Duration) {
	if !s.ended {
		s.took, s.ended = now-s.start, true
	}
}

// maxSpanName bounds a step's name, in bytes.
const maxSpanName = 100

// message gives the steps until now, the earliest first. One that has not ended is as long as it could be so far: it may be the very one that somebody looks for.
func (s *spans) message(hidden *redact.Set) []*backendv1.Span {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Since(s.began)
	messages := make([]*backendv1.Span, 0, len(s.steps))
	for _, one := range s.steps {
		one.end(now)
		name := oneLine(hidden.Text(one.name))
		name = strings.ToValidUTF8(name[:min(len(name), maxSpanName)], "")
		messages = append(messages, &backendv1.Span{Name: name, Start: durationpb.New(one.start), Took: durationpb.New(one.took)})
	}
	return messages
}
