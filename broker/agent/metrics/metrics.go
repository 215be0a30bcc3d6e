// Package metrics shows what the agent does and holds to Prometheus: docs/metrics.md lists it all. Labels name configurations, providers and backends, which an operator has written, and words of a
// fixed set; never an image, a pod or an account, of which there is no end. The package decides nothing, and knows no secret.
package metrics

import (
	"runtime"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/agent"
)

const namespace = "credential_broker"

// Where the answers to a request came from: the values of the label "from" of credential_broker_request_duration_seconds.
const (
	fromMemory   = "memory"
	fromBackends = "backends" // at least one of them
	fromNobody   = "nobody"   // no provider was asked
)

var (
	// requestBuckets, in seconds: an answer from memory takes well below a millisecond, one that waits for a cloud a few seconds, and none takes longer than the kubelet's minute.
	requestBuckets = []float64{.00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}
	// callBuckets, in seconds.
	callBuckets = []float64{.0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 15, 30, 60}
)

// Metrics are those of one agent. Its methods may be called from many goroutines.
type Metrics struct {
	registry *prometheus.Registry

	requests        *prometheus.CounterVec
	requestDuration *prometheus.HistogramVec
	callDuration    *prometheus.HistogramVec

	// counted is what these three have something of.
	mu      sync.Mutex
	counted map[providerKey]bool
}

// New makes the metrics of the program with this version.
func New(version string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		counted:  map[providerKey]bool{},
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "requests_total", Help: "The kubelet's requests that were replied to.",
		}, []string{labelConfiguration, labelOutcome}),
		requestDuration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Name: "request_duration_seconds", Help: "How long the agent worked on a request of the kubelet's.", Buckets: requestBuckets,
		}, []string{labelConfiguration, labelFrom}),
		callDuration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Name: "provider_call_duration_seconds", Help: "How long a call to a provider's backend took, the start of the backend included.", Buckets: callBuckets,
		}, []string{labelConfiguration, labelProvider}),
	}
	m.registry.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Namespace: namespace, Name: "build_info", Help: "Which version serves; always 1.",
			ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
		}, func() float64 { return 1 }),
	)
	return m
}

// Observe counts a request.
func (m *Metrics) Observe(o agent.Observation) {
	m.note(providerKey{o.Configuration, ""})
	m.requests.WithLabelValues(o.Configuration, string(o.Outcome)).Inc()
	if o.Outcome != agent.OutcomeUnserved {
		m.requestDuration.WithLabelValues(o.Configuration, from(o.Slots)).Observe(o.Took.Seconds())
	}
}

func from(slots []broker.Slot) string {
	if len(slots) == 0 {
		return fromNobody
	}
	for _, slot := range slots {
		if !slot.Answer.Held {
			return fromBackends
		}
	}
	return fromMemory
}

// ObserveCall counts a call to a backend.
func (m *Metrics) ObserveCall(c agent.Call) {
	m.note(providerKey{c.Configuration, c.Provider})
	m.callDuration.WithLabelValues(c.Configuration, c.Provider).Observe(c.Took.Seconds())
}

// providerKey is what a count belongs to; one without a provider is the configuration's as a whole.
type providerKey struct{ configuration, provider string }

func (m *Metrics) note(key providerKey) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.counted[key] = true
}

// prune forgets what was counted for configurations and providers that are gone: people who try things out leave many behind. For those that are there it begins to count, since a count that has
// never been zero is none that a rate can be taken of.
func (m *Metrics) prune(status agent.Status) {
	m.mu.Lock()
	defer m.mu.Unlock()
	there := map[providerKey]bool{{}: true} // requests that came to no configuration
	m.requests.WithLabelValues("", string(agent.OutcomeUnserved))
	m.requests.WithLabelValues("", string(broker.OutcomeFailed))
	for _, c := range status.Configurations {
		name := c.Name()
		there[providerKey{name, ""}] = true
		for _, outcome := range []broker.Outcome{broker.OutcomeCredentials, broker.OutcomeNoCredentials, broker.OutcomeNoProvider, broker.OutcomeFailed, broker.OutcomeAbandoned, broker.OutcomeInvalid} {
			m.requests.WithLabelValues(name, string(outcome))
		}
		for _, p := range c.Providers {
			there[providerKey{name, p.Name}] = true
			m.callDuration.WithLabelValues(name, p.Name)
		}
	}
	for key := range m.counted {
		switch {
		case there[key]:
		case key.provider == "":
			labels := prometheus.Labels{labelConfiguration: key.configuration}
			m.requests.DeletePartialMatch(labels)
			m.requestDuration.DeletePartialMatch(labels)
		default:
			m.callDuration.DeleteLabelValues(key.configuration, key.provider)
		}
	}
	m.counted = there
}

// Watch makes an agent's status part of the metrics. What was counted is forgotten with its configuration or provider. It is called once.
func (m *Metrics) Watch(status func() agent.Status) {
	m.registry.MustRegister(&collector{Metrics: m, status: status})
}
