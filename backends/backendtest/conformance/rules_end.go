package conformance

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/credential-broker/credential-broker/broker/plugin"
	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

func endRules() []Rule {
	return []Rule{
		{Name: "host-gone", Demand: "When standard input ends, the backend and all that it has started end within a second, without any signal.", judge: func(ctx context.Context, t *trial) error {
			return hostGone(ctx, t, false)
		}},
		{Name: "host-gone-busy", Demand: "The same with requests in flight.", judge: func(ctx context.Context, t *trial) error {
			return hostGone(ctx, t, true)
		}},
		{Name: "host-killed", Demand: "When the broker's process is killed with requests in flight, the backend and all that it has started end within a second.", judge: hostKilled},
		{Name: "stop", Demand: "When the broker stops the backend with requests in flight, nothing of it is left after a second.", judge: judgeStop},
		{Name: "close", Demand: "Close, where there is something to close, answers in time, within a second where an answer has asked for it, and the backend then ends with its host as ever.", judge: judgeClose},
	}
}

// atMost is how long anything of a backend may outlive the broker.
const atMost = time.Second

// mendDeath is for whatever outlives the broker.
const mendDeath = "read standard input until it ends and exit then, at once, killing what was started; a child must end even if the backend was killed and could not do that: " +
	"have it watch a pipe of the backend's; in Go, backends.Serve and package backends/child do all of this"

func hostGone(ctx context.Context, t *trial, busy bool) error {
	p, err := t.configured(ctx)
	if err != nil {
		return err
	}
	if busy {
		var answered atomic.Int64
		stop := load(ctx, t.requests(), func(ctx context.Context, r *backendv1.GetCredentialsRequest) error {
			_, err := p.ask(ctx, r)
			answered.Add(1)
			return err
		})
		defer stop()
		within(ctx, 2*time.Second, func() bool { return answered.Load() >= 8 }) // or it is slow, and certainly busy
	} else if _, err := p.get(ctx, t.images()[0]); err != nil {
		return p.broken("asked for credentials", err)
	}
	p.family.watch(ctx)
	if closed(p.exited) {
		return p.broken("asked for credentials a few times at once", errors.New("it has gone"))
	}
	p.hangUp()
	if !within(ctx, atMost, func() bool { return closed(p.exited) }) {
		return fail(mendDeath, "it still ran a second after its standard input had ended")
	}
	return p.family.gone(ctx, "after its standard input had ended", func() bool { return closed(p.drained) })
}

// requests are those that keep a backend busy.
func (t *trial) requests() []*backendv1.GetCredentialsRequest {
	var all []*backendv1.GetCredentialsRequest
	for _, image := range t.images() {
		all = append(all, t.request(image))
	}
	return all
}

// watch gets to know the family while it is at work.
func (f *family) watch(ctx context.Context) {
	const looks = 20
	for n := 0; !within(ctx, time.Second, func() bool { f.look(); n++; return n >= looks || !seesFamilies }); {
		if ctx.Err() != nil {
			return
		}
	}
}

// gone demands that nobody of the family lives, and that nobody else holds on to its output.
func (f *family) gone(ctx context.Context, when string, silent func() bool) error {
	var left []member
	if !within(ctx, atMost, func() bool { left = f.living(); return len(left) == 0 }) {
		names := make([]string, len(left))
		for i, m := range left {
			names[i] = m.String()
		}
		return fail(mendDeath, "a second %s there is still %s", when, shorten(strings.Join(names, ", ")))
	}
	if !within(ctx, atMost, silent) {
		return fail(mendDeath, "a second %s something that it started still holds its standard output or standard error open", when)
	}
	return nil
}

func hostKilled(ctx context.Context, t *trial) error {
	switch {
	case !seesFamilies:
		return notRun("processes are followed on Linux only, not on " + runtime.GOOS)
	case t.options.Host == nil:
		return notRun("there is no host to be killed: Options.Host is not set")
	}
	if err := t.startable(); err != nil {
		return err
	}
	cmd, err := t.options.Host(ctx)
	if err != nil {
		return notRun("start a host to be killed: " + err.Error())
	}
	base, err := os.MkdirTemp(t.dir, "h")
	if err != nil {
		return err
	}
	order := hostOrder{Executable: t.executable, Settings: t.settings, Env: t.environment(), BaseDir: filepath.Join(base, "b"), Timeout: t.options.Timeout}
	for _, request := range t.requests() {
		message, err := proto.Marshal(request)
		if err != nil {
			return err
		}
		order.Requests = append(order.Requests, message)
	}
	orderLine, err := json.Marshal(order)
	if err != nil {
		return err
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return notRun("start a host to be killed: " + err.Error())
	}
	family := newFamily(cmd.Process.Pid, t.marker)
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		family.kill()
	}()
	answer := make(chan string, 1)
	go func() {
		if _, err := stdin.Write(append(orderLine, '\n')); err != nil {
			answer <- err.Error()
			return
		}
		line, _ := bufio.NewReader(stdout).ReadString('\n')
		answer <- strings.TrimSpace(line)
	}()
	select {
	case line := <-answer:
		if line != hostReady {
			return fail("see what the other rules say about how it starts", "the broker's own code could not start it: %s", shorten(line))
		}
	case <-ctx.Done():
		return fail("see what the other rules say about how it starts", "the broker's own code could not start it in time")
	}
	family.watch(ctx)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	return family.gone(ctx, "after the broker had been killed", func() bool { return true })
}

// hostOrder is what a host is told, on one line.
type hostOrder struct {
	Executable string
	Settings   []byte
	Env        []string
	BaseDir    string
	Requests   [][]byte
	Timeout    time.Duration // of a request
}

const hostReady = "ready"

// Host is the process that the rule host-killed kills. It starts a backend with the broker's own code, keeps it busy, and ends when in does. What to start it reads from in; out
// hears when the backend is at work, or else why it is not.
func Host(ctx context.Context, in io.Reader, out io.Writer) error {
	lines := bufio.NewReader(in)
	line, err := lines.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read what to start: %w", err)
	}
	var order hostOrder
	if err := json.Unmarshal(line, &order); err != nil {
		return fmt.Errorf("read what to start: %w", err)
	}
	var requests []*backendv1.GetCredentialsRequest
	for _, message := range order.Requests {
		request := &backendv1.GetCredentialsRequest{}
		if err := proto.Unmarshal(message, request); err != nil {
			return fmt.Errorf("read what to start: %w", err)
		}
		requests = append(requests, request)
	}
	if len(requests) == 0 {
		return errors.New("read what to start: there are no requests to send")
	}
	rt := plugin.NewRuntime(plugin.RuntimeOptions{Logger: slog.New(slog.DiscardHandler), BaseDirs: []string{order.BaseDir}})
	defer func() { _ = rt.Close() }()
	p, err := plugin.Start(ctx, rt, plugin.Spec{Provider: provider, Path: order.Executable, Env: order.Env, Settings: order.Settings})
	if err == nil {
		for _, problem := range p.Configure(ctx) {
			err = problem
		}
	}
	if err != nil {
		_, _ = fmt.Fprintln(out, shorten(err.Error()))
		return err
	}
	stop := load(ctx, requests, func(ctx context.Context, r *backendv1.GetCredentialsRequest) error {
		ctx, cancel := context.WithTimeout(ctx, order.Timeout)
		defer cancel()
		_, err := p.GetCredentials(ctx, proto.CloneOf(r))
		return err
	})
	defer stop()
	_, _ = fmt.Fprintln(out, hostReady)
	_, _ = io.Copy(io.Discard, lines)
	return nil
}

func judgeStop(ctx context.Context, t *trial) error {
	if err := t.startable(); err != nil {
		return err
	}
	base := filepath.Join(t.dir, "b")
	rt := plugin.NewRuntime(plugin.RuntimeOptions{Logger: slog.New(slog.DiscardHandler), BaseDirs: []string{base}})
	defer func() { _ = rt.Close() }()
	starting, cancel := t.call(ctx)
	defer cancel()
	p, err := plugin.Start(starting, rt, t.spec())
	if err != nil {
		return fail("see what the other rules say about how it starts", "the broker's own code could not start it: %v", err)
	}
	family := newFamily(p.PID(), t.marker)
	defer family.kill()
	if problems := p.Configure(starting); len(problems) > 0 {
		return fail("see what the other rules say about settings", "the broker's own code could not configure it: %v", problems[0])
	}
	stop := load(ctx, t.requests(), func(ctx context.Context, r *backendv1.GetCredentialsRequest) error {
		ctx, cancel := t.call(ctx)
		defer cancel()
		_, err := p.GetCredentials(ctx, proto.CloneOf(r))
		return err
	})
	defer stop()
	family.watch(ctx)
	p.Stop()
	if !within(ctx, atMost, func() bool { return closed(p.Done()) }) {
		return fail(mendDeath, "a second after the broker had stopped it, it was still there")
	}
	return family.gone(ctx, "after the broker had stopped it", func() bool { return true })
}
