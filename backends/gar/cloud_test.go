package gar

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/webidentity"
	"github.com/credential-broker/credential-broker/test/cloud"
)

// The host and project that most tests pull from, and who may.
const (
	host    = "europe-west1-docker.pkg.dev"
	project = "my-project"
	image   = host + "/" + project + "/repo/app"
	node    = "node@my-project.iam.gserviceaccount.com"
	puller  = "puller@my-project.iam.gserviceaccount.com"
	between = "between@my-project.iam.gserviceaccount.com"
	human   = "somebody@example.com"
)

// setUp makes a cloud with a registry, points this process's environment to it, and empties it of all else that Google's libraries heed.
func setUp(t *testing.T) *cloud.Cloud {
	t.Helper()
	c := cloud.New(t)
	for _, email := range []string{node, puller, between} {
		c.AddServiceAccount(cloud.ServiceAccount{Email: email})
	}
	c.AddGoogleRegistry(host, project, "repo")
	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		if strings.HasPrefix(name, "GOOGLE_") || strings.HasPrefix(name, "GCE_") || strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, "") // so that it comes back
			_ = os.Unsetenv(name)
		}
	}
	t.Setenv("HOME", t.TempDir())
	setenv(t, c.Environ()...)
	return c
}

func setenv(t *testing.T, env ...string) {
	t.Helper()
	for _, variable := range env {
		name, value, _ := strings.Cut(variable, "=")
		t.Setenv(name, value)
	}
}

// backendFor makes a backend that reaches the cloud by its proxy, and trusts its CA: crypto/x509 reads SSL_CERT_FILE only once in a process.
func backendFor(t *testing.T, c *cloud.Cloud, cfg Config) *Backend {
	t.Helper()
	cfg.Proxy = backends.Secret(c.ProxyURL())
	b, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.google.transport.TLSClientConfig.RootCAs = c.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	return b
}

// pull asks for the image's credential and pulls with it.
func pull(t *testing.T, c *cloud.Cloud, b *Backend, req backends.Request) backends.Credential {
	t.Helper()
	r, err := b.Credentials(t.Context(), req)
	if err != nil {
		t.Fatalf("%v\n%+v", err, c.Requests())
	}
	if len(r.Credentials) != 1 {
		t.Fatalf("%d credentials", len(r.Credentials))
	}
	got := r.Credentials[0]
	if err := c.Pull(string(req.Image), got.Username, string(got.Password)); err != nil {
		t.Errorf("pull: %v", err)
	}
	if left := time.Until(got.Expires); left < 50*time.Minute || left > time.Hour {
		t.Errorf("it expires in %s", left)
	}
	return got
}

func write(t *testing.T, name string, content []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func object(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestIdentities pulls with every identity that a node can have.
func TestIdentities(t *testing.T) {
	impersonation := func(email string) string {
		return "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/" + email + ":generateAccessToken"
	}
	for name, test := range map[string]struct {
		// prepare makes the identity, and gives the settings.
		prepare func(t *testing.T, c *cloud.Cloud) Config
		want    string // who pulls
	}{
		"the machine": {func(t *testing.T, c *cloud.Cloud) Config {
			setenv(t, c.GoogleInstance(cloud.ServiceAccount{Email: node}).Environ()...)
			return Config{}
		}, node},
		"the machine's default account, though there is a file": {func(t *testing.T, c *cloud.Cloud) Config {
			setenv(t, c.GoogleInstance(cloud.ServiceAccount{Email: node}).Environ()...)
			t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", write(t, "key.json", c.ServiceAccountKeyFile(puller)))
			return Config{ServiceAccount: "default"}
		}, node},
		"another account of the machine": {func(t *testing.T, c *cloud.Cloud) Config {
			setenv(t, c.GoogleInstance(cloud.ServiceAccount{Email: node}, cloud.ServiceAccount{Email: puller}).Environ()...)
			return Config{ServiceAccount: puller}
		}, puller},
		"a key in the settings": {func(t *testing.T, c *cloud.Cloud) Config {
			return Config{CredentialsFile: write(t, "key.json", c.ServiceAccountKeyFile(puller))}
		}, puller},
		"a key in the environment": {func(t *testing.T, c *cloud.Cloud) Config {
			t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", write(t, "key.json", c.ServiceAccountKeyFile(puller)))
			return Config{}
		}, puller},
		"gcloud's file": {func(t *testing.T, c *cloud.Cloud) Config {
			file := wellKnownFile()
			if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, c.AddGoogleUser(human), 0o600); err != nil {
				t.Fatal(err)
			}
			return Config{}
		}, human},
		"a file that impersonates": {func(t *testing.T, c *cloud.Cloud) Config {
			c.AllowImpersonation(human, between)
			c.AllowImpersonation(between, puller)
			return Config{CredentialsFile: write(t, "adc.json", object(t, map[string]any{
				"type": "impersonated_service_account", "service_account_impersonation_url": impersonation(puller), "delegates": []string{"projects/-/serviceAccounts/" + between},
				"source_credentials": json.RawMessage(c.AddGoogleUser(human)),
			}))}
		}, puller},
		"an account that the machine impersonates": {func(t *testing.T, c *cloud.Cloud) Config {
			setenv(t, c.GoogleInstance(cloud.ServiceAccount{Email: node}).Environ()...)
			c.AllowImpersonation(node, puller)
			return Config{Impersonate: puller}
		}, puller},
		"with one on the way": {func(t *testing.T, c *cloud.Cloud) Config {
			c.AllowImpersonation(node, between)
			c.AllowImpersonation(between, puller)
			return Config{CredentialsFile: write(t, "key.json", c.ServiceAccountKeyFile(node)), Impersonate: puller, Delegates: []string{between}}
		}, puller},
		"an account for the project": {func(t *testing.T, c *cloud.Cloud) Config {
			setenv(t, c.GoogleInstance(cloud.ServiceAccount{Email: node}).Environ()...)
			c.AllowImpersonation(node, puller)
			return Config{Impersonate: between, ServiceAccounts: []ProjectAccount{{Projects: []string{"other-project"}, Impersonate: node}, {Projects: []string{project}, Impersonate: puller}}}
		}, puller},
	} {
		t.Run(name, func(t *testing.T) {
			c := setUp(t)
			cfg := test.prepare(t, c)
			c.GrantReader(project, test.want)
			b := backendFor(t, c, cfg)
			got := pull(t, c, b, backends.Request{Image: image})
			principal, scopes, _, ok := c.AccessTokenOf(string(got.Password))
			if !ok || principal != test.want {
				t.Errorf("a token of %q, want %q", principal, test.want)
			}
			if asked := scopes; principal == puller && !strings.Contains(name, "account of the machine") && !slices.Equal(asked, []string{scopeRead}) {
				t.Errorf("its scopes are %q, want %s alone", asked, scopeRead)
			}
			// The same again asks nobody.
			c.ForgetRequests()
			pull(t, c, b, backends.Request{Image: image})
			for _, r := range c.Requests() {
				if strings.HasPrefix(r.Service, "google") {
					t.Errorf("asked again: %+v", r)
				}
			}
		})
	}
}

// TestAMomentsTroubleIsNoFailure: each of Google's APIs is asked again where the next moment may be better, and not where it cannot be.
func TestAMomentsTroubleIsNoFailure(t *testing.T) {
	for service, cfg := range map[string]func(*testing.T, *cloud.Cloud) Config{
		"google-oauth": func(t *testing.T, c *cloud.Cloud) Config {
			return Config{CredentialsFile: write(t, "key.json", c.ServiceAccountKeyFile(puller))}
		},
		"google-sts": func(t *testing.T, c *cloud.Cloud) Config {
			c.AddWorkloadPool(pool)
			token := c.AddIssuer(issuer).Token(map[string]any{"aud": "https:" + pool.Audience(), "sub": nodeGroup})
			return Config{WebIdentity: webidentity.Config{File: &webidentity.File{Path: write(t, "token", []byte(token))}}, WorkloadIdentityProvider: resource(pool)}
		},
		"google-iam": func(t *testing.T, c *cloud.Cloud) Config {
			c.AllowImpersonation(node, puller)
			return Config{CredentialsFile: write(t, "key.json", c.ServiceAccountKeyFile(node)), Impersonate: puller}
		},
	} {
		for name, test := range map[string]struct {
			fault cloud.Fault
			times int // that the API is asked
			ok    bool
		}{
			"two outages":       {cloud.Fault{Status: http.StatusServiceUnavailable, Times: 2}, 3, true},
			"two cut answers":   {cloud.Fault{Reset: true, Times: 2}, 3, true},
			"an outage":         {cloud.Fault{Status: http.StatusInternalServerError}, 3, false},
			"it is throttling":  {cloud.Fault{Status: http.StatusTooManyRequests, Times: 1}, 1, false},
			"it refuses":        {cloud.Fault{Status: http.StatusForbidden, Times: 1}, 1, false},
			"it does not agree": {cloud.Fault{Status: http.StatusBadRequest, Times: 1}, 1, false},
		} {
			t.Run(service+"/"+name, func(t *testing.T) {
				c := setUp(t)
				b := backendFor(t, c, cfg(t, c))
				c.ForgetRequests()
				test.fault.Service = service
				c.Fail(test.fault)
				_, err := b.Credentials(t.Context(), backends.Request{Image: image})
				asked := 0
				for _, r := range c.Requests() {
					if r.Service == service {
						asked++
					}
				}
				if (err == nil) != test.ok || asked != test.times {
					t.Errorf("asked %d times, want %d: %v", asked, test.times, err)
				}
			})
		}
	}
}

// TestATokenThatHasEndedIsNone: what a service account's token is said to have been good for.
func TestATokenThatHasEndedIsNone(t *testing.T) {
	c := setUp(t)
	c.AllowImpersonation(node, puller)
	b := backendFor(t, c, Config{CredentialsFile: write(t, "key.json", c.ServiceAccountKeyFile(node)), Impersonate: puller})
	c.Fail(cloud.Fault{Service: "google-iam", Status: http.StatusOK, Body: `{"accessToken": "ya29.ended", "expireTime": "2020-01-01T00:00:00Z"}`})
	_, err := b.Credentials(t.Context(), backends.Request{Image: image})
	if err == nil || !strings.Contains(err.Error(), errUndocumented.Error()) {
		t.Errorf("%v, want %v", err, errUndocumented)
	}
}
