package cache

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/proto/secret"
)

// returned are the leases that a model was asked to revoke, in order.
func (m *model) returned() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []string
	for _, lease := range m.revoked {
		all = append(all, strings.TrimSuffix(lease, "\xff"))
	}
	slices.Sort(all)
	return all
}

// lends lets a model's answers end by themselves after so long (0: nobody knows when), and be kept for so long.
func lends(m *model, registryWide bool, lives, keep time.Duration) {
	m.set(func(_ context.Context, p *config.Provider, r broker.Request) (broker.Answer, error) {
		answer := m.good(p, r, registryWide, lives)
		answer.CacheDuration = &keep
		return answer, nil
	})
}

// sharing lets a cache's model answer with one lease always, and be kept for so long.
func sharing(c *Cache, keep time.Duration) {
	shares(c.source.(*model), keep)
}

func shares(m *model, keep time.Duration) {
	m.set(func(_ context.Context, p *config.Provider, r broker.Request) (broker.Answer, error) {
		answer := m.good(p, r, false, 0)
		answer.CacheDuration, answer.Lease = &keep, "shared"
		return answer, nil
	})
}

func TestWhatIsLentIsRevokedWhenNobodyCanBeUsingItAnyMore(t *testing.T) {
	image := broker.Request{Image: "r.io/a"}
	ofNode := func(t *testing.T, c *Cache) { ask1(t, c, node("p"), image) }
	remove := func(_ *testing.T, c *Cache) { c.Retain(nil, new(time.Minute)) }
	tests := []struct {
		name        string
		max         *time.Duration
		lives, keep time.Duration
		entries     int
		give, end   func(t *testing.T, c *Cache)
		// after: how long after the end it is revoked; 0: never. An hour is within reach.
		after time.Duration
		want  []string
	}{
		{name: "its provider is removed: the kubelet keeps it for a minute", max: new(time.Minute), keep: time.Hour, give: ofNode, end: remove, after: time.Minute + pullMargin, want: []string{"lease-1"}},
		{
			name: "the minute counts from the last answer", max: new(time.Minute), keep: time.Hour, end: remove, after: 20*time.Second + pullMargin, want: []string{"lease-1"},
			give: func(t *testing.T, c *Cache) {
				ofNode(t, c)
				pass(10 * time.Minute)
				ofNode(t, c)
				pass(40 * time.Second)
			},
		},
		{name: "nothing bounds what the kubelet keeps", keep: 20 * time.Minute, give: ofNode, end: remove, after: 20*time.Minute + pullMargin, want: []string{"lease-1"}},
		{
			name: "what bounded it before bounds what was answered then", max: new(10 * time.Minute), keep: time.Hour, give: ofNode, after: 10*time.Minute + pullMargin, want: []string{"lease-1"},
			end: func(_ *testing.T, c *Cache) {
				c.Retain([]*config.Provider{node("p")}, new(time.Minute))
				c.Retain(nil, new(time.Minute))
			},
		},
		{name: "it ends by itself before that", max: new(time.Minute), lives: 6 * time.Minute, keep: time.Hour, give: ofNode, end: remove},
		{name: "it ends by itself soon after that", max: new(time.Minute), lives: 6*time.Minute + 1, keep: time.Hour, give: ofNode, end: remove, after: time.Minute + pullMargin, want: []string{"lease-1"}},
		{name: "it is not kept", max: new(time.Minute), keep: 0, give: ofNode, end: func(*testing.T, *Cache) {}, after: pullMargin, want: []string{"lease-1"}},
		{
			name: "it is given to one request alone", max: new(time.Minute), keep: time.Hour, after: time.Minute + pullMargin, want: []string{"lease-1"}, end: func(*testing.T, *Cache) {},
			give: func(t *testing.T, c *Cache) {
				ask1(t, c, podded("p", config.CacheTypeToken), broker.Request{Image: "r.io/a", Token: "no token"})
			},
		},
		{
			name: "room is needed", max: new(time.Minute), keep: time.Hour, entries: 4, after: time.Minute + pullMargin, want: []string{"lease-1"},
			give: ofNode, end: func(t *testing.T, c *Cache) {
				ask1(t, c, node("q"), image)
				ask1(t, c, node("s"), image) // each is an answer, and a scope
			},
		},
		{
			name: "its time is over, and nobody knows when it ends", max: new(time.Minute), keep: 50 * time.Second, after: pullMargin, want: []string{"lease-1"}, end: func(*testing.T, *Cache) {},
			give: func(t *testing.T, c *Cache) {
				ofNode(t, c)
				pass(50 * time.Second)
			},
		},
		{
			name: "its call was under way when the provider was removed", max: new(time.Minute), keep: time.Hour, after: time.Minute + pullMargin, want: []string{"lease-1"}, end: func(*testing.T, *Cache) {},
			give: func(t *testing.T, c *Cache) {
				m := c.source.(*model)
				slow(m, time.Second, func(p *config.Provider, r broker.Request) (broker.Answer, error) {
					answer := m.good(p, r, false, 0)
					answer.CacheDuration = new(time.Hour)
					return answer, nil
				})
				wait := begin(t.Context(), c, node("p"), image)
				remove(t, c)
				wait()
			},
		},
		{
			name: "an answer that is not kept came with it later", max: new(time.Minute), end: remove, after: time.Minute + pullMargin, want: []string{"shared"},
			give: func(t *testing.T, c *Cache) {
				p := podded("p", config.CacheTypeToken)
				sharing(c, time.Hour)
				ask1(t, c, p, broker.Request{Image: "r.io/a", Token: token("n", "a", "u", time.Now().Add(time.Hour))})
				pass(10 * time.Minute)
				ask1(t, c, p, broker.Request{Image: "r.io/a", Token: "no token"})
			},
		},
		{
			name: "an answer that is not kept came with it before", end: remove, after: 30*time.Minute + pullMargin, want: []string{"shared"},
			give: func(t *testing.T, c *Cache) {
				p := podded("p", config.CacheTypeToken)
				sharing(c, 30*time.Minute)
				ask1(t, c, p, broker.Request{Image: "r.io/a", Token: "no token"})
				sharing(c, 10*time.Minute)
				ask1(t, c, p, broker.Request{Image: "r.io/a", Token: token("n", "a", "u", time.Now().Add(time.Hour))})
			},
		},
		{
			name: "another answer came with it too", max: new(time.Minute), keep: time.Hour,
			give: func(t *testing.T, c *Cache) {
				sharing(c, 50*time.Hour)
				ofNode(t, c)
				ask1(t, c, node("p"), broker.Request{Image: "r.io/b"})
			},
			end: func(_ *testing.T, c *Cache) {
				c.mu.Lock()
				defer c.mu.Unlock()
				c.store.drop(c.store.items[itemKey{answerItem, c.key.question(node("p"), image, "r.io", time.Now()).one}])
			},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, Options{MaxCacheDuration: test.max, MaxEntries: test.entries}, func(t *testing.T, c *Cache, m *model) {
				lends(m, false, test.lives, test.keep)
				test.give(t, c)
				test.end(t, c)
				if test.after > 0 {
					pass(test.after - 1)
					if got := m.returned(); got != nil {
						t.Errorf("revoked too early: %q", got)
					}
					pass(1)
				} else {
					pass(time.Hour)
				}
				if diff := cmp.Diff(test.want, m.returned()); diff != "" {
					t.Errorf("revoked (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// revoking is a Source whose revocations take their time, or fail; nil: they succeed at once.
type revoking struct {
	*model
	how func(ctx context.Context, p *config.Provider) error
}

func (r *revoking) Revoke(ctx context.Context, p *config.Provider, lease secret.Secret) error {
	if r.how != nil {
		if err := r.how(ctx, p); err != nil {
			return err
		}
	}
	return r.model.Revoke(ctx, p, lease)
}

// inEndingBubble is inBubble for a cache that the test closes, and with the log that it writes meanwhile.
func inEndingBubble(t *testing.T, how func(context.Context, *config.Provider) error, test func(t *testing.T, c *Cache, m *model, log *bytes.Buffer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		m := &model{}
		test(t, New(Options{Source: &revoking{m, how}, Random: func() float64 { return 0.5 }, MaxCacheDuration: new(time.Minute), Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{
			ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
				if a.Key == slog.TimeKey {
					return slog.Attr{}
				}
				return a
			},
		}))}), m, &log)
	})
}

func TestTheEndRevokesAllThatIsLent(t *testing.T) {
	inEndingBubble(t, nil, func(t *testing.T, c *Cache, m *model, log *bytes.Buffer) {
		lends(m, false, 0, 10*time.Hour)
		ask1(t, c, node("held"), broker.Request{Image: "r.io/a"})
		ask1(t, c, node("removed"), broker.Request{Image: "r.io/a"})
		lends(m, false, time.Minute, 0)
		ask1(t, c, node("held"), broker.Request{Image: "r.io/soon over"}) // and not kept
		lends(m, false, time.Minute, 50*time.Second)
		ask1(t, c, node("held"), broker.Request{Image: "r.io/soon over, and kept"})
		c.Retain([]*config.Provider{node("held")}, new(time.Minute))
		slow(m, time.Second, nil)
		underWay := begin(t.Context(), c, node("held"), broker.Request{Image: "s.io/a"})
		c.Close(within(t, time.Minute))
		underWay()
		if diff := cmp.Diff([]string{"lease-1", "lease-2", "lease-4", "lease-5"}, m.returned()); diff != "" {
			t.Errorf("revoked (-want +got):\n%s", diff)
		}
		const want = "level=INFO msg=\"credentials revoked\" provider=held count=3\nlevel=INFO msg=\"credentials revoked\" provider=removed count=1\n"
		if diff := cmp.Diff(want, log.String()); diff != "" {
			t.Errorf("log (-want +got):\n%s", diff)
		}
	})
}

func TestTheEndTakesNoLongerThanItMay(t *testing.T) {
	hangs := func(ctx context.Context, _ *config.Provider) error { return wait(ctx, 24*time.Hour) }
	deaf := func(ctx context.Context, _ *config.Provider) error {
		return wait(context.WithoutCancel(ctx), 40*time.Second)
	}
	tests := []struct {
		name    string
		has     time.Duration // 0: no end
		how     func(context.Context, *config.Provider) error
		leases  int
		revoked int
		took    time.Duration
		log     string // of provider p
	}{
		{"nothing to revoke", time.Minute, hangs, 0, 0, 0, ""},
		{"its backend hangs", time.Minute, hangs, 20, 0, endRevoking, `credentials not revoked before the end" provider=p count=20 revoked=0 reason="context deadline exceeded"`},
		{"its backend hangs, and nobody waits for ever", 0, hangs, 20, 0, endRevoking, `count=20 revoked=0`},
		{"its backend hangs, and there is little time: half of it is for the backends' own end", 4 * time.Second, hangs, 20, 0, 2 * time.Second, `count=20 revoked=0`},
		{"its backend hears nothing", time.Minute, deaf, 20, 0, endRevoking + closeGrace, `count=20 revoked=0 reason="the time was over"`},
		{"its backend is slow", time.Minute, func(ctx context.Context, _ *config.Provider) error { return wait(ctx, 1100*time.Millisecond) }, 200, 144, endRevoking, `count=56 revoked=144 reason="context deadline exceeded"`},
		{"its backend takes 50 ms for each", time.Minute, func(ctx context.Context, _ *config.Provider) error { return wait(ctx, 50*time.Millisecond) }, 1600, 1600, 5 * time.Second, `credentials revoked" provider=p count=1600`},
		{"its backend refuses", time.Minute, func(context.Context, *config.Provider) error { return errors.New("permission denied") }, 20, 0, 0, `count=20 revoked=0 reason="permission denied"`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			how := func(ctx context.Context, p *config.Provider) error {
				if p.Name == "another" {
					return nil
				}
				return test.how(ctx, p)
			}
			inEndingBubble(t, how, func(t *testing.T, c *Cache, m *model, log *bytes.Buffer) {
				lends(m, false, 0, 10*time.Hour)
				for _, r := range images(test.leases) {
					ask1(t, c, node("p"), r)
				}
				ask1(t, c, node("another"), broker.Request{Image: "r.io/a"})
				ctx := t.Context()
				if test.has > 0 {
					ctx = within(t, test.has)
				}
				began := time.Now()
				c.Close(ctx)
				if took := time.Since(began); took != test.took {
					t.Errorf("it took %s, want %s", took, test.took)
				}
				if got := len(m.returned()); got != test.revoked+1 {
					t.Errorf("%d were revoked, want %d, and another provider's", got, test.revoked)
				}
				if got := log.String(); !strings.Contains(got, test.log) || !strings.Contains(got, `credentials revoked" provider=another count=1`) || strings.Contains(got, "lease-") || strings.Count(got, "\n") > 2 {
					t.Errorf("log:\n%s", got)
				}
				pass(time.Minute) // until what hears nothing has ended too
			})
		})
	}
}

func TestARenewedLeaseIsTheBackendsAffair(t *testing.T) {
	inEndingBubble(t, nil, func(t *testing.T, c *Cache, m *model, _ *bytes.Buffer) {
		lends(m, true, 0, time.Hour)
		ask1(t, c, node("p"), broker.Request{Image: "r.io/a"})
		pass(45 * time.Minute) // it is renewed at two thirds of its time
		if diff := cmp.Diff([]string{"call r.io/a", "renew r.io/a lease-1\xff"}, m.made()); diff != "" {
			t.Fatal(diff)
		}
		pass(30 * time.Minute)
		c.Close(t.Context())
		if diff := cmp.Diff([]string{"lease-2"}, m.returned()); diff != "" {
			t.Errorf("revoked (-want +got):\n%s", diff)
		}
	})
}

func TestALeaseThatIsRenewedWhileItIsYetToBeRevokedIsNotRevoked(t *testing.T) {
	inEndingBubble(t, nil, func(t *testing.T, c *Cache, m *model, _ *bytes.Buffer) {
		lends(m, true, 0, time.Hour)
		ask1(t, c, node("p"), broker.Request{Image: "r.io/a"})
		slow(m, 10*time.Second-1, nil)
		pass(40*time.Minute + 30*time.Second) // the renewal is under way
		c.Retain(nil, new(time.Minute))
		pass(time.Hour)
		if diff := cmp.Diff([]string{"lease-2"}, m.returned()); diff != "" {
			t.Errorf("revoked (-want +got):\n%s\ncalls %q", diff, m.made())
		}
		c.Close(t.Context())
	})
}

func TestWhatIsForgottenIsRevokedUnlessAnotherAnswerCameWithItToo(t *testing.T) {
	inEndingBubble(t, nil, func(t *testing.T, c *Cache, m *model, _ *bytes.Buffer) {
		shares(m, time.Hour)
		for _, image := range []string{"r.io/a", "r.io/b"} {
			ask1(t, c, node("p"), broker.Request{Image: image})
		}
		for _, step := range []struct {
			image string
			want  []string
		}{{"r.io/a", nil}, {"r.io/b", []string{"shared"}}} {
			c.Forget(func(h Held) bool { return h.Name == step.image })
			pass(time.Second)
			if diff := cmp.Diff(step.want, m.returned()); diff != "" {
				t.Errorf("revoked with %s (-want +got):\n%s", step.image, diff)
			}
		}
		c.Close(t.Context())
		if diff := cmp.Diff([]string{"shared"}, m.returned()); diff != "" {
			t.Errorf("revoked at the end (-want +got):\n%s", diff)
		}
	})
}

func TestWhatIsHandedOnIsTheSuccessors(t *testing.T) {
	inEndingBubble(t, nil, func(t *testing.T, c *Cache, m *model, _ *bytes.Buffer) {
		lends(m, false, 0, 10*time.Hour)
		removed := node("removed")
		removed.Config = []byte(`{ "written": "<so>" }`)
		for _, p := range []*config.Provider{node("p"), removed} {
			ask1(t, c, p, broker.Request{Image: "r.io/a"})
		}
		c.Retain([]*config.Provider{node("p")}, new(time.Minute))
		pass(time.Minute)
		var pipe bytes.Buffer
		if err := c.Export(&pipe); err != nil {
			t.Fatal(err)
		}
		c.HandedOn()
		ask1(t, c, node("p"), broker.Request{Image: "r.io/late"}) // it ends by itself: the successor does not know of it, and the pull needs it
		c.Forget(func(h Held) bool { return h.Name == "r.io/a" })
		pass(10 * time.Minute)
		c.Close(t.Context())
		if got := m.returned(); got != nil {
			t.Errorf("the predecessor revoked %q", got)
		}
		asked := make(map[string]string)
		next := New(Options{MaxCacheDuration: new(time.Minute), Source: &revoking{m, func(_ context.Context, p *config.Provider) error {
			asked[p.Name] = string(p.Config)
			return nil
		}}})
		if n, err := next.Import(&pipe, []*config.Provider{node("p")}); n != 1 || err != nil {
			t.Fatalf("%d taken over, %v", n, err)
		}
		pass(time.Second)
		if diff := cmp.Diff([]string{"lease-2"}, m.returned()); diff != "" {
			t.Errorf("due by now (-want +got):\n%s", diff)
		}
		next.Retain(nil, new(time.Minute))
		pass(5*time.Minute - 11*time.Minute + time.Minute) // counted from the last answer, which the predecessor gave
		if diff := cmp.Diff([]string{"lease-1", "lease-2"}, m.returned()); diff != "" {
			t.Errorf("revoked by the successor (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(map[string]string{"p": "{}", "removed": `{"written":"\u003cso\u003e"}`}, asked); diff != "" {
			t.Errorf("the providers asked (-want +got):\n%s", diff)
		}
		next.Close(t.Context())
	})
}

// TestWhatTheSuccessorHasNoUseForIsRevoked: its configuration is another one, and the predecessor revokes nothing any more.
func TestWhatTheSuccessorHasNoUseForIsRevoked(t *testing.T) {
	inEndingBubble(t, nil, func(t *testing.T, c *Cache, m *model, _ *bytes.Buffer) {
		lends(m, false, 0, 10*time.Hour)
		changed := node("p")
		changed.Config = []byte(`{"changed":true}`)
		ask1(t, c, node("p"), broker.Request{Image: "r.io/a"})
		var pipe bytes.Buffer
		if err := c.Export(&pipe); err != nil {
			t.Fatal(err)
		}
		c.HandedOn()
		c.Close(t.Context())
		next := New(Options{MaxCacheDuration: new(time.Minute), Source: &revoking{m, func(_ context.Context, p *config.Provider) error {
			if string(p.Config) != "{}" {
				t.Errorf("the provider asked has the settings %s", p.Config)
			}
			return nil
		}}})
		defer next.Close(t.Context())
		if n, err := next.Import(&pipe, []*config.Provider{changed}); n != 0 || err != nil {
			t.Fatalf("%d taken over, %v", n, err)
		}
		if got := m.returned(); got != nil {
			t.Errorf("revoked while the kubelet may have it: %q", got)
		}
		pass(10*time.Hour + pullMargin + time.Second)
		if diff := cmp.Diff([]string{"lease-1"}, m.returned()); diff != "" {
			t.Errorf("revoked (-want +got):\n%s", diff)
		}
	})
}

// TestALeaseEndsWithTheLastOfItsCredentials: an answer that came with it before it was renewed says that it ends sooner, and does not decide.
func TestALeaseEndsWithTheLastOfItsCredentials(t *testing.T) {
	shared := &sharedLease{}
	start := time.Unix(1_800_000_000, 0)
	for _, lasts := range []time.Duration{time.Hour, 2 * time.Hour, time.Minute} {
		shared.lasts(loan{expires: start.Add(lasts)})
	}
	if got := shared.ends(); !got.Equal(start.Add(2 * time.Hour)) {
		t.Errorf("it ends at %s", got)
	}
	shared.lasts(loan{})
	if got := shared.ends(); !got.IsZero() {
		t.Errorf("of one it is not known when it ends, and so of all: %s", got)
	}
}

func TestSettleWaitsForWhatIsLent(t *testing.T) {
	inEndingBubble(t, nil, func(t *testing.T, c *Cache, m *model, _ *bytes.Buffer) {
		began := time.Now()
		c.Settle(t.Context())
		if took := time.Since(began); took != 0 {
			t.Errorf("with nothing lent it took %s", took)
		}
		c.Retain([]*config.Provider{node("p")}, new(time.Minute))
		lends(m, false, 0, 10*time.Hour)
		ask1(t, c, node("p"), broker.Request{Image: "r.io/a"})
		began = time.Now()
		c.Settle(within(t, time.Minute))
		if took := time.Since(began); took != time.Minute || len(m.returned()) > 0 {
			t.Errorf("within a minute it took %s, and revoked %q", took, m.returned())
		}
		c.Settle(t.Context())
		if took := time.Since(began); took != time.Minute+pullMargin || len(m.returned()) != 1 {
			t.Errorf("it took %s, and revoked %q", took, m.returned())
		}
		c.Close(t.Context())
	})
}

func TestLeasesThatAreYetToBeRevokedAreBounded(t *testing.T) {
	inEndingBubble(t, nil, func(t *testing.T, c *Cache, m *model, log *bytes.Buffer) {
		c.owed.maxEntries = 10
		lends(m, false, 0, 10*time.Hour)
		for _, r := range images(15) {
			ask1(t, c, node("p"), r)
		}
		c.Retain(nil, new(time.Minute))
		c.Close(t.Context())
		if got := len(m.returned()); got != 10 {
			t.Errorf("%d revoked, want 10", got)
		}
		if n := strings.Count(log.String(), `msg="credentials not revoked" provider=p kind=unavailable reason="too many are to be revoked"`); n != 5 {
			t.Errorf("%d lines of the log tell of the rest, want 5:\n%s", n, log)
		}
		if c.owed.bytes != 0 {
			t.Errorf("%d bytes are left", c.owed.bytes)
		}
	})
}
