package cache

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
)

// failing lets a source fail from now on.
func failing(m *model, kind broker.Kind) {
	m.set(func(context.Context, *config.Provider, broker.Request) (broker.Answer, error) {
		return broker.Answer{}, broker.Errorf(kind, "no")
	})
}

func mustFail(t *testing.T, c *Cache, p *config.Provider, r broker.Request, kind broker.Kind) {
	t.Helper()
	answer, err := c.Call(t.Context(), p, r)
	if err == nil || broker.KindOf(err) != kind {
		t.Fatalf("got %+v, %v; want a failure that is %s", answer.Credentials, err, kind)
	}
}

func TestALastingFailureIsRememberedShortly(t *testing.T) {
	for _, kind := range []broker.Kind{broker.Refused, broker.Misconfigured} {
		t.Run(kind.String(), func(t *testing.T) {
			inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
				p, r := node("p"), broker.Request{Image: "r.io/a"}
				failing(m, kind)
				mustFail(t, c, p, r, kind)
				pass(9 * time.Second)
				mustFail(t, c, p, r, kind)
				if m.count() != 1 {
					t.Errorf("calls: %q", m.made())
				}
				changed := node("p")
				changed.Config = []byte(`{"a":1}`)
				mustFail(t, c, changed, r, kind)
				if m.count() != 2 {
					t.Error("another configuration was not asked at once")
				}
				pass(2 * time.Second)
				if m.count() != 2 {
					t.Error("it was asked again though nobody wanted it")
				}
				m.set(nil)
				ask1(t, c, p, r)
			})
		})
	}
}

func TestARefusalOfOneImageIsNotAnothers(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		p := node("p")
		failing(m, broker.Refused)
		mustFail(t, c, p, broker.Request{Image: "r.io/a"}, broker.Refused)
		m.set(nil)
		ask1(t, c, p, broker.Request{Image: "r.io/b"})
	})
}

func TestAnOutageIsAskedAboutInTheBackground(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		p, r := node("p"), broker.Request{Image: "r.io/a"}
		failing(m, broker.Unavailable)
		mustFail(t, c, p, r, broker.Unavailable)
		began := time.Now()
		// Pauses of 3/4 of 1, 2, 4, 8 … 60 s, since the random number is always 0.5.
		pass(time.Duration(0.75 * float64((1+2+4+8)*time.Second)))
		if m.count() != 5 {
			t.Errorf("calls after %s: %d, want 5", time.Since(began), m.count())
		}
		m.set(nil)
		pass(15 * time.Second)
		before := m.count()
		ask1(t, c, p, r)
		if m.count() != before || before != 6 {
			t.Errorf("calls: %q", m.made())
		}
	})
}

func TestTheBackgroundGivesUpWhenNobodyAsks(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		failing(m, broker.Unavailable)
		mustFail(t, c, node("p"), broker.Request{Image: "r.io/a"}, broker.Unavailable)
		pass(6 * time.Minute)
		before := m.count()
		pass(time.Hour)
		if m.count() != before || before > 15 {
			t.Errorf("%d calls, then %d", before, m.count())
		}
		if s := c.Stats(); s.Entries != 0 || s.Bytes != 0 {
			t.Errorf("left: %+v", s)
		}
	})
}

func TestTheBackgroundGivesUpWithTheToken(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		failing(m, broker.Unavailable)
		r := broker.Request{Image: "r.io/a", Token: token("n", "a", "u", time.Now().Add(20*time.Second))}
		mustFail(t, c, podded("p", config.CacheTypeToken), r, broker.Unavailable)
		pass(20 * time.Second)
		before := m.count()
		pass(5 * time.Minute)
		if m.count() != before || before < 3 {
			t.Errorf("%d calls, then %d", before, m.count())
		}
	})
}

func TestARegistrysOutageIsAskedAboutOnce(t *testing.T) {
	for _, known := range []bool{false, true} {
		t.Run(fmt.Sprintf("known to be registry-wide %v", known), func(t *testing.T) {
			inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
				p := node("p")
				if known {
					ask1(t, c, p, broker.Request{Image: "r.io/z"})
					c.Forget(func(Held) bool { return true })
				}
				failing(m, broker.Unavailable)
				for range 5 { // the kubelet comes back
					for _, r := range images(20) {
						go func() { _, _ = c.Call(within(t, 100*time.Millisecond), p, r) }()
					}
					pass(time.Second)
				}
				before := m.count()
				pass(4 * time.Minute)
				// One image tries, at 3/4 of at most a minute: not each of twenty.
				if n := m.count() - before; n < 4 || n > 16 {
					t.Errorf("%d calls in four minutes", n)
				}
				m.set(nil)
				pass(time.Minute)
				before = m.count()
				for _, r := range images(20) {
					ask1(t, c, p, r)
				}
				if m.count() != before {
					t.Error("the background had not found the credential")
				}
			})
		})
	}
}

func TestFailuresThatComeTogetherCountAsOne(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		p := node("p")
		failing(m, broker.Unavailable)
		atOnce(within(t, 100*time.Millisecond), c, p, images(20)...)
		m.set(nil)
		pass(2 * time.Second)
		before := m.count()
		for _, r := range images(20) {
			ask1(t, c, p, r)
		}
		if m.count() != before {
			t.Error("a moment's failure of many images made the pause a long one")
		}
	})
}

func TestARequestWaitsForTheNextAttemptIfThatIsSoonEnough(t *testing.T) {
	tests := []struct {
		name  string
		has   time.Duration // time
		waits bool
	}{
		{"it has time enough", 10 * time.Second, true},
		{"half of its time is just enough", 1500 * time.Millisecond, true},
		{"it would be left less than half", 1400 * time.Millisecond, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
				p, r := node("p"), broker.Request{Image: "r.io/a"}
				failing(m, broker.Unavailable)
				mustFail(t, c, p, r, broker.Unavailable)
				m.set(nil)
				got := atOnce(within(t, test.has), c, p, r)[0]
				switch {
				case test.waits && (got.err != nil || got.took != 750*time.Millisecond):
					t.Errorf("%v after %s", got.err, got.took)
				case !test.waits && (got.err == nil || got.took != 0 || broker.KindOf(got.err) != broker.Unavailable):
					t.Errorf("%v after %s", got.err, got.took)
				}
			})
		})
	}
}

func TestASuccessEndsTheCounting(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		p, r := node("p"), broker.Request{Image: "r.io/a"}
		failing(m, broker.Unavailable)
		mustFail(t, c, p, r, broker.Unavailable)
		pass(20 * time.Second)
		m.set(func(_ context.Context, p *config.Provider, r broker.Request) (broker.Answer, error) {
			return m.good(p, r, true, 0), nil
		}) // not kept
		pass(20 * time.Second)
		ask1(t, c, p, r)
		failing(m, broker.Unavailable)
		mustFail(t, c, p, r, broker.Unavailable)
		if held := c.Held(); len(held) != 1 || held[0].Failures != 1 || time.Until(held[0].Next) != 750*time.Millisecond {
			t.Errorf("held: %+v", held)
		}
	})
}

func TestAnUnmarkedErrorAndALateCancellationCountAsUnavailable(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		m.set(func(context.Context, *config.Provider, broker.Request) (broker.Answer, error) {
			return broker.Answer{}, context.Canceled
		})
		mustFail(t, c, node("p"), broker.Request{Image: "r.io/a"}, broker.Unavailable)
		if held := c.Held(); len(held) == 0 || held[0].Next.IsZero() {
			t.Errorf("held: %+v", held)
		}
	})
}

// A node that starts may have its clock ahead, fail without a network, and then learn the time.
func TestAFailureOfTheFutureIsNone(t *testing.T) {
	var ahead atomic.Int64
	inBubble(t, Options{Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }}, func(t *testing.T, c *Cache, m *model) {
		p, r := node("p"), broker.Request{Image: "r.io/a"}
		for _, kind := range []broker.Kind{broker.Unavailable, broker.Refused} {
			ahead.Store(int64(time.Hour))
			failing(m, kind)
			mustFail(t, c, p, r, kind)
			ahead.Store(0)
			mustFail(t, c, p, r, kind) // which is another failure, as of now
			m.set(nil)
			pass(15 * time.Second)
			ask1(t, c, p, r)
			c.Forget(func(Held) bool { return true })
		}
	})
}
