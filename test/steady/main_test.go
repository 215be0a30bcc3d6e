//go:build linux

package steady

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The programs under test: the broker as `make build` makes it, and as `go install` does; and one that does nothing.
var program, plain, empty string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "steady")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := os.Chmod(dir, 0o755); err != nil { // another user runs the program in one of the tests
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	program, plain, empty = filepath.Join(dir, "credential-broker"), filepath.Join(dir, "plain"), filepath.Join(dir, "empty")
	for _, cmd := range []*exec.Cmd{
		release(dir),
		exec.Command("go", "build", "-C", "../..", "-buildvcs=false", "-ldflags", "-X main.version=1.2.3", "-o", plain, "./cmd/credential-broker"),
		exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-X main.version=1.2.3 -X main.commit=abc", "-o", empty, "./empty"),
	} {
		cmd.Env = buildEnvironment()
		if output, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n%s", cmd, err, output)
			return 1
		}
	}
	return m.Run()
}

// release builds the broker into dir as releases are built.
func release(dir string) *exec.Cmd {
	cmd := exec.Command("make", "--silent", "--directory", "../..", "build", "OUT="+dir, "COMMANDS=./cmd/credential-broker", "VERSION=1.2.3", "COMMIT=abc")
	cmd.Env = buildEnvironment()
	return cmd
}

func buildEnvironment() []string { return append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=") }
