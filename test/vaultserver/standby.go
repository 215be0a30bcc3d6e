package vaultserver

import (
	"errors"
	"fmt"

	"github.com/hashicorp/vault/api"
)

// join starts the standby, and waits until it knows who is active.
func (s *Server) join(file string) error {
	if err := s.launch(file, s.standby); err != nil {
		return err
	}
	client, err := s.clientFor(s.StandbyAddress())
	if err != nil {
		return err
	}
	if _, err := client.Sys().RaftJoin(&api.RaftJoinRequest{LeaderAPIAddr: s.Address(), LeaderCACert: string(s.ca.pem)}); err != nil {
		return fmt.Errorf("having the standby join: %w", err)
	}
	if _, err := client.Sys().Unseal(s.key); err != nil {
		return fmt.Errorf("unsealing the standby: %w", err)
	}
	// Else it has no vote for the first ten seconds, and cannot take over.
	if err := s.write("sys/storage/raft/autopilot/configuration", map[string]any{"server_stabilization_time": "1ms"}, nil); err != nil {
		return fmt.Errorf("having the standby take over at once: %w", err)
	}
	return s.awaitNode(s.standby, "is a standby", func() error {
		if err := s.leads(s.StandbyAddress(), s.Address()); err != nil {
			return err
		}
		return s.votes(s.standby.name)
	})
}

// votes says whether a node may take over.
func (s *Server) votes(name string) error {
	configuration, err := s.client.Logical().Read("sys/storage/raft/configuration")
	if err != nil {
		return err
	}
	config, _ := configuration.Data["config"].(map[string]any)
	servers, _ := config["servers"].([]any)
	for _, server := range servers {
		one, _ := server.(map[string]any)
		if voter, _ := one["voter"].(bool); voter && one["node_id"] == name {
			return nil
		}
	}
	return errors.New("it has no vote")
}

// leads says whether the node at an address knows the one at another as the active one, and has a way to it.
func (s *Server) leads(asked, active string) error {
	client, err := s.clientFor(asked)
	if err != nil {
		return err
	}
	leader, err := client.Sys().Leader()
	if err == nil && leader.LeaderAddress != active {
		err = errors.New("it says that " + leader.LeaderAddress + " is active")
	}
	if err != nil {
		return err
	}
	client.SetToken(s.token)
	self, err := client.Auth().Token().LookupSelf()
	if err == nil && self == nil { // which is how Vault's client takes a redirect
		err = errors.New("it sends clients there")
	}
	return err
}

// StandbyAddress is that of the second server's listener with TLS, https://127.0.0.1:PORT. It has the first one answer what it is asked, or where the request has X-Vault-No-Request-Forwarding sends the client there.
func (s *Server) StandbyAddress() string { return "https://" + s.standby.secured }

// StepDown has the first server become the standby, and returns once the second one is active, and the first knows it. All addresses stay what they were.
func (s *Server) StepDown() {
	s.must(s.client.Sys().StepDown())
	s.must(s.await("is the standby", func() error { return s.leads(s.Address(), s.StandbyAddress()) }))
}

// KillActive ends the first server as a power cut does. The second one is alone then, and no majority of two.
func (s *Server) KillActive() { s.process.end() }
