package gar

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/test/cloud"
)

// TestTheMetadataServerIsNotAskedThroughAProxy, whatever its address. (To connect to the unspecified address is to connect to this machine; Go exempts no such name from a proxy.)
func TestTheMetadataServerIsNotAskedThroughAProxy(t *testing.T) {
	c := setUp(t)
	c.GrantReader(project, node)
	var asked atomic.Int32
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(http.StatusBadGateway)
	}))
	defer proxy.Close()
	setenv(t, "GCE_METADATA_HOST="+strings.Replace(strings.TrimPrefix(c.GoogleInstance(cloud.ServiceAccount{Email: node}).URL(), "http://"), "127.0.0.1", "0.0.0.0", 1))
	b, err := New(t.Context(), Config{Proxy: backends.Secret(proxy.URL)})
	if err != nil {
		t.Fatal(err)
	}
	pull(t, c, b, backends.Request{Image: image})
	if n := asked.Load(); n != 0 {
		t.Errorf("the proxy was asked %d times", n)
	}
}

// TestNothingIsSentToWhereARedirectionPoints: a key's assertion in it, or a token.
func TestNothingIsSentToWhereARedirectionPoints(t *testing.T) {
	c := setUp(t)
	b := backendFor(t, c, Config{CredentialsFile: write(t, "key.json", c.ServiceAccountKeyFile(puller))})
	calls := b.google.calls()
	var asked atomic.Int32
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer elsewhere.Close()
	here := httptest.NewServer(http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect))
	defer here.Close()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, here.URL, strings.NewReader("secret"))
	if err != nil {
		t.Fatal(err)
	}
	response, err := calls.client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	if asked.Load() != 0 || response.StatusCode != http.StatusTemporaryRedirect {
		t.Errorf("asked %d times, status %d", asked.Load(), response.StatusCode)
	}
}
