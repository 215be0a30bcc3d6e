package cache

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/proto/secret"
)

// outcome is what one of several requests got.
type outcome struct {
	answer broker.Answer
	err    error
	took   time.Duration
}

// atOnce makes requests at one time, each with the context given, and waits for all.
func atOnce(ctx context.Context, c *Cache, p *config.Provider, requests ...broker.Request) []outcome {
	return begin(ctx, c, p, requests...)()
}

// begin makes requests at one time, and returns what waits for all.
func begin(ctx context.Context, c *Cache, p *config.Provider, requests ...broker.Request) func() []outcome {
	outcomes := make([]outcome, len(requests))
	var all sync.WaitGroup
	for i, r := range requests {
		all.Go(func() {
			began := time.Now()
			outcomes[i].answer, outcomes[i].err = c.Call(ctx, p, r)
			outcomes[i].took = time.Since(began)
		})
		synctest.Wait() // so that they come in this order
	}
	return func() []outcome {
		all.Wait()
		return outcomes
	}
}

func images(n int) (requests []broker.Request) {
	for i := range n {
		requests = append(requests, broker.Request{Image: fmt.Sprintf("r.io/%d", i)})
	}
	return requests
}

// slow lets a source take its time, and then answer; the answer function may be nil for a good answer that is registry-wide.
func slow(m *model, takes time.Duration, answer func(provider *config.Provider, request broker.Request) (broker.Answer, error)) {
	m.set(func(ctx context.Context, provider *config.Provider, request broker.Request) (broker.Answer, error) {
		if err := wait(ctx, takes); err != nil {
			return broker.Answer{}, err
		}
		if answer == nil {
			return m.good(provider, request, true, time.Hour), nil
		}
		return answer(provider, request)
	})
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestSimultaneousRequestsShareOneCall(t *testing.T) {
	tests := []struct {
		name     string
		requests []broker.Request
		wide     bool
		keep     time.Duration
		calls    int
	}{
		{"for one image", []broker.Request{{Image: "r.io/a"}, {Image: "r.io/a"}, {Image: "r.io/a"}}, false, time.Hour, 1},
		{"for one image, of an answer that is not kept", []broker.Request{{Image: "r.io/a"}, {Image: "r.io/a"}, {Image: "r.io/a"}}, false, 0, 1},
		{"for 50 images of a registry", images(50), true, time.Hour, 1},
		{"for 50 images of a registry, of an answer that is not kept", images(50), true, 0, 1},
		{"but not where each image has its own answer", images(50), false, time.Hour, 50},
		{"and not for two registries", []broker.Request{{Image: "r.io/a"}, {Image: "s.io/a"}}, true, time.Hour, 2},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
				p := node("p")
				slow(m, time.Second, func(p *config.Provider, r broker.Request) (broker.Answer, error) {
					return m.good(p, r, test.wide, test.keep), nil
				})
				for i, o := range atOnce(within(t, 10*time.Second), c, p, test.requests...) {
					if o.err != nil || len(o.answer.Credentials) != 1 || string(o.answer.Credentials[0].Password) != madeFor(p, test.requests[i], test.wide) {
						t.Errorf("%s: %v %v", test.requests[i].Image, o.answer, o.err)
					}
					if o.took > 2*time.Second { // one after the other where they wait for the first, else at once
						t.Errorf("%s took %s", test.requests[i].Image, o.took)
					}
				}
				if m.count() != test.calls {
					t.Errorf("%d calls, want %d", m.count(), test.calls)
				}
			})
		})
	}
}

func TestImagesDoNotWaitForEachOtherOnceTheScopeIsKnown(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		p := node("p")
		slow(m, time.Second, func(p *config.Provider, r broker.Request) (broker.Answer, error) {
			return m.good(p, r, false, time.Hour), nil
		})
		ask1(t, c, p, broker.Request{Image: "r.io/first"})
		for _, o := range atOnce(within(t, 10*time.Second), c, p, images(10)...) {
			if o.took != time.Second {
				t.Errorf("took %s", o.took)
			}
		}
	})
}

func TestACancelledRequestFailsNoOther(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		slow(m, time.Second, nil)
		p := node("p")
		ctx, cancel := context.WithCancel(t.Context())
		first := begin(ctx, c, p, broker.Request{Image: "r.io/a"})
		others := begin(t.Context(), c, p, broker.Request{Image: "r.io/a"}, broker.Request{Image: "r.io/b"})
		cancel()
		if err := first()[0].err; !errors.Is(err, context.Canceled) {
			t.Errorf("the cancelled one got %v", err)
		}
		for _, o := range others() {
			if o.err != nil {
				t.Error(o.err)
			}
		}
		if m.count() != 1 {
			t.Errorf("calls: %q", m.made())
		}
	})
}

func TestACallThatNobodyWaitsForEnds(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		ended := make(chan error, 1)
		m.set(func(ctx context.Context, _ *config.Provider, _ broker.Request) (broker.Answer, error) {
			<-ctx.Done()
			ended <- ctx.Err()
			return broker.Answer{}, ctx.Err()
		})
		p := node("p")
		ctx, cancel := context.WithCancel(t.Context())
		both := begin(ctx, c, p, broker.Request{Image: "r.io/a"}, broker.Request{Image: "r.io/b"})
		cancel()
		both()
		synctest.Wait()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the call ended with %v", err)
		}
		if held := c.Held(); len(held) != 0 {
			t.Errorf("the cancellation is remembered: %+v", held)
		}
		m.set(nil)
		ask1(t, c, p, broker.Request{Image: "r.io/a"})
	})
}

func TestASourceThatHangsIsFoundOutThoughNobodyWaitsToTheEnd(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		slow(m, time.Hour, nil)
		p := node("p")
		_, err := c.Call(within(t, 3*time.Second), p, broker.Request{Image: "r.io/a"})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		pass(8 * time.Second)
		held := c.Held()
		if len(held) == 0 || !strings.Contains(held[0].LastFailure, "no answer within 10s") {
			t.Errorf("held: %+v", held)
		}
	})
}

func TestAnAnswerThatComesLateIsKept(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		slow(m, 5*time.Second, nil)
		p := node("p")
		if _, err := c.Call(within(t, 3*time.Second), p, broker.Request{Image: "r.io/a"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		pass(3 * time.Second)
		ask1(t, c, p, broker.Request{Image: "r.io/a"})
		if m.count() != 1 {
			t.Errorf("calls: %q", m.made())
		}
	})
}

func TestARequestIsToldWhatTheSourceSaysOfItsTimeout(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		m.set(func(ctx context.Context, _ *config.Provider, _ broker.Request) (broker.Answer, error) {
			<-ctx.Done()
			return broker.Answer{}, broker.Errorf(broker.Unavailable, "starting the backend: %w", ctx.Err())
		})
		_, err := c.Call(within(t, 10*time.Second), node("p"), broker.Request{Image: "r.io/a"})
		if err == nil || !strings.Contains(err.Error(), "starting the backend") {
			t.Errorf("got %v", err)
		}
	})
}

func TestWaitingForAnotherImageTakesNoMoreThanHalfOfTheTime(t *testing.T) {
	for _, known := range []bool{false, true} {
		t.Run(fmt.Sprintf("known to be registry-wide %v", known), func(t *testing.T) {
			inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
				p := node("p")
				if known {
					ask1(t, c, p, broker.Request{Image: "r.io/z"})
					c.Forget(func(Held) bool { return true })
				}
				m.set(func(ctx context.Context, p *config.Provider, r broker.Request) (broker.Answer, error) {
					if r.Image == "r.io/hangs" {
						<-ctx.Done()
						return broker.Answer{}, ctx.Err()
					}
					return m.good(p, r, false, time.Hour), nil
				})
				outcomes := atOnce(within(t, 8*time.Second), c, p, broker.Request{Image: "r.io/hangs"}, broker.Request{Image: "r.io/a"})
				if outcomes[0].err == nil || outcomes[1].err != nil || outcomes[1].took != 4*time.Second {
					t.Errorf("%v, and %v after %s", outcomes[0].err, outcomes[1].err, outcomes[1].took)
				}
			})
		})
	}
}

func TestHowFarAFailureIsShared(t *testing.T) {
	tests := []struct {
		name  string
		known bool // that answers are registry-wide
		kind  broker.Kind
		calls int
		most  time.Duration
	}{
		{"by the whole registry where answers are", true, broker.Unavailable, 1, time.Second},
		{"by the whole registry where answers are, also a refusal", true, broker.Refused, 1, time.Second},
		{"else each image asks for itself: at once after a refusal", false, broker.Refused, 4, 2 * time.Second},
		{"and one after the other after an outage", false, broker.Unavailable, 4, 4 * time.Second},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
				p := node("p")
				if test.known {
					ask1(t, c, p, broker.Request{Image: "r.io/z"})
					c.Forget(func(Held) bool { return true })
				}
				before := m.count()
				slow(m, time.Second, func(*config.Provider, broker.Request) (broker.Answer, error) {
					return broker.Answer{}, broker.Errorf(test.kind, "no")
				})
				requests := images(4)
				requests = append(requests, requests...) // the same images again share whatever their image gets
				for i, o := range atOnce(within(t, 10*time.Second), c, p, requests...) {
					if broker.KindOf(o.err) != test.kind || o.took > test.most {
						t.Errorf("%s got %v after %s", requests[i].Image, o.err, o.took)
					}
				}
				if got := m.count() - before; got != test.calls {
					t.Errorf("%d calls, want %d", got, test.calls)
				}
			})
		})
	}
}

func TestAnEchoedTokenIsNobodyElses(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		p := podded("p", config.CacheTypeServiceAccount)
		soon := time.Now().Add(time.Hour)
		slow(m, time.Second, func(_ *config.Provider, r broker.Request) (broker.Answer, error) {
			return broker.Answer{CacheDuration: new(time.Hour), RegistryWide: true, Credentials: []broker.Credential{{Key: "r.io", Password: r.Token}}}, nil
		})
		var requests []broker.Request
		for i := range 4 {
			requests = append(requests, broker.Request{Image: fmt.Sprintf("r.io/%d", i%2), Token: token("n", "a", "u", soon, fmt.Sprint(i))})
		}
		for range 2 { // at once, and then again
			for i, o := range atOnce(within(t, 10*time.Second), c, p, requests...) {
				if o.err != nil || o.answer.Credentials[0].Password != requests[i].Token {
					t.Errorf("request %d got another's token, or %v", i, o.err)
				}
			}
		}
		if held := c.Held(); len(held) != 0 {
			t.Errorf("kept: %+v", held)
		}
	})
}

func TestAPodsAnswerIsNeverAnothers(t *testing.T) {
	for _, cacheType := range []config.CacheType{config.CacheTypeToken, config.CacheTypeServiceAccount} {
		t.Run(string(cacheType), func(t *testing.T) {
			inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
				p := podded("p", cacheType)
				soon := time.Now().Add(time.Hour)
				slow(m, time.Second, nil)
				var requests []broker.Request
				for i := range 60 {
					r := broker.Request{Image: fmt.Sprintf("r.io/%d", i%3), Token: token("n", fmt.Sprint("a", i%4), fmt.Sprint("u", i%5), soon, fmt.Sprint(i%2))}
					if i%7 != 0 {
						r.Annotations = map[string]string{"a": fmt.Sprint(i % 2)}
					}
					requests = append(requests, r)
				}
				for range 2 {
					for i, o := range atOnce(within(t, 10*time.Second), c, p, requests...) {
						if o.err != nil || string(o.answer.Credentials[0].Password) != madeFor(p, requests[i], true) {
							t.Errorf("request %d: %v", i, o.err)
						}
					}
				}
			})
		})
	}
}

func TestATokenThatIsNotGoodIsNotAnsweredFromMemory(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		p := podded("p", config.CacheTypeServiceAccount)
		now := time.Now()
		ask1(t, c, p, broker.Request{Image: "r.io/a", Token: token("n", "a", "u", now.Add(time.Hour))})
		for _, bad := range []secret.Secret{token("n", "a", "u", now), "nonsense"} {
			before := m.count()
			for _, o := range atOnce(t.Context(), c, p, broker.Request{Image: "r.io/a", Token: bad}, broker.Request{Image: "r.io/a", Token: bad}) {
				if o.err != nil {
					t.Error(o.err)
				}
			}
			if m.count() != before+2 {
				t.Errorf("calls: %q", m.made())
			}
		}
		if held := c.Held(); len(held) != 1 {
			t.Errorf("held: %+v", held)
		}
	})
}

func TestAProviderWithoutTokenAttributesSeesNothingOfThePod(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		m.set(func(_ context.Context, p *config.Provider, r broker.Request) (broker.Answer, error) {
			if r.Token != "" || r.Annotations != nil {
				t.Error("it sees the token or annotations")
			}
			return m.good(p, r, true, time.Hour), nil
		})
		ask1(t, c, node("p"), broker.Request{Image: "r.io/a", Token: "t", Annotations: map[string]string{"a": "1"}})
	})
}
