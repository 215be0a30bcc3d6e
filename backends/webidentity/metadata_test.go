package webidentity

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/test/cloud"
)

const fault = "<p>" + canary // a fault's body

func TestGoogleMetadata(t *testing.T) {
	c := cloud.New(t)
	g := c.GoogleInstance(cloud.ServiceAccount{Email: "node@test-project.iam.gserviceaccount.com", UniqueID: "112233445566778899001"}, cloud.ServiceAccount{Email: "other@test-project.iam.gserviceaccount.com"})
	bare := c.GoogleInstance()
	azure := c.AzureInstance(cloud.ManagedIdentity{System: true})
	tests := []struct {
		name    string
		c       GoogleMetadata
		env     []string
		fault   *cloud.Fault
		subject string
		full    bool // tells of the instance
		want    *failure
	}{
		{name: "in full", c: GoogleMetadata{Format: GoogleFull}, env: g.Environ(), subject: "112233445566778899001", full: true},
		{name: "the default account", env: g.Environ(), subject: "112233445566778899001"},
		{name: "by its address", c: GoogleMetadata{Endpoint: g.URL()}, subject: "112233445566778899001"},
		{name: "another account", c: GoogleMetadata{ServiceAccount: "other@test-project.iam.gserviceaccount.com"}, env: g.Environ(), subject: g.ServiceAccounts()[1].UniqueID},
		{name: "busy for a while", env: g.Environ(), fault: &cloud.Fault{Times: 2}, subject: "112233445566778899001"},
		{name: "busy", env: g.Environ(), fault: &cloud.Fault{Body: fault, Status: 503}, want: unavailable("busy or broken (HTTP status 503)")},
		{name: "cut off", env: g.Environ(), fault: &cloud.Fault{Reset: true}, want: unavailable("closed before there was an answer")},
		{name: "refused", env: g.Environ(), fault: &cloud.Fault{Status: 403, Body: fault}, want: refused(`account "default" for audience "sts.amazonaws.com" (HTTP status 403)`)},
		{name: "an audience it does not take", env: g.Environ(), fault: &cloud.Fault{Status: 400, Body: fault}, want: misconfigured("webIdentity.googleMetadata", `"sts.amazonaws.com" (HTTP status 400)`)},
		{name: "rubbish", env: g.Environ(), fault: &cloud.Fault{Status: 200, Body: fault}, want: misconfigured("webIdentity.googleMetadata", "no JWT")},
		{
			name: "an account that it has not", c: GoogleMetadata{ServiceAccount: "a@b.example"}, env: g.Environ(),
			want: misconfigured("webIdentity.googleMetadata.serviceAccount", `no service account "a@b.example" (HTTP status 404)`),
		},
		{name: "no account", env: bare.Environ(), want: refused("no service account (HTTP status 404)", "attach one")},
		{name: "another cloud", c: GoogleMetadata{Endpoint: azure.URL()}, want: misconfigured("webIdentity.googleMetadata", "is not it", "HTTP status 400")},
		{name: "an address that is none", env: []string{"GCE_METADATA_HOST=http://a"}, want: misconfigured("webIdentity.googleMetadata", "GCE_METADATA_HOST")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c.ForgetRequests()
			c.Heal()
			if tt.fault != nil {
				tt.fault.Service = "google-metadata"
				c.Fail(*tt.fault)
			}
			s := source(t, Config{GoogleMetadata: &tt.c}, testWorld(tt.env...))
			token, err := s.Token(t.Context())
			check(t, s, token, err, tt.want)
			if tt.want != nil {
				return
			}
			claims, err := ParseClaims(string(token.Value))
			if err != nil || claims.Subject != tt.subject || claims.AuthorizedParty != tt.subject || claims.Issuer != cloud.GoogleIssuer || !slices.Equal(claims.Audience, []string{aws}) {
				t.Errorf("%+v, %v", claims, err)
			}
			if !token.Expires.Equal(claims.Expires) || time.Until(token.Expires) < 50*time.Minute {
				t.Errorf("expires at %v", token.Expires)
			}
			if payload, _ := payloadOf(string(token.Value)); strings.Contains(string(payload), `"compute_engine"`) != tt.full {
				t.Errorf("it tells %s", payload)
			}
		})
	}
	t.Run("an expired token", func(t *testing.T) {
		g.Expire()
		c.Heal()
		s := source(t, Config{GoogleMetadata: &GoogleMetadata{}}, testWorld(g.Environ()...))
		token, err := s.Token(t.Context())
		check(t, s, token, err, unavailable("it expired at", "clock"))
	})
}

// TestProxy: metadata services and other addresses at hand are never asked through one, others are. (What the environment says of proxies is read once in a process, and never holds for
// loopback addresses, so it cannot be tried.)
func TestProxy(t *testing.T) {
	urlClient := func(at string) *http.Client {
		u, ok := source(t, Config{URL: &URL{URL: at}}, testWorld()).(*address)
		if !ok {
			t.Fatal("a source of another type")
		}
		client, err := u.client()
		if err != nil {
			t.Fatal(err)
		}
		return client
	}
	for name, tt := range map[string]struct {
		client *http.Client
		proxy  bool
	}{
		"metadata services":        {metadataClient(), false},
		"http://169.254.169.254/a": {urlClient("http://169.254.169.254/a"), false},
		"https://a.example/":       {urlClient("https://a.example/"), true},
		"HTTPS://a.example/":       {urlClient("HTTPS://a.example/"), true},
	} {
		if transport, ok := tt.client.Transport.(*http.Transport); !ok || (transport.Proxy != nil) != tt.proxy {
			t.Errorf("%s: a proxy is asked: %v", name, !tt.proxy)
		}
	}
}

func TestAzureManagedIdentity(t *testing.T) {
	const app = "api://registry-pulls"
	c := cloud.New(t)
	machine := func(ids ...cloud.ManagedIdentity) *cloud.AzureInstance {
		a := c.AzureInstance(ids...)
		a.AddApplication(cloud.Application{URI: app})
		return a
	}
	system := machine(cloud.ManagedIdentity{System: true}, cloud.ManagedIdentity{})
	several := machine(cloud.ManagedIdentity{}, cloud.ManagedIdentity{})
	one := several.Identities()[1]
	bare := machine()
	v2 := c.AzureInstance(cloud.ManagedIdentity{System: true})
	v2app := v2.AddApplication(cloud.Application{URI: app, V2: true})
	google := c.GoogleInstance()
	tests := []struct {
		name     string
		c        AzureManagedIdentity
		at       *cloud.AzureInstance
		audience string
		fault    *cloud.Fault
		subject  string
		aud      string // if not what is asked for
		want     *failure
	}{
		{name: "the system's identity", at: system, subject: system.Identities()[0].ObjectID},
		{name: "by its address", c: AzureManagedIdentity{Endpoint: system.URL() + "/"}, subject: system.Identities()[0].ObjectID},
		{name: "by client id", c: AzureManagedIdentity{ClientID: one.ClientID}, at: several, subject: one.ObjectID},
		{name: "by object id", c: AzureManagedIdentity{ObjectID: one.ObjectID}, at: several, subject: one.ObjectID},
		{name: "by resource id", c: AzureManagedIdentity{ResourceID: one.ResourceID}, at: several, subject: one.ObjectID},
		{name: "an application of version 2.0", at: v2, subject: v2.Identities()[0].ObjectID, aud: v2app.ClientID},
		{name: "one of Azure's own", at: system, audience: "api://AzureADTokenExchange", subject: system.Identities()[0].ObjectID, aud: "fb60f99c-7a34-4190-8149-302f77469936"},
		{name: "busy for a while", at: system, fault: &cloud.Fault{Times: 2, RetryAfter: time.Second}, subject: system.Identities()[0].ObjectID},
		{name: "updated for a while", at: system, fault: &cloud.Fault{Times: 1, Status: 410}, subject: system.Identities()[0].ObjectID},
		{name: "busy", at: system, fault: &cloud.Fault{Body: fault, Status: 429}, want: unavailable("HTTP status 429")},
		{name: "being updated", at: system, fault: &cloud.Fault{Status: 404}, want: unavailable("being updated (HTTP status 404)")},
		{name: "refused", at: system, fault: &cloud.Fault{Status: 401, Code: "unauthorized_client"}, want: refused("the machine's managed identity", `"`+app+`"`, "HTTP status 401")},
		{name: "refused without a code", at: system, fault: &cloud.Fault{Status: 401, Body: fault}, want: misconfigured("webIdentity.azureManagedIdentity", "is not it", "401")},
		{name: "rubbish", at: system, fault: &cloud.Fault{Status: 200, Body: fault}, want: misconfigured("webIdentity.azureManagedIdentity", "no access_token")},
		{
			name: "no JWT", at: system, fault: &cloud.Fault{Status: 200, Body: `{"access_token":"` + canary + `"}`},
			want: misconfigured("webIdentity.azureManagedIdentity", "no JWT"),
		},
		{
			name: "another audience", at: system, fault: &cloud.Fault{Status: 200, Body: `{"access_token":"` + jwt(map[string]any{"aud": "api://x"}) + `"}`},
			want: misconfigured("webIdentity.azureManagedIdentity", `"api://x" and not for "`+app+`"`),
		},
		{name: "which of several", at: several, want: misconfigured("webIdentity.azureManagedIdentity", "several managed identities (HTTP status 400)", "clientID")},
		{
			name: "one that it has not", c: AzureManagedIdentity{ClientID: one.ClientID}, at: system,
			want: misconfigured("webIdentity.azureManagedIdentity", "does not have the managed identity with client id "+one.ClientID, "HTTP status 400"),
		},
		{name: "none", at: bare, want: refused("no managed identity (HTTP status 400)", "assign one")},
		{
			name: "no such application", at: system, audience: "api://other",
			want: misconfigured("webIdentity.azureManagedIdentity", `no application "api://other" (HTTP status 400)`, "webIdentity.audience"),
		},
		{name: "another cloud", c: AzureManagedIdentity{Endpoint: google.URL()}, want: misconfigured("webIdentity.azureManagedIdentity", "is not it", "HTTP status 403")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c.ForgetRequests()
			c.Heal()
			if tt.fault != nil {
				tt.fault.Service = "azure-metadata"
				c.Fail(*tt.fault)
			}
			var env []string
			if tt.at != nil {
				env = tt.at.Environ()
			}
			if tt.audience == "" {
				tt.audience = app
			}
			s := source(t, Config{Audience: tt.audience, AzureManagedIdentity: &tt.c}, testWorld(env...))
			token, err := s.Token(t.Context())
			check(t, s, token, err, tt.want)
			if tt.want != nil {
				return
			}
			if tt.aud == "" {
				tt.aud = tt.audience
			}
			if claims, err := ParseClaims(string(token.Value)); err != nil || claims.Subject != tt.subject || !slices.Equal(claims.Audience, []string{tt.aud}) {
				t.Errorf("%+v, %v", claims, err)
			}
		})
	}
}

// TestMetadataHeaders: the services answer nobody who does not say that he means them, so that nobody can be tricked into asking.
func TestMetadataHeaders(t *testing.T) {
	c := cloud.New(t)
	for url, status := range map[string]int{
		c.GoogleInstance(cloud.ServiceAccount{Email: "a@b"}).URL() + "/computeMetadata/v1/instance/service-accounts/default/identity?audience=a":                     403,
		c.AzureInstance(cloud.ManagedIdentity{System: true}).URL() + "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://management.azure.com/": 400,
	} {
		resp, err := http.Get(url) //nolint:gosec // G107: the URL is the test's own
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != status {
			t.Errorf("%s answers %d without its header", url, resp.StatusCode)
		}
	}
}
