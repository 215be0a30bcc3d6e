// Package plugin is go-plugin's host side: it finds, checks, starts, calls and stops backend processes. It is made for a host that lives for milliseconds and may
// be killed at any of them, and trusts a backend with nothing but its own provider's settings. It knows the protocol in proto/backend/v1, and no broker, no
// configuration and no image rules.
package plugin

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"

	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
	"github.com/credential-broker/credential-broker/proto/trust"
)

// Spec says which backend to start, and with what.
type Spec struct {
	// Provider is the provider's name, for messages and for the backend itself.
	Provider string
	// Path is the backend's executable, absolute; see Find.
	Path string
	// SHA256 are the digests that the file may have (lower-case hex); empty: any.
	SHA256 []string
	// Env is set for the backend ("NAME=value"), and wins over everything taken from the host.
	Env []string
	// InheritEnv are globs for the names of further host variables that the backend gets; see Environment.
	InheritEnv []string
	// User runs the backend as this user, which needs root; empty: as this process's own.
	User string
	// Settings is the provider's `config`, one JSON object; empty counts as "{}".
	Settings []byte
	// Secrets are kept out of what is logged and reported of the backend from its start on; see Redact.
	Secrets []string
	// Trace, if set, hears of each step of Start ("check", "start") when it ends, well or badly.
	Trace func(step string, began time.Time, took time.Duration)
}

// Limits on what a backend may send besides its messages.
const (
	// maxBeforeHandshake bounds standard output before the handshake line, in bytes: more is no backend.
	maxBeforeHandshake = 1 << 20
	// maxHeaderBytes bounds the headers of an answer, in which a gRPC error's text travels.
	maxHeaderBytes = 16 << 10
	// bufferBytes is what a connection reads or writes at once.
	bufferBytes = 4 << 10
	// maxErrorBytes bounds the text of a backend's error.
	maxErrorBytes = 2 << 10
)

// How long to wait for what cannot be interrupted.
const (
	// startTimeout bounds a start whose context has no deadline.
	startTimeout = time.Minute
	// exitGrace is how long a backend that has been killed is waited for. It takes about a millisecond.
	exitGrace = 500 * time.Millisecond
	// ownExitGrace is how long a backend that closed its standard output or its connection is given to end by itself, so that its exit status is known.
	ownExitGrace = 100 * time.Millisecond
	// drainGrace is how long the output of a backend that has ended is still read; something it started may hold the pipes open for good.
	drainGrace = 50 * time.Millisecond
)

// Process is a running backend. Its methods may be called from many goroutines at once.
type Process struct {
	spec    Spec
	runtime *Runtime
	client  *goplugin.Client
	child   *child
	output  *output
	rpc     backendv1.BackendClient
	conns   conns
	done    chan struct{}
}

// Start checks the backend's file and starts it, and returns when the backend is ready to be configured. Errors are *Error. When ctx ends, the backend is killed.
// The caller must Stop the process.
func Start(ctx context.Context, rt *Runtime, spec Spec) (*Process, error) {
	began := time.Now()
	err := trust.Executable(spec.Path, spec.SHA256)
	spec.trace("check", began)
	if err != nil {
		return nil, errorf(backendv1.Error_KIND_MISCONFIGURED, "%w", err)
	}
	began = time.Now()
	p, err := start(ctx, rt, spec)
	spec.trace("start", began)
	return p, err
}

func (s *Spec) trace(step string, began time.Time) {
	if s.Trace != nil {
		s.Trace(step, began, time.Since(began))
	}
}

func start(ctx context.Context, rt *Runtime, spec Spec) (*Process, error) {
	if err := ctx.Err(); err != nil {
		return nil, TimeError(ctx, "start", "")
	}
	account, err := lookUp(spec.User)
	if err != nil {
		return nil, err
	}
	dir, err := rt.open(account != nil)
	if err != nil {
		return nil, err
	}
	p := &Process{spec: spec, runtime: rt, output: newOutput(), done: make(chan struct{})}
	p.Redact(spec.Secrets...)
	p.child = &child{path: spec.Path, account: account, stdout: p.output.stream("stdout"), stderr: p.output.stream("stderr"), gone: p.conns.close, awaitExit: rt.awaitExit}
	env := Environment(rt.environ, spec.InheritEnv, spec.Env, account.variables()...)
	p.client = goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig:  backendv1.Handshake,
		Plugins:          goplugin.PluginSet{backendv1.PluginName: &service{}},
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		SkipHostEnv:      true, // the environment is env and nothing else
		RunnerFunc: func(_ hclog.Logger, cmd *exec.Cmd, dir string) (runner.Runner, error) {
			return p.child, p.child.prepare(append(env, cmd.Env...), dir)
		},
		UnixSocketConfig: &goplugin.UnixSocketConfig{TempDir: dir},
		StartTimeout:     startTimeoutOf(ctx),
		// go-plugin quotes what the backend printed, whole and unredacted; everything worth saying is said in this package.
		Logger:          hclog.NewNullLogger(),
		SyncStdout:      p.output.stream("stdout"),
		SyncStderr:      p.output.stream("stderr"),
		GRPCDialOptions: p.dialOptions(),
	})
	rt.add(p)

	stopWatching := context.AfterFunc(ctx, p.abandon)
	err = p.connect()
	if !stopWatching() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		err = p.startError(ctx, err)
		p.Stop()
		return nil, err
	}
	return p, nil
}

func startTimeoutOf(ctx context.Context) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		return time.Until(deadline) + startTimeout // the context speaks first
	}
	return startTimeout
}

func (p *Process) connect() error {
	protocol, err := p.client.Client()
	if err != nil {
		return err
	}
	dispensed, err := protocol.Dispense(backendv1.PluginName)
	if err != nil {
		return err
	}
	p.rpc = dispensed.(backendv1.BackendClient)
	return nil
}

// dialOptions come after go-plugin's own and win over them.
func (p *Process) dialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(backendv1.MaxMessageBytes), // go-plugin's own limit is two gigabytes
			grpc.MaxCallSendMsgSize(backendv1.MaxMessageBytes),
		),
		grpc.WithMaxHeaderListSize(maxHeaderBytes),
		// One small answer passes over a connection that lives for milliseconds: windows that are large enough from the start spare the pings that would size them, and small buffers the
		// memory that would be cleared for them.
		grpc.WithInitialWindowSize(backendv1.MaxMessageBytes),
		grpc.WithInitialConnWindowSize(backendv1.MaxMessageBytes),
		grpc.WithReadBufferSize(bufferBytes),
		grpc.WithWriteBufferSize(bufferBytes),
		grpc.WithContextDialer(p.child.dial),
		grpc.WithChainStreamInterceptor(p.conns.intercept),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		grpc.WithIdleTimeout(0), // a backend may be kept running, and need not expect a second connection
	}
}

// service tells go-plugin which service to dispense.
type service struct {
	goplugin.NetRPCUnsupportedPlugin
}

// GRPCServer implements goplugin.GRPCPlugin. This side serves nothing.
func (*service) GRPCServer(*goplugin.GRPCBroker, *grpc.Server) error {
	return errors.New("this is the host's side")
}

// GRPCClient implements goplugin.GRPCPlugin.
func (*service) GRPCClient(_ context.Context, _ *goplugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return backendv1.NewBackendClient(conn), nil
}

// PID is the process id of the backend.
func (p *Process) PID() int { return p.child.pid() }

// Exit says how a process ended that this side did not kill: "exited with status 2", "ended by signal: killed". Empty if it runs, or was killed by this side.
func (p *Process) Exit() string { return p.child.ended() }

// Redact keeps further secrets out of what is logged and reported of this backend, for as long as it lives. What passes through its calls needs no mention.
func (p *Process) Redact(secrets ...string) { p.output.secrets.add(secrets...) }

// abandon kills the backend and gives up its connections. Both are needed: go-plugin holds a lock while it connects, and waits for that lock before it lets a connection
// notice that the process has ended. Something else may hold the socket open.
func (p *Process) abandon() {
	p.child.kill()
	p.conns.close()
}

// Stop kills the backend with all of its process group, and returns at once. What the backend printed is logged and its files are removed soon after, before
// Done is closed, or by the Runtime's Close if that comes first. It may be called more than once.
func (p *Process) Stop() {
	p.child.kill()
	p.runtime.cleanUp(p)
}

// Done is closed when a stopped backend has ended, what it printed has been logged, and nothing of it is left.
func (p *Process) Done() <-chan struct{} { return p.done }

// Ended is closed when the backend's process has ended, for whatever reason: by itself, by Stop, or by somebody else. What it printed may be read and logged after that;
// see Done.
func (p *Process) Ended() <-chan struct{} { return p.child.exited }

// Flush logs what the backend has printed so far, but for what it printed during a call that is still under way: that is logged when the secrets of its answer are known.
// The process of one call needs none, since Done waits for that; one that lives on needs it after each answer.
func (p *Process) Flush() {
	p.child.catchUp()
	p.output.flush(p.runtime.logger, p.spec.Provider, p.spec.Path)
}

// finish is what Stop leaves to the background.
func (p *Process) finish() {
	p.conns.close() // go-plugin would ask the backend to shut down, and wait for it
	p.child.await(exitGrace)
	p.client.Kill()
	p.child.removeDir()
	p.log()
	close(p.done)
}

// log logs what the backend has printed since the last time.
func (p *Process) log() { p.output.log(p.runtime.logger, p.spec.Provider, p.spec.Path) }

// Error is why a backend could not be started, or could not or would not do what it was asked. Its text is bounded and holds no secret that the
// call knew of.
type Error struct {
	// Kind says whether asking again makes sense; KIND_UNSPECIFIED does not occur.
	Kind backendv1.Error_Kind
	// Field is the path of the setting within the provider's `config` that is wrong; empty where none is to blame.
	Field string
	// Gone says that the process has ended, or the connection to it: what was asked may not have been done, and another process may do it.
	Gone bool
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

func errorf(kind backendv1.Error_Kind, format string, args ...any) *Error {
	return &Error{Kind: kind, Err: fmt.Errorf(format, args...)}
}
