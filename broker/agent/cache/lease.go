package cache

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/proto/secret"
)

const (
	// maxRevoking bounds the revocations at one time: nobody waits for them.
	maxRevoking = 4
	// maxRevokingAtEnd bounds those of one provider while the cache ends, and endRevoking bounds the time for all: the service manager waits. At 50 ms each that is enough for 3,200 leases.
	maxRevokingAtEnd = 16
	endRevoking      = 10 * time.Second
	// pullMargin is how long a pull may go on using a credential that the kubelet would not begin another with: the most that broker.ExpiryMargin leaves to one.
	pullMargin = 5 * time.Minute
)

// loan is what is known of an answer's lease.
type loan struct {
	// id stands for the lease; zero if there is none.
	id digest
	// keepable is until when the kubelet may keep the answer as far as the answer goes, until is until when it may be keeping it, as far as it has been told.
	keepable, until time.Time
	// expires is when the last of the credentials stops working; zero where that is not known.
	expires time.Time
	// returned: it has been revoked, or renewed.
	returned bool
}

func (c *Cache) loanOf(a *ask, answer broker.Answer, now time.Time) loan {
	if answer.Lease == "" {
		return loan{}
	}
	l := loan{id: c.key.digest("lease", a.fingerprint, string(answer.Lease)), keepable: now}
	if said, _ := lifeOf(answer, a.provider, time.Time{}, now); !said.fresh.IsZero() { // the end of the token that it was made with ends nothing in the kubelet
		l.keepable = said.fresh
	}
	for _, credential := range answer.Credentials {
		if credential.Expires.IsZero() {
			l.expires = time.Time{}
			break
		}
		l.expires = latest(l.expires, credential.Expires)
	}
	return l
}

// told notes that the kubelet has just got the answer, and has been told to keep it for no longer than that.
func (l *loan) told(longest *time.Duration, now time.Time) {
	until := l.keepable
	if longest != nil {
		until = earliest(until, now.Add(*longest))
	}
	l.until = latest(l.until, latest(until, now)) // what is past its time is not to be kept, but a pull begins with it
}

// latest of two times.
func latest(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// leased says that it is an answer that came with a lease.
func (i *item) leased() bool { return i.answer != nil && i.answer.id != digest{} }

// owe has what was lent with an answer that goes revoked as soon as nobody can be using it any more: the kubelet has let go of it by then, and a pull that it began last has had its time. What ends by itself
// before that is left alone, as is what another answer came with too.
func (c *Cache) owe(i *item) {
	if a := i.answer; !a.returned && c.store.leases[a.id] == nil {
		c.oweLease(&i.ask, a.loan, a.lease())
	}
}

// oweUnkept is owe for an answer that is given and not kept.
func (c *Cache) oweUnkept(a *ask, answer broker.Answer, now time.Time) {
	if answer.Lease == "" {
		return
	}
	l := c.loanOf(a, answer, now)
	l.told(c.longest, now)
	if shared := c.store.leases[l.id]; shared != nil {
		shared.until = latest(shared.until, l.until)
		shared.lasts(l)
		return
	}
	c.oweLease(a, l, answer.Lease)
	c.arm()
}

func (c *Cache) oweLease(a *ask, l loan, lease secret.Secret) {
	if c.settled {
		return
	}
	key := itemKey{leaseItem, l.id}
	due := l.until.Add(pullMargin)
	if before := c.owed.get(key); before != nil {
		due = latest(due, before.due)
		c.owed.drop(before)
	}
	if !c.closed && !l.expires.IsZero() && !due.Before(l.expires) {
		return
	}
	c.owed.put(&item{key: key, ask: ask{provider: a.provider, fingerprint: a.fingerprint}, due: due, lease: seal(lease)})
}

// redeem is for a lease that an answer has come with that is kept: it is not to be revoked, and once that answer goes not before it would have been.
func (c *Cache) redeem(id digest) {
	i, shared := c.owed.get(itemKey{leaseItem, id}), c.store.leases[id]
	if i != nil && shared != nil {
		shared.until = latest(shared.until, i.due.Add(-pullMargin))
		c.owed.drop(i)
	}
}

// renewed takes note that a flight has renewed a lease, which is the backend's own affair if another has come of it: that may be the same one by another name, and to revoke one would end both.
func (c *Cache) renewed(f *flight, answer broker.Answer) {
	if f.lease == "" || f.lease == answer.Lease {
		return
	}
	if i := c.owed.get(itemKey{leaseItem, f.leaseID}); i != nil {
		c.owed.drop(i)
	}
	if c.store.leases[f.leaseID] == nil {
		return
	}
	for _, i := range c.store.items {
		if i.leased() && i.answer.id == f.leaseID {
			i.answer.returned = true
		}
	}
}

// lost is for a lease for which there was no room any more.
func (c *Cache) lost(i *item) {
	c.say(c.background, slog.LevelWarn, "credentials not revoked", "provider", i.ask.provider.Name, "kind", broker.Unavailable.String(), "reason", "too many are to be revoked")
}

// revokeDue begins the revocation of what nobody can be using any more.
func (c *Cache) revokeDue(now time.Time) {
	for range maxSweep {
		i := c.owed.next()
		if i == nil || i.due.After(now) {
			return
		}
		if c.renewing(i.key.digest) {
			c.owed.plan(i, now.Add(time.Second))
			continue
		}
		lease, _ := i.lease.open(0) // what is in the store has not been wiped
		c.revoke(i.ask.provider, lease)
		c.owed.drop(i)
	}
}

// renewing says that a lease is being renewed, and somebody may be waiting for what comes of it.
func (c *Cache) renewing(id digest) bool {
	for f := range c.underWay {
		if f.lease != "" && f.leaseID == id {
			return true
		}
	}
	return false
}

// revocation is a lease that is to be given up.
type revocation struct {
	provider *config.Provider
	lease    *sealed
}

// revoke gives up a lease in the background.
func (c *Cache) revoke(provider *config.Provider, lease secret.Secret) {
	if lease == "" || c.settled {
		return
	}
	c.revokes = append(c.revokes, revocation{provider, seal(lease)})
	c.startRevoking()
}

func (c *Cache) startRevoking() {
	for c.revoking < maxRevoking && len(c.revokes) > 0 && !c.closed {
		r := c.revokes[0]
		c.revokes[0] = revocation{}
		c.revokes = c.revokes[1:]
		c.revoking++
		c.tasks.Go(func() {
			if err := c.revokeNow(c.background, r); err != nil {
				c.log.WarnContext(c.background, "credentials not revoked", "provider", r.provider.Name, "kind", broker.KindOf(err).String(), "reason", bounded(err.Error()))
			} else {
				c.log.InfoContext(c.background, "credentials revoked", "provider", r.provider.Name)
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			c.revoking--
			c.startRevoking()
			c.tellSettled()
		})
	}
}

func (c *Cache) revokeNow(ctx context.Context, r revocation) error {
	ctx, cancel := context.WithTimeout(ctx, timeoutOf(r.provider))
	defer cancel()
	defer r.lease.wipe()
	lease, _ := r.lease.open(0)
	return c.source.Revoke(ctx, r.provider, lease)
}

// Settle keeps nothing from now on, as Retain does for what is not retained, and returns when all that was lent has been revoked, each at its time, or when ctx is done.
func (c *Cache) Settle(ctx context.Context) {
	c.mu.Lock()
	c.retain(nil, c.longest)
	if c.settling == nil {
		c.settling = make(chan struct{})
	}
	settling := c.settling
	c.tellSettled()
	c.mu.Unlock()
	c.speak()
	select {
	case <-settling:
	case <-ctx.Done():
	}
}

// tellSettled tells who waits in Settle that there is nothing to wait for any more.
func (c *Cache) tellSettled() {
	if c.settling != nil && len(c.owed.items)+len(c.underWay)+len(c.revokes)+c.revoking == 0 {
		close(c.settling)
		c.settling = nil
	}
}

// HandedOn says that a successor has taken over what Export wrote: what is lent is its to revoke, and not this cache's any more.
func (c *Cache) HandedOn() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settle()
}

// settle ends all dealings with leases.
func (c *Cache) settle() {
	c.settled = true
	for _, i := range c.owed.items {
		c.owed.drop(i)
	}
	c.tellSettled()
}

// returns are the revocations of one provider while the cache ends.
type returns struct {
	provider *config.Provider

	mu      sync.Mutex
	waiting []revocation
	left    int // not revoked, as far as is known
	revoked int
	reason  string // of the last failure
}

// takeLent gives all that is to be revoked before the end, by provider; the cache knows nothing of it then.
func (c *Cache) takeLent() []*returns {
	c.mu.Lock()
	defer c.mu.Unlock()
	byProvider := make(map[string]*returns)
	take := func(provider *config.Provider, lease *sealed) {
		r := byProvider[provider.Fingerprint()]
		if r == nil {
			r = &returns{provider: provider, reason: "the time was over"}
			byProvider[provider.Fingerprint()] = r
		}
		r.waiting = append(r.waiting, revocation{provider, lease})
		r.left++
	}
	for _, r := range c.revokes {
		take(r.provider, r.lease)
	}
	c.revokes = nil
	if !c.settled {
		taken := make(map[digest]bool)
		for _, i := range c.store.items {
			if i.leased() && !i.answer.returned && !taken[i.answer.id] {
				taken[i.answer.id] = true
				take(i.ask.provider, seal(i.answer.lease()))
			}
		}
		for _, i := range c.owed.items {
			lease, _ := i.lease.open(0)
			take(i.ask.provider, seal(lease))
		}
	}
	c.settle()
	all := make([]*returns, 0, len(byProvider))
	for _, r := range byProvider {
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b *returns) int { return cmp.Compare(a.provider.Name, b.provider.Name) })
	return all
}

// revokeAll revokes all that is lent, since nothing is left that could do it later. Providers do not wait for each other: one that hangs costs no other its revocations.
func (c *Cache) revokeAll(ctx context.Context) {
	all := c.takeLent()
	if len(all) == 0 {
		return
	}
	ctx, cancel := half(ctx)
	defer cancel()
	ctx, stop := context.WithTimeout(ctx, endRevoking)
	defer stop()
	var workers sync.WaitGroup
	for _, r := range all {
		for range min(maxRevokingAtEnd, len(r.waiting)) {
			workers.Go(func() {
				for next := r.next(); next.lease != nil && ctx.Err() == nil; next = r.next() {
					r.ended(c.revokeNow(ctx, next))
				}
			})
		}
	}
	ended := make(chan struct{})
	go func() {
		workers.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		select { // as in Close
		case <-ended:
		case <-time.After(closeGrace):
		}
	}
	for _, r := range all {
		left, revoked, reason := r.result()
		if left > 0 {
			c.log.Warn("credentials not revoked before the end", "provider", r.provider.Name, "count", left, "revoked", revoked, "reason", reason)
		} else {
			c.log.Info("credentials revoked", "provider", r.provider.Name, "count", revoked)
		}
	}
}

// next is a lease that nobody has begun to revoke; nil if there is none.
func (r *returns) next() revocation {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.waiting) == 0 {
		return revocation{}
	}
	next := r.waiting[0]
	r.waiting = r.waiting[1:]
	return next
}

func (r *returns) ended(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.reason = bounded(err.Error())
		return
	}
	r.left--
	r.revoked++
}

// result is what has come of it; what nobody has begun is wiped.
func (r *returns) result() (left, revoked int, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, one := range r.waiting {
		one.lease.wipe()
	}
	r.waiting = nil
	return r.left, r.revoked, r.reason
}
