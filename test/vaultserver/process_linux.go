package vaultserver

import "syscall"

// attributes: a group of its own, and death when the thread that started it dies, so that the server does not outlive a test that is killed.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
