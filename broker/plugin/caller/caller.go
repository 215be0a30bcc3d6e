// Package caller asks providers by starting their backends: it has the broker.Callers of the real broker, made of broker/plugin. Caller starts a backend for one call, Keeper keeps
// it running. The package knows how a provider's configuration becomes a backend process, and what that process's answer means to the broker; what a process is it leaves to
// broker/plugin.
package caller

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"time"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/plugin"
	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

// Options are a Caller's. The zero value is good.
type Options struct {
	// BackendDir is where backends are looked for by name; empty: plugin.DefaultDir.
	BackendDir string
	// Logger gets what backends print; nil: slog.Default().
	Logger *slog.Logger
	// Environ is the host's environment, of which backends get a part; nil: os.Environ().
	Environ []string
	// BaseDirs are where a directory for the backends' sockets may be made; nil: the usual places.
	BaseDirs []string
	// Slots bounds how many backends of one provider the Callers of all processes of this user run at once, for those that are started without knowing of each other; see slots.
	Slots bool
}

// Caller starts a backend for each call and stops it afterwards. Close it when all calls are done.
type Caller struct {
	host
	starts, runs int // of one provider at once, see slots; 0: no bound
}

var _ broker.Caller = (*Caller)(nil)

// New makes a Caller. It does not touch the disk.
func New(o Options) *Caller {
	c := &Caller{host: newHost(o)}
	if o.Slots {
		c.starts, c.runs = slots(runtime.NumCPU())
	}
	return c
}

// slots is how many backends of one provider start at once, and how many run, on a machine with so many processors. A start computes nearly all the time, so that more of them would only all end later.
// Who waits for a cloud needs a little memory alone; a slow cloud must not make hundreds of pulls wait for each other.
func slots(processors int) (starts, runs int) {
	starts = max(2, 2*processors)
	return starts, 8 * starts
}

// startSlotGrace is how long after its start a backend that has not answered keeps its place among those that start: by then it waits for somebody else.
const startSlotGrace = 300 * time.Millisecond

// Close kills what still runs, logs what the backends printed, and removes the files of this Caller. It waits for nothing.
func (c *Caller) Close() error { return c.runtime.Close() }

// Call implements broker.Caller: it finds the provider's backend, starts and configures it, asks it once, lets it put away what it holds if its answer says that it does, and kills it. The parts of the answer
// are "check" (the backend's file), "start", "configure" and "ask", and "close" where the answer had to wait for that.
func (c *Caller) Call(ctx context.Context, provider *config.Provider, request broker.Request) (broker.Answer, error) {
	parts := &parts{began: time.Now()}
	response, err := c.ask(ctx, provider, request, parts)
	if err != nil {
		return broker.Answer{Parts: parts.done}, explain(ctx, parts.began, err)
	}
	return answerOf(response, parts), nil
}

func (c *Caller) ask(ctx context.Context, provider *config.Provider, request broker.Request, parts *parts) (*backendv1.GetCredentialsResponse, error) {
	path, err := c.find(provider.Backend)
	if err != nil {
		return nil, err
	}
	started := func() {}
	if c.starts > 0 {
		// Of this provider, so that nobody waits for another's backends.
		began, name := time.Now(), provider.Name+"\x00"+path
		ended, waitedToRun := c.runtime.Slot(ctx, name+"\x00runs", c.runs)
		defer ended()
		release, waitedToStart := c.runtime.Slot(ctx, name, c.starts)
		defer release()
		started = release
		if waitedToRun || waitedToStart {
			parts.add("wait", began, time.Since(began))
		}
	}
	process, err := c.start(ctx, provider, path, parts, string(request.Token))
	if err != nil {
		return nil, err
	}
	defer process.Stop()
	if err := configure(ctx, process, parts); err != nil {
		return nil, err
	}
	defer time.AfterFunc(startSlotGrace, started).Stop()
	began := time.Now()
	response, err := process.GetCredentials(ctx, questionOf(request))
	parts.addCall("ask", began, time.Since(began), response.GetSpans())
	if response.GetWantsClose() {
		// The kubelet waits for this process to end, so that nothing is won by writing the answer first.
		defer parts.start("close")()
		c.close(ctx, provider, path, process)
	}
	return response, err
}

// close lets a backend put away what it holds, for as long as whoever waits for its answer can be kept waiting. What comes of it changes nothing in that answer.
func (c *Caller) close(ctx context.Context, provider *config.Provider, path string, process *plugin.Process) {
	ctx, cancel := context.WithTimeout(ctx, backendv1.ShortCloseTimeout)
	defer cancel()
	if err := process.Close(ctx); err != nil {
		c.didNotClose(provider, path, err)
	}
}

// Validate lets the provider's backend judge the provider's settings, without the network. It returns every problem, those of a setting with its path
// ("config.auth.role: …"). A backend that may not use the network has nothing to put away, and is not asked to.
func (c *Caller) Validate(ctx context.Context, provider *config.Provider) []error {
	parts := &parts{began: time.Now()}
	_, process, err := c.findAndStart(ctx, provider, parts)
	if err != nil {
		return []error{explain(ctx, parts.began, err)}
	}
	defer c.stop(process)
	var errs []error
	for _, problem := range process.Configure(ctx) {
		errs = append(errs, explain(ctx, parts.began, problem))
	}
	return errs
}

// Check lets the provider's backend find out whether it could do its job now; the error says why not. Checked is false where the backend has no such check.
func (c *Caller) Check(ctx context.Context, provider *config.Provider, request broker.Request) (checked bool, err error) {
	parts := &parts{began: time.Now()}
	path, process, err := c.findAndStart(ctx, provider, parts, string(request.Token))
	if err != nil {
		return false, explain(ctx, parts.began, err)
	}
	defer c.stop(process)
	about, err := process.Describe(ctx)
	if err != nil {
		return false, explain(ctx, parts.began, err)
	}
	if err := configure(ctx, process, parts); err != nil {
		return false, explain(ctx, parts.began, err)
	}
	if !slices.Contains(about.GetFeatures(), backendv1.Feature_FEATURE_CHECK) {
		return false, nil
	}
	if slices.Contains(about.GetFeatures(), backendv1.Feature_FEATURE_CLOSE) {
		defer c.close(ctx, provider, path, process) // a check logs in too
	}
	question := &backendv1.CheckRequest{Image: request.Image, ServiceAccountAnnotations: request.Annotations}
	if request.Token != "" {
		token := string(request.Token)
		question.ServiceAccountToken = &token
	}
	if err := process.Check(ctx, question); errors.Is(err, plugin.ErrNothingToCheck) {
		return false, nil
	} else if err != nil {
		return true, explain(ctx, parts.began, err)
	}
	return true, nil
}

// Describe asks the backend at path what it is.
func (c *Caller) Describe(ctx context.Context, path string) (*backendv1.DescribeResponse, error) {
	began := time.Now()
	process, err := plugin.Start(ctx, c.runtime, plugin.Spec{Path: path})
	if err != nil {
		return nil, explain(ctx, began, err)
	}
	defer c.stop(process)
	about, err := process.Describe(ctx)
	if err != nil {
		return nil, explain(ctx, began, err)
	}
	return about, nil
}

// stop kills a backend and waits until what it printed has been logged: the commands show that beside their own output.
func (c *Caller) stop(process *plugin.Process) {
	process.Stop()
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-process.Done():
	case <-timer.C:
	}
}

// stopTimeout is how long a command waits for a backend that it has killed; it takes about a millisecond.
const stopTimeout = time.Second
