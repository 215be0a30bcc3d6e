//go:build linux

package faults

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// helps is a provider whose backend is dockerconfig, with a credential helper that misbehaves so.
func (b *bench) helps(name, mode string) object {
	b.Helper()
	directory := filepath.Join(b.dir, "helpers")
	if err := os.MkdirAll(directory, 0o755); err != nil {
		b.Fatal(err)
	}
	link := filepath.Join(directory, "docker-credential-"+mode)
	if _, err := os.Lstat(link); err != nil {
		if err := os.Symlink(misbehavePath(), link); err != nil {
			b.Fatal(err)
		}
	}
	p := b.dockers(name, `{"credHelpers":{"registry.example":"`+mode+`"}}`)
	p["env"] = b.environment("PATH", directory)
	return p
}

// dockers is a provider whose backend is dockerconfig, with that file.
func (b *bench) dockers(name, content string) object {
	return object{
		"name": name, "backend": "dockerconfig", "matchImages": []string{"registry.example"}, "timeout": "50s", "defaultCacheDuration": "1h", "env": b.environment(),
		"config": object{"file": b.write(name+"-docker.json", content, 0o600)},
	}
}

func dockerFile(content string) func(*bench, object) object {
	return func(b *bench, p object) object { return b.with(p, b.dockers("bad", content)) }
}

func dockerPath(create func(b *bench, path string)) func(*bench, object) object {
	return func(b *bench, p object) object {
		path := filepath.Join(b.dir, "docker-config")
		create(b, path)
		return b.with(p, object{"config": object{"file": path}})
	}
}

var dockerFaults = []fault{
	{name: "does well", mode: "good"},
	{name: "has nothing", mode: "none", none: true},
	{name: "hangs", mode: "hang", kind: unavailable, reason: "in time", hangs: true},
	{name: "exits with 5", mode: "exit", kind: unavailable, reason: "exit status 5"},
	{name: "is killed", mode: "kill", kind: unavailable, reason: "signal 9"},
	{name: "prints garbage", mode: "garbage", kind: unavailable, reason: "what it printed is no credential"},
	{name: "prints without end", mode: "stdout", kind: unavailable, reason: "too much on standard output"},
	{name: "floods standard error", mode: "stderr", kind: unavailable, reason: "in time", hangs: true},
	{name: "leaves a fork in a session of its own", mode: "forkaway"},
	{name: "has an identity token", mode: "identity", kind: misconfigured, reason: "identity token"},
	{name: "is not there", mode: "good", kind: misconfigured, reason: "is not in PATH", change: func(b *bench, p object) object {
		return b.with(p, object{"env": b.environment("PATH", "/nowhere")})
	}},
	{name: "can be written by others", mode: "good", kind: misconfigured, reason: "can be written by everybody", change: func(b *bench, p object) object {
		path := b.write("open/docker-credential-good", "#!/bin/sh\n", 0o757)
		return b.with(p, object{"env": b.environment("PATH", filepath.Dir(path))})
	}},
	{name: "has a missing interpreter", mode: "good", kind: misconfigured, reason: "interpreter", change: func(b *bench, p object) object {
		path := b.write("broken/docker-credential-good", "#!/no/such/interpreter\n", 0o755)
		return b.with(p, object{"env": b.environment("PATH", filepath.Dir(path))})
	}},
}

var dockerFileFaults = []fault{
	{name: "is not there", change: dockerPath(func(*bench, string) {}), kind: misconfigured, reason: "log in with docker"},
	{name: "is a directory", kind: misconfigured, reason: "is no regular file", change: dockerPath(func(b *bench, path string) {
		if err := os.Mkdir(path, 0o755); err != nil {
			b.Fatal(err)
		}
	})},
	{name: "is a pipe", kind: misconfigured, reason: "is no regular file", change: dockerPath(func(b *bench, path string) {
		if err := syscall.Mkfifo(path, 0o600); err != nil {
			b.Fatal(err)
		}
	})},
	{name: "is without end", change: dockerPath(func(b *bench, path string) {
		b.write(filepath.Base(path), "{", 0o600)
		if err := os.Truncate(path, 1<<40); err != nil {
			b.Fatal(err)
		}
	}), kind: misconfigured, reason: "is it docker's config.json"},
	{name: "can be written by others", kind: misconfigured, reason: "can be written by everybody", change: dockerPath(func(b *bench, path string) {
		b.write(filepath.Base(path), "{}", 0o666)
	})},
	{name: "cannot be read by the broker's user", kind: misconfigured, reason: "permission denied", nobody: true, change: dockerPath(func(b *bench, path string) {
		b.write(filepath.Base(path), "{}", 0o600)
		if err := os.Chown(path, 0, 0); err != nil {
			b.Fatal(err)
		}
	})},
	{name: "is no JSON", change: dockerFile("{\n  nonsense"), kind: misconfigured, reason: "line 2"},
	{name: "is of another shape", change: dockerFile(`{"auths":[]}`), kind: misconfigured, reason: "stands where docker has something else"},
	{name: "is a million brackets", change: dockerFile(strings.Repeat("[", 1e6)), kind: misconfigured, reason: "docker"},
	{name: "has a broken entry", change: dockerFile(`{"auths":{"registry.example":{"auth":"!"}}}`), kind: misconfigured, reason: "is not base64"},
	{name: "has an identity token", change: dockerFile(`{"auths":{"registry.example":{"identitytoken":"t"}}}`), kind: misconfigured, reason: "identity token"},
	{name: "is empty", change: dockerFile(""), none: true},
	{name: "does well", change: dockerFile(`{"auths":{"registry.example":{"username":"u","password":"p"}}}`)},
}

func TestACredentialHelperThatMisbehavesSpoilsNoOthersAnswer(t *testing.T) {
	inPairs(t, dockerFaults, func(b *bench, f fault) object { return b.helps("bad", f.mode) })
}

func TestADockerConfigurationThatIsBrokenSpoilsNoOthersAnswer(t *testing.T) {
	inPairs(t, dockerFileFaults, func(b *bench, _ fault) object { return b.dockers("bad", "{}") })
}
