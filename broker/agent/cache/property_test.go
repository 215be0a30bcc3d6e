package cache

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/image"
	"github.com/credential-broker/credential-broker/proto/secret"
)

// Whatever happens, in whatever order: an answer that the cache gives is the one that the source would give to this very request, it has not outlived its credentials or the token that it was made with, and a
// request is failed only by a source that has failed just now. The source says in each password for whom it was made, and in each user name when. And nothing is revoked that a pull may be using, nor anything that is
// handed on.
func TestNothingEverCrosses(t *testing.T) {
	seeds, steps := uint64(60), 120
	if testing.Short() {
		seeds = 10
	}
	var happened ProviderStats
	revoked := 0
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, seed, &happened)
				w.revoked = &revoked
				defer func() {
					w.count()
					w.ending = true
					w.cache.Close(t.Context())
				}()
				for range steps {
					w.step()
					if t.Failed() {
						return
					}
				}
			})
		})
	}
	t.Logf("in all: %+v", happened)
	if revoked == 0 || happened.Hits == 0 || happened.Stale == 0 || happened.Shared == 0 || happened.Remembered == 0 || happened.Renewals == 0 || happened.RenewalFailures == 0 || happened.Evictions == 0 {
		t.Error("something never happened, so nothing was found out about it")
	}
}

// world is a source, a cache before it, and all that may happen to them.
type world struct {
	*testing.T
	happened  *ProviderStats
	random    *rand.Rand
	cache     *Cache
	providers []*config.Provider // of the configuration now
	former    []*config.Provider // of configurations that are no more
	tokens    []secret.Secret

	mu      sync.Mutex
	phase   map[string]phase     // by provider's name
	failed  map[string]time.Time // when it last failed
	inUse   map[string]time.Time // by lease: until when the kubelet may keep what it came with
	forgot  time.Time            // when an operator last had something forgotten
	handed  bool                 // a successor is taking over
	ending  bool
	revoked *int
}

// count adds what has happened to a cache.
func (w *world) count() {
	sum := w.happened
	for _, s := range w.cache.Stats().Providers {
		sum.Hits += s.Hits
		sum.Stale += s.Stale
		sum.Misses += s.Misses
		sum.Shared += s.Shared
		sum.Remembered += s.Remembered
		sum.Calls += s.Calls
		sum.Renewals += s.Renewals
		sum.RenewalFailures += s.RenewalFailures
		sum.Evictions += s.Evictions
	}
}

type phase int

const (
	healthy phase = iota
	slowly
	unavailable
	refusing
	hanging
)

func newWorld(t *testing.T, seed uint64, happened *ProviderStats) *world {
	w := &world{T: t, happened: happened, random: rand.New(rand.NewPCG(seed, 7)), phase: make(map[string]phase), failed: make(map[string]time.Time), inUse: make(map[string]time.Time)}
	w.cache = w.newCache()
	for i := range 4 {
		w.providers = append(w.providers, w.provider(fmt.Sprint("p", i)))
	}
	return w
}

func (w *world) newCache() *Cache {
	o := Options{Source: w, Random: rand.New(rand.NewPCG(w.random.Uint64(), 1)).Float64}
	if w.random.IntN(4) == 0 {
		o.MaxEntries = 10
	}
	return New(o)
}

// provider draws a provider's configuration.
func (w *world) provider(name string) *config.Provider {
	p := node(name)
	switch w.random.IntN(3) {
	case 0:
		p = podded(name, config.CacheTypeToken)
	case 1:
		p = podded(name, config.CacheTypeServiceAccount)
	}
	p.Env = []config.EnvVar{{Name: "ROLE", Value: fmt.Sprint(w.random.IntN(3))}}
	if w.random.IntN(2) == 0 {
		p.DefaultCacheDuration = new(time.Duration(w.random.IntN(3)) * 10 * time.Minute)
	}
	return p
}

func (w *world) step() {
	switch w.random.IntN(20) {
	case 0: // a configuration changes
		i := w.random.IntN(len(w.providers))
		w.former = append(w.former, w.providers[i])
		w.providers = slices.Clone(w.providers)
		w.providers[i] = w.provider(w.providers[i].Name)
		w.cache.Retain(w.providers, nil)
	case 1: // an operator forgets
		n := w.random.IntN(3)
		w.forgot = time.Now()
		w.cache.Forget(func(h Held) bool { return (len(h.Name)+len(h.Identity))%3 == n })
		synctest.Wait() // until that is revoked
	case 2: // a successor takes over
		var pipe bytes.Buffer
		if err := w.cache.Export(&pipe); err != nil {
			w.Fatal(err)
		}
		w.count()
		w.handed = true
		w.cache.HandedOn()
		w.cache.Close(w.Context())
		w.handed = false
		w.cache = w.newCache()
		if _, err := w.cache.Import(&pipe, w.providers); err != nil {
			w.Fatal(err)
		}
	case 3, 4, 5: // a source gets better or worse
		p := w.providers[w.random.IntN(len(w.providers))]
		w.mu.Lock()
		w.phase[p.Name] = []phase{healthy, healthy, slowly, slowly, unavailable, unavailable, refusing, hanging}[w.random.IntN(8)]
		w.mu.Unlock()
	case 6, 7, 8: // time passes
		pass(time.Duration(w.random.ExpFloat64() * float64([]time.Duration{time.Second, time.Minute, 5 * time.Minute, 5 * time.Minute, time.Hour}[w.random.IntN(5)])))
	case 9: // many pods start
		var all sync.WaitGroup
		for range 2 + w.random.IntN(20) {
			p, r := w.request()
			all.Go(func() { w.check(p, r) })
		}
		all.Wait()
	case 10: // a source is down when its answer is past its time
		p, r := w.request()
		w.check(p, r)
		w.check(p, r)
		w.mu.Lock()
		w.phase[p.Name] = unavailable
		w.mu.Unlock()
		for _, h := range w.cache.Held() {
			if h.Provider == p.Name && h.Fresh.After(time.Now()) && h.Good.After(h.Fresh) {
				pass(time.Until(h.Fresh) + time.Duration(w.random.Float64()*float64(h.Good.Sub(h.Fresh))))
				w.check(p, r)
				break
			}
		}
	default:
		for range 5 {
			w.check(w.request())
		}
	}
}

// request draws one, as broker.RequestFor would hand it over.
func (w *world) request() (*config.Provider, broker.Request) {
	p := w.providers[w.random.IntN(len(w.providers))]
	if len(w.former) > 0 && w.random.IntN(10) == 0 {
		p = w.former[w.random.IntN(len(w.former))]
	}
	r := broker.Request{Image: fmt.Sprintf("r%d.io/%d", w.random.IntN(2), w.random.IntN(3))}
	if p.TokenAttributes == nil {
		return p, r
	}
	if w.random.IntN(8) > 0 {
		r.Token = w.token()
	}
	for _, name := range []string{"a", "b"} {
		if w.random.IntN(3) == 0 {
			if r.Annotations == nil {
				r.Annotations = make(map[string]string)
			}
			r.Annotations[name] = fmt.Sprint(w.random.IntN(2))
		}
	}
	return p, r
}

// token draws one that was there before, or a new one. The accounts' parts differ in little.
func (w *world) token() secret.Secret {
	if len(w.tokens) > 0 && w.random.IntN(3) > 0 {
		return w.tokens[len(w.tokens)-1-w.random.IntN(min(len(w.tokens), 6))]
	}
	draw := func(list ...string) string { return list[w.random.IntN(len(list))] }
	expires := time.Now().Add(time.Duration(w.random.ExpFloat64() * float64(time.Hour)))
	w.tokens = append(w.tokens, token(draw("n", "na"), draw("a", "aa"), draw("u", "u", "v", ""), expires, fmt.Sprint(len(w.tokens))))
	return w.tokens[len(w.tokens)-1]
}

// temper is what a source is like for one registry, and never changes.
type temper struct {
	wide, echoes bool
	epoch        time.Duration // how long it gives one answer; 0: it says nothing of time
	says         bool          // for how long an answer may be kept, and not only when it expires
	none         bool          // no credentials
}

func temperOf(p *config.Provider, r broker.Request) temper {
	h := fnv.New64a()
	fmt.Fprint(h, p.Fingerprint(), image.Registry(r.Image))
	n := h.Sum64()
	draw := func(choices uint64) uint64 { defer func() { n /= choices }(); return n % choices }
	return temper{
		wide: draw(2) == 0, echoes: draw(6) == 0, epoch: []time.Duration{0, 3 * time.Minute, 20 * time.Minute, 2 * time.Hour}[draw(4)],
		says: draw(2) == 0, none: draw(8) == 0,
	}
}

// truth is what a source that is well answers at a time.
func truth(p *config.Provider, r broker.Request, now time.Time) broker.Answer {
	t := temperOf(p, r)
	answer := broker.Answer{RegistryWide: t.wide, Lease: secret.Secret("lease for " + madeFor(p, r, t.wide))}
	credential := broker.Credential{Key: image.Registry(r.Image), Password: secret.Secret(madeFor(p, r, t.wide))}
	if t.epoch > 0 {
		end := now.Truncate(t.epoch).Add(2 * t.epoch)
		credential.Expires = end
		if t.says {
			answer.CacheDuration = new(end.Add(-t.epoch / 2).Sub(now))
		}
	}
	if t.echoes && r.Token != "" {
		credential.Password = r.Token
	}
	claims, _ := readClaims(r.Token)
	made, err := json.Marshal(making{At: now, Token: claims.expires})
	if err != nil {
		panic(err)
	}
	credential.Username = string(made)
	if !t.none {
		answer.Credentials = []broker.Credential{credential}
	}
	return answer
}

// making is what a user name tells.
type making struct{ At, Token time.Time }

// Call implements Source.
func (w *world) Call(ctx context.Context, p *config.Provider, r broker.Request) (broker.Answer, error) {
	w.mu.Lock()
	phase := w.phase[p.Name]
	w.mu.Unlock()
	fail := func(err error) (broker.Answer, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.failed[p.Name] = time.Now()
		return broker.Answer{}, err
	}
	switch phase {
	case healthy:
	case slowly:
		if err := wait(ctx, time.Second); err != nil {
			return fail(err)
		}
	case hanging:
		_, _ = fail(nil) // for those who do not wait to the end
		<-ctx.Done()
		return fail(ctx.Err())
	case unavailable:
		return fail(errors.New("down"))
	case refusing:
		return fail(broker.Errorf(broker.Refused, "no"))
	}
	return truth(p, r, time.Now().Round(0)), nil
}

// Renew implements Source. It is given what its answer was given, and no other's lease.
func (w *world) Renew(ctx context.Context, p *config.Provider, r broker.Request, lease secret.Secret) (broker.Answer, error) {
	if want := "lease for " + madeFor(p, r, temperOf(p, r).wide); string(lease) != want {
		w.Errorf("renewed with %s\nwant %s", string(lease), want)
	}
	return w.Call(ctx, p, r)
}

// Revoke implements Source.
func (w *world) Revoke(_ context.Context, _ *config.Provider, lease secret.Secret) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch until := w.inUse[string(lease)].Add(pullMargin); {
	case w.handed:
		w.Error("a lease that is handed on was revoked")
	case w.ending, w.forgot.Equal(time.Now()):
	case time.Now().Before(until):
		w.Errorf("%s was revoked %s too early", string(lease), time.Until(until))
	default:
		*w.revoked++
	}
	return nil
}

// check makes a request, and holds what it gets against the truth.
func (w *world) check(p *config.Provider, r broker.Request) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(w.Context(), p.Timeout)
	defer cancel()
	got, err := w.cache.Call(ctx, p, r)
	now := time.Now().Round(0)
	if err != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		if last := w.failed[p.Name]; last.IsZero() || now.Sub(last) > longestPause+p.Timeout {
			w.Errorf("failed with %v, though its source has last failed at %s", err, last)
		}
		return
	}
	want := truth(p, r, now)
	made := making{At: now}
	for i := range got.Credentials {
		c := &got.Credentials[i]
		if err := json.Unmarshal([]byte(c.Username), &made); err != nil {
			w.Error(err)
		}
		if !c.Expires.IsZero() && !c.Expires.After(now) && made.At.Before(began) {
			w.Errorf("expired at %s", c.Expires)
		}
		c.Username = want.Credentials[min(i, len(want.Credentials)-1)].Username
	}
	if mine, ok := readClaims(r.Token); made.At.Before(began) {
		switch {
		case !made.Token.IsZero() && !made.Token.After(now):
			w.Errorf("made with a token that ended at %s", made.Token)
		case r.Token != "" && (!ok || !mine.good(began)):
			w.Error("a token that is not good was answered from memory")
		}
	}
	before, after := w.merged(p, r, got, now), w.merged(p, r, want, now)
	w.mu.Lock()
	lease := string(want.Lease)
	w.inUse[lease] = latest(w.inUse[lease], now.Add(before.CacheDuration))
	w.mu.Unlock()
	if before.CacheDuration > after.CacheDuration {
		w.Errorf("may be kept for %s, a new one for %s", before.CacheDuration, after.CacheDuration)
	}
	// Of an answer of the same epoch that is not past its time, everything is as it would be: only what the configuration says of answers that say nothing counts down.
	t := temperOf(p, r)
	if t.epoch == 0 || t.none || made.At.Truncate(t.epoch) != now.Truncate(t.epoch) || before.CacheDuration == 0 {
		before.CacheDuration = after.CacheDuration
	}
	if diff := cmp.Diff(after, before, cmp.Transformer("value", func(s secret.Secret) string { return string(s) })); diff != "" {
		w.Errorf("%s for %s, made at %s (-cold +kept):\n%s", p.Name, r.Image, made.At, diff)
	}
}

func (w *world) merged(p *config.Provider, r broker.Request, answer broker.Answer, now time.Time) broker.Response {
	response, _, err := broker.Merge(broker.Merging{Request: r, RegistryWide: true, Now: now}, []broker.Slot{{Decision: broker.Decision{Provider: p, Asked: true, Image: r.Image}, Answer: answer}})
	if err != nil {
		w.Error(err)
	}
	return response
}
