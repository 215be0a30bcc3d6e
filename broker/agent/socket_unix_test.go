//go:build unix

package agent

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestTheSocketKeepsOthersOut(t *testing.T) {
	s := prepare(t)
	socket, err := Listen(s.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Remove()
	for path, want := range map[string]fs.FileMode{s.socket: fs.ModeSocket | 0o600, filepath.Dir(s.socket): fs.ModeDir | 0o700} {
		if info, err := os.Lstat(path); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
}

func TestOneAgentServesASocket(t *testing.T) {
	s := prepare(t)
	first, err := Listen(s.socket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(s.socket); !errors.Is(err, ErrServed) {
		t.Errorf("a second one: %v", err)
	}
	first.Remove()
	second, err := Listen(s.socket)
	if err != nil {
		t.Fatalf("after the first has ended: %v", err)
	}
	second.Remove()
	if _, err := os.Lstat(s.socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

func TestADeadAgentsSocketIsReplaced(t *testing.T) {
	s := prepare(t)
	socket, err := Listen(s.socket)
	if err != nil {
		t.Fatal(err)
	}
	_ = socket.Listener.Close() // as when it is killed: socket and lock file are left, the lock is not
	_ = socket.lock.Close()
	again, err := Listen(s.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Remove()
	conn, err := net.Dial("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
}

func TestPlacesForNoSocket(t *testing.T) {
	for name, c := range map[string]struct {
		make func(t *testing.T, socket string)
		want string
	}{
		"a directory that lets others in": {func(t *testing.T, socket string) {
			t.Helper()
			if err := errors.Join(os.Mkdir(filepath.Dir(socket), 0o700), os.Chmod(filepath.Dir(socket), 0o755)); err != nil {
				t.Fatal(err)
			}
		}, "lets others in: chmod 700"},
		"a file": {func(t *testing.T, socket string) {
			t.Helper()
			if err := errors.Join(os.Mkdir(filepath.Dir(socket), 0o700), os.WriteFile(socket, nil, 0o600)); err != nil {
				t.Fatal(err)
			}
		}, "is no socket"},
		"a link in the directory's place": {func(t *testing.T, socket string) {
			t.Helper()
			if err := os.Symlink(t.TempDir(), filepath.Dir(socket)); err != nil {
				t.Fatal(err)
			}
		}, "is no directory"},
		"a directory within none": {func(t *testing.T, socket string) {
			t.Helper()
			_ = os.RemoveAll(filepath.Dir(filepath.Dir(socket)))
		}, "no such file or directory"},
	} {
		t.Run(name, func(t *testing.T) {
			s := prepare(t)
			c.make(t, s.socket)
			if _, err := Listen(s.socket); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want …%s…", err, c.want)
			}
		})
	}
}

// byManager is a socket as a service manager makes it, in the place of whatever is there.
func (s *served) byManager() (listener *net.UnixListener, file *os.File) {
	s.Helper()
	if err := os.Mkdir(filepath.Dir(s.socket), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		s.Fatal(err)
	}
	_ = os.Remove(s.socket)
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.socket, Net: "unix"})
	if err != nil {
		s.Fatal(err)
	}
	listener.SetUnlinkOnClose(false)
	s.Cleanup(func() { _ = listener.Close() })
	if err := os.Chmod(s.socket, 0o600); err != nil {
		s.Fatal(err)
	}
	if file, err = FileOf(listener); err != nil {
		s.Fatal(err)
	}
	return listener, file
}

// isSocketOf says whether who connects to the path comes to the listener.
func (s *served) isSocketOf(listener *net.UnixListener) bool {
	s.Helper()
	conn, err := net.Dial("unix", s.socket)
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = listener.SetDeadline(time.Now().Add(time.Second))
	accepted, err := listener.Accept()
	if err != nil {
		return false
	}
	_ = accepted.Close()
	return true
}

func TestNobodyTakesTheServiceManagersSocketAway(t *testing.T) {
	s := prepare(t)
	listener, file := s.byManager()
	if _, err := Listen(s.socket); !errors.Is(err, ErrServed) { // before the agent has been started, too
		t.Errorf("where the service manager listens: %v", err)
	}
	activated, err := Activated(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(s.socket); !errors.Is(err, ErrServed) {
		t.Errorf("where an activated agent serves: %v", err)
	}
	if _, err := lockFile(s.socket + ".lock"); !errors.Is(err, ErrServed) {
		t.Errorf("the lock of an activated agent: %v", err)
	}
	for generation := range 3 {
		var handed Handed
		if err := activated.HandOn(&handed); err != nil {
			t.Fatal(err)
		}
		if handed.Lock != nil || handed.Activated == nil {
			t.Fatalf("generation %d hands its lock on as %v, %v: the successor would remove the socket", generation, handed.Lock, handed.Activated)
		}
		if activated, err = Inherited(handed); err != nil {
			t.Fatal(err)
		}
	}
	activated.Remove()
	if !s.isSocketOf(listener) {
		t.Error("nobody comes to the service manager's socket any more")
	}
}

func TestAnAgentLeavesTheSocketThatTookItsPlace(t *testing.T) {
	for name, inherited := range map[string]bool{"of the agent that made the one before": false, "of a successor": true} {
		t.Run(name, func(t *testing.T) {
			s := prepare(t)
			socket, err := Listen(s.socket)
			if err != nil {
				t.Fatal(err)
			}
			listener, file := s.byManager()
			if inherited {
				var handed Handed
				if err := socket.HandOn(&handed); err != nil {
					t.Fatal(err)
				}
				if socket, err = Inherited(handed); err != nil {
					t.Fatal(err)
				}
			}
			activated, err := Activated(file) // though the lock is another agent's
			if err != nil {
				t.Fatal(err)
			}
			socket.Remove()
			if !s.isSocketOf(listener) {
				t.Error("the service manager's socket is gone")
			}
			activated.Remove()
		})
	}
}

// handingOn is an agent that serves and is about to be succeeded, and what it hands on.
func handingOn(t *testing.T) (s *served, first *Socket, handed Handed) {
	t.Helper()
	s = prepare(t)
	first, err := Listen(s.socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.HandOn(&handed); err != nil {
		t.Fatal(err)
	}
	return s, first, handed
}

func TestAPredecessorKeepsNobodyOut(t *testing.T) {
	s, first, handed := handingOn(t)
	fd, err := unix.FcntlInt(handed.Lock.Fd(), unix.F_DUPFD_CLOEXEC, 0) // as another process has it
	if err != nil {
		t.Fatal(err)
	}
	handed.Lock = os.NewFile(uintptr(fd), "lock")
	successor, err := Inherited(handed)
	if err != nil {
		t.Fatal(err)
	}
	first.HandedOn()
	_ = first.Listener.Close()
	if _, err := lockFile(s.socket + ".lock"); !errors.Is(err, ErrServed) {
		t.Errorf("the successor's lock: %v", err)
	}
	_, _ = successor.Listener.Close(), successor.lock.Close() // as when it is killed
	third, err := Listen(s.socket)
	if err != nil {
		t.Fatalf("while the predecessor still answers: %v", err)
	}
	third.Remove()
}

func TestASuccessorRemovesTheSocketInTheEnd(t *testing.T) {
	s, _, handed := handingOn(t)
	second, err := Inherited(handed)
	if err != nil {
		t.Fatal(err)
	}
	second.Remove()
	if _, err := os.Lstat(s.socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

func TestASocketOfTheServiceManagersIsJudgedToo(t *testing.T) {
	for mode, good := range map[os.FileMode]bool{0o600: true, 0o660: false, 0o666: false} {
		s := prepare(t)
		if err := os.Mkdir(filepath.Dir(s.socket), 0o700); err != nil {
			t.Fatal(err)
		}
		listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.socket, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = listener.Close() })
		if err := os.Chmod(s.socket, mode); err != nil {
			t.Fatal(err)
		}
		file, err := listener.File()
		if err != nil {
			t.Fatal(err)
		}
		socket, err := Activated(file)
		if (err == nil) != good {
			t.Errorf("mode %#o: %v", mode, err)
		}
		if socket == nil {
			continue
		}
		socket.Remove()
		if _, err := os.Lstat(s.socket); err != nil {
			t.Errorf("the service manager's socket was removed: %v", err)
		}
	}
}

func TestAnotherSocketBesideTheAgents(t *testing.T) {
	s := prepare(t)
	socket, err := Listen(s.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Remove()
	path := filepath.Join(filepath.Dir(s.socket), "beside.sock")
	first, err := ListenBeside(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if _, err := ListenBeside(path); !errors.Is(err, ErrServed) {
		t.Errorf("where somebody serves: %v", err)
	}
	_ = first.Close()
	second, err := ListenBeside(path)
	if err != nil {
		t.Fatalf("in the place of a stale one: %v", err)
	}
	_ = second.Close()
}
