//go:build unix

package plugin

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/durationpb"

	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
	"github.com/credential-broker/credential-broker/proto/backend/v1/frozen"
)

const someTraceParent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

func TestAnAnswerIsRenewedAndRevokedAndTheBackendClosed(t *testing.T) {
	b := newBench(t)
	p, err := b.start(t, "lends")
	if err != nil {
		t.Fatal(err)
	}
	ctx := WithTraceParent(withDeadline(t, 20*time.Second), someTraceParent)
	first, err := p.GetCredentials(ctx, &backendv1.GetCredentialsRequest{Image: "registry.example/app"})
	if err != nil {
		t.Fatal(err)
	}
	if got := first.GetCredentials()[0].GetUsername(); got != "trace="+someTraceParent {
		t.Errorf("the backend saw %s", got)
	}
	second, err := p.Renew(ctx, &backendv1.RenewRequest{Request: &backendv1.GetCredentialsRequest{Image: "registry.example/app"}, Lease: first.GetLease()})
	if err != nil {
		t.Fatal(err)
	}
	want := oneCredential("image=registry.example/app lease=lease one trace=true deadline=true", "password")
	want.Lease = []byte("lease two")
	want.Spans = []*backendv1.Span{{Name: "login for [redacted]", Start: durationpb.New(1), Took: durationpb.New(2)}}
	if diff := cmp.Diff(want, second, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	// This backend is served in go-plugin's usual way, by which what it prints comes in a stream of its own, sooner or later.
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(b.log.String(), "renewing") && time.Now().Before(deadline); <-time.After(time.Millisecond) {
		p.Flush()
	}
	if log := b.log.String(); !strings.Contains(log, "renewing [redacted] and ") || strings.Contains(log, base64.RawStdEncoding.EncodeToString([]byte("lease one"))) {
		t.Errorf("the log has the lease, or nothing: %s", log)
	}

	if _, err := p.Renew(ctx, &backendv1.RenewRequest{Lease: []byte("lease of another process")}); err != nil {
		t.Error(err)
	}
	waitFor(t, "what it prints of the second renewal", 20*time.Second, func() bool {
		p.Flush()
		return strings.Count(b.log.String(), "renewing") == 2
	})
	if log := b.log.String(); strings.Contains(log, "another process") || strings.Contains(log, base64.RawStdEncoding.EncodeToString([]byte("lease of another process"))) {
		t.Errorf("the log has the lease of another process: %s", log)
	}

	if err := p.Revoke(ctx, second.GetLease()); err != nil {
		t.Error(err)
	}
	wantError(t, p.Revoke(ctx, []byte("lease three")), backendv1.Error_KIND_REFUSED, "may not revoke [redacted]")
	wantError(t, p.Close(ctx), backendv1.Error_KIND_UNAVAILABLE, "could not log out")
	wantRunning(t, p)
}

func wantRunning(t *testing.T, p *Process) {
	t.Helper()
	select {
	case <-p.Ended():
		t.Error("it has ended")
	default:
	}
}

func TestATraceThatIsNoneIsNotSent(t *testing.T) {
	b := newBench(t)
	p, err := b.start(t, "lends")
	if err != nil {
		t.Fatal(err)
	}
	for _, value := range []string{"", "00-zz", someTraceParent + "\n"} {
		response, err := p.GetCredentials(WithTraceParent(withDeadline(t, 20*time.Second), value), &backendv1.GetCredentialsRequest{})
		if err != nil || response.GetCredentials()[0].GetUsername() != "trace=" {
			t.Errorf("%q: %v, %v", value, response, err)
		}
	}
}

func TestWhatABackendDoesNotImplementIsNoFailureOfItsOwn(t *testing.T) {
	b := newBench(t)
	p, err := b.start(t, "good")
	if err != nil {
		t.Fatal(err)
	}
	ctx := withDeadline(t, 20*time.Second)
	if _, err := p.Renew(ctx, &backendv1.RenewRequest{}); !errors.Is(err, ErrNothingToRenew) {
		t.Errorf("Renew: %v", err)
	}
	if err := p.Revoke(ctx, []byte("lease")); !errors.Is(err, ErrNothingToRevoke) {
		t.Errorf("Revoke: %v", err)
	}
	if err := p.Close(ctx); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func TestAFailedRenewalIsJudgedAsAnAnswerIs(t *testing.T) {
	b := newBench(t)
	p, err := b.start(t, "breaksPromises")
	if err != nil {
		t.Fatal(err)
	}
	ctx := withDeadline(t, 20*time.Second)
	beside, err := p.Renew(ctx, &backendv1.RenewRequest{Lease: []byte("lease one")})
	wantError(t, err, backendv1.Error_KIND_REFUSED, "the lease is over")
	if diff := cmp.Diff(&backendv1.GetCredentialsResponse{Spans: []*backendv1.Span{{Name: "look"}}}, beside, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	wantError(t, p.Revoke(ctx, []byte("lease")), backendv1.Error_KIND_UNAVAILABLE, "the backend exited with status 7 when asked to revoke an answer")
	<-p.Ended()
	wantError(t, p.Close(ctx), backendv1.Error_KIND_UNAVAILABLE, "the backend exited with status 7 when asked to close")
}

func TestEndedIsClosedHoweverTheProcessEnds(t *testing.T) {
	for name, end := range map[string]func(*Process){
		"stopped": (*Process).Stop,
		"killed by somebody": func(p *Process) {
			_ = syscall.Kill(p.PID(), syscall.SIGKILL)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			p, _ := b.mustAsk(t, "good")
			wantRunning(t, p)
			end(p)
			select {
			case <-p.Ended():
			case <-time.After(10 * time.Second):
				t.Error("not closed")
			}
		})
	}
}

func TestLeaseAndSpansAreBounded(t *testing.T) {
	b := newBench(t)
	most := backendv1.MaxLeaseBytes
	if _, response := b.mustAsk(t, fmt.Sprintf("lease %d", most)); len(response.GetLease()) != most {
		t.Errorf("a lease of %d bytes", len(response.GetLease()))
	}
	_, response, err := b.ask(t, b.spec(t, fmt.Sprintf("lease %d", most+1)), &backendv1.GetCredentialsRequest{})
	wantError(t, err, backendv1.Error_KIND_UNAVAILABLE, "lease has 16385 bytes, at most 16384 are taken")
	if len(response.GetCredentials()) > 0 {
		t.Error("credentials beside an error")
	}
	if _, response := b.mustAsk(t, "spans 250"); len(response.GetSpans()) != backendv1.MaxSpans || response.GetSpans()[99].GetName() != "99" {
		t.Errorf("%d spans", len(response.GetSpans()))
	}
}

func TestSpansThatMakeNoSenseSpoilNoAnswer(t *testing.T) {
	_, response := newBench(t).mustAsk(t, "oddSpans")
	want := []*backendv1.Span{{Name: "a login with [redacted] " + strings.Repeat("é", 38) + "…", Start: durationpb.New(3), Took: durationpb.New(4)}}
	if diff := cmp.Diff(want, response.GetSpans(), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

// serveOld serves the protocol as it was before there was anything to renew, to revoke or to close, and tells what it is asked.
func serveOld() {
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig: goplugin.HandshakeConfig{ProtocolVersion: frozen.ProtocolVersion, MagicCookieKey: frozen.CookieKey, MagicCookieValue: frozen.CookieValue},
		Plugins:         goplugin.PluginSet{frozen.PluginName: oldBackend{}},
		GRPCServer: func(options []grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(options, grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
				method, _ := grpc.MethodFromServerStream(stream)
				fmt.Fprintln(os.Stderr, "asked for unknown", method)
				return status.Error(codes.Unimplemented, "unknown method")
			}))...)
		},
		Logger: hclog.NewNullLogger(),
	})
}

type oldBackend struct {
	goplugin.NetRPCUnsupportedPlugin
}

func (oldBackend) GRPCServer(_ *goplugin.GRPCBroker, server *grpc.Server) error {
	frozen.Register(server, func(_ context.Context, method string, request, response *dynamicpb.Message) error {
		fmt.Fprintln(os.Stderr, "asked for", method)
		switch method {
		case "Describe":
			return prototext.Unmarshal([]byte(`name: "old" version: "0.1" features: FEATURE_CHECK`), response)
		case "GetCredentials":
			image := request.Get(request.Descriptor().Fields().ByName("image")).String()
			return prototext.Unmarshal(fmt.Appendf(nil, `scope: SCOPE_REGISTRY cache_duration: {seconds: 60} credentials: {key: %q username: "u" password: "p" expires: {seconds: 2000000000}}`, image), response)
		case "Check":
			return prototext.Unmarshal([]byte(`error: {kind: KIND_REFUSED message: "access denied"}`), response)
		}
		return nil
	})
	return nil
}

func (oldBackend) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.New("this is the backend's side")
}

func TestABackendOfTheFirstProtocolWorksUnchanged(t *testing.T) {
	b := newBench(t)
	p, err := b.start(t, "old")
	if err != nil {
		t.Fatal(err)
	}
	ctx := WithTraceParent(withDeadline(t, 20*time.Second), someTraceParent)
	about, err := p.Describe(ctx)
	if diff := cmp.Diff(&backendv1.DescribeResponse{Name: "old", Version: "0.1", Features: []backendv1.Feature{backendv1.Feature_FEATURE_CHECK}}, about, protocmp.Transform()); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if problems := p.Configure(ctx); problems != nil {
		t.Error(problems)
	}
	response, err := p.GetCredentials(ctx, &backendv1.GetCredentialsRequest{Image: "registry.example/app"})
	if err != nil || response.GetCredentials()[0].GetKey() != "registry.example/app" || response.GetCacheDuration().AsDuration() != time.Minute || len(response.GetLease()) > 0 {
		t.Errorf("%v, %v", response, err)
	}
	wantError(t, p.Check(ctx, &backendv1.CheckRequest{}), backendv1.Error_KIND_REFUSED, "access denied")
	asked := func() int {
		p.Flush()
		return strings.Count(b.log.String(), "asked for")
	}
	waitFor(t, "all it was asked in the log", 10*time.Second, func() bool { return asked() >= len(frozen.Methods()) })
	if log := b.log.String(); strings.Contains(log, "unknown") {
		t.Errorf("it was asked for something else than what it has: %s", log)
	}

	// Its features name nothing of this. Whoever asks all the same hears that there is nothing of the kind.
	if _, err := p.Renew(ctx, &backendv1.RenewRequest{}); !errors.Is(err, ErrNothingToRenew) {
		t.Errorf("Renew: %v", err)
	}
	if err := p.Revoke(ctx, []byte("lease")); !errors.Is(err, ErrNothingToRevoke) {
		t.Errorf("Revoke: %v", err)
	}
	if err := p.Close(ctx); err != nil {
		t.Errorf("Close: %v", err)
	}
	waitFor(t, "three unknown methods in the log: does this test see them?", 10*time.Second, func() bool {
		return asked() == len(frozen.Methods())+3 && strings.Count(b.log.String(), "asked for unknown") == 3
	})
	if _, err := p.GetCredentials(ctx, &backendv1.GetCredentialsRequest{}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// inMemory is a Process without a process, asked by calling a function.
func inMemory(get func(*backendv1.GetCredentialsRequest) *backendv1.GetCredentialsResponse) (*Process, *logBuffer) {
	log := &logBuffer{}
	p := &Process{
		spec: Spec{Provider: "tested", Path: "backend"}, output: newOutput(), child: &child{}, rpc: &function{get: get},
		runtime: NewRuntime(RuntimeOptions{Logger: slog.New(slog.NewTextHandler(log, nil))}),
	}
	return p, log
}

type function struct {
	backendv1.BackendClient
	get func(*backendv1.GetCredentialsRequest) *backendv1.GetCredentialsResponse
}

func (f *function) GetCredentials(_ context.Context, r *backendv1.GetCredentialsRequest, _ ...grpc.CallOption) (*backendv1.GetCredentialsResponse, error) {
	return f.get(r), nil
}

func TestAProcessNeedsNoMoreMemoryWithItsAge(t *testing.T) {
	for name, tt := range map[string]struct {
		flushed bool
		calls   int
	}{
		"flushed after each answer": {true, 100_000},
		"never flushed":             {false, 10_000},
	} {
		t.Run(name, func(t *testing.T) {
			var stderr *stream
			n := 0
			p, _ := inMemory(func(*backendv1.GetCredentialsRequest) *backendv1.GetCredentialsResponse {
				n++
				response := oneCredential("user", fmt.Sprintf("password/%032d", n))
				response.Lease = fmt.Appendf(nil, "lease/%032d", n)
				fmt.Fprintf(stderr, "line %d\n", n)
				return response
			})
			stderr = p.output.stream("stderr")
			p.runtime.logger = slog.New(slog.DiscardHandler)
			p.Redact("secret of the settings")
			call := func(times int) {
				for range times {
					token := fmt.Sprintf("head.%064d.signature", n)
					if _, err := p.GetCredentials(context.Background(), &backendv1.GetCredentialsRequest{ServiceAccountToken: &token}); err != nil {
						t.Fatal(err)
					}
					if tt.flushed {
						p.Flush()
					}
				}
			}
			call(5_000)
			before := heap()
			call(tt.calls)
			after := heap()
			t.Logf("%d KiB after 5,000 calls, %d KiB after %d more", before>>10, after>>10, tt.calls)
			if after > before+2<<20 {
				t.Error("it grows")
			}
			if text := p.text(fmt.Sprintf("the last is password/%032d", n)); text != "the last is [redacted]" {
				t.Error(text)
			}
			if text := p.text("nor is the secret of the settings forgotten, but others are: password/" + fmt.Sprintf("%032d", 1)); !strings.HasPrefix(text, "nor is the [redacted] forgotten, but others are: password/0") {
				t.Error(text)
			}
			runtime.KeepAlive(p)
		})
	}
}

// heap is the size in bytes of what is in use.
func heap() uint64 {
	runtime.GC()
	runtime.GC() // what finalizers let go
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestWhatWasPrintedOfASecretIsHiddenWhenTheSecretIsForgotten(t *testing.T) {
	var stderr *stream
	n := 0
	p, log := inMemory(func(*backendv1.GetCredentialsRequest) *backendv1.GetCredentialsResponse {
		n++
		if n == 1 {
			fmt.Fprintln(stderr, "got first/secret")
			fmt.Fprintln(stderr, `{"level":"WARN","msg":"got first\/secret","who":"first\u002fsecret","n":1}`)
		}
		return oneCredential("user", fmt.Sprintf("password%d", n))
	})
	stderr = p.output.stream("stderr")
	first := "first/secret"
	for i := range 2 * maxSpellings {
		request := &backendv1.GetCredentialsRequest{}
		if i == 0 {
			request.ServiceAccountToken = &first
		}
		if _, err := p.GetCredentials(context.Background(), request); err != nil {
			t.Fatal(err)
		}
	}
	if text := p.text(first); text != first {
		t.Fatalf("it is not forgotten: %s", text)
	}
	words := p.lastWords(nil)
	p.Flush()
	for _, said := range []string{words, log.String()} {
		if strings.Count(said, "got [redacted]") != 2 || strings.Contains(said, "first") {
			t.Errorf("said: %s", said)
		}
	}
	if !strings.Contains(log.String(), `level=WARN msg="got [redacted]"`) || !strings.Contains(log.String(), "said.n=1 said.who=[redacted]") {
		t.Errorf("the line of a structured log is none any more: %s", log)
	}
}

func TestAnErrorHasNothingThatMayBelongToAnotherCall(t *testing.T) {
	o := newOutput()
	s := o.stream("stderr")
	said := func(mine *call) string {
		words, withheld := o.lastWords(mine)
		return fmt.Sprint(words, withheld)
	}
	_, _ = s.Write([]byte("ready\n"))
	mine := o.begin()
	_, _ = s.Write([]byte("asked by me\n"))
	if got := said(mine); got != "ready; asked by mefalse" {
		t.Errorf("alone: %s", got)
	}
	other := o.begin()
	_, _ = s.Write([]byte("another's password\n"))
	if got := said(mine); got != "ready; asked by metrue" {
		t.Errorf("beside another call: %s", got)
	}
	if got := said(other); got != "readytrue" {
		t.Errorf("the other: %s", got)
	}
	if got := said(nil); got != "readytrue" {
		t.Errorf("who is none of both: %s", got)
	}
	mine.end()
	other.end()
	if got := said(nil); got != "ready; asked by me; another's passwordfalse" {
		t.Errorf("after all calls: %s", got)
	}
}

func TestFlushLogsNothingThatMayBelongToACallUnderWay(t *testing.T) {
	o := newOutput()
	s := o.stream("stderr")
	log := &logBuffer{}
	logger := slog.New(slog.NewTextHandler(log, nil))
	flushed := func() string {
		before := len(log.String())
		o.flush(logger, "tested", "backend")
		var lines []string
		for line := range strings.Lines(log.String()[before:]) {
			_, line, _ = strings.Cut(line, " msg=")
			line, _, _ = strings.Cut(line, " provider=")
			lines = append(lines, line)
		}
		return strings.Join(lines, ",")
	}
	say := func(text string) { fmt.Fprint(s, text) }
	want := func(what string) {
		t.Helper()
		if got := flushed(); got != what {
			t.Errorf("logged %q, want %q", got, what)
		}
	}

	say("one\n")
	long := o.begin()
	say("s3cret\n")
	short := o.begin()
	say("three\n")
	want("one")
	short.end()
	want("")
	long.redact("s3cret")
	long.end()
	say("no end")
	want("[redacted],three")
	say(" yet\n")
	want(`"no end yet"`)
	want("")
}

func TestFlushKeepsOrderAndCountsWhatIsDropped(t *testing.T) {
	o := newOutput()
	s := o.stream("stderr")
	log := &logBuffer{}
	logger := slog.New(slog.NewTextHandler(log, nil))
	line := strings.Repeat("x", 1000)
	number, first, dropped := 0, -1, 0
	say := func(lines int) {
		for range lines {
			fmt.Fprintf(s, "%06d %s\n", number, line)
			number++
		}
	}
	say(50) // more than fits into what is kept of the beginning
	call := o.begin()
	say(5)
	o.flush(logger, "tested", "backend")
	say(100) // more than fits into what is kept of the end
	call.end()
	o.flush(logger, "tested", "backend")
	say(1)
	o.flush(logger, "tested", "backend")
	seen := 0
	for entry := range strings.Lines(log.String()) {
		var n int
		if _, rest, ok := strings.Cut(entry, "linesDropped="); ok {
			_, _ = fmt.Sscan(rest, &n)
			dropped += n
			continue
		}
		_, rest, _ := strings.Cut(entry, `msg="`)
		if _, err := fmt.Sscanf(rest, "%06d", &n); err != nil {
			t.Fatalf("%q: %v", entry, err)
		}
		if n <= first {
			t.Errorf("line %d after line %d", n, first)
		}
		first = n
		seen++
	}
	if seen+dropped != number || dropped == 0 || first != number-1 {
		t.Errorf("%d lines logged and %d dropped of %d, the last is %d", seen, dropped, number, first)
	}
	if first, last, _ := o.take(true); len(first)+len(last) > 0 || o.room != maxFirst || o.lastLen != 0 {
		t.Errorf("left: %d and %d lines, room for %d", len(first), len(last), o.room)
	}
}

func TestTooManySecretsAtOnceMaskEverythingForAWhile(t *testing.T) {
	o := newOutput()
	call := o.begin()
	for i := range maxSpellings + 1 {
		call.redact(fmt.Sprintf("secret%d", i))
	}
	call.end()
	hidden := func() bool { return o.secrets.redact("a word", false) == "[redacted]" }
	if !hidden() {
		t.Fatal("there is a secret that nobody looks for")
	}
	for i := range maxSpellings - 1 {
		call := o.begin()
		call.redact(fmt.Sprintf("later%d", i))
		call.end()
	}
	if !hidden() {
		t.Error("forgotten too soon")
	}
	call = o.begin()
	call.redact("the last")
	call.end()
	if hidden() {
		t.Error("everything is masked though the secret would have been forgotten by now")
	}
}

func TestTooManySecretsOfTheSettingsMaskEverythingForGood(t *testing.T) {
	o := newOutput()
	for i := range maxSpellings + 1 {
		o.secrets.add(fmt.Sprintf("secret%d", i))
	}
	for i := range 3 * maxSpellings {
		call := o.begin()
		call.redact(fmt.Sprintf("later%d", i))
		call.end()
	}
	if got := o.secrets.redact("a word", false); got != "[redacted]" {
		t.Errorf("got %q", got)
	}
}

func TestASecretOfTheSettingsWithoutRoomMasksEverythingForGood(t *testing.T) {
	o := newOutput()
	o.secrets.add(strings.Repeat("y", maxSpellingBytes+1))
	for i := range 3 * maxSpellings {
		call := o.begin()
		call.redact(fmt.Sprintf("later%d", i))
		call.end()
	}
	if got := o.secrets.redact("a word", false); got != "[redacted]" {
		t.Errorf("got %q", got)
	}
}

func TestSecretsAreBoundedInBytesToo(t *testing.T) {
	o := newOutput()
	o.secrets.add("secret of the settings")
	big := strings.Repeat("x", 100<<10)
	for i := range 200 {
		call := o.begin()
		call.redact(fmt.Sprintf("%d%s", i, big))
		call.end()
		if o.secrets.bytes > maxSpellingBytes {
			t.Fatalf("%d bytes", o.secrets.bytes)
		}
	}
	if got := o.secrets.redact("a word, secret of the settings, 199"+big, false); got != "a word, [redacted], [redacted]" {
		t.Errorf("got %.200q", got)
	}
	call := o.begin()
	call.redact(strings.Repeat("y", maxSpellingBytes+1))
	if got := o.secrets.redact("a word", false); got != "[redacted]" {
		t.Errorf("a secret without room: got %.200q", got)
	}
}

func TestASecretThatIsUsedAgainIsNotForgotten(t *testing.T) {
	o := newOutput()
	for i := range 10 * maxSpellings {
		call := o.begin()
		if i%10 == 0 { // so that it is mostly held by nobody
			call.redact("the registry's token")
		}
		call.redact(fmt.Sprintf("token of pod %d", i))
		call.end()
		if got := o.secrets.known["the registry's token"]; got == nil {
			t.Fatalf("forgotten after %d calls", i)
		}
	}
}

func TestSecretsOfCallsUnderWayAreNotForgotten(t *testing.T) {
	o := newOutput()
	long := o.begin()
	long.redact("of the long one")
	for i := range 10 * maxSpellings {
		call := o.begin()
		call.redact(fmt.Sprintf("token of pod %d", i))
		call.end()
	}
	if got := o.secrets.redact("of the long one", false); got != "[redacted]" {
		t.Errorf("got %q", got)
	}
	long.end()
	for i := range 10 * maxSpellings {
		call := o.begin()
		call.redact(fmt.Sprintf("token of another pod %d", i))
		call.end()
	}
	if got := o.secrets.redact("of the long one", false); got != "of the long one" {
		t.Errorf("got %q", got)
	}
}

func TestManyCallsAtOnceLeaveNoSecretInTheLog(t *testing.T) {
	var stderr *stream
	p, log := inMemory(func(r *backendv1.GetCredentialsRequest) *backendv1.GetCredentialsResponse {
		secret := "answer-to-" + r.GetImage()
		fmt.Fprintf(stderr, "here is %s\n", secret) // before anybody knows that it is one
		return oneCredential("user", secret)
	})
	stderr = p.output.stream("stderr")
	var all sync.WaitGroup
	for worker := range 8 {
		all.Go(func() {
			for i := range 500 {
				if _, err := p.GetCredentials(context.Background(), &backendv1.GetCredentialsRequest{Image: fmt.Sprintf("%d-%d", worker, i)}); err != nil {
					t.Error(err)
				}
				p.Flush()
			}
		})
	}
	all.Wait()
	p.Flush()
	if said := log.String(); strings.Contains(said, "answer-to-") || strings.Count(said, "here is [redacted]")+dropped(said) != 8*500 {
		t.Errorf("%d lines and %d dropped, or a secret in %.1000s", strings.Count(said, "here is [redacted]"), dropped(said), said)
	}
}

// dropped counts the lines that the log says were dropped.
func dropped(log string) (sum int) {
	for line := range strings.Lines(log) {
		if _, count, ok := strings.Cut(line, "linesDropped="); ok {
			var n int
			_, _ = fmt.Sscan(count, &n)
			sum += n
		}
	}
	return sum
}
