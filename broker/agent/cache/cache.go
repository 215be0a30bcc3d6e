// Package cache keeps providers' answers in memory, so that one call to a registry's token service serves a node for as long as its answer holds. It stands between broker.Resolve and what asks the backends, and keeps
// an answer by all that it depends on: the provider's whole configuration, how far the answer reaches (an image or its registry), and for whom it was made. It knows neither processes nor sockets nor the
// kubelet, writes nothing to disk, and would rather ask once too often than give an answer to somebody for whom it was not made.
package cache

import (
	"context"
	cryptorand "crypto/rand"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/image"
	"github.com/credential-broker/credential-broker/proto/secret"
)

// Source is what a Cache asks: the backends. Its errors are those of a broker.Caller.
type Source interface {
	broker.Caller
	// Renew gets an answer in the place of the one that came with the lease. Where the backend cannot renew, it is asked anew.
	Renew(ctx context.Context, provider *config.Provider, request broker.Request, lease secret.Secret) (broker.Answer, error)
	// Revoke makes the answer that came with the lease worthless, where the backend can.
	Revoke(ctx context.Context, provider *config.Provider, lease secret.Secret) error
}

// Options are a Cache's. All but Source may be left out.
type Options struct {
	Source Source
	// Log hears of renewals and of their failures; nil: nobody does.
	Log *slog.Logger
	// Now is the clock by which answers age; nil: time.Now. It is called from many goroutines.
	Now func() time.Time
	// Random gives numbers in [0, 1) that spread renewals and pauses; nil: math/rand/v2. It is called by one goroutine at a time.
	Random func() float64
	// MaxEntries and MaxBytes bound what is remembered: answers, failures and registries' scopes; 0: 10,000 and 32 MiB. What was used least recently goes first. The leases of answers that are gone, and that
	// are yet to be revoked, have as much again.
	MaxEntries int
	MaxBytes   int
	// MaxCacheDuration is config.Config's, which bounds for how long the kubelet keeps an answer; nil: nothing does. Retain brings another.
	MaxCacheDuration *time.Duration
	// OnCall hears of every call to the Source, once it has ended. It is called from many goroutines.
	OnCall func(Event)
}

// Event is one call to the Source.
type Event struct {
	Provider string
	Image    string
	// Background: the cache asked by itself.
	Background bool
	Took       time.Duration
	Err        error
}

// Defaults of the bounds. A node that runs 110 pods with an identity each, of 20 images from 4 providers, fills neither.
const (
	DefaultMaxEntries = 10_000
	DefaultMaxBytes   = 32 << 20
)

// Cache is a broker.Caller that answers from memory what it can. Its methods may be called from many goroutines.
type Cache struct {
	source Source
	log    *slog.Logger
	clock  func() time.Time
	random func() float64
	onCall func(Event)

	// background ends when the cache is closed; stop ends it.
	background context.Context
	stop       context.CancelFunc
	tasks      sync.WaitGroup

	mu       sync.Mutex
	closed   bool
	key      hashKey
	store    itemStore
	owed     itemStore          // leases of answers that are gone
	longest  *time.Duration     // Options.MaxCacheDuration
	settled  bool               // leases are none of this cache's business any more
	settling chan struct{}      // closed when the last of them has been revoked; nil while nobody waits for that
	flights  map[digest]*flight // by the image's key
	leaders  map[digest]*flight // by the registry's key: the call that others of the registry wait for
	underWay map[*flight]bool
	kept     map[string]bool // fingerprints of the providers that answers are kept for; nil: all
	stats    map[string]*ProviderStats

	timer   *time.Timer
	busy    int // calls that the cache makes by itself
	backlog []*item

	revoking int // revocations that are under way
	revokes  []revocation

	unsaid []func() // lines of the log that wait for the lock to be free
}

var _ broker.Caller = (*Cache)(nil)

// New makes a Cache. It starts nothing until it is used; Close ends what it then does in the background.
func New(o Options) *Cache {
	c := &Cache{
		source: o.Source, log: o.Log, clock: o.Now, random: o.Random, onCall: o.OnCall,
		store: itemStore{maxEntries: o.MaxEntries, maxBytes: o.MaxBytes, items: make(map[itemKey]*item), leases: make(map[digest]*sharedLease)}, longest: o.MaxCacheDuration,
		flights: make(map[digest]*flight), leaders: make(map[digest]*flight), underWay: make(map[*flight]bool), stats: make(map[string]*ProviderStats),
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.clock == nil {
		c.clock = time.Now
	}
	if c.random == nil {
		c.random = rand.Float64
	}
	if c.store.maxEntries == 0 {
		c.store.maxEntries = DefaultMaxEntries
	}
	if c.store.maxBytes == 0 {
		c.store.maxBytes = DefaultMaxBytes
	}
	c.owed = itemStore{maxEntries: c.store.maxEntries, maxBytes: c.store.maxBytes, items: make(map[itemKey]*item), evicted: c.lost}
	c.store.evicted = func(i *item) { c.statsOf(i.ask.provider).Evictions++ }
	c.store.released = c.owe
	_, _ = cryptorand.Read(c.key[:]) // never fails
	c.background, c.stop = context.WithCancel(context.Background())
	return c
}

// now is the wall clock, which credentials' expiries mean too; a monotonic reading would stand still while the machine sleeps.
func (c *Cache) now() time.Time { return c.clock().Round(0) }

// Call implements broker.Caller: it answers from memory, or joins a call that is under way, or asks the Source. What it answers from memory says of itself for how long it may still be reused. The answer
// carries no lease: that is the cache's business.
func (c *Cache) Call(ctx context.Context, provider *config.Provider, request broker.Request) (broker.Answer, error) {
	began := time.Now()
	c.mu.Lock()
	key := c.key
	c.mu.Unlock()
	q := &caller{ask: key.question(provider, request, image.Registry(request.Image), c.now()), began: began, remaining: timeoutOf(provider)}
	if deadline, ok := ctx.Deadline(); ok {
		q.remaining = min(q.remaining, time.Until(deadline))
	}
	if q.who.alone {
		return c.direct(ctx, q)
	}
	for {
		step := c.next(ctx, q)
		switch {
		case step.direct:
			return c.direct(ctx, q)
		case step.pause > 0:
			q.paused = true
			if err := wait(ctx, step.pause); err != nil {
				return broker.Answer{}, err
			}
		case step.flight != nil:
			if reply := c.await(ctx, q, step); reply != nil {
				return reply.answer, reply.err
			}
		default:
			return step.reply.answer, step.reply.err
		}
	}
}

// caller is one request that waits for its answer.
type caller struct {
	ask
	began time.Time
	// remaining is the time that it had when it began. It spends no more than half of that on others' calls and on pauses.
	remaining time.Duration
	// apart: it does not wait for other images' calls any more; unshared: nor for anybody's.
	apart, unshared bool
	// paused: it has waited for a source's pause to end.
	paused bool
}

// expired says that its token is past its end by now, so that it may be given nothing that was not made for it alone.
func (q *caller) expired(now time.Time) bool {
	return !q.who.expires.IsZero() && !now.Before(q.who.expires)
}

// patience is how long it may still wait for what is not its own call.
func (q *caller) patience() time.Duration { return q.remaining/2 - time.Since(q.began) }

// step is what a caller does next: return a reply, wait for a pause to end or for a flight, or ask the Source by itself.
type step struct {
	reply  *reply
	direct bool
	pause  time.Duration
	flight *flight
	// other: the flight is that of another image.
	other bool
	// mine: the flight is for this caller.
	mine bool
	// stale: an answer that is past its time is there, and serves if the Source is unavailable.
	stale bool
}

// next decides what a caller does next.
func (c *Cache) next(ctx context.Context, q *caller) step {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	if c.closed || q.unshared || q.expired(now) {
		return step{direct: true}
	}
	held := c.find(&q.ask, now)
	if held != nil && (now.Before(held.answer.fresh) || c.down(held, now)) {
		return step{reply: c.hit(q, held, now)}
	}
	if held == nil {
		if failed := c.remembered(&q.ask, now); failed != nil {
			return c.failed(q, failed, now)
		}
	}
	s := step{stale: held != nil}
	if f := c.flights[q.one]; f.joinable() {
		s.flight = f
	} else if f := c.leaders[q.all]; f.joinable() && !q.apart && c.reach(&q.ask) != oneImage && q.patience() > 0 {
		s.flight, s.other = f, true
	}
	stats := c.statsOf(q.provider)
	if s.flight != nil {
		stats.Shared++
		s.flight.join(now)
		return s
	}
	stats.Misses++
	s.flight, s.mine = c.launch(ctx, &flight{ask: q.ask, lastUsed: now, waiters: 1}), true
	return s
}

// find is the answer that is kept for a question and still good: that for the image, which was made for just this, before that for its registry.
func (c *Cache) find(a *ask, now time.Time) *item {
	for _, key := range []digest{a.one, a.all} {
		if i := c.store.get(itemKey{answerItem, key}); i != nil && now.Before(i.answer.good) {
			return i
		}
	}
	return nil
}

// down says that an answer's source has just been found unavailable, or is being tried again: there is no use in waiting for it.
func (c *Cache) down(i *item, now time.Time) bool {
	a := i.answer
	return a.failures > 0 && !now.Before(a.failedAt) && (now.Before(a.renewal) || c.flights[i.ask.one].joinable())
}

// hit answers from memory.
func (c *Cache) hit(q *caller, i *item, now time.Time) *reply {
	answer, _ := i.answer.answer() // what is in the store has not been wiped
	stats := c.statsOf(q.provider)
	stats.Hits++
	if !now.Before(i.answer.fresh) {
		stats.Stale++
	}
	c.store.use(i)
	c.use(q, i, now)
	i.answer.told(c.longest, now)
	answer = countDown(answer, q.provider, i.answer.life, now)
	answer.Held = true
	answer.Parts = []broker.Part{{Name: "cache", Took: time.Since(q.began)}}
	return &reply{answer: answer}
}

// use notes that an answer is wanted, which may make a renewal worth it that was not.
func (c *Cache) use(q *caller, i *item, now time.Time) {
	a := i.answer
	a.lastUsed, a.wanted = now, true
	if q.who.shared && !worthwhile(a.tokenExpires, a.fresh) && worthwhile(q.who.expires, a.fresh) {
		// Another token of the account lives longer than the one that the answer was made with.
		a.setToken(q.request.Token)
		a.tokenExpires = q.who.expires
		c.store.resize(i)
	}
	if a.lapsed && now.Before(a.fresh) && c.renewable(i, now) {
		a.lapsed = false
		a.renewal = Renewal(now, a.fresh, c.random())
		c.replan(i, now)
		c.arm()
	}
}

// remembered is a failure that need not be found out again. That of a registry speaks for its images only where answers are known to be registry-wide.
func (c *Cache) remembered(a *ask, now time.Time) *item {
	keys := []digest{a.one}
	if c.reach(a) == wholeRegistry {
		keys = append(keys, a.all)
	}
	for _, key := range keys {
		if i := c.store.get(itemKey{failureItem, key}); i != nil && i.failure.holds(now) {
			return i
		}
	}
	return nil
}

// failed is what a remembered failure means to a caller: the failure, or a wait for the next attempt where that leaves enough time for it.
func (c *Cache) failed(q *caller, i *item, now time.Time) step {
	f := i.failure
	c.store.use(i)
	f.lastUsed = now
	pause := f.until.Sub(now)
	if !f.kind.Lasting() && !q.paused && pause <= q.patience() {
		return step{pause: pause}
	}
	c.statsOf(q.provider).Remembered++
	return step{reply: &reply{err: f.remembered(now)}}
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// direct asks the Source for one caller alone. Nothing of it is kept, or given to anybody else.
func (c *Cache) direct(ctx context.Context, q *caller) (broker.Answer, error) {
	began := time.Now()
	answer, err := c.source.Call(ctx, q.provider, q.request)
	c.mu.Lock()
	c.statsOf(q.provider).Misses++
	c.countCall(q.provider, err)
	c.oweUnkept(&q.ask, answer, c.now())
	c.mu.Unlock()
	c.tell(Event{Provider: q.provider.Name, Image: q.request.Image, Took: time.Since(began), Err: err})
	answer.Lease = ""
	return answer, err
}

// say logs a line once the cache's lock is free: whoever reads the log may be slow, and no request is to wait for that. speak is called without the lock.
func (c *Cache) say(ctx context.Context, level slog.Level, text string, attrs ...any) {
	c.unsaid = append(c.unsaid, func() { c.log.Log(ctx, level, text, attrs...) })
}

func (c *Cache) speak() {
	c.mu.Lock()
	unsaid := c.unsaid
	c.unsaid = nil
	c.mu.Unlock()
	for _, line := range unsaid {
		line()
	}
}

func (c *Cache) tell(e Event) {
	if c.onCall != nil {
		c.onCall(e)
	}
}

// reach is how far a provider's answers for a registry reach, as far as is known.
type reach int

const (
	unknownReach reach = iota
	oneImage
	wholeRegistry
)

func (c *Cache) reach(a *ask) reach {
	i := c.store.get(itemKey{scopeItem, a.scope})
	if i == nil {
		return unknownReach
	}
	c.store.use(i)
	if i.scope.registryWide {
		return wholeRegistry
	}
	return oneImage
}

// Close ends what the cache does by itself, waits for it and for calls that are under way, has all that is lent revoked by the Source, and wipes all that is kept. Half of the time until ctx is done is for
// the calls, and half of what is left then for the revocations, ten seconds at most; what was not revoked is logged. After HandedOn nothing is revoked. A Cache that was closed passes calls on to its Source.
func (c *Cache) Close(ctx context.Context) {
	c.mu.Lock()
	c.closed = true
	if c.timer != nil {
		c.timer.Stop()
	}
	c.backlog = nil
	for f := range c.underWay {
		if f.waiters == 0 {
			f.cancel()
		}
	}
	c.mu.Unlock()

	ended := make(chan struct{})
	go func() {
		c.tasks.Wait()
		close(ended)
	}()
	waiting, cancel := half(ctx)
	defer cancel()
	select {
	case <-ended:
	case <-waiting.Done():
	}
	c.stop()
	select { // what was stopped just now ends soon, or is stuck and has to be left
	case <-ended:
	case <-time.After(closeGrace):
	}
	c.revokeAll(ctx)

	c.mu.Lock()
	defer c.mu.Unlock()
	for _, i := range c.store.items {
		c.store.drop(i)
	}
}

// closeGrace is how long Close waits for calls that it has stopped.
const closeGrace = time.Second

// half is a context for half of the time that is left.
func half(ctx context.Context) (context.Context, context.CancelFunc) {
	if deadline, ok := ctx.Deadline(); ok {
		return context.WithTimeout(ctx, time.Until(deadline)/2)
	}
	return context.WithCancel(ctx)
}

// Retain forgets, and wipes, what belongs to providers that are not among these, and keeps nothing for such from now on: call it when these take the others' place, and the maximum its. Calls for the others
// that are under way are answered, and their answers are not kept. What was lent with all those is revoked as soon as nobody can be using it any more; see owe.
func (c *Cache) Retain(providers []*config.Provider, maxCacheDuration *time.Duration) {
	defer c.speak()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.retain(providers, maxCacheDuration)
}

func (c *Cache) retain(providers []*config.Provider, longest *time.Duration) {
	c.kept = make(map[string]bool, len(providers))
	names := make(map[string]bool, len(providers))
	for _, p := range providers {
		c.kept[p.Fingerprint()] = true
		names[p.Name] = true
	}
	for f := range c.underWay {
		if !c.kept[f.fingerprint] {
			c.detach(f)
		}
	}
	for _, i := range c.store.items {
		if !c.kept[i.ask.fingerprint] {
			c.store.drop(i)
		}
	}
	for name := range c.stats {
		if !names[name] {
			delete(c.stats, name)
		}
	}
	c.longest = longest
	c.arm()
}

// Forget drops the answers and failures that match, and returns how many those were. Answers to calls that are under way, and would match, are not kept. What was dropped is revoked through the Source in the
// background, as far as its backend can. The function that matches must not call the cache.
func (c *Cache) Forget(match func(Held) bool) (answers, failures int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for f := range c.underWay {
		if match(f.held(ScopeImage)) || match(f.held(ScopeRegistry)) {
			f.orphan = true
			c.detach(f)
		}
	}
	type lent struct {
		provider *config.Provider
		lease    secret.Secret
	}
	leases := map[digest]lent{}
	for _, i := range c.store.items {
		if i.scope != nil || !match(i.held()) {
			continue
		}
		switch {
		case i.answer != nil:
			answers++
			leases[i.answer.id] = lent{i.ask.provider, i.answer.lease()}
			i.answer.returned = true
		case i.shown():
			failures++
		}
		c.store.drop(i)
	}
	for id, l := range leases {
		if c.store.leases[id] == nil { // otherwise another answer came with it, and is still given
			c.revoke(l.provider, l.lease)
		}
	}
	c.arm()
	return answers, failures
}
