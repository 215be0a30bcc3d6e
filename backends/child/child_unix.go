//go:build unix

package child

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/credential-broker/credential-broker/backends/child/guardian"
)

func isAbs(path string) bool { return filepath.IsAbs(path) }

func run(ctx context.Context, c Command, stdout, stderr io.Writer) error {
	ours, theirs, err := socketPair()
	if err != nil {
		return fmt.Errorf("run %s: make its lifeline: %w", c.Path, err)
	}
	defer ours.Close()
	defer theirs.Close()

	cmd := exec.CommandContext(ctx, self())
	cmd.Args = []string{"guardian"}
	cmd.Env = []string{guardian.Variable + "=1"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(c.Stdin), stdout, stderr
	cmd.ExtraFiles = []*os.File{theirs} // becomes guardian.Control
	// A session of its own: signals to the backend's process group, with which the broker ends it, are not for the guardian, which has work left to do
	// then; and a program that would ask a terminal for a password finds none.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = ours.Close // the guardian then ends everything, and itself
	cmd.WaitDelay = grace
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run %s: start its guardian: %w", c.Path, err)
	}
	_ = theirs.Close() // or the guardian's end would not be seen

	_, sendErr := ours.Write(request(c))
	waitErr := cmd.Wait()
	report := make([]byte, guardian.ReportBytes)
	_ = ours.SetReadDeadline(time.Now().Add(grace))
	if _, err := io.ReadFull(ours, report); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("run %s: its guardian ended without a report: %w", c.Path, errors.Join(waitErr, sendErr))
	}
	value := binary.BigEndian.Uint32(report[1:5])
	if report[0] == guardian.NotStarted {
		return &StartError{Path: c.Path, Err: syscall.Errno(value)}
	}
	if report[5] != 0 {
		slog.Warn("something that the program started could not be killed: is it another user's?", "program", c.Path)
	}
	switch status := syscall.WaitStatus(value); {
	case status.Signaled():
		return &ExitError{Code: -1, Signal: status.Signal()}
	case status.ExitStatus() != 0:
		return &ExitError{Code: status.ExitStatus()}
	}
	return nil
}

// request is what the guardian is told: see package guardian.
func request(c Command) []byte {
	var body bytes.Buffer
	for _, s := range [][]string{{c.Path, strconv.Itoa(1 + len(c.Args)), c.Path}, c.Args, c.Env} {
		for _, s := range s {
			body.WriteString(s)
			body.WriteByte(0)
		}
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(body.Len())), body.Bytes()...)
}

// socketPair makes a connection between two ends of which no other child process inherits one.
func socketPair() (ours, theirs *os.File, err error) {
	syscall.ForkLock.RLock() // not every system can make them close-on-exec at once
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(fds[0])
		unix.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	// Only non-blocking files can be closed while somebody waits for them.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		_, _ = unix.Close(fds[0]), unix.Close(fds[1])
		return nil, nil, os.NewSyscallError("setnonblock", err)
	}
	return os.NewFile(uintptr(fds[0]), "lifeline"), os.NewFile(uintptr(fds[1]), "guardian"), nil
}

// self is this process's executable. Linux knows it by a name that holds even after an update has put another file in its place.
func self() string {
	const link = "/proc/self/exe"
	if _, err := os.Readlink(link); err == nil {
		return link
	}
	path, err := os.Executable()
	if err != nil {
		return link
	}
	return path
}
