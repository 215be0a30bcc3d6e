package vaultserver

import (
	"errors"
	"net/http"
	"testing"
	"time"
)

func (r *RabbitMQ) gone(name string) error {
	if _, ok := r.Users()[name]; ok {
		return errors.New("the user is still there")
	}
	return nil
}

func TestRabbitMQ(t *testing.T) {
	s := New(t, Options{})
	r := s.RabbitMQ("rabbitmq")
	r.Role("pull", nil)
	r.Lease(20*time.Minute, time.Hour)
	s.Policy("pull", `path "rabbitmq/creds/pull" { capabilities = ["read"] }`)
	tokens := s.Tokens()
	token := s.Token([]string{"pull"}, map[string]any{"ttl": "2h"})
	if got := s.Tokens() - tokens; got != 1 {
		t.Errorf("%d new tokens", got)
	}
	first, err := s.As(token).Logical().Read("rabbitmq/creds/pull")
	if err != nil {
		t.Fatal(err)
	}
	name, _ := first.Data["username"].(string)
	if first.LeaseDuration != 1200 || !first.Renewable || name == "" || r.Users()[name] != first.Data["password"] {
		t.Errorf("%+v; users: %q", first, r.Users())
	}
	if leases := s.Leases("rabbitmq"); len(leases) != 1 || leases[0] != first.LeaseID {
		t.Errorf("leases: %q", leases)
	}
	if renewed, err := s.As(token).Sys().Renew(first.LeaseID, 60); err != nil || renewed.LeaseDuration != 60 {
		t.Errorf("renewed: %+v, %v", renewed, err)
	}
	s.must(s.API().Sys().Revoke(first.LeaseID))
	s.must(s.await("has revoked a lease", func() error { return r.gone(name) }))
	if _, err := s.As(token).Logical().Read("rabbitmq/creds/pull"); err != nil {
		t.Fatal(err)
	}
	// What a token has asked for ends with it.
	s.must(s.API().Auth().Token().RevokeTree(token))
	s.must(s.await("has revoked a token's lease", func() error {
		for name := range r.Users() {
			return r.gone(name)
		}
		return nil
	}))
	if leases := s.Leases("rabbitmq"); len(leases) != 0 {
		t.Errorf("leases that are left: %q", leases)
	}
	_, err = s.API().Logical().Read("rabbitmq/creds/none")
	wantRefusal(t, err, http.StatusBadRequest, "unknown role: none")
}

// The lease is not renewed beyond its longest, and the user is gone with it.
func TestLeasesEnd(t *testing.T) {
	s := New(t, Options{})
	r := s.RabbitMQ("rabbitmq")
	r.Role("pull", nil)
	r.Lease(time.Second, 2*time.Second)
	secret, err := s.API().Logical().Read("rabbitmq/creds/pull")
	if err != nil {
		t.Fatal(err)
	}
	name, _ := secret.Data["username"].(string)
	s.must(s.await("has ended a lease", func() error { return r.gone(name) }))
	if _, err := s.API().Sys().Renew(secret.LeaseID, 60); err == nil {
		t.Error("a lease that has ended was renewed")
	}
}
