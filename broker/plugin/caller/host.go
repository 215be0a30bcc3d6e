package caller

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/plugin"
	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
	"github.com/credential-broker/credential-broker/proto/secret"
)

// host is what Caller and Keeper have in common: how a provider's entry becomes a process that has its settings.
type host struct {
	backendDir string
	environ    []string
	runtime    *plugin.Runtime
	logger     *slog.Logger
}

func newHost(o Options) host {
	if o.Environ == nil {
		o.Environ = os.Environ()
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return host{
		logger:     o.Logger,
		backendDir: o.BackendDir,
		environ:    o.Environ,
		runtime:    plugin.NewRuntime(plugin.RuntimeOptions{Logger: o.Logger, Environ: o.Environ, BaseDirs: o.BaseDirs}),
	}
}

// find gives the path of a backend's file.
func (h *host) find(backend string) (string, error) {
	dir := h.backendDir
	if dir == "" {
		var err error
		if dir, err = plugin.DefaultDir(); err != nil {
			return "", broker.Errorf(broker.Misconfigured, "%w", err)
		}
	}
	return plugin.Find(dir, backend)
}

// start starts the provider's backend from the file at path. It must be stopped.
func (h *host) start(ctx context.Context, provider *config.Provider, path string, parts *parts, secrets ...string) (*plugin.Process, error) {
	env := make([]string, len(provider.Env))
	for i, v := range provider.Env {
		env[i] = v.Name + "=" + v.Value
	}
	return plugin.Start(ctx, h.runtime, plugin.Spec{
		Provider: provider.Name, Path: path, SHA256: provider.SHA256, Env: env, InheritEnv: provider.InheritEnv, User: provider.User, Settings: provider.Config,
		Secrets: append(secretsOf(provider, h.environ), secrets...), Trace: parts.add,
	})
}

func (h *host) findAndStart(ctx context.Context, provider *config.Provider, parts *parts, secrets ...string) (path string, process *plugin.Process, err error) {
	if path, err = h.find(provider.Backend); err != nil {
		return "", nil, err
	}
	process, err = h.start(ctx, provider, path, parts, secrets...)
	return path, process, err
}

// configure hands a process its settings. The error holds every problem that it has with them.
func configure(ctx context.Context, process interface {
	Configure(context.Context) []*plugin.Error
}, parts *parts,
) error {
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

// didNotClose is for a backend that was asked to end in good order and did not.
func (h *host) didNotClose(provider *config.Provider, path string, err error) {
	h.logger.Warn("the backend did not end in good order, and was killed", "provider", provider.Name, "backend", path, "reason", err.Error())
}

// questionOf is a request as the protocol has it.
func questionOf(request broker.Request) *backendv1.GetCredentialsRequest {
	question := &backendv1.GetCredentialsRequest{Image: request.Image, ServiceAccountAnnotations: request.Annotations}
	if request.Token != "" {
		token := string(request.Token)
		question.ServiceAccountToken = &token
	}
	return question
}

// answerOf is an answer as the broker has it, with the steps on the way to it.
func answerOf(response *backendv1.GetCredentialsResponse, parts *parts) broker.Answer {
	answer := broker.Answer{RegistryWide: response.GetScope() == backendv1.Scope_SCOPE_REGISTRY, Lease: secret.Secret(response.GetLease()), Parts: parts.done}
	if d := response.GetCacheDuration(); d != nil {
		answer.CacheDuration = new(d.AsDuration())
	}
	for _, from := range response.GetCredentials() {
		to := broker.Credential{Key: from.GetKey(), Username: from.GetUsername(), Password: secret.Secret(from.GetPassword())}
		if from.GetExpires() != nil {
			to.Expires = from.GetExpires().AsTime()
		}
		answer.Credentials = append(answer.Credentials, to)
	}
	return answer
}

// explain turns a failure of broker/plugin into one of the broker's, with its kind, the path of the setting at fault, and, where it took too long, the time
// that it was given.
func explain(ctx context.Context, began time.Time, err error) error {
	if failure, ok := errors.AsType[*plugin.Error](err); ok && errors.Is(failure, context.DeadlineExceeded) {
		allowed := time.Since(began)
		if deadline, ok := ctx.Deadline(); ok {
			allowed = deadline.Sub(began)
		}
		return broker.Errorf(broker.Unavailable, "no answer within %s: %w", round(allowed), failure.Err)
	}
	return inBrokersWords(err)
}

// inBrokersWords is explain for a failure whose time does not matter.
func inBrokersWords(err error) error {
	if several, ok := err.(*list); ok { //nolint:errorlint // made here, and never wrapped
		explained := make([]error, len(several.errs))
		for i, e := range several.errs {
			explained[i] = inBrokersWords(e)
		}
		return &broker.Error{Kind: broker.KindOf(explained[0]), Err: &list{explained}}
	}
	failure, ok := errors.AsType[*plugin.Error](err)
	switch {
	case !ok:
		return err
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

// append adds the steps of something else.
func (p *parts) append(steps *parts) {
	for _, step := range steps.done {
		p.add(step.Name, steps.began.Add(step.Start), step.Took)
	}
}

// addCall adds a call, and the steps of the backend's work for it, as far as they lie within the call: a backend's clock may be wrong.
func (p *parts) addCall(name string, began time.Time, took time.Duration, spans []*backendv1.Span) {
	p.add(name, began, took)
	for _, span := range spans {
		start := min(span.GetStart().AsDuration(), took)
		p.add(name+": "+span.GetName(), began.Add(start), min(span.GetTook().AsDuration(), took-start))
	}
}

func (p *parts) start(name string) (end func()) {
	began := time.Now()
	return func() { p.add(name, began, time.Since(began)) }
}
