//go:build unix

package cache

import "golang.org/x/sys/unix"

// allocate gets pages that hold nothing else. Where the system has none to give the secrets lie in Go's heap, which is worse than their own pages and better than no answer; where they cannot be locked (the
// limit is RLIMIT_MEMLOCK, 8 MiB by default) they may be swapped out.
func allocate(size int) ([]byte, memory) {
	data, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return make([]byte, size), memory{}
	}
	keepOutOfCoreDumps(data)
	return data, memory{mapped: true, locked: unix.Mlock(data) == nil}
}

// release unmaps, which unlocks too.
func release(data []byte, m memory) {
	if m.mapped {
		_ = unix.Munmap(data) // fails only for what was never mapped
	}
}
