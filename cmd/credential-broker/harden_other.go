//go:build !linux

package main

import (
	"os"

	"golang.org/x/term"
)

// harden has nothing to do here: what it guards against is guarded by other means, or not at all; see SECURITY.md.
func harden() {}

// forgetStdin closes standard input.
func forgetStdin() error { return os.Stdin.Close() }

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }
