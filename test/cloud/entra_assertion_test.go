package cloud

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // x5t is a SHA-1 thumbprint
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/go-jose/go-jose/v4"
)

// jwt is a token with these headers; a nil claim is left out.
func jwt(t testing.TB, key any, algorithm jose.SignatureAlgorithm, headers, claims map[string]any) string {
	t.Helper()
	options := &jose.SignerOptions{ExtraHeaders: map[jose.HeaderKey]any{"typ": "JWT"}}
	for name, value := range headers {
		options.ExtraHeaders[jose.HeaderKey(name)] = value
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: key}, options)
	if err != nil {
		t.Fatal(err)
	}
	claims = maps.Clone(claims)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// assertionForm is a request by an assertion.
func assertionForm(token string) string {
	return entraForms(map[string]string{"client_secret": "", "client_assertion": token, "client_assertion_type": assertionType})
}

func TestEntraCertificates(t *testing.T) {
	c := fixed(t)
	c.AddEntraTenant(EntraTenant{ID: testTenant})
	now := c.Now()
	key, certificate := keyPair(t, now.Add(-time.Hour), now.Add(time.Hour))
	oldKey, old := keyPair(t, now.Add(-2*time.Hour), now)
	futureKey, future := keyPair(t, now.Add(time.Minute), now.Add(time.Hour))
	strangeKey, strange := keyPair(t, now.Add(-time.Hour), now.Add(time.Hour))
	c.AddServicePrincipal(testTenant, ServicePrincipal{ClientID: testApp, Certificates: []*x509.Certificate{old, certificate, future}})
	const address = "https://login.microsoftonline.com/" + testTenant + "/oauth2/v2.0/token"
	sha2 := func(of *x509.Certificate) map[string]any {
		sum := sha256.Sum256(of.Raw)
		return map[string]any{"x5t#S256": base64.RawURLEncoding.EncodeToString(sum[:])}
	}
	sum := sha1.Sum(certificate.Raw) //nolint:gosec // as above
	x5t := map[string]any{"x5t": base64.RawURLEncoding.EncodeToString(sum[:])}
	sum256 := sha256.Sum256(certificate.Raw)
	claims := map[string]any{"aud": address, "iss": testApp, "sub": testApp, "jti": newUUID(), "nbf": now.Unix(), "exp": now.Add(10 * time.Minute).Unix()}
	for _, test := range []struct {
		name      string
		key       *rsa.PrivateKey
		algorithm jose.SignatureAlgorithm
		headers   map[string]any
		change    map[string]any
		want      string
	}{
		{name: "PS256", want: "200"},
		{name: "RS256 with the old thumbprint", algorithm: jose.RS256, headers: x5t, want: "200"},
		{name: "RS256 with the new thumbprint", algorithm: jose.RS256, want: "200"},
		{name: "a thumbprint in the other alphabet", headers: map[string]any{"x5t#S256": base64.StdEncoding.EncodeToString(sum256[:])}, want: "200"},
		{
			name: "with the certificate", headers: map[string]any{"x5t#S256": sha2(certificate)["x5t#S256"], "x5c": []string{base64.StdEncoding.EncodeToString(certificate.Raw)}},
			want: "200",
		},
		{name: "for the endpoint of version 1.0", change: map[string]any{"aud": "https://login.microsoftonline.com/" + testTenant + "/oauth2/token"}, want: "200"},
		{name: "for the issuer", change: map[string]any{"aud": "https://login.microsoftonline.com/" + testTenant + "/v2.0"}, want: "200"},
		{name: "for another name", change: map[string]any{"aud": "https://login.windows.net/" + testTenant + "/oauth2/v2.0/token"}, want: "200"},
		{name: "for several", change: map[string]any{"aud": []string{"x", address}}, want: "200"},
		{name: "without nbf", change: map[string]any{"nbf": nil}, want: "200"},
		{name: "a clock a little off", change: map[string]any{"nbf": now.Add(5 * time.Minute).Unix(), "exp": now.Add(-299 * time.Second).Unix()}, want: "200"},

		{name: "another algorithm", algorithm: jose.PS384, want: "401 invalid_client 5002738"},
		{name: "without a thumbprint", headers: map[string]any{}, want: "401 invalid_client 5002723"},
		{name: "a thumbprint that is none", headers: map[string]any{"x5t#S256": "?"}, want: "401 invalid_client 5002723"},
		{name: "an unknown key", key: strangeKey, headers: sha2(strange), want: "401 invalid_client 700027"},
		{name: "another key", key: strangeKey, want: "401 invalid_client 700027"},
		{name: "an expired certificate", key: oldKey, headers: sha2(old), want: "401 invalid_client 700027"},
		{name: "a certificate of tomorrow", key: futureKey, headers: sha2(future), want: "401 invalid_client 700027"},
		{name: "for another endpoint", change: map[string]any{"aud": "https://login.microsoftonline.com/" + testApp + "/oauth2/v2.0/token"}, want: "401 invalid_client 700023"},
		{name: "for another cloud", change: map[string]any{"aud": "https://login.microsoftonline.us/" + testTenant + "/oauth2/v2.0/token"}, want: "401 invalid_client 700023"},
		{name: "for the tenant", change: map[string]any{"aud": "https://login.microsoftonline.com/" + testTenant}, want: "401 invalid_client 700023"},
		{name: "another issuer", change: map[string]any{"iss": testPrincipal}, want: "401 invalid_client 700021"},
		{name: "another subject", change: map[string]any{"sub": testPrincipal}, want: "401 invalid_client 700021"},
		{name: "without an issuer", change: map[string]any{"iss": nil}, want: "400 invalid_request 90014"},
		{name: "without a subject", change: map[string]any{"sub": nil}, want: "400 invalid_request 90014"},
		{name: "without an audience", change: map[string]any{"aud": nil}, want: "400 invalid_request 90014"},
		{name: "expired", change: map[string]any{"exp": now.Add(-5 * time.Minute).Unix()}, want: "401 invalid_client 700024"},
		{name: "without an end", change: map[string]any{"exp": nil}, want: "401 invalid_client 700024"},
		{name: "of tomorrow", change: map[string]any{"nbf": now.Add(301 * time.Second).Unix()}, want: "401 invalid_client 700024"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.key == nil {
				test.key = key
			}
			if test.algorithm == "" {
				test.algorithm = jose.PS256
			}
			if test.headers == nil {
				test.headers = sha2(certificate)
			}
			changed := maps.Clone(claims)
			maps.Copy(changed, test.change)
			if got := entraSaid(c.post(t, address, formType, assertionForm(jwt(t, test.key, test.algorithm, test.headers, changed)))); got != test.want {
				t.Errorf("%s, not %s", got, test.want)
			}
		})
	}
	t.Run("nobody's signature", func(t *testing.T) {
		token := jwt(t, key, jose.PS256, sha2(certificate), claims)
		unsigned := token[:strings.LastIndexByte(token, '.')+1]
		for _, token := range []string{unsigned, unsigned + "AAAA", "a" + token, token + ".x"} {
			if got := entraSaid(c.post(t, address, formType, assertionForm(token))); got == "200" {
				t.Errorf("%s is taken", token)
			}
		}
	})
	t.Run("by the SDK", func(t *testing.T) {
		credential, err := azidentity.NewClientCertificateCredential(testTenant, testApp, []*x509.Certificate{strange}, strangeKey, &azidentity.ClientCertificateCredentialOptions{ClientOptions: c.azure(t, "")})
		if _, err := registryToken(t, credential, err); err == nil || !strings.Contains(err.Error(), "AADSTS700027") {
			t.Error(err)
		}
	})
}

func TestEntraFederation(t *testing.T) {
	const subject, exchange = "system:serviceaccount:a:b", "api://AzureADTokenExchange"
	c := fixed(t)
	c.AddEntraTenant(EntraTenant{ID: testTenant})
	issuer, other, ec, silent := c.AddIssuer("https://oidc.example.com/id"), c.AddIssuer("https://oidc.example.com/other"), c.AddIssuer("https://ec.example.com"), c.AddIssuer("https://silent.example.com/")
	ec.UseES256()
	c.AddServicePrincipal(testTenant, ServicePrincipal{ClientID: testApp, Federated: []FederatedCredential{
		{Issuer: issuer.URL(), Subject: subject},
		{Issuer: issuer.URL(), Subject: "own", Audience: "api://own"},
		{Issuer: "https://slash.example.com/", Subject: subject},
		{Issuer: ec.URL(), Subject: subject},
		{Issuer: silent.URL(), Subject: subject},
		{Issuer: "https://nowhere.example.com", Subject: subject},
	}})
	bare := c.AddServicePrincipal(testTenant, ServicePrincipal{})
	slash := c.AddIssuer("https://slash.example.com/")
	silent.ForgetKeys()
	now := c.Now()
	stranger, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	kid := other.keys.Keys[0].KeyID
	for _, test := range []struct {
		name   string
		by     *Issuer
		token  string // in place of by's
		client string
		change map[string]any
		fault  *Fault
		want   string
	}{
		{name: "as it is", want: "200"},
		{name: "several audiences", change: map[string]any{"aud": []string{"x", exchange}}, want: "200"},
		{name: "an audience of its own", change: map[string]any{"sub": "own", "aud": "api://own"}, want: "200"},
		{name: "an issuer with a slash", by: slash, want: "200"},
		{name: "a clock a little off", change: map[string]any{"exp": now.Add(-299 * time.Second).Unix()}, want: "200"},

		{name: "another issuer", by: other, want: "401 invalid_client 700211"},
		{name: "an issuer with a slash too many", change: map[string]any{"iss": issuer.URL() + "/"}, want: "401 invalid_client 700211"},
		{name: "an issuer without its slash", by: slash, change: map[string]any{"iss": "https://slash.example.com"}, want: "401 invalid_client 700211"},
		{name: "an issuer in capitals", change: map[string]any{"iss": "https://OIDC.example.com/id"}, want: "401 invalid_client 700211"},
		{name: "another subject", change: map[string]any{"sub": subject + "c"}, want: "401 invalid_client 700213"},
		{name: "a subject in capitals", change: map[string]any{"sub": "system:serviceaccount:A:b"}, want: "401 invalid_client 700213"},
		{name: "another audience", change: map[string]any{"aud": "api://azureadtokenexchange"}, want: "401 invalid_client 700212"},
		{name: "another credential's audience", change: map[string]any{"aud": "api://own"}, want: "401 invalid_client 700212"},
		{name: "the usual audience where there is another", change: map[string]any{"sub": "own"}, want: "401 invalid_client 700212"},
		{name: "expired", change: map[string]any{"exp": now.Add(-5 * time.Minute).Unix()}, want: "401 invalid_client 700024"},
		{name: "without an end", change: map[string]any{"exp": nil}, want: "401 invalid_client 700024"},
		{name: "of tomorrow", change: map[string]any{"nbf": now.Add(301 * time.Second).Unix()}, want: "401 invalid_client 700024"},
		{name: "issued tomorrow", change: map[string]any{"iat": now.Add(301 * time.Second).Unix()}, want: "401 invalid_client 700024"},
		{name: "another algorithm", by: ec, want: "401 invalid_client 5002738"},
		{name: "no credentials", client: bare.ClientID, want: "401 invalid_client 70025"},
		{name: "without a subject", change: map[string]any{"sub": nil}, want: "400 invalid_request 90014"},
		{name: "signed by another issuer", by: other, change: map[string]any{"iss": issuer.URL()}, want: "401 invalid_client 700027"},
		{
			name:  "signed by a stranger",
			token: jwt(t, jose.JSONWebKey{Key: stranger, KeyID: issuer.keys.Keys[0].KeyID}, jose.RS256, nil, map[string]any{"iss": issuer.URL(), "sub": subject, "aud": exchange, "exp": now.Add(time.Hour).Unix()}),
			want:  "401 invalid_client 700027",
		},
		{
			name:  "with another issuer's key's id",
			token: jwt(t, jose.JSONWebKey{Key: stranger, KeyID: kid}, jose.RS256, nil, map[string]any{"iss": issuer.URL(), "sub": subject, "aud": exchange, "exp": now.Add(time.Hour).Unix()}),
			want:  "401 invalid_client 700027",
		},
		{name: "an issuer without keys", by: silent, want: "401 invalid_client 700027"},
		{name: "an issuer that is nowhere", change: map[string]any{"iss": "https://nowhere.example.com"}, want: "400 invalid_request 501661"},
		{name: "an issuer that does not answer", fault: &Fault{Service: "issuer"}, want: "400 invalid_request 501661"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c.Heal()
			if test.fault != nil {
				c.Fail(*test.fault)
			}
			if test.by == nil {
				test.by = issuer
			}
			claims := map[string]any{"sub": subject, "aud": exchange}
			maps.Copy(claims, test.change)
			if test.token == "" {
				test.token = test.by.Token(claims)
			}
			form := map[string]string{"client_secret": "", "client_assertion": test.token, "client_assertion_type": assertionType}
			if test.client != "" {
				form["client_id"] = test.client
			}
			if got := entraSaid(c.post(t, "https://login.microsoftonline.com/"+testTenant+"/oauth2/v2.0/token", formType, entraForms(form))); got != test.want {
				t.Errorf("%s, not %s", got, test.want)
			}
		})
	}
}

// TestIdentityAsCredential has a managed identity stand for an application in another tenant.
func TestIdentityAsCredential(t *testing.T) {
	const exchange = "api://AzureADTokenExchange"
	c := fixed(t)
	instance := c.AzureInstance(ManagedIdentity{}, ManagedIdentity{})
	identity, another := instance.Identities()[0], instance.Identities()[1]
	c.AddEntraTenant(EntraTenant{ID: testTenant})
	trust := func(of *AzureInstance, id ManagedIdentity) FederatedCredential {
		return FederatedCredential{Issuer: of.Issuer(true), Subject: id.ObjectID}
	}
	app := c.AddServicePrincipal(testTenant, ServicePrincipal{Federated: []FederatedCredential{trust(instance, identity)}})
	byClient := c.AddServicePrincipal(testTenant, ServicePrincipal{Federated: []FederatedCredential{{Issuer: instance.Issuer(true), Subject: identity.ClientID}}})
	v1 := c.AddServicePrincipal(testTenant, ServicePrincipal{Federated: []FederatedCredential{{Issuer: instance.Issuer(false), Subject: identity.ObjectID}}})
	elsewhere := c.AzureInstanceIn(testTenant, ManagedIdentity{})
	resident := elsewhere.Identities()[0] // a managed identity, which Entra's own tokens do not stand for
	c.AddServicePrincipal(testTenant, ServicePrincipal{ClientID: resident.ClientID, Federated: []FederatedCredential{trust(instance, identity)}})
	ordinary := c.AddServicePrincipal(instance.Tenant(), ServicePrincipal{ObjectID: identity.ObjectID, Secrets: []string{"s"}})
	give := func(id ManagedIdentity, resource string) string {
		answer := c.imds(t, instance, "resource="+resource+"&client_id="+id.ClientID)
		return answer.text("access_token")
	}
	own := c.post(t, "https://login.microsoftonline.com/"+instance.Tenant()+"/oauth2/v2.0/token", formType, entraForms(map[string]string{"client_id": ordinary.ClientID, "scope": exchange + "/.default"}))
	for _, test := range []struct {
		name, token, client, want string
	}{
		{"its token", give(identity, exchange), app.ClientID, "200"},
		{"its token by the whole scope", give(identity, exchange+"/.default"), app.ClientID, "200"},
		{"another identity's", give(another, exchange), app.ClientID, "401 invalid_client 700213"},
		{"a token for something else", give(identity, "https://management.azure.com/"), v1.ClientID, "400 invalid_request 700227"},
		{"trusted by client id", give(identity, exchange), byClient.ClientID, "401 invalid_client 700213"},
		{"for a managed identity", give(identity, exchange), resident.ClientID, "400 invalid_request 700236"},
		{"an application's token", own.text("access_token"), app.ClientID, "400 invalid_request 700226"},
	} {
		t.Run(test.name, func(t *testing.T) {
			form := entraForms(map[string]string{"client_secret": "", "client_id": test.client, "client_assertion": test.token, "client_assertion_type": assertionType})
			if got := entraSaid(c.post(t, "https://login.microsoftonline.com/"+testTenant+"/oauth2/v2.0/token", formType, form)); got != test.want {
				t.Errorf("%s, not %s", got, test.want)
			}
		})
	}
	t.Run("by the SDK", func(t *testing.T) {
		credential, err := azidentity.NewClientAssertionCredential(testTenant, app.ClientID, func(context.Context) (string, error) { return give(identity, exchange), nil },
			&azidentity.ClientAssertionCredentialOptions{ClientOptions: c.azure(t, "")})
		if token, err := registryToken(t, azcore.TokenCredential(credential), err); err != nil || token == "" {
			t.Error(err)
		}
	})
	t.Run("forged", func(t *testing.T) {
		parts := strings.Split(give(identity, exchange), ".")
		forged := parts[0] + "." + parts[1] + "." + strings.Split(give(another, exchange), ".")[2]
		if got := entraSaid(c.post(t, "https://login.microsoftonline.com/"+testTenant+"/oauth2/v2.0/token", formType, entraForms(map[string]string{
			"client_secret": "", "client_id": app.ClientID, "client_assertion": forged, "client_assertion_type": assertionType,
		}))); got != "401 invalid_client 700027" {
			t.Errorf("%s", got)
		}
	})
}
