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

	"github.com/spf13/cobra"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/agent/fast"
	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/kubelet"
)

// servePlugin is the kubelet's exec plugin: one request in, one response out. Most requests never come here: where the environment names an agent that answers, package fast is done
// before anything of this program has begun.
func servePlugin(cmd *cobra.Command, opts *options, stdin *os.File) error {
	// Where nobody reads standard error any more, a line of the log is lost. Without this it would be the process. A handler rather than SIG_IGN, which child processes would inherit.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	early := fast.Early()
	data, err := readAll(stdin, early)
	if err != nil {
		return fmt.Errorf("reading the request: %w", err)
	}
	// The request may hold a pod's token: nobody that is started from here on shall find it.
	if err := forgetStdin(); err != nil {
		return err
	}
	cfg, err := opts.load()
	if err != nil {
		return invalidFirst(data, err)
	}
	log, closeLog := newLog(cfg.Log, cmd.ErrOrStderr(), true)
	defer closeLog()

	asking, err := opts.agentRequest(cmd, fast.Resolve, data)
	if err != nil {
		return err
	}
	asked := opts.askAgent(cmd.Context(), cfg, log, early, asking)
	if asked != nil {
		return pass(cmd, *asked)
	}
	// Whatever was waited for until now is part of the time that the request has.
	cfg.Timeout = max(cfg.Timeout-sinceBegin(early), leastTimeout)

	caller := newCaller(cfg, log, true)
	defer func() { _ = caller.Close() }()
	b := broker.New(cfg, opts.providers(cmd, cfg, func(text string) { log.Warn(text) }), caller, log)
	response, err := kubelet.Answer(cmd.Context(), data, b.Resolve)
	if err != nil {
		return err
	}
	return writeResponse(cmd, response)
}

// leastTimeout is what is left to a request that has waited for a hung agent for nearly all of its time.
const leastTimeout = time.Second

// invalidFirst prefers to complain of the request: whoever sends nonsense does not care about the configuration.
func invalidFirst(data []byte, err error) error {
	if _, _, invalid := kubelet.ReadRequest(data); invalid != nil {
		return invalid
	}
	return err
}

// pass hands on what the agent said.
func pass(cmd *cobra.Command, reply fast.Reply) error {
	if err := writeResponse(cmd, reply.Stdout); err != nil {
		return err
	}
	_, _ = cmd.ErrOrStderr().Write(reply.Stderr)
	if reply.Status != 0 {
		return errSilent
	}
	return nil
}

func writeResponse(cmd *cobra.Command, response []byte) error {
	if _, err := cmd.OutOrStdout().Write(response); err != nil {
		return errors.New("writing the response to standard output failed: is whoever asked still there?")
	}
	return nil
}

// askAgent gives the agent's reply; nil where there is no agent, or it does not answer, which is said: then the work has to be done here. It is started where the configuration wants it.
func (o *options) askAgent(ctx context.Context, cfg *config.Config, log *slog.Logger, early *fast.Attempt, request fast.Request) *fast.Reply {
	socket := cfg.Agent.Socket
	if socket == "" {
		return nil
	}
	reason, absent := early.Reason, early.Absent
	if !early.Tried || early.Socket != socket {
		var reply fast.Reply
		if reply, reason, absent = fast.Ask(socket, request); reason == "" {
			return &reply
		}
	}
	if absent && cfg.Agent.AutoStart {
		reply, why := o.startAndAsk(ctx, cfg, log, request)
		if why == "" {
			return reply
		}
		reason = why
	}
	log.Warn("the agent was not used", "socket", socket, "reason", reason)
	return nil
}

// startAndAsk starts an agent and asks it. What it gives besides the reply is why there is none.
func (o *options) startAndAsk(ctx context.Context, cfg *config.Config, log *slog.Logger, request fast.Request) (*fast.Reply, string) {
	if err := startAgent(ctx, o, cfg); err != nil {
		return nil, "none runs, and none could be started: " + err.Error()
	}
	log.Info("the agent was started", "socket", cfg.Agent.Socket, "idleTimeout", cfg.Agent.IdleTimeout.String())
	reply, reason, _ := fast.Ask(cfg.Agent.Socket, request)
	return &reply, reason
}

// agentRequest is a request to the agent for what this process would do with its own flags.
func (o *options) agentRequest(cmd *cobra.Command, operation fast.Operation, body []byte) (fast.Request, error) {
	path, backendDir, err := o.place()
	return fast.Request{
		Operation: operation, Config: path, BackendDir: backendDir, Audience: o.audience, HasAudience: cmd.Flags().Changed("audience"), Body: body,
	}, err
}

// requestTimeout bounds the wait for the request's end. The kubelet writes it at once; together with the longest `timeout`, it had better not exceed the kubelet's minute by much.
const requestTimeout = 10 * time.Second

var errEndless = fmt.Errorf("standard input has not ended after %s: whoever writes the request has to close it", requestTimeout)

// readAll reads a request, and a byte more than the largest, so that the excess is seen. What has been read of it early comes first.
func readAll(stdin io.Reader, early *fast.Attempt) ([]byte, error) {
	data := early.Stdin
	switch {
	case early.StdinEnded, len(data) > kubelet.MaxRequestSize:
		return data, nil
	case early.StdinOverdue:
		return nil, errEndless
	}
	read := make(chan error, 1)
	go func() {
		rest, err := io.ReadAll(io.LimitReader(stdin, kubelet.MaxRequestSize+1-int64(len(data))))
		data = append(data, rest...)
		read <- err
	}()
	timer := time.NewTimer(requestTimeout)
	defer timer.Stop()
	select {
	case err := <-read:
		return data, err
	case <-timer.C:
		return nil, errEndless
	}
}
