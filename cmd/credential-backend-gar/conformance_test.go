package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/backendtest"
	"github.com/credential-broker/credential-broker/test/cloud"
)

const (
	host    = "europe-west1-docker.pkg.dev"
	project = "my-project"
	puller  = "puller@my-project.iam.gserviceaccount.com"
)

// TestConformance judges the built backend with an identity of each kind: the machine's, a key's, and a pod's.
func TestConformance(t *testing.T) {
	executable := filepath.Join(t.TempDir(), "credential-backend-gar")
	if runtime.GOOS == "windows" {
		executable += ".exe"
	}
	if out, err := exec.Command("go", "build", "-o", executable, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cluster := cloud.GKECluster{Project: project, ProjectNumber: "210987654321", Location: "europe-west1", Name: "cluster-1"}
	for name, prepare := range map[string]func(t *testing.T, c *cloud.Cloud) (o backendtest.Options, principal string){
		"the machine": func(_ *testing.T, c *cloud.Cloud) (backendtest.Options, string) {
			return backendtest.Options{Config: map[string]any{"serviceAccount": "default"}, Env: c.GoogleInstance(cloud.ServiceAccount{Email: puller}).Environ()}, puller
		},
		"a key": func(t *testing.T, c *cloud.Cloud) (backendtest.Options, string) {
			c.AddServiceAccount(cloud.ServiceAccount{Email: puller})
			key := c.ServiceAccountKeyFile(puller)
			file := filepath.Join(t.TempDir(), "key.json")
			if err := os.WriteFile(file, key, 0o600); err != nil {
				t.Fatal(err)
			}
			_, secret, _ := strings.Cut(string(key), `"private_key":`)
			return backendtest.Options{Config: map[string]any{"credentialsFile": file}, Secrets: []backends.Secret{backends.Secret(strings.TrimSpace(secret)[40:100])}}, puller
		},
		"a pod's token": func(_ *testing.T, c *cloud.Cloud) (backendtest.Options, string) {
			return backendtest.Options{
				Config: map[string]any{"podIdentity": "Require"},
				Token: backends.Secret(c.AddGKECluster(cluster).Token(map[string]any{
					"aud": []string{cluster.Pool()}, "sub": "system:serviceaccount:team-a:builder",
					"kubernetes.io": map[string]any{"namespace": "team-a", "serviceaccount": map[string]any{"name": "builder"}},
				})),
				Annotations: map[string]string{"iam.gke.io/enable-wi-image-pull": "true"},
			}, cluster.Principal("team-a", "builder")
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := cloud.New(t)
			c.AddGoogleRegistry(host, project, "repo")
			o, principal := prepare(t, c)
			c.GrantReader(project, principal)
			o.Executable, o.Image = executable, host+"/"+project+"/repo/app"
			o.Env = append(append(c.Environ(), "HOME="+t.TempDir(), "PATH="+os.Getenv("PATH")), o.Env...)
			backendtest.Run(t, o)
			asked := 0
			for _, r := range c.Requests() {
				if r.Status == 200 && strings.HasPrefix(r.Service, "google") {
					asked++
				}
			}
			if asked == 0 {
				t.Errorf("nobody was asked: %+v", c.Requests())
			}
		})
	}
}
