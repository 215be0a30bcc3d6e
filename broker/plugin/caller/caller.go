// Package caller asks providers by starting their backends: it is the broker.Caller of the real broker, made of broker/plugin. It knows how a provider's
// configuration becomes a backend process, and what that process's answer means to the broker; what a process is it leaves to broker/plugin.
package caller

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/plugin"
	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
	"github.com/credential-broker/credential-broker/proto/secret"
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
}

// Caller starts a backend for each call and stops it afterwards. Close it when all calls are done.
type Caller struct {
	backendDir string
	environ    []string
	runtime    *plugin.Runtime
}

var _ broker.Caller = (*Caller)(nil)

// New makes a Caller. It does not touch the disk.
func New(o Options) *Caller {
	if o.Environ == nil {
		o.Environ = os.Environ()
	}
	return &Caller{
		backendDir: o.BackendDir,
		environ:    o.Environ,
		runtime:    plugin.NewRuntime(plugin.RuntimeOptions{Logger: o.Logger, Environ: o.Environ, BaseDirs: o.BaseDirs}),
	}
}

// Close kills what still runs, logs what the backends printed, and removes the files of this Caller. It waits for nothing.
func (c *Caller) Close() error { return c.runtime.Close() }

// Call implements broker.Caller: it finds the provider's backend, starts and configures it, asks it once, and kills it. The parts of the answer are "check" (the
// backend's file), "start", "configure", "ask", and what the backend tells of its own steps, each as "ask: <step>".
func (c *Caller) Call(ctx context.Context, provider *config.Provider, request broker.Request) (broker.Answer, error) {
	parts := &parts{began: time.Now()}
	response, err := c.ask(ctx, provider, request, parts)
	answer := broker.Answer{Lease: secret.Secret(response.GetLease()), Parts: parts.done}
	if err != nil {
		return answer, explain(ctx, parts.began, err)
	}
	answer.RegistryWide = response.GetScope() == backendv1.Scope_SCOPE_REGISTRY
	if d := response.GetCacheDuration(); d != nil {
		duration := d.AsDuration()
		answer.CacheDuration = &duration
	}
	for _, from := range response.GetCredentials() {
		to := broker.Credential{Key: from.GetKey(), Username: from.GetUsername(), Password: secret.Secret(from.GetPassword())}
		if from.GetExpires() != nil {
			to.Expires = from.GetExpires().AsTime()
		}
		answer.Credentials = append(answer.Credentials, to)
	}
	return answer, nil
}

func (c *Caller) ask(ctx context.Context, provider *config.Provider, request broker.Request, parts *parts) (*backendv1.GetCredentialsResponse, error) {
	process, err := c.start(ctx, provider, parts, string(request.Token))
	if err != nil {
		return nil, err
	}
	defer process.Stop()
	if err := c.configure(ctx, process, parts); err != nil {
		return nil, err
	}
	question := &backendv1.GetCredentialsRequest{Image: request.Image, ServiceAccountAnnotations: request.Annotations}
	if request.Token != "" {
		token := string(request.Token)
		question.ServiceAccountToken = &token
	}
	began := time.Now()
	response, err := process.GetCredentials(ctx, question)
	parts.addCall("ask", began, time.Since(began), response.GetSpans())
	return response, err
}

// start starts the provider's backend, which must be stopped.
func (c *Caller) start(ctx context.Context, provider *config.Provider, parts *parts, secrets ...string) (*plugin.Process, error) {
	path, err := c.find(provider.Backend)
	if err != nil {
		return nil, err
	}
	env := make([]string, len(provider.Env))
	for i, v := range provider.Env {
		env[i] = v.Name + "=" + v.Value
	}
	process, err := plugin.Start(ctx, c.runtime, plugin.Spec{
		Provider: provider.Name, Path: path, SHA256: provider.SHA256, Env: env, InheritEnv: provider.InheritEnv, User: provider.User, Settings: provider.Config,
		Secrets: append(secretsOf(provider, c.environ), secrets...), Trace: parts.add,
	})
	if err != nil {
		return nil, err
	}
	return process, nil
}

func (c *Caller) find(backend string) (string, error) {
	dir := c.backendDir
	if dir == "" {
		var err error
		if dir, err = plugin.DefaultDir(); err != nil {
			return "", broker.Errorf(broker.Misconfigured, "%w", err)
		}
	}
	return plugin.Find(dir, backend)
}

func (c *Caller) configure(ctx context.Context, process *plugin.Process, parts *parts) error {
	defer parts.start("configure")()
	var errs []error
	for _, problem := range process.Configure(ctx) {
		errs = append(errs, problem)
	}
	switch len(errs) {
	case 0:
		return nil
	case 1:
		return errs[0]
	default:
		return &list{errs}
	}
}

// Validate lets the provider's backend judge the provider's settings, without the network. It returns every problem, those of a setting with its path
// ("config.auth.role: …").
func (c *Caller) Validate(ctx context.Context, provider *config.Provider) []error {
	parts := &parts{began: time.Now()}
	process, err := c.start(ctx, provider, parts)
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
	process, err := c.start(ctx, provider, parts, string(request.Token))
	if err != nil {
		return false, explain(ctx, parts.began, err)
	}
	defer c.stop(process)
	about, err := process.Describe(ctx)
	if err != nil {
		return false, explain(ctx, parts.began, err)
	}
	if err := c.configure(ctx, process, parts); err != nil {
		return false, explain(ctx, parts.began, err)
	}
	if !slices.Contains(about.GetFeatures(), backendv1.Feature_FEATURE_CHECK) {
		return false, nil
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

// explain turns a failure of broker/plugin into one of the broker's, with its kind, the path of the setting at fault, and, where it took too long, the time
// that it was given.
func explain(ctx context.Context, began time.Time, err error) error {
	if several, ok := err.(*list); ok { //nolint:errorlint // made here, and never wrapped
		for i, e := range several.errs {
			several.errs[i] = explain(ctx, began, e)
		}
		return &broker.Error{Kind: broker.KindOf(several.errs[0]), Err: several}
	}
	var failure *plugin.Error
	if !errors.As(err, &failure) {
		return err
	}
	switch {
	case errors.Is(failure, context.DeadlineExceeded):
		allowed := time.Since(began)
		if deadline, ok := ctx.Deadline(); ok {
			allowed = deadline.Sub(began)
		}
		return broker.Errorf(broker.Unavailable, "no answer within %s: %w", round(allowed), failure.Err)
	case failure.Field != "":
		return broker.Errorf(kindOf(failure.Kind), "config.%s: %w", failure.Field, failure.Err)
	default:
		return &broker.Error{Kind: kindOf(failure.Kind), Err: failure.Err}
	}
}

// round gives a duration as somebody would have written it in the configuration: what has passed between there and here is less than a tenth of a second.
func round(d time.Duration) time.Duration {
	if d < 2*time.Second {
		return d.Round(10 * time.Millisecond)
	}
	return d.Round(100 * time.Millisecond)
}

// list is several problems on one line, as a provider's failure is reported.
type list struct{ errs []error }

func (l *list) Error() string {
	texts := make([]string, len(l.errs))
	for i, err := range l.errs {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

func (l *list) Unwrap() []error { return l.errs }

func kindOf(kind backendv1.Error_Kind) broker.Kind {
	switch kind {
	case backendv1.Error_KIND_REFUSED:
		return broker.Refused
	case backendv1.Error_KIND_MISCONFIGURED:
		return broker.Misconfigured
	default:
		return broker.Unavailable
	}
}

// parts notes how long the steps of a call take.
type parts struct {
	began time.Time
	done  []broker.Part
}

func (p *parts) add(name string, began time.Time, took time.Duration) {
	p.done = append(p.done, broker.Part{Name: name, Start: began.Sub(p.began), Took: took})
}

func (p *parts) start(name string) (end func()) {
	began := time.Now()
	return func() { p.add(name, began, time.Since(began)) }
}

// addCall adds a call, and the steps of the backend's work for it, as far as they lie within the call: a backend's clock may be wrong.
func (p *parts) addCall(name string, began time.Time, took time.Duration, spans []*backendv1.Span) {
	p.add(name, began, took)
	for _, span := range spans {
		start := min(span.GetStart().AsDuration(), took)
		p.add(name+": "+span.GetName(), began.Add(start), min(span.GetTook().AsDuration(), took-start))
	}
}
