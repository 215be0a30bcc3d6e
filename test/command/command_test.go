// Package command runs the built command as its users do: each testdata/*.txt is one behaviour, readable as a manual page. See
// https://pkg.go.dev/github.com/rogpeppe/go-internal/testscript for the language.
package command

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

var bin string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "credential-broker-command-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	bin = dir
	for out, pkg := range map[string]string{
		"credential-broker":                        "./cmd/credential-broker",
		"backends/credential-backend-exec":         "./cmd/credential-backend-exec",
		"backends/credential-backend-dockerconfig": "./cmd/credential-backend-dockerconfig",
	} {
		build := exec.Command("go", "build", "-trimpath", "-ldflags", "-X main.version=1.2.3 -X main.commit=abc", "-o", filepath.Join(dir, out), pkg)
		build.Dir, build.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
		if output, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n%s", pkg, err, output)
			return 1
		}
	}
	return m.Run()
}

// inPlace writes the directory's real name where a configuration says $WORK: paths in it have to be absolute.
func inPlace(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		return err
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := os.WriteFile(file, bytes.ReplaceAll(data, []byte("$WORK"), []byte(dir)), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func TestCommand(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", bin+string(filepath.ListSeparator)+env.Getenv("PATH"))
			return inPlace(env.WorkDir)
		},
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}
