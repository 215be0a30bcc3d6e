// Package command runs the built command as its users do: each testdata/*.txt is one behaviour, readable as a manual page. See
// https://pkg.go.dev/github.com/rogpeppe/go-internal/testscript for the language.
package command

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

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
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "kubelet"), "./kubelet")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the kubelet that does nothing: %v\n%s", err, output)
		return 1
	}
	if err := os.Symlink("credential-broker", filepath.Join(dir, "docker-credential-broker")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// startKubelet is the command kubelet: it runs one that does nothing, with these flags, until the script ends or starts another, and puts its process into $KUBELET_PID.
func startKubelet(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("usage: kubelet [flag...]")
	}
	kubelet := exec.Command(filepath.Join(bin, "kubelet"), args...)
	kubelet.Env = append(os.Environ(), "PASSED_ON=by the kubelet")
	stdin, err := kubelet.StdinPipe() // its end is the kubelet's, even if this test is killed
	ts.Check(err)
	ts.Check(kubelet.Start())
	ts.Defer(func() {
		_ = stdin.Close()
		_ = kubelet.Wait()
	})
	ts.Setenv("KUBELET_PID", strconv.Itoa(kubelet.Process.Pid))
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

// waitStatus is the command waitstatus: it waits until the agent of config.yaml serves.
func waitStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: waitstatus")
	}
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		status := exec.Command(filepath.Join(bin, "credential-broker"), "status", "--config", ts.MkAbs("config.yaml"))
		output, err := status.CombinedOutput()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			ts.Fatalf("the agent does not serve: %s", output)
		}
	}
}

func TestCommand(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", bin+string(filepath.ListSeparator)+env.Getenv("PATH"))
			return inPlace(env.WorkDir)
		},
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"waitstatus": waitStatus, "kubelet": startKubelet},
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}
