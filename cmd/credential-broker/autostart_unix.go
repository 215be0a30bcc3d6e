//go:build unix

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/credential-broker/credential-broker/broker/agent"
	"github.com/credential-broker/credential-broker/broker/config"
)

const (
	// startPatience is how long a request waits for the agent that it has started. It takes some forty milliseconds, and longer where a hundred requests start at once.
	startPatience = 3 * time.Second
	// managerPatience is how long a service manager may take to start it.
	managerPatience = 3 * time.Second
)

// startAgent starts an agent that outlives this process and has nothing of it but the environment, which is that of the backends, and waits until somebody serves the socket: this agent, or
// that of another request that was quicker.
func startAgent(ctx context.Context, opts *options, cfg *config.Config) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	path, backendDir, err := opts.place()
	if err != nil {
		return err
	}
	args := []string{"agent", "--agent", cfg.Agent.Socket, "--idle-timeout", cfg.Agent.IdleTimeout.String()}
	if path != "" {
		args = append(args, "--config", path)
	}
	if backendDir != "" {
		args = append(args, "--backend-dir", backendDir)
	}
	ctx, cancel := context.WithTimeout(ctx, startPatience+managerPatience)
	defer cancel()
	mine, done, err := agent.BeginStart(cfg.Agent.Socket)
	if err != nil {
		return err
	}
	defer done()
	if !mine {
		return awaitStart(ctx, cfg.Agent.Socket)
	}
	var ended <-chan error
	if !reachable(cfg.Agent.Socket) {
		asked := errors.New("no service manager")
		if manager := serviceManager(); manager != nil {
			asked = startUnit(ctx, manager, self, args, cfg.Agent.Socket)
		}
		if asked != nil {
			if ended, err = startDetached(self, args); err != nil {
				return err
			}
		}
	}
	return awaitListener(ctx, cfg.Agent.Socket, ended)
}

// awaitStart waits until somebody serves the socket, or whoever had the right to start an agent has given it back and nobody does.
func awaitStart(ctx context.Context, socket string) error {
	return await(ctx, func() (bool, error) {
		if reachable(socket) {
			return true, nil
		}
		free, done, err := agent.BeginStart(socket)
		if err != nil {
			return false, err
		}
		done()
		if free && !reachable(socket) { // it may have come about since the look above
			return false, errors.New("another request tried, in vain: its line of the log says why")
		}
		return free, nil
	})
}

// startDetached starts a process of its own session, with no descriptor of this one's: the kubelet waits for whoever holds its pipes. It belongs to the kubelet's control group, and ends with that. The channel
// tells of its end, if it ends before this process does.
func startDetached(self string, args []string) (ended <-chan error, err error) {
	cmd := exec.Command(self, args...) //nolint:noctx // it outlives this process
	cmd.Dir = "/"
	cmd.Env = ownEnvironment()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil { // standard input, output and error are /dev/null
		return nil, err
	}
	waited := make(chan error, 1)
	go func() { waited <- cmd.Wait() }()
	return waited, nil
}

// serviceManager is the command that asks systemd for a unit, if systemd is there; see sd_booted(3) and systemd-run(1).
func serviceManager() []string {
	command, err := exec.LookPath("systemd-run")
	if err != nil {
		return nil
	}
	if os.Geteuid() == 0 {
		if _, err := os.Lstat(systemdBooted); err == nil {
			return []string{command}
		}
		return nil
	}
	if _, err := os.Lstat(filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "systemd", "private")); err == nil {
		return []string{command, "--user"}
	}
	return nil
}

// systemdBooted is there where systemd is. A variable, so that a program can be built for tests that finds it elsewhere.
var systemdBooted = "/run/systemd/system"

// startUnit has systemd start the agent in a unit of its own, which does not end with the kubelet's. The environment goes in a file that only this user can read and that the agent removes: a unit's
// Environment= could be read by everybody.
func startUnit(ctx context.Context, manager []string, self string, args []string, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, managerPatience)
	defer cancel()
	environment, err := writeEnvironment(filepath.Dir(socket))
	if err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(socket))
	command := slices.Concat(manager[1:], []string{
		"--quiet", "--collect", "--unit=credential-broker-agent-" + hex.EncodeToString(sum[:4]),
		"--description=credential-broker agent, started by a request", "--property=Type=notify", "--property=NotifyAccess=all", "--property=KillMode=mixed",
		"--property=TimeoutStopSec=65", "--property=LimitCORE=1", "--property=LimitMEMLOCK=infinity", "--", self,
	}, args, []string{"--environment", environment})
	cmd := exec.CommandContext(ctx, manager[0], command...)
	cmd.Dir = "/"
	err = cmd.Run()
	if err == nil {
		return nil
	}
	_ = os.Remove(environment)
	if reachable(socket) { // another request was quicker: the unit is there already
		return nil
	}
	return fmt.Errorf("%s: %w", manager[0], err)
}

// ownEnvironment is this process's environment without what a service manager has told the kubelet, and nobody else: an agent that said there that it is ready, alive or ending would say so of the kubelet.
func ownEnvironment() []string {
	return slices.DeleteFunc(os.Environ(), func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		switch name {
		case "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES":
			return true
		}
		return false
	})
}

// writeEnvironment writes this process's environment to a file in the directory of the socket, which others cannot enter.
func writeEnvironment(dir string) (string, error) {
	if err := agent.PrepareDir(dir); err != nil {
		return "", err
	}
	file, err := os.CreateTemp(dir, ".environment-") // of mode 0600
	if err != nil {
		return "", err
	}
	_, err = file.WriteString(strings.Join(ownEnvironment(), "\x00"))
	if err = errors.Join(err, file.Close()); err != nil {
		_ = os.Remove(file.Name())
		return "", err
	}
	return file.Name(), nil
}

// takeEnvironment adds what startUnit left in the file to this process's environment, but for what systemd has set.
func takeEnvironment(path string) error {
	if path == "" {
		return nil
	}
	data, err := os.ReadFile(path)
	if err = errors.Join(err, os.Remove(path)); err != nil {
		return fmt.Errorf("the environment of the request that started the agent: %w", err)
	}
	for variable := range strings.SplitSeq(string(data), "\x00") {
		name, value, ok := strings.Cut(variable, "=")
		if _, set := os.LookupEnv(name); !ok || set && systemds[name] {
			continue
		}
		if err := os.Setenv(name, value); err != nil {
			return fmt.Errorf("the environment of the request that started the agent: %w", err)
		}
	}
	return nil
}

// systemds are the variables that a unit has of its own.
var systemds = map[string]bool{
	"NOTIFY_SOCKET": true, "WATCHDOG_PID": true, "WATCHDOG_USEC": true, "INVOCATION_ID": true, "JOURNAL_STREAM": true, "SYSTEMD_EXEC_PID": true,
}

// awaitListener waits until somebody serves the socket, or what was to do so has ended.
func awaitListener(ctx context.Context, socket string, ended <-chan error) error {
	return await(ctx, func() (bool, error) {
		if reachable(socket) {
			return true, nil
		}
		select {
		case err := <-ended:
			if err != nil {
				return false, fmt.Errorf("it ended at once (%w): run it by hand to see why: credential-broker agent --agent %s", err, socket)
			}
			ended = nil // another serves already
		default:
		}
		return false, nil
	})
}

// await looks again and again, at first often, until what it waits for has come about or cannot.
func await(ctx context.Context, look func() (bool, error)) error {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for wait := 2 * time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		if done, err := look(); done || err != nil {
			return err
		}
		pause.Reset(wait)
		select {
		case <-pause.C:
		case <-ctx.Done():
			return errors.New("it does not serve: its log (journalctl -t credential-broker) says why")
		}
	}
}

func reachable(socket string) bool {
	conn, err := net.Dial("unix", socket) //nolint:noctx // to connect to a unix socket takes no time
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}
