//go:build !linux

package agent

import "errors"

// LockMemory is not done here.
func LockMemory() error { return errors.New("this system has no mlockall that locks what is used") }
