//go:build unix && !linux

package backends

import "golang.org/x/sys/unix"

// forbidCoreFiles keeps the kernel from writing this process's memory, with the secrets in it, to a file.
func forbidCoreFiles() {
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
}
