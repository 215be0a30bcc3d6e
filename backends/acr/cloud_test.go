package acr

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/webidentity"
	"github.com/credential-broker/credential-broker/backends/webidentity/awsidentity"
	"github.com/credential-broker/credential-broker/test/cloud"
)

// The registry and image that most tests pull from.
const (
	host   = "contoso.azurecr.io"
	image  = host + "/team/app"
	secret = "Q8~not-a-real-secret-of-the-application"
)

// TestMain has AWS asked by this process itself: the program that a backend has for that is not installed here.
func TestMain(m *testing.M) {
	webSources.AWS = awsidentity.New
	os.Exit(m.Run())
}

// setUp makes a cloud with a tenant and a registry in it, points this process's environment to it, and empties it of all else that Azure's libraries heed.
func setUp(t *testing.T) (c *cloud.Cloud, tenant string) {
	t.Helper()
	c = cloud.New(t)
	tenant = c.AddEntraTenant(cloud.EntraTenant{}).ID
	c.AddAzureRegistry(cloud.AzureRegistry{Host: host, Tenant: tenant, Repositories: []string{"team/app"}})
	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		if slices.ContainsFunc([]string{"AZURE_", "IDENTITY_", "MSI_", "IMDS_", "AWS_", "GCE_"}, func(prefix string) bool { return strings.HasPrefix(name, prefix) }) {
			t.Setenv(name, "") // so that it comes back
			_ = os.Unsetenv(name)
		}
	}
	setenv(t, c.Environ()...)
	return c, tenant
}

func setenv(t *testing.T, env ...string) {
	t.Helper()
	for _, variable := range env {
		name, value, _ := strings.Cut(variable, "=")
		t.Setenv(name, value)
	}
}

// backendFor makes a backend that reaches the cloud by its proxy, and trusts its CA: crypto/x509 reads SSL_CERT_FILE only once in a process.
func backendFor(t *testing.T, c *cloud.Cloud, cfg Config) *Backend {
	t.Helper()
	cfg.Proxy = backends.Secret(c.ProxyURL())
	b, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.azure.transport.TLSClientConfig.RootCAs = c.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	return b
}

// pull asks for the image's credential and pulls with it.
func pull(t *testing.T, c *cloud.Cloud, b *Backend, req backends.Request) backends.Credential {
	t.Helper()
	r, err := b.Credentials(t.Context(), req)
	if err != nil {
		t.Fatalf("%v\n%+v", err, c.Requests())
	}
	if len(r.Credentials) != 1 {
		t.Fatalf("%d credentials", len(r.Credentials))
	}
	got := r.Credentials[0]
	if got.Username != username {
		t.Errorf("user %q", got.Username)
	}
	if err := c.Pull(string(req.Image), got.Username, string(got.Password)); err != nil {
		t.Errorf("pull: %v", err)
	}
	if left := time.Until(got.Expires); left < 170*time.Minute || left > 3*time.Hour {
		t.Errorf("it expires in %s", left)
	}
	return got
}

func write(t *testing.T, name string, content []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func object(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// certificate makes a certificate and its key, and a file of both.
func certificate(t *testing.T, expires time.Time) (*x509.Certificate, string) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return certificateOf(t, expires, key)
}

func certificateOf(t *testing.T, expires time.Time, key crypto.Signer) (*x509.Certificate, string) {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "node"}, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: expires}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return made, write(t, "cert.pem", append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...))
}

// clusterIssuer is where service accounts' tokens of most tests come from.
const clusterIssuer = "https://oidc.prod-aks.azure.com/cluster"

// podToken is a service account's token.
func podToken(c *cloud.Cloud, namespace, account string) backends.Secret {
	return backends.Secret(c.AddIssuer(clusterIssuer).Token(map[string]any{
		"aud": []string{publicCloud.exchange}, "sub": "system:serviceaccount:" + namespace + ":" + account,
		"kubernetes.io": map[string]any{"namespace": namespace, "serviceaccount": map[string]any{"name": account}},
	}))
}

// federated is a federated credential for a service account.
func federated(namespace, account string) []cloud.FederatedCredential {
	return []cloud.FederatedCredential{{Issuer: clusterIssuer, Subject: "system:serviceaccount:" + namespace + ":" + account}}
}

// TestIdentities pulls with every identity that a node can have, and is refused before its role is there.
func TestIdentities(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T, c *cloud.Cloud, tenant string) (cfg Config, object string){
		"the machine": func(t *testing.T, c *cloud.Cloud, tenant string) (Config, string) {
			m := c.AzureInstanceIn(tenant, cloud.ManagedIdentity{System: true})
			setenv(t, m.Environ()...)
			return Config{}, m.Identities()[0].ObjectID
		},
		"the machine, chosen": func(t *testing.T, c *cloud.Cloud, tenant string) (Config, string) {
			m := c.AzureInstanceIn(tenant, cloud.ManagedIdentity{System: true}, cloud.ManagedIdentity{})
			setenv(t, m.Environ()...)
			t.Setenv("AZURE_CLIENT_ID", m.Identities()[1].ClientID)
			return Config{Identity: Identity{ManagedIdentity: &ManagedIdentity{}}}, m.Identities()[0].ObjectID
		},
		"another identity of the machine, by client ID": func(t *testing.T, c *cloud.Cloud, tenant string) (Config, string) {
			m := c.AzureInstanceIn(tenant, cloud.ManagedIdentity{System: true}, cloud.ManagedIdentity{})
			setenv(t, m.Environ()...)
			return Config{Identity: Identity{ManagedIdentity: &ManagedIdentity{ClientID: m.Identities()[1].ClientID}}}, m.Identities()[1].ObjectID
		},
		"another identity of the machine, by object ID": func(t *testing.T, c *cloud.Cloud, tenant string) (Config, string) {
			m := c.AzureInstanceIn(tenant, cloud.ManagedIdentity{System: true}, cloud.ManagedIdentity{})
			setenv(t, m.Environ()...)
			return Config{Identity: Identity{ManagedIdentity: &ManagedIdentity{ObjectID: m.Identities()[1].ObjectID}}}, m.Identities()[1].ObjectID
		},
		"another identity of the machine, by resource ID": func(t *testing.T, c *cloud.Cloud, tenant string) (Config, string) {
			m := c.AzureInstanceIn(tenant, cloud.ManagedIdentity{System: true}, cloud.ManagedIdentity{})
			setenv(t, m.Environ()...)
			return Config{Identity: Identity{ManagedIdentity: &ManagedIdentity{ResourceID: m.Identities()[1].ResourceID}}}, m.Identities()[1].ObjectID
		},
		"another identity of the machine, by the environment": func(t *testing.T, c *cloud.Cloud, tenant string) (Config, string) {
			m := c.AzureInstanceIn(tenant, cloud.ManagedIdentity{System: true}, cloud.ManagedIdentity{})
			setenv(t, m.Environ()...)
			t.Setenv("AZURE_CLIENT_ID", m.Identities()[1].ClientID)
			return Config{}, m.Identities()[1].ObjectID
		},
		"azure.json: the machine": func(t *testing.T, c *cloud.Cloud, tenant string) (Config, string) {
			m := c.AzureInstanceIn(tenant, cloud.ManagedIdentity{System: true})
			setenv(t, m.Environ()...)
			return azureJSON(t, map[string]any{"cloud": "AzurePublicCloud", "tenantId": tenant, "useManagedIdentityExtension": true, "userAssignedIdentityID": "", "vnetName": "aks", "aadClientId": "msi", "aadClientSecret": "msi"}), m.Identities()[0].ObjectID
		},
		"azure.json: another identity by client ID": func(t *testing.T, c *cloud.Cloud, tenant string) (Config, string) {
			m := c.AzureInstanceIn(tenant, cloud.ManagedIdentity{System: true}, cloud.ManagedIdentity{})
			setenv(t, m.Environ()...)
			return azureJSON(t, map[string]any{"tenantId": tenant, "useManagedIdentityExtension": true, "userAssignedIdentityID": m.Identities()[1].ClientID}), m.Identities()[1].ObjectID
		},
		"azure.json: another identity by resource ID": func(t *testing.T, c *cloud.Cloud, tenant string) (Config, string) {
			m := c.AzureInstanceIn(tenant, cloud.ManagedIdentity{System: true}, cloud.ManagedIdentity{})
			setenv(t, m.Environ()...)
			return azureJSON(t, map[string]any{"tenantId": tenant, "useManagedIdentityExtension": true, "userAssignedIdentityID": m.Identities()[1].ResourceID}), m.Identities()[1].ObjectID
		},
		"azure.json: a secret": func(t *testing.T, c *cloud.Cloud, tenant string) (Config, string) {
			p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Secrets: []string{secret}})
			return azureJSON(t, map[string]any{"cloud": "AZUREPUBLICCLOUD", "tenantId": tenant, "aadClientId": p.ClientID, "aadClientSecret": secret}), p.ObjectID
		},
		"azure.json: a certificate": func(t *testing.T, c *cloud.Cloud, tenant string) (Config, string) {
			made, file := certificate(t, time.Now().Add(time.Hour))
			p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Certificates: []*x509.Certificate{made}})
			return azureJSON(t, map[string]any{"tenantId": tenant, "aadClientId": p.ClientID, "aadClientCertPath": file}), p.ObjectID
		},
		"azure.json: a federated token": func(t *testing.T, c *cloud.Cloud, tenant string) (Config, string) {
			p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Federated: federated("kube-system", "node")})
			return azureJSON(t, map[string]any{
				"tenantId": tenant, "aadClientId": p.ClientID, "useFederatedWorkloadIdentityExtension": true, "aadFederatedTokenFile": write(t, "token", []byte(podToken(c, "kube-system", "node"))),
			}), p.ObjectID
		},
		"a secret": func(t *testing.T, c *cloud.Cloud, tenant string) (Config, string) {
			p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Secrets: []string{secret}})
			return Config{Identity: Identity{TenantID: tenant, ClientID: p.ClientID, ClientSecretFile: write(t, "secret", []byte(secret+"\n"))}}, p.ObjectID
		},
		"a certificate": func(t *testing.T, c *cloud.Cloud, tenant string) (Config, string) {
			made, file := certificate(t, time.Now().Add(time.Hour))
			p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Certificates: []*x509.Certificate{made}})
			return Config{Identity: Identity{TenantID: tenant, ClientID: p.ClientID, ClientCertificateFile: file}}, p.ObjectID
		},
		"a secret in the environment": func(t *testing.T, c *cloud.Cloud, tenant string) (Config, string) {
			p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Secrets: []string{secret}})
			setenv(t, "AZURE_TENANT_ID="+tenant, "AZURE_CLIENT_ID="+p.ClientID, "AZURE_CLIENT_SECRET="+secret, "AZURE_FEDERATED_TOKEN_FILE=/nonexistent", "AZURE_CLIENT_CERTIFICATE_PATH=/nonexistent")
			return Config{}, p.ObjectID
		},
		"a certificate in the environment": func(t *testing.T, c *cloud.Cloud, tenant string) (Config, string) {
			made, file := certificate(t, time.Now().Add(time.Hour))
			p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Certificates: []*x509.Certificate{made}})
			setenv(t, "AZURE_TENANT_ID="+tenant, "AZURE_CLIENT_ID="+p.ClientID, "AZURE_CLIENT_CERTIFICATE_PATH="+file, "AZURE_CLIENT_SEND_CERTIFICATE_CHAIN=true", "AZURE_FEDERATED_TOKEN_FILE=/nonexistent")
			return Config{}, p.ObjectID
		},
		"workload identity of the environment": func(t *testing.T, c *cloud.Cloud, tenant string) (Config, string) {
			p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Federated: federated("kube-system", "node")})
			setenv(t, "AZURE_TENANT_ID="+tenant, "AZURE_CLIENT_ID="+p.ClientID, "AZURE_FEDERATED_TOKEN_FILE="+write(t, "token", []byte(podToken(c, "kube-system", "node"))), "AZURE_AUTHORITY_HOST=https://login.microsoftonline.com/")
			return Config{}, p.ObjectID
		},
		"a federated token": func(t *testing.T, c *cloud.Cloud, tenant string) (Config, string) {
			p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Federated: federated("kube-system", "node")})
			return Config{Identity: Identity{TenantID: tenant, ClientID: p.ClientID, FederatedTokenFile: write(t, "token", []byte(podToken(c, "kube-system", "node")+"\n"))}}, p.ObjectID
		},
		"another issuer's token, by file": func(t *testing.T, c *cloud.Cloud, tenant string) (Config, string) {
			p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Federated: federated("kube-system", "node")})
			return Config{Identity: Identity{TenantID: tenant, ClientID: p.ClientID, WebIdentity: webidentity.Config{File: &webidentity.File{Path: write(t, "token", []byte(podToken(c, "kube-system", "node")))}}}}, p.ObjectID
		},
		"Google's machine": func(t *testing.T, c *cloud.Cloud, tenant string) (Config, string) {
			g := c.GoogleInstance(cloud.ServiceAccount{Email: "node@my-project.iam.gserviceaccount.com"})
			setenv(t, g.Environ()...)
			p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Federated: []cloud.FederatedCredential{{Issuer: cloud.GoogleIssuer, Subject: g.ServiceAccounts()[0].UniqueID}}})
			return Config{Identity: Identity{TenantID: tenant, ClientID: p.ClientID, WebIdentity: webidentity.Config{GoogleMetadata: &webidentity.GoogleMetadata{}}}}, p.ObjectID
		},
		"AWS's user": func(t *testing.T, c *cloud.Cloud, tenant string) (Config, string) {
			const account = "111122223333"
			user := "arn:aws:iam::" + account + ":user/node"
			keys := c.AddUser(user, cloud.Statement{Actions: []string{"sts:GetWebIdentityToken"}})
			setenv(t, append(keys.Environ(), "AWS_REGION=eu-west-1")...)
			issuer := c.EnableOutboundFederation(account)
			p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Federated: []cloud.FederatedCredential{{Issuer: issuer.URL(), Subject: user}}})
			return Config{Identity: Identity{TenantID: tenant, ClientID: p.ClientID, WebIdentity: webidentity.Config{AWS: &webidentity.AWS{}}}}, p.ObjectID
		},
		"a managed identity as the credential of an application in another tenant": func(t *testing.T, c *cloud.Cloud, tenant string) (Config, string) {
			m := c.AzureInstance(cloud.ManagedIdentity{})
			setenv(t, m.Environ()...)
			p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Federated: []cloud.FederatedCredential{{Issuer: m.Issuer(true), Subject: m.Identities()[0].ObjectID}}})
			return Config{Identity: Identity{TenantID: tenant, ClientID: p.ClientID, ManagedIdentity: &ManagedIdentity{ClientID: m.Identities()[0].ClientID}}}, p.ObjectID
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, tenant := setUp(t)
			cfg, object := prepare(t, c, tenant)
			b := backendFor(t, c, cfg)
			req := backends.Request{Image: image}
			if _, err := b.Credentials(t.Context(), req); err == nil || !strings.Contains(err.Error(), "AcrPull is missing on contoso") || !strings.Contains(err.Error(), "--assignee-object-id "+object) {
				t.Errorf("without a role: %v", err)
			}
			c.GrantAcrPull(host, object)
			got := pull(t, c, b, req)
			if got.Key != host {
				t.Errorf("it is for %q", got.Key)
			}
			if err := b.Check(t.Context(), req); err != nil {
				t.Errorf("check: %v", err)
			}
			c.ForgetRequests()
			if again := pull(t, c, b, req); again.Password != got.Password {
				t.Error("it is asked for again")
			}
			for _, r := range c.Requests() {
				if r.Service != "acr" || r.Operation == "exchange" { // pulls are in no log
					t.Errorf("asked again: %+v", r)
				}
			}
		})
	}
}

func azureJSON(t *testing.T, content map[string]any) Config {
	t.Helper()
	return Config{Identity: Identity{AzureConfigFile: write(t, "azure.json", object(t, content))}}
}

// TestWhoIsAskedAndHowOften: each round trip is one that the protocol needs, and each service is asked by one connection.
func TestWhoIsAskedAndHowOften(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(t *testing.T, c *cloud.Cloud, tenant string) (Config, string)
		want    []string
	}{
		"an application": {func(t *testing.T, c *cloud.Cloud, tenant string) (Config, string) {
			p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Secrets: []string{secret}})
			return Config{Identity: Identity{TenantID: tenant, ClientID: p.ClientID, ClientSecretFile: write(t, "secret", []byte(secret))}}, p.ObjectID
		}, []string{"acr challenge", "acr exchange", "entra discovery", "entra token"}},
		"a machine": {func(t *testing.T, c *cloud.Cloud, tenant string) (Config, string) {
			m := c.AzureInstanceIn(tenant, cloud.ManagedIdentity{System: true})
			setenv(t, m.Environ()...)
			return Config{}, m.Identities()[0].ObjectID
		}, []string{"acr challenge", "acr exchange", "azure-metadata token"}},
	} {
		t.Run(name, func(t *testing.T) {
			c, tenant := setUp(t)
			cfg, object := test.prepare(t, c, tenant)
			c.GrantAcrPull(host, object)
			pull(t, c, backendFor(t, c, cfg), backends.Request{Image: image})
			var got []string
			connections := map[string]int{}
			for _, r := range c.Requests() {
				got = append(got, r.Service+" "+r.Operation)
				if first, ok := connections[r.Host]; ok && first != r.Connection {
					t.Errorf("%s is asked by connections %d and %d", r.Host, first, r.Connection)
				}
				connections[r.Host] = r.Connection
			}
			slices.Sort(got)
			if !slices.Equal(got, test.want) {
				t.Errorf("asked: %q, want %q", got, test.want)
			}
		})
	}
}
