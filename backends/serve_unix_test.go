//go:build unix

package backends

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log" //nolint:depguard // what a library does
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/credential-broker/credential-broker/backends/child"
	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
	"github.com/credential-broker/credential-broker/proto/backend/v1/frozen"
)

// The test's executable is also the backend that is tested, and the programs it runs.
const role = "BACKENDS_TEST_ROLE"

func init() { //nolint:gochecknoinits // a library that prints while it is initialised
	if os.Getenv(role) == "backend that prints early" {
		fmt.Print("no newline behind this: ")
	}
}

func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case "":
		os.Exit(m.Run())
	case "sleep":
		time.Sleep(time.Hour) //nolint:forbidigo // a program that does not end
	case "backend without a check":
		Serve("test", "1.2.3", func(ctx context.Context, cfg testConfig) (Backend, error) {
			b, err := newTestBackend(ctx, cfg)
			return struct{ Backend }{b}, err // of the methods only those of Backend
		})
	default:
		Serve("test", "1.2.3", newTestBackend)
	}
}

type testConfig struct {
	Password Secret   `json:"password"`
	Problems []string `json:"problems"`
	Panic    string   `json:"panic"`
}

const canary = "cAnArY-0123456789"

// testBackend does what the image's path names.
type testBackend struct {
	life context.Context
	cfg  testConfig
}

func newTestBackend(ctx context.Context, cfg testConfig) (Backend, error) {
	if cfg.Panic != "" {
		panic(cfg.Panic)
	}
	var errs []error
	for _, p := range cfg.Problems {
		errs = append(errs, InvalidConfig(p, "is wrong, says %s", string(cfg.Password)))
	}
	return &testBackend{ctx, cfg}, errors.Join(errs...)
}

func (b *testBackend) Check(_ context.Context, req Request) error {
	if req.Image.Path() == "panic" {
		panic(canary)
	}
	return Refused(errors.New("checked " + string(req.Image)))
}

func (b *testBackend) Credentials(ctx context.Context, req Request) (Response, error) {
	one := Response{Credentials: []Credential{{Key: req.Image.Host(), Username: "u", Password: canary}}}
	many := func(n int, c Credential) Response {
		return Response{Credentials: slices.Repeat([]Credential{c}, n)}
	}
	switch what := req.Image.Path(); what {
	case "ok":
		zero := time.Duration(0)
		one.Scope, one.CacheDuration, one.Credentials[0].Expires = ScopeRegistry, &zero, time.Unix(1e9, 0)
		return one, b.life.Err()
	case "lease":
		defer Span(ctx, "step")()
		one.Scope, one.Lease = ScopeRegistry, theLease
		return one, nil
	case "none":
		return Response{}, nil
	case "error":
		return one, fmt.Errorf("line one\nwith %s and %s\nand %s", req.Token, string(req.Token), canary)
	case "settings":
		return Response{}, fmt.Errorf("the password %s was refused", string(b.cfg.Password))
	case "header":
		return one, Unavailable(fmt.Errorf("sent Basic %s", base64.StdEncoding.EncodeToString([]byte("u:"+canary))))
	case "refused":
		return Response{}, fmt.Errorf("wrapped: %w", Refused(errors.New("access denied")))
	case "misconfigured":
		return Response{}, InvalidConfig("a[0].b", "is wrong")
	case "status":
		return Response{}, status.Error(codes.Internal, "of a cloud")
	case "panic":
		panic(canary)
	case "nil error":
		var none *Error
		return Response{}, none
	case "marked nil":
		return Response{}, Refused(nil)
	case "index":
		return many(len(one.Credentials[len(what)-3:]), one.Credentials[0]), nil
	case "many":
		return many(backendv1.MaxCredentials+1, one.Credentials[0]), nil
	case "most":
		return many(backendv1.MaxCredentials, one.Credentials[0]), nil
	case "large":
		return many(2, Credential{Key: "k", Password: Secret(strings.Repeat("p", 600<<10))}), nil
	case "large error":
		return Response{}, errors.New(strings.Repeat("ä", 2<<20))
	case "not UTF-8":
		return many(1, Credential{Key: "k", Password: "\xff"}), nil
	case "not UTF-8 error":
		return Response{}, errors.New("a\xffb")
	case "expiry":
		return many(1, Credential{Key: "k", Expires: time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC)}), nil
	case "wait":
		<-ctx.Done()
		return Response{}, ctx.Err()
	case "print":
		fmt.Print("to standard output\n")
		fmt.Fprintln(os.Stderr, "to standard error")
		log.Print("to the log")
		slog.Warn("structured", "key", "value", "password", Secret(canary))
		_, _ = syscall.Write(1, []byte("to descriptor 1\n"))
		_, _ = syscall.Write(2, []byte("to descriptor 2\n"))
		cmd := exec.Command("/bin/sh", "-c", "echo from a child; echo from a child, error >&2; cat")
		cmd.Stdout, cmd.Stderr, cmd.Stdin = os.Stdout, os.Stderr, os.Stdin
		if err := cmd.Run(); err != nil {
			return Response{}, err
		}
		if n, err := os.Stdin.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			return Response{}, fmt.Errorf("standard input is not empty: %d, %w", n, err)
		}
		return one, nil
	case "flood":
		line := bytes.Repeat([]byte("x"), 4<<10)
		for ctx.Err() == nil {
			_, _ = os.Stdout.Write(line)
		}
		return one, nil
	case "environment":
		return Response{}, errors.New(strings.Join(os.Environ(), " "))
	case "child":
		exe, _ := os.Executable()
		result, err := child.Run(ctx, child.Command{Path: exe, Env: []string{role + "=sleep"}})
		return Response{}, fmt.Errorf("%w: %s", err, result.Stderr)
	}
	return Response{}, fmt.Errorf("what is %q?", req.Image)
}

// host is as much of a broker as it takes to talk to a backend.
type host struct {
	backendv1.BackendClient
	conn     *grpc.ClientConn
	cmd      *exec.Cmd
	lifeline *os.File
	before   []string // lines before the handshake
	stderr   *output
	exited   chan struct{}
}

type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// startBackend starts the backend; stderr, if given, takes the place of what is kept.
func startBackend(t *testing.T, as string, stderr ...*os.File) *host {
	t.Helper()
	dir, err := os.MkdirTemp("", "backend") // t.TempDir's names are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	h := &host{lifeline: w, stderr: &output{}, exited: make(chan struct{})}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h.cmd = exec.Command(exe)
	h.cmd.Env = []string{
		role + "=" + as, "KEPT=1", "PLUGIN_PROTOCOL_VERSIONS=1", "PLUGIN_UNIX_SOCKET_DIR=" + dir,
		backendv1.Handshake.MagicCookieKey + "=" + backendv1.Handshake.MagicCookieValue,
	}
	h.cmd.Stdin = r
	h.cmd.Stderr = h.stderr
	if len(stderr) > 0 {
		h.cmd.Stderr = stderr[0]
	}
	stdout, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	t.Cleanup(func() {
		_ = h.cmd.Process.Kill()
		_ = w.Close()
		<-h.exited
	})
	lines := bufio.NewScanner(stdout)
	var socket string
	for socket == "" && lines.Scan() {
		if fields := strings.Split(lines.Text(), "|"); len(fields) == 6 && fields[0] == "1" && fields[1] == "1" && fields[2] == "unix" && fields[4] == "grpc" && fields[5] == "" {
			socket = fields[3]
		} else {
			h.before = append(h.before, lines.Text())
		}
	}
	go func() {
		defer close(h.exited)
		for lines.Scan() {
			fmt.Fprintf(h.stderr, "ON STANDARD OUTPUT: %s\n", lines.Text())
		}
		_ = h.cmd.Wait()
	}()
	if filepath.Dir(socket) != dir {
		t.Fatalf("no handshake: %q", h.before)
	}
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	h.conn, h.BackendClient = conn, backendv1.NewBackendClient(conn)
	return h
}

func (h *host) configure(t *testing.T, settings string) *host {
	t.Helper()
	r, err := h.Configure(t.Context(), &backendv1.ConfigureRequest{Settings: []byte(settings), Provider: "p"})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Errors) > 0 {
		t.Fatal(r.Errors)
	}
	return h
}

func (h *host) get(t *testing.T, what string) *backendv1.GetCredentialsResponse {
	t.Helper()
	token := "tOkEn-987654321"
	r, err := h.GetCredentials(t.Context(), &backendv1.GetCredentialsRequest{Image: "r.example/" + what, ServiceAccountToken: &token})
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	return r
}

// eventually polls, since what a process does is seen when it is seen.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) { //nolint:forbidigo // polls, with a deadline
		if time.Now().After(end) {
			t.Fatal("in 20 s not: " + what)
		}
	}
}

func TestServeAnswers(t *testing.T) {
	h := startBackend(t, "backend")
	d, err := h.Describe(t.Context(), &backendv1.DescribeRequest{})
	if err != nil || d.Name != "test" || d.Version != "1.2.3" || !slices.Contains(d.Features, backendv1.Feature_FEATURE_CHECK) {
		t.Errorf("Describe: %v, %v", d, err)
	}
	if r := h.get(t, "ok"); r.Error.GetKind() != backendv1.Error_KIND_MISCONFIGURED {
		t.Errorf("before Configure: %v", r)
	}
	if r, err := h.Check(t.Context(), &backendv1.CheckRequest{}); err != nil || r.Error.GetKind() != backendv1.Error_KIND_MISCONFIGURED {
		t.Errorf("Check before Configure: %v, %v", r, err)
	}
	h.configure(t, `{"password":"`+canary+`"}`)

	r := h.get(t, "ok")
	if r.Error != nil || r.Scope != backendv1.Scope_SCOPE_REGISTRY || r.CacheDuration == nil || r.CacheDuration.AsDuration() != 0 || len(r.Credentials) != 1 ||
		r.Credentials[0].Key != "r.example" || r.Credentials[0].Username != "u" || r.Credentials[0].Password != canary || r.Credentials[0].Expires.AsTime().Unix() != 1e9 {
		t.Errorf("ok: %v", r)
	}
	if r := h.get(t, "none"); r.Error != nil || len(r.Credentials) != 0 || r.CacheDuration != nil || r.Scope != backendv1.Scope_SCOPE_IMAGE {
		t.Errorf("none: %v", r)
	}
	if r := h.get(t, "most"); r.Error != nil || len(r.Credentials) != backendv1.MaxCredentials {
		t.Errorf("most: %v", r.Error)
	}
	for what, want := range map[string]*backendv1.Error{
		"error":           {Kind: backendv1.Error_KIND_UNAVAILABLE, Message: "line one; with [redacted] and [redacted]; and [redacted]"},
		"settings":        {Kind: backendv1.Error_KIND_UNAVAILABLE, Message: "the password [redacted] was refused"},
		"header":          {Kind: backendv1.Error_KIND_UNAVAILABLE, Message: "sent Basic [redacted]=="},
		"refused":         {Kind: backendv1.Error_KIND_REFUSED, Message: "wrapped: access denied"},
		"misconfigured":   {Kind: backendv1.Error_KIND_MISCONFIGURED, Message: "is wrong", Field: "a[0].b"},
		"status":          {Kind: backendv1.Error_KIND_UNAVAILABLE, Message: "rpc error: code = Internal desc = of a cloud"},
		"many":            {Kind: backendv1.Error_KIND_UNAVAILABLE, Message: "the backend answered with 1001 credentials, of which the protocol allows 1000"},
		"large":           {Kind: backendv1.Error_KIND_UNAVAILABLE, Message: "the backend's answer has 1228824 bytes, of which the protocol allows 1048576"},
		"not UTF-8":       {Kind: backendv1.Error_KIND_UNAVAILABLE, Message: `the user name or password for "k" is not UTF-8`},
		"not UTF-8 error": {Kind: backendv1.Error_KIND_UNAVAILABLE, Message: "a\uFFFDb"},
		"expiry":          {Kind: backendv1.Error_KIND_UNAVAILABLE, Message: `the expiry of the credential for "k" is no date of this era: 20000-01-01T00:00:00Z`},
	} {
		got := h.get(t, what).GetError()
		if got.GetKind() != want.Kind || got.GetMessage() != want.Message || got.GetField() != want.Field {
			t.Errorf("%s:\n got %v\nwant %v", what, got, want)
		}
	}
	if got := h.get(t, "large error").GetError(); len(got.GetMessage()) > maxErrorBytes+3 || !strings.HasSuffix(got.GetMessage(), "ä…") {
		t.Errorf("a large error has %d bytes", len(got.GetMessage()))
	}
	if r, err := h.Check(t.Context(), &backendv1.CheckRequest{Image: "r.example/a"}); err != nil || r.Error.GetKind() != backendv1.Error_KIND_REFUSED || r.Error.GetMessage() != "checked r.example/a" {
		t.Errorf("Check: %v, %v", r, err)
	}
	if _, err := h.Configure(t.Context(), &backendv1.ConfigureRequest{}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a second Configure: %v", err)
	}
}

func TestABrokerOfTheFirstProtocolIsAnswered(t *testing.T) {
	h := startBackend(t, "backend")
	ask := func(method, request string) *dynamicpb.Message {
		t.Helper()
		response, err := frozen.Ask(t.Context(), h.conn, method, frozen.Message(method+"Request", request))
		if err != nil {
			t.Fatal(err)
		}
		return response
	}
	for _, step := range []struct {
		method, request, want string
		more                  bool // the answer has what such a broker does not know
	}{
		{"Describe", ``, `name: "test" version: "1.2.3" features: [FEATURE_CHECK, 2, 3, 4]`, false},
		{"Configure", `settings: "{}" provider: "p"`, ``, false},
		{"GetCredentials", `image: "r.example/lease" service_account_token: "t"`, `scope: SCOPE_REGISTRY credentials: {key: "r.example" username: "u" password: "` + canary + `"}`, true},
		{"GetCredentials", `image: "r.example/refused"`, `error: {kind: KIND_REFUSED message: "wrapped: access denied"}`, false},
		{"Check", `image: "r.example/a"`, `error: {kind: KIND_REFUSED message: "checked r.example/a"}`, false},
	} {
		got := ask(step.method, step.request)
		if more := len(got.GetUnknown()) > 0; more != step.more {
			t.Errorf("%s: more than it knows: %t", step.method, more)
		}
		got.SetUnknown(nil)
		if diff := cmp.Diff(frozen.Message(step.method+"Response", step.want), got, protocmp.Transform()); diff != "" {
			t.Errorf("%s: %s", step.method, diff)
		}
	}
}

func TestServeClaimsNoCheckThatTheBackendDoesNotHave(t *testing.T) {
	h := startBackend(t, "backend without a check").configure(t, "{}")
	if r, err := h.Check(t.Context(), &backendv1.CheckRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("Check: %v, %v; want the status Unimplemented", r, err)
	}
}

func TestServeReportsEveryProblemOfTheSettings(t *testing.T) {
	h := startBackend(t, "backend")
	for settings, want := range map[string][]string{
		`{"pasword":1,"problems":[1]}`:                                {"pasword", "problems[0]"},
		`{"problems":["a","b.c"],"password":"` + canary + `"}`:        {"a", "b.c"},
		`{"problems":"` + canary + `"}`:                               {"problems"},
		`{"problems":["` + canary + `"],"password":"` + canary + `"}`: {"[redacted]"},
	} {
		r, err := h.Configure(t.Context(), &backendv1.ConfigureRequest{Settings: []byte(settings)})
		if err != nil {
			t.Fatal(err)
		}
		var fields []string
		for _, e := range r.Errors {
			fields = append(fields, e.Field)
			if e.Kind != backendv1.Error_KIND_MISCONFIGURED || e.Message == "" || strings.Contains(e.String(), canary) {
				t.Errorf("%s: %v", settings, e)
			}
		}
		slices.Sort(fields)
		if !slices.Equal(fields, want) {
			t.Errorf("%s: got problems with %q, want %q", settings, fields, want)
		}
	}
}

func TestServeSurvivesPanicsAndHidesTheirValues(t *testing.T) {
	h := startBackend(t, "backend")
	if _, err := h.Configure(t.Context(), &backendv1.ConfigureRequest{Settings: []byte(`{"panic":"` + canary + `"}`)}); status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "type string") {
		t.Errorf("Configure: %v", err)
	}
	h.configure(t, `{}`)
	_, err := h.GetCredentials(t.Context(), &backendv1.GetCredentialsRequest{Image: "r.example/panic"})
	if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "panicked during a request: with a value of type string") {
		t.Errorf("Credentials: %v", err)
	}
	_, err = h.GetCredentials(t.Context(), &backendv1.GetCredentialsRequest{Image: "r.example/index"})
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "value of type") {
		t.Errorf("the language's own panic: %v", err)
	}
	if _, err = h.GetCredentials(t.Context(), &backendv1.GetCredentialsRequest{Image: "r.example/nil error"}); status.Code(err) != codes.Internal {
		t.Errorf("an error that is a nil pointer: %v", err)
	}
	if r := h.get(t, "marked nil"); r.Error != nil {
		t.Errorf("no error, marked: %v", r.Error)
	}
	if _, err := h.Check(t.Context(), &backendv1.CheckRequest{Image: "r.example/panic"}); status.Code(err) != codes.Internal {
		t.Errorf("Check: %v", err)
	}
	if r := h.get(t, "ok"); r.Error != nil {
		t.Errorf("afterwards: %v", r.Error)
	}
	eventually(t, "the stack in the log", func() bool { return strings.Contains(h.stderr.String(), "serve_unix_test.go:") })
	if strings.Contains(h.stderr.String(), canary) {
		t.Errorf("the panic's value is in the log: %s", h.stderr)
	}
}

func TestServeHonoursDeadlines(t *testing.T) {
	h := startBackend(t, "backend").configure(t, `{}`)
	r, err := h.GetCredentials(t.Context(), &backendv1.GetCredentialsRequest{Image: "r.example/wait", Deadline: timestamppb.New(time.Now().Add(50 * time.Millisecond))})
	if err != nil || r.Error.GetKind() != backendv1.Error_KIND_UNAVAILABLE || !strings.Contains(r.Error.GetMessage(), "deadline") {
		t.Errorf("the deadline in the message: %v, %v", r, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	// Whichever side notices first.
	r, err = h.GetCredentials(ctx, &backendv1.GetCredentialsRequest{Image: "r.example/wait"})
	if status.Code(err) != codes.DeadlineExceeded && !strings.Contains(r.GetError().GetMessage(), "deadline") {
		t.Errorf("the call's deadline: %v, %v", r, err)
	}
}

func TestServeLeadsEverythingPrintedToTheLog(t *testing.T) {
	h := startBackend(t, "backend that prints early").configure(t, `{}`)
	if !slices.Equal(h.before, []string{"no newline behind this: "}) {
		t.Errorf("before the handshake: %q", h.before)
	}
	if r := h.get(t, "print"); r.Error != nil {
		t.Fatal(r.Error)
	}
	want := []string{"to standard output", "to standard error", "to descriptor 1", "to descriptor 2", "from a child", "from a child, error"}
	eventually(t, "all that was printed", func() bool {
		lines := strings.Split(h.stderr.String(), "\n")
		return !slices.ContainsFunc(want, func(w string) bool { return !slices.Contains(lines, w) })
	})
	var records []map[string]string
	for line := range strings.Lines(h.stderr.String()) {
		var record map[string]string
		if json.Unmarshal([]byte(line), &record) == nil {
			records = append(records, record)
		}
	}
	if fmt.Sprint(records) != "[map[@level:info @message:to the log] map[@level:warn @message:structured key:value password:[redacted]]]" {
		t.Errorf("records: %v", records)
	}
	if strings.Contains(h.stderr.String(), "ON STANDARD OUTPUT") {
		t.Errorf("something reached the real standard output: %s", h.stderr)
	}
}

func TestAFloodOfOutputBlocksNobodyElse(t *testing.T) {
	r, w, err := os.Pipe() // which nobody reads
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	h := startBackend(t, "backend", w).configure(t, `{}`)
	_ = w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	flooding := make(chan struct{})
	go func() {
		defer close(flooding)
		_, _ = h.GetCredentials(ctx, &backendv1.GetCredentialsRequest{Image: "r.example/flood"})
	}()
	if _, err := r.Read(make([]byte, 1)); err != nil { // it has begun
		t.Fatal(err)
	}
	for range 10 {
		if r := h.get(t, "ok"); r.Error != nil {
			t.Error(r.Error)
		}
	}
	cancel()
	<-flooding
}

func TestServeKeepsTheHandshakeOutOfTheEnvironment(t *testing.T) {
	h := startBackend(t, "backend").configure(t, `{}`)
	if got := h.get(t, "environment").GetError().GetMessage(); got != role+"=backend KEPT=1" {
		t.Errorf("the environment is %q", got)
	}
}

func TestServeEndsWithItsHostAndTakesItsChildrenAlong(t *testing.T) {
	h := startBackend(t, "backend").configure(t, `{}`)
	called := make(chan struct{})
	go func() {
		defer close(called)
		_, _ = h.GetCredentials(t.Context(), &backendv1.GetCredentialsRequest{Image: "r.example/child"})
	}()
	// The child's standard error is a pipe of the backend's, so its process is looked for.
	var sleeper int
	eventually(t, "a child that sleeps", func() bool { sleeper = findSleeper(); return sleeper != 0 })
	_ = h.lifeline.Close()
	select {
	case <-h.exited:
	case <-time.After(20 * time.Second):
		t.Fatal("the backend outlives its lifeline")
	}
	if code := h.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit status %d: %s", code, h.stderr)
	}
	<-called
	eventually(t, "the child gone", func() bool { return syscall.Kill(sleeper, 0) == syscall.ESRCH })
}

// findSleeper finds the process by its environment, which only Linux shows; elsewhere package child's own tests have to do.
func findSleeper() int {
	dirs, _ := filepath.Glob("/proc/[0-9]*/environ")
	if dirs == nil {
		return -1
	}
	for _, name := range dirs {
		if content, err := os.ReadFile(name); err == nil && strings.Contains(string(content), role+"=sleep") {
			var pid int
			if _, err := fmt.Sscanf(name, "/proc/%d/", &pid); err == nil {
				return pid
			}
		}
	}
	return 0
}

func TestServeByHand(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = []string{role + "=backend"}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("ended with %v", err)
	}
	for _, want := range []string{"credential-backend-test 1.2.3", "backend: test", "credential-broker conformance " + exe} {
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("it does not say %q: %s", want, &stderr)
		}
	}
	if stdout.Len() > 0 {
		t.Errorf("on standard output: %s", &stdout)
	}
	cmd = exec.Command(exe, "--version")
	cmd.Env = []string{role + "=backend"}
	if out, err := cmd.Output(); err != nil || string(out) != "credential-backend-test 1.2.3 (backend protocol 1)\n" {
		t.Errorf("--version: %q, %v", out, err)
	}
}
