package vaultserver

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"
)

// Policy writes an ACL policy (https://developer.hashicorp.com/vault/docs/concepts/policies).
func (s *Server) Policy(name, hcl string) { s.must(s.client.Sys().PutPolicy(name, hcl)) }

// Token is a new token with policies, a child of the root token. settings are those of auth/token/create: ttl, period, num_uses, type and so on; nil: none.
func (s *Server) Token(policies []string, settings map[string]any) string {
	data := map[string]any{"policies": policies, "no_default_policy": false}
	maps.Copy(data, settings)
	made, err := s.client.Logical().Write("auth/token/create", data)
	s.must(err)
	return made.Auth.ClientToken
}

// KV1 enables a KV engine of the first version.
func (s *Server) KV1(mount string) {
	s.must(s.client.Sys().Mount(mount, &api.MountInput{Type: "kv", Options: map[string]string{"version": "1"}}))
}

// KV2 enables a KV engine of the second version, and returns once it has made itself ready, which Vault does not wait for.
func (s *Server) KV2(mount string) {
	s.must(s.client.Sys().Mount(mount, &api.MountInput{Type: "kv", Options: map[string]string{"version": "2"}}))
	s.must(s.await("has "+mount+" ready", func() error {
		_, err := s.client.Logical().Read(path.Join(mount, "config"))
		return err
	}))
}

// Put writes a secret to a KV engine of either version.
func (s *Server) Put(mount, secret string, fields map[string]any) {
	version, err := s.kvVersion(mount)
	s.must(err)
	if version == "2" {
		_, err = s.client.KVv2(mount).Put(s.done, secret, fields)
	} else {
		err = s.client.KVv1(mount).Put(s.done, secret, fields)
	}
	s.must(err)
}

func (s *Server) kvVersion(mount string) (string, error) {
	all, err := s.client.Sys().ListMounts()
	if err != nil {
		return "", err
	}
	m := all[mount+"/"]
	if m == nil || m.Type != "kv" {
		return "", fmt.Errorf("there is no KV engine at %q", mount)
	}
	return m.Options["version"], nil
}

// enable makes sure that there is an auth method of a type at a mount.
func (s *Server) enable(mount, kind string) error {
	all, err := s.client.Sys().ListAuth()
	if err != nil {
		return err
	}
	if m := all[mount+"/"]; m != nil {
		if m.Type != kind {
			return fmt.Errorf("at auth/%s there is %s, not %s", mount, m.Type, kind)
		}
		return nil
	}
	return s.client.Sys().EnableAuthWithOptions(mount, &api.EnableAuthOptions{Type: kind})
}

// write writes settings to a path; those of changes win.
func (s *Server) write(where string, settings, changes map[string]any) error {
	all := maps.Clone(settings)
	maps.Copy(all, changes)
	_, err := s.client.Logical().Write(where, all)
	return err
}

// AppRole enables auth/approle at a mount unless it is there, and makes a role in it. settings are the role's own (https://developer.hashicorp.com/vault/api-docs/auth/approle): token_ttl, secret_id_num_uses and so on;
// nil: none. The secret ID is empty where bind_secret_id is false.
func (s *Server) AppRole(mount, role string, policies []string, settings map[string]any) (roleID, secretID string) {
	s.must(s.enable(mount, "approle"))
	where := "auth/" + mount + "/role/" + role
	s.must(s.write(where, map[string]any{"token_policies": policies}, settings))
	read, err := s.client.Logical().Read(where + "/role-id")
	s.must(err)
	roleID, _ = read.Data["role_id"].(string)
	if bound, ok := settings["bind_secret_id"].(bool); ok && !bound {
		return roleID, ""
	}
	return roleID, s.SecretID(mount, role)
}

// SecretID is a new secret ID of an AppRole.
func (s *Server) SecretID(mount, role string) string {
	made, err := s.client.Logical().Write("auth/"+mount+"/role/"+role+"/secret-id", nil)
	s.must(err)
	secretID, _ := made.Data["secret_id"].(string)
	return secretID
}

// Cert enables auth/cert at a mount unless it is there, and makes a role in it for ClientCA's certificates with the common name role.
func (s *Server) Cert(mount, role string, policies []string) {
	s.must(s.enable(mount, "cert"))
	s.must(s.write("auth/"+mount+"/certs/"+role, map[string]any{"certificate": string(s.clientCA.pem), "allowed_common_names": []string{role}, "token_policies": policies}, nil))
}

// RateLimit makes a quota: so many requests in an interval to a path, or to everything where it is empty (https://developer.hashicorp.com/vault/api-docs/system/rate-limit-quotas).
func (s *Server) RateLimit(name, where string, rate float64, interval time.Duration) {
	s.must(s.write("sys/quotas/rate-limit/"+name, map[string]any{"path": where, "rate": rate, "interval": interval.String()}, nil))
}

// Leases are the ids of the leases whose ids begin with prefix, that of an engine's role for example: "rabbitmq/creds/pull".
func (s *Server) Leases(prefix string) []string {
	all, err := s.leases(strings.Trim(prefix, "/") + "/")
	s.must(err)
	return all
}

func (s *Server) leases(folder string) ([]string, error) {
	names, err := s.list("sys/leases/lookup/" + folder)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, name := range names {
		if !strings.HasSuffix(name, "/") {
			all = append(all, folder+name)
			continue
		}
		below, err := s.leases(folder + name)
		if err != nil {
			return nil, err
		}
		all = append(all, below...)
	}
	return all, nil
}

// Tokens is how many tokens there are that have an accessor, the root token among them. Batch tokens have none.
func (s *Server) Tokens() int {
	all, err := s.list("auth/token/accessors")
	s.must(err)
	return len(all)
}

// list is empty where there is nothing.
func (s *Server) list(where string) ([]string, error) {
	secret, err := s.client.Logical().List(where)
	var no *api.ResponseError
	if errors.As(err, &no) && no.StatusCode == http.StatusNotFound || err == nil && secret == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []string
	keys, _ := secret.Data["keys"].([]any)
	for _, key := range keys {
		if name, ok := key.(string); ok {
			all = append(all, name)
		}
	}
	return all, nil
}
