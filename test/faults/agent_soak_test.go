//go:build linux

package faults

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/broker/agent/fast"
)

const accounts = 1000

// asks asks the agent in frames, as the exec plugin does, without a process for each request.
func (n *node) asks(image, token string) (passwords map[string]string, err error) {
	reply, reason, _ := fast.Ask(n.socket, fast.Request{Operation: fast.Resolve, Config: n.conf, Body: []byte(requestFor(image, token))})
	if reason != "" {
		return nil, fmt.Errorf("the agent does not answer: %s", reason)
	}
	return outcome{stdout: string(reply.Stdout), stderr: string(reply.Stderr), code: int(reply.Status)}.passwords()
}

// resident is how much memory of a process lies in RAM, files that it has mapped left out, in bytes.
func resident(t *testing.T, pid int) int {
	t.Helper()
	for line := range strings.Lines(string(must(os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))))) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			return must(strconv.Atoi(strings.Fields(rest)[0])) << 10
		}
	}
	t.Fatal("no RssAnon")
	return 0
}

// descriptors is how many files a process has open.
func descriptors(pid int) int {
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	return len(links)
}

// inParallel does something for each number below count, in eight goroutines.
func inParallel(count int, do func(i int)) {
	var next atomic.Int64
	var workers sync.WaitGroup
	for range 8 {
		workers.Go(func() {
			for i := int(next.Add(1)) - 1; i < count; i = int(next.Add(1)) - 1 {
				do(i)
			}
		})
	}
	workers.Wait()
}

func TestMemoryStaysFlatWhateverTokensCome(t *testing.T) {
	n := newNode(t)
	n.config(object{"log": object{"format": "json", "level": "error"}}, n.sees(n.whose("tokens"), "Token"), n.sees(n.whose("accounts", "WHOSE_SEES", "account", "WHOSE_KEYS", "registry.example"), "ServiceAccount"))
	a := n.start(command{})
	const life = 20 * time.Second
	tomorrow := time.Now().Add(24 * time.Hour)
	var soon time.Time // of a step
	var wrong atomic.Int64
	// A token serves its pod twice; then comes the account's next one. Every second one ends while the test runs.
	ask := func(i int) {
		number, serial := i/2%accounts, i/2/accounts
		ends := tomorrow
		if serial%2 == 1 {
			ends = soon
		}
		token := tokenOf(number, serial, ends)
		got, err := n.asks(anImage, token)
		if err == nil && (got[anImage] != "|"+anImage+"|"+whoseBy(token) || got["registry.example"] != "|"+anImage+"|"+account(number)) {
			err = fmt.Errorf("%s has the answer of somebody else: %v", account(number), got)
		}
		if err != nil && wrong.Add(1) <= 5 {
			t.Error(err)
		}
	}
	pid := a.cmd.Process.Pid
	const early, whole, step = 25_000, 100_000, 5_000
	var before, after []int // the least of several looks: what is garbage comes and goes
	done := 0
	for done < whole {
		first := done
		soon = time.Now().Add(life)
		inParallel(step, func(i int) { ask(first + i) })
		done += step
		switch {
		case done > early-3*step && done <= early:
			before = append(before, resident(t, pid))
		case done > whole-3*step:
			after = append(after, resident(t, pid))
		}
	}
	s, _ := n.statusOf()
	t.Logf("resident before %v, after %v; %s", before, after, s)
	if least, most := leastOf(before), leastOf(after); most > least+least/10+4<<20 {
		t.Errorf("%d bytes are resident after %d requests, and %d after %d", least, early, most, whole)
	}
	if open := descriptors(pid); open > 40 {
		t.Errorf("%d descriptors are open", open)
	}
	// What was made for a token goes when that ends.
	left := func() (mortal int) {
		s, _ := n.status()
		for _, held := range s.Configurations[0].Answers {
			if strings.HasPrefix(held.Identity, "token ") && held.Good.Before(soon.Add(time.Minute)) {
				mortal++
			}
		}
		return mortal
	}
	if left() == 0 {
		t.Error("no answer for a token that ends was ever held")
	}
	if !until(life+grace, func() bool { return left() == 0 }) {
		t.Errorf("%d answers for tokens that have ended are still held", left())
	}
	a.end()
	n.nothingLeft()
}

// statusOf is what the agent says of how much it holds, in few words.
func (n *node) statusOf() (string, bool) {
	s, ok := n.status()
	if !ok || len(s.Configurations) == 0 {
		return "it says no status", false
	}
	return fmt.Sprintf("%d entries in %d bytes", s.Configurations[0].Entries, s.Configurations[0].Bytes), true
}

func leastOf(numbers []int) int {
	least := numbers[0]
	for _, n := range numbers {
		least = min(least, n)
	}
	return least
}

// TestSoak has an agent that was built with the race detector serve a mixture of everything that happens: tokens that come and go, configurations that change, backends that are killed, answers that are
// forgotten, a source that is down. SOAK is for how long ("10m"); without it, as much happens as some 20 seconds hold.
func TestSoak(t *testing.T) {
	last, err := time.ParseDuration(os.Getenv("SOAK"))
	if !raceDetector && err != nil {
		t.Log("only where the race detector is there: make race, make soak")
		return
	}
	dir := t.TempDir()
	for program, target := range map[string]string{"credential-broker": "../../cmd/credential-broker", "misbehave": "./misbehave"} {
		if err := buildOne(filepath.Join(dir, program), target, "CGO_ENABLED=1", "-race"); err != nil {
			t.Fatal(err)
		}
	}
	random := seeded(t)
	n := newNode(t)
	n.install(filepath.Join(dir, "credential-broker"), n.program)
	n.install(filepath.Join(dir, "misbehave"), filepath.Join(n.backends, "credential-backend-misbehave"))
	races := "GORACE=log_path=" + filepath.Join(n.dir, "race")
	outage := filepath.Join(n.dir, "outage")
	var g generations
	change := func() {
		of := strconv.FormatInt(g.placed.Add(1), 10)
		whose := func(name string, pairs ...string) object {
			return n.whose(name, append(pairs, "WHOSE_GENERATION", of, "GORACE", strings.TrimPrefix(races, "GORACE="))...)
		}
		config := object{"apiVersion": "credential-broker.io/v1alpha1", "kind": "BrokerConfig", "timeout": "58s", "log": object{"format": "json", "level": "warn"}, "providers": []object{
			whose("node", "WHOSE_SCOPE", "registry", "WHOSE_KEYS", "registry.example/team"), n.sees(whose("tokens", "WHOSE_LIFE", "45s"), "Token"),
			n.sees(whose("accounts", "WHOSE_SEES", "account", "WHOSE_KEYS", "registry.example"), "ServiceAccount"),
			n.with(whose("flaky", "WHOSE_OUTAGE", outage, "WHOSE_LIFE", "3s"), object{"matchImages": []string{"flaky.example"}, "timeout": "5s"}),
		}}
		n.replace(n.conf, must(json.Marshal(config)), 0o600)
		g.settled.Store(g.placed.Load())
	}
	change()
	a := n.start(command{env: []string{races}})
	pid := a.cmd.Process.Pid

	var down, failed atomic.Int64 // outages begun, and requests that failed of one
	ask := func() error {
		if rand.IntN(10) == 0 {
			image := "flaky.example/app-" + strconv.Itoa(rand.IntN(20))
			got, err := n.asks(image, "")
			switch {
			case err != nil && strings.Contains(err.Error(), "the source is down"):
				failed.Add(1)
			case err != nil:
				return err
			case len(got) != 1 || !strings.HasSuffix(got[image], "|"+image+"|node"):
				return fmt.Errorf("%s: the answer is %v", image, got)
			}
			return nil
		}
		number, image := rand.IntN(accounts), "registry.example/team/app-"+strconv.Itoa(rand.IntN(5))
		token := tokenOf(number, rand.IntN(50), time.Now().Add(time.Minute+time.Duration(rand.IntN(5))*15*time.Second).Truncate(15*time.Second))
		earliest := g.settled.Load()
		got, err := n.asks(image, token)
		if err != nil {
			return err
		}
		latest := g.placed.Load()
		of, err := strconv.ParseInt(generationOf(got[image]), 10, 64)
		generation := strconv.FormatInt(of, 10)
		for key, want := range map[string]string{
			image: generation + "|" + image + "|" + whoseBy(token), "registry.example/team": generation + "|registry.example|node",
			"registry.example": generation + "|" + image + "|" + account(number),
		} {
			// What serves an account may have been asked for with another of its images' requests, never with another account's.
			if err != nil || got[key] != want || len(got) != 3 {
				return fmt.Errorf("%s of %s: the answer is %v, want %q for %s", image, account(number), got, want, key)
			}
		}
		if of < earliest || of > latest {
			return fmt.Errorf("generation %d answers, where it was one from %d to %d", of, earliest, latest)
		}
		return nil
	}
	l := n.loaded(16, func(int, int) (outcome, error) { return outcome{}, ask() })
	// Descriptors are counted, and not memory: the race detector's own grows with every goroutine there ever was. That is TestMemoryStaysFlatWhateverTokensCome's.
	open := 0
	ends, changes, kills := time.Now().Add(last), 0, 0
	const steps = 24
	for step := 0; step < steps || time.Now().Before(ends); step++ {
		l.more(100)
		switch step % 6 {
		case 0, 3:
			change()
			changes++
		case 1:
			if s, ok := n.status(); ok {
				if pids := s.backendPIDs(); len(pids) > 0 {
					_ = syscall.Kill(pids[random.IntN(len(pids))], syscall.SIGKILL)
					kills++
				}
			}
		case 2:
			body := must(json.Marshal([]object{{"all": true}, {"provider": "tokens"}, {"image": "registry.example/team/app-1"}}[random.IntN(3)]))
			if _, reason, _ := fast.Ask(n.socket, fast.Request{Operation: fast.Forget, Body: body}); reason != "" {
				t.Errorf("forget: %s", reason)
			}
		case 4:
			down.Add(1)
			n.write("outage", "", 0o600)
		case 5:
			_ = os.Remove(outage)
		}
		if step == 11 {
			open = descriptors(pid)
		}
		if a.isOver() || l.failures.Load() > 20 {
			break
		}
	}
	l.stop()
	t.Logf("%d requests, %d configurations, %d backends killed, %d outages of which %d requests failed", l.answered(), changes, kills, down.Load(), failed.Load())
	if now := descriptors(pid); now > open+32 {
		t.Errorf("%d descriptors were open early on, and %d are", open, now)
	}
	a.end()
	for path, report := range contents(n.dir) {
		if strings.HasPrefix(filepath.Base(path), "race.") {
			t.Errorf("the race detector reports:\n%s", tail(report, 8000))
		}
	}
	n.nothingLeft()
}
