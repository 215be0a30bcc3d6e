//go:build linux

package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/test/vaultserver"
)

// How long it takes from a password's change, in Vault and in the registry, until the next pod pulls with the new one.
func TestStandaloneAPodPullsWithWhatWasRotatedInVault(t *testing.T) {
	for name, test := range map[string]struct{ agent, keep, forget bool }{
		"without an agent":                    {},
		"with an agent that keeps nothing":    {agent: true},
		"with an agent that keeps, forgotten": {agent: true, keep: true, forget: true},
	} {
		t.Run(name, func(t *testing.T) {
			n := New(t)
			registry := n.Registry(t, map[string]string{"robot": "old"})
			vault := vaultserver.New(t, vaultserver.Options{})
			vault.KV2("secret")
			put := func(password string) {
				vault.Put("secret", "registries/"+registry.Host, map[string]any{"username": "robot", "password": password})
			}
			put("old")
			vault.Policy("pull", `path "secret/data/registries/*" { capabilities = ["read"] }`)
			roleID, secretID := vault.AppRole("approle", "nodes", []string{"pull"}, nil)
			settings, keep := fmt.Sprintf("log: {file: %s}\n", n.path("logs/broker.log")), ""
			if test.agent {
				settings += fmt.Sprintf("agent: {socket: %s}\n", n.path("run/agent.sock"))
				if err := os.MkdirAll(n.path("run"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if test.keep {
				keep = "  defaultCacheDuration: 5m\n"
			}
			n.Configure(t, settings+fmt.Sprintf(`providers:
- name: vault
  matchImages: [%q]
%s  config:
    address: %s
    caFile: %s
    auth: {method: approle, roleID: %s, secretIDFile: %s}
    secrets:
    - path: secret/registries/{host}
`, registry.Host, keep, vault.Address(), vault.CAFile(), roleID, n.Write(t, "etc/credential-broker/secret-id", secretID)))
			n.Enter(t)
			n.StartKubelet(t)
			if test.agent {
				n.StartAgent(t)
			}
			n.StaticPod(t, "before", registry.Push(t, "team/before"))
			n.Running(t, "default", "before")
			image := registry.Push(t, "team/after")

			registry.Passwords(t, map[string]string{"robot": "new"})
			put("new")
			rotated, from := time.Now(), len(n.Kubelet.Log())
			if test.forget {
				t.Log(strings.TrimSpace(n.Broker(t, "forget", "--all")))
			}
			n.StaticPod(t, "after", image)
			n.Running(t, "default", "after")
			running := time.Since(rotated)
			refused := strings.Count(n.Kubelet.Log()[from:], "with ErrImagePull")
			if !test.keep && refused != 0 {
				t.Errorf("%d pulls were refused, though nothing was kept", refused)
			}
			log, err := os.ReadFile(filepath.Clean(n.path("logs/broker.log")))
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSpace(string(log)), "\n")
			t.Logf("from the change in Vault to Running: %.1f s, with %d refused pulls; the broker's last line: %s", running.Seconds(), refused, lines[len(lines)-1])
			for line := range strings.Lines(n.Kubelet.Log()[from:]) {
				if strings.Contains(line, "after-"+Name) && (strings.Contains(line, "startup duration") || strings.Contains(line, "Pulling")) {
					t.Logf("the kubelet: %s", strings.TrimSpace(line))
				}
			}
		})
	}
}
