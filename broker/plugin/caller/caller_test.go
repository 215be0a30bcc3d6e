//go:build unix

package caller

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
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
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
	"github.com/credential-broker/credential-broker/proto/backend/v1/frozen"
	"github.com/credential-broker/credential-broker/proto/secret"
)

// The test binary is also the backend that the tests start.
const asBackend = "TEST_BACKEND"

func TestMain(m *testing.M) {
	if dir := os.Getenv(asKeeper); dir != "" {
		keeperMain(dir)
		return
	}
	if dir := os.Getenv(asCold); dir != "" {
		coldMain(dir)
		return
	}
	if mode := os.Getenv(asBackend); mode == "old" {
		serveOld()
		return
	} else if mode != "" {
		if pids := os.Getenv("PIDS"); pids != "" {
			_ = os.WriteFile(filepath.Join(pids, strconv.Itoa(os.Getpid())), nil, 0o600)
		}
		if mode == "counted" {
			enterCount()
		}
		if mode == "crashes" {
			fmt.Fprintln(os.Stderr, "no luck today")
			os.Exit(7)
		}
		fmt.Fprintf(os.Stderr, `{"level":"INFO","msg":"backend %s"}`+"\n", mode)
		goplugin.Serve(&goplugin.ServeConfig{
			HandshakeConfig: backendv1.Handshake, GRPCServer: goplugin.DefaultGRPCServer, Logger: hclog.NewNullLogger(),
			Plugins: goplugin.PluginSet{backendv1.PluginName: &serving{backend: &backend{mode: mode}}},
		})
		return
	}
	os.Exit(m.Run())
}

type serving struct {
	goplugin.NetRPCUnsupportedPlugin
	backend *backend
}

func (s *serving) GRPCServer(_ *goplugin.GRPCBroker, server *grpc.Server) error {
	backendv1.RegisterBackendServer(server, s.backend)
	return nil
}

func (s *serving) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.New("this is the backend's side")
}

var expires = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

type backend struct {
	backendv1.UnimplementedBackendServer
	mode     string
	settings string
	asked    bool
}

func (b *backend) Describe(context.Context, *backendv1.DescribeRequest) (*backendv1.DescribeResponse, error) {
	about := &backendv1.DescribeResponse{Name: "tested", Version: "1.0"}
	if b.mode != "uncheckable" {
		about.Features = []backendv1.Feature{77, backendv1.Feature_FEATURE_CHECK}
	}
	if strings.HasPrefix(b.mode, "closes") {
		about.Features = append(about.Features, backendv1.Feature_FEATURE_CLOSE)
	}
	return about, nil
}

func (b *backend) Configure(_ context.Context, r *backendv1.ConfigureRequest) (*backendv1.ConfigureResponse, error) {
	b.settings = string(r.GetSettings())
	if b.mode == "picky" {
		return &backendv1.ConfigureResponse{Errors: []*backendv1.Error{{Field: "url", Message: "is no URL"}, {Field: "auth.role", Message: "is missing"}, {Message: "is too much"}}}, nil
	}
	return &backendv1.ConfigureResponse{}, nil
}

func (b *backend) GetCredentials(_ context.Context, r *backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error) {
	switch b.mode {
	case "closes", "closes badly", "closes never":
		return &backendv1.GetCredentialsResponse{WantsClose: true, Credentials: []*backendv1.Credential{{Key: "registry.example", Username: "u", Password: "p"}}}, nil
	case "closes, and refuses":
		return &backendv1.GetCredentialsResponse{WantsClose: true, Error: &backendv1.Error{Kind: backendv1.Error_KIND_REFUSED, Message: "access denied"}}, nil
	case "closes, and does not say so":
		return &backendv1.GetCredentialsResponse{Credentials: []*backendv1.Credential{{Key: "registry.example", Username: "u", Password: "p"}}}, nil
	case "none":
		return &backendv1.GetCredentialsResponse{}, nil
	case "refuses":
		return &backendv1.GetCredentialsResponse{
			Error: &backendv1.Error{Kind: backendv1.Error_KIND_REFUSED, Message: "access denied"},
			Spans: []*backendv1.Span{{Name: "login", Took: durationpb.New(1)}},
		}, nil
	case "hangs":
		select {}
	case "hangs up once":
		if strings.HasSuffix(r.GetImage(), "/hang-up") && b.asked {
			b.hangUp()
			select {}
		}
		b.asked = true
		return b.tell(r), nil
	case "slow":
		<-time.After(300 * time.Millisecond)
		return b.tell(r), nil
	case "kept":
		return b.tell(r), nil
	case "counted":
		<-time.After(20 * time.Millisecond)
		most := countAlive()
		return oneName(strconv.Itoa(most)), nil
	}
	token := "absent"
	if r.ServiceAccountToken != nil {
		token = r.GetServiceAccountToken()
	}
	return &backendv1.GetCredentialsResponse{
		Scope: backendv1.Scope_SCOPE_REGISTRY,
		Lease: []byte("lease"),
		Spans: []*backendv1.Span{
			{Name: "login", Start: durationpb.New(1), Took: durationpb.New(2)},
			{Name: "slow", Start: durationpb.New(3), Took: durationpb.New(time.Hour)},
			{Name: "late", Start: durationpb.New(time.Hour), Took: durationpb.New(1)},
		},
		CacheDuration: durationpb.New(0),
		Credentials: []*backendv1.Credential{
			{Key: "registry.example", Username: fmt.Sprintf("%s %s %s %v %s", b.settings, r.GetImage(), token, r.GetServiceAccountAnnotations(), os.Getenv("SET")), Password: "p1", Expires: timestamppb.New(expires)},
			{Key: "registry.example/b", Username: "u", Password: "p2"},
		},
	}, nil
}

// tell answers with what keeping.ask reads.
func (b *backend) tell(r *backendv1.GetCredentialsRequest) *backendv1.GetCredentialsResponse {
	mark := os.Getenv("MARK")
	if mark == "" {
		mark = "none"
	}
	return &backendv1.GetCredentialsResponse{Credentials: []*backendv1.Credential{
		{Key: "registry.example", Username: fmt.Sprintf("mark=%s pid=%d image=%s", mark, os.Getpid(), r.GetImage()), Password: "p1"},
	}}
}

// hangUp closes every socket of this process, and leaves it running.
func (b *backend) hangUp() {
	for fd := 3; fd < 100; fd++ {
		if _, err := syscall.Getpeername(fd); err == nil {
			_ = syscall.Shutdown(fd, syscall.SHUT_RDWR)
		}
	}
}

func (b *backend) Check(ctx context.Context, r *backendv1.CheckRequest) (*backendv1.CheckResponse, error) {
	if b.mode == "nothing to check" {
		return b.UnimplementedBackendServer.Check(ctx, r)
	}
	if r.GetImage() == "" {
		return &backendv1.CheckResponse{}, nil
	}
	return &backendv1.CheckResponse{Error: &backendv1.Error{Kind: backendv1.Error_KIND_MISCONFIGURED, Field: "auth", Message: "no route to the login service"}}, nil
}

func (b *backend) Close(context.Context, *backendv1.CloseRequest) (*backendv1.CloseResponse, error) {
	fmt.Fprintln(stderr, "asked to close")
	switch b.mode {
	case "closes badly":
		return &backendv1.CloseResponse{Error: &backendv1.Error{Message: "the session is still there"}}, nil
	case "closes never":
		select {}
	}
	return &backendv1.CloseResponse{}, nil
}

type bench struct {
	*Caller
	dir string
	mu  sync.Mutex
	log bytes.Buffer
}

func (b *bench) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.log.Write(p)
}

func newBench(t *testing.T) *bench {
	t.Helper()
	// Not t.TempDir: a socket's path has no room for the test's name.
	dir, err := os.MkdirTemp("/tmp", "cb")
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{dir: dir}
	b.Caller = New(Options{BackendDir: filepath.Join(dir, "backends"), BaseDirs: []string{filepath.Join(dir, "b")}, Logger: slog.New(slog.NewTextHandler(b, nil)), Environ: []string{}})
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if left, _ := os.ReadDir(filepath.Join(dir, "b")); len(left) != 0 {
			t.Errorf("left after Close: %v", left)
		}
		_ = os.RemoveAll(dir)
	})
	return b
}

func provider(t *testing.T, mode string) *config.Provider {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return &config.Provider{Name: "p", Backend: self, Env: []config.EnvVar{{Name: asBackend, Value: mode}, {Name: "SET", Value: "by env"}}, Config: []byte(`{"a":1}`)}
}

func ctx(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestCallGivesWhatTheBackendSays(t *testing.T) {
	b := newBench(t)
	zero := time.Duration(0)
	for name, tt := range map[string]struct {
		request  broker.Request
		username string
	}{
		"with a token": {
			broker.Request{Image: "registry.example/app", Token: "a.b.c", Annotations: map[string]string{"k": "v"}},
			`{"a":1} registry.example/app a.b.c map[k:v] by env`,
		},
		"without a token it is absent, not empty": {broker.Request{Image: "registry.example/app"}, `{"a":1} registry.example/app absent map[] by env`},
	} {
		t.Run(name, func(t *testing.T) {
			answer, err := b.Call(ctx(t), provider(t, "good"), tt.request)
			if err != nil {
				t.Fatal(err)
			}
			var steps []string
			var ask broker.Part
			for i, part := range answer.Parts {
				steps = append(steps, part.Name)
				switch {
				case strings.HasPrefix(part.Name, "ask: "):
					if part.Start < ask.Start || part.Start+part.Took > ask.Start+ask.Took || part.Took < 0 {
						t.Errorf("%+v is not within %+v", part, ask)
					}
				case part.Took <= 0 || i > 0 && part.Start < answer.Parts[i-1].Start+answer.Parts[i-1].Took:
					t.Errorf("part %d overlaps or took no time: %+v", i, answer.Parts)
				}
				if part.Name == "ask" {
					ask = part
				}
			}
			if diff := cmp.Diff([]string{"check", "start", "configure", "ask", "ask: login", "ask: slow", "ask: late"}, steps); diff != "" {
				t.Error(diff)
			}
			if login := answer.Parts[4]; login.Start != ask.Start+1 || login.Took != 2 {
				t.Errorf("%+v, want 1 ns after %s and 2 ns long", login, ask.Start)
			}
			answer.Parts = nil
			want := broker.Answer{RegistryWide: true, Lease: "lease", CacheDuration: &zero, Credentials: []broker.Credential{
				{Key: "registry.example", Username: tt.username, Password: "p1", Expires: expires},
				{Key: "registry.example/b", Username: "u", Password: "p2"},
			}}
			if diff := cmp.Diff(want, answer, cmp.Comparer(func(a, b secret.Secret) bool { return a == b })); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// serveOld serves the protocol as it was when there was nothing to renew, to revoke or to close, and tells what it is asked.
func serveOld() {
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig: goplugin.HandshakeConfig{ProtocolVersion: frozen.ProtocolVersion, MagicCookieKey: frozen.CookieKey, MagicCookieValue: frozen.CookieValue},
		Plugins:         goplugin.PluginSet{frozen.PluginName: oldBackend{}},
		GRPCServer: func(options []grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(options, grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
				method, _ := grpc.MethodFromServerStream(stream)
				fmt.Fprintln(stderr, "asked for unknown", method)
				return status.Error(codes.Unimplemented, "unknown method")
			}))...)
		},
		Logger: hclog.NewNullLogger(),
	})
}

// stderr is the process's own, which is read to its end; what go-plugin puts in its place is lost with the connection.
var stderr = os.Stderr

type oldBackend struct {
	goplugin.NetRPCUnsupportedPlugin
}

func (oldBackend) GRPCServer(_ *goplugin.GRPCBroker, server *grpc.Server) error {
	frozen.Register(server, func(_ context.Context, method string, _, response *dynamicpb.Message) error {
		fmt.Fprintln(stderr, "asked for", method)
		switch method {
		case "Describe":
			return prototext.Unmarshal([]byte(`name: "old" version: "0.1" features: FEATURE_CHECK`), response)
		case "GetCredentials":
			return prototext.Unmarshal([]byte(`scope: SCOPE_REGISTRY cache_duration: {seconds: 60} credentials: {key: "registry.example" username: "u" password: "p"}`), response)
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

func TestABackendOfTheFirstProtocolIsAskedOnlyForWhatItHas(t *testing.T) {
	b := newBench(t)
	old := provider(t, "old")
	answer, err := b.Call(ctx(t), old, broker.Request{Image: "registry.example/app", Token: "a.b.c"})
	if err != nil {
		t.Fatal(err)
	}
	answer.Parts = nil
	want := broker.Answer{RegistryWide: true, CacheDuration: new(time.Minute), Credentials: []broker.Credential{{Key: "registry.example", Username: "u", Password: "p"}}}
	if diff := cmp.Diff(want, answer, cmp.Comparer(func(a, b secret.Secret) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if errs := b.Validate(ctx(t), old); errs != nil {
		t.Error(errs)
	}
	if checked, err := b.Check(ctx(t), old, broker.Request{}); !checked || broker.KindOf(err) != broker.Refused {
		t.Errorf("checked %t, %v", checked, err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	log := b.log.String()
	for _, method := range frozen.Methods() {
		if !strings.Contains(log, "asked for "+method) {
			t.Errorf("it was not asked for %s, or this test does not see what it is asked for", method)
		}
	}
	if strings.Contains(log, "unknown") {
		t.Errorf("it was asked for what it does not have: %s", log)
	}
}

func TestNoCredentialsAreNoFailure(t *testing.T) {
	answer, err := newBench(t).Call(ctx(t), provider(t, "none"), broker.Request{Image: "registry.example/app"})
	if err != nil || len(answer.Credentials) != 0 || answer.RegistryWide || answer.CacheDuration != nil {
		t.Errorf("got %+v, %v", answer, err)
	}
}

func TestAFailureHasItsKindAndItsField(t *testing.T) {
	b := newBench(t)
	hangs, missing := provider(t, "hangs"), provider(t, "good")
	missing.Backend = "missing"
	// Long enough for the backend to be asked on a busy machine, and for what passes between here and the call to be rounded away.
	short, cancel := context.WithTimeout(context.Background(), 2500*time.Millisecond)
	defer cancel()
	for _, tt := range []struct {
		name     string
		ctx      context.Context
		provider *config.Provider
		kind     broker.Kind
		want     string
		parts    string
	}{
		{"too late", short, hangs, broker.Unavailable, "no answer within 2.5s: the backend did not answer in time", "check,start,configure,ask"},
		{"refused", ctx(t), provider(t, "refuses"), broker.Refused, "access denied", "check,start,configure,ask,ask: login"},
		{"misconfigured", ctx(t), provider(t, "picky"), broker.Misconfigured, "config.url: is no URL; config.auth.role: is missing; is too much", "check,start,configure"},
		{"no such backend", ctx(t), missing, broker.Misconfigured, "the directory does not exist", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			answer, err := b.Call(tt.ctx, tt.provider, broker.Request{Image: "registry.example/app", Token: "to.k.en"})
			if err == nil || broker.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v: %v\nwant %v: …%s…", broker.KindOf(err), err, tt.kind, tt.want)
			}
			if len(answer.Credentials) != 0 {
				t.Error("credentials beside an error")
			}
			var steps []string
			for _, part := range answer.Parts {
				steps = append(steps, part.Name)
			}
			if got := strings.Join(steps, ","); got != tt.parts {
				t.Errorf("parts %q, want %q", got, tt.parts)
			}
		})
	}
}

func TestACancelledContextIsNotATimeout(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(50*time.Millisecond, cancel)
	_, err := newBench(t).Call(ctx, provider(t, "hangs"), broker.Request{Image: "registry.example/app"})
	if !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "within") {
		t.Errorf("error %v, want one of context.Canceled", err)
	}
}

func TestABackendThatWantsItIsClosedAfterItsAnswer(t *testing.T) {
	const notInOrder = `msg="the backend did not end in good order, and was killed" provider=p backend=`
	for name, tt := range map[string]struct {
		mode   string
		closed bool
		steps  string // the last one
		kind   broker.Kind
		log    string
		least  time.Duration // that it takes
	}{
		"it says so":                {mode: "closes", closed: true, steps: "close"},
		"it says so with a failure": {mode: "closes, and refuses", closed: true, steps: "close", kind: broker.Refused},
		"it does not say so":        {mode: "closes, and does not say so", steps: "ask"},
		"it has nothing to close":   {mode: "good", steps: "ask: late"},
		"it cannot":                 {mode: "closes badly", closed: true, steps: "close", log: "the session is still there"},
		"it never comes to an end":  {mode: "closes never", closed: true, steps: "close", log: "did not close in time", least: backendv1.ShortCloseTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			began := time.Now()
			answer, err := b.Call(ctx(t), provider(t, tt.mode), broker.Request{Image: "registry.example/app"})
			took := time.Since(began)
			switch {
			case tt.kind != 0 && broker.KindOf(err) != tt.kind, tt.kind == 0 && err != nil:
				t.Error(err)
			case err == nil && len(answer.Credentials) == 0:
				t.Error("the answer has no credentials")
			}
			if last := answer.Parts[len(answer.Parts)-1].Name; last != tt.steps {
				t.Errorf("the last step is %q, want %q", last, tt.steps)
			}
			if took < tt.least {
				t.Errorf("it took %s, want %s at least", took, tt.least)
			}
			if err := b.Close(); err != nil {
				t.Error(err)
			}
			b.mu.Lock()
			defer b.mu.Unlock()
			log := b.log.String()
			if strings.Contains(log, "asked to close") != tt.closed {
				t.Errorf("closed: %t, want %t", !tt.closed, tt.closed)
			}
			if strings.Contains(log, notInOrder) != (tt.log != "") || !strings.Contains(log, tt.log) {
				t.Errorf("log, which is to have %q:\n%s", tt.log, log)
			}
		})
	}
}

func TestACloseEndsWithTheRequest(t *testing.T) {
	b := newBench(t)
	p := provider(t, "closes never")
	path, process, err := b.findAndStart(ctx(t), p, &parts{})
	if err != nil {
		t.Fatal(err)
	}
	defer process.Stop()
	request, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	b.close(request, p, path, process)
	b.mu.Lock()
	defer b.mu.Unlock()
	if log := b.log.String(); !strings.Contains(log, "given up before the backend could close") {
		t.Error(log)
	}
}

func TestACheckIsClosedToo(t *testing.T) {
	for mode, want := range map[string]bool{"closes": true, "good": false} {
		b := newBench(t)
		if checked, err := b.Check(ctx(t), provider(t, mode), broker.Request{}); !checked || err != nil {
			t.Errorf("%s: checked %t, %v", mode, checked, err)
		}
		b.mu.Lock()
		if got := strings.Contains(b.log.String(), "asked to close"); got != want {
			t.Errorf("%s: closed %t, want %t", mode, got, want)
		}
		b.mu.Unlock()
	}
}

func TestManyAreAskedAtOnce(t *testing.T) {
	b := newBench(t)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			mode := []string{"good", "refuses"}[i%2]
			_, err := b.Call(ctx(t), provider(t, mode), broker.Request{Image: "registry.example/app"})
			if (err != nil) != (mode == "refuses") {
				t.Errorf("%s: %v", mode, err)
			}
		})
	}
	all.Wait()
}

func TestValidateListsEveryProblem(t *testing.T) {
	b := newBench(t)
	if errs := b.Validate(ctx(t), provider(t, "good")); errs != nil {
		t.Error(errs)
	}
	if log := b.log.String(); !strings.Contains(log, `msg="backend good" provider=p`) {
		t.Errorf("what the backend printed is not in the log by now: %s", log)
	}
	var got []string
	for _, err := range b.Validate(ctx(t), provider(t, "picky")) {
		got = append(got, err.Error())
	}
	if diff := cmp.Diff([]string{"config.url: is no URL", "config.auth.role: is missing", "is too much"}, got); diff != "" {
		t.Error(diff)
	}
	broken := provider(t, "good")
	broken.SHA256 = []string{strings.Repeat("0", 64)}
	if errs := b.Validate(ctx(t), broken); len(errs) != 1 || broker.KindOf(errs[0]) != broker.Misconfigured {
		t.Error(errs)
	}
}

func TestCheck(t *testing.T) {
	b := newBench(t)
	for _, tt := range []struct {
		name, mode, image string
		checked           bool
		want              string
	}{
		{"all is well", "good", "", true, ""},
		{"all is not well", "good", "registry.example/app", true, "config.auth: no route to the login service"},
		{"the settings are wrong", "picky", "", false, "config.url: is no URL; "},
		{"the backend cannot check", "uncheckable", "registry.example/app", false, ""},
		{"the backend has nothing to check after all", "nothing to check", "registry.example/app", false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			checked, err := b.Check(ctx(t), provider(t, tt.mode), broker.Request{Image: tt.image, Token: "to.k.en"})
			if checked != tt.checked || (err == nil) != (tt.want == "") || !strings.Contains(fmt.Sprint(err), tt.want) && tt.want != "" {
				t.Errorf("checked %t, %v; want %t, …%s…", checked, err, tt.checked, tt.want)
			}
		})
	}
}

func TestDescribe(t *testing.T) {
	b := newBench(t)
	self := provider(t, "").Backend
	script := filepath.Join(b.dir, "backend")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"+asBackend+"=good exec "+self+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	about, err := b.Describe(ctx(t), script)
	if err != nil {
		t.Fatal(err)
	}
	if about.GetName() != "tested" || about.GetVersion() != "1.0" {
		t.Errorf("it is %v", about)
	}
	if _, err := b.Describe(ctx(t), filepath.Join(b.dir, "none")); broker.KindOf(err) != broker.Misconfigured {
		t.Errorf("error %v", err)
	}
}
