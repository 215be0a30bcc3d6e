//go:build linux

package steady

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/broker/agent/fast"
)

const aRequest = `{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderRequest","image":"registry.example/app"}`

// ran is what a process left.
type ran struct {
	stdout, stderr string
	status         int
}

// finish runs cmd, which may have had its standard input set.
func finish(t *testing.T, cmd *exec.Cmd) ran {
	t.Helper()
	var stdout, stderr bytes.Buffer
	if cmd.Stdout == nil {
		cmd.Stdout = &stdout
	}
	cmd.Stderr = &stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return ran{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

func TestTheAnswerIsTheAgents(t *testing.T) {
	both(t, func(t *testing.T, command starter) {
		for name, reply := range map[string]fast.Reply{
			"an answer":         {Stdout: []byte(`{"auth":{}}` + "\n")},
			"nothing":           {},
			"a failure":         {Status: 1, Stderr: []byte("provider \"x\": refused\n")},
			"both":              {Status: 255, Stdout: []byte("out"), Stderr: []byte("err\n")},
			"as long as may be": {Stdout: bytes.Repeat([]byte("x"), fast.MaxFrame-21)},
			"a mebibyte each":   {Stdout: bytes.Repeat([]byte("answer\x00\n"), 1<<17), Stderr: bytes.Repeat([]byte("message\n"), 1<<17)},
		} {
			t.Run(name, func(t *testing.T) {
				agent := newAgent(t, always(reply))
				cmd := command(agent.socket)
				cmd.Stdin = strings.NewReader(aRequest)
				if got, want := finish(t, cmd), (ran{string(reply.Stdout), string(reply.Stderr), int(reply.Status)}); got != want {
					t.Errorf("status %d, %d bytes, %d bytes; want %d, %d, %d", got.status, len(got.stdout), len(got.stderr), want.status, len(want.stdout), len(want.stderr))
				}
			})
		}
	})
}

func TestTheAgentGetsTheRequest(t *testing.T) {
	both(t, func(t *testing.T, command starter) {
		long := strings.Repeat("0123456789abcdef", 1<<16) // a mebibyte, the longest
		with := func(env ...string) func(*exec.Cmd) { return func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, env...) } }
		for name, test := range map[string]struct {
			arguments []string
			change    func(*exec.Cmd)
			want      fast.Request
		}{
			"as it is":         {nil, func(*exec.Cmd) {}, fast.Request{Body: []byte(aRequest)}},
			"a long one":       {nil, func(cmd *exec.Cmd) { cmd.Stdin = strings.NewReader(long) }, fast.Request{Body: []byte(long)}},
			"nothing":          {nil, func(cmd *exec.Cmd) { cmd.Stdin = strings.NewReader("") }, fast.Request{}},
			"with its flags":   {[]string{"--audience", "", "--config=/etc/x", "--backend-dir", "/b"}, func(*exec.Cmd) {}, fast.Request{HasAudience: true, Config: "/etc/x", BackendDir: "/b", Body: []byte(aRequest)}},
			"an audience":      {[]string{"--audience=sts.example"}, func(*exec.Cmd) {}, fast.Request{HasAudience: true, Audience: "sts.example", Body: []byte(aRequest)}},
			"with its setting": {nil, with("CREDENTIAL_BROKER_CONFIG=/etc/y"), fast.Request{Config: "/etc/y", Body: []byte(aRequest)}},
			"flag before variable": {
				[]string{"--config", "/etc/x"},
				with("CREDENTIAL_BROKER_CONFIG=/etc/y"),
				fast.Request{Config: "/etc/x", Body: []byte(aRequest)},
			},
			"arguments of many pages": {
				[]string{"--config=/" + strings.Repeat("x", 30_000), "--config=/" + strings.Repeat("y", 30_000), "--config=/etc/x"},
				with(),
				fast.Request{Config: "/etc/x", Body: []byte(aRequest)},
			},
			"an environment of many pages": {nil, with("LONG="+strings.Repeat("x", 100_000), "CREDENTIAL_BROKER_CONFIG=/etc/y"), fast.Request{Config: "/etc/y", Body: []byte(aRequest)}},
		} {
			t.Run(name, func(t *testing.T) {
				agent := newAgent(t, always(fast.Reply{Stdout: []byte("answer")}))
				cmd := command(agent.socket, test.arguments...)
				cmd.Stdin = strings.NewReader(aRequest)
				test.change(cmd)
				if got := finish(t, cmd); got != (ran{"answer", "", 0}) {
					t.Errorf("%+v", got)
				}
				test.want.Operation = fast.Resolve
				if got := agent.requests(); len(got) != 1 || !bytes.Equal(fast.AppendRequest(nil, got[0]), fast.AppendRequest(nil, test.want)) {
					t.Errorf("the agent got %d requests, or another one", len(got))
				}
			})
		}
	})
}

func TestARequestFromAFile(t *testing.T) {
	both(t, func(t *testing.T, command starter) {
		agent := newAgent(t, always(fast.Reply{Stdout: []byte("answer")}))
		name := filepath.Join(t.TempDir(), "request")
		if err := os.WriteFile(name, []byte(aRequest), 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		cmd := command(agent.socket)
		cmd.Stdin = file
		if got := finish(t, cmd); got != (ran{"answer", "", 0}) {
			t.Errorf("%+v", got)
		}
		if got := agent.requests(); len(got) != 1 || string(got[0].Body) != aRequest {
			t.Errorf("the agent got %d requests, or another one", len(got))
		}
	})
}

func TestARequestInSeveralWrites(t *testing.T) {
	both(t, func(t *testing.T, command starter) {
		agent := newAgent(t, always(fast.Reply{Stdout: []byte("answer")}))
		cmd := command(agent.socket)
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		var stdout bytes.Buffer
		cmd.Stdout = &stdout
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for part := range strings.SplitSeq(aRequest, ",") {
			_, _ = io.WriteString(stdin, part)
			waitUntilRead(t, stdin)
		}
		stdin.Close()
		if err := cmd.Wait(); err != nil || stdout.String() != "answer" {
			t.Errorf("%v, %q", err, stdout.String())
		}
		if got, want := agent.requests(), strings.ReplaceAll(aRequest, ",", ""); len(got) != 1 || string(got[0].Body) != want {
			t.Errorf("the agent got %d requests, or another one", len(got))
		}
	})
}

// waitUntilRead waits until a pipe is empty.
func waitUntilRead(t *testing.T, pipe io.WriteCloser) {
	t.Helper()
	within(t, "what was written to be read", func() bool {
		pending, err := pendingIn(pipe)
		if err != nil {
			t.Fatal(err)
		}
		return pending == 0
	})
}

// within polls until done, with a deadline.
func within(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited for %s", what)
		}
	}
}

func TestStandardInputThatNeverEnds(t *testing.T) {
	both(t, func(t *testing.T, command starter) {
		t.Parallel() // it takes the ten seconds that there are for standard input to end
		agent := newAgent(t, always(fast.Reply{Stdout: []byte("answer")}))
		cmd := command(agent.socket)
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		defer stdin.Close()
		if _, err := io.WriteString(stdin, aRequest); err != nil {
			t.Fatal(err)
		}
		got := finish(t, cmd)
		if got.status != 1 || got.stdout != "" || !strings.Contains(got.stderr, "has not ended") {
			t.Errorf("%+v", got)
		}
		if n := len(agent.requests()); n != 0 {
			t.Errorf("%d requests, which cannot have been whole", n)
		}
	})
}

func TestNobodyReadsTheAnswer(t *testing.T) {
	both(t, func(t *testing.T, command starter) {
		agent := newAgent(t, always(fast.Reply{Stdout: []byte("answer"), Stderr: []byte("note\n")}))
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		defer w.Close()
		cmd := command(agent.socket)
		cmd.Stdin, cmd.Stdout = strings.NewReader(aRequest), w
		got := finish(t, cmd)
		if got.status != 1 || !strings.HasPrefix(got.stderr, "note\n") || !strings.Contains(got.stderr, "standard output failed") {
			t.Errorf("%+v", got)
		}
	})
}

func TestTheAnswerIsGivenThoughNobodyReadsTheMessages(t *testing.T) {
	both(t, func(t *testing.T, command starter) {
		agent := newAgent(t, always(fast.Reply{Stdout: []byte("answer"), Stderr: []byte("note\n")}))
		cmd := command(agent.socket)
		cmd.Stdin = strings.NewReader(aRequest)
		var stdout bytes.Buffer
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		defer w.Close()
		cmd.Stdout, cmd.Stderr = &stdout, w
		if err := cmd.Run(); err != nil || stdout.String() != "answer" {
			t.Errorf("%v, %q", err, stdout.String())
		}
	})
}

// What is opened first takes the number of a standard stream that is closed: no answer may go there.
func TestClosedStandardStreams(t *testing.T) {
	both(t, func(t *testing.T, command starter) {
		for _, closed := range []string{"0<&-", "1>&-", "2>&-", "1>&- 2>&-", "0<&- 1>&- 2>&-"} {
			t.Run(closed, func(t *testing.T) {
				agent := newAgent(t, always(fast.Reply{Stdout: []byte("answer"), Stderr: []byte("note\n")})) // which looks at what else it is told
				cmd := command(agent.socket)
				cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", "exec " + closed + "; exec " + cmd.Path}
				cmd.Stdin = strings.NewReader(aRequest)
				got := finish(t, cmd)
				if strings.Contains(closed, "1") && got.stdout != "" || strings.Contains(closed, "2") && got.stderr != "" {
					t.Errorf("%+v", got)
				}
			})
		}
	})
}

// The agent is not asked, and main decides, by what it says itself.
func TestTheAgentIsLeftAlone(t *testing.T) {
	both(t, func(t *testing.T, command starter) {
		null, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer null.Close()
		for name, test := range map[string]struct {
			change func(*exec.Cmd)
			want   string // in what main prints
		}{
			"by a subcommand": {func(cmd *exec.Cmd) { cmd.Args = append(cmd.Args, "version") }, "1.2.3"},
			"by --help":       {func(cmd *exec.Cmd) { cmd.Args = append(cmd.Args, "--help") }, "Usage:"},
			"by more arguments than it reads": {func(cmd *exec.Cmd) {
				cmd.Args = append(cmd.Args, "--config=/"+strings.Repeat("x", 100_000), "--config=/"+strings.Repeat("y", 100_000), "--config=/nonexistent")
			}, "credential-broker:"},
			"by a longer path than it sends": {func(cmd *exec.Cmd) { cmd.Args = append(cmd.Args, "--config=/"+strings.Repeat("x", 100_000)) }, "credential-broker:"},
			"by a larger environment than it reads": {func(cmd *exec.Cmd) {
				for i := range 20 {
					cmd.Env = append(cmd.Env, "LONG"+strconv.Itoa(i)+"="+strings.Repeat("x", 100_000))
				}
			}, "credential-broker:"},
			"by a mistake":                {func(cmd *exec.Cmd) { cmd.Args = append(cmd.Args, "--confg=/x") }, "unknown flag"},
			"without a variable":          {func(cmd *exec.Cmd) { cmd.Env = cmd.Env[:len(cmd.Env)-1] }, "credential-broker:"},
			"with an empty variable":      {func(cmd *exec.Cmd) { cmd.Env[len(cmd.Env)-1] = "CREDENTIAL_BROKER_AGENT=" }, "credential-broker:"},
			"with a relative directory":   {func(cmd *exec.Cmd) { cmd.Args = append(cmd.Args, "--backend-dir=b") }, "credential-broker:"},
			"with a relative file":        {func(cmd *exec.Cmd) { cmd.Args = append(cmd.Args, "--config=c.yaml") }, "credential-broker:"},
			"with a relative variable":    {func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, "CREDENTIAL_BROKER_CONFIG=c.yaml") }, "credential-broker:"},
			"on what is no pipe nor file": {func(cmd *exec.Cmd) { cmd.Stdin = null }, "credential-broker:"},
		} {
			t.Run(name, func(t *testing.T) {
				agent := newAgent(t, always(fast.Reply{Stdout: []byte("said by the agent")}))
				cmd := command(agent.socket)
				cmd.Stdin = strings.NewReader(`{"no":"request"}`)
				test.change(cmd)
				got := finish(t, cmd)
				if all := got.stdout + got.stderr; strings.Contains(all, "said by the agent") || !strings.Contains(all, test.want) {
					t.Errorf("%+v; want something with %q", got, test.want)
				}
				if n := len(agent.requests()); n != 0 {
					t.Errorf("%d requests", n)
				}
			})
		}
	})
}

func TestTheFlagForTheAgentWins(t *testing.T) {
	both(t, func(t *testing.T, command starter) {
		one, other := newAgent(t, always(fast.Reply{Stdout: []byte("one")})), newAgent(t, always(fast.Reply{Stdout: []byte("other")}))
		cmd := command(one.socket, "--agent", "/nonexistent", "--agent", other.socket)
		cmd.Stdin = strings.NewReader(aRequest)
		if got := finish(t, cmd); got != (ran{"other", "", 0}) {
			t.Errorf("%+v", got)
		}
		if n := len(one.requests()); n != 0 {
			t.Errorf("%d requests to the agent that the environment names", n)
		}
	})
}

// Whatever the agent says or does not say, main does the work then, and says why. Here the work is to say what is missing.
func TestMainDoesTheWorkWhereTheAgentDoesNot(t *testing.T) {
	config := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(config, []byte(`{apiVersion: credential-broker.io/v1alpha1, kind: BrokerConfig, backendDir: /nonexistent, providers: [
		{name: absent, backend: absent, matchImages: [registry.example], defaultCacheDuration: 0s}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	both(t, func(t *testing.T, command starter) {
		open := newAgent(t, always(fast.Reply{Stdout: []byte("answer")}))
		if err := os.Chmod(open.socket, 0o666); err != nil {
			t.Fatal(err)
		}
		says := func(reply string) string {
			return newListener(t, func(fast.Request) []byte { return []byte(reply) }).socket
		}
		unserved := func(text string) string {
			return newAgent(t, always(fast.Reply{Stdout: []byte("answer"), Unserved: text})).socket
		}
		for name, test := range map[string]struct{ socket, reason string }{
			"absent":                 {"/nonexistent/agent.sock", "/nonexistent does not exist"},
			"open to others":         {open.socket, "SOCKET is open to other users (mode 0666): take mode 0077 from it"},
			"no file":                {"/", "the agent's socket is not the absolute path of a file: SOCKET"},
			"of a place too long":    {"/" + strings.Repeat("long/", 4000) + "agent.sock", "the path of the agent's socket is longer than the 107 bytes that the system allows: /long/long/"},
			"unserved":               {unserved("other configuration"), "the agent on SOCKET does not serve this request: other configuration"},
			"of many words":          {unserved(strings.Repeat("word ", 100_000)), "the agent on SOCKET does not serve this request: word word "},
			"without an answer":      {says(""), "the agent on SOCKET hung up without an answer"},
			"with half a header":     {says("crbk\x01\x01"), "the agent on SOCKET hung up without an answer"},
			"of nonsense":            {says("HTTP/1.1 400 Bad Request\r\n\r\n"), "the agent on SOCKET cannot be understood: what came is no frame of an agent's"},
			"of another age":         {says("crbk\x0c\x0b\x02\x00\x00\x00\x00\x00"), "the agent on SOCKET cannot be understood: it speaks version 12 of the agent's language and wants at least version 11, this is version 1"},
			"with too large a frame": {says("crbk\x01\x01\x02\x00\xff\xff\xff\xff"), "the agent on SOCKET cannot be understood: a frame of more than 4194304 bytes"},
			"with another frame":     {says("crbk\x01\x01\x01\x00\x00\x00\x00\x00"), "the agent on SOCKET cannot be understood: a frame of kind 1 where one of kind 2 was expected"},
			"with a field cut off":   {says("crbk\x01\x01\x02\x00\x00\x00\x00\x05\x02\x00\x00\x00\x07"), "the agent on SOCKET cannot be understood: a reply with a field that is cut off"},
			"that works and dies":    {says(strings.Repeat("crbk\x01\x01\x03\x00\x00\x00\x00\x00", 1000)), "the agent on SOCKET hung up without an answer"},
		} {
			t.Run(name, func(t *testing.T) {
				cmd := command(test.socket, "--config", config)
				cmd.Stdin = strings.NewReader(aRequest)
				got := finish(t, cmd)
				reason := strings.ReplaceAll(test.reason, "SOCKET", test.socket)
				if got.status != 1 || got.stdout != "" || !strings.Contains(got.stderr, reason) || !strings.Contains(got.stderr, `backend "absent"`) { // and not that the request is empty
					t.Errorf("%d %q\n%s\nwant %s", got.status, got.stdout, got.stderr, reason)
				}
			})
		}
		if n := len(open.requests()); n != 0 {
			t.Errorf("%d requests to a socket that is open to others", n)
		}
	})
}

// While it waits for the agent, no other process of the same user may look into it: it holds a token. /proc says so by giving its files to root.
func TestTheWaitingProcessIsHardened(t *testing.T) {
	both(t, func(t *testing.T, command starter) {
		const nobody = 65534
		asked, answer := make(chan struct{}), make(chan struct{})
		agent := newAgent(t, func(fast.Request) fast.Reply {
			close(asked)
			<-answer
			return fast.Reply{}
		})
		give := sync.OnceFunc(func() { close(answer) })
		t.Cleanup(give) // before the agent's own
		cmd := command(agent.socket)
		cmd.Stdin = strings.NewReader(aRequest)
		if os.Geteuid() == 0 { // root's files are root's in any case
			for _, path := range []string{filepath.Dir(agent.socket), agent.socket} {
				if err := os.Chown(path, nobody, -1); err != nil {
					t.Fatal(err)
				}
			}
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		exited := make(chan error, 1)
		go func() { exited <- cmd.Wait() }()
		select {
		case <-asked:
		case err := <-exited:
			t.Fatalf("the agent was not asked: %v", err)
		}
		proc := filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid))
		if info, err := os.Stat(filepath.Join(proc, "status")); err != nil || info.Sys().(*syscall.Stat_t).Uid != 0 {
			t.Errorf("it can be looked into by its user: %v", err)
		}
		limits, err := os.ReadFile(filepath.Join(proc, "limits"))
		if err != nil {
			t.Fatal(err)
		}
		core := ""
		for line := range strings.Lines(string(limits)) {
			if strings.HasPrefix(line, "Max core file size") {
				core = strings.Join(strings.Fields(line)[4:6], " ")
			}
		}
		if core != "1 1" {
			t.Errorf("core files of %q bytes, want 1 and 1", core)
		}
		give()
		if err := <-exited; err != nil {
			t.Error(err)
		}
	})
}
