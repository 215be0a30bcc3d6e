package gar

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
	"github.com/credential-broker/credential-broker/test/cloud"
)

// x509Pool takes certificates; its trust anchors are made by each test.
var x509Pool = cloud.WorkloadProvider{ProjectNumber: "123456789012", Pool: "x509", Provider: "provider"}

// certificateFiles are the files of a node with a client certificate.
type certificateFiles struct {
	*testing.T
	dir string
}

func (f certificateFiles) path(name string) string { return filepath.Join(f.dir, name) }

func (f certificateFiles) write(name string, content ...[]byte) string {
	f.Helper()
	if err := os.WriteFile(f.path(name), bytes.Join(content, nil), 0o600); err != nil {
		f.Fatal(err)
	}
	return f.path(name)
}

// issue writes a certificate of the node with its key, and gives the CA's.
func (f certificateFiles) issue(ca *cloud.ClientCA, change func(*x509.Certificate)) {
	f.Helper()
	certificate, key := ca.Issue(nodeGroup, change)
	f.write("cert.pem", certificate)
	f.write("key.pem", key)
}

// config is what gcloud writes into certificate_config.json.
func (f certificateFiles) config() []byte {
	return object(f.T, map[string]any{"cert_configs": map[string]any{"workload": map[string]any{"cert_path": f.path("cert.pem"), "key_path": f.path("key.pem")}}})
}

// external is what gcloud writes for a certificate, changed.
func (f certificateFiles) external(certificate, change map[string]any) Config {
	f.Helper()
	file := map[string]any{
		"type": "external_account", "audience": x509Pool.Audience(), "subject_token_type": "urn:ietf:params:oauth:token-type:mtls",
		"token_url": "https://sts.mtls.googleapis.com/v1/token", "credential_source": map[string]any{"certificate": certificate},
	}
	maps.Copy(file, change)
	return Config{CredentialsFile: f.write("external.json", object(f.T, file))}
}

// setUpX509 makes a cloud whose pool takes certificates of a CA.
func setUpX509(t *testing.T) (*cloud.Cloud, *cloud.ClientCA, certificateFiles) {
	t.Helper()
	c := setUp(t)
	ca := c.ClientCA("root")
	provider := x509Pool
	provider.TrustAnchors = []*x509.Certificate{ca.Certificate}
	c.AddWorkloadPool(provider)
	return c, ca, certificateFiles{t, t.TempDir()}
}

func TestClientCertificates(t *testing.T) {
	impersonated := func(host string) map[string]any {
		return map[string]any{"service_account_impersonation_url": "https://" + host + "/v1/projects/-/serviceAccounts/" + puller + ":generateAccessToken"}
	}
	for name, test := range map[string]struct {
		prepare func(f certificateFiles, ca *cloud.ClientCA) Config
		want    string
	}{
		"a configuration that the file names": {func(f certificateFiles, ca *cloud.ClientCA) Config {
			f.issue(ca, nil)
			return f.external(map[string]any{"certificate_config_location": f.write("config.json", f.config())}, nil)
		}, x509Pool.Principal(nodeGroup)},
		"a configuration that the environment names": {func(f certificateFiles, ca *cloud.ClientCA) Config {
			f.issue(ca, nil)
			f.Setenv("GOOGLE_API_CERTIFICATE_CONFIG", f.write("config.json", f.config()))
			return f.external(map[string]any{"use_default_certificate_config": true}, nil)
		}, x509Pool.Principal(nodeGroup)},
		"gcloud's configuration": {func(f certificateFiles, ca *cloud.ClientCA) Config {
			f.issue(ca, nil)
			file := gcloudFile("certificate_config.json")
			if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
				f.Fatal(err)
			}
			if err := os.WriteFile(file, f.config(), 0o600); err != nil {
				f.Fatal(err)
			}
			return f.external(map[string]any{"use_default_certificate_config": true}, nil)
		}, x509Pool.Principal(nodeGroup)},
		"without the token's address": {func(f certificateFiles, ca *cloud.ClientCA) Config {
			f.issue(ca, nil)
			return f.external(map[string]any{"certificate_config_location": f.write("config.json", f.config())}, map[string]any{"token_url": ""})
		}, x509Pool.Principal(nodeGroup)},
		"certificate and key in one file": {func(f certificateFiles, ca *cloud.ClientCA) Config {
			certificate, key := ca.Issue(nodeGroup, nil)
			f.write("cert.pem", []byte("subject=node\n"), key, certificate)
			f.write("key.pem", key, certificate)
			return f.external(map[string]any{"certificate_config_location": f.write("config.json", f.config())}, nil)
		}, x509Pool.Principal(nodeGroup)},
		"a trust chain": {func(f certificateFiles, ca *cloud.ClientCA) Config {
			first := ca.Intermediate("first")
			second := first.Intermediate("second")
			f.issue(second, nil)
			chain := f.write("chain.pem", second.PEM(), first.PEM())
			return f.external(map[string]any{"certificate_config_location": f.write("config.json", f.config()), "trust_chain_path": chain}, nil)
		}, x509Pool.Principal(nodeGroup)},
		"a trust chain with the certificate at its end": {func(f certificateFiles, ca *cloud.ClientCA) Config {
			between := ca.Intermediate("between")
			certificate, key := between.Issue(nodeGroup, nil)
			f.write("cert.pem", certificate)
			f.write("key.pem", key)
			chain := f.write("chain.pem", between.PEM(), certificate)
			return f.external(map[string]any{"certificate_config_location": f.write("config.json", f.config()), "trust_chain_path": chain}, nil)
		}, x509Pool.Principal(nodeGroup)},
		"as a service account": {func(f certificateFiles, ca *cloud.ClientCA) Config {
			f.issue(ca, nil)
			return f.external(map[string]any{"certificate_config_location": f.write("config.json", f.config())}, impersonated("iamcredentials.googleapis.com"))
		}, puller},
		"as a service account, by mutual TLS": {func(f certificateFiles, ca *cloud.ClientCA) Config {
			f.issue(ca, nil)
			return f.external(map[string]any{"certificate_config_location": f.write("config.json", f.config())}, impersonated("iamcredentials.mtls.googleapis.com"))
		}, puller},
		"as a service account of the settings": {func(f certificateFiles, ca *cloud.ClientCA) Config {
			f.issue(ca, nil)
			cfg := f.external(map[string]any{"certificate_config_location": f.write("config.json", f.config())}, nil)
			cfg.Impersonate = puller
			return cfg
		}, puller},
	} {
		t.Run(name, func(t *testing.T) {
			c, ca, f := setUpX509(t)
			c.AllowImpersonation(x509Pool.PrincipalSet(), puller)
			cfg := test.prepare(f, ca)
			c.GrantReader(project, test.want)
			if got := principalOf(t, c, pull(t, c, backendFor(t, c, cfg), backends.Request{Image: image})); got != test.want {
				t.Errorf("a token of %q, want %q", got, test.want)
			}
		})
	}
}

// TestARenewedCertificate: the files are read anew for each token.
func TestARenewedCertificate(t *testing.T) {
	c, ca, f := setUpX509(t)
	f.issue(ca, nil)
	b := backendFor(t, c, f.external(map[string]any{"certificate_config_location": f.write("config.json", f.config())}, nil))
	now := time.Now()
	b.tokens.Now = func() time.Time { return now }
	for _, want := range []string{nodeGroup, "node-2"} {
		f.issue(ca, func(t *x509.Certificate) { t.Subject.CommonName = want })
		got, err := b.Credentials(t.Context(), backends.Request{Image: image})
		if err != nil {
			t.Fatal(err)
		}
		if principal := principalOf(t, c, got.Credentials[0]); principal != x509Pool.Principal(want) {
			t.Errorf("a token of %s, want %s", principal, want)
		}
		now = now.Add(time.Hour)
	}
}

func TestClientCertificatesThatFail(t *testing.T) {
	located := func(f certificateFiles) Config {
		return f.external(map[string]any{"certificate_config_location": f.write("config.json", f.config())}, nil)
	}
	chained := func(f certificateFiles, chain ...[]byte) Config {
		return f.external(map[string]any{"certificate_config_location": f.write("config.json", f.config()), "trust_chain_path": f.write("chain.pem", chain...)}, nil)
	}
	configured := func(f certificateFiles, config string) Config {
		return f.external(map[string]any{"certificate_config_location": f.write("config.json", []byte(config))}, nil)
	}
	for name, test := range map[string]struct {
		prepare func(f certificateFiles, c *cloud.Cloud, ca *cloud.ClientCA) Config
		kind    backends.Kind
		want    []string
	}{
		"no configuration named": {func(f certificateFiles, _ *cloud.Cloud, _ *cloud.ClientCA) Config {
			return f.external(map[string]any{}, nil)
		}, misconfigured, []string{"external.json: credential_source.certificate: want either"}},
		"two configurations named": {func(f certificateFiles, _ *cloud.Cloud, _ *cloud.ClientCA) Config {
			return f.external(map[string]any{"use_default_certificate_config": true, "certificate_config_location": f.write("config.json", f.config())}, nil)
		}, misconfigured, []string{"credential_source.certificate: want either"}},
		"something else than the form": {func(f certificateFiles, _ *cloud.Cloud, _ *cloud.ClientCA) Config {
			return f.external(map[string]any{"use_default_certificate_config": planted}, nil)
		}, misconfigured, []string{"external.json (credentialsFile): it is not JSON, or not of the form"}},
		"no configuration": {func(f certificateFiles, _ *cloud.Cloud, _ *cloud.ClientCA) Config {
			return f.external(map[string]any{"certificate_config_location": "/nonexistent/config.json"}, nil)
		}, misconfigured, []string{"external.json: certificate_config_location: /nonexistent/config.json: no such file"}},
		"a relative path": {func(f certificateFiles, _ *cloud.Cloud, _ *cloud.ClientCA) Config {
			return f.external(map[string]any{"certificate_config_location": "config.json"}, nil)
		}, misconfigured, []string{`certificate_config_location: want the absolute path of a file, got "config.json"`}},
		"no configuration by the environment": {func(f certificateFiles, _ *cloud.Cloud, _ *cloud.ClientCA) Config {
			f.Setenv("GOOGLE_API_CERTIFICATE_CONFIG", "/nonexistent/config.json")
			return f.external(map[string]any{"use_default_certificate_config": true}, nil)
		}, misconfigured, []string{"external.json: GOOGLE_API_CERTIFICATE_CONFIG: /nonexistent/config.json: no such file"}},
		"no configuration of gcloud's": {func(f certificateFiles, _ *cloud.Cloud, _ *cloud.ClientCA) Config {
			return f.external(map[string]any{"use_default_certificate_config": true}, nil)
		}, misconfigured, []string{"GOOGLE_API_CERTIFICATE_CONFIG is not set (or not named in inheritEnv)", ".config/gcloud/certificate_config.json: no such file"}},
		"a configuration that is none": {func(f certificateFiles, _ *cloud.Cloud, _ *cloud.ClientCA) Config { return configured(f, planted) }, misconfigured, []string{"config.json: it is not JSON"}},
		"keys in hardware": {func(f certificateFiles, _ *cloud.Cloud, _ *cloud.ClientCA) Config {
			return configured(f, `{"cert_configs": {"pkcs11": {"slot": "0x1"}}, "libs": {"ecp": "/bin/false"}}`)
		}, misconfigured, []string{"config.json: want cert_configs.workload with cert_path and key_path", "not run here"}},
		"a configuration without the key": {func(f certificateFiles, _ *cloud.Cloud, _ *cloud.ClientCA) Config {
			return configured(f, `{"cert_configs": {"workload": {"cert_path": "/cert.pem"}}}`)
		}, misconfigured, []string{"want cert_configs.workload with cert_path and key_path"}},
		"no certificate": {func(f certificateFiles, _ *cloud.Cloud, _ *cloud.ClientCA) Config { return located(f) }, unavailable, []string{"cert_configs.workload.cert_path: /", "/cert.pem: no such file"}},
		"no key": {func(f certificateFiles, _ *cloud.Cloud, ca *cloud.ClientCA) Config {
			f.issue(ca, nil)
			_ = os.Remove(f.path("key.pem"))
			return located(f)
		}, unavailable, []string{"cert_configs.workload.key_path: /", "/key.pem: no such file"}},
		"a key that never ends": {func(f certificateFiles, _ *cloud.Cloud, ca *cloud.ClientCA) Config {
			f.issue(ca, nil)
			return configured(f, `{"cert_configs": {"workload": {"cert_path": "`+f.path("cert.pem")+`", "key_path": "/dev/zero"}}}`)
		}, misconfigured, []string{"key_path: /dev/zero: it is no regular file"}},
		"a certificate that is none": {func(f certificateFiles, _ *cloud.Cloud, ca *cloud.ClientCA) Config {
			f.issue(ca, nil)
			f.write("cert.pem", []byte(planted))
			return located(f)
		}, unavailable, []string{"cert_path: /", "/cert.pem: there is no certificate in PEM in it"}},
		"half a certificate": {func(f certificateFiles, _ *cloud.Cloud, ca *cloud.ClientCA) Config {
			certificate, key := ca.Issue(nodeGroup, nil)
			f.write("cert.pem", certificate[:len(certificate)/2])
			f.write("key.pem", key)
			return located(f)
		}, unavailable, []string{"/cert.pem: certificate 1 in it is broken"}},
		"a key that is none": {func(f certificateFiles, _ *cloud.Cloud, ca *cloud.ClientCA) Config {
			f.issue(ca, nil)
			f.write("key.pem", []byte("-----BEGIN "+planted+"-----\nAAAA\n-----END "+planted+"-----\n"))
			return located(f)
		}, unavailable, []string{"key_path: /", "/key.pem: it is no private key in PEM"}},
		"somebody else's key": {func(f certificateFiles, _ *cloud.Cloud, ca *cloud.ClientCA) Config {
			f.issue(ca, nil)
			_, key := ca.Issue(nodeGroup, nil)
			f.write("key.pem", key)
			return located(f)
		}, unavailable, []string{"/key.pem: it is not the key of the certificate in /"}},
		"an expired certificate": {func(f certificateFiles, _ *cloud.Cloud, ca *cloud.ClientCA) Config {
			f.issue(ca, func(t *x509.Certificate) {
				t.NotBefore, t.NotAfter = time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2001, 12, 31, 0, 0, 0, 0, time.UTC)
			})
			return located(f)
		}, unavailable, []string{"/cert.pem: the certificate has expired at 2001-12-31T00:00:00Z"}},
		"a certificate of the future": {func(f certificateFiles, _ *cloud.Cloud, ca *cloud.ClientCA) Config {
			f.issue(ca, func(t *x509.Certificate) {
				t.NotBefore = time.Now().Add(time.Hour)
			})
			return located(f)
		}, unavailable, []string{"/cert.pem: the certificate is not valid before 20"}},
		"no chain": {func(f certificateFiles, _ *cloud.Cloud, ca *cloud.ClientCA) Config {
			f.issue(ca, nil)
			return f.external(map[string]any{"certificate_config_location": f.write("config.json", f.config()), "trust_chain_path": "/nonexistent/chain.pem"}, nil)
		}, unavailable, []string{"trust_chain_path: /nonexistent/chain.pem: no such file"}},
		"a broken chain": {func(f certificateFiles, _ *cloud.Cloud, ca *cloud.ClientCA) Config {
			f.issue(ca, nil)
			return chained(f, ca.PEM(), []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
		}, unavailable, []string{"trust_chain_path: /", "/chain.pem: certificate 2 in it is broken"}},

		"a chain to somewhere else": {func(f certificateFiles, _ *cloud.Cloud, ca *cloud.ClientCA) Config {
			f.issue(ca.Intermediate("between"), nil)
			return chained(f, ca.Intermediate("another").PEM())
		}, refused, []string{"invalid_grant", "in trust_chain_path /", "/chain.pem, none has issued the certificate in /"}},
		"an expired chain": {func(f certificateFiles, _ *cloud.Cloud, ca *cloud.ClientCA) Config {
			between := ca.Intermediate("between")
			f.issue(between, nil)
			old, _ := ca.Issue("old", func(t *x509.Certificate) {
				t.NotBefore, t.NotAfter = time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2001, 12, 31, 0, 0, 0, 0, time.UTC)
			})
			return chained(f, old)
		}, refused, []string{"invalid_grant", `/chain.pem, the certificate of "CN=old" has expired at 2001-12-31T00:00:00Z`}},
		"a certificate for too long": {func(f certificateFiles, _ *cloud.Cloud, ca *cloud.ClientCA) Config {
			f.issue(ca, func(t *x509.Certificate) { t.NotAfter = t.NotBefore.Add(391 * 24 * time.Hour) })
			return located(f)
		}, refused, []string{"invalid_grant", "/cert.pem is issued for longer than 390 days"}},
		"a certificate of another CA": {func(f certificateFiles, c *cloud.Cloud, _ *cloud.ClientCA) Config {
			other := c.ClientCA("other")
			f.issue(other, nil)
			return chained(f, other.PEM())
		}, refused, []string{"sts.mtls.googleapis.com: invalid_grant", "its trust anchors, attribute mapping and condition", "it was asked of " + x509Pool.Audience()}},
		"a certificate of another CA, in a chain by itself": {func(f certificateFiles, c *cloud.Cloud, _ *cloud.ClientCA) Config {
			certificate, key := c.ClientCA("other").Issue(nodeGroup, nil)
			f.write("cert.pem", certificate)
			f.write("key.pem", key)
			return chained(f, certificate)
		}, refused, []string{"its trust anchors, attribute mapping and condition"}},
		"a condition": {func(f certificateFiles, c *cloud.Cloud, ca *cloud.ClientCA) Config {
			provider := x509Pool
			provider.TrustAnchors, provider.Condition = []*x509.Certificate{ca.Certificate}, func(a cloud.Assertion) bool { return a.Text("subject", "dn", "o") == "acme" }
			c.AddWorkloadPool(provider)
			f.issue(ca, nil)
			return chained(f, c.ClientCA("needless").PEM())
		}, refused, []string{"unauthorized_client", "the provider's attribute condition refuses it"}},
		"an address without mutual TLS": {func(f certificateFiles, _ *cloud.Cloud, ca *cloud.ClientCA) Config {
			f.issue(ca, nil)
			return f.external(map[string]any{"certificate_config_location": f.write("config.json", f.config())}, map[string]any{"token_url": "https://sts.googleapis.com/v1/token"})
		}, refused, []string{"sts.googleapis.com: invalid_grant"}},
		"no pool": {func(f certificateFiles, _ *cloud.Cloud, ca *cloud.ClientCA) Config {
			f.issue(ca, nil)
			return f.external(map[string]any{"certificate_config_location": f.write("config.json", f.config())}, map[string]any{"audience": x509Pool.Audience() + "2"})
		}, refused, []string{"invalid_target", "there is no such pool or provider"}},
		"an account that may not be impersonated": {func(f certificateFiles, _ *cloud.Cloud, ca *cloud.ClientCA) Config {
			f.issue(ca, nil)
			return f.external(map[string]any{"certificate_config_location": f.write("config.json", f.config())}, map[string]any{
				"service_account_impersonation_url": "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/" + between + ":generateAccessToken",
			})
		}, refused, []string{"iamcredentials.googleapis.com: PERMISSION_DENIED", "roles/iam.workloadIdentityUser"}},
		"a service that is broken": {func(f certificateFiles, c *cloud.Cloud, ca *cloud.ClientCA) Config {
			f.issue(ca, nil)
			c.Fail(cloud.Fault{Service: "google-sts", Status: 503, Body: planted})
			return located(f)
		}, unavailable, []string{"status 503"}},
		"a redirection": {func(f certificateFiles, c *cloud.Cloud, ca *cloud.ClientCA) Config {
			f.issue(ca, nil)
			c.Fail(cloud.Fault{Service: "google-sts", Status: 307, Body: planted})
			return located(f)
		}, unavailable, []string{"HTTP status 307"}},
	} {
		t.Run(name, func(t *testing.T) {
			c, ca, f := setUpX509(t)
			b := backendFor(t, c, test.prepare(f, c, ca))
			_, err := b.Credentials(t.Context(), backends.Request{Image: image})
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v\nlacks %q", err, want)
				}
			}
			if marked, ok := errors.AsType[*backends.Error](err); !ok || marked.Kind != test.kind {
				t.Errorf("its kind is not %d: %#v", test.kind, err)
			}
			key, _ := os.ReadFile(f.path("key.pem"))
			for line := range strings.Lines(planted + "\n" + string(key)) {
				if strings.Contains(err.Error(), strings.TrimSpace(line)) {
					t.Errorf("it tells %q: %v", line, err)
				}
			}
		})
	}
}

// TestACertificateThatTLSRefuses: it is no outage that the other side does not take it.
func TestACertificateThatTLSRefuses(t *testing.T) {
	for text, want := range map[string]bool{"tls: bad certificate": true, "tls: unknown certificate authority": true, "tls: certificate required": true, "tls: internal error": false} {
		last := exchange{host: "sts.mtls.googleapis.com", err: remote.Unanswered(context.Background(), &url.Error{Op: http.MethodPost, Err: &net.OpError{Op: "remote error", Err: errors.New(text)}})}
		b, err := New(t.Context(), Config{})
		if err != nil {
			t.Fatal(err)
		}
		calls := b.google.calls()
		calls.last = last
		got := calls.explain(t.Context(), last.err, "doing", nil)
		marked, ok := errors.AsType[*backends.Error](got)
		if !ok || (marked.Kind == refused) != want || !strings.Contains(got.Error(), "remote error: "+text) || strings.Contains(got.Error(), "does not take the client certificate") != want {
			t.Errorf("%s: %#v", text, got)
		}
	}
}
