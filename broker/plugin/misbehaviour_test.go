//go:build unix

package plugin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

func asError(err error, e **Error) bool { return errors.As(err, e) }

func TestABackendThatFailsSaysWhy(t *testing.T) {
	const unavailable, refused, misconfigured = backendv1.Error_KIND_UNAVAILABLE, backendv1.Error_KIND_REFUSED, backendv1.Error_KIND_MISCONFIGURED
	for name, tt := range map[string]struct {
		mode string
		kind backendv1.Error_Kind
		want string
	}{
		"another core protocol":               {`print "9|1|unix|/x|grpc\n"`, misconfigured, "core protocol 9"},
		"another version of the protocol":     {"version2", misconfigured, "speaks version 2 of the backend protocol, this broker version 1"},
		"net/rpc":                             {"netrpc", misconfigured, `serves "netrpc"`},
		"net/rpc by leaving the protocol out": {`print "1|1|unix|/x\n"`, misconfigured, `serves "netrpc"`},
		"TLS that nobody asked for":           {"certificate", misconfigured, "remove its TLSProvider"},
		"another network":                     {`printAndExit "1|1|udp|1.2.3.4:5|grpc\n"`, unavailable, "exited with status 0 before it was ready; its last words: 1|1|udp|1.2.3.4:5|grpc"},
		"no handshake":                        {`printAndExit "hello"`, unavailable, "exited with status 0 before it was ready; its last words: hello"},
		"nothing at all":                      {`printAndExit ""`, unavailable, "exited with status 0 before it was ready; it printed nothing"},
		"a closed standard output":            {"closedStdout", misconfigured, "closed its standard output without a go-plugin handshake"},
		"a flood instead of a handshake":      {"flood", misconfigured, "this is no backend"},
		"a line without end":                  {"print " + strconv.Quote(strings.Repeat("x", 120<<10)+"1|1|unix|/x|grpc"), unavailable, "did not start in time"},
		"a service that is not ours":          {"unimplemented", misconfigured, "does not serve version 1 of the backend protocol"},
		"no HTTP/2 on the socket":             {"rubbish", unavailable, "broke when asked to configure"},
		"silence on the socket":               {"deaf", unavailable, "did not start in time"},

		"a crash at the start":            {"crashStart 7", unavailable, "exited with status 7 before it was ready; its last words: no disk today"},
		"a panic at the start":            {"panicStart", unavailable, "exited with status 2 before it was ready; its last words: panic: out of ideas; "},
		"a signal at the start":           {"signalStart", unavailable, "ended by signal: killed before it was ready; it printed nothing"},
		"a crash when configured":         {"crashConfigure", unavailable, "exited with status 2 when asked to configure; its last words: panic: bad day"},
		"a crash when asked":              {"crashAsk", unavailable, "ended by signal: killed when asked to answer"},
		"a hang at the start":             {"hangStart", unavailable, "did not start in time; it printed nothing"},
		"a hang when configured":          {"hangConfigure", unavailable, "did not configure in time"},
		"a hang when asked":               {"hangAsk", unavailable, "did not answer in time"},
		"a crash that leaves a deaf fork": {"deafFork exits", unavailable, "exited with status 5 "},
		"a crash that leaves a fork":      {"forksAndExits", unavailable, "exited with status 4 before it was ready; its last words: child "},

		"a message that is too long":     {"huge", unavailable, "larger than 1048576 bytes"},
		"a credential too many":          {"keys 1001", unavailable, "1001 credentials, at most 1000"},
		"a million keys":                 {"keys 1000000", unavailable, "larger than 1048576 bytes"},
		"as many empty ones as fit":      {"emptyCredentials", unavailable, "credentials, at most 1000"},
		"a key that is no UTF-8":         {`key "a\xffb"`, unavailable, "broke when asked to answer"},
		"an expiry that is no time":      {"noTime", unavailable, "expires is no time"},
		"a negative cache duration":      {"noDuration", unavailable, "cache_duration"},
		"an error without kind":          {"errorKind 0", unavailable, "because"},
		"an error of an unknown kind":    {"errorKind 77", unavailable, "because"},
		"a refusal":                      {"errorKind 2", refused, "because"},
		"a misconfiguration":             {"errorKind 3", misconfigured, "because"},
		"an error of a hundred thousand": {"longError", unavailable, "éééé…"},
		"a status of a hundred thousand": {"hugeStatus", unavailable, "broke when asked to answer: Internal"},
		"settings that it does not like": {"badSettings", misconfigured, "is no URL"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			timeout := time.Minute // which nothing takes but what this test says does
			if strings.Contains(tt.want, "in time") {
				timeout = 500 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(context.Background(), timeout)
			defer cancel()
			err := func() error {
				p, err := Start(ctx, b.Runtime, b.spec(t, tt.mode))
				if err != nil {
					return err
				}
				defer p.Stop()
				if problems := p.Configure(ctx); problems != nil {
					return problems[0]
				}
				_, err = p.GetCredentials(ctx, &backendv1.GetCredentialsRequest{Image: "registry.example/app"})
				return err
			}()
			wantError(t, err, tt.kind, tt.want)
			if want := strings.Contains(tt.want, "in time"); errors.Is(err, context.DeadlineExceeded) != want {
				t.Errorf("errors.Is(err, context.DeadlineExceeded) is %t", !want)
			}
			if pid := forked(b, err); pid != 0 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		})
	}
}

// forked finds the process id of a child that a backend told of.
func forked(b *bench, err error) int {
	found := regexp.MustCompile(`child (\d+)`).FindStringSubmatch(fmt.Sprint(err) + b.log.String())
	if found == nil {
		return 0
	}
	pid, _ := strconv.Atoi(found[1])
	return pid
}

func TestTheEndOfTheContextEndsTheBackendAtOnce(t *testing.T) {
	for _, mode := range []string{"deafFork", "hangStart", "hangConfigure", "hangAsk", "deaf"} {
		t.Run(mode, func(t *testing.T) {
			b := newBench(t)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			ended := make(chan error, 1)
			go func() {
				p, err := Start(ctx, b.Runtime, b.spec(t, mode))
				if err == nil {
					defer p.Stop()
					if problems := p.Configure(ctx); problems != nil {
						err = problems[0]
					} else {
						_, err = p.GetCredentials(ctx, &backendv1.GetCredentialsRequest{})
					}
				}
				ended <- err
			}()
			var p *Process
			waitFor(t, "a process", 20*time.Second, func() bool {
				b.mu.Lock()
				defer b.mu.Unlock()
				for p = range b.live {
					break
				}
				if p == nil || p.PID() == 0 || strings.HasPrefix(mode, "deaf") && !p.child.hasGreeted() {
					return false
				}
				p.conns.mu.Lock()
				defer p.conns.mu.Unlock()
				return len(p.conns.seen) > 0 || !strings.HasPrefix(mode, "deaf")
			})
			cancelled := time.Now()
			cancel()
			select {
			case err := <-ended:
				if !errors.Is(err, context.Canceled) {
					t.Errorf("error %v, want context.Canceled", err)
				}
			case <-time.After(5 * time.Second):
				t.Fatal("nothing 5s after the context's end")
			}
			t.Logf("back after %s", time.Since(cancelled))
			<-p.Done()
			if alive(p.PID()) {
				t.Error("the backend is alive")
			}
			if pid := forked(b, nil); pid != 0 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		})
	}
}

func TestASlowStartIsWaitedFor(t *testing.T) {
	newBench(t).mustAsk(t, "slowStart")
}

func TestWhatABackendPrintsDoesNotDisturbTheHandshake(t *testing.T) {
	b := newBench(t)
	p, _ := b.mustAsk(t, "chatter")
	p.Stop()
	<-p.Done()
	for _, want := range []string{"warming up", "2026|11|23|table|of|dates", "loading...", "said late"} {
		if !strings.Contains(b.log.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, b.log)
		}
	}
	b.mustAsk(t, "longLine")
}

func TestAFloodIsReadAndThrownAway(t *testing.T) {
	b := newBench(t)
	p, err := b.start(t, "floodBoth "+strconv.Itoa(256<<20))
	if err != nil {
		t.Fatal(err)
	}
	if problems := p.Configure(context.Background()); problems != nil {
		t.Fatal(problems)
	}
	ctx := withDeadline(t, 5*time.Minute)
	most := watchHeap()
	response, err := p.GetCredentials(ctx, &backendv1.GetCredentialsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got := said(response); got != "after the flood" {
		t.Errorf("answer %q", got)
	}
	if grown := most(); grown > 32<<20 {
		t.Errorf("a gigabyte of output took %d MiB of memory", grown>>20)
	}
	p.Stop()
	<-p.Done()
	if kept := len(b.log.String()); kept > 512<<10 {
		t.Errorf("%d bytes of it were logged", kept)
	}
	if !strings.Contains(b.log.String(), "linesDropped=") {
		t.Error("the log does not say that lines were dropped")
	}
}

// watchHeap returns a function that gives the largest growth of the heap seen in the meantime.
func watchHeap() (most func() uint64) {
	var before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	stop, result := make(chan struct{}), make(chan uint64)
	go func() {
		var largest uint64
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			var now runtime.MemStats
			runtime.ReadMemStats(&now)
			if now.HeapAlloc > before.HeapAlloc {
				largest = max(largest, now.HeapAlloc-before.HeapAlloc)
			}
			select {
			case <-tick.C:
			case <-stop:
				result <- largest
				return
			}
		}
	}()
	return func() uint64 { close(stop); return <-result }
}

func TestAHostileAnswerTakesLittleMemory(t *testing.T) {
	for _, mode := range []string{"huge", "keys 1000000", "emptyCredentials"} {
		t.Run(mode, func(t *testing.T) {
			b := newBench(t)
			most := watchHeap()
			_, _, err := b.ask(t, b.spec(t, mode), &backendv1.GetCredentialsRequest{})
			wantError(t, err, backendv1.Error_KIND_UNAVAILABLE, "answer")
			if grown := most(); grown > 128<<20 {
				t.Errorf("it took %d MiB", grown>>20)
			}
		})
	}
}

func TestAForkThatHoldsThePipesHoldsUpNothing(t *testing.T) {
	for mode, dies := range map[string]bool{"forks": true, "forksAway": false} {
		t.Run(mode, func(t *testing.T) {
			b := newBench(t)
			p, response := b.mustAsk(t, mode)
			fork, err := strconv.Atoi(said(response))
			if err != nil {
				t.Fatal(err)
			}
			defer syscall.Kill(fork, syscall.SIGKILL)
			if !alive(fork) {
				t.Fatal("the fork is not alive")
			}
			p.Stop()
			select {
			case <-p.Done():
			case <-time.After(5 * time.Second):
				t.Fatal("not done 5s after Stop")
			}
			if dies {
				waitFor(t, "end of the fork", time.Second, func() bool { return !alive(fork) })
			}
		})
	}
	t.Run("a backend that has ended by itself takes its group with it", func(t *testing.T) {
		b := newBench(t)
		_, err := b.start(t, "forksInGroupAndExits")
		wantError(t, err, backendv1.Error_KIND_UNAVAILABLE, "exited with status 4")
		fork := forked(b, err)
		if fork == 0 {
			t.Fatalf("no process id in %v", err)
		}
		waitFor(t, "end of the fork", time.Second, func() bool { return !alive(fork) })
	})
}

func TestNothingIsLeftOfManyBackends(t *testing.T) {
	b := newBench(t)
	text := filepath.Join(shortDir(t), "text")
	if err := os.WriteFile(text, []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	var forks []int
	var mu sync.Mutex
	defer func() {
		for _, pid := range forks {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}()
	round := func() {
		var all sync.WaitGroup
		for _, mode := range []string{"good", "crashAsk", "hangAsk", "tcp", "rubbish", "badSettings", "deafFork", "deafFork", "no program"} {
			all.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				defer cancel()
				spec := b.spec(t, mode)
				if mode == "no program" {
					spec.Path = text
				}
				p, err := Start(ctx, b.Runtime, spec)
				if pid := forked(b, err); pid != 0 { // it lives on while leaks are looked for
					mu.Lock()
					forks = append(forks, pid)
					mu.Unlock()
				}
				if err != nil {
					return
				}
				if p.Configure(ctx) == nil {
					_, _ = p.GetCredentials(ctx, &backendv1.GetCredentialsRequest{})
				}
				p.Stop()
				<-p.Done()
			})
		}
		all.Wait()
	}
	round()
	goroutines, descriptors := runtime.NumGoroutine(), openDescriptors(t)
	for range 3 {
		round()
	}
	waitFor(t, "end of all goroutines", 10*time.Second, func() bool { return runtime.NumGoroutine() <= goroutines+2 })
	waitFor(t, "closing of all descriptors", 10*time.Second, func() bool { return openDescriptors(t) <= descriptors })
	waitFor(t, "removal of all files", 10*time.Second, func() bool {
		left, err := filepath.Glob(filepath.Join(b.base, "r-*", "*"))
		return err == nil && len(left) == 0
	})
}

func TestABackendCannotMakeTheHostKeepConnections(t *testing.T) {
	b := newBench(t)
	p, err := b.start(t, "offers")
	if err != nil {
		t.Fatal(err)
	}
	if problems := p.Configure(context.Background()); problems != nil {
		t.Fatal(problems)
	}
	before := runtime.NumGoroutine()
	if _, err := p.GetCredentials(withDeadline(t, 20*time.Second), &backendv1.GetCredentialsRequest{}); err != nil {
		t.Fatal(err)
	}
	if more := runtime.NumGoroutine() - before; more > 20 {
		t.Errorf("%d goroutines more", more)
	}
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/dev/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestAHostWithoutDescriptorsSaysSo(t *testing.T) {
	h := startHost(t, filepath.Join(shortDir(t), "b"), func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, "TEST_EXHAUST=1") }, "good")
	if got := strings.Join(h.lines, " "); !strings.Contains(got, "too many open files") || !strings.Contains(got, "LimitNOFILE=") {
		t.Errorf("the host said %q", got)
	}
}

func TestAFileThatCannotBeABackend(t *testing.T) {
	b := newBench(t)
	dir := shortDir(t)
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	self := b.spec(t, "good").Path
	for name, tt := range map[string]struct {
		path   string
		sha256 []string
		want   string
	}{
		"not there":                 {filepath.Join(dir, "none"), nil, "no such file"},
		"not executable":            {write("plain", "", 0o644), nil, "not executable"},
		"a directory":               {dir, nil, "not a program"},
		"one that others can write": {write("open", "#!/bin/sh\n", 0o777), nil, "not safe to use"},
		"one with another digest":   {self, []string{strings.Repeat("0", 64)}, "SHA-256"},
		"no program":                {write("text", "hello", 0o755), nil, "no program for this machine"},
		"an interpreter is missing": {write("script", "#!/no/such/interpreter\n", 0o755), nil, "the interpreter it names"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := b.startSpec(t, Spec{Provider: "tested", Path: tt.path, SHA256: tt.sha256})
			wantError(t, err, backendv1.Error_KIND_MISCONFIGURED, tt.want)
		})
	}
	t.Run("a script that becomes one is fine", func(t *testing.T) {
		script := write("wrapper", "#!/bin/sh\necho wrapped\nexec "+self+"\n", 0o755)
		if _, _, err := b.ask(t, Spec{Provider: "tested", Path: script, Env: []string{asBackend + "=good"}}, &backendv1.GetCredentialsRequest{}); err != nil {
			t.Error(err)
		}
	})
	t.Run("a script that starts one is fine", func(t *testing.T) {
		script := write("parent", "#!/bin/sh\n"+self+"\nexit 1\n", 0o755)
		if _, _, err := b.ask(t, Spec{Provider: "tested", Path: script, Env: []string{asBackend + "=good"}}, &backendv1.GetCredentialsRequest{}); err != nil {
			t.Error(err)
		}
	})
}

// The kubelet ignores a key that matches nothing, and takes the others. Which keys match is not decided here.
func TestAnOddKeyIsHandedOn(t *testing.T) {
	for _, key := range []string{"", "a\x00b", "a\nb", "\x1b[31m", "a b"} {
		t.Run(strconv.Quote(key), func(t *testing.T) {
			_, response := newBench(t).mustAsk(t, "key "+strconv.Quote(key))
			if got := response.GetCredentials()[0].GetKey(); got != key {
				t.Errorf("got %q", got)
			}
		})
	}
}

func TestConfigureListsEveryProblem(t *testing.T) {
	b := newBench(t)
	p, err := b.start(t, "badSettings")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, problem := range p.Configure(context.Background()) {
		got = append(got, fmt.Sprintf("%s %s: %v", problem.Kind, problem.Field, problem))
	}
	want := "KIND_MISCONFIGURED url: is no URL, KIND_MISCONFIGURED auth.role: is missing"
	if strings.Join(got, ", ") != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestCheckAndDescribe(t *testing.T) {
	b := newBench(t)
	p, err := b.start(t, "good")
	if err != nil {
		t.Fatal(err)
	}
	ctx := withDeadline(t, 20*time.Second)
	about, err := p.Describe(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := about.GetName()+" "+about.GetVersion(), "fake 1.2.3 [31m"; got != want {
		t.Errorf("it is %q, want %q", got, want)
	}
	if err := p.Check(ctx, &backendv1.CheckRequest{}); err != nil {
		t.Error(err)
	}
	token := "h.p.s"
	err = p.Check(ctx, &backendv1.CheckRequest{Image: "registry.example/app", ServiceAccountToken: &token})
	wantError(t, err, backendv1.Error_KIND_REFUSED, "not allowed with [redacted]")
}
