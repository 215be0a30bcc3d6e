package node

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// grace is how long a server may take to end by itself.
const grace = 10 * time.Second

// patience is how long what is to happen may take on a busy machine.
const patience = 3 * time.Minute

// Process is a server of the rig's.
type Process struct {
	Name  string
	cmd   *exec.Cmd
	log   string        // the file that holds its output
	ended chan struct{} // closed once it has ended
}

// startProcess starts a program with its output in logs/NAME.log. It does not outlive the test: the thread that it is started on lives until it has ended, and the kernel kills it when that thread dies.
func (n *Node) startProcess(name string, cmd *exec.Cmd) (*Process, error) {
	p := &Process{Name: name, cmd: cmd, log: n.path("logs", name+".log"), ended: make(chan struct{})}
	output, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer output.Close()
	if cmd.Env == nil {
		cmd.Env = n.env()
	}
	cmd.Dir, cmd.Stdout, cmd.Stderr = n.Dir, output, output
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid, cmd.SysProcAttr.Pdeathsig = true, syscall.SIGKILL
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended says its output
			close(p.ended)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	return p, nil
}

// PID is the process's number.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Began says when the process began, in clock ticks since the machine did: with its number, what tells it from a later one.
func (p *Process) Began() (string, error) {
	stat, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(p.PID()), "stat"))
	if err != nil {
		return "", err
	}
	_, after, _ := bytes.Cut(stat, []byte(") "))
	fields := bytes.Fields(after)
	if len(fields) < 20 {
		return "", fmt.Errorf("/proc/%d/stat has %d fields", p.PID(), len(fields))
	}
	return string(fields[19]), nil
}

// Log is what the process has said so far.
func (p *Process) Log() string {
	content, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(content)
}

// end asks the process to end, and makes it after a while.
func (p *Process) end() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(grace):
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

// kill ends a process whose state is thrown away with the rig.
func (p *Process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// await waits until ok says yes, and ends the test if that takes too long, or once the process, if one is given, has ended. What ok says otherwise is what the test is told.
func await(t testing.TB, what string, p *Process, ok func() (bool, string)) {
	t.Helper()
	deadline, tick := time.After(patience), time.NewTicker(200*time.Millisecond)
	defer tick.Stop()
	var ended <-chan struct{}
	if p != nil {
		ended = p.ended
	}
	for {
		done, last := ok()
		if done {
			return
		}
		select {
		case <-tick.C:
		case <-ended:
			t.Fatalf("waiting for %s: %s has ended:\n%s", what, p.Name, tail(p.Log()))
		case <-t.Context().Done():
			t.Fatalf("waiting for %s: %v", what, t.Context().Err())
		case <-deadline:
			t.Fatalf("waiting for %s: not within %v; the last that was seen: %s", what, patience, last)
		}
	}
}

// tail is the end of a log, as much of it as one wants to read.
func tail(text string) string {
	const bytes = 6 << 10
	return text[max(0, len(text)-bytes):]
}
