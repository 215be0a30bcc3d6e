package cloud

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestImpersonation(t *testing.T) {
	const (
		caller = "caller@images.iam.gserviceaccount.com"
		middle = "middle@images.iam.gserviceaccount.com"
		next   = "next@images.iam.gserviceaccount.com"
		pool   = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool"
	)
	c := fixed(t)
	for _, email := range []string{caller, middle, next} {
		c.AddServiceAccount(ServiceAccount{Email: email})
	}
	c.AddServiceAccount(ServiceAccount{Email: testAccountEmail, UniqueID: "112233445566778899001"})
	c.AllowImpersonation(caller, testAccountEmail)
	c.AllowImpersonation("principalSet:"+pool+"/*", testAccountEmail)
	c.AllowImpersonation(caller, middle)
	c.AllowImpersonation(middle, next)
	token := func(principal string, scopes ...string) string { return c.AccessToken(principal, time.Hour, scopes...) }
	good, ended := token(caller, scopeCloudPlatform), c.AccessToken(caller, 0, scopeCloudPlatform)
	const scope = `"scope":["` + scopeCloudPlatform + `"]`
	const delegates = `"delegates":["projects/-/serviceAccounts/` + middle + `"]`
	const invalid = "400 INVALID_ARGUMENT Request contains an invalid argument."
	const unauthenticated = " Expected OAuth 2 access token, login cookie or other valid authentication credential. See https://developers.google.com/identity/sign-in/web/devconsole-project."
	for _, test := range []struct {
		name, token, target, body, operation string
		life                                 time.Duration
		scopes                               string
		identity                             map[string]any
		reason                               string
		want                                 string
	}{
		{name: "a token", body: `{` + scope + `}`, life: time.Hour},
		{name: "for less than an hour", body: `{"lifetime":"600s",` + scope + `}`, life: 10 * time.Minute},
		{name: "for an hour", body: `{"lifetime":"3600s",` + scope + `}`, life: time.Hour},
		{name: "by number", target: "112233445566778899001", body: `{` + scope + `}`, life: time.Hour},
		{name: "with escapes", target: strings.Replace(testAccountEmail, "@", "%40", 1), body: `{` + scope + `}`, life: time.Hour},
		{name: "with IAM's scope", token: token(caller, scopeIAM), body: `{` + scope + `}`, life: time.Hour},
		{name: "of fewer scopes", body: `{"scope":["` + scopePrefix + `devstorage.read_only"]}`, life: time.Hour, scopes: scopePrefix + "devstorage.read_only"},
		{name: "for a federated identity", token: token("principal:"+pool+"/subject/me", scopeCloudPlatform), body: `{` + scope + `}`, life: time.Hour},
		{name: "by a delegate", target: next, body: `{` + delegates + `,` + scope + `}`, life: time.Hour},
		{
			name: "an ID token", operation: "generateIdToken", body: `{"audience":"x","includeEmail":true}`,
			identity: map[string]any{"aud": "x", "sub": "112233445566778899001", "azp": "112233445566778899001", "email": testAccountEmail, "email_verified": true},
		},
		{name: "an ID token without email", operation: "generateIdToken", body: `{"audience":"x"}`, identity: map[string]any{"aud": "x", "email": nil}},

		{name: "without a token", token: "-", body: `{` + scope + `}`, reason: "CREDENTIALS_MISSING", want: "401 UNAUTHENTICATED Request is missing required authentication credential." + unauthenticated},
		{
			name: "with an unknown token", token: "ya29.x", body: `{` + scope + `}`, reason: "ACCESS_TOKEN_TYPE_UNSUPPORTED",
			want: "401 UNAUTHENTICATED Request had invalid authentication credentials." + unauthenticated,
		},
		{name: "with an ended token", token: ended, body: `{` + scope + `}`, reason: "ACCESS_TOKEN_EXPIRED", want: "401 UNAUTHENTICATED Request had invalid authentication credentials." + unauthenticated},
		{
			name: "with another scope", token: token(caller, scopeCloudPlatform+".read-only"), body: `{` + scope + `}`, reason: "ACCESS_TOKEN_SCOPE_INSUFFICIENT",
			want: "403 PERMISSION_DENIED Request had insufficient authentication scopes.",
		},
		{name: "no scope", body: `{}`, want: invalid},
		{name: "a made-up scope", body: `{"scope":["all"]}`, want: invalid},
		{name: "no JSON", body: ``, want: "400 INVALID_ARGUMENT Invalid JSON payload received."},
		{name: "no time", body: `{"lifetime":"0s",` + scope + `}`, want: "400 INVALID_ARGUMENT Lifetime of access token must be larger then zero."},
		{name: "another unit", body: `{"lifetime":"1h",` + scope + `}`, want: `400 INVALID_ARGUMENT Invalid value at 'lifetime' (type.googleapis.com/google.protobuf.Duration), "1h"`},
		{
			name: "too long", body: `{"lifetime":"3601s",` + scope + `}`, want: "400 INVALID_ARGUMENT Access tokens for service account " + testAccountEmail + " can not have lifetimes of more than " +
				"1 hour. Use the Org Policy Constraint constraints/iam.allowServiceAccountCredentialLifetimeExtension to allow up to 12 hours.",
		},
		{name: "an unknown account", target: "x@y", body: `{` + scope + `}`, want: "404 NOT_FOUND Not found; Gaia id not found for email x@y"},
		{
			name: "another account", target: next, body: `{` + scope + `}`, reason: "IAM_PERMISSION_DENIED",
			want: "403 PERMISSION_DENIED Permission 'iam.serviceAccounts.getAccessToken' denied on resource (or it may not exist).",
		},
		{
			name: "somebody else", token: token("x@y", scopeCloudPlatform), body: `{` + scope + `}`, reason: "IAM_PERMISSION_DENIED",
			want: "403 PERMISSION_DENIED Permission 'iam.serviceAccounts.getAccessToken' denied on resource (or it may not exist).",
		},
		{
			name: "of another pool", token: token("principal:"+pool+"2/subject/me", scopeCloudPlatform), body: `{` + scope + `}`, reason: "IAM_PERMISSION_DENIED",
			want: "403 PERMISSION_DENIED Permission 'iam.serviceAccounts.getAccessToken' denied on resource (or it may not exist).",
		},
		{
			name: "by a delegate who may not", body: `{` + delegates + `,` + scope + `}`, reason: "IAM_PERMISSION_DENIED",
			want: "403 PERMISSION_DENIED Permission 'iam.serviceAccounts.getAccessToken' denied on resource (or it may not exist).",
		},
		{
			name: "by another's delegate", token: token("x@y", scopeCloudPlatform), target: next, body: `{` + delegates + `,` + scope + `}`, reason: "IAM_PERMISSION_DENIED",
			want: "403 PERMISSION_DENIED Permission 'iam.serviceAccounts.implicitDelegation' denied on resource (or it may not exist).",
		},
		{name: "by an unknown delegate", body: `{"delegates":["projects/-/serviceAccounts/x@y"],` + scope + `}`, want: "404 NOT_FOUND Not found; Gaia id not found for email x@y"},
		{name: "by a delegate without its prefix", body: `{"delegates":["` + middle + `"],` + scope + `}`, want: invalid},
		{name: "an ID token for nobody", operation: "generateIdToken", body: `{}`, want: invalid},
		{
			name: "another account's ID token", operation: "generateIdToken", target: next, body: `{"audience":"x"}`, reason: "IAM_PERMISSION_DENIED",
			want: "403 PERMISSION_DENIED Permission 'iam.serviceAccounts.getOpenIdToken' denied on resource (or it may not exist).",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			target, bearer, operation := test.target, test.token, test.operation
			if target == "" {
				target = testAccountEmail
			}
			if operation == "" {
				operation = "generateAccessToken"
			}
			headers := []string{"Content-Type", "application/json"}
			if bearer == "" {
				bearer = good
			}
			if bearer != "-" {
				headers = append(headers, "Authorization", "Bearer "+bearer)
			}
			answer := c.send(t, http.MethodPost, "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/"+target+":"+operation, test.body, headers...)
			got := ""
			if answer.status != http.StatusOK {
				got = statusText(answer.status) + " " + answer.text("error.status") + " " + answer.text("error.message")
			}
			if got != test.want {
				t.Errorf("%s, not %s", got, test.want)
			}
			reason := ""
			if failure, ok := answer.fields["error"].(map[string]any); ok {
				if details, ok := failure["details"].([]any); ok {
					reason = googleAnswer{fields: map[string]any{"info": details[0]}}.text("info.reason")
				}
			}
			if reason != test.reason {
				t.Errorf("reason %q, not %q", reason, test.reason)
			}
			if r := c.last(t); r.Service != "google-iam" || r.Operation != operation || r.Status != answer.status || r.Code != answer.text("error.status") || (r.Principal == "") != (answer.status == 401) {
				t.Errorf("%+v", r)
			}
			if test.life != 0 {
				want, scopes := testAccountEmail, test.scopes
				if target == next {
					want = next
				}
				if scopes == "" {
					scopes = scopeCloudPlatform
				}
				principal, has, expires, ok := c.AccessTokenOf(answer.text("accessToken"))
				if principal != want || strings.Join(has, " ") != scopes || expires != c.Now().Add(test.life) || !ok || answer.text("expireTime") != expires.UTC().Format(time.RFC3339) {
					t.Errorf("%s, %s, %s, %v", principal, has, expires, answer.fields)
				}
			}
			if test.identity != nil {
				claims, err := c.verifyToken(answer.text("token"), GoogleIssuer)
				if err != nil {
					t.Fatal(err)
				}
				for name, want := range test.identity {
					if claims[name] != want {
						t.Errorf("%s is %v, not %v", name, claims[name], want)
					}
				}
			}
		})
	}
	for _, path := range []string{"/v1/projects/images/serviceAccounts/" + testAccountEmail + ":generateAccessToken", "/v1/projects/-/serviceAccounts/" + testAccountEmail + ":signBlob"} {
		if answer := c.send(t, http.MethodPost, "https://iamcredentials.googleapis.com"+path, `{`+scope+`}`, "Authorization", "Bearer "+good); answer.status != 404 {
			t.Errorf("%s: %d", path, answer.status)
		}
	}
	c.Fail(Fault{Service: "google-iam", Operation: "generateAccessToken", Status: 503})
	answer := c.send(t, http.MethodPost, "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/"+testAccountEmail+":generateAccessToken", "")
	if answer.text("error.status") != "UNAVAILABLE" {
		t.Errorf("a fault: %d %v", answer.status, answer.fields)
	}
}
