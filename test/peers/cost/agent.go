package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/credential-broker/credential-broker/broker/agent/fast"
	"github.com/credential-broker/credential-broker/test/peers/internal/program"
)

// abandoned is when an agent ends that nobody has asked for so long: whoever started it has been killed.
const abandoned = 15 * time.Minute

// agentVariable is how the kubelet's entry names the agent.
const agentVariable = "CREDENTIAL_BROKER_AGENT"

// agentProcess is a running agent.
type agentProcess struct {
	socket, config string
	cmd            *exec.Cmd
	said           bytes.Buffer
}

// startAgent starts one as somebody, with a configuration, and waits until it serves.
func (b *bench) startAgent(id identity, config string) (*agentProcess, error) {
	dir, err := os.MkdirTemp(b.dir, "agent-")
	if err != nil {
		return nil, err
	}
	a := &agentProcess{socket: filepath.Join(dir, "agent.sock"), config: config}
	a.cmd = exec.Command(b.path(program.Broker), "agent", "--config", config, "--agent", a.socket, "--idle-timeout", abandoned.String())
	a.cmd.Env, a.cmd.Stderr = b.environment(id), &a.said
	if err := a.cmd.Start(); err != nil {
		return nil, err
	}
	deadline, tick := time.After(10*time.Second), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for {
		_, reason := a.ask(fast.Status)
		if reason == "" {
			b.agents = append(b.agents, a)
			return a, nil
		}
		select {
		case <-tick.C:
		case <-deadline:
			return nil, errors.Join(errors.New("the agent does not serve: "+reason), a.close())
		}
	}
}

func (a *agentProcess) ask(operation fast.Operation) (stdout []byte, reason string) {
	reply, reason, _ := fast.Ask(a.socket, fast.Request{Operation: operation, Config: a.config})
	if reason == "" && reply.Status != 0 {
		reason = string(reply.Stderr)
	}
	return reply.Stdout, reason
}

// agentStatus is what this program wants to know of an agent's status.
type agentStatus struct {
	Configurations []struct {
		Providers []struct {
			Name      string
			Processes []struct{ PID int }
		}
	}
}

// backends are the processes of its backends that run.
func (a *agentProcess) backends() (pids []int, err error) {
	data, reason := a.ask(fast.Status)
	if reason != "" {
		return nil, errors.New("ask for the agent's status: " + reason)
	}
	var status agentStatus
	if err := json.Unmarshal(data, &status); err != nil {
		return nil, err
	}
	for _, c := range status.Configurations {
		for _, p := range c.Providers {
			for _, process := range p.Processes {
				if process.PID != 0 {
					pids = append(pids, process.PID)
				}
			}
		}
	}
	return pids, nil
}

// close ends it, as systemd would.
func (a *agentProcess) close() error {
	if a == nil || a.cmd.ProcessState != nil {
		return nil
	}
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	if err := a.cmd.Wait(); err != nil {
		return fmt.Errorf("the agent: %w: %s", err, a.said.String())
	}
	return nil
}

// asking is the identity of who names an agent's socket besides.
func (id identity) asking(socket string) identity {
	id.Env = append(slices.Clone(id.Env), agentVariable+"="+socket)
	return id
}
