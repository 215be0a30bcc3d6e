//go:build linux

package faults

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// descendants are the processes below this one, save those in known. What a killed process has started becomes this process's child.
func descendants(known map[int]process) []process {
	all := processes()
	var found []process
	for pid, p := range all {
		if _, ok := known[pid]; ok {
			continue
		}
		for up, steps := p, 0; steps < 64; steps++ {
			if up.parent == os.Getpid() {
				found = append(found, p)
				break
			}
			next, ok := all[up.parent]
			if !ok {
				break
			}
			up = next
		}
	}
	return found
}

// reap takes up the zombies that have become this process's, one by one: a wait for any would take them from package os/exec.
func reap() {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range stats {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		end := bytes.LastIndexByte(data, ')')
		fields := strings.Fields(string(data[max(end+1, 0):]))
		if len(fields) > 1 && fields[0] == "Z" && fields[1] == strconv.Itoa(os.Getpid()) {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
		}
	}
}

// filesIn are the paths of all that lies below a directory, which need not exist.
func filesIn(directory string) []string {
	var found []string
	_ = filepath.WalkDir(directory, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && path != directory {
			found = append(found, path)
		}
		return nil
	})
	return found
}

// slot is the name of a file that brokers lock so that not too many backends start at once. It stays, for the next one to lock.
var slot = regexp.MustCompile(`^s-[0-9a-f]{12}-[0-9]+$`)

// belongings are the files of single requests below the directory for sockets.
func belongings(base string) []string {
	return slices.DeleteFunc(filesIn(base), func(path string) bool {
		info, err := os.Lstat(path)
		return err == nil && info.Mode().IsRegular() && info.Size() == 0 && filepath.Dir(path) == base && slot.MatchString(filepath.Base(path))
	})
}

// TestKilledAtAnyMoment must not run beside other tests: it takes every process below this one for the broker's.
func TestKilledAtAnyMoment(t *testing.T) {
	tries := 300
	if n, err := strconv.Atoi(os.Getenv("FAULTS_KILLS")); err == nil {
		tries = n
	}
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("FAULTS_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("FAULTS_SEED=%d FAULTS_KILLS=%d", seed, tries)
	random := rand.New(rand.NewPCG(seed, 0))

	type user struct {
		name string
		b    *bench
		// base is where the broker puts its sockets, and before how it comes to be there.
		base, before string
		namespace    bool
	}
	other := newBench(t).asNobody()
	users := []user{{name: "another user", b: other, base: filepath.Join(other.tmp, "credential-broker")}}
	switch {
	case canMount():
		root := newBench(t)
		run := filepath.Join(root.dir, "run")
		if err := os.Mkdir(run, 0o755); err != nil {
			t.Fatal(err)
		}
		users = append(users, user{name: "root", b: root, base: filepath.Join(run, "credential-backends"), before: "mount --bind " + run + " /run", namespace: true})
	case isRoot():
		notRun(t, "SIGKILL of root's broker: without a mount namespace of its own, its files are among those of other tests")
	}
	for _, u := range users {
		t.Run(u.name, func(t *testing.T) {
			b := u.b.at(t)
			script := b.write("provider.sh", "#!/bin/sh\n# A child in the background, and one in a session of its own.\nsleep 1000 &\nsetsid sleep 1000 &\ncat >/dev/null\nsleep 0.01\n"+
				"echo '"+response(`"registry.example/team":{"username":"u","password":"p"}`)+"'\n", 0o755)
			wrapped := b.with(b.execs("wrapped", ""), object{"config": object{"command": script}})
			config := b.config(nil, b.healthy(), wrapped, b.helps("helped", "forkaway"))
			one := command{args: []string{"--config", config}, stdin: request(""), before: u.before, namespace: u.namespace}
			reap()
			known := processes()

			// The whole way once, so that the moments cover it.
			whole := b.run(one)
			if a := b.answered(whole); len(a.Auth) != 2 {
				t.Fatalf("the answer is %v; stderr:\n%s", a.Auth, whole.stderr)
			}
			clean := func() bool { return len(belongings(u.base)) == 0 }
			if !until(10*time.Second, clean) {
				t.Fatalf("a request that nobody disturbs leaves %v", belongings(u.base))
			}
			if left := descendants(known); !until(10*time.Second, func() bool { left = descendants(known); return len(left) == 0 }) {
				t.Fatalf("a request that nobody disturbs leaves %v", left)
			}

			nothingLeft := func() {
				t.Helper()
				b.answered(b.run(one))
				if !until(10*time.Second, clean) {
					t.Errorf("after the next request these files are left: %v", belongings(u.base))
				}
			}
			span := max(40*time.Millisecond, whole.took+whole.took/5)
			var late, worst, before, within int
			seen := map[string]bool{}
			missing := func() (names []string) {
				for _, name := range []string{"credential-back", "sleep", "docker-credenti"} {
					if !slices.ContainsFunc(slices.Collect(maps.Keys(seen)), func(s string) bool { return strings.HasPrefix(s, name) }) {
						names = append(names, name)
					}
				}
				return names
			}
			for try := range tries / len(users) {
				others := belongings(u.base) // of those killed before
				cmd := b.command(one)
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				<-time.After(time.Duration(random.Int64N(int64(span)))) // the moment is what is tried
				for _, p := range descendants(known) {
					seen[p.name] = true
				}
				if slices.ContainsFunc(belongings(u.base), func(path string) bool { return !slices.Contains(others, path) }) {
					within++
				} else {
					before++
				}
				_ = cmd.Process.Kill()
				killed := time.Now()
				_ = cmd.Wait()
				var left []process
				if !until(10*time.Second, func() bool { left = descendants(known); return len(left) == 0 }) {
					t.Fatalf("try %d: ten seconds after SIGKILL these are left: %v", try, left)
				}
				took := time.Since(killed)
				worst = max(worst, int(took.Milliseconds()))
				if took > time.Second {
					late++
				}
				reap()
				if try%25 == 24 {
					nothingLeft()
					if len(missing()) > 0 && span < 2*time.Second {
						span *= 2 // the machine has more to do than when the whole way was timed
					}
				}
			}
			t.Logf("%d kills within %s, %d with files, %d without; everything was gone after %d ms at most; killed among others: %v", before+within, span, within, before, worst, seen)
			// On a busy machine one or two may be late without the program's fault.
			if late > tries/50 {
				t.Errorf("%d of %d times something was left after a second", late, tries)
			}
			if tries >= 100 && len(missing()) > 0 {
				t.Errorf("no %s was ever there to be killed: the moments do not reach it", missing())
			}
			if within == 0 {
				t.Errorf("no killed broker had files in %s: is it the right place?", u.base)
			}
			nothingLeft()
			const providers, each = 3, 1 + 8 // a slot for a start, and eight times as many to run
			if slots, most := len(filesIn(u.base))-len(belongings(u.base)), providers*each*max(2, 2*runtime.NumCPU()); slots > most {
				t.Errorf("there are %d files for slots after %d brokers, more than %d", slots, tries/len(users), most)
			}
		})
	}
}

// response is what a kubelet credential provider prints.
func response(auth string) string {
	return `{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse","cacheKeyType":"Image","cacheDuration":"1h","auth":{` + auth + `}}`
}

func TestNothingInheritsTheKubeletsDescriptors(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	cmd := b.command(command{args: []string{"--config", b.config(nil, b.with(b.misbehaves("hangs", "hangAsk"), object{}), b.with(b.execs("wrapped", "hang"), object{}), b.helps("helped", "hang"))}})
	kubelets := map[string]string{} // a pipe's name in /proc, and what it is
	pipe := func(what string) (r, w *os.File) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = r.Close(), w.Close() })
		name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", r.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		kubelets[name] = what
		return r, w
	}
	stdin, request1 := pipe("standard input")
	if _, err := request1.WriteString(request("")); err != nil {
		t.Fatal(err)
	}
	_ = request1.Close()
	_, cmdStdout := pipe("standard output")
	_, cmdStderr := pipe("standard error")
	extraRead, extraWrite := pipe("a further descriptor")
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = stdin, cmdStdout, cmdStderr, []*os.File{extraRead, extraWrite}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()

	// Three backends, two guardians, a wrapped provider and a helper.
	if !until(grace, func() bool { return len(below(cmd.Process.Pid)) >= 7 }) {
		t.Fatalf("only %v have been started", below(cmd.Process.Pid))
	}
	holds := func(pid int) []string {
		var held []string
		links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, link := range links {
			if target, err := os.Readlink(link); err == nil && kubelets[target] != "" {
				held = append(held, kubelets[target]+" as "+filepath.Base(link))
			}
		}
		slices.Sort(held)
		return held
	}
	if isRoot() && len(holds(cmd.Process.Pid)) < 4 { // only root may look at the broker
		t.Errorf("even the broker holds only %v: this test does not see", holds(cmd.Process.Pid))
	}
	if held := holds(cmd.Process.Pid); strings.Contains(strings.Join(held, " "), "standard input") {
		t.Errorf("the broker itself still holds the pipe with the request: %v", held)
	}
	for _, p := range below(cmd.Process.Pid) {
		if held := holds(p.pid); len(held) > 0 {
			t.Errorf("%s (%d) holds the kubelet's %v", p.name, p.pid, held)
		}
	}
}

func TestNoCoreFile(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGABRT, syscall.SIGQUIT, syscall.SIGSEGV} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			b := newBench(t).asNobody()
			cmd := b.command(command{
				args: []string{"--config", b.config(nil, b.misbehaves("hangs", "author hang"), b.execs("wrapped", "hang"))}, stdin: request(""),
				env: []string{"GOTRACEBACK=crash"}, before: "ulimit -c unlimited",
			})
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()
			if !until(grace, func() bool { return len(b.marked()) > 0 && len(below(cmd.Process.Pid)) >= 4 }) {
				t.Fatalf("only %v run", below(cmd.Process.Pid))
			}
			all := append(below(cmd.Process.Pid), process{pid: cmd.Process.Pid, name: "the broker"})
			for _, p := range all {
				if most := coreLimit(t, p.pid); most > 1 {
					t.Errorf("%s may write a core file of %d bytes", p.name, most)
				}
				// A process that is not dumpable belongs to root in /proc, whoever runs it. An unguarded program that it executes is dumpable again.
				guarded := strings.HasPrefix(p.name, "the broker") || strings.HasPrefix(p.name, "credential-back") && !misbehaving(p.pid)
				// It sees to that as the first thing it does, which may be yet to come if it has only just been started.
				if guarded && !until(grace, func() bool {
					info, err := os.Stat(fmt.Sprintf("/proc/%d/environ", p.pid))
					return err != nil || info.Sys().(*syscall.Stat_t).Uid == 0
				}) {
					t.Errorf("others of its user can read the memory of %s", p.name)
				}
			}
			_ = cmd.Process.Signal(sig)
			_ = cmd.Wait()
			for _, file := range filesIn(b.dir) {
				if strings.HasPrefix(filepath.Base(file), "core") {
					t.Errorf("there is a core file: %s", file)
				}
			}
			if !until(10*time.Second, func() bool { return len(b.marked()) == 0 }) {
				t.Errorf("left: %v", b.marked())
			}
		})
	}
	t.Run("a core file would be seen", func(t *testing.T) {
		pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
		if err != nil || bytes.ContainsAny(pattern, "|/") {
			notRun(t, "core files of this machine are not written to the working directory")
			return
		}
		b := newBench(t)
		cmd := exec.Command("/bin/bash", "-c", "ulimit -c unlimited; kill -ABRT $$")
		cmd.Dir = b.dir
		_ = cmd.Run()
		if files := filesIn(b.dir); len(files) == 0 {
			notRun(t, "this machine writes no core files at all")
		}
	})
}

// misbehaving: the program of these tests, as a wrapped provider or whatever.
func misbehaving(pid int) bool {
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return err == nil && path == misbehavePath() && !strings.Contains(environ(pid), "FAULT=author")
}

func environ(pid int) string {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	return string(data)
}

// below are the processes that a process has started, directly or not.
func below(top int) []process {
	all := processes()
	var found []process
	for _, p := range all {
		for up, ok := all[p.parent]; ok; up, ok = all[up.parent] {
			if up.pid == top {
				found = append(found, p)
				break
			}
		}
	}
	return found
}

// coreLimit is the larger of a process's limits on core files, in bytes.
func coreLimit(t *testing.T, pid int) uint64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		return 0 // it has ended
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "Max core file size"); ok {
			fields := strings.Fields(rest)
			if fields[0] == "unlimited" || fields[1] == "unlimited" {
				return 1 << 62
			}
			most, err := strconv.ParseUint(fields[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return most
		}
	}
	t.Fatalf("no limit on core files in %q", data)
	return 0
}
