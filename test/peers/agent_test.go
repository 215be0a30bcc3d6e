//go:build linux

package peers

import (
	"bytes"
	"maps"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credential-broker/credential-broker/broker/agent/fast"
	"github.com/credential-broker/credential-broker/test/cloud"
	"github.com/credential-broker/credential-broker/test/peers/internal/program"
)

// startAgent starts an agent in the scene, with the configuration at a path, and gives its socket. It ends with the test.
func (s *scene) startAgent(config string) (socket string) {
	s.Helper()
	socket, _ = s.startAgentUntil(config)
	return socket
}

// startAgentUntil is startAgent for an agent that stop ends sooner.
func (s *scene) startAgentUntil(config string) (socket string, stop func()) {
	s.Helper()
	socket = filepath.Join(s.TempDir(), "agent.sock")
	if err := syscall.Chmod(filepath.Dir(socket), 0o700); err != nil {
		s.Fatal(err)
	}
	cmd := exec.Command(path(program.Broker), "agent", "--config", config, "--agent", socket)
	cmd.Env = slices.Concat([]string{"HOME=" + s.home, "TMPDIR=" + s.TempDir()}, s.Environ(), s.env)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		s.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			s.Errorf("the agent ended with %v:\n%s", err, said.String())
		}
	})
	s.Cleanup(stop)
	deadline, tick := time.After(30*time.Second), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for {
		_, reason, _ := fast.Ask(socket, fast.Request{Operation: fast.Status})
		if reason == "" {
			return socket, stop
		}
		select {
		case <-tick.C:
		case <-deadline:
			s.Fatalf("the agent does not serve: %s", reason)
		}
	}
}

// answered is what the kubelet gets, save what differs between any two answers.
type answered struct {
	Code          int
	Said          string // without the broker's log, which an agent has to itself
	Keys          []string
	Usernames     []string
	PulledAs      []string // by the registry's judgement of each password
	CacheKeyType  string
	CacheDuration string // in the comparison's words
}

// remembered is what an agent says of a refusal besides: it does not ask again at once.
var remembered = regexp.MustCompile(` \(asked [0-9.a-z]+ ago; asked again in [0-9.a-z]+\)`)

var logLine = regexp.MustCompile(`(?m)^time=.*\n`)

// AWS's answers have an identifier each.
var requestID = regexp.MustCompile(`RequestID: [0-9a-zA-Z-]+|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)

func (s *scene) answered(r raw) answered {
	s.Helper()
	a := answered{Code: r.code, Said: requestID.ReplaceAllString(logLine.ReplaceAllString(r.said, ""), "ID"), CacheKeyType: r.keyType}
	if r.keyType != "" {
		a.CacheDuration = s.duration(r.duration)
	}
	for _, key := range slices.Sorted(maps.Keys(r.auth)) {
		a.Keys, a.Usernames = append(a.Keys, key), append(a.Usernames, r.auth[key].Username)
		a.PulledAs = append(a.PulledAs, s.pull(r.auth[key]))
	}
	return a
}

// calls are those that the cloud was asked since the last time.
func (s *scene) calls() (n int) {
	for _, r := range s.Requests() {
		if r.Service == "ecr" && r.Operation == "GetAuthorizationToken" {
			n++
		}
	}
	s.ForgetRequests()
	return n
}

// TestTheAnswerThroughAnAgentIsTheOneWithout asks without an agent, through one that knows nothing, and again. What the kubelet gets is the same, save that a time that is left is less the later one asks.
func TestTheAnswerThroughAnAgentIsTheOneWithout(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		given func(*scene)
		// fails: nobody gets credentials.
		fails bool
	}{
		{name: "the node's keys", given: func(s *scene) { s.node(mayPull) }},
		{name: "the node's instance role", given: func(s *scene) { s.add(s.Instance(s.role("arn:aws:iam::" + account + ":role/node")).Environ()...) }},
		{name: "a pod's token", given: func(s *scene) { s.pod(nil); s.annotate(podRole) }},
		{name: "a node that may not", given: func(s *scene) { s.node() }, fails: true},
		{name: "a pod whose role trusts another", given: func(s *scene) {
			s.pod(map[string]any{"sub": "system:serviceaccount:shop:other"})
			s.annotate(podRole)
		}, fails: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			s.in(plain)
			c.given(s)
			// An agent bounds what the kubelet keeps to a minute unless it is told otherwise.
			config := s.brokerConfig(map[string]any{"maxCacheDuration": "12h"})
			ask := func() raw { return s.kubelet(s.run(s.request(), path(program.Broker), "--config", config)) }

			without := s.answered(ask())
			if (without.Code != 0) != c.fails {
				t.Fatalf("without an agent: %+v", without)
			}
			s.calls()
			socket := s.startAgent(config)
			s.add("CREDENTIAL_BROKER_AGENT=" + socket)
			first := ask()
			if diff := cmp.Diff(without, s.answered(first)); diff != "" {
				t.Errorf("the agent's first answer differs (-without +through it):\n%s", diff)
			}
			asked := s.calls()
			again := ask()
			if tells := remembered.MatchString(again.said); tells != c.fails {
				t.Errorf("the agent's second answer tells that it remembers a refusal: %t, want %t:\n%s", tells, c.fails, again.said)
			}
			again.said = remembered.ReplaceAllString(again.said, "")
			if diff := cmp.Diff(without, s.answered(again)); diff != "" {
				t.Errorf("the agent's second answer differs (-without +through it):\n%s", diff)
			}
			if c.fails {
				return
			}
			if n := s.calls(); asked != 1 || n != 0 {
				t.Errorf("%d calls for a token at first and %d for the same again, want 1 and 0", asked, n)
			}
			if diff := cmp.Diff(first.auth, again.auth); diff != "" {
				t.Error("what the agent holds is not what it gave before")
			}
			earlier, later := s.left(first), s.left(again)
			if later > earlier || earlier-later > time.Minute {
				t.Errorf("cacheDuration is %s at first and then %s, want it counted down", earlier, later)
			}
		})
	}
}

// left is a response's cacheDuration.
func (s *scene) left(r raw) time.Duration {
	s.Helper()
	if r.duration == nil {
		s.Fatal("no cacheDuration")
	}
	d, err := time.ParseDuration(*r.duration)
	if err != nil {
		s.Fatal(err)
	}
	return d
}

// TestAnAgentGivesOnePodsAnswerToNoOther asks for two pods of two roles, one of which may not pull.
func TestAnAgentGivesOnePodsAnswerToNoOther(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.in(plain)
	s.pod(nil)
	s.annotate(podRole)
	allowed := s.token
	issued := s.AddIssuer(issuer + "/other")
	s.AddOIDCProvider(account, issuer+"/other", audience)
	const stranger = "arn:aws:iam::" + account + ":role/stranger"
	s.AddRole(cloud.Role{ARN: stranger, Trust: []cloud.Trust{{Federated: issuer + "/other", Audience: audience, Subject: subject}}})
	refused := issued.Token(map[string]any{
		"sub": subject, "aud": []string{audience},
		"kubernetes.io": map[string]any{"namespace": "shop", "serviceaccount": map[string]any{"name": "cart", "uid": "2"}},
	})
	config := s.brokerConfig(nil)
	socket := s.startAgent(config)
	s.add("CREDENTIAL_BROKER_AGENT=" + socket)
	for range 2 {
		for _, c := range []struct {
			token, role string
			code        int
		}{{allowed, podRole, 0}, {refused, stranger, 1}, {refused, podRole, 1}} {
			s.token = c.token
			s.annotate(c.role)
			r := s.kubelet(s.run(s.request(), path(program.Broker), "--config", config))
			if r.code != c.code {
				t.Errorf("exit status %d for a pod with role %s, want %d: %s", r.code, c.role, c.code, strings.TrimSpace(r.said))
			}
		}
	}
}
