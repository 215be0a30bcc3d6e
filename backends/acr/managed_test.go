package acr

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/test/cloud"
)

// TestManagedIdentitiesElsewhere: every service of Azure's that the SDK knows.
func TestManagedIdentitiesElsewhere(t *testing.T) {
	chosen := cloud.ManagedIdentity{ClientID: "0a0a0a0a-1b1b-4c2c-8d3d-4e4e4e4e4e4e"}
	for name, test := range map[string]struct {
		start func(c *cloud.Cloud) (*cloud.IdentityEndpoint, error)
		cfg   Config
	}{
		"App Service": {func(c *cloud.Cloud) (*cloud.IdentityEndpoint, error) {
			return c.AppServiceIdentity(cloud.ManagedIdentity{System: true}), nil
		}, Config{}},
		"App Service, an identity of several": {
			func(c *cloud.Cloud) (*cloud.IdentityEndpoint, error) {
				return c.AppServiceIdentity(chosen, cloud.ManagedIdentity{System: true}), nil
			},
			Config{Identity: Identity{ManagedIdentity: &ManagedIdentity{ClientID: chosen.ClientID}}},
		},
		"Azure Arc": {func(c *cloud.Cloud) (*cloud.IdentityEndpoint, error) {
			return c.AzureArc(cloud.ManagedIdentity{System: true})
		}, Config{}},
		"Azure Machine Learning": {func(c *cloud.Cloud) (*cloud.IdentityEndpoint, error) {
			return c.AzureMLIdentity(cloud.ManagedIdentity{System: true}), nil
		}, Config{}},
		"Azure Cloud Shell": {func(c *cloud.Cloud) (*cloud.IdentityEndpoint, error) {
			return c.CloudShellIdentity(cloud.ManagedIdentity{System: true}), nil
		}, Config{}},
		"Service Fabric": {func(c *cloud.Cloud) (*cloud.IdentityEndpoint, error) {
			return c.ServiceFabricIdentity(cloud.ManagedIdentity{System: true}), nil
		}, Config{}},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := setUp(t)
			endpoint, err := test.start(c)
			if err != nil {
				t.Skip(err)
			}
			setenv(t, endpoint.Environ()...)
			const registry = "fabrikam.azurecr.io"
			c.AddAzureRegistry(cloud.AzureRegistry{Host: registry, Tenant: endpoint.Tenant(), Repositories: []string{"app"}})
			req := backends.Request{Image: registry + "/app"}
			b := backendFor(t, c, test.cfg)
			_, err = b.Credentials(t.Context(), req)
			failed(t, err, refused, "AcrPull is missing")
			c.GrantAcrPull(registry, endpoint.Identities()[0].ObjectID)
			pull(t, c, b, req)
		})
	}
}

func TestAnIdentityThatAServiceDoesNotLetBeChosen(t *testing.T) {
	c, _ := setUp(t)
	setenv(t, c.CloudShellIdentity(cloud.ManagedIdentity{System: true}).Environ()...)
	_, err := backendFor(t, c, Config{Identity: Identity{ManagedIdentity: &ManagedIdentity{ClientID: aClient}}}).Credentials(t.Context(), backends.Request{Image: image})
	failed(t, err, misconfigured, "Azure Cloud Shell: that service does not let its managed identity be chosen so")
}

// TestTheMetadataServiceIsNotAskedThroughAProxy, whatever its address. (To connect to the unspecified address is to connect to this machine; Go exempts no such name from a proxy.)
func TestTheMetadataServiceIsNotAskedThroughAProxy(t *testing.T) {
	c, tenant := setUp(t)
	var asked atomic.Int32
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(http.StatusBadGateway)
	}))
	defer proxy.Close()
	m := c.AzureInstanceIn(tenant, cloud.ManagedIdentity{System: true})
	setenv(t, imdsVariable+"="+strings.Replace(m.URL(), "127.0.0.1", "0.0.0.0", 1), "HTTP_PROXY="+proxy.URL, "http_proxy="+proxy.URL)
	c.GrantAcrPull(host, m.Identities()[0].ObjectID)
	pull(t, c, backendFor(t, c, Config{}), backends.Request{Image: image})
	if n := asked.Load(); n != 0 {
		t.Errorf("the proxy was asked %d times", n)
	}
}

// TestNoEntraOfARegionIsAsked: it is for Microsoft's own services, and to find the region the SDK would ask the metadata service by a client of its own, through whatever proxy there is.
func TestNoEntraOfARegionIsAsked(t *testing.T) {
	c, tenant := setUp(t)
	p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Secrets: []string{secret}})
	c.GrantAcrPull(host, p.ObjectID)
	setenv(t, "AZURE_REGIONAL_AUTHORITY_NAME=westeurope", "MSAL_FORCE_REGION=westeurope")
	pull(t, c, backendFor(t, c, Config{Identity: Identity{TenantID: tenant, ClientID: p.ClientID, ClientSecretFile: write(t, "secret", []byte(secret))}}), backends.Request{Image: image})
}

// TestIdentityBindings: the cluster's endpoint takes the tokens of its pods, and of its nodes' files, in the place of Entra.
func TestIdentityBindings(t *testing.T) {
	for name, test := range map[string]struct {
		// set gives the settings, of the endpoint and of who asks.
		set  func(t *testing.T, b *cloud.IdentityBinding, own *Config)
		file bool
		want string // empty: it is let in
		kind backends.Kind
	}{
		"a pod, by the environment": {func(t *testing.T, b *cloud.IdentityBinding, own *Config) {
			setenv(t, b.Environ()...)
			own.IdentityBindings = &IdentityBindings{}
		}, false, "", 0},
		"a pod, by the settings": {func(_ *testing.T, b *cloud.IdentityBinding, own *Config) {
			own.IdentityBindings = &IdentityBindings{TokenProxy: b.URL(), SNIName: b.SNIName(), CAFile: b.CAFile()}
		}, false, "", 0},
		"a file": {func(t *testing.T, b *cloud.IdentityBinding, own *Config) {
			setenv(t, b.Environ()...)
			own.IdentityBindings = &IdentityBindings{}
		}, true, "", 0},
		"no endpoint": {
			func(_ *testing.T, _ *cloud.IdentityBinding, own *Config) { own.IdentityBindings = &IdentityBindings{} }, false,
			"want the https URL of the cluster's endpoint, here or as AZURE_KUBERNETES_TOKEN_PROXY", misconfigured,
		},
		"no CA": {func(_ *testing.T, b *cloud.IdentityBinding, own *Config) {
			own.IdentityBindings = &IdentityBindings{TokenProxy: b.URL(), SNIName: b.SNIName(), CAFile: "/nonexistent/ca.crt"}
		}, false, "/nonexistent/ca.crt (identityBindings.caFile): no such file", misconfigured},
		"a CA that is none": {func(t *testing.T, b *cloud.IdentityBinding, own *Config) {
			own.IdentityBindings = &IdentityBindings{TokenProxy: b.URL(), SNIName: b.SNIName(), CAFile: write(t, "ca.crt", []byte(planted))}
		}, false, "it has no certificate in PEM", misconfigured},
		"another CA": {func(_ *testing.T, b *cloud.IdentityBinding, own *Config) {
			own.IdentityBindings = &IdentityBindings{TokenProxy: b.URL(), SNIName: b.SNIName()}
		}, false, "the cluster's endpoint shows another certificate: see identityBindings.sniName and caFile", refused},
		"not bound": {func(t *testing.T, b *cloud.IdentityBinding, own *Config) {
			setenv(t, b.Environ()...)
			own.IdentityBindings, own.PodClientID = &IdentityBindings{}, aClient
		}, false, "access_denied (HTTP status 403): no identity binding of the cluster lets this service account use it", refused},
	} {
		t.Run(name, func(t *testing.T) {
			c, tenant := setUp(t)
			p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{})
			c.GrantAcrPull(host, p.ObjectID)
			cluster := c.AddIssuer(clusterIssuer)
			binding := c.IdentityBinding(tenant, cluster)
			binding.Bind(p.ClientID, "team-a", "builder")
			token := cluster.Token(map[string]any{
				"aud": []string{"api://AKSIdentityBinding"}, "sub": "system:serviceaccount:team-a:builder",
				"kubernetes.io": map[string]any{"namespace": "team-a", "serviceaccount": map[string]any{"name": "builder"}},
			})
			cfg := Config{PodClientID: p.ClientID, PodTenantID: tenant}
			test.set(t, binding, &cfg)
			req := backends.Request{Image: image, Token: backends.Secret(token)}
			if test.file {
				cfg = Config{Identity: Identity{TenantID: tenant, ClientID: p.ClientID, FederatedTokenFile: write(t, "token", []byte(token))}, IdentityBindings: cfg.IdentityBindings}
				req.Token = ""
			}
			b := backendFor(t, c, cfg)
			if test.want != "" {
				_, err := b.Credentials(t.Context(), req)
				failed(t, err, test.kind, test.want)
				return
			}
			pull(t, c, b, req)
			for _, r := range c.Requests() {
				if r.Service == "entra" {
					t.Errorf("Entra is asked itself: %+v", r)
				}
			}
		})
	}
}
