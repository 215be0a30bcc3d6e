package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
)

// throughAnAgent shows what stays between requests, and that nobody depends on it.
func (d *demo) throughAnAgent(ctx context.Context) error {
	d.title("5. The same pull through an agent, which is then killed")
	if err := os.Remove(filepath.Join(d.dir, "hang")); err != nil {
		return err
	}
	agent, err := d.startAgent(ctx)
	if err != nil {
		return err
	}
	defer agent.end(os.Kill)

	first, err := d.ask(ctx, nil)
	if err != nil {
		return err
	}
	if err := d.holds(d.legacyWasAsked(true), "the first request has the providers asked"); err != nil {
		return err
	}
	second, err := d.ask(ctx, nil)
	if err != nil {
		return err
	}
	if err := d.holds(errors.Join(d.legacyWasAsked(false), sameAuth(second, first)), "the second has the same answer from memory: %s's provider was not started again", legacy); err != nil {
		return err
	}
	if err := d.pullWith(ctx, second.response); err != nil {
		return err
	}

	backends, err := d.backendsOfAgent(ctx)
	if err != nil {
		return err
	}
	agent.end(os.Kill)
	if err := d.holds(awaitGone(ctx, append(backends, agent.pid())...), "the agent (process %d) got SIGKILL, and its %d backends are gone with it", agent.pid(), len(backends)); err != nil {
		return err
	}
	third, err := d.ask(ctx, nil)
	if err != nil {
		return err
	}
	why := lineWith(third.stderr, "the agent was not used")
	if err := d.holds(errors.Join(wrong(why != "", "standard error: %s", third.stderr), sameAuth(third, first)), "nobody noticed: the same answer, the slower way, and the log says why:"); err != nil {
		return err
	}
	d.shown(afterLevel(why))
	return d.pullWith(ctx, third.response)
}

// runningAgent is an agent.
type runningAgent struct {
	cmd *exec.Cmd
	log bytes.Buffer
}

// startAgent starts an agent, which is asked from now on.
func (d *demo) startAgent(ctx context.Context) (*runningAgent, error) {
	d.agent = filepath.Join(d.dir, "run", "agent.sock")
	a := &runningAgent{cmd: d.cmd(ctx, "agent")}
	a.cmd.Stderr = &a.log
	d.command("CREDENTIAL_BROKER_AGENT=" + d.agent + " credential-broker agent &")
	if err := a.cmd.Start(); err != nil {
		return nil, err
	}
	err := await(ctx, func() error {
		_, err := d.run(ctx, "status")
		return err
	})
	if err != nil {
		a.end(os.Kill)
		return nil, fmt.Errorf("the agent does not serve: %w\n%s", err, a.log.String())
	}
	return a, nil
}

func (a *runningAgent) pid() int { return a.cmd.Process.Pid }

// end ends the agent by a signal, once.
func (a *runningAgent) end(by os.Signal) {
	if a.cmd.ProcessState == nil {
		_ = a.cmd.Process.Signal(by)
		_ = a.cmd.Wait() // however it ends
	}
}

// legacyWasAsked is an error unless the credential provider has, or has not, been started since the last look.
func (d *demo) legacyWasAsked(want bool) error {
	err := os.Remove(filepath.Join(d.dir, "request.json")) // which it writes
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return wrong((err == nil) == want, "it was asked: %v", err == nil)
}

func sameAuth(got, want answer) error {
	return wrong(maps.Equal(got.response.Auth, want.response.Auth), "the answers differ")
}

// backendsOfAgent are the process ids of the backends that the agent keeps.
func (d *demo) backendsOfAgent(ctx context.Context) ([]int, error) {
	var status struct {
		Configurations []struct {
			Providers []struct {
				Processes []struct {
					PID int `json:"pid"`
				} `json:"processes"`
			} `json:"providers"`
		} `json:"configurations"`
	}
	if err := d.runJSON(ctx, &status, "status"); err != nil {
		return nil, err
	}
	var pids []int
	for _, c := range status.Configurations {
		for _, p := range c.Providers {
			for _, process := range p.Processes {
				if process.PID != 0 {
					pids = append(pids, process.PID)
				}
			}
		}
	}
	if len(pids) == 0 {
		return nil, errors.New("the agent keeps no backend")
	}
	return pids, nil
}
