package vault

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/test/vaultserver"
)

// TestStandby: a real cluster of two. A standby answers by way of the active node, or points to it, and the two may change places.
func TestStandby(t *testing.T) {
	r := alone(t, vaultserver.Options{Standby: true})
	path, auth := r.kv()
	c := Config{Address: r.StandbyAddress(), Auth: auth, Secrets: []Secret{{Path: path}}}
	b := r.backend(c)
	is(t, pull(t, b, backends.Request{Image: image}), host, "robot", "pw-of-harbor")
	said := logged(t, func() {
		if err := b.Check(t.Context(), backends.Request{Image: image}); err != nil {
			t.Error(err)
		}
	})
	if !strings.Contains(said, "standby=true") {
		t.Errorf("the check does not say that it is a standby: %s", said)
	}

	c.Address = pointing(t, r.Server)
	_, err := r.backend(c).Credentials(t.Context(), backends.Request{Image: image})
	fails(t, err, refused, c.Address+" points to "+r.Address(), "name it in redirectAddresses")
	c.RedirectAddresses = []string{r.Address()}
	is(t, pull(t, r.backend(c), backends.Request{Image: image}), host, "robot", "pw-of-harbor")

	r.StepDown()
	is(t, pull(t, b, backends.Request{Image: image}), host, "robot", "pw-of-harbor")
}

// pointing is the standby as one that forwards nothing: it points clients to the active node.
func pointing(t *testing.T, s *vaultserver.Server) string {
	t.Helper()
	standby, err := url.Parse(s.StandbyAddress())
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(s.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	proxy := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(q *httputil.ProxyRequest) {
			q.SetURL(standby)
			q.Out.Header.Set("X-Vault-No-Request-Forwarding", "true")
		},
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}},
	})
	t.Cleanup(proxy.Close)
	return proxy.URL
}
