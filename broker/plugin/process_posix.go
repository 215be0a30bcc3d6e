//go:build unix && !linux

package plugin

import "syscall"

// processAttributes: a group of its own. That the backend dies with this process is the lifeline's work alone.
func processAttributes(a *account) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Credential: credentialOf(a)}
}

func keepThread() (release func()) { return func() {} }

func awaitExit(int) bool { return false }

func markAll(uint) bool { return false }
