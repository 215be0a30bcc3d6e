package cloud

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	azcloud "github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

const (
	testTenant    = "11111111-2222-4333-8444-555555555555"
	testApp       = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"
	testPrincipal = "99999999-8888-4777-8666-555555555555"
	registryScope = registryAudience + "/.default"
)

// azure is what Azure's SDKs need to reach the cloud, once for each request. An authority of another cloud than the public one's is a host name.
func (c *Cloud) azure(t testing.TB, authority string) azcore.ClientOptions {
	t.Helper()
	client := c.Client()
	t.Cleanup(client.CloseIdleConnections)
	o := azcore.ClientOptions{Transport: client, Retry: policy.RetryOptions{MaxRetries: -1}}
	if authority != "" {
		o.Cloud = azcloud.Configuration{ActiveDirectoryAuthorityHost: "https://" + authority + "/"}
	}
	return o
}

// registryToken asks a credential of Azure's SDK for a token for registries.
func registryToken(t testing.TB, credential azcore.TokenCredential, err error) (string, error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	token, err := credential.GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{registryScope}})
	return token.Token, err
}

// keyPair is an RSA key with a certificate.
func keyPair(t testing.TB, from, to time.Time) (*rsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "node"}, NotBefore: from, NotAfter: to}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return key, certificate
}

// TestEntraLogins has Azure's SDK log in in each cloud.
func TestEntraLogins(t *testing.T) {
	c := fixed(t)
	key, certificate := keyPair(t, c.Now().Add(-time.Hour), c.Now().Add(time.Hour))
	issuer := c.AddIssuer("https://oidc.example.com/id")
	for _, authority := range []string{"", "login.microsoftonline.com", "login.chinacloudapi.cn", "login.partner.microsoftonline.cn", "login.microsoftonline.us", "login.azurestack.example"} {
		tenant := c.AddEntraTenant(EntraTenant{Authority: authority})
		p := c.AddServicePrincipal(tenant.ID, ServicePrincipal{
			Secrets: []string{"old", "s€cret"}, Certificates: []*x509.Certificate{certificate}, Federated: []FederatedCredential{{Issuer: issuer.URL(), Subject: "system:serviceaccount:a:b"}},
		})
		// The SDK asks the public cloud about hosts that it does not know.
		unknown := authority == "login.azurestack.example"
		for name, login := range map[string]func() (azcore.TokenCredential, error){
			"a secret": func() (azcore.TokenCredential, error) {
				return azidentity.NewClientSecretCredential(tenant.ID, p.ClientID, "s€cret", &azidentity.ClientSecretCredentialOptions{
					ClientOptions: c.azure(t, authority), DisableInstanceDiscovery: unknown,
				})
			},
			"a certificate": func() (azcore.TokenCredential, error) {
				return azidentity.NewClientCertificateCredential(tenant.ID, p.ClientID, []*x509.Certificate{certificate}, key, &azidentity.ClientCertificateCredentialOptions{
					ClientOptions: c.azure(t, authority), DisableInstanceDiscovery: unknown,
				})
			},
			"a certificate that is sent": func() (azcore.TokenCredential, error) {
				return azidentity.NewClientCertificateCredential(tenant.ID, p.ClientID, []*x509.Certificate{certificate}, key, &azidentity.ClientCertificateCredentialOptions{
					ClientOptions: c.azure(t, authority), DisableInstanceDiscovery: unknown, SendCertificateChain: true,
				})
			},
			"a token": func() (azcore.TokenCredential, error) {
				token := issuer.Token(map[string]any{"sub": "system:serviceaccount:a:b", "aud": []string{"api://AzureADTokenExchange"}})
				return azidentity.NewClientAssertionCredential(tenant.ID, p.ClientID, func(context.Context) (string, error) { return token, nil }, &azidentity.ClientAssertionCredentialOptions{
					ClientOptions: c.azure(t, authority), DisableInstanceDiscovery: unknown,
				})
			},
		} {
			t.Run(authority+", "+name, func(t *testing.T) {
				credential, err := login()
				token, err := registryToken(t, credential, err)
				if err != nil {
					t.Fatal(err)
				}
				claims, err := c.tenantUnder("", tenant.ID).v1.verify(token)
				if err != nil {
					t.Fatal(err)
				}
				acr := "2"
				if name == "a secret" {
					acr = "1"
				}
				for name, want := range map[string]any{
					"aud": registryAudience, "tid": tenant.ID, "oid": p.ObjectID, "sub": p.ObjectID, "appid": p.ClientID, "appidacr": acr, "idtyp": "app", "ver": "1.0",
					"exp": float64(c.Now().Add(time.Hour).Unix()), "xms_mirid": nil,
				} {
					if claims[name] != want {
						t.Errorf("%s is %v, not %v", name, claims[name], want)
					}
				}
				if r := c.last(t); r.Service != "entra" || r.Operation != "token" || r.Principal != p.ClientID || r.Status != 200 || r.Code != "" {
					t.Errorf("%+v", r)
				}
			})
		}
	}
	t.Run("a host that is not Entra's", func(t *testing.T) {
		tenant := c.AddEntraTenant(EntraTenant{Authority: "login.azurestack.example"})
		credential, err := azidentity.NewClientSecretCredential(tenant.ID, testApp, "s", &azidentity.ClientSecretCredentialOptions{ClientOptions: c.azure(t, "login.azurestack.example")})
		if _, err := registryToken(t, credential, err); err == nil || !strings.Contains(err.Error(), "invalid_instance") {
			t.Error(err)
		}
		if r := c.last(t); r.Host != "login.microsoftonline.com" || r.Operation != "discovery" || r.Status != 400 || r.Code != "AADSTS50049" {
			t.Errorf("%+v", r)
		}
	})
	t.Run("another cloud", func(t *testing.T) {
		tenant := c.AddEntraTenant(EntraTenant{Authority: "login.microsoftonline.us"})
		credential, err := azidentity.NewClientSecretCredential(tenant.ID, testApp, "s", &azidentity.ClientSecretCredentialOptions{ClientOptions: c.azure(t, "")})
		if _, err := registryToken(t, credential, err); err == nil || !strings.Contains(err.Error(), "invalid_tenant") {
			t.Error(err)
		}
		if r := c.last(t); r.Operation != "discovery" || r.Status != 400 || r.Code != "AADSTS90002" {
			t.Errorf("%+v", r)
		}
	})
}

func TestEntraDiscovery(t *testing.T) {
	c := New(t)
	c.AddEntraTenant(EntraTenant{ID: testTenant})
	china := c.AddEntraTenant(EntraTenant{Authority: "login.chinacloudapi.cn"})
	const public = "https://login.microsoftonline.com/"
	instance := func(host, endpoint string) string {
		return "https://" + host + "/common/discovery/instance?api-version=1.1&authorization_endpoint=" + url.QueryEscape(endpoint)
	}
	for _, test := range []struct {
		name, address string
		status        int
		code          string
		fields        map[string]string
	}{
		{"version 2.0", public + testTenant + "/v2.0/.well-known/openid-configuration", 200, "", map[string]string{
			"issuer": public + testTenant + "/v2.0", "token_endpoint": public + testTenant + "/oauth2/v2.0/token", "authorization_endpoint": public + testTenant + "/oauth2/v2.0/authorize",
			"jwks_uri": public + testTenant + "/discovery/v2.0/keys",
		}},
		{"version 1.0", public + testTenant + "/.well-known/openid-configuration", 200, "", map[string]string{
			"issuer": "https://sts.windows.net/" + testTenant + "/", "token_endpoint": public + testTenant + "/oauth2/token", "jwks_uri": public + testTenant + "/discovery/keys",
		}},
		{"version 1.0 where its issuer says", "https://sts.windows.net/" + testTenant + "/.well-known/openid-configuration", 200, "", map[string]string{"issuer": "https://sts.windows.net/" + testTenant + "/"}},
		{"another name", "https://login.windows.net/" + testTenant + "/v2.0/.well-known/openid-configuration", 200, "", map[string]string{
			"issuer": public + testTenant + "/v2.0", "token_endpoint": "https://login.windows.net/" + testTenant + "/oauth2/v2.0/token",
		}},
		{"China", "https://login.chinacloudapi.cn/" + china.ID + "/v2.0/.well-known/openid-configuration", 200, "", map[string]string{
			"issuer": "https://login.partner.microsoftonline.cn/" + china.ID + "/v2.0", "token_endpoint": "https://login.chinacloudapi.cn/" + china.ID + "/oauth2/v2.0/token",
		}},
		{"capital letters", public + strings.ToUpper(testTenant) + "/v2.0/.well-known/openid-configuration", 200, "", map[string]string{"issuer": public + testTenant + "/v2.0"}},
		{"an instance", instance("login.microsoftonline.com", public+testTenant+"/oauth2/v2.0/authorize"), 200, "", map[string]string{
			"tenant_discovery_endpoint": public + testTenant + "/v2.0/.well-known/openid-configuration",
		}},
		{"another cloud's instance", instance("login.microsoftonline.com", "https://login.microsoftonline.us/x/oauth2/v2.0/authorize"), 200, "", map[string]string{
			"tenant_discovery_endpoint": "https://login.microsoftonline.us/x/v2.0/.well-known/openid-configuration",
		}},
		{"no instance", instance("login.microsoftonline.com", "https://login.example.com/x/oauth2/v2.0/authorize"), 400, "AADSTS50049", map[string]string{"error": "invalid_instance"}},
		{"no tenant", public + testApp + "/v2.0/.well-known/openid-configuration", 400, "AADSTS90002", map[string]string{"error": "invalid_tenant"}},
		{"a tenant of another cloud", public + china.ID + "/v2.0/.well-known/openid-configuration", 400, "AADSTS90002", map[string]string{"error": "invalid_tenant"}},
		{"no tenant's name", public + "contoso/v2.0/.well-known/openid-configuration", 400, "AADSTS900023", map[string]string{"error": "invalid_tenant"}},
		{"no keys", public + testApp + "/discovery/v2.0/keys", 400, "AADSTS90002", map[string]string{"error": "invalid_tenant"}},
		{"no page", public + testTenant + "/v2.0", 404, "", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			answer := c.send(t, http.MethodGet, test.address, "")
			if r := c.last(t); answer.status != test.status || r.Status != test.status || r.Code != test.code {
				t.Errorf("%d, %+v", answer.status, r)
			}
			for name, want := range test.fields {
				if got := answer.text(name); got != want {
					t.Errorf("%s is %q, not %q", name, got, want)
				}
			}
		})
	}
	both := map[string][]any{}
	for _, page := range []string{"/discovery/v2.0/keys", "/discovery/keys"} {
		both[page], _ = c.send(t, http.MethodGet, public+testTenant+page, "").fields["keys"].([]any)
	}
	if !reflect.DeepEqual(both["/discovery/v2.0/keys"], both["/discovery/keys"]) || len(both["/discovery/keys"]) != 1 {
		t.Errorf("%v", both)
	}
	if answer := c.send(t, http.MethodPost, public+testTenant+"/v2.0/.well-known/openid-configuration", ""); answer.status != 405 {
		t.Errorf("a POST: %d", answer.status)
	}
}

// entraForms are requests for tokens; change says what is other in one than in the usual request, "" being nothing at all.
func entraForms(change map[string]string) string {
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {testApp}, "client_secret": {"s"}, "scope": {registryScope}}
	for name, value := range change {
		form.Del(name)
		if value != "" {
			form.Set(name, value)
		}
	}
	return form.Encode()
}

func TestEntraTokenRefusals(t *testing.T) {
	c := New(t)
	c.AddEntraTenant(EntraTenant{ID: testTenant})
	c.AddServicePrincipal(testTenant, ServicePrincipal{ClientID: testApp, ObjectID: testPrincipal, Secrets: []string{"s"}})
	disabled := c.AddServicePrincipal(testTenant, ServicePrincipal{Secrets: []string{"s"}, Disabled: true})
	gone := c.AddServicePrincipal(testTenant, ServicePrincipal{Secrets: []string{"s"}})
	c.RemoveServicePrincipal(testTenant, gone.ClientID)
	const address = "https://login.microsoftonline.com/" + testTenant + "/oauth2/v2.0/token"
	for _, test := range []struct {
		name    string
		change  map[string]string
		body    string // in place of the form
		kind    string
		address string
		want    string // status, OAuth's code and Entra's
	}{
		{name: "nothing", want: "200"},
		{name: "by the resource's client id", change: map[string]string{"scope": registryApp + "/.default"}, want: "200"},
		{name: "for the Resource Manager", change: map[string]string{"scope": "https://management.azure.com//.default"}, want: "200"},
		{name: "with MSAL's other scopes", change: map[string]string{"scope": registryScope + " openid offline_access profile"}, want: "200"},
		{name: "capital letters", change: map[string]string{"client_id": strings.ToUpper(testApp)}, want: "200"},
		{name: "another name of the cloud", address: "https://login.microsoft.com/" + testTenant + "/oauth2/v2.0/token", want: "200"},
		{name: "a wrong secret", change: map[string]string{"client_secret": "S"}, want: "401 invalid_client 7000215"},
		{name: "no secret", change: map[string]string{"client_secret": ""}, want: "401 invalid_client 7000218"},
		{name: "no client", change: map[string]string{"client_id": ""}, want: "400 invalid_request 900144"},
		{name: "an unknown client", change: map[string]string{"client_id": testPrincipal}, want: "400 unauthorized_client 700016"},
		{name: "a client that is gone", change: map[string]string{"client_id": gone.ClientID}, want: "400 unauthorized_client 700016"},
		{name: "a disabled client", change: map[string]string{"client_id": disabled.ClientID}, want: "401 unauthorized_client 7000112"},
		{name: "no grant", change: map[string]string{"grant_type": ""}, want: "400 invalid_request 900144"},
		{name: "another grant", change: map[string]string{"grant_type": "password"}, want: "400 unsupported_grant_type 70003"},
		{name: "no scope", change: map[string]string{"scope": ""}, want: "400 invalid_request 900144"},
		{name: "a scope that is not all", change: map[string]string{"scope": registryAudience + "/pull"}, want: "400 invalid_scope 1002012"},
		{name: "two scopes", change: map[string]string{"scope": registryScope + " https://management.azure.com/.default"}, want: "400 invalid_scope 1002012"},
		{name: "no resource's scope", change: map[string]string{"scope": "/.default"}, want: "400 invalid_scope 1002012"},
		{name: "users' scopes alone", change: map[string]string{"scope": "openid"}, want: "400 invalid_scope 1002012"},
		{name: "an unknown resource", change: map[string]string{"scope": "api://x/.default"}, want: "400 invalid_resource 500011"},
		{name: "no form", body: `{"grant_type":"client_credentials"}`, kind: "application/json", want: "400 invalid_request 900144"},
		{name: "a form by another name", body: entraForms(nil), kind: "text/plain", want: "400 invalid_request 900144"},
		{name: "a form twice", body: entraForms(nil) + "&client_id=" + testApp, want: "400 invalid_request 9000410"},
		{name: "another tenant", address: "https://login.microsoftonline.com/" + testApp + "/oauth2/v2.0/token", want: "400 invalid_request 90002"},
		{name: "another cloud", address: "https://login.microsoftonline.us/" + testTenant + "/oauth2/v2.0/token", want: "400 invalid_request 90002"},
		{name: "an assertion without its type", change: map[string]string{"client_secret": "", "client_assertion": "a.b.c"}, want: "400 invalid_request 900144"},
		{name: "an assertion of another type", change: map[string]string{"client_assertion": "a.b.c", "client_assertion_type": "x"}, want: "400 invalid_request 50027"},
		{name: "no assertion", change: map[string]string{"client_assertion": "a.b.c", "client_assertion_type": assertionType}, want: "400 invalid_request 50027"},
	} {
		t.Run(test.name, func(t *testing.T) {
			body, kind, at := entraForms(test.change), formType, address
			if test.body != "" {
				body = test.body
			}
			if test.kind != "" {
				kind = test.kind
			}
			if test.address != "" {
				at = test.address
			}
			if got := entraSaid(c.post(t, at, kind, body)); got != test.want {
				t.Errorf("%s, not %s", got, test.want)
			}
			if fields := strings.Fields(test.want); len(fields) > 1 && c.last(t).Code != "AADSTS"+fields[2] {
				t.Errorf("%+v", c.last(t))
			}
		})
	}
	if answer := c.send(t, http.MethodGet, address, ""); entraSaid(answer) != "405 invalid_request 900561" {
		t.Errorf("a GET: %s", entraSaid(answer))
	}
}

// entraSaid is what Entra's answer comes to: the status, and of a refusal both its codes. The rest of a refusal has to be as Entra's.
func entraSaid(a googleAnswer) string {
	if a.status == http.StatusOK {
		if a.text("token_type") != "Bearer" || a.fields["expires_in"] != 3599.0 || a.text("access_token") == "" {
			return fmt.Sprintf("200 with %v", slices.Sorted(maps.Keys(a.fields)))
		}
		return "200"
	}
	codes, _ := a.fields["error_codes"].([]any)
	if len(codes) != 1 {
		return fmt.Sprintf("%d without a code", a.status)
	}
	number := fmt.Sprintf("%.0f", codes[0])
	if !strings.HasPrefix(a.text("error_description"), "AADSTS"+number+": ") || a.text("error_uri") != "https://login.microsoftonline.com/error?code="+number {
		return "not as Entra's: " + a.text("error_description")
	}
	for _, name := range []string{"timestamp", "trace_id", "correlation_id"} {
		if a.text(name) == "" || !strings.Contains(a.text("error_description"), a.text(name)) {
			return "without " + name
		}
	}
	return fmt.Sprintf("%d %s %s", a.status, a.text("error"), number)
}

func TestEntraFaults(t *testing.T) {
	c := New(t)
	c.AddEntraTenant(EntraTenant{ID: testTenant})
	c.AddServicePrincipal(testTenant, ServicePrincipal{ClientID: testApp, Secrets: []string{"s"}})
	const address = "https://login.microsoftonline.com/" + testTenant
	for _, test := range []struct {
		fault Fault
		want  string
	}{
		{Fault{Operation: "token", RetryAfter: 7 * time.Second}, "429 temporarily_unavailable 90055"},
		{Fault{Operation: "token", Status: 503}, "503 temporarily_unavailable 90033"},
		{Fault{Operation: "token", Status: 400, Code: "invalid_grant"}, "400 invalid_grant 90033"},
		{Fault{Operation: "token", Code: "AADSTS7000222"}, "401 invalid_client 7000222"},
		{Fault{Operation: "discovery"}, "200"},
		{Fault{Service: "acr"}, "200"},
	} {
		c.Heal()
		if test.fault.Service == "" {
			test.fault.Service = "entra"
		}
		c.Fail(test.fault)
		answer := c.post(t, address+"/oauth2/v2.0/token", formType, entraForms(nil))
		if got := entraSaid(answer); got != test.want || test.fault.RetryAfter > 0 && answer.header.Get("Retry-After") != "7" {
			t.Errorf("%+v: %s, not %s", test.fault, got, test.want)
		}
	}
	c.Heal()
	c.Fail(Fault{Service: "entra", Operation: "discovery", Times: 1})
	if answer := c.send(t, http.MethodGet, address+"/v2.0/.well-known/openid-configuration", ""); answer.status != 429 {
		t.Errorf("discovery: %d", answer.status)
	}
	if answer := c.send(t, http.MethodGet, address+"/v2.0/.well-known/openid-configuration", ""); answer.status != 200 {
		t.Errorf("after the fault: %d", answer.status)
	}
}

func TestEntraTokensOfVersion2(t *testing.T) {
	c := New(t)
	c.AddEntraTenant(EntraTenant{ID: testTenant})
	c.AddServicePrincipal(testTenant, ServicePrincipal{ClientID: testApp, ObjectID: testPrincipal, Secrets: []string{"s"}})
	app := c.AddApplication(testTenant, Application{URI: "api://a", V2: true})
	answer := c.post(t, "https://login.microsoftonline.com/"+testTenant+"/oauth2/v2.0/token", formType, entraForms(map[string]string{"scope": "api://a/.default"}))
	issuer := "https://login.microsoftonline.com/" + testTenant + "/v2.0"
	claims, err := c.verifyToken(answer.text("access_token"), issuer) // by the metadata under the issuer's name
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]any{"iss": issuer, "aud": app.ClientID, "azp": testApp, "azpacr": "1", "ver": "2.0", "appid": nil, "oid": testPrincipal} {
		if claims[name] != want {
			t.Errorf("%s is %v, not %v", name, claims[name], want)
		}
	}
	text, err := json.Marshal(c.Requests())
	if err != nil || strings.Contains(string(text), answer.text("access_token")) {
		t.Errorf("a secret is in the log, or %v", err)
	}
}
