package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/test/cloud"
)

// TestNoPullCarriesWhatOnlyACheckNeeds: the backend, which each pull starts, is built without the API's library, and so is the broker. gar-check is not, or this test would see nothing.
func TestNoPullCarriesWhatOnlyACheckNeeds(t *testing.T) {
	heavy := []string{"cloud.google.com/go/artifactregistry/apiv1", "google.golang.org/api/option", "github.com/googleapis/gax-go/v2", "github.com/credential-broker/credential-broker/backends/gar/check"}
	for program, want := range map[string][]string{".": nil, "../credential-broker": nil, "../gar-check": heavy} {
		out, err := exec.Command("go", "list", "-deps", program).Output()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for name := range strings.FieldsSeq(string(out)) {
			light := !strings.HasPrefix(name, "cloud.google.com/go/artifactregistry") && !strings.HasPrefix(name, "google.golang.org/api/") && !strings.HasPrefix(name, "cloud.google.com/go/iam/")
			if slices.Contains(heavy, name) || want == nil && !light {
				got = append(got, name)
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s has %q, want %q", program, got, want)
		}
	}
}

// TestNoPullCarriesAnotherCloudsLibrary: the source of identity tokens that brings AWS's is for the backends that offer it. It has it, or this test would see nothing.
func TestNoPullCarriesAnotherCloudsLibrary(t *testing.T) {
	for program, carries := range map[string]bool{".": false, "../credential-backend-acr": false, "../gar-check": false, "../credential-broker": false, "../../backends/webidentity": false, "../aws-identity-token": true} {
		out, err := exec.Command("go", "list", "-deps", program).Output()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for name := range strings.FieldsSeq(string(out)) {
			if strings.HasPrefix(name, "github.com/aws/") {
				got = append(got, name)
			}
		}
		if (len(got) > 0) != carries {
			t.Errorf("%s has %q", program, got)
		}
	}
}

// TestGetShowsTheCheck: the broker, the backend and gar-check as they are installed.
func TestGetShowsTheCheck(t *testing.T) {
	dir := t.TempDir()
	suffix := ""
	if runtime.GOOS == "windows" {
		suffix = ".exe"
	}
	for program, file := range map[string]string{".": "backends/credential-backend-gar", "../gar-check": "backends/gar-check", "../credential-broker": "credential-broker"} {
		if out, err := exec.Command("go", "build", "-o", filepath.Join(dir, file+suffix), program).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	c := cloud.New(t)
	c.AddServiceAccount(cloud.ServiceAccount{Email: puller})
	c.AddGoogleRegistry(host, project, "repo")
	key, config := filepath.Join(dir, "key.json"), filepath.Join(dir, "config.yaml")
	for file, content := range map[string][]byte{key: c.ServiceAccountKeyFile(puller), config: []byte(`
apiVersion: credential-broker.io/v1alpha1
kind: BrokerConfig
providers:
- name: gar
  matchImages: ["*-docker.pkg.dev"]
  timeout: 30s
  inheritEnv: ["SSL_CERT_*"]
  config:
    credentialsFile: ` + key + `
`)} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := func(args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, filepath.Join(dir, "credential-broker"+suffix), append([]string{"--config", config}, args...)...)
		cmd.Env = append(os.Environ(), c.Environ()...)
		out, _ := cmd.CombinedOutput()
		if strings.Contains(string(out), "ya29.") {
			t.Errorf("it tells a token: %s", out)
		}
		return string(out)
	}
	image := host + "/" + project + "/repo/app"
	if got := run("get", image); !strings.Contains(got, "may not pull from the repository repo in location europe-west1") || !strings.Contains(got, "--member=serviceAccount:"+puller+" --role=roles/artifactregistry.reader") {
		t.Errorf("without a role: %s", got)
	}
	c.GrantReader(project, puller)
	if got := run("get", image, "-o", "json"); !strings.Contains(got, `"check": "ok"`) {
		t.Errorf("with its role: %s", got)
	}
	if got := run("get", image); !strings.Contains(got, "note: gar: asking Google as (identity: serviceAccount:"+puller+")") || !strings.Contains(got, "mode: standard") {
		t.Errorf("what is found besides is not shown: %s", got)
	}
	if got := run("backends", "--backend-dir", filepath.Join(dir, "backends")); !strings.Contains(got, "gar") || strings.Contains(got, "gar-check") {
		t.Errorf("the backends are: %s", got)
	}
	if err := os.Remove(filepath.Join(dir, "backends/gar-check"+suffix)); err != nil {
		t.Fatal(err)
	}
	if got := run("get", image); !strings.Contains(got, "check needs gar-check beside the backend") || !strings.Contains(got, "oauth2accesstoken") {
		t.Errorf("without the program: %s", got)
	}
}
