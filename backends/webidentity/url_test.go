package webidentity

import (
	"context"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/test/cloud"
)

func TestURL(t *testing.T) {
	good := jwt(nil)
	say := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = fmt.Fprint(w, body)
		}
	}
	raw := func(bytes string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				panic(err)
			}
			_, _ = fmt.Fprint(conn, bytes)
			_ = conn.Close()
		}
	}
	busyTwice := 0
	tests := []struct {
		name string
		h    http.HandlerFunc
		c    URL // URL is filled in: to it is added what stands there
		want *failure
	}{
		{name: "a token", h: say(200, good+"\n")},
		{name: "in JSON", h: say(200, `{"data":{"token":"`+good+`"}}`), c: URL{TokenField: "data.token"}},
		{
			name: "query and headers are passed on", c: URL{URL: "a/b?c=d%20e", Headers: map[string]backends.Secret{"X-Vault-Token": "x y", "accept": "text/plain"}},
			h: func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodGet && r.URL.String() == "/a/b?c=d%20e" && r.Header.Get("X-Vault-Token") == "x y" && r.Header.Get("Accept") == "text/plain" {
					_, _ = fmt.Fprint(w, good)
				}
			},
		},
		{
			name: "busy twice",
			h: func(w http.ResponseWriter, _ *http.Request) {
				if busyTwice++; busyTwice <= 2 {
					w.Header().Set("Retry-After", "1")
					w.WriteHeader(http.StatusTooManyRequests)
				}
				_, _ = fmt.Fprint(w, good)
			},
		},
		{name: "busy", h: say(503, canary), want: unavailable("busy or broken (HTTP status 503)")},
		{name: "no", h: say(403, canary), want: refused("HTTP status 403")},
		{name: "not there", h: say(404, canary), want: misconfigured("webIdentity.url.url", "HTTP status 404")},
		{
			name: "elsewhere", want: misconfigured("webIdentity.url.url", "redirects", "302"),
			h: func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/elsewhere" {
					_, _ = fmt.Fprint(w, good)
					return
				}
				http.Redirect(w, r, "/elsewhere?"+canary, http.StatusFound)
			},
		},
		{name: "nothing", h: say(200, ""), want: unavailable("it is empty")},
		{name: "no token", h: say(200, "<html>"+canary), want: misconfigured("webIdentity.url", "no JWT")},
		{name: "no JSON", h: say(200, canary), c: URL{TokenField: "token"}, want: misconfigured("webIdentity.url.tokenField", "no JSON")},
		{name: "another audience", h: say(200, jwt(map[string]any{"aud": "x"})), want: misconfigured("webIdentity.url", `audience "x"`)},
		{name: "too much", h: say(200, strings.Repeat(canary, 10000)), want: unavailable("more than 64 KiB")},
		{name: "what is no HTTP", h: raw(canary + "\r\n\r\n"), want: unavailable("no valid HTTP answer")},
		{name: "a header that is none", h: raw("HTTP/1.1 200 OK\r\n" + canary + "\r\n\r\n"), want: unavailable("no valid HTTP answer")},
		{name: "a body that ends too soon", h: raw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + canary), want: unavailable("closed before there was an answer")},
		{name: "no answer", h: raw(""), want: unavailable("closed before there was an answer")},
		{name: "a secret in the query", h: say(500, ""), c: URL{URL: "a?key=" + canary}, want: unavailable("/a: it is busy")},
		{name: "a secret in the query, and no HTTP", h: raw("x\r\n\r\n"), c: URL{URL: "a?key=" + canary}, want: unavailable("/a: no valid HTTP")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server := httptest.NewServer(tt.h)
			t.Cleanup(server.Close)
			tt.c.URL = server.URL + "/" + tt.c.URL
			s := source(t, Config{URL: &tt.c}, testWorld())
			token, err := s.Token(t.Context())
			check(t, s, token, err, tt.want)
			if tt.want == nil && string(token.Value) != good {
				t.Error("that is another token")
			}
		})
	}
}

func TestURLWithTLS(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, jwt(nil)) }))
	server.Config.ErrorLog = nil
	server.StartTLS()
	t.Cleanup(server.Close)
	dir := t.TempDir()
	at := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ca := at("ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	tests := []struct {
		name, url, ca string
		want          *failure
	}{
		{name: "a CA of its own", url: server.URL, ca: ca},
		{name: "the system's CAs", url: server.URL, want: unavailable("certificate")},
		{name: "no such file", url: server.URL, ca: filepath.Join(dir, "no.pem"), want: misconfigured("webIdentity.url.caFile", "no.pem cannot be read")},
		{name: "no certificate", url: server.URL, ca: at("key.pem", canary), want: misconfigured("webIdentity.url.caFile", "no certificate")},
		{name: "no TLS", url: "https" + strings.TrimPrefix(plain.URL, "http"), want: unavailable("plain HTTP")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := source(t, Config{URL: &URL{URL: tt.url, CAFile: tt.ca}}, testWorld())
			token, err := s.Token(t.Context())
			check(t, s, token, err, tt.want)
		})
	}
}

// silence takes connections and says nothing.
func silence(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return "http://" + l.Addr().String()
}

// TestAbsent is a machine on which the packets to a metadata service are lost, as they are outside of clouds.
func TestAbsent(t *testing.T) {
	instance := cloud.New(t).Instance("")
	instance.Absent()
	for _, c := range []Config{{GoogleMetadata: &GoogleMetadata{Endpoint: instance.URL()}}, {AzureManagedIdentity: &AzureManagedIdentity{Endpoint: instance.URL()}}} {
		s := source(t, c, testWorld())
		start := time.Now()
		token, err := s.Token(t.Context())
		if took := time.Since(start); runtime.GOOS == "linux" {
			check(t, s, token, err, unavailable("nobody answers there: no connection in time: is this machine on"))
			if took > 1500*time.Millisecond {
				t.Errorf("that took %v", took)
			}
		} else {
			check(t, s, token, err, unavailable("no answer in time"))
		}
	}
}

// nobody is an address where connections are refused.
func nobody(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}

func TestNoAnswer(t *testing.T) {
	quiet, gone := silence(t), nobody(t)
	for name, c := range map[string]func(endpoint string) Config{
		"URL":    func(e string) Config { return Config{URL: &URL{URL: e + "/?" + canary}} },
		"Google": func(e string) Config { return Config{GoogleMetadata: &GoogleMetadata{Endpoint: e}} },
		"Azure":  func(e string) Config { return Config{AzureManagedIdentity: &AzureManagedIdentity{Endpoint: e}} },
		"SPIFFE": func(e string) Config { return Config{SPIFFE: &SPIFFE{Socket: "tcp" + strings.TrimPrefix(e, "http")}} },
	} {
		t.Run(name, func(t *testing.T) {
			s := source(t, c(quiet), testWorld())
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			token, err := s.Token(ctx)
			check(t, s, token, err, unavailable("no answer within the time"))

			s = source(t, c(gone), testWorld())
			start := time.Now()
			token, err = s.Token(t.Context())
			says := "refused"
			if name == "SPIFFE" {
				says = "nobody listens there"
			}
			check(t, s, token, err, unavailable(says))
			if d := time.Since(start); d > 1500*time.Millisecond {
				t.Errorf("that took %v", d)
			}

			ctx, cancel = context.WithCancel(t.Context())
			cancel()
			token, err = s.Token(ctx)
			check(t, s, token, err, unavailable("given up"))
		})
	}
}
