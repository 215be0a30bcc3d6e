package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/credential-broker/credential-broker/broker/config"
)

// Broker resolves requests with one configuration.
type Broker struct {
	// Providers are those of the kubelet's entry, in order of precedence.
	Providers []*config.Provider
	// Policy, Timeout and MaxCacheDuration are the configuration's.
	Policy           config.OverlapPolicy
	Timeout          time.Duration
	MaxCacheDuration *time.Duration

	Caller Caller
	Now    func() time.Time
	Log    *slog.Logger
}

// New makes a Broker from a configuration, for the providers given: all of them or those of one audience.
func New(cfg *config.Config, providers []*config.Provider, caller Caller, log *slog.Logger) *Broker {
	return &Broker{
		Providers: providers, Policy: cfg.OverlapPolicy, Timeout: cfg.Timeout, MaxCacheDuration: cfg.MaxCacheDuration,
		Caller: caller, Now: time.Now, Log: log,
	}
}

// Result is all that is known about one request. What the kubelet gets is Response alone.
type Result struct {
	Response Response
	Routing  Routing
	Slots    []Slot
	Notes    []Note
	Took     time.Duration
	// Abandoned: there is an error because whoever asked has gone, and with him the context.
	Abandoned bool
}

// Outcome is how a request ended, in the words that logs and metrics use.
type Outcome string

// The outcomes.
const (
	OutcomeCredentials   Outcome = "credentials"
	OutcomeNoCredentials Outcome = "no credentials"      // from providers that match
	OutcomeNoProvider    Outcome = "no provider matches" // so no credentials either
	OutcomeFailed        Outcome = "failed"
	OutcomeAbandoned     Outcome = "abandoned"       // whoever asked has gone before there was an answer
	OutcomeInvalid       Outcome = "invalid request" // it never came to Resolve
)

// Outcome is the outcome of a request that Resolve gave the result and the error for.
func (r Result) Outcome(err error) Outcome {
	switch {
	case r.Abandoned:
		return OutcomeAbandoned
	case err != nil:
		return OutcomeFailed
	case len(r.Slots) == 0:
		return OutcomeNoProvider
	case len(r.Response.Auth) == 0:
		return OutcomeNoCredentials
	default:
		return OutcomeCredentials
	}
}

// Resolve is the main job: route the image, ask the providers that match, merge what they say. The error is a *Failure; the Result is filled in
// with it too.
func (b *Broker) Resolve(ctx context.Context, request Request) (Result, error) {
	began := b.Now()
	ctx, cancel := context.WithTimeout(ctx, b.Timeout)
	defer cancel()

	var result Result
	var err error
	result.Routing = Route(b.Providers, request)
	result.Slots = ask(ctx, b.Caller, b.Now, result.Routing.Asked(), request)
	result.Response, result.Notes, err = Merge(Merging{
		Request: request, Policy: b.Policy, RegistryWide: result.Routing.RegistryWide, MaxCacheDuration: b.MaxCacheDuration, Now: b.Now(),
	}, result.Slots)
	result.Abandoned = err != nil && ctx.Err() == context.Canceled
	result.Took = b.Now().Sub(began)
	b.report(ctx, request, result, err)
	return result, err
}

// Failure is that of a request for which nobody gave credentials and somebody failed. Its text has one line for each failed provider.
type Failure struct {
	Failed []Slot
}

func failure(failed []Slot) error { return &Failure{Failed: failed} }

func (f *Failure) Error() string {
	lines := make([]string, len(f.Failed))
	for i, slot := range f.Failed {
		lines[i] = fmt.Sprintf("provider %q: %s", slot.Provider.Name, oneLine(slot.Err))
	}
	return strings.Join(lines, "\n")
}

func oneLine(err error) string {
	return strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

// report logs the request in one line, and a line for whatever needs a person's attention.
func (b *Broker) report(ctx context.Context, request Request, result Result, err error) {
	for _, note := range result.Notes {
		level := slog.LevelDebug
		if note.Warning {
			level = slog.LevelWarn
		}
		b.Log.Log(ctx, level, note.Text, "provider", note.Provider, "image", request.Image)
	}
	var asked, held []string
	for _, slot := range result.Slots {
		asked = append(asked, slot.Provider.Name)
		if slot.Answer.Held && slot.Err == nil {
			held = append(held, slot.Provider.Name)
		}
		switch {
		case slot.Err == nil:
		case errors.Is(slot.Err, context.Canceled): // not the provider's fault, unless it was slow
			b.Log.InfoContext(ctx, "provider not waited for", "provider", slot.Provider.Name, "image", request.Image, "ms", slot.Took.Milliseconds())
		default:
			b.Log.WarnContext(ctx, "provider failed", "provider", slot.Provider.Name, "image", request.Image,
				"kind", KindOf(slot.Err).String(), "reason", oneLine(slot.Err), "ms", slot.Took.Milliseconds())
		}
	}
	b.Log.InfoContext(ctx, "request", "image", request.Image, "providers", strings.Join(asked, ","), "held", strings.Join(held, ","),
		"outcome", string(result.Outcome(err)), "keys", len(result.Response.Auth), "cacheKeyType", string(result.Response.CacheKeyType),
		"cacheDuration", result.Response.CacheDuration.String(), "ms", result.Took.Milliseconds())
}
