//go:build linux

// Command providers shows that every backend does its job under the agent's systemd unit: it runs in the system that tools/package/try.sh boots, as root, where all of it is thrown away afterwards.
// It stands up what credentials come from (the fake cloud, a real Vault server, DNS, providers of the kubelet's), writes a configuration with a provider for each, and asks the agent for an image of
// each, twice: with the unit as it is, and with one in which a system call that is filtered kills who makes it. What it gets is tried where it is from.
//
//	providers -vault FILE
//
// It is also two credential providers of the kubelet's itself, "providers provide" and "providers mount": see provide.go.
package main

import (
	"flag"
	"fmt"
	"os"
)

func main() {
	vault := flag.String("vault", "", "the Vault server's executable; without it Vault is left out, and said to be")
	flag.Parse()
	run := func() error { return try(*vault) }
	switch flag.Arg(0) {
	case "provide":
		run = func() error { return provide(makesCode) }
	case "mount":
		run = func() error { return provide(mounts) }
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// try stands the sources up, and has both rounds.
func try(vault string) error {
	s, err := standUp(vault)
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.configure(); err != nil {
		return err
	}
	if err := s.round("the unit as it is", ""); err != nil {
		return err
	}
	return s.round("what the filter does not let through kills", "[Service]\nSystemCallErrorNumber=kill\n")
}
