package cloud

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

func TestSignature(t *testing.T) {
	for _, test := range []struct {
		name string
		// spoil makes the keys or the request wrong.
		spoil    func(c *Cloud, k *Keys, cfg *aws.Config)
		offset   time.Duration // of the cloud's clock
		ecr, sts string
	}{
		{name: "long-term keys"},
		{
			name: "an unknown key", spoil: func(_ *Cloud, k *Keys, _ *aws.Config) { k.AccessKeyID = "AKIAAAAAAAAAAAAAAAAA" },
			ecr: "400 UnrecognizedClientException", sts: "403 InvalidClientTokenId",
		},
		{
			name: "a key that was deactivated", spoil: func(c *Cloud, k *Keys, _ *aws.Config) { c.DeactivateKey(k.AccessKeyID) },
			ecr: "400 UnrecognizedClientException", sts: "403 InvalidClientTokenId",
		},
		{
			name: "a wrong secret", spoil: func(_ *Cloud, k *Keys, _ *aws.Config) { k.SecretAccessKey += "x" },
			ecr: "400 InvalidSignatureException", sts: "403 SignatureDoesNotMatch",
		},
		{
			name: "a session token where there is none", spoil: func(_ *Cloud, k *Keys, _ *aws.Config) { k.SessionToken = "x" },
			ecr: "400 UnrecognizedClientException", sts: "403 InvalidClientTokenId",
		},
		{name: "another path of the same meaning", spoil: func(c *Cloud, _ *Keys, cfg *aws.Config) {
			cfg.HTTPClient = changed{c.Client(), func(r *http.Request) { r.URL.Path = "//x/..//" }}
		}},
		{
			name: "another path", spoil: func(c *Cloud, _ *Keys, cfg *aws.Config) {
				cfg.HTTPClient = changed{c.Client(), func(r *http.Request) { r.URL.Path = "/x/" }}
			},
			ecr: "400 InvalidSignatureException", sts: "403 SignatureDoesNotMatch",
		},
		{name: "a session", spoil: session(func(*Keys) {})},
		{
			name: "a session without its token", spoil: session(func(k *Keys) { k.SessionToken = "" }),
			ecr: "400 UnrecognizedClientException", sts: "403 InvalidClientTokenId",
		},
		{
			name: "a session with another token", spoil: session(func(k *Keys) { k.SessionToken += "x" }),
			ecr: "400 UnrecognizedClientException", sts: "403 InvalidClientTokenId",
		},
		{
			name: "a session that has expired", spoil: func(c *Cloud, k *Keys, _ *aws.Config) { *k = c.Session(testRole, "session", -time.Second) },
			ecr: "400 ExpiredTokenException", sts: "403 ExpiredToken",
		},
		{
			name: "keys of another partition", spoil: func(c *Cloud, k *Keys, _ *aws.Config) { *k = c.AddUser("arn:aws-cn:iam::111122223333:user/node") },
			ecr: "400 UnrecognizedClientException", sts: "403 InvalidClientTokenId",
		},
		{name: "a clock four minutes behind", offset: 4 * time.Minute},
		{name: "a clock six minutes behind", offset: 6 * time.Minute, ecr: "400 InvalidSignatureException"},
		{name: "a clock six minutes ahead", offset: -6 * time.Minute, ecr: "400 InvalidSignatureException"},
		{name: "a clock sixteen minutes behind", offset: 16 * time.Minute, ecr: "400 InvalidSignatureException", sts: "403 SignatureDoesNotMatch"},
		{name: "a clock sixteen minutes ahead", offset: -16 * time.Minute, ecr: "400 InvalidSignatureException", sts: "403 SignatureDoesNotMatch"},
		{
			name: "a body that was changed on its way", spoil: spoiled(func(r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				r.Body, r.ContentLength = io.NopCloser(strings.NewReader(string(body)+"&x=y")), int64(len(body)+4)
			}),
			ecr: "400 InvalidSignatureException", sts: "403 SignatureDoesNotMatch",
		},
		{
			name: "a header that was changed on its way", spoil: spoiled(func(r *http.Request) { r.Header.Set("Content-Type", r.Header.Get("Content-Type")+"; x=y") }),
			ecr: "400 UnknownOperationException", sts: "403 SignatureDoesNotMatch",
		},
		{
			name: "a header of AWS that was added on its way", spoil: spoiled(func(r *http.Request) { r.Header.Set("X-Amz-More", "x") }),
			ecr: "400 InvalidSignatureException", sts: "403 SignatureDoesNotMatch",
		},
		{
			name: "a wrong hash of the body", spoil: scoped("", "", func(r *http.Request) { r.Header.Set("X-Amz-Content-Sha256", strings.Repeat("0", 64)) }),
			ecr: "400 InvalidSignatureException", sts: "403 SignatureDoesNotMatch",
		},
		{
			name: "another day in the scope", spoil: spoiled(func(r *http.Request) {
				r.Header.Set("Authorization", regexp.MustCompile(`/20\d{6}/`).ReplaceAllString(r.Header.Get("Authorization"), "/20010101/"))
			}),
			ecr: "400 InvalidSignatureException", sts: "403 SignatureDoesNotMatch",
		},
		{
			name: "half a signature", spoil: spoiled(func(r *http.Request) { r.Header.Set("Authorization", r.Header.Get("Authorization")[:120]) }),
			ecr: "400 IncompleteSignatureException", sts: "403 IncompleteSignature",
		},
		{
			name: "no signature", spoil: spoiled(func(r *http.Request) { r.Header.Del("Authorization") }),
			ecr: "400 MissingAuthenticationTokenException", sts: "403 MissingAuthenticationToken",
		},
		{
			name: "another service in the scope", spoil: scoped("s3", ""),
			ecr: "400 InvalidSignatureException", sts: "403 SignatureDoesNotMatch",
		},
		{
			name: "another region in the scope", spoil: scoped("", "us-west-2"),
			ecr: "400 InvalidSignatureException", sts: "403 SignatureDoesNotMatch",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := New(t)
			c.SetClockOffset(test.offset)
			c.AddRole(Role{ARN: testRole, Policy: PullPolicy()})
			k := keysOf(c)
			cfg := c.config(t, k, "eu-west-1")
			if test.spoil != nil {
				test.spoil(c, &k, &cfg)
				cfg.Credentials = c.config(t, k, "").Credentials
			}
			_, err := ecr.NewFromConfig(cfg).GetAuthorizationToken(t.Context(), &ecr.GetAuthorizationTokenInput{})
			if got := said(err); got != test.ecr {
				t.Errorf("ECR says %q, not %q (%v)", got, test.ecr, err)
			}
			if r := c.last(t); r.Service != "ecr" || r.Operation != "GetAuthorizationToken" || (r.Principal != "") != (err == nil) {
				t.Errorf("ECR's log: %+v", r)
			}
			_, err = sts.NewFromConfig(cfg).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
			if got := said(err); got != test.sts {
				t.Errorf("STS says %q, not %q (%v)", got, test.sts, err)
			}
			if r := c.last(t); r.Service != "sts" || r.Operation != "GetCallerIdentity" || (r.Principal != "") != (err == nil) {
				t.Errorf("STS's log: %+v", r)
			}
		})
	}
}

func session(spoil func(*Keys)) func(*Cloud, *Keys, *aws.Config) {
	return func(c *Cloud, k *Keys, _ *aws.Config) {
		*k = c.Session(testRole, "session", time.Hour)
		spoil(k)
	}
}

func spoiled(change func(*http.Request)) func(*Cloud, *Keys, *aws.Config) {
	return func(c *Cloud, _ *Keys, cfg *aws.Config) { cfg.HTTPClient = changed{c.Client(), change} }
}

// scoped changes requests and signs them for another service or region. An empty one stays what it was.
func scoped(service, region string, change ...func(*http.Request)) func(*Cloud, *Keys, *aws.Config) {
	return func(c *Cloud, k *Keys, cfg *aws.Config) {
		cfg.HTTPClient = changed{c.Client(), func(r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(body))
			for _, f := range change {
				f(r)
			}
			signed := aws.Credentials{AccessKeyID: k.AccessKeyID, SecretAccessKey: k.SecretAccessKey}
			was := strings.Split(r.Header.Get("Authorization"), "/")
			_ = v4.NewSigner().SignHTTP(r.Context(), signed, r, fmt.Sprintf("%x", sha256.Sum256(body)), cmp.Or(service, was[3]), cmp.Or(region, was[2]), time.Now())
		}}
	}
}

func TestSignatureAtATimeOfItsOwn(t *testing.T) {
	c := fixed(t)
	k := keysOf(c)
	cfg := c.config(t, k, "eu-west-1")
	c.SetClockOffset(-time.Hour)
	_, err := ecr.NewFromConfig(cfg).GetAuthorizationToken(t.Context(), &ecr.GetAuthorizationTokenInput{})
	if err == nil || !strings.Contains(err.Error(), "Signature not yet current") {
		t.Errorf("an hour ahead: %v", err)
	}
	c.SetClockOffset(time.Hour)
	_, err = sts.NewFromConfig(cfg).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
	if err == nil || !strings.Contains(err.Error(), "Signature expired") {
		t.Errorf("an hour behind: %v", err)
	}
	// A client that learns the cloud's time from its answers signs with it.
	cfg.Retryer = nil
	if _, err := ecr.NewFromConfig(cfg).GetAuthorizationToken(t.Context(), &ecr.GetAuthorizationTokenInput{}); err != nil {
		t.Errorf("a client that corrects its clock: %v", err)
	}
}
