package cloud

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"testing"
)

// TestIdentityTokens is about the tokens that the metadata services of Google and Azure give, and the requests that they refuse.
func TestIdentityTokens(t *testing.T) {
	c := New(t)
	g := c.GoogleInstance(ServiceAccount{Email: "node@p.iam.gserviceaccount.com", UniqueID: "112233445566778899001"})
	a := c.AzureInstance(ManagedIdentity{System: true})
	id := a.Identities()[0]
	app := a.AddApplication(Application{URI: "api://a", V2: true})
	google := func(account, query string) string {
		return g.URL() + "/computeMetadata/v1/instance/service-accounts/" + account + "/identity?" + query
	}
	azure := func(query url.Values) string { return a.URL() + "/metadata/identity/oauth2/token?" + query.Encode() }
	flavor, metadata := []string{"Metadata-Flavor", "Google"}, []string{"Metadata", "true"}
	version := func(resource string) url.Values {
		return url.Values{"api-version": {"2018-02-01"}, "resource": {resource}}
	}
	tests := []struct {
		name    string
		url     string
		headers []string
		status  int
		code    string         // Azure's
		issuer  string         // whose the token is
		claims  map[string]any // that it has; nil: has not
	}{
		{
			"Google", google("default", "audience=x"), flavor, 200, "", GoogleIssuer,
			map[string]any{"iss": GoogleIssuer, "aud": "x", "sub": "112233445566778899001", "azp": "112233445566778899001", "email": nil, "google": nil},
		},
		{"Google, in full", google("node@p.iam.gserviceaccount.com", "audience=x&format=full"), flavor, 200, "", GoogleIssuer, map[string]any{"email": "node@p.iam.gserviceaccount.com", "email_verified": true}},
		{"Google, without its header", google("default", "audience=x"), nil, 403, "", "", nil},
		{"Google, forwarded", google("default", "audience=x"), append(flavor, "X-Forwarded-For", "192.0.2.1"), 403, "", "", nil},
		{"Google, without an audience", google("default", ""), flavor, 400, "", "", nil},
		{"Google, another format", google("default", "audience=x&format=x"), flavor, 400, "", "", nil},
		{"Google, another account", google("x@y", "audience=x"), flavor, 404, "", "", nil},
		{
			"Azure", azure(version("https://management.azure.com/")), metadata, 200, "", a.Issuer(false),
			map[string]any{"aud": "https://management.azure.com/", "sub": id.ObjectID, "oid": id.ObjectID, "appid": id.ClientID, "tid": a.Tenant(), "iss": a.Issuer(false)},
		},
		{"Azure, version 2.0", azure(version("api://a")), metadata, 200, "", a.Issuer(true), map[string]any{"aud": app.ClientID, "azp": id.ClientID, "iss": a.Issuer(true)}},
		{"Azure, without its header", azure(version("api://a")), nil, 400, "bad_request_102", "", nil},
		{"Azure, without a version", azure(url.Values{"resource": {"api://a"}}), metadata, 400, "invalid_request", "", nil},
		{"Azure, an old version", azure(url.Values{"api-version": {"2017-09-01"}, "resource": {"api://a"}}), metadata, 400, "invalid_request", "", nil},
		{"Azure, without a resource", azure(url.Values{"api-version": {"2018-02-01"}}), metadata, 400, "invalid_request", "", nil},
		{"Azure, another resource", azure(version("api://b")), metadata, 400, "invalid_resource", "", nil},
		{"Azure, another identity", azure(version("api://a")) + "&client_id=" + newUUID(), metadata, 400, "invalid_request", "", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, tt.url, http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			for i := 0; i < len(tt.headers); i += 2 {
				r.Header.Set(tt.headers[i], tt.headers[i+1])
			}
			resp, err := http.DefaultTransport.RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != tt.status {
				t.Fatalf("status %d, not %d: %s", resp.StatusCode, tt.status, body)
			}
			var fields map[string]string
			if json.Unmarshal(body, &fields) == nil && fields["error"] != tt.code {
				t.Errorf("error %q, not %q", fields["error"], tt.code)
			}
			if tt.issuer == "" {
				return
			}
			token := string(body)
			if fields != nil {
				token = fields["access_token"]
			}
			claims, err := c.verifyToken(token, tt.issuer)
			if err != nil {
				t.Fatal(err)
			}
			for name, want := range tt.claims {
				if claims[name] != want {
					t.Errorf("%s is %v, not %v", name, claims[name], want)
				}
			}
		})
	}
}
