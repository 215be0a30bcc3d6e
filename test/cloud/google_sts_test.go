package cloud

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

const (
	googleSTS    = "https://sts.googleapis.com/v1/token"
	emptyHash    = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	targetHeader = "x-goog-cloud-target-resource"
)

// exchangeForm is a token exchange that nothing is wrong with, changed.
func exchangeForm(audience, kind, token string, change url.Values) string {
	form := url.Values{
		"grant_type": {grantType + "token-exchange"}, "audience": {audience}, "requested_token_type": {tokenTypeAccess}, "scope": {scopeCloudPlatform},
		"subject_token_type": {kind}, "subject_token": {token},
	}
	maps.Copy(form, change)
	return form.Encode()
}

func TestFederationOfOIDC(t *testing.T) {
	c := fixed(t)
	provider := WorkloadProvider{ProjectNumber: "123456789012", Pool: "pool", Provider: "oidc", Issuer: "https://oidc.example.com/id/1"}
	c.AddWorkloadPool(provider)
	named := WorkloadProvider{ProjectNumber: "123456789012", Pool: "pool", Provider: "named", Issuer: provider.Issuer, AllowedAudiences: []string{"api://a", "api://b"}}
	c.AddWorkloadPool(named)
	c.AddWorkloadPool(WorkloadProvider{ProjectNumber: "123456789012", Pool: "pool", Provider: "off", Issuer: provider.Issuer, Disabled: true})
	c.AddWorkloadPool(WorkloadProvider{ProjectNumber: "123456789012", Pool: "pool", Provider: "silent", Issuer: "https://silent.example.com"})
	issuer, other, lost := c.AddIssuer(provider.Issuer), c.AddIssuer("https://oidc.example.com/id/2"), c.AddIssuer("https://oidc.example.com/id/3")
	elliptic := c.AddIssuer("https://elliptic.example.com")
	elliptic.UseES256()
	c.AddWorkloadPool(WorkloadProvider{ProjectNumber: "123456789012", Pool: "pool", Provider: "elliptic", Issuer: elliptic.URL()})
	c.AddWorkloadPool(WorkloadProvider{ProjectNumber: "123456789012", Pool: "pool", Provider: "lost", Issuer: lost.URL()})
	const pool = "//iam.googleapis.com/projects/123456789012/locations/global/workloadIdentityPools/pool"
	if provider.Audience() != pool+"/providers/oidc" || provider.Principal("me") != "principal:"+pool+"/subject/me" || provider.PrincipalSet() != "principalSet:"+pool+"/*" {
		t.Errorf("%s, %s, %s", provider.Audience(), provider.Principal("me"), provider.PrincipalSet())
	}
	now := c.Now()
	at := func(d time.Duration) int64 { return now.Add(d).Unix() }
	spoilt := func(token string) string {
		return token[:len(token)-6] + strings.Map(func(r rune) rune { return 'A' + (r+1)%26 }, token[len(token)-6:])
	}
	for _, test := range []struct {
		name     string
		claims   map[string]any
		signer   *Issuer
		change   url.Values
		provider string
		kind     string
		spoil    bool
		life     time.Duration
		want     string
	}{
		{name: "a JWT"},
		{name: "an ID token", kind: tokenTypeID},
		{name: "with the scheme before the audience", claims: map[string]any{"aud": "https:" + provider.Audience()}},
		{name: "with several audiences", claims: map[string]any{"aud": []string{"x", provider.Audience()}}},
		{name: "for an audience that is allowed", provider: "named", claims: map[string]any{"aud": "api://b"}},
		{name: "with ECDSA", provider: "elliptic", signer: elliptic, claims: map[string]any{"aud": pool + "/providers/elliptic"}},
		{name: "as long as the token", claims: map[string]any{"exp": at(10 * time.Minute)}, life: 10 * time.Minute},
		{name: "an hour at most", claims: map[string]any{"exp": at(24 * time.Hour)}, life: googleLife},
		{name: "a minute late", claims: map[string]any{"exp": at(-59 * time.Second)}, life: time.Second},
		{name: "a minute early", claims: map[string]any{"iat": at(time.Minute)}},
		{name: "with two scopes", change: url.Values{"scope": {scopeCloudPlatform + " " + scopeIAM}}},

		{name: "another grant", change: url.Values{"grant_type": {"x"}}, want: `400 unsupported_grant_type: Invalid value for "grant_type".`},
		{name: "for another kind of token", change: url.Values{"requested_token_type": {tokenTypeID}}, want: `400 invalid_request: Invalid value for "requested_token_type".`},
		{name: "another kind of token", kind: "urn:ietf:params:oauth:token-type:saml2", want: `400 invalid_request: Invalid value for "subject_token_type".`},
		{name: "AWS's kind of token", kind: tokenTypeAWS, want: `400 invalid_request: Invalid value for "subject_token_type".`},
		{name: "no token", change: url.Values{"subject_token": nil}, want: `400 invalid_request: Invalid value for "subject_token".`},
		{name: "no JWT", change: url.Values{"subject_token": {"x"}}, want: "400 invalid_request: The subject token is not a valid JWT."},
		{name: "no scope", change: url.Values{"scope": nil}, want: `400 invalid_scope: Invalid value for "scope".`},
		{name: "a made-up scope", change: url.Values{"scope": {"all"}}, want: `400 invalid_scope: Invalid value for "scope".`},
		{name: "no audience", change: url.Values{"audience": nil}, want: invalidAudience},
		{name: "a pool for an audience", change: url.Values{"audience": {pool}}, want: invalidAudience},
		{name: "an audience with a scheme", change: url.Values{"audience": {"https:" + provider.Audience()}}, want: invalidAudience},
		{name: "an unknown provider", provider: "none", want: invalidTarget},
		{name: "a disabled provider", provider: "off", want: invalidTarget},
		{name: "of another issuer", signer: other, want: "400 invalid_grant: The issuer in ID Token https://oidc.example.com/id/2 does not match the expected one in config: https://oidc.example.com/id/1"},
		{name: "of no issuer", claims: map[string]any{"iss": nil}, want: "400 invalid_grant: The issuer in ID Token null does not match the expected one in config: https://oidc.example.com/id/1"},
		{name: "signed by another", signer: other, claims: map[string]any{"iss": provider.Issuer}, want: "400 invalid_grant: Error connecting to the given credential's issuer."},
		{name: "signed wrongly", spoil: true, want: "400 invalid_grant: Unable to verify the ID Token signature."},
		{
			name: "of an issuer that is not there", provider: "silent", claims: map[string]any{"iss": "https://silent.example.com", "aud": pool + "/providers/silent"},
			want: "400 invalid_grant: Error connecting to the given credential's issuer.",
		},
		{
			name: "of an issuer without keys", provider: "lost", signer: lost, claims: map[string]any{"aud": pool + "/providers/lost"},
			want: "400 invalid_grant: Error connecting to the given credential's issuer.",
		},
		{name: "for another", claims: map[string]any{"aud": "x"}, want: "400 invalid_grant: The audience in ID Token [x] does not match the expected audience."},
		{name: "for nobody", claims: map[string]any{"aud": nil}, want: "400 invalid_grant: The audience in ID Token [] does not match the expected audience."},
		{
			name: "for the provider, which wants others", provider: "named", claims: map[string]any{"aud": named.Audience()},
			want: "400 invalid_grant: The audience in ID Token [" + named.Audience() + "] does not match the expected audience.",
		},
		{name: "more than a minute late", claims: map[string]any{"iat": 1, "exp": at(-time.Minute)}, want: "400 invalid_grant: ID Token issued at 1 is stale to sign-in."},
		{name: "without an end", claims: map[string]any{"iat": 1, "exp": nil}, want: "400 invalid_grant: ID Token issued at 1 is stale to sign-in."},
		{name: "without a beginning", claims: map[string]any{"iat": nil}, want: "400 invalid_grant: ID Token issued at null is stale to sign-in."},
		{name: "without a subject", claims: map[string]any{"sub": nil}, want: "400 invalid_grant: Could not obtain a value for google.subject from the given credential."},
		{name: "with a long subject", claims: map[string]any{"sub": strings.Repeat("x", 128)}, want: "400 invalid_grant: The size of mapped attribute google.subject exceeds the 127 bytes limit. " +
			"Either modify your attribute mapping or the incoming assertion to produce a mapped attribute that is less than 127 bytes."},
	} {
		t.Run(test.name, func(t *testing.T) {
			lost.ForgetKeys()
			claims := map[string]any{"aud": provider.Audience(), "sub": "me"}
			maps.Copy(claims, test.claims)
			signer, kind, audience := issuer, tokenTypeJWT, provider.Audience()
			if test.signer != nil {
				signer = test.signer
			}
			if test.kind != "" {
				kind = test.kind
			}
			if test.provider != "" {
				audience = pool + "/providers/" + test.provider
			}
			token := signer.Token(claims)
			if test.spoil {
				token = spoilt(token)
			}
			answer := c.post(t, googleSTS, formType, exchangeForm(audience, kind, token, test.change))
			c.checkOAuth(t, answer, "token", test.want)
			life := test.life
			if life == 0 {
				life = googleLife
			}
			c.checkFederated(t, answer, test.want == "", provider.Principal("me"), life)
		})
	}
}

const (
	invalidAudience = `400 invalid_request: Invalid value for "audience". This value should be the full resource name of the Identity Provider. ` +
		`See https://cloud.google.com/iam/docs/reference/sts/rest/v1/TopLevel/token for the list of possible formats.`
	invalidTarget = `400 invalid_target: The target service indicated by the "audience" parameters is invalid. ` +
		`This might either be because the pool or provider is disabled or deleted or because it doesn't exist.`
)

// checkFederated holds a token that STS gave against what it ought to be.
func (c *Cloud) checkFederated(t *testing.T, answer googleAnswer, granted bool, want string, life time.Duration) {
	t.Helper()
	principal, scopes, expires, _ := c.AccessTokenOf(answer.text("access_token"))
	if !granted {
		if r := c.last(t); principal != "" || r.Principal != "" {
			t.Errorf("a token for %q in spite of a refusal, %+v", principal, r)
		}
		return
	}
	if principal != want || len(scopes) == 0 || scopes[0] != scopeCloudPlatform || expires != c.Now().Add(life) || answer.fields["expires_in"] != life.Seconds() {
		t.Errorf("%s, %s, %s, %v", principal, scopes, expires, answer.fields["expires_in"])
	}
	if answer.text("issued_token_type") != tokenTypeAccess || answer.text("token_type") != "Bearer" {
		t.Errorf("%v", answer.fields)
	}
	if r := c.last(t); r.Principal != want || r.Service != "google-sts" {
		t.Errorf("%+v", r)
	}
}

func TestFederationOfGKE(t *testing.T) {
	c := fixed(t)
	cluster := GKECluster{Project: "images", ProjectNumber: "123456789012", Location: "europe-west1", Name: "c1"}
	issuer := c.AddGKECluster(cluster)
	another := c.AddGKECluster(GKECluster{Project: "images", ProjectNumber: "123456789012", Location: "europe-west1", Name: "c2"})
	const url = "https://container.googleapis.com/v1/projects/images/locations/europe-west1/clusters/c1"
	if issuer.URL() != url || cluster.Audience() != "identitynamespace:images.svc.id.goog:"+url {
		t.Errorf("%s, %s", issuer.URL(), cluster.Audience())
	}
	const want = "principal://iam.googleapis.com/projects/123456789012/locations/global/workloadIdentityPools/images.svc.id.goog/subject/ns/default/sa/puller"
	if cluster.Principal("default", "puller") != want {
		t.Error(cluster.Principal("default", "puller"))
	}
	for _, test := range []struct {
		name     string
		claims   map[string]any
		signer   *Issuer
		audience string
		kind     string
		want     string
	}{
		{name: "a service account"},
		{name: "for the provider", claims: map[string]any{"aud": cluster.Audience()}, want: "400 invalid_grant: The audience in ID Token [" + cluster.Audience() + "] does not match the expected audience."},
		{name: "another cluster's", signer: another, want: "400 invalid_grant: The issuer in ID Token " + another.URL() + " does not match the expected one in config: " + url},
		{name: "no service account", claims: map[string]any{"sub": "default:puller"}, want: "400 invalid_grant: Could not obtain a value for google.subject from the given credential."},
		{name: "no namespace", claims: map[string]any{"sub": "system:serviceaccount::puller"}, want: "400 invalid_grant: Could not obtain a value for google.subject from the given credential."},
		{name: "an unknown cluster", audience: cluster.Audience() + "3", want: invalidTarget},
		{name: "no cluster", audience: "identitynamespace:images.svc.id.goog", want: invalidAudience},
		{name: "AWS's kind of token", kind: tokenTypeAWS, want: `400 invalid_request: Invalid value for "subject_token_type".`},
	} {
		t.Run(test.name, func(t *testing.T) {
			claims := map[string]any{"aud": []string{"images.svc.id.goog"}, "sub": "system:serviceaccount:default:puller"}
			maps.Copy(claims, test.claims)
			signer, kind, audience := issuer, tokenTypeJWT, cluster.Audience()
			if test.signer != nil {
				signer = test.signer
			}
			if test.kind != "" {
				kind = test.kind
			}
			if test.audience != "" {
				audience = test.audience
			}
			answer := c.post(t, googleSTS, formType, exchangeForm(audience, kind, signer.Token(claims), nil))
			c.checkOAuth(t, answer, "token", test.want)
			c.checkFederated(t, answer, test.want == "", want, googleLife)
		})
	}
}

// signedRequest is a request for GetCallerIdentity as Google's STS takes it.
type signedRequest struct {
	URL     string      `json:"url"`
	Method  string      `json:"method"`
	Headers []headerKey `json:"headers"`
}

type headerKey struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

func (s *signedRequest) remove(key string) {
	s.Headers = slices.DeleteFunc(s.Headers, func(h headerKey) bool { return strings.EqualFold(h.Key, key) })
}

// signIdentity signs a request for GetCallerIdentity for an audience; none: without the header.
func (c *Cloud) signIdentity(t testing.TB, k Keys, region, address, audience string) *signedRequest {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	if audience != "" {
		r.Header.Set(targetHeader, audience)
	}
	credentials := aws.Credentials{AccessKeyID: k.AccessKeyID, SecretAccessKey: k.SecretAccessKey, SessionToken: k.SessionToken}
	if err := v4.NewSigner().SignHTTP(t.Context(), credentials, r, emptyHash, "sts", region, c.Now()); err != nil {
		t.Fatal(err)
	}
	s := &signedRequest{URL: address, Method: http.MethodPost, Headers: []headerKey{{"host", r.URL.Host}}}
	for name := range r.Header {
		s.Headers = append(s.Headers, headerKey{name, r.Header.Get(name)})
	}
	return s
}

func TestFederationOfAWS(t *testing.T) {
	c := fixed(t)
	c.AddRole(Role{ARN: testRole})
	session, user := c.Session(testRole, "i-1", time.Hour), c.AddUser(testUser)
	foreign := c.AddUser("arn:aws:iam::444455556666:user/node")
	provider := WorkloadProvider{ProjectNumber: "123456789012", Pool: "pool", Provider: "aws", AWSAccount: testAccount}
	c.AddWorkloadPool(provider)
	const address = "https://sts.eu-west-1.amazonaws.com?Action=GetCallerIdentity&Version=2011-06-15"
	sign := func(k Keys) *signedRequest { return c.signIdentity(t, k, "eu-west-1", address, provider.Audience()) }
	unsigned := c.signIdentity(t, user, "eu-west-1", address, "")
	unsigned.Headers = append(unsigned.Headers, headerKey{targetHeader, provider.Audience()})
	const refused = "400 invalid_grant: AWS refuses the credentials: status 403."
	const format = "400 invalid_grant: Invalid format of AWS credentials"
	const target = format + ": the header " + targetHeader + " is missing, not signed, or not the audience."
	changed := func(change func(*signedRequest)) *signedRequest {
		s := sign(user)
		change(s)
		return s
	}
	for _, test := range []struct {
		name    string
		request *signedRequest
		token   string
		kind    string
		who     string
		later   time.Duration
		want    string
	}{
		{name: "a role's session", request: sign(session), who: "arn:aws:sts::" + testAccount + ":assumed-role/puller/i-1"},
		{name: "a user", request: sign(user), who: testUser},
		{name: "by the global endpoint", request: c.signIdentity(t, user, "us-east-1", "https://sts.amazonaws.com/?Action=GetCallerIdentity&Version=2011-06-15", provider.Audience()), who: testUser},
		{name: "fourteen minutes later", request: sign(user), later: 14 * time.Minute, who: testUser},
		{name: "sixteen minutes later", request: sign(user), later: 16 * time.Minute, want: refused},
		{name: "another account", request: sign(foreign), want: "400 invalid_grant: The AWS account 444455556666 is not the one that the provider is for."},
		{name: "unknown keys", request: sign(Keys{AccessKeyID: "AKIAUNKNOWN", SecretAccessKey: "x"}), want: refused},
		{name: "for another region", request: c.signIdentity(t, user, "eu-west-2", address, provider.Audience()), want: refused},
		{name: "for another provider", request: c.signIdentity(t, user, "eu-west-1", address, provider.Audience()+"2"), want: target},
		{name: "for no provider", request: c.signIdentity(t, user, "eu-west-1", address, ""), want: target},
		{name: "for a provider, not signed", request: unsigned, want: target},
		{name: "without a signature", request: changed(func(s *signedRequest) { s.remove("Authorization") }), want: target},
		{name: "without its time", request: changed(func(s *signedRequest) { s.remove("X-Amz-Date") }), want: refused},
		{name: "without its host", request: changed(func(s *signedRequest) { s.remove("host") }), want: format + ": the host is missing, or not that of the URL."},
		{name: "with another method", request: changed(func(s *signedRequest) { s.Method = http.MethodGet }), want: format + ": this is no request for GetCallerIdentity."},
		{name: "of plain HTTP", request: changed(func(s *signedRequest) { s.URL = "http" + strings.TrimPrefix(s.URL, "https") }), want: format + ": this is no request for GetCallerIdentity."},
		{
			name: "to do something else", want: format + ": this is no request for GetCallerIdentity.",
			request: changed(func(s *signedRequest) { s.URL = strings.Replace(s.URL, "GetCallerIdentity", "AssumeRole", 1) }),
		},
		{
			name: "to somebody else", want: format + ": sts.example.com is no endpoint of STS.",
			request: c.signIdentity(t, user, "eu-west-1", "https://sts.example.com/?Action=GetCallerIdentity&Version=2011-06-15", provider.Audience()),
		},
		{
			name: "to another service", want: format + ": api.ecr.eu-west-1.amazonaws.com is no endpoint of STS.",
			request: c.signIdentity(t, user, "eu-west-1", "https://api.ecr.eu-west-1.amazonaws.com/?Action=GetCallerIdentity&Version=2011-06-15", provider.Audience()),
		},
		{name: "no JSON", token: "x", want: format + "."},
		{name: "no escapes", token: "%x", want: format + "."},
		{name: "a JWT's kind of token", request: sign(user), kind: tokenTypeJWT, want: `400 invalid_request: Invalid value for "subject_token_type".`},
	} {
		t.Run(test.name, func(t *testing.T) {
			token, kind := test.token, tokenTypeAWS
			if test.request != nil {
				content, err := json.Marshal(test.request)
				if err != nil {
					t.Fatal(err)
				}
				token = url.QueryEscape(string(content))
			}
			if test.kind != "" {
				kind = test.kind
			}
			c.SetClockOffset(test.later)
			defer c.SetClockOffset(0)
			answer := c.post(t, googleSTS, formType, exchangeForm(provider.Audience(), kind, token, nil))
			c.checkOAuth(t, answer, "token", test.want)
			c.checkFederated(t, answer, test.want == "", provider.Principal(test.who), googleLife)
		})
	}
	if slices.ContainsFunc(c.Requests(), func(r Request) bool { return r.Service == "sts" }) {
		t.Error("Google's requests to AWS are in the log")
	}
}

func TestGoogleSTSOutOfOrder(t *testing.T) {
	c := New(t)
	for _, test := range []struct {
		fault        Fault
		status       int
		field, value string
	}{
		{Fault{}, 429, "error.status", "RESOURCE_EXHAUSTED"},
		{Fault{Status: 500}, 500, "error.status", "INTERNAL"},
		{Fault{Status: 503}, 503, "error.status", "UNAVAILABLE"},
		{Fault{Code: "invalid_grant"}, 400, "error", "invalid_grant"},
	} {
		test.fault.Service, test.fault.Operation, test.fault.Times = "google-sts", "token", 1
		c.Fail(test.fault)
		answer := c.post(t, googleSTS, formType, "")
		if r := c.last(t); answer.status != test.status || answer.text(test.field) != test.value || r.Code != test.value || r.Status != test.status {
			t.Errorf("%+v: %d %v, %+v", test.fault, answer.status, answer.fields, r)
		}
	}
	if answer := c.post(t, googleSTS, "application/json", "{}"); answer.status != 400 || answer.text("error") != "invalid_request" {
		t.Errorf("JSON: %d %v", answer.status, answer.fields)
	}
	if answer := c.send(t, http.MethodGet, googleSTS, ""); answer.status != 404 || answer.text("error.status") != "NOT_FOUND" {
		t.Errorf("GET: %d %v", answer.status, answer.fields)
	}
}
