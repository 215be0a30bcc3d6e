//go:build unix

package conformance

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credential-broker/credential-broker/backends"
	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

// The test program is also the backends that are judged, and the host that is killed: what it is, one of these variables says.
const (
	asBackend = "TEST_BACKEND"
	asHost    = "TEST_HOST"
)

func TestMain(m *testing.M) {
	switch mode := os.Getenv(asBackend); {
	case mode == "served":
		serveGood(served{})
	case mode == "lends":
		serveGood(lender{})
	case mode == "a child":
		childMain()
	case mode != "":
		b := newBackend()
		if mode == "has no features" {
			b.features = nil
		}
		for _, broken := range breakages {
			if broken.name == mode {
				broken.change(b)
			}
		}
		b.serve()
	case os.Getenv(asHost) != "":
		if err := Host(context.Background(), os.Stdin, os.Stdout); err != nil {
			os.Exit(1)
		}
	default:
		os.Exit(m.Run())
	}
}

// settings are what serveGood decodes; the backend made by hand has the same.
type settings struct {
	URL     string   `json:"url"`
	Retries int      `json:"retries"`
	Tags    []string `json:"tags"`
}

type served struct{}

func (served) Credentials(_ context.Context, r backends.Request) (backends.Response, error) {
	if r.Image.Host() != "registry.example:5000" {
		return backends.Response{}, nil
	}
	return backends.Response{Scope: backends.ScopeRegistry, Credentials: []backends.Credential{{Key: r.Image.Host(), Username: goodUser, Password: goodPassword}}}, nil
}

// lender has all that a backend may have.
type lender struct{ served }

func (l lender) Credentials(ctx context.Context, r backends.Request) (backends.Response, error) {
	defer backends.Span(ctx, "look up")()
	response, err := l.served.Credentials(ctx, r)
	response.Lease = goodLease
	return response, err
}

func (l lender) Renew(ctx context.Context, r backends.Request, _ backends.Secret) (backends.Response, error) {
	return l.Credentials(ctx, r)
}
func (lender) Revoke(context.Context, backends.Secret) error { return nil }
func (lender) Close(context.Context) error                   { return nil }

// serveGood is a backend made with package backends.
func serveGood(backend backends.Backend) {
	backends.Serve("good", "1.2.3", func(context.Context, settings) (backends.Backend, error) { return backend, nil })
}

var errInvalidArgument = status.Error(codes.InvalidArgument, "no path")

// serveOn serves as go-plugin does where there are no unix sockets.
func (b *backend) serveOn(network, address string) {
	listener, err := net.Listen(network, address)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1))
		b.lifeline()
	}()
	server := grpc.NewServer()
	backendv1.RegisterBackendServer(server, b)
	fmt.Printf("1|1|%s|%s|grpc\n", network, listener.Addr())
	_ = server.Serve(listener)
	os.Exit(0)
}

// executable gives the test program the name of a backend.
func executable(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "credential-backend-good")
	if err := os.Symlink(self, link); err != nil {
		t.Fatal(err)
	}
	return link
}

// optionsFor have all that the rules want to know.
func optionsFor(t *testing.T, mode string) Options {
	t.Helper()
	elsewhere, err := os.MkdirTemp("/tmp", "cbc-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(elsewhere) })
	const secret = "a-secret-of-the-settings"
	return Options{
		Executable: executable(t),
		Config:     settings{URL: "https://registry.example:5000", Retries: 3, Tags: []string{"a"}},
		Image:      goodImage,
		Env:        []string{asBackend + "=" + mode, "GORACE=atexit_sleep_ms=0" /* no sleep before the end where the race detector is built in */, "TEST_ELSEWHERE=" + elsewhere, "TEST_SECRET=" + secret},
		Token:      "header.claims-of-the-token.signature",
		Secrets:    []backends.Secret{secret},
		Host: func(ctx context.Context) (*exec.Cmd, error) {
			cmd := exec.CommandContext(ctx, executable(t))
			cmd.Env = append(os.Environ(), asHost+"=1")
			return cmd, nil
		},
	}
}

func allRules() []string {
	var names []string
	for _, rule := range Rules() {
		names = append(names, rule.Name)
	}
	return names
}

// judge gives the results of these rules; of all, if none is named.
func judge(t *testing.T, o Options, rules ...string) []Result {
	t.Helper()
	suite, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer suite.Close()
	var results []Result
	for _, rule := range Rules() {
		if len(rules) == 0 || slices.Contains(rules, rule.Name) {
			results = append(results, suite.Judge(t.Context(), rule))
		}
	}
	return results
}

func TestGoodBackendsKeepEveryRule(t *testing.T) {
	for _, c := range []struct {
		name, mode string
		without    []string // rules about what it does not have
	}{
		{"made with package backends", "served", []string{"check", "renew", "revoke", "close"}},
		{"made with package backends, and all that it offers", "lends", []string{"check"}},
		{"made by hand with go-plugin", "good", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for _, r := range judge(t, optionsFor(t, c.mode)) {
				switch {
				case slices.Contains(c.without, r.Rule): // see TestABackendMayHaveNothingOfAFeature
				case r.Outcome == NotRun && slices.Contains([]string{"renew", "revoke", "close"}, r.Rule):
					t.Errorf("%s was not run: %s", r.Rule, r.Reason)
				case r.Outcome == NotRun:
					t.Logf("NOT RUN: %s: %s", r.Rule, r.Reason)
				case r.Outcome != Passed || len(r.Notes) > 0:
					t.Errorf("%s: %s: %s %q", r.Rule, r.Outcome, r.Seen, r.Notes)
				}
			}
		})
	}
}

// Of several breakages of one rule, the first is judged by all rules. -full does that for all of them, which takes minutes.
var full = flag.Bool("full", false, "judge every broken backend by every rule")

func TestABrokenBackendBreaksItsRuleAndNoOther(t *testing.T) {
	seen := map[string]bool{}
	for _, broken := range breakages {
		rules := allRules()
		if seen[broken.rule] && !*full {
			rules = []string{"handshake", "settings", "credentials", broken.rule}
		}
		seen[broken.rule] = true
		t.Run(broken.rule+"/"+broken.name, func(t *testing.T) {
			t.Parallel()
			o := optionsFor(t, broken.name)
			if broken.hangs {
				o.Timeout = 10 * time.Second // long enough to start on a busy machine
			}
			for _, r := range judge(t, o, rules...) {
				switch {
				case r.Rule != broken.rule && r.Outcome == Failed:
					t.Errorf("broke %s too: %s", r.Rule, r.Seen)
				case r.Rule != broken.rule:
				case r.Outcome == NotRun:
					t.Logf("NOT RUN: %s: %s", r.Rule, r.Reason)
				case r.Outcome != Failed:
					t.Errorf("%s was not noticed", r.Rule)
				case !strings.Contains(r.Seen, broken.seen):
					t.Errorf("the suite says\n%s\nwant it to say\n%s", r.Seen, broken.seen)
				case r.Mend == "":
					t.Error("the suite does not say how to mend it")
				}
			}
		})
	}
}

func TestEveryRuleHasABreakage(t *testing.T) {
	for _, rule := range Rules() {
		if !slices.ContainsFunc(breakages, func(b breakage) bool { return b.rule == rule.Name }) {
			t.Errorf("no breakage shows that %s is noticed", rule.Name)
		}
	}
}

func TestWhatTheSuiteReportsHoldsNoSecret(t *testing.T) {
	o := optionsFor(t, "reports the token")
	for _, r := range judge(t, o) {
		for _, secret := range append(o.Secrets, o.Token, goodPassword, "claims-of-the-token") {
			if text := fmt.Sprintf("%+v", r); strings.Contains(text, string(secret)) {
				t.Errorf("%s: a secret in %s", r.Rule, text)
			}
		}
	}
}

func TestARuleThatCannotBeJudgedIsNotPassed(t *testing.T) {
	o := optionsFor(t, "good")
	o.Image, o.Host, o.Config = "", nil, nil
	want := map[string]string{
		"settings-wrong-type": "the Config has no fields",
		"credentials":         "no Image was given", "keys": "no Image was given", "expiry": "no Image was given", "scope": "no Image was given", "size": "no Image was given",
		"host-killed": "Options.Host is not set",
	}
	for _, r := range judge(t, o) {
		switch {
		case r.Outcome == Failed:
			t.Errorf("%s failed: %s", r.Rule, r.Seen)
		case want[r.Rule] != "" && (r.Outcome != NotRun || !strings.Contains(r.Reason, want[r.Rule])):
			t.Errorf("%s: %s because %q, want it not run because %q", r.Rule, r.Outcome, r.Reason, want[r.Rule])
		}
	}
}

func TestABackendMayHaveNothingOfAFeature(t *testing.T) {
	for _, r := range judge(t, optionsFor(t, "served"), "check", "renew", "revoke", "close") {
		if r.Outcome != NotRun || r.Reason != "the backend answers UNIMPLEMENTED: it has nothing to "+r.Rule {
			t.Errorf("%s: %s %s%s", r.Rule, r.Outcome, r.Reason, r.Seen)
		}
	}
	for _, r := range judge(t, optionsFor(t, "has no features"), "check", "renew", "revoke", "close") {
		if r.Outcome != NotRun || r.Reason != "the backend does not name FEATURE_"+strings.ToUpper(r.Rule) {
			t.Errorf("%s: %s %s%s", r.Rule, r.Outcome, r.Reason, r.Seen)
		}
	}
}

func TestAFileThatOthersCanWriteIsNoFaultOfTheBackends(t *testing.T) {
	o := optionsFor(t, "good")
	if err := os.Chmod(filepath.Dir(o.Executable), 0o777); err != nil {
		t.Fatal(err)
	}
	for _, r := range judge(t, o, "host-killed", "stop") {
		if r.Outcome != NotRun || !strings.Contains(r.Reason, "others could change") {
			t.Errorf("%s: %s %s%s", r.Rule, r.Outcome, r.Reason, r.Seen)
		}
	}
}

func TestUnusableOptionsAreRefused(t *testing.T) {
	for name, o := range map[string]Options{
		"no such file":     {Executable: "/no/such/backend"},
		"a directory":      {Executable: t.TempDir()},
		"config is a list": {Executable: executable(t), Config: []string{"a"}},
		"config is null":   {Executable: executable(t), Config: []byte("null")},
		"config is a func": {Executable: executable(t), Config: func() {}},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
