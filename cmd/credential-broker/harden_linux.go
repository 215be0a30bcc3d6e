package main

import (
	"math"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/credential-broker/credential-broker/broker/agent/fast"
)

// harden keeps secrets in this process: no core file, no reading of its memory by other processes of the same user, and no descriptor that whoever started us left open is handed on to what
// we start. The limit on core files is 1 byte rather than 0, which does not hold where core_pattern is a pipe (core(5), "Piping core dumps to a program"); what we start inherits it.
func harden() {
	// None of these can fail in a way that a node's operator could mend, and none is worth a failed pull.
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1, Max: 1})
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
}

// forgetStdin puts /dev/null in the place of standard input.
func forgetStdin() error {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }()
	return unix.Dup3(int(null.Fd()), 0, 0)
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// sinceBegin is how long this process has been at work, as far as package fast noted when it began.
func sinceBegin(early *fast.Attempt) time.Duration {
	var now unix.Timespec
	if early.Began == 0 || unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) != nil {
		return 0
	}
	return time.Duration(now.Nano() - early.Began)
}
