//go:build unix

package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/credential-broker/credential-broker/proto/trust"
)

// Socket is the agent's, with the lock that keeps another agent from the same place.
type Socket struct {
	Listener *net.UnixListener
	// lock is held for as long as an agent serves there; nil where a service manager's socket has taken the place of another agent's, which still has it.
	lock *os.File
	path string
	// bound is the socket's file, where this agent or one before it made it; nil where a service manager did, whose it stays.
	bound fs.FileInfo
}

// ErrServed is Listen's where an agent serves already.
var ErrServed = errors.New("an agent serves there already")

// Listen makes the socket, of mode 0600, in a directory of mode 0700 that belongs to this process's user; where there is no such directory, it makes one. Of several processes that try, one gets it and the
// others ErrServed. A socket that a dead agent has left is replaced.
func Listen(path string) (*Socket, error) {
	dir := filepath.Dir(path)
	if err := PrepareDir(dir); err != nil {
		return nil, fmt.Errorf("the directory of the agent's socket: %w", err)
	}
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, err
	}
	listener, err := listen(path)
	if err != nil {
		_ = lock.Close()
		if errors.Is(err, ErrServed) {
			return nil, err
		}
		return nil, fmt.Errorf("make the agent's socket: %w", err)
	}
	bound, err := os.Lstat(path)
	if err != nil {
		_, _ = listener.Close(), lock.Close()
		return nil, fmt.Errorf("make the agent's socket: %w", err)
	}
	return &Socket{Listener: listener, lock: lock, path: path, bound: bound}, nil
}

// ListenBeside makes another socket that only this process's user can reach, by the rules that Listen has for directory and mode. It replaces one that nobody serves any more; where somebody does, the
// error is ErrServed.
func ListenBeside(path string) (*net.UnixListener, error) {
	if err := PrepareDir(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("the directory of the socket: %w", err)
	}
	return listen(path)
}

// PrepareDir makes the directory of the agent's socket where there is none, and makes sure that nobody else can reach what is in the directory.
func PrepareDir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err == nil {
		if err := os.Chmod(dir, 0o700); err != nil { //nolint:gosec // it is a directory: the umask may have taken something away
			return err
		}
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.IsDir():
		return fmt.Errorf("%s is no directory: name a socket in a directory of its own", dir)
	case ok && int(stat.Uid) != os.Geteuid():
		return fmt.Errorf("%s belongs to user %d, not %d: remove it, or name a socket in another directory", dir, stat.Uid, os.Geteuid())
	case info.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("%s has mode %#o and lets others in: chmod 700 %s, or name a socket in a directory of its own", dir, info.Mode().Perm(), dir)
	}
	return trust.File(dir)
}

// BeginStart gives one of several processes that want to start an agent for the socket the right to do so, until it calls done; the others have only to wait for what that one starts.
func BeginStart(socket string) (mine bool, done func(), err error) {
	if err := PrepareDir(filepath.Dir(socket)); err != nil {
		return false, nil, err
	}
	lock, err := lockFile(socket + ".start")
	if errors.Is(err, ErrServed) {
		return false, func() {}, nil
	}
	if err != nil {
		return false, nil, err
	}
	return true, func() { _ = lock.Close() }, nil
}

// lockFile takes the lock, which ends with this process and whoever it is handed on to. The file stays: to remove it would let two processes hold locks on two files of that name.
func lockFile(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	lock := os.NewFile(uintptr(fd), path)
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrServed
		}
		return nil, &fs.PathError{Op: "lock", Path: path, Err: err}
	}
	return lock, nil
}

// listen makes the socket in the place of one that a dead agent has left. One that somebody serves stays, lock or no lock: a service manager takes none.
func listen(path string) (*net.UnixListener, error) {
	info, err := os.Lstat(path)
	switch {
	case err == nil && info.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%s exists and is no socket: remove it, or name another", path)
	case err == nil:
		if err = deserted(path); err == nil {
			err = os.Remove(path)
		}
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	}
	if err != nil {
		return nil, err
	}
	// The directory keeps others out; this keeps them out at every moment even of a socket that is looked at by itself.
	before := unix.Umask(0o177)
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	unix.Umask(before)
	if err != nil {
		return nil, err
	}
	listener.SetUnlinkOnClose(false) // a successor may go on with it; see Remove
	return listener, nil
}

// deserted gives an error where somebody serves a socket.
func deserted(path string) error {
	conn, err := net.Dial("unix", path) //nolint:noctx // to connect to a unix socket takes no time
	switch {
	case err == nil:
		_ = conn.Close()
		return ErrServed
	case errors.Is(err, unix.EAGAIN): // somebody does, and is behind
		return ErrServed
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil
	default:
		return err
	}
}

// Activated is the socket that a service manager made and handed over, which has to keep others out as one of Listen's does. It is served even where another agent has the lock: that one's socket was
// there before the service manager's took its place, so that nobody reaches it any more.
func Activated(file *os.File) (*Socket, error) {
	listener, err := listenerOf(file)
	if err != nil {
		return nil, fmt.Errorf("the socket that the service manager handed over: %w", err)
	}
	path := listener.Addr().String()
	info, err := os.Lstat(path)
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		err = fmt.Errorf("%s has mode %#o and lets others in: set SocketMode=0600", path, info.Mode().Perm())
	}
	if err != nil {
		_ = listener.Close()
		return nil, fmt.Errorf("the socket that the service manager handed over: %w", err)
	}
	lock, _ := lockFile(path + ".lock") // a nil one is no harm: who wants to make a socket there finds this one served
	return &Socket{Listener: listener, lock: lock, path: path}, nil
}

// Inherited is the socket that a predecessor handed on, with its lock.
func Inherited(h Handed) (*Socket, error) {
	listener, err := listenerOf(h.Socket)
	if err != nil {
		return nil, fmt.Errorf("the socket that the predecessor handed on: %w", err)
	}
	s := &Socket{Listener: listener, lock: h.Lock, path: listener.Addr().String()}
	if s.lock == nil {
		s.lock = h.Activated
		return s, nil
	}
	s.bound, _ = os.Lstat(s.path) // without it nothing is to be removed
	return s, nil
}

func listenerOf(file *os.File) (*net.UnixListener, error) {
	defer func() { _ = file.Close() }() // FileListener makes a copy
	listener, err := net.FileListener(file)
	if err != nil {
		return nil, err
	}
	unixListener, ok := listener.(*net.UnixListener)
	if !ok {
		_ = listener.Close()
		return nil, fmt.Errorf("%s is no unix socket", listener.Addr())
	}
	unixListener.SetUnlinkOnClose(false)
	return unixListener, nil
}

// Path is where the socket is.
func (s *Socket) Path() string { return s.path }

// HandOn adds to h what a successor needs: the socket, which the caller closes, and the lock.
func (s *Socket) HandOn(h *Handed) error {
	listener, err := FileOf(s.Listener)
	if err != nil {
		return err
	}
	h.Socket = listener
	if s.isInPlace() {
		h.Lock = s.lock
	} else {
		h.Activated = s.lock
	}
	return nil
}

// HandedOn tells that a successor serves. It has the lock, which is let go of here: this agent goes on for as long as it takes to answer, and should not keep a third one out when the successor has ended before.
func (s *Socket) HandedOn() {
	if s.lock != nil {
		_ = s.lock.Close()
	}
}

// isInPlace says that this agent, or one before it, made what is at the path.
func (s *Socket) isInPlace() bool {
	if s.bound == nil {
		return false
	}
	now, err := os.Lstat(s.path)
	return err == nil && same(now, s.bound)
}

// FileOf is a listening socket's descriptor once more, for another process. It is not what the listener's own File gives: to start a process with that makes the socket blocking, for the listener
// too, whose next Accept then cannot be interrupted and which cannot be closed before somebody connects. See os.NewFile and (*os.File).Fd.
func FileOf(listener syscall.Conn) (*os.File, error) {
	conn, err := listener.SyscallConn()
	if err != nil {
		return nil, err
	}
	var file *os.File
	controlled := conn.Control(func(fd uintptr) {
		var twin int
		if twin, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); err == nil {
			file = os.NewFile(uintptr(twin), "listener")
		}
	})
	if err = errors.Join(controlled, err); err != nil {
		return nil, fmt.Errorf("duplicate a listening socket: %w", err)
	}
	return file, nil
}

// Remove takes the socket away, so that nobody finds it any more. A service manager's stays, be it this one or one that has taken its place: it starts an agent when somebody connects.
func (s *Socket) Remove() {
	_ = s.Listener.Close()
	if s.isInPlace() {
		_ = os.Remove(s.path)
	}
	if s.lock != nil {
		_ = s.lock.Close()
	}
}
