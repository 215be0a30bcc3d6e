//go:build unix

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// handedVariable names, in the order of their descriptors from 3 on, what a predecessor hands on. Later versions may hand on more, or less.
const handedVariable = "CREDENTIAL_BROKER_HANDED"

// Handed is what an agent hands on to the one that takes its place. Each file may be nil.
type Handed struct {
	// Socket is the listening socket, Lock the lock on its place, Metrics the listening socket of the metrics.
	Socket, Lock, Metrics *os.File
	// Activated is the lock in Lock's stead where a service manager made the socket, which the last agent then leaves there. It has a name of its own because versions that do not know it take whatever
	// comes with a Lock for theirs to remove.
	Activated *os.File
	// Answers is where the predecessor's Export can be read.
	Answers *os.File
	// Ready is written to and closed when the successor serves.
	Ready *os.File
}

func (h *Handed) named() []namedFile {
	return []namedFile{{"socket", &h.Socket}, {"lock", &h.Lock}, {"activated", &h.Activated}, {"metrics", &h.Metrics}, {"answers", &h.Answers}, {"ready", &h.Ready}}
}

type namedFile struct {
	name string
	file **os.File
}

// TakeHanded gives what a predecessor handed on to this process; false if there is none. It may be called once.
func TakeHanded() (Handed, bool) {
	names := os.Getenv(handedVariable)
	_ = os.Unsetenv(handedVariable) // fails for no name that was set
	var h Handed
	if names == "" {
		return h, false
	}
	for i, name := range strings.Split(names, ",") {
		fd := 3 + i
		syscall.CloseOnExec(fd)
		file := os.NewFile(uintptr(fd), name)
		known := false
		for _, n := range h.named() {
			if n.name == name && *n.file == nil {
				*n.file, known = file, true
			}
		}
		if !known {
			_ = file.Close()
		}
	}
	return h, h.Socket != nil
}

// Succeed starts the program at path with args as the successor and gives it the files, and what export writes. It returns when the successor serves, or with an error when it has ended, been
// silent for as long as patience, or could not be started, or when ctx was done before; then there is no successor, nothing has changed and this agent has to go on. The files stay open here.
func Succeed(ctx context.Context, path string, args []string, h Handed, export func(io.Writer) error, patience time.Duration) (successor *os.Process, err error) {
	answersRead, answersWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = answersRead.Close() }()
	readyRead, readyWrite, err := os.Pipe()
	if err != nil {
		_ = answersWrite.Close()
		return nil, err
	}
	defer func() { _ = readyRead.Close() }()
	h.Answers, h.Ready = answersRead, readyWrite

	cmd := exec.Command(path, args...) //nolint:noctx // it outlives this process, and the context
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	var names []string
	for _, n := range h.named() {
		if *n.file != nil {
			names = append(names, n.name)
			cmd.ExtraFiles = append(cmd.ExtraFiles, *n.file)
		}
	}
	// The watchdog's process is this one; the successor is told of by who starts it.
	cmd.Env = append(without(os.Environ(), "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"), handedVariable+"="+strings.Join(names, ","))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = readyWrite.Close()
	if err != nil {
		_ = answersWrite.Close()
		return nil, err
	}
	go func() {
		_ = export(answersWrite) // what is missing is asked for anew
		_ = answersWrite.Close()
	}()
	_ = readyRead.SetReadDeadline(time.Now().Add(patience))
	stop := context.AfterFunc(ctx, func() { _ = readyRead.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	n, err := readyRead.Read(make([]byte, 1))
	if n == 1 {
		go func() { _ = cmd.Wait() }() // in case it ends before this process does
		return cmd.Process, nil
	}
	_ = cmd.Process.Kill()
	ended := cmd.Wait()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, fmt.Errorf("%s did not serve within %s", path, patience)
	}
	return nil, fmt.Errorf("%s ended before it served: %w", path, ended)
}

func without(environ []string, names ...string) []string {
	var kept []string
next:
	for _, variable := range environ {
		for _, name := range names {
			if strings.HasPrefix(variable, name+"=") {
				continue next
			}
		}
		kept = append(kept, variable)
	}
	return kept
}

// SayReady tells the predecessor that this agent serves.
func (h *Handed) SayReady() {
	if h.Ready != nil {
		_, _ = h.Ready.Write([]byte{1})
		_ = h.Ready.Close()
	}
}
