//go:build linux

package faults

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// upgraded is another version of the broker, built once.
var upgraded = sync.OnceValues(func() (string, error) {
	path := filepath.Join(bin, "credential-broker-upgraded")
	return path, buildOne(path, "../../cmd/credential-broker", "CGO_ENABLED=0", "-ldflags=-X main.version=upgraded")
})

// calls is how many calls a backend has noted in a file.
func calls(file string) int {
	data, _ := os.ReadFile(file)
	return strings.Count(string(data), "\n")
}

func TestTheAgentsOwnFileIsReplacedUnderLoad(t *testing.T) {
	t.Parallel()
	newer, err := upgraded()
	if err != nil {
		t.Fatal(err)
	}
	n := newNode(t)
	n.plugin = brokerPath() // what the kubelet starts is good all the time
	noted := filepath.Join(n.dir, "calls")
	n.podsAndNode(nil, "WHOSE_CALLS", noted)
	a := n.start(command{})
	pull := func(worker, turn int) (outcome, error) {
		image, token := fmt.Sprintf("registry.example/team/app-%d", turn%3), tokenOf(worker, 0, time.Now().Add(24*time.Hour).Truncate(12*time.Hour))
		o := n.pull(image, token)
		return o, o.is(podsAndNodeAnswer(image, token))
	}
	const workers = 6
	for worker := range workers {
		for turn := range 3 {
			if _, err := pull(worker, turn); err != nil {
				t.Fatal(err)
			}
		}
	}
	asked := calls(noted)
	l := n.loaded(workers, pull)
	before, _ := n.status()

	for name, content := range map[string][]byte{
		"a script that fails":     []byte("#!/bin/sh\nexit 1\n"),
		"a script that says good": []byte("#!/bin/sh\nexit 0\n"),
		"half a program":          must(os.ReadFile(newer))[:1<<20],
		"no program":              []byte("not a program\n"),
		"one that others write":   must(os.ReadFile(newer)),
	} {
		mode, says := os.FileMode(0o755), "does not serve"
		if name == "one that others write" {
			mode, says = 0o777, "is not used"
		}
		said := strings.Count(n.logged(), says)
		n.replace(n.program, content, mode)
		if !until(grace, func() bool { return strings.Count(n.logged(), says) > said }) {
			t.Errorf("%s: the log does not say that it %s", name, says)
		}
		l.more(2 * workers)
		if s, _ := n.status(); s.PID != before.PID || a.isOver() {
			t.Fatalf("%s: the agent was pid %d and is %d", name, before.PID, s.PID)
		}
	}

	last := before.PID
	for _, next := range []struct{ program, version string }{{newer, "upgraded"}, {brokerPath(), before.Version}} {
		n.install(next.program, n.program)
		var s agentStatus
		if !until(grace, func() bool { s, _ = n.status(); return s.PID != 0 && s.PID != last }) {
			t.Fatalf("nobody takes over from pid %d", last)
		}
		if s.Version != next.version {
			t.Errorf("version %q serves, want %q", s.Version, next.version)
		}
		last = s.PID
		l.more(10 * workers)
	}
	select {
	case <-a.ended:
		if !a.cmd.ProcessState.Success() {
			t.Errorf("the first agent ended with %v", a.cmd.ProcessState)
		}
	case <-time.After(grace):
		t.Error("the first agent does not end")
	}
	l.stop()
	t.Logf("%d requests answered by agents, %d without", l.warm.Load(), l.cold.Load())
	if l.cold.Load() > 0 {
		t.Errorf("%d requests found no agent", l.cold.Load())
	}
	if now := calls(noted); now != asked {
		t.Errorf("%d calls before, and %d after: the successors do not have the answers", asked, now)
	}
	_ = syscall.Kill(last, syscall.SIGTERM)
	n.nothingLeft()
	if _, err := os.Lstat(n.socket); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
}

// successor is a program that is a successor as far as its predecessor can tell. It notes its process, says that it serves if it is to, and notes SIGTERM.
func (n *node) successor(noted string, serves bool) []byte {
	ready := ""
	if serves {
		ready = `i=3; for name in $(echo "$CREDENTIAL_BROKER_HANDED" | tr , ' '); do [ $name = ready ] && eval "echo >&$i; exec $i>&-"; i=$((i+1)); done`
	}
	return []byte("#!/bin/bash\ntrap 'echo TERM >>" + noted + "; exit' TERM\n" + ready + "\necho began >>" + noted + "\nwhile :; do sleep 0.05; done\n")
}

func TestSIGTERMDuringAnUpgradeEndsTheAgent(t *testing.T) {
	for name, serves := range map[string]bool{"before the successor serves": false, "while the predecessor still answers": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.plugin = brokerPath()
			gate, noted := filepath.Join(n.dir, "gate"), filepath.Join(n.dir, "noted")
			n.podsAndNode(nil, "WHOSE_LIFE", "0", "WHOSE_WAITS", gate)
			n.write("gate", "", 0o600)
			a := n.start(command{})
			answered := make(chan outcome, 1)
			go func() { answered <- n.pull(anImage, "") }()
			if !until(grace, func() bool { s, _ := n.status(); return s.InFlight == 1 }) {
				t.Fatal("the request does not come to the agent")
			}
			n.replace(n.program, n.successor(noted, serves), 0o755)
			wrote := func(what string) bool { data, _ := os.ReadFile(noted); return strings.Contains(string(data), what) }
			if !until(grace, func() bool { return wrote("began") && (!serves || strings.Contains(n.logged(), "has been replaced")) }) {
				t.Fatal("no successor is started")
			}
			_ = a.cmd.Process.Signal(syscall.SIGTERM)
			if serves && !until(grace, func() bool { return wrote("TERM") }) {
				t.Error("the successor does not hear of it")
			}
			if !serves && !until(15*time.Second, func() bool { _, err := os.Lstat(n.socket); return os.IsNotExist(err) }) {
				t.Error("the agent waits for the successor instead, as long as that may take")
			}
			if err := os.Remove(gate); err != nil {
				t.Fatal(err)
			}
			if o := <-answered; o.code != 0 || o.isCold() {
				t.Errorf("the request in flight: exit status %d, %s", o.code, o.stderr)
			}
			a.end()
			n.nothingLeft()
		})
	}
}

func TestRequestsInFlightAreAnsweredOnSIGTERM(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	gate := filepath.Join(n.dir, "gate")
	n.podsAndNode(nil, "WHOSE_LIFE", "0", "WHOSE_WAITS", gate)
	n.write("gate", "", 0o600)
	a := n.start(command{})
	const requests = 16
	outcomes := make(chan outcome, requests)
	for i := range requests {
		go func() { outcomes <- n.pull(fmt.Sprintf("%s-%d", anImage, i), "") }()
	}
	if !until(grace, func() bool { s, _ := n.status(); return s.InFlight >= requests }) {
		t.Fatal("the requests do not come to the agent")
	}
	_ = a.cmd.Process.Signal(syscall.SIGTERM)
	if !until(grace, func() bool { _, err := os.Lstat(n.socket); return os.IsNotExist(err) }) {
		t.Error("the socket stays while the agent ends")
	}
	if a.isOver() {
		t.Error("it has ended with requests in flight")
	}
	if err := os.Remove(gate); err != nil {
		t.Fatal(err)
	}
	for range requests {
		if o := <-outcomes; o.code != 0 || o.isCold() {
			t.Errorf("a request in flight: exit status %d, %s", o.code, o.stderr)
		}
	}
	a.end()
	n.nothingLeft()
	if o := n.pull(anImage, ""); !o.isCold() || o.is(podsAndNodeAnswer(anImage, "")) != nil {
		t.Errorf("without an agent: %+v", o)
	}
}

// manager is as much of systemd as a service notices.
type manager struct {
	*net.UnixConn
	mu   sync.Mutex
	said []string
}

func (n *node) manager() (m *manager, environment []string) {
	n.Helper()
	path := filepath.Join(n.tmp, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		n.Fatal(err)
	}
	m = &manager{UnixConn: conn}
	read := make(chan struct{})
	go func() {
		defer close(read)
		buffer := make([]byte, 4096)
		for {
			length, err := conn.Read(buffer)
			if err != nil {
				return
			}
			m.mu.Lock()
			m.said = append(m.said, string(buffer[:length]))
			m.mu.Unlock()
		}
	}()
	n.Cleanup(func() { _ = conn.Close(); <-read })
	return m, []string{"NOTIFY_SOCKET=" + path, "WATCHDOG_USEC=1000000"}
}

// heard waits until the agent has said something so many times.
func (m *manager) heard(what string, count int) bool {
	return until(grace, func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return len(slices.DeleteFunc(slices.Clone(m.said), func(s string) bool { return s != what })) >= count
	})
}

func TestWhatAServiceManagerIsTold(t *testing.T) {
	t.Parallel()
	newer, err := upgraded()
	if err != nil {
		t.Fatal(err)
	}
	n := newNode(t)
	n.podsAndNode(nil)
	m, environment := n.manager()
	a := n.start(command{env: environment})
	if !m.heard("READY=1", 1) {
		t.Error("the agent does not say that it is ready")
	}
	if !m.heard("WATCHDOG=1", 3) {
		t.Error("the agent does not feed the watchdog")
	}
	n.install(newer, n.program)
	var s agentStatus
	if !until(grace, func() bool { s, _ = n.status(); return s.Version == "upgraded" }) {
		t.Fatal("nobody takes over")
	}
	if !m.heard(fmt.Sprintf("MAINPID=%d", s.PID), 1) || !m.heard("READY=1", 2) {
		t.Errorf("the manager does not hear of the successor %d: %q", s.PID, m.said)
	}
	<-a.ended
	m.mu.Lock()
	if slices.Contains(m.said, "STOPPING=1") {
		t.Error("the predecessor says that the service ends")
	}
	all := len(m.said)
	m.mu.Unlock()
	if !m.heard("WATCHDOG=1", all+1) { // more often than anything was said before
		t.Error("the successor does not feed the watchdog")
	}
	_ = syscall.Kill(s.PID, syscall.SIGTERM)
	if !m.heard("STOPPING=1", 1) {
		t.Error("the agent does not say that it ends")
	}
	n.nothingLeft()
}

func TestASocketThatAServiceManagerHandsOver(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.podsAndNode(nil)
	if err := os.Mkdir(filepath.Dir(n.socket), 0o700); err != nil {
		t.Fatal(err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: n.socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	if err := os.Chmod(n.socket, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := listener.File()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	for round := range 2 {
		// The request that the manager starts the agent for is there first.
		first := make(chan outcome, 1)
		go func() { first <- n.pull(anImage, "") }()
		cmd := n.as(n.program, command{args: []string{"agent", "--config", n.conf}, before: "export LISTEN_PID=$$ LISTEN_FDS=1"})
		cmd.ExtraFiles = []*os.File{file}
		a := n.started(cmd)
		if err := (<-first).is(podsAndNodeAnswer(anImage, "")); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		if o := n.pull(anImage, ""); o.isCold() || o.is(podsAndNodeAnswer(anImage, "")) != nil {
			t.Errorf("round %d: the agent does not answer: %+v", round, o)
		}
		a.end()
		if _, err := os.Lstat(n.socket); err != nil {
			t.Fatalf("the manager's socket is gone: %v", err)
		}
		n.nothingLeft()
	}
}
