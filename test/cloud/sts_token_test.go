package cloud

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/google/go-cmp/cmp"
)

func TestGetWebIdentityToken(t *testing.T) {
	mayIssue := Statement{Actions: []string{"sts:GetWebIdentityToken"}, Resources: []string{"arn:aws:sts::" + testAccount + ":self"}}
	user := func(p ...Statement) func(*Cloud) Keys {
		return func(c *Cloud) Keys { return c.AddUser(testUser, p...) }
	}
	session := func(life time.Duration, tags map[string]string) func(*Cloud) Keys {
		return func(c *Cloud) Keys {
			c.AddRole(Role{ARN: testRole, Policy: []Statement{mayIssue}})
			return c.session(testRole, "name", life, nil, tags).Keys
		}
	}
	of := func(subject string, more map[string]any) map[string]any {
		own := map[string]any{"aws_account": testAccount, "source_region": "eu-west-1", "principal_id": subject}
		maps.Copy(own, more)
		return map[string]any{"sub": subject, "aud": "vault", "https://sts.amazonaws.com/": own}
	}
	many := slices.Repeat([]string{strings.Repeat("a", 1000)}, 10)
	for _, test := range []struct {
		name     string
		keys     func(*Cloud) Keys // user(mayIssue) without
		disabled bool
		input    sts.GetWebIdentityTokenInput
		want     string
		claims   map[string]any // beside iss, iat, exp and jti
	}{
		{name: "a user", claims: of(testUser, nil)},
		{name: "a user, for what not even its policy names", keys: user(Statement{Actions: []string{"sts:*"}}), claims: of(testUser, nil)},
		{name: "a role's session", keys: session(time.Hour, nil), claims: of(testRole, map[string]any{"original_session_exp": "SESSION"})},
		{
			name: "a session with tags", keys: session(time.Hour, map[string]string{"team": "a"}),
			claims: of(testRole, map[string]any{"original_session_exp": "SESSION", "principal_tags": map[string]any{"team": "a"}}),
		},
		{name: "by the other algorithm", input: sts.GetWebIdentityTokenInput{SigningAlgorithm: aws.String("ES384")}, claims: of(testUser, nil)},
		{
			name: "for two", input: sts.GetWebIdentityTokenInput{Audience: []string{"a", "b"}},
			claims: map[string]any{"sub": testUser, "aud": []any{"a", "b"}, "https://sts.amazonaws.com/": of(testUser, nil)["https://sts.amazonaws.com/"]},
		},
		{name: "for a minute", input: sts.GetWebIdentityTokenInput{DurationSeconds: aws.Int32(60)}, claims: of(testUser, nil)},
		{name: "for an hour", input: sts.GetWebIdentityTokenInput{DurationSeconds: aws.Int32(3600)}, claims: of(testUser, nil)},
		{
			name: "with tags, reserved ones too", keys: user(mayIssue, Statement{Actions: []string{"sts:TagGetWebIdentityToken"}}), input: sts.GetWebIdentityTokenInput{Tags: tags("team", "a", "aws:x", "b")},
			claims: of(testUser, map[string]any{"request_tags": map[string]any{"team": "a", "aws:x": "b"}}),
		},
		{name: "for as long as the session", keys: session(5*time.Minute, nil), claims: of(testRole, map[string]any{"original_session_exp": "SESSION"})},

		{name: "an account that has not enabled it", disabled: true, want: "403 OutboundWebIdentityFederationDisabledException"},
		{name: "nobody", keys: func(*Cloud) Keys { return Keys{AccessKeyID: "AKIA" + random(16), SecretAccessKey: "x"} }, want: "403 InvalidClientTokenId"},
		{
			name: "a wrong secret", want: "403 SignatureDoesNotMatch",
			keys: func(c *Cloud) Keys { k := c.AddUser(testUser, mayIssue); k.SecretAccessKey = random(40); return k },
		},
		{name: "no permission", keys: user(Statement{Actions: []string{"sts:AssumeRole"}}), want: "403 AccessDenied"},
		{name: "no permission, and an account that has not enabled it", keys: user(), disabled: true, want: "403 AccessDenied"},
		{name: "a permission for another account's", keys: user(Statement{Actions: mayIssue.Actions, Resources: []string{"arn:aws:sts::444455556666:self"}}), want: "403 AccessDenied"},
		{name: "tags without their permission", input: sts.GetWebIdentityTokenInput{Tags: tags("team", "a")}, want: "403 AccessDenied"},
		{name: "tags that differ in case only", input: sts.GetWebIdentityTokenInput{Tags: tags("team", "a", "Team", "b")}, want: "400 InvalidParameterValue"},
		{name: "a tag with a character that none has", input: sts.GetWebIdentityTokenInput{Tags: tags("<team>", "a")}, want: "400 ValidationError"},
		{name: "longer than the session", keys: session(299*time.Second, nil), want: "403 SessionDurationEscalationException"},
		{name: "an expired session", keys: session(-time.Second, nil), want: "403 ExpiredToken"},
		{name: "for nobody", input: sts.GetWebIdentityTokenInput{Audience: []string{}}, want: "400 ValidationError"},
		{name: "for no name", input: sts.GetWebIdentityTokenInput{Audience: []string{""}}, want: "400 ValidationError"},
		{name: "for a name of 1000 letters", input: sts.GetWebIdentityTokenInput{Audience: many[:1]}, claims: map[string]any{}},
		{name: "for a name of 1001 letters", input: sts.GetWebIdentityTokenInput{Audience: []string{many[0] + "a"}}, want: "400 ValidationError"},
		{name: "for ten", input: sts.GetWebIdentityTokenInput{Audience: many}, claims: map[string]any{}},
		{name: "for eleven", input: sts.GetWebIdentityTokenInput{Audience: slices.Repeat([]string{"a"}, 11)}, want: "400 ValidationError"},
		{
			name: "too much to say", keys: user(mayIssue, Statement{Actions: []string{"sts:TagGetWebIdentityToken"}}), want: "400 JWTPayloadSizeExceededException",
			input: sts.GetWebIdentityTokenInput{Audience: many, Tags: tags(slices.Collect(func(yield func(string) bool) {
				for i := range 50 {
					if !yield(strings.Repeat("k", 60+i)) || !yield(strings.Repeat("v", 60)) {
						return
					}
				}
			})...)},
		},
		{name: "less than a minute", input: sts.GetWebIdentityTokenInput{DurationSeconds: aws.Int32(59)}, want: "400 ValidationError"},
		{name: "more than an hour", input: sts.GetWebIdentityTokenInput{DurationSeconds: aws.Int32(3601)}, want: "400 ValidationError"},
		{name: "another algorithm", input: sts.GetWebIdentityTokenInput{SigningAlgorithm: aws.String("ES256")}, want: "400 ValidationError"},
		{name: "no algorithm", input: sts.GetWebIdentityTokenInput{SigningAlgorithm: aws.String("none")}, want: "400 ValidationError"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := fixed(t)
			if test.keys == nil {
				test.keys = user(mayIssue)
			}
			keys := test.keys(c)
			account := testAccount
			if test.disabled {
				account = "444455556666" // another's, which helps nobody
			}
			issuer := c.EnableOutboundFederation(account)
			input := test.input
			if input.Audience == nil {
				input.Audience = []string{"vault"}
			}
			if input.SigningAlgorithm == nil {
				input.SigningAlgorithm = aws.String("RS256")
			}
			answer, err := sts.NewFromConfig(c.config(t, keys, "eu-west-1")).GetWebIdentityToken(t.Context(), &input)
			if got := said(err); got != test.want {
				t.Fatalf("%q, not %q (%v)", got, test.want, err)
			}
			if err != nil {
				if r := c.last(t); r.Operation != "GetWebIdentityToken" || "403 "+r.Code != test.want && "400 "+r.Code != test.want {
					t.Errorf("the log has %+v", r)
				}
				return
			}
			life := 5 * time.Minute
			if input.DurationSeconds != nil {
				life = time.Duration(*input.DurationSeconds) * time.Second
			}
			if got := answer.Expiration.Sub(c.Now()); got != life {
				t.Errorf("it holds for %s, not %s", got, life)
			}
			parsed, err := parseToken(*answer.WebIdentityToken)
			if err != nil || parsed.Signatures[0].Header.Algorithm != *input.SigningAlgorithm {
				t.Fatalf("%+v, %v", parsed, err)
			}
			claims, err := c.verifyToken(*answer.WebIdentityToken, issuer.URL()) // as anybody else would
			if err != nil {
				t.Fatal(err)
			}
			if own, ok := claims["https://sts.amazonaws.com/"].(map[string]any); ok && own["original_session_exp"] != nil {
				if at, _ := own["original_session_exp"].(string); !c.Now().Before(parseTime(t, at)) {
					t.Errorf("the session ended at %s", at)
				}
				own["original_session_exp"] = "SESSION"
			}
			issued, _ := numericDate(claims, "iat")
			expires, _ := numericDate(claims, "exp")
			if jti, _ := claims["jti"].(string); claims["iss"] != issuer.URL() || !issued.Equal(c.Now()) || expires.Sub(issued) != life || len(jti) != 36 {
				t.Errorf("%v", claims)
			}
			for _, name := range []string{"iss", "iat", "exp", "jti"} {
				delete(claims, name)
			}
			if len(test.claims) > 0 {
				if diff := cmp.Diff(test.claims, claims); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			}
		})
	}
}

func parseTime(t *testing.T, s string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func TestGetWebIdentityTokenIsRegional(t *testing.T) {
	c := New(t)
	c.EnableOutboundFederation(testAccount)
	cfg := c.config(t, keysOf(c), "us-east-1")
	input := &sts.GetWebIdentityTokenInput{Audience: []string{"vault"}, SigningAlgorithm: aws.String("RS256")}
	if _, err := sts.NewFromConfig(cfg).GetWebIdentityToken(t.Context(), input); err != nil {
		t.Error(err)
	}
	_, err := sts.NewFromConfig(cfg, func(o *sts.Options) { o.BaseEndpoint = aws.String("https://sts.amazonaws.com") }).GetWebIdentityToken(t.Context(), input)
	if got := said(err); got != "400 InvalidAction" {
		t.Errorf("the global endpoint: %q (%v)", got, err)
	}
}

// TestIssuersOfAccounts: each has one of its own, in its partition.
func TestIssuersOfAccounts(t *testing.T) {
	c := New(t)
	first, china := c.EnableOutboundFederation(testAccount), c.EnableOutboundFederation("arn:aws-cn:iam::"+testAccount+":root")
	if again := c.EnableOutboundFederation("arn:aws:iam::" + testAccount + ":root"); again != first || c.EnableOutboundFederation("444455556666") == first || china == first {
		t.Error("accounts share an issuer, or have more than one")
	}
	for issuer, domain := range map[*Issuer]string{first: ".tokens.sts.global.api.aws", china: ".tokens.sts.global.api.amazonwebservices.com.cn"} {
		if host := strings.TrimPrefix(issuer.URL(), "https://"); len(host) != 36+len(domain) || !strings.HasSuffix(host, domain) {
			t.Errorf("%s is no issuer of an account's", issuer.URL())
		}
	}
	// What AWS has issued, it does not take.
	c.AddOIDCProvider(testAccount, first.URL(), "sts.amazonaws.com")
	c.AddRole(Role{ARN: testRole, Trust: []Trust{{Federated: first.URL()}}})
	_, err := sts.NewFromConfig(c.config(t, Keys{}, "eu-west-1")).AssumeRoleWithWebIdentity(t.Context(), &sts.AssumeRoleWithWebIdentityInput{
		RoleArn: aws.String(testRole), RoleSessionName: aws.String("name"), WebIdentityToken: aws.String(first.Token(map[string]any{"sub": testUser, "aud": "sts.amazonaws.com"})),
	})
	if got := said(err); got != "400 InvalidIdentityToken" {
		t.Errorf("%q (%v)", got, err)
	}
}
