package caller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/credential-broker/credential-broker/broker/plugin"
	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

// process is a backend's process as a Keeper uses it: a *plugin.Process, or a test's.
type process interface {
	GetCredentials(context.Context, *backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error)
	Renew(context.Context, *backendv1.RenewRequest) (*backendv1.GetCredentialsResponse, error)
	Revoke(ctx context.Context, lease []byte) error
	Describe(context.Context) (*backendv1.DescribeResponse, error)
	Close(context.Context) error
	Flush()
	Stop()
	Ended() <-chan struct{}
	Exit() string
	PID() int
}

var _ process = (*plugin.Process)(nil)

const (
	// checkTimeout is how long a backend may take to say what it is before it counts as hung. It takes less than a millisecond.
	checkTimeout = 5 * time.Second
	// endGrace is how long the calls of a process that has ended are waited for: an answer that it gave last may still be on the way.
	endGrace = time.Second
)

// instance is one process of a provider, from its start to its end. What changes is guarded by the Keeper's mutex, but for process, err and steps, which are set before ready is closed.
type instance struct {
	kept   *kept
	file   *file // that it was started from
	giveUp context.CancelCauseFunc

	ready   chan struct{} // closed when it has been started and configured, or that failed
	process process
	err     error
	steps   *parts // "check", "start", "configure"

	doubt   chan struct{} // a call has had no answer: see whether there is anybody
	drained chan struct{} // closed when it is retired and has no calls any more

	begun      time.Time // to be started
	users      int       // the calls that it has, or that wait for it
	started    time.Time
	answered   bool // anything
	lastAnswer time.Time
	retired    bool                        // gets no more calls
	buried     bool                        // ended by itself, or hangs
	crowded    bool                        // had several calls then
	gone       bool                        // drained is closed
	about      *backendv1.DescribeResponse // nil: not asked yet
}

func (in *instance) isReadyLocked() bool { return in.process != nil || in.err != nil }

// run starts the process and stays with it until it is stopped.
func (in *instance) run(ctx context.Context) {
	s := in.kept
	k := s.keeper
	steps := &parts{began: time.Now()}
	process, err := k.launch(ctx, s.provider, in.file.path, steps)

	k.mu.Lock()
	in.process, in.err, in.steps = process, err, steps
	in.started = k.now()
	in.lastAnswer = in.started
	if err != nil {
		if !in.retired && !errors.Is(err, context.Canceled) {
			s.failed = true
			s.failLocked(in.file, err)
		}
		in.retireLocked()
	}
	close(in.ready)
	k.mu.Unlock()

	if err == nil {
		in.mind() //nolint:contextcheck // a process outlives the call that it was started for
	}
}

// mind stops the process when it is to be stopped, and sees to it that one which has ended or hangs is not asked again.
func (in *instance) mind() {
	defer in.process.Stop()
	for {
		timer := time.NewTimer(in.untilNextLook())
		select {
		case <-in.drained:
			timer.Stop()
			in.close()
			return
		case <-in.process.Ended():
			timer.Stop()
			in.bury(in.endedBecause(), "")
			timer.Reset(endGrace)
			select {
			case <-in.drained:
			case <-timer.C:
			}
			return
		case <-in.doubt:
			timer.Stop()
			in.check()
		case <-timer.C:
			in.look()
		}
	}
}

// untilNextLook is the time after which the process may have been idle for too long, or silent.
func (in *instance) untilNextLook() time.Duration {
	s := in.kept
	k := s.keeper
	k.mu.Lock()
	defer k.mu.Unlock()
	now, used := k.now(), s.lastUsed
	if in.users > 0 {
		used = now
	}
	silent, idle := in.lastAnswer.Add(k.healthInterval), used.Add(k.idleTimeout)
	return max(min(silent.Sub(now), idle.Sub(now)), time.Millisecond)
}

// look retires a process that is idle, and checks one that has been silent.
func (in *instance) look() {
	s := in.kept
	k := s.keeper
	k.mu.Lock()
	now := k.now()
	idle := in.users == 0 && now.Sub(s.lastUsed) >= k.idleTimeout
	silent := now.Sub(in.lastAnswer) >= k.healthInterval
	if idle {
		in.retireLocked()
	}
	k.mu.Unlock()
	if silent && !idle {
		in.check()
	}
}

// check asks the backend what it is, for no other reason than to see whether it answers. One that does not is killed; the calls that it has go to the next.
func (in *instance) check() {
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	stopped := make(chan struct{})
	defer close(stopped)
	go func() { // nobody needs to know of one that is to be stopped anyway
		select {
		case <-in.drained:
			cancel()
		case <-stopped:
		}
	}()
	err := in.describe(ctx)
	switch {
	case err == nil:
	case errors.Is(err, context.Canceled):
	case errors.Is(err, context.DeadlineExceeded):
		why := fmt.Sprintf("did not answer within %s and was killed", checkTimeout)
		in.bury(&plugin.Error{Kind: backendv1.Error_KIND_UNAVAILABLE, Gone: true, Err: errors.New("the backend " + why)}, why)
		in.process.Stop()
	default:
		in.bury(err, "")
		in.process.Stop()
	}
}

// describe has the backend say what it is. A backend that cannot say it is alive all the same, and has no features.
func (in *instance) describe(ctx context.Context) error {
	about, err := in.process.Describe(ctx)
	if err != nil && (worthAnother(err) || ctx.Err() != nil) {
		return err
	}
	in.kept.keeper.mu.Lock()
	defer in.kept.keeper.mu.Unlock()
	if about != nil {
		in.about = about
	} else if in.about == nil {
		in.about = &backendv1.DescribeResponse{}
	}
	in.lastAnswer = in.kept.keeper.now()
	return nil
}

// can says whether the backend has a feature. It is asked when that is first needed, so that no answer waits for it that does not depend on it.
func (in *instance) can(ctx context.Context, feature backendv1.Feature) (bool, error) {
	features := func() (known bool, features []backendv1.Feature) {
		in.kept.keeper.mu.Lock()
		defer in.kept.keeper.mu.Unlock()
		return in.about != nil, in.about.GetFeatures()
	}
	known, has := features()
	if !known {
		if err := in.describe(ctx); err != nil {
			return false, err
		}
		_, has = features()
	}
	return slices.Contains(has, feature), nil
}

// close lets the backend end in good order, if it can.
func (in *instance) close() { in.closeWithin(backendv1.CloseTimeout) }

func (in *instance) closeWithin(timeout time.Duration) {
	s := in.kept
	s.keeper.mu.Lock()
	buried := in.buried
	s.keeper.mu.Unlock()
	if buried {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	can, err := in.can(ctx, backendv1.Feature_FEATURE_CLOSE)
	if can {
		err = in.process.Close(ctx)
	}
	if err != nil {
		s.keeper.didNotClose(s.provider, in.file.path, err)
	}
}

// bury is for a process that has ended, or is to be killed because it hangs. Exit says how; if empty, the process itself does.
func (in *instance) bury(err error, exit string) {
	in.kept.keeper.mu.Lock()
	defer in.kept.keeper.mu.Unlock()
	in.buryLocked(err, exit)
}

func (in *instance) buryLocked(err error, exit string) {
	if in.buried {
		return
	}
	in.buried, in.crowded = true, in.users > 1
	if exit == "" {
		exit = in.process.Exit()
	}
	if exit == "" {
		exit = "closed its connection"
	}
	s := in.kept
	s.lastExit = exit
	if !in.retired {
		s.failed = true
		if !in.answered {
			s.failLocked(in.file, err)
		}
		s.keeper.logger.Warn("a backend has ended; the next request starts it again", "provider", s.provider.Name, "backend", in.file.path, "exit", exit)
	}
	in.retireLocked()
}

// endedBecause is the failure of a process that has ended while nobody asked it.
func (in *instance) endedBecause() error {
	return &plugin.Error{Kind: backendv1.Error_KIND_UNAVAILABLE, Gone: true, Err: errors.New("the backend " + in.process.Exit())}
}

func (in *instance) hasEndedLocked() bool {
	if in.process == nil {
		return false
	}
	select {
	case <-in.process.Ended():
		return true
	default:
		return false
	}
}

// answeredLocked takes note that the backend has answered, be it with a refusal.
func (in *instance) answeredLocked() {
	in.answered, in.lastAnswer = true, in.kept.keeper.now()
	if !in.retired {
		in.kept.failures, in.kept.notBefore = 0, time.Time{}
	}
}

// retireLocked keeps calls from going to this process.
func (in *instance) retireLocked() {
	in.retired = true
	if in.kept.current == in {
		in.kept.current = nil
	}
	in.drainLocked()
}

func (in *instance) leaveLocked() {
	in.users--
	in.drainLocked()
}

func (in *instance) drainLocked() {
	if in.retired && in.users == 0 && !in.gone {
		in.gone = true
		close(in.drained)
	}
}
