package config

import (
	"io/fs"
	"strconv"
	"syscall"
	"time"
)

// identityOf tells a file from one that was put in its place, and when anything about it, its owner and mode included, was changed last.
func identityOf(info fs.FileInfo) (changed time.Time, identity string) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return info.ModTime(), ""
	}
	return time.Unix(stat.Ctim.Unix()), strconv.FormatUint(stat.Dev, 16) + ":" + strconv.FormatUint(stat.Ino, 16)
}
