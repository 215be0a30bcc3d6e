package cloud

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// acrSaid is what a registry's endpoint for tokens says: status and code.
func acrSaid(a googleAnswer) string {
	problems, _ := a.fields["errors"].([]any)
	if len(problems) == 0 {
		return fmt.Sprint(a.status)
	}
	problem, _ := problems[0].(map[string]any)
	return fmt.Sprintf("%d %s", a.status, problem["code"])
}

// changedForm is a form with some parameters changed, "" being nothing at all.
func changedForm(form url.Values, change map[string]string) string {
	all := maps.Clone(form)
	for name, value := range change {
		all.Del(name)
		if value != "" {
			all.Set(name, value)
		}
	}
	return all.Encode()
}

func TestRegistryExchange(t *testing.T) {
	c := registries(t)
	foreign := c.AddEntraTenant(EntraTenant{})
	tenant, far := c.tenantUnder("", testTenant), c.tenantUnder("", foreign.ID)
	stranger := c.AddServicePrincipal(testTenant, ServicePrincipal{})
	good := c.entraTokenFor(registryAudience, testApp)
	claims := func(change map[string]any) map[string]any {
		all := map[string]any{
			"aud": registryAudience, "iss": tenant.v1.URL(), "tid": testTenant, "oid": testPrincipal, "appid": testApp, "nbf": c.Now().Unix(), "exp": c.Now().Add(time.Hour).Unix(),
		}
		maps.Copy(all, change)
		return all
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	const denied, bad = "401 UNAUTHORIZED", "400 BAD_REQUEST"
	usual := url.Values{"grant_type": {"access_token"}, "service": {contoso}, "tenant": {testTenant}, "access_token": {good}}
	for _, test := range []struct {
		name   string
		change map[string]string
		token  string
		kind   string
		path   string
		want   string
	}{
		{name: "as it is", want: "200"},
		{name: "without a tenant, as Azure's SDK does it", change: map[string]string{"tenant": ""}, want: "200"},
		{name: "with a version", path: "?api-version=2021-07-01", want: "200"},
		{name: "for the Resource Manager", token: c.entraTokenFor("https://management.azure.com/", testApp), want: "200"},
		{name: "for the Resource Manager by its older name", token: c.entraTokenFor("https://management.core.windows.net/", testApp), want: "200"},
		{name: "by the application's id", token: c.entraTokenFor(registryApp, testApp), want: "200"},
		{name: "with a refresh token", change: map[string]string{"grant_type": "access_token_refresh_token", "refresh_token": "x"}, want: "200"},
		{name: "a form with a charset", kind: formType + "; charset=utf-8", want: "200"},

		{name: "no grant", change: map[string]string{"grant_type": ""}, want: bad},
		{name: "another grant", change: map[string]string{"grant_type": "refresh_token", "refresh_token": "x"}, want: bad},
		{name: "without the refresh token", change: map[string]string{"grant_type": "access_token_refresh_token"}, want: bad},
		{name: "no token", change: map[string]string{"access_token": ""}, want: bad},
		{name: "no service", change: map[string]string{"service": ""}, want: bad},
		{name: "another service", change: map[string]string{"service": "abac.azurecr.io"}, want: bad},
		{name: "no form", kind: "application/json", want: "415 UNSUPPORTED"},
		{name: "another tenant", change: map[string]string{"tenant": foreign.ID}, want: denied},
		{name: "rubbish", token: "a.b.c", want: denied},
		{name: "for another resource", token: tenant.v1.Token(claims(map[string]any{"aud": "https://vault.azure.net"})), want: denied},
		{name: "of version 2.0", token: tenant.v2.Token(claims(map[string]any{"iss": tenant.v2.URL()})), want: denied},
		{name: "a managed identity's proof", token: c.entraTokenFor("api://AzureADTokenExchange", testApp), want: denied},
		{name: "of another tenant", token: far.v1.Token(claims(map[string]any{"iss": far.v1.URL(), "tid": foreign.ID})), change: map[string]string{"tenant": foreign.ID}, want: denied},
		{name: "of another tenant that says it is this one", token: far.v1.Token(claims(nil)), want: denied},
		{name: "signed by a stranger", token: jwt(t, jose.JSONWebKey{Key: key, KeyID: tenant.v1.keys.Keys[0].KeyID}, jose.RS256, nil, claims(nil)), want: denied},
		{name: "expired", token: tenant.v1.Token(claims(map[string]any{"exp": c.Now().Unix()})), want: denied},
		{name: "of tomorrow", token: tenant.v1.Token(claims(map[string]any{"nbf": c.Now().Add(6 * time.Minute).Unix()})), want: denied},
		{name: "without a role", token: c.entraTokenFor(registryAudience, stranger.ClientID), want: denied},
		{name: "of nobody", token: tenant.v1.Token(claims(map[string]any{"oid": nil})), want: denied},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.kind == "" {
				test.kind = formType
			}
			if test.token != "" {
				if test.change == nil {
					test.change = map[string]string{}
				}
				test.change["access_token"] = test.token
			}
			answer := c.post(t, "https://"+contoso+"/oauth2/exchange"+test.path, test.kind, changedForm(usual, test.change))
			if got := acrSaid(answer); got != test.want || (answer.text("refresh_token") == "") != (test.want != "200") {
				t.Errorf("%s, not %s", got, test.want)
			}
			if r := c.last(t); r.Operation != "exchange" || (r.Principal == testApp) != (test.want == "200") {
				t.Errorf("%+v", r)
			}
		})
	}
	if got := acrSaid(c.send(t, http.MethodGet, "https://"+contoso+"/oauth2/exchange?"+usual.Encode(), "")); got != "404 NOT_FOUND" {
		t.Errorf("a GET: %s", got)
	}
	c.Fail(Fault{Service: "acr", Operation: "exchange", RetryAfter: 9 * time.Second})
	if answer := c.post(t, "https://"+contoso+"/oauth2/exchange", formType, usual.Encode()); acrSaid(answer) != "429 TOOMANYREQUESTS" || answer.header.Get("Retry-After") != "9" {
		t.Errorf("throttled: %s", acrSaid(answer))
	}
}

// payload is what a token says.
func payload(t testing.TB, token string) map[string]any {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("no token: %q", token)
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(text, &claims); err != nil {
		t.Fatal(err)
	}
	return claims
}

func TestRegistryTokens(t *testing.T) {
	c := registries(t)
	refresh := c.exchanged(t, contoso)
	now := float64(c.Now().Unix())
	claims := payload(t, refresh)
	for name, want := range map[string]any{
		"iss": "Azure Container Registry", "aud": contoso, "sub": testPrincipal, "appid": testApp, "tenant": testTenant, "grant_type": "refresh_token", "version": "1.0",
		"iat": now, "nbf": now, "exp": now + 3*3600,
	} {
		if claims[name] != want {
			t.Errorf("refresh token: %s is %v, not %v", name, claims[name], want)
		}
	}
	const denied, bad = "401 UNAUTHORIZED", "400 BAD_REQUEST"
	usual := url.Values{"grant_type": {"refresh_token"}, "service": {contoso}, "scope": {"repository:app:pull"}, "refresh_token": {refresh}}
	basic := func(user, password string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	}
	for _, test := range []struct {
		name   string
		change map[string]string
		get    bool // docker's older way
		basic  string
		host   string
		want   string
		access string // of the token
	}{
		{name: "a pull", want: "200", access: `[{"type":"repository","name":"app","actions":["pull"]}]`},
		{
			name: "two pulls", change: map[string]string{"scope": "repository:app:pull repository:team/app:pull"}, want: "200",
			access: `[{"type":"repository","name":"app","actions":["pull"]},{"type":"repository","name":"team/app","actions":["pull"]}]`,
		},
		{name: "a push too", change: map[string]string{"scope": "repository:app:pull,push"}, want: "200", access: `[{"type":"repository","name":"app","actions":["pull"]}]`},
		{name: "nothing but to know", change: map[string]string{"scope": ""}, want: "200", access: `[]`},
		{name: "by password, as containerd does it", change: map[string]string{"grant_type": "password", "username": noUser, "password": refresh}, want: "200", access: `[{"type":"repository","name":"app","actions":["pull"]}]`},
		{name: "by secret", change: map[string]string{"grant_type": "password", "username": testApp, "password": "s"}, want: "200", access: `[{"type":"repository","name":"app","actions":["pull"]}]`},
		{name: "docker's older way", get: true, basic: basic(noUser, refresh), want: "200", access: `[{"type":"repository","name":"app","actions":["pull"]}]`},
		{name: "docker's login", get: true, basic: basic(noUser, refresh), change: map[string]string{"scope": ""}, want: "200", access: `[]`},
		{name: "anybody", get: true, host: "open.azurecr.io", want: "200", access: `[{"type":"repository","name":"app","actions":["pull"]}]`},
		{
			name: "anybody, as Azure's SDK does it", host: "open.azurecr.io", change: map[string]string{"grant_type": "password", "refresh_token": ""}, want: "200",
			access: `[{"type":"repository","name":"app","actions":["pull"]}]`,
		},

		{name: "a push", change: map[string]string{"scope": "repository:app:push"}, want: denied},
		{name: "the catalog", change: map[string]string{"scope": "registry:catalog:*"}, want: denied},
		{name: "no scope of that kind", change: map[string]string{"scope": "x"}, want: bad},
		{name: "no grant", change: map[string]string{"grant_type": ""}, want: bad},
		{name: "another grant", change: map[string]string{"grant_type": "access_token"}, want: bad},
		{name: "another service", change: map[string]string{"service": "abac.azurecr.io"}, want: bad},
		{name: "another service, the older way", get: true, basic: basic(noUser, refresh), change: map[string]string{"service": "abac.azurecr.io"}, want: bad},
		{name: "no token", change: map[string]string{"refresh_token": ""}, want: denied},
		{name: "Entra's token", change: map[string]string{"refresh_token": c.entraTokenFor(registryAudience, testApp)}, want: denied},
		{name: "nobody", get: true, want: denied},
		{name: "nobody, by password", change: map[string]string{"grant_type": "password"}, want: denied},
		{name: "nobody who only wants to know", get: true, host: "open.azurecr.io", change: map[string]string{"scope": ""}, want: denied},
		{name: "another registry's token", host: "abac.azurecr.io", change: map[string]string{"scope": "repository:team/app:pull"}, want: denied},
		{name: "another password", get: true, basic: basic(noUser, "x"), want: denied},
	} {
		t.Run(test.name, func(t *testing.T) {
			host := contoso
			if test.host != "" {
				host = test.host
			}
			change := map[string]string{"service": host}
			maps.Copy(change, test.change)
			var answer googleAnswer
			switch body := changedForm(usual, change); {
			case test.basic != "":
				answer = c.send(t, http.MethodGet, "https://"+host+"/oauth2/token?"+body, "", "Authorization", test.basic)
			case test.get:
				answer = c.send(t, http.MethodGet, "https://"+host+"/oauth2/token?"+body, "")
			default:
				answer = c.post(t, "https://"+host+"/oauth2/token", formType, body)
			}
			if got := acrSaid(answer); got != test.want || c.last(t).Operation != "token" {
				t.Fatalf("%s, not %s", got, test.want)
			}
			if test.want != "200" {
				return
			}
			claims := payload(t, answer.text("access_token"))
			var got []acrAccess
			if err := into(claims["access"], &got); err != nil {
				t.Fatal(err)
			}
			if text, _ := json.Marshal(got); string(text) != test.access || claims["grant_type"] != "access_token" || claims["aud"] != host || claims["exp"] != now+4500 {
				t.Errorf("%v", claims)
			}
		})
	}
	t.Run("an access token wants no more", func(t *testing.T) {
		access := c.post(t, "https://"+contoso+"/oauth2/token", formType, usual.Encode()).text("access_token")
		for scope, want := range map[string]string{"repository:app:pull": "200", "repository:team/app:pull": denied} {
			if got := acrSaid(c.send(t, http.MethodGet, "https://"+contoso+"/oauth2/token?service="+contoso+"&scope="+scope, "", "Authorization", basic(noUser, access))); got != want {
				t.Errorf("%s: %s, not %s", scope, got, want)
			}
		}
	})
}
