package conformance

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/credential-broker/credential-broker/broker/plugin"
	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

// process is a running backend that was started by hand rather than by the broker's code, so that nothing of what it does is tidied up on the way: its output is kept as it is,
// its lifeline can be cut, and no signal tells it that its parent is gone.
type process struct {
	trial    *trial
	cmd      *exec.Cmd
	dir      string   // PLUGIN_UNIX_SOCKET_DIR
	lifeline *os.File // the writing end of its standard input
	output   output
	greeted  chan struct{} // closed when the handshake has been seen
	exited   chan struct{} // closed when it has ended
	drained  chan struct{} // closed when nothing can print any more
	family   *family

	greeting handshake
	conn     *grpc.ClientConn
	rpc      backendv1.BackendClient
}

// launch says how a process differs from one that the broker starts.
type launch struct {
	noCookie bool
	// version of the protocol that the host speaks; 0: the real one.
	version int
	// offline starts it where there is no network.
	offline bool
}

// errOffline is launch's where the system does not let it take the network away.
var errOffline = errors.New("start it without network")

// launch starts the backend, and waits for nothing.
func (t *trial) launch(how launch) (*process, error) {
	dir, err := os.MkdirTemp(t.dir, "s")
	if err != nil {
		return nil, err
	}
	env := plugin.Environment(os.Environ(), nil, t.environment())
	if how.version == 0 {
		how.version = backendv1.ProtocolVersion
	}
	if !how.noCookie {
		env = append(env, backendv1.Handshake.MagicCookieKey+"="+backendv1.Handshake.MagicCookieValue, "PLUGIN_MIN_PORT=10000", "PLUGIN_MAX_PORT=25000",
			"PLUGIN_PROTOCOL_VERSIONS="+strconv.Itoa(how.version), "PLUGIN_UNIX_SOCKET_DIR="+dir)
	}
	p := &process{trial: t, dir: dir, greeted: make(chan struct{}), exited: make(chan struct{}), drained: make(chan struct{})}
	p.cmd = &exec.Cmd{Path: t.executable, Args: []string{t.executable}, Env: env, SysProcAttr: processAttributes()}
	if how.offline {
		if err := withoutNetwork(p.cmd); err != nil {
			return nil, fmt.Errorf("%w: %w", errOffline, err)
		}
	}
	stdin, lifeline, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer stdin.Close()
	p.lifeline = lifeline
	stdout, stdoutWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer stdoutWrite.Close()
	stderr, stderrWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer stderrWrite.Close()
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = stdin, stdoutWrite, stderrWrite
	if err := p.cmd.Start(); err != nil {
		if how.offline {
			return nil, fmt.Errorf("%w: %w", errOffline, err)
		}
		return nil, fail("make the file an executable for this machine, or a script whose first line names its interpreter", "it could not be started: %v", err)
	}
	p.family = newFamily(p.cmd.Process.Pid, t.marker)
	t.processes = append(t.processes, p)
	go p.drain(stdout, stderr)
	go func() {
		_ = p.cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

func (p *process) drain(stdout, stderr *os.File) {
	defer close(p.drained)
	defer stdout.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer stderr.Close()
		_, _ = io.Copy(p.output.stream("standard error"), stderr)
	}()
	lines := bufio.NewReaderSize(stdout, 64<<10)
	before := 0
	for {
		line, err := lines.ReadSlice('\n') // a longer line comes in pieces
		_, _ = p.output.stream("standard output").Write(line)
		if p.greeting.network == "" {
			if greeting, ok := parseHandshake(string(line)); ok {
				greeting.bytesBefore = before
				p.greeting = greeting
				close(p.greeted)
			}
			before += len(line)
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			break
		}
	}
	<-done
}

// handshake is go-plugin's line on standard output.
type handshake struct {
	core, version, network, address, protocol, rest string
	glued                                           string // what stood before it on its line
	bytesBefore                                     int    // on the lines before it
}

// Compiled when it is first needed: this package is part of a program that has other things to do.
var handshakeLine = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(.*?)(\d+)\|(\d+)\|(unix|tcp)\|([^|]*)(?:\|([^|]*))?(?:\|(.*))?$`)
})

func parseHandshake(line string) (handshake, bool) {
	m := handshakeLine().FindStringSubmatch(strings.TrimSpace(line))
	if m == nil {
		return handshake{}, false
	}
	return handshake{glued: m[1], core: m[2], version: m[3], network: m[4], address: m[5], protocol: m[6], rest: m[7]}, true
}

// awaitHandshake waits for the handshake line.
func (p *process) awaitHandshake(ctx context.Context) error {
	ctx, cancel := p.trial.call(ctx)
	defer cancel()
	select {
	case <-p.greeted:
		return nil
	case <-ctx.Done():
	case <-p.exited:
		within(ctx, exitGrace, func() bool { return closed(p.drained) })
		if closed(p.greeted) {
			return nil
		}
	}
	const mend = "print go-plugin's handshake line (1|1|unix|/path/of/the/socket|grpc) on standard output as soon as the socket listens; in Go, call backends.Serve first thing in main"
	if ended := p.ended(); ended != "" {
		return fail(mend, "it %s without a handshake line%s", ended, p.lastWords())
	}
	return fail(mend, "no handshake line within %s%s", p.trial.options.Timeout, p.lastWords())
}

// connect has go-plugin connect to the backend.
func (p *process) connect(ctx context.Context) error {
	client := goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig:  backendv1.Handshake,
		Plugins:          goplugin.PluginSet{backendv1.PluginName: &service{p: p}},
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		Reattach: &goplugin.ReattachConfig{
			Protocol:        goplugin.Protocol(p.greeting.protocol),
			ProtocolVersion: backendv1.ProtocolVersion,
			Addr:            address{p.greeting.network, p.greeting.address},
			ReattachFunc:    func() (runner.AttachedRunner, error) { return attached{p}, nil },
		},
		Logger:     hclog.NewNullLogger(),
		SyncStdout: p.output.stream("standard output"),
		SyncStderr: p.output.stream("standard error"),
		// More than the protocol allows, so that the rule about it can say by how much.
		GRPCDialOptions: []grpc.DialOption{grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64 << 20)), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry()},
	})
	connected := make(chan error, 1)
	go func() {
		protocol, err := client.Client()
		if err == nil {
			_, err = protocol.Dispense(backendv1.PluginName)
		}
		connected <- err
	}()
	ctx, cancel := p.trial.call(ctx)
	defer cancel()
	select {
	case err := <-connected:
		if err != nil {
			return fail("serve gRPC, without TLS, on the socket that the handshake line names", "go-plugin could not connect to it: %v%s", err, p.lastWords())
		}
		return nil
	case <-ctx.Done():
		return fail("serve gRPC, without TLS, on the socket that the handshake line names", "go-plugin could not connect to it within %s%s", p.trial.options.Timeout, p.lastWords())
	}
}

// service hands out the connection that go-plugin made.
type service struct {
	goplugin.NetRPCUnsupportedPlugin
	p *process
}

func (*service) GRPCServer(*goplugin.GRPCBroker, *grpc.Server) error {
	return errors.New("this is the host's side")
}

func (s *service) GRPCClient(_ context.Context, _ *goplugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	s.p.conn, s.p.rpc = conn, backendv1.NewBackendClient(conn)
	return s.p.rpc, nil
}

type address struct{ network, name string }

func (a address) Network() string { return a.network }
func (a address) String() string  { return a.name }

var _ net.Addr = address{}

// attached is the process as go-plugin sees it.
type attached struct{ p *process }

func (a attached) Wait(context.Context) error {
	<-a.p.exited
	return nil
}
func (attached) Kill(context.Context) error { return nil }
func (a attached) ID() string               { return strconv.Itoa(a.p.cmd.Process.Pid) }

func (attached) PluginToHost(network, address string) (string, string, error) {
	return network, address, nil
}

func (attached) HostToPlugin(network, address string) (string, string, error) {
	return network, address, nil
}

// start gives a backend that can be called.
func (t *trial) start(ctx context.Context, how launch) (*process, error) {
	p, err := t.launch(how)
	if err == nil {
		err = p.awaitHandshake(ctx)
	}
	if err == nil {
		err = p.connect(ctx)
	}
	return p, t.unless("handshake", err)
}

// configured gives a backend that has taken its settings.
func (t *trial) configured(ctx context.Context) (*process, error) {
	p, err := t.start(ctx, launch{})
	if err != nil {
		return nil, err
	}
	return p, t.unless("settings", p.mustConfigure(ctx))
}

func (p *process) configure(ctx context.Context, settings []byte) ([]*backendv1.Error, error) {
	ctx, cancel := p.trial.call(ctx)
	defer cancel()
	response, err := p.rpc.Configure(ctx, &backendv1.ConfigureRequest{Settings: settings, Provider: provider})
	return response.GetErrors(), err
}

func (p *process) mustConfigure(ctx context.Context) error {
	problems, err := p.configure(ctx, p.trial.settings)
	switch {
	case err != nil:
		return p.broken("given its settings", err)
	case len(problems) > 0:
		return fail("give the suite a Config that the backend accepts, or correct what the backend checks", "it refuses the settings it was given: %s", list(problems))
	}
	return nil
}

// get asks for the credentials of one image, as the broker does.
func (p *process) get(ctx context.Context, image string) (*backendv1.GetCredentialsResponse, error) {
	return p.ask(ctx, p.trial.request(image))
}

func (t *trial) request(image string) *backendv1.GetCredentialsRequest {
	request := &backendv1.GetCredentialsRequest{Image: image, ServiceAccountAnnotations: t.options.Annotations}
	if token := string(t.options.Token); token != "" {
		request.ServiceAccountToken = &token
	}
	return request
}

func (p *process) ask(ctx context.Context, request *backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error) {
	ctx, cancel := p.trial.call(ctx)
	defer cancel()
	response, err := p.rpc.GetCredentials(ctx, p.trial.due(ctx, request))
	p.trial.remember(response)
	return response, err
}

// due is the request with the context's deadline, if it has none.
func (*trial) due(ctx context.Context, request *backendv1.GetCredentialsRequest) *backendv1.GetCredentialsRequest {
	deadline, ok := ctx.Deadline()
	if !ok || request.GetDeadline() != nil {
		return request
	}
	mine := proto.CloneOf(request) // others may ask with the same
	mine.Deadline = timestamppb.New(deadline)
	return mine
}

// broken is the failure of a call that gRPC did not bring back.
func (p *process) broken(when string, err error) error {
	const mend = "answer every request with a message: what goes wrong in the work belongs into its `error`, and a bug in one request must not end the process"
	inAnyEvent(exitGrace, func() bool { return closed(p.exited) })
	if ended := p.ended(); ended != "" {
		return fail(mend, "it %s when it was %s%s", ended, when, p.lastWords())
	}
	s, _ := status.FromError(err)
	return fail(mend, "when it was %s, the call ended with gRPC's %s: %s%s", when, s.Code(), shorten(s.Message()), p.lastWords())
}

// exitGrace is how long a backend that broke its connection, or has ended, is given to say why.
const exitGrace = 500 * time.Millisecond

// ended says how the process ended; empty while it runs.
func (p *process) ended() string {
	if !closed(p.exited) {
		return ""
	}
	if code := p.cmd.ProcessState.ExitCode(); code >= 0 {
		return "exited with status " + strconv.Itoa(code)
	}
	return "ended by " + p.cmd.ProcessState.String()
}

func (p *process) lastWords() string {
	if closed(p.exited) {
		inAnyEvent(exitGrace, func() bool { return closed(p.drained) })
	}
	lines := bytes.Split(bytes.TrimSpace(p.output.copyOf("standard error")), []byte("\n"))
	words := string(bytes.TrimSpace(bytes.Join(lines[max(0, len(lines)-3):], []byte("; "))))
	if words == "" {
		return " (it printed nothing on standard error)"
	}
	return "; the last it printed: " + shorten(words)
}

// hangUp does what the end of the host does, save for signals: it ends standard input and the connection.
func (p *process) hangUp() {
	_ = p.lifeline.Close()
	if p.conn != nil {
		_ = p.conn.Close()
	}
}

// end kills everything that was started for a rule.
func (t *trial) end() {
	for _, p := range t.processes {
		p.family.look()
		p.hangUp()
		killGroup(p.cmd.Process)
		p.family.kill()
		inAnyEvent(2*time.Second, func() bool { return closed(p.exited) && closed(p.drained) })
		_ = os.RemoveAll(p.dir)
	}
}

// output is what a backend prints, byte for byte, up to a bound.
type output struct {
	mu      sync.Mutex
	streams map[string]*bytes.Buffer
}

// maxOutput is how much of each stream is kept, in bytes.
const maxOutput = 8 << 20

func (o *output) stream(name string) io.Writer { return writer{o, name} }

type writer struct {
	output *output
	name   string
}

func (w writer) Write(b []byte) (int, error) {
	w.output.mu.Lock()
	defer w.output.mu.Unlock()
	if w.output.streams == nil {
		w.output.streams = map[string]*bytes.Buffer{}
	}
	buffer := w.output.streams[w.name]
	if buffer == nil {
		buffer = &bytes.Buffer{}
		w.output.streams[w.name] = buffer
	}
	buffer.Write(b[:min(len(b), maxOutput-buffer.Len())])
	return len(b), nil
}

func (o *output) copyOf(name string) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.streams[name] == nil {
		return nil
	}
	return bytes.Clone(o.streams[name].Bytes())
}

// within waits until done, at most for d, and says whether it was done in time. Time in which this process did not get to run is not counted, since then the backend
// need not have had a chance either.
func within(ctx context.Context, d time.Duration, done func() bool) bool {
	return wait(ctx.Done(), d, done)
}

// inAnyEvent is within where nobody can call it off: it tidies up, or finds out what has just happened.
func inAnyEvent(d time.Duration, done func() bool) { wait(nil, d, done) }

func wait(off <-chan struct{}, d time.Duration, done func() bool) bool {
	const step = 5 * time.Millisecond
	tick := time.NewTicker(step)
	defer tick.Stop()
	for waited, last := time.Duration(0), time.Now(); ; {
		if done() {
			return true
		}
		if waited >= d || closed(off) {
			return false
		}
		<-tick.C
		now := time.Now()
		waited += min(now.Sub(last), 2*step)
		last = now
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// shorten keeps a message readable: one line, and not too long.
func shorten(s string) string {
	const most = 400
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, "�")), " ")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// list puts a backend's errors on one line.
func list(problems []*backendv1.Error) string {
	texts := make([]string, len(problems))
	for i, problem := range problems {
		texts[i] = describe(problem)
	}
	return shorten(strings.Join(texts, "; "))
}

func describe(e *backendv1.Error) string {
	text := e.GetKind().String()
	if e.GetField() != "" {
		text += " " + e.GetField()
	}
	return text + ": " + shorten(e.GetMessage())
}
