package backends

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

const (
	theLease        = "leases/database/1234"
	theSettings     = "secret-of-the-settings"
	someTraceParent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
)

// lender has all that a backend may have. Each test says what it is to do.
type lender struct {
	credentials func(context.Context, Request) (Response, error)
	renew       func(context.Context, Request, Secret) (Response, error)
	revoke      func(context.Context, Secret) error
	close       func(context.Context) error
}

func (l *lender) Credentials(ctx context.Context, req Request) (Response, error) {
	return l.credentials(ctx, req)
}

func (l *lender) Renew(ctx context.Context, req Request, lease Secret) (Response, error) {
	return l.renew(ctx, req, lease)
}
func (l *lender) Revoke(ctx context.Context, lease Secret) error { return l.revoke(ctx, lease) }
func (l *lender) Close(ctx context.Context) error                { return l.close(ctx) }

// serving gives a configured server of the backend.
func serving(t *testing.T, b Backend) *server {
	t.Helper()
	s := unconfigured(b)
	if r, err := s.Configure(t.Context(), &backendv1.ConfigureRequest{}); err != nil || len(r.GetErrors()) > 0 {
		t.Fatal(r, err)
	}
	return s
}

func unconfigured(b Backend) *server {
	return &server{name: "test", version: "1", life: context.Background(), build: func(context.Context, []byte) (Backend, []string, error) {
		return b, []string{theSettings}, nil
	}}
}

func TestEveryFeatureIsNamedBeforeThereAreSettings(t *testing.T) {
	d, err := unconfigured(nil).Describe(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var features []string
	for _, f := range d.GetFeatures() {
		features = append(features, f.String())
	}
	if diff := cmp.Diff([]string{"FEATURE_CHECK", "FEATURE_RENEW", "FEATURE_REVOKE", "FEATURE_CLOSE"}, features); diff != "" {
		t.Error(diff)
	}
}

func TestALeaseIsAnsweredAndRenewed(t *testing.T) {
	token := "the.pods.token"
	request := &backendv1.GetCredentialsRequest{Image: "r.example/a", ServiceAccountToken: &token, ServiceAccountAnnotations: map[string]string{"k": "v"}}
	s := serving(t, &lender{
		credentials: func(context.Context, Request) (Response, error) {
			return Response{Credentials: []Credential{{Key: "r.example", Username: "u", Password: "first"}}, Lease: theLease}, nil
		},
		renew: func(_ context.Context, req Request, lease Secret) (Response, error) {
			saw := fmt.Sprintf("%s %s %s %s", req.Image, string(req.Token), req.Annotations, string(lease))
			return Response{Scope: ScopeRegistry, Credentials: []Credential{{Key: "r.example", Username: saw, Password: "second"}}, Lease: lease + "/2"}, nil
		},
	})
	first, err := s.GetCredentials(t.Context(), request)
	if err != nil || string(first.GetLease()) != theLease {
		t.Fatalf("%v, %v", first, err)
	}
	second, err := s.Renew(t.Context(), &backendv1.RenewRequest{Request: request, Lease: first.GetLease()})
	want := &backendv1.GetCredentialsResponse{
		Scope:       backendv1.Scope_SCOPE_REGISTRY,
		Credentials: []*backendv1.Credential{{Key: "r.example", Username: "r.example/a the.pods.token map[k:v] " + theLease, Password: "second"}},
		Lease:       []byte(theLease + "/2"),
		WantsClose:  true,
	}
	if diff := cmp.Diff(want, second, protocmp.Transform()); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

func TestALeaseThatIsTooLongIsTheBackendsFailure(t *testing.T) {
	for _, tt := range []struct {
		bytes int
		want  string
	}{
		{backendv1.MaxLeaseBytes, ""},
		{backendv1.MaxLeaseBytes + 1, "the backend answered with a lease of 16385 bytes, of which the protocol allows 16384"},
	} {
		s := serving(t, &lender{credentials: func(context.Context, Request) (Response, error) {
			return Response{Lease: Secret(strings.Repeat("x", tt.bytes))}, nil
		}})
		r, err := s.GetCredentials(t.Context(), &backendv1.GetCredentialsRequest{})
		if err != nil || r.GetError().GetMessage() != tt.want || (tt.want != "") == (len(r.GetLease()) > 0) {
			t.Errorf("%d bytes: %v, %v", tt.bytes, r.GetError(), err)
		}
	}
}

// answersOf asks all that a backend may be asked, and gives what it says in each case: the text of the failure, or the gRPC code, or nothing.
func answersOf(ctx context.Context, s *server) map[string]string {
	text := func(failure *backendv1.Error, err error) string {
		switch {
		case err != nil:
			return status.Code(err).String() + ": " + status.Convert(err).Message()
		case failure != nil:
			return strings.TrimPrefix(failure.GetKind().String(), "KIND_") + ": " + failure.GetMessage()
		}
		return ""
	}
	said := map[string]string{}
	lease := []byte(theLease)
	got, err := s.GetCredentials(ctx, &backendv1.GetCredentialsRequest{})
	said["get"] = text(got.GetError(), err)
	renewed, err := s.Renew(ctx, &backendv1.RenewRequest{Lease: lease})
	said["renew"] = text(renewed.GetError(), err)
	revoked, err := s.Revoke(ctx, &backendv1.RevokeRequest{Lease: lease})
	said["revoke"] = text(revoked.GetError(), err)
	closed, err := s.Close(ctx, &backendv1.CloseRequest{})
	said["close"] = text(closed.GetError(), err)
	return said
}

func TestWhatABackendIsNotIsUnimplemented(t *testing.T) {
	s := serving(t, struct{ Backend }{&lender{credentials: func(context.Context, Request) (Response, error) { return Response{}, nil }}})
	want := map[string]string{
		"get": "", "renew": "Unimplemented: this backend has nothing to renew", "revoke": "Unimplemented: this backend has nothing to revoke", "close": "Unimplemented: this backend has nothing to close",
	}
	if diff := cmp.Diff(want, answersOf(t.Context(), s)); diff != "" {
		t.Error(diff)
	}
}

func TestAnAnswerOfACloserWantsClose(t *testing.T) {
	failing := func(err error) *lender {
		return &lender{credentials: func(context.Context, Request) (Response, error) { return Response{}, err }}
	}
	for name, tt := range map[string]struct {
		backend Backend
		want    bool
	}{
		"of a Closer":               {failing(nil), true},
		"of a Closer that fails":    {failing(errors.New("no")), true},
		"of a backend that is none": {struct{ Backend }{failing(nil)}, false},
	} {
		r, err := serving(t, tt.backend).GetCredentials(t.Context(), &backendv1.GetCredentialsRequest{})
		if err != nil || r.GetWantsClose() != tt.want {
			t.Errorf("%s: %v, %v; want %t", name, r, err, tt.want)
		}
	}
}

func TestABackendWithoutSettingsSaysSo(t *testing.T) {
	const notYet = "MISCONFIGURED: the backend has not been configured, or its settings were refused"
	want := map[string]string{"get": notYet, "renew": notYet, "revoke": notYet, "close": ""}
	if diff := cmp.Diff(want, answersOf(t.Context(), unconfigured(&lender{}))); diff != "" {
		t.Error(diff)
	}
}

func TestAFailureHoldsNeitherLeaseNorSettings(t *testing.T) {
	told := func(lease Secret) error {
		return Refused(fmt.Errorf("no luck with %s and %s", string(lease), theSettings))
	}
	s := serving(t, &lender{
		credentials: func(context.Context, Request) (Response, error) { return Response{Lease: theLease}, told(theLease) },
		renew:       func(_ context.Context, _ Request, lease Secret) (Response, error) { return Response{}, told(lease) },
		revoke:      func(_ context.Context, lease Secret) error { return told(lease) },
		close:       func(context.Context) error { return told(theSettings) },
	})
	const want = "REFUSED: no luck with [redacted] and [redacted]"
	if diff := cmp.Diff(map[string]string{"get": want, "renew": want, "revoke": want, "close": want}, answersOf(t.Context(), s)); diff != "" {
		t.Error(diff)
	}
}

func TestAPanicEndsOneCall(t *testing.T) {
	s := serving(t, &lender{
		credentials: func(context.Context, Request) (Response, error) { return Response{}, nil },
		renew:       func(context.Context, Request, Secret) (Response, error) { panic(theLease) },
		revoke:      func(context.Context, Secret) error { panic(theLease) },
		close:       func(context.Context) error { panic(theSettings) },
	})
	const text = "Internal: the backend panicked during %s: with a value of type string (its log has the stack): this is a bug in it"
	want := map[string]string{"get": "", "renew": fmt.Sprintf(text, "a renewal"), "revoke": fmt.Sprintf(text, "a revocation"), "close": fmt.Sprintf(text, "its end")}
	if diff := cmp.Diff(want, answersOf(t.Context(), s)); diff != "" {
		t.Error(diff)
	}
}

func TestAClosedBackendIsAskedNothingMore(t *testing.T) {
	closed := 0
	s := serving(t, &lender{close: func(context.Context) error { closed++; return errors.New("could not log out") }})
	r, err := s.Close(t.Context(), &backendv1.CloseRequest{})
	if err != nil || r.GetError().GetMessage() != "could not log out" {
		t.Errorf("%v, %v", r, err)
	}
	const ended = "UNAVAILABLE: the backend has been closed: nothing more can be asked of this process"
	if diff := cmp.Diff(map[string]string{"get": ended, "renew": ended, "revoke": ended, "close": ""}, answersOf(t.Context(), s)); diff != "" {
		t.Error(diff)
	}
	if closed != 1 {
		t.Errorf("closed %d times", closed)
	}
}

func TestTheStepsOfACallAreAnswered(t *testing.T) {
	ms := func(n int) *durationpb.Duration { return durationpb.New(time.Duration(n) * time.Millisecond) }
	failure := errors.New("too bad")
	for name, tt := range map[string]struct {
		work func(context.Context) error
		want []*backendv1.Span
	}{
		"one after the other": {
			func(ctx context.Context) error {
				end := Span(ctx, "first")
				time.Sleep(10 * time.Millisecond) //nolint:forbidigo // of a bubble's clock
				end()
				defer Span(ctx, "second")()
				time.Sleep(20 * time.Millisecond) //nolint:forbidigo // of a bubble's clock
				return nil
			},
			[]*backendv1.Span{{Name: "first", Start: ms(0), Took: ms(10)}, {Name: "second", Start: ms(10), Took: ms(20)}},
		},
		"beside a failure, and one that has not ended": {
			func(ctx context.Context) error {
				time.Sleep(time.Millisecond) //nolint:forbidigo // of a bubble's clock
				_ = Span(ctx, "login")
				time.Sleep(2 * time.Millisecond) //nolint:forbidigo // of a bubble's clock
				return failure
			},
			[]*backendv1.Span{{Name: "login", Start: ms(1), Took: ms(2)}},
		},
		"the first end counts, and names are fit to be read": {
			func(ctx context.Context) error {
				end := Span(ctx, "with\n\xff"+theSettings+" "+strings.Repeat("ä", 100))
				time.Sleep(time.Millisecond) //nolint:forbidigo // of a bubble's clock
				end()
				time.Sleep(time.Millisecond) //nolint:forbidigo // of a bubble's clock
				end()
				return nil
			},
			[]*backendv1.Span{{Name: "with; \uFFFD[redacted] " + strings.Repeat("ä", 40), Start: ms(0), Took: ms(1)}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var later context.Context
				work := func(ctx context.Context) error {
					later = ctx //nolint:fatcontext // the test is about who uses it too late
					return tt.work(ctx)
				}
				s := serving(t, &lender{
					credentials: func(ctx context.Context, _ Request) (Response, error) { return Response{}, work(ctx) },
					renew:       func(ctx context.Context, _ Request, _ Secret) (Response, error) { return Response{}, work(ctx) },
				})
				got, err := s.GetCredentials(t.Context(), &backendv1.GetCredentialsRequest{})
				if diff := cmp.Diff(tt.want, got.GetSpans(), protocmp.Transform()); err != nil || diff != "" {
					t.Error(err, diff)
				}
				Span(later, "after the call")()
				if diff := cmp.Diff(tt.want, got.GetSpans(), protocmp.Transform()); diff != "" {
					t.Error(diff)
				}
				renewed, err := s.Renew(t.Context(), &backendv1.RenewRequest{})
				if diff := cmp.Diff(tt.want, renewed.GetSpans(), protocmp.Transform()); err != nil || diff != "" {
					t.Error(err, diff)
				}
			})
		})
	}
}

func TestStepsAreNotedByManyAtOnceAndBounded(t *testing.T) {
	s := serving(t, &lender{credentials: func(ctx context.Context, _ Request) (Response, error) {
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				for range backendv1.MaxSpans {
					Span(ctx, "step")()
				}
			})
		}
		all.Wait()
		return Response{}, nil
	}})
	r, err := s.GetCredentials(t.Context(), &backendv1.GetCredentialsRequest{})
	if err != nil || len(r.GetSpans()) != backendv1.MaxSpans {
		t.Errorf("%d steps, %v", len(r.GetSpans()), err)
	}
	Span(t.Context(), "outside a call")()
}

func TestCredentialsGoBeforeSteps(t *testing.T) {
	s := serving(t, &lender{credentials: func(ctx context.Context, _ Request) (Response, error) {
		for range backendv1.MaxSpans {
			Span(ctx, "a step")()
		}
		return Response{Credentials: []Credential{{Key: "k", Password: Secret(strings.Repeat("p", backendv1.MaxMessageBytes-200))}}}, nil
	}})
	r, err := s.GetCredentials(t.Context(), &backendv1.GetCredentialsRequest{})
	if err != nil || r.GetError() != nil || len(r.GetCredentials()) != 1 || len(r.GetSpans()) != 0 {
		t.Errorf("%v, %v, %d steps", r.GetError(), err, len(r.GetSpans()))
	}
}

func TestTheBrokersTraceReachesTheBackend(t *testing.T) {
	seen := make(chan string, 1)
	listener := bufconn.Listen(1 << 20)
	g := grpc.NewServer()
	backendv1.RegisterBackendServer(g, serving(t, &lender{credentials: func(ctx context.Context, _ Request) (Response, error) {
		seen <- TraceParent(ctx)
		return Response{}, nil
	}}))
	go func() { _ = g.Serve(listener) }()
	t.Cleanup(g.Stop)
	conn, err := grpc.NewClient("passthrough:", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	for name, tt := range map[string]struct {
		header []string
		want   string
	}{
		"as it was sent":                    {[]string{someTraceParent}, someTraceParent},
		"none":                              {nil, ""},
		"what is none":                      {[]string{"00-zz"}, ""},
		"two of them, of which none counts": {[]string{someTraceParent, someTraceParent}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			for _, value := range tt.header {
				ctx = metadata.AppendToOutgoingContext(ctx, backendv1.TraceParentHeader, value) //nolint:fatcontext // a few headers of one call
			}
			if _, err := backendv1.NewBackendClient(conn).GetCredentials(ctx, &backendv1.GetCredentialsRequest{}); status.Code(err) != codes.OK {
				t.Fatal(err)
			}
			if got := <-seen; got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
