package cache

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/proto/secret"
)

// flight is one call to the Source, for all who wait for it. It runs on a context of its own, so that none of them can spoil it for the others: it ends when the provider's time is over, or when the last
// who waited has been cancelled. One whose time is over leaves it running, so that a source that hangs is found out, and one that is only slow has its answer kept for the next pull.
type flight struct {
	ask
	lease   secret.Secret // to renew; empty to ask anew
	leaseID digest
	// background: the cache itself wants the answer.
	background bool

	cancel   context.CancelFunc
	deadline time.Time
	done     chan struct{} // closed when the fields below are set

	// These are the cache's, under its lock.
	waiters  int
	lastUsed time.Time
	// abandoned: it was cancelled because nobody waited; its failure is nobody's.
	abandoned bool
	// orphan: what it brings is not kept.
	orphan bool

	answer broker.Answer
	err    error
	life   life
	// echo: the answer holds the token that it was asked with, so it is for nobody else.
	echo bool
	// alike: the failure is that of every image of the registry.
	alike bool
}

// landingGrace is how long a caller whose time is over waits for a flight whose time ends with it: what the Source says of its failure tells more than "deadline exceeded". It is less than broker.Resolve
// leaves a Caller to return.
const landingGrace = 250 * time.Millisecond

// joinable says that it is worth waiting for a flight: it is there, and not stuck past its end.
func (f *flight) joinable() bool { return f != nil && time.Until(f.deadline) > -landingGrace }

func (f *flight) join(now time.Time) {
	f.waiters++
	f.lastUsed = now
}

func timeoutOf(provider *config.Provider) time.Duration {
	if provider.Timeout > 0 {
		return provider.Timeout
	}
	return config.DefaultProviderTimeout
}

// launch begins a flight. The context gives it its values, a trace's say, and not its end.
func (c *Cache) launch(ctx context.Context, f *flight) *flight {
	timeout := timeoutOf(f.provider)
	ctx, f.cancel = context.WithTimeout(context.WithoutCancel(ctx), timeout)
	closed := context.AfterFunc(c.background, f.cancel) //nolint:contextcheck // a flight's values are its first caller's, its end is also the cache's
	f.deadline = time.Now().Add(timeout)
	f.done = make(chan struct{})
	c.underWay[f] = true
	c.flights[f.one] = f
	if !c.leaders[f.all].joinable() {
		c.leaders[f.all] = f
	}
	c.tasks.Go(func() {
		defer f.cancel()
		defer closed()
		began := time.Now()
		var answer broker.Answer
		var err error
		if f.lease != "" {
			answer, err = c.source.Renew(ctx, f.provider, f.request, f.lease)
		} else {
			answer, err = c.source.Call(ctx, f.provider, f.request)
		}
		err = explainTimeout(err, timeout)
		c.land(ctx, f, answer, err)
		c.tell(Event{Provider: f.provider.Name, Image: f.request.Image, Background: f.background, Took: time.Since(began), Err: err})
	})
	return f
}

// explainTimeout says of a call that ran out of time how much that was.
func explainTimeout(err error, allowed time.Duration) error {
	if err == nil || !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if _, ok := errors.AsType[*broker.Error](err); ok {
		return err // the Source has said it better
	}
	return broker.Errorf(broker.Unavailable, "no answer within %s: %w", allowed, err)
}

// detach makes sure that nobody joins a flight any more.
func (c *Cache) detach(f *flight) {
	if c.flights[f.one] == f {
		delete(c.flights, f.one)
	}
	if c.leaders[f.all] == f {
		delete(c.leaders, f.all)
	}
}

// leave is for a caller that waits no more.
func (c *Cache) leave(f *flight, why error) {
	f.waiters--
	if f.waiters == 0 && !f.background && errors.Is(why, context.Canceled) {
		f.abandoned = true
		c.detach(f)
		f.cancel()
	}
}

// reply is what a caller returns.
type reply struct {
	answer broker.Answer
	err    error
}

// await waits for a flight, as long as that makes sense for the caller. Nil: the caller has to look again.
func (c *Cache) await(ctx context.Context, q *caller, s step) *reply {
	f := s.flight
	var impatient <-chan time.Time
	if s.other || s.stale {
		timer := time.NewTimer(q.patience())
		defer timer.Stop()
		impatient = timer.C
	}
	select {
	case <-f.done:
	case <-impatient:
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) && time.Until(f.deadline) < landingGrace {
			timer := time.NewTimer(landingGrace)
			defer timer.Stop()
			select {
			case <-f.done:
			case <-timer.C:
			}
		}
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	landed := false
	select {
	case <-f.done:
		landed = true
	default:
		c.leave(f, ctx.Err())
	}
	now := c.now()
	if s.stale && !q.expired(now) && (!landed || f.err != nil && !broker.KindOf(f.err).Lasting()) {
		if held := c.find(&q.ask, now); held != nil {
			return c.hit(q, held, now)
		}
	}
	switch {
	case !landed && ctx.Err() != nil:
		return &reply{err: ctx.Err()}
	case !landed:
		q.apart = true
		return nil
	case f.err == nil && s.other && !f.answer.RegistryWide:
		q.apart = true
		return nil
	case !s.mine && q.expired(now), f.err == nil && f.echo && q.request.Token != f.request.Token:
		q.unshared = true
		return nil
	case f.err != nil && s.other && !f.alike:
		// Another image's failure need not be this one's. A source that refuses one image is asked for all others at once; one that is not available is asked for one after the other, so as
		// not to make it worse.
		q.apart = broker.KindOf(f.err).Lasting()
		return nil
	}
	answer := f.answer
	answer.Credentials = slices.Clone(answer.Credentials)
	if f.err == nil && !f.life.obtained.IsZero() {
		answer = countDown(answer, q.provider, f.life, now)
	}
	if !s.mine {
		answer.Parts = []broker.Part{{Name: "shared", Took: time.Since(q.began)}}
	}
	return &reply{answer, f.err}
}

// land takes in what a flight brought, and tells those who wait.
func (c *Cache) land(ctx context.Context, f *flight, answer broker.Answer, err error) {
	defer c.speak()
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	c.detach(f)
	delete(c.underWay, f)
	if f.background {
		c.busy--
	}
	if f.abandoned && err != nil {
		c.countCall(f.provider, nil)
	} else {
		c.countCall(f.provider, err)
	}
	f.err, f.answer = err, answer
	f.answer.Lease = ""
	f.echo = f.who.shared && echoes(answer, f.request.Token)
	switch {
	case f.orphan, c.closed, c.kept != nil && !c.kept[f.fingerprint]:
		if err == nil {
			c.renewed(f, answer)
			c.oweUnkept(&f.ask, answer, now)
		}
	case err == nil:
		c.keep(ctx, f, answer, now)
	case !f.abandoned:
		f.alike = c.reach(&f.ask) == wholeRegistry
		c.remember(ctx, f, err, now)
	}
	close(f.done)
	c.startWaiting(now)
	c.tellSettled()
	c.arm()
}

// keep puts an answer in the place of whatever was known before.
func (c *Cache) keep(ctx context.Context, f *flight, answer broker.Answer, now time.Time) {
	c.renewed(f, answer)
	before := c.find(&f.ask, now)
	for _, key := range []itemKey{{failureItem, f.one}, {failureItem, f.all}, {answerItem, f.one}, {answerItem, f.all}} {
		// An answer for one image alone contradicts one that was said to be the registry's.
		if i := c.store.get(key); i != nil {
			c.store.drop(i)
		}
	}
	kept := f.withoutToken()
	c.store.put(&item{key: itemKey{scopeItem, f.scope}, ask: kept, scope: &keptScope{registryWide: answer.RegistryWide}})
	l, ok := lifeOf(answer, f.provider, f.who.expires, now)
	f.life = l
	if !ok || f.echo {
		c.oweUnkept(&f.ask, answer, now)
		return
	}
	i := &item{key: itemKey{answerItem, f.one}, ask: kept}
	if answer.RegistryWide {
		i.key.digest = f.all
	}
	a := &keptAnswer{life: l, lastUsed: f.lastUsed, tokenExpires: f.who.expires, loan: c.loanOf(&f.ask, answer, now)}
	a.told(c.longest, now) // those who wait for it
	token := f.request.Token
	if l.long() && worthwhile(a.tokenExpires, l.fresh) {
		a.renewal = Renewal(now, l.fresh, c.random())
	} else {
		a.lapsed, token = true, ""
	}
	a.stored = store(answer, token)
	i.answer = a
	i.due = a.due(now)
	c.store.put(i)
	c.redeem(a.id)
	if f.background {
		c.statsOf(f.provider).Renewals++
		c.say(ctx, slog.LevelInfo, "asked again ahead of need", append(i.attrs(), "renewed", before != nil, "until", l.fresh)...)
	}
}

// remember notes a failure: with the answer that it leaves in place, or by itself.
func (c *Cache) remember(ctx context.Context, f *flight, err error, now time.Time) {
	kind, reason := broker.KindOf(err), bounded(err.Error())
	if held := c.find(&f.ask, now); held != nil {
		a := held.answer
		a.failures++
		a.renewing = false
		a.lastFailure, a.failedAt = reason, now
		stats := c.statsOf(f.provider)
		stats.RenewalFailures++
		if !kind.Lasting() {
			a.renewal = now.Add(Pause(a.failures, c.random()))
			a.lapsed = false
			c.replan(held, now)
			c.say(ctx, slog.LevelWarn, "answer not renewed", append(held.attrs(), "kind", kind.String(), "reason", reason, "next", a.renewal, "good", a.good)...)
			return
		}
		// The kubelet would have kept it until its end, and so do we; then the truth is told, unless somebody mends until then what it is refused for.
		a.good, a.renewal, a.lapsed = a.fresh, now.Add(refusedPause(a.failures, c.random())), false
		c.say(ctx, slog.LevelWarn, "answer not renewed", append(held.attrs(), "kind", kind.String(), "reason", reason, "next", a.renewal, "until", a.fresh)...)
		if now.Before(a.fresh) {
			c.replan(held, now)
			return
		}
		c.store.drop(held)
	}
	reach := c.reach(&f.ask)
	if reach != wholeRegistry {
		c.fail(f, f.one, kind, reason, now, true)
	}
	if reach == wholeRegistry || reach == unknownReach && !kind.Lasting() {
		// While nobody knows how far answers reach, the registry's failure is only a mark: the cache does not try for one image after the other what has just failed for one.
		c.fail(f, f.all, kind, reason, now, reach == wholeRegistry)
	}
}

// lastingPause is how long a refusal or a wrong setting is remembered, give or take a fifth: long enough to answer a crowd of pods at once, short enough that whoever mends it sees that at the next pull.
const lastingPause = 10 * time.Second

// refusedPause is how long to wait for the next renewal after so many in a row that were refused: lastingPause, doubled each time up to ten minutes, give or take a fifth.
func refusedPause(failures int, random float64) time.Duration {
	return scale(min(lastingPause<<min(failures-1, 6), 10*time.Minute), 0.8+0.4*random)
}

// fail remembers a failure by itself. Of several that come at one time, of calls that were under way together, only the first makes the pause longer.
func (c *Cache) fail(f *flight, key digest, kind broker.Kind, reason string, now time.Time, retry bool) {
	failure := &keptFailure{kind: kind, text: reason, failures: 1, at: now, lastUsed: f.lastUsed, retry: retry && !kind.Lasting()}
	i := &item{key: itemKey{failureItem, key}, ask: f.withoutToken(), failure: failure}
	before := c.store.get(i.key)
	again := before != nil && before.failure.kind == kind
	switch {
	case again && before.failure.holds(now):
		failure.failures, failure.until = before.failure.failures, before.failure.until
	case kind.Lasting():
		failure.until = now.Add(scale(lastingPause, 0.8+0.4*c.random()))
	default:
		if again {
			failure.failures += before.failure.failures
		}
		failure.until = now.Add(Pause(failure.failures, c.random()))
	}
	if failure.retry && f.request.Token != "" {
		if before != nil && before.token() == f.request.Token {
			failure.token, before.failure.token = before.failure.token, nil
		} else {
			failure.token = seal(f.request.Token)
		}
	}
	i.due = failure.until
	c.store.put(i)
}
