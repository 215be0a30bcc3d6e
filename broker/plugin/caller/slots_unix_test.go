//go:build unix

package caller

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

// The test binary as a process that the kubelet starts: it asks one provider once, and prints how many backends that provider had at once.
const asCold = "TEST_COLD"

func coldMain(dir string) {
	mode, self := os.Getenv("MODE"), os.Args[0]
	c := New(Options{BaseDirs: []string{filepath.Join(dir, "b")}, Logger: slog.New(slog.DiscardHandler), Environ: []string{}, Slots: true})
	if n, err := strconv.Atoi(os.Getenv("RUNS")); err == nil {
		c.runs = n
	}
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute) // who has waited for half of it does not count
	defer cancel()
	provider := &config.Provider{Name: mode, Backend: self, Env: []config.EnvVar{{Name: asBackend, Value: mode}, {Name: "COUNT", Value: filepath.Join(dir, "count")}}}
	answer, err := c.Call(ctx, provider, broker.Request{Image: "registry.example/app"})
	if err != nil {
		fmt.Println(err)
		os.Exit(1) //nolint:gocritic // a backend that is left dies with this process
	}
	fmt.Print(answer.Credentials[0].Username)
}

// A backend of mode "counted" is in the directory from its beginning until its answer, so that what counts is what the slots bound.
func enterCount() {
	_ = os.WriteFile(filepath.Join(os.Getenv("COUNT"), strconv.Itoa(os.Getpid())), nil, 0o600)
}

func countAlive() int {
	entries, _ := os.ReadDir(os.Getenv("COUNT"))
	_ = os.Remove(filepath.Join(os.Getenv("COUNT"), strconv.Itoa(os.Getpid())))
	return len(entries)
}

func oneName(name string) *backendv1.GetCredentialsResponse {
	return &backendv1.GetCredentialsResponse{Credentials: []*backendv1.Credential{{Key: "registry.example", Username: name, Password: "p1"}}}
}

// storm starts so many processes at once that each ask the provider of that mode, and gives the largest number of backends that any of them saw.
func storm(t *testing.T, dir, mode string, processes int, more ...string) (most int) {
	t.Helper()
	var all sync.WaitGroup
	var mu sync.Mutex
	for range processes {
		all.Go(func() {
			out, err := cold(t, dir, mode, more...).Output()
			seen, notNumber := strconv.Atoi(string(out))
			if err != nil || notNumber != nil {
				t.Errorf("%v: %s", err, out)
			}
			mu.Lock()
			defer mu.Unlock()
			most = max(most, seen)
		})
	}
	all.Wait()
	return most
}

func cold(t *testing.T, dir, mode string, more ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(append(os.Environ(), asCold+"="+dir, "MODE="+mode), more...)
	cmd.Stderr = os.Stderr
	return cmd
}

func stormDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "cb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Mkdir(filepath.Join(dir, "count"), 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestAStormOfColdCallersIsBounded(t *testing.T) {
	dir, bound := stormDir(t), 4
	callers := 3*bound + 18
	if most := storm(t, dir, "counted", callers, "RUNS="+strconv.Itoa(bound)); most > bound || most < 2 {
		t.Errorf("%d backends at once, want 2 to %d", most, bound)
	}
	left, err := os.ReadDir(filepath.Join(dir, "b"))
	starts, _ := slots(runtime.NumCPU())
	if err != nil || len(left) > bound+starts {
		t.Errorf("%d files left, want at most a slot's each (%d); %v", len(left), bound+starts, err)
	}
}

func TestAHungProvidersColdCallersHoldUpNobodyElses(t *testing.T) {
	dir, bound := stormDir(t), 4
	var hung []*exec.Cmd
	for range bound + 2 {
		cmd := cold(t, dir, "hangs", "RUNS="+strconv.Itoa(bound))
		cmd.Stdout = &bytes.Buffer{}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		hung = append(hung, cmd)
	}
	defer func() {
		for _, cmd := range hung {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}()
	waitFor(t, "all slots of the hung provider to be taken", func() bool { return hungBackends(dir) >= bound })
	began := time.Now()
	storm(t, dir, "counted", 4)
	if took := time.Since(began); took > 14*time.Second {
		t.Errorf("it took %s: they waited for the other provider's slots", took)
	}
	if running := hungBackends(dir); running > bound {
		t.Errorf("%d backends of the hung provider, want %d", running, bound)
	}
}

// hungBackends counts the backends that have made their socket.
func hungBackends(dir string) int {
	sockets, _ := filepath.Glob(filepath.Join(dir, "b", "r-*", "plugin-dir*", "*"))
	return len(sockets)
}

func TestAnEndedCallersSlotIsFreeAtOnce(t *testing.T) {
	dir := stormDir(t)
	c := New(Options{BaseDirs: []string{filepath.Join(dir, "b")}, Logger: slog.New(slog.DiscardHandler), Environ: []string{}, Slots: true})
	c.starts, c.runs = 1, 1
	defer c.Close()
	p := provider(t, "counted")
	p.Env = append(p.Env, config.EnvVar{Name: "COUNT", Value: filepath.Join(dir, "count")})
	for range 3 {
		answer, err := c.Call(ctx(t), p, broker.Request{Image: "registry.example/app"})
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range answer.Parts {
			if part.Name == "wait" {
				t.Errorf("a lone call waited: %+v", answer.Parts)
			}
		}
	}
}

func TestAColdCallerGoesAheadWhenHalfItsTimeIsGone(t *testing.T) {
	dir := stormDir(t)
	c := New(Options{BaseDirs: []string{filepath.Join(dir, "b")}, Logger: slog.New(slog.DiscardHandler), Environ: []string{}, Slots: true})
	c.starts, c.runs = 1, 1
	defer c.Close()
	hangs, good := provider(t, "hangs"), provider(t, "good")
	good.Name = hangs.Name // the same provider, to the slots
	done := make(chan struct{})
	held, cancel := context.WithCancel(context.Background())
	go func() { defer close(done); _, _ = c.Call(held, hangs, broker.Request{Image: "registry.example/app"}) }()
	waitFor(t, "the hung backend", func() bool { return hungBackends(dir) == 1 })
	within, stop := context.WithTimeout(context.Background(), 8*time.Second)
	defer stop()
	answer, err := c.Call(within, good, broker.Request{Image: "registry.example/app"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, part := range answer.Parts {
		if !strings.Contains(part.Name, ": ") { // the backend's own steps
			names = append(names, part.Name)
		}
	}
	if got := strings.Join(names, " "); got != "wait check start configure ask" {
		t.Errorf("parts %s", got)
	}
	if waited := answer.Parts[0].Took; waited < 3500*time.Millisecond {
		t.Errorf("it waited for %s, want more than 4s of its 8", waited)
	}
	cancel()
	<-done
}

func TestASlowCloudDoesNotMakePullsWaitForEachOther(t *testing.T) {
	dir := stormDir(t)
	c := New(Options{BaseDirs: []string{filepath.Join(dir, "b")}, Logger: slog.New(slog.DiscardHandler), Environ: []string{}, Slots: true})
	c.starts = 1
	defer c.Close()
	hangs := provider(t, "hangs")                                        // when it is asked: the slowest cloud there is
	held, cancel := context.WithTimeout(context.Background(), time.Hour) // half of which is waited for a slot
	var calls sync.WaitGroup
	for range 3 {
		calls.Go(func() { _, _ = c.Call(held, hangs, broker.Request{Image: "registry.example/app"}) })
	}
	waitFor(t, "all of them to run, though they start one by one", func() bool { return hungBackends(dir) == 3 })
	cancel()
	calls.Wait()
}
