package acr

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/settings"
	"github.com/credential-broker/credential-broker/test/cloud"
)

// TestClouds: whose Entra ID is asked, by the registry's name or the settings.
func TestClouds(t *testing.T) {
	for name, test := range map[string]struct {
		authority, host string
		change          func(*Config)
		env             string
		want            []string // hosts that are asked
	}{
		"China":              {"login.chinacloudapi.cn", "contoso.azurecr.cn", nil, "", []string{"contoso.azurecr.cn", "login.chinacloudapi.cn"}},
		"US government":      {"login.microsoftonline.us", "contoso.azurecr.us", nil, "", []string{"contoso.azurecr.us", "login.microsoftonline.us"}},
		"a region":           {"login.microsoftonline.com", "contoso.eastus.geo.azurecr.io", nil, "", []string{"contoso.eastus.geo.azurecr.io", "login.microsoftonline.com"}},
		"Germany":            {"login.microsoftonline.us", "contoso.azurecr.de", func(c *Config) { c.Cloud = "AzureUSGovernment" }, "", []string{"contoso.azurecr.de", "login.microsoftonline.us"}},
		"a cloud of its own": {"login.stack.example", "contoso.azsacr.region.stack.example", func(c *Config) { c.AuthorityHost, c.DisableInstanceDiscovery = "https://login.stack.example/", true }, "", []string{"contoso.azsacr.region.stack.example", "login.stack.example"}},
		"the environment's":  {"login.microsoftonline.us", "contoso.azsacr.region.stack.example", nil, "AZURE_AUTHORITY_HOST=https://login.microsoftonline.us", []string{"contoso.azsacr.region.stack.example", "login.microsoftonline.us"}},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := setUp(t)
			tenant := c.AddEntraTenant(cloud.EntraTenant{Authority: test.authority}).ID
			c.AddAzureRegistry(cloud.AzureRegistry{Host: test.host, Tenant: tenant, Repositories: []string{"app"}})
			p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Secrets: []string{secret}})
			c.GrantAcrPull(test.host, p.ObjectID)
			cfg := Config{Hosts: []string{"*.azsacr.region.stack.example"}, Identity: Identity{TenantID: tenant, ClientID: p.ClientID, ClientSecretFile: write(t, "secret", []byte(secret))}}
			if test.env != "" {
				cfg.Identity = Identity{}
				setenv(t, test.env, "AZURE_TENANT_ID="+tenant, "AZURE_CLIENT_ID="+p.ClientID, "AZURE_CLIENT_SECRET="+secret)
			}
			if test.change != nil {
				test.change(&cfg)
			}
			pull(t, c, backendFor(t, c, cfg), backends.Request{Image: backends.Image(test.host + "/app")})
			var asked []string
			for _, r := range c.Requests() {
				asked = append(asked, r.Host)
			}
			slices.Sort(asked)
			if asked = slices.Compact(asked); !slices.Equal(asked, test.want) {
				t.Errorf("asked: %q, want %q", asked, test.want)
			}
		})
	}
}

// TestACloudThatNobodyKnowsIsAskedAfter: without disableInstanceDiscovery, Microsoft is asked whether it knows the Entra ID, and does not.
func TestACloudThatNobodyKnowsIsAskedAfter(t *testing.T) {
	c, _ := setUp(t)
	tenant := c.AddEntraTenant(cloud.EntraTenant{Authority: "login.stack.example"}).ID
	p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Secrets: []string{secret}})
	b := backendFor(t, c, Config{Identity: Identity{TenantID: tenant, ClientID: p.ClientID, ClientSecretFile: write(t, "secret", []byte(secret)), AuthorityHost: "https://login.stack.example"}})
	_, err := b.Credentials(t.Context(), backends.Request{Image: image})
	failed(t, err, refused, "invalid_instance", "disableInstanceDiscovery")
	for _, r := range c.Requests() {
		if r.Host == "login.stack.example" {
			t.Errorf("it is sent something: %+v", r)
		}
	}
}

func TestARegistryThatDoesNotSayItsCloud(t *testing.T) {
	c, tenant := setUp(t)
	p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Secrets: []string{secret}})
	b := backendFor(t, c, Config{Identity: Identity{TenantID: tenant, ClientID: p.ClientID, ClientSecretFile: write(t, "secret", []byte(secret))}})
	_, err := b.Credentials(t.Context(), backends.Request{Image: "contoso.azurecr.de/app"})
	failed(t, err, misconfigured, "contoso.azurecr.de does not say which cloud it is in: set cloud, or authorityHost")
}

// TestIdentitiesByRegistry: registries of two tenants, one that lets everybody pull, and the rest.
func TestIdentitiesByRegistry(t *testing.T) {
	c, tenant := setUp(t)
	other := c.AddEntraTenant(cloud.EntraTenant{}).ID
	const theirs, open = "fabrikam.azurecr.io", "open-images.azurecr.io"
	c.AddAzureRegistry(cloud.AzureRegistry{Host: theirs, Tenant: other, Repositories: []string{"app"}})
	c.AddAzureRegistry(cloud.AzureRegistry{Host: open, Tenant: other, Anonymous: true, Repositories: []string{"app"}})
	first := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Secrets: []string{secret}})
	second := c.AddServicePrincipal(other, cloud.ServicePrincipal{Secrets: []string{secret}})
	c.GrantAcrPull(host, first.ObjectID)
	c.GrantAcrPull(theirs, second.ObjectID)
	file := write(t, "secret", []byte(secret))
	b := backendFor(t, c, Config{
		Identity: Identity{TenantID: tenant, ClientID: first.ClientID, ClientSecretFile: file},
		Identities: []RegistryIdentity{
			{Registries: []string{"open-*.azurecr.io"}, Identity: Identity{Anonymous: true}},
			{Registries: []string{theirs}, Identity: Identity{TenantID: other, ClientID: second.ClientID, ClientSecretFile: file}},
		},
	})
	pull(t, c, b, backends.Request{Image: image})
	pull(t, c, b, backends.Request{Image: theirs + "/app"})
	got, err := b.Credentials(t.Context(), backends.Request{Image: open + "/app"})
	if err != nil || len(got.Credentials) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	if err := c.Pull(open+"/app", "", ""); err != nil {
		t.Errorf("an anonymous pull: %v", err)
	}
	if err := b.Check(t.Context(), backends.Request{Image: open + "/app"}); err != nil {
		t.Errorf("check: %v", err)
	}
}

// TestManyRegistriesOfOneIdentity: one Entra token serves all of them.
func TestManyRegistriesOfOneIdentity(t *testing.T) {
	c, tenant := setUp(t)
	p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Secrets: []string{secret}})
	b := backendFor(t, c, Config{Identity: Identity{TenantID: tenant, ClientID: p.ClientID, ClientSecretFile: write(t, "secret", []byte(secret))}})
	for _, name := range []string{"contoso1.azurecr.io", "contoso2.azurecr.io", "contoso3.azurecr.io"} {
		c.AddAzureRegistry(cloud.AzureRegistry{Host: name, Tenant: tenant, Repositories: []string{"app"}})
		c.GrantAcrPull(name, p.ObjectID)
		pull(t, c, b, backends.Request{Image: backends.Image(name + "/app")})
	}
	if n := count(c, "entra", "token"); n != 1 {
		t.Errorf("Entra was asked %d times", n)
	}
}

func count(c *cloud.Cloud, service, operation string) int {
	n := 0
	for _, r := range c.Requests() {
		if r.Service == service && r.Operation == operation {
			n++
		}
	}
	return n
}

// TestHowFarAnAnswerHolds: for the registry, unless the settings say that role assignments differ by repository.
func TestHowFarAnAnswerHolds(t *testing.T) {
	c, tenant := setUp(t)
	p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Secrets: []string{secret}})
	c.GrantAcrPull(host, p.ObjectID)
	for key, test := range map[string]struct {
		set   Scope
		scope backends.Scope
	}{host: {"", backends.ScopeRegistry}, image: {ScopeImage, backends.ScopeImage}} {
		cfg := Config{Scope: test.set, Identity: Identity{TenantID: tenant, ClientID: p.ClientID, ClientSecretFile: write(t, "secret", []byte(secret))}}
		got, err := backendFor(t, c, cfg).Credentials(t.Context(), backends.Request{Image: image})
		if err != nil || got.Scope != test.scope || got.Credentials[0].Key != key {
			t.Errorf("%+v, %v; want %s", got, err, key)
		}
	}
}

// TestChecks: what a check finds, where a pull would fail or not.
func TestChecks(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(c *cloud.Cloud, object string, cfg *Config)
		image   backends.Image
		want    string // empty: all is well
		kind    backends.Kind
	}{
		"all is well":      {func(c *cloud.Cloud, object string, _ *Config) { c.GrantAcrPull(host, object) }, image, "", 0},
		"no role":          {nil, image, "AcrPull is missing on contoso: `az role assignment create --assignee-object-id ", refused},
		"no image":         {nil, "", "", 0},
		"no repository":    {nil, host, "is no image's name: want contoso.azurecr.io/REPOSITORY", refused},
		"another registry": {nil, "192.168.0.100:8000/app", "is no registry of Azure's that is known here: it can be named in hosts, if it is one; connected registries take users and passwords of their own", refused},
		"ABAC, all repositories": {func(c *cloud.Cloud, object string, cfg *Config) {
			abac(c, cfg)
			c.GrantRepositoryReader(abacHost, object)
		}, abacHost + "/team/app", "", 0},
		"ABAC, this repository": {func(c *cloud.Cloud, object string, cfg *Config) {
			abac(c, cfg)
			c.GrantRepositoryReader(abacHost, object, "team/app")
		}, abacHost + "/team/app", "", 0},
		"ABAC, another repository": {
			func(c *cloud.Cloud, object string, cfg *Config) {
				abac(c, cfg)
				c.GrantRepositoryReader(abacHost, object, "other")
			}, abacHost + "/team/app",
			"Container Registry Repository Reader is missing on fabrikam: `az role assignment create", refused,
		},
		"ABAC, and AcrPull": {func(c *cloud.Cloud, object string, cfg *Config) { abac(c, cfg); c.GrantAcrPull(abacHost, object) }, abacHost + "/team/app", "Container Registry Repository Reader is missing on fabrikam", refused},
		"ABAC, and the settings do not say so": {
			func(c *cloud.Cloud, object string, cfg *Config) {
				abac(c, cfg)
				cfg.Scope = ""
				c.GrantAcrPull(abacHost, object)
			}, abacHost + "/team/app",
			"(where `az acr show --name fabrikam --query roleAssignmentMode` says AbacRepositoryPermissions, that role counts for nothing: assign Container Registry Repository Reader)", refused,
		},
		"nobody, and it is not open": {func(_ *cloud.Cloud, _ string, cfg *Config) { cfg.Identity = Identity{Anonymous: true} }, image, "the registry lets nobody pull without a login: `az acr update --name contoso --anonymous-pull-enabled`", refused},
		"a token that may not": {func(c *cloud.Cloud, object string, _ *Config) {
			c.GrantAcrPull(host, object)
			// {"access":[{"type":"repository","name":"team/app","actions":["metadata/read"]}]}
			c.Fail(cloud.Fault{Service: "acr", Operation: "token", Status: 200, Body: `{"access_token": "e30.eyJhY2Nlc3MiOlt7InR5cGUiOiJyZXBvc2l0b3J5IiwibmFtZSI6InRlYW0vYXBwIiwiYWN0aW9ucyI6WyJtZXRhZGF0YS9yZWFkIl19XX0.x"}`})
		}, image, "the registry gives a token that may not: AcrPull is missing", refused},
		"a registry that talks nonsense": {func(c *cloud.Cloud, object string, _ *Config) {
			c.GrantAcrPull(host, object)
			c.Fail(cloud.Fault{Service: "acr", Operation: "token", Status: 200, Body: `{}`})
		}, image, "the answer is none that Azure documents", unavailable},
		"no image, and a cloud": {func(_ *cloud.Cloud, _ string, cfg *Config) { cfg.Cloud, cfg.ClientID = "AzureCloud", aClient }, "", "AADSTS700016", refused},
		"no image, and identities": {func(_ *cloud.Cloud, _ string, cfg *Config) {
			own := cfg.Identity
			own.ClientID = aClient
			cfg.Identities = []RegistryIdentity{{Registries: []string{"*.azurecr.us"}, Identity: Identity{Anonymous: true}}, {Registries: []string{"*.azurecr.io"}, Identity: own}}
		}, "", "AADSTS700016", refused},
		"no image, and a registry with an identity of its own": {func(_ *cloud.Cloud, _ string, cfg *Config) {
			cfg.Identities = []RegistryIdentity{{Registries: []string{"*.azurecr.io"}, Identity: cfg.Identity}}
			cfg.Identity = Identity{}
		}, "", "", 0},
		"required pods": {func(_ *cloud.Cloud, _ string, cfg *Config) { cfg.PodIdentity = settings.PodIdentityRequire }, "", "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			c, tenant := setUp(t)
			p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Secrets: []string{secret}})
			c.AddAzureRegistry(cloud.AzureRegistry{Host: abacHost, Tenant: tenant, ABAC: true, Repositories: []string{"team/app"}})
			cfg := Config{Identity: Identity{TenantID: tenant, ClientID: p.ClientID, ClientSecretFile: write(t, "secret", []byte(secret))}}
			if test.prepare != nil {
				test.prepare(c, p.ObjectID, &cfg)
			}
			var log bytes.Buffer
			before := slog.Default()
			slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
			defer slog.SetDefault(before)
			err := backendFor(t, c, cfg).Check(t.Context(), backends.Request{Image: test.image})
			if strings.Contains(log.String(), "eyJ") || strings.Contains(log.String(), secret) {
				t.Errorf("it logs a secret: %s", log.String())
			}
			if test.want != "" {
				failed(t, err, test.kind, test.want)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if test.image != "" && !strings.Contains(log.String(), p.ObjectID) {
				t.Errorf("it does not say who asks: %s", log.String())
			}
		})
	}
}

const abacHost = "fabrikam.azurecr.io"

// abac has the settings say that role assignments differ by repository.
func abac(_ *cloud.Cloud, cfg *Config) { cfg.Scope = ScopeImage }

// TestAllWaitForAThrottledRegistry: a 429's Retry-After is obeyed by everybody who waits, whatever for, and then one asks for all.
func TestAllWaitForAThrottledRegistry(t *testing.T) {
	for _, asked := range []string{"acr challenge", "acr exchange", "entra token"} {
		t.Run(asked, func(t *testing.T) {
			service, operation, _ := strings.Cut(asked, " ")
			c, tenant := setUp(t)
			p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Secrets: []string{secret}})
			c.GrantAcrPull(host, p.ObjectID)
			b := backendFor(t, c, Config{Identity: Identity{TenantID: tenant, ClientID: p.ClientID, ClientSecretFile: write(t, "secret", []byte(secret))}})
			c.Fail(cloud.Fault{Service: service, Operation: operation, Times: 1, RetryAfter: 7 * time.Second})
			clock := newClock()
			b.azure.now, b.azure.sleep = clock.now, clock.sleep
			var wait sync.WaitGroup
			for range 50 {
				wait.Go(func() {
					if _, err := b.Credentials(t.Context(), backends.Request{Image: image}); err != nil {
						t.Error(err)
					}
				})
			}
			wait.Wait()
			if n := count(c, service, operation); n != 2 {
				t.Errorf("it was asked %d times", n)
			}
			if slept := clock.slept(); len(slept) == 0 || slept[0] != 7*time.Second {
				t.Errorf("waited %s", slept)
			}
		})
	}
}

// TestAMomentsTroubleIsNoFailure: whoever fails once, of those that a login asks, is asked again.
func TestAMomentsTroubleIsNoFailure(t *testing.T) {
	for _, asked := range []string{"acr challenge", "acr exchange", "entra discovery", "entra token"} {
		for trouble, fault := range map[string]cloud.Fault{"broken": {Status: http.StatusServiceUnavailable}, "hanging up": {Reset: true}} {
			t.Run(asked+", "+trouble, func(t *testing.T) {
				c, tenant := setUp(t)
				p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Secrets: []string{secret}})
				c.GrantAcrPull(host, p.ObjectID)
				b := backendFor(t, c, Config{Identity: Identity{TenantID: tenant, ClientID: p.ClientID, ClientSecretFile: write(t, "secret", []byte(secret))}})
				b.azure.sleep = func(ctx context.Context, _ time.Duration) bool { return ctx.Err() == nil }
				fault.Times = 1
				fault.Service, fault.Operation, _ = strings.Cut(asked, " ")
				c.Fail(fault)
				pull(t, c, b, backends.Request{Image: image})
				if n := count(c, fault.Service, fault.Operation); n != 2 {
					t.Errorf("it was asked %d times", n)
				}
			})
		}
	}
}

// TestWhoHasNotTheTimeDoesNotAsk: until the time that it named, a busy registry is left alone by those who would give up before, too, and by other identities.
func TestWhoHasNotTheTimeDoesNotAsk(t *testing.T) {
	c, tenant := setUp(t)
	p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Secrets: []string{secret}, Federated: federated("team-a", "builder")})
	c.GrantAcrPull(host, p.ObjectID)
	b := backendFor(t, c, Config{Identity: Identity{TenantID: tenant, ClientID: p.ClientID, ClientSecretFile: write(t, "secret", []byte(secret))}})
	c.Fail(cloud.Fault{Service: "acr", Operation: "exchange", RetryAfter: time.Minute})
	pod := backends.Request{Image: image, Token: podToken(c, "team-a", "builder"), Annotations: annotated(p.ClientID, tenant)}
	for i, req := range []backends.Request{{Image: image}, {Image: image}, pod} {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		_, err := b.Credentials(ctx, req)
		cancel()
		failed(t, err, unavailable, "it wants to be asked again in", []string{"HTTP status 429", "is left alone for as long as it said", "is left alone for as long as it said"}[i])
		if n := count(c, "acr", "exchange"); n != 1 {
			t.Errorf("after request %d it was asked %d times", i, n)
		}
	}
	clock := newClock()
	clock.sleep(t.Context(), time.Minute)
	b.azure.now = clock.now
	c.Heal()
	pull(t, c, b, pod)
}

// TestWhoIsThrottledIsLeftAlone, and nobody else: Entra counts the calls of each application in each tenant, and whoever may annotate a service account chooses both.
func TestWhoIsThrottledIsLeftAlone(t *testing.T) {
	c, tenant := setUp(t)
	own := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Secrets: []string{secret}})
	theirs := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Federated: federated("team-a", "builder")})
	c.GrantAcrPull(host, own.ObjectID)
	b := backendFor(t, c, Config{Identity: Identity{TenantID: tenant, ClientID: own.ClientID, ClientSecretFile: write(t, "secret", []byte(secret))}})
	c.Fail(cloud.Fault{Service: "entra", Operation: "token", RetryAfter: 10 * time.Minute})
	pod := backends.Request{Image: image, Token: podToken(c, "team-a", "builder"), Annotations: annotated(theirs.ClientID, tenant)}
	for range 2 {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		_, err := b.Credentials(ctx, pod)
		cancel()
		failed(t, err, unavailable, "it wants to be asked again in")
	}
	if n := count(c, "entra", "token"); n != 1 {
		t.Errorf("it was asked %d times", n)
	}
	c.Heal()
	pull(t, c, b, backends.Request{Image: image})
}

// TestAThrottledClustersEndpointIsLeftAlone: it is that endpoint which is busy, and not Entra.
func TestAThrottledClustersEndpointIsLeftAlone(t *testing.T) {
	c, tenant := setUp(t)
	p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{})
	c.GrantAcrPull(host, p.ObjectID)
	cluster := c.AddIssuer(clusterIssuer)
	binding := c.IdentityBinding(tenant, cluster)
	setenv(t, binding.Environ()...)
	c.Fail(cloud.Fault{Service: "identity-binding", RetryAfter: time.Minute})
	b := backendFor(t, c, Config{PodClientID: p.ClientID, PodTenantID: tenant, IdentityBindings: &IdentityBindings{}})
	for _, account := range []string{"one", "two", "three"} {
		binding.Bind(p.ClientID, "team-a", account)
		token := cluster.Token(map[string]any{"aud": []string{"api://AKSIdentityBinding"}, "sub": "system:serviceaccount:team-a:" + account})
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		_, err := b.Credentials(ctx, backends.Request{Image: image, Token: backends.Secret(token)})
		cancel()
		failed(t, err, unavailable, "it wants to be asked again in")
	}
	asked := 0
	for _, r := range c.Requests() {
		if r.Service == "identity-binding" {
			asked++
		}
	}
	if asked != 1 {
		t.Errorf("it was asked %d times", asked)
	}
}

// clock is one that moves by sleeping alone.
type clock struct {
	mu     sync.Mutex
	at     time.Time
	sleeps []time.Duration
}

func newClock() *clock { return &clock{at: time.Now()} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) sleep(_ context.Context, d time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at, c.sleeps = c.at.Add(d), append(c.sleeps, d)
	return true
}

func (c *clock) slept() []time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sleeps
}

// TestAnIdentityThatWasExchanged: a machine that has got another identity is not refused for as long as the old one's token would live.
func TestAnIdentityThatWasExchanged(t *testing.T) {
	c, tenant := setUp(t)
	m := c.AzureInstanceIn(tenant, cloud.ManagedIdentity{System: true})
	setenv(t, m.Environ()...)
	b := backendFor(t, c, Config{})
	_, err := b.Credentials(t.Context(), backends.Request{Image: image})
	failed(t, err, refused, "AcrPull is missing")
	fresh := c.AzureInstanceIn(tenant, cloud.ManagedIdentity{System: true})
	setenv(t, fresh.Environ()...)
	c.GrantAcrPull(host, fresh.Identities()[0].ObjectID)
	pull(t, c, b, backends.Request{Image: image})
}
