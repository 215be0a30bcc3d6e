//go:build unix

package plugin

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/credential-broker/credential-broker/proto/trust"
)

// baseDirs are the directories to work in, best first: for root /run/credential-backends, since others must be able to cross it, which is not so of /run/credential-broker, where the agent's
// socket is; for others that of the login session, then the usual places for temporary files, memory first on the way to the disk.
func baseDirs(euid int, getenv func(string) string) []string {
	const name = "credential-broker"
	own := name + "-" + strconv.Itoa(euid)
	var dirs []string
	if euid == 0 {
		dirs = append(dirs, "/run/credential-backends")
	} else if session := getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(session) {
		dirs = append(dirs, filepath.Join(session, name))
	}
	if tmp := getenv("TMPDIR"); filepath.IsAbs(tmp) {
		dirs = append(dirs, filepath.Join(tmp, own))
	}
	return append(dirs, filepath.Join("/tmp", own), filepath.Join("/dev/shm", own), filepath.Join("/var/tmp", own))
}

// prepareBase makes sure that base is a directory that belongs to this process's user, and that nobody else can write or exchange it. For root it can be crossed by all, as backends may
// run as other users.
func prepareBase(base string) error {
	euid := os.Geteuid()
	mode := fs.FileMode(0o700)
	if euid == 0 {
		mode = 0o711
	}
	made := os.Mkdir(base, mode)
	if made != nil && !errors.Is(made, fs.ErrExist) {
		return made
	}
	info, err := os.Lstat(base)
	if err != nil {
		return err
	}
	owner, _ := ownerOf(info)
	switch {
	case !info.IsDir():
		return fmt.Errorf("%s: is no directory", base)
	case owner != euid:
		return fmt.Errorf("%s: belongs to user %d, not %d", base, owner, euid)
	case made == nil && info.Mode().Perm() != mode:
		if err := chmodDir(base, mode); err != nil { // the umask took something away
			return err
		}
	}
	return trust.File(base)
}

// chmodDir is os.Chmod for a directory, and for nothing that somebody may have put in its place meanwhile.
func chmodDir(dir string, mode fs.FileMode) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	return unix.Fchmod(fd, uint32(mode.Perm()))
}

// lockDir takes the lock on a directory, which ends with this process at the latest. errTaken: another process has it, or the directory is gone.
func lockDir(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errTaken
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return lockOpen(fd, dir)
}

// lockFile takes the lock on an empty file, which it makes if need be. errTaken: another process has it, or has just removed the file.
func lockFile(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return lockOpen(fd, path)
}

// lockOpen takes the lock on what has been opened at path, or closes it.
func lockOpen(fd int, path string) (*os.File, error) {
	lock := os.NewFile(uintptr(fd), path)
	err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	if err == nil && !isThere(lock, path) {
		err = unix.EWOULDBLOCK // a sweeper had it first, and has removed it
	}
	if err == nil {
		return lock, nil
	}
	_ = lock.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errTaken
	}
	return nil, &fs.PathError{Op: "lock", Path: path, Err: err}
}

func isThere(lock *os.File, path string) bool {
	locked, err := lock.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(path)
	return err == nil && os.SameFile(locked, there)
}

// ownerOf is the user a file belongs to.
func ownerOf(info fs.FileInfo) (uid int, known bool) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return -1, false
	}
	return int(stat.Uid), true
}
