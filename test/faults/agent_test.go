//go:build linux

package faults

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/broker/agent/fast"
)

// node is a bench with an agent. Its programs are copies of its own: they can be replaced, and its processes are told from others' by their command lines, which, unlike the environment, everybody may read.
type node struct {
	*bench
	program, backends string
	// plugin is the program that the kubelet starts, mostly the same.
	plugin            string
	conf, socket, log string
}

func newNode(t *testing.T) *node {
	t.Helper()
	b := newBench(t)
	n := &node{
		bench: b, program: filepath.Join(b.dir, "credential-broker"), backends: filepath.Join(b.dir, "backends"),
		plugin: filepath.Join(b.dir, "credential-broker"), conf: filepath.Join(b.dir, "config.json"), socket: filepath.Join(b.dir, "run", "agent.sock"), log: filepath.Join(b.dir, "agent.log"),
	}
	n.install(brokerPath(), n.program)
	n.install(misbehavePath(), filepath.Join(n.backends, "credential-backend-misbehave"))
	t.Cleanup(func() {
		for _, p := range n.ours() {
			_ = syscall.Kill(p.pid, syscall.SIGKILL)
		}
		if t.Failed() {
			t.Logf("the agent's log:\n%s", tail(n.logged(), 6000))
		}
	})
	return n
}

// install puts a copy of a program in its place at once, as a package manager does: with rename(2).
func (n *node) install(from, to string) {
	n.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		n.Fatal(err)
	}
	n.replace(to, data, 0o755)
}

// replace puts a file in a place where there may be one.
func (n *node) replace(path string, content []byte, mode os.FileMode) {
	n.Helper()
	name, err := filepath.Rel(n.dir, path)
	if err != nil {
		n.Fatal(err)
	}
	fresh := n.write(name+".new", string(content), mode)
	if err := os.Rename(fresh, path); err != nil {
		n.Fatal(err)
	}
}

// whose is a provider whose backend says in its passwords what they depend on; see misbehave/whose.go. The pairs are environment variables of its own.
func (n *node) whose(name string, pairs ...string) object {
	env := append([]string{"FAULT", "whose"}, pairs...)
	return n.with(n.misbehaves(name, "whose"), object{"env": n.environment(env...)})
}

// sees lets a provider see tokens; cacheType is Token or ServiceAccount.
func (n *node) sees(provider object, cacheType string) object {
	return n.with(provider, object{"tokenAttributes": object{"serviceAccountTokenAudience": "sts.example", "cacheType": cacheType, "requireServiceAccount": false}})
}

// whoseBy is how whose words a password for a token.
func whoseBy(token string) string {
	if token == "" {
		return "node"
	}
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:16])
}

// account is a service account's name, and tokenOf a token for it that ends at a time; serial tells one from another.
func account(number int) string { return fmt.Sprintf("system:serviceaccount:team:app-%d", number) }

func tokenOf(number, serial int, ends time.Time) string {
	part := func(v any) string { return base64.RawURLEncoding.EncodeToString(must(json.Marshal(v))) }
	name := fmt.Sprintf("app-%d", number)
	return part(object{"alg": "RS256"}) + "." + part(object{
		"aud": []string{"sts.example"}, "sub": account(number), "exp": ends.Unix(), "jti": serial,
		"kubernetes.io": object{"namespace": "team", "serviceaccount": object{"name": name, "uid": fmt.Sprintf("uid-%d", number)}},
	}) + "." + fmt.Sprintf("signature-%d-%d", number, serial)
}

// requestFor is the kubelet's request for an image.
func requestFor(image, token string) string {
	r := object{"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderRequest", "image": image}
	if token != "" {
		r["serviceAccountToken"] = token
	}
	return string(must(json.Marshal(r)))
}

// running is an agent's process.
type running struct {
	*node
	cmd   *exec.Cmd
	ended chan struct{} // closed when it has
}

// start starts an agent and waits until it serves. Shell commands in before run first in the same process.
func (n *node) start(c command) *running {
	n.Helper()
	c.args = append([]string{"agent", "--agent", n.socket, "--config", n.conf}, c.args...)
	cmd := n.as(n.program, c)
	return n.started(cmd)
}

func (n *node) started(cmd *exec.Cmd) *running {
	n.Helper()
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		n.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	cmd.Stdout, cmd.Stderr = log, log
	r := &running{node: n, cmd: cmd, ended: make(chan struct{})}
	if err := cmd.Start(); err != nil {
		n.Fatalf("start the agent: %v", err)
	}
	go func() { _ = cmd.Wait(); close(r.ended) }()
	n.Cleanup(func() { _ = cmd.Process.Kill(); <-r.ended })
	served := func() bool { s, ok := n.status(); return ok && s.PID == cmd.Process.Pid }
	if !until(grace, func() bool { return served() || r.isOver() }) || r.isOver() {
		n.Fatalf("the agent does not serve:\n%s", tail(n.logged(), 4000))
	}
	return r
}

func (r *running) isOver() bool {
	select {
	case <-r.ended:
		return true
	default:
		return false
	}
}

// kill ends it as the kernel does when memory runs out.
func (r *running) kill() {
	_ = r.cmd.Process.Kill()
	<-r.ended
}

// end asks it to end, and waits for that.
func (r *running) end() {
	r.Helper()
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-r.ended:
	case <-time.After(limit):
		r.Fatalf("the agent does not end on SIGTERM:\n%s", tail(r.logged(), 4000))
	}
	if !r.cmd.ProcessState.Success() {
		r.Errorf("SIGTERM: the agent ended with %v", r.cmd.ProcessState)
	}
}

// freeze stops it as a debugger does, until it is sent SIGCONT. The signal is delivered at once, and takes effect when each thread has seen it: until then a request may still be answered.
func (r *running) freeze() {
	r.Helper()
	_ = r.cmd.Process.Signal(syscall.SIGSTOP)
	stands := func() bool {
		states := threads(r.cmd.Process.Pid)
		return len(states) > 0 && !slices.ContainsFunc(states, func(state string) bool { return state != "T" })
	}
	if !until(grace, stands) {
		r.Fatalf("the agent does not stop on SIGSTOP: its threads are in the states %q", threads(r.cmd.Process.Pid))
	}
}

// as makes a process of another build of the broker.
func (n *node) as(program string, c command) *exec.Cmd {
	n.Helper()
	cmd := n.command(c)
	for i, arg := range cmd.Args {
		if arg == brokerPath() {
			cmd.Args[i] = program
		}
	}
	if cmd.Path == brokerPath() {
		cmd.Path = program
	}
	return cmd
}

// agentStatus is what `credential-broker status -o json` says, as far as it matters here.
type agentStatus struct {
	Version        string `json:"version"`
	PID            int    `json:"pid"`
	Requests       int    `json:"requests"`
	InFlight       int    `json:"inFlight"`
	Configurations []struct {
		Config  string `json:"config"`
		Reloads int    `json:"reloads"`
		Refused string `json:"refused"`
		Entries int    `json:"entries"`
		Bytes   int    `json:"bytes"`
		Answers []struct {
			Identity string    `json:"identity"`
			Good     time.Time `json:"good"`
		} `json:"answers"`
		Providers []struct {
			Name      string `json:"name"`
			Processes []struct {
				PID      int    `json:"pid"`
				Restarts int    `json:"restarts"`
				LastExit string `json:"lastExit"`
			} `json:"processes"`
		} `json:"providers"`
	} `json:"configurations"`
}

// status asks the agent; false: none answers.
func (n *node) status() (s agentStatus, ok bool) {
	reply, reason, _ := fast.Ask(n.socket, fast.Request{Operation: fast.Status})
	return s, reason == "" && json.Unmarshal(reply.Stdout, &s) == nil
}

// backendPIDs are those of the agent's backends.
func (s agentStatus) backendPIDs() []int {
	var pids []int
	for _, c := range s.Configurations {
		for _, p := range c.Providers {
			for _, process := range p.Processes {
				if process.PID != 0 {
					pids = append(pids, process.PID)
				}
			}
		}
	}
	return pids
}

func (n *node) logged() string {
	data, _ := os.ReadFile(n.log)
	return string(data)
}

func tail(text string, most int) string { return text[max(0, len(text)-most):] }

// ours are the node's processes: those that have its directory in their command line.
func (n *node) ours() []process {
	var found []process
	for pid, p := range processes() {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && bytes.Contains(line, []byte(n.dir+"/")) {
			found = append(found, p)
		}
	}
	return found
}

// nothingLeft makes sure that no process of the node's is left, and no file where backends have theirs.
func (n *node) nothingLeft() {
	n.Helper()
	var left []process
	if !until(10*time.Second, func() bool { left = n.ours(); return len(left) == 0 }) {
		n.Errorf("left: %v", left)
	}
}

// pull is one exec plugin, as the kubelet runs it, with an agent's socket in its environment.
func (n *node) pull(image, token string, more ...string) outcome {
	cmd := exec.Command(n.plugin, "--config", n.conf)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + n.dir, "TMPDIR=" + n.tmp, "XDG_RUNTIME_DIR=" + n.tmp, n.mark, "CREDENTIAL_BROKER_AGENT=" + n.socket}, more...)
	cmd.Dir = n.dir
	stdin, err := filled(requestFor(image, token))
	if err != nil {
		return outcome{code: -1, stderr: "not started: " + err.Error()}
	}
	defer func() { _ = stdin.Close() }()
	cmd.Stdin = stdin
	return finish(cmd)
}

// filled is a pipe that holds a text and its end already: what reads it need not wait for this process, which a hundred others keep from the processor.
func filled(text string) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	_, err = w.WriteString(text)
	return r, errors.Join(err, w.Close())
}

// finish runs a process to the end of whoever holds its standard output and error.
func finish(cmd *exec.Cmd) outcome {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return outcome{code: -1, stderr: "not started: " + err.Error()}
	}
	hangs := time.AfterFunc(limit, func() { _ = cmd.Process.Kill() })
	defer hangs.Stop()
	_ = cmd.Wait()
	return outcome{stdout: stdout.String(), stderr: stderr.String(), code: cmd.ProcessState.ExitCode(), took: time.Since(began)}
}

// isCold says that a request was not answered by an agent, which the exec plugin always says.
func (o outcome) isCold() bool { return strings.Contains(o.stderr, "the agent was not used") }

// passwords are those of the answer by auth key; an error where there is no answer.
func (o outcome) passwords() (map[string]string, error) {
	if o.code != 0 {
		return nil, fmt.Errorf("exit status %d, stdout %q, after %s: %s", o.code, o.stdout, o.took, tail(o.stderr, 1500))
	}
	var a answer
	if err := json.Unmarshal([]byte(o.stdout), &a); err != nil {
		return nil, fmt.Errorf("no answer (%w): %q", err, o.stdout)
	}
	all := map[string]string{}
	for key, login := range a.Auth {
		all[key] = login.Password
	}
	return all, nil
}

// is makes sure that the answer is this one and no other.
func (o outcome) is(want map[string]string) error {
	got, err := o.passwords()
	if err == nil && !maps.Equal(got, want) {
		err = fmt.Errorf("the answer is %v, want %v; stderr: %s", got, want, tail(o.stderr, 1500))
	}
	return err
}

// load is requests that go on until they are stopped.
type load struct {
	*node
	stopped    atomic.Bool
	workers    sync.WaitGroup
	warm, cold atomic.Int64
	failures   atomic.Int64
}

// loaded has so many workers ask again and again. one makes the worker's next request and gives what is wrong with its outcome.
func (n *node) loaded(workers int, one func(worker, turn int) (outcome, error)) *load {
	l := &load{node: n}
	for worker := range workers {
		l.workers.Go(func() {
			for turn := 0; !l.stopped.Load(); turn++ {
				o, err := one(worker, turn)
				switch {
				case err != nil:
					if l.failures.Add(1) <= 5 { // the rest looks the same
						n.Errorf("worker %d, request %d: %v", worker, turn, err)
					}
				case o.isCold():
					l.cold.Add(1)
				default:
					l.warm.Add(1)
				}
			}
		})
	}
	n.Cleanup(l.stop)
	return l
}

func (l *load) answered() int64 { return l.warm.Load() + l.cold.Load() + l.failures.Load() }

// more waits until so many more requests have been answered.
func (l *load) more(requests int64) {
	l.Helper()
	whole := l.answered() + requests
	if !until(limit, func() bool { return l.answered() >= whole }) {
		l.Fatalf("only %d of %d requests come to an end", l.answered(), whole)
	}
}

// stop ends it when the requests that are under way are over.
func (l *load) stop() {
	l.stopped.Store(true)
	l.workers.Wait()
}
