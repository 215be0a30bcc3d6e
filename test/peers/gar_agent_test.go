//go:build linux

package peers

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/test/cloud"
	"github.com/credential-broker/credential-broker/test/peers/internal/program"
)

// puller is whose pull it is: a pod's, by its token and its service account's annotations, or, without them, the node's.
type puller struct {
	token       string
	annotations map[string]string
}

// asker asks an agent for an image, until ctx ends. It may be called by several at once.
type asker func(ctx context.Context, image string, by puller) (login, error)

// throughAgent starts an agent for the scene's provider, and gives what asks it.
func (s *scene) throughAgent() asker {
	s.Helper()
	ask, _ := s.throughAgentUntil()
	return ask
}

// throughAgentUntil is throughAgent for an agent that stop ends before the test does.
func (s *scene) throughAgentUntil() (ask asker, stop func()) {
	s.Helper()
	config := s.brokerConfig(nil)
	socket, stop := s.startAgentUntil(config)
	s.add("CREDENTIAL_BROKER_AGENT=" + socket)
	return func(ctx context.Context, image string, by puller) (login, error) {
		asking := *s
		asking.image, asking.token, asking.annotations = image, by.token, by.annotations
		r := asking.kubelet(asking.runUntil(ctx, asking.request(), path(program.Broker), "--config", config))
		host, _, _ := strings.Cut(image, "/")
		switch {
		case r.code != 0 || len(r.auth) != 1:
			return login{}, fmt.Errorf("%s: exit status %d, %d credentials: %s", image, r.code, len(r.auth), r.said)
		case strings.Contains(r.said, "the agent was not used"):
			return login{}, fmt.Errorf("%s: the agent was not asked: %s", image, r.said)
		}
		return r.auth[host], nil
	}, stop
}

// atOnce runs so many at the same time, and tells of each one's failure.
func (s *scene) atOnce(number int, do func(i int) error) {
	s.Helper()
	var all sync.WaitGroup
	for i := range number {
		all.Go(func() {
			if err := do(i); err != nil {
				s.Errorf("request %d: %v", i, err)
			}
		})
	}
	all.Wait()
}

// asked counts the requests to one of the cloud's services that ended with a status.
func (s *scene) asked(service, operation string, status int) (n int) {
	for _, r := range s.Requests() {
		if r.Service == service && r.Operation == operation && r.Status == status {
			n++
		}
	}
	return n
}

// TestFiftyImagesOfOneProjectAreOneTokenRequest starts as many pods at once as a node that comes up.
func TestFiftyImagesOfOneProjectAreOneTokenRequest(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, service, operation string
		given                    func(*scene)
	}{
		{"the machine", "google-metadata", "token", func(s *scene) { s.machine(garNode) }},
		{"a key file", "google-oauth", "jwt-bearer", func(s *scene) { s.adc(s.ServiceAccountKeyFile(garPuller)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newGoogleScene(t)
			s.inGoogle(garHost, garProject)
			c.given(s)
			ask := s.throughAgent()
			s.atOnce(50, func(i int) error {
				image := fmt.Sprintf("%s/%s/repo/app-%d", garHost, garProject, i)
				l, err := ask(t.Context(), image, puller{})
				if err != nil {
					return err
				}
				return s.Pull(image, l.Username, l.Password)
			})
			if n := s.asked(c.service, c.operation, 200); n != 1 {
				t.Errorf("%d requests for a token, want 1", n)
			}
		})
	}
}

// TestTwoPodsIdentitiesNeverMix has two pods of one cluster, and the node, ask for the same images at once, again and again: each gets its own identity's token.
func TestTwoPodsIdentitiesNeverMix(t *testing.T) {
	t.Parallel()
	s := newGoogleScene(t)
	s.inGoogle(garHost, garProject)
	s.machine(garNode)
	s.gkePod(map[string]string{pullAnnotation: "true"})
	cluster := s.AddGKECluster(garCluster)
	type who struct {
		puller
		principal string
	}
	everybody := []who{{principal: garNode}}
	for _, name := range []string{"cart", "till"} {
		token := cluster.Token(map[string]any{
			"aud": []string{garCluster.Pool()}, "sub": "system:serviceaccount:shop:" + name,
			"kubernetes.io": map[string]any{"namespace": "shop", "serviceaccount": map[string]any{"name": name, "uid": "uid of " + name}},
		})
		everybody = append(everybody, who{puller{token, s.annotations}, garCluster.Principal("shop", name)})
	}
	ask := s.throughAgent()
	s.atOnce(60, func(i int) error {
		asks := everybody[i%len(everybody)]
		image := fmt.Sprintf("%s/%s/repo/app-%d", garHost, garProject, i/len(everybody)%4)
		l, err := ask(t.Context(), image, asks.puller)
		if err != nil {
			return err
		}
		if principal, _, _, ok := s.AccessTokenOf(l.Password); !ok || principal != asks.principal {
			return fmt.Errorf("a token of %q (alive: %t), want one of %s", principal, ok, asks.principal)
		}
		return nil
	})
	// One each, so that it was the agent that had to keep them apart.
	if n, m := s.asked("google-sts", "token", 200), s.asked("google-metadata", "token", 200); n != 2 || m != 1 {
		t.Errorf("%d tokens for pods and %d for the node were asked for, want 2 and 1", n, m)
	}
}

// TestTheAgentServesOnWithoutAMetadataServer takes the metadata server away after the first answer.
func TestTheAgentServesOnWithoutAMetadataServer(t *testing.T) {
	t.Parallel()
	s := newGoogleScene(t)
	s.inGoogle(garHost, garProject)
	s.machine(garNode)
	ask := s.throughAgent()
	first, err := ask(t.Context(), s.image, puller{})
	if err != nil {
		t.Fatal(err)
	}
	s.Fail(cloud.Fault{Service: "google-metadata", Reset: true})
	for i := range 5 {
		image := fmt.Sprintf("%s/%s/repo/app-%d", garHost, garProject, i)
		l, err := ask(t.Context(), image, puller{})
		if err != nil {
			t.Fatal(err)
		}
		if l != first || s.Pull(image, l.Username, l.Password) != nil {
			t.Errorf("%s: another answer than before, or one that is of no use", image)
		}
	}
	if r := s.run("", path(program.Broker), "forget", "--all"); r.code != 0 {
		t.Fatalf("forget: %s", r.said)
	}
	if _, err := ask(t.Context(), s.image, puller{}); err == nil {
		t.Error("there is an answer from nowhere: the metadata server is not away, and this shows nothing")
	}
}

// TestTheAgentRenewsATokenBeforeItEnds lets Google fail when a token is to be renewed, and then succeed, while nobody asks the agent for anything. The token lives for four minutes, since the agent
// asks ahead of need only for one that has a minute and a half at least, and the backend gives one out for half of its life: this takes about two and a half minutes, and would not notice being slow.
func TestTheAgentRenewsATokenBeforeItEnds(t *testing.T) {
	t.Parallel()
	s := newGoogleScene(t)
	s.inGoogle(garHost, garProject)
	s.AddWorkloadPool(garPool)
	token := func(life time.Duration) string {
		return s.AddIssuer(issuer).Token(map[string]any{
			"aud": "https:" + garPool.Audience(), "sub": "node-7", "iat": s.Now().Unix(), "exp": s.Now().Add(life).Unix(),
		})
	}
	// Google's token lives no longer than the one that it is exchanged for.
	file := s.write("token", token(4*time.Minute), 0o600)
	s.settings = map[string]any{
		"workloadIdentityProvider": strings.TrimPrefix(garPool.Audience(), "//iam.googleapis.com/"),
		"webIdentity":              map[string]any{"audience": "https:" + garPool.Audience(), "file": map[string]any{"path": file}},
	}
	ask := s.throughAgent()
	answer := func() login {
		t.Helper()
		l, err := ask(t.Context(), s.image, puller{})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Pull(s.image, l.Username, l.Password); err != nil {
			t.Fatal(err)
		}
		return l
	}
	wait := func(what string, happened func() bool) {
		t.Helper()
		deadline, tick := time.After(5*time.Minute), time.NewTicker(100*time.Millisecond)
		defer tick.Stop()
		for !happened() {
			select {
			case <-tick.C:
			case <-deadline:
				t.Fatalf("%s: not seen; %+v", what, s.Requests())
			}
		}
	}
	first := answer()
	s.Fail(cloud.Fault{Service: "google-sts", Status: 503})
	if err := os.WriteFile(file, []byte(token(time.Hour)), 0o600); err != nil {
		t.Fatal(err)
	}
	wait("an attempt to renew", func() bool { return s.asked("google-sts", "token", 503) > 0 })
	if answer() != first {
		t.Error("another answer while Google is away")
	}
	s.Heal()
	wait("the renewal", func() bool { return s.asked("google-sts", "token", 200) > 1 })
	// It is at the cloud that the renewal was seen: the agent has it soon.
	wait("the new token", func() bool { return answer() != first })
	if n := s.asked("google-sts", "token", 200); n != 2 {
		t.Errorf("%d tokens were asked for, want 2", n)
	}
}
