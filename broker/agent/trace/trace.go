// Package trace tells an OpenTelemetry collector of the agent's requests: a span for each, below it one for each provider that was asked, and below that one for each step. The standard environment
// variables switch it on and say where to; without them there is nothing of it. No secret is in a span, and nobody waits for the collector.
package trace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	oteltrace "go.opentelemetry.io/otel/trace"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/agent"
	"github.com/credential-broker/credential-broker/broker/config"
)

const (
	// endTimeout is how long the agent's end waits for what has not been sent.
	endTimeout = 2 * time.Second
	// complaintInterval is how often it is said that the collector does not take the spans.
	complaintInterval = time.Minute
	// maxReason bounds a failure's text in a span, in bytes.
	maxReason = 1000
	// serviceName is the default of OTEL_SERVICE_NAME.
	serviceName = "credential-broker"
)

// Tracer tells of requests. A nil one does not.
type Tracer struct {
	provider *sdktrace.TracerProvider
	tracer   oteltrace.Tracer
	log      atomic.Pointer[slog.Logger]

	mu         sync.Mutex
	complained time.Time
	now        func() time.Time
}

var _ agent.Tracer = (*Tracer)(nil)

// wanted says whether the environment asks for traces, by OpenTelemetry's rules, and whether this program can send them.
func wanted(getenv func(string) string) (bool, error) {
	if getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" ||
		strings.EqualFold(getenv("OTEL_SDK_DISABLED"), "true") || strings.EqualFold(getenv("OTEL_TRACES_EXPORTER"), "none") {
		return false, nil
	}
	for _, name := range []string{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"} {
		switch protocol := getenv(name); protocol {
		case "":
			continue
		case "http/protobuf":
			return true, nil
		default:
			return false, fmt.Errorf("%s is %q: only http/protobuf is spoken here, at port 4318 by custom", name, protocol)
		}
	}
	return true, nil
}

// New gives nil where the environment does not ask for traces. Close it at the end.
func New(ctx context.Context, version string) (*Tracer, error) {
	if ok, err := wanted(os.Getenv); !ok {
		return nil, err
	}
	t := &Tracer{now: time.Now}
	// OpenTelemetry reports what goes wrong in the background to the process as a whole, and to standard error otherwise.
	otel.SetErrorHandler(t)
	otel.SetLogger(logr.Discard())
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, errors.New("traces: the settings of OTEL_EXPORTER_OTLP_* cannot be used") // the error may quote headers
	}
	// What comes later wins: OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES.
	about, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithHost(),
		resource.WithAttributes(attribute.String("service.name", serviceName), attribute.String("service.version", version)), resource.WithFromEnv())
	if about == nil {
		return nil, fmt.Errorf("traces: describe this process: %w", err)
	}
	// The batcher's queue holds 2,048 spans (OTEL_BSP_MAX_QUEUE_SIZE); what does not fit in is dropped, so that nobody waits.
	t.provider = sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(about))
	t.tracer = t.provider.Tracer("github.com/credential-broker/credential-broker")
	return t, nil
}

// LogTo says where to complain of a collector that takes no spans.
func (t *Tracer) LogTo(log *slog.Logger) {
	if t != nil {
		t.log.Store(log)
	}
}

// Close sends what has not been sent, for two seconds at most.
func (t *Tracer) Close() {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		t.Handle(err)
	}
}

// Handle implements otel.ErrorHandler: it says once a minute that spans are not taken. What the collector answered is not repeated.
func (t *Tracer) Handle(err error) {
	log := t.log.Load()
	t.mu.Lock()
	defer t.mu.Unlock()
	if log == nil || !t.complained.IsZero() && t.now().Sub(t.complained) < complaintInterval {
		return
	}
	t.complained = t.now()
	reason := "the collector does not take them"
	if of, ok := errors.AsType[*url.Error](err); ok {
		reason = of.Err.Error()
	}
	log.Warn("traces are lost", "reason", reason)
}

// Request implements agent.Tracer.
func (t *Tracer) Request(ctx context.Context, request broker.Request, audience *string) (context.Context, func(broker.Result, error)) {
	ctx, span := t.tracer.Start(ctx, "image credentials", oteltrace.WithSpanKind(oteltrace.SpanKindServer), oteltrace.WithAttributes(attribute.String("credential_broker.image", request.Image)))
	if audience != nil {
		span.SetAttributes(attribute.String("credential_broker.audience", *audience))
	}
	return ctx, func(result broker.Result, err error) {
		span.SetAttributes(
			attribute.String("credential_broker.outcome", string(result.Outcome(err))),
			attribute.Int("credential_broker.keys", len(result.Response.Auth)),
			attribute.String("credential_broker.cache_key_type", string(result.Response.CacheKeyType)),
			attribute.Float64("credential_broker.cache_duration_seconds", result.Response.CacheDuration.Seconds()),
		)
		fail(span, err)
		span.End()
	}
}

// Provider implements agent.Tracer.
func (t *Tracer) Provider(ctx context.Context, provider *config.Provider) (context.Context, func(broker.Answer, error)) {
	began := time.Now()
	ctx, span := t.tracer.Start(ctx, "provider "+provider.Name, oteltrace.WithTimestamp(began), oteltrace.WithSpanKind(oteltrace.SpanKindClient), oteltrace.WithAttributes(
		attribute.String("credential_broker.provider", provider.Name), attribute.String("credential_broker.backend", provider.Backend)))
	return ctx, func(answer broker.Answer, err error) {
		ended := time.Now()
		t.steps(ctx, began, ended, answer.Parts)
		span.SetAttributes(attribute.Bool("credential_broker.held", answer.Held && err == nil))
		if err != nil {
			span.SetAttributes(attribute.String("credential_broker.failure", broker.KindOf(err).String()))
		}
		fail(span, err)
		span.End(oteltrace.WithTimestamp(ended))
	}
}

// steps are told when they are over. The backend's own, "ask: …", are within the step "ask".
func (t *Tracer) steps(ctx context.Context, began, ended time.Time, parts []broker.Part) {
	within := map[string]context.Context{}
	for _, part := range parts {
		parent, name := ctx, part.Name //nolint:contextcheck // a span's parent is a context
		if of, step, ok := strings.Cut(name, ": "); ok && within[of] != nil {
			parent, name = within[of], step
		}
		start := earlier(began.Add(part.Start), ended)
		at, span := t.tracer.Start(parent, name, oteltrace.WithTimestamp(start))
		span.End(oteltrace.WithTimestamp(earlier(start.Add(part.Took), ended)))
		within[part.Name] = at //nolint:fatcontext // one for each step, for those within it
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// fail marks a span as that of a failure. Its text is that of the log: there is no secret in it.
func fail(span oteltrace.Span, err error) {
	if err == nil {
		return
	}
	reason := err.Error()
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "") + "…"
	}
	span.SetStatus(codes.Error, reason)
}

// Parent is the `traceparent` of the W3C's Trace Context for what is done in a span; empty where there is none.
func Parent(ctx context.Context) string {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier.Get("traceparent")
}
