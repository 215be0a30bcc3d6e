//go:build !linux

package vaultserver

import "syscall"

// attributes has nothing to offer: only on Linux does a child die with its parent.
func attributes() *syscall.SysProcAttr { return nil }
