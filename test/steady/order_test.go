//go:build linux

package steady

import (
	"bytes"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/credential-broker/credential-broker/broker/agent/fast"
)

// before are the packages that may be initialised before the agent has answered where the early path comes after the runtime: the runtime's own, and packages of the standard library that import nothing and come before the early path in the
// alphabet, none of which takes long. Of other people's packages there is none.
var before = []string{
	"runtime", "internal/bytealg", "internal/cpu", "internal/runtime/", // what every Go program has
	"crypto/internal/fips140deps/cpu", // looks at what the processor can do
}

// initialised are the packages that a run with GODEBUG=inittrace=1 says were initialised, of those that have something to do. The runtime says so after each.
func initialised(stderr string) (packages []string, rest string) {
	trace := regexp.MustCompile(`(?m)^init (\S+) @.*\n`)
	for _, match := range trace.FindAllStringSubmatch(stderr, -1) {
		packages = append(packages, match[1])
	}
	return packages, trace.ReplaceAllString(stderr, "")
}

func heavy(pkg string) bool {
	return !slices.ContainsFunc(before, func(allowed string) bool {
		return pkg == allowed || strings.HasSuffix(allowed, "/") && strings.HasPrefix(pkg, allowed)
	})
}

func TestNothingHeavyIsInitialisedBeforeTheAgentIsAsked(t *testing.T) {
	agent := newAgent(t, always(fast.Reply{Stdout: []byte("answer"), Stderr: []byte("said\n"), Status: 3}))
	run := func(program, socket string) (ran, []string) {
		cmd := start(program)(socket, "--config", "/nonexistent/config.yaml")
		cmd.Env = append(cmd.Env, "GODEBUG=inittrace=1")
		cmd.Stdin = bytes.NewReader([]byte(aRequest))
		got := finish(t, cmd)
		var packages []string
		packages, got.stderr = initialised(got.stderr)
		return got, packages
	}
	for _, file := range []string{program, plain} {
		got, packages := run(file, agent.socket)
		if got != (ran{"answer", "said\n", 3}) {
			t.Errorf("%s: %+v", file, got)
		}
		if traced := slices.Contains(packages, "runtime"); traced != (file == plain) {
			t.Errorf("%s: the runtime is initialised, as far as is seen: %t", file, traced)
		}
		for _, pkg := range packages {
			if heavy(pkg) {
				t.Errorf("%s: %s is initialised before the agent is asked", file, pkg)
			}
		}

		// The same program where nobody answers, to see that the trace would have said it.
		_, packages = run(file, "/nonexistent/agent.sock")
		for _, pkg := range []string{"errors", "syscall", "time", "os", "net", "google.golang.org/grpc", "github.com/hashicorp/go-plugin"} {
			if !heavy(pkg) || !slices.Contains(packages, pkg) {
				t.Errorf("%s: %s does not count as heavy, or is not initialised where no agent answers", file, pkg)
			}
		}
	}
}
