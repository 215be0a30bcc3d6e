//go:build amd64 || arm64 || loong64 || riscv64

package fast

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// hurried are bounds for agents that do not answer, so that tests need not wait.
var hurried = bounds{silence: 50_000_000, whole: 10 * second, input: 50_000_000}

// place is a directory for a socket, of a short path and in order.
func place(t *testing.T) (dir, socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "fast")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir, filepath.Join(dir, "agent.sock")
}

// agent listens on a socket and does with each connection what serve says.
func agent(t *testing.T, serve func(conn net.Conn)) (socket string) {
	t.Helper()
	_, socket = place(t)
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			serve(conn)
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		listener.Close()
		<-ended
	})
	return socket
}

// readRequest reads one frame from an asker.
func readRequest(t *testing.T, conn net.Conn) Request {
	header := make([]byte, HeaderSize)
	if _, err := io.ReadFull(conn, header); err != nil {
		t.Error(err)
		return Request{}
	}
	h, problem := ParseHeader(header)
	if problem != "" {
		t.Error(problem)
		return Request{}
	}
	payload := make([]byte, h.Length)
	if _, err := io.ReadFull(conn, payload); err != nil {
		t.Error(err)
		return Request{}
	}
	r, problem := DecodeRequest(h, payload)
	if problem != "" {
		t.Error(problem)
	}
	return r
}

// replying is an agent that answers a request with these bytes, and with the connection's end.
func replying(t *testing.T, answer []byte) (socket string) {
	return agent(t, func(conn net.Conn) {
		_ = readRequest(t, conn)
		_, _ = conn.Write(answer)
	})
}

// silent reads the connection's end, and says nothing.
func silent(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

func TestAskingAnAgent(t *testing.T) {
	want := Request{Operation: Get, Config: "/c", BackendDir: "/b", Audience: "a", HasAudience: true, Body: bytes.Repeat([]byte("request "), 1<<17)}
	answer := Reply{Status: 3, Stdout: bytes.Repeat([]byte("answer "), 1<<18), Stderr: []byte("said")}
	socket := agent(t, func(conn net.Conn) {
		if got := readRequest(t, conn); !bytes.Equal(AppendRequest(nil, got), AppendRequest(nil, want)) {
			t.Error("another request came than was sent")
		}
		_, _ = conn.Write(AppendReply(nil, answer))
	})
	got, reason, absent := Ask(socket, want)
	if reason != "" || absent || got.Status != answer.Status || !bytes.Equal(got.Stdout, answer.Stdout) || !bytes.Equal(got.Stderr, answer.Stderr) {
		t.Errorf("reason %q, absent %t, status %d, %d bytes and %q", reason, absent, got.Status, len(got.Stdout), got.Stderr)
	}
}

func TestAnAnswerInManyPieces(t *testing.T) {
	answer := Reply{Stdout: []byte("out"), Stderr: []byte("err")}
	frames := AppendReply(AppendWorking(AppendWorking(nil)), answer)
	socket := agent(t, func(conn net.Conn) {
		_ = readRequest(t, conn)
		for i := range frames {
			_, _ = conn.Write(frames[i : i+1])
		}
	})
	got, reason, _ := Ask(socket, Request{Operation: Resolve})
	if reason != "" || string(got.Stdout) != "out" || string(got.Stderr) != "err" {
		t.Errorf("reason %q, %q and %q", reason, got.Stdout, got.Stderr)
	}
}

func TestAnAnswerTogetherWithWhatComesBeforeAndBehindIt(t *testing.T) {
	// What the agent says behind its reply is not for this asker.
	frames := append(AppendReply(AppendWorking(AppendWorking(nil)), Reply{Stdout: []byte("out")}), "more"...)
	got, reason, _ := Ask(replying(t, frames), Request{Operation: Resolve})
	if reason != "" || string(got.Stdout) != "out" {
		t.Errorf("reason %q, %q", reason, got.Stdout)
	}
}

func TestAnAgentThatWorksIsWaitedFor(t *testing.T) {
	within := bounds{silence: second, whole: 60 * second}
	socket := agent(t, func(conn net.Conn) {
		_ = readRequest(t, conn)
		ticker := time.NewTicker(50 * time.Millisecond)
		defer ticker.Stop()
		for range 30 { // half as long again as silence is put up with
			<-ticker.C
			_, _ = conn.Write(AppendWorking(nil))
		}
		_, _ = conn.Write(AppendReply(nil, Reply{Stdout: []byte("done")}))
	})
	got, reason, _ := ask(socket, Request{Operation: Resolve}, within)
	if reason != "" || string(got.Stdout) != "done" {
		t.Errorf("reason %q, %q", reason, got.Stdout)
	}
}

func TestAnAgentThatWorksForEverIsGivenUp(t *testing.T) {
	within := bounds{silence: 10 * second, whole: second / 5}
	socket := agent(t, func(conn net.Conn) {
		_ = readRequest(t, conn)
		ticker := time.NewTicker(10 * time.Millisecond)
		defer ticker.Stop()
		for range ticker.C {
			if _, err := conn.Write(AppendWorking(nil)); err != nil {
				return
			}
		}
	})
	if _, reason, absent := ask(socket, Request{Operation: Resolve}, within); !strings.Contains(reason, "has not answered in time") || absent {
		t.Errorf("reason %q, absent %t", reason, absent)
	}
}

func TestAnAgentThatDoesNotAnswer(t *testing.T) {
	reply := AppendReply(nil, Reply{Stdout: []byte("out")})
	wants2 := append([]byte{}, reply...)
	wants2[4], wants2[5] = 3, 2
	tooLong := append(append([]byte{}, reply[:8]...), 0xff, 0xff, 0xff, 0xff)
	for name, test := range map[string]struct {
		socket string
		want   string
	}{
		"silent after it was asked":   {agent(t, silent), "is silent"},
		"silent in the middle":        {agent(t, func(conn net.Conn) { _, _ = conn.Write(reply[:20]); silent(conn) }), "is silent"},
		"one that hangs up":           {replying(t, nil), "hung up"},
		"one that hangs up at once":   {agent(t, func(net.Conn) {}), ""}, // the reason is of who is first
		"one that hangs up in a head": {replying(t, reply[:5]), "hung up"},
		"one that hangs up in a body": {replying(t, reply[:len(reply)-1]), "hung up"},
		"one that talks nonsense":     {replying(t, []byte("HTTP/1.1 400 Bad Request\r\n\r\n")), "no frame of an agent's"},
		"one of a later version":      {replying(t, wants2), "it speaks version 3"},
		"one that answers too much":   {replying(t, tooLong), "more than 4194304 bytes"},
		"one that asks back":          {replying(t, AppendRequest(nil, Request{Operation: Get})), "kind 1 where one of kind 2"},
		"one that has no status":      {replying(t, append(appendHeader(nil, KindReply)[:8], 0, 0, 0, 0)), "without an exit status"},
		"one that does not serve":     {replying(t, AppendReply(nil, Reply{Unserved: "other configuration"})), "does not serve this request: other configuration"},
	} {
		t.Run(name, func(t *testing.T) {
			within := usual
			if test.want == "is silent" {
				within = hurried
			}
			got, reason, absent := ask(test.socket, Request{Operation: Resolve, Body: []byte("{}")}, within)
			if reason == "" || !strings.Contains(reason, test.want) || absent {
				t.Errorf("reason %q, absent %t; want one with %q", reason, absent, test.want)
			}
			if got.Stdout != nil {
				t.Errorf("an answer all the same: %q", got.Stdout)
			}
		})
	}
}

func TestAnAgentThatDoesNotTakeTheRequest(t *testing.T) {
	end := make(chan struct{})
	socket := agent(t, func(net.Conn) { <-end })
	defer close(end)
	request := Request{Operation: Resolve, Body: make([]byte, MaxFrame-100)}
	if _, reason, absent := ask(socket, request, hurried); !strings.Contains(reason, "is silent") || absent {
		t.Errorf("reason %q, absent %t", reason, absent)
	}
	request.Body = make([]byte, MaxFrame)
	if _, reason, _ := ask(socket, request, hurried); !strings.Contains(reason, "longer than") {
		t.Errorf("a request too long for a frame: reason %q", reason)
	}
}

// listen makes a socket with a backlog that is full with the first connection.
func listen(t *testing.T, socket string, before func()) (fd int) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: socket}); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		t.Fatal(err)
	}
	before()
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	return fd
}

func TestAnAgentThatIsLateToAcceptIsWaitedFor(t *testing.T) {
	_, socket := place(t)
	listener := listen(t, socket, func() {})
	first, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	var served sync.WaitGroup
	served.Go(func() {
		<-time.After(200 * time.Millisecond)
		for _, answer := range [][]byte{nil, AppendReply(nil, Reply{Stdout: []byte("late")})} {
			fd, _, err := syscall.Accept(listener)
			if err != nil {
				t.Error(err)
				return
			}
			conn := os.NewFile(uintptr(fd), "connection")
			if answer != nil {
				_, _ = conn.Read(make([]byte, 1000))
				_, _ = conn.Write(answer)
			}
			conn.Close()
		}
	})
	got, reason, _ := Ask(socket, Request{Operation: Resolve})
	if reason != "" || string(got.Stdout) != "late" {
		t.Errorf("reason %q, %q", reason, got.Stdout)
	}
	served.Wait()
}

func TestAnAgentThatAcceptsNothing(t *testing.T) {
	_, socket := place(t)
	_ = listen(t, socket, func() {})
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	began := time.Now()
	_, reason, absent := ask(socket, Request{Operation: Resolve}, hurried)
	if !strings.Contains(reason, "accepts no connection") || absent {
		t.Errorf("reason %q, absent %t", reason, absent)
	}
	if took := time.Since(began); took < time.Duration(hurried.silence) {
		t.Errorf("given up after %s: a full backlog is waited for", took)
	}
}

func TestAnAgentIsAbsent(t *testing.T) {
	dir, socket := place(t)
	for name, path := range map[string]string{"no directory": dir + "/none/agent.sock", "no socket": socket} {
		if _, reason, absent := Ask(path, Request{Operation: Resolve}); !strings.Contains(reason, "does not exist") || !absent {
			t.Errorf("%s: reason %q, absent %t", name, reason, absent)
		}
	}
	// A socket that an agent has left behind.
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false)
	listener.Close()
	if err := os.Chmod(socket, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, reason, absent := Ask(socket, Request{Operation: Resolve}); !strings.Contains(reason, "nobody listens") || !absent {
		t.Errorf("a socket that is left behind: reason %q, absent %t", reason, absent)
	}
}

// neverAsked is an agent that must not be told anything.
func neverAsked(t *testing.T) (socket string) {
	return agent(t, func(conn net.Conn) {
		got, _ := io.ReadAll(conn)
		if len(got) > 0 {
			t.Errorf("%d bytes were sent to a socket in the wrong hands", len(got))
		}
	})
}

func TestASocketThatIsNotTrusted(t *testing.T) {
	refused := func(t *testing.T, socket, want string) {
		t.Helper()
		if _, reason, absent := ask(socket, Request{Operation: Resolve}, hurried); !strings.Contains(reason, want) || absent {
			t.Errorf("reason %q, absent %t; want one with %q", reason, absent, want)
		}
	}
	t.Run("a path that is not absolute", func(t *testing.T) {
		refused(t, "agent.sock", "not the absolute path")
		refused(t, "@agent", "not the absolute path")
		refused(t, "", "not the absolute path")
		refused(t, "/run/agent/", "not the absolute path")
	})
	t.Run("a path that is too long", func(t *testing.T) { refused(t, "/"+strings.Repeat("x", 107), "longer than the 107 bytes") })
	for mode, want := range map[os.FileMode]string{0o770: "mode 0770", 0o707: "mode 0707", 0o720: "mode 0720", 0o1777: "open to other users"} {
		t.Run("a directory of mode "+mode.String(), func(t *testing.T) {
			socket := neverAsked(t)
			if err := os.Chmod(filepath.Dir(socket), mode); err != nil {
				t.Fatal(err)
			}
			refused(t, socket, want)
		})
	}
	for mode, want := range map[os.FileMode]string{0o660: "mode 0660", 0o606: "mode 0606", 0o601: "mode 0601", 0o640: "mode 0640", 0o610: "mode 0610"} {
		t.Run("a socket of mode "+mode.String(), func(t *testing.T) {
			socket := neverAsked(t)
			if err := os.Chmod(socket, mode); err != nil {
				t.Fatal(err)
			}
			refused(t, socket, want)
		})
	}
	t.Run("a symbolic link to a socket", func(t *testing.T) {
		target := neverAsked(t)
		_, socket := place(t)
		if err := os.Symlink(target, socket); err != nil {
			t.Fatal(err)
		}
		refused(t, socket, "is no socket")
	})
	t.Run("a symbolic link to the directory", func(t *testing.T) {
		target := neverAsked(t)
		dir, _ := place(t)
		if err := os.Symlink(filepath.Dir(target), dir+"/link"); err != nil {
			t.Fatal(err)
		}
		refused(t, dir+"/link/agent.sock", "is no directory")
	})
	t.Run("a file", func(t *testing.T) {
		_, socket := place(t)
		if err := os.WriteFile(socket, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		refused(t, socket, "is no socket")
	})
}

func TestAnotherUsersSocketIsNotTrusted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("NOT RUN: only root can give files to other users")
		return
	}
	const nobody = 65534
	refused := func(t *testing.T, socket, want string) {
		t.Helper()
		if _, reason, absent := ask(socket, Request{Operation: Resolve}, hurried); !strings.Contains(reason, "another user (uid 65534) "+want) || absent {
			t.Errorf("reason %q, absent %t", reason, absent)
		}
	}
	t.Run("another's directory", func(t *testing.T) {
		socket := neverAsked(t)
		if err := os.Chown(filepath.Dir(socket), nobody, -1); err != nil {
			t.Fatal(err)
		}
		refused(t, socket, "owns "+filepath.Dir(socket))
	})
	t.Run("another's socket", func(t *testing.T) {
		socket := neverAsked(t)
		if err := os.Chown(socket, nobody, -1); err != nil {
			t.Fatal(err)
		}
		refused(t, socket, "owns "+socket)
	})
	t.Run("another listens", func(t *testing.T) {
		// The kernel notes who calls listen(2). This thread alone is someone else for that long.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		become := func(uid int) {
			if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
				t.Fatal(errno)
			}
		}
		_, socket := place(t)
		_ = listen(t, socket, func() { become(nobody) })
		become(0)
		refused(t, socket, "listens on "+socket)
	})
}

func TestTheRequestIsReadToItsEnd(t *testing.T) {
	const before = "head"
	for name, test := range map[string]struct {
		write int
		close bool
		keep  int
		want  inputEnd
	}{
		"nothing":            {0, true, 0, inputEnded},
		"a request":          {1000, true, 1000, inputEnded},
		"the longest":        {maxInput, true, maxInput, inputEnded},
		"a byte too long":    {maxInput + 1, true, maxInput + 1, inputTooLong},
		"much too long":      {maxInput * 2, false, maxInput + 1, inputTooLong},
		"one without an end": {5000, false, 5000, inputOverdue},
		"nothing but no end": {0, false, 0, inputOverdue},
	} {
		t.Run(name, func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			sent := bytes.Repeat([]byte("0123456"), test.write/7+1)[:test.write]
			write := func() {
				_, _ = w.Write(sent)
				if test.close {
					w.Close()
				}
			}
			var written sync.WaitGroup
			if len(sent) < 64<<10 { // what a pipe takes at once
				write()
			} else {
				written.Go(write)
			}
			deadline := monotonic() + 10*second
			if test.want == inputOverdue {
				deadline = monotonic() + hurried.input
			}
			got, end := readInput(int(r.Fd()), append(make([]byte, 0, len(before)+maxInput+1), before...), deadline)
			r.Close()
			written.Wait()
			w.Close()
			if end != test.want {
				t.Errorf("ended with %q, want %q", end, test.want)
			}
			if want := before + string(sent[:test.keep]); string(got) != want {
				t.Errorf("got %d bytes, want %d, or others", len(got), len(want))
			}
		})
	}
}

func TestVariablesAreFoundInTheEnvironment(t *testing.T) {
	for name, test := range map[string]struct{ environ, want string }{
		"first of all":          {"NAME=a\x00OTHER=b\x00", "a"},
		"last of all":           {"OTHER=b\x00NAME=a=b\x00", "a=b"},
		"first of two":          {"NAME=a\x00NAME=b\x00", "a"},
		"empty":                 {"NAME=\x00", ""},
		"absent":                {"OTHER=b\x00", ""},
		"longer name":           {"NAMES=a\x00XNAME=b\x00", ""},
		"in another's value":    {"OTHER=NAME=a\x00", ""},
		"without equals":        {"NAME\x00", ""},
		"behind an empty entry": {"\x00\x00NAME=a\x00", "a"},
		"cut off":               {"NAME=a", ""},
		"nothing":               {"", ""},
	} {
		if got := findVariable([]byte(test.environ), "NAME"); got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

func TestNumbersAreWrittenAsPeopleDo(t *testing.T) {
	for n, want := range map[int]string{0: "0", 7: "7", 10: "10", 4294967295: "4294967295", -12: "-12"} {
		if got := decimal(n); got != want {
			t.Errorf("decimal: %q, want %q", got, want)
		}
	}
	for mode, want := range map[uint16]string{0o22: "0022", 0o1777: "1777", 0: "0000"} {
		if got := octal(mode); got != want {
			t.Errorf("octal: %q, want %q", got, want)
		}
	}
}
