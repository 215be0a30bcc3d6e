package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
)

// throughAnAgent shows what stays between requests, and that nobody depends on it.
func (d *demo) throughAnAgent(ctx context.Context) error {
	d.title("5. The same pull through an agent, which is then killed")
	if err := os.Remove(filepath.Join(d.dir, "hang")); err != nil {
		return err
	}
	d.agent = filepath.Join(d.dir, "run", "agent.sock")
	defer func() { d.agent = "" }()
	agent := d.cmd(ctx, "agent")
	var log bytes.Buffer
	agent.Stderr = &log
	d.command("CREDENTIAL_BROKER_AGENT=" + d.agent + " credential-broker agent &")
	if err := agent.Start(); err != nil {
		return err
	}
	ended := false
	end := func() {
		if !ended {
			ended = true
			_ = agent.Process.Kill()
			_ = agent.Wait() // it was killed
		}
	}
	defer end()
	err := await(ctx, func() error {
		_, err := d.run(ctx, "status")
		return err
	})
	if err != nil {
		return fmt.Errorf("the agent does not serve: %w\n%s", err, log.String())
	}

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
	end()
	if err := d.holds(awaitGone(ctx, append(backends, agent.Process.Pid)...), "the agent (process %d) got SIGKILL, and its %d backends are gone with it", agent.Process.Pid, len(backends)); err != nil {
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
