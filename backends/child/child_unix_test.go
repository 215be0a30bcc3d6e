//go:build unix

package child

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/backends/child/guardian"
)

// The test's executable is also the programs that the tests run: what its first argument names.
const role = "CHILD_TEST_ROLE"

func TestMain(m *testing.M) {
	if os.Getenv(role) == "" {
		os.Exit(m.Run())
	}
	switch args := os.Args[1:]; args[0] {
	case "exit":
		n, _ := strconv.Atoi(args[1])
		fmt.Fprintln(os.Stderr, "about to exit")
		os.Exit(n)
	case "die":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "copy":
		_, _ = io.Copy(os.Stdout, os.Stdin)
	case "show":
		fmt.Printf("%q %q", os.Args[1:], os.Environ())
	case "files":
		open, _ := os.ReadDir("/dev/fd")
		for _, f := range open {
			if target, err := os.Readlink("/dev/fd/" + f.Name()); err == nil && !strings.Contains(target, "anon_inode") {
				fmt.Println(f.Name())
			}
		}
	case "flood":
		line := bytes.Repeat([]byte("x"), 64<<10)
		out := os.Stdout
		if args[1] == "stderr" {
			out = os.Stderr
		}
		n, _ := strconv.Atoi(args[2])
		for i := 0; n == 0 || i < n; i++ {
			if _, err := out.Write(line); err != nil {
				signal.Ignore(syscall.SIGPIPE)
				time.Sleep(time.Hour) //nolint:forbidigo // a program that does not care
			}
		}
	case "hold":
		hold(args[1])
	case "fork": // ends and leaves a grandchild in a session of its own
		start(&syscall.SysProcAttr{Setsid: true}, "hold", args[1])
	case "tree":
		start(nil, "hold", args[1])
		start(&syscall.SysProcAttr{Setsid: true}, "hold", args[1])
		start(&syscall.SysProcAttr{Setpgid: true}, "fork", args[1])
		hold(args[1])
	case "leave":
		start(&syscall.SysProcAttr{Setsid: true}, "hold", args[1])
		wait(args[1] + ".held")
		fmt.Print("answer")
	case "backend": // runs a program as a backend would, until it is killed
		_, err := Run(context.Background(), Command{Path: executable(), Args: args[1:], Env: []string{role + "=1"}})
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(0)
}

func executable() string {
	path, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return path
}

// hold lives until it is killed; the other end of a connection can tell.
func hold(socket string) {
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	conn, err := net.Dial("unix", socket)
	if err != nil {
		panic(err)
	}
	_, _ = conn.Write([]byte("x"))
	_, _ = io.Copy(io.Discard, conn)
	time.Sleep(time.Hour) //nolint:forbidigo // a program that does not end
}

func wait(path string) {
	for {
		if _, err := os.Stat(path); err == nil {
			return
		}
		time.Sleep(time.Millisecond) //nolint:forbidigo // polls; the test that started it has the deadline
	}
}

func start(attr *syscall.SysProcAttr, args ...string) {
	cmd := exec.Command(executable(), args...)
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = os.Stdout, os.Stderr, attr
	if err := cmd.Start(); err != nil {
		panic(err)
	}
}

// holders is what programs that hold connect to.
type holders struct {
	t      *testing.T
	socket string
	l      *net.UnixListener
	conns  []net.Conn
}

func newHolders(t *testing.T) *holders {
	t.Helper()
	dir, err := os.MkdirTemp("", "child") // t.TempDir's names are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	h := &holders{t: t, socket: filepath.Join(dir, "s")}
	l, err := net.Listen("unix", h.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	h.l = l.(*net.UnixListener)
	return h
}

// arrive waits until so many programs hold.
func (h *holders) arrive(n int) {
	h.t.Helper()
	_ = h.l.SetDeadline(time.Now().Add(time.Minute))
	for range n {
		conn, err := h.l.Accept()
		if err != nil {
			h.t.Fatalf("%d of %d programs came: %v", len(h.conns), n, err)
		}
		h.t.Cleanup(func() { conn.Close() })
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			h.t.Fatal(err)
		}
		h.conns = append(h.conns, conn)
	}
}

// areDead fails unless all of them die within the time.
func (h *holders) areDead(within time.Duration) {
	h.t.Helper()
	began := time.Now()
	for i, conn := range h.conns {
		_ = conn.SetReadDeadline(began.Add(within))
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			h.t.Errorf("program %d is still alive after %v", i, within)
		}
	}
	h.t.Logf("all dead after %v", time.Since(began))
}

func command(args ...string) Command {
	return Command{Path: executable(), Args: args, Env: []string{role + "=1"}}
}

// soon bounds what a test waits for; a busy machine may need it, a wrong program needs longer.
const soon = 10 * time.Second

func TestRun(t *testing.T) {
	script := func(t *testing.T, content string, mode os.FileMode) string {
		path := filepath.Join(t.TempDir(), "program")
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	big := bytes.Repeat([]byte("0123456789abcdef"), 64<<10) // 1 MiB: more than a pipe holds
	tests := []struct {
		name    string
		command func(t *testing.T) Command
		stdout  string
		stderr  string
		err     func(error) bool // nil: no error
	}{
		{
			name:    "a program's output is returned",
			command: func(*testing.T) Command { c := command("copy"); c.Stdin = []byte("hello"); return c }, stdout: "hello",
		},
		{
			name:    "standard input larger than a pipe is copied whole",
			command: func(*testing.T) Command { c := command("copy"); c.Stdin = big; return c }, stdout: string(big),
		},
		{
			name:    "standard input that the program does not read is no error",
			command: func(*testing.T) Command { c := command("exit", "0"); c.Stdin = big; return c }, stderr: "about to exit\n",
		},
		{
			name: "arguments and environment arrive exactly, and nothing else",
			command: func(*testing.T) Command {
				c := command("show", "", "a b", "ü\n")
				c.Env = append(c.Env, "EMPTY=", "B=x=y", "ODD NAME=1")
				return c
			},
			stdout: fmt.Sprintf("%q %q", []string{"show", "", "a b", "ü\n"}, []string{role + "=1", "EMPTY=", "B=x=y", "ODD NAME=1"}),
		},
		{
			name:    "an exit status is reported, with standard error",
			command: func(*testing.T) Command { return command("exit", "137") }, stderr: "about to exit\n",
			err: func(err error) bool { var e *ExitError; return errors.As(err, &e) && *e == ExitError{Code: 137} },
		},
		{
			name:    "a signal is told from an exit status",
			command: func(*testing.T) Command { return command("die") },
			err: func(err error) bool {
				var e *ExitError
				return errors.As(err, &e) && *e == ExitError{Code: -1, Signal: syscall.SIGKILL} && strings.Contains(err.Error(), "signal 9")
			},
		},
		{
			name: "a missing program", command: func(*testing.T) Command { return Command{Path: "/nowhere/program"} },
			err: func(err error) bool {
				return isStart(err, syscall.ENOENT) && strings.Contains(err.Error(), "/nowhere/program")
			},
		},
		{
			name: "a program that is not executable", command: func(t *testing.T) Command { return Command{Path: script(t, "#!/bin/sh\n", 0o644)} },
			err: func(err error) bool { return isStart(err, syscall.EACCES) },
		},
		{
			name: "a script without its first line", command: func(t *testing.T) Command { return Command{Path: script(t, "echo x\n", 0o755)} },
			err: func(err error) bool { return isStart(err, syscall.ENOEXEC) },
		},
		{
			name: "a script with its first line", command: func(t *testing.T) Command {
				return Command{Path: script(t, "#!/bin/sh\necho $#", 0o755), Args: []string{"a", "b"}}
			},
			stdout: "2\n",
		},
		{
			name: "a relative path", command: func(*testing.T) Command { return Command{Path: "program"} },
			err: func(err error) bool { return strings.Contains(err.Error(), "not absolute") },
		},
		{
			name: "a zero byte", command: func(*testing.T) Command { return command("a\x00b") },
			err: func(err error) bool { return strings.Contains(err.Error(), "zero byte") },
		},
		{
			name: "an environment larger than a socket's buffer",
			command: func(*testing.T) Command {
				c := command("exit", "0")
				for i := range 10 {
					c.Env = append(c.Env, fmt.Sprintf("V%d=%s", i, strings.Repeat("x", 100_000)))
				}
				return c
			}, stderr: "about to exit\n",
		},
		{
			name:    "standard error is kept from the end, within bounds",
			command: func(*testing.T) Command { c := command("flood", "stderr", "100"); c.MaxStderr = 10; return c }, stderr: "xxxxxxxxxx",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			got, err := Run(ctx, tt.command(t))
			switch {
			case tt.err == nil && err != nil:
				t.Fatal(err)
			case tt.err != nil && (err == nil || !tt.err(err)):
				t.Fatalf("the wrong error: %v", err)
			}
			if string(got.Stdout) != tt.stdout {
				t.Errorf("standard output is %.200q, want %.200q", got.Stdout, tt.stdout)
			}
			if string(got.Stderr) != tt.stderr {
				t.Errorf("standard error is %.200q, want %.200q", got.Stderr, tt.stderr)
			}
		})
	}
}

func isStart(err error, errno syscall.Errno) bool {
	var e *StartError
	return errors.As(err, &e) && errors.Is(err, errno)
}

func TestRunGivesTheProgramNoDescriptorOfItsOwn(t *testing.T) {
	c := command("files")
	got, err := Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	// What the test itself was started with may be open in any child process.
	plain := exec.Command(c.Path, c.Args...)
	plain.Env = c.Env
	want, err := plain.Output()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Stdout, want) {
		t.Errorf("open in the program: %q, without a guardian: %q", got.Stdout, want)
	}
}

func TestRunKillsAProgramThatPrintsTooMuch(t *testing.T) {
	c := command("flood", "stdout", "0")
	c.MaxStdout = 1 << 20
	began := time.Now()
	got, err := Run(t.Context(), c)
	if !errors.Is(err, ErrOutput) {
		t.Fatalf("got %v, want ErrOutput", err)
	}
	if len(got.Stdout) > c.MaxStdout {
		t.Errorf("%d bytes were kept", len(got.Stdout))
	}
	if took := time.Since(began); took > soon {
		t.Errorf("it took %v", took)
	}
}

// treeSize is how many of the tree's programs a killed group takes along; on Linux those in groups and sessions of their own too.
func treeSize() (started, killed int) { //nolint:unparam // two numbers of one thing
	if runtime.GOOS == "linux" {
		return 4, 4
	}
	return 4, 2
}

func TestRunKillsEverythingWhenItsContextEnds(t *testing.T) {
	h := newHolders(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := Run(ctx, command("tree", h.socket))
		done <- err
	}()
	started, killed := treeSize()
	h.arrive(started)
	enough := errors.New("enough")
	cancel(enough)
	if err := <-done; !errors.Is(err, enough) {
		t.Errorf("got %v, want the context's cause", err)
	}
	h.conns = h.conns[:killed]
	h.areDead(soon)
}

func TestRunLeavesNothingWhenTheBackendIsKilled(t *testing.T) {
	h := newHolders(t)
	backend := exec.Command(executable(), "backend", "tree", h.socket)
	backend.Env = []string{role + "=1"}
	backend.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := backend.Start(); err != nil {
		t.Fatal(err)
	}
	started, killed := treeSize()
	h.arrive(started)
	if err := syscall.Kill(-backend.Process.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = backend.Wait()
	h.conns = h.conns[:killed]
	h.areDead(soon)
}

func TestRunDoesNotWaitForAForkThatKeepsThePipe(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Log("only Linux can find a child in a session of its own; there the answer comes after the grace")
	}
	h := newHolders(t)
	go func() {
		h.arrive(1)
		_ = os.WriteFile(h.socket+".held", nil, 0o600)
	}()
	began := time.Now()
	got, err := Run(t.Context(), command("leave", h.socket))
	if err != nil {
		t.Fatal(err)
	}
	if string(got.Stdout) != "answer" {
		t.Errorf("got %q", got.Stdout)
	}
	if took := time.Since(began); took > soon {
		t.Errorf("the answer took %v", took)
	}
	if runtime.GOOS == "linux" {
		h.areDead(soon)
	}
}

func TestRunIsDoneBeforeItBeginsWithAnEndedContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, command("exit", "0")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestRunManyAtOnce(t *testing.T) {
	errs := make(chan error)
	const n = 16
	for i := range n {
		go func() {
			c := command("copy")
			c.Stdin = fmt.Appendf(nil, "input %d", i)
			got, err := Run(t.Context(), c)
			if err == nil && !bytes.Equal(got.Stdout, c.Stdin) {
				err = fmt.Errorf("got %q, want %q", got.Stdout, c.Stdin)
			}
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// TestTheGuardianTakesOverEarly looks at what the Go runtime says it has initialised when package guardian's turn comes: what a guardian costs.
func TestTheGuardianTakesOverEarly(t *testing.T) {
	cmd := exec.Command(executable())
	cmd.Env = []string{guardian.Variable + "=1", "GODEBUG=inittrace=1"}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err == nil || cmd.ProcessState.ExitCode() != guardian.ExitBroken {
		t.Fatalf("a guardian without a request ended with %v, want exit status %d", err, guardian.ExitBroken)
	}
	var before []string
	for line := range strings.Lines(stderr.String()) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "init" {
			before = append(before, fields[1])
		}
	}
	t.Logf("initialised before the guardian: %q", before)
	for _, name := range before {
		if slices.Contains([]string{"os", "fmt", "time", "reflect", "testing", "net"}, name) || strings.Contains(name, ".") {
			t.Errorf("%s is initialised before the guardian", name)
		}
	}
	if !strings.Contains(stderr.String(), "unset the variable") {
		t.Errorf("it does not say what to do: %q", stderr.String())
	}
}

func BenchmarkRun(b *testing.B) {
	b.Run("under a guardian", func(b *testing.B) {
		for b.Loop() {
			if _, err := Run(b.Context(), Command{Path: "/bin/true"}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("without", func(b *testing.B) {
		for b.Loop() {
			if err := exec.Command("/bin/true").Run(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
