//go:build unix

package caller

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
)

// keeping is a Keeper of real processes, with a directory in which each of them leaves a file that bears its number.
type keeping struct {
	*Keeper
	dir, pids string
}

func newKeeping(t *testing.T, o KeeperOptions) *keeping {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "cb")
	if err != nil {
		t.Fatal(err)
	}
	k := &keeping{dir: dir, pids: filepath.Join(dir, "pids")}
	if err := os.Mkdir(k.pids, 0o700); err != nil {
		t.Fatal(err)
	}
	o.Options = Options{BaseDirs: []string{filepath.Join(dir, "b")}, Logger: slog.New(slog.DiscardHandler), Environ: []string{}}
	k.Keeper = NewKeeper(o)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := k.Close(ctx); err != nil {
			t.Error(err)
		}
		for _, pid := range k.started(t) {
			waitFor(t, fmt.Sprintf("end of process %d", pid), func() bool { return !alive(pid) })
		}
		if left, _ := os.ReadDir(filepath.Join(dir, "b")); len(left) != 0 {
			t.Errorf("left after Close: %v", left)
		}
		_ = os.RemoveAll(dir)
	})
	return k
}

// started are the numbers of all processes that were ever started.
func (k *keeping) started(t *testing.T) []int {
	t.Helper()
	entries, err := os.ReadDir(k.pids)
	if err != nil {
		t.Fatal(err)
	}
	pids := make([]int, len(entries))
	for i, entry := range entries {
		if pids[i], err = strconv.Atoi(entry.Name()); err != nil {
			t.Fatal(err)
		}
	}
	return pids
}

// write makes the backend's file, which answers with the mark, by one rename.
func (k *keeping) write(t *testing.T, mark string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\nMARK=" + mark + " exec " + self + "\n"
	if err := os.WriteFile(filepath.Join(k.dir, "new"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(k.dir, "new"), filepath.Join(k.dir, "backend")); err != nil {
		t.Fatal(err)
	}
}

func (k *keeping) provider(t *testing.T, mode string) *config.Provider {
	t.Helper()
	p := provider(t, mode)
	p.Env = append(p.Env, config.EnvVar{Name: "PIDS", Value: k.pids})
	return p
}

func (k *keeping) scripted(t *testing.T, mark string) *config.Provider {
	t.Helper()
	k.write(t, mark)
	p := k.provider(t, "kept")
	p.Backend = filepath.Join(k.dir, "backend")
	return p
}

// told is what a backend of mode "kept" answers.
type told struct {
	mark, image string
	pid         int
}

func (k *keeping) ask(ctx context.Context, provider *config.Provider, image string) (told, error) {
	answer, err := k.Call(ctx, provider, broker.Request{Image: image})
	if err != nil {
		return told{}, err
	}
	var got told
	_, err = fmt.Sscanf(answer.Credentials[0].Username, "mark=%s pid=%d image=%s", &got.mark, &got.pid, &got.image)
	return got, err
}

// load asks from 64 goroutines until it is stopped, and fails the test where a call fails or gets the answer to another. It counts the answers to each.
func (k *keeping) load(t *testing.T, provider *config.Provider) (answers []atomic.Int64, stop func()) {
	t.Helper()
	var all sync.WaitGroup
	var ending atomic.Bool
	answers = make([]atomic.Int64, 64)
	for i := range answers {
		all.Go(func() {
			for n := 0; !ending.Load() && !t.Failed(); n++ {
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				image := fmt.Sprintf("registry.example/app-%d-%d", i, n)
				got, err := k.ask(ctx, provider, image)
				cancel()
				if err != nil || got.image != image {
					t.Errorf("asked for %s, got %+v, %v", image, got, err)
					return
				}
				answers[i].Add(1)
			}
		})
	}
	return answers, func() { ending.Store(true); all.Wait() }
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick, deadline := time.NewTicker(2*time.Millisecond), time.After(20*time.Second)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not in time: %s", what)
		}
	}
}

func alive(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return state[0] != 'Z' // nobody reaps orphans in some containers
}

func TestBackendsKilledUnderLoadCostNoCall(t *testing.T) {
	k := newKeeping(t, KeeperOptions{})
	answers, stop := k.load(t, k.provider(t, "kept"))
	for kill := range 20 {
		// A call may see no more than two processes die, so those that have seen some are let end. The first answer to each may have been on its way already.
		before := make([]int64, len(answers))
		for i := range answers {
			before[i] = answers[i].Load()
		}
		for i := range answers {
			waitFor(t, "answers between two kills", func() bool { return answers[i].Load() > before[i]+1 || t.Failed() })
		}
		<-time.After(rand.N(20 * time.Millisecond))
		pid := k.Status()[0].PID
		if pid == 0 {
			t.Fatalf("before kill %d none runs", kill)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if kill%4 == 0 { // and the next one while it starts
			var next int
			waitFor(t, "the next process", func() bool { next = newest(k.started(t), k.pids); return next != pid || t.Failed() })
			_ = syscall.Kill(next, syscall.SIGKILL)
		}
	}
	stop()
	status := k.Status()[0]
	if status.Restarts < 20 || status.LastExit != "ended by signal: killed" || status.LastError != "" || status.InFlight != 0 {
		t.Errorf("%+v", status)
	}
}

// newest is the process that left its file last.
func newest(pids []int, dir string) (pid int) {
	var last time.Time
	for _, p := range pids {
		if info, err := os.Stat(filepath.Join(dir, strconv.Itoa(p))); err == nil && info.ModTime().After(last) {
			pid, last = p, info.ModTime()
		}
	}
	return pid
}

func TestAFileReplacedUnderLoadCostsNoCallAndAnswersFromThenOn(t *testing.T) {
	k := newKeeping(t, KeeperOptions{})
	provider := k.scripted(t, "0")
	if _, err := k.ask(ctx(t), provider, "registry.example/before"); err != nil {
		t.Fatal(err)
	}
	_, stop := k.load(t, provider)
	for i := 1; i <= 20 && !t.Failed(); i++ {
		k.write(t, strconv.Itoa(i))
		got, err := k.ask(ctx(t), provider, "registry.example/after")
		if err != nil || got.mark != strconv.Itoa(i) {
			t.Errorf("after replacement %d: %+v, %v", i, got, err)
		}
	}
	stop()
	// One process for each file, of which only the last one is left.
	pids := k.started(t)
	if len(pids) != 21 {
		t.Errorf("%d processes, want 21: %+v", len(pids), k.Status())
	}
	waitFor(t, "the end of the old ones", func() bool {
		running := 0
		for _, pid := range pids {
			if alive(pid) {
				running++
			}
		}
		return running == 1
	})
	if status := k.Status()[0]; status.Restarts != 0 || status.PID == 0 || status.Path != provider.Backend {
		t.Errorf("%+v", status)
	}
}

func TestAStoppedProcessDoesNotCostEveryLaterCallItsTime(t *testing.T) {
	t.Parallel()
	k := newKeeping(t, KeeperOptions{})
	provider := k.provider(t, "kept")
	first, err := k.ask(ctx(t), provider, "registry.example/app")
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(first.pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for err = nil; err == nil; { // it may go on for a moment
		short, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		_, err = k.ask(short, provider, "registry.example/app")
		cancel()
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a stopped process: %v", err)
	}
	second, err := k.ask(ctx(t), provider, "registry.example/app")
	if err != nil || second.pid == first.pid {
		t.Errorf("then %+v, %v", second, err)
	}
	waitFor(t, "the end of the stopped process", func() bool { return !alive(first.pid) })
	if status := k.Status()[0]; status.PID != second.pid || status.Restarts != 1 || !strings.Contains(status.LastExit, "was killed") {
		t.Errorf("%+v", status)
	}
}

func TestALostConnectionIsAsGoodAsAnEnd(t *testing.T) {
	k := newKeeping(t, KeeperOptions{})
	provider := k.provider(t, "hangs up once") // the process goes on, but serves nobody
	first, err := k.ask(ctx(t), provider, "registry.example/app")
	if err != nil {
		t.Fatal(err)
	}
	second, err := k.ask(ctx(t), provider, "registry.example/hang-up")
	if err != nil || second.pid == first.pid {
		t.Errorf("%+v, %v", second, err)
	}
	waitFor(t, "the end of the first", func() bool { return !alive(first.pid) })
	if status := k.Status()[0]; status.LastExit != "closed its connection" {
		t.Errorf("%+v", status)
	}
}

func TestAnIdleProcessAndItsFilesGo(t *testing.T) {
	k := newKeeping(t, KeeperOptions{IdleTimeout: 50 * time.Millisecond})
	provider := k.provider(t, "kept")
	first, err := k.ask(ctx(t), provider, "registry.example/app")
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the idle process's end", func() bool { return !alive(first.pid) })
	waitFor(t, "the end of its files", func() bool {
		left, _ := filepath.Glob(filepath.Join(k.dir, "b", "r-*", "*"))
		return len(left) == 0
	})
	if second, err := k.ask(ctx(t), provider, "registry.example/app"); err != nil || second.pid == first.pid {
		t.Errorf("%+v, %v", second, err)
	}
}

func TestACrashLoopTellsWhyAndStopsTrying(t *testing.T) {
	k := newKeeping(t, KeeperOptions{})
	provider := k.provider(t, "crashes")
	began := time.Now()
	for time.Since(began) < 2*time.Second {
		_, err := k.ask(ctx(t), provider, "registry.example/app")
		if err == nil || broker.KindOf(err) != broker.Unavailable || !strings.Contains(err.Error(), "the backend exited with status 7") || !strings.Contains(err.Error(), "no luck today") {
			t.Fatalf("error %v", err)
		}
	}
	// At 0, 0, 100, 300, 700 and 1500 ms, or earlier by up to a quarter, and the time that the starts take.
	if starts := len(k.started(t)); starts < 3 || starts > 7 {
		t.Errorf("%d starts in two seconds", starts)
	}
}

func TestCloseLetsCallsInFlightEnd(t *testing.T) {
	k := newKeeping(t, KeeperOptions{})
	provider := k.provider(t, "slow")
	if _, err := k.ask(ctx(t), provider, "registry.example/app"); err != nil {
		t.Fatal(err)
	}
	errs := make(chan error, 8)
	for range cap(errs) {
		go func() { _, err := k.ask(ctx(t), provider, "registry.example/app"); errs <- err }()
	}
	waitFor(t, "the calls", func() bool { return k.Status()[0].InFlight == cap(errs) })
	if err := k.Close(ctx(t)); err != nil {
		t.Error(err)
	}
	for range cap(errs) {
		select {
		case err := <-errs:
			if err != nil {
				t.Error(err)
			}
		default:
			t.Error("Close did not wait for a call")
		}
	}
}

func TestCloseThatMayNotWaitKills(t *testing.T) {
	k := newKeeping(t, KeeperOptions{})
	provider := k.provider(t, "hangs")
	err := make(chan error, 1)
	go func() { _, e := k.ask(ctx(t), provider, "registry.example/app"); err <- e }()
	waitFor(t, "the process", func() bool { s := k.Status(); return len(s) == 1 && s[0].PID != 0 })
	done, cancel := context.WithCancel(context.Background())
	cancel()
	if err := k.Close(done); err == nil {
		t.Error("Close cut a call off and did not say so")
	}
	if e := <-err; e == nil || !strings.Contains(e.Error(), "the broker is ending") {
		t.Errorf("the call that was cut off: %v", e)
	}
}

// The test binary as a host that keeps backends, in a process of its own so that it can be killed.
const asKeeper = "TEST_KEEPER"

func keeperMain(dir string) {
	k := NewKeeper(KeeperOptions{Options: Options{BaseDirs: []string{filepath.Join(dir, "b")}, Environ: []string{}}})
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	for _, name := range []string{"one", "other"} {
		_, err := k.Call(context.Background(), &config.Provider{Name: name, Backend: self, Env: []config.EnvVar{{Name: asBackend, Value: "kept"}}}, broker.Request{Image: "registry.example/app"})
		if err != nil {
			panic(err)
		}
	}
	for _, status := range k.Status() {
		fmt.Println(status.PID)
	}
	_ = os.Stdout.Close()
	_, _ = io.Copy(io.Discard, os.Stdin) // which never ends
}

func TestKeptBackendsDieWithAHostThatIsKilled(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/tmp", "cb")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	host := exec.Command(self)
	host.Env = append(os.Environ(), asKeeper+"="+dir)
	host.Stderr = os.Stderr
	stdin, err := host.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := host.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Start(); err != nil {
		t.Fatal(err)
	}
	var pids []int
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		pid, err := strconv.Atoi(lines.Text())
		if err != nil || !alive(pid) {
			t.Fatalf("%q is no living process: %v", lines.Text(), err)
		}
		pids = append(pids, pid)
	}
	if len(pids) != 2 {
		t.Fatalf("%d backends, want 2", len(pids))
	}
	if err := host.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = host.Wait()
	for _, pid := range pids {
		waitFor(t, "end of a kept backend", func() bool { return !alive(pid) })
	}
}

func BenchmarkKeptCall(b *testing.B) {
	dir, err := os.MkdirTemp("/tmp", "cb")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	k := NewKeeper(KeeperOptions{Options: Options{BaseDirs: []string{filepath.Join(dir, "b")}, Environ: []string{}, Logger: slog.New(slog.DiscardHandler)}})
	defer k.Close(context.Background())
	self, _ := os.Executable()
	provider := &config.Provider{Name: "p", Backend: self, Env: []config.EnvVar{{Name: asBackend, Value: "kept"}}}
	for b.Loop() {
		if _, err := k.Call(context.Background(), provider, broker.Request{Image: "registry.example/app"}); err != nil {
			b.Fatal(err)
		}
	}
}
