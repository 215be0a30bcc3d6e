//go:build unix

package plugin

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

// notTested tells of a test that this user or system cannot run; the count of such lines is the count of what was not shown.
func notTested(t *testing.T, why string) {
	t.Helper()
	fmt.Printf("NOT TESTED: %s: %s\n", t.Name(), why)
}

func said(response *backendv1.GetCredentialsResponse) string {
	return response.GetCredentials()[0].GetUsername()
}

func alive(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return runtime.GOOS != "linux"
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return state[0] != 'Z' // nobody reaps orphans in some containers
}

func TestABackendDoesNotGetTheHostsStandardInput(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if _, err := w.WriteString(`{"serviceAccountToken":"secret"}`); err != nil {
		t.Fatal(err)
	}
	before := os.Stdin
	os.Stdin = r
	defer func() { os.Stdin = before }()

	_, response := newBench(t).mustAsk(t, "stdin")
	if got, want := said(response), `"" resource temporarily unavailable`; got != want {
		t.Errorf("the backend read %s, want %s: an open pipe with nothing in it", got, want)
	}
}

func TestABackendGetsTheEnvironmentMadeForItAndNothingElse(t *testing.T) {
	t.Setenv("OF_THIS_PROCESS", "x")
	b := newBench(t, "HOME=/root", "AWS_REGION=here", "AWS_SECRET=x", "OTHER=x", "CREDENTIAL_BROKER_AGENT=/x", "PLUGIN_CLIENT_CERT=x", "PLUGIN_UNIX_SOCKET_DIR=/x", "HTTPS_PROXY=p")
	spec := b.spec(t, "env")
	spec.InheritEnv = []string{"AWS_*", "CREDENTIAL_BROKER_*", "PLUGIN_*"}
	spec.Env = append(spec.Env, "AWS_REGION=there", "CREDENTIAL_BROKER_BACKEND=x")
	_, response, err := b.ask(t, spec, &backendv1.GetCredentialsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(said(response)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		names = append(names, name)
		if name == "AWS_REGION" && value != "there" {
			t.Errorf("AWS_REGION is %q: the provider's own value must win", value)
		}
		if name == "PLUGIN_UNIX_SOCKET_DIR" && !strings.HasPrefix(value, b.base+"/") {
			t.Errorf("the socket directory is %s", value)
		}
	}
	slices.Sort(names)
	want := "AWS_REGION AWS_SECRET CREDENTIAL_BROKER_BACKEND HOME HTTPS_PROXY PATH PLUGIN_MAX_PORT PLUGIN_MIN_PORT PLUGIN_PROTOCOL_VERSIONS PLUGIN_UNIX_SOCKET_DIR TEST_BACKEND"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("the backend has\n%s, want\n%s", got, want)
	}
}

func TestEnvironment(t *testing.T) {
	host := []string{
		"PATH=/bin", "HOME=/h", "TMPDIR=/t", "LANG=C", "TZ=UTC", "HTTP_PROXY=1", "no_proxy=2", "SSL_CERT_FILE=3", "SSL_CERT_DIR=4",
		"AWS_X=5", "GOOGLE_X=6", "EMPTY=", "nonsense", "=x", "CREDENTIAL_BROKER_CONFIG=7", "PLUGIN_CLIENT_CERT=8", "LC_ALL=9", "PATHS=10",
	}
	for name, tt := range map[string]struct {
		inherit, set, between []string
		want                  string
	}{
		"the usual variables alone":                {want: "PATH=/bin HOME=/h TMPDIR=/t LANG=C TZ=UTC HTTP_PROXY=1 no_proxy=2 SSL_CERT_FILE=3 SSL_CERT_DIR=4"},
		"more of the host's by glob":               {inherit: []string{"AWS_*", "G*"}, want: "PATH=/bin HOME=/h TMPDIR=/t LANG=C TZ=UTC HTTP_PROXY=1 no_proxy=2 SSL_CERT_FILE=3 SSL_CERT_DIR=4 AWS_X=5 GOOGLE_X=6"},
		"everything but what the broker owns":      {inherit: []string{"*"}, want: "PATH=/bin HOME=/h TMPDIR=/t LANG=C TZ=UTC HTTP_PROXY=1 no_proxy=2 SSL_CERT_FILE=3 SSL_CERT_DIR=4 AWS_X=5 GOOGLE_X=6 EMPTY= LC_ALL=9 PATHS=10"},
		"a glob that does not parse matches none":  {inherit: []string{"AWS_[", "G*"}, want: "PATH=/bin HOME=/h TMPDIR=/t LANG=C TZ=UTC HTTP_PROXY=1 no_proxy=2 SSL_CERT_FILE=3 SSL_CERT_DIR=4 GOOGLE_X=6"},
		"the provider's own win, the last of them": {set: []string{"TZ=a", "NEW=1", "TZ=b"}, want: "PATH=/bin HOME=/h TMPDIR=/t LANG=C TZ=b HTTP_PROXY=1 no_proxy=2 SSL_CERT_FILE=3 SSL_CERT_DIR=4 NEW=1"},
		"a user's home wins over the host's":       {between: []string{"HOME=/u"}, want: "PATH=/bin HOME=/u TMPDIR=/t LANG=C TZ=UTC HTTP_PROXY=1 no_proxy=2 SSL_CERT_FILE=3 SSL_CERT_DIR=4"},
		"the provider's home wins over a user's":   {between: []string{"HOME=/u"}, set: []string{"HOME=/p"}, want: "PATH=/bin HOME=/p TMPDIR=/t LANG=C TZ=UTC HTTP_PROXY=1 no_proxy=2 SSL_CERT_FILE=3 SSL_CERT_DIR=4"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := strings.Join(Environment(host, tt.inherit, tt.set, tt.between...), " "); got != tt.want {
				t.Errorf("got\n%s, want\n%s", got, tt.want)
			}
		})
	}
}

func TestAnAddressThatIsNotASocketOfTheBackendsOwnIsRefused(t *testing.T) {
	for name, tt := range map[string]struct{ mode, want string }{
		"a TCP port":                       {"tcp", "only a unix socket in PLUGIN_UNIX_SOCKET_DIR"},
		"a socket elsewhere":               {"outside DIR", "only a socket directly in PLUGIN_UNIX_SOCKET_DIR"},
		"a socket in a directory below":    {"below", "only a socket directly in PLUGIN_UNIX_SOCKET_DIR"},
		"a way around with dots":           {"dots DIR", "only a socket directly in PLUGIN_UNIX_SOCKET_DIR"},
		"an abstract socket":               {"abstract", "only a socket directly in PLUGIN_UNIX_SOCKET_DIR"},
		"a symbolic link to a real socket": {"symlink DIR", "which is no socket"},
		"a plain file":                     {"file", "which is no socket"},
		"nothing":                          {"missing", "no such file"},
		"a socket of another user":         {"foreign", "belongs to user 65534"},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.mode == "foreign" && os.Geteuid() != 0 {
				notTested(t, "giving a socket away takes root")
				return
			}
			b := newBench(t)
			_, err := b.start(t, strings.Replace(tt.mode, "DIR", shortDir(t), 1))
			wantError(t, err, backendv1.Error_KIND_MISCONFIGURED, tt.want)
		})
	}
}

func wantError(t *testing.T, err error, kind backendv1.Error_Kind, text string) {
	t.Helper()
	var e *Error
	if err == nil {
		t.Fatalf("no error, want one with %q", text)
	}
	if !asError(err, &e) {
		t.Fatalf("%T %v is no *Error", err, err)
	}
	if e.Kind != kind || !strings.Contains(e.Error(), text) {
		t.Fatalf("%s: %v\nwant %s: …%s…", e.Kind, e, kind, text)
	}
	if len(e.Error()) > 4<<10 || strings.ContainsAny(e.Error(), "\x00\x1b") {
		t.Errorf("the error is not fit for a log: %q", e.Error())
	}
}

// The socket can be exchanged between the look at it and the connection, so the connection is looked at too.
func TestASocketOnWhichAnotherUserListensIsNotUsed(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	own := &child{network: "unix", address: path}
	conn, err := own.dial(context.Background(), "")
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if runtime.GOOS != "linux" {
		notTested(t, "the peer's user is asked for on Linux only")
		return
	}
	foreign := &child{network: "unix", address: path, account: &account{uid: os.Getuid() + 1}}
	if _, err := foreign.dial(context.Background(), ""); err == nil || !strings.Contains(err.Error(), "listens on the backend's socket") {
		t.Errorf("error %v, want one that names the user who listens", err)
	}
	wantError(t, foreign.refusal, backendv1.Error_KIND_UNAVAILABLE, "listens on the backend's socket")
}

// host is this test binary as a host in a process of its own.
type host struct {
	*exec.Cmd
	lines []string // what it said before "ready"
}

func startHost(t *testing.T, base string, prepare func(*exec.Cmd), modes ...string) *host {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h := &host{Cmd: exec.Command(self, modes...)}
	h.Env = append(os.Environ(), asHost+"="+base)
	h.Stderr = os.Stderr
	stdout, err := h.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if prepare != nil {
		prepare(h.Cmd)
	}
	if err := h.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.kill() })
	lines := bufio.NewScanner(stdout)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if lines.Text() == "ready" {
			return h
		}
		h.lines = append(h.lines, lines.Text())
	}
	t.Fatalf("the host ended after %q", h.lines)
	return nil
}

func (h *host) kill() {
	_ = h.Process.Kill()
	_ = h.Wait()
}

// backend is the process id of the i-th backend, and what it told.
func (h *host) backend(t *testing.T, i int) (pid int, told string) {
	t.Helper()
	if len(h.lines) <= i {
		t.Fatalf("the host said %q", h.lines)
	}
	first, rest, _ := strings.Cut(h.lines[i], " ")
	pid, err := strconv.Atoi(first)
	if err != nil {
		t.Fatalf("the host said %q", h.lines)
	}
	if told, err = strconv.Unquote(rest); err != nil {
		t.Fatal(err)
	}
	return pid, told
}

func TestABackendInheritsNoDescriptor(t *testing.T) {
	marked, err := os.Create(filepath.Join(t.TempDir(), "marked"))
	if err != nil {
		t.Fatal(err)
	}
	defer marked.Close()
	if _, err := os.Stat("/proc/self/fd"); err != nil {
		notTested(t, "there is no /proc/self/fd")
		return
	}
	h := startHost(t, filepath.Join(shortDir(t), "b"), func(cmd *exec.Cmd) {
		cmd.ExtraFiles = []*os.File{marked, marked} // which leaves them inheritable in the host
		cmd.Stderr, cmd.Stdin = marked, marked
	}, "good", "descriptors")
	_, open := h.backend(t, 1)
	host := map[string]bool{}
	for fd := range 3 {
		target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", h.Process.Pid, fd))
		if err != nil {
			t.Fatal(err)
		}
		host[target] = true
	}
	var kinds []string
	for line := range strings.Lines(open) {
		fd, target, _ := strings.Cut(strings.TrimSpace(line), " ")
		if host[target] || strings.Contains(target, marked.Name()) {
			t.Errorf("descriptor %s of the backend is the host's %s", fd, target)
		}
		kind, _, _ := strings.Cut(target, ":")
		kinds = append(kinds, fd+" "+kind)
	}
	// What Go's own runtime has open: its poller, its limits, and the directory that the backend reads.
	if want := []string{"0 pipe", "1 pipe", "2 pipe"}; len(kinds) < 3 || !slices.Equal(kinds[:3], want) {
		t.Errorf("the backend has %q, want %q first", kinds, want)
	}
	for _, kind := range kinds[min(3, len(kinds)):] {
		if _, what, _ := strings.Cut(kind, " "); what != "anon_inode" && !strings.HasPrefix(what, "/proc/") && !strings.HasPrefix(what, "/sys/fs/cgroup/") {
			t.Errorf("the backend has a descriptor it did not open: %s", kind)
		}
	}
}

func TestABackendDiesWithAHostThatIsKilled(t *testing.T) {
	base := filepath.Join(shortDir(t), "b")
	h := startHost(t, base, nil, "good", "hangless", "readsLifeline", "good")
	var pids []int
	for i, line := range h.lines {
		if i == 1 { // no such backend
			if !strings.Contains(line, "exited with status 3") {
				t.Errorf("the second said %s", line)
			}
			continue
		}
		pid, told := h.backend(t, i)
		pids = append(pids, pid)
		if i == 2 { // what it started reads the lifeline, in a session of its own
			child, err := strconv.Atoi(told)
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, child)
		}
	}
	for _, pid := range pids {
		if !alive(pid) {
			t.Fatalf("process %d of %v is not alive before the host is killed", pid, pids)
		}
	}
	if left := requestDirs(t, base); left != 1 {
		t.Fatalf("%d directories while the host lives, want 1", left)
	}
	h.kill()
	for _, pid := range pids {
		waitFor(t, fmt.Sprintf("end of process %d", pid), time.Second, func() bool { return !alive(pid) })
	}

	if left := requestDirs(t, base); left != 1 {
		t.Fatalf("%d directories after the host was killed, want 1 that it left", left)
	}
	next := NewRuntime(RuntimeOptions{BaseDirs: []string{base}})
	if _, err := next.open(false); err != nil {
		t.Fatal(err)
	}
	if err := next.Close(); err != nil {
		t.Fatal(err)
	}
	if left := requestDirs(t, base); left != 0 {
		t.Errorf("%d directories after the next request, want none", left)
	}
}

func requestDirs(t *testing.T, base string) int {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(base, "r-*"))
	if err != nil {
		t.Fatal(err)
	}
	return len(dirs)
}

// The kernel's signal at the parent's death is sent when the thread dies that started the child. Here every thread that can die does.
func TestABackendOutlivesTheThreadsOfItsHost(t *testing.T) {
	b := newBench(t)
	waiting, release := make(chan struct{}), make(chan struct{})
	b.awaitExit = func(pid int) bool { // the real one keeps its thread busy, by chance
		close(waiting)
		<-release
		return awaitExit(pid)
	}
	p, err := b.start(t, "good")
	if err != nil {
		t.Fatal(err)
	}
	defer close(release)
	<-waiting
	for range 20 {
		dying, die := make(chan struct{}), make(chan struct{})
		for range 10 {
			go func() {
				runtime.LockOSThread() // and never unlocks it: the thread ends with this goroutine
				dying <- struct{}{}
				<-die
			}()
		}
		for range 10 {
			<-dying
		}
		close(die)
	}
	if _, err := p.Describe(withDeadline(t, 10*time.Second)); err != nil {
		t.Error(err)
	}
}

func TestABackendRunsAsItsUser(t *testing.T) {
	if os.Geteuid() != 0 {
		spec := newBench(t).spec(t, "whoami")
		spec.User = "nobody"
		_, err := newBench(t).startSpec(t, spec)
		wantError(t, err, backendv1.Error_KIND_MISCONFIGURED, "only a broker that runs as root")
		notTested(t, "running a backend as another user takes root")
		return
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t, "HOME=/root", "USER=root")
	spec := b.spec(t, "whoami")
	spec.Path = reachableCopy(t, spec.Path)
	for name, tt := range map[string]struct {
		user string
		env  []string
		home string
	}{
		"by name":                  {"nobody", nil, nobody.HomeDir},
		"by number":                {nobody.Uid, nil, nobody.HomeDir},
		"with a home of its own":   {"nobody", []string{"HOME=/there"}, "/there"},
		"as root where it says so": {"root", nil, "/root"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := spec
			spec.User, spec.Env = tt.user, append(slices.Clone(spec.Env), tt.env...)
			p, response, err := b.ask(t, spec, &backendv1.GetCredentialsRequest{})
			if err != nil {
				t.Fatal(err)
			}
			u := nobody
			if tt.user == "root" {
				u = must(user.Lookup(tt.user))
			}
			want := fmt.Sprintf("uid=%s gid=%s groups=%v HOME=%s USER=%s", u.Uid, u.Gid, must(u.GroupIds()), tt.home, u.Username)
			if got := said(response); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
			p.Stop()
			<-p.Done()
		})
	}
	t.Run("and nobody else reaches its socket", func(t *testing.T) {
		spec := spec
		spec.User = "nobody"
		p, _, err := b.ask(t, spec, &backendv1.GetCredentialsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(p.child.dir)
		if err != nil {
			t.Fatal(err)
		}
		owner, _ := ownerOf(info)
		if info.Mode().Perm() != 0o700 || strconv.Itoa(owner) != nobody.Uid {
			t.Errorf("the socket directory is %s and of user %d, want 0700 and of %s", info.Mode(), owner, nobody.Uid)
		}
	})
	t.Run("which must exist", func(t *testing.T) {
		spec := spec
		spec.User = "no-such-user"
		_, err := b.startSpec(t, spec)
		wantError(t, err, backendv1.Error_KIND_MISCONFIGURED, "create it, or correct the name")
	})
	t.Run("which must reach the file", func(t *testing.T) {
		spec := b.spec(t, "whoami")
		spec.User, spec.Path = "nobody", filepath.Join(filepath.Dir(reachableCopy(t, spec.Path)), "d", "backend")
		if err := os.Mkdir(filepath.Dir(spec.Path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(spec.Path, []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		_, err := b.startSpec(t, spec)
		wantError(t, err, backendv1.Error_KIND_MISCONFIGURED, "must be able to reach and execute the file")
	})
}

// reachableCopy is a copy of the file in a directory that every user can reach.
func reachableCopy(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(shortDir(t), "backend")
	if err := os.WriteFile(to, content, 0o755); err != nil {
		t.Fatal(err)
	}
	return to
}
