package doctor

import (
	"math"

	"golang.org/x/sys/unix"
)

// room says how much is free where path is, in bytes and files, and whether nothing can be written there. What a file system does not count is never short.
func (n Node) room(path string) (bytes, files uint64, readOnly bool, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(n.outside(path), &st); err != nil {
		return 0, 0, false, err
	}
	bytes, files = st.Bavail*uint64(st.Bsize), st.Ffree
	if st.Blocks == 0 {
		bytes = math.MaxUint64
	}
	if st.Files == 0 {
		files = math.MaxUint64
	}
	return bytes, files, st.Flags&unix.ST_RDONLY != 0, nil
}

// writable says whether this process may write there.
func (n Node) writable(path string) error { return unix.Access(n.outside(path), unix.W_OK) }
