package agent

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// LockMemory keeps all of this process's memory from being written to swap, as it comes to be used. It needs CAP_IPC_LOCK or no limit on locked memory (RLIMIT_MEMLOCK): with a limit, the process would fail when it
// reaches that. The error says why it was not done; the cache still locks the pages that it keeps secrets in, as far as the limit goes.
func LockMemory() error {
	if !mayLock() {
		return errors.New("neither CAP_IPC_LOCK nor an unlimited RLIMIT_MEMLOCK: set LimitMEMLOCK=infinity, or switch swap off")
	}
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("mlockall: %w", err)
	}
	return nil
}

func mayLock() bool {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit) == nil && limit.Cur == unix.RLIM_INFINITY {
		return true
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&header, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_IPC_LOCK) != 0
}
