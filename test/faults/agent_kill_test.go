//go:build linux

package faults

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/broker/agent/fast"
)

// atOnce is how many exec plugins ask at the same time where the machine is to be busy.
const atOnce = 64

// seeded is a source of random moments, which FAULTS_SEED brings back.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("FAULTS_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("FAULTS_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// times is how often something is tried: FAULTS_TIMES as often as usual.
func times(usual int) int {
	if n, err := strconv.Atoi(os.Getenv("FAULTS_TIMES")); err == nil {
		return n * usual
	}
	return usual
}

// moment waits for a random number of requests to end: a measure of time that a busy machine stretches as it stretches what goes on within.
func (l *load) moment(random *rand.Rand, atMost int64) {
	l.Helper()
	l.more(random.Int64N(atMost))
}

// podsAndNode writes a configuration of two providers, one for the node and one for each pod, which says in each password what that depends on. The
// pairs are environment variables of both backends.
func (n *node) podsAndNode(more object, environment ...string) {
	environment = append(environment, "WHOSE_GENERATION", "1")
	n.config(more, n.whose("node", append(environment, "WHOSE_KEYS", "registry.example registry.example/team")...), n.sees(n.whose("pods", environment...), "Token"))
}

// podsAndNodeAnswer is what podsAndNode makes of a request.
func podsAndNodeAnswer(image, token string) map[string]string {
	forNode := "1|" + image + "|node"
	return map[string]string{"registry.example": forNode, "registry.example/team": forNode, image: "1|" + image + "|" + whoseBy(token)}
}

// pullsAsPods makes requests of one pod for each worker. Of two images one was never asked for before.
func (n *node) pullsAsPods(worker, turn int) (outcome, error) {
	image, token := "registry.example/team/app", tokenOf(worker, 0, time.Now().Add(24*time.Hour).Truncate(12*time.Hour))
	if turn%2 == 1 {
		image = fmt.Sprintf("registry.example/team/app-%d-%d", worker, turn)
	}
	o := n.pull(image, token)
	return o, o.is(podsAndNodeAnswer(image, token))
}

func TestTheAgentIsKilledAtAnyMoment(t *testing.T) {
	random := seeded(t)
	t.Run("and somebody starts it again", func(t *testing.T) {
		n := newNode(t)
		n.podsAndNode(nil)
		l := n.loaded(atOnce, n.pullsAsPods)
		for range times(3) {
			a := n.start(command{})
			l.moment(random, 4*atOnce)
			a.kill()
			l.moment(random, atOnce/4)
		}
		l.stop()
		t.Logf("%d requests answered by an agent, %d without", l.warm.Load(), l.cold.Load())
		if l.warm.Load() == 0 || l.cold.Load() == 0 {
			t.Error("the moments do not reach both sides")
		}
		n.nothingLeft()
	})
	t.Run("and the next request starts it again", func(t *testing.T) {
		n := newNode(t)
		n.podsAndNode(object{"agent": object{"socket": n.socket, "autoStart": true, "idleTimeout": "1m"}})
		l := n.loaded(atOnce, n.pullsAsPods)
		seen := map[int]bool{}
		for len(seen) < times(3) {
			var s agentStatus
			if !until(grace, func() (ok bool) { s, ok = n.status(); return ok && !seen[s.PID] }) {
				t.Fatal("nobody starts an agent")
			}
			seen[s.PID] = true
			l.moment(random, 4*atOnce)
			_ = syscall.Kill(s.PID, syscall.SIGKILL)
		}
		l.stop()
		t.Logf("%d requests answered by an agent, %d without", l.warm.Load(), l.cold.Load())
		if l.warm.Load() == 0 {
			t.Error("no agent answered any of them")
		}
		if s, ok := n.status(); ok {
			_ = syscall.Kill(s.PID, syscall.SIGTERM)
		}
		n.nothingLeft()
	})
}

func TestTheAgentsBackendsAreKilledAtAnyMoment(t *testing.T) {
	random := seeded(t)
	n := newNode(t)
	n.podsAndNode(nil, "WHOSE_LIFE", "0") // each request is a call
	a := n.start(command{})
	l := n.loaded(atOnce, n.pullsAsPods)
	killed := 0
	for killed < times(10) {
		l.moment(random, atOnce)
		s, ok := n.status()
		if !ok {
			t.Fatal("the agent does not answer")
		}
		pids := s.backendPIDs()
		if len(pids) == 0 {
			continue
		}
		_ = syscall.Kill(pids[random.IntN(len(pids))], syscall.SIGKILL)
		killed++
	}
	l.stop()
	s, _ := n.status()
	restarts := 0
	for _, c := range s.Configurations {
		for _, p := range c.Providers {
			for _, process := range p.Processes {
				restarts += process.Restarts
			}
		}
	}
	t.Logf("%d requests answered by the agent, %d without; %d backends killed, %d started again", l.warm.Load(), l.cold.Load(), killed, restarts)
	if l.cold.Load() > 0 {
		t.Errorf("%d requests found the agent wanting: a backend's end is its own business", l.cold.Load())
	}
	if restarts < killed/2 {
		t.Errorf("%d backends were killed, and %d started again", killed, restarts)
	}
	a.end()
	n.nothingLeft()
}

func TestAnAgentThatHangsCostsItsSilenceAndNothingElse(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.podsAndNode(nil)
	a := n.start(command{})
	if o := n.pull(anImage, ""); o.isCold() || o.is(podsAndNodeAnswer(anImage, "")) != nil {
		t.Fatalf("the agent does not answer: %+v", o)
	}
	a.freeze()
	for range 3 {
		o := n.pull(anImage, "")
		if err := o.is(podsAndNodeAnswer(anImage, "")); err != nil {
			t.Error(err)
		}
		if !o.isCold() || !strings.Contains(o.stderr, "is silent") {
			t.Errorf("nothing is said about the agent's silence:\n%s", o.stderr)
		}
		if o.took < 2*time.Second || o.took > 2*time.Second+grace {
			t.Errorf("it took %s, want two seconds and the work itself", o.took)
		}
	}
	_ = a.cmd.Process.Signal(syscall.SIGCONT)
	if o := n.pull(anImage, ""); o.isCold() {
		t.Errorf("it goes on, and is not asked: %s", o.stderr)
	}
	a.end()
	n.nothingLeft()
}

func TestNobodyElseIsServed(t *testing.T) {
	t.Parallel()
	if !isRoot() {
		notRun(t, "another user's requests to an agent: only root can be two users")
		return
	}
	n := newNode(t)
	n.podsAndNode(nil)
	for _, path := range []string{n.dir + "/config.json", n.dir + "/backends", n.dir} {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	a := n.start(command{})
	ask := fast.AppendRequest(nil, fast.Request{Operation: fast.Resolve, Config: n.dir + "/config.json", Body: []byte(requestFor(anImage, ""))})
	dial := func(uid uint32) string {
		cmd := exec.Command(misbehavePath(), "dial", n.socket)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		cmd.Stdin = bytes.NewReader(ask)
		return finish(cmd).stdout
	}
	cold := func(what string) {
		t.Helper()
		before, _ := n.status()
		cmd := exec.Command(n.program, "--config", n.dir+"/config.json")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/", "TMPDIR=/tmp", n.mark, "CREDENTIAL_BROKER_AGENT=" + n.socket}
		cmd.Stdin = strings.NewReader(requestFor(anImage, ""))
		o := finish(cmd)
		if err := o.is(podsAndNodeAnswer(anImage, "")); err != nil || !o.isCold() {
			t.Errorf("%s: another user's request is answered by root's agent, or not at all: %v\n%s", what, err, o.stderr)
		}
		if after, _ := n.status(); after.Requests != before.Requests {
			t.Errorf("%s: the agent served it", what)
		}
	}
	cold("the directory lets nobody in")
	if heard := dial(0); !strings.Contains(heard, "1|"+anImage) {
		t.Fatalf("not even the agent's own user is heard: %q", heard)
	}
	for _, path := range []string{n.dir + "/run", n.socket} { // somebody has opened what the agent keeps closed
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if heard := dial(nobody); heard != "" {
		t.Errorf("another user is told %q", heard)
	}
	if !strings.Contains(n.logged(), "somebody else's request was not heard") {
		t.Error("the log says nothing about it")
	}
	if err := os.Chmod(n.dir+"/run", 0o755); err != nil {
		t.Fatal(err)
	}
	cold("the socket lets everybody in")
	a.end()
	n.nothingLeft()
}
