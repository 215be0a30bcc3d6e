package cloud

import (
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

func TestProxy(t *testing.T) {
	c := New(t)
	c.handle("a.example.com", "a", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entryOf(r).principal("somebody")
		w.WriteHeader(http.StatusTeapot)
	}))
	c.handle("*.b.example.com", "b", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) }))
	client := c.Client()
	t.Cleanup(client.CloseIdleConnections)
	get := func(url string) (string, error) {
		r, err := client.Get(url)
		if err != nil {
			return "", err
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		return string(body), err
	}

	for _, u := range []string{"https://a.example.com/x", "https://a.example.com/y", "https://c.b.example.com/"} {
		if body, err := get(u); err != nil || (strings.Contains(u, "b.example") && body != "HTTP/2.0") {
			t.Errorf("%s: %q, %v", u, body, err)
		}
	}
	if n := c.Connections("a.example.com"); n != 1 {
		t.Errorf("two requests by HTTP/2 took %d connections", n)
	}
	for _, u := range []string{"https://nobody.example.com/", "https://c.d.b.example.com/", "https://a.example.com:8443/"} {
		if _, err := get(u); err == nil || !strings.Contains(err.Error(), "Bad Gateway") {
			t.Errorf("%s: %v", u, err)
		}
	}
	if body, err := get("http://169.254.169.254/latest/api/token"); err != nil || !strings.Contains(body, "no such host") {
		t.Errorf("metadata through the proxy: %q, %v", body, err)
	}
	want := []Request{
		{Host: "a.example.com", Service: "a", Operation: "GET /x", Principal: "somebody", Status: 418, Connection: 1},
		{Host: "a.example.com", Service: "a", Operation: "GET /y", Principal: "somebody", Status: 418, Connection: 1},
		{Host: "c.b.example.com", Service: "b", Operation: "GET /", Status: 200, Connection: 2},
		{Host: "nobody.example.com", Service: "proxy", Operation: "CONNECT", Status: 502},
		{Host: "c.d.b.example.com", Service: "proxy", Operation: "CONNECT", Status: 502},
		{Host: "a.example.com", Service: "proxy", Operation: "CONNECT", Status: 502},
		{Host: "169.254.169.254", Service: "proxy", Operation: "GET /latest/api/token", Status: 502},
	}
	got := c.Requests()
	if len(got) != len(want) {
		t.Fatalf("%d requests, not %d: %+v", len(got), len(want), got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("request %d: %+v, not %+v", i, got[i], want[i])
		}
	}
}

func TestProxyCertificatesAreOfItsOwnCA(t *testing.T) {
	c := New(t)
	c.handle("a.example.com", "a", http.NotFoundHandler())
	proxy, err := url.Parse(c.ProxyURL())
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(proxy)}}
	r, err := client.Get("https://a.example.com/")
	if err == nil {
		r.Body.Close()
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); !ok {
		t.Errorf("a client that does not know the CA: %v", err)
	}
	if n := c.Connections("a.example.com"); n != 0 {
		t.Errorf("the failed handshake counts as %d connections", n)
	}
}
