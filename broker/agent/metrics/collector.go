package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/agent"
)

// The labels.
const (
	labelConfiguration = "configuration" // agent.Configuration.Name
	labelProvider      = "provider"
	labelBackend       = "backend" // as in the configuration
	labelOutcome       = "outcome"
	labelFrom          = "from"
	labelResult        = "result"
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, labels, nil)
}

// collector makes metrics of an agent's status, when they are asked for.
type collector struct {
	*Metrics
	status func() agent.Status
}

// The metrics that the status gives.
var (
	requestsInFlight = desc("requests_in_flight", "Requests that are being worked on.")

	configurationProviders   = desc("configuration_providers", "Providers of a configuration.", labelConfiguration)
	configurationReloads     = desc("configuration_reloads_total", "Changes of a configuration, taken or refused because it was broken.", labelConfiguration, labelResult)
	configurationGood        = desc("configuration_last_reload_successful", "Whether the configuration on disk is the one that is used.", labelConfiguration)
	configurationLoaded      = desc("configuration_last_reload_success_timestamp_seconds", "When the configuration that is used was read.", labelConfiguration)
	cacheEntries             = desc("cache_entries", "What is remembered: answers, failures, and how far registries' answers reach.", labelConfiguration)
	cacheBytes               = desc("cache_bytes", "About how much memory that takes.", labelConfiguration)
	answersUnlocked          = desc("answers_unlocked", "Answers in memory that may be swapped out, because the system permits no more locked memory.", labelConfiguration)
	providerCalls            = desc("provider_calls_total", "Calls to a provider's backend, for requests and ahead of need, by how they ended.", labelConfiguration, labelProvider, labelOutcome)
	providerAnswers          = desc("provider_answers_total", "What requests got from a provider, by where it came from.", labelConfiguration, labelProvider, labelFrom)
	renewals                 = desc("renewals_total", "Answers that were got ahead of need.", labelConfiguration, labelProvider)
	renewalFailures          = desc("renewal_failures_total", "Attempts to replace an answer that failed.", labelConfiguration, labelProvider)
	evictions                = desc("evictions_total", "What was dropped to make room.", labelConfiguration, labelProvider)
	answersHeld              = desc("answers_held", "Answers in memory.", labelConfiguration, labelProvider)
	answersFailing           = desc("answers_renewal_failing", "Answers in memory whose last renewal failed.", labelConfiguration, labelProvider)
	failuresHeld             = desc("failures_held", "Failures in memory, for which there is no answer.", labelConfiguration, labelProvider)
	earliestExpiry           = desc("earliest_expiry_timestamp_seconds", "When the first of the credentials in memory stops working.", labelConfiguration, labelProvider)
	earliestFailingGoodUntil = desc("earliest_failing_end_timestamp_seconds", "Until when the first of the answers whose renewal fails is given.", labelConfiguration, labelProvider)
	nextRenewal              = desc("next_renewal_timestamp_seconds", "When a provider is asked next without a request.", labelConfiguration, labelProvider)
	backendProcesses         = desc("backend_processes", "Processes of a provider's backend that run; none is no fault, they are started when they are needed.", labelConfiguration, labelProvider, labelBackend)
	backendRestarts          = desc("backend_restarts_total", "Starts in the place of a process that had ended by itself, hung, or could not be started.", labelConfiguration, labelProvider, labelBackend)
	backendInFlight          = desc("backend_calls_in_flight", "Calls that a provider's backend is at, or that wait for its start.", labelConfiguration, labelProvider, labelBackend)
)

// Describe implements prometheus.Collector.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, counted := range []prometheus.Collector{c.requests, c.requestDuration, c.callDuration} {
		counted.Describe(to)
	}
	for _, d := range []*prometheus.Desc{
		requestsInFlight, configurationProviders, configurationReloads, configurationGood, configurationLoaded, cacheEntries, cacheBytes, answersUnlocked, providerCalls, providerAnswers, renewals, renewalFailures, evictions,
		answersHeld, answersFailing, failuresHeld, earliestExpiry, earliestFailingGoodUntil, nextRenewal, backendProcesses, backendRestarts, backendInFlight,
	} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	status := c.status()
	c.prune(status)
	for _, counted := range []prometheus.Collector{c.requests, c.requestDuration, c.callDuration} {
		counted.Collect(to)
	}
	out := output{to}
	out.gauge(requestsInFlight, float64(status.InFlight))
	for i := range status.Configurations {
		out.configuration(&status.Configurations[i])
	}
}

// output gets metrics.
type output struct{ to chan<- prometheus.Metric }

func (o output) gauge(d *prometheus.Desc, value float64, labels ...string) {
	o.to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
}

func (o output) counter(d *prometheus.Desc, value uint64, labels ...string) {
	o.to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), labels...)
}

// time gives a moment in seconds since 1970, and nothing for none.
func (o output) time(d *prometheus.Desc, at time.Time, labels ...string) {
	if !at.IsZero() {
		o.gauge(d, float64(at.UnixMilli())/1000, labels...)
	}
}

func (o output) configuration(c *agent.Configuration) {
	name := c.Name()
	o.gauge(configurationProviders, float64(len(c.Providers)), name)
	o.counter(configurationReloads, uint64(max(c.Reloads, 0)), name, "taken")
	o.counter(configurationReloads, uint64(max(c.Refusals, 0)), name, "refused")
	good := 1.
	if c.Refused != "" {
		good = 0
	}
	o.gauge(configurationGood, good, name)
	o.time(configurationLoaded, c.Loaded, name)
	o.gauge(cacheEntries, float64(c.Entries), name)
	o.gauge(cacheBytes, float64(c.Bytes), name)
	o.gauge(answersUnlocked, float64(c.Unlocked), name)
	held := heldBy(c)
	for _, p := range c.Providers {
		o.provider(name, p)
		o.held(held[p.Name], name, p.Name)
	}
}

func (o output) provider(configuration string, p agent.Provider) {
	asked := p.Asked
	for _, answers := range []struct {
		from  string
		count uint64
	}{
		{"memory", asked.Hits - min(asked.Stale, asked.Hits)},
		{"stale memory", asked.Stale},
		{"shared call", asked.Shared},
		{"own call", asked.Misses},
		{"remembered failure", asked.Remembered},
	} {
		o.counter(providerAnswers, answers.count, configuration, p.Name, answers.from)
	}
	failed := asked.Unavailable + asked.Refused + asked.Misconfigured
	for _, calls := range []struct {
		outcome string
		count   uint64
	}{
		{"answered", asked.Calls - min(failed, asked.Calls)},
		{broker.Unavailable.String(), asked.Unavailable},
		{broker.Refused.String(), asked.Refused},
		{broker.Misconfigured.String(), asked.Misconfigured},
	} {
		o.counter(providerCalls, calls.count, configuration, p.Name, calls.outcome)
	}
	o.counter(renewals, asked.Renewals, configuration, p.Name)
	o.counter(renewalFailures, asked.RenewalFailures, configuration, p.Name)
	o.counter(evictions, asked.Evictions, configuration, p.Name)

	running, restarts, inFlight := 0, 0, 0
	for _, b := range p.Processes {
		if b.PID != 0 {
			running++
		}
		restarts += b.Restarts
		inFlight += b.InFlight
	}
	o.gauge(backendProcesses, float64(running), configuration, p.Name, p.Backend)
	o.counter(backendRestarts, uint64(max(restarts, 0)), configuration, p.Name, p.Backend)
	o.gauge(backendInFlight, float64(inFlight), configuration, p.Name, p.Backend)
}

// heldOf is what is held of one provider.
type heldOf struct {
	answers, failing, failures int
	expires, failingUntil      time.Time // the first of them; zero: none
	next                       time.Time
}

func heldBy(c *agent.Configuration) map[string]heldOf {
	all := map[string]heldOf{}
	for _, h := range c.Answers {
		of := all[h.Provider]
		of.next = earlier(of.next, h.Next)
		if h.Obtained.IsZero() {
			of.failures++
		} else {
			of.answers++
			of.expires = earlier(of.expires, h.Expires)
			if h.Failures > 0 {
				of.failing++
				of.failingUntil = earlier(of.failingUntil, h.Good)
			}
		}
		all[h.Provider] = of
	}
	return all
}

func (o output) held(of heldOf, labels ...string) {
	o.gauge(answersHeld, float64(of.answers), labels...)
	o.gauge(answersFailing, float64(of.failing), labels...)
	o.gauge(failuresHeld, float64(of.failures), labels...)
	o.time(earliestExpiry, of.expires, labels...)
	o.time(earliestFailingGoodUntil, of.failingUntil, labels...)
	o.time(nextRenewal, of.next, labels...)
}

// earlier of two times, of which a zero one says nothing.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
