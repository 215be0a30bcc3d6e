//go:build linux

package steady

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The programs under test, built as a release is.
var program, empty string

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
	program, empty = filepath.Join(dir, "credential-broker"), filepath.Join(dir, "empty")
	for _, build := range []struct{ out, folder, pkg string }{{program, "../..", "./cmd/credential-broker"}, {empty, ".", "./empty"}} {
		cmd := exec.Command("go", "build", "-trimpath", "-tags", "grpcnotrace", "-buildvcs=false", "-ldflags", "-X main.version=1.2.3 -X main.commit=abc", "-o", build.out, build.pkg)
		cmd.Dir, cmd.Env = build.folder, append(os.Environ(), "CGO_ENABLED=0")
		if output, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n%s", build.pkg, err, output)
			return 1
		}
	}
	return m.Run()
}
