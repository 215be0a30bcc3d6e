package cloud

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

const testServiceAccount = "system:serviceaccount:team:puller"

// bound is a cluster's proxy, with a managed identity that the service account may use.
func bound(t testing.TB) (*Cloud, *IdentityBinding, *Issuer) {
	t.Helper()
	c := fixed(t)
	c.AddEntraTenant(EntraTenant{ID: testTenant})
	c.AddServicePrincipal(testTenant, ServicePrincipal{ClientID: testApp, ObjectID: testPrincipal})
	issuer := c.AddIssuer("https://westeurope.oic.prod-aks.azure.com/" + testTenant + "/cluster/")
	b := c.IdentityBinding(testTenant, issuer)
	b.Bind(strings.ToUpper(testApp), "team", "puller")
	return c, b, issuer
}

// TestIdentityBinding is as Azure's SDK does it in a pod.
func TestIdentityBinding(t *testing.T) {
	c, b, issuer := bound(t)
	file := filepath.Join(t.TempDir(), "token")
	write(t, file, issuer.Token(map[string]any{"sub": testServiceAccount, "aud": []string{"api://AKSIdentityBinding"}}))
	only(t, b.Environ())
	credential, err := azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{
		ClientOptions: azcore.ClientOptions{Retry: policy.RetryOptions{MaxRetries: -1}}, ClientID: testApp, TenantID: testTenant, TokenFilePath: file, EnableAzureProxy: true, DisableInstanceDiscovery: true,
	})
	token, err := registryToken(t, credential, err)
	if err != nil {
		t.Fatal(err)
	}
	if claims, err := c.tenantUnder("", testTenant).v1.verify(token); err != nil || claims["oid"] != testPrincipal {
		t.Errorf("%v, %v", claims, err)
	}
	var operations []string
	for _, r := range c.Requests() {
		operations = append(operations, r.Service+" "+r.Operation)
	}
	if got := fmt.Sprint(operations); got != "[identity-binding discovery identity-binding token]" {
		t.Error(got)
	}
}

// by is a client that knows the proxy, under a name.
func (b *IdentityBinding) by(t testing.TB, name string) *http.Client {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(mustRead(t, b.CAFile()))) {
		t.Fatal("no certificate")
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: name, MinVersion: tls.VersionTLS12}}}
}

func mustRead(t testing.TB, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func TestIdentityBindingRefusals(t *testing.T) {
	c, b, issuer := bound(t)
	other := c.AddIssuer("https://other.example.com/")
	unbound := c.AddServicePrincipal(testTenant, ServicePrincipal{})
	now := c.Now()
	client := b.by(t, b.SNIName())
	for _, test := range []struct {
		name   string
		by     *Issuer
		change map[string]any
		path   string
		form   map[string]string
		want   string // status and code
	}{
		{name: "as it is", want: "200"},
		{name: "at its root, as AKS's own provider does it", path: "/", want: "200"},
		{name: "another cluster's token", by: other, want: "401 invalid_client"},
		{name: "another cluster's token that says it is this one's", by: other, change: map[string]any{"iss": issuer.URL()}, want: "401 invalid_client"},
		{name: "a token that says it is another cluster's", change: map[string]any{"iss": other.URL()}, want: "401 invalid_client"},
		{name: "a token for Entra", change: map[string]any{"aud": "api://AzureADTokenExchange"}, want: "401 invalid_client"},
		{name: "an expired token", change: map[string]any{"exp": now.Unix()}, want: "401 invalid_client"},
		{name: "a token of tomorrow", change: map[string]any{"nbf": now.Add(2 * time.Minute).Unix()}, want: "401 invalid_client"},
		{name: "another service account", change: map[string]any{"sub": "system:serviceaccount:team:other"}, want: "403 access_denied"},
		{name: "another identity", form: map[string]string{"client_id": unbound.ClientID}, want: "403 access_denied"},
		{name: "an unknown resource", form: map[string]string{"scope": "api://x/.default"}, want: "400 AADSTS500011"},
		{name: "another tenant", path: "/" + testApp + "/oauth2/v2.0/token", want: "400 AADSTS90002"},
		{name: "no form", form: map[string]string{"client_assertion": ""}, want: "401 invalid_client"},
		{name: "no page", path: "/x", want: "404"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.by == nil {
				test.by = issuer
			}
			claims := map[string]any{"sub": testServiceAccount, "aud": []string{bindingAudience}}
			maps.Copy(claims, test.change)
			form := url.Values{
				"grant_type": {"client_credentials"}, "client_id": {testApp}, "scope": {registryScope}, "client_assertion_type": {assertionType}, "client_assertion": {test.by.Token(claims)},
			}
			if test.path == "" {
				test.path = "/" + testTenant + "/oauth2/v2.0/token"
			}
			answer := sendBy(t, client, http.MethodPost, b.URL()+test.path, changedForm(form, test.form), "Content-Type", formType)
			r := c.last(t)
			if got := strings.TrimSpace(fmt.Sprint(answer.status, " ", r.Code)); got != test.want || r.Service != "identity-binding" {
				t.Errorf("%s, %v, not %s", got, answer.fields, test.want)
			}
		})
	}
	t.Run("without its federated credential", func(t *testing.T) {
		c.AddServicePrincipal(testTenant, ServicePrincipal{ClientID: testApp})
		form := url.Values{
			"grant_type": {"client_credentials"}, "client_id": {testApp}, "scope": {registryScope}, "client_assertion_type": {assertionType},
			"client_assertion": {issuer.Token(map[string]any{"sub": testServiceAccount, "aud": bindingAudience})},
		}
		if got := entraSaid(sendBy(t, client, http.MethodPost, b.URL()+"/", form.Encode(), "Content-Type", formType)); got != "401 invalid_client 70025" {
			t.Error(got)
		}
	})
	t.Run("under another name", func(t *testing.T) {
		for _, name := range []string{"", "127.0.0.1", "kubernetes.default.svc"} {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, b.URL(), http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			careless := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{ServerName: name, InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}}} //nolint:gosec // the proxy is to refuse it
			if answer, err := careless.Do(r); err == nil {
				_ = answer.Body.Close()
				t.Errorf("%q is served", name)
			}
		}
	})
	t.Run("throttled", func(t *testing.T) {
		c.Fail(Fault{Service: "identity-binding", Operation: "token"})
		if answer := sendBy(t, client, http.MethodPost, b.URL()+"/", "", "Content-Type", formType); answer.status != 429 {
			t.Errorf("%d", answer.status)
		}
	})
}
