package backends

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/credential-broker/credential-broker/backends/internal/redact"
	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

// server answers the protocol with a Backend.
type server struct {
	backendv1.UnimplementedBackendServer
	name, version string
	// life ends when the process does.
	life  context.Context
	build builder

	mu      sync.Mutex // held while Configure runs
	backend Backend
	closed  bool
	// secrets are those of the settings.
	secrets []string
}

// Describe says that everything is there for every backend, since it can be asked before there are settings to make the Backend of. One that is no Checker, Renewer, Revoker or
// Closer answers UNIMPLEMENTED.
func (s *server) Describe(context.Context, *backendv1.DescribeRequest) (*backendv1.DescribeResponse, error) {
	return &backendv1.DescribeResponse{Name: s.name, Version: s.version, Features: []backendv1.Feature{
		backendv1.Feature_FEATURE_CHECK, backendv1.Feature_FEATURE_RENEW, backendv1.Feature_FEATURE_REVOKE, backendv1.Feature_FEATURE_CLOSE,
	}}, nil
}

func (s *server) Configure(_ context.Context, req *backendv1.ConfigureRequest) (*backendv1.ConfigureResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.backend != nil {
		return nil, status.Error(codes.FailedPrecondition, "the backend is configured already: one process serves one provider")
	}
	var hidden redact.Set
	bug, err := guard("its settings", func() (err error) {
		var backend Backend
		var secrets []string
		backend, secrets, err = s.build(s.life, req.GetSettings())
		hidden.Add(secrets...)
		if err == nil {
			s.backend, s.secrets = backend, secrets
		}
		return err
	})
	if bug != nil {
		return nil, bug
	}
	response := &backendv1.ConfigureResponse{}
	for _, problem := range problems(err) {
		e := errorMessage(problem, &hidden)
		e.Kind = backendv1.Error_KIND_MISCONFIGURED
		response.Errors = append(response.Errors, e)
	}
	return response, nil
}

// problems takes apart what errors.Join put together, and nothing else: an error that wraps several has something of its own to say.
func problems(err error) []error {
	if err == nil {
		return nil
	}
	wrapper, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	parts := wrapper.Unwrap()
	if joined := errors.Join(parts...); joined == nil || err.Error() != joined.Error() {
		return []error{err}
	}
	var all []error
	for _, part := range parts {
		all = append(all, problems(part)...)
	}
	return all
}

// configured gives the backend once there is one.
func (s *server) configured() (Backend, []string, *backendv1.Error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.backend == nil:
		return nil, nil, &backendv1.Error{Kind: backendv1.Error_KIND_MISCONFIGURED, Message: "the backend has not been configured, or its settings were refused"}
	case s.closed:
		return nil, nil, &backendv1.Error{Kind: backendv1.Error_KIND_UNAVAILABLE, Message: "the backend has been closed: nothing more can be asked of this process"}
	}
	return s.backend, s.secrets, nil
}

func (s *server) GetCredentials(ctx context.Context, req *backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error) {
	backend, secrets, notYet := s.configured()
	if notYet != nil {
		return &backendv1.GetCredentialsResponse{Error: notYet}, nil
	}
	return wantsClose(backend)(answer(ctx, "a request", req, secrets, backend.Credentials))
}

// wantsClose has an answer, or a failure that is one, say that the backend is a Closer: a broker that started this process for one answer would kill it otherwise. What a backend has to put away may have
// come with the failure.
func wantsClose(backend Backend) func(*backendv1.GetCredentialsResponse, error) (*backendv1.GetCredentialsResponse, error) {
	return func(response *backendv1.GetCredentialsResponse, bug error) (*backendv1.GetCredentialsResponse, error) {
		if response != nil {
			_, response.WantsClose = backend.(Closer)
		}
		return response, bug
	}
}

func (s *server) Renew(ctx context.Context, req *backendv1.RenewRequest) (*backendv1.GetCredentialsResponse, error) {
	backend, secrets, notYet := s.configured()
	if notYet != nil {
		return &backendv1.GetCredentialsResponse{Error: notYet}, nil
	}
	renewer, ok := backend.(Renewer)
	if !ok {
		return nil, status.Error(codes.Unimplemented, "this backend has nothing to renew")
	}
	lease := string(req.GetLease())
	return wantsClose(backend)(answer(ctx, "a renewal", req.GetRequest(), append(slices.Clip(secrets), lease), func(ctx context.Context, req Request) (Response, error) {
		return renewer.Renew(ctx, req, Secret(lease))
	}))
}

// answer lets ask answer the request. The secrets are those in play besides the request's and the answer's.
func answer(ctx context.Context, during string, req *backendv1.GetCredentialsRequest, secrets []string, ask func(context.Context, Request) (Response, error)) (*backendv1.GetCredentialsResponse, error) {
	if req.GetDeadline().IsValid() && req.GetDeadline().AsTime().Unix() > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, req.GetDeadline().AsTime())
		defer cancel()
	}
	ctx, spans := withSpans(ctx)
	var hidden redact.Set
	hidden.Add(secrets...)
	hidden.Add(req.GetServiceAccountToken())

	var answer Response
	bug, err := guard(during, func() (err error) {
		answer, err = ask(ctx, Request{
			Image:       Image(req.GetImage()),
			Token:       Secret(req.GetServiceAccountToken()),
			Annotations: req.GetServiceAccountAnnotations(),
		})
		return err
	})
	for _, c := range answer.Credentials {
		hidden.AddPair(c.Username, string(c.Password))
	}
	hidden.Add(string(answer.Lease))
	if bug != nil {
		return nil, bug
	}
	steps := spans.message(&hidden)
	if err == nil {
		var response *backendv1.GetCredentialsResponse
		if response, err = responseMessage(answer, steps); err == nil {
			return response, nil
		}
	}
	return &backendv1.GetCredentialsResponse{Error: errorMessage(err, &hidden), Spans: steps}, nil
}

func (s *server) Check(ctx context.Context, req *backendv1.CheckRequest) (*backendv1.CheckResponse, error) {
	backend, secrets, notYet := s.configured()
	if notYet != nil {
		return &backendv1.CheckResponse{Error: notYet}, nil
	}
	checker, ok := backend.(Checker)
	if !ok {
		return nil, status.Error(codes.Unimplemented, "this backend has nothing to check") // rather than a success that nobody has looked for
	}
	var hidden redact.Set
	hidden.Add(secrets...)
	hidden.Add(req.GetServiceAccountToken())
	bug, err := guard("a check", func() error {
		return checker.Check(ctx, Request{
			Image:       Image(req.GetImage()),
			Token:       Secret(req.GetServiceAccountToken()),
			Annotations: req.GetServiceAccountAnnotations(),
		})
	})
	switch {
	case bug != nil:
		return nil, bug
	case err == nil:
		return &backendv1.CheckResponse{}, nil
	}
	return &backendv1.CheckResponse{Error: errorMessage(err, &hidden)}, nil
}

func (s *server) Revoke(ctx context.Context, req *backendv1.RevokeRequest) (*backendv1.RevokeResponse, error) {
	backend, secrets, notYet := s.configured()
	if notYet != nil {
		return &backendv1.RevokeResponse{Error: notYet}, nil
	}
	revoker, ok := backend.(Revoker)
	if !ok {
		return nil, status.Error(codes.Unimplemented, "this backend has nothing to revoke")
	}
	var hidden redact.Set
	hidden.Add(secrets...)
	hidden.Add(string(req.GetLease()))
	bug, err := guard("a revocation", func() error { return revoker.Revoke(ctx, Secret(req.GetLease())) })
	switch {
	case bug != nil:
		return nil, bug
	case err == nil:
		return &backendv1.RevokeResponse{}, nil
	}
	return &backendv1.RevokeResponse{Error: errorMessage(err, &hidden)}, nil
}

// Close is answered with success where there is nothing to close yet, or not any more.
func (s *server) Close(ctx context.Context, _ *backendv1.CloseRequest) (*backendv1.CloseResponse, error) {
	backend, secrets, notYet := s.configured()
	if notYet != nil {
		return &backendv1.CloseResponse{}, nil
	}
	closer, ok := backend.(Closer)
	if !ok {
		return nil, status.Error(codes.Unimplemented, "this backend has nothing to close")
	}
	if !s.close() {
		return &backendv1.CloseResponse{}, nil
	}
	var hidden redact.Set
	hidden.Add(secrets...)
	bug, err := guard("its end", func() error { return closer.Close(ctx) })
	switch {
	case bug != nil:
		return nil, bug
	case err == nil:
		return &backendv1.CloseResponse{}, nil
	}
	return &backendv1.CloseResponse{Error: errorMessage(err, &hidden)}, nil
}

// close notes that nothing more is to be asked, and says whether that is news.
func (s *server) close() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	news := !s.closed
	s.closed = true
	return news
}

// responseMessage puts a response into the protocol's words. What the protocol does not allow is an error here rather than a broken stream there.
func responseMessage(answer Response, spans []*backendv1.Span) (*backendv1.GetCredentialsResponse, error) {
	if n := len(answer.Credentials); n > backendv1.MaxCredentials {
		return nil, fmt.Errorf("the backend answered with %d credentials, of which the protocol allows %d", n, backendv1.MaxCredentials)
	}
	if n := len(answer.Lease); n > backendv1.MaxLeaseBytes {
		return nil, fmt.Errorf("the backend answered with a lease of %d bytes, of which the protocol allows %d", n, backendv1.MaxLeaseBytes)
	}
	response := &backendv1.GetCredentialsResponse{Scope: backendv1.Scope_SCOPE_IMAGE, Lease: []byte(answer.Lease)}
	if answer.Scope == ScopeRegistry {
		response.Scope = backendv1.Scope_SCOPE_REGISTRY
	}
	if answer.CacheDuration != nil {
		response.CacheDuration = durationpb.New(max(0, *answer.CacheDuration))
	}
	for i, c := range answer.Credentials {
		switch {
		case !utf8.ValidString(c.Key):
			return nil, fmt.Errorf("the key of credential %d is not UTF-8", i)
		case !utf8.ValidString(c.Username), !utf8.ValidString(string(c.Password)):
			return nil, fmt.Errorf("the user name or password for %q is not UTF-8", c.Key)
		}
		credential := &backendv1.Credential{Key: c.Key, Username: c.Username, Password: string(c.Password)}
		if !c.Expires.IsZero() {
			credential.Expires = timestamppb.New(c.Expires)
			if err := credential.Expires.CheckValid(); err != nil {
				return nil, fmt.Errorf("the expiry of the credential for %q is no date of this era: %s", c.Key, c.Expires.UTC().Format(time.RFC3339))
			}
		}
		response.Credentials = append(response.Credentials, credential)
	}
	if n := proto.Size(response); n > backendv1.MaxMessageBytes {
		return nil, fmt.Errorf("the backend's answer has %d bytes, of which the protocol allows %d", n, backendv1.MaxMessageBytes)
	}
	response.Spans = spans
	if proto.Size(response) > backendv1.MaxMessageBytes { // which the credentials need more
		response.Spans = nil
	}
	return response, nil
}

// maxErrorBytes keeps one failure readable.
const maxErrorBytes = 4 << 10

// errorMessage puts an error into the protocol's words: on one line, bounded, and without the secrets in play.
func errorMessage(err error, hidden *redact.Set) *backendv1.Error {
	kind, path := kindOf(err)
	message := err.Error()
	// The field travels on its own, so the prefix that Error() makes of it is not wanted twice.
	if e, ok := err.(*Error); ok { //nolint:errorlint // what wraps it has more to say
		message = e.Err.Error()
	}
	out := &backendv1.Error{Message: oneLine(hidden.Text(message)), Field: strings.ToValidUTF8(hidden.Text(path), "\uFFFD")}
	switch kind {
	case KindRefused:
		out.Kind = backendv1.Error_KIND_REFUSED
	case KindMisconfigured:
		out.Kind = backendv1.Error_KIND_MISCONFIGURED
	default:
		out.Kind = backendv1.Error_KIND_UNAVAILABLE
	}
	return out
}

func oneLine(s string) string {
	lines := strings.FieldsFunc(strings.ToValidUTF8(s, "\uFFFD"), func(r rune) bool { return r == '\n' || r == '\r' })
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.Join(lines, "; "))
	if len(s) > maxErrorBytes {
		s = strings.ToValidUTF8(s[:maxErrorBytes], "") + "…"
	}
	return s
}

// guard calls f. A panic in it comes back as bug, an error with gRPC's code Internal: one request's bug is not the end of the others. Neither the panic's value nor the
// arguments in the stack are shown, since either may be a secret.
func guard(during string, f func() error) (bug, err error) {
	defer func() {
		value := recover()
		if value == nil {
			return
		}
		what := fmt.Sprintf("with a value of type %T", value)
		if t := reflect.TypeOf(value); t.PkgPath() == "runtime" || t.Kind() == reflect.Pointer && t.Elem().PkgPath() == "runtime" {
			what = fmt.Sprint(value) // the language's own: index out of range, nil map and the like
		}
		fmt.Fprintf(os.Stderr, "the backend panicked during %s: %s\n%s", during, what, stack())
		bug = status.Error(codes.Internal, fmt.Sprintf("the backend panicked during %s: %s (its log has the stack): this is a bug in it", during, what))
	}()
	if err = f(); err != nil {
		_ = err.Error() // a pointer that is nil and an error nevertheless panics here, rather than where it would end the process
	}
	return nil, err
}

// stack is where the panic came from: functions, files and lines, without arguments.
func stack() string {
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)])
	var b strings.Builder
	for {
		frame, more := frames.Next()
		fmt.Fprintf(&b, "  %s\n    %s:%d\n", frame.Function, frame.File, frame.Line)
		if !more || strings.HasSuffix(frame.Function, "/backends.guard") {
			return b.String()
		}
	}
}
