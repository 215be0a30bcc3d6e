package cloud

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

func TestFaults(t *testing.T) {
	for _, test := range []struct {
		name     string
		fault    Fault
		ecr, sts string
	}{
		{"throttling", Fault{}, "400 ThrottlingException", "400 Throttling"},
		{"of one service", Fault{Service: "ecr"}, "400 ThrottlingException", ""},
		{"of one operation", Fault{Operation: "GetCallerIdentity"}, "", "400 Throttling"},
		{"of some operations", Fault{Operation: "Get*Token"}, "400 ThrottlingException", ""},
		{"an outage", Fault{Status: 500}, "500 ServerException", "500 InternalFailure"},
		{"an outage that will pass", Fault{Status: 503}, "503 ServiceUnavailableException", "503 ServiceUnavailable"},
		{"a code", Fault{Status: 418, Code: "Teapot"}, "418 Teapot", "418 Teapot"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := New(t)
			c.Fail(test.fault)
			cfg := c.config(t, keysOf(c), "eu-west-1")
			_, err := ecr.NewFromConfig(cfg).GetAuthorizationToken(t.Context(), &ecr.GetAuthorizationTokenInput{})
			if got := said(err); got != test.ecr {
				t.Errorf("ECR says %q, not %q (%v)", got, test.ecr, err)
			}
			if got := c.last(t).Code; !strings.HasSuffix(test.ecr, got) || (got == "") != (test.ecr == "") {
				t.Errorf("ECR's log has %q", got)
			}
			_, err = sts.NewFromConfig(cfg).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
			if got := said(err); got != test.sts {
				t.Errorf("STS says %q, not %q (%v)", got, test.sts, err)
			}
			c.Heal()
			if _, err := sts.NewFromConfig(cfg).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{}); err != nil {
				t.Errorf("after it is mended: %v", err)
			}
		})
	}
}

func TestFaultThatPasses(t *testing.T) {
	c := New(t)
	c.Fail(Fault{Service: "ecr", Times: 2})
	client := ecr.NewFromConfig(c.config(t, keysOf(c), "eu-west-1"))
	for n, want := range []string{"400 ThrottlingException", "400 ThrottlingException", ""} {
		_, err := client.GetAuthorizationToken(t.Context(), &ecr.GetAuthorizationTokenInput{})
		if got := said(err); got != want {
			t.Errorf("request %d: %q, not %q", n+1, got, want)
		}
	}
}

func TestFaultOfTheConnection(t *testing.T) {
	c := New(t)
	k := keysOf(c)
	client := sts.NewFromConfig(c.config(t, k, "eu-west-1"))
	c.Fail(Fault{Reset: true, Times: 1})
	if _, err := client.GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{}); err == nil || said(err) != err.Error() {
		t.Errorf("a connection that is cut: %v", err)
	}
	c.Fail(Fault{Hang: true, Times: 1})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := client.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no answer: %v", err)
	}
	for _, r := range c.Requests() {
		if r.Status != 0 || r.Operation != "GetCallerIdentity" {
			t.Errorf("%+v", r)
		}
	}
	if _, err := client.GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{}); err != nil {
		t.Errorf("after it: %v", err)
	}
}

func TestFaultsBodyAndHeader(t *testing.T) {
	c := New(t)
	c.AddRegistry(testHost)
	client := c.Client()
	t.Cleanup(client.CloseIdleConnections)
	k, i := c.Container(testRole), c.Instance(testRole)
	c.AddIssuer("https://issuer.example.com")
	for _, url := range []string{
		"https://sts.amazonaws.com/?Action=GetCallerIdentity", "https://api.ecr.eu-west-1.amazonaws.com/", "https://api.ecr-public.us-east-1.amazonaws.com/",
		"https://" + testHost + "/v2/", "https://public.ecr.aws/v2/", "https://portal.sso.eu-west-1.amazonaws.com/federation/credentials",
		"https://issuer.example.com/.well-known/openid-configuration", k.URL(), i.URL() + "/latest/meta-data/instance-id",
	} {
		c.Fail(Fault{Status: 502, Body: "a secret", RetryAfter: 7 * time.Second, Times: 1})
		get := client
		if strings.HasPrefix(url, "http:") {
			get = &http.Client{}
		}
		answer, err := get.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil || answer.StatusCode != http.StatusBadGateway || string(body) != "a secret" || answer.Header.Get("Retry-After") != "7" {
			t.Errorf("%s: %d %q %v", url, answer.StatusCode, body, err)
		}
		if r := c.last(t); r.Status != 502 || r.Service == "" {
			t.Errorf("%+v", r)
		}
	}
}

func TestSecretsAreNotInTheLog(t *testing.T) {
	c := New(t)
	k := c.Session(testRole, "name", time.Hour)
	c.AddRole(Role{ARN: testRole, Policy: PullPolicy()})
	password := c.login(t, k, "eu-west-1")
	token := c.AddIssuer("https://issuer.example.com").Token(map[string]any{"sub": "a", "aud": "b"})
	_, _ = sts.NewFromConfig(c.config(t, Keys{}, "eu-west-1")).AssumeRoleWithWebIdentity(t.Context(), &sts.AssumeRoleWithWebIdentityInput{
		RoleArn: aws.String(testRole), RoleSessionName: aws.String("name"), WebIdentityToken: &token,
	})
	for _, r := range c.Requests() {
		text := strings.Join([]string{r.Host, r.Service, r.Operation, r.Principal, r.Code}, "\n")
		for _, secret := range []string{k.AccessKeyID, k.SecretAccessKey, k.SessionToken, password, token} {
			if strings.Contains(text, secret) {
				t.Errorf("%+v", r)
			}
		}
	}
}
