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

// TestConformance judges the backend with each source of credentials that a docker configuration can have.
func TestConformance(t *testing.T) {
	dir := t.TempDir()
	executable := filepath.Join(dir, "credential-backend-dockerconfig")
	if out, err := exec.Command("go", "build", "-o", executable, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	const helper = `#!/bin/sh
read -r server
sleep 0.02
echo "asked for $server, whose password is open-sesame-2718" >&2
case $server in
*registry.example:5000*) echo '{"ServerURL":"registry.example:5000","Username":"puller","Secret":"open-sesame-2718"}' ;;
*) echo "credentials not found in native keychain"; exit 1 ;;
esac
`
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-test"), []byte(helper), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, image, config string }{
		{"auth", "registry.example:5000/team/app", `{"auths":{"registry.example:5000":{"auth":"cHVsbGVyOm9wZW4tc2VzYW1lLTI3MTg="}}}`}, // puller:open-sesame-2718
		{"Docker Hub", "docker.io/library/app", `{"auths":{"https://index.docker.io/v1/":{"username":"puller","password":"open-sesame-2718"}}}`},
		{"helper", "registry.example:5000/team/app", `{"credHelpers":{"registry.example:5000":"test"}}`},
		{"store", "registry.example:5000/team/app", `{"credsStore":"test"}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "config.json")
			if err := os.WriteFile(file, []byte(c.config), 0o600); err != nil {
				t.Fatal(err)
			}
			backendtest.Run(t, backendtest.Options{
				Executable: executable,
				Config:     map[string]any{"file": file},
				Image:      c.image,
				Env:        []string{"PATH=" + dir + ":" + os.Getenv("PATH")},
				Secrets:    []backends.Secret{"open-sesame-2718"},
			})
		})
	}
}
