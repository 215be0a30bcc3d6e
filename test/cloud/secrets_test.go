package cloud

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestSecretsAreKept: each kind of token and what was shown for it can be looked for afterwards.
func TestSecretsAreKept(t *testing.T) {
	c := New(t)
	tenant := c.AddEntraTenant(EntraTenant{}).ID
	const host = "contoso.azurecr.io"
	c.AddAzureRegistry(AzureRegistry{Host: host, Tenant: tenant, Repositories: []string{"app"}})
	issuer := c.AddIssuer("https://issuer.example")
	p := c.AddServicePrincipal(tenant, ServicePrincipal{Federated: []FederatedCredential{{Issuer: issuer.URL(), Subject: "node"}}})
	c.GrantAcrPull(host, p.ObjectID)
	post := func(url string, form url.Values) (answer map[string]any) {
		t.Helper()
		response, err := c.Client().PostForm(url, form)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if err := json.NewDecoder(response.Body).Decode(&answer); err != nil || response.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d, %v", url, response.StatusCode, err)
		}
		return answer
	}
	assertion := issuer.Token(map[string]any{"sub": "node", "aud": "api://AzureADTokenExchange"})
	entra, _ := post("https://login.microsoftonline.com/"+tenant+"/oauth2/v2.0/token", url.Values{
		"grant_type": {"client_credentials"}, "client_id": {p.ClientID}, "scope": {registryAudience + "/.default"}, "client_assertion_type": {assertionType}, "client_assertion": {assertion},
	})["access_token"].(string)
	refresh, _ := post("https://"+host+"/oauth2/exchange", url.Values{"grant_type": {"access_token"}, "service": {host}, "access_token": {entra}})["refresh_token"].(string)
	for name, secret := range map[string]string{"an issuer's token": assertion, "Entra's token": entra, "a registry's token": refresh} {
		if secret == "" || !slices.Contains(c.Secrets(), secret) {
			t.Errorf("%s is not kept", name)
		}
	}
	const shown = "of-a-client-of-its-own"
	response, err := c.Client().PostForm("https://login.microsoftonline.com/"+tenant+"/oauth2/v2.0/token", url.Values{
		"grant_type": {"client_credentials"}, "client_id": {p.ClientID}, "scope": {registryAudience + "/.default"}, "client_assertion_type": {assertionType}, "client_assertion": {shown},
	})
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if !slices.Contains(c.Secrets(), shown) {
		t.Error("an assertion that Entra was shown is not kept")
	}
	_, header, _ := strings.Cut(c.AppServiceIdentity(ManagedIdentity{}).Environ()[1], "=")
	if !slices.Contains(c.Secrets(), header) {
		t.Error("a header is not kept")
	}
	arc, err := c.AzureArc(ManagedIdentity{System: true})
	if err != nil {
		t.Skip(err)
	}
	_, address, _ := strings.Cut(arc.Environ()[0], "=")
	q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address+"?api-version=2020-06-01&resource="+registryAudience, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Metadata", "true")
	if response, err = http.DefaultClient.Do(q); err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	key, err := os.ReadFile(strings.TrimPrefix(response.Header.Get("WWW-Authenticate"), "Basic realm="))
	if err != nil || !slices.Contains(c.Secrets(), string(key)) {
		t.Errorf("Azure Arc's key is not kept (%v)", err)
	}
}

// TestAFaultThatRepeatsWhatItWasSent gives back body and header, as JSON that can be read.
func TestAFaultThatRepeatsWhatItWasSent(t *testing.T) {
	c := New(t)
	tenant := c.AddEntraTenant(EntraTenant{}).ID
	c.Fail(Fault{Service: "entra", Status: http.StatusBadRequest, Body: `{"error":"` + Sent + `"}`})
	q, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://login.microsoftonline.com/"+tenant+"/oauth2/v2.0/token", strings.NewReader(`"a \ body"`))
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Authorization", "Bearer hunter2")
	response, err := c.Client().Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var answer struct {
		Error string `json:"error"`
	}
	body, _ := io.ReadAll(response.Body)
	if err := json.Unmarshal(body, &answer); err != nil || !strings.Contains(answer.Error, `"a \ body"`) || !strings.Contains(answer.Error, "Bearer hunter2") {
		t.Errorf("%s: %v", body, err)
	}
}
