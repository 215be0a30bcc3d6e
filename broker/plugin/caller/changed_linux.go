package caller

import (
	"io/fs"
	"syscall"
	"time"
)

// changed is when a file's content or what is known of it was changed last. Unlike the time of modification nobody can set it.
func changed(info fs.FileInfo) time.Time {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return time.Time{}
	}
	return time.Unix(stat.Ctim.Unix())
}

// unlinked says that the file has no name any more.
func unlinked(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && stat.Nlink == 0
}
