package doctor

import "golang.org/x/sys/unix"

// room says how much is free where path is, in bytes and files, and whether nothing can be written there.
func (n Node) room(path string) (bytes, files uint64, readOnly bool, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(n.outside(path), &st); err != nil {
		return 0, 0, false, err
	}
	files = st.Ffree
	if st.Files == 0 {
		files = 1 // a file system that does not count them
	}
	return st.Bavail * uint64(st.Bsize), files, st.Flags&unix.ST_RDONLY != 0, nil
}

// writable says whether this process may write there.
func (n Node) writable(path string) error { return unix.Access(n.outside(path), unix.W_OK) }
