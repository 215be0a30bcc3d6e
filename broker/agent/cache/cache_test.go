package cache

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/proto/secret"
)

func everything(Held) bool { return true }

func TestAnAnswerServesItsWholeScope(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		p := node("p")
		first := ask1(t, c, p, broker.Request{Image: "r.io/a"})
		pass(10 * time.Minute)
		got := ask1(t, c, p, broker.Request{Image: "r.io/b"})
		if m.count() != 1 || got.Credentials[0] != first.Credentials[0] || !got.RegistryWide {
			t.Errorf("got %+v after calls %q", got, m.made())
		}
		if first.Lease != "" || got.Lease != "" {
			t.Error("the lease leaves the cache")
		}
		ask1(t, c, p, broker.Request{Image: "s.io/b"})
		if m.count() != 2 {
			t.Error("another registry was answered from memory")
		}
	})
}

func TestAnAnswerIsEachRequestsOwnCopy(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		slow(m, time.Second, nil)
		p := node("p")
		for range 2 {
			outcomes := atOnce(t.Context(), c, p, broker.Request{Image: "r.io/a"}, broker.Request{Image: "r.io/a"})
			outcomes[0].answer.Credentials[0].Password = "changed"
			if outcomes[1].answer.Credentials[0].Password == "changed" {
				t.Error("two requests share one answer's memory")
			}
		}
		if ask1(t, c, p, broker.Request{Image: "r.io/a"}).Credentials[0].Password == "changed" {
			t.Error("what is kept can be changed from outside")
		}
	})
}

func TestForget(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		p, q := node("p"), node("q")
		ask1(t, c, p, broker.Request{Image: "r.io/a"})
		ask1(t, c, q, broker.Request{Image: "r.io/a"})
		failing(m, broker.Refused)
		mustFail(t, c, p, broker.Request{Image: "s.io/a"}, broker.Refused)
		m.set(nil)
		if answers, failures := c.Forget(func(h Held) bool { return h.Provider == "p" }); answers != 1 || failures != 1 {
			t.Errorf("%d answers and %d failures were dropped", answers, failures)
		}
		synctest.Wait()
		if !slices.Equal(m.revoked, []string{"lease-1\xff"}) {
			t.Errorf("revoked: %q", m.revoked)
		}
		before := m.count()
		ask1(t, c, q, broker.Request{Image: "r.io/a"})
		if m.count() != before {
			t.Error("another provider's answer was dropped")
		}
		ask1(t, c, p, broker.Request{Image: "r.io/a"})
		ask1(t, c, p, broker.Request{Image: "s.io/a"})
		if m.count() != before+2 {
			t.Error("what was dropped is still answered")
		}
	})
}

func TestForgetReachesAnswersThatAreUnderWay(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		slow(m, time.Second, nil)
		p := node("p")
		early := begin(t.Context(), c, p, broker.Request{Image: "r.io/a"})
		c.Forget(everything)
		pass(100 * time.Millisecond)
		late := begin(t.Context(), c, p, broker.Request{Image: "r.io/a"})
		if first := early()[0]; first.err != nil {
			t.Error(first.err)
		}
		if held := c.Held(); len(held) != 0 {
			t.Errorf("what was under way is kept: %+v", held)
		}
		if second := late()[0]; second.err != nil || second.answer.Credentials[0].Username != "user-2" {
			t.Errorf("a request that came later got %+v, %v", second.answer, second.err)
		}
		if held := c.Held(); len(held) != 1 || m.count() != 2 {
			t.Errorf("held: %+v", held)
		}
		if got := ask1(t, c, p, broker.Request{Image: "r.io/a"}); got.Credentials[0].Username != "user-2" {
			t.Errorf("%s is kept", got.Credentials[0].Username)
		}
	})
}

func TestRevocationsAreBounded(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, _ *Cache, m *model) {
		s := &revoker{model: m}
		c := New(Options{Source: s})
		defer c.Close(t.Context())
		imageScoped(m)
		for _, r := range images(20) {
			ask1(t, c, node("p"), r)
		}
		c.Forget(everything)
		pass(10 * time.Second)
		if len(m.revoked) != 20 || s.most != maxRevoking {
			t.Errorf("%d revoked, %d at once", len(m.revoked), s.most)
		}
	})
}

// revoker takes a second to revoke, and fails.
type revoker struct {
	*model
	now, most int
}

func (r *revoker) Revoke(ctx context.Context, p *config.Provider, lease secret.Secret) error {
	r.mu.Lock()
	r.now++
	r.most = max(r.most, r.now)
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.now--
	}()
	return errors.Join(wait(ctx, time.Second), r.model.Revoke(ctx, p, lease), errors.New("no"))
}

func TestRetainDropsWhatBelongsToOthers(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		p, q := node("p"), node("q")
		changed := node("p")
		changed.Config = []byte(`{"a":1}`)
		ask1(t, c, p, broker.Request{Image: "r.io/a"})
		ask1(t, c, q, broker.Request{Image: "r.io/a"})
		slow(m, time.Second, nil)
		underWay := begin(t.Context(), c, p, broker.Request{Image: "s.io/a"})
		c.Retain([]*config.Provider{changed, q}, nil)
		if o := underWay()[0]; o.err != nil {
			t.Error(o.err)
		}
		m.set(nil)
		ask1(t, c, p, broker.Request{Image: "t.io/a"}) // with the configuration that is no more
		if held := c.Held(); len(held) != 1 || held[0].Provider != "q" {
			t.Errorf("held: %+v", held)
		}
		if len(m.revoked) != 0 {
			t.Errorf("revoked: %q", m.revoked)
		}
		ask1(t, c, changed, broker.Request{Image: "r.io/a"})
		if held := c.Held(); len(held) != 2 {
			t.Errorf("held: %+v", held)
		}
	})
}

func TestCloseEndsEverything(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		p := node("p")
		ask1(t, c, p, broker.Request{Image: "r.io/a"})
		kept := c.store.items[itemKey{answerItem, c.key.question(p, broker.Request{Image: "r.io/a"}, "r.io", time.Now()).all}]
		slow(m, time.Second, nil)
		underWay := begin(t.Context(), c, p, broker.Request{Image: "s.io/a"})
		c.Close(t.Context())
		if o := underWay()[0]; o.err != nil || o.took != time.Second {
			t.Errorf("a request that was under way: %v after %s", o.err, o.took)
		}
		if _, ok := kept.answer.answer(); ok {
			t.Error("an answer was not wiped")
		}
		if s := c.Stats(); s.Entries != 0 || s.Bytes != 0 {
			t.Errorf("left: %+v", s)
		}
		m.set(nil)
		for range 2 {
			ask1(t, c, p, broker.Request{Image: "r.io/a"})
		}
		if len(c.Held()) != 0 || m.count() != 4 {
			t.Errorf("a closed cache keeps answers; calls %q", m.made())
		}
	})
}

func TestCloseDoesNotWaitForWhatHangs(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		slow(m, time.Hour, nil)
		underWay := begin(t.Context(), c, node("p"), broker.Request{Image: "r.io/a"})
		began := time.Now()
		c.Close(within(t, 2*time.Second))
		if took := time.Since(began); took != time.Second { // the other half is for revocations
			t.Errorf("took %s", took)
		}
		if o := underWay()[0]; o.err == nil {
			t.Error("no error")
		}
	})
}

func TestWhatPeopleGetToSeeHoldsNoSecret(t *testing.T) {
	var logged strings.Builder
	var events []Event
	o := Options{Log: slog.New(slog.NewTextHandler(&logged, nil)), OnCall: func(e Event) { events = append(events, e) }}
	inBubble(t, o, func(t *testing.T, c *Cache, m *model) {
		p := podded("p", config.CacheTypeServiceAccount)
		tk := token("team", "builder", "uid", time.Now().Add(10*time.Hour))
		r := broker.Request{Image: "r.io/a", Token: tk}
		m.set(func(context.Context, *config.Provider, broker.Request) (broker.Answer, error) {
			return broker.Answer{RegistryWide: true, Lease: "lease-x", Credentials: []broker.Credential{{Key: "r.io", Username: "user-x", Password: "hunter2", Expires: time.Now().Add(time.Hour)}}}, nil
		})
		ask1(t, c, p, r)
		ask1(t, c, p, r)
		pass(38 * time.Minute)
		failing(m, broker.Unavailable)
		ask1(t, c, p, r)
		pass(40 * time.Minute)
		held := c.Held()
		if len(held) != 1 || held[0].Identity != "service account team/builder" || held[0].Name != "r.io" || held[0].Scope != ScopeRegistry || !slices.Equal(held[0].Keys, []string{"r.io"}) {
			t.Errorf("held: %+v", held)
		}
		c.Forget(everything)
		synctest.Wait()
		for _, hidden := range []string{"hunter2", "user-x", "lease-x", string(tk)} {
			if strings.Contains(logged.String(), hidden) {
				t.Errorf("the log holds %s:\n%s", hidden, &logged)
			}
		}
		for _, said := range []string{`msg="asked again ahead of need" provider=p scope=registry name=r.io identity="service account team/builder" renewed=true`, `msg="answer not renewed"`, `msg="credentials revoked"`} {
			if !strings.Contains(logged.String(), said) {
				t.Errorf("the log lacks %s:\n%s", said, &logged)
			}
		}
		if len(events) < 4 || events[0].Background || !events[1].Background || events[len(events)-1].Err == nil {
			t.Errorf("events: %+v", events)
		}
	})
}

func TestStats(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		p, r := node("p"), broker.Request{Image: "r.io/a"}
		slow(m, time.Second, nil)
		atOnce(t.Context(), c, p, r, r, broker.Request{Image: "r.io/b"})
		ask1(t, c, p, r)
		failing(m, broker.Refused)
		mustFail(t, c, p, broker.Request{Image: "s.io/a"}, broker.Refused)
		mustFail(t, c, p, broker.Request{Image: "s.io/a"}, broker.Refused)
		m.set(nil)
		pass(40 * time.Minute)
		got := c.Stats().Providers[0]
		want := ProviderStats{Provider: "p", Hits: 1, Misses: 2, Shared: 2, Remembered: 1, Calls: 3, Refused: 1, Renewals: 1, LastFailure: "no", FailedAt: got.FailedAt}
		if got != want || got.FailedAt.IsZero() {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	})
}
