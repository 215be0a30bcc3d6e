// Package child runs a program from a backend: with exactly the environment it is given, a bounded output, and an end that is certain. When Run returns, or the backend
// dies in whatever way, the program and all that it started are killed.
//
// On Unix the program runs under a guardian (see package guardian), a second process of the backend's own executable that outlives the backend for just long enough. On Linux no
// descendant gets away; on other Unix systems one that makes a process group or session of its own does. On Windows there is no guardian: the program itself is
// killed when its context ends, and what it has started, or what runs when the backend is killed, is not.
package child

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"
)

// Command is a program to run.
type Command struct {
	// Path is the program's absolute path.
	Path string
	// Args are its arguments, without its name. Never a secret: everybody on the machine can read them.
	Args []string
	// Env is its whole environment, "NAME=value" each.
	Env []string
	// Stdin is what it can read on standard input. It need not read it.
	Stdin []byte
	// MaxStdout is how many bytes it may print on standard output; it is killed when it prints more. 0: 1 MiB.
	MaxStdout int
	// MaxStderr is how many bytes of the end of its standard error are kept. 0: 16 KiB.
	MaxStderr int
}

// Result is what a program printed, as far as it got.
type Result struct {
	// Stdout may be secret.
	Stdout []byte
	// Stderr is the end of its standard error, in whole lines if it was cut. It may quote secrets.
	Stderr []byte
}

// ErrOutput says that the program printed more on standard output than it may.
var ErrOutput = errors.New("it printed too much on standard output and was killed")

// StartError says that the program could not be started: it is missing, not executable and the like.
type StartError struct {
	Path string
	Err  error // a syscall.Errno where the system said why
}

func (e *StartError) Error() string {
	hint := ""
	switch {
	case errors.Is(e.Err, syscall.ENOENT):
		hint = ": it does not exist, or the interpreter that its first line names does not"
	case errors.Is(e.Err, syscall.ENOEXEC):
		hint = ": it is neither a program for this machine nor a script with a first line such as #!/bin/sh"
	case errors.Is(e.Err, syscall.EACCES):
		hint = ": it is not executable, or on a file system that is mounted noexec"
	}
	return fmt.Sprintf("start %s: %v%s", e.Path, e.Err, hint)
}

func (e *StartError) Unwrap() error { return e.Err }

// ExitError says that the program ended and did not succeed.
type ExitError struct {
	// Code is its exit status, or -1 if a signal ended it.
	Code int
	// Signal is what ended it, or 0.
	Signal syscall.Signal
}

func (e *ExitError) Error() string {
	if e.Signal != 0 {
		return fmt.Sprintf("ended by signal %d (%v)", int(e.Signal), e.Signal)
	}
	return fmt.Sprintf("exit status %d", e.Code)
}

// grace is how long Run waits, after everything has been killed, for what cannot be killed at once (a process deep in the kernel).
const grace = 3 * time.Second

// Run runs the program and waits until it has ended and nothing of it is left. The error is nil if it exited with status 0, else a *StartError, an *ExitError, ErrOutput, the
// cause of ctx's end, or one that says what went wrong on this side. The Result is what was printed until then, in every case.
func Run(ctx context.Context, c Command) (Result, error) {
	if err := check(c); err != nil {
		return Result{}, &StartError{Path: c.Path, Err: err}
	}
	if c.MaxStdout == 0 {
		c.MaxStdout = 1 << 20
	}
	if c.MaxStderr == 0 {
		c.MaxStderr = 16 << 10
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if ctx.Err() != nil {
		return Result{}, context.Cause(ctx)
	}
	stdout := &limited{most: c.MaxStdout, overflow: func() { cancel(ErrOutput) }}
	stderr := &tail{most: c.MaxStderr}
	err := run(ctx, c, stdout, stderr)
	result := Result{Stdout: stdout.bytes(), Stderr: stderr.bytes()}
	if stdout.full {
		return result, ErrOutput
	}
	var start *StartError
	if err != nil && ctx.Err() != nil && !errors.As(err, &start) {
		return result, context.Cause(ctx)
	}
	return result, err
}

// check refuses what no system call could be told.
func check(c Command) error {
	if !isAbs(c.Path) {
		return errors.New("the path is not absolute")
	}
	for _, s := range append(append([]string{c.Path}, c.Args...), c.Env...) {
		if strings.IndexByte(s, 0) >= 0 {
			return errors.New("the path, an argument or the environment has a zero byte")
		}
	}
	return nil
}

// limited keeps the beginning of a stream and says when there is more.
type limited struct {
	buf      bytes.Buffer
	most     int
	full     bool
	overflow func()
}

func (l *limited) Write(b []byte) (int, error) {
	if l.buf.Len()+len(b) > l.most {
		if !l.full {
			l.full = true
			l.overflow()
		}
		return 0, ErrOutput // ends the copying, so that the program's next write fails
	}
	return l.buf.Write(b)
}

func (l *limited) bytes() []byte { return l.buf.Bytes() }

// tail keeps the end of a stream.
type tail struct {
	buf  []byte
	most int
	cut  bool
}

func (t *tail) Write(b []byte) (int, error) {
	t.buf = append(t.buf, b...)
	if len(t.buf) > 2*t.most {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-t.most:]...)
		t.cut = true
	}
	return len(b), nil
}

func (t *tail) bytes() []byte {
	b := t.buf
	if len(b) > t.most {
		b, t.cut = b[len(b)-t.most:], true
	}
	if !t.cut {
		return b
	}
	// From the start of a line if there is one, else of a character.
	if _, rest, ok := bytes.Cut(b, []byte{'\n'}); ok && len(rest) > 0 {
		return rest
	}
	for len(b) > 0 && !utf8.RuneStart(b[0]) {
		b = b[1:]
	}
	return b
}
