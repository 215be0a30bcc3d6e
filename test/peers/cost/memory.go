package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/credential-broker/credential-broker/test/peers/internal/program"
)

// idlePatience is for how long is waited for idle backends to be stopped: longer than the agent's own five minutes.
const idlePatience = 7 * time.Minute

// memory measures the agent and its backends: when it has started, when three backends run that have answered, and, if that is wanted, when they have been stopped for being idle.
func (b *bench) memory(idle bool) error {
	id := b.cloud.Identities[0]
	config, err := b.threeBackends()
	if err != nil {
		return err
	}
	agent, err := b.startAgent(id, config)
	if err != nil {
		return err
	}
	fmt.Fprintf(b.out, "\n%-68s %12s %12s\n", "memory", "resident", "proportional")
	if err := b.sizes("the agent, nothing asked yet", agent.cmd.Process.Pid); err != nil {
		return err
	}
	for n := range 20 {
		cmd, err := b.command(id.asking(agent.socket), fmt.Sprintf("%s-%d", image, n), program.Broker, "--config", config)
		if err != nil {
			return err
		}
		if _, err := cmd.Output(); err != nil {
			return err
		}
	}
	pids, err := agent.backends()
	if err != nil {
		return err
	}
	if len(pids) != 3 {
		return fmt.Errorf("%d backends run, want 3", len(pids))
	}
	if err := b.sizes("the agent, with three backends that have answered", agent.cmd.Process.Pid); err != nil {
		return err
	}
	for i, name := range []string{"ecr", "dockerconfig", "exec"} {
		if err := b.sizes("  its backend "+name, pids[i]); err != nil {
			return err
		}
	}
	if err := b.sizes("  all four processes", append(pids, agent.cmd.Process.Pid)...); err != nil || !idle {
		return err
	}
	deadline, tick := time.After(idlePatience), time.NewTicker(5*time.Second)
	defer tick.Stop()
	for len(pids) > 0 {
		select {
		case <-tick.C:
		case <-deadline:
			return errors.New("backends that nobody asks still run")
		}
		if pids, err = agent.backends(); err != nil {
			return err
		}
	}
	return b.sizes("the agent, its backends stopped for being idle", agent.cmd.Process.Pid)
}

// threeBackends writes a configuration with one provider of each backend that is built in this repository's own module.
func (b *bench) threeBackends() (string, error) {
	docker := filepath.Join(b.dir, "docker.json")
	if err := os.WriteFile(docker, []byte(`{"auths":{"registry.example":{"auth":"dTpw"}}}`), 0o600); err != nil {
		return "", err
	}
	provider := func(backend string, config map[string]any) map[string]any {
		return map[string]any{"name": backend, "backend": backend, "matchImages": []string{host}, "inheritEnv": []string{"AWS_*"}, "config": config}
	}
	data, err := json.Marshal(map[string]any{"apiVersion": "credential-broker.io/v1alpha1", "kind": "BrokerConfig", "providers": []any{
		provider("ecr", map[string]any{}), provider("dockerconfig", map[string]any{"file": docker}), provider("exec", map[string]any{"command": b.path(program.CloudProviderAWS)}),
	}})
	if err != nil {
		return "", err
	}
	file := filepath.Join(b.dir, "three.json")
	return file, os.WriteFile(file, data, 0o600)
}

// sizes prints what processes have in memory, by the kernel's own account.
func (b *bench) sizes(what string, pids ...int) error {
	var resident, proportional float64
	for _, pid := range pids {
		file, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return fmt.Errorf("what is measured is what Linux shows of a process that is one's own or, as these hide theirs, to root: %w", err)
		}
		for lines := bufio.NewScanner(file); lines.Scan(); {
			var kilobytes float64
			name, rest, _ := strings.Cut(lines.Text(), ":")
			if _, err := fmt.Sscan(rest, &kilobytes); err != nil {
				continue // the first line has addresses
			}
			switch name {
			case "Rss":
				resident += kilobytes
			case "Pss":
				proportional += kilobytes
			}
		}
		_ = file.Close()
	}
	fmt.Fprintf(b.out, "%-68s %8.1f MiB %8.1f MiB\n", what, resident/1024, proportional/1024)
	return nil
}
