package cloud

import (
	"encoding/base64"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/aws-sdk-go-v2/service/sts/types"
)

func TestSTSEndpoints(t *testing.T) {
	for _, test := range []struct {
		region, partition string
		fips, dual        bool
		base              string
		host              string
		reached           bool
	}{
		{region: "eu-west-1", partition: "aws", host: "sts.eu-west-1.amazonaws.com", reached: true},
		{region: "us-east-1", partition: "aws", base: "https://sts.amazonaws.com", host: "sts.amazonaws.com", reached: true},
		{region: "eu-west-1", partition: "aws", dual: true, host: "sts.eu-west-1.api.aws", reached: true},
		{region: "us-east-2", partition: "aws", fips: true, host: "sts-fips.us-east-2.amazonaws.com", reached: true},
		{region: "us-east-2", partition: "aws", fips: true, dual: true, host: "sts-fips.us-east-2.api.aws", reached: true},
		{region: "eu-west-1", partition: "aws", fips: true, host: "sts-fips.eu-west-1.amazonaws.com"},
		{region: "us-gov-west-1", partition: "aws-us-gov", fips: true, host: "sts.us-gov-west-1.amazonaws.com", reached: true},
		{region: "cn-north-1", partition: "aws-cn", host: "sts.cn-north-1.amazonaws.com.cn", reached: true},
		{region: "cn-north-1", partition: "aws-cn", dual: true, host: "sts.cn-north-1.api.amazonwebservices.com.cn", reached: true},
		{region: "eusc-de-east-1", partition: "aws-eusc", host: "sts.eusc-de-east-1.amazonaws.eu", reached: true},
		{region: "us-iso-east-1", partition: "aws-iso", host: "sts.us-iso-east-1.c2s.ic.gov", reached: true},
		{region: "us-isob-east-1", partition: "aws-iso-b", host: "sts.us-isob-east-1.sc2s.sgov.gov", reached: true},
		{region: "eu-isoe-west-1", partition: "aws-iso-e", host: "sts.eu-isoe-west-1.cloud.adc-e.uk", reached: true},
		{region: "us-isof-south-1", partition: "aws-iso-f", host: "sts.us-isof-south-1.csp.hci.ic.gov", reached: true},
	} {
		t.Run(test.host, func(t *testing.T) {
			c := New(t)
			user := "arn:" + test.partition + ":iam::" + testAccount + ":user/node"
			client := sts.NewFromConfig(c.config(t, c.AddUser(user), test.region), func(o *sts.Options) {
				if test.fips {
					o.EndpointOptions.UseFIPSEndpoint = aws.FIPSEndpointStateEnabled
				}
				if test.dual {
					o.EndpointOptions.UseDualStackEndpoint = aws.DualStackEndpointStateEnabled
				}
				if test.base != "" {
					o.BaseEndpoint = &test.base
				}
			})
			answer, err := client.GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
			if r := c.last(t); r.Host != test.host || (r.Service == "sts") != test.reached || (err == nil) != test.reached {
				t.Fatalf("%+v, %v", r, err)
			}
			if err == nil && (*answer.Arn != user || *answer.Account != testAccount || *answer.UserId == "") {
				t.Errorf("%v", answer)
			}
		})
	}
}

func TestAssumeRole(t *testing.T) {
	const (
		other  = "444455556666"
		remote = "arn:aws:iam::" + other + ":role/remote"
	)
	may := []Statement{{Actions: []string{"sts:*"}}}
	for _, test := range []struct {
		name   string
		policy []Statement // of the user who asks
		role   Role
		input  sts.AssumeRoleInput
		chain  bool // ask with a session of the role testRole
		want   string
	}{
		{name: "named directly in its own account", role: Role{ARN: testRole, Trust: []Trust{{AWS: testUser}}}},
		{name: "not named at all", policy: may, role: Role{ARN: testRole}, want: "403 AccessDenied"},
		{name: "another is named", policy: may, role: Role{ARN: testRole, Trust: []Trust{{AWS: testUser + "2"}}}, want: "403 AccessDenied"},
		{name: "its account is named, and its own policy allows it", policy: may, role: Role{ARN: testRole, Trust: []Trust{{AWS: testAccount}}}},
		{name: "its account's root is named, and its own policy allows it", policy: may, role: Role{ARN: testRole, Trust: []Trust{{AWS: "arn:aws:iam::" + testAccount + ":root"}}}},
		{name: "its account is named, and its own policy is silent", role: Role{ARN: testRole, Trust: []Trust{{AWS: testAccount}}}, want: "403 AccessDenied"},
		{name: "another account's role, with both policies", policy: may, role: Role{ARN: remote, Trust: []Trust{{AWS: testUser}}}},
		{name: "another account's role, with the trust only", role: Role{ARN: remote, Trust: []Trust{{AWS: testUser}}}, want: "403 AccessDenied"},
		{
			name: "another account's role, with a policy for another role", policy: []Statement{{Actions: []string{"sts:AssumeRole"}, Resources: []string{testRole}}},
			role: Role{ARN: remote, Trust: []Trust{{AWS: testUser}}}, want: "403 AccessDenied",
		},
		{name: "a role that does not exist", policy: may, input: sts.AssumeRoleInput{RoleArn: aws.String("arn:aws:iam::" + other + ":role/none")}, want: "403 AccessDenied"},
		{name: "the external ID", policy: may, role: Role{ARN: remote, Trust: []Trust{{AWS: testUser, ExternalID: "id-1"}}}, input: sts.AssumeRoleInput{ExternalId: aws.String("id-1")}},
		{
			name: "another external ID", policy: may, role: Role{ARN: remote, Trust: []Trust{{AWS: testUser, ExternalID: "id-1"}}},
			input: sts.AssumeRoleInput{ExternalId: aws.String("id-2")}, want: "403 AccessDenied",
		},
		{name: "no external ID", policy: may, role: Role{ARN: remote, Trust: []Trust{{AWS: testUser, ExternalID: "id-1"}}}, want: "403 AccessDenied"},
		{
			name: "an external ID that cannot be one", policy: may, role: Role{ARN: remote, Trust: []Trust{{AWS: testUser}}},
			input: sts.AssumeRoleInput{ExternalId: aws.String("id 1")}, want: "400 ValidationError",
		},
		{name: "tags", policy: may, role: Role{ARN: remote, Trust: []Trust{{AWS: testUser, Tags: true}}}, input: sts.AssumeRoleInput{Tags: tags("team", "a", "env", "b")}},
		{name: "tags that the trust does not allow", policy: may, role: Role{ARN: remote, Trust: []Trust{{AWS: testUser}}}, input: sts.AssumeRoleInput{Tags: tags("team", "a")}, want: "403 AccessDenied"},
		{
			name: "tags that the caller's policy does not allow", policy: []Statement{{Actions: []string{"sts:AssumeRole"}}},
			role: Role{ARN: remote, Trust: []Trust{{AWS: testUser, Tags: true}}}, input: sts.AssumeRoleInput{Tags: tags("team", "a")}, want: "403 AccessDenied",
		},
		{
			name: "tags that differ in case only", policy: may, role: Role{ARN: remote, Trust: []Trust{{AWS: testUser, Tags: true}}},
			input: sts.AssumeRoleInput{Tags: tags("team", "a", "Team", "b")}, want: "400 InvalidParameterValue",
		},
		{
			name: "a tag with a character that none has", policy: may, role: Role{ARN: remote, Trust: []Trust{{AWS: testUser, Tags: true}}},
			input: sts.AssumeRoleInput{Tags: tags("team!", "a")}, want: "400 ValidationError",
		},
		{name: "a session name of one letter", role: Role{ARN: testRole, Trust: []Trust{{AWS: testUser}}}, input: sts.AssumeRoleInput{RoleSessionName: aws.String("a")}, want: "400 ValidationError"},
		{
			name: "a session name of 65 letters", role: Role{ARN: testRole, Trust: []Trust{{AWS: testUser}}},
			input: sts.AssumeRoleInput{RoleSessionName: aws.String(strings.Repeat("a", 65))}, want: "400 ValidationError",
		},
		{name: "a session name of 64 letters", role: Role{ARN: testRole, Trust: []Trust{{AWS: testUser}}}, input: sts.AssumeRoleInput{RoleSessionName: aws.String(strings.Repeat("a", 64))}},
		{name: "every character that a session name may have", role: Role{ARN: testRole, Trust: []Trust{{AWS: testUser}}}, input: sts.AssumeRoleInput{RoleSessionName: aws.String("aZ_0+=,.@-")}},
		{name: "a session name with a slash", role: Role{ARN: testRole, Trust: []Trust{{AWS: testUser}}}, input: sts.AssumeRoleInput{RoleSessionName: aws.String("a/b")}, want: "400 ValidationError"},
		{name: "no ARN", input: sts.AssumeRoleInput{RoleArn: aws.String("this is no ARN at all")}, want: "400 ValidationError"},
		{name: "a short ARN", input: sts.AssumeRoleInput{RoleArn: aws.String("arn:aws:iam::1:role")}, want: "400 ValidationError"},
		{name: "the ARN of a user", input: sts.AssumeRoleInput{RoleArn: aws.String(testUser)}, want: "400 ValidationError"},
		{name: "a role of another partition", input: sts.AssumeRoleInput{RoleArn: aws.String("arn:aws-cn:iam::" + other + ":role/remote")}, want: "400 ValidationError"},
		{name: "less than 15 minutes", role: Role{ARN: testRole, Trust: []Trust{{AWS: testUser}}}, input: sts.AssumeRoleInput{DurationSeconds: aws.Int32(899)}, want: "400 ValidationError"},
		{name: "15 minutes", role: Role{ARN: testRole, Trust: []Trust{{AWS: testUser}}}, input: sts.AssumeRoleInput{DurationSeconds: aws.Int32(900)}},
		{name: "more than the role's maximum", role: Role{ARN: testRole, Trust: []Trust{{AWS: testUser}}}, input: sts.AssumeRoleInput{DurationSeconds: aws.Int32(3601)}, want: "400 ValidationError"},
		{name: "the role's maximum", role: Role{ARN: testRole, Trust: []Trust{{AWS: testUser}}, MaxSession: 12 * time.Hour}, input: sts.AssumeRoleInput{DurationSeconds: aws.Int32(43200)}},
		{
			name: "more than twelve hours", role: Role{ARN: testRole, Trust: []Trust{{AWS: testUser}}, MaxSession: 12 * time.Hour},
			input: sts.AssumeRoleInput{DurationSeconds: aws.Int32(43201)}, want: "400 ValidationError",
		},
		{name: "a chain of roles", chain: true, policy: may, role: Role{ARN: remote, Trust: []Trust{{AWS: testRole}}}},
		{name: "a chain of roles for an hour", chain: true, role: Role{ARN: remote, Trust: []Trust{{AWS: testRole}}, MaxSession: 12 * time.Hour}, input: sts.AssumeRoleInput{DurationSeconds: aws.Int32(3600)}},
		{
			name: "a chain of roles for more than an hour", chain: true, role: Role{ARN: remote, Trust: []Trust{{AWS: testRole}}, MaxSession: 12 * time.Hour},
			input: sts.AssumeRoleInput{DurationSeconds: aws.Int32(3601)}, want: "400 ValidationError",
		},
		{name: "a session policy that is none", role: Role{ARN: testRole, Trust: []Trust{{AWS: testUser}}}, input: sts.AssumeRoleInput{Policy: aws.String("{")}, want: "400 MalformedPolicyDocument"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := fixed(t)
			k := c.AddUser(testUser, test.policy...)
			if test.chain {
				c.AddRole(Role{ARN: testRole, Policy: may})
				k = c.Session(testRole, "first", time.Hour)
			}
			if test.role.ARN != "" {
				c.AddRole(test.role)
			}
			input := test.input
			if input.RoleArn == nil {
				input.RoleArn = &test.role.ARN
			}
			if input.RoleSessionName == nil {
				input.RoleSessionName = aws.String("name")
			}
			answer, err := sts.NewFromConfig(c.config(t, k, "eu-west-1")).AssumeRole(t.Context(), &input)
			if got := said(err); got != test.want {
				t.Fatalf("%q, not %q (%v)", got, test.want, err)
			}
			if err != nil {
				return
			}
			life := time.Hour
			if input.DurationSeconds != nil {
				life = time.Duration(*input.DurationSeconds) * time.Second
			}
			if got := answer.Credentials.Expiration.Sub(c.Now()); got != life {
				t.Errorf("a session of %s, not %s", got, life)
			}
			k = Keys{*answer.Credentials.AccessKeyId, *answer.Credentials.SecretAccessKey, *answer.Credentials.SessionToken}
			who, err := sts.NewFromConfig(c.config(t, k, "eu-west-1")).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
			if err != nil || *who.Arn != *answer.AssumedRoleUser.Arn || !strings.HasSuffix(*who.Arn, "/"+*input.RoleSessionName) || !strings.Contains(*who.Arn, ":assumed-role/") || strings.Contains(*who.Arn, "path") {
				t.Errorf("%v, %v, %v", who, answer.AssumedRoleUser, err)
			}
			c.SetClockOffset(life)
			if _, err := sts.NewFromConfig(c.config(t, k, "eu-west-1")).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{}); said(err) != "403 ExpiredToken" {
				t.Errorf("after its end: %v", err)
			}
		})
	}
}

// tags are pairs of key and value.
func tags(pairs ...string) (all []types.Tag) {
	for pair := range slices.Chunk(pairs, 2) {
		all = append(all, types.Tag{Key: &pair[0], Value: &pair[1]})
	}
	return all
}

func TestSessionPolicyOnlyTakesAway(t *testing.T) {
	c := New(t)
	k := c.AddUser(testUser)
	c.AddRole(Role{ARN: testRole, Trust: []Trust{{AWS: testUser}}, Policy: []Statement{{Actions: []string{"ecr:Get*"}}}})
	for policy, want := range map[string]bool{
		`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"ecr:*","Resource":"*"}]}`:               true,
		`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["ecr:BatchGetImage"],"Resource":"*"}]}`: false,
	} {
		answer, err := sts.NewFromConfig(c.config(t, k, "eu-west-1")).AssumeRole(t.Context(), &sts.AssumeRoleInput{RoleArn: aws.String(testRole), RoleSessionName: aws.String("name"), Policy: &policy})
		if err != nil {
			t.Fatal(err)
		}
		c.mu.Lock()
		p := c.aws.keys[*answer.Credentials.AccessKeyId].principal
		c.mu.Unlock()
		if got := c.may(p, "ecr:GetAuthorizationToken", "*"); got != want || c.may(p, "ecr:BatchGetImage", "*") {
			t.Errorf("%s: %v", policy, got)
		}
	}
}

func TestAssumeRoleWithWebIdentity(t *testing.T) {
	const (
		issuer = "https://oidc.eks.eu-west-1.amazonaws.com/id/EXAMPLE"
		sub    = "system:serviceaccount:team:puller"
		aud    = "sts.amazonaws.com"
	)
	trust := Trust{Federated: issuer, Audience: aud, Subject: sub}
	for _, test := range []struct {
		name     string
		issuer   string // another than issuer
		trust    *Trust
		claims   map[string]any
		token    string
		change   func(token string) string
		arrange  func(*Cloud, *Issuer)
		input    sts.AssumeRoleWithWebIdentityInput
		want     string
		audience string // that the answer names
	}{
		{name: "a pod's token", audience: aud},
		{name: "a trust with globs", trust: &Trust{Federated: issuer, Subject: "system:serviceaccount:team:*", Audience: "sts.*"}},
		{name: "a trust without conditions", trust: &Trust{Federated: issuer}},
		{name: "another subject", claims: map[string]any{"sub": sub + "2"}, want: "403 AccessDenied"},
		{name: "no subject", claims: map[string]any{"sub": nil}, want: "400 InvalidIdentityToken"},
		{name: "an audience that the provider does not have", claims: map[string]any{"aud": "other"}, want: "400 InvalidIdentityToken"},
		{name: "an audience that the role does not trust", trust: &Trust{Federated: issuer, Audience: "second"}, want: "403 AccessDenied"},
		{name: "several audiences", claims: map[string]any{"aud": []string{"other", aud}}, audience: aud},
		{name: "no audience", claims: map[string]any{"aud": nil}, want: "400 InvalidIdentityToken"},
		{name: "azp goes before aud", claims: map[string]any{"azp": "second"}, trust: &Trust{Federated: issuer, Audience: "second", AuthorizedParty: "second"}, audience: "second"},
		{name: "an azp that the provider does not have", claims: map[string]any{"azp": "other"}, want: "400 InvalidIdentityToken"},
		{name: "an azp that the role does not trust", claims: map[string]any{"azp": "second"}, want: "403 AccessDenied"},
		{name: "a trusted azp that the token has not", trust: &Trust{Federated: issuer, AuthorizedParty: aud}, want: "403 AccessDenied"},
		{name: "oaud for another than Google", trust: &Trust{Federated: issuer, OriginalAudience: aud}, want: "403 AccessDenied"},
		{name: "the trust is another issuer's", trust: &Trust{Federated: issuer + "2"}, want: "403 AccessDenied"},
		{name: "a token that has expired", claims: map[string]any{"exp": time.Now().Add(-time.Minute).Unix()}, want: "400 ExpiredTokenException"},
		{name: "a token without expiry", claims: map[string]any{"exp": nil}, want: "400 InvalidIdentityToken"},
		{name: "a token of the day before yesterday", claims: map[string]any{"iat": time.Now().Add(-48 * time.Hour).Unix()}, want: "400 ExpiredTokenException"},
		{name: "a token without iat", claims: map[string]any{"iat": nil}, want: "400 InvalidIdentityToken"},
		{name: "a token for later", claims: map[string]any{"nbf": time.Now().Add(10 * time.Minute).Unix()}, want: "400 InvalidIdentityToken"},
		{name: "not a token", token: "not a token", want: "400 InvalidIdentityToken"},
		{name: "an unsigned token", token: "eyJhbGciOiJub25lIn0.e30.", want: "400 InvalidIdentityToken"},
		{name: "a token that was changed", change: func(token string) string {
			parts := strings.Split(token, ".")
			parts[1] = base64.RawURLEncoding.EncodeToString([]byte(fmt.Sprintf(`{"iss":%q,"sub":%q,"aud":%q,"iat":%d,"exp":%d}`, issuer, sub, aud, time.Now().Unix(), time.Now().Add(time.Hour).Unix())))
			return strings.Join(parts, ".")
		}, want: "400 InvalidIdentityToken"},
		{name: "an issuer whose discovery document is another's", arrange: func(c *Cloud, i *Issuer) {
			other := c.AddIssuer("https://other.example.com")
			c.handle("keys.example.com", "issuer", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, i.keys) }))
			c.handle("oidc.eks.eu-west-1.amazonaws.com", "issuer", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				writeJSON(w, http.StatusOK, map[string]string{"issuer": other.URL(), "jwks_uri": "https://keys.example.com/"})
			}))
		}, want: "400 InvalidIdentityToken"},
		{name: "a token of more than 20000 characters", claims: map[string]any{"long": strings.Repeat("a", 20000)}, want: "400 ValidationError"},
		{name: "a token of an issuer that the account does not know", issuer: "https://other.example.com", want: "400 InvalidIdentityToken"},
		{
			name: "a token in another issuer's name", claims: map[string]any{"iss": issuer}, issuer: "https://other.example.com",
			arrange: func(c *Cloud, _ *Issuer) { c.AddIssuer(issuer) }, want: "400 InvalidIdentityToken",
		},
		{name: "a key that is not published any more", arrange: func(_ *Cloud, i *Issuer) { i.ForgetKeys() }, want: "400 InvalidIdentityToken"},
		{name: "a new key", arrange: func(_ *Cloud, i *Issuer) { i.Rotate() }},
		{name: "a key of another kind", arrange: func(_ *Cloud, i *Issuer) { i.UseES256() }},
		{name: "an issuer out of reach", arrange: func(c *Cloud, _ *Issuer) { c.Fail(Fault{Service: "issuer"}) }, want: "400 IDPCommunicationError"},
		{
			name: "an issuer that rejects", want: "403 IDPRejectedClaim",
			arrange: func(c *Cloud, _ *Issuer) {
				c.Fail(Fault{Operation: "AssumeRoleWithWebIdentity", Status: 403, Code: "IDPRejectedClaim"})
			},
		},
		{name: "a session name with a colon", input: sts.AssumeRoleWithWebIdentityInput{RoleSessionName: aws.String("a:b")}, want: "400 ValidationError"},
		{name: "a role of another partition", input: sts.AssumeRoleWithWebIdentityInput{RoleArn: aws.String("arn:aws-cn:iam::111122223333:role/puller")}, want: "400 ValidationError"},
		{name: "a role that does not exist", input: sts.AssumeRoleWithWebIdentityInput{RoleArn: aws.String(testRole + "2")}, want: "403 AccessDenied"},
		{name: "a role of an account without the provider", input: sts.AssumeRoleWithWebIdentityInput{RoleArn: aws.String("arn:aws:iam::444455556666:role/remote")}, want: "400 InvalidIdentityToken"},
		{name: "a second hour", input: sts.AssumeRoleWithWebIdentityInput{DurationSeconds: aws.Int32(7200)}, want: "400 ValidationError"},
		{name: "a policy that is none", input: sts.AssumeRoleWithWebIdentityInput{Policy: aws.String("[]")}, want: "400 MalformedPolicyDocument"},
		{name: "tags in the token", claims: tagClaim(), trust: &Trust{Federated: issuer, Tags: true}},
		{name: "tags in the token that the trust does not allow", claims: tagClaim(), want: "403 AccessDenied"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := New(t)
			i := c.AddIssuer(issuer)
			if test.issuer != "" {
				i = c.AddIssuer(test.issuer)
			}
			c.AddOIDCProvider(testAccount, issuer, aud, "second")
			r := Role{ARN: testRole, Trust: []Trust{trust}}
			if test.trust != nil {
				r.Trust = []Trust{*test.trust}
			}
			c.AddRole(r)
			if test.arrange != nil {
				test.arrange(c, i)
			}
			claims := map[string]any{"sub": sub, "aud": aud}
			maps.Copy(claims, test.claims)
			input := test.input
			input.WebIdentityToken = aws.String(i.Token(claims))
			if strings.Contains(test.name, "published any more") {
				i.ForgetKeys()
			}
			if test.token != "" {
				input.WebIdentityToken = &test.token
			}
			if test.change != nil {
				input.WebIdentityToken = aws.String(test.change(*input.WebIdentityToken))
			}
			if input.RoleArn == nil {
				input.RoleArn = aws.String(testRole)
			}
			if input.RoleSessionName == nil {
				input.RoleSessionName = aws.String("team.puller")
			}
			cfg := c.config(t, Keys{}, "eu-west-1")
			cfg.Credentials = aws.AnonymousCredentials{}
			answer, err := sts.NewFromConfig(cfg).AssumeRoleWithWebIdentity(t.Context(), &input)
			if got := said(err); got != test.want {
				t.Fatalf("%q, not %q (%v)", got, test.want, err)
			}
			if err != nil {
				if got := c.last(t).Code; "400 "+got != test.want && "403 "+got != test.want {
					t.Errorf("the log has %q", got)
				}
				return
			}
			if *answer.SubjectFromWebIdentityToken != sub || *answer.Provider != issuer || test.audience != "" && *answer.Audience != test.audience {
				t.Errorf("%s, %s, %s", *answer.SubjectFromWebIdentityToken, *answer.Provider, *answer.Audience)
			}
			k := Keys{*answer.Credentials.AccessKeyId, *answer.Credentials.SecretAccessKey, *answer.Credentials.SessionToken}
			who, err := sts.NewFromConfig(c.config(t, k, "eu-west-1")).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
			if err != nil || *who.Arn != "arn:aws:sts::"+testAccount+":assumed-role/puller/team.puller" {
				t.Errorf("%v, %v", who, err)
			}
			for _, r := range c.Requests() {
				if r.Service == "issuer" {
					t.Error("what STS asked the issuer is in the log")
				}
			}
		})
	}
}

func tagClaim() map[string]any {
	return map[string]any{"https://aws.amazon.com/tags": map[string]any{"principal_tags": map[string]any{"team": []string{"a"}}}}
}

func TestGoogleIsKnownWithoutAProvider(t *testing.T) {
	const number = "123456789012345678901"
	for name, test := range map[string]struct {
		trust  Trust
		claims map[string]any
		want   string
	}{
		"azp is what the trust calls aud": {Trust{Audience: number}, nil, ""},
		"oaud is the token's aud":         {Trust{Audience: number, OriginalAudience: "my-audience"}, nil, ""},
		"another oaud":                    {Trust{Audience: number, OriginalAudience: "other"}, nil, "403 AccessDenied"},
		"the token's aud is not aud":      {Trust{Audience: "my-audience"}, nil, "403 AccessDenied"},
		"without the scheme":              {Trust{Audience: number}, map[string]any{"iss": "accounts.google.com"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := New(t)
			i := c.AddIssuer(GoogleIssuer)
			test.trust.Federated = "accounts.google.com"
			c.AddRole(Role{ARN: testRole, Trust: []Trust{test.trust}})
			claims := map[string]any{"sub": number, "azp": number, "aud": "my-audience"}
			maps.Copy(claims, test.claims)
			cfg := c.config(t, Keys{}, "eu-west-1")
			_, err := sts.NewFromConfig(cfg).AssumeRoleWithWebIdentity(t.Context(), &sts.AssumeRoleWithWebIdentityInput{
				RoleArn: aws.String(testRole), RoleSessionName: aws.String("name"), WebIdentityToken: aws.String(i.Token(claims)),
			})
			if got := said(err); got != test.want {
				t.Errorf("%q, not %q (%v)", got, test.want, err)
			}
		})
	}
}

func TestUnknownOperationOfSTS(t *testing.T) {
	c := New(t)
	_, err := sts.NewFromConfig(c.config(t, keysOf(c), "eu-west-1")).GetSessionToken(t.Context(), &sts.GetSessionTokenInput{})
	if got := said(err); got != "400 InvalidAction" {
		t.Errorf("%q (%v)", got, err)
	}
}
