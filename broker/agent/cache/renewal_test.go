package cache

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
)

func TestANodesAnswerIsRenewedForADay(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		p, r := node("p"), broker.Request{Image: "r.io/a"}
		ask1(t, c, p, r)
		pass(23 * time.Hour)
		before := m.count()
		got := ask1(t, c, p, r)
		if m.count() != before || !got.Credentials[0].Expires.After(time.Now()) {
			t.Error("it was not there after 23 hours")
		}
		if calls := m.made(); calls[1] != "renew r.io/a lease-1\xff" || calls[2] != "renew r.io/a lease-2\xff" {
			t.Errorf("calls: %q", calls)
		}
		pass(26 * time.Hour) // a day, and what is left of one life
		before = m.count()
		pass(24 * time.Hour)
		if m.count() != before {
			t.Error("it is still renewed, though nobody has asked for a day")
		}
		if held := c.Held(); len(held) != 0 {
			t.Errorf("still kept: %+v", held)
		}
	})
}

func TestALongAnswerIsRenewedForTwoLives(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		m.set(func(_ context.Context, p *config.Provider, r broker.Request) (broker.Answer, error) {
			return m.good(p, r, true, 10*24*time.Hour), nil
		})
		ask1(t, c, node("p"), broker.Request{Image: "r.io/a"})
		pass(19 * 24 * time.Hour)
		if n := m.count(); n < 3 {
			t.Errorf("%d calls", n)
		}
		pass(20 * 24 * time.Hour)
		if held := c.Held(); len(held) != 0 {
			t.Errorf("still kept: %+v", held)
		}
	})
}

func TestRenewalsAreSpread(t *testing.T) {
	for random, want := range map[float64]time.Duration{0: 0.5 * 55 * 60e9, 0.9999999: 0.85 * 55 * 60e9} {
		inBubble(t, Options{Random: func() float64 { return random }}, func(t *testing.T, c *Cache, _ *model) {
			ask1(t, c, node("p"), broker.Request{Image: "r.io/a"})
			if got := time.Until(c.Held()[0].Next).Round(time.Second); got != want.Round(time.Second) {
				t.Errorf("next renewal in %s, want %s", got, want)
			}
		})
	}
}

func TestAPodsAnswerIsRenewedOnlyWhileThatIsWorthIt(t *testing.T) {
	tests := []struct {
		name      string
		cacheType config.CacheType
		tokens    time.Duration // life
		again     bool          // asked for a second time
		renewals  int
	}{
		{"asked for once, it is not", config.CacheTypeToken, 10 * time.Hour, false, 0},
		{"asked for again, it is: once", config.CacheTypeToken, 10 * time.Hour, true, 1},
		{"the token ends before the answer does", config.CacheTypeToken, 50 * time.Minute, true, 0},
		{"the token ends shortly after the answer does", config.CacheTypeToken, 55*time.Minute + 30*time.Second, true, 0},
		{"an account's too", config.CacheTypeServiceAccount, 10 * time.Hour, true, 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
				p := podded("p", test.cacheType)
				r := broker.Request{Image: "r.io/a", Token: token("n", "a", "u", time.Now().Add(test.tokens)), Annotations: map[string]string{"a": "1"}}
				var renewedFor string
				m.set(func(_ context.Context, p *config.Provider, got broker.Request) (broker.Answer, error) {
					renewedFor = madeFor(p, got, true)
					return m.good(p, got, true, time.Hour), nil
				})
				ask1(t, c, p, r)
				if test.again {
					pass(time.Minute)
					ask1(t, c, p, r)
				}
				pass(5 * time.Hour)
				if got := m.count() - 1; got != test.renewals {
					t.Errorf("%d renewals, want %d", got, test.renewals)
				}
				if renewedFor != madeFor(p, r, true) {
					t.Errorf("renewed for %s", renewedFor)
				}
				if s := c.Stats(); s.Entries != 1 { // the registry's scope
					t.Errorf("%d entries are left: %+v", s.Entries, c.Held())
				}
			})
		})
	}
}

func TestAnAccountsLongerTokenMakesARenewalWorthIt(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		p := podded("p", config.CacheTypeServiceAccount)
		began := time.Now()
		short, long := token("n", "a", "u", began.Add(50*time.Minute)), token("n", "a", "u", began.Add(10*time.Hour))
		tokens := make(map[string]int)
		m.set(func(_ context.Context, p *config.Provider, r broker.Request) (broker.Answer, error) {
			tokens[string(r.Token)]++
			return m.good(p, r, true, time.Hour), nil
		})
		ask1(t, c, p, broker.Request{Image: "r.io/a", Token: short})
		pass(10 * time.Minute)
		ask1(t, c, p, broker.Request{Image: "r.io/a", Token: long})
		pass(38 * time.Minute)
		if tokens[string(short)] != 1 || tokens[string(long)] != 1 {
			t.Errorf("asked %d times with the short one, %d with the long one", tokens[string(short)], tokens[string(long)])
		}
		if good := c.Held()[0].Good; good.Before(began.Add(80 * time.Minute)) {
			t.Errorf("good until %s after the beginning", good.Sub(began))
		}
	})
}

func TestAnAnswerNeverOutlivesTheTokenItWasMadeWith(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		p := podded("p", config.CacheTypeServiceAccount)
		began := time.Now()
		ask1(t, c, p, broker.Request{Image: "r.io/a", Token: token("n", "a", "u", began.Add(10*time.Minute))})
		failing(m, broker.Unavailable)
		pass(10 * time.Minute)
		mustFail(t, c, p, broker.Request{Image: "r.io/a", Token: token("n", "a", "u", began.Add(time.Hour))}, broker.Unavailable)
	})
}

func TestACredentialServesOnWhileItsSourceIsDown(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		p, r := node("p"), broker.Request{Image: "r.io/a"}
		first := ask1(t, c, p, r)
		failing(m, broker.Unavailable)
		pass(54 * time.Minute)
		if got := ask1(t, c, p, r); got.CacheDuration != nil {
			t.Error("a fresh answer says how long it may be kept, though its expiry does")
		}
		pass(2 * time.Minute) // past its time: 55 min
		before := m.count()
		got := atOnce(t.Context(), c, p, r, broker.Request{Image: "r.io/b"})
		if m.count() != before {
			t.Error("a source that is known to be down was asked for each request")
		}
		for _, o := range got {
			if o.err != nil || o.took != 0 || o.answer.Credentials[0].Username != first.Credentials[0].Username || o.answer.CacheDuration == nil || *o.answer.CacheDuration != 0 {
				t.Errorf("got %+v, %v after %s", o.answer, o.err, o.took)
			}
		}
		if s := c.Stats().Providers[0]; s.Stale != 2 || s.RenewalFailures == 0 {
			t.Errorf("stats: %+v", s)
		}
		pass(4 * time.Minute) // past its hard end: 59 min 30 s
		mustFail(t, c, p, r, broker.Unavailable)
		m.set(nil)
		pass(time.Minute)
		ask1(t, c, p, r)
	})
}

func TestAPodsCredentialServesOnToo(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		p := podded("p", config.CacheTypeServiceAccount)
		r := broker.Request{Image: "r.io/a", Token: token("n", "a", "u", time.Now().Add(time.Hour))}
		minutes := 5 * time.Minute
		m.set(func(_ context.Context, p *config.Provider, r broker.Request) (broker.Answer, error) {
			answer := m.good(p, r, true, 12*time.Hour)
			answer.CacheDuration = &minutes
			return answer, nil
		})
		ask1(t, c, p, r)
		failing(m, broker.Unavailable)
		pass(30 * time.Minute)
		ask1(t, c, p, r)
		pass(30 * time.Minute) // the token has ended
		if held := c.Held(); len(held) != 0 && !held[0].Obtained.IsZero() {
			t.Errorf("still kept: %+v", held)
		}
	})
}

func TestRenewalIsTriedAgainAfterAnOutage(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		p, r := node("p"), broker.Request{Image: "r.io/a"}
		ask1(t, c, p, r)
		failing(m, broker.Unavailable)
		pass(45 * time.Minute) // renewal at 37 min
		if held := c.Held()[0]; held.Failures < 8 || held.LastFailure != "no" || time.Until(held.Next) > time.Minute {
			t.Errorf("held: %+v", held)
		}
		m.set(nil)
		pass(time.Minute)
		if held := c.Held()[0]; held.Failures != 0 || time.Until(held.Fresh) < 50*time.Minute {
			t.Errorf("held: %+v", held)
		}
	})
}

func TestARefusalThatIsMendedInTimeCostsNothing(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		p, r := node("p"), broker.Request{Image: "r.io/a"}
		ask1(t, c, p, r)
		failing(m, broker.Refused)
		pass(40 * time.Minute) // renewal at 37 min
		if held := c.Held()[0]; held.Failures == 0 || held.Next.IsZero() {
			t.Fatalf("held: %+v", held)
		}
		m.set(nil)
		pass(10 * time.Minute)
		held := c.Held()[0]
		if held.Failures != 0 || time.Until(held.Fresh) < 40*time.Minute || !held.Good.After(held.Fresh) {
			t.Errorf("held: %+v", held)
		}
	})
}

func TestAnAnswerOfMinutesIsNotRenewedForADay(t *testing.T) {
	for life, most := range map[time.Duration]int{10 * time.Second: 1, 5 * time.Minute: 60} {
		inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
			m.set(func(_ context.Context, p *config.Provider, r broker.Request) (broker.Answer, error) {
				answer := m.good(p, r, true, 24*time.Hour)
				answer.CacheDuration = &life
				return answer, nil
			})
			ask1(t, c, node("p"), broker.Request{Image: "r.io/a"})
			pass(24 * time.Hour)
			if n := m.count(); n > most || life >= time.Minute && n < 20 {
				t.Errorf("%s: %d calls", life, n)
			}
		})
	}
}

func TestAnAnswerWhoseRenewalIsRefusedServesToItsEndAndNoLonger(t *testing.T) {
	for _, kind := range []broker.Kind{broker.Refused, broker.Misconfigured} {
		for _, later := range []broker.Kind{kind, broker.Unavailable} { // an outage does not make it good again
			t.Run(fmt.Sprintf("%s, then %s", kind, later), func(t *testing.T) {
				inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
					p, r := node("p"), broker.Request{Image: "r.io/a"}
					ask1(t, c, p, r)
					failing(m, kind)
					pass(54 * time.Minute)
					ask1(t, c, p, r)
					if n := m.count(); n < 3 || n > 10 { // it is tried again, with growing pauses
						t.Errorf("calls: %q", m.made())
					}
					failing(m, later)
					pass(2 * time.Minute)
					mustFail(t, c, p, r, later)
				})
			})
		}
	}
}

func TestAskedPastItsTimeTheSourceDecides(t *testing.T) {
	tests := []struct {
		name    string
		source  func(m *model)
		serves  bool // the old answer
		failure broker.Kind
		took    time.Duration
	}{
		{"it answers", func(m *model) { m.set(nil) }, false, -1, 0},
		{"it is not available", func(m *model) { failing(m, broker.Unavailable) }, true, -1, 0},
		{"it hangs", func(m *model) { slow(m, time.Hour, nil) }, true, -1, 5 * time.Second},
		{"it refuses", func(m *model) { failing(m, broker.Refused) }, false, broker.Refused, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
				// Asked for a second time, a pod's answer is still wanted at its end, but cannot be renewed so late.
				p := podded("p", config.CacheTypeToken)
				r := broker.Request{Image: "r.io/a", Token: token("n", "a", "u", time.Now().Add(55*time.Minute+50*time.Second))}
				ask1(t, c, p, r)
				first := ask1(t, c, p, r)
				pass(55*time.Minute + time.Second)
				if m.count() != 1 {
					t.Fatalf("calls: %q", m.made())
				}
				test.source(m)
				got := atOnce(within(t, 10*time.Second), c, p, r)[0]
				if got.took != test.took {
					t.Errorf("took %s, want %s", got.took, test.took)
				}
				if test.failure >= 0 {
					if broker.KindOf(got.err) != test.failure || got.err == nil {
						t.Errorf("got %v", got.err)
					}
					return
				}
				if got.err != nil {
					t.Fatal(got.err)
				}
				if old := got.answer.Credentials[0].Username == first.Credentials[0].Username; old != test.serves {
					t.Errorf("the old answer: %v", old)
				}
			})
		})
	}
}

func TestAnAnswerThatIsNoLongerTheRegistrysServesItsImageAlone(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		p := node("p")
		ask1(t, c, p, broker.Request{Image: "r.io/a"})
		m.set(func(_ context.Context, p *config.Provider, r broker.Request) (broker.Answer, error) {
			return m.good(p, r, false, time.Hour), nil
		})
		pass(45 * time.Minute)
		for _, r := range images(2) {
			if got := ask1(t, c, p, r); string(got.Credentials[0].Password) != madeFor(p, r, false) {
				t.Errorf("%s was given another's", r.Image)
			}
		}
		for _, h := range c.Held() {
			if h.Scope != ScopeImage {
				t.Errorf("held: %+v", h)
			}
		}
	})
}

func TestRenewalsAtOnceAreBounded(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		p := node("p")
		m.set(func(_ context.Context, p *config.Provider, r broker.Request) (broker.Answer, error) {
			return m.good(p, r, false, time.Hour), nil
		})
		for _, r := range images(100) {
			ask1(t, c, p, r)
		}
		running, most := 0, 0
		m.set(func(ctx context.Context, p *config.Provider, r broker.Request) (broker.Answer, error) {
			m.mu.Lock()
			running++
			most = max(most, running)
			m.mu.Unlock()
			_ = wait(ctx, time.Second)
			m.mu.Lock()
			running--
			m.mu.Unlock()
			return m.good(p, r, false, time.Hour), nil
		})
		pass(45 * time.Minute)
		if most != maxBackground || m.count() != 200 {
			t.Errorf("%d at once, %d calls", most, m.count())
		}
		var fresh []string
		for _, h := range c.Held() {
			if h.Obtained.Before(time.Now().Add(-10 * time.Minute)) {
				fresh = append(fresh, h.Image)
			}
		}
		if len(fresh) > 0 {
			t.Errorf("not renewed: %q", fresh)
		}
	})
}

func TestAClockThatJumpsIsNoticed(t *testing.T) {
	var ahead time.Duration
	inBubble(t, Options{Now: func() time.Time { return time.Now().Add(ahead) }}, func(t *testing.T, c *Cache, m *model) {
		p, r := node("p"), broker.Request{Image: "r.io/a"}
		ask1(t, c, p, r)
		ahead = 2 * time.Hour
		ask1(t, c, p, r)
		if calls := m.made(); !slices.Equal(calls, []string{"call r.io/a", "call r.io/a"}) {
			t.Errorf("calls: %q", calls)
		}
		synctest.Wait()
		if held := c.Held(); len(held) != 0 { // the model's clock has not jumped: what it gives has expired
			t.Error(fmt.Sprint(held))
		}
	})
}
