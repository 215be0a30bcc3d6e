//go:build unix

package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/broker/agent"
	"github.com/credential-broker/credential-broker/broker/config"
)

func TestAnAgentDoesNotSpeakForTheKubelet(t *testing.T) {
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		t.Setenv(name, "the-kubelets")
	}
	t.Setenv("NOTIFY_SOCKETS", "a-backends")
	t.Setenv("AWS_REGION", "a-backends")
	dir := t.TempDir()
	t.Setenv("OUT", filepath.Join(dir, "out"))
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("#!/bin/sh\nenv >$OUT\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	ended, err := startDetached(program, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	detached, err := os.ReadFile(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path, err := writeEnvironment(dir)
	if err != nil {
		t.Fatal(err)
	}
	unit, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, environment := range map[string]string{"detached": string(detached), "in a unit": string(unit)} {
		if strings.Contains(environment, "the-kubelets") || strings.Count(environment, "=a-backends") != 2 {
			t.Errorf("%s: %d variables of the kubelet's unit, and %d of 2 for backends", name, strings.Count(environment, "=the-kubelets"), strings.Count(environment, "=a-backends"))
		}
	}
}

func TestWhoWaitsForAnothersStart(t *testing.T) {
	for name, serves := range map[string]bool{"hears that it has come off": true, "hears that it has failed": false} {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "cb-")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(dir) })
			cfg := &config.Config{}
			cfg.Agent.Socket = filepath.Join(dir, "agent.sock")
			mine, done, err := agent.BeginStart(cfg.Agent.Socket)
			if err != nil || !mine {
				t.Fatal(mine, err)
			}
			const waiters = 8
			started := make(chan error, waiters)
			for range waiters {
				go func() { started <- startAgent(t.Context(), &options{}, cfg) }()
			}
			patience, cancel := context.WithTimeout(t.Context(), (startPatience+managerPatience)/2)
			defer cancel()
			select {
			case err := <-started:
				t.Fatalf("before it is decided: %v", err)
			case <-time.After(100 * time.Millisecond): // they have looked several times
			}
			if serves {
				listener, err := net.Listen("unix", cfg.Agent.Socket)
				if err != nil {
					t.Fatal(err)
				}
				defer listener.Close()
			}
			done()
			for range waiters {
				select {
				case err := <-started:
					if serves != (err == nil) || !serves && !strings.Contains(err.Error(), "another request tried, in vain") {
						t.Errorf("%v", err)
					}
				case <-patience.Done():
					t.Fatal("somebody waits on")
				}
			}
		})
	}
}
