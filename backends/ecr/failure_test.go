package ecr

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/amazon"
	"github.com/credential-broker/credential-broker/test/cloud"
)

// TestFailures: each failure says what was done, what AWS said of it, and what to do; none repeats an answer or a secret.
func TestFailures(t *testing.T) {
	denied := cloud.Statement{Actions: []string{"s3:*"}}
	token := func(c *cloud.Cloud, change func(map[string]any)) backends.Request {
		c.AddOIDCProvider(account, cluster, "sts.amazonaws.com")
		c.AddRole(cloud.Role{ARN: podRole, Trust: []cloud.Trust{{Federated: cluster, Audience: "sts.amazonaws.com", Subject: "system:serviceaccount:team-a:*"}}, Policy: cloud.PullPolicy()})
		return backends.Request{Token: backends.Secret(serviceAccountToken(c.AddIssuer(cluster), "team-a", "builder", change)), Annotations: map[string]string{roleAnnotation: podRole}}
	}
	for _, c := range []struct {
		name    string
		prepare func(t *testing.T, c *cloud.Cloud) (Config, backends.Request)
		kind    backends.Kind
		words   []string
	}{
		{"denied", func(t *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			setenv(t, c.AddUser(nodeUser, denied).Environ()...)
			return Config{}, backends.Request{}
		}, backends.KindRefused, []string{"get a token for account 111111111111 in eu-west-1: ECR GetAuthorizationToken: AccessDeniedException (status 400, request ", `policy must allow ecr:GetAuthorizationToken on "*"`}},
		{"unknown key", func(t *testing.T, _ *cloud.Cloud) (Config, backends.Request) {
			setenv(t, cloud.Keys{AccessKeyID: "AKIAIOSFODNN7EXAMPLE", SecretAccessKey: canary}.Environ()...)
			return Config{}, backends.Request{}
		}, backends.KindRefused, []string{"UnrecognizedClientException", "AWS does not know this access key"}},
		{"wrong secret", func(t *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			keys := c.AddUser(nodeUser, cloud.PullPolicy()...)
			keys.SecretAccessKey = canary
			setenv(t, keys.Environ()...)
			return Config{}, backends.Request{}
		}, backends.KindRefused, []string{"InvalidSignatureException", "secret access key does not belong to the access key"}},
		{"expired session", func(t *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			addNodeRole(c)
			setenv(t, c.Session(nodeRole, "old", -time.Minute).Environ()...)
			return Config{}, backends.Request{}
		}, backends.KindUnavailable, []string{"ExpiredTokenException", "have expired"}},
		{"throttled for long", func(t *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			setenv(t, c.AddUser(nodeUser, cloud.PullPolicy()...).Environ()...)
			c.Fail(cloud.Fault{Service: "ecr"})
			return Config{}, backends.Request{}
		}, backends.KindUnavailable, []string{"ECR GetAuthorizationToken: ThrottlingException", "throttled"}},
		{"broken for long, with a telling body", func(t *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			setenv(t, c.AddUser(nodeUser, cloud.PullPolicy()...).Environ()...)
			c.Fail(cloud.Fault{Service: "ecr", Status: 500, Body: `{"__type":"` + canary + ` quoted","message":"` + canary + `"}`})
			return Config{}, backends.Request{}
		}, backends.KindUnavailable, []string{"ECR GetAuthorizationToken", "status 500"}},
		{"an answer that is none", func(t *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			setenv(t, c.AddUser(nodeUser, cloud.PullPolicy()...).Environ()...)
			c.Fail(cloud.Fault{Service: "ecr", Status: 200, Body: `{"authorizationData":"` + canary + `"}`})
			return Config{}, backends.Request{}
		}, backends.KindUnavailable, []string{"ECR GetAuthorizationToken"}},
		{"no answer", func(t *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			setenv(t, c.AddUser(nodeUser, cloud.PullPolicy()...).Environ()...)
			c.Fail(cloud.Fault{Service: "ecr", Hang: true})
			return Config{}, backends.Request{}
		}, backends.KindUnavailable, []string{"ECR GetAuthorizationToken: api.ecr.eu-west-1.amazonaws.com: no answer in time", "the way there has to be open"}},
		{"nobody there", func(t *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			setenv(t, c.AddUser(nodeUser, cloud.PullPolicy()...).Environ()...)
			return Config{Endpoint: "https://ecr.nowhere.example"}, backends.Request{}
		}, backends.KindUnavailable, []string{"ecr.nowhere.example: ", "the way there has to be open"}},
		{"a certificate that nobody trusts", func(t *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			setenv(t, c.AddUser(nodeUser, cloud.PullPolicy()...).Environ()...)
			setenv(t, "AWS_CA_BUNDLE="+os.Getenv("AWS_CA_BUNDLE"))
			_ = os.Unsetenv("AWS_CA_BUNDLE")
			setenv(t, "SSL_CERT_FILE=/nonexistent", "SSL_CERT_DIR=/nonexistent")
			return Config{}, backends.Request{}
		}, backends.KindRefused, []string{"api.ecr.eu-west-1.amazonaws.com: x509: ", "AWS_CA_BUNDLE"}},
		{"a role that does not trust", func(t *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			setenv(t, c.AddUser(nodeUser, cloud.PullPolicy()...).Environ()...)
			addNodeRole(c, cloud.Trust{AWS: nodeUser, ExternalID: "other"})
			return Config{RoleARN: nodeRole, ExternalID: "mine"}, backends.Request{}
		}, backends.KindRefused, []string{"assume " + nodeRole + ": STS AssumeRole: AccessDenied", "trust policy must allow sts:AssumeRole to this identity with this externalID"}},
		{"tags that the role does not take", func(t *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			setenv(t, c.AddUser(nodeUser, cloud.PullPolicy()...).Environ()...)
			addNodeRole(c, cloud.Trust{AWS: nodeUser})
			return Config{RoleARN: nodeRole, SessionTags: map[string]string{"a": "b"}}, backends.Request{}
		}, backends.KindRefused, []string{"sts:TagSession"}},
		{"a pod that the role does not trust", func(_ *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			return Config{}, token(c, func(claims map[string]any) { claims["sub"] = "system:serviceaccount:team-b:builder" })
		}, backends.KindRefused, []string{"assume " + podRole + " with the pod's service account token: STS AssumeRoleWithWebIdentity: AccessDenied", `issuer "` + cluster + `" with sub "system:serviceaccount:team-b:builder", aud "sts.amazonaws.com"`}},
		{"a pod's token for somebody else", func(_ *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			return Config{}, token(c, func(claims map[string]any) { claims["aud"] = "vault" })
		}, backends.KindRefused, []string{"InvalidIdentityToken", `needs an IAM OIDC provider for issuer "` + cluster + `" with audience "vault"`}},
		{"a pod's token that has expired", func(_ *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			return Config{}, token(c, func(claims map[string]any) {
				claims["iat"], claims["exp"] = time.Now().Add(-2*time.Hour).Unix(), time.Now().Add(-time.Hour).Unix()
			})
		}, backends.KindUnavailable, []string{"ExpiredTokenException", "the token has expired at"}},
		{"a pod's token that is none", func(_ *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			r := token(c, nil)
			r.Token = canary
			return Config{}, r
		}, backends.KindRefused, []string{"InvalidIdentityToken"}},
		{"nobody at all", func(_ *testing.T, _ *cloud.Cloud) (Config, backends.Request) {
			return Config{}, backends.Request{}
		}, backends.KindUnavailable, []string{"no AWS credentials: tried environment (no AWS_ACCESS_KEY_ID", "shared configuration (no /", "container credentials endpoint (no AWS_CONTAINER", "instance metadata (", "AWS_EC2_METADATA_DISABLED", "attach an instance role"}},
		{"an instance without a role", func(t *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			setenv(t, c.Instance("").Environ()...)
			return Config{}, backends.Request{}
		}, backends.KindUnavailable, []string{"instance metadata (127.0.0.1:", "status 404: the instance has no role"}},
		{"a container's token that is refused", func(t *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			addNodeRole(c)
			k := c.Container(nodeRole)
			setenv(t, k.Environ()...)
			setenv(t, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE="+write(t, canary))
			return Config{}, backends.Request{}
		}, backends.KindRefused, []string{"container credentials endpoint (127.0.0.1:", "status 401"}},
		{"a profile that is not there", func(_ *testing.T, _ *cloud.Cloud) (Config, backends.Request) {
			return Config{Profile: "puller"}, backends.Request{}
		}, backends.KindMisconfigured, []string{"load the AWS configuration", "puller"}},
		{"a credential_process that others can write", func(t *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			program := processPrinting(t, c.AddUser(nodeUser, cloud.PullPolicy()...))
			if err := os.Chmod(program, 0o777); err != nil {
				t.Fatal(err)
			}
			setenv(t, "AWS_CONFIG_FILE="+write(t, "[default]\ncredential_process = "+program+" x\n"))
			return Config{}, backends.Request{}
		}, backends.KindMisconfigured, []string{"credential_process of profile", "is not safe to use"}},
		{"a credential_process that fails", func(t *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			setenv(t, "AWS_CONFIG_FILE="+write(t, "[default]\ncredential_process = "+processPrinting(t, c.AddUser(nodeUser))+"\n"))
			return Config{}, backends.Request{}
		}, backends.KindUnavailable, []string{"credential_process", "exit status 9"}},
		{"a credential_process that prints something else", func(t *testing.T, _ *cloud.Cloud) (Config, backends.Request) {
			setenv(t, "AWS_CONFIG_FILE="+write(t, "[default]\ncredential_process = /bin/echo "+canary+"\n"))
			return Config{}, backends.Request{}
		}, backends.KindUnavailable, []string{"printed no JSON as AWS documents it"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			aws := setUp(t)
			cfg, req := c.prepare(t, aws)
			req.Image = image
			b := backendFor(t, aws, cfg)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			r, err := b.Credentials(ctx, req)
			fails(t, err, c.kind, c.words...)
			if len(r.Credentials) > 0 {
				t.Error("credentials were given all the same")
			}
			if ctx.Err() != nil {
				t.Error("there was no time left to answer")
			}
			secrets := []string{canary, os.Getenv("AWS_SECRET_ACCESS_KEY"), os.Getenv("AWS_SESSION_TOKEN"), string(req.Token)}
			for _, secret := range secrets {
				if secret != "" && strings.Contains(err.Error(), secret) {
					t.Errorf("a secret is in %q", err)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("not one line: %q", err)
			}
		})
	}
}

// canary is a text that no message may have.
const canary = "canary/c4nary+hunter2"

// TestRedirects: whoever redirects a call, or a question to a metadata service, does not have it made elsewhere.
func TestRedirects(t *testing.T) {
	for _, status := range []int{http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect} {
		aws := setUp(t)
		elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			t.Errorf("%s %s was asked of another host", r.Method, r.URL)
		}))
		here := httptest.NewServer(http.RedirectHandler(elsewhere.URL, status))
		t.Cleanup(elsewhere.Close)
		t.Cleanup(here.Close)
		said := fmt.Sprintf("status %d", status)
		token := serviceAccountToken(aws.AddIssuer(cluster), "team-a", "builder", nil)
		_, err := backendFor(t, aws, Config{STSEndpoint: here.URL, PodRoleARN: podRole}).Credentials(t.Context(), backends.Request{Image: image, Token: backends.Secret(token)})
		fails(t, err, backends.KindUnavailable, said)
		setenv(t, "AWS_CONTAINER_CREDENTIALS_FULL_URI="+here.URL, "AWS_CONTAINER_AUTHORIZATION_TOKEN="+canary)
		_, err = backendFor(t, aws, Config{}).Credentials(t.Context(), backends.Request{Image: image})
		fails(t, err, backends.KindUnavailable, said)
		setenv(t, aws.AddUser(nodeUser, cloud.PullPolicy()...).Environ()...)
		_, err = backendFor(t, aws, Config{Endpoint: here.URL}).Credentials(t.Context(), backends.Request{Image: image})
		fails(t, err, backends.KindUnavailable, said)
	}
}

// TestAttempts: what is throttled is tried until it works, what is broken three times, what is not to be trusted once.
func TestAttempts(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault cloud.Fault
		want  int
	}{
		{"broken", cloud.Fault{Service: "ecr", Status: http.StatusInternalServerError, Code: "ServerException"}, 3},
		{"throttled", cloud.Fault{Service: "ecr", Times: 4}, 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			aws := setUp(t)
			setenv(t, aws.AddUser(nodeUser, cloud.PullPolicy()...).Environ()...)
			aws.Fail(c.fault)
			_, err := backendFor(t, aws, Config{}).Credentials(t.Context(), backends.Request{Image: image})
			if n := len(aws.Requests()); n != c.want || (err == nil) != (c.name == "throttled") {
				t.Errorf("%d attempts, want %d: %v", n, c.want, err)
			}
		})
	}
}

func TestThrottledForAMoment(t *testing.T) {
	aws := setUp(t)
	setenv(t, aws.AddUser(nodeUser, cloud.PullPolicy()...).Environ()...)
	aws.Fail(cloud.Fault{Service: "ecr", Times: 2})
	pull(t, aws, backendFor(t, aws, Config{}), backends.Request{Image: image})
	if n := len(principals(aws)); n != 3 {
		t.Errorf("%d attempts, want 3", n)
	}
	if n := aws.Connections("api.ecr.eu-west-1.amazonaws.com"); n != 1 {
		t.Errorf("%d TLS connections, want 1", n)
	}
}

// TestClock: an hour of difference is corrected by the SDK, which learns AWS's time from the refusal; where that does not help, the error tells by how much.
func TestClock(t *testing.T) {
	for _, off := range []time.Duration{time.Hour, -time.Hour} {
		aws := setUp(t)
		setenv(t, aws.AddUser(nodeUser, cloud.PullPolicy()...).Environ()...)
		aws.SetClockOffset(off)
		r, err := backendFor(t, aws, Config{}).Credentials(t.Context(), backends.Request{Image: image})
		if err == nil {
			if left := time.Until(r.Credentials[0].Expires); (left - 12*time.Hour).Abs() > time.Minute {
				t.Errorf("AWS's clock is %s ahead: the token is said to live for %s by ours, not 12h", off, left)
			}
			continue
		}
		word := "behind AWS's"
		if off < 0 {
			word = "ahead of AWS's"
		}
		fails(t, err, backends.KindRefused, "this machine's clock is 1h0m", word)
	}
}

func TestPublic(t *testing.T) {
	const publicImage = "public.ecr.aws/team/app"
	for _, c := range []struct {
		name      string
		public    Public
		keys      func(c *cloud.Cloud) cloud.Keys
		anonymous bool
		err       string
	}{
		{"allowed", "", func(c *cloud.Cloud) cloud.Keys { return c.AddUser(nodeUser, cloud.PublicPolicy()...) }, false, ""},
		{"half allowed", PublicRequired, func(c *cloud.Cloud) cloud.Keys {
			return c.AddUser(nodeUser, cloud.Statement{Actions: []string{"ecr-public:GetAuthorizationToken"}})
		}, false, "sts:GetServiceBearerToken"},
		{"denied", "", func(c *cloud.Cloud) cloud.Keys { return c.AddUser(nodeUser, cloud.PullPolicy()...) }, true, ""},
		{"denied where it is required", PublicRequired, func(c *cloud.Cloud) cloud.Keys { return c.AddUser(nodeUser, cloud.PullPolicy()...) }, false, "ecr-public:GetAuthorizationToken"},
		{"of another partition", "", func(c *cloud.Cloud) cloud.Keys {
			return c.AddUser("arn:aws-cn:iam::111111111111:user/node", cloud.PublicPolicy()...)
		}, true, ""},
		{"nobody", "", func(*cloud.Cloud) cloud.Keys { return cloud.Keys{} }, true, ""},
		{"nobody where somebody is required", PublicRequired, func(*cloud.Cloud) cloud.Keys { return cloud.Keys{} }, false, "no AWS credentials"},
		{"anonymous", PublicAnonymous, func(c *cloud.Cloud) cloud.Keys { return c.AddUser(nodeUser, cloud.PublicPolicy()...) }, true, ""},
		{"a wrong secret is no reason to be anonymous", "", func(c *cloud.Cloud) cloud.Keys {
			keys := c.AddUser(nodeUser, cloud.PublicPolicy()...)
			keys.SecretAccessKey = canary
			return keys
		}, false, "InvalidSignatureException"},
	} {
		t.Run(c.name, func(t *testing.T) {
			aws := setUp(t)
			if keys := c.keys(aws); keys.AccessKeyID != "" {
				setenv(t, keys.Environ()...)
			}
			b := backendFor(t, aws, Config{Public: c.public})
			r, err := b.Credentials(t.Context(), backends.Request{Image: publicImage})
			switch {
			case c.err != "":
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("got %v, want %q", err, c.err)
				}
				return
			case err != nil:
				t.Fatal(err)
			case c.anonymous:
				if len(r.Credentials) > 0 || r.CacheDuration == nil || *r.CacheDuration > 10*time.Minute {
					t.Errorf("got %+v", r)
				}
				if c.public == PublicAnonymous && len(aws.Requests()) > 0 {
					t.Errorf("asked for %q", operations(aws))
				}
				return
			}
			if len(r.Credentials) != 1 || r.Credentials[0].Key != "public.ecr.aws" {
				t.Fatalf("got %+v", r)
			}
			if err := aws.Pull(publicImage, r.Credentials[0].Username, string(r.Credentials[0].Password)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNotAmazons(t *testing.T) {
	aws := setUp(t)
	setenv(t, aws.AddUser(nodeUser, cloud.PullPolicy()...).Environ()...)
	r, err := backendFor(t, aws, Config{}).Credentials(t.Context(), backends.Request{Image: "registry.example/team/app"})
	if err != nil || len(r.Credentials) > 0 || len(aws.Requests()) > 0 {
		t.Errorf("got %+v, %v, %q", r, err, operations(aws))
	}
}

func TestImageScope(t *testing.T) {
	aws := setUp(t)
	setenv(t, aws.AddUser(nodeUser, cloud.PullPolicy()...).Environ()...)
	r := pull(t, aws, backendFor(t, aws, Config{Scope: ScopeImage}), backends.Request{Image: image})
	if r.Scope != backends.ScopeImage || r.Credentials[0].Key != image {
		t.Errorf("scope %v, key %q", r.Scope, r.Credentials[0].Key)
	}
}

// TestOneTokenForARegion: it is good for every registry that the identity may reach there, and nobody else's.
func TestOneTokenForARegion(t *testing.T) {
	aws := setUp(t)
	const other = "222222222222.dkr.ecr.eu-west-1.amazonaws.com"
	aws.AddRegistry(other, cloud.Repository{Name: "app", Pull: []string{nodeUser}})
	setenv(t, aws.AddUser(nodeUser, cloud.PullPolicy()...).Environ()...)
	b := backendFor(t, aws, Config{})
	pull(t, aws, b, backends.Request{Image: image})
	if r := pull(t, aws, b, backends.Request{Image: other + "/app"}); r.Credentials[0].Key != other {
		t.Errorf("key %q", r.Credentials[0].Key)
	}
	if n := len(principals(aws)); n != 1 {
		t.Errorf("%d tokens, want one", n)
	}
}

// TestPodsAreKeptApart: the tokens of two pods, and of the node, are never one another's.
func TestPodsAreKeptApart(t *testing.T) {
	aws := setUp(t)
	setenv(t, aws.AddUser(nodeUser, cloud.PullPolicy()...).Environ()...)
	issuer := aws.AddIssuer(cluster)
	aws.AddOIDCProvider(account, cluster, "sts.amazonaws.com")
	aws.AddRole(cloud.Role{ARN: podRole, Trust: []cloud.Trust{{Federated: cluster, Audience: "sts.amazonaws.com", Subject: "system:serviceaccount:*"}}, Policy: cloud.PullPolicy()})
	b := backendFor(t, aws, Config{})
	seen := map[string]string{}
	for name, req := range map[string]backends.Request{
		"node":  {},
		"pod a": {Token: backends.Secret(serviceAccountToken(issuer, "team-a", "x", nil)), Annotations: map[string]string{roleAnnotation: podRole}},
		"pod b": {Token: backends.Secret(serviceAccountToken(issuer, "team-b", "x", nil)), Annotations: map[string]string{roleAnnotation: podRole}},
	} {
		req.Image = image
		password := string(pull(t, aws, b, req).Credentials[0].Password)
		if seen[password] != "" {
			t.Errorf("%s was given the token of %s", name, seen[password])
		}
		seen[password] = name
	}
	if n := len(principals(aws)); n != 3 {
		t.Errorf("%d tokens were asked for, want 3", n)
	}
}

// TestAbsentMetadata: one attempt of a second, however the service is absent.
func TestAbsentMetadata(t *testing.T) {
	for name, c := range map[string]struct {
		absent func(*cloud.Instance)
		words  string
	}{
		"nobody answers":       {(*cloud.Instance).Absent, "no answer within 1s"},
		"nobody listens":       {(*cloud.Instance).Refuse, "connection refused"},
		"the hop limit is hit": {(*cloud.Instance).ExceedHopLimit, "hop limit"},
		"switched off":         {(*cloud.Instance).Disable, "status 403"},
		"too slow":             {func(i *cloud.Instance) { i.Slow(time.Hour) }, "no answer within 1s"},
	} {
		t.Run(name, func(t *testing.T) {
			aws := setUp(t)
			addNodeRole(aws)
			i := aws.Instance(nodeRole)
			c.absent(i)
			setenv(t, i.Environ()...)
			began := time.Now()
			_, err := backendFor(t, aws, Config{}).Credentials(t.Context(), backends.Request{Image: image})
			t.Logf("%v after %s", err, time.Since(began))
			fails(t, err, backends.KindUnavailable, "no AWS credentials: tried", "instance metadata (127.0.0.1:", c.words)
			puts := 0
			for _, r := range aws.Requests() {
				if r.Service == "imds" {
					puts++
				}
			}
			if puts > 1 {
				t.Errorf("%d requests", puts)
			}
		})
	}
}

// TestTheFirstVersionOfInstanceMetadata is used only by those who ask for it.
func TestTheFirstVersionOfInstanceMetadata(t *testing.T) {
	aws := setUp(t)
	addNodeRole(aws)
	i := aws.Instance(nodeRole)
	i.AllowV1()
	i.ExceedHopLimit()
	setenv(t, i.Environ()...)
	_, err := backendFor(t, aws, Config{}).Credentials(t.Context(), backends.Request{Image: image})
	fails(t, err, backends.KindUnavailable, "hop limit")
	setenv(t, "AWS_EC2_METADATA_V1_DISABLED=false")
	pull(t, aws, backendFor(t, aws, Config{}), backends.Request{Image: image})
}

func TestCheck(t *testing.T) {
	caching := func(c *cloud.Cloud) { c.AddRegistry(host, cloud.Repository{Name: "hub", PullThrough: true}) }
	token := cloud.Statement{Actions: []string{"ecr:GetAuthorizationToken"}}
	for _, c := range []struct {
		name   string
		image  string
		policy []cloud.Statement
		also   func(*cloud.Cloud)
		cfg    Config
		words  []string // of the error; none: all is well
	}{
		{name: "all is well", image: image, policy: cloud.PullPolicy()},
		{name: "without an image", policy: []cloud.Statement{}},
		{name: "no token", image: image, policy: []cloud.Statement{{Actions: []string{"ecr:Batch*"}}}, words: []string{"the policy of " + nodeUser + " lacks", `{"Effect":"Allow","Action":["ecr:GetAuthorizationToken"],"Resource":"*"}`}},
		{name: "no pulling", image: image, policy: []cloud.Statement{token}, words: []string{`{"Effect":"Allow","Action":["ecr:BatchGetImage","ecr:GetDownloadUrlForLayer"],"Resource":"arn:aws:ecr:eu-west-1:111111111111:repository/team/app"}`}},
		{name: "no repository", image: host + "/team/other", policy: append(cloud.PullPolicy(), cloud.Statement{Actions: []string{"ecr:DescribePullThroughCacheRules"}}), words: []string{"there is no repository team/other"}},
		{name: "no repository, and rules that cannot be read", image: host + "/team/other", policy: cloud.PullPolicy(), words: []string{"there is no repository team/other", "ecr:BatchImportUpstreamImage", "ecr:CreateRepository"}},
		{name: "a pull-through cache", image: host + "/hub/library/nginx", also: caching, policy: append(cloud.PullPolicy(), cloud.Statement{Actions: []string{"ecr:DescribePullThroughCacheRules"}})},
		{name: "public, denied, and required", image: "public.ecr.aws/team/app", policy: cloud.PullPolicy(), cfg: Config{Public: PublicRequired}, words: []string{`["ecr-public:GetAuthorizationToken","sts:GetServiceBearerToken"]`}},
		{name: "public, denied", image: "public.ecr.aws/team/app", policy: cloud.PullPolicy()},
		{name: "another's", image: "registry.example/app", policy: cloud.PullPolicy(), words: []string{"no registry of Amazon's"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			aws := setUp(t)
			if c.also != nil {
				c.also(aws)
			}
			setenv(t, aws.AddUser(nodeUser, c.policy...).Environ()...)
			err := backendFor(t, aws, c.cfg).Check(t.Context(), backends.Request{Image: backends.Image(c.image)})
			if len(c.words) == 0 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			fails(t, err, backends.KindRefused, c.words...)
		})
	}
	t.Run("nobody", func(t *testing.T) {
		aws := setUp(t)
		err := backendFor(t, aws, Config{}).Check(t.Context(), backends.Request{})
		if _, ok := errors.AsType[*amazon.NoIdentityError](err); !ok {
			t.Errorf("got %v", err)
		}
	})
}
