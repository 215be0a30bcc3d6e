//go:build unix

package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/agent/fast"
	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/kubelet"
	"github.com/credential-broker/credential-broker/proto/secret"
)

// fakeBackends answer with a password that says which provider was asked, by which configuration, and for what.
type fakeBackends struct {
	dir string

	mu       sync.Mutex
	calls    []string
	marks    []string // of a Tracer, in the calls' contexts
	retained []string
	replaced []string
	closed   bool
	// hold, if set, is what a call waits for; entered hears of each call, left of each that its context ended.
	hold, entered, left chan struct{}
	fail                error
	// lends: answers come with a lease, the provider's settings. revoked are those that were, with what was amiss.
	lends   bool
	revoked []string
}

func (f *fakeBackends) Call(ctx context.Context, p *config.Provider, r broker.Request) (broker.Answer, error) {
	f.mu.Lock()
	f.calls = append(f.calls, p.Name+" "+r.Image)
	if mark, ok := ctx.Value(markKey{}).(string); ok {
		f.marks = append(f.marks, mark)
	}
	closed, hold, fail := f.closed, f.hold, f.fail
	f.mu.Unlock()
	if closed {
		return broker.Answer{}, errors.New("closed")
	}
	if f.entered != nil {
		f.entered <- struct{}{}
	}
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			if f.left != nil {
				f.left <- struct{}{}
			}
			return broker.Answer{}, ctx.Err()
		}
	}
	if fail != nil {
		return broker.Answer{}, fail
	}
	host, _, _ := strings.Cut(r.Image, "/")
	var lease secret.Secret
	if f.lends {
		lease = secret.Secret(p.Config)
	}
	return broker.Answer{RegistryWide: true, Lease: lease, Credentials: []broker.Credential{{Key: host, Username: p.Name, Password: secret.Secret(f.dir + "|" + string(p.Config))}}}, nil
}

func (f *fakeBackends) Renew(ctx context.Context, p *config.Provider, r broker.Request, _ secret.Secret) (broker.Answer, error) {
	return f.Call(ctx, p, r)
}

func (f *fakeBackends) Revoke(_ context.Context, p *config.Provider, lease secret.Secret) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	what := string(lease)
	if string(p.Config) != what {
		what += " by " + string(p.Config)
	}
	if f.closed {
		what += " of closed backends"
	}
	f.revoked = append(f.revoked, what)
	slices.Sort(f.revoked)
	return nil
}

func (f *fakeBackends) returned() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.revoked)
}

func (f *fakeBackends) Retain(providers []*config.Provider) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.retained = nil
	for _, p := range providers {
		f.retained = append(f.retained, p.Name)
	}
}

func (f *fakeBackends) Replace(of func(*config.Provider) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range []string{"one", "two"} {
		if of(&config.Provider{Name: name}) {
			f.replaced = append(f.replaced, name)
		}
	}
}

func (f *fakeBackends) Status() []Backend { return []Backend{{Provider: "one", PID: 7, Path: f.dir}} }

func (f *fakeBackends) Close(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	return nil
}

func (f *fakeBackends) asked() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.calls)
}

func (f *fakeBackends) isClosed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.closed
}

// served is an agent that serves, with what it is made of.
type served struct {
	*testing.T
	*Agent
	dir    string
	socket string
	log    *bytes.Buffer
	logMu  sync.Mutex

	mu   sync.Mutex
	made []*fakeBackends
	// next is what the next backends are like.
	next fakeBackends
	// stranger: the agent is of another user than the test.
	stranger bool

	observe     func(Observation)
	observeCall func(Call)
	trace       Tracer
	clock       func() time.Time
}

const header = "apiVersion: credential-broker.io/v1alpha1\nkind: BrokerConfig\n"

// one is a configuration with one provider, whose answers tell its settings.
func one(settings string) string {
	return header + "providers:\n- {name: one, matchImages: [registry.example], defaultCacheDuration: 1h, config: {say: " + settings + "}}\n"
}

func (s *served) path() string { return filepath.Join(s.dir, "config.yaml") }

// write puts a configuration in place as a whole.
func (s *served) write(path, text string) {
	s.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		s.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		s.Fatal(err)
	}
}

func (s *served) backends(i int) *fakeBackends {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.made[i]
}

func (s *served) logged() string {
	s.logMu.Lock()
	defer s.logMu.Unlock()
	return s.log.String()
}

type lockedWriter struct{ s *served }

func (w lockedWriter) Write(b []byte) (int, error) {
	w.s.logMu.Lock()
	defer w.s.logMu.Unlock()
	return w.s.log.Write(b)
}

func prepare(t *testing.T) *served {
	t.Helper()
	dir, err := os.MkdirTemp("", "cb-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return &served{T: t, dir: dir, socket: filepath.Join(dir, "run", "agent.sock"), log: &bytes.Buffer{}}
}

func (s *served) options() Options {
	return Options{
		Load: func(path, backendDir string) (*config.Config, error) {
			cfg, err := config.Load(path)
			if err == nil && backendDir != "" {
				cfg.BackendDir = backendDir
			}
			return cfg, err
		},
		Paths: func(path string) []string { return []string{path} },
		Backends: func(dir string, _ *slog.Logger) Backends {
			s.mu.Lock()
			defer s.mu.Unlock()
			f := &fakeBackends{dir: dir, hold: s.next.hold, entered: s.next.entered, left: s.next.left, fail: s.next.fail, lends: s.next.lends}
			s.made = append(s.made, f)
			return f
		},
		Log:      func(config.Log) *slog.Logger { return slog.New(slog.NewTextHandler(lockedWriter{s}, nil)) },
		Complain: func(err error) []byte { return []byte("complaint: " + err.Error() + "\n") },
		Describe: func(r broker.Request, _ broker.Result, _ error, show bool) ([]byte, error) {
			return json.Marshal(map[string]any{"image": r.Image, "show": show})
		},
		Version: "test", Observe: s.observe, ObserveCall: s.observeCall, Trace: s.trace, Now: s.clock,
	}
}

// begin makes the agent and serves, until the test ends.
func (s *served) begin() *served {
	s.Helper()
	a, err := New(s.options(), s.path(), "")
	if err != nil {
		s.Fatal(err)
	}
	socket, err := Listen(s.socket)
	if err != nil {
		s.Fatal(err)
	}
	s.Agent = a
	if s.stranger {
		a.uid++
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Serve(ctx, socket.Listener) }()
	s.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			s.Error(err)
		}
		socket.Remove()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := errors.Join(a.Wait(ctx), a.Close(ctx)); err != nil {
			s.Error(err)
		}
	})
	return s
}

func serving(t *testing.T, configuration string) *served {
	t.Helper()
	s := prepare(t)
	s.write(s.path(), configuration)
	return s.begin()
}

const anImage = "registry.example/team/app"

func body(image string) []byte {
	return []byte(`{"apiVersion":"` + kubelet.V1 + `","kind":"CredentialProviderRequest","image":"` + image + `"}`)
}

// resolve asks as the exec plugin does.
func (s *served) resolve(r fast.Request) fast.Reply {
	s.Helper()
	if r.Operation == 0 {
		r.Operation = fast.Resolve
	}
	if r.Config == "" {
		r.Config = s.path()
	}
	if r.Body == nil {
		r.Body = body(anImage)
	}
	s.inOrder()
	reply, reason, _ := fast.Ask(s.socket, r)
	s.inOrder()
	if reason != "" {
		s.Fatalf("the agent did not answer: %s", reason)
	}
	return reply
}

// inOrder tells the race detector that what the agent does for a request comes after what the test has done before it, and before what the test does next. What package syscall reads and writes it knows by
// itself, but package fast makes its own system calls.
func (s *served) inOrder() {
	s.Helper()
	var pipe [2]int
	if err := syscall.Pipe(pipe[:]); err != nil {
		s.Fatal(err)
	}
	defer func() { _, _ = syscall.Close(pipe[0]), syscall.Close(pipe[1]) }()
	if _, err := syscall.Write(pipe[1], []byte{1}); err != nil {
		s.Fatal(err)
	}
	if _, err := syscall.Read(pipe[0], make([]byte, 1)); err != nil {
		s.Fatal(err)
	}
}

// password is what a reply has for registry.example.
func (s *served) password(reply fast.Reply) string {
	s.Helper()
	response, err := kubelet.DecodeResponse(kubelet.V1, reply.Stdout)
	if err != nil || reply.Status != 0 {
		s.Fatalf("status %d, stderr %q: %v", reply.Status, reply.Stderr, err)
	}
	return string(response.Auth["registry.example"].Password)
}

// eventually polls.
func (s *served) eventually(what string, condition func() bool) {
	s.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(time.Minute)
	for !condition() {
		if time.Now().After(deadline) {
			s.Fatalf("it did not come about: %s; log:\n%s", what, s.logged())
		}
		<-tick.C
	}
}

func TestTheAgentAnswersAsTheExecPluginWould(t *testing.T) {
	s := serving(t, one("a"))
	if got := s.password(s.resolve(fast.Request{})); got != `|{"say":"a"}` {
		t.Errorf("password %q", got)
	}
	for name, c := range map[string]struct {
		request fast.Request
		stderr  string
	}{
		"nonsense":              {fast.Request{Body: []byte("nonsense")}, "complaint: request: not JSON"},
		"a configuration gone":  {fast.Request{Config: filepath.Join(s.dir, "none.yaml")}, "complaint: " + s.dir + "/none.yaml"},
		"get, but no request":   {fast.Request{Operation: fast.Get}, "complaint: request"},
		"forget, in no words":   {fast.Request{Operation: fast.Forget, Body: []byte("x")}, "complaint: the agent was asked in words that it does not know"},
		"get, in no words":      {fast.Request{Operation: fast.Get, Body: []byte("x")}, "complaint: the agent was asked in words that it does not know"},
		"a request of no image": {fast.Request{Body: []byte(`{"apiVersion":"` + kubelet.V1 + `","kind":"CredentialProviderRequest"}`)}, "complaint: request"},
	} {
		reply := s.resolve(c.request)
		if reply.Status != 1 || len(reply.Stdout) > 0 || !strings.HasPrefix(string(reply.Stderr), c.stderr) {
			t.Errorf("%s: status %d, stdout %q, stderr %q; want 1, nothing, %q…", name, reply.Status, reply.Stdout, reply.Stderr, c.stderr)
		}
	}
}

func TestAnAudienceThatNobodyHasIsNoError(t *testing.T) {
	s := serving(t, one("a"))
	reply := s.resolve(fast.Request{HasAudience: true, Audience: "other"})
	response, err := kubelet.DecodeResponse(kubelet.V1, reply.Stdout)
	if err != nil || len(response.Auth) > 0 || s.backends(0).asked() > 0 {
		t.Errorf("%+v, %v, %d calls", response, err, s.backends(0).asked())
	}
	if !strings.Contains(s.logged(), "no provider has this serviceAccountTokenAudience") {
		t.Errorf("the log does not say it:\n%s", s.logged())
	}
}

func TestWhatTheAgentDoesNotKnowItLeavesToTheAsker(t *testing.T) {
	s := serving(t, one("a"))
	_, reason, absent := fast.Ask(s.socket, fast.Request{Operation: 99, Config: s.path()})
	if !strings.Contains(reason, "operation 99") || absent {
		t.Errorf("reason %q, absent %t", reason, absent)
	}
}

func TestAnotherUsersRequestIsNotHeard(t *testing.T) {
	s := prepare(t)
	s.write(s.path(), one("a"))
	s.stranger = true
	s.begin()
	_, reason, absent := fast.Ask(s.socket, fast.Request{Operation: fast.Resolve, Config: s.path(), Body: body(anImage)})
	if reason == "" || absent {
		t.Errorf("the request was answered, or nobody seemed to be there: %q, %t", reason, absent)
	}
	if s.backends(0).asked() != 0 {
		t.Error("a backend was asked")
	}
	s.eventually("the log says it", func() bool { return strings.Contains(s.logged(), "somebody else's request was not heard") })
}

func TestAChangeHoldsFromTheNextRequestOn(t *testing.T) {
	s := serving(t, one("first"))
	s.password(s.resolve(fast.Request{}))
	for i := range 20 {
		want := fmt.Sprintf("g%02d", i) // of one length, and written within one tick of the file system's clock
		s.write(s.path(), one(want))
		if got := s.password(s.resolve(fast.Request{})); got != `|{"say":"`+want+`"}` {
			t.Fatalf("after the change to %s: %s", want, got)
		}
	}
	if err := os.WriteFile(s.path(), []byte(one("in place")), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := s.password(s.resolve(fast.Request{})); got != `|{"say":"in place"}` {
		t.Errorf("after a change in place: %s", got)
	}
}

func TestABrokenFileThatIsTakenAwayIsForgotten(t *testing.T) {
	s := prepare(t)
	s.clock = func() time.Time { return time.Now().Add(time.Minute) } // so that all files are old
	s.write(s.path(), one("own"))
	s.begin()
	dir := filepath.Join(s.dir, "config.d")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s.write(filepath.Join(dir, "10.yaml"), one("first"))
	s.password(s.resolve(fast.Request{Config: dir}))
	refused := func() string {
		s.Refresh(t.Context())
		return s.Status().Configurations[1].Refused
	}
	broken := filepath.Join(dir, "20.yaml")
	s.write(broken, "nonsense")
	if refused() == "" {
		t.Fatal("nonsense is not refused")
	}
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	if got := refused(); got != "" {
		t.Errorf("the directory is what it was, and yet: %s", got)
	}
}

func TestARefusalIsNotKeptForLong(t *testing.T) {
	s := prepare(t)
	var ahead atomic.Int64
	s.clock = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	s.write(s.path(), one("first"))
	s.begin()
	s.password(s.resolve(fast.Request{}))
	load, untrusted := s.Load, true
	s.Load = func(path, backendDir string) (*config.Config, error) {
		if untrusted { // for what no file's own state tells: who may write the directory, for one
			return nil, errors.New("untrusted")
		}
		return load(path, backendDir)
	}
	s.write(s.path(), one("second"))
	ahead.Store(int64(time.Minute)) // so that the file is old
	if got := s.password(s.resolve(fast.Request{})); got != `|{"say":"first"}` {
		t.Errorf("%s answers", got)
	}
	untrusted = false
	ahead.Store(int64(2 * time.Minute))
	if got := s.password(s.resolve(fast.Request{})); got != `|{"say":"second"}` {
		t.Errorf("%s answers, though the reason for the refusal is gone", got)
	}
}

func TestAConfigurationThatChangesWhileItIsReadIsReadAgain(t *testing.T) {
	s := serving(t, one("first"))
	s.password(s.resolve(fast.Request{}))
	load, reads := s.Load, 0
	s.Load = func(path, backendDir string) (*config.Config, error) {
		cfg, err := load(path, backendDir)
		if reads++; reads <= 3 { // of several files this one could have been read before, and another after the change
			s.write(s.path(), one(fmt.Sprintf("while it is read for the %d. time", reads)))
		}
		return cfg, err
	}
	s.write(s.path(), one("second"))
	if got := s.password(s.resolve(fast.Request{})); got != `|{"say":"while it is read for the 3. time"}` {
		t.Errorf("%s answers", got)
	}
	s.Load = func(path, backendDir string) (*config.Config, error) {
		cfg, err := load(path, backendDir)
		reads++
		s.write(s.path(), one(fmt.Sprintf("without end, %d", reads)))
		return cfg, err
	}
	s.write(s.path(), one("third"))
	if got := s.password(s.resolve(fast.Request{})); got != `|{"say":"while it is read for the 3. time"}` {
		t.Errorf("%s answers, which nobody can know to be whole", got)
	}
}

func TestABrokenConfigurationIsRefusedAndTheOldOneServesOn(t *testing.T) {
	s := serving(t, one("good"))
	s.password(s.resolve(fast.Request{}))
	s.write(s.path(), header+"providers: [{name: one}]\n")
	if got := s.password(s.resolve(fast.Request{})); got != `|{"say":"good"}` {
		t.Errorf("password %q", got)
	}
	if c := s.Status().Configurations[0]; !strings.Contains(c.Refused, "matchImages: is missing") {
		t.Errorf("the status does not say it: %q", c.Refused)
	}
	if got := strings.Count(s.logged(), "broken: the one before serves on"); got != 1 {
		t.Errorf("it was logged %d times, want once:\n%s", got, s.logged())
	}
	for range 3 {
		s.resolve(fast.Request{})
	}
	if got := strings.Count(s.logged(), "broken: the one before serves on"); got != 1 {
		t.Errorf("it was logged %d times, want once", got)
	}
	if err := os.Remove(s.path()); err != nil {
		t.Fatal(err)
	}
	if got := s.password(s.resolve(fast.Request{})); got != `|{"say":"good"}` {
		t.Errorf("without the file: %q", got)
	}
	s.write(s.path(), one("mended"))
	if got := s.password(s.resolve(fast.Request{})); got != `|{"say":"mended"}` {
		t.Errorf("password %q", got)
	}
	if c := s.Status().Configurations[0]; c.Refused != "" || c.Reloads != 1 {
		t.Errorf("refused %q, %d reloads", c.Refused, c.Reloads)
	}
}

func TestAnAgentDoesNotStartWithABrokenConfiguration(t *testing.T) {
	s := prepare(t)
	s.write(s.path(), header+"providers: [{name: one}]\n")
	if _, err := New(s.options(), s.path(), ""); err == nil || !strings.Contains(err.Error(), "matchImages: is missing") {
		t.Errorf("%v", err)
	}
}

func TestBackendsOfAnotherDirectoryAreOthers(t *testing.T) {
	s := serving(t, one("a"))
	s.password(s.resolve(fast.Request{}))
	if got := s.password(s.resolve(fast.Request{BackendDir: "/elsewhere"})); got != `/elsewhere|{"say":"a"}` {
		t.Errorf("password %q: an answer crossed from one directory's backends to another's", got)
	}
	s.write(s.path(), "backendDir: /third\n"+one("a"))
	if got := s.password(s.resolve(fast.Request{})); got != `/third|{"say":"a"}` {
		t.Errorf("password %q", got)
	}
	s.eventually("the backends of the first directory are closed", s.backends(0).isClosed)
	if s.backends(1).isClosed() {
		t.Error("those that --backend-dir names are closed")
	}
}

func TestAtMostEightConfigurationsAreKept(t *testing.T) {
	s := serving(t, one("own"))
	for i := range 2 * maxSets {
		path := filepath.Join(s.dir, fmt.Sprintf("%d.yaml", i))
		s.write(path, one(fmt.Sprintf("c%d", i)))
		if got := s.password(s.resolve(fast.Request{Config: path})); got != fmt.Sprintf(`|{"say":"c%d"}`, i) {
			t.Errorf("%s: %s", path, got)
		}
	}
	if n := len(s.Status().Configurations); n != maxSets {
		t.Errorf("%d configurations are kept, want %d", n, maxSets)
	}
	if got := s.password(s.resolve(fast.Request{})); got != `|{"say":"own"}` {
		t.Errorf("password %q", got)
	}
	if s.backends(0).isClosed() {
		t.Error("the agent's own configuration was given up")
	}
	s.eventually("the oldest is closed", s.backends(1).isClosed)
}

func TestWhoHangsUpIsNotWorkedForAnyMore(t *testing.T) {
	s := prepare(t)
	s.next.hold, s.next.entered, s.next.left = make(chan struct{}), make(chan struct{}, 1), make(chan struct{}, 1)
	s.write(s.path(), one("a"))
	s.begin()
	conn, err := net.Dial("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(fast.AppendRequest(nil, fast.Request{Operation: fast.Resolve, Config: s.path(), Body: body(anImage)})); err != nil {
		t.Fatal(err)
	}
	<-s.next.entered
	_ = conn.Close()
	select {
	case <-s.next.left:
	case <-time.After(time.Minute):
		t.Error("the call goes on")
	}
	s.eventually("it is logged", func() bool { return strings.Contains(s.logged(), "outcome=abandoned") })
	if log := s.logged(); !strings.Contains(log, `msg="provider not waited for" provider=one`) || strings.Contains(log, "provider failed") {
		t.Errorf("%s", log)
	}
}

func TestWhoWaitsHearsThatItIsWorkedOn(t *testing.T) {
	s := prepare(t)
	s.next.hold = make(chan struct{})
	s.write(s.path(), one("a"))
	s.begin()
	conn, err := net.Dial("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(fast.AppendRequest(nil, fast.Request{Operation: fast.Resolve, Config: s.path(), Body: body(anImage)})); err != nil {
		t.Fatal(err)
	}
	for i, want := range []uint8{fast.KindWorking, fast.KindWorking, fast.KindReply} {
		head := make([]byte, fast.HeaderSize)
		if _, err := io.ReadFull(conn, head); err != nil {
			t.Fatal(err)
		}
		header, problem := fast.ParseHeader(head)
		if problem != "" || header.Kind != want {
			t.Fatalf("frame %d: kind %d, %s; want %d", i, header.Kind, problem, want)
		}
		if _, err := io.CopyN(io.Discard, conn, int64(header.Length)); err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			close(s.next.hold)
		}
	}
}

func TestRequestsInFlightAreAnsweredAtTheEnd(t *testing.T) {
	s := prepare(t)
	s.next.hold, s.next.entered = make(chan struct{}), make(chan struct{}, 1)
	s.write(s.path(), one("a"))
	a, err := New(s.options(), s.path(), "")
	if err != nil {
		t.Fatal(err)
	}
	socket, err := Listen(s.socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Serve(ctx, socket.Listener) }()
	s.Agent = a
	answered := make(chan fast.Reply, 1)
	go func() {
		reply, _, _ := fast.Ask(s.socket, fast.Request{Operation: fast.Resolve, Config: s.path(), Body: body(anImage)})
		answered <- reply
	}()
	<-s.next.entered
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	socket.Remove()
	if _, _, absent := fast.Ask(s.socket, fast.Request{Operation: fast.Status}); !absent {
		t.Error("who comes now does not see that nobody is there")
	}
	close(s.next.hold)
	waiting, done := context.WithTimeout(t.Context(), time.Minute)
	defer done()
	if err := errors.Join(a.Wait(waiting), a.Close(waiting)); err != nil {
		t.Error(err)
	}
	if got := s.password(<-answered); got != `|{"say":"a"}` {
		t.Errorf("password %q", got)
	}
	if !s.backends(0).isClosed() {
		t.Error("the backends were not closed")
	}
}

func TestASuccessorHasTheAnswers(t *testing.T) {
	first := serving(t, one("a"))
	want := first.password(first.resolve(fast.Request{}))
	var handedOn bytes.Buffer
	if err := first.Export(&handedOn); err != nil {
		t.Fatal(err)
	}
	second := prepare(t)
	second.dir = first.dir // of the same configuration
	second.next.fail = errors.New("the source is asked again")
	second.begin()
	if n, err := second.Import(t.Context(), &handedOn); err != nil || n != 1 {
		t.Errorf("%d answers were taken over, %v; want 1", n, err)
	}
	if got := second.password(second.resolve(fast.Request{})); got != want {
		t.Errorf("password %q, want %q", got, want)
	}
}

func TestTheEndRevokesWhatIsLent(t *testing.T) {
	s := prepare(t)
	s.next.lends = true
	s.write(s.path(), one("a"))
	s.begin()
	s.resolve(fast.Request{})
	s.write(s.path(), one("b"))
	s.resolve(fast.Request{}) // to the provider that took the other's place
	s.write(s.path(), one("c")+"backendDir: /elsewhere\n")
	s.resolve(fast.Request{}) // to other backends
	if got := s.backends(0).returned(); got != nil {
		t.Errorf("revoked while the kubelet may keep it: %q", got)
	}
	if s.backends(0).isClosed() {
		t.Error("the backends that are not needed any more are closed before they have revoked what they lent")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := errors.Join(s.Wait(ctx), s.Close(ctx)); err != nil {
		t.Error(err)
	}
	for i, want := range [][]string{{`{"say":"a"}`, `{"say":"b"}`}, {`{"say":"c"}`}} {
		if diff := cmp.Diff(want, s.backends(i).returned()); diff != "" || !s.backends(i).isClosed() {
			t.Errorf("revoked by backends %d, which are closed: %t (-want +got):\n%s", i, s.backends(i).isClosed(), diff)
		}
	}
}

func TestASuccessorRevokesWhatIsLent(t *testing.T) {
	first := prepare(t)
	first.next.lends = true
	first.write(first.path(), one("a"))
	first.begin()
	first.resolve(fast.Request{})
	first.write(first.path(), one("b"))
	first.resolve(fast.Request{})
	var handedOn bytes.Buffer
	if err := first.Export(&handedOn); err != nil {
		t.Fatal(err)
	}
	second := prepare(t)
	second.dir = first.dir // of the same configuration
	second.begin()
	if n, err := second.Import(t.Context(), &handedOn); err != nil || n != 1 {
		t.Errorf("%d answers were taken over, %v; want 1", n, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	first.HandedOn()
	if err := errors.Join(first.Wait(ctx), first.Close(ctx)); err != nil {
		t.Error(err)
	}
	if err := errors.Join(second.Wait(ctx), second.Close(ctx)); err != nil {
		t.Error(err)
	}
	if got := first.backends(0).returned(); got != nil {
		t.Errorf("the predecessor revoked %q", got)
	}
	if diff := cmp.Diff([]string{`{"say":"a"}`, `{"say":"b"}`}, second.backends(0).returned()); diff != "" {
		t.Errorf("revoked by the successor (-want +got):\n%s", diff)
	}
}

func TestForgetDropsWhatItNames(t *testing.T) {
	const configuration = header + `providers:
- {name: one, matchImages: [registry.example], defaultCacheDuration: 1h}
- {name: two, matchImages: [other.example], defaultCacheDuration: 1h, mirrors: [{source: docker.io, endpoint: other.example/hub}]}
`
	for name, c := range map[string]struct {
		request  ForgetRequest
		want     int
		replaced string
	}{
		"nothing":                            {ForgetRequest{}, 0, ""},
		"all":                                {ForgetRequest{All: true}, 2, "one two"},
		"a provider's":                       {ForgetRequest{Provider: "one"}, 1, "one"},
		"an image's":                         {ForgetRequest{Image: anImage}, 1, "one"},
		"another image's of the registry":    {ForgetRequest{Image: "registry.example/other"}, 1, "one"},
		"another registry's":                 {ForgetRequest{Image: "third.example/app"}, 0, ""},
		"an image's that is from the mirror": {ForgetRequest{Image: "docker.io/library/nginx"}, 1, "two"},
	} {
		t.Run(name, func(t *testing.T) {
			s := serving(t, configuration)
			s.resolve(fast.Request{})
			s.resolve(fast.Request{Body: body("docker.io/library/nginx")})
			if n := len(s.Status().Configurations[0].Answers); n != 2 {
				t.Fatalf("%d answers are held, want 2", n)
			}
			data, err := json.Marshal(c.request)
			if err != nil {
				t.Fatal(err)
			}
			var got Forgotten
			if err := json.Unmarshal(s.resolve(fast.Request{Operation: fast.Forget, Body: data}).Stdout, &got); err != nil || got.Answers != c.want {
				t.Errorf("%+v, %v; want %d", got, err, c.want)
			}
			if n := len(s.Status().Configurations[0].Answers); n != 2-c.want {
				t.Errorf("%d answers are held then, want %d", n, 2-c.want)
			}
			if got := strings.Join(s.backends(0).replaced, " "); got != c.replaced {
				t.Errorf("the backends of %q are replaced, want %q", got, c.replaced)
			}
		})
	}
	s := serving(t, configuration)
	s.resolve(fast.Request{})
	if reply := s.resolve(fast.Request{Operation: fast.Forget, Body: []byte(`{"provider":"three"}`)}); reply.Status != 1 || !strings.Contains(string(reply.Stderr), `there is no provider "three": there are one, two`) {
		t.Errorf("an unknown provider: %d %s", reply.Status, reply.Stderr)
	}
}

func TestAStatusThatIsTooLongIsShortened(t *testing.T) {
	s := serving(t, header+"providers:\n- {name: one, matchImages: ['*.registry.example'], defaultCacheDuration: 1h}\n")
	const answers = 40
	for i := range answers {
		if reply := s.resolve(fast.Request{Body: body(fmt.Sprintf("r%d.registry.example/app", i))}); reply.Status != 0 {
			t.Fatalf("%s", reply.Stderr)
		}
	}
	whole := len(s.statusReply(maxStatus).Stdout)
	reply := s.statusReply(whole - 1)
	var status Status
	if err := json.Unmarshal(reply.Stdout, &status); err != nil {
		t.Fatal(err)
	}
	c := status.Configurations[0]
	if c.Omitted != answers/2 || len(c.Answers) != answers/2 {
		t.Errorf("%d answers are listed and %d omitted, of %d", len(c.Answers), c.Omitted, answers)
	}
	if reply := s.statusReply(0); !bytes.Contains(reply.Stdout, []byte(`"omitted":40`)) {
		t.Errorf("without room for any: %s", reply.Stdout)
	}
}

func TestTheStatusHasNoSecret(t *testing.T) {
	s := serving(t, one("a-secret-of-the-test"))
	s.password(s.resolve(fast.Request{}))
	reply := s.resolve(fast.Request{Operation: fast.Status})
	if bytes.Contains(reply.Stdout, []byte("a-secret-of-the-test")) {
		t.Errorf("%s", reply.Stdout)
	}
	var status Status
	if err := json.Unmarshal(reply.Stdout, &status); err != nil {
		t.Fatal(err)
	}
	c := status.Configurations[0]
	if status.Requests != 1 || c.Config != s.path() || len(c.Providers) != 1 || c.Providers[0].Asked.Calls != 1 || c.Providers[0].Processes[0].PID != 7 || len(c.Answers) != 1 {
		t.Errorf("%s", reply.Stdout)
	}
}

func TestRequestsAndCallsAreHeardOf(t *testing.T) {
	s := prepare(t)
	s.write(s.path(), one("a"))
	broken := filepath.Join(s.dir, "broken.yaml")
	s.write(broken, header+"providers: [{name: one}]\n")
	observations, calls := make(chan Observation, 8), make(chan Call, 8)
	s.observe, s.observeCall = func(o Observation) { observations <- o }, func(c Call) { calls <- c }
	s.begin()
	for _, c := range []struct {
		name          string
		request       fast.Request
		configuration string
		outcome       broker.Outcome
		held          bool
	}{
		{"asked", fast.Request{}, s.path(), broker.OutcomeCredentials, false},
		{"from memory", fast.Request{}, s.path(), broker.OutcomeCredentials, true},
		{"of other backends", fast.Request{BackendDir: "/elsewhere"}, s.path() + " --backend-dir /elsewhere", broker.OutcomeCredentials, false},
		{"no request", fast.Request{Body: []byte("{}")}, s.path(), broker.OutcomeInvalid, false},
		{"a broken configuration", fast.Request{Config: broken}, "", broker.OutcomeFailed, false},
	} {
		s.resolve(c.request)
		got := <-observations
		held := len(got.Slots) == 1 && got.Slots[0].Answer.Held
		if got.Configuration != c.configuration || got.Outcome != c.outcome || held != c.held {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
	for _, want := range []string{s.path(), s.path() + " --backend-dir /elsewhere"} {
		if got := <-calls; got.Configuration != want || got.Provider != "one" || got.Background || got.Err != nil {
			t.Errorf("%+v, want one of %s", got, want)
		}
	}
	if len(observations)+len(calls) != 0 {
		t.Errorf("%d observations and %d calls too many", len(observations), len(calls))
	}
}

func TestARefusedConfigurationIsCountedOnce(t *testing.T) {
	s := serving(t, one("a"))
	for i, text := range []string{"providers: [{name: one}]\n", "providers: [{name: two}]\n"} {
		s.write(s.path(), header+text)
		for range 3 {
			s.resolve(fast.Request{})
		}
		if c := s.Status().Configurations[0]; c.Refusals != i+1 || c.Reloads != 0 {
			t.Errorf("%d refusals and %d reloads, want %d and 0", c.Refusals, c.Reloads, i+1)
		}
	}
}

// markingTracer notes what it is told, and marks what goes to the backend.
type markingTracer struct {
	mu   sync.Mutex
	told []string
}

type markKey struct{}

func (m *markingTracer) tell(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.told = append(m.told, fmt.Sprintf(format, args...))
}

func (m *markingTracer) Request(ctx context.Context, r broker.Request, audience *string) (context.Context, func(broker.Result, error)) {
	m.tell("request %s audience %q", r.Image, *audience)
	return context.WithValue(ctx, markKey{}, "request"), func(r broker.Result, err error) { m.tell("request ends: %s", r.Outcome(err)) }
}

func (m *markingTracer) Provider(ctx context.Context, p *config.Provider) (context.Context, func(broker.Answer, error)) {
	m.tell("provider %s in %v", p.Name, ctx.Value(markKey{}))
	return context.WithValue(ctx, markKey{}, p.Name), func(a broker.Answer, err error) { m.tell("provider ends: held %v, %v", a.Held, err) }
}

func TestARequestIsTracedToItsBackend(t *testing.T) {
	s := prepare(t)
	s.write(s.path(), one("a"))
	tracer := &markingTracer{}
	s.trace = tracer
	s.begin()
	for range 2 {
		s.password(s.resolve(fast.Request{HasAudience: true}))
	}
	want := []string{
		`request ` + anImage + ` audience ""`, "provider one in request", "provider ends: held false, <nil>", "request ends: credentials",
		`request ` + anImage + ` audience ""`, "provider one in request", "provider ends: held true, <nil>", "request ends: credentials",
	}
	if diff := cmp.Diff(want, tracer.told); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if got := s.backends(0).marks; !slices.Equal(got, []string{"one"}) {
		t.Errorf("the backend's calls were marked %q, want that of its provider", got)
	}
}
