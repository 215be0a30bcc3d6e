package plugin

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

// RuntimeOptions are a Runtime's. The zero value is good.
type RuntimeOptions struct {
	// Logger gets what backends print; nil: slog.Default().
	Logger *slog.Logger
	// Environ is the host's environment, of which backends get a part; nil: os.Environ().
	Environ []string
	// BaseDirs are tried in order for a directory to work in; nil: those of this system, see baseDirs.
	BaseDirs []string
}

// Runtime is what the backends of one request, or of one agent, have in common: a private directory with their sockets, made when the first backend starts and
// removed by Close. Whatever a predecessor that was killed has left is removed on the way.
type Runtime struct {
	logger   *slog.Logger
	environ  []string
	baseDirs []string
	// awaitExit is the function of that name; a test puts another in its place.
	awaitExit func(pid int) bool
	// parent is os.Getppid, but for a test; roomy is the function of that name.
	parent func() int
	roomy  func(base string) bool

	mu     sync.Mutex
	dirs   []*directory // none until the first backend starts; the last is the one in use
	closed bool
	live   map[*Process]struct{}
	ending map[*Process]struct{} // killed, and being cleaned up after
	sweeps sync.WaitGroup
}

// directory has backends' sockets.
type directory struct {
	path      string
	lock      *os.File
	crossable bool // by the users of backends that run as another one
}

// NewRuntime makes a Runtime. It does not touch the disk.
func NewRuntime(o RuntimeOptions) *Runtime {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Environ == nil {
		o.Environ = os.Environ()
	}
	if o.BaseDirs == nil {
		o.BaseDirs = baseDirs(os.Geteuid(), func(name string) string { return lookUpVariable(o.Environ, name) })
	}
	return &Runtime{logger: o.Logger, environ: o.Environ, baseDirs: o.BaseDirs, awaitExit: awaitExit, parent: os.Getppid, roomy: roomy, live: map[*Process]struct{}{}, ending: map[*Process]struct{}{}}
}

func lookUpVariable(environ []string, name string) string {
	for _, variable := range environ {
		if value, ok := strings.CutPrefix(variable, name+"="); ok {
			return value
		}
	}
	return ""
}

// closeTimeout bounds Close, whatever goes on in the directory: the kubelet waits for the broker's end.
const closeTimeout = time.Second

// Close kills the backends that still run, logs what they have printed, and removes the directory. No backend can be started after it. It does not wait for
// the backends to be gone: a process that has been sent SIGKILL does nothing any more, and to take down its memory keeps the system busy for milliseconds. Nor does it reap them, which
// the system's first process does; only where that is the broker's own parent, a kubelet alone in a container, it waits, lest a dead process be left for each pull.
func (rt *Runtime) Close() error {
	rt.mu.Lock()
	rt.closed = true
	for p := range rt.live {
		p.child.kill()
		rt.cleanUpLocked(p)
	}
	ending := slices.Collect(maps.Keys(rt.ending))
	rt.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	for _, p := range ending {
		if rt.parent() == 1 {
			select {
			case <-p.done:
			case <-ctx.Done():
			}
		}
		p.child.catchUp()
		p.log()
	}
	removed := make(chan error, 1)
	go func() { removed <- rt.remove() }()
	select {
	case err := <-removed:
		return err
	case <-ctx.Done():
		return fmt.Errorf("remove the directory of the backends' sockets: not done within %s; a later request will", closeTimeout)
	}
}

// remove removes the directory, and what dead processes have left beside it.
func (rt *Runtime) remove() error {
	rt.sweeps.Wait()
	rt.mu.Lock()
	defer rt.mu.Unlock()
	var errs []error
	for _, dir := range rt.dirs {
		errs = append(errs, os.RemoveAll(dir.path))
		if dir.lock != nil {
			_ = dir.lock.Close()
		}
	}
	rt.dirs = nil
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove the directory of the backends' sockets: %w", err)
	}
	return nil
}

func (rt *Runtime) add(p *Process) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	rt.live[p] = struct{}{}
}

// cleanUp finishes a process that has been killed, in the background, once.
func (rt *Runtime) cleanUp(p *Process) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	rt.cleanUpLocked(p)
}

func (rt *Runtime) cleanUpLocked(p *Process) {
	if _, live := rt.live[p]; !live {
		return
	}
	delete(rt.live, p)
	rt.ending[p] = struct{}{}
	go func() {
		p.finish()
		rt.mu.Lock()
		defer rt.mu.Unlock()
		delete(rt.ending, p)
	}()
}

// open returns the directory, and makes it when it is first asked for. Crossable: a backend of another user must be able to reach what lies in it. An agent lives long enough for the
// directory's file system to fill up: then there is another directory for what starts from now on, if anywhere there is room.
func (rt *Runtime) open(crossable bool) (string, error) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	if rt.closed {
		return "", errorf(backendv1.Error_KIND_UNAVAILABLE, "the broker is ending")
	}
	if len(rt.dirs) == 0 {
		if err := rt.make(); err != nil {
			return "", err
		}
	} else if base := filepath.Dir(rt.inUse().path); !rt.roomy(base) {
		rt.move(base)
	}
	dir := rt.inUse()
	if crossable && !dir.crossable {
		if err := os.Chmod(dir.path, 0o711); err != nil { //nolint:gosec // it holds directories of mode 0700 and nothing else
			return "", errorf(backendv1.Error_KIND_UNAVAILABLE, "open the socket directory to the backend's user: %w", err)
		}
		dir.crossable = true
	}
	return dir.path, nil
}

func (rt *Runtime) inUse() *directory { return rt.dirs[len(rt.dirs)-1] }

// workIn returns the base directory of the one that open returns.
func (rt *Runtime) workIn() (base string, err error) {
	dir, err := rt.open(false)
	return filepath.Dir(dir), err
}

// make takes the first base directory that will do. One that is all but full has its turn after the others: the directory may still fit, and then no backend's socket does.
func (rt *Runtime) make() error {
	var reasons []error
	var tight []string
	for _, base := range rt.baseDirs {
		err := rt.makeIn(base, rt.roomy)
		switch {
		case err == nil:
			rt.sweepOthers()
			return nil
		case errors.Is(err, errTight):
			tight = append(tight, base)
		default:
			reasons = append(reasons, err)
		}
	}
	for _, base := range tight {
		err := rt.makeIn(base, func(string) bool { return true })
		if err == nil {
			return nil
		}
		reasons = append(reasons, err)
	}
	return systemError(fmt.Errorf("no directory for the backends' sockets: %w", errors.Join(reasons...)))
}

// sweepOthers sweeps the bases that are not in use: somebody who was killed may have used one while there was no room elsewhere.
func (rt *Runtime) sweepOthers() {
	used := filepath.Dir(rt.inUse().path)
	for _, base := range rt.baseDirs {
		if base == used {
			continue
		}
		rt.sweeps.Go(func() {
			if _, err := os.Lstat(base); err == nil && prepareBase(base) == nil {
				sweep(base)
			}
		})
	}
}

// move makes a directory in another base than the one that has become tight, which keeps what is in it. Where no other will do, that stays in use: it may still suffice.
func (rt *Runtime) move(from string) {
	for _, base := range rt.baseDirs {
		if base != from && rt.makeIn(base, rt.roomy) == nil {
			rt.logger.Warn("there is little room where backends have their sockets: the next ones have them elsewhere", "full", from, "used", base)
			return
		}
	}
}

// makeIn makes a directory in base, if that is roomy, and locks it. The lock ends with this process, and tells the next one that nobody uses the directory any more.
func (rt *Runtime) makeIn(base string, roomy func(base string) bool) error {
	if len(base) > maxBase {
		return fmt.Errorf("%s: a unix socket's path would not fit (at most %d bytes for this part)", base, maxBase)
	}
	if err := prepareBase(base); err != nil {
		return err
	}
	rt.sweeps.Go(func() { sweep(base) })
	if !roomy(base) {
		return errTight
	}
	for range 10 { // a sweeper may lock a directory between its making and its locking
		dir := filepath.Join(base, dirPrefix+strings.ToLower(rand.Text()[:dirRandom]))
		err := os.Mkdir(dir, 0o700)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		lock, err := lockDir(dir)
		if err == nil {
			rt.dirs = append(rt.dirs, &directory{path: dir, lock: lock})
			return nil
		}
		_ = os.Remove(dir)
		if !errors.Is(err, errTaken) {
			return err
		}
	}
	return fmt.Errorf("%s: other brokers keep taking what is made there", base)
}

// errTight is makeIn's: there is little room in the base directory, or none.
var errTight = errors.New("little room")

// leastFiles is how many files a file system must still have room for to count as roomy: eight backends' directories and sockets, and their slots.
const leastFiles = 24

// errTaken is lockDir's: another process has the lock, or has removed the directory.
var errTaken = errors.New("taken by another process")

// sweep removes what dead processes have left in base: the directories whose lock can be had, and old slots. It never touches one that is in use.
func sweep(base string) {
	entries, err := os.ReadDir(base)
	if err != nil {
		return
	}
	for _, entry := range entries {
		if isSlot(entry.Name()) {
			sweepSlot(base, entry)
			continue
		}
		if !entry.IsDir() || !strings.HasPrefix(entry.Name(), dirPrefix) {
			continue
		}
		dir := filepath.Join(base, entry.Name())
		if lock, err := lockDir(dir); err == nil {
			_ = os.RemoveAll(dir)
			if lock != nil {
				_ = lock.Close()
			}
		}
	}
}

func sweepSlot(base string, entry fs.DirEntry) {
	info, err := entry.Info()
	if err != nil || time.Since(info.ModTime()) < slotAge {
		return
	}
	path := filepath.Join(base, entry.Name())
	if lock, err := lockFile(path); err == nil && lock != nil {
		_ = os.Remove(path)
		_ = lock.Close()
	}
}

// The names in a base directory.
const (
	dirPrefix = "r-"
	dirRandom = 10 // of base32, 50 bits
	// maxBase is what the length of a socket's path leaves for the base directory: 104 bytes with the closing zero on macOS and the BSDs (108 on Linux), less what
	// comes behind: /r-XXXXXXXXXX, and from go-plugin /plugin-dirNNNNNNNNNN and /pluginNNNNNNNNNN.
	maxBase = 103 - len("/r-") - dirRandom - len("/plugin-dir") - 10 - len("/plugin") - 10
)
