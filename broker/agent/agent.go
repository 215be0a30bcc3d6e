// Package agent is the long-lived side: it answers, over a unix socket, the requests that the kubelet's exec plugin would otherwise resolve in a process of its own, with the same
// broker.Resolve. It keeps configurations loaded, backends running and answers in memory for as long as they hold. What a backend's process is, how a command line looks and what
// systemd is, it leaves to who wires it.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/agent/cache"
	"github.com/credential-broker/credential-broker/broker/config"
)

// Backends asks the providers' backends, and keeps them running: broker/plugin/caller's Keeper.
type Backends interface {
	cache.Source
	// Retain ends the backends of all other providers once they have answered what they were asked.
	Retain(providers []*config.Provider)
	// Replace has the processes of these providers replaced: what they remember themselves goes with them. Their calls are answered first.
	Replace(of func(*config.Provider) bool)
	// Status says what runs.
	Status() []Backend
	// Close ends all of them; calls in flight are waited for until ctx is done.
	Close(ctx context.Context) error
}

// Options are an Agent's.
type Options struct {
	// Load reads the configuration at path (empty: the default places), refusing one that others could have written. BackendDir, if not empty, overrides the configuration's.
	Load func(path, backendDir string) (*config.Config, error)
	// Paths are what has to be looked at to see that the configuration at path has changed.
	Paths func(path string) []string
	// Backends makes what asks the backends of one configuration.
	Backends func(backendDir string, log *slog.Logger) Backends
	// Log makes the log that a configuration asks for.
	Log func(config.Log) *slog.Logger
	// Complain words an error as the exec plugin prints it.
	Complain func(error) []byte
	// Describe gives what `credential-broker get` shows of a request, as JSON.
	Describe func(request broker.Request, result broker.Result, failure error, showSecrets bool) ([]byte, error)
	// Version is the program's, for people.
	Version string
	// Observe hears of every request of the kubelet's once it has been replied to, ObserveCall of every call to a backend once it has ended; nil: nobody does. Both are called from many goroutines.
	Observe     func(Observation)
	ObserveCall func(Call)
	// Trace tells of each request of the kubelet's while it is worked on; nil: nobody is told.
	Trace Tracer
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Tracer tells of requests, and of the providers that are asked for them, from their beginning to their end. What it puts into the context goes with the call to the backend.
type Tracer interface {
	// Request begins a request, for the providers of an audience (nil: all), and gives what ends it.
	Request(ctx context.Context, request broker.Request, audience *string) (context.Context, func(broker.Result, error))
	// Provider begins the asking of a provider within a request, and gives what ends it.
	Provider(ctx context.Context, provider *config.Provider) (context.Context, func(broker.Answer, error))
}

// tracedCaller tells of each call.
type tracedCaller struct {
	broker.Caller
	trace Tracer
}

// Call implements broker.Caller.
func (c tracedCaller) Call(ctx context.Context, provider *config.Provider, request broker.Request) (broker.Answer, error) {
	ctx, end := c.trace.Provider(ctx, provider)
	answer, err := c.Caller.Call(ctx, provider, request)
	end(answer, err)
	return answer, err
}

// OutcomeUnserved is that of a request that the agent leaves to the exec plugin, which does the work itself.
const OutcomeUnserved broker.Outcome = "unserved"

// Observation is what is known of one request when it has been replied to.
type Observation struct {
	// Configuration is Configuration.Name; empty where it never came to one.
	Configuration string
	Outcome       broker.Outcome
	Took          time.Duration
	Slots         []broker.Slot
}

// Call is one call to a provider's backend: for a request, or ahead of need.
type Call struct {
	// Configuration is Configuration.Name.
	Configuration string
	cache.Event
}

// Agent serves requests. Close it when it is done.
type Agent struct {
	Options
	began time.Time
	uid   int // the only user who is heard
	sets  sets

	// served counts the requests, and lastAsked is when the last one came (Unix nanoseconds).
	served    atomic.Uint64
	lastAsked atomic.Int64
	inFlight  atomic.Int64

	conns sync.WaitGroup
}

// New makes an Agent with the configuration at path, which must be good, as its own. Every other one that it is asked about is loaded then.
func New(o Options, path, backendDir string) (*Agent, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	a := &Agent{Options: o, began: o.Now(), uid: os.Geteuid()}
	a.sets.init(a, path, backendDir)
	a.lastAsked.Store(o.Now().UnixNano())
	if _, err := a.sets.own.current(context.Background()); err != nil {
		return nil, err
	}
	return a, nil
}

// Config is the agent's own configuration as it is now.
func (a *Agent) Config() *config.Config {
	return a.sets.own.loaded.Load().cfg
}

// Logger is the log of the agent's own configuration, and follows it.
func (a *Agent) Logger() *slog.Logger { return a.sets.own.log }

// Serve answers whoever connects to the listener and is of this process's user, until ctx is done; then it closes the listener and returns. Requests in flight go on: see Wait.
func (a *Agent) Serve(ctx context.Context, listener *net.UnixListener) error {
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		conn, err := listener.AcceptUnix()
		switch {
		case err == nil:
			a.conns.Go(func() { a.serve(context.WithoutCancel(ctx), conn) })
			continue
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("the agent's socket was closed: %w", err)
		}
		// Too many open files, most likely: those who ask meanwhile do the work themselves.
		a.Logger().Error("the agent cannot take a connection", "reason", err.Error())
		pause.Reset(acceptPause)
		select {
		case <-pause.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// acceptPause is waited after a connection that could not be taken.
const acceptPause = 100 * time.Millisecond

// Wait waits until every request in flight has been answered, at most until ctx is done.
func (a *Agent) Wait(ctx context.Context) error {
	done := make(chan struct{})
	go func() { a.conns.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%d requests are still in flight: %w", a.inFlight.Load(), ctx.Err())
	}
}

// HandedOn says that a successor has what Export wrote: Close then leaves to it what is lent.
func (a *Agent) HandedOn() { a.sets.handedOn() }

// Close revokes what is lent with answers, ends all backends and wipes all answers, until ctx is done. No request may be in flight.
func (a *Agent) Close(ctx context.Context) error { return a.sets.close(ctx) }

// Idle is for how long nobody has asked for credentials.
func (a *Agent) Idle() time.Duration {
	if a.inFlight.Load() > 0 {
		return 0
	}
	return a.Now().Sub(time.Unix(0, a.lastAsked.Load()))
}

// Refresh looks whether configurations have changed, as each request does: so that an error in one is said when it is made, and not when somebody pulls.
func (a *Agent) Refresh(ctx context.Context) { a.sets.refresh(ctx) }
