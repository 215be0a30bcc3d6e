package docs

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/credential-broker/credential-broker/test/cloud"
	"github.com/credential-broker/credential-broker/test/vaultserver"
)

// withVault are the documents whose commands meet a Vault server: each has one of its own, in which nothing is set up yet.
var withVault = []string{"docs/backends/vault.md", "docs/backends/vault-harbor-kubeadm.md", "docs/backends/vault-pods.md"}

const (
	// vaultShown and apiServerShown are the addresses of Vault and of a cluster's API server in the documents, and nodesShown the network of the nodes.
	vaultShown, apiServerShown, nodesShown = "https://vault.example:8200", "https://10.0.0.1:6443", "10.20.0.0/16"
	// tokensIssuer is that of the cluster's service accounts, as kubeadm sets it.
	tokensIssuer = "https://kubernetes.default.svc.cluster.local"
)

// addVault gives a document a Vault server, its CLI with an administrator's token, and of a cluster what Vault needs to know: the public key of its service accounts' tokens, an API server that reviews them, and `kubectl create token`.
func (s *sandbox) addVault(t *testing.T) {
	t.Helper()
	cli, err := vaultserver.Executable()
	if err != nil {
		t.Fatal(err)
	}
	server := vaultserver.New(t, vaultserver.Options{})
	issuer := cloud.New(t).AddIssuer(tokensIssuer)
	api := server.Kubernetes("another-cluster", issuer)
	s.stands = [][2]string{{vaultShown, server.Address()}, {apiServerShown, api.Address()}, {nodesShown, "127.0.0.0/8"}}

	ca, err := os.ReadFile(server.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKIXPublicKey(issuer.Keys().Keys[0].Key)
	if err != nil {
		t.Fatal(err)
	}
	// The cluster's CA is also that of its API server.
	clusterCA := append(slices.Clone(server.ClientCA()), ca...)
	cert, certKey := server.ClientCertificate("system:node:node-1")
	files := map[string][]byte{
		"etc/ssl/vault-ca.pem": ca, "etc/kubernetes/pki/ca.crt": clusterCA, "etc/kubernetes/pki/sa.pub": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: key}),
		"var/lib/kubelet/pki/kubelet-client-current.pem": append(cert, certKey...),
	}
	for _, account := range [][2]string{{"team-a", "builder"}, {"team-b", "builder"}, {"default", "other"}, {"vault", "reviewer"}} {
		for _, audience := range []string{"vault", tokensIssuer} {
			files[filepath.Join("home/tokens", account[0], account[1], filepath.Base(audience))] = []byte(api.Token(account[0], account[1], map[string]any{"aud": []string{audience}}))
		}
	}
	for name, content := range files {
		path := filepath.Join(s.root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	setUp := fmt.Sprintf(`unset ${!VAULT_@}; PATH=%q:$PATH
export VAULT_ADDR=%q VAULT_CACERT=%q VAULT_TOKEN=%q VAULT_CLI_NO_COLOR=1
kubectl() {
  case "$1 $2 $4" in
  "create token -n") cat "$HOME/tokens/$5/$3/$(basename "${7:-%s}")" ;;
  *) echo "kubectl $*: this cluster has tokens only" >&2; return 1 ;;
  esac
}`, filepath.Dir(cli), server.Address(), server.CAFile(), server.RootToken(), tokensIssuer)
	if output, status, err := s.run(setUp); err != nil || status != 0 {
		t.Fatalf("%v, status %d\n%s", err, status, output)
	}
}

func needsVault(doc string) bool { return slices.Contains(withVault, doc) }
