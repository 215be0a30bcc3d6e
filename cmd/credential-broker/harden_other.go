//go:build !linux

package main

import (
	"os"
	"time"

	"golang.org/x/term"

	"github.com/credential-broker/credential-broker/broker/agent/fast"
)

// harden has nothing to do here: what it guards against is guarded by other means, or not at all; see SECURITY.md.
func harden() {}

// forgetStdin closes standard input.
func forgetStdin() error { return os.Stdin.Close() }

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// sinceBegin is not known here, and nothing that matters.
func sinceBegin(*fast.Attempt) time.Duration { return 0 }
