// Package backendtest is the conformance suite for backends. A backend's test builds its executable and hands it to Run; what is judged is the built program, as a process,
// over the real protocol, through go-plugin:
//
//	func TestConformance(t *testing.T) {
//		executable := filepath.Join(t.TempDir(), "credential-backend-myregistry")
//		if out, err := exec.Command("go", "build", "-o", executable, ".").CombinedOutput(); err != nil {
//			t.Fatalf("%v\n%s", err, out)
//		}
//		backendtest.Run(t, backendtest.Options{
//			Executable: executable,
//			Config:     map[string]any{"url": server.URL},
//			Image:      "registry.example/team/app",
//			Secrets:    []backends.Secret{"what the test server gives out"},
//		})
//	}
//
// Without Go, `credential-broker conformance EXECUTABLE` does the same. Compatibility is promised for this package: Run and the fields of Options stay. Rules may be added, as they
// only say what the protocol demands already. To judge a backend in the event of a broker's death, the test program starts itself once more as such a broker: importing
// this package makes it look for the variable CREDENTIAL_BACKENDTEST_HOST when it starts. So import it in tests only.
package backendtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/backends/backendtest/conformance"
)

// Options say which backend to judge, and what it is good for. Only Executable is needed always; without Image, what is said about answers is not run. Host is set
// by Run.
type Options = conformance.Options

// hostVariable makes a test program the broker that one of the rules kills.
const hostVariable = "CREDENTIAL_BACKENDTEST_HOST"

func init() { //nolint:gochecknoinits // a stranger's test program has no other place from which it could become the broker
	if os.Getenv(hostVariable) == "" {
		return
	}
	if err := conformance.Host(context.Background(), os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Run judges a backend by every rule, each in a subtest with the rule's name: `go test -run '/^secrets$'` runs one alone. A rule that could not be judged, for want of an
// Image or on a system that does not let it be judged, is logged as "NOT RUN" with the reason; the last line of the log counts them.
func Run(t *testing.T, o Options) {
	t.Helper()
	if o.Host == nil {
		o.Host = host
	}
	suite, err := conformance.New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer suite.Close()
	count := map[conformance.Outcome]int{}
	for _, rule := range conformance.Rules() {
		t.Run(rule.Name, func(t *testing.T) {
			result := suite.Judge(t.Context(), rule)
			count[result.Outcome]++
			for _, note := range result.Notes {
				t.Log("note: " + note)
			}
			switch result.Outcome {
			case conformance.Passed:
			case conformance.Failed:
				t.Error(explain(result))
			case conformance.NotRun:
				t.Logf("NOT RUN: %s: %s", result.Rule, result.Reason)
			}
		})
	}
	t.Logf("%s: %d rules passed, %d failed, %d not run", o.Executable, count[conformance.Passed], count[conformance.Failed], count[conformance.NotRun])
}

// explain says what is demanded, what was seen and how to mend it.
func explain(r conformance.Result) string {
	lines := []string{r.Demand, "  seen: " + r.Seen}
	if r.Mend != "" {
		lines = append(lines, "  mend: "+r.Mend)
	}
	return strings.Join(append(lines, fmt.Sprintf("  after %s", r.Took.Round(time.Millisecond))), "\n")
}

// host makes the running test program a broker.
func host(ctx context.Context) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), hostVariable+"=1")
	return cmd, nil
}
