package gar

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/test/cloud"
)

// metadataInstead is a machine's metadata server with something else in the place of its answers at a path.
func metadataInstead(t *testing.T, c *cloud.Cloud, path string, answer http.HandlerFunc) {
	t.Helper()
	g := c.GoogleInstance(cloud.ServiceAccount{Email: node})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, path) {
			answer(w, r)
			return
		}
		g.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	setenv(t, "GCE_METADATA_HOST="+strings.TrimPrefix(server.URL, "http://"))
}

// TestTheMetadataServerIsAskedWithinBounds, whatever it does: for each question that it never answers, and for all those that are asked again because it says that it is busy.
func TestTheMetadataServerIsAskedWithinBounds(t *testing.T) {
	setenv(t, "GCE_METADATA_HOST=192.0.2.1")
	for what, ask := range map[string]func(context.Context, *metadataServer) error{
		"token": func(ctx context.Context, m *metadataServer) error {
			_, err := m.token(ctx, scopeRead)
			return err
		},
		"universe": func(ctx context.Context, m *metadataServer) error {
			_, err := m.universe(ctx)
			return err
		},
	} {
		for name, test := range map[string]struct {
			answersAfter time.Duration // 0: never
			want         time.Duration
		}{
			"without an answer": {0, linkTimeout},
			"busy, and slow":    {linkTimeout - time.Millisecond, metadataTimeout},
		} {
			t.Run(what+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b, err := New(t.Context(), Config{})
					if err != nil {
						t.Fatal(err)
					}
					var answering sync.WaitGroup
					defer answering.Wait()
					b.google.link.DialContext = func(context.Context, string, string) (net.Conn, error) {
						here, there := net.Pipe()
						answering.Go(func() {
							defer there.Close()
							if _, err := http.ReadRequest(bufio.NewReader(there)); err != nil {
								return
							}
							if test.answersAfter == 0 {
								_, _ = there.Read(make([]byte, 1)) // until the other side hangs up
								return
							}
							<-time.After(test.answersAfter) // by the clock of the bubble
							_, _ = there.Write([]byte("HTTP/1.1 503 Service Unavailable\r\nMetadata-Flavor: Google\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"))
						})
						return here, nil
					}
					began := time.Now()
					err = ask(t.Context(), &metadataServer{google: b.google, account: "default"})
					if marked, ok := errors.AsType[*backends.Error](err); !ok || marked.Kind != unavailable {
						t.Errorf("%v", err)
					}
					if took := time.Since(began); took != test.want {
						t.Errorf("it took %s, want %s", took, test.want)
					}
				})
			})
		}
	}
}

// TestSomebodyBusyInTheMetadataServersPlace: whoever says that it is busy may be a proxy before Google's own, so that asking again is worth it; whoever answers as if nothing were wrong is somebody else.
func TestSomebodyBusyInTheMetadataServersPlace(t *testing.T) {
	for status, want := range map[int]backends.Kind{200: refused, 404: refused, 408: unavailable, 429: unavailable, 500: unavailable, 503: unavailable} {
		c := setUp(t)
		metadataInstead(t, c, "/token", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
		_, err := backendFor(t, c, Config{}).Credentials(t.Context(), backends.Request{Image: image})
		if marked, ok := errors.AsType[*backends.Error](err); !ok || marked.Kind != want || !strings.Contains(err.Error(), "is not Google's metadata server") {
			t.Errorf("%d: %#v", status, err)
		}
	}
}

// TestTokensAreRenewed when half of their lives is over; a failure then is not covered up by the old one.
func TestTokensAreRenewed(t *testing.T) {
	for name, prepare := range map[string]func(c *cloud.Cloud) Config{
		"a key": func(c *cloud.Cloud) Config {
			return Config{CredentialsFile: write(t, "key.json", c.ServiceAccountKeyFile(puller))}
		},
		"an impersonated account": func(c *cloud.Cloud) Config {
			c.AllowImpersonation(node, puller)
			return Config{CredentialsFile: write(t, "key.json", c.ServiceAccountKeyFile(node)), Impersonate: puller}
		},
	} {
		c := setUp(t)
		b := backendFor(t, c, prepare(c))
		now := time.Now()
		b.tokens.Now = func() time.Time { return now }
		get := func() string {
			t.Helper()
			got, err := b.Credentials(t.Context(), backends.Request{Image: image})
			if err != nil {
				t.Fatal(err)
			}
			return string(got.Credentials[0].Password)
		}
		first := get()
		now = now.Add(29 * time.Minute)
		if get() != first {
			t.Errorf("%s: another token before half of its life was over", name)
		}
		now = now.Add(2 * time.Minute)
		if get() == first {
			t.Errorf("%s: the same token after half of its life", name)
		}
		now = now.Add(31 * time.Minute)
		c.Fail(cloud.Fault{Service: "google-oauth", Status: 503})
		if _, err := b.Credentials(t.Context(), backends.Request{Image: image}); err == nil {
			t.Errorf("%s: no error", name)
		}
		c.Heal()
		if got := get(); got == first {
			t.Errorf("%s: the first token again", name)
		}
	}
}

// TestLookupsInTheBackground: Google's library looks up where a token may be used, if a variable says so, when it has given the token out; what comes of that is no part of the answer, nor of an error.
func TestLookupsInTheBackground(t *testing.T) {
	c := setUp(t)
	t.Setenv("GOOGLE_AUTH_TRUST_BOUNDARY_ENABLED", "true")
	c.GrantReader(project, puller)
	pull(t, c, backendFor(t, c, Config{CredentialsFile: write(t, "key.json", c.ServiceAccountKeyFile(puller))}), backends.Request{Image: image})

	b := backendFor(t, c, Config{})
	calls := b.google.calls()
	status := http.StatusForbidden
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
	defer server.Close()
	ask := func() {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		response, err := calls.client().Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
	}
	ask()
	if last := calls.end(); last.status != http.StatusForbidden {
		t.Errorf("%+v", last)
	}
	status = http.StatusTeapot
	ask()
	if last := calls.end(); last.status != http.StatusForbidden {
		t.Errorf("what came in the background: %+v", last)
	}
}
