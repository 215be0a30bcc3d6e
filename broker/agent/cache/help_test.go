package cache

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/image"
	"github.com/credential-broker/credential-broker/proto/secret"
)

// model is a Source that says in each password for what exactly it was asked.
type model struct {
	mu      sync.Mutex
	calls   []string // "call r.io/a", "renew r.io/a lease-1"
	revoked []string
	serial  int
	answer  answerFunc
}

// answerFunc decides what a model answers; nil: one credential for the registry, which expires in an hour.
type answerFunc func(ctx context.Context, provider *config.Provider, request broker.Request) (broker.Answer, error)

func (m *model) set(answer answerFunc) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.answer = answer
}

func (m *model) note(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls = append(m.calls, fmt.Sprintf(format, args...))
}

func (m *model) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.calls)
}

func (m *model) made() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.calls)
}

func (m *model) Call(ctx context.Context, provider *config.Provider, request broker.Request) (broker.Answer, error) {
	m.note("call %s", request.Image)
	return m.respond(ctx, provider, request)
}

func (m *model) Renew(ctx context.Context, provider *config.Provider, request broker.Request, lease secret.Secret) (broker.Answer, error) {
	m.note("renew %s %s", request.Image, string(lease))
	return m.respond(ctx, provider, request)
}

func (m *model) Revoke(_ context.Context, _ *config.Provider, lease secret.Secret) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.revoked = append(m.revoked, string(lease))
	return nil
}

func (m *model) respond(ctx context.Context, provider *config.Provider, request broker.Request) (broker.Answer, error) {
	m.mu.Lock()
	answer := m.answer
	m.mu.Unlock()
	if answer != nil {
		return answer(ctx, provider, request)
	}
	return m.good(provider, request, true, time.Hour), nil
}

// good is an answer that expires after a while, or never.
func (m *model) good(provider *config.Provider, request broker.Request, registryWide bool, lives time.Duration) broker.Answer {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.serial++
	credential := broker.Credential{Key: image.Registry(request.Image), Username: fmt.Sprintf("user-%d", m.serial), Password: secret.Secret(madeFor(provider, request, registryWide))}
	if lives != 0 {
		credential.Expires = time.Now().Add(lives).Round(0)
	}
	return broker.Answer{Credentials: []broker.Credential{credential}, RegistryWide: registryWide, Lease: secret.Secret(fmt.Sprintf("lease-%d\xff", m.serial))}
}

// madeFor says all that an answer may depend on.
func madeFor(provider *config.Provider, request broker.Request, registryWide bool) string {
	scope := request.Image
	if registryWide {
		scope = image.Registry(request.Image) + "/*"
	}
	who := "node"
	if attributes := provider.TokenAttributes; attributes != nil {
		who = "token " + string(request.Token)
		claims, _ := readClaims(request.Token)
		if attributes.CacheType == config.CacheTypeServiceAccount && claims.account.complete() {
			who = fmt.Sprintf("account %q", claims.account)
		}
		for _, name := range slices.Sorted(maps.Keys(request.Annotations)) {
			who += fmt.Sprintf(" %q=%q", name, request.Annotations[name])
		}
	}
	return fmt.Sprintf("for %s at %s by %s", who, scope, provider.Fingerprint())
}

// token makes a service account token as the kubelet would hand it over; an empty uid leaves the claim out.
func token(namespace, name, uid string, expires time.Time, more ...string) secret.Secret {
	account := map[string]any{"name": name}
	if uid != "" {
		account["uid"] = uid
	}
	claims := map[string]any{"aud": []string{"aud"}, "kubernetes.io": map[string]any{"namespace": namespace, "serviceaccount": account}, "jti": strings.Join(more, "-")}
	if !expires.IsZero() {
		claims["exp"] = expires.Unix()
	}
	return rawToken(claims)
}

func rawToken(claims map[string]any) secret.Secret {
	payload, err := json.Marshal(claims)
	if err != nil {
		panic(err)
	}
	return secret.Secret("e30." + base64.RawURLEncoding.EncodeToString(payload) + ".c2ln")
}

func node(name string) *config.Provider {
	return &config.Provider{Name: name, Backend: name, MatchImages: []string{"*.io"}, Timeout: 10 * time.Second, Config: json.RawMessage("{}")}
}

func podded(name string, cacheType config.CacheType) *config.Provider {
	p := node(name)
	p.TokenAttributes = &config.TokenAttributes{ServiceAccountTokenAudience: "aud", CacheType: cacheType, OptionalServiceAccountAnnotationKeys: []string{"a", "b"}}
	return p
}

// inBubble runs a test with a clock of its own, which stands still while anything moves, and a cache in front of a model.
func inBubble(t *testing.T, o Options, test func(t *testing.T, c *Cache, m *model)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := &model{}
		o.Source = m
		if o.Random == nil {
			o.Random = func() float64 { return 0.5 }
		}
		c := New(o)
		defer c.Close(t.Context())
		test(t, c, m)
	})
}

// pass lets time pass.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func ask1(t *testing.T, c *Cache, provider *config.Provider, request broker.Request) broker.Answer {
	t.Helper()
	answer, err := c.Call(t.Context(), provider, request)
	if err != nil {
		t.Fatalf("%s: %v", request.Image, err)
	}
	return answer
}
