package metrics

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/agent"
	"github.com/credential-broker/credential-broker/broker/agent/cache"
)

// canary is a secret wherever one could slip in.
const canary = "canary-of-the-test"

func at(seconds int64) time.Time { return time.Unix(seconds, 0) }

// full is a status that has something of everything.
func full() agent.Status {
	return agent.Status{
		Version: "1.2.3", PID: 7, Requests: 9, InFlight: 2,
		Configurations: []agent.Configuration{
			{
				Config: "", Loaded: at(1000), Reloads: 3, Refusals: 1, Refused: "line 3: " + canary, Entries: 5, Bytes: 6000, Unlocked: 1,
				Providers: []agent.Provider{
					{
						Name: "ecr", Backend: "ecr",
						Processes: []agent.Backend{{PID: 11, Restarts: 1, InFlight: 2, LastError: canary}, {PID: 12, Restarts: 2, InFlight: 1}, {PID: 0}},
						Asked: cache.ProviderStats{
							Hits: 20, Stale: 3, Misses: 4, Shared: 5, Remembered: 6, Calls: 16, Unavailable: 1, Refused: 2, Misconfigured: 3, Renewals: 7, RenewalFailures: 8, Evictions: 9, LastFailure: canary,
						},
					},
					{Name: "never-asked", Backend: "/usr/libexec/own"},
				},
				Answers: []cache.Held{
					{Provider: "ecr", Image: canary, Identity: canary, Obtained: at(900), Good: at(5000), Expires: at(5030), Next: at(4000)},
					{Provider: "ecr", Image: canary, Obtained: at(901), Good: at(4600), Expires: at(4630), Next: at(1200), Failures: 2, LastFailure: canary},
					{Provider: "ecr", Image: canary, Obtained: at(902), Good: at(4500)},
					{Provider: "ecr", Image: canary, Failures: 1, LastFailure: canary, Next: at(1300)},
				},
			},
			{Config: "/etc/other.yaml", BackendDir: "/opt/backends", Providers: []agent.Provider{{Name: "ecr", Backend: "ecr"}}},
		},
	}
}

func watching(status func() agent.Status) *Metrics {
	m := New("1.2.3")
	m.Watch(status)
	return m
}

// scraped are the lines of our own metrics, without comments, as Prometheus gets them.
func scraped(t *testing.T, m *Metrics) []string {
	t.Helper()
	recorder := httptest.NewRecorder()
	promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError}).ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, path, nil))
	text, err := io.ReadAll(recorder.Body)
	if err != nil || recorder.Code != http.StatusOK {
		t.Fatalf("status %d, %v: %s", recorder.Code, err, text)
	}
	if strings.Contains(string(text), canary) {
		t.Error("what is secret, or has no end of values, is in the metrics")
	}
	return slices.DeleteFunc(strings.Split(string(text), "\n"), func(line string) bool { return !strings.HasPrefix(line, namespace+"_") })
}

// without leaves out the lines that contain any of the words.
func without(lines []string, words ...string) []string {
	return slices.DeleteFunc(lines, func(line string) bool {
		return slices.ContainsFunc(words, func(word string) bool { return strings.Contains(line, word) })
	})
}

func TestTheStatusIsShownWhole(t *testing.T) {
	got := without(scraped(t, watching(full)), "requests_total", "duration_seconds", `configuration="/etc/other.yaml`, "build_info")
	want := strings.Split(strings.TrimSpace(`
credential_broker_answers_held{configuration="default",provider="ecr"} 3
credential_broker_answers_held{configuration="default",provider="never-asked"} 0
credential_broker_answers_renewal_failing{configuration="default",provider="ecr"} 1
credential_broker_answers_renewal_failing{configuration="default",provider="never-asked"} 0
credential_broker_answers_unlocked{configuration="default"} 1
credential_broker_backend_calls_in_flight{backend="/usr/libexec/own",configuration="default",provider="never-asked"} 0
credential_broker_backend_calls_in_flight{backend="ecr",configuration="default",provider="ecr"} 3
credential_broker_backend_processes{backend="/usr/libexec/own",configuration="default",provider="never-asked"} 0
credential_broker_backend_processes{backend="ecr",configuration="default",provider="ecr"} 2
credential_broker_backend_restarts_total{backend="/usr/libexec/own",configuration="default",provider="never-asked"} 0
credential_broker_backend_restarts_total{backend="ecr",configuration="default",provider="ecr"} 3
credential_broker_cache_bytes{configuration="default"} 6000
credential_broker_cache_entries{configuration="default"} 5
credential_broker_configuration_last_reload_success_timestamp_seconds{configuration="default"} 1000
credential_broker_configuration_last_reload_successful{configuration="default"} 0
credential_broker_configuration_providers{configuration="default"} 2
credential_broker_configuration_reloads_total{configuration="default",result="refused"} 1
credential_broker_configuration_reloads_total{configuration="default",result="taken"} 3
credential_broker_earliest_expiry_timestamp_seconds{configuration="default",provider="ecr"} 4630
credential_broker_earliest_failing_end_timestamp_seconds{configuration="default",provider="ecr"} 4600
credential_broker_evictions_total{configuration="default",provider="ecr"} 9
credential_broker_evictions_total{configuration="default",provider="never-asked"} 0
credential_broker_failures_held{configuration="default",provider="ecr"} 1
credential_broker_failures_held{configuration="default",provider="never-asked"} 0
credential_broker_next_renewal_timestamp_seconds{configuration="default",provider="ecr"} 1200
credential_broker_provider_answers_total{configuration="default",from="memory",provider="ecr"} 17
credential_broker_provider_answers_total{configuration="default",from="memory",provider="never-asked"} 0
credential_broker_provider_answers_total{configuration="default",from="own call",provider="ecr"} 4
credential_broker_provider_answers_total{configuration="default",from="own call",provider="never-asked"} 0
credential_broker_provider_answers_total{configuration="default",from="remembered failure",provider="ecr"} 6
credential_broker_provider_answers_total{configuration="default",from="remembered failure",provider="never-asked"} 0
credential_broker_provider_answers_total{configuration="default",from="shared call",provider="ecr"} 5
credential_broker_provider_answers_total{configuration="default",from="shared call",provider="never-asked"} 0
credential_broker_provider_answers_total{configuration="default",from="stale memory",provider="ecr"} 3
credential_broker_provider_answers_total{configuration="default",from="stale memory",provider="never-asked"} 0
credential_broker_provider_calls_total{configuration="default",outcome="answered",provider="ecr"} 10
credential_broker_provider_calls_total{configuration="default",outcome="answered",provider="never-asked"} 0
credential_broker_provider_calls_total{configuration="default",outcome="misconfigured",provider="ecr"} 3
credential_broker_provider_calls_total{configuration="default",outcome="misconfigured",provider="never-asked"} 0
credential_broker_provider_calls_total{configuration="default",outcome="refused",provider="ecr"} 2
credential_broker_provider_calls_total{configuration="default",outcome="refused",provider="never-asked"} 0
credential_broker_provider_calls_total{configuration="default",outcome="unavailable",provider="ecr"} 1
credential_broker_provider_calls_total{configuration="default",outcome="unavailable",provider="never-asked"} 0
credential_broker_renewal_failures_total{configuration="default",provider="ecr"} 8
credential_broker_renewal_failures_total{configuration="default",provider="never-asked"} 0
credential_broker_renewals_total{configuration="default",provider="ecr"} 7
credential_broker_renewals_total{configuration="default",provider="never-asked"} 0
credential_broker_requests_in_flight 2
`), "\n")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestConfigurationsThatDifferInTheirBackendsAreTold(t *testing.T) {
	got := strings.Join(scraped(t, watching(full)), "\n")
	if want := `credential_broker_configuration_providers{configuration="/etc/other.yaml --backend-dir /opt/backends"} 1`; !strings.Contains(got, want) {
		t.Errorf("%s is not in\n%s", want, got)
	}
}

func TestRequestsAndCallsAreCounted(t *testing.T) {
	m := watching(full)
	held, asked := broker.Slot{Answer: broker.Answer{Held: true}}, broker.Slot{}
	for _, o := range []agent.Observation{
		{Configuration: "default", Outcome: broker.OutcomeCredentials, Took: 300 * time.Microsecond, Slots: []broker.Slot{held}},
		{Configuration: "default", Outcome: broker.OutcomeCredentials, Took: 2 * time.Second, Slots: []broker.Slot{held, asked}},
		{Configuration: "default", Outcome: broker.OutcomeNoProvider, Took: time.Millisecond},
		{Outcome: agent.OutcomeUnserved},
	} {
		m.Observe(o)
	}
	m.ObserveCall(agent.Call{Configuration: "default", Event: cache.Event{Provider: "ecr", Image: canary, Took: 40 * time.Millisecond, Err: errors.New(canary)}})
	got := slices.DeleteFunc(scraped(t, m), func(line string) bool {
		return !strings.Contains(line, "requests_total") && !strings.Contains(line, "duration_seconds_sum") && !strings.Contains(line, `le="0.05"`) || strings.Contains(line, "/etc/other.yaml")
	})
	want := strings.Split(strings.TrimSpace(`
credential_broker_provider_call_duration_seconds_bucket{configuration="default",provider="ecr",le="0.05"} 1
credential_broker_provider_call_duration_seconds_sum{configuration="default",provider="ecr"} 0.04
credential_broker_provider_call_duration_seconds_bucket{configuration="default",provider="never-asked",le="0.05"} 0
credential_broker_provider_call_duration_seconds_sum{configuration="default",provider="never-asked"} 0
credential_broker_request_duration_seconds_bucket{configuration="default",from="backends",le="0.05"} 0
credential_broker_request_duration_seconds_sum{configuration="default",from="backends"} 2
credential_broker_request_duration_seconds_bucket{configuration="default",from="memory",le="0.05"} 1
credential_broker_request_duration_seconds_sum{configuration="default",from="memory"} 0.0003
credential_broker_request_duration_seconds_bucket{configuration="default",from="nobody",le="0.05"} 1
credential_broker_request_duration_seconds_sum{configuration="default",from="nobody"} 0.001
credential_broker_requests_total{configuration="",outcome="failed"} 0
credential_broker_requests_total{configuration="",outcome="unserved"} 1
credential_broker_requests_total{configuration="default",outcome="abandoned"} 0
credential_broker_requests_total{configuration="default",outcome="credentials"} 2
credential_broker_requests_total{configuration="default",outcome="failed"} 0
credential_broker_requests_total{configuration="default",outcome="invalid request"} 0
credential_broker_requests_total{configuration="default",outcome="no credentials"} 0
credential_broker_requests_total{configuration="default",outcome="no provider matches"} 1
`), "\n")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestWhatIsGoneIsForgotten(t *testing.T) {
	status := full()
	m := watching(func() agent.Status { return status })
	other := status.Configurations[1].Name()
	observe := func() {
		m.Observe(agent.Observation{Configuration: other, Outcome: broker.OutcomeCredentials})
		m.ObserveCall(agent.Call{Configuration: other, Event: cache.Event{Provider: "ecr"}})
		m.ObserveCall(agent.Call{Configuration: "default", Event: cache.Event{Provider: "never-asked"}})
	}
	observe()
	before := scraped(t, m)
	for _, word := range []string{other, `provider="never-asked"`} {
		if len(without(slices.Clone(before), word)) == len(before) {
			t.Errorf("there is no %s", word)
		}
	}
	status = full()
	status.Configurations = status.Configurations[:1]
	status.Configurations[0].Providers = status.Configurations[0].Providers[:1]
	for _, when := range []string{"at once", "when a last request has ended afterwards"} {
		after := scraped(t, m)
		for _, word := range []string{other, `provider="never-asked"`} {
			if len(without(slices.Clone(after), word)) != len(after) {
				t.Errorf("%s: %s is still there", when, word)
			}
		}
		observe()
	}
}

func TestNamesAreByPrometheusConventions(t *testing.T) {
	m := watching(full)
	m.Observe(agent.Observation{Configuration: "default", Outcome: broker.OutcomeCredentials})
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range problems {
		t.Errorf("%s: %s", problem.Metric, problem.Text)
	}
	ours, goes, process := 0, 0, 0
	for _, family := range families {
		switch name, _, _ := strings.Cut(family.GetName(), "_"); name {
		case "credential":
			ours++
		case "go":
			goes++
		case "process":
			process++
		}
	}
	if ours < 20 || goes == 0 || process == 0 {
		t.Errorf("%d metrics of ours, %d of Go's, %d of the process", ours, goes, process)
	}
}
