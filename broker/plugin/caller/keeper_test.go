package caller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/plugin"
	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
	"github.com/credential-broker/credential-broker/proto/secret"
)

// The tests here have processes that are none, in a time that passes when everybody waits. Those with real ones are in keeper_unix_test.go.

// stage is what a Keeper starts instead of processes.
type stage struct {
	*Keeper
	file string

	mu      sync.Mutex
	starts  []time.Time
	actors  []*actor
	starter func(ctx context.Context, n int) (*actor, error) // n counts from 1
}

// actor plays a process. What is nil behaves well.
type actor struct {
	get      func(context.Context) (*backendv1.GetCredentialsResponse, error)
	describe func(context.Context) (*backendv1.DescribeResponse, error)
	close    func(context.Context) error
	renew    func(*backendv1.RenewRequest) (*backendv1.GetCredentialsResponse, error)
	revoke   func(lease string) error
	features []backendv1.Feature

	number  int
	mu      sync.Mutex
	calls   []string
	exit    string
	ended   chan struct{}
	stopped bool
}

func (a *actor) note(call string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls = append(a.calls, call)
}

func (a *actor) seen() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.calls)
}

// die ends the process by itself.
func (a *actor) die(exit string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.stopped && a.exit == "" {
		a.exit = exit
		close(a.ended)
	}
}

func gone() error {
	return &plugin.Error{Kind: backendv1.Error_KIND_UNAVAILABLE, Gone: true, Err: errors.New("the backend has ended")}
}

// until runs something that ends with the process or with ctx at the latest.
func (a *actor) until(ctx context.Context, done <-chan time.Time) error {
	select {
	case <-done:
		return nil
	case <-a.ended:
		return gone()
	case <-ctx.Done():
		return plugin.TimeError(ctx, "answer", "")
	}
}

func (a *actor) GetCredentials(ctx context.Context, _ *backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error) {
	a.note("get")
	select {
	case <-a.ended:
		return nil, gone()
	default:
	}
	if a.get != nil {
		return a.get(ctx)
	}
	return a.answer(), nil
}

// answer tells which process gave it.
func (a *actor) answer() *backendv1.GetCredentialsResponse {
	return &backendv1.GetCredentialsResponse{Credentials: []*backendv1.Credential{{Key: "registry.example", Username: fmt.Sprint(a.number), Password: "p"}}, Lease: []byte("lease")}
}

func (a *actor) Renew(_ context.Context, r *backendv1.RenewRequest) (*backendv1.GetCredentialsResponse, error) {
	a.note("renew " + string(r.GetLease()) + " " + r.GetRequest().GetImage())
	return a.renew(r)
}

func (a *actor) Revoke(_ context.Context, lease []byte) error {
	a.note("revoke " + string(lease))
	return a.revoke(string(lease))
}

func (a *actor) Describe(ctx context.Context) (*backendv1.DescribeResponse, error) {
	a.note("describe")
	if a.describe != nil {
		return a.describe(ctx)
	}
	return &backendv1.DescribeResponse{Features: a.features}, nil
}

func (a *actor) Close(ctx context.Context) error {
	a.note("close")
	if a.close != nil {
		return a.close(ctx)
	}
	return nil
}

func (a *actor) Flush() { a.note("flush") }

func (a *actor) Stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.stopped {
		a.calls = append(a.calls, "stop")
		a.stopped = true
		if a.exit == "" {
			close(a.ended)
		}
	}
}

func (a *actor) Ended() <-chan struct{} { return a.ended }

func (a *actor) Exit() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.exit
}

func (a *actor) PID() int { return a.number }

// newStage makes a Keeper that starts what starter makes; nil: well-behaved actors, at once.
func newStage(t *testing.T, o KeeperOptions, starter func(ctx context.Context, n int) (*actor, error)) *stage {
	t.Helper()
	if starter == nil {
		starter = func(context.Context, int) (*actor, error) { return &actor{}, nil }
	}
	st := &stage{file: filepath.Join(t.TempDir(), "backend"), starter: starter}
	st.replaceFile(t, "1")
	o.Logger, o.Environ, o.BaseDirs = slog.New(slog.DiscardHandler), []string{}, []string{filepath.Join(t.TempDir(), "b")}
	if o.Random == nil {
		o.Random = func() float64 { return 0 }
	}
	st.Keeper = NewKeeper(o)
	st.launch = func(ctx context.Context, _ *config.Provider, _ string, steps *parts) (process, error) {
		defer steps.start("start")()
		st.mu.Lock()
		st.starts = append(st.starts, time.Now())
		n := len(st.starts)
		st.mu.Unlock()
		a, err := st.starter(ctx, n)
		if err != nil {
			return nil, err
		}
		st.mu.Lock()
		defer st.mu.Unlock()
		a.number, a.ended = n, make(chan struct{})
		st.actors = append(st.actors, a)
		return a, nil
	}
	return st
}

// always starts the same kind of actor each time.
func always(start func() *actor) func(context.Context, int) (*actor, error) {
	return func(context.Context, int) (*actor, error) { return start(), nil }
}

// replaceFile puts another file in the backend's place.
func (st *stage) replaceFile(t *testing.T, content string) {
	t.Helper()
	if err := os.WriteFile(st.file+".new", []byte(content), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(st.file+".new", st.file); err != nil {
		t.Fatal(err)
	}
}

func (st *stage) provider() *config.Provider { return &config.Provider{Name: "p", Backend: st.file} }

// ask asks within ten seconds, and gives the number of the process that answered.
func (st *stage) ask(t *testing.T) (string, error) {
	t.Helper()
	return st.askWithin(t.Context(), 10*time.Second, st.provider())
}

func (st *stage) askWithin(ctx context.Context, d time.Duration, provider *config.Provider) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	answer, err := st.Call(ctx, provider, broker.Request{Image: "registry.example/app"})
	if err != nil {
		return "", err
	}
	return answer.Credentials[0].Username, nil
}

func (st *stage) mustAsk(t *testing.T, want string) {
	t.Helper()
	if got, err := st.ask(t); err != nil || got != want {
		t.Fatalf("answered by process %q, %v; want %s", got, err, want)
	}
}

func (st *stage) started() int {
	st.mu.Lock()
	defer st.mu.Unlock()
	return len(st.starts)
}

func (st *stage) actor(n int) *actor {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.actors[n-1]
}

func (st *stage) end(t *testing.T) {
	t.Helper()
	if err := st.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// pass lets time pass.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestAProcessIsStartedOnceAndAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, KeeperOptions{}, nil)
		for range 3 {
			st.mustAsk(t, "1")
		}
		if diff := cmp.Diff([]string{"get", "flush", "get", "flush", "get", "flush"}, st.actor(1).seen()); diff != "" {
			t.Error(diff)
		}
		st.end(t)
		if diff := cmp.Diff([]string{"describe", "stop"}, st.actor(1).seen()[6:]); diff != "" {
			t.Errorf("at the end: %s", diff)
		}
	})
}

func TestOnlyTheCallThatHadToStartTellsOfIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, KeeperOptions{}, func(context.Context, int) (*actor, error) { pass(time.Second); return &actor{}, nil })
		ask := func() string {
			answer, err := st.Call(t.Context(), st.provider(), broker.Request{})
			if err != nil {
				t.Error(err)
			}
			var names []string
			for _, part := range answer.Parts {
				names = append(names, part.Name)
				if part.Name != "ask" && part.Took != time.Second {
					t.Errorf("%s took %s, want 1s", part.Name, part.Took)
				}
			}
			return strings.Join(names, " ")
		}
		both := make(chan string, 2)
		for range 2 {
			go func() { both <- ask() }()
		}
		got := []string{<-both, <-both}
		slices.Sort(got)
		if diff := cmp.Diff([]string{"start ask", "wait ask"}, got); diff != "" {
			t.Error(diff)
		}
		if got := ask(); got != "ask" {
			t.Errorf("later: %s", got)
		}
		st.end(t)
	})
}

func TestManyFirstCallsShareOneStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, KeeperOptions{}, func(context.Context, int) (*actor, error) { pass(time.Second); return &actor{}, nil })
		var all sync.WaitGroup
		for range 64 {
			all.Go(func() { st.mustAsk(t, "1") })
		}
		all.Wait()
		st.end(t)
	})
}

func TestAStart(t *testing.T) {
	// The processes take three seconds to start.
	slow := func(ctx context.Context, _ int) (*actor, error) {
		select {
		case <-time.After(3 * time.Second):
			return &actor{}, nil
		case <-ctx.Done():
			return nil, plugin.TimeError(ctx, "start", "; its last words: so slow")
		}
	}
	t.Run("goes on when the call that began it is given up and another waits", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			st := newStage(t, KeeperOptions{}, slow)
			ctx, cancel := context.WithCancel(t.Context())
			first := make(chan error, 1)
			go func() { _, err := st.askWithin(ctx, time.Minute, st.provider()); first <- err }()
			pass(time.Second)
			second := make(chan string, 1)
			go func() { got, _ := st.ask(t); second <- got }()
			pass(time.Second)
			cancel()
			if err := <-first; !errors.Is(err, context.Canceled) {
				t.Errorf("the first got %v", err)
			}
			if got := <-second; got != "1" {
				t.Errorf("the second was answered by %q", got)
			}
			st.end(t)
		})
	})
	t.Run("is given up when nobody waits any more", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			st := newStage(t, KeeperOptions{}, slow)
			began := time.Now()
			errs := make(chan error, 2)
			for i := range 2 {
				go func() {
					_, err := st.askWithin(t.Context(), time.Duration(i+1)*time.Second, st.provider())
					errs <- err
				}()
			}
			for i, want := range []string{"no answer within 1s: the backend did not start in time", "no answer within 2s: the backend did not start in time; its last words: so slow"} {
				if err := <-errs; err == nil || err.Error() != want {
					t.Errorf("%v\nwant %s", err, want)
				}
				if took := time.Since(began); took != time.Duration(i+1)*time.Second {
					t.Errorf("call %d took %s", i+1, took)
				}
			}
			if status := st.Status()[0]; status.PID != 0 || status.InFlight != 0 {
				t.Errorf("%+v", status)
			}
			st.mustAsk(t, "2")
			st.end(t)
		})
	})
	t.Run("that was given up by a caller who had time left is no failure of the backend", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			st := newStage(t, KeeperOptions{}, slow)
			for range 10 {
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(time.Second, cancel)
				if _, err := st.askWithin(ctx, time.Minute, st.provider()); !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				cancel()
			}
			st.mustAsk(t, "11")
			if status := st.Status()[0]; status.Restarts != 0 {
				t.Errorf("%d restarts", status.Restarts)
			}
			st.end(t)
		})
	})
}

func TestACallIsAskedAgainWhereItsProcessEnds(t *testing.T) {
	for name, tt := range map[string]struct {
		deaths int // of processes, under their calls
		want   string
		starts int
	}{
		"once":                            {1, "3", 3},
		"twice":                           {2, "4", 4},
		"but not where a third has ended": {3, "", 4},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := newStage(t, KeeperOptions{}, nil)
				st.starter = func(_ context.Context, n int) (*actor, error) {
					a := &actor{}
					if n > 1 && n <= 1+tt.deaths {
						a.get = func(context.Context) (*backendv1.GetCredentialsResponse, error) {
							a.die("exited with status 2")
							return nil, gone()
						}
					}
					return a, nil
				}
				st.mustAsk(t, "1")
				st.actor(1).die("exited with status 1")
				got, err := st.ask(t)
				if got != tt.want || (err != nil) != (tt.want == "") {
					t.Errorf("answered by %q, %v", got, err)
				}
				if got := st.started(); got != tt.starts {
					t.Errorf("%d starts, want %d", got, tt.starts)
				}
				status := st.Status()[0]
				if status.LastExit != "exited with status 2" || status.Restarts != tt.starts-1 {
					t.Errorf("%+v", status)
				}
				st.end(t)
			})
		})
	}
}

func TestAStartThatHangsHoldsUpNoLaterCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, KeeperOptions{}, func(ctx context.Context, n int) (*actor, error) {
			if n == 1 {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return &actor{}, nil
		})
		var calls sync.WaitGroup
		for i := range 20 { // one each second, so that somebody always waits
			calls.Go(func() {
				<-time.After(time.Duration(i) * time.Second)
				_, err := st.askWithin(t.Context(), 15*time.Second, st.provider())
				if i > 15 && err != nil {
					t.Errorf("the call after %d s: %v", i, err)
				}
			})
		}
		calls.Wait()
		if status := st.Status()[0]; status.Restarts != 1 || status.PID != 2 {
			t.Errorf("%+v", status)
		}
		st.end(t)
	})
}

type poisonKey struct{}

func TestACallThatKillsItsBackendFailsNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, KeeperOptions{}, always(func() *actor {
			a := &actor{}
			a.get = func(ctx context.Context) (*backendv1.GetCredentialsResponse, error) {
				if ctx.Value(poisonKey{}) != nil {
					_ = a.until(ctx, time.After(5*time.Millisecond))
					a.die("panicked")
					return nil, gone()
				}
				return a.answer(), a.until(ctx, time.After(500*time.Millisecond))
			}
			return a
		}))
		var calls sync.WaitGroup
		for range 10 {
			calls.Go(func() {
				if _, err := st.ask(t); err != nil {
					t.Errorf("beside it: %v", err)
				}
			})
		}
		calls.Go(func() {
			if _, err := st.askWithin(context.WithValue(t.Context(), poisonKey{}, true), time.Minute, st.provider()); err == nil {
				t.Error("the one that kills has an answer")
			}
		})
		calls.Wait()
		began := time.Now()
		if _, err := st.ask(t); err != nil || time.Since(began) > time.Second {
			t.Errorf("the next call: %v after %s", err, time.Since(began))
		}
		synctest.Wait()
		for n := range st.started() {
			if seen := st.actor(n + 1).seen(); n+1 < st.started() && seen[len(seen)-1] != "stop" {
				t.Errorf("process %d of %d goes on: %v", n+1, st.started(), seen)
			}
		}
		st.end(t)
	})
}

func TestWhatTheBackendSaysItselfIsNotAskedAgain(t *testing.T) {
	for _, kind := range []backendv1.Error_Kind{backendv1.Error_KIND_REFUSED, backendv1.Error_KIND_UNAVAILABLE, backendv1.Error_KIND_MISCONFIGURED} {
		synctest.Test(t, func(t *testing.T) {
			st := newStage(t, KeeperOptions{}, func(context.Context, int) (*actor, error) {
				return &actor{get: func(context.Context) (*backendv1.GetCredentialsResponse, error) {
					return nil, &plugin.Error{Kind: kind, Err: errors.New("no")}
				}}, nil
			})
			for range 5 {
				if _, err := st.ask(t); err == nil || broker.KindOf(err) != kindOf(kind) || err.Error() != "no" {
					t.Errorf("%v", err)
				}
			}
			status := st.Status()[0]
			if got := len(st.actor(1).seen()); got != 10 || status.Restarts != 0 || status.LastError != "no" || status.LastExit != "" {
				t.Errorf("%d calls of the backend, status %+v", got, status)
			}
			st.end(t)
		})
	}
}

func TestACrashLoopIsSlowedDownAndEndsWithTheFirstAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mended := false
		st := newStage(t, KeeperOptions{}, nil)
		st.starter = func(context.Context, int) (*actor, error) {
			if !mended {
				return nil, gone()
			}
			return &actor{}, nil
		}
		// Somebody asks all the time, for a minute.
		began := time.Now()
		for time.Since(began) < time.Minute {
			if _, err := st.ask(t); err == nil || broker.KindOf(err) != broker.Unavailable {
				t.Fatalf("%v", err)
			}
			pass(10 * time.Millisecond)
		}
		var pauses []time.Duration
		for i, at := range st.starts[1:] {
			pauses = append(pauses, at.Sub(st.starts[i]).Truncate(100*time.Millisecond))
		}
		const ms = time.Millisecond
		want := []time.Duration{0, 100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 6400 * ms, 10000 * ms, 10000 * ms, 10000 * ms, 10000 * ms}
		if diff := cmp.Diff(want, pauses); diff != "" {
			t.Error(diff)
		}
		mended = true
		pass(10 * time.Second)
		if _, err := st.ask(t); err != nil {
			t.Fatal(err)
		}
		mended = false
		before, died := st.started(), time.Now()
		st.actor(1).die("exited with status 2")
		synctest.Wait()
		if _, err := st.ask(t); err == nil {
			t.Fatal("it is not mended")
		}
		if got := st.started() - before; got != 3 {
			t.Errorf("after an answer there were %d starts for one call, want 3: the pauses begin anew", got)
		}
		if took := time.Since(died); took != 100*time.Millisecond {
			t.Errorf("they took %s, want 100ms: the end of a process that has answered is no failed start", took)
		}
		st.end(t)
	})
}

func TestACallWithinAPauseFailsAtOnceWithTheReasonForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, KeeperOptions{}, func(context.Context, int) (*actor, error) {
			return nil, &plugin.Error{Kind: backendv1.Error_KIND_MISCONFIGURED, Field: "url", Err: errors.New("is no URL")}
		})
		for range 100 {
			began := time.Now()
			_, err := st.ask(t)
			if err == nil || broker.KindOf(err) != broker.Misconfigured || !strings.HasPrefix(err.Error(), "config.url: is no URL") {
				t.Fatal(err)
			}
			if took := time.Since(began); took > maxPauseWait {
				t.Fatalf("it took %s", took)
			}
		}
		if got := st.started(); got != 6 { // 0, 0, 100, 200, 400, 800 ms, and then 1.6 s
			t.Errorf("%d starts", got)
		}
		_, err := st.ask(t)
		if want := "config.url: is no URL (the backend is started again in 1.6s at the earliest)"; err == nil || err.Error() != want {
			t.Errorf("%v\nwant %s", err, want)
		}
		// Other settings are another provider, and are tried at once.
		other := st.provider()
		other.Config = []byte(`{"url":"https://registry.example"}`)
		st.starter = func(context.Context, int) (*actor, error) { return &actor{}, nil }
		if _, err := st.askWithin(t.Context(), time.Millisecond, other); err != nil {
			t.Error(err)
		}
		// So is another file.
		st.replaceFile(t, "other")
		if _, err := st.askWithin(t.Context(), time.Millisecond, st.provider()); err != nil {
			t.Error(err)
		}
		st.end(t)
	})
}

func TestPausesAreSpread(t *testing.T) {
	for _, tt := range []struct {
		failures int
		random   float64
		want     time.Duration
	}{
		{1, 0, 0}, {2, 0, 100 * time.Millisecond}, {2, 1, 75 * time.Millisecond}, {9, 0, 10 * time.Second}, {1000, 0.5, 8750 * time.Millisecond},
	} {
		if got := pause(tt.failures, tt.random); got != tt.want {
			t.Errorf("pause after %d failures with %g: %s, want %s", tt.failures, tt.random, got, tt.want)
		}
	}
}

func TestAHungProcessIsKilledAndReplaced(t *testing.T) {
	hung := func() *actor {
		a := &actor{}
		a.get = func(ctx context.Context) (*backendv1.GetCredentialsResponse, error) { return nil, a.until(ctx, nil) }
		a.describe = func(ctx context.Context) (*backendv1.DescribeResponse, error) { return nil, a.until(ctx, nil) }
		return a
	}
	t.Run("after a call that had no answer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			st := newStage(t, KeeperOptions{}, func(_ context.Context, n int) (*actor, error) {
				if n == 1 {
					return hung(), nil
				}
				return &actor{}, nil
			})
			if _, err := st.ask(t); err == nil || !strings.HasPrefix(err.Error(), "no answer within 10s") {
				t.Fatal(err)
			}
			// The next one comes while the process is being checked, and has its answer from another one.
			began := time.Now()
			st.mustAsk(t, "2")
			if took := time.Since(began); took != checkTimeout {
				t.Errorf("it took %s, want %s", took, checkTimeout)
			}
			status := st.Status()[0]
			if want := "did not answer within 5s and was killed"; status.LastExit != want || status.Restarts != 1 {
				t.Errorf("%+v", status)
			}
			st.end(t)
		})
	})
	t.Run("when it has been silent for long", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			st := newStage(t, KeeperOptions{}, nil)
			st.mustAsk(t, "1")
			st.actor(1).describe = func(ctx context.Context) (*backendv1.DescribeResponse, error) {
				return nil, st.actor(1).until(ctx, nil)
			}
			pass(29 * time.Second)
			if seen := st.actor(1).seen(); slices.Contains(seen, "describe") {
				t.Fatalf("checked too early: %v", seen)
			}
			pass(time.Second)
			if seen := st.actor(1).seen(); !slices.Contains(seen, "describe") || slices.Contains(seen, "stop") {
				t.Fatalf("not checked, or not given time: %v", seen)
			}
			pass(5 * time.Second)
			if seen := st.actor(1).seen(); !slices.Contains(seen, "stop") || slices.Contains(seen, "close") {
				t.Fatalf("not killed: %v", seen)
			}
			if got := st.started(); got != 1 {
				t.Errorf("%d starts: the next call has to start the next", got)
			}
			st.mustAsk(t, "2")
			st.end(t)
		})
	})
	t.Run("but not one that only takes long to answer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			st := newStage(t, KeeperOptions{}, func(context.Context, int) (*actor, error) {
				a := &actor{}
				a.get = func(ctx context.Context) (*backendv1.GetCredentialsResponse, error) {
					return a.answer(), a.until(ctx, time.After(5*time.Minute))
				}
				return a, nil
			})
			if got, err := st.askWithin(t.Context(), time.Hour, st.provider()); got != "1" || err != nil {
				t.Errorf("%q, %v", got, err)
			}
			st.end(t)
		})
	})
}

func TestAnIdleProcessIsStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, KeeperOptions{IdleTimeout: time.Minute}, nil)
		st.starter = func(context.Context, int) (*actor, error) {
			a := &actor{features: []backendv1.Feature{backendv1.Feature_FEATURE_CLOSE}}
			a.get = func(ctx context.Context) (*backendv1.GetCredentialsResponse, error) {
				return a.answer(), a.until(ctx, time.After(3*time.Second))
			}
			return a, nil
		}
		// Asked each 59 seconds it stays.
		for range 5 {
			st.mustAsk(t, "1")
			pass(59 * time.Second)
		}
		pass(time.Second)
		seen := st.actor(1).seen()
		if diff := cmp.Diff([]string{"close", "stop"}, seen[len(seen)-2:]); diff != "" {
			t.Error(diff)
		}
		status := st.Status()[0]
		if status.PID != 0 || status.LastExit != "" || !status.LastUsed.Equal(time.Now().Add(-time.Minute)) {
			t.Errorf("%+v", status)
		}
		st.mustAsk(t, "2")
		if status := st.Status()[0]; status.PID != 2 || status.Restarts != 0 {
			t.Errorf("%+v", status)
		}
		// A call that takes longer than that is none of its business.
		st.actor(2).get = func(ctx context.Context) (*backendv1.GetCredentialsResponse, error) {
			return st.actor(2).answer(), st.actor(2).until(ctx, time.After(5*time.Minute))
		}
		if got, err := st.askWithin(t.Context(), time.Hour, st.provider()); got != "2" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		st.end(t)
	})
}

func TestAReplacedFileGetsAProcessOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, KeeperOptions{}, nil)
		st.mustAsk(t, "1")
		st.actor(1).get = func(ctx context.Context) (*backendv1.GetCredentialsResponse, error) {
			return st.actor(1).answer(), st.actor(1).until(ctx, time.After(5*time.Second))
		}
		old := make(chan string, 1)
		go func() { got, _ := st.ask(t); old <- got }()
		pass(time.Second)
		st.replaceFile(t, "2")
		st.mustAsk(t, "2")
		if got := <-old; got != "1" {
			t.Errorf("the call in flight was answered by %q", got)
		}
		synctest.Wait()
		if seen := st.actor(1).seen(); seen[len(seen)-1] != "stop" {
			t.Errorf("the old process: %v", seen)
		}
		st.mustAsk(t, "2")
		// Permissions are what the file is trusted by: a change of those counts too, at least on Linux.
		if status := st.Status()[0]; status.Restarts != 0 || status.LastExit != "" {
			t.Errorf("a replacement is no failure: %+v", status)
		}
		if err := os.Remove(st.file); err != nil {
			t.Fatal(err)
		}
		if _, err := st.ask(t); broker.KindOf(err) != broker.Misconfigured {
			t.Errorf("without a file: %v", err)
		}
		st.end(t)
	})
}

func TestRetainStopsTheOthersWhenTheirCallsAreDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, KeeperOptions{}, func(context.Context, int) (*actor, error) {
			a := &actor{}
			a.get = func(ctx context.Context) (*backendv1.GetCredentialsResponse, error) {
				return a.answer(), a.until(ctx, time.After(time.Second))
			}
			return a, nil
		})
		before, after := st.provider(), st.provider()
		after.Config = []byte(`{"new":true}`)
		var all sync.WaitGroup
		for range 2 {
			all.Go(func() {
				if _, err := st.askWithin(t.Context(), time.Minute, before); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		st.Retain([]*config.Provider{after})
		if _, err := st.askWithin(t.Context(), time.Minute, after); err != nil {
			t.Error(err)
		}
		all.Wait()
		synctest.Wait()
		if seen := st.actor(1).seen(); seen[len(seen)-1] != "stop" {
			t.Errorf("the old one: %v", seen)
		}
		// A request that began with the former configuration may still come.
		if _, err := st.askWithin(t.Context(), time.Minute, before); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if seen := st.actor(3).seen(); seen[len(seen)-1] != "stop" {
			t.Errorf("the latecomer's: %v", seen)
		}
		status := st.Status()
		if len(status) != 1 || status[0].Fingerprint != after.Fingerprint() || status[0].PID != 2 {
			t.Errorf("%+v", status)
		}
		st.end(t)
	})
}

func TestWhatAProviderThatIsGoneLentIsRevokedByAProcessThatEndsThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, KeeperOptions{}, always(func() *actor {
			return &actor{features: []backendv1.Feature{backendv1.Feature_FEATURE_REVOKE, backendv1.Feature_FEATURE_CLOSE}, revoke: func(string) error { return nil }}
		}))
		var launched []string
		launch := st.launch
		st.launch = func(ctx context.Context, provider *config.Provider, path string, steps *parts) (process, error) {
			launched = append(launched, string(provider.Config))
			return launch(ctx, provider, path, steps)
		}
		before, after := st.provider(), st.provider()
		before.Config, after.Config = []byte(`{"old":true}`), []byte(`{"new":true}`)
		if _, err := st.askWithin(t.Context(), time.Minute, before); err != nil {
			t.Fatal(err)
		}
		st.Retain([]*config.Provider{after})
		synctest.Wait()
		if err := st.Revoke(t.Context(), before, "l"); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if diff := cmp.Diff([]string{"describe", "revoke l", "flush", "close", "stop"}, st.actor(2).seen()); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]string{`{"old":true}`, `{"old":true}`}, launched); diff != "" {
			t.Error(diff)
		}
		if status := st.Status(); len(status) != 0 {
			t.Errorf("left: %+v", status)
		}
		st.end(t)
	})
}

func TestReplaceStartsAnewAtOnceAndLetsCallsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, KeeperOptions{}, func(context.Context, int) (*actor, error) {
			a := &actor{}
			a.get = func(ctx context.Context) (*backendv1.GetCredentialsResponse, error) {
				return a.answer(), a.until(ctx, time.After(time.Second))
			}
			return a, nil
		})
		one, other := st.provider(), st.provider()
		other.Config = []byte(`{"other":true}`)
		if _, err := st.askWithin(t.Context(), time.Minute, other); err != nil {
			t.Fatal(err)
		}
		var call sync.WaitGroup
		call.Go(func() {
			if _, err := st.askWithin(t.Context(), time.Minute, one); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		st.Replace(func(p *config.Provider) bool { return p == one })
		synctest.Wait()
		if seen := st.actor(2).seen(); slices.Contains(seen, "stop") {
			t.Errorf("it has a call, and this happened to it: %v", seen)
		}
		for _, provider := range []*config.Provider{one, other} {
			if _, err := st.askWithin(t.Context(), time.Minute, provider); err != nil {
				t.Error(err)
			}
		}
		call.Wait()
		synctest.Wait()
		if seen := st.actor(2).seen(); seen[len(seen)-1] != "stop" {
			t.Errorf("the old one: %v", seen)
		}
		if got := st.started(); got != 3 {
			t.Errorf("%d processes were started, want 3: one of the other provider's, and two", got)
		}
		st.end(t)
	})
}

func TestClose(t *testing.T) {
	slow := always(func() *actor {
		a := &actor{features: []backendv1.Feature{backendv1.Feature_FEATURE_CLOSE}}
		a.get = func(ctx context.Context) (*backendv1.GetCredentialsResponse, error) {
			return a.answer(), a.until(ctx, time.After(5*time.Second))
		}
		return a
	})
	t.Run("waits for the calls that are going on, and takes no more", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			st := newStage(t, KeeperOptions{}, slow)
			going := make(chan error, 1)
			go func() { _, err := st.ask(t); going <- err }()
			synctest.Wait()
			closed := make(chan error, 1)
			go func() { closed <- st.Close(t.Context()) }()
			synctest.Wait()
			if _, err := st.ask(t); !errors.Is(err, errEnding) {
				t.Errorf("a new call: %v", err)
			}
			if err := <-going; err != nil {
				t.Error(err)
			}
			if err := <-closed; err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff([]string{"get", "flush", "describe", "close", "stop"}, st.actor(1).seen()); diff != "" {
				t.Error(diff)
			}
			if err := st.Close(t.Context()); err != nil {
				t.Errorf("once more: %v", err)
			}
		})
	})
	t.Run("waits no longer than it may", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			st := newStage(t, KeeperOptions{}, slow)
			going := make(chan error, 1)
			go func() { _, err := st.ask(t); going <- err }()
			synctest.Wait()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			began := time.Now()
			if err := st.Close(ctx); err == nil || !strings.Contains(err.Error(), "1 calls were still going on") {
				t.Error(err)
			}
			if took := time.Since(began); took != time.Second {
				t.Errorf("it took %s", took)
			}
			st.actor(1).die("ended by signal: killed") // as the Runtime would have seen to
			if err := <-going; !errors.Is(err, errEnding) {
				t.Errorf("the call that was cut off: %v", err)
			}
		})
	})
	t.Run("a backend that does not close has two seconds", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			st := newStage(t, KeeperOptions{}, func(context.Context, int) (*actor, error) {
				a := &actor{features: []backendv1.Feature{backendv1.Feature_FEATURE_CLOSE}}
				a.close = func(ctx context.Context) error { return a.until(ctx, nil) }
				return a, nil
			})
			st.mustAsk(t, "1")
			began := time.Now()
			st.end(t)
			if took := time.Since(began); took != backendv1.CloseTimeout {
				t.Errorf("it took %s", took)
			}
		})
	})
}

func TestRenewAndRevoke(t *testing.T) {
	renews, revokes := backendv1.Feature_FEATURE_RENEW, backendv1.Feature_FEATURE_REVOKE
	for name, tt := range map[string]struct {
		features []backendv1.Feature
		lease    string
		nothing  bool // to renew or to revoke after all
		want     []string
	}{
		"are asked for by their lease":                {[]backendv1.Feature{renews, revokes}, "l", false, []string{"describe", "renew l registry.example/app", "flush", "revoke l", "flush"}},
		"of a backend that cannot do either":          {nil, "l", false, []string{"describe", "get", "flush", "flush"}},
		"of a backend that has nothing of that kind":  {[]backendv1.Feature{renews, revokes}, "l", true, []string{"describe", "renew l registry.example/app", "get", "flush", "revoke l", "flush"}},
		"without a lease, of which there is only one": {[]backendv1.Feature{renews, revokes}, "", false, []string{"get", "flush"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := newStage(t, KeeperOptions{}, nil)
				st.starter = func(context.Context, int) (*actor, error) {
					a := &actor{features: tt.features}
					a.renew = func(*backendv1.RenewRequest) (*backendv1.GetCredentialsResponse, error) {
						if tt.nothing {
							return nil, plugin.ErrNothingToRenew
						}
						return a.answer(), nil
					}
					a.revoke = func(string) error {
						if tt.nothing {
							return plugin.ErrNothingToRevoke
						}
						return nil
					}
					return a, nil
				}
				lease := secret.Secret(tt.lease)
				answer, err := st.Renew(t.Context(), st.provider(), broker.Request{Image: "registry.example/app"}, lease)
				if err != nil || len(answer.Credentials) != 1 || answer.Lease != "lease" {
					t.Errorf("%+v, %v", answer, err)
				}
				if err := st.Revoke(t.Context(), st.provider(), lease); err != nil {
					t.Error(err)
				}
				if diff := cmp.Diff(tt.want, st.actor(1).seen()); diff != "" {
					t.Error(diff)
				}
				st.end(t)
			})
		})
	}
}
