package node

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// TokenRegistry is a registry whose passwords are service account tokens of a cluster's. It believes none before it has verified the signature with the API server's own keys, and who issued it, for whom
// and until when; then the token's subject decides.
type TokenRegistry struct {
	*Registry

	cluster  *Cluster
	audience string

	mu       sync.Mutex
	allowed  map[string][]string // the first part of a path, to subjects
	verdicts []string            // what it said to whom, once each
}

// claims are those of a token that decide, or tell the reader what he sees.
type claims struct {
	jwt.Claims

	Kubernetes struct {
		Node named `json:"node"`
		Pod  named `json:"pod"`
	} `json:"kubernetes.io"`
}

type named struct {
	Name string `json:"name"`
}

// TokenRegistry starts a registry for tokens with this audience. Subjects may pull what is below the first part of a path that allowed names: {"team-a": {"system:serviceaccount:a:puller"}}.
func (c *Cluster) TokenRegistry(t testing.TB, audience string, allowed map[string][]string) *TokenRegistry {
	t.Helper()
	r := &TokenRegistry{Registry: c.node.registry(), cluster: c, audience: audience, allowed: allowed}
	port, err := freePort("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	r.behind = fmt.Sprintf("127.0.0.1:%d", port)
	r.start(t, nil)
	r.private = true
	server := &http.Server{Addr: r.Host, ReadHeaderTimeout: 10 * time.Second, Handler: r.front()}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := server.ListenAndServe(); err != http.ErrServerClosed {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { _ = server.Close(); <-ended })
	return r
}

func (r *TokenRegistry) front() http.Handler {
	inner := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: r.behind})
	return http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		_, token, given := request.BasicAuth()
		if !given {
			w.Header().Set("WWW-Authenticate", `Basic realm="tokens"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"a token is needed"}]}`, http.StatusUnauthorized)
			return
		}
		who, err := r.verify(request.Context(), token)
		if err != nil {
			r.say("refused a token: %v", err)
			w.Header().Set("WWW-Authenticate", `Basic realm="tokens"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"not a token that counts here"}]}`, http.StatusUnauthorized)
			return
		}
		team, _, _ := strings.Cut(strings.TrimPrefix(request.URL.Path, "/v2/"), "/")
		if !slices.Contains(r.allowed[team], who.Subject) {
			r.say("refused %s, in pod %s on %s: may not pull from %s", who.Subject, who.Kubernetes.Pod.Name, who.Kubernetes.Node.Name, team)
			http.Error(w, `{"errors":[{"code":"DENIED","message":"this service account may not pull this image"}]}`, http.StatusForbidden)
			return
		}
		r.say("let in %s, in pod %s on %s: may pull from %s", who.Subject, who.Kubernetes.Pod.Name, who.Kubernetes.Node.Name, team)
		inner.ServeHTTP(w, request)
	})
}

// verify asks the API server for its keys each time: nobody waits for so little.
func (r *TokenRegistry) verify(ctx context.Context, token string) (*claims, error) {
	keys, err := r.cluster.keys(ctx)
	if err != nil {
		return nil, fmt.Errorf("the API server's keys: %w", err)
	}
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256, jose.RS256})
	if err != nil {
		return nil, err
	}
	var said claims
	if err := parsed.Claims(keys, &said); err != nil {
		return nil, err
	}
	if said.Expiry == nil {
		return nil, fmt.Errorf("it never expires")
	}
	return &said, said.ValidateWithLeeway(jwt.Expected{Issuer: r.cluster.URL, AnyAudience: jwt.Audience{r.audience}, Time: time.Now()}, 0)
}

func (r *TokenRegistry) say(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if line := fmt.Sprintf(format, args...); !slices.Contains(r.verdicts, line) {
		r.verdicts = append(r.verdicts, line)
	}
}

// Verdicts is what the registry has said to whom, once each.
func (r *TokenRegistry) Verdicts() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.verdicts)
}
