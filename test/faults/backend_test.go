//go:build linux

package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fault is one way for a provider to go wrong.
type fault struct {
	name string
	// mode is what the backend, the wrapped provider or the helper does.
	mode string
	// change makes the provider of the bench, where a mode is not enough.
	change func(*bench, object) object
	// kind is how the failure counts; empty: it is none, and both answers arrive.
	kind string
	// reason is part of what is said about it.
	reason string
	// hangs: the failure is found out when the provider's time is over.
	hangs bool
	// nobody: it is none for root.
	nobody bool
	// none: no failure, and no credentials either.
	none bool
	// log is something that the log says as well.
	log string
	// patience is what is added to the bound, for what writes gigabytes.
	patience time.Duration
}

const (
	unavailable   = "unavailable"
	refused       = "refused"
	misconfigured = "misconfigured"

	// short is a time that a provider is given which uses it up. Long enough for it to reach the step at which it hangs, on a busy machine too.
	short = 3 * time.Second
	// grace is what everything else may take on a busy machine.
	grace = 40 * time.Second
	// maxMemory bounds what the broker itself has resident, in bytes. It is about 25 MiB.
	maxMemory = 128 << 20
)

// file makes the backend another file.
func file(name, content string, mode os.FileMode) func(*bench, object) object {
	return func(b *bench, p object) object { return b.with(p, object{"backend": b.write(name, content, mode)}) }
}

// placed makes the backend a path for which something is done first.
func placed(name string, create func(path string) error) func(*bench, object) object {
	return func(b *bench, p object) object {
		path := filepath.Join(b.dir, name)
		if err := create(path); err != nil {
			b.Fatal(err)
		}
		return b.with(p, object{"backend": path})
	}
}

// copied makes the backend a copy of the good one, with another mode and owner.
func copied(mode os.FileMode, more object) func(*bench, object) object {
	return func(b *bench, p object) object {
		data, err := os.ReadFile(misbehavePath())
		if err != nil {
			b.Fatal(err)
		}
		path := b.write("credential-backend-copy", string(data), mode)
		if b.uid != 0 { // root's file, which the broker's user may use as everybody may
			if err := os.Chown(path, 0, 0); err != nil {
				b.Fatal(err)
			}
		}
		return b.with(b.with(p, object{"backend": path}), more)
	}
}

var wrongDigest = []string{strings.Repeat("0", 64)}

const gigabyte = "1073741824"

var backendFaults = []fault{
	// It hangs.
	{name: "hangs before the handshake", mode: "hangStart", kind: unavailable, reason: "did not start in time", hangs: true},
	{name: "hangs in Configure", mode: "hangConfigure", kind: unavailable, reason: "did not configure in time", hangs: true},
	{name: "hangs in GetCredentials", mode: "hangAsk", kind: unavailable, reason: "did not answer in time", hangs: true},
	{name: "is stopped as by a debugger", mode: "hangStopped", kind: unavailable, reason: "did not answer in time", hangs: true},
	{name: "takes the connection and says nothing", mode: "deaf", kind: unavailable, reason: "in time", hangs: true},
	{name: "starts slowly", mode: "slow"},

	// It crashes at each step.
	{name: "exits before the handshake", mode: "exitStart 7", kind: unavailable, reason: "exited with status 7 before it was ready; its last words: no disk today"},
	{name: "exits with 0 before the handshake", mode: "exitStart 0", kind: unavailable, reason: "exited with status 0 before it was ready"},
	{name: "panics before the handshake", mode: "panicStart", kind: unavailable, reason: "panic: out of ideas"},
	{name: "is killed before the handshake", mode: "killStart", kind: unavailable, reason: "ended by signal: killed before it was ready"},
	{name: "exits after the handshake", mode: "exitAfterHandshake", kind: unavailable, reason: "exited with status 6"},
	{name: "is killed after the handshake", mode: "killAfterHandshake", kind: unavailable, reason: "ended by signal: killed"},
	{name: "panics in Configure", mode: "panicConfigure", kind: unavailable, reason: "when asked to configure; its last words: panic: bad day"},
	{name: "is killed in Configure", mode: "killConfigure", kind: unavailable, reason: "ended by signal: killed when asked to configure"},
	{name: "panics in GetCredentials", mode: "panicAsk", kind: unavailable, reason: "when asked to answer; its last words: panic: bad day"},
	{name: "is killed in GetCredentials", mode: "killAsk", kind: unavailable, reason: "ended by signal: killed when asked to answer"},
	{name: "exits with 0 in GetCredentials", mode: "exitAsk", kind: unavailable, reason: "exited with status 0 when asked to answer"},
	{name: "panics in a goroutine of package backends", mode: "author goroutine", kind: unavailable, reason: "panic: "},
	{name: "panics in a request of package backends", mode: "author panic", kind: unavailable, reason: "panicked during a request"},

	// It greets wrongly.
	{name: "speaks another core protocol", mode: "print 9|1|unix|/x|grpc", kind: misconfigured, reason: "core protocol 9"},
	{name: "speaks another version of the protocol", mode: "version 2", kind: misconfigured, reason: "version 2 of the backend protocol, this broker version 1"},
	{name: "speaks net/rpc", mode: "netrpc", kind: misconfigured, reason: `serves "netrpc"`},
	{name: "serves TLS", mode: "print 1|1|unix|/x|grpc|MIIB", kind: misconfigured, reason: "TLSProvider"},
	{name: "listens on TCP", mode: "tcp", kind: misconfigured, reason: "only a unix socket"},
	{name: "listens on a socket elsewhere", mode: "elsewhere", kind: misconfigured, reason: "only a socket directly in"},
	{name: "greets in half a line", mode: "printAndExit 1|1|unix", kind: unavailable, reason: "exited with status 0 before it was ready"},
	{name: "closes its standard output", mode: "closeStdout", kind: misconfigured, reason: "without a go-plugin handshake"},
	{name: "speaks no HTTP/2", mode: "rubbish", kind: unavailable, reason: "broke when asked to"},
	{name: "does not serve the service", mode: "unimplemented", kind: misconfigured, reason: "does not serve version 1"},

	// It prints.
	{name: "prints garbage and exits", mode: "printAndExit \x01\xff|\x1b[2J|1|1|udp|", kind: unavailable, reason: "exited with status 0 before it was ready"},
	{name: "prints garbage and hangs", mode: "garbageThenHang", kind: unavailable, reason: "did not start in time", hangs: true},
	{name: "prints garbage before a good handshake", mode: "garbageFirst"},
	{name: "prints a line and a half before a good handshake", mode: "chatter", log: "warming up"},
	{name: "floods standard output before the handshake", mode: "stdoutFirst", kind: misconfigured, reason: "no go-plugin handshake among them"},
	{name: "floods standard error before the handshake", mode: "stderrFirst 0", kind: unavailable, reason: "did not start in time", hangs: true},
	{name: "writes a gigabyte to standard error before a good handshake", mode: "stderrFirst " + gigabyte, log: "never again", patience: time.Minute},
	{name: "floods both when asked", mode: "floodAsk 0", kind: unavailable, reason: "did not answer in time", hangs: true},
	{name: "writes a gigabyte to each and then answers", mode: "floodAsk " + gigabyte, log: "never again", patience: time.Minute},

	// It forks.
	{name: "leaves a fork that holds the pipes", mode: "fork"},
	{name: "leaves a fork in a session of its own that holds the pipes", mode: "forkAway"},
	{name: "exits and leaves a fork that holds the pipes", mode: "forkAndExit", kind: unavailable, reason: "exited with status 4"},
	{name: "exits and leaves a fork in a session of its own", mode: "forkAwayAndExit", kind: unavailable, reason: "exited with status 4"},
	{name: "is killed and leaves a fork in a session of its own", mode: "forkAwayAndKill", kind: unavailable, reason: "ended by signal: killed"},

	// Its file is wrong.
	{name: "is not there", change: placed("none", func(string) error { return nil }), kind: misconfigured, reason: "no such file"},
	{
		name: "is not there by its name", change: func(b *bench, p object) object { return b.with(p, object{"backend": "none"}) }, kind: misconfigured,
		reason: "the directory has acr, dockerconfig, ecr, exec, gar, misbehave, vault",
	},
	{name: "cannot be read or executed by the broker's user", change: copied(0o700, nil), kind: misconfigured, reason: "permission denied", nobody: true},
	{name: "cannot be read, which only its digest needs", change: copied(0o711, object{"sha256": wrongDigest}), kind: misconfigured, reason: "permission denied", nobody: true},
	{name: "cannot be read, and need not be", mode: "good", change: copied(0o711, nil), nobody: true},
	{name: "can be written by others", change: copied(0o757, nil), kind: misconfigured, reason: "can be written by everybody"},
	{name: "can be written by a group", change: copied(0o775, nil), kind: misconfigured, reason: "can be written by its group", nobody: true},
	{name: "lies in a directory that others can write", kind: misconfigured, reason: "can be written by everybody", change: func(b *bench, p object) object {
		path := b.write("open/credential-backend-copy", "#!/bin/sh\n", 0o755)
		if err := os.Chmod(filepath.Dir(path), 0o777); err != nil {
			b.Fatal(err)
		}
		return b.with(p, object{"backend": path})
	}},
	{name: "is not executable", change: file("plain", "", 0o644), kind: misconfigured, reason: "is not executable"},
	{
		name: "has another digest", change: func(b *bench, p object) object { return b.with(p, object{"sha256": wrongDigest}) }, kind: misconfigured,
		reason: "which is not in the list",
	},
	{name: "is a directory", change: placed("directory", func(path string) error { return os.Mkdir(path, 0o755) }), kind: misconfigured, reason: "it is a directory, not a program"},
	{name: "is a pipe", change: placed("pipe", func(path string) error { return syscall.Mkfifo(path, 0o755) }), kind: misconfigured, reason: "it is a named pipe, not a program"},
	{name: "is a link to nowhere", change: placed("link", func(path string) error { return os.Symlink("nowhere", path) }), kind: misconfigured, reason: "no such file"},
	{name: "is a link to itself", change: placed("loop", func(path string) error { return os.Symlink("loop", path) }), kind: misconfigured, reason: "symbolic links"},
	{name: "is a script whose interpreter is missing", change: file("script", "#!/no/such/interpreter\n", 0o755), kind: misconfigured, reason: "the interpreter it names"},
	{name: "is a script without its first line", change: file("text", "echo hello\n", 0o755), kind: misconfigured, reason: "no program for this machine"},
	{name: "is empty", change: file("empty", "", 0o755), kind: misconfigured, reason: "no program for this machine"},
	{name: "is cut short", change: file("cut", "\x7fELF\x02\x01\x01", 0o755), kind: misconfigured, reason: "no program for this machine"},
	{name: "is a shell script that prints hello", change: file("hello", "#!/bin/sh\necho hello\n", 0o755), kind: unavailable, reason: "exited with status 0 before it was ready; its last words: hello"},
	{
		name: "runs as a user that does not exist", change: func(b *bench, p object) object { return b.with(p, object{"user": "no-such-user"}) }, kind: misconfigured,
		reason: `user "no-such-user"`,
	},

	// It answers too much, or what is no answer.
	{name: "answers two megabytes", mode: "large 2097152", kind: unavailable, reason: "larger than 1048576 bytes"},
	{name: "answers a gigabyte", mode: "zeros " + gigabyte, kind: unavailable, reason: "larger than 1048576 bytes", patience: time.Minute},
	{name: "answers a megabyte that unpacks to a gigabyte", mode: "bomb", kind: unavailable, reason: "larger than 1048576 bytes", patience: time.Minute},
	{name: "answers a million keys", mode: "keys 1000000", kind: unavailable, reason: "larger than 1048576 bytes", patience: time.Minute},
	{name: "answers a thousand keys and one", mode: "keys 1001", kind: unavailable, reason: "1001 credentials, at most 1000"},
	{name: "answers half a million empty credentials", mode: "emptyCredentials", kind: unavailable, reason: "at most 1000"},
	{name: "fails with a status of ten megabytes", mode: "hugeStatus 10485760", kind: unavailable, reason: "broke when asked to answer"},
	{name: "has a hundred thousand problems with its settings", mode: "problems 100000", kind: misconfigured, reason: "config.f: m n"},
	{name: "answers a password with a zero byte, which is no business of ours", mode: "zeroByte"},
	{name: "has no credentials", mode: "none", none: true},

	// It fails in order.
	{name: "is unavailable", mode: "error 1", kind: unavailable, reason: "because"},
	{name: "refuses", mode: "error 2", kind: refused, reason: "because"},
	{name: "does not like its settings", mode: "error 3", kind: misconfigured, reason: "because"},
	{name: "fails in a way from the future", mode: "error 77", kind: unavailable, reason: "because"},
}

func TestABackendThatMisbehavesSpoilsNoOthersAnswer(t *testing.T) {
	inPairs(t, backendFaults, func(b *bench, f fault) object { return b.misbehaves("bad", f.mode) })
}

// inPairs tries each fault beside a healthy provider, and alone.
func inPairs(t *testing.T, faults []fault, provider func(*bench, fault) object) {
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			if f.nobody {
				if !isRoot() {
					notRun(t, "a file of another user's: only root can make one")
					return
				}
				b.asNobody()
			}
			bad := provider(b, f)
			bound := grace + f.patience
			if f.hangs {
				bad["timeout"] = short.String()
				bound += short
			}
			if f.change != nil {
				bad = f.change(b, bad)
			}
			t.Run("beside a healthy provider", func(t *testing.T) { b.at(t).beside(f, bad, bound) })
			t.Run("alone", func(t *testing.T) { b.at(t).alone(f, bad, bound) })
		})
	}
}

// at is the bench in a subtest.
func (b *bench) at(t *testing.T) *bench {
	c := *b
	c.T = t
	return &c
}

func (b *bench) ask(config string) outcome {
	b.Helper()
	return b.run(command{args: []string{"--config", config}, stdin: request("")})
}

func (b *bench) beside(f fault, bad object, bound time.Duration) {
	b.Helper()
	o := b.ask(b.config(nil, bad, b.healthy()))
	b.bounded(o, bound)
	b.noTrace(o)
	a := b.answered(o)
	if got := a.Auth["registry.example"]; got.Password != healthyPassword && f.kind != "" {
		b.Errorf("the healthy provider's answer is not in %v", a.Auth)
	}
	want := map[string]string{unavailable: "0s", refused: "1m0s", misconfigured: "1m0s", "": "1h0m0s"}[f.kind]
	if a.CacheDuration != want {
		b.Errorf("cacheDuration %s, want %s", a.CacheDuration, want)
	}
	if f.kind != "" && a.CacheKeyType != "Image" {
		b.Errorf("cacheKeyType %s beside a failure, want Image", a.CacheKeyType)
	}
	kind, reason := b.reason(o, "bad")
	if kind != f.kind || !strings.Contains(reason, f.reason) {
		b.Errorf("the failure counts as %q with the reason %q, want %q and %q; stderr:\n%s", kind, reason, f.kind, f.reason, clip(o.stderr))
	}
	if _, other := records(o.stderr); len(other) > 0 {
		b.Errorf("stderr has lines that are no log: %q", other)
	}
	if !strings.Contains(o.stderr, f.log) {
		b.Errorf("the log lacks %q:\n%s", f.log, clip(o.stderr))
	}
}

func (b *bench) alone(f fault, bad object, bound time.Duration) {
	b.Helper()
	o := b.ask(b.config(nil, bad))
	b.bounded(o, bound)
	b.noTrace(o)
	switch {
	case f.none:
		if a := b.answered(o); len(a.Auth) != 0 {
			b.Errorf("credentials %v, want none", a.Auth)
		}
	case f.kind == "":
		if a := b.answered(o); len(a.Auth) != 1 {
			b.Errorf("credentials %v, want one", a.Auth)
		}
	default:
		b.failed(o)
		_, other := records(o.stderr)
		if len(other) != 1 || !strings.HasPrefix(other[0], `provider "bad": `) || !strings.Contains(other[0], f.reason) {
			b.Errorf("besides the log stderr says %q, want one line: provider \"bad\": … %s", other, f.reason)
		}
	}
}

func (b *bench) bounded(o outcome, bound time.Duration) {
	b.Helper()
	if o.took > bound {
		b.Errorf("it took %s, at most %s are allowed", o.took, bound)
	}
	if o.memory > maxMemory {
		b.Errorf("the broker took %d MiB of memory", o.memory>>20)
	}
	if len(o.stderr) > 256<<10 {
		b.Errorf("%d bytes on stderr", len(o.stderr))
	}
}

// clip keeps a message readable.
func clip(s string) string {
	if len(s) > 4<<10 {
		return s[:2<<10] + fmt.Sprintf("\n… %d bytes …\n", len(s)-4<<10) + s[len(s)-2<<10:]
	}
	return s
}
