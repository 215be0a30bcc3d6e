package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/backendtest"
)

func TestConformance(t *testing.T) {
	dir := t.TempDir()
	executable := filepath.Join(dir, "credential-backend-userfile")
	if out, err := exec.Command("go", "build", "-o", executable, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte("pull:s3cret-from-a-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	backendtest.Run(t, backendtest.Options{
		Executable: executable,
		Config:     Config{Files: map[string]string{"registry.example:5000": password}},
		Image:      "registry.example:5000/team/app",
		Secrets:    []backends.Secret{"s3cret-from-a-file"},
	})
}
