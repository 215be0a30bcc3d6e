package vaultserver

import (
	"net/http"
	"testing"
)

func TestStandby(t *testing.T) {
	s := New(t, Options{Standby: true})
	s.KV1("kv")
	s.Put("kv", "a", map[string]any{"password": "p"})
	standby, err := s.clientFor(s.StandbyAddress())
	if err != nil {
		t.Fatal(err)
	}
	standby.SetToken(s.RootToken())
	if health, err := standby.Sys().Health(); err != nil || !health.Standby || health.Sealed {
		t.Errorf("%+v, %v", health, err)
	}
	if secret, err := standby.Logical().Read("kv/a"); err != nil || secret == nil || secret.Data["password"] != "p" {
		t.Errorf("what is sent on: %+v, %v", secret, err)
	}
	redirected := func(from, to string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, from+"/v1/kv/a", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Vault-Token", s.RootToken())
		r.Header.Set("X-Vault-No-Request-Forwarding", "true")
		w, err := standby.CloneConfig().HttpClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Body.Close()
		if got := w.Header.Get("Location"); w.StatusCode != http.StatusTemporaryRedirect || got != to+"/v1/kv/a" {
			t.Errorf("%d to %q", w.StatusCode, got)
		}
	}
	redirected(s.StandbyAddress(), s.Address())
	s.StepDown()
	if health, err := standby.Sys().Health(); err != nil || health.Standby {
		t.Errorf("after the other one has stepped down: %+v, %v", health, err)
	}
	redirected(s.Address(), s.StandbyAddress())
	if secret, err := s.API().Logical().Read("kv/a"); err != nil || secret == nil || secret.Data["password"] != "p" {
		t.Errorf("what is sent back: %+v, %v", secret, err)
	}
}
