//go:build linux

package faults

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// bin holds what make build makes, and the program that misbehaves as a backend, a kubelet credential provider and a credential helper. Who runs one test again and again may name a
// directory in FAULTS_BIN where they are kept from one run to the next; what has changed since they were built is not seen then.
var bin string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	// Most of these tests wait for something that hangs. A -parallel on the command line, which is read later, wins.
	if err := flag.Set("test.parallel", "6"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// What a killed broker leaves becomes this process's child, where it can be found.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "become the parent of orphans:", err)
		return 1
	}
	defer sharedVault.Close()
	if bin = os.Getenv("FAULTS_BIN"); bin != "" {
		if _, err := os.Stat(misbehavePath()); err == nil {
			return m.Run()
		}
		if err := build(bin); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "cb-faults-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	bin = dir
	if err := build(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// build builds the programs, ours as releases are built, so that users other than root can run them too.
func build(dir string) error {
	release := exec.Command("make", "--silent", "--directory", "../..", "build", "OUT="+dir,
		"COMMANDS=./cmd/credential-broker ./cmd/credential-backend-exec ./cmd/credential-backend-dockerconfig ./cmd/credential-backend-ecr ./cmd/credential-backend-gar ./cmd/credential-backend-acr ./cmd/credential-backend-vault ./cmd/gar-check ./cmd/aws-identity-token")
	if output, err := release.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", release, err, output)
	}
	if err := buildOne(misbehavePath(), "./misbehave", "CGO_ENABLED=0"); err != nil {
		return err
	}
	return os.Chmod(dir, 0o755)
}

// buildOne builds one program, which is of this module or of the one above.
func buildOne(to, target, cgo string, flags ...string) error {
	build := exec.Command("go", append(append([]string{"build", "-trimpath"}, flags...), "-o", to, target)...)
	if of, ok := strings.CutPrefix(target, "../../"); ok {
		build.Dir, build.Args[len(build.Args)-1] = "../..", "./"+of
	}
	build.Env = append(os.Environ(), cgo)
	if output, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", target, err, output)
	}
	return nil
}

func brokerPath() string    { return filepath.Join(bin, "credential-broker") }
func misbehavePath() string { return filepath.Join(bin, "backends", "credential-backend-misbehave") }

// isRoot: tests run as either.
func isRoot() bool { return os.Geteuid() == 0 }

// nobody is the other user as whom root runs the broker.
const nobody = 65534

const anImage = "registry.example/team/app"

// object is a JSON object, of which configurations are made: what is JSON is YAML too.
type object = map[string]any

// with is an object with further fields.
func (b *bench) with(o object, more object) object {
	o = maps.Clone(o)
	maps.Copy(o, more)
	return o
}

// bench is a place for one broker: its configuration and its directories.
type bench struct {
	*testing.T
	// dir is for configurations and other files, writable by the broker's user alone.
	dir string
	// tmp is the broker's TMPDIR, and has its XDG_RUNTIME_DIR.
	tmp string
	// uid, if not 0, is as whom root runs the broker.
	uid int
	// mark is in the environment of the broker and of every process that it starts and that gets one.
	mark string
}

var marks struct {
	sync.Mutex
	last int
}

func newBench(t *testing.T) *bench {
	t.Helper()
	short := func() string { // a socket's path has to fit below it
		dir, err := os.MkdirTemp("", "cb-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		return dir
	}
	b := &bench{T: t, dir: short(), tmp: short()}
	if err := os.Chmod(b.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	marks.Lock()
	marks.last++
	b.mark = fmt.Sprintf("FAULTS_MARK=%d-%d", os.Getpid(), marks.last)
	marks.Unlock()
	t.Cleanup(func() { b.killAll() })
	return b
}

// asNobody runs the broker as another user than root; as whoever it is if that is not root already.
func (b *bench) asNobody() *bench {
	b.Helper()
	if !isRoot() {
		return b
	}
	b.uid = nobody
	for _, dir := range []string{b.dir, b.tmp} {
		b.chown(dir)
	}
	return b
}

func (b *bench) chown(path string) {
	b.Helper()
	if b.uid != 0 {
		if err := os.Lchown(path, b.uid, b.uid); err != nil {
			b.Fatal(err)
		}
	}
}

// write makes a file in dir and gives its path.
func (b *bench) write(name, content string, mode os.FileMode) string {
	b.Helper()
	path := filepath.Join(b.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		b.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		b.Fatal(err)
	}
	b.chown(path)
	return path
}

// misbehaves is a provider whose backend misbehaves so.
func (b *bench) misbehaves(name, fault string) object {
	return object{"name": name, "backend": "misbehave", "matchImages": []string{"registry.example"}, "timeout": "50s", "env": b.environment("FAULT", fault)}
}

// environment is a provider's `env`, from names and values in turn.
func (b *bench) environment(pairs ...string) []object {
	name, value, _ := strings.Cut(b.mark, "=")
	env := []object{{"name": name, "value": value}}
	for pair := range slices.Chunk(pairs, 2) {
		env = append(env, object{"name": pair[0], "value": pair[1]})
	}
	return env
}

// execs is a provider whose backend is exec, around a provider that misbehaves so.
func (b *bench) execs(name, fault string) object {
	return object{
		"name": name, "backend": "exec", "matchImages": []string{"registry.example"}, "timeout": "50s", "env": b.environment(),
		"config": object{"command": misbehavePath(), "args": []string{fault}},
	}
}

const healthyPassword = "healthy-password"

// healthy is a provider that does well.
func (b *bench) healthy() object {
	b.Helper()
	login := b.write("healthy.json", `{"key":"registry.example","username":"healthy","password":"`+healthyPassword+`"}`, 0o600)
	return b.with(b.misbehaves("healthy", "good"), object{"env": b.environment("FAULT", "good", "FAULT_LOGIN", login)})
}

// config writes a configuration and gives its path. What more says is set besides the providers.
func (b *bench) config(more object, providers ...object) string {
	b.Helper()
	document := b.with(object{
		"apiVersion": "credential-broker.io/v1alpha1", "kind": "BrokerConfig", "timeout": "58s", "log": object{"format": "json"}, "providers": providers,
	}, more)
	data, err := json.Marshal(document)
	if err != nil {
		b.Fatal(err)
	}
	return b.write("config.json", string(data), 0o600)
}

// request is what the kubelet sends. Token may be empty.
func request(token string) string {
	r := object{"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderRequest", "image": anImage}
	if token != "" {
		r["serviceAccountToken"] = token
		r["serviceAccountAnnotations"] = map[string]string{"role": "a-role"}
	}
	data := must(json.Marshal(r))
	return string(data) + "\n"
}

// command makes the broker's process. Shell commands in before run first in the same process, in a mount namespace of their own if that is asked for.
type command struct {
	args      []string
	stdin     string
	env       []string // further variables
	before    string
	namespace bool
}

func (b *bench) command(c command) *exec.Cmd {
	b.Helper()
	cmd := exec.Command(brokerPath(), c.args...)
	if c.before != "" {
		cmd = exec.Command("/bin/bash", append([]string{"-c", "set -e\n" + c.before + "\nexec \"$@\"", "sh", brokerPath()}, c.args...)...)
	}
	cmd.Dir = b.dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + b.dir, "TMPDIR=" + b.tmp, "XDG_RUNTIME_DIR=" + b.tmp, b.mark}, c.env...)
	cmd.Stdin = strings.NewReader(c.stdin)
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if b.uid != 0 {
		if c.namespace {
			cmd = exec.Command("/usr/bin/setpriv") // never: a namespace needs root
		}
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(b.uid), Gid: uint32(b.uid)}
	}
	if c.namespace {
		cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
	}
	return cmd
}

// outcome is how a process ended.
type outcome struct {
	stdout, stderr string
	code           int
	signal         syscall.Signal
	took           time.Duration
	// memory is the most that the broker itself had resident, in bytes, as far as anybody looked.
	memory uint64
}

// limit is how long anything may take before the test gives up and calls it a hang.
const limit = 2 * time.Minute

// run runs the broker to its end, which is when nobody holds its standard output and standard error open any more: so does the kubelet.
func (b *bench) run(c command) outcome {
	b.Helper()
	return b.wait(b.command(c))
}

func (b *bench) wait(cmd *exec.Cmd) outcome {
	b.Helper()
	var stdout, stderr bytes.Buffer
	if cmd.Stdout == nil {
		cmd.Stdout = &stdout
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &stderr
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatalf("start the broker: %v", err)
	}
	memory := watchMemory(cmd.Process.Pid)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var err error
	select {
	case err = <-ended:
	case <-time.After(limit):
		_ = cmd.Process.Kill()
		b.killAll()
		b.Fatalf("the broker hangs, or something holds its output open")
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		b.Logf("wait for the broker: %v", err) // it did not read its input
	}
	o := outcome{stdout: stdout.String(), stderr: stderr.String(), code: cmd.ProcessState.ExitCode(), took: time.Since(began), memory: memory()}
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signaled() {
		o.signal = status.Signal()
	}
	return o
}

// watchMemory looks at a process's peak of resident memory until it is asked.
func watchMemory(pid int) (most func() uint64) {
	stop, result := make(chan struct{}), make(chan uint64)
	go func() {
		var peak uint64
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if _, rest, ok := strings.Cut(string(status), "VmHWM:"); ok {
				var kib uint64
				if n, _ := fmt.Sscan(rest, &kib); n == 1 {
					peak = max(peak, kib<<10)
				}
			}
			select {
			case <-tick.C:
			case <-stop:
				result <- peak
				return
			}
		}
	}()
	return func() uint64 { close(stop); return <-result }
}

// answer is a CredentialProviderResponse.
type answer struct {
	APIVersion    string `json:"apiVersion"`
	Kind          string `json:"kind"`
	CacheKeyType  string `json:"cacheKeyType"`
	CacheDuration string `json:"cacheDuration"`
	Auth          map[string]struct {
		Username string `json:"username"`
		Password string `json:"password"`
	} `json:"auth"`
}

// answered reads the one response on standard output.
func (b *bench) answered(o outcome) answer {
	b.Helper()
	if o.code != 0 || o.signal != 0 {
		b.Fatalf("exit status %d, signal %v, want the answer; stderr:\n%s", o.code, o.signal, o.stderr)
	}
	var a answer
	decoder := json.NewDecoder(strings.NewReader(o.stdout))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&a); err != nil || a.Kind != "CredentialProviderResponse" {
		b.Fatalf("no response on stdout (%v): %q; stderr:\n%s", err, o.stdout, o.stderr)
	}
	if rest := o.stdout[decoder.InputOffset():]; strings.TrimSpace(rest) != "" {
		b.Errorf("stdout goes on after the response: %q", rest)
	}
	return a
}

// failed makes sure that the broker gave up as it should: status 1, nothing on stdout, a reason on stderr, and no trace of a crash.
func (b *bench) failed(o outcome) {
	b.Helper()
	if o.code != 1 || o.stdout != "" || strings.TrimSpace(o.stderr) == "" {
		b.Errorf("exit status %d, signal %v, stdout %q, want 1, nothing, and a reason on stderr:\n%s", o.code, o.signal, o.stdout, o.stderr)
	}
	b.noTrace(o)
}

// noTrace makes sure that the broker itself did not crash.
func (b *bench) noTrace(o outcome) {
	b.Helper()
	for line := range strings.Lines(o.stderr) {
		if strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:") || strings.HasPrefix(line, "goroutine ") || strings.HasPrefix(line, "runtime:") {
			b.Errorf("the broker crashed:\n%s", o.stderr)
			return
		}
	}
}

// records are the lines of a JSON log; other is what is none.
func records(stderr string) (all []object, other []string) {
	for line := range strings.Lines(stderr) {
		var record object
		if json.Unmarshal([]byte(line), &record) != nil {
			other = append(other, strings.TrimSuffix(line, "\n"))
			continue
		}
		all = append(all, record)
	}
	return all, other
}

// reason is what the log says about a provider's failure.
func (b *bench) reason(o outcome, provider string) (kind, reason string) {
	b.Helper()
	all, _ := records(o.stderr)
	for _, record := range all {
		if record["msg"] == "provider failed" && record["provider"] == provider {
			kind, _ = record["kind"].(string)
			reason, _ = record["reason"].(string)
			return kind, reason
		}
	}
	return "", ""
}

// process is one that runs.
type process struct {
	pid, parent int
	state       string
	name        string
}

// processes are all that run, zombies left out.
func processes() map[int]process {
	all := map[int]process{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range stats {
		if p, ok := readStat(file); ok && p.state != "Z" && p.state != "X" {
			all[p.pid] = p
		}
	}
	return all
}

// threads are the states of a process's threads, as proc_pid_stat(5) has them; none where there is no such process.
func threads(pid int) []string {
	var states []string
	stats, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, file := range stats {
		if t, ok := readStat(file); ok {
			states = append(states, t.state)
		}
	}
	return states
}

// readStat reads what /proc says of a process, or of a thread; false: it has ended meanwhile.
func readStat(file string) (p process, ok bool) {
	data, err := os.ReadFile(file)
	if err != nil {
		return p, false
	}
	open, end := bytes.IndexByte(data, '('), bytes.LastIndexByte(data, ')')
	if open < 0 || end < 0 {
		return p, false
	}
	p.name = string(data[open+1 : end])
	if _, err := fmt.Sscan(string(data[:open]), &p.pid); err != nil {
		return p, false
	}
	_, err = fmt.Sscan(string(data[end+1:]), &p.state, &p.parent)
	return p, err == nil
}

// marked are the processes with the bench's mark in their environment.
func (b *bench) marked() []process {
	var found []process
	for pid, p := range processes() {
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err == nil && slices.Contains(strings.Split(string(env), "\x00"), b.mark) {
			found = append(found, p)
		}
	}
	return found
}

// killAll ends what a backend got away with.
func (b *bench) killAll() {
	for _, p := range b.marked() {
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
	}
}

// until polls; false: the condition did not come about within the time given.
func until(atMost time.Duration, condition func() bool) bool {
	for deadline := time.Now().Add(atMost); ; <-time.After(5 * time.Millisecond) {
		if condition() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// notRun says that something could not be shown here; tools/test.sh counts it.
func notRun(t *testing.T, why string) {
	t.Helper()
	t.Log("NOT RUN: " + why)
}
