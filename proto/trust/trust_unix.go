//go:build unix

package trust

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// self is the user on whose behalf files are judged. A variable so that tests, which run as one user, can be several.
var self = func() (uid, gid uint32) { return uint32(os.Geteuid()), uint32(os.Getegid()) }

// judge decides on one directory or file of the way; last says that it is the end.
func judge(path, at string, info fs.FileInfo, last bool) error {
	if err := judgeOwner(path, at, info); err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	mode := info.Mode()
	if mode.IsDir() && mode&fs.ModeSticky != 0 && !last {
		return nil
	}
	var who, remedy string
	switch uid, gid := self(); {
	case mode&0o002 != 0:
		who, remedy = "everybody", "chmod o-w "
		if mode&0o020 != 0 && (uid == 0 || st.Gid != gid) {
			remedy = "chmod go-w "
		}
	case mode&0o020 != 0 && (uid == 0 || st.Gid != gid):
		who, remedy = fmt.Sprintf("its group (gid %d)", st.Gid), "chmod g-w "
	default:
		return nil
	}
	return &Error{Path: path, Element: at, Reason: fmt.Sprintf("can be written by %s (owner uid %d, mode %v)", who, st.Uid, mode), Remedy: remedy + Quote(at)}
}

// judgeOwner decides on an element's owner, which is all that counts of a symbolic link.
func judgeOwner(path, at string, info fs.FileInfo) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	uid, _ := self()
	if st.Uid == 0 || st.Uid == uid {
		return nil
	}
	remedy := "chown root " + Quote(at)
	if info.Mode()&fs.ModeSymlink != 0 {
		remedy = "chown -h root " + Quote(at)
	}
	reason := fmt.Sprintf("belongs to another user (owner uid %d, mode %v)", st.Uid, info.Mode())
	if uid != 0 {
		reason = fmt.Sprintf("belongs to neither root nor uid %d (owner uid %d, mode %v)", uid, st.Uid, info.Mode())
	}
	return &Error{Path: path, Element: at, Reason: reason, Remedy: remedy}
}

func executable(info fs.FileInfo) bool { return info.Mode()&0o111 != 0 }
