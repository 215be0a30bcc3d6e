//go:build linux

package steady

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/credential-broker/credential-broker/broker/agent/fast"
)

// fakeAgent answers every request with what reply says, and remembers them.
type fakeAgent struct {
	socket string

	mu   sync.Mutex
	seen []fast.Request
	rest []byte // what came after a request: nothing, in truth
}

// requests are those that came so far.
func (a *fakeAgent) requests() []fast.Request {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]fast.Request{}, a.seen...)
}

// newAgent starts one; reply is called for one request at a time.
func newAgent(t testing.TB, reply func(fast.Request) fast.Reply) *fakeAgent {
	t.Helper()
	return newListener(t, func(r fast.Request) []byte { return fast.AppendReply(nil, reply(r)) })
}

// newListener starts one that answers with bytes.
func newListener(t testing.TB, reply func(fast.Request) []byte) *fakeAgent {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	a := &fakeAgent{socket: filepath.Join(dir, "agent.sock")}
	listener, err := net.Listen("unix", a.socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(a.socket, 0o600); err != nil {
		t.Fatal(err)
	}
	var ended sync.WaitGroup
	ended.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if r, ok := readRequest(conn); ok {
				a.mu.Lock()
				a.seen = append(a.seen, r)
				a.mu.Unlock()
				_, _ = conn.Write(reply(r))
				_ = conn.(*net.UnixConn).CloseWrite()
				rest, _ := io.ReadAll(conn)
				a.mu.Lock()
				a.rest = append(a.rest, rest...)
				a.mu.Unlock()
			}
			conn.Close()
		}
	})
	t.Cleanup(func() {
		listener.Close()
		ended.Wait()
		if len(a.rest) > 0 {
			t.Errorf("the agent was told more than the request: %q", a.rest)
		}
	})
	return a
}

// readRequest reads a request; there is none where the asker has gone on by itself.
func readRequest(conn net.Conn) (fast.Request, bool) {
	header := make([]byte, fast.HeaderSize)
	if _, err := io.ReadFull(conn, header); err != nil {
		return fast.Request{}, false
	}
	h, problem := fast.ParseHeader(header)
	if problem != "" {
		return fast.Request{}, false
	}
	payload := make([]byte, h.Length)
	if _, err := io.ReadFull(conn, payload); err != nil {
		return fast.Request{}, false
	}
	r, problem := fast.DecodeRequest(h, payload)
	return r, problem == ""
}

// always is an agent's only answer.
func always(r fast.Reply) func(fast.Request) fast.Reply {
	return func(fast.Request) fast.Reply { return r }
}

// environment is what a node's kubelet has, about, and nothing of this machine's. Go programs ask how many processors there are, so that this is given: it must not change what is counted.
func environment(socket string) []string {
	return []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root", "USER=root", "INVOCATION_ID=6c0b3e2f5f4a4f0a8a8a4c5d6e7f8091",
		"JOURNAL_STREAM=8:12345", "SYSTEMD_EXEC_PID=1234", "KUBELET_EXTRA_ARGS=--node-ip=192.0.2.1", "GOMAXPROCS=2", "CREDENTIAL_BROKER_AGENT=" + socket,
	}
}

// starter makes a command as the kubelet does.
type starter func(socket string, arguments ...string) *exec.Cmd

func start(program string) starter {
	return func(socket string, arguments ...string) *exec.Cmd {
		cmd := exec.Command(program, arguments...)
		cmd.Env = environment(socket)
		return cmd
	}
}

// both runs a test with the program as it is released, whose early path comes before Go's runtime, and as go install makes it, where it comes after.
func both(t *testing.T, test func(t *testing.T, command starter)) {
	t.Helper()
	for name, file := range map[string]string{"before the runtime": program, "after the runtime": plain} {
		t.Run(name, func(t *testing.T) { test(t, start(file)) })
	}
}
