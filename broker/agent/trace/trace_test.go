package trace

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/proto/secret"
)

const canary = "canary-of-the-test"

// collector takes spans as an OpenTelemetry collector does.
type collector struct {
	*testing.T
	mu       sync.Mutex
	spans    map[string]*tracepb.Span // by name
	resource map[string]string
}

func (c *collector) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err == nil && r.Header.Get("Content-Encoding") == "gzip" {
		var unzipped *gzip.Reader
		if unzipped, err = gzip.NewReader(bytes.NewReader(body)); err == nil {
			body, err = io.ReadAll(unzipped)
		}
	}
	var request coltracepb.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(body, &request)
	}
	if err != nil || r.URL.Path != "/v1/traces" {
		c.Errorf("%s: %v", r.URL.Path, err)
	}
	if bytes.Contains(body, []byte(canary)) {
		c.Error("there is a secret in the spans")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, of := range request.GetResourceSpans() {
		c.resource = attributes(of.GetResource().GetAttributes())
		for _, scope := range of.GetScopeSpans() {
			for _, span := range scope.GetSpans() {
				c.spans[span.GetName()] = span
			}
		}
	}
}

func attributes(all []*commonpb.KeyValue) map[string]string {
	m := map[string]string{}
	for _, a := range all {
		m[a.GetKey()] = strings.Trim(strings.SplitN(a.GetValue().String(), ":", 2)[1], `"`)
	}
	return m
}

// quiet takes OpenTelemetry's variables out of the environment, whatever the machine has there.
func quiet(t *testing.T) {
	t.Helper()
	for _, name := range []string{
		"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
		"OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_TRACES_SAMPLER",
	} {
		t.Setenv(name, "")
	}
}

func collecting(t *testing.T) *collector {
	t.Helper()
	quiet(t)
	c := &collector{T: t, spans: map[string]*tracepb.Span{}}
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.URL)
	return c
}

func tracing(t *testing.T) *Tracer {
	t.Helper()
	tracer, err := New(t.Context(), "1.2.3")
	if err != nil || tracer == nil {
		t.Fatalf("%v, %v", tracer, err)
	}
	return tracer
}

func TestARequestIsATreeOfSpans(t *testing.T) {
	c := collecting(t)
	tracer := tracing(t)
	request := broker.Request{Image: "registry.example/app", Token: canary, Annotations: map[string]string{"a": canary}}
	ctx, endRequest := tracer.Request(t.Context(), request, new("sts.example"))
	of, endProvider := tracer.Provider(ctx, &config.Provider{Name: "one", Backend: "ecr", Config: []byte(`{"password":"` + canary + `"}`)})
	parent := Parent(of)
	answer := broker.Answer{
		Credentials: []broker.Credential{{Key: "registry.example", Username: canary, Password: canary}}, Lease: secret.Secret(canary),
		Parts: []broker.Part{{Name: "start", Took: 3 * time.Nanosecond}, {Name: "ask", Start: 3 * time.Nanosecond, Took: time.Hour}, {Name: "ask: registry token", Start: 5 * time.Nanosecond, Took: 2 * time.Nanosecond}},
	}
	endProvider(answer, nil)
	_, endOther := tracer.Provider(ctx, &config.Provider{Name: "two", Backend: "two"})
	endOther(broker.Answer{}, broker.Errorf(broker.Refused, "no right"))
	endRequest(broker.Result{Slots: []broker.Slot{{}}, Response: broker.Response{Auth: []broker.AuthEntry{{Key: "registry.example", Username: canary, Password: canary}}}}, nil)
	tracer.Close()

	root, one, two, start, ask, step := c.spans["image credentials"], c.spans["provider one"], c.spans["provider two"], c.spans["start"], c.spans["ask"], c.spans["registry token"]
	if len(c.spans) != 6 {
		t.Fatalf("%d spans: %v", len(c.spans), c.spans)
	}
	for _, p := range []struct{ child, parent *tracepb.Span }{{one, root}, {two, root}, {start, one}, {ask, one}, {step, ask}} {
		if !bytes.Equal(p.child.GetParentSpanId(), p.parent.GetSpanId()) || !bytes.Equal(p.child.GetTraceId(), root.GetTraceId()) {
			t.Errorf("%s is not below %s", p.child.GetName(), p.parent.GetName())
		}
		if p.child.GetStartTimeUnixNano() < p.parent.GetStartTimeUnixNano() || p.child.GetEndTimeUnixNano() > p.parent.GetEndTimeUnixNano() || p.child.GetEndTimeUnixNano() < p.child.GetStartTimeUnixNano() {
			t.Errorf("%s does not lie within %s", p.child.GetName(), p.parent.GetName())
		}
	}
	if got := step.GetEndTimeUnixNano() - step.GetStartTimeUnixNano(); got != 2 || step.GetStartTimeUnixNano()-one.GetStartTimeUnixNano() != 5 {
		t.Errorf("the step took %d ns", got)
	}
	if len(root.GetParentSpanId()) != 0 {
		t.Error("the request has a parent")
	}
	if want := "00-" + hex.EncodeToString(root.GetTraceId()) + "-" + hex.EncodeToString(one.GetSpanId()) + "-01"; parent != want {
		t.Errorf("the backend is told %q, want %q", parent, want)
	}
	for _, a := range []struct {
		span *tracepb.Span
		want map[string]string
	}{
		{root, map[string]string{
			"credential_broker.image": "registry.example/app", "credential_broker.audience": "sts.example", "credential_broker.outcome": "credentials", "credential_broker.keys": "1",
			"credential_broker.cache_key_type": "", "credential_broker.cache_duration_seconds": "0",
		}},
		{one, map[string]string{"credential_broker.provider": "one", "credential_broker.backend": "ecr", "credential_broker.held": "false"}},
		{two, map[string]string{"credential_broker.provider": "two", "credential_broker.backend": "two", "credential_broker.held": "false", "credential_broker.failure": "refused"}},
	} {
		if diff := cmp.Diff(a.want, attributes(a.span.GetAttributes())); diff != "" {
			t.Errorf("%s (-want +got)\n%s", a.span.GetName(), diff)
		}
	}
	if two.GetStatus().GetCode() != tracepb.Status_STATUS_CODE_ERROR || two.GetStatus().GetMessage() != "no right" || one.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR {
		t.Errorf("%v, %v", one.GetStatus(), two.GetStatus())
	}
	if c.resource["service.name"] != "credential-broker" || c.resource["service.version"] != "1.2.3" {
		t.Errorf("resource %v", c.resource)
	}
}

func TestTheServicesNameIsTheEnvironments(t *testing.T) {
	c := collecting(t)
	t.Setenv("OTEL_SERVICE_NAME", "mine")
	tracer := tracing(t)
	_, end := tracer.Request(t.Context(), broker.Request{}, nil)
	end(broker.Result{}, errors.New("failed"))
	tracer.Close()
	if c.resource["service.name"] != "mine" {
		t.Errorf("resource %v", c.resource)
	}
}

func TestWhenThereAreTraces(t *testing.T) {
	for name, c := range map[string]struct {
		environment map[string]string
		want        bool
		problem     string
	}{
		"an empty environment":        {nil, false, ""},
		"an endpoint":                 {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, true, ""},
		"an endpoint for traces":      {map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"}, true, ""},
		"switched off":                {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "True"}, false, ""},
		"no exporter for traces":      {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"}, false, ""},
		"another protocol":            {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, false, "only http/protobuf"},
		"another protocol for others": {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			quiet(t)
			for key, value := range c.environment {
				t.Setenv(key, value)
			}
			tracer, err := New(t.Context(), "")
			defer tracer.Close() //nolint:staticcheck // a nil one closes nothing
			if (tracer != nil) != c.want || (err == nil) != (c.problem == "") || err != nil && !strings.Contains(err.Error(), c.problem) {
				t.Errorf("%v, %v", tracer != nil, err)
			}
			tracer.LogTo(nil)
		})
	}
	if got := Parent(t.Context()); got != "" {
		t.Errorf("without a span the backend is told %q", got)
	}
}

func TestACollectorThatHangsHoldsNobodyUp(t *testing.T) {
	quiet(t)
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer server.Close()
	defer close(release)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.URL)
	tracer := tracing(t)
	began := time.Now()
	for range 10_000 { // more than the queue holds
		_, end := tracer.Request(t.Context(), broker.Request{}, nil)
		end(broker.Result{}, nil)
	}
	if took := time.Since(began); took > time.Minute {
		t.Errorf("10,000 requests took %s", took)
	}
	began = time.Now()
	tracer.Close()
	if took := time.Since(began); took > 10*endTimeout {
		t.Errorf("the end took %s", took)
	}
}

func TestWhatTheCollectorSaysIsNotRepeated(t *testing.T) {
	quiet(t)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, canary, http.StatusForbidden) }))
	defer server.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.URL)
	tracer := tracing(t)
	var log bytes.Buffer
	tracer.LogTo(slog.New(slog.NewTextHandler(&log, nil)))
	for range 3 {
		_, end := tracer.Request(t.Context(), broker.Request{}, nil)
		end(broker.Result{}, nil)
		_ = tracer.provider.ForceFlush(context.WithoutCancel(t.Context())) // the error is Handle's
	}
	tracer.Close()
	tracer.Handle(errors.New(canary))
	if text := log.String(); strings.Count(text, "traces are lost") != 1 || strings.Contains(text, canary) {
		t.Errorf("the log: %s", text)
	}
}
