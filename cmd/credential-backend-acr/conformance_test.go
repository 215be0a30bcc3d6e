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
	host   = "contoso.azurecr.io"
	secret = "Q8~not-a-real-secret-of-the-application"
	issuer = "https://oidc.prod-aks.azure.com/cluster"
)

// TestConformance judges the built backend with an identity of each kind: the machine's, an application's, and a pod's.
func TestConformance(t *testing.T) {
	executable := filepath.Join(t.TempDir(), "credential-backend-acr")
	if runtime.GOOS == "windows" {
		executable += ".exe"
	}
	if out, err := exec.Command("go", "build", "-o", executable, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for name, prepare := range map[string]func(t *testing.T, c *cloud.Cloud, tenant string) (o backendtest.Options, object string){
		"the machine": func(_ *testing.T, c *cloud.Cloud, tenant string) (backendtest.Options, string) {
			m := c.AzureInstanceIn(tenant, cloud.ManagedIdentity{System: true})
			return backendtest.Options{Config: map[string]any{"managedIdentity": map[string]any{}}, Env: m.Environ()}, m.Identities()[0].ObjectID
		},
		"an application": func(t *testing.T, c *cloud.Cloud, tenant string) (backendtest.Options, string) {
			p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Secrets: []string{secret}})
			file := filepath.Join(t.TempDir(), "secret")
			if err := os.WriteFile(file, []byte(secret), 0o600); err != nil {
				t.Fatal(err)
			}
			return backendtest.Options{Config: map[string]any{"tenantID": tenant, "clientID": p.ClientID, "clientSecretFile": file}, Secrets: []backends.Secret{secret}}, p.ObjectID
		},
		"a pod's token": func(_ *testing.T, c *cloud.Cloud, tenant string) (backendtest.Options, string) {
			p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Federated: []cloud.FederatedCredential{{Issuer: issuer, Subject: "system:serviceaccount:team-a:builder"}}})
			return backendtest.Options{
				Config: map[string]any{"podIdentity": "Require"},
				Token: backends.Secret(c.AddIssuer(issuer).Token(map[string]any{
					"aud": []string{"api://AzureADTokenExchange"}, "sub": "system:serviceaccount:team-a:builder",
					"kubernetes.io": map[string]any{"namespace": "team-a", "serviceaccount": map[string]any{"name": "builder"}},
				})),
				Annotations: map[string]string{"kubernetes.azure.com/acr-client-id": p.ClientID, "kubernetes.azure.com/acr-tenant-id": tenant},
			}, p.ObjectID
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := cloud.New(t)
			tenant := c.AddEntraTenant(cloud.EntraTenant{}).ID
			c.AddAzureRegistry(cloud.AzureRegistry{Host: host, Tenant: tenant, Repositories: []string{"team/app"}})
			o, object := prepare(t, c, tenant)
			c.GrantAcrPull(host, object)
			o.Executable, o.Image = executable, host+"/team/app"
			o.Env = append(append(c.Environ(), "HOME="+t.TempDir(), "PATH="+os.Getenv("PATH")), o.Env...)
			backendtest.Run(t, o)
			exchanged := 0
			for _, r := range c.Requests() {
				if r.Status == 200 && strings.HasPrefix(r.Service, "acr") && r.Operation == "exchange" {
					exchanged++
				}
			}
			if exchanged == 0 {
				t.Errorf("nothing was exchanged: %+v", c.Requests())
			}
		})
	}
}
