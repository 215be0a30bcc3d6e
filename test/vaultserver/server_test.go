package vaultserver

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/credential-broker/credential-broker/test/cloud"
)

// refusal is what Vault said: its HTTP status and its errors; 0 where it was no refusal of Vault.
func refusal(err error) (status int, text string) {
	if no, ok := errors.AsType[*api.ResponseError](err); ok {
		return no.StatusCode, strings.Join(no.Errors, "; ")
	}
	return 0, ""
}

// wantRefusal says that Vault has refused something with a status and a text with these words in it.
func wantRefusal(t *testing.T, err error, status int, words string) {
	t.Helper()
	if got, text := refusal(err); got != status || !strings.Contains(text, words) {
		t.Errorf("Vault says %d %q, not %d with %q (%v)", got, text, status, words, err)
	}
}

// login logs in at a mount.
func (s *Server) login(mount string, data map[string]any) (*api.Secret, error) {
	return s.As("").Logical().Write("auth/"+mount+"/login", data)
}

const readAll = `path "*" { capabilities = ["read"] }`

func TestTheServerIsUnsealed(t *testing.T) {
	s := New(t, Options{})
	for _, address := range []string{s.Address(), s.PlainAddress(), s.Front().Address()} {
		client, err := s.clientFor(address)
		if err != nil {
			t.Fatal(err)
		}
		health, err := client.Sys().Health()
		if err != nil || health.Sealed || health.Standby || !health.Initialized || health.Version != "1.19.5" {
			t.Errorf("%s: %+v, %v", address, health, err)
		}
	}
	self, err := s.API().Auth().Token().LookupSelf()
	if err != nil || self.Data["display_name"] != "root" {
		t.Errorf("the root token: %+v, %v", self, err)
	}
}

func TestSealed(t *testing.T) {
	s := New(t, Options{})
	s.KV2("secret")
	s.Put("secret", "a", map[string]any{"password": "p"})
	s.Seal()
	_, err := s.API().Logical().Read("secret/data/a")
	wantRefusal(t, err, http.StatusServiceUnavailable, "Vault is sealed")
	s.Unseal()
	if _, err := s.API().Logical().Read("secret/data/a"); err != nil {
		t.Errorf("after it was unsealed: %v", err)
	}
}

func TestBothVersionsOfKV(t *testing.T) {
	s := New(t, Options{})
	s.KV1("old")
	s.KV2("new")
	for _, mount := range []string{"old", "new"} {
		s.Put(mount, "a/b", map[string]any{"username": "u", "password": mount})
	}
	one, err := s.API().KVv1("old").Get(t.Context(), "a/b")
	if err != nil || one.Data["password"] != "old" {
		t.Errorf("KV v1: %+v, %v", one, err)
	}
	two, err := s.API().KVv2("new").Get(t.Context(), "a/b")
	if err != nil || two.Data["password"] != "new" || two.VersionMetadata.Version != 1 {
		t.Errorf("KV v2: %+v, %v", two, err)
	}
}

func TestPolicies(t *testing.T) {
	s := New(t, Options{})
	s.KV2("secret")
	s.Put("secret", "mine", map[string]any{"a": "b"})
	s.Put("secret", "theirs", map[string]any{"a": "b"})
	s.Policy("mine", `path "secret/data/mine" { capabilities = ["read"] }`)
	client := s.As(s.Token([]string{"mine"}, map[string]any{"ttl": "1h"}))
	if _, err := client.Logical().Read("secret/data/mine"); err != nil {
		t.Error(err)
	}
	_, err := client.Logical().Read("secret/data/theirs")
	wantRefusal(t, err, http.StatusForbidden, "permission denied")
}

func TestAppRole(t *testing.T) {
	s := New(t, Options{})
	s.Policy("reader", readAll)
	roleID, secretID := s.AppRole("approle", "puller", []string{"reader"}, map[string]any{"token_ttl": "20m"})
	secret, err := s.login("approle", map[string]any{"role_id": roleID, "secret_id": secretID})
	if err != nil || secret.Auth.LeaseDuration != 1200 {
		t.Errorf("a login: %+v, %v", secret, err)
	}
	_, err = s.login("approle", map[string]any{"role_id": roleID, "secret_id": "another"})
	wantRefusal(t, err, http.StatusBadRequest, "invalid role or secret ID")
	open, none := s.AppRole("approle", "open", []string{"reader"}, map[string]any{"bind_secret_id": false, "secret_id_bound_cidrs": "127.0.0.0/8"})
	if _, err := s.login("approle", map[string]any{"role_id": open}); err != nil || none != "" {
		t.Errorf("a role without secret ID: %q, %v", none, err)
	}
}

func TestJWT(t *testing.T) {
	for name, withCloud := range map[string]bool{"keys from the issuer": true, "keys in the configuration": false} {
		t.Run(name, func(t *testing.T) {
			c := cloud.New(t)
			issuer := c.AddIssuer("https://issuer.example")
			o := Options{}
			if withCloud {
				o.Cloud = c
			}
			s := New(t, o)
			s.JWT("jwt", issuer)
			s.JWTRole("jwt", "puller", map[string]any{"bound_subject": "system:serviceaccount:shop:web"})
			good := issuer.Token(map[string]any{"sub": "system:serviceaccount:shop:web", "aud": "vault"})
			if _, err := s.login("jwt", map[string]any{"role": "puller", "jwt": good}); err != nil {
				t.Error(err)
			}
			for token, words := range map[string]string{
				issuer.Token(map[string]any{"sub": "system:serviceaccount:shop:web", "aud": "other"}):                                 "invalid audience (aud) claim",
				issuer.Token(map[string]any{"sub": "system:serviceaccount:shop:db", "aud": "vault"}):                                  "invalid subject (sub) claim",
				issuer.Token(map[string]any{"sub": "system:serviceaccount:shop:web", "aud": "vault", "exp": time.Now().Unix() - 600}): "token is expired",
				c.AddIssuer("https://other.example").Token(map[string]any{"sub": "x", "aud": "vault"}):                                "error validating token",
				issuer.Token(map[string]any{"iss": "https://other.example", "sub": "system:serviceaccount:shop:web", "aud": "vault"}): "error validating token",
			} {
				_, err := s.login("jwt", map[string]any{"role": "puller", "jwt": token})
				wantRefusal(t, err, http.StatusBadRequest, words)
			}
			issuer.Rotate()
			_, err := s.login("jwt", map[string]any{"role": "puller", "jwt": issuer.Token(map[string]any{"sub": "system:serviceaccount:shop:web", "aud": "vault"})})
			if (err == nil) != withCloud {
				t.Errorf("with a new key: %v", err)
			}
		})
	}
}

func TestRateLimit(t *testing.T) {
	s := New(t, Options{})
	s.KV1("kv")
	s.Put("kv", "a", map[string]any{"b": "c"})
	s.RateLimit("few", "kv", 1, time.Hour)
	client := s.API()
	if _, err := client.Logical().Read("kv/a"); err != nil {
		t.Error(err)
	}
	_, err := client.Logical().Read("kv/a")
	wantRefusal(t, err, http.StatusTooManyRequests, "rate limit quota exceeded")
}
