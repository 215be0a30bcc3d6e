//go:build unix

package plugin

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

func TestBaseDirs(t *testing.T) {
	env := func(pairs ...string) func(string) string {
		return func(name string) string { return lookUpVariable(pairs, name) }
	}
	for name, tt := range map[string]struct {
		euid   int
		getenv func(string) string
		want   string
	}{
		"root":                       {0, env("XDG_RUNTIME_DIR=/run/user/0"), "/run/credential-backends /tmp/credential-broker-0 /dev/shm/credential-broker-0 /var/tmp/credential-broker-0"},
		"root with TMPDIR":           {0, env("TMPDIR=/t"), "/run/credential-backends /t/credential-broker-0 /tmp/credential-broker-0 /dev/shm/credential-broker-0 /var/tmp/credential-broker-0"},
		"a user in a session":        {7, env("XDG_RUNTIME_DIR=/run/user/7"), "/run/user/7/credential-broker /tmp/credential-broker-7 /dev/shm/credential-broker-7 /var/tmp/credential-broker-7"},
		"a user with nothing":        {7, env(), "/tmp/credential-broker-7 /dev/shm/credential-broker-7 /var/tmp/credential-broker-7"},
		"relative paths are ignored": {7, env("TMPDIR=t", "XDG_RUNTIME_DIR=x"), "/tmp/credential-broker-7 /dev/shm/credential-broker-7 /var/tmp/credential-broker-7"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := strings.Join(baseDirs(tt.euid, tt.getenv), " "); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestABaseThatWillNotDoIsPassedOver(t *testing.T) {
	dir := shortDir(t)
	path := func(name string) string { return filepath.Join(dir, name) }
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(os.Mkdir(path("open"), 0o700))
	check(os.Chmod(path("open"), 0o777))
	check(os.Mkdir(path("sticky"), 0o700))
	check(os.Chmod(path("sticky"), 0o777|os.ModeSticky))
	check(os.Mkdir(path("real"), 0o700))
	check(os.Symlink(path("real"), path("link")))
	check(os.WriteFile(path("file"), nil, 0o600))
	check(os.Mkdir(path("foreign"), 0o700))
	bad := map[string]string{
		"open":   "can be written by everybody",
		"open/b": "can be written by everybody",
		"sticky": "can be written",
		"link":   "is no directory",
		"file":   "is no directory",
		"file/b": "not a directory",
		"none/b": "no such file",
		"l" + strings.Repeat("o", maxBase) + "ng": "would not fit",
	}
	if os.Geteuid() == 0 {
		check(os.Chown(path("foreign"), 65534, -1))
		bad["foreign"] = "belongs to user 65534"
	} else {
		notTested(t, "a base directory of another user takes root")
	}
	for name, want := range bad {
		t.Run(name, func(t *testing.T) {
			rt := NewRuntime(RuntimeOptions{BaseDirs: []string{path(name)}})
			_, err := rt.open(false)
			wantError(t, err, backendv1.Error_KIND_UNAVAILABLE, path(name))
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v\nlacks %q", err, want)
			}
			next := NewRuntime(RuntimeOptions{BaseDirs: []string{path(name), path("sticky/b")}})
			got, err := next.open(false)
			if err != nil || filepath.Dir(got) != path("sticky/b") {
				t.Errorf("got %s, %v; want the next one", got, err)
			}
			check(next.Close())
			if _, err := os.Stat(got); !os.IsNotExist(err) {
				t.Errorf("after Close: %v", err)
			}
		})
	}
	rt := NewRuntime(RuntimeOptions{BaseDirs: []string{path("file"), path("none/b")}})
	if _, err := rt.open(false); err == nil || !strings.Contains(err.Error(), path("file")) || !strings.Contains(err.Error(), path("none/b")) {
		t.Errorf("%v: want every candidate named", err)
	}
}

func TestABaseWithLittleRoomComesAfterTheOthers(t *testing.T) {
	dir := shortDir(t)
	first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
	for _, test := range []struct {
		tight []string
		want  string
	}{{nil, first}, {[]string{first}, second}, {[]string{second}, first}, {[]string{first, second}, first}} {
		rt := NewRuntime(RuntimeOptions{BaseDirs: []string{first, second}})
		rt.roomy = func(base string) bool { return !slices.Contains(test.tight, base) }
		if got, err := rt.open(false); err != nil || filepath.Dir(got) != test.want {
			t.Errorf("little room in %q: %s, %v; want %s", test.tight, got, err, test.want)
		}
		if err := rt.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestWhenRoomRunsOutTheNextBackendsHaveTheirSocketsElsewhere(t *testing.T) {
	dir := shortDir(t)
	bases := []string{filepath.Join(dir, "file", "no"), filepath.Join(dir, "first"), filepath.Join(dir, "second")}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var tight []string
	rt := NewRuntime(RuntimeOptions{BaseDirs: bases})
	rt.roomy = func(base string) bool { return !slices.Contains(tight, base) }
	made := map[string]bool{}
	for _, step := range []struct {
		tight []string
		want  string
	}{{nil, bases[1]}, {bases, bases[1]}, {bases[1:2], bases[2]}, {nil, bases[2]}, {bases, bases[2]}, {bases[2:], bases[1]}} {
		tight = step.tight
		got, err := rt.open(true)
		if err != nil || filepath.Dir(got) != step.want {
			t.Fatalf("little room in %q: %s, %v; want %s", tight, got, err, step.want)
		}
		if info, err := os.Stat(got); err != nil || info.Mode().Perm() != 0o711 {
			t.Errorf("%s: %v, %v; want a directory that other users' backends can cross", got, info, err)
		}
		made[got] = true
		for path := range made {
			if _, err := os.Stat(path); err != nil {
				t.Errorf("what the backends before have their sockets in: %v", err)
			}
		}
	}
	if len(made) != 3 {
		t.Errorf("%d directories, want 3", len(made))
	}
	if err := rt.Close(); err != nil {
		t.Error(err)
	}
	for path := range made {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("after Close: %s: %v", path, err)
		}
	}
}

func TestWhatIsLeftInABaseThatIsNotUsedIsSweptToo(t *testing.T) {
	dir := shortDir(t)
	first, second, none := filepath.Join(dir, "first"), filepath.Join(dir, "second"), filepath.Join(dir, "none")
	left := filepath.Join(second, dirPrefix+"aaaaaaaaaa")
	if err := os.MkdirAll(left, 0o700); err != nil {
		t.Fatal(err)
	}
	rt := NewRuntime(RuntimeOptions{BaseDirs: []string{first, second, none}})
	if got, err := rt.open(false); err != nil || filepath.Dir(got) != first {
		t.Fatalf("%s, %v", got, err)
	}
	if err := rt.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
	if _, err := os.Stat(none); !os.IsNotExist(err) {
		t.Errorf("a base that nobody needs was made: %v", err)
	}
}

func TestDirectoriesAreNobodyElsesBusiness(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	b := newBench(t)
	dir, err := b.open(false)
	if err != nil {
		t.Fatal(err)
	}
	mode := func(path string) os.FileMode {
		t.Helper()
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Mode().Perm()
	}
	want := os.FileMode(0o700)
	if os.Geteuid() == 0 {
		want = 0o711
	}
	if got := mode(b.base); got != want {
		t.Errorf("the base is %o, want %o", got, want)
	}
	if got := mode(dir); got != 0o700 {
		t.Errorf("the directory is %o, want 700", got)
	}
	if _, err := b.open(true); err != nil {
		t.Fatal(err)
	}
	if got := mode(dir); got != 0o711 {
		t.Errorf("for a backend of another user the directory is %o, want 711", got)
	}
}

func TestADirectoryInUseIsNotSwept(t *testing.T) {
	base := filepath.Join(shortDir(t), "b")
	h := startHost(t, base, nil, "good")
	pid, _ := h.backend(t, 0)
	rt := NewRuntime(RuntimeOptions{BaseDirs: []string{base}})
	if _, err := rt.open(false); err != nil {
		t.Fatal(err)
	}
	if err := rt.Close(); err != nil {
		t.Fatal(err)
	}
	if got := requestDirs(t, base); got != 1 || !alive(pid) {
		t.Errorf("%d directories, backend alive: %t; want the living host's", got, alive(pid))
	}
}

func TestSweepersAndMakersDoNotDisturbEachOther(t *testing.T) {
	base := filepath.Join(shortDir(t), "b")
	if err := prepareBase(base); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var sweepers, makers sync.WaitGroup
	for range 2 {
		sweepers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					sweep(base)
					runtime.Gosched()
				}
			}
		})
	}
	for range 8 {
		makers.Go(func() {
			for range 50 {
				rt := NewRuntime(RuntimeOptions{BaseDirs: []string{base}})
				dir, err := rt.open(false)
				if err != nil {
					t.Error(err)
					return
				}
				rt.sweeps.Wait()
				if err := os.WriteFile(filepath.Join(dir, "socket"), nil, 0o600); err != nil {
					t.Error(err)
				}
				if err := rt.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	makers.Wait()
	close(stop)
	sweepers.Wait()
	if left := requestDirs(t, base); left != 0 {
		t.Errorf("%d directories left", left)
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"credential-backend-ecr", "credential-backend-vault", "credential-backend-", "credential-backend-UPPER", "README"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	absolute := filepath.Join(dir, "README")
	for name, tt := range map[string]struct{ dir, backend, want, err string }{
		"by name":                     {dir: dir, backend: "ecr", want: filepath.Join(dir, "credential-backend-ecr")},
		"an absolute path":            {dir: dir, backend: absolute, want: absolute},
		"an absolute path to nothing": {dir: dir, backend: absolute + "x", err: "no such file"},
		"a name that is missing":      {dir: dir, backend: "gar", err: "the directory has ecr, vault"},
		"an empty directory":          {dir: t.TempDir(), backend: "gar", err: "the directory has no backends"},
		"no directory":                {dir: filepath.Join(dir, "none"), backend: "gar", err: "the directory does not exist"},
		"a way out":                   {dir: dir, backend: "../../bin/sh", err: "neither an absolute path nor a name"},
		"a name with a slash":         {dir: dir, backend: "pwn/pwn", err: "neither an absolute path nor a name"},
		"no name":                     {dir: dir, backend: "", err: "neither an absolute path nor a name"},
		"a flag":                      {dir: dir, backend: "-x", err: "neither an absolute path nor a name"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Find(tt.dir, tt.backend)
			if tt.err != "" {
				wantError(t, err, backendv1.Error_KIND_MISCONFIGURED, tt.err)
				return
			}
			if err != nil || got != tt.want {
				t.Errorf("got %s, %v; want %s", got, err, tt.want)
			}
		})
	}
}

func TestBackendsAreReapedWhereTheSystemsFirstProcessMightNotDoIt(t *testing.T) {
	b := newBench(t)
	b.parent = func() int { return 1 }
	p, err := Start(t.Context(), b.Runtime, b.spec(t, "good"))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Done():
	default:
		t.Error("Close did not wait for the backend that it killed")
	}
	if err := syscall.Kill(p.PID(), 0); err != syscall.ESRCH {
		t.Errorf("the process is still there: %v", err)
	}
}
