package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// configuration: %[1]s is the directory, %[2]s the address of the metrics.
const configuration = `apiVersion: credential-broker.io/v1alpha1
kind: BrokerConfig
agent: {socket: %[1]s/run/agent.sock, metrics: "%[2]s"}
providers:
- name: cloud      # one answer for its registry, as most clouds have it
  backend: stub
  matchImages: [cloud.example]
  config: {latency: 60ms, lifetime: 40s, registry: true, down: %[1]s/cloud.down}
- name: vault      # an answer for each image, and slow
  backend: stub
  matchImages: [vault.example]
  config: {latency: 300ms, lifetime: 50s, crash: %[1]s/vault.crash}
- name: team
  backend: stub
  matchImages: [team.example]
  config: {latency: 20ms, lifetime: 45s}
- name: partner    # has no right there
  backend: stub
  matchImages: [partner.example]
  config: {latency: 90ms, lifetime: 1m, refuse: true}
`

// node is an agent, and whoever asks it.
type node struct {
	dir, program, socket, metrics string
	good                          string
	agent                         *exec.Cmd
}

func startNode(ctx context.Context, repo, dir string) (*node, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	n := &node{dir: dir, program: filepath.Join(dir, "bin/credential-broker"), socket: filepath.Join(dir, "run/agent.sock"), metrics: l.Addr().String()}
	_ = l.Close()
	// A copy: the broker runs nothing that others can write, and a clone may lie anywhere.
	if err := os.CopyFS(filepath.Join(dir, "bin"), os.DirFS(filepath.Join(repo, "bin"))); err != nil {
		return nil, fmt.Errorf("%w: run `make build` first", err)
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(dir, "bin/backends/credential-backend-stub"), "./stub")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return nil, fmt.Errorf("build the backend: %w", err)
	}
	n.good = fmt.Sprintf(configuration, dir, n.metrics)
	if err := n.configure(n.good); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "agent.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	n.agent = exec.Command(n.program, "agent", "--config", n.config())
	n.agent.Stderr = log
	return n, n.agent.Start()
}

func (n *node) config() string { return filepath.Join(n.dir, "config.yaml") }

// configure puts a configuration in place as a whole.
func (n *node) configure(text string) error {
	if err := os.WriteFile(n.config()+".new", []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(n.config()+".new", n.config())
}

// stop ends the agent in good order.
func (n *node) stop() {
	_ = n.agent.Process.Signal(os.Interrupt)
	_ = n.agent.Wait()
}

// pull runs the exec plugin as the kubelet does.
func (n *node) pull(ctx context.Context, image string) {
	cmd := exec.CommandContext(ctx, n.program, "--config", n.config())
	cmd.Env = append(os.Environ(), "CREDENTIAL_BROKER_AGENT="+n.socket)
	cmd.Stdin = strings.NewReader(`{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderRequest","image":"` + image + `"}`)
	cmd.Stdout, cmd.Stderr = &bytes.Buffer{}, &bytes.Buffer{}
	_ = cmd.Run() // some are to fail
}

// pace is the mean time between two pulls.
const pace = 90 * time.Millisecond

// load has pods pull for a while, and things go wrong: the cloud is down, a backend crashes, somebody breaks the configuration and mends it.
func (n *node) load(ctx context.Context, length time.Duration) error {
	random := rand.New(rand.NewPCG(5, 5))
	events := []struct {
		at float64 // of the whole
		do func() error
	}{
		{0.30, func() error { return os.WriteFile(filepath.Join(n.dir, "cloud.down"), nil, 0o600) }},
		{0.50, func() error { return os.Remove(filepath.Join(n.dir, "cloud.down")) }},
		{0.58, n.crash},
		{0.64, n.crash},
		{0.70, n.crash},
		{0.78, func() error { return n.configure(n.good + "- {name: half-typed}\n") }},
		{0.88, func() error { return n.configure(strings.Replace(n.good, "20ms", "30ms", 1)) }},
	}
	var pulls sync.WaitGroup
	defer pulls.Wait()
	began := time.Now()
	for {
		for len(events) > 0 && time.Since(began) >= time.Duration(events[0].at*float64(length)) {
			if err := events[0].do(); err != nil {
				return err
			}
			events = events[1:]
		}
		wait := time.NewTimer(time.Duration(random.ExpFloat64() * float64(pace)))
		select {
		case <-wait.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		if time.Since(began) > length {
			return nil
		}
		image := someImage(random)
		pulls.Go(func() { n.pull(ctx, image) })
	}
}

func (n *node) crash() error { return os.WriteFile(filepath.Join(n.dir, "vault.crash"), nil, 0o600) }

func someImage(random *rand.Rand) string {
	switch p := random.Float64(); {
	case p < 0.5:
		return fmt.Sprintf("cloud.example/app-%d", random.IntN(60))
	case p < 0.75:
		return fmt.Sprintf("vault.example/app-%d", random.IntN(25))
	case p < 0.90:
		return fmt.Sprintf("team.example/app-%d", random.IntN(8))
	case p < 0.94:
		return "partner.example/app"
	default:
		return fmt.Sprintf("public.example/app-%d", random.IntN(9))
	}
}
