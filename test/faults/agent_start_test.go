//go:build linux

package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// agents are the node's agents.
func (n *node) agents() []process {
	var found []process
	for _, p := range n.ours() {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.pid))
		if strings.Contains(string(line), "\x00agent\x00") {
			found = append(found, p)
		}
	}
	return found
}

func TestFiftyRequestsStartOneAgent(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.podsAndNode(object{"agent": object{"socket": n.socket, "autoStart": true, "idleTimeout": "15s"}})
	const requests = 50
	outcomes := make([]outcome, requests)
	var all sync.WaitGroup
	for i := range requests {
		all.Go(func() { outcomes[i] = n.pull(fmt.Sprintf("%s-%d", anImage, i), "") })
	}
	all.Wait() // for the end of whoever holds their standard output and error, too: so does the kubelet
	served := 0
	for i, o := range outcomes {
		if err := o.is(podsAndNodeAnswer(fmt.Sprintf("%s-%d", anImage, i), "")); err != nil {
			t.Errorf("request %d: %v", i, err)
		}
		if !o.isCold() {
			served++
		}
	}
	t.Logf("%d of %d were answered by the agent", served, requests)
	running := n.agents()
	if len(running) != 1 || served == 0 {
		t.Fatalf("%d agents run: %v", len(running), running)
	}
	for _, p := range n.ours() {
		links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/[012]", p.pid)) // root sees them
		for _, link := range links {
			target, err := os.Readlink(link)
			if err == nil && p.pid == running[0].pid && target != os.DevNull {
				t.Errorf("the agent has %s as descriptor %s", target, filepath.Base(link))
			}
		}
	}
	if !until(limit, func() bool { return len(n.ours()) == 0 }) {
		t.Errorf("nobody asks, and these go on: %v", n.ours())
	}
	if _, err := os.Lstat(n.socket); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
}

func TestAnAgentThatCannotBeStartedIsDoneWithout(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil func(n *node)
		says  string
	}{
		"the socket's directory lets others in": {func(n *node) { must(0, os.Mkdir(filepath.Dir(n.socket), 0o755)) }, "lets others in"},
		"a file is in the place of the socket": {func(n *node) {
			must(0, os.Mkdir(filepath.Dir(n.socket), 0o700))
			n.write("run/agent.sock", "", 0o600)
		}, "agent.sock"},
		"there is no place for the directory": {func(n *node) { n.socket = filepath.Join(n.dir, "none", "run", "agent.sock") }, "none"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			tt.spoil(n)
			n.podsAndNode(object{"agent": object{"socket": n.socket, "autoStart": true}})
			o := n.pull(anImage, "")
			if err := o.is(podsAndNodeAnswer(anImage, "")); err != nil {
				t.Error(err)
			}
			if !o.isCold() || !strings.Contains(o.stderr, tt.says) || o.took > grace {
				t.Errorf("after %s: stderr lacks %q:\n%s", o.took, tt.says, o.stderr)
			}
			n.nothingLeft()
		})
	}
}

// besideSystemd is the broker on a node of which it thinks that systemd runs there.
var besideSystemd = sync.OnceValues(func() (string, error) {
	path := filepath.Join(bin, "credential-broker-beside-systemd")
	return path, buildOne(path, "../../cmd/credential-broker", "CGO_ENABLED=0", "-ldflags=-X main.systemdBooted="+bin)
})

func TestAServiceManagerIsAskedForAUnit(t *testing.T) {
	t.Parallel()
	program, err := besideSystemd()
	if err != nil {
		t.Fatal(err)
	}
	n := newNode(t)
	n.install(program, n.program)
	must(0, os.MkdirAll(filepath.Join(n.tmp, "systemd", "private"), 0o700)) // where a user's systemd is looked for
	const word = "c4n4ry-of-the-environment"
	provider := n.with(n.whose("inherits"), object{"inheritEnv": []string{"WHOSE_GENERATION"}})
	n.config(object{"agent": object{"socket": n.socket, "autoStart": true, "idleTimeout": "10s"}}, provider)
	told := filepath.Join(n.dir, "told")
	run := n.write("systemd-run", `#!/bin/bash
printf '%s\n' "$@" >>`+told+`
while [ "$1" != -- ]; do shift; done
shift
setsid env -i PATH="$PATH" TMPDIR=`+n.tmp+` XDG_RUNTIME_DIR=`+n.tmp+` INVOCATION_ID=of-the-unit "$@" </dev/null >/dev/null 2>&1 &
`, 0o755)
	o := n.pull(anImage, "", "PATH="+filepath.Dir(run)+string(filepath.ListSeparator)+os.Getenv("PATH"), "WHOSE_GENERATION="+word)
	if err := o.is(map[string]string{anImage: word + "|" + anImage + "|node"}); err != nil || o.isCold() {
		t.Errorf("%v: %s", err, o.stderr)
	}
	asked := string(must(os.ReadFile(told)))
	if !strings.Contains(asked, "--unit=credential-broker-agent-") || !strings.Contains(asked, n.socket) {
		t.Errorf("systemd-run was told %q", asked)
	}
	if strings.Contains(asked, word) {
		t.Errorf("an argument tells everybody: %q", asked)
	}
	for path, text := range contents(filepath.Dir(n.socket)) {
		if strings.Contains(text, word) || strings.Contains(path, "environment") {
			t.Errorf("%s is left, with %q", path, text)
		}
	}
	if running := n.agents(); len(running) != 1 {
		t.Errorf("%d agents run", len(running))
	}
	if !until(limit, func() bool { return len(n.ours()) == 0 }) {
		t.Errorf("nobody asks, and these go on: %v", n.ours())
	}
}
