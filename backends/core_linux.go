package backends

import "golang.org/x/sys/unix"

// forbidCoreFiles keeps the kernel from writing this process's memory, with the secrets in it, to a file, and other processes of this user from reading it with
// ptrace or /proc. The limit is 1 byte rather than 0 because 0 does not hold where core_pattern is a pipe, and 1 does (core(5), "Piping core dumps to a program";
// fs/coredump.c). It holds for child processes too, which lose the second guard, the dumpable flag, when they execute a program.
func forbidCoreFiles() {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_CORE, &limit) == nil {
		limit.Max = min(limit.Max, 1)
		limit.Cur = limit.Max
		_ = unix.Setrlimit(unix.RLIMIT_CORE, &limit)
	}
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}
