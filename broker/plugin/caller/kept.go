package caller

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/plugin"
	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

// Pauses between starts, where the last process ended without having answered anything. The first restart is at once; then they grow twofold from the first of these to the second.
const (
	firstPause   = 100 * time.Millisecond
	longestPause = 10 * time.Second
	// maxPauseWait is how long a call waits for the end of a pause; one that lasts longer is answered with the failure that it is for.
	maxPauseWait = time.Second
)

// kept is what a Keeper has of one provider: the process that new calls go to, if there is one, and how the last ones fared. Its fields are guarded by the Keeper's mutex.
type kept struct {
	keeper      *Keeper
	provider    *config.Provider
	fingerprint string

	current  *instance // being started or running; nil: none
	calls    int       // that are going on
	restarts int
	failed   bool // the last process ended by itself, hung, or could not be started

	// Of starts and processes that came to nothing, since the last answer.
	failures  int
	notBefore time.Time // when the next start is allowed
	failure   error     // the last one
	file      *file     // the backend's file then

	path      string
	lastUsed  time.Time
	lastExit  string
	lastError string

	looks atomic.Uint64 // at the file
}

// file is a backend's file as it was at one moment.
type file struct {
	path string
	info fs.FileInfo
	// When it was looked at, on a clock that counts the beginnings and ends of such looks.
	from, to uint64
}

// newer says that this is certainly a later look at the file than the other. Calls look at the same time, and one may come late with what it saw.
func (f *file) newer(than *file) bool { return f.from > than.to }

// same says that it is still the same file with the same content and permissions, as far as the file system tells. Where another file is just being renamed over it, it has lost its name already,
// which counts as a change of it, and is still found: the rename is not over, and nothing of it has changed.
func (f *file) same(as *file) bool {
	return f.path == as.path && os.SameFile(f.info, as.info) && f.info.Mode() == as.info.Mode() && f.info.Size() == as.info.Size() &&
		f.info.ModTime().Equal(as.info.ModTime()) && (unlinked(as.info) || changed(f.info).Equal(changed(as.info)))
}

// look finds the backend's file. A call needs it even where a process runs: a file that has been taken away or exchanged must be seen, as it would be without a Keeper.
func (s *kept) look() (*file, error) {
	from := s.looks.Add(1)
	path, err := s.keeper.find(s.provider.Backend)
	if err != nil {
		return nil, err
	}
	info, err := s.keeper.stat(path)
	if err != nil {
		return nil, broker.Errorf(broker.Misconfigured, "backend %q: %w", s.provider.Backend, err)
	}
	return &file{path: path, info: info, from: from, to: s.looks.Add(1)}, nil
}

// once lets ask have the current process. Crowded: it has ended, and had other calls too.
func (s *kept) once(ctx context.Context, parts *parts, ask func(*instance) error) (crowded bool, err error) {
	in, err := s.acquire(ctx, parts)
	if err != nil {
		return false, err
	}
	err = ask(in)
	in.process.Flush()
	return s.release(in, err), err
}

// onceAlone lets ask have a process that nobody else has, and that ends then.
func (s *kept) onceAlone(ctx context.Context, all *parts, ask func(*instance) error) error {
	k := s.keeper
	select {
	case k.alone <- struct{}{}:
		defer func() { <-k.alone }()
	case <-ctx.Done():
		return plugin.TimeError(ctx, "start", "")
	}
	file, err := s.look()
	if err != nil {
		return err
	}
	steps := &parts{began: time.Now()}
	process, err := k.launch(ctx, s.provider, file.path, steps)
	all.append(steps)
	if err != nil {
		return err
	}
	defer process.Stop()
	in := &instance{kept: s, file: file, process: process, retired: true}
	err = ask(in)
	process.Flush()
	if !worthAnother(err) { // somebody is there to put something away
		in.closeWithin(backendv1.ShortCloseTimeout) //nolint:contextcheck // putting away goes on when the request has no time left
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if worthAnother(err) {
		s.failLocked(file, err)
	} else {
		s.failures, s.notBefore = 0, time.Time{}
	}
	return err
}

// acquire gives the process that runs, or one that it starts. It must be released.
func (s *kept) acquire(ctx context.Context, parts *parts) (*instance, error) {
	for again := false; ; again = true {
		if ctx.Err() != nil {
			return nil, plugin.TimeError(ctx, "start", "")
		}
		file, err := s.look()
		if err != nil {
			return nil, err
		}
		in, mine, pause, err := s.take(ctx, file, again)
		if err != nil {
			return nil, err
		}
		if in != nil {
			if err := s.await(ctx, in, mine, parts); err != nil {
				return nil, err
			}
			return in, nil
		}
		if pause == 0 {
			continue
		}
		end := parts.start("wait")
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		end()
	}
}

// take gives the current process, which may be one that is only being started, for this call (mine) or for another; or no process, and after
// how long to try again. That the file is another one is believed of a call that looks again: the system changes the times and the names of a file that is being replaced one after the other, and
// what is seen in between would cost a process.
func (s *kept) take(ctx context.Context, file *file, again bool) (in *instance, mine bool, pause time.Duration, err error) {
	k := s.keeper
	k.mu.Lock()
	defer k.mu.Unlock()
	switch in := s.current; {
	case in == nil:
	case in.hasEndedLocked():
		in.buryLocked(in.endedBecause(), "") // nobody has noticed yet
	case in.file.same(file):
	case !file.newer(in.file):
		return nil, false, 0, nil // another call has seen the file later, and started this process from it: look again
	case !again:
		return nil, false, 0, nil
	default:
		in.retireLocked()
	}
	if s.current != nil {
		s.current.users++
		return s.current, false, 0, nil
	}
	if k.closed {
		return nil, false, 0, errEnding
	}
	if s.file != nil && !s.file.same(file) { // another file, another chance
		s.failures, s.notBefore = 0, time.Time{}
	}
	if pause := s.notBefore.Sub(k.now()); pause > 0 {
		if deadline, ok := ctx.Deadline(); pause > maxPauseWait || ok && time.Until(deadline) <= pause {
			return nil, false, 0, broker.Errorf(broker.KindOf(s.failure), "%w (the backend is started again in %s at the earliest)", s.failure, max(pause.Round(100*time.Millisecond), 100*time.Millisecond))
		}
		return nil, false, pause, nil
	}
	s.startLocked(ctx, file)
	return s.current, true, 0, nil
}

// startLocked begins to start a process. Its context is its own: the call that it is started for may be given up while others wait for the same process.
func (s *kept) startLocked(ctx context.Context, file *file) {
	k := s.keeper
	if s.failed {
		s.restarts++
		s.failed = false
	}
	s.path = file.path
	in := &instance{kept: s, file: file, begun: k.now(), users: 1, ready: make(chan struct{}), drained: make(chan struct{}), doubt: make(chan struct{}, 1)}
	bounded, stop := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
	starting, giveUp := context.WithCancelCause(bounded)
	in.giveUp = giveUp
	s.current = in
	k.minds.Go(func() {
		defer stop()
		in.run(starting)
	})
}

// startTimeout bounds a start that somebody waits for all the while.
const startTimeout = time.Minute

// await waits until the process is ready. When it returns an error the process has been released.
func (s *kept) await(ctx context.Context, in *instance, mine bool, parts *parts) error {
	select {
	case <-in.ready:
	default:
		waiting := parts.start("wait")
		select {
		case <-in.ready:
		case <-ctx.Done():
			if !s.abandon(ctx, in) {
				return plugin.TimeError(ctx, "start", "")
			}
			// Nobody waits for the start any more, so it has been given up; how far it had come is worth a moment.
			timer := time.NewTimer(giveUpGrace)
			defer timer.Stop()
			select {
			case <-in.ready:
			case <-timer.C:
				return plugin.TimeError(ctx, "start", "")
			}
			if in.err == nil { // it was ready just then
				return plugin.TimeError(ctx, "start", "")
			}
			parts.append(in.steps)
			return in.err
		}
		if mine {
			parts.append(in.steps)
		} else {
			waiting()
		}
	}
	if in.err != nil {
		s.keeper.mu.Lock()
		defer s.keeper.mu.Unlock()
		in.leaveLocked()
		return in.err
	}
	return nil
}

// giveUpGrace is how long a start that has been given up is waited for. To kill a backend takes milliseconds, but a start may be stuck in the system.
const giveUpGrace = 500 * time.Millisecond

// longStart is after how long a start that somebody's time is up for counts as one that came to nothing: the next call begins another.
const longStart = 10 * time.Second

// abandon releases a process whose start its caller cannot wait for any longer. It returns true, and the start is given up, if that was the last one to wait.
func (s *kept) abandon(ctx context.Context, in *instance) bool {
	s.keeper.mu.Lock()
	defer s.keeper.mu.Unlock()
	if cause := context.Cause(ctx); !in.retired && !in.isReadyLocked() && errors.Is(cause, context.DeadlineExceeded) && s.keeper.now().Sub(in.begun) >= longStart {
		s.failed = true
		s.failLocked(in.file, plugin.TimeError(ctx, "start", ""))
		in.retireLocked() // those who wait for it still have it
	}
	last := in.users == 1 && !in.isReadyLocked()
	if last {
		in.retireLocked()
		in.giveUp(context.Cause(ctx))
	}
	in.leaveLocked()
	return last
}

// release gives a process back after a call that ended with err. Crowded is once's.
func (s *kept) release(in *instance, err error) (crowded bool) {
	k := s.keeper
	k.mu.Lock()
	defer k.mu.Unlock()
	s.lastUsed = k.now()
	switch {
	case worthAnother(err):
		in.buryLocked(err, "")
	case errors.Is(err, context.DeadlineExceeded):
		select {
		case in.doubt <- struct{}{}:
		default: // a check is due already
		}
	case errors.Is(err, context.Canceled):
	default:
		in.answeredLocked()
	}
	in.leaveLocked()
	return in.crowded
}

// failLocked takes note of a process that came to nothing.
func (s *kept) failLocked(file *file, err error) {
	s.failures++
	s.failure, s.file = inBrokersWords(err), file
	s.notBefore = s.keeper.now().Add(pause(s.failures, s.keeper.random()))
}

// pause is the time between the start that was the given failure, counted from one, and the next. Random shortens it by up to a quarter: an outage that brings down a whole fleet's backends had
// better not bring them up in step.
func pause(failures int, random float64) time.Duration {
	if failures <= 1 {
		return 0
	}
	whole := longestPause
	if doublings := failures - 2; doublings < 7 { // 100 ms × 2^7 exceeds the longest
		whole = firstPause << doublings
	}
	return whole - time.Duration(random/4*float64(whole))
}

// note keeps the last failure of a call, for Status.
func (s *kept) note(err error) {
	s.keeper.mu.Lock()
	defer s.keeper.mu.Unlock()
	s.lastError = err.Error()
}

func (s *kept) statusLocked() KeptBackend {
	status := KeptBackend{
		Provider: s.provider.Name, Fingerprint: s.fingerprint, Backend: s.provider.Backend, Path: s.path, Restarts: s.restarts, InFlight: s.calls,
		LastUsed: s.lastUsed, LastExit: s.lastExit, LastError: s.lastError,
	}
	if s.current != nil && s.current.isReadyLocked() {
		status.PID, status.Started = s.current.process.PID(), s.current.started
	}
	return status
}

// worthAnother says that a call's failure is not the backend's answer but its end, or that its file is being written: another process may do what this one did not.
func worthAnother(err error) bool {
	if errors.Is(err, syscall.ETXTBSY) {
		return true
	}
	failure, ok := errors.AsType[*plugin.Error](err)
	return ok && failure.Gone
}
