package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/backendtest"
	"github.com/credential-broker/credential-broker/test/cloud"
	"github.com/credential-broker/credential-broker/test/vaultserver"
)

const host = "harbor.example"

// TestConformance judges the built backend, before a real Vault: with the node's login and a kept secret, with one that is made on demand, and with a pod's own login.
func TestConformance(t *testing.T) {
	executable := filepath.Join(t.TempDir(), "credential-backend-vault")
	if runtime.GOOS == "windows" {
		executable += ".exe"
	}
	if out, err := exec.Command("go", "build", "-o", executable, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s := vaultserver.New(t, vaultserver.Options{})
	s.KV2("secret")
	s.Put("secret", "registries/"+host, map[string]any{"username": "robot", "password": "pw-of-the-robot"})
	mq := s.RabbitMQ("rabbitmq")
	mq.Role("pull", nil)
	mq.Lease(time.Hour, 24*time.Hour)
	s.Policy("puller", `path "secret/data/registries/*" { capabilities = ["read"] } path "rabbitmq/creds/pull" { capabilities = ["read"] }`)
	roleID, secretID := s.AppRole("approle", "node", []string{"puller"}, nil)
	file := filepath.Join(t.TempDir(), "secret-id")
	if err := os.WriteFile(file, []byte(secretID), 0o600); err != nil {
		t.Fatal(err)
	}
	issuer := cloud.New(t).AddIssuer("https://kubernetes.default.svc")
	s.JWT("jwt", issuer)
	s.JWTRole("jwt", "puller", map[string]any{"token_policies": []string{"puller"}})
	token := issuer.Token(map[string]any{
		"sub": "system:serviceaccount:team-a:builder", "aud": []string{"vault"},
		"kubernetes.io": map[string]any{"namespace": "team-a", "serviceaccount": map[string]any{"name": "builder"}},
	})
	appRole := map[string]any{"method": "approle", "roleID": roleID, "secretIDFile": file}
	for name, o := range map[string]backendtest.Options{
		"a kept secret":             {Config: settings(s, appRole, "secret/registries/{host}"), Secrets: []backends.Secret{backends.Secret(secretID), "pw-of-the-robot"}},
		"a secret that is made":     {Config: settings(s, appRole, "rabbitmq/creds/pull"), Secrets: []backends.Secret{backends.Secret(secretID)}},
		"a pod that logs in itself": {Config: settings(s, map[string]any{"method": "jwt", "role": "puller"}, "secret/registries/{host}"), Token: backends.Secret(token), Secrets: []backends.Secret{"pw-of-the-robot"}},
	} {
		t.Run(name, func(t *testing.T) {
			o.Executable, o.Image = executable, host+"/team/app"
			o.Env = []string{"HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH")}
			backendtest.Run(t, o)
		})
	}
}

func settings(s *vaultserver.Server, auth map[string]any, path string) map[string]any {
	return map[string]any{"address": s.Address(), "caFile": s.CAFile(), "auth": auth, "secrets": []any{map[string]any{"path": path}}}
}
