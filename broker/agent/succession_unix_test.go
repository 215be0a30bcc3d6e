//go:build unix

package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// program is a file that can be run, with a successor's behaviour.
func (s *served) program(script string) string {
	s.Helper()
	path := filepath.Join(s.dir, "successor")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
		s.Fatal(err)
	}
	return path
}

func exportNothing(io.Writer) error { return nil }

func isNonblocking(t *testing.T, listener syscall.Conn) bool {
	t.Helper()
	conn, err := listener.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var flags int
	if controlled := conn.Control(func(fd uintptr) { flags, err = unix.FcntlInt(fd, unix.F_GETFL, 0) }); controlled != nil || err != nil {
		t.Fatal(controlled, err)
	}
	return flags&unix.O_NONBLOCK != 0
}

func TestTheSocketCanBeClosedAfterAHandoverThatFailed(t *testing.T) {
	s := prepare(t)
	socket, err := Listen(s.socket)
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan struct{})
	go func() {
		defer close(accepted)
		for {
			conn, err := socket.Listener.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
			accepted <- struct{}{}
		}
	}()
	var handed Handed
	if err := socket.HandOn(&handed); err != nil {
		t.Fatal(err)
	}
	if _, err := Succeed(t.Context(), s.program("exit 1"), nil, handed, exportNothing, time.Minute); err == nil {
		t.Fatal("a program that fails has succeeded")
	}
	_ = handed.Socket.Close()
	connect := func() {
		if conn, err := net.Dial("unix", s.socket); err == nil {
			_ = conn.Close()
		}
	}
	if !isNonblocking(t, socket.Listener) {
		t.Error("the handover has made the socket blocking")
	}
	connect() // the next Accept is the first to see what the handover has done to the socket
	<-accepted
	removed := make(chan struct{})
	go func() { defer close(removed); socket.Remove() }()
	select {
	case <-removed:
	case <-time.After(10 * time.Second):
		t.Error("the socket cannot be closed before somebody connects")
		go connect()
	}
	for range accepted { // until the listener is closed
	}
}

func TestNobodySucceedsAnAgentThatIsToldToEnd(t *testing.T) {
	s := prepare(t)
	pid := filepath.Join(s.dir, "pid")
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	program := s.program("echo $$ >" + pid + ".new; mv " + pid + ".new " + pid + "; exec sleep 60")
	go func() {
		_, err := Succeed(ctx, program, nil, Handed{}, exportNothing, time.Minute)
		failed <- err
	}()
	s.eventually("the successor runs", func() bool { _, err := os.Lstat(pid); return err == nil })
	cancel()
	select {
	case err := <-failed:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it waits for the successor all the same")
	}
	text, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(number, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("the successor is left: %v", err)
	}
}
