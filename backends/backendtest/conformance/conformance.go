// Package conformance is the rules that every backend has to keep, and what judges a backend's built executable by them: as a process, over the real protocol, through
// go-plugin. It knows no test framework: package backendtest runs it under `go test`, and `credential-broker conformance` runs it by hand. Only package backendtest's API
// comes with a promise of compatibility; rules may be added here at any time, since they only say what the protocol already demands.
package conformance

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/credential-broker/credential-broker/broker/plugin"
	"github.com/credential-broker/credential-broker/proto/secret"
	"github.com/credential-broker/credential-broker/proto/trust"
)

// Options say which backend to judge, and what it is good for.
type Options struct {
	// Executable is the backend's built file. A relative path starts at the working directory.
	Executable string
	// Config is the provider's `config` that the backend is given: anything that encoding/json makes one object of, or the object itself as json.RawMessage or []byte. Nil
	// is "{}". The backend has to accept it.
	Config any
	// Image is one that the backend, so configured, has credentials for: "host[:port]/path", without tag. Empty: the rules about answers are not run.
	Image string
	// OtherImage is one that it has no credentials for. Empty: one of a host that nobody has.
	OtherImage string
	// Env is set for the backend, "NAME=value" each, as a provider's `env`. Of this process's own environment it gets what a broker hands on to every backend: PATH, HOME
	// and the like.
	Env []string
	// Token is the service account token that is sent along with requests. Empty: none, save where one is planted to see whether it comes out again.
	Token secret.Secret
	// Annotations are the service account's, sent along with requests.
	Annotations map[string]string
	// Secrets are strings that must not be found in anything that the backend prints or reports: what Config, Env and the files they name hold. The token and the
	// passwords in the backend's answers are looked for without being named here.
	Secrets []secret.Secret
	// Timeout bounds a single call of the backend. Default 15s, as a provider's `timeout`.
	Timeout time.Duration
	// Host makes the command of another process that calls Host of this package, with nothing set on its streams. Nil: what needs a host that can be killed is not run. Package
	// backendtest and the command credential-broker set it.
	Host func(context.Context) (*exec.Cmd, error)
}

// Rule is one thing that is demanded of a backend.
type Rule struct {
	// Name is in lower case, with hyphens.
	Name string
	// Demand is one sentence.
	Demand string

	judge func(context.Context, *trial) error
}

// Rules are all rules, in the order in which they should be judged: each takes for granted what those before it demand.
func Rules() []Rule {
	return slices.Concat(startRules(), settingsRules(), answerRules(), longLifeRules(), secretsRules(), loadRules(), endRules())
}

// Outcome is what came of judging a backend by a rule.
type Outcome string

// The outcomes.
const (
	Passed Outcome = "passed"
	Failed Outcome = "failed"
	// NotRun: there was no way to judge; Result.Reason says why. It is no pass.
	NotRun Outcome = "not run"
)

// Result is a Rule's.
type Result struct {
	Rule    string
	Demand  string
	Outcome Outcome
	// Seen is what the backend did, where it failed.
	Seen string
	// Mend is what its author can do about it.
	Mend string
	// Reason is why the rule was not run.
	Reason string
	// Notes are what is allowed but probably not meant, and what the rule could not look at.
	Notes []string
	Took  time.Duration
}

// Suite judges one backend. It is for one goroutine.
type Suite struct {
	options    Options
	executable string
	settings   []byte
	fields     map[string]json.RawMessage // of settings
	dir        string
	marker     string // an environment variable by which the processes started here are known
	secrets    secrets
	failed     map[string]bool // rules
	answers    map[string]*answer
}

// ruleTimeout bounds the judging by one rule, so that nothing hangs whatever a backend does.
const ruleTimeout = 3 * time.Minute

// New makes a Suite. The error says which option is unusable. The caller must Close it.
func New(o Options) (*Suite, error) {
	executable, err := filepath.Abs(o.Executable)
	var info os.FileInfo
	if err == nil {
		info, err = os.Stat(executable)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("the backend to judge: %w: build it first", err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("the backend to judge: %s is no file: name the built program", executable)
	}
	o.OtherImage = cmp.Or(o.OtherImage, "nobody.conformance.invalid/nobody/nothing") // RFC 2606: never a host
	o.Timeout = cmp.Or(o.Timeout, 15*time.Second)
	s := &Suite{options: o, executable: executable, marker: markerVariable + "=" + rand.Text(), failed: map[string]bool{}, answers: map[string]*answer{}}
	if s.settings, err = settingsOf(o.Config); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(s.settings, &s.fields); err != nil || s.fields == nil {
		return nil, errors.New("the backend's config is no JSON object")
	}
	s.secrets.addToken(string(o.Token))
	for i, value := range o.Secrets {
		s.secrets.add(fmt.Sprintf("secret %d of those given", i+1), string(value))
	}
	if s.dir, err = shortTempDir(); err != nil {
		return nil, fmt.Errorf("make a directory for sockets: %w", err)
	}
	return s, nil
}

// Close removes what the suite made.
func (s *Suite) Close() { _ = os.RemoveAll(s.dir) }

func settingsOf(config any) ([]byte, error) {
	switch c := config.(type) {
	case nil:
		return []byte("{}"), nil
	case []byte:
		return c, nil
	}
	settings, err := json.Marshal(config)
	if err != nil {
		return nil, fmt.Errorf("encode the backend's config: %w", err)
	}
	return settings, nil
}

// shortTempDir has a name that leaves room for a socket's, which TMPDIR and a test's directory need not.
func shortTempDir() (string, error) {
	if info, err := os.Stat("/tmp"); err == nil && info.IsDir() {
		if dir, err := os.MkdirTemp("/tmp", "cbc-"); err == nil {
			return dir, nil
		}
	}
	return os.MkdirTemp("", "cbc-")
}

// Judge judges the backend by one rule. Everything that was started for it has ended when Judge returns.
func (s *Suite) Judge(ctx context.Context, rule Rule) Result {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, ruleTimeout)
	defer cancel()
	t := &trial{Suite: s, rule: rule.Name}
	err := rule.judge(ctx, t)
	t.end()

	result := Result{Rule: rule.Name, Demand: rule.Demand, Outcome: Passed}
	var reason notRun
	var failure *failure
	switch {
	case err == nil:
	case errors.As(err, &reason):
		result.Outcome, result.Reason = NotRun, s.secrets.mask(string(reason))
	case errors.As(err, &failure):
		result.Outcome, result.Seen, result.Mend = Failed, s.secrets.mask(failure.seen), failure.mend
	default:
		result.Outcome, result.Seen = Failed, s.secrets.mask(err.Error())
	}
	for _, note := range t.notes {
		result.Notes = append(result.Notes, s.secrets.mask(note))
	}
	s.failed[rule.Name] = result.Outcome == Failed
	result.Took = time.Since(began)
	return result
}

// trial is the judging by one rule.
type trial struct {
	*Suite
	rule      string
	notes     []string
	processes []*process
}

func (t *trial) note(format string, args ...any) {
	t.notes = append(t.notes, fmt.Sprintf(format, args...))
}

// failure is a rule that was broken.
type failure struct{ seen, mend string }

func (f *failure) Error() string { return f.seen }

// fail says what was seen; mend is what to do about it.
func fail(mend, seen string, args ...any) error { return &failure{fmt.Sprintf(seen, args...), mend} }

// notRun is why a rule could not be judged.
type notRun string

func (n notRun) Error() string { return string(n) }

// unless gives a failure of what an earlier rule demands: once is enough to report it.
func (t *trial) unless(rule string, err error) error {
	if err != nil && t.rule != rule && t.failed[rule] {
		return notRun("the backend breaks the rule " + rule)
	}
	return err
}

// needs is for a rule that means nothing while another one is broken.
func (t *trial) needs(rules ...string) error {
	for _, rule := range rules {
		if t.failed[rule] {
			return notRun("the backend breaks the rule " + rule)
		}
	}
	return nil
}

// call gives a single call its time.
func (t *trial) call(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, t.options.Timeout)
}

// spec is the backend as the broker starts it.
func (s *Suite) spec() plugin.Spec {
	return plugin.Spec{Provider: provider, Path: s.executable, Env: s.environment(), Settings: s.settings}
}

func (s *Suite) environment() []string { return append(slices.Clone(s.options.Env), s.marker) }

// startable says why the broker's own code does not start the file where it lies, which is no fault of the backend's.
func (t *trial) startable() error {
	if err := t.needs("handshake", "output", "settings"); err != nil {
		return err
	}
	if err := trust.Executable(t.executable, nil); err != nil {
		return notRun("the broker does not start a file that others could change: " + err.Error())
	}
	return nil
}

// name is what the backend's file is called, without the prefix; empty if it does not have that.
func (s *Suite) name() string {
	name, _ := strings.CutPrefix(strings.TrimSuffix(filepath.Base(s.executable), ".exe"), plugin.Prefix)
	if name == strings.TrimSuffix(filepath.Base(s.executable), ".exe") {
		return ""
	}
	return name
}

const (
	// provider is the provider's name that the backend is told.
	provider = "conformance"
	// markerVariable is in the environment of everything that is started here.
	markerVariable = "BACKEND_CONFORMANCE_RUN"
)
