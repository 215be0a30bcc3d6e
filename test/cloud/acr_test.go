package cloud

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/containers/azcontainerregistry"
)

const contoso = "contoso.azurecr.io"

// registries is a cloud with registries of a tenant, and a principal that may pull from them.
func registries(t testing.TB) *Cloud {
	t.Helper()
	c := fixed(t)
	c.AddEntraTenant(EntraTenant{ID: testTenant})
	c.AddServicePrincipal(testTenant, ServicePrincipal{ClientID: testApp, ObjectID: testPrincipal, Secrets: []string{"s"}})
	c.AddAzureRegistry(AzureRegistry{Host: contoso, Tenant: testTenant, Repositories: []string{"app", "team/app"}})
	c.AddAzureRegistry(AzureRegistry{Host: "abac.azurecr.io", Tenant: testTenant, ABAC: true, Repositories: []string{"app", "team/app"}})
	c.AddAzureRegistry(AzureRegistry{Host: "open.azurecr.io", Tenant: testTenant, Anonymous: true, Repositories: []string{"app"}})
	c.AddAzureRegistry(AzureRegistry{Host: "other.westeurope.geo.azurecr.io", Tenant: testTenant, Repositories: []string{"app"}})
	c.GrantAcrPull(contoso, strings.ToUpper(testPrincipal))
	c.GrantRepositoryReader("abac.azurecr.io", testPrincipal, "team/app")
	return c
}

// entra is a principal's token for a resource.
func (c *Cloud) entraTokenFor(resource, client string) string {
	t := c.tenantUnder("", testTenant)
	p, _ := c.principal(t, client)
	app, _ := c.application(t, resource)
	return c.entraToken(t, p, app, resource, "2", time.Hour)
}

// exchanged is a principal's refresh token for a registry.
func (c *Cloud) exchanged(t testing.TB, host string) string {
	t.Helper()
	answer := c.post(t, "https://"+host+"/oauth2/exchange", formType, url.Values{
		"grant_type": {"access_token"}, "service": {host}, "tenant": {testTenant}, "access_token": {c.entraTokenFor(registryAudience, testApp)},
	}.Encode())
	if answer.status != 200 || answer.text("refresh_token") == "" {
		t.Fatalf("%d, %v", answer.status, answer.fields)
	}
	return answer.text("refresh_token")
}

// TestRegistryLogin is the whole way, by Azure's SDKs.
func TestRegistryLogin(t *testing.T) {
	for _, authority := range []string{"login.microsoftonline.com", "login.chinacloudapi.cn"} {
		c := New(t)
		host := map[string]string{"login.microsoftonline.com": contoso, "login.chinacloudapi.cn": "contoso.azurecr.cn"}[authority]
		tenant := c.AddEntraTenant(EntraTenant{Authority: authority})
		p := c.AddServicePrincipal(tenant.ID, ServicePrincipal{Secrets: []string{"s"}})
		c.AddAzureRegistry(AzureRegistry{Host: host, Tenant: tenant.ID, Repositories: []string{"app"}})
		c.GrantAcrPull(host, p.ObjectID)
		options := c.azure(t, authority)
		credential, err := azidentity.NewClientSecretCredential(tenant.ID, p.ClientID, "s", &azidentity.ClientSecretCredentialOptions{ClientOptions: options})
		token, err := registryToken(t, credential, err)
		if err != nil {
			t.Fatal(err)
		}
		client, err := azcontainerregistry.NewAuthenticationClient("https://"+host, &azcontainerregistry.AuthenticationClientOptions{ClientOptions: options})
		if err != nil {
			t.Fatal(err)
		}
		exchange := &azcontainerregistry.AuthenticationClientExchangeAADAccessTokenForACRRefreshTokenOptions{AccessToken: &token, Tenant: &tenant.ID}
		refresh, err := client.ExchangeAADAccessTokenForACRRefreshToken(t.Context(), azcontainerregistry.PostContentSchemaGrantTypeAccessToken, host, exchange)
		if err != nil {
			t.Fatal(err)
		}
		if r := c.last(t); r.Service != "acr" || r.Operation != "exchange" || r.Principal != p.ClientID {
			t.Errorf("%+v", r)
		}
		if err := c.Pull(host+"/app:v1", noUser, *refresh.RefreshToken); err != nil {
			t.Error(err)
		}
		grant := azcontainerregistry.TokenGrantTypeRefreshToken
		access, err := client.ExchangeACRRefreshTokenForACRAccessToken(t.Context(), host, "repository:app:pull", *refresh.RefreshToken,
			&azcontainerregistry.AuthenticationClientExchangeACRRefreshTokenForACRAccessTokenOptions{GrantType: &grant})
		if err != nil {
			t.Fatal(err)
		}
		if answer := c.send(t, http.MethodGet, "https://"+host+"/v2/app/manifests/v1", "", "Authorization", "Bearer "+*access.AccessToken); answer.status != 200 {
			t.Errorf("%d, %v", answer.status, answer.fields)
		}
		c.RevokeRoles(host, p.ObjectID)
		if _, err := client.ExchangeAADAccessTokenForACRRefreshToken(t.Context(), azcontainerregistry.PostContentSchemaGrantTypeAccessToken, host, exchange); err == nil {
			t.Error("a principal without a role has a token")
		}
	}
}

func TestPullFromAzure(t *testing.T) {
	c := registries(t)
	refresh, abac := c.exchanged(t, contoso), c.exchanged(t, "abac.azurecr.io")
	access := func(scope string) string {
		return c.post(t, "https://"+contoso+"/oauth2/token", formType, url.Values{
			"grant_type": {"refresh_token"}, "service": {contoso}, "scope": {scope}, "refresh_token": {refresh},
		}.Encode()).text("access_token")
	}
	stranger := c.AddServicePrincipal(testTenant, ServicePrincipal{Secrets: []string{"s"}})
	off := c.AddServicePrincipal(testTenant, ServicePrincipal{Secrets: []string{"s"}, Disabled: true})
	c.GrantAcrPull(contoso, off.ObjectID)
	all := c.AddServicePrincipal(testTenant, ServicePrincipal{Secrets: []string{"s"}})
	c.GrantRepositoryReader("abac.azurecr.io", all.ObjectID)
	pullOnly := c.AddServicePrincipal(testTenant, ServicePrincipal{Secrets: []string{"s"}})
	c.GrantAcrPull("abac.azurecr.io", pullOnly.ObjectID)
	c.GrantRepositoryReader(contoso, stranger.ObjectID)
	forged := refresh[:strings.LastIndexByte(refresh, '.')] + "." + strings.Split(abac, ".")[2]
	named, _ := c.azureHost(contoso)
	named.Host = "another.azurecr.io"
	const denied, none = "401 UNAUTHORIZED", "404 NAME_UNKNOWN"
	for _, test := range []struct {
		name, image, user, password, want string
	}{
		{"a refresh token", contoso + "/app:v1", noUser, refresh, ""},
		{"by digest", contoso + "/team/app@sha256:00", noUser, refresh, ""},
		{"an access token", contoso + "/app", noUser, access("repository:app:pull"), ""},
		{"a service principal", contoso + "/app", testApp, "s", ""},
		{"a reader of a repository", "abac.azurecr.io/team/app", noUser, abac, ""},
		{"a reader of all", "abac.azurecr.io/app", all.ClientID, "s", ""},
		{"anybody", "open.azurecr.io/app", "", "", ""},
		{"somebody where anybody may", "open.azurecr.io/app", stranger.ClientID, "s", ""},

		{"nobody", contoso + "/app", "", "", denied},
		{"another user name", contoso + "/app", "AWS", refresh, denied},
		{"no token", contoso + "/app", noUser, "x", denied},
		{"Entra's token", contoso + "/app", noUser, c.entraTokenFor(registryAudience, testApp), denied},
		{"another registry's token", contoso + "/app", noUser, abac, denied},
		{"a registry without a role", "other.westeurope.geo.azurecr.io/app", noUser, refresh, denied},
		{"a token for another name", contoso + "/app", noUser, c.acrIssue(named, acrCaller{object: testPrincipal}, time.Hour, map[string]any{"grant_type": "refresh_token"}), denied},
		{"a forged token", contoso + "/app", noUser, forged, denied},
		{"an access token for another repository", contoso + "/team/app", noUser, access("repository:app:pull"), denied},
		{"a wrong secret", contoso + "/app", testApp, "t", denied},
		{"a disabled service principal", contoso + "/app", off.ClientID, "s", denied},
		{"a service principal without a role", contoso + "/app", stranger.ClientID, "s", denied},
		{"a repository that is not among them", "abac.azurecr.io/app", noUser, abac, denied},
		{"AcrPull where roles are by repository", "abac.azurecr.io/app", pullOnly.ClientID, "s", denied},
		{"no such repository", contoso + "/none", noUser, refresh, none},
		{"no such repository for anybody", "open.azurecr.io/none", "", "", none},
		{"no such host", "none.azurecr.io/app", noUser, refresh, "no such host"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := c.Pull(test.image, test.user, test.password)
			if (err == nil) != (test.want == "") || err != nil && !strings.HasPrefix(err.Error(), "pulling "+test.image+": "+test.want) {
				t.Errorf("%v, not %q", err, test.want)
			}
		})
	}
	t.Run("its end", func(t *testing.T) {
		defer c.SetClockOffset(0)
		c.SetClockOffset(3*time.Hour - time.Second)
		if err := c.Pull(contoso+"/app", noUser, refresh); err != nil {
			t.Errorf("before: %v", err)
		}
		c.SetClockOffset(3 * time.Hour)
		if err := c.Pull(contoso+"/app", noUser, refresh); err == nil {
			t.Error("after it the token is good")
		}
	})
	t.Run("another life", func(t *testing.T) {
		defer c.SetClockOffset(0)
		c.SetRefreshTokenLife(contoso, time.Minute)
		short := c.exchanged(t, contoso)
		c.SetClockOffset(time.Minute)
		if err := c.Pull(contoso+"/app", noUser, short); err == nil {
			t.Error("the token is good after its end")
		}
	})
	t.Run("another registry of the name", func(t *testing.T) {
		c.AddAzureRegistry(AzureRegistry{Host: contoso, Tenant: testTenant, Repositories: []string{"app"}})
		c.GrantAcrPull(contoso, testPrincipal)
		if err := c.Pull(contoso+"/app", noUser, refresh); err == nil {
			t.Error("the token of the one before is good")
		}
	})
}

func TestAzureRegistryOverHTTP(t *testing.T) {
	c := registries(t)
	refresh := c.exchanged(t, contoso)
	basic := func(user, password string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	}
	get := func(host, path, authorization string) googleAnswer {
		if authorization == "" {
			return c.send(t, http.MethodGet, "https://"+host+path, "")
		}
		return c.send(t, http.MethodGet, "https://"+host+path, "", "Authorization", authorization)
	}
	access := get(contoso, "/oauth2/token?service="+contoso+"&scope=repository:app:pull", basic(noUser, refresh)).text("access_token")
	anonymous := get("open.azurecr.io", "/oauth2/token?service=open.azurecr.io&scope=repository:app:pull", "").text("access_token")
	if access == "" || anonymous == "" {
		t.Fatalf("tokens %q and %q", access, anonymous)
	}
	for _, test := range []struct {
		name, host, path, authorization string
		status                          int
		code, operation, principal      string
		challenge                       string // what it has behind the service
	}{
		{"the registry", contoso, "/v2/", basic(noUser, refresh), 200, "", "GET /v2/", testApp, ""},
		{"a manifest", contoso, "/v2/app/manifests/v1", basic(noUser, refresh), 200, "", "GET /v2/app/manifests/v1", testApp, ""},
		{"with an access token", contoso, "/v2/app/manifests/v1", "Bearer " + access, 200, "", "GET /v2/app/manifests/v1", testApp, ""},
		{"a manifest for anybody", "open.azurecr.io", "/v2/app/manifests/v1", "Bearer " + anonymous, 200, "", "GET /v2/app/manifests/v1", "", ""},
		{"the challenge", contoso, "/v2/", "", 401, "UNAUTHORIZED", "challenge", "", "-"},
		{"a manifest's challenge", contoso, "/v2/team/app/manifests/v1", "", 401, "UNAUTHORIZED", "GET /v2/team/app/manifests/v1", "", `,scope="repository:team/app:pull"`},
		{"anybody without a token", "open.azurecr.io", "/v2/app/manifests/v1", "", 401, "UNAUTHORIZED", "GET /v2/app/manifests/v1", "", `,scope="repository:app:pull"`},
		{"a refresh token as an access token", contoso, "/v2/", "Bearer " + refresh, 401, "UNAUTHORIZED", "GET /v2/", "", `,error="invalid_token"`},
		{"another token", contoso, "/v2/app/manifests/v1", "Bearer x", 401, "UNAUTHORIZED", "GET /v2/app/manifests/v1", "", `,scope="repository:app:pull",error="invalid_token"`},
		{"another password", contoso, "/v2/", basic(noUser, "x"), 401, "UNAUTHORIZED", "GET /v2/", "", "-"},
		{"another repository", contoso, "/v2/team/app/manifests/v1", "Bearer " + access, 401, "UNAUTHORIZED", "GET /v2/team/app/manifests/v1", testApp, `,scope="repository:team/app:pull"`},
		{"no such repository", contoso, "/v2/none/manifests/v1", basic(noUser, refresh), 404, "NAME_UNKNOWN", "GET /v2/none/manifests/v1", testApp, ""},
		{"no such page", contoso, "/v2/app/tags/list", basic(noUser, refresh), 404, "UNSUPPORTED", "GET /v2/app/tags/list", testApp, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			answer := get(test.host, test.path, test.authorization)
			if r := c.last(t); answer.status != test.status || r.Code != test.code || r.Operation != test.operation || r.Principal != test.principal || r.Service != "acr" {
				t.Errorf("%d, %+v", answer.status, r)
			}
			want := ""
			if test.challenge != "" {
				want = `Bearer realm="https://` + test.host + `/oauth2/token",service="` + test.host + `"` + strings.TrimPrefix(test.challenge, "-")
			}
			if got := answer.header.Get("WWW-Authenticate"); got != want {
				t.Errorf("challenge %s, not %s", got, want)
			}
			if problems, _ := answer.fields["errors"].([]any); answer.status != 200 && len(problems) != 1 {
				t.Errorf("%v", answer.fields)
			}
		})
	}
	c.SetClockOffset(75 * time.Minute)
	if answer := get(contoso, "/v2/app/manifests/v1", "Bearer "+access); answer.status != 401 {
		t.Errorf("after the access token's end: %d", answer.status)
	}
	c.Fail(Fault{Service: "acr", Operation: "challenge", Status: 503, Code: "UNAVAILABLE"})
	if answer := get(contoso, "/v2/", ""); answer.status != 503 || c.last(t).Code != "UNAVAILABLE" {
		t.Errorf("a fault: %d", answer.status)
	}
}
