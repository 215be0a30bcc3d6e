//go:build unix

package plugin

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

// The test binary is also the backends and the hosts that the tests start: what it is, one of these variables says.
const (
	asBackend = "TEST_BACKEND"
	asHost    = "TEST_HOST"
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(asBackend) != "":
		backendMain(os.Getenv(asBackend))
	case os.Getenv(asHost) != "":
		hostMain(os.Getenv(asHost))
	default:
		runtime.LockOSThread() // this goroutine keeps the first thread, the only one that cannot die: see TestABackendOutlivesTheThreadsOfItsHost
		os.Exit(m.Run())
	}
}

// fake is a backend that behaves. Each test replaces what it wants to go wrong.
type fake struct {
	backendv1.UnimplementedBackendServer
	configure func(*backendv1.ConfigureRequest) (*backendv1.ConfigureResponse, error)
	get       func(context.Context, *backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error)
	renew     func(context.Context, *backendv1.RenewRequest) (*backendv1.GetCredentialsResponse, error)
	revoke    func(*backendv1.RevokeRequest) (*backendv1.RevokeResponse, error)
	close     func() (*backendv1.CloseResponse, error)
}

func (f *fake) Describe(context.Context, *backendv1.DescribeRequest) (*backendv1.DescribeResponse, error) {
	return &backendv1.DescribeResponse{Name: "fake", Version: "1.2.3\x1b[31m", Features: []backendv1.Feature{backendv1.Feature_FEATURE_CHECK}}, nil
}

func (f *fake) Check(_ context.Context, r *backendv1.CheckRequest) (*backendv1.CheckResponse, error) {
	if r.GetImage() == "" {
		return &backendv1.CheckResponse{}, nil
	}
	return &backendv1.CheckResponse{Error: &backendv1.Error{Kind: backendv1.Error_KIND_REFUSED, Message: "not allowed with " + r.GetServiceAccountToken()}}, nil
}

func (f *fake) Configure(_ context.Context, r *backendv1.ConfigureRequest) (*backendv1.ConfigureResponse, error) {
	if f.configure != nil {
		return f.configure(r)
	}
	return &backendv1.ConfigureResponse{}, nil
}

func (f *fake) GetCredentials(ctx context.Context, r *backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error) {
	if f.get != nil {
		return f.get(ctx, r)
	}
	return oneCredential("user", "password"), nil
}

func (f *fake) Renew(ctx context.Context, r *backendv1.RenewRequest) (*backendv1.GetCredentialsResponse, error) {
	if f.renew == nil {
		return f.UnimplementedBackendServer.Renew(ctx, r)
	}
	return f.renew(ctx, r)
}

func (f *fake) Revoke(ctx context.Context, r *backendv1.RevokeRequest) (*backendv1.RevokeResponse, error) {
	if f.revoke == nil {
		return f.UnimplementedBackendServer.Revoke(ctx, r)
	}
	return f.revoke(r)
}

func (f *fake) Close(ctx context.Context, r *backendv1.CloseRequest) (*backendv1.CloseResponse, error) {
	if f.close == nil {
		return f.UnimplementedBackendServer.Close(ctx, r)
	}
	return f.close()
}

func oneCredential(username, password string) *backendv1.GetCredentialsResponse {
	return &backendv1.GetCredentialsResponse{Credentials: []*backendv1.Credential{{Key: "registry.example", Username: username, Password: password}}}
}

// serve is go-plugin's side of a backend, as short as it can be.
func serve(f *fake, change ...func(*goplugin.ServeConfig)) {
	config := &goplugin.ServeConfig{
		HandshakeConfig: backendv1.Handshake,
		Plugins:         goplugin.PluginSet{backendv1.PluginName: &serving{f: f}},
		GRPCServer:      goplugin.DefaultGRPCServer,
		Logger:          hclog.NewNullLogger(),
	}
	for _, c := range change {
		c(config)
	}
	goplugin.Serve(config)
}

type serving struct {
	goplugin.NetRPCUnsupportedPlugin
	f *fake
}

func (s *serving) GRPCServer(_ *goplugin.GRPCBroker, server *grpc.Server) error {
	backendv1.RegisterBackendServer(server, s.f)
	return nil
}

func (s *serving) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, io.ErrUnexpectedEOF
}

// bench is what a test works with: a Runtime in a directory of its own, and the log.
type bench struct {
	*Runtime
	base string
	log  *logBuffer
}

func newBench(t *testing.T, environ ...string) *bench {
	t.Helper()
	log := &logBuffer{}
	b := &bench{base: filepath.Join(shortDir(t), "b"), log: log}
	b.Runtime = NewRuntime(RuntimeOptions{
		Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})), Environ: append([]string{"PATH=" + os.Getenv("PATH")}, environ...), BaseDirs: []string{b.base},
	})
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// shortDir is a directory whose name leaves room for a socket's; t.TempDir's holds the test's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "cb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func (b *bench) spec(t *testing.T, mode string) Spec {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Spec{Provider: "tested", Path: self, Env: []string{asBackend + "=" + mode}}
}

func (b *bench) start(t *testing.T, mode string) (*Process, error) {
	t.Helper()
	return b.startSpec(t, b.spec(t, mode))
}

func (b *bench) startSpec(t *testing.T, spec Spec) (*Process, error) {
	t.Helper()
	p, err := Start(withDeadline(t, 20*time.Second), b.Runtime, spec)
	if p != nil {
		t.Cleanup(p.Stop)
	}
	return p, err
}

// ask starts a backend, configures it and asks it once.
func (b *bench) ask(t *testing.T, spec Spec, request *backendv1.GetCredentialsRequest) (*Process, *backendv1.GetCredentialsResponse, error) {
	t.Helper()
	p, err := b.startSpec(t, spec)
	if err != nil {
		return nil, nil, err
	}
	ctx := withDeadline(t, 20*time.Second)
	if problems := p.Configure(ctx); problems != nil {
		return p, nil, problems[0]
	}
	response, err := p.GetCredentials(ctx, request)
	return p, response, err
}

// mustAsk is ask where nothing may go wrong.
func (b *bench) mustAsk(t *testing.T, mode string) (*Process, *backendv1.GetCredentialsResponse) {
	t.Helper()
	p, response, err := b.ask(t, b.spec(t, mode), &backendv1.GetCredentialsRequest{Image: "registry.example/app"})
	if err != nil {
		t.Fatal(err)
	}
	return p, response
}

func withDeadline(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func waitFor(t *testing.T, what string, within time.Duration, done func() bool) {
	t.Helper()
	tick, deadline := time.NewTicker(2*time.Millisecond), time.After(within)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within %s: %s", within, what)
		}
	}
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestABackendIsStartedConfiguredAskedAndStopped(t *testing.T) {
	b := newBench(t)
	spec := b.spec(t, "good")
	spec.Settings = []byte(`{"a":1}`)
	var steps []string
	spec.Trace = func(step string, _ time.Time, took time.Duration) {
		if took <= 0 {
			t.Errorf("step %q took %s", step, took)
		}
		steps = append(steps, step)
	}
	token := "a.b.c"
	p, response, err := b.ask(t, spec, &backendv1.GetCredentialsRequest{
		Image: "registry.example/app", ServiceAccountToken: &token, ServiceAccountAnnotations: map[string]string{"role": "puller"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(steps), "[check start]"; got != want {
		t.Errorf("steps %s, want %s", got, want)
	}
	c := response.GetCredentials()[0]
	if got, want := c.GetUsername(), `settings={"a":1} provider=tested image=registry.example/app token=a.b.c role=puller deadline=true`; got != want {
		t.Errorf("the backend saw\n%s, want\n%s", got, want)
	}
	pid := p.PID()
	p.Stop()
	<-p.Done()
	if alive(pid) {
		t.Errorf("process %d is alive after Stop", pid)
	}
	if entries, _ := filepath.Glob(filepath.Join(b.base, "r-*", "*")); len(entries) != 0 {
		t.Errorf("left after Stop: %v", entries)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if entries, _ := os.ReadDir(b.base); len(entries) != 0 {
		t.Errorf("left after Close: %v", entries)
	}
	if strings.Contains(b.log.String(), token) {
		t.Errorf("the log has the token:\n%s", b.log)
	}
}

func BenchmarkWholeCall(bm *testing.B) {
	rt := NewRuntime(RuntimeOptions{})
	defer rt.Close()
	self, _ := os.Executable()
	for bm.Loop() {
		p, err := Start(context.Background(), rt, Spec{Provider: "tested", Path: self, Env: []string{asBackend + "=good"}})
		if err != nil {
			bm.Fatal(err)
		}
		if problems := p.Configure(context.Background()); problems != nil {
			bm.Fatal(problems)
		}
		if _, err := p.GetCredentials(context.Background(), &backendv1.GetCredentialsRequest{Image: "registry.example/app"}); err != nil {
			bm.Fatal(err)
		}
		p.Stop()
	}
}
