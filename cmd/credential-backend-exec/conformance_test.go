//go:build unix

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/backendtest"
)

// provider is a kubelet credential provider as people write them: a script with programs in it, which prints too much on standard error.
const provider = `#!/bin/sh
request=$(cat)
sleep 0.02
case $request in
*'"image":"registry.example:5000/'*)
	echo "logged in with open-sesame-2718" >&2
	auth='{"registry.example:5000":{"username":"puller","password":"open-sesame-2718"}}' ;;
*'"image":""'*)
	echo "no image" >&2
	exit 3 ;;
*)
	auth='{}' ;;
esac
cat <<EOT
{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"Registry","cacheDuration":"10m","auth":$auth}
EOT
`

func TestConformance(t *testing.T) {
	dir := t.TempDir()
	executable, command := filepath.Join(dir, "credential-backend-exec"), filepath.Join(dir, "provider.sh")
	if out, err := exec.Command("go", "build", "-o", executable, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.WriteFile(command, []byte(provider), 0o755); err != nil {
		t.Fatal(err)
	}
	backendtest.Run(t, backendtest.Options{
		Executable: executable,
		Config:     map[string]any{"command": command, "args": []string{"--verbose"}, "apiVersion": "credentialprovider.kubelet.k8s.io/v1"},
		Image:      "registry.example:5000/team/app",
		Token:      "header-of-a.service-account.token-2718",
		Secrets:    []backends.Secret{"open-sesame-2718"},
	})
}
