package vaultserver

import (
	"crypto/x509"
	"encoding/pem"
	"strings"

	"github.com/credential-broker/credential-broker/test/cloud"
)

// JWT enables auth/jwt at a mount unless it is there, for the tokens of an issuer. With a cloud the server asks the issuer for its keys, also for those that it makes later; without, it has those that the issuer
// publishes now.
func (s *Server) JWT(mount string, issuer *cloud.Issuer) {
	s.must(s.enable(mount, "jwt"))
	config := map[string]any{"bound_issuer": issuer.URL(), "jwt_supported_algs": []string{"RS256", "ES256", "ES384"}}
	if s.cloud != nil {
		config["jwks_url"] = strings.TrimSuffix(issuer.URL(), "/") + "/.well-known/jwks.json"
	} else {
		keys, err := pemKeys(issuer)
		s.must(err)
		config["jwt_validation_pubkeys"] = keys
	}
	s.must(s.write("auth/"+mount+"/config", config, nil))
}

// pemKeys are the keys that an issuer publishes.
func pemKeys(issuer *cloud.Issuer) ([]string, error) {
	var all []string
	for _, key := range issuer.Keys().Keys {
		der, err := x509.MarshalPKIXPublicKey(key.Key)
		if err != nil {
			return nil, err
		}
		all = append(all, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})))
	}
	return all, nil
}

// JWTRole makes a role of auth/jwt. settings are the role's own (https://developer.hashicorp.com/vault/api-docs/auth/jwt); what they leave out: tokens for the audience "vault", their subjects the users' names.
func (s *Server) JWTRole(mount, role string, settings map[string]any) {
	s.must(s.write("auth/"+mount+"/role/"+role, map[string]any{"role_type": "jwt", "user_claim": "sub", "bound_audiences": []string{"vault"}}, settings))
}

// Kubernetes enables auth/kubernetes at a mount unless it is there, before the API server of a cluster whose service accounts' tokens are the issuer's. The server shows the API server a token of its own.
func (s *Server) Kubernetes(mount string, issuer *cloud.Issuer) *APIServer {
	a := s.startAPIServer(issuer)
	s.must(s.enable(mount, "kubernetes"))
	s.must(s.write("auth/"+mount+"/config", map[string]any{
		"kubernetes_host": a.address, "kubernetes_ca_cert": string(s.ca.pem), "token_reviewer_jwt": a.Token("vault", "reviewer", nil), "disable_local_ca_jwt": true,
	}, nil))
	return a
}

// KubernetesRole makes a role of auth/kubernetes. settings are the role's own (https://developer.hashicorp.com/vault/api-docs/auth/kubernetes); what they leave out: any service account of any namespace.
func (s *Server) KubernetesRole(mount, role string, settings map[string]any) {
	s.must(s.write("auth/"+mount+"/role/"+role, map[string]any{"bound_service_account_names": []string{"*"}, "bound_service_account_namespaces": []string{"*"}}, settings))
}
