package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
	"github.com/credential-broker/credential-broker/proto/peer"
)

// child is the backend's process. It implements go-plugin's runner.Runner, because the library's own gives the backend this process's standard input, waits for its
// output without end, and believes any address the backend names.
//
// What the process gets: an environment made for it; as standard input a pipe on which nothing ever comes and whose end means that this process is gone (the
// lifeline); pipes as standard output and error; no other descriptor. It leads a process group, so that what it starts can be killed with it.
type child struct {
	path    string
	account *account // nil: as this process

	stdout, stderr *stream // where its output is kept
	gone           func()  // called soon after it has ended by itself
	awaitExit      func(pid int) bool

	cmd *exec.Cmd
	dir string // where the backend makes its socket; no other backend's

	lifeline  *os.File       // writing end, open for as long as the backend may live
	tap       *tap           // on its standard error
	handshake *io.PipeWriter // to go-plugin
	greeting  *io.PipeReader // go-plugin's end
	exited    chan struct{}  // closed when the process has been reaped, or never came to be
	drained   chan struct{}  // closed when its output has been read

	mu      sync.Mutex
	started bool
	reaped  bool
	killed  bool   // by this side
	alone   bool   // ended before this side killed it
	greeted bool   // its handshake has been seen and is good
	refusal error  // why this side will have nothing to do with it
	network string // where it listens, once that has been found good
	address string
}

// prepare makes the command from what go-plugin wants; dir is the directory for the backend's socket, which go-plugin has made for this backend alone.
func (c *child) prepare(env []string, dir string) error {
	c.dir = dir
	c.exited, c.drained = make(chan struct{}), make(chan struct{})
	c.greeting, c.handshake = io.Pipe()
	c.cmd = &exec.Cmd{Path: c.path, Args: []string{c.path}, Env: env, SysProcAttr: processAttributes(c.account)}
	if c.account == nil {
		return nil
	}
	if err := os.Chown(dir, c.account.uid, c.account.gid); err != nil {
		return errorf(backendv1.Error_KIND_UNAVAILABLE, "give the socket directory to user %q: %w", c.account.name, err)
	}
	return nil
}

// Start implements runner.Runner.
func (c *child) Start(context.Context) error {
	closeUninherited()
	files, err := c.pipes()
	if err != nil {
		c.refuse(systemError(fmt.Errorf("make the pipes of %s: %w", c.path, err)))
		close(c.exited)
		close(c.drained)
		return err
	}
	started := make(chan error)
	go c.own(files, started)
	return <-started
}

// files are the ends of the pipes that this side keeps for reading.
type files struct{ stdin, stdoutWrite, stderrWrite, stdout, stderr *os.File }

func (c *child) pipes() (f files, err error) {
	var open []*os.File
	pipe := func() (r, w *os.File) {
		if err != nil {
			return nil, nil
		}
		if r, w, err = os.Pipe(); err == nil {
			open = append(open, r, w)
		}
		return r, w
	}
	f.stdin, c.lifeline = pipe()
	f.stdout, f.stdoutWrite = pipe()
	f.stderr, f.stderrWrite = pipe()
	if err != nil {
		for _, file := range open {
			_ = file.Close()
		}
	}
	return f, err
}

// own starts the process and stays until it has ended. It keeps its thread to itself for that time: the signal that the kernel sends a backend when its parent dies
// is bound to the parent's thread, and Go may end any other.
func (c *child) own(f files, started chan<- error) {
	defer keepThread()()
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = f.stdin, f.stdoutWrite, f.stderrWrite
	c.tap = &tap{from: f.stderr, to: c.stderr}
	c.mu.Lock()
	err := context.Canceled
	if !c.killed {
		err = c.cmd.Start()
	}
	c.started, c.reaped = err == nil, err != nil
	c.mu.Unlock()
	_, _, _ = f.stdin.Close(), f.stdoutWrite.Close(), f.stderrWrite.Close()
	if err != nil {
		_, _, _ = f.stdout.Close(), f.stderr.Close(), c.lifeline.Close()
		_ = c.handshake.Close()
		c.refuse(c.execError(err))
		close(c.exited)
		close(c.drained)
		started <- err
		return
	}
	go c.drain(f)
	started <- nil

	unreaped := c.awaitExit(c.cmd.Process.Pid)
	if !unreaped {
		_ = c.cmd.Wait()
	}
	c.mu.Lock()
	killGroup(c.cmd.Process) // what a backend that has ended by itself leaves behind
	if unreaped {            // until now the process id was taken, so the group could be nobody else's; from now on kill must not use it
		_ = c.cmd.Wait()
	}
	c.reaped, c.alone = true, !c.killed
	alone := c.alone
	c.mu.Unlock()
	// What the backend started outside its group may hold these open.
	deadline := time.Now().Add(drainGrace)
	_, _ = f.stdout.SetReadDeadline(deadline), f.stderr.SetReadDeadline(deadline)
	_ = c.lifeline.Close()
	close(c.exited)
	if alone {
		time.AfterFunc(drainGrace, c.gone) // not at once: its last answer may still be on the way
	}
}

// execError says why a process could not be started.
func (c *child) execError(err error) error {
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, fs.ErrPermission) && c.account != nil:
		return errorf(backendv1.Error_KIND_MISCONFIGURED, "start the backend as user %q: %w: that user must be able to reach and execute the file", c.account.name, err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrNotExist):
		return errorf(backendv1.Error_KIND_MISCONFIGURED, "start the backend: %w: the file, and the interpreter it names if it is a script, must exist and be executable", err)
	case errors.Is(err, syscall.ENOEXEC):
		return errorf(backendv1.Error_KIND_MISCONFIGURED, "start the backend: %w: it is no program for this machine, or a script without its first line (#!/bin/sh)", err)
	default:
		return systemError(fmt.Errorf("start the backend: %w", err))
	}
}

// systemError is for what this machine, and not the backend, is short of.
func systemError(err error) *Error {
	switch {
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return errorf(backendv1.Error_KIND_UNAVAILABLE, "%w: raise the limit on open files (LimitNOFILE= of the kubelet's unit)", err)
	case errors.Is(err, syscall.EAGAIN):
		return errorf(backendv1.Error_KIND_UNAVAILABLE, "%w: raise the limit on processes (TasksMax= of the kubelet's unit)", err)
	default:
		return errorf(backendv1.Error_KIND_UNAVAILABLE, "%w", err)
	}
}

// drain reads the backend's output until it ends, so that a backend that prints a lot never waits for this side.
func (c *child) drain(f files) {
	defer close(c.drained)
	errDone := make(chan struct{})
	go func() {
		defer close(errDone)
		c.tap.run()
		c.tap.catchUp()
		_ = f.stderr.Close()
	}()
	greeter := &greeter{child: c, rest: c.stdout}
	lines := &splitter{emit: greeter.line}
	// A deadline that has passed keeps what is in the pipe already from being read, and on a busy machine it passes before this goroutine has its turn: hence the catching up.
	out := &tap{from: f.stdout, to: writerFunc(func(b []byte) (int, error) { greeter.count(len(b)); return lines.Write(b) })}
	out.run()
	out.catchUp()
	lines.end()
	_ = f.stdout.Close()
	_ = c.handshake.Close()
	<-errDone
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// kill sends SIGKILL to the backend's process group and returns at once. Killing it before it was started keeps it from being started.
func (c *child) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.killed = true
	if c.started && !c.reaped {
		killGroup(c.cmd.Process)
	}
}

// refuse records why this side will have nothing to do with the backend, and kills it. The first reason counts.
func (c *child) refuse(why error) {
	c.mu.Lock()
	if c.refusal == nil {
		c.refusal = why
	}
	c.mu.Unlock()
	c.kill()
}

// awaitOwnExit waits a moment for a backend that has closed its end of something, which is mostly because it is ending.
func (c *child) awaitOwnExit() {
	c.mu.Lock()
	refused := c.refusal != nil
	c.mu.Unlock()
	if !refused {
		c.await(ownExitGrace)
	}
}

// await waits until the process has ended, at most for the time given, and then until its output has been read, which its end bounds: a busy machine may take all of the first to start with.
func (c *child) await(atMost time.Duration) {
	if c.exited == nil {
		return // never prepared
	}
	timer := time.NewTimer(atMost)
	defer timer.Stop()
	select {
	case <-c.exited:
	case <-timer.C:
		return
	}
	timer.Reset(exitGrace)
	select {
	case <-c.drained:
	case <-timer.C: // what go-plugin does not read any more is not read
	}
}

// catchUp has what the backend has printed until now on its standard error, where package backends and most others print, read without waiting for the backend's end.
func (c *child) catchUp() {
	if c.pid() != 0 {
		c.tap.catchUp()
	}
}

// ended says how a process ended that nobody killed: "exited with status 2". Empty if it runs or was killed by this side.
func (c *child) ended() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.alone {
		return ""
	}
	state := c.cmd.ProcessState
	if state == nil {
		return "ended"
	}
	if code := state.ExitCode(); code >= 0 {
		return "exited with status " + strconv.Itoa(code)
	}
	return "ended by " + state.String() // "signal: killed"
}

func (c *child) hasGreeted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.greeted
}

func (c *child) pid() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.started {
		return 0
	}
	return c.cmd.Process.Pid
}

func (c *child) removeDir() {
	if c.dir != "" {
		_ = os.RemoveAll(c.dir)
	}
}

// Stdout implements runner.Runner. It gives go-plugin the handshake line and nothing else.
func (c *child) Stdout() io.ReadCloser { return c.greeting }

// Stderr implements runner.Runner. It gives go-plugin nothing, but ends when the process does.
func (c *child) Stderr() io.ReadCloser { return io.NopCloser(untilClosed(c.exited)) }

type untilClosed <-chan struct{}

func (u untilClosed) Read([]byte) (int, error) {
	<-u
	return 0, io.EOF
}

// Wait implements runner.Runner.
func (c *child) Wait(context.Context) error {
	<-c.exited
	return nil
}

// Kill implements runner.Runner. It does nothing: go-plugin calls it as soon as a start goes wrong, and how a backend ended by itself would not be known then. Whoever
// starts a process here stops it.
func (c *child) Kill(context.Context) error { return nil }

// Name implements runner.Runner.
func (c *child) Name() string { return c.path }

// ID implements runner.Runner. It is empty for a process that was never started, which tells go-plugin that there is nothing to kill.
func (c *child) ID() string {
	if pid := c.pid(); pid != 0 {
		return strconv.Itoa(pid)
	}
	return ""
}

// Diagnose implements runner.Runner.
func (c *child) Diagnose(context.Context) string { return "" }

// HostToPlugin implements runner.Runner. Nothing on this side listens.
func (c *child) HostToPlugin(string, string) (string, string, error) {
	return "", "", errors.New("the host offers no address")
}

// PluginToHost implements runner.Runner. It lets pass only a socket that the backend has made in the directory it was given: another address could belong to anybody,
// and what is sent there holds a token.
func (c *child) PluginToHost(network, address string) (string, string, error) {
	if err := c.checkAddress(network, address); err != nil {
		c.refuse(errorf(backendv1.Error_KIND_MISCONFIGURED, "%w", err))
		return "", "", err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.network, c.address = network, address
	return network, address, nil
}

func (c *child) checkAddress(network, address string) error {
	if network != "unix" {
		if loopbackAllowed && network == "tcp" {
			return checkLoopback(address)
		}
		return fmt.Errorf("the backend listens on %s %s: only a unix socket in PLUGIN_UNIX_SOCKET_DIR is used", network, quoted(address))
	}
	if filepath.Dir(address) != c.dir || filepath.Clean(address) != address {
		return fmt.Errorf("the backend listens on %s: only a socket directly in PLUGIN_UNIX_SOCKET_DIR (%s) is used", quoted(address), c.dir)
	}
	info, err := os.Lstat(address)
	if err != nil {
		return fmt.Errorf("look at the backend's socket: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("the backend listens on %s, which is no socket", quoted(address))
	}
	if owner, known := ownerOf(info); known && owner != c.uid() {
		return fmt.Errorf("the backend's socket %s belongs to user %d, not %d", quoted(address), owner, c.uid())
	}
	return nil
}

func checkLoopback(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err == nil && !net.ParseIP(host).IsLoopback() {
		err = fmt.Errorf("the backend listens on %s: only a loopback address is used", quoted(address))
	}
	return err
}

// uid is the user as whom the backend runs.
func (c *child) uid() int {
	if c.account != nil {
		return c.account.uid
	}
	return os.Getuid()
}

// dial connects to the backend, and makes sure that whoever listens is of the backend's user: between the look at the socket and this moment it can have been exchanged.
func (c *child) dial(ctx context.Context, _ string) (net.Conn, error) {
	c.mu.Lock()
	network, address, killed := c.network, c.address, c.killed
	c.mu.Unlock()
	if killed {
		return nil, errors.New("the backend has been stopped")
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if unix, ok := conn.(*net.UnixConn); ok {
		uid, known, err := peer.UID(unix)
		if err == nil && known && uid != c.uid() {
			err = fmt.Errorf("user %d listens on the backend's socket, not %d", uid, c.uid())
		}
		if err != nil {
			_ = conn.Close()
			c.refuse(errorf(backendv1.Error_KIND_UNAVAILABLE, "%w", err))
			return nil, err
		}
	}
	return conn, nil
}

// quoted is text of the backend's within a message of ours.
func quoted(s string) string {
	return strconv.Quote(clean(s, 200))
}

// clean makes text of a backend's fit for a message: valid, on one line, and at most so many bytes, not counting the ellipsis that stands for the rest.
func clean(s string, atMost int) string {
	cut := len(s) > atMost
	if cut {
		for atMost > 0 && !utf8.RuneStart(s[atMost]) {
			atMost-- // not through the middle of a character
		}
		s = s[:atMost]
	}
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || 0x80 <= r && r < 0xa0 || r == 0x2028 || r == 0x2029 {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "�"))
	if len(s) > atMost { // what replaces a bad byte is longer than the byte
		s, cut = strings.ToValidUTF8(s[:atMost], ""), true
	}
	s = strings.TrimSpace(s)
	if cut {
		s += "…"
	}
	return s
}
