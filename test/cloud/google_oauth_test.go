package cloud

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const testAccountEmail = "node@images.iam.gserviceaccount.com"

// googleAnswer is what a service of Google's answered with.
type googleAnswer struct {
	status int
	fields map[string]any
	header http.Header
}

// text is a field of the answer, "a.b" being b in a.
func (a googleAnswer) text(name string) string {
	at := a.fields
	path := strings.Split(name, ".")
	for _, step := range path[:len(path)-1] {
		at, _ = at[step].(map[string]any)
	}
	s, _ := at[path[len(path)-1]].(string)
	return s
}

// post sends a request through the proxy.
func (c *Cloud) post(t testing.TB, address, kind, body string, headers ...string) googleAnswer {
	t.Helper()
	return c.send(t, http.MethodPost, address, body, append(headers, "Content-Type", kind)...)
}

func (c *Cloud) send(t testing.TB, method, address, body string, headers ...string) googleAnswer {
	t.Helper()
	return sendBy(t, c.Client(), method, address, body, headers...)
}

func sendBy(t testing.TB, client *http.Client, method, address, body string, headers ...string) googleAnswer {
	t.Helper()
	t.Cleanup(client.CloseIdleConnections)
	r, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for pair := range slices.Chunk(headers, 2) {
		r.Header.Set(pair[0], pair[1])
	}
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	a := googleAnswer{status: response.StatusCode, header: response.Header}
	_ = json.Unmarshal(content, &a.fields) // not all answers are JSON
	return a
}

const formType = "application/x-www-form-urlencoded"

// keyFile is what a service account's key file has.
type keyFile struct {
	Type         string
	ProjectID    string `json:"project_id"`
	PrivateKeyID string `json:"private_key_id"`
	PrivateKey   string `json:"private_key"`
	ClientEmail  string `json:"client_email"`
	ClientID     string `json:"client_id"`
	TokenURI     string `json:"token_uri"`
	Universe     string `json:"universe_domain"`
}

func readKeyFile(t testing.TB, content []byte) (keyFile, *rsa.PrivateKey) {
	t.Helper()
	var f keyFile
	if err := json.Unmarshal(content, &f); err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(f.PrivateKey))
	if block == nil {
		t.Fatal("the key file's key is not PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	private, ok := key.(*rsa.PrivateKey)
	if !ok {
		t.Fatalf("a key of type %T", key)
	}
	return f, private
}

// assertion signs claims; a nil value leaves one out.
func assertion(t testing.TB, key any, algorithm jose.SignatureAlgorithm, id string, claims map[string]any) string {
	t.Helper()
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: jose.JSONWebKey{Key: key, KeyID: id}}, nil)
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

func TestServiceAccountKeys(t *testing.T) {
	c := fixed(t)
	c.AddServiceAccount(ServiceAccount{Email: testAccountEmail, UniqueID: "112233445566778899001"})
	c.AddServiceAccount(ServiceAccount{Email: "other@images.iam.gserviceaccount.com"})
	f, key := readKeyFile(t, c.ServiceAccountKeyFile(testAccountEmail))
	if f.Type != "service_account" || f.ProjectID != "images" || f.ClientEmail != testAccountEmail ||
		f.ClientID != "112233445566778899001" || f.TokenURI != googleTokenURI || f.Universe != "googleapis.com" {
		t.Errorf("%+v", f)
	}
	foreign, _ := readKeyFile(t, c.ServiceAccountKeyFile("other@images.iam.gserviceaccount.com"))
	another, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	const scope = scopeCloudPlatform
	now := c.Now()
	at := func(d time.Duration) int64 { return now.Add(d).Unix() }
	const tooOld = "400 invalid_grant: Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. Check your iat and exp values in the JWT claim."
	const noScope = "400 invalid_scope: Invalid OAuth scope or ID token audience provided."
	for _, test := range []struct {
		name      string
		change    map[string]any
		key       any
		id        string
		algorithm jose.SignatureAlgorithm
		token     bool // an access token
		identity  bool // an ID token
		want      string
	}{
		{name: "an access token", token: true},
		{name: "with two scopes", change: map[string]any{"scope": scope + " openid"}, token: true},
		{name: "for itself", change: map[string]any{"sub": testAccountEmail}, token: true},
		{name: "without a key id", id: "-", token: true},
		{name: "a minute ahead", change: map[string]any{"iat": at(time.Minute), "exp": at(time.Hour)}, token: true},
		{name: "an ID token", change: map[string]any{"scope": nil, "target_audience": "x"}, identity: true},
		{name: "of an unknown account", change: map[string]any{"iss": "x@y"}, want: "400 invalid_grant: Invalid grant: account not found"},
		{name: "of a number", change: map[string]any{"iss": "112233445566778899001"}, want: "400 invalid_grant: Invalid grant: account not found"},
		{name: "signed with another key", key: another, want: "400 invalid_grant: Invalid JWT Signature."},
		{name: "another account's key", id: foreign.PrivateKeyID, want: "400 invalid_grant: Invalid JWT Signature."},
		{name: "another algorithm", algorithm: jose.RS512, want: "400 invalid_grant: Invalid JWT Signature."},
		{name: "for another", change: map[string]any{"aud": "https://oauth2.googleapis.com/token/"}, want: "400 invalid_grant: Invalid JWT: Failed audience check."},
		{name: "expired", change: map[string]any{"iat": at(-time.Hour), "exp": at(0)}, want: tooOld},
		{name: "too long", change: map[string]any{"exp": at(time.Hour + time.Second)}, want: tooOld},
		{name: "of the future", change: map[string]any{"iat": at(6 * time.Minute)}, want: tooOld},
		{name: "without iat", change: map[string]any{"iat": nil}, want: tooOld},
		{name: "without exp", change: map[string]any{"exp": nil}, want: tooOld},
		{name: "without a scope", change: map[string]any{"scope": ""}, want: noScope},
		{name: "a made-up scope", change: map[string]any{"scope": scope + " all"}, want: noScope},
		{name: "scope and audience", change: map[string]any{"target_audience": "x"}, want: noScope},
		{
			name: "for somebody else", change: map[string]any{"sub": "user@example.com"},
			want: "401 unauthorized_client: Client is unauthorized to retrieve access tokens using this method, or client not authorized for any of the scopes requested.",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			claims := map[string]any{"iss": testAccountEmail, "aud": googleTokenURI, "scope": scope, "iat": at(0), "exp": at(time.Hour)}
			maps.Copy(claims, test.change)
			wanted, _ := claims["scope"].(string)
			id, algorithm, private := f.PrivateKeyID, jose.RS256, any(key)
			switch test.id {
			case "":
			case "-":
				id = ""
			default:
				id = test.id
			}
			if test.algorithm != "" {
				algorithm = test.algorithm
			}
			if test.key != nil {
				private = test.key
			}
			form := url.Values{"grant_type": {grantType + "jwt-bearer"}, "assertion": {assertion(t, private, algorithm, id, claims)}}
			answer := c.post(t, googleTokenURI, formType, form.Encode())
			c.checkOAuth(t, answer, "jwt-bearer", test.want)
			if test.token {
				principal, scopes, expires, ok := c.AccessTokenOf(answer.text("access_token"))
				if principal != testAccountEmail || strings.Join(scopes, " ") != wanted || !ok || expires != now.Add(googleLife) || answer.fields["expires_in"] != 3599.0 {
					t.Errorf("%v: %s, %s, %s, %v", answer.fields, principal, scopes, expires, ok)
				}
			}
			if test.identity {
				verified, err := c.verifyToken(answer.text("id_token"), GoogleIssuer)
				if err != nil || verified["aud"] != "x" || verified["sub"] != "112233445566778899001" || verified["email"] != testAccountEmail || answer.text("access_token") != "" {
					t.Errorf("%v, %v", verified, err)
				}
			}
			if (test.token || test.identity) && c.last(t).Principal != testAccountEmail {
				t.Errorf("%+v", c.last(t))
			}
		})
	}
	good := url.Values{"grant_type": {grantType + "jwt-bearer"}, "assertion": {assertion(t, key, jose.RS256, f.PrivateKeyID, map[string]any{
		"iss": testAccountEmail, "aud": googleTokenURI, "scope": scope, "iat": at(0), "exp": at(time.Hour),
	})}}
	c.SetClockOffset(time.Hour)
	c.checkOAuth(t, c.post(t, googleTokenURI, formType, good.Encode()), "jwt-bearer", tooOld)
	c.SetClockOffset(0)
	c.DeleteServiceAccountKeys(testAccountEmail)
	c.checkOAuth(t, c.post(t, googleTokenURI, formType, good.Encode()), "jwt-bearer", "400 invalid_grant: Invalid JWT Signature.")
	c.DeleteServiceAccount(testAccountEmail)
	c.checkOAuth(t, c.post(t, googleTokenURI, formType, good.Encode()), "jwt-bearer", "400 invalid_grant: Invalid grant: account not found")
}

// checkOAuth holds an answer, and what the log has of it, against "status error: description"; "" for success.
func (c *Cloud) checkOAuth(t *testing.T, answer googleAnswer, operation, want string) {
	t.Helper()
	got, code := "", ""
	if answer.status != http.StatusOK {
		code = answer.text("error")
		got = strings.Join([]string{http.StatusText(answer.status), code, answer.text("error_description")}, "|")
		if status, rest, ok := strings.Cut(want, " "); ok {
			name, description, _ := strings.Cut(rest, ": ")
			if status == statusText(answer.status) && name == code && description == answer.text("error_description") {
				got = want
			}
		}
	}
	if got != want {
		t.Errorf("%s, not %s", got, want)
	}
	if r := c.last(t); r.Code != code || r.Status != answer.status || r.Operation != operation || !strings.HasPrefix(r.Service, "google-") {
		t.Errorf("%+v", r)
	}
}

func statusText(status int) string {
	return string([]byte{byte('0' + status/100), byte('0' + status/10%10), byte('0' + status%10)})
}

func TestGoogleUsers(t *testing.T) {
	c := fixed(t)
	read := func(content []byte) (f struct {
		Type    string
		Client  string `json:"client_id"`
		Secret  string `json:"client_secret"`
		Refresh string `json:"refresh_token"`
	},
	) {
		if err := json.Unmarshal(content, &f); err != nil {
			t.Fatal(err)
		}
		return f
	}
	me, other := read(c.AddGoogleUser("me@example.com")), read(c.AddGoogleUser("other@example.com"))
	if me.Type != "authorized_user" || me.Client == other.Client || me.Refresh == other.Refresh {
		t.Fatalf("%+v, %+v", me, other)
	}
	for _, test := range []struct {
		name   string
		change url.Values
		scope  string
		want   string
	}{
		{name: "a token", scope: scopeCloudPlatform + " " + scopePrefix + "userinfo.email openid"},
		{name: "with fewer scopes", change: url.Values{"scope": {scopeCloudPlatform}}, scope: scopeCloudPlatform},
		{name: "with a scope that was not given", change: url.Values{"scope": {scopeIAM}}, want: "400 invalid_scope: Some requested scopes were invalid. {invalid=[" + scopeIAM + "]}"},
		{name: "without a client", change: url.Values{"client_id": nil}, want: "400 invalid_request: Could not determine client ID from request."},
		{name: "an unknown client", change: url.Values{"client_id": {"x"}}, want: "401 invalid_client: The OAuth client was not found."},
		{name: "another secret", change: url.Values{"client_secret": {other.Secret}}, want: "401 invalid_client: The provided client secret is invalid."},
		{name: "no token", change: url.Values{"refresh_token": nil}, want: "400 invalid_request: Missing required parameter: refresh_token"},
		{name: "an unknown token", change: url.Values{"refresh_token": {"1//0x"}}, want: "400 invalid_grant: Bad Request"},
		{name: "another client's token", change: url.Values{"refresh_token": {other.Refresh}}, want: "401 unauthorized_client: Unauthorized"},
	} {
		t.Run(test.name, func(t *testing.T) {
			form := url.Values{"grant_type": {"refresh_token"}, "client_id": {me.Client}, "client_secret": {me.Secret}, "refresh_token": {me.Refresh}}
			maps.Copy(form, test.change)
			answer := c.post(t, googleTokenURI, formType, form.Encode())
			c.checkOAuth(t, answer, "refresh_token", test.want)
			if principal, scopes, _, _ := c.AccessTokenOf(answer.text("access_token")); test.want == "" && (principal != "me@example.com" || strings.Join(scopes, " ") != test.scope) {
				t.Errorf("%s, %s", principal, scopes)
			}
		})
	}
	form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {me.Refresh}}
	basic, err := http.NewRequestWithContext(t.Context(), http.MethodPost, googleTokenURI, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	basic.SetBasicAuth(me.Client, me.Secret)
	c.checkOAuth(t, c.post(t, googleTokenURI, formType, form.Encode(), "Authorization", basic.Header.Get("Authorization")), "refresh_token", "")
	c.RevokeGoogleUser("me@example.com")
	form.Set("client_id", me.Client)
	form.Set("client_secret", me.Secret)
	c.checkOAuth(t, c.post(t, googleTokenURI, formType, form.Encode()), "refresh_token", "400 invalid_grant: Token has been expired or revoked.")
}

func TestGoogleTokenEndpoint(t *testing.T) {
	c := New(t)
	for _, test := range []struct {
		name, kind, body, operation, want string
		fault                             *Fault
	}{
		{name: "no grant", body: "x=y", operation: "POST /token", want: "400 invalid_request: Missing required parameter: grant_type"},
		{name: "another grant", body: "grant_type=password", operation: "password", want: "400 unsupported_grant_type: Invalid grant_type: password"},
		{name: "JSON", kind: "application/json", body: "{}", operation: "POST /token", want: "400 invalid_request: Bad Request"},
		{name: "no form", body: "%", operation: "POST /token", want: "400 invalid_request: Bad Request"},
		{name: "no assertion", body: "grant_type=" + url.QueryEscape(grantType+"jwt-bearer"), operation: "jwt-bearer", want: "400 invalid_request: Missing required parameter: assertion"},
		{name: "no JWT", body: "assertion=x&grant_type=" + url.QueryEscape(grantType+"jwt-bearer"), operation: "jwt-bearer", want: "400 invalid_request: Bad Request"},
		{name: "throttled", body: "grant_type=refresh_token", operation: "refresh_token", fault: &Fault{}, want: "429 rate_limit_exceeded: Rate Limit Exceeded"},
		{name: "out of order", body: "grant_type=refresh_token", operation: "refresh_token", fault: &Fault{Status: 503}, want: "503 internal_failure: Internal Failure"},
		{name: "a code of choice", body: "grant_type=refresh_token", operation: "refresh_token", fault: &Fault{Code: "invalid_grant"}, want: "400 invalid_grant: a fault on demand"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.fault != nil {
				test.fault.Service, test.fault.Operation = "google-oauth", test.operation
				c.Fail(*test.fault)
				defer c.Heal()
			}
			kind := formType
			if test.kind != "" {
				kind = test.kind
			}
			c.checkOAuth(t, c.post(t, googleTokenURI, kind, test.body), test.operation, test.want)
		})
	}
	for _, r := range [][2]string{{http.MethodGet, googleTokenURI}, {http.MethodPost, "https://oauth2.googleapis.com/tokens"}} {
		if answer := c.send(t, r[0], r[1], ""); answer.status != http.StatusNotFound {
			t.Errorf("%s: %d", r, answer.status)
		}
	}
}

func TestAccessTokens(t *testing.T) {
	c := fixed(t)
	token := c.AccessToken("me@example.com", time.Minute, scopeIAM)
	if principal, scopes, expires, ok := c.AccessTokenOf(token); principal != "me@example.com" || !slices.Equal(scopes, []string{scopeIAM}) || expires != c.Now().Add(time.Minute) || !ok {
		t.Errorf("%s, %s, %s, %v", principal, scopes, expires, ok)
	}
	c.SetClockOffset(time.Minute)
	if principal, _, _, ok := c.AccessTokenOf(token); principal == "" || ok {
		t.Errorf("at its end: %q, %v", principal, ok)
	}
	c.SetClockOffset(0)
	c.RevokeAccessTokens()
	if principal, _, _, ok := c.AccessTokenOf(token); principal != "" || ok {
		t.Errorf("revoked: %q, %v", principal, ok)
	}
}
