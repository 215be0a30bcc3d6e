//go:build linux

package faults

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// wraps makes the wrapped provider another file.
func wraps(create func(b *bench, path string), more object) func(*bench, object) object {
	return func(b *bench, p object) object {
		path := filepath.Join(b.dir, "wrapped")
		create(b, path)
		config := object{"command": path}
		return b.with(p, object{"config": b.with(config, more)})
	}
}

func script(content string, mode os.FileMode) func(*bench, string) {
	return func(b *bench, path string) { b.write(filepath.Base(path), content, mode) }
}

var execFaults = []fault{
	{name: "does well", mode: "good"},
	{name: "is slow", mode: "slow"},
	{name: "answers without reading its request", mode: "deafgood"},
	{name: "hangs", mode: "hang", kind: unavailable, reason: "did not answer in time", hangs: true},
	{name: "answers and hangs", mode: "hangAfterAnswer", kind: unavailable, reason: "did not answer in time", hangs: true},
	{name: "exits with 1", mode: "exit 1", kind: unavailable, reason: "exit status 1; the end of its standard error: no luck today"},
	{name: "exits with 255", mode: "exit 255", kind: unavailable, reason: "exit status 255"},
	{name: "answers and exits with 1", mode: "answerAndExit 1", kind: unavailable, reason: "exit status 1"},
	{name: "panics", mode: "panic", kind: unavailable, reason: "exit status 2; the end of its standard error: panic: bad day"},
	{name: "is killed by a signal", mode: "kill", kind: unavailable, reason: "signal 9"},
	{name: "violates its memory", mode: "segv", kind: unavailable, reason: "exit status 2"},
	{name: "closes its standard output", mode: "closeStdout", kind: unavailable, reason: "printed nothing on standard output"},

	{name: "prints nothing", mode: "silent", kind: unavailable, reason: "printed nothing on standard output"},
	{name: "prints garbage", mode: "garbage", kind: unavailable, reason: "is not JSON"},
	{name: "prints half an answer", mode: "truncated", kind: unavailable, reason: "is not JSON"},
	{name: "prints two answers", mode: "twice", kind: unavailable, reason: "is not JSON"},
	{name: "prints a list", mode: "raw []", kind: unavailable, reason: "no CredentialProviderResponse"},
	{name: "prints null", mode: "raw null", kind: unavailable, reason: "apiVersion"},
	{name: "speaks another version", mode: "version credentialprovider.kubelet.k8s.io/v1beta1", kind: unavailable, reason: "set apiVersion to what it speaks"},
	{name: "speaks a version from the future", mode: "version credentialprovider.kubelet.k8s.io/v7", kind: unavailable, reason: "another apiVersion"},
	{name: "answers a request", mode: "raw {'apiVersion':'credentialprovider.kubelet.k8s.io/v1','kind':'CredentialProviderRequest'}", kind: unavailable, reason: "another kind"},
	{name: "gives no cacheKeyType", mode: "cacheKeyType ", kind: unavailable, reason: "no valid cacheKeyType"},
	{name: "gives a cacheKeyType from the future", mode: "cacheKeyType Node", kind: unavailable, reason: "no valid cacheKeyType"},
	{name: "gives a cacheDuration that is none", mode: "cacheDuration soon", kind: unavailable, reason: "wrong type"},
	{
		name: "has an unknown field", mode: "raw {'apiVersion':'credentialprovider.kubelet.k8s.io/v1','kind':'CredentialProviderResponse','cacheKeyType':'Image','auths':{}}", kind: unavailable,
		reason: "unknown or a duplicate field",
	},
	{name: "has no credentials", mode: "raw {'apiVersion':'credentialprovider.kubelet.k8s.io/v1','kind':'CredentialProviderResponse','cacheKeyType':'Image','cacheDuration':'1h'}", none: true},

	{name: "prints without end", mode: "stdout 0", kind: unavailable, reason: "printed too much on standard output"},
	{name: "prints a gigabyte of valid answer", mode: "gigabyteAnswer " + gigabyte, kind: unavailable, reason: "printed too much on standard output", patience: time.Minute},
	{name: "prints a million keys", mode: "keys 1000000", kind: unavailable, reason: "printed too much on standard output", patience: time.Minute},
	{name: "prints a thousand keys and one", mode: "keys 1001", kind: unavailable, reason: "1001 credentials, of which the protocol allows 1000"},
	{name: "floods standard error", mode: "stderr 0", kind: unavailable, reason: "did not answer in time", hangs: true},
	{name: "writes a gigabyte to standard error and answers", mode: "stderr " + gigabyte, patience: time.Minute},

	{name: "leaves a fork that holds the pipes", mode: "fork"},
	{name: "leaves a fork in a session of its own that holds the pipes", mode: "forkAway"},
	{name: "exits and leaves a fork in a session of its own", mode: "forkAndExit", kind: unavailable, reason: "exit status 4"},
	{name: "forks into a session of its own and hangs", mode: "forkAndHang", kind: unavailable, reason: "did not answer in time", hangs: true},

	{name: "is not there", change: wraps(func(*bench, string) {}, nil), kind: misconfigured, reason: "config.command: "},
	{name: "is not executable", change: wraps(script("#!/bin/sh\n", 0o644), nil), kind: misconfigured, reason: "is not executable"},
	{name: "can be written by others", change: wraps(script("#!/bin/sh\n", 0o757), nil), kind: misconfigured, reason: "can be written by everybody"},
	{name: "has another digest", change: wraps(script("#!/bin/sh\n", 0o755), object{"sha256": wrongDigest}), kind: misconfigured, reason: "which is not in the list"},
	{name: "is a script whose interpreter is missing", change: wraps(script("#!/no/such/interpreter\n", 0o755), nil), kind: misconfigured, reason: "the interpreter that its first line names"},
	{name: "is a script without its first line", change: wraps(script("exit 0\n", 0o755), nil), kind: misconfigured, reason: "neither a program for this machine nor a script"},
	{name: "is a directory", kind: misconfigured, reason: "it is a directory", change: wraps(func(b *bench, path string) {
		if err := os.Mkdir(path, 0o755); err != nil {
			b.Fatal(err)
		}
	}, nil)},
	{name: "is a pipe", kind: misconfigured, reason: "it is a named pipe", change: wraps(func(b *bench, path string) {
		if err := syscall.Mkfifo(path, 0o755); err != nil {
			b.Fatal(err)
		}
	}, nil)},
	{name: "cannot be executed by the broker's user", kind: misconfigured, reason: "permission denied", nobody: true, change: wraps(func(b *bench, path string) {
		b.write(filepath.Base(path), "#!/bin/sh\n", 0o700)
		if err := os.Chown(path, 0, 0); err != nil {
			b.Fatal(err)
		}
	}, nil)},
}

func TestAWrappedProviderThatMisbehavesSpoilsNoOthersAnswer(t *testing.T) {
	inPairs(t, execFaults, func(b *bench, f fault) object { return b.execs("bad", f.mode) })
}

func TestNothingThatAWrappedProviderStartsIsLeftAfterTheRequest(t *testing.T) {
	for _, mode := range []string{"fork", "forkAway", "forkAndExit", "forkAndHang", "hang", "stdout 0"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			o := b.ask(b.config(nil, b.with(b.execs("bad", mode), object{"timeout": short.String()})))
			b.noTrace(o)
			if !until(10*time.Second, func() bool { return len(b.marked()) == 0 }) {
				t.Errorf("left: %v", b.marked())
			}
		})
	}
	t.Run("the mark is seen", func(t *testing.T) {
		b := newBench(t)
		cmd := b.command(command{args: []string{"--config", b.config(nil, b.with(b.execs("bad", "forkAndHang"), object{"timeout": "50s"}))}, stdin: request("")})
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = cmd.Wait() }()
		defer func() { _ = cmd.Process.Kill() }()
		// The backend, the wrapped provider and its fork at least: other users' environment is not for everybody to read.
		if !until(grace, func() bool { return len(b.marked()) >= 2 }) {
			t.Errorf("only %v are seen", b.marked())
		}
	})
}
