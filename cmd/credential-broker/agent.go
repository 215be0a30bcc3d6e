package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/credential-broker/credential-broker/broker/agent"
	"github.com/credential-broker/credential-broker/broker/agent/fast"
	"github.com/credential-broker/credential-broker/broker/agent/metrics"
	"github.com/credential-broker/credential-broker/broker/agent/trace"
	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/kubelet"
)

const (
	// agentTick is how often the agent looks after itself: configuration, its own file, idleness.
	agentTick = time.Second
	// agentWaitTimeout bounds the wait for the requests in flight when the agent ends: none takes longer than the first part of it. agentEndTimeout bounds what comes then, above all the revocation of what is
	// lent; TimeoutStopSec= in the unit is more than both.
	agentWaitTimeout = config.MaxTimeout + 2*time.Second
	agentEndTimeout  = 15 * time.Second
	// successorPatience is how long a successor may take to serve. It takes a tenth of a second.
	successorPatience = 30 * time.Second
)

// agentFlags are those of the agent command.
type agentFlags struct {
	idleTimeout time.Duration
	environment string
}

func agentCommand(opts *options) *cobra.Command {
	var flags agentFlags
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Serve the exec plugin's requests from a long-lived process",
		Long: `Serve the exec plugin's requests from a long-lived process: backends keep running, answers are kept in memory for as long as they hold, and simultaneous
requests share one. The exec plugin asks whoever serves the socket that CREDENTIAL_BROKER_AGENT names, and does the work itself where nobody does.

The socket is --agent's, else that of CREDENTIAL_BROKER_AGENT, else agent.socket of the configuration, or the one that systemd hands over. A change of the configuration
or of a backend holds from the next request on; when the program's own file is replaced, the new one takes over the socket and the answers.`,
		Example: `  credential-broker agent
  credential-broker agent --agent /run/credential-broker/agent.sock --config /etc/credential-broker/config.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runAgent(cmd, opts, flags) },
	}
	cmd.Flags().DurationVar(&flags.idleTimeout, "idle-timeout", 0, "end when nobody has asked for so long (0: never)")
	cmd.Flags().StringVar(&flags.environment, "environment", "", "file to take the environment from and to remove")
	_ = cmd.Flags().MarkHidden("environment") // between a request that starts an agent and that agent
	return cmd
}

// node is the agent with what it has of the system.
type node struct {
	*agent.Agent
	log     *slog.Logger
	socket  *agent.Socket
	metrics *metrics.Server
	program *agent.Program
	flags   agentFlags
}

func runAgent(cmd *cobra.Command, opts *options, flags agentFlags) error {
	if !fast.Supported {
		return errors.New("there is no agent on this platform: Linux on amd64, arm64, riscv64 and loong64 have one")
	}
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// A handler rather than SIG_IGN, which child processes would inherit: neither a reader of the log that goes away nor a closed terminal ends the agent.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE, syscall.SIGHUP)

	handed, inherited := agent.TakeHanded()
	if !inherited { // the predecessor has taken it
		if err := takeEnvironment(flags.environment); err != nil {
			return err
		}
	}
	unlocked := agent.LockMemory()
	path, backendDir, err := opts.place()
	if err != nil {
		return err
	}
	m := metrics.New(version)
	traces, noTraces := trace.New(ctx, version)
	defer traces.Close() //nolint:staticcheck // without an error or with one: a nil one closes nothing
	a, err := agent.New(opts.agentOptions(cmd.ErrOrStderr(), m, traces), path, backendDir)
	if err != nil {
		return err
	}
	traces.LogTo(a.Logger())
	if noTraces != nil {
		a.Logger().Error("the agent serves without traces", "reason", noTraces.Error()) // better than no agent
	}
	n := &node{Agent: a, log: a.Logger(), flags: flags}
	m.Watch(a.Status)
	if n.program, err = agent.ThisProgram(); err != nil {
		return err
	}
	if n.socket, err = listen(handed, inherited, a.Config()); err != nil {
		if errors.Is(err, agent.ErrServed) && flags.idleTimeout > 0 {
			return nil // another request was quicker to start one
		}
		return err
	}
	if n.metrics, err = m.Serve(a.Config().Agent.Metrics, handed.Metrics, n.log); err != nil {
		n.log.Error("the agent serves without metrics", "reason", err.Error()) // better than no agent
	}
	if unlocked != nil {
		n.log.Info("memory is not locked as a whole: only the pages that answers are kept in are, as far as the limit goes", "reason", unlocked.Error())
	}
	if handed.Answers != nil {
		taken, err := a.Import(ctx, handed.Answers)
		_ = handed.Answers.Close()
		if err != nil {
			n.log.Warn("not all answers of the predecessor could be taken over", "reason", err.Error())
		}
		n.log.Info("took over from the predecessor", "answers", taken)
	}
	return n.serve(ctx, &handed)
}

// listen gives the socket to serve on.
func listen(handed agent.Handed, inherited bool, cfg *config.Config) (*agent.Socket, error) {
	if inherited {
		return agent.Inherited(handed)
	}
	switch files := activation.Files(true); {
	case len(files) == 1:
		return agent.Activated(files[0])
	case len(files) > 1:
		return nil, fmt.Errorf("the service manager handed over %d sockets, and one is expected: leave one ListenStream= in the socket unit", len(files))
	}
	socket := cfg.Agent.Socket
	if socket == "" {
		return nil, errors.New("no socket to serve: set agent.socket in the configuration, --agent or " + kubelet.AgentVariable + ", such as /run/credential-broker/agent.sock")
	}
	if problem := config.WrongSocket(socket); problem != "" {
		return nil, errors.New("the agent's socket: " + problem)
	}
	s, err := agent.Listen(socket)
	if errors.Is(err, agent.ErrServed) {
		return nil, fmt.Errorf("%s: %w: see credential-broker status", socket, err)
	}
	return s, err
}

// serve serves until it is told to end, has been idle for too long, or a successor serves.
func (n *node) serve(ctx context.Context, handed *agent.Handed) error {
	serving, stopServing := context.WithCancel(ctx)
	defer stopServing()
	served := make(chan error, 1)
	go func() { served <- n.Serve(serving, n.socket.Listener) }()
	n.log.Info("the agent serves", "socket", n.socket.Path(), "version", version)
	notify(daemon.SdNotifyReady)
	handed.SayReady()

	tick := time.NewTicker(agentTick)
	defer tick.Stop()
	stopWatchdog := n.startWatchdog(serving)
	defer stopWatchdog()
	var successor *os.Process
loop:
	for {
		select {
		case <-ctx.Done():
			n.log.Info("the agent ends", "reason", "it was told to")
			break loop
		case failure := <-served: // nothing can be served any more
			served <- failure
			break loop
		case <-tick.C:
		}
		n.Refresh(ctx)
		if n.flags.idleTimeout > 0 && n.Idle() >= n.flags.idleTimeout {
			n.log.Info("the agent ends", "reason", "nobody has asked for "+n.flags.idleTimeout.String())
			break loop
		}
		if successor = n.succeed(ctx); successor != nil {
			break loop
		}
	}
	stopWatchdog()
	if successor == nil {
		notify(daemon.SdNotifyStopping)
	} else {
		defer passOn(ctx, successor)()
	}
	stopServing()
	failure := <-served
	if successor != nil {
		n.metrics.Close() //nolint:contextcheck // it has a time of its own; at once: who scrapes had better not hear now this one's counts and now the other's
	} else {
		n.socket.Remove()  // who comes from now on does the work itself
		n.metrics.Remove() //nolint:contextcheck // as above
	}
	return errors.Join(failure, n.end(context.WithoutCancel(ctx)))
}

// end lets the requests in flight be answered, and then ends everything.
func (n *node) end(ctx context.Context) error {
	waiting, cancel := context.WithTimeout(ctx, agentWaitTimeout)
	defer cancel()
	cutOff := n.Wait(waiting)
	ctx, cancel = context.WithTimeout(ctx, agentEndTimeout)
	defer cancel()
	return errors.Join(cutOff, n.Close(ctx))
}

// passOn ends the successor too if this process is told to end before it has answered what it was asked: whoever says so means the agent, and may not have heard yet which process that is.
func passOn(ctx context.Context, successor *os.Process) (stop func()) {
	passed := make(chan struct{})
	pending := context.AfterFunc(ctx, func() {
		defer close(passed)
		_ = successor.Signal(syscall.SIGTERM)
	})
	return func() {
		if !pending() {
			<-passed
		}
	}
}

// succeed lets the program's new file, if there is one, take over; nil if nobody has.
func (n *node) succeed(ctx context.Context) *os.Process {
	replaced, err := n.program.Replaced()
	if err != nil {
		n.log.Error("the program's file has been replaced by one that is not used", "reason", err.Error())
	}
	if !replaced {
		return nil
	}
	if os.Getpid() == 1 {
		n.log.Warn("the program's file has been replaced; restart the container, whose first process cannot be replaced", "path", n.program.Path())
		return nil
	}
	var handed agent.Handed
	if err = n.socket.HandOn(&handed); err == nil {
		handed.Metrics = n.metrics.File()
		defer func() { _, _ = handed.Socket.Close(), handed.Metrics.Close() }() // of nil is an error, and no harm
		var successor *os.Process
		if successor, err = agent.Succeed(ctx, n.program.Path(), os.Args[1:], handed, n.Export, successorPatience); err == nil {
			n.socket.HandedOn()
			n.HandedOn()
			notify(fmt.Sprintf("MAINPID=%d", successor.Pid))
			n.log.Info("the agent ends", "reason", "the program's file has been replaced", "successor", successor.Pid)
			return successor
		}
	}
	if ctx.Err() != nil { // serve says so
		return nil
	}
	n.log.Error("the program's new file does not serve: this one goes on", "path", n.program.Path(), "reason", err.Error())
	return nil
}

// notify tells systemd something, if it is there to be told.
func notify(state string) { _, _ = daemon.SdNotify(false, state) }

// startWatchdog tells systemd's watchdog, if there is one, that the agent answers: it asks itself.
func (n *node) startWatchdog(ctx context.Context) (stop func()) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval == 0 {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(interval / 2)
		defer tick.Stop()
		for {
			if _, reason, _ := fast.Ask(n.socket.Path(), fast.Request{Operation: fast.Ping}); reason == "" {
				notify(daemon.SdNotifyWatchdog)
			} else {
				n.log.Error("the agent does not answer itself", "reason", reason)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() { cancel(); <-done }
}

// agentOptions wire the agent.
func (o *options) agentOptions(stderr io.Writer, m *metrics.Metrics, t *trace.Tracer) agent.Options {
	options := agent.Options{
		Load: o.loadForAgent,
		Paths: func(path string) []string {
			if path != "" {
				return []string{path}
			}
			places := config.DefaultPlaces()
			return []string{places.File, places.Directory}
		},
		Backends: newBackends,
		Log: func(l config.Log) *slog.Logger {
			log, _ := newLog(l, stderr, true) // a file that is not logged to any more is closed when nothing refers to it
			return log
		},
		Complain: complaint, Describe: describeAsJSON, Version: version, Observe: m.Observe, ObserveCall: m.ObserveCall,
	}
	if t != nil {
		options.Trace = t
	}
	return options
}

// loadForAgent reads the configuration that an exec plugin has at path, whatever this process's own environment says.
func (o *options) loadForAgent(path, backendDir string) (*config.Config, error) {
	paths, _, err := config.Find(path, func(string) string { return "" })
	if err != nil {
		return nil, err
	}
	cfg, err := loaded(inspect(paths, backendDir))
	if err != nil {
		return nil, err
	}
	if socket, given := o.agentSocket(); given {
		cfg.SetAgent(socket)
	}
	cfg.ServedByAgent()
	return cfg, nil
}
