package gar

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/test/cloud"
)

// planted is what stands in every answer that must not be repeated.
const planted = "ya29.planted-secret"

const (
	unavailable   = backends.KindUnavailable
	refused       = backends.KindRefused
	misconfigured = backends.KindMisconfigured
)

// TestFailures: what is said of each, and what of it is not.
func TestFailures(t *testing.T) {
	key := func(t *testing.T, c *cloud.Cloud, change func(map[string]any)) Config {
		t.Helper()
		var file map[string]any
		if err := json.Unmarshal(c.ServiceAccountKeyFile(puller), &file); err != nil {
			t.Fatal(err)
		}
		if change != nil {
			change(file)
		}
		return Config{CredentialsFile: write(t, "key.json", object(t, file))}
	}
	machine := func(t *testing.T, c *cloud.Cloud) Config {
		t.Helper()
		setenv(t, c.GoogleInstance(cloud.ServiceAccount{Email: node}).Environ()...)
		return Config{}
	}
	for name, test := range map[string]struct {
		prepare func(t *testing.T, c *cloud.Cloud) Config
		kind    backends.Kind
		want    []string
	}{
		"nobody anywhere": {func(t *testing.T, c *cloud.Cloud) Config {
			g := c.GoogleInstance()
			g.Refuse()
			setenv(t, g.Environ()...)
			return Config{}
		}, unavailable, []string{"no credentials: GOOGLE_APPLICATION_CREDENTIALS is not set (or not named in inheritEnv), there is no file ", "application_default_credentials.json, and no metadata server answers", "credentialsFile"}},
		"no metadata server": {func(t *testing.T, c *cloud.Cloud) Config {
			g := c.GoogleInstance()
			g.Refuse()
			setenv(t, g.Environ()...)
			return Config{ServiceAccount: puller}
		}, unavailable, []string{"Google's metadata server", "is this machine on Google Cloud"}},
		"somebody else in its place": {func(t *testing.T, c *cloud.Cloud) Config {
			setenv(t, "GCE_METADATA_HOST="+strings.TrimPrefix(c.Instance("").URL(), "http://"))
			return Config{}
		}, refused, []string{"is not Google's metadata server"}},
		"a machine without an account": {func(t *testing.T, c *cloud.Cloud) Config {
			setenv(t, c.GoogleInstance().Environ()...)
			return Config{}
		}, refused, []string{"status 404", "the machine has no service account: attach one"}},
		"a machine without this account": {func(t *testing.T, c *cloud.Cloud) Config {
			machine(t, c)
			return Config{ServiceAccount: puller}
		}, refused, []string{`the machine has no service account "` + puller + `"`}},
		"a metadata server that is broken": {func(t *testing.T, c *cloud.Cloud) Config {
			c.Fail(cloud.Fault{Service: "google-metadata", Status: 503, Body: planted})
			return machine(t, c)
		}, unavailable, []string{"status 503"}},
		"a metadata server that talks nonsense": {func(t *testing.T, c *cloud.Cloud) Config {
			c.Fail(cloud.Fault{Service: "google-metadata", Status: 200, Body: planted})
			return machine(t, c)
		}, unavailable, []string{"the answer is none that Google documents"}},
		"no file":     {func(*testing.T, *cloud.Cloud) Config { return Config{CredentialsFile: "/nonexistent/key.json"} }, misconfigured, []string{"/nonexistent/key.json (credentialsFile): no such file"}},
		"a directory": {func(t *testing.T, _ *cloud.Cloud) Config { return Config{CredentialsFile: t.TempDir()} }, misconfigured, []string{"it is no regular file"}},
		"no JSON": {func(t *testing.T, _ *cloud.Cloud) Config {
			return Config{CredentialsFile: write(t, "key.json", []byte(`{"private_key": planted`))}
		}, misconfigured, []string{"it is not JSON"}},
		"a file of the environment": {func(t *testing.T, _ *cloud.Cloud) Config {
			t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nonexistent/key.json")
			return Config{}
		}, misconfigured, []string{"/nonexistent/key.json (GOOGLE_APPLICATION_CREDENTIALS): no such file"}},
		"an unknown type": {func(t *testing.T, c *cloud.Cloud) Config {
			return key(t, c, func(f map[string]any) { f["type"] = "magic" })
		}, misconfigured, []string{"want a file of type"}},
		"a key that is none": {func(t *testing.T, c *cloud.Cloud) Config {
			return key(t, c, func(f map[string]any) { f["private_key"] = planted })
		}, misconfigured, []string{"its key is none"}},
		"a deleted key": {func(t *testing.T, c *cloud.Cloud) Config {
			cfg := key(t, c, nil)
			c.DeleteServiceAccountKeys(puller)
			return cfg
		}, refused, []string{"oauth2.googleapis.com: invalid_grant (HTTP status 400)", "deleted, disabled or revoked"}},
		"a revoked user": {func(t *testing.T, c *cloud.Cloud) Config {
			file := c.AddGoogleUser(human)
			c.RevokeGoogleUser(human)
			return Config{CredentialsFile: write(t, "adc.json", file)}
		}, refused, []string{"invalid_grant", "revoked"}},
		"a clock that is wrong": {func(t *testing.T, c *cloud.Cloud) Config {
			c.SetClockOffset(2 * time.Hour)
			return key(t, c, nil)
		}, refused, []string{"clock is 2h0m", "timedatectl"}},
		"throttled": {func(t *testing.T, c *cloud.Cloud) Config {
			c.Fail(cloud.Fault{Service: "google-oauth", Status: 429, Body: planted})
			return key(t, c, nil)
		}, unavailable, []string{"status 429", "agent"}},
		"a service that is broken": {func(t *testing.T, c *cloud.Cloud) Config {
			c.Fail(cloud.Fault{Service: "google-oauth", Status: 500, Body: planted})
			return key(t, c, nil)
		}, unavailable, []string{"status 500"}},
		"a service that talks nonsense": {func(t *testing.T, c *cloud.Cloud) Config {
			c.Fail(cloud.Fault{Service: "google-oauth", Status: 200, Body: planted})
			return key(t, c, nil)
		}, unavailable, []string{"the answer is none that Google documents"}},
		"a service that grants nothing": {func(t *testing.T, c *cloud.Cloud) Config {
			c.Fail(cloud.Fault{Service: "google-oauth", Status: 200, Body: `{"token_type": "Bearer", "expires_in": 3600}`})
			return key(t, c, nil)
		}, unavailable, []string{"the answer is none that Google documents"}},
		"a service that grants what has ended": {func(t *testing.T, c *cloud.Cloud) Config {
			c.Fail(cloud.Fault{Service: "google-oauth", Status: 200, Body: `{"access_token": "` + planted + `", "token_type": "Bearer"}`})
			return key(t, c, nil)
		}, unavailable, []string{"the answer is none that Google documents"}},
		"a program behind an impersonation": {func(t *testing.T, _ *cloud.Cloud) Config {
			t.Setenv("GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES", "1")
			return Config{CredentialsFile: write(t, "adc.json", object(t, map[string]any{
				"type": "impersonated_service_account", "service_account_impersonation_url": "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/" + puller + ":generateAccessToken",
				"source_credentials": map[string]any{"type": "external_account", "credential_source": map[string]any{"executable": map[string]any{"command": "/bin/false"}}},
			}))}
		}, misconfigured, []string{"a program to be run", "impersonate"}},
		"a token's file that is not there": {func(t *testing.T, _ *cloud.Cloud) Config {
			return Config{CredentialsFile: write(t, "external.json", object(t, map[string]any{
				"type": "external_account", "audience": pool.Audience(), "subject_token_type": typeJWT, "token_url": "https://sts.googleapis.com/v1/token", "credential_source": map[string]any{"file": "/nonexistent/token"},
			}))}
		}, unavailable, []string{"identity token in credential_source.file /nonexistent/token: no such file"}},
		"a token's file that is empty": {func(t *testing.T, _ *cloud.Cloud) Config {
			return external(t, map[string]any{"file": write(t, "token", nil)})
		}, unavailable, []string{"there is none, in the format that credential_source says"}},
		"a token's file in another format": {func(t *testing.T, _ *cloud.Cloud) Config {
			return external(t, map[string]any{"file": write(t, "token", []byte(`{"other": "`+planted+`"}`)), "format": map[string]any{"type": "json", "subject_token_field_name": "token"}})
		}, unavailable, []string{"there is none, in the format that credential_source says"}},
		"a token's file that never ends": {func(t *testing.T, _ *cloud.Cloud) Config {
			return external(t, map[string]any{"file": "/dev/zero"})
		}, unavailable, []string{"/dev/zero: it is no regular file"}},
		"a file of another's that others may write": {func(t *testing.T, _ *cloud.Cloud) Config {
			cfg := external(t, map[string]any{"file": write(t, "token", []byte(planted))})
			if err := os.Chmod(cfg.CredentialsFile, 0o666); err != nil {
				t.Fatal(err)
			}
			return cfg
		}, misconfigured, []string{"it says what is read or run here", "is not safe to use"}},
		"an API that is not enabled": {func(t *testing.T, c *cloud.Cloud) Config {
			c.Fail(cloud.Fault{Service: "google-iam", Status: 403, Body: `{"error": {"code": 403, "status": "PERMISSION_DENIED", "details": [{"reason": "SERVICE_DISABLED"}]}}`})
			cfg := key(t, c, nil)
			cfg.Impersonate = between
			return cfg
		}, refused, []string{"SERVICE_DISABLED (HTTP status 403): enable the IAM Service Account Credentials API in the project of whoever asks"}},
		"a client certificate behind an impersonation": {func(t *testing.T, _ *cloud.Cloud) Config {
			return Config{CredentialsFile: write(t, "adc.json", object(t, map[string]any{
				"type": "impersonated_service_account", "service_account_impersonation_url": "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/" + puller + ":generateAccessToken",
				"source_credentials": map[string]any{"type": "external_account", "credential_source": map[string]any{"certificate": map[string]any{"use_default_certificate_config": true}}},
			}))}
		}, misconfigured, []string{"a client certificate", "impersonate"}},
		"a program named by a file that others may write": {func(t *testing.T, _ *cloud.Cloud) Config {
			file := write(t, "external.json", object(t, map[string]any{"type": "external_account", "credential_source": map[string]any{"executable": map[string]any{"command": "/bin/false"}}}))
			if err := os.Chmod(file, 0o622); err != nil {
				t.Fatal(err)
			}
			return Config{CredentialsFile: file}
		}, misconfigured, []string{"it says what is read or run here", "is not safe to use"}},
		"credentials of another universe": {func(t *testing.T, c *cloud.Cloud) Config {
			return key(t, c, func(f map[string]any) { f["universe_domain"] = "s3nsapis.fr" })
		}, misconfigured, []string{"the credentials are of universe s3nsapis.fr, and the registries' tokens of googleapis.com"}},
		"a registry of another universe": {func(t *testing.T, c *cloud.Cloud) Config {
			cfg := key(t, c, nil)
			cfg.UniverseDomain = "s3nsapis.fr"
			return cfg
		}, misconfigured, []string{host + " takes tokens of googleapis.com, and this provider's are of s3nsapis.fr"}},
		"a service that says too much": {func(t *testing.T, c *cloud.Cloud) Config {
			c.Fail(cloud.Fault{Service: "google-oauth", Status: 400, Body: `{"error": "` + planted + ` 1"}`})
			return key(t, c, nil)
		}, refused, []string{"refused without a code that is known"}},
		"a service that hangs up": {func(t *testing.T, c *cloud.Cloud) Config {
			c.Fail(cloud.Fault{Service: "google-oauth", Reset: true})
			return key(t, c, nil)
		}, unavailable, []string{"oauth2.googleapis.com: "}},
		"a redirection": {func(t *testing.T, c *cloud.Cloud) Config {
			c.Fail(cloud.Fault{Service: "google-oauth", Status: 307, Body: planted})
			return key(t, c, nil)
		}, unavailable, []string{"HTTP status 307"}},
		"an account that may not be impersonated": {func(t *testing.T, c *cloud.Cloud) Config {
			machine(t, c)
			return Config{Impersonate: puller, Delegates: []string{between}}
		}, refused, []string{"token of service account " + puller, "PERMISSION_DENIED", "roles/iam.serviceAccountTokenCreator", "on " + between + ", and each delegate on the next"}},
		"a service account's scopes": {func(t *testing.T, c *cloud.Cloud) Config {
			g := c.GoogleInstance(cloud.ServiceAccount{Email: node})
			g.SetScopes("https://www.googleapis.com/auth/devstorage.read_only")
			setenv(t, g.Environ()...)
			c.AllowImpersonation(node, puller)
			return Config{Impersonate: puller}
		}, refused, []string{"ACCESS_TOKEN_SCOPE_INSUFFICIENT (HTTP status 403): not a role is missing but an OAuth scope"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := setUp(t)
			b := backendFor(t, c, test.prepare(t, c))
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			_, err := b.Credentials(ctx, backends.Request{Image: image})
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v\nlacks %q", err, want)
				}
			}
			for _, secret := range []string{planted, "PRIVATE KEY", "1//"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("it tells %q: %v", secret, err)
				}
			}
			if marked, ok := errors.AsType[*backends.Error](err); !ok || marked.Kind != test.kind {
				t.Errorf("its kind is not %d: %#v", test.kind, err)
			}
		})
	}
}

func TestAMetadataServersTokenNearItsEnd(t *testing.T) {
	c := setUp(t)
	g := c.GoogleInstance(cloud.ServiceAccount{Email: node})
	setenv(t, g.Environ()...)
	g.SetTokenLife(30 * time.Second)
	b := backendFor(t, c, Config{})
	waits := 0
	b.google.sleep = func(context.Context, time.Duration) bool {
		if waits++; waits == 2 {
			g.SetTokenLife(time.Hour) // it has got another one
		}
		return true
	}
	got, err := b.Credentials(t.Context(), backends.Request{Image: image})
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(got.Credentials[0].Expires); waits != 2 || left < 50*time.Minute {
		t.Errorf("waited %d times, and the token expires in %s", waits, left)
	}
}

func TestAFileThatOthersCanReadIsWarnedOf(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no modes")
	}
	var log bytes.Buffer
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	defer slog.SetDefault(before)
	c, ca, f := setUpX509(t)
	f.issue(ca, nil)
	key := write(t, "key.json", c.ServiceAccountKeyFile(puller))
	for file, cfg := range map[string]Config{
		key:               {CredentialsFile: key},
		f.path("key.pem"): f.external(map[string]any{"certificate_config_location": f.write("config.json", f.config())}, nil),
	} {
		for mode, want := range map[os.FileMode]bool{0o600: false, 0o640: false, 0o644: true} {
			if err := os.Chmod(file, mode); err != nil {
				t.Fatal(err)
			}
			log.Reset()
			if _, err := backendFor(t, c, cfg).Credentials(t.Context(), backends.Request{Image: image}); err != nil {
				t.Error(err)
			}
			if got := strings.Contains(log.String(), "can be read by every user") && strings.Contains(log.String(), file); got != want {
				t.Errorf("%s, mode %o: %s", file, mode, log.String())
			}
		}
	}
	// The others are no secrets.
	for _, name := range []string{"cert.pem", "config.json", "external.json"} {
		if err := os.Chmod(f.path(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(f.path("key.pem"), 0o600); err != nil {
		t.Fatal(err)
	}
	log.Reset()
	if _, err := backendFor(t, c, Config{CredentialsFile: f.path("external.json")}).Credentials(t.Context(), backends.Request{Image: image}); err != nil || log.Len() > 0 {
		t.Errorf("%v, %s", err, log.String())
	}
}

func TestNotGoogles(t *testing.T) {
	c := setUp(t)
	b := backendFor(t, c, Config{})
	got, err := b.Credentials(t.Context(), backends.Request{Image: "registry.example/app"})
	if err != nil || len(got.Credentials) != 0 || len(c.Requests()) != 0 {
		t.Errorf("%+v, %v, %+v", got, err, c.Requests())
	}
}

// TestHowFarAnAnswerHolds: for the registry, unless another project on the same host may be another account's.
func TestHowFarAnAnswerHolds(t *testing.T) {
	c := setUp(t)
	setenv(t, c.GoogleInstance(cloud.ServiceAccount{Email: node}).Environ()...)
	c.AllowImpersonation(node, puller)
	for key, test := range map[string]struct {
		cfg   Config
		scope backends.Scope
	}{
		host:  {Config{}, backends.ScopeRegistry},
		image: {Config{ServiceAccounts: []ProjectAccount{{Projects: []string{"other-project"}, Impersonate: puller}}}, backends.ScopeImage},
	} {
		got, err := backendFor(t, c, test.cfg).Credentials(t.Context(), backends.Request{Image: image})
		if err != nil || got.Scope != test.scope || got.Credentials[0].Key != key {
			t.Errorf("%+v, %v; want %s", got, err, key)
		}
	}
}
