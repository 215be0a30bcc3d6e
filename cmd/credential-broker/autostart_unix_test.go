//go:build unix

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
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
	if err := os.WriteFile(program, []byte("#!/bin/sh\nenv >$OUT\n"), 0o700); err != nil { //nolint:gosec // it is to be run
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
	if err := os.Chmod(dir, 0o700); err != nil { //nolint:gosec // as the directory of a socket
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
