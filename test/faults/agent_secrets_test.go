//go:build linux

package faults

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// kept is a node whose agent has been asked for secrets in every way, and holds them.
type kept struct {
	*node
	canaries
	planted []string
	agent   *running
}

func newKept(t *testing.T, more object) *kept {
	t.Helper()
	n := newNode(t)
	k := &kept{node: n, canaries: newCanaries(n.bench)}
	login := n.write("login.json", string(must(json.Marshal(object{"key": "registry.example", "username": k.username, "password": k.password}))), 0o600)
	provider := func(name, fault, pattern string) object {
		return n.with(n.misbehaves(name, fault), object{
			"env": n.environment("FAULT", fault, "FAULT_LOGIN", login), "tokenAttributes": tokenAttributes, "matchImages": []string{pattern},
		})
	}
	settings := object{"config": object{"password": k.setting, "note": "a-note"}}
	// What is matched by more than one provider shows whether one hears of another's.
	n.conf = n.config(n.with(object{"log": object{"format": "text", "level": "debug"}}, more),
		provider("leaky", "leak", "registry.example"), n.with(provider("author", "author leaks", "registry.example"), settings),
		n.with(provider("refuses", "author refused", "registry.example/refused"), settings), provider("crashes", "leakCrash", "registry.example/crashed"),
		n.with(provider("panics", "author panic", "registry.example/panicked"), settings),
		n.with(n.misbehaves("its-own", "none"), object{"env": n.environment("FAULT", "none", "ITS_OWN", "of its own "+k.setting)}))
	k.planted = []string{login, n.conf}
	k.agent = n.start(command{})
	for _, image := range []string{anImage, anImage, "registry.example/refused/app", "registry.example/crashed/app", "registry.example/panicked/app"} {
		for range 2 {
			o := n.pull(image, k.token)
			if o.isCold() {
				t.Fatalf("the agent is not asked: %s", o.stderr)
			}
			if seen := k.found(o.stderr); len(seen) > 0 {
				t.Errorf("stderr tells %v", seen)
			}
			if o.code != 0 {
				t.Errorf("%s: exit status %d: %s", image, o.code, o.stderr)
			}
			if len(k.found(o.stdout)) == 0 {
				t.Error("even in the response no secret is seen: this test does not see")
			}
		}
	}
	return k
}

func TestNoSecretIsToldByTheAgent(t *testing.T) {
	t.Parallel()
	k := newKept(t, nil)
	clean := func(what, text string) {
		t.Helper()
		if seen := k.found(text); len(seen) > 0 {
			t.Errorf("%s tells %s", what, strings.Join(seen, "\n  and "))
		}
	}
	log := k.logged()
	clean("the log", log)
	for _, said := range []string{"Authorization: Bearer", "careless", "the registry says no to"} {
		if !strings.Contains(log, said) {
			t.Errorf("the log lacks %q, which is no secret: do the backends leak?", said)
		}
	}
	sub := func(args ...string) outcome {
		cmd := exec.Command(k.program, args...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + k.dir, "TMPDIR=" + k.tmp, k.mark, "CREDENTIAL_BROKER_AGENT=" + k.socket, "CREDENTIAL_BROKER_CONFIG=" + k.conf}
		cmd.Stdin = strings.NewReader(request(k.token))
		return finish(cmd)
	}
	for _, args := range [][]string{{"status"}, {"status", "-o", "json"}, {"get", "--request", "-"}, {"get", "--request", "-", "-o", "json"}, {"forget", "registry.example/refused/app"}} {
		o := sub(args...)
		clean(strings.Join(args, " "), o.stdout+o.stderr)
		if o.code != 0 || o.stdout == "" {
			t.Errorf("%v: exit status %d: %s", args, o.code, o.stderr)
		}
	}
	if o := sub("get", "--request", "-", "--show-secrets", "-o", "json"); len(k.found(o.stdout)) == 0 {
		t.Errorf("--show-secrets shows none: %s%s", o.stdout, o.stderr)
	}

	its := 0
	for _, p := range k.ours() {
		for _, what := range []string{"cmdline", "environ"} {
			data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.pid, what))
			if err != nil {
				continue // it has ended, or only root may see
			}
			switch {
			case len(k.found(string(data))) == 0:
			case what == "environ" && bytes.Contains(data, []byte("ITS_OWN=")):
				its++
			default:
				clean(fmt.Sprintf("%s of %s", what, p.name), string(data))
			}
		}
	}
	if isRoot() && its != 1 {
		t.Errorf("%d environments show the secret that is theirs, want 1: does this test see?", its)
	}
	for _, directory := range []string{k.dir, k.tmp, "/run/credential-backends"} {
		for path, text := range contents(directory) {
			if !slices.Contains(k.planted, path) {
				clean(path, text)
			}
		}
	}

	if s, _ := k.status(); s.held() == 0 {
		t.Fatal("nothing is held: this shows nothing")
	}
	if o := sub("forget", "--all"); o.code != 0 {
		t.Errorf("forget: %s", o.stderr)
	}
	if s, _ := k.status(); s.held() != 0 {
		t.Errorf("%d answers are held after forget --all", s.held())
	}
	k.agent.end()
	clean("the log", k.logged())
	k.nothingLeft()
}

// held is how many answers and failures the agent remembers.
func (s agentStatus) held() int {
	held := 0
	for _, c := range s.Configurations {
		held += len(c.Answers)
	}
	return held
}

func TestTheAgentsMemoryIsClosedToItsOwnUser(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	if isRoot() { // for whom nothing is closed
		n.asNobody()
		for _, path := range append(filesIn(n.dir), n.dir) {
			n.chown(path)
		}
	}
	// A backend made with package backends, which guards itself as the broker does. A stranger's has to see to that.
	n.config(nil, n.with(n.misbehaves("author", "author good"), object{"config": object{"password": "secret", "note": "a-note"}}))
	cmd := n.as(n.program, command{args: []string{"agent", "--agent", n.socket, "--config", n.conf}})
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()
	pull := command{args: []string{"--config", n.conf, "--agent", n.socket}, stdin: requestFor(anImage, "")}
	if !until(grace, func() bool {
		o := finish(n.as(n.program, pull))
		return !o.isCold() && o.code == 0
	}) {
		t.Fatal("the agent does not answer")
	}
	attach := func(pid int) outcome {
		cmd := n.as(misbehavePath(), command{args: []string{"attach", fmt.Sprint(pid)}})
		cmd.Path = misbehavePath()
		return finish(cmd)
	}
	sleeper := n.as(misbehavePath(), command{args: []string{"sleep"}})
	sleeper.Path = misbehavePath()
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = sleeper.Process.Kill(), sleeper.Wait() }()
	if o := attach(sleeper.Process.Pid); !strings.Contains(o.stdout, "memory read") {
		notRun(t, "whether one user's processes read each other's memory: nobody can on this machine: "+o.stdout)
	}
	all := append(below(cmd.Process.Pid), process{pid: cmd.Process.Pid, name: "the agent"})
	if len(all) < 2 {
		t.Fatalf("only %v run", all)
	}
	for _, p := range all {
		if o := attach(p.pid); o.stdout != "" || !strings.Contains(o.stderr, "operation not permitted") && !strings.Contains(o.stderr, "permission denied") {
			t.Errorf("%s (%d): %s%s", p.name, p.pid, o.stdout, o.stderr)
		}
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	_ = cmd.Wait()
	n.nothingLeft()
}
