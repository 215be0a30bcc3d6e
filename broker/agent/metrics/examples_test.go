package metrics

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/agent"
	"github.com/credential-broker/credential-broker/broker/agent/cache"
)

const (
	root      = "../../.."
	alerts    = root + "/examples/prometheus/alerts.yaml"
	dashboard = root + "/examples/grafana/dashboard.json"
	document  = root + "/docs/metrics.md"
)

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// exported are all of our metrics that there can be, by name.
func exported(t *testing.T) map[string]*dto.MetricFamily {
	t.Helper()
	m := watching(full)
	m.Observe(agent.Observation{Configuration: "default", Outcome: broker.OutcomeCredentials})
	m.ObserveCall(agent.Call{Configuration: "default", Event: cache.Event{Provider: "ecr"}})
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*dto.MetricFamily{}
	for _, family := range families {
		if name := family.GetName(); strings.HasPrefix(name, namespace+"_") || strings.HasPrefix(name, "process_") {
			all[name] = family
		}
	}
	return all
}

var metricName = regexp.MustCompile(`(?:^|[^\w:])((?:credential_broker|process)_\w+)`)

func TestTheExamplesNameMetricsThatThereAre(t *testing.T) {
	there := exported(t)
	for _, path := range []string{alerts, strings.Replace(alerts, ".yaml", ".test.yaml", 1), dashboard} {
		named := 0
		for _, match := range metricName.FindAllStringSubmatch(read(t, path), -1) {
			named++
			name := match[1]
			family := there[name]
			if family == nil {
				for _, suffix := range []string{"_bucket", "_sum", "_count"} {
					if of := there[strings.TrimSuffix(name, suffix)]; of.GetType() == dto.MetricType_HISTOGRAM {
						family = of
					}
				}
			}
			if family == nil {
				t.Errorf("%s: there is no metric %s", path, name)
			}
		}
		if named < 5 {
			t.Errorf("%s: only %d metrics were found", path, named)
		}
	}
}

func TestTheExamplesNameLabelsAndValuesThatThereAre(t *testing.T) {
	values := map[string]map[string]bool{labelOutcome: {string(agent.OutcomeUnserved): true}, labelFrom: {}, labelResult: {}, labelProvider: nil, labelBackend: nil, labelConfiguration: nil}
	for _, family := range exported(t) {
		for _, metric := range family.GetMetric() {
			for _, label := range metric.GetLabel() {
				if known := values[label.GetName()]; known != nil {
					known[label.GetValue()] = true
				}
			}
		}
	}
	matcher := regexp.MustCompile(`\b(outcome|from|result)\s*[!=]=?~?\s*"([^"]*)"`)
	for _, path := range []string{alerts, dashboard} {
		for _, match := range matcher.FindAllStringSubmatch(strings.ReplaceAll(read(t, path), `\"`, `"`), -1) {
			for value := range strings.SplitSeq(match[2], "|") {
				if !values[match[1]][value] {
					t.Errorf("%s: no metric has %s=%q", path, match[1], value)
				}
			}
		}
	}
	grouping := regexp.MustCompile(`\b(?:by|without) \(([^)]*)\)`)
	for _, match := range grouping.FindAllStringSubmatch(read(t, dashboard), -1) {
		for label := range strings.SplitSeq(match[1], ", ") {
			if _, known := values[label]; !known && label != "le" {
				t.Errorf("%s: no metric has the label %s", dashboard, label)
			}
		}
	}
}

func TestTheDocumentListsAllMetrics(t *testing.T) {
	row := regexp.MustCompile("(?m)^\\| `(credential_broker_\\w+)` \\| (\\w+) \\| (.*?) \\| (.*) \\|$")
	listed := map[string][]string{}
	for _, match := range row.FindAllStringSubmatch(read(t, document), -1) {
		listed[match[1]] = match[2:]
	}
	there := exported(t)
	for name, family := range there {
		if strings.HasPrefix(name, "process_") {
			continue
		}
		in, ok := listed[name]
		if !ok {
			t.Errorf("%s does not list %s", document, name)
			continue
		}
		if want := strings.ToLower(family.GetType().String()); in[0] != want {
			t.Errorf("%s: %s is a %s, not a %s", document, name, want, in[0])
		}
		var labels []string
		for _, label := range family.GetMetric()[0].GetLabel() {
			labels = append(labels, "`"+label.GetName()+"`")
		}
		got := strings.Split(in[1], ", ")
		if in[1] == "none" {
			got = nil
		}
		slices.Sort(got)
		slices.Sort(labels)
		if !slices.Equal(got, labels) {
			t.Errorf("%s: %s has the labels %s, not %s", document, name, labels, got)
		}
	}
	for name := range listed {
		if there[name] == nil {
			t.Errorf("%s lists %s, which there is not", document, name)
		}
	}
}

// promtool finds the program, or says why what needs it is not run.
func promtool(t *testing.T) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), root+"/tools/prometheus.sh", "promtool").Output()
	if err != nil {
		t.Log("NOT RUN: there is no promtool (Debian's package prometheus) to check rules and expressions with")
		return ""
	}
	return strings.TrimSpace(string(out))
}

func TestTheAlertsFireWhenTheyShould(t *testing.T) {
	tool := promtool(t)
	if tool == "" {
		return
	}
	for _, args := range [][]string{{"check", "rules", "alerts.yaml"}, {"test", "rules", "alerts.test.yaml"}} {
		cmd := exec.CommandContext(t.Context(), tool, args...)
		cmd.Dir = filepath.Dir(alerts)
		if out, err := cmd.CombinedOutput(); err != nil || bytes.Contains(out, []byte("FAILED")) {
			t.Errorf("promtool %s: %v\n%s", args, err, out)
		}
	}
}

func TestEveryAlertIsTestedAndLeadsToARunbook(t *testing.T) {
	rules, tests := read(t, alerts), read(t, strings.Replace(alerts, ".yaml", ".test.yaml", 1))
	names := regexp.MustCompile(`(?m)^  - alert: (\w+)$`).FindAllStringSubmatch(rules, -1)
	if runbooks := strings.Count(rules, "runbook_url: https://github.com/credential-broker/credential-broker/blob/main/docs/agent.md#"); runbooks != len(names) || len(names) < 6 {
		t.Errorf("%d alerts, %d runbooks", len(names), runbooks)
	}
	for _, name := range names {
		if !regexp.MustCompile(`alertname: ` + name[1] + `\n    exp_alerts:\n`).MatchString(tests) {
			t.Errorf("no test has the alert %s fire", name[1])
		}
		if !strings.Contains(read(t, document), "`"+name[1]+"`") {
			t.Errorf("%s does not list the alert %s", document, name[1])
		}
	}
}

func TestTheDashboardsExpressionsAreInOrder(t *testing.T) {
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, dashboard)), &board); err != nil {
		t.Fatal(err)
	}
	tool := promtool(t)
	if tool == "" {
		return
	}
	// As rules, which promtool reads as Prometheus does.
	rules := "groups:\n- name: dashboard\n  rules:\n"
	n := 0
	for _, panel := range board.Panels {
		for _, target := range panel.Targets {
			n++
			rules += fmt.Sprintf("  - {record: 'panel_%d', expr: %q}\n", n, strings.ReplaceAll(target.Expr, "$__rate_interval", "5m"))
		}
	}
	if n < 20 {
		t.Errorf("only %d expressions were found", n)
	}
	path := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(path, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), tool, "check", "rules", path).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
