package awsidentity

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/webidentity"
	"github.com/credential-broker/credential-broker/test/cloud"
)

const (
	account  = "111122223333"
	user     = "arn:aws:iam::" + account + ":user/node"
	role     = "arn:aws:iam::" + account + ":role/nodes/puller"
	cluster  = "https://oidc.eks.eu-west-1.amazonaws.com/id/ABC"
	audience = "api://AzureADTokenExchange"
	// canary is a text that no message may have.
	canary = "canary/c4nary+hunter2"
)

var may = cloud.Statement{Actions: []string{"sts:GetWebIdentityToken"}}

// setUp makes a cloud whose account issues tokens, points this process's environment to it, and empties it of all else that the SDK heeds.
func setUp(t *testing.T) (*cloud.Cloud, *cloud.Issuer) {
	t.Helper()
	c := cloud.New(t)
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, "") // so that it comes back
			_ = os.Unsetenv(name)
		}
	}
	t.Setenv("HOME", t.TempDir())
	setenv(t, c.Environ()...)
	c.AddRole(cloud.Role{ARN: role, Policy: []cloud.Statement{may}, Trust: []cloud.Trust{{Federated: cluster, Audience: "sts.amazonaws.com", Subject: "system:serviceaccount:*"}, {AWS: user}}})
	issuer := c.EnableOutboundFederation(account)
	return c, issuer
}

func setenv(t *testing.T, env ...string) {
	t.Helper()
	for _, variable := range env {
		name, value, _ := strings.Cut(variable, "=")
		t.Setenv(name, value)
	}
}

func write(t *testing.T, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// made is a source as a backend makes it.
func made(t *testing.T, c webidentity.AWS) webidentity.Source {
	t.Helper()
	cfg, from := webidentity.Config{AWS: &c}, webidentity.Sources{AWS: New}
	if err := cfg.Validate("webIdentity", from); err != nil {
		t.Fatal(err)
	}
	s, err := webidentity.New(cfg, audience, from)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// podToken is one of the cluster's for AWS.
func podToken(c *cloud.Cloud) string {
	c.AddOIDCProvider(account, cluster, "sts.amazonaws.com")
	return c.AddIssuer(cluster).Token(map[string]any{"aud": "sts.amazonaws.com", "sub": "system:serviceaccount:kube-system:broker"})
}

// asked is the request that asked for the token.
func asked(t *testing.T, c *cloud.Cloud) cloud.Request {
	t.Helper()
	for _, r := range c.Requests() {
		if r.Operation == "GetWebIdentityToken" {
			return r
		}
	}
	t.Fatalf("nobody asked for a token: %+v", c.Requests())
	return cloud.Request{}
}

// TestToken gets a token with every identity that a node or pod on AWS has.
func TestToken(t *testing.T) {
	for _, tt := range []struct {
		name string
		c    webidentity.AWS
		// prepare makes the identity.
		prepare func(t *testing.T, c *cloud.Cloud)
		subject string
		region  string // whose STS is asked; eu-west-1 without
	}{
		{name: "keys of the environment", c: webidentity.AWS{Region: "eu-west-1"}, subject: user, prepare: func(t *testing.T, c *cloud.Cloud) {
			setenv(t, c.AddUser(user, may).Environ()...)
		}},
		{name: "the environment's region", subject: user, region: "us-west-2", prepare: func(t *testing.T, c *cloud.Cloud) {
			setenv(t, append(c.AddUser(user, may).Environ(), "AWS_REGION=us-west-2")...)
		}},
		{name: "the settings' region goes before it", c: webidentity.AWS{Region: "eu-west-1"}, subject: user, prepare: func(t *testing.T, c *cloud.Cloud) {
			setenv(t, append(c.AddUser(user, may).Environ(), "AWS_REGION=us-west-2")...)
		}},
		{name: "a profile's region", subject: user, region: "ap-south-1", prepare: func(t *testing.T, c *cloud.Cloud) {
			setenv(t, append(c.AddUser(user, may).Environ(), "AWS_CONFIG_FILE="+write(t, "[default]\nregion=ap-south-1\n"))...)
		}},
		{name: "a session", c: webidentity.AWS{Region: "eu-west-1"}, subject: role, prepare: func(t *testing.T, c *cloud.Cloud) {
			setenv(t, c.Session(role, "login", time.Hour).Environ()...)
		}},
		{name: "an instance, with its region", subject: role, region: "eu-central-1", prepare: func(t *testing.T, c *cloud.Cloud) {
			i := c.Instance(role)
			i.SetRegion("eu-central-1")
			setenv(t, i.Environ()...)
		}},
		{name: "keys on an instance, with its region", subject: user, region: "eu-central-1", prepare: func(t *testing.T, c *cloud.Cloud) {
			i := c.Instance("")
			i.SetRegion("eu-central-1")
			setenv(t, append(c.AddUser(user, may).Environ(), i.Environ()...)...)
		}},
		{name: "a profile's role, with the instance's region", subject: role, region: "eu-central-1", prepare: func(t *testing.T, c *cloud.Cloud) {
			i, keys := c.Instance(""), c.AddUser(user)
			i.SetRegion("eu-central-1")
			setenv(t, append(i.Environ(), "AWS_PROFILE=puller", "AWS_CONFIG_FILE="+write(t, "[profile puller]\nrole_arn="+role+"\nsource_profile=base\n"),
				"AWS_SHARED_CREDENTIALS_FILE="+write(t, "[base]\naws_access_key_id="+keys.AccessKeyID+"\naws_secret_access_key="+keys.SecretAccessKey+"\n"))...)
		}},
		{name: "a pod's token in a file (IRSA)", subject: role, prepare: func(t *testing.T, c *cloud.Cloud) {
			setenv(t, "AWS_REGION=eu-west-1", "AWS_ROLE_ARN="+role, "AWS_WEB_IDENTITY_TOKEN_FILE="+write(t, podToken(c)))
		}},
		{name: "a pod's token in a file, with the instance's region", subject: role, region: "eu-central-1", prepare: func(t *testing.T, c *cloud.Cloud) {
			i := c.Instance("")
			i.SetRegion("eu-central-1")
			setenv(t, append(i.Environ(), "AWS_ROLE_ARN="+role, "AWS_WEB_IDENTITY_TOKEN_FILE="+write(t, podToken(c)))...)
		}},
		{name: "EKS Pod Identity", subject: role, prepare: func(t *testing.T, c *cloud.Cloud) {
			setenv(t, append(c.Container(role).Environ(), "AWS_REGION=eu-west-1")...)
		}},
		{name: "the other algorithm, for an hour", c: webidentity.AWS{Region: "eu-west-1", SigningAlgorithm: webidentity.ES384, Duration: time.Hour}, subject: user, prepare: func(t *testing.T, c *cloud.Cloud) {
			setenv(t, c.AddUser(user, may).Environ()...)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, issuer := setUp(t)
			tt.prepare(t, c)
			token, err := made(t, tt.c).Token(t.Context())
			if err != nil {
				t.Fatalf("%v\n%+v", err, c.Requests())
			}
			claims, err := webidentity.ParseClaims(string(token.Value))
			if err != nil || claims.Issuer != issuer.URL() || claims.Subject != tt.subject || len(claims.Audience) != 1 || claims.Audience[0] != audience {
				t.Errorf("%+v, %v", claims, err)
			}
			life := cmp.Or(tt.c.Duration, 5*time.Minute)
			if left := time.Until(token.Expires); !token.Expires.Equal(claims.Expires) || left > life || left < life-time.Minute {
				t.Errorf("it holds for %s, not %s", left, life)
			}
			if want := "sts." + cmp.Or(tt.region, "eu-west-1") + ".amazonaws.com"; asked(t, c).Host != want {
				t.Errorf("%s was asked, not %s", asked(t, c).Host, want)
			}
			for _, r := range c.Requests() {
				if r.Service == "proxy" || r.Service == "sts" && r.Host != asked(t, c).Host {
					t.Errorf("somebody else was asked: %+v", r)
				}
			}
		})
	}
}

// TestAlgorithm: the header says by what the token is signed.
func TestAlgorithm(t *testing.T) {
	c, _ := setUp(t)
	setenv(t, c.AddUser(user, may).Environ()...)
	for algorithm, header := range map[webidentity.SigningAlgorithm]string{"": `"alg":"RS256"`, webidentity.RS256: `"alg":"RS256"`, webidentity.ES384: `"alg":"ES384"`} {
		token, err := made(t, webidentity.AWS{Region: "eu-west-1", SigningAlgorithm: algorithm}).Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := headerOf(t, string(token.Value)); !strings.Contains(got, header) {
			t.Errorf("%q: %s", algorithm, got)
		}
	}
}

// TestFailures: each failure says whose token it is, what AWS said, and what to do; none repeats an answer or a secret.
func TestFailures(t *testing.T) {
	keys := func(t *testing.T, c *cloud.Cloud, p ...cloud.Statement) {
		setenv(t, append(c.AddUser(user, p...).Environ(), "AWS_REGION=eu-west-1")...)
	}
	for _, tt := range []struct {
		name    string
		c       webidentity.AWS
		prepare func(t *testing.T, c *cloud.Cloud)
		kind    backends.Kind
		field   string
		words   []string
	}{
		{
			name: "not enabled", c: webidentity.AWS{Region: "eu-west-1"}, kind: backends.KindRefused,
			prepare: func(t *testing.T, c *cloud.Cloud) {
				setenv(t, c.AddUser("arn:aws:iam::444455556666:user/node", may).Environ()...)
			},
			words: []string{
				"identity token from AWS's STS in eu-west-1: STS GetWebIdentityToken: OutboundWebIdentityFederationDisabledException (status 403, request ",
				"the account issues no tokens", "`aws iam enable-outbound-web-identity-federation`",
			},
		},
		{
			name: "not enabled, as the reference words it", kind: backends.KindRefused, words: []string{"`aws iam enable-outbound-web-identity-federation`"},
			prepare: func(t *testing.T, c *cloud.Cloud) {
				keys(t, c, may)
				c.Fail(cloud.Fault{Service: "sts", Status: 403, Code: "OutboundWebIdentityFederationDisabled"})
			},
		},
		{
			name: "denied", kind: backends.KindRefused, prepare: func(t *testing.T, c *cloud.Cloud) { keys(t, c) },
			words: []string{
				"identity token from AWS's STS: STS GetWebIdentityToken: AccessDenied (status 403, request ", `{"Effect":"Allow","Action":["sts:GetWebIdentityToken"],"Resource":"*"}`,
				`audience "api://AzureADTokenExchange", RS256 and 300 seconds`,
			},
		},
		{
			name: "a session that is too short", c: webidentity.AWS{Duration: time.Hour}, kind: backends.KindUnavailable, words: []string{"SessionDurationEscalationException", "asked for 1h0m0s", "set a shorter duration"},
			prepare: func(t *testing.T, c *cloud.Cloud) {
				setenv(t, append(c.Session(role, "short", 10*time.Minute).Environ(), "AWS_REGION=eu-west-1")...)
			},
		},
		{
			name: "too much to say", kind: backends.KindRefused, words: []string{"JWTPayloadSizeExceededException", "more tags than a token can tell"},
			prepare: func(t *testing.T, c *cloud.Cloud) {
				keys(t, c, may)
				c.Fail(cloud.Fault{Service: "sts", Status: 400, Code: "JWTPayloadSizeExceededException"})
			},
		},
		{
			name: "the global endpoint", kind: backends.KindMisconfigured, field: "webIdentity.aws.region", words: []string{"InvalidAction (status 400", "name a region", "AWS_ENDPOINT_URL_STS"},
			prepare: func(t *testing.T, c *cloud.Cloud) {
				keys(t, c, may)
				setenv(t, "AWS_REGION=us-east-1", "AWS_ENDPOINT_URL_STS=https://sts.amazonaws.com")
			},
		},
		{
			name: "a region that is all", kind: backends.KindMisconfigured, field: "webIdentity.aws.region", words: []string{"InvalidAction"},
			prepare: func(t *testing.T, c *cloud.Cloud) { keys(t, c, may); setenv(t, "AWS_REGION=aws-global") },
		},
		{
			name: "no region", kind: backends.KindMisconfigured, field: "webIdentity.aws.region",
			prepare: func(t *testing.T, c *cloud.Cloud) { setenv(t, c.AddUser(user, may).Environ()...) },
			words: []string{
				"nothing says which region to ask: tried environment (no AWS_REGION, no AWS_DEFAULT_REGION); shared configuration (no /", "instance metadata (", "AWS_EC2_METADATA_DISABLED",
				"set it, or name AWS_REGION in the provider's inheritEnv",
			},
		},
		{
			name: "no region, and nobody who knows one", kind: backends.KindMisconfigured, field: "webIdentity.aws.region", words: []string{"/file has no region for the profile", "instance metadata (127.0.0.1:", "connection refused"},
			prepare: func(t *testing.T, c *cloud.Cloud) {
				i := c.Instance("")
				i.Refuse()
				setenv(t, append(c.AddUser(user, may).Environ(), i.Environ()...)...)
				setenv(t, "AWS_CONFIG_FILE="+write(t, "[default]\noutput=json\n"))
			},
		},
		{
			name: "no credentials", kind: backends.KindUnavailable, prepare: func(t *testing.T, _ *cloud.Cloud) { setenv(t, "AWS_REGION=eu-west-1") },
			words: []string{
				"identity token from AWS's STS: no AWS credentials: tried environment (no AWS_ACCESS_KEY_ID", "shared configuration (no /", "container credentials endpoint (no AWS_CONTAINER", "instance metadata (",
				"attach a role to the instance, use EKS Pod Identity or IRSA, or name the AWS_* variables in the provider's inheritEnv",
			},
		},
		{
			name: "neither credentials nor region", kind: backends.KindUnavailable, words: []string{"no AWS credentials"},
			prepare: func(*testing.T, *cloud.Cloud) {},
		},
		{
			name: "an instance without a role", kind: backends.KindUnavailable, words: []string{"no AWS credentials", "status 404: the instance has no role"},
			prepare: func(t *testing.T, c *cloud.Cloud) { setenv(t, c.Instance("").Environ()...) },
		},
		{
			name: "a pod that the role does not trust", kind: backends.KindRefused, words: []string{"no AWS credentials: tried AWS_WEB_IDENTITY_TOKEN_FILE /", "AccessDenied"},
			prepare: func(t *testing.T, c *cloud.Cloud) {
				c.AddRole(cloud.Role{ARN: role})
				setenv(t, "AWS_REGION=eu-west-1", "AWS_ROLE_ARN="+role, "AWS_WEB_IDENTITY_TOKEN_FILE="+write(t, podToken(c)))
			},
		},
		{
			name: "an unknown key", kind: backends.KindRefused, words: []string{"InvalidClientTokenId", "AWS does not know this access key"},
			prepare: func(t *testing.T, _ *cloud.Cloud) {
				setenv(t, append(cloud.Keys{AccessKeyID: "AKIAIOSFODNN7EXAMPLE", SecretAccessKey: canary}.Environ(), "AWS_REGION=eu-west-1")...)
			},
		},
		{
			name: "a wrong secret", kind: backends.KindRefused, words: []string{"SignatureDoesNotMatch", "secret access key does not belong"},
			prepare: func(t *testing.T, c *cloud.Cloud) { keys(t, c, may); setenv(t, "AWS_SECRET_ACCESS_KEY="+canary) },
		},
		{
			name: "an expired session", kind: backends.KindUnavailable, words: []string{"ExpiredToken", "have expired"},
			prepare: func(t *testing.T, c *cloud.Cloud) {
				setenv(t, append(c.Session(role, "old", -time.Minute).Environ(), "AWS_REGION=eu-west-1")...)
			},
		},
		{
			name: "throttled for long", kind: backends.KindUnavailable, words: []string{"STS GetWebIdentityToken: Throttling (status 400", "throttled"},
			prepare: func(t *testing.T, c *cloud.Cloud) { keys(t, c, may); c.Fail(cloud.Fault{Service: "sts"}) },
		},
		{
			name: "broken, with a telling answer", kind: backends.KindUnavailable, words: []string{"STS GetWebIdentityToken: ", "status 500", "after 3 attempts"},
			prepare: func(t *testing.T, c *cloud.Cloud) {
				keys(t, c, may)
				c.Fail(cloud.Fault{Service: "sts", Status: 500, Body: "<ErrorResponse><Error><Code>" + canary + " quoted</Code><Message>" + canary + "</Message></Error></ErrorResponse>"})
			},
		},
		{
			name: "an answer that is none", kind: backends.KindUnavailable, words: []string{"STS GetWebIdentityToken: "},
			prepare: func(t *testing.T, c *cloud.Cloud) {
				keys(t, c, may)
				c.Fail(cloud.Fault{Service: "sts", Status: 200, Body: "<html>" + canary})
			},
		},
		{
			name: "an answer without a token", kind: backends.KindUnavailable, words: []string{"it is empty"},
			prepare: func(t *testing.T, c *cloud.Cloud) {
				keys(t, c, may)
				c.Fail(cloud.Fault{Service: "sts", Status: 200, Body: "<GetWebIdentityTokenResponse><GetWebIdentityTokenResult></GetWebIdentityTokenResult></GetWebIdentityTokenResponse>"})
			},
		},
		{
			name: "an answer with something else", kind: backends.KindMisconfigured, field: "webIdentity.aws", words: []string{"it is no JWT"},
			prepare: func(t *testing.T, c *cloud.Cloud) {
				keys(t, c, may)
				c.Fail(cloud.Fault{Service: "sts", Status: 200, Body: "<GetWebIdentityTokenResponse><GetWebIdentityTokenResult><WebIdentityToken>" + canary + "</WebIdentityToken></GetWebIdentityTokenResult></GetWebIdentityTokenResponse>"})
			},
		},
		{
			name: "no answer", kind: backends.KindUnavailable, words: []string{"sts.eu-west-1.amazonaws.com: no answer in time", "the way there has to be open"},
			prepare: func(t *testing.T, c *cloud.Cloud) { keys(t, c, may); c.Fail(cloud.Fault{Service: "sts", Hang: true}) },
		},
		{
			name: "nobody there", kind: backends.KindUnavailable, words: []string{"sts.nowhere.example: ", "the way there has to be open"},
			prepare: func(t *testing.T, c *cloud.Cloud) {
				keys(t, c, may)
				setenv(t, "AWS_ENDPOINT_URL_STS=https://sts.nowhere.example")
			},
		},
		{
			name: "a certificate that nobody trusts", kind: backends.KindRefused, words: []string{"sts.eu-west-1.amazonaws.com: x509: ", "AWS_CA_BUNDLE"},
			prepare: func(t *testing.T, c *cloud.Cloud) {
				keys(t, c, may)
				_ = os.Unsetenv("AWS_CA_BUNDLE")
				setenv(t, "SSL_CERT_FILE=/nonexistent", "SSL_CERT_DIR=/nonexistent")
			},
		},
		{
			name: "a profile that is not there", kind: backends.KindMisconfigured, field: "webIdentity.aws", words: []string{"load the AWS configuration", "puller"},
			prepare: func(t *testing.T, _ *cloud.Cloud) { setenv(t, "AWS_PROFILE=puller") },
		},
		{
			name: "a credential_process that others can write", kind: backends.KindMisconfigured, field: "webIdentity.aws", words: []string{"credential_process of profile", "is not safe to use"},
			prepare: func(t *testing.T, _ *cloud.Cloud) {
				program := write(t, "#!/bin/sh\n")
				if err := os.Chmod(program, 0o777); err != nil {
					t.Fatal(err)
				}
				setenv(t, "AWS_REGION=eu-west-1", "AWS_CONFIG_FILE="+write(t, "[default]\ncredential_process = "+program+"\n"))
			},
		},
		{
			name: "a clock that is wrong", kind: backends.KindUnavailable, words: []string{"it expired at", "this machine's clock says"},
			prepare: func(t *testing.T, c *cloud.Cloud) { keys(t, c, may); c.SetClockOffset(-10 * time.Minute) }, // STS takes that, and its token has expired here
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, _ := setUp(t)
			var logged bytes.Buffer
			before := slog.Default()
			slog.SetDefault(slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug})))
			t.Cleanup(func() { slog.SetDefault(before) })
			tt.prepare(t, c)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			s := made(t, tt.c)
			token, err := s.Token(ctx)
			if err == nil || token.Value != "" {
				t.Fatalf("want an error: %v", err)
			}
			if e, ok := errors.AsType[*backends.Error](err); !ok || e.Kind != tt.kind || e.Field != tt.field {
				t.Errorf("kind %v, field %q; want %v, %q: %v", e.Kind, e.Field, tt.kind, tt.field, err)
			}
			text := fmt.Sprintf("%v %+v", err, err)
			for _, word := range append(tt.words, "identity token from "+s.String()+": ") {
				if !strings.Contains(text, word) {
					t.Errorf("%v\ndoes not say %q", err, word)
				}
			}
			secrets := []string{canary, "eyJ", "IQoJ", os.Getenv("AWS_SECRET_ACCESS_KEY"), os.Getenv("AWS_SESSION_TOKEN")}
			for _, secret := range secrets {
				if secret != "" && strings.Contains(text+logged.String()+s.String(), secret) {
					t.Errorf("a secret is in %q, or in the log: %s", err, logged.String())
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("not one line: %q", err)
			}
		})
	}
}

// TestThrottledForAMoment: it is asked again.
func TestThrottledForAMoment(t *testing.T) {
	c, _ := setUp(t)
	setenv(t, c.AddUser(user, may).Environ()...)
	c.Fail(cloud.Fault{Service: "sts", Times: 2})
	if _, err := made(t, webidentity.AWS{Region: "eu-west-1"}).Token(t.Context()); err != nil || len(c.Requests()) != 3 {
		t.Errorf("%v after %d requests", err, len(c.Requests()))
	}
}

// TestRedirect: whoever redirects the question does not have it asked elsewhere, with its signature.
func TestRedirect(t *testing.T) {
	c, _ := setUp(t)
	setenv(t, c.AddUser(user, may).Environ()...)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { t.Errorf("%s %s was asked", r.Method, r.URL) }))
	t.Cleanup(elsewhere.Close)
	for _, status := range []int{http.StatusFound, http.StatusTemporaryRedirect} {
		here := httptest.NewServer(http.RedirectHandler(elsewhere.URL, status))
		t.Cleanup(here.Close)
		setenv(t, "AWS_ENDPOINT_URL_STS="+here.URL)
		if _, err := made(t, webidentity.AWS{Region: "eu-west-1"}).Token(t.Context()); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("status %d", status)) {
			t.Error(err)
		}
	}
}

// TestNothingIsKept: each token is asked for anew, with the credentials that there are by then.
func TestNothingIsKept(t *testing.T) {
	c, _ := setUp(t)
	s := made(t, webidentity.AWS{Region: "eu-west-1"})
	var seen []string
	for _, name := range []string{user, "arn:aws:iam::" + account + ":user/other"} {
		setenv(t, c.AddUser(name, may).Environ()...)
		token, err := s.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		claims, _ := webidentity.ParseClaims(string(token.Value))
		seen = append(seen, claims.Subject)
	}
	if seen[0] != user || seen[1] == user {
		t.Errorf("asked as %q", seen)
	}
	if n := c.Connections("sts.eu-west-1.amazonaws.com"); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

// TestGivenUp: whoever asked does not wait any more.
func TestGivenUp(t *testing.T) {
	c, _ := setUp(t)
	setenv(t, c.AddUser(user, may).Environ()...)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := made(t, webidentity.AWS{Region: "eu-west-1"}).Token(ctx); err == nil || !strings.Contains(err.Error(), "given up") {
		t.Error(err)
	}
}

func headerOf(t *testing.T, token string) string {
	t.Helper()
	header, _, _ := strings.Cut(token, ".")
	raw, err := base64.RawURLEncoding.DecodeString(header)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}
