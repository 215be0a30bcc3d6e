//go:build linux

package node

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Scenario 4: pods come one after another, each with an image of its own that has to be asked for, while something happens to the broker. What a pod may suffer is what it would suffer natively, where a provider that crashes is a
// failed pull that the kubelet tries again.

const (
	rounds     = 3 // of each stream: something happens in each
	podsARound = 4
)

// source is a credential provider of the kubelet's, slow enough to be hit while it works: natively by itself, else behind the backend exec.
const source = `#!/bin/sh
cat >/dev/null
sleep 1
echo '{"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderResponse", "cacheKeyType": "Image", "cacheDuration": "0s", "auth": {"%s": {"username": "robot", "password": "right"}}}'
`

// Directories that the broker writes to: in its own view of the machine, each on a disk of its own, a small one.
const privateDirs = "/run/credential-backends"

type streams struct {
	*Node
	registry *Registry
	source   string
	agent    *Process
	t        testing.TB // whose end the agents do not outlive
}

func newStreams(t *testing.T, agent bool) *streams {
	t.Helper()
	n := New(t)
	n.OwnMounts = true
	s := &streams{Node: n, t: t, registry: n.Registry(t, map[string]string{"robot": "right"})}
	s.source = s.program(t, "opt/source/slow-provider", fmt.Sprintf(source, s.registry.Host))
	settings := fmt.Sprintf("log: {file: %s}\n", n.path("var-log/broker.log"))
	if agent {
		settings += fmt.Sprintf("agent: {socket: %s}\n", n.path("run/agent.sock"))
	}
	n.Configure(t, settings+fmt.Sprintf(`providers:
- name: slow
  backend: exec
  matchImages: [%q]
  config: {command: %s}
`, s.registry.Host, s.source))
	n.Enter(t)
	return s
}

// start starts the kubelet, on which the broker's directories are small disks of their own, and the agent, if there is one.
func (s *streams) start(t *testing.T, agent bool) {
	t.Helper()
	s.StartKubelet(t)
	for _, dir := range s.disks() {
		s.within(t, "mkdir", "-p", "-m", "700", dir)
		s.within(t, "mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=200,mode=700", "small", dir)
	}
	if agent {
		s.agent = s.StartAgent(t)
	}
}

func (s *streams) disks() []string { return []string{s.path("var-log"), s.path("run"), privateDirs} }

func (s *streams) within(t *testing.T, args ...string) string {
	t.Helper()
	output, err := s.Within(args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, output)
	}
	return string(output)
}

func (s *streams) program(t *testing.T, name, content string) string {
	t.Helper()
	file := s.Write(t, name, content)
	if err := os.Chmod(file, 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}

// working waits until the source works for somebody, and gives its processes.
func (s *streams) working(t *testing.T) []int {
	t.Helper()
	var found []int
	await(t, "a call to be under way", s.Kubelet, func() (bool, string) {
		for pid := range processes() {
			line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if err == nil && bytes.HasPrefix(line, []byte("/bin/sh\x00"+s.source)) {
				found = append(found, pid)
			}
		}
		return len(found) != 0, "none"
	})
	return found
}

// outcome is what a stream of pods suffered.
type outcome struct {
	runs, errors int      // of the plugin, by the kubelet's metrics
	failed       []string // pods of which a pull failed on the way
}

// run has pods come, has something happen in each round while they are pulled, and waits until all run.
func (s *streams) run(t *testing.T, name string, happen ...func()) outcome {
	t.Helper()
	var images []string
	for i := range rounds * podsARound {
		images = append(images, s.registry.Push(t, fmt.Sprintf("%s/app%d", name, i)))
	}
	runs, failures, log := s.metric(t, "duration_count"), s.metric(t, "errors_total"), len(s.Kubelet.Log())
	pod := func(i int) string { return fmt.Sprintf("%s-%d", name, i) }
	for round := range rounds {
		for i := round * podsARound; i < (round+1)*podsARound; i++ {
			s.StaticPod(t, pod(i), images[i])
		}
		s.working(t)
		if round < len(happen) {
			happen[round]()
		}
	}
	for i := range images {
		s.Running(t, "default", pod(i))
	}
	o := outcome{runs: s.metric(t, "duration_count") - runs, errors: s.metric(t, "errors_total") - failures}
	said := false
	for line := range strings.Lines(s.Kubelet.Log()[log:]) {
		if m := regexp.MustCompile(`ErrImagePull.* pod="default/([a-z0-9-]*)-` + Name + `"`).FindStringSubmatch(line); len(m) == 2 && !slices.Contains(o.failed, m[1]) {
			o.failed = append(o.failed, m[1])
		}
		if said = strings.Contains(line, `"Failed to provide credentials for image"`) || said && strings.HasPrefix(line, "\t"); said { // what the plugin said follows, indented
			t.Logf("the kubelet: %s", strings.TrimSpace(line))
		}
	}
	t.Logf("%s: %d pods run; the kubelet ran the plugin %d times, of which %d failed; pods with a failed pull on the way: %d %v", name, len(images), o.runs, o.errors, len(o.failed), o.failed)
	return o
}

// metric is the sum of one of the kubelet's about its plugins.
func (s *streams) metric(t *testing.T, name string) int {
	t.Helper()
	sum := 0
	for line := range strings.Lines(s.Metrics(t)) {
		var value int
		if !strings.HasPrefix(line, "kubelet_credential_provider_plugin_"+name+"{") {
			continue
		} else if _, err := fmt.Sscan(line[strings.LastIndex(line, " ")+1:], &value); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		sum += value
	}
	return sum
}

// unharmed fails the test if a pull failed on the way.
func (o outcome) unharmed(t *testing.T) {
	t.Helper()
	if o.errors != 0 || len(o.failed) != 0 {
		t.Errorf("%d failures of the plugin and failed pulls of %v, want none", o.errors, o.failed)
	}
	if o.runs < rounds*podsARound {
		t.Errorf("the plugin ran %d times for %d images", o.runs, rounds*podsARound)
	}
}

// crashed fails the test if more came of it than one failed call, and one failed pull, for each process that was killed.
func (o outcome) crashed(t *testing.T, killed int) {
	t.Helper()
	if len(o.failed) > killed || o.errors > killed {
		t.Errorf("%d failures of the plugin, and failed pulls of %v, where %d processes were killed", o.errors, o.failed, killed)
	}
	t.Logf("of %d processes killed came %d failures of the plugin, and %d pods with a failed pull", killed, o.errors, len(o.failed))
}

// killer kills what works for the calls that are under way, and counts what it killed. Natively that is the provider; else the backend. A source whose backend was killed works on for nobody.
func (s *streams) killer(t *testing.T, killed *int, whom func(source int) int) func() {
	return func() {
		var victims []int
		await(t, "something at work that can be killed", s.Kubelet, func() (bool, string) {
			sources := s.working(t)
			for _, pid := range sources {
				if victim := whom(pid); victim > 1 && !slices.Contains(victims, victim) {
					victims = append(victims, victim)
				}
			}
			return len(victims) != 0, fmt.Sprintf("sources %v, which work for nobody", sources)
		})
		for _, victim := range victims {
			if unix.Kill(victim, unix.SIGKILL) == nil {
				*killed++
				t.Logf("killed process %d while it worked", victim)
			}
		}
	}
}

func itself(source int) int { return source }

// backend is the process of the backend that has the source work; there may be one between them.
func (s *streams) backend(source int) (found int) {
	backends, parents := running(s.Libexec+"/backends"), processes()
	for pid := source; pid > 1; pid = parents[pid] {
		if slices.Contains(backends, pid) {
			found = pid
		}
	}
	return found
}

// fill leaves no room on the broker's disks, neither for a byte nor for a file.
func (s *streams) fill(t *testing.T) {
	t.Helper()
	for _, dir := range s.disks() {
		output := s.within(t, "sh", "-c", `cd "$1"; cat /dev/zero >filling 2>/dev/null; i=0; while touch filling-$i 2>/dev/null; do i=$((i+1)); done; df --output=avail,iavail . | tail -1`, "fill", dir)
		if !slices.Equal(strings.Fields(output), []string{"0", "0"}) {
			t.Fatalf("%s is not full: %s", dir, output)
		}
	}
	t.Logf("no room in %s", strings.Join(s.disks(), ", "))
}

func (s *streams) empty(t *testing.T) {
	t.Helper()
	for _, dir := range s.disks() {
		s.within(t, "sh", "-c", `rm -f "$1"/filling*`, "empty", dir)
	}
}

// release builds broker and backend as those of another release.
func (s *streams) release(t *testing.T, version string) (dir string) {
	t.Helper()
	dir = s.path("releases", version)
	command := exec.Command("go", "build", "-trimpath", "-tags", "grpcnotrace", "-buildvcs=false", "-ldflags", "-X main.version="+version, "-o", dir+"/", "./cmd/credential-broker", "./cmd/credential-backend-exec")
	command.Dir, command.Env = filepath.Join(sourceDir(), "../.."), append(os.Environ(), "CGO_ENABLED=0")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if output, err := command.CombinedOutput(); err != nil {
		t.Fatalf("building release %s: %v\n%s", version, err, output)
	}
	return dir
}

// upgrade puts a release in the place of the one that is there, file by file, as dpkg does.
func (s *streams) upgrade(t *testing.T, release string) {
	t.Helper()
	for program, dir := range map[string]string{"credential-backend-exec": s.Libexec + "/backends", "credential-broker": s.Libexec} {
		if err := install(filepath.Join(release, program), dir); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("installed %s", strings.TrimSpace(s.Broker(t, "version")))
}

// What a crash costs without a broker, to compare with.
func TestStandaloneANativeProviderThatIsKilledCostsAPullThatIsTriedAgain(t *testing.T) {
	s := newStreams(t, false)
	s.Providers, s.BinDir = s.Write(t, "etc/kubernetes/native.yaml", fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- {name: %s, apiVersion: credentialprovider.kubelet.k8s.io/v1, matchImages: [%q], defaultCacheDuration: 0s}
`, filepath.Base(s.source), s.registry.Host)), filepath.Dir(s.source)
	s.start(t, false)
	killed := 0
	kill := s.killer(t, &killed, itself)
	o := s.run(t, "native", kill, kill)
	o.crashed(t, killed)
	if o.errors == 0 || len(o.failed) == 0 {
		t.Error("no pull failed: it was not hit, and shows nothing")
	}
}

func TestStandaloneAStreamOfPodsRunsWhateverHappensToTheBroker(t *testing.T) {
	s := newStreams(t, false)
	s.start(t, false)
	t.Run("quiet", func(t *testing.T) { s.run(t, "quiet").unharmed(t) })
	t.Run("crash", s.crash)
	t.Run("full", func(t *testing.T) {
		s.run(t, "full", func() { s.fill(t) }, func() {}, func() { s.empty(t) }).unharmed(t)
	})
	t.Run("upgrade", func(t *testing.T) {
		first, second := s.release(t, "9.9.1"), s.release(t, "9.9.2")
		s.run(t, "upgrade", func() { s.upgrade(t, first) }, func() { s.upgrade(t, second) }).unharmed(t)
	})
}

func (s *streams) crash(t *testing.T) {
	killed := 0
	kill := s.killer(t, &killed, s.backend)
	s.run(t, "crash", kill, kill).crashed(t, killed)
}

func TestStandaloneAStreamOfPodsRunsWhateverHappensToTheAgent(t *testing.T) {
	s := newStreams(t, true)
	s.start(t, true)
	t.Run("quiet", func(t *testing.T) {
		s.run(t, "quiet").unharmed(t)
		if status, err := s.AgentStatus(); err != nil || status.Requests < rounds*podsARound {
			t.Errorf("the agent has served %d requests, %v", status.Requests, err)
		}
	})
	t.Run("crash", s.crash)
	t.Run("sigkill", s.agentKilled)
	t.Run("full", s.agentOnAFullDisk)
	t.Run("upgrade", s.agentSucceeded)
}

func (s *streams) agentKilled(t *testing.T) {
	s.run(t, "sigkill", func() {
		s.agent.kill()
		t.Logf("killed the agent, process %d; none is there", s.agent.PID())
	}, func() {
		s.restartAgent(t)
	}, func() {
		s.restartAgent(t)
	}).unharmed(t)
	if log := s.within(t, "cat", s.path("var-log/broker.log")); !strings.Contains(log, "the agent was not used") {
		t.Errorf("no pull noticed that the agent was killed: the kubelet's program says nothing of it:\n%s", tail(log))
	}
}

// restartAgent has another agent serve; whatever agent is there is killed.
func (s *streams) restartAgent(t *testing.T) {
	t.Helper()
	s.agent.kill()
	t.Log("killed what was left of the agent, and started another")
	s.agent = s.StartAgent(s.t)
}

// agentOnAFullDisk kills the agent and starts it where there is no room for its socket, nor for a backend's: what the agent leaves is room for a directory and nothing in it.
func (s *streams) agentOnAFullDisk(t *testing.T) {
	s.run(t, "full", func() { s.fill(t) }, func() {
		s.agent.kill()
		s.fill(t) // the room that it leaves
		var err error
		if s.agent, err = s.startProcess("agent", s.Within(filepath.Join(s.Libexec, "credential-broker"), "--config", s.Config, "agent")); err != nil {
			t.Fatal(err)
		}
		t.Log("killed the agent and started another one on a full disk")
	}, func() { s.empty(t) }).unharmed(t)
	s.restartAgent(t)
}

func (s *streams) agentSucceeded(t *testing.T) {
	first, second := s.release(t, "9.9.1"), s.release(t, "9.9.2")
	succeeded := func(release, version string) func() {
		return func() {
			before, err := s.AgentStatus()
			if err != nil {
				t.Fatal(err)
			}
			s.upgrade(t, release)
			await(t, "the agent's successor", nil, func() (bool, string) {
				now, err := s.AgentStatus()
				return err == nil && now.PID != before.PID && now.Version == version, fmt.Sprint(now, err)
			})
			t.Logf("agent %s, process %d, was succeeded by %s", before.Version, before.PID, version)
		}
	}
	s.run(t, "upgrade", succeeded(first, "9.9.1"), succeeded(second, "9.9.2")).unharmed(t)
}
