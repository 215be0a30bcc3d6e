//go:build linux

package faults

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// both is a configuration whose request starts all that a request can: a stranger's backend, and one around a provider.
func (b *bench) both(more object) string {
	b.Helper()
	return b.config(more, b.healthy(), b.execs("wrapped", "good"))
}

// eitherWay: a machine that is out of something gives the answer, or a clear error; never half an answer, never a trace, and never late.
func (b *bench) eitherWay(o outcome) (answered bool) {
	b.Helper()
	b.bounded(o, grace)
	b.noTrace(o)
	if o.code == 0 && o.signal == 0 {
		if a := b.answered(o); a.Auth["registry.example"].Password == "" {
			b.Errorf("the answer is %v; stderr:\n%s", a, o.stderr)
		}
		return true
	}
	b.failed(o)
	return false
}

// canMount says whether root is allowed a mount namespace here.
var canMount = sync.OnceValue(func() bool {
	if !isRoot() {
		return false
	}
	cmd := exec.Command("/bin/sh", "-c", "mount -t tmpfs none /mnt && mount --bind /mnt /mnt")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	return cmd.Run() == nil
})

// places are where a broker could put its sockets.
var places = []string{"/run", "/tmp", "/dev/shm", "/var/tmp"}

// elsewhere gives the shell commands that mount small file systems with these options in all places where a broker could put its sockets, with the test's own files bound
// into them, and then do something with each place: $place.
func (b *bench) elsewhere(options, then string) string {
	keep := []string{bin, b.dir}
	script := "mount -t tmpfs none /mnt\n"
	for i, dir := range keep {
		script += fmt.Sprintf("mkdir /mnt/%d && mount --bind %s /mnt/%d\n", i, dir, i)
	}
	for _, place := range places {
		script += fmt.Sprintf("mount -t tmpfs -o mode=1777,%s none %s\n", options, place)
	}
	for i, dir := range keep {
		script += fmt.Sprintf("mkdir -p %s && mount --bind /mnt/%d %s\n", dir, i, dir)
	}
	script += "mkdir -p " + b.tmp + "\n"
	return script + "for place in " + strings.Join(places, " ") + "; do\n" + then + "\ndone"
}

const (
	fillData   = `dd if=/dev/zero of=$place/fill bs=4k 2>/dev/null || true`
	fillInodes = `i=0; while mkdir $place/fill$i 2>/dev/null; do i=$((i+1)); done`
)

func TestAFullDisk(t *testing.T) {
	if !canMount() {
		notRun(t, "full disks: only root with a mount namespace of its own can make one")
		return
	}
	for name, tt := range map[string]struct {
		options, then string
		more          object
		want          string // in the error; empty: the answer is wanted
	}{
		"no byte is left":                     {options: "size=64k", then: fillData},
		"no byte is left, for the log either": {options: "size=64k", then: fillData, more: object{"log": object{"format": "json", "file": "/tmp/log"}}},
		"no inode is left":                    {options: "nr_inodes=40", then: fillInodes, want: "no space left on device"},
		"all is read-only":                    {options: "size=64k", then: "mount -o remount,ro $place", want: "read-only file system"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			o := b.run(command{args: []string{"--config", b.both(tt.more)}, stdin: request(""), namespace: true, before: b.elsewhere(tt.options, tt.then)})
			answered := b.eitherWay(o)
			if answered != (tt.want == "") || !strings.Contains(o.stderr, tt.want) {
				t.Errorf("exit status %d, want %q in stderr:\n%s", o.code, tt.want, clip(o.stderr))
			}
		})
	}
	t.Run("a few inodes are left in the first place, and room in the others", func(t *testing.T) {
		t.Parallel()
		b := newBench(t)
		config := b.both(nil)
		for left := range 8 {
			then := fmt.Sprintf("if [ $place = /run ]; then\n%s\nn=0; while [ $n -lt %d ]; do i=$((i-1)); n=$((n+1)); rmdir $place/fill$i; done\nfi", fillInodes, left)
			o := b.run(command{args: []string{"--config", config}, stdin: request(""), namespace: true, before: b.elsewhere("nr_inodes=60", then)})
			if !b.eitherWay(o) {
				t.Errorf("with %d left: exit status %d, stderr:\n%s", left, o.code, clip(o.stderr))
			}
		}
	})
	t.Run("some inodes are left", func(t *testing.T) {
		t.Parallel()
		b := newBench(t)
		config, answers := b.both(nil), 0
		for left := 1; left <= 10; left++ {
			then := fillInodes + fmt.Sprintf("\nwhile [ $i -gt 0 ] && [ $i -gt $((i0=i-%d)) ]; do break; done; n=0; while [ $n -lt %d ]; do i=$((i-1)); n=$((n+1)); rmdir $place/fill$i; done", left, left)
			o := b.run(command{args: []string{"--config", config}, stdin: request(""), namespace: true, before: b.elsewhere("nr_inodes=60", then)})
			if b.eitherWay(o) {
				answers++
			}
		}
		if answers == 0 || answers == 10 {
			t.Errorf("%d of 10 were answered: the sweep does not reach both sides", answers)
		}
	})
}

func TestAMachineWithoutItsSpecialFiles(t *testing.T) {
	if !canMount() {
		notRun(t, "no /proc, no /dev: only root with a mount namespace of its own can take them away")
		return
	}
	for name, before := range map[string]string{"no /proc": "mount -t tmpfs none /proc", "no /dev": "mount -t tmpfs none /dev", "no /run and no /tmp": "mount -t tmpfs -o ro none /run"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.eitherWay(b.run(command{args: []string{"--config", b.both(nil)}, stdin: request(""), namespace: true, before: before}))
		})
	}
}

// runtimeGaveUp is for an end that is out of the program's hands: Go's runtime can do nothing without the threads that it wants, nor without two descriptors once an imported package's
// initialisation opens a file (google.golang.org/protobuf/internal/detrand does). It says so, with a trace, which no program can turn into an error. What counts is the rest.
func runtimeGaveUp(t *testing.T, o outcome) bool {
	t.Helper()
	for _, why := range []string{"runtime: failed to create new OS thread", "runtime: epollcreate failed", "runtime: eventfd failed"} {
		if strings.Contains("\n"+o.stderr, "\n"+why) {
			if o.code == 0 || o.stdout != "" || o.took > grace {
				t.Errorf("exit status %d, stdout %q, after %s: %s", o.code, o.stdout, o.took, o.stderr)
			}
			return true
		}
	}
	return false
}

func TestFewFileDescriptors(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	config, answers := b.both(nil), 0
	const least, most = 3, 48
	for n := least; n <= most; n++ {
		o := b.run(command{args: []string{"--config", config}, stdin: request(""), before: fmt.Sprintf("ulimit -n %d", n)})
		if runtimeGaveUp(t, o) {
			continue
		}
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			if b.at(t).eitherWay(o) {
				answers++
			}
		})
	}
	if answers == 0 || answers == most-least+1 {
		t.Errorf("%d of %d were answered: the sweep does not reach both sides", answers, most-least+1)
	}
}

func TestFewProcesses(t *testing.T) {
	t.Parallel()
	b := newBench(t).asNobody()
	running := 0
	for pid := range processes() {
		info, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
		if err != nil || int(info.Sys().(*syscall.Stat_t).Uid) != max(b.uid, os.Geteuid()) {
			continue
		}
		tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		running += len(tasks)
	}
	config := b.both(nil)
	for n := 1; n <= 40; n += 3 {
		o := b.run(command{args: []string{"--config", config}, stdin: request(""), before: fmt.Sprintf("ulimit -u %d", running+n)})
		if runtimeGaveUp(t, o) {
			continue
		}
		t.Run(fmt.Sprint(n), func(t *testing.T) { b.at(t).eitherWay(o) })
	}
}

func TestNoPlaceForTemporaryFiles(t *testing.T) {
	for name, env := range map[string][]string{
		"none is named":           {"TMPDIR=", "XDG_RUNTIME_DIR="},
		"those named are missing": {"TMPDIR=/nowhere", "XDG_RUNTIME_DIR=/nowhere"},
		"those named are files":   {"TMPDIR=/dev/null", "XDG_RUNTIME_DIR=/dev/null"},
		"those named are others'": {"TMPDIR=/root", "XDG_RUNTIME_DIR=/root"},
		"they cannot be written":  {"TMPDIR=/proc", "XDG_RUNTIME_DIR=/proc"},
		"they are relative":       {"TMPDIR=.", "XDG_RUNTIME_DIR=."},
		"their names are long":    {"TMPDIR=/tmp/" + strings.Repeat("x", 200), "XDG_RUNTIME_DIR=/tmp/" + strings.Repeat("x", 200)},
		"their names are endless": {"TMPDIR=/tmp/" + strings.Repeat("x/", 4000), "XDG_RUNTIME_DIR=" + strings.Repeat("/", 8000)},
		"they are open to others": {"TMPDIR=/tmp", "XDG_RUNTIME_DIR=/tmp"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, b := range []*bench{newBench(t), newBench(t).asNobody()} {
				o := b.run(command{args: []string{"--config", b.both(nil)}, stdin: request(""), env: env})
				if !b.eitherWay(o) {
					t.Errorf("there are other places, such as /tmp; stderr:\n%s", o.stderr)
				}
			}
		})
	}
}

func TestStandardStreams(t *testing.T) {
	for name, tt := range map[string]struct {
		before string
		want   string // in stderr; "any": nobody could see it
	}{
		"stdin is closed":                 {"exec 0<&-", "request"},
		"stdin is empty":                  {"exec 0</dev/null", "request"},
		"stdin is a directory":            {"exec 0</", "request"},
		"stdin is without end":            {"exec 0</dev/zero", "request"},
		"stdin is open for writing alone": {"exec 0>/dev/null", "request"},
		"stdout is full":                  {"exec 1>/dev/full", "standard output"},
		"stdout is open for reading":      {"exec 1</dev/null", "standard output"},
		"stdout is closed":                {"exec 1>&-", "any"},
		"stderr is closed":                {"exec 2>&-", "answer"},
		"stderr is full":                  {"exec 2>/dev/full", "answer"},
		"stderr is open for reading":      {"exec 2</dev/null", "answer"},
		"stdout and stderr are closed":    {"exec 1>&- 2>&-", "any"},
		"all are closed":                  {"exec 0<&- 1>&- 2>&-", "any"},
		"many descriptors are open":       {"exec 3</etc/passwd 4</etc/passwd 5</etc/passwd 9>/dev/null", "answer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			o := b.run(command{args: []string{"--config", b.both(nil)}, stdin: request(""), before: tt.before})
			b.bounded(o, grace)
			b.noTrace(o)
			switch tt.want {
			case "any":
				if o.stdout != "" || o.stderr != "" && strings.Contains(o.stderr, healthyPassword) {
					t.Errorf("stdout %q, stderr %q", o.stdout, o.stderr)
				}
			case "answer":
				b.answered(o)
			default:
				b.failed(o)
				if !strings.Contains(o.stderr, tt.want) {
					t.Errorf("stderr lacks %q:\n%s", tt.want, o.stderr)
				}
			}
		})
	}
	// A pipe's reader that is gone kills a Go program that writes to its standard output or error, unless it takes care.
	for _, stream := range []string{"stdout", "stderr"} {
		t.Run("nobody reads "+stream, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			cmd := b.command(command{args: []string{"--config", b.both(nil)}, stdin: request("")})
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			_ = r.Close()
			if stream == "stdout" {
				cmd.Stdout = w
			} else {
				cmd.Stderr = w
			}
			o := b.wait(cmd)
			_ = w.Close()
			b.bounded(o, grace)
			if stream == "stderr" {
				b.answered(o)
			} else {
				b.failed(o)
			}
		})
	}
	t.Run("stdin is never ended", func(t *testing.T) {
		t.Parallel()
		b := newBench(t)
		for name, text := range map[string]string{"without a request": "", "with one": request("")} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				cmd := b.command(command{args: []string{"--config", b.both(nil)}})
				r, w, err := os.Pipe()
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _, _ = r.Close(), w.Close() }()
				if _, err := w.WriteString(text); err != nil {
					t.Fatal(err)
				}
				cmd.Stdin = r
				o := b.at(t).wait(cmd)
				b.at(t).failed(o)
				if !strings.Contains(o.stderr, "standard input") || o.took > 2*grace {
					t.Errorf("after %s: %s", o.took, o.stderr)
				}
			})
		}
	})
}

func TestALogFileThatCannotBeWritten(t *testing.T) {
	for name, place := range map[string]func(b *bench) string{
		"a full device":          func(*bench) string { return "/dev/full" },
		"a directory":            func(b *bench) string { return b.dir },
		"in no directory":        func(b *bench) string { return filepath.Join(b.dir, "none", "log") },
		"in a file":              func(*bench) string { return "/dev/null/log" },
		"in another's directory": func(*bench) string { return "/root/log-of-somebody" },
		"a link to itself": func(b *bench) string {
			path := filepath.Join(b.dir, "loop")
			if err := os.Symlink("loop", path); err != nil && !os.IsExist(err) {
				b.Fatal(err)
			}
			return path
		},
		"a pipe that nobody reads": func(b *bench) string {
			path := filepath.Join(b.dir, "pipe")
			if err := syscall.Mkfifo(path, 0o600); err != nil && !os.IsExist(err) {
				b.Fatal(err)
			}
			b.chown(path)
			return path
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t).asNobody()
			o := b.run(command{args: []string{"--config", b.both(object{"log": object{"format": "json", "file": place(b)}})}, stdin: request("")})
			if !b.eitherWay(o) {
				t.Errorf("a log is worth no failed pull: %s", o.stderr)
			}
			all, _ := records(o.stderr)
			warned := slices.ContainsFunc(all, func(record object) bool { return record["msg"] == "the log file cannot be opened" })
			if !warned && name != "a full device" {
				t.Errorf("nothing is said about the log file:\n%s", o.stderr)
			}
		})
	}
}

func TestAConfigurationThatCannotBeRead(t *testing.T) {
	for name, tt := range map[string]struct {
		make func(b *bench) string
		want string
		root bool // may do it all the same
	}{
		"it is not there": {func(b *bench) string { return filepath.Join(b.dir, "none.yaml") }, "none.yaml", false},
		"the file is another's": {func(b *bench) string {
			path := b.both(nil)
			if isRoot() {
				_ = os.Chown(path, 0, 0)
			} else {
				_ = os.Chmod(path, 0)
			}
			return path
		}, "permission denied", false},
		"the directory is another's": {func(b *bench) string {
			path := filepath.Dir(b.write("d/config.yaml", "", 0o600))
			if isRoot() {
				_ = os.Chmod(path, 0o700)
			} else {
				_ = os.Chmod(path, 0)
				b.Cleanup(func() { _ = os.Chmod(path, 0o700) })
			}
			return path
		}, "permission denied", false},
		"the directory is empty": {func(b *bench) string {
			path := filepath.Join(b.dir, "empty")
			_ = os.Mkdir(path, 0o755)
			return path
		}, "empty", false},
		"the file is empty": {func(b *bench) string { return b.write("empty.yaml", "", 0o600) }, "empty.yaml", false},
		"it is a pipe that nobody writes": {func(b *bench) string {
			path := filepath.Join(b.dir, "pipe.yaml")
			_ = syscall.Mkfifo(path, 0o600)
			b.chown(path)
			return path
		}, "pipe.yaml", false},
		"it is a device without end": {func(*bench) string { return "/dev/zero" }, "/dev/zero", false},
		"it is a terabyte": {func(b *bench) string {
			path := b.write("large.yaml", "#", 0o600)
			_ = os.Truncate(path, 1<<40)
			return path
		}, "large.yaml", false},
		"others can write it": {func(b *bench) string {
			path := b.both(nil)
			_ = os.Chmod(path, 0o666)
			return path
		}, "can be written by everybody", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t).asNobody()
			o := b.run(command{args: []string{"--config", tt.make(b)}, stdin: request("")})
			b.bounded(o, grace)
			b.failed(o)
			if !strings.Contains(o.stderr, tt.want) {
				t.Errorf("stderr lacks %q:\n%s", tt.want, o.stderr)
			}
		})
	}
}
