package cache

import (
	"time"

	"github.com/credential-broker/credential-broker/broker"
)

const (
	// maxBackground bounds the calls that the cache makes by itself at one time.
	maxBackground = 16
	// maxSweep bounds how many items are looked at in one go, since requests wait meanwhile.
	maxSweep = 64
	// maxSleep is the longest that the cache goes without a look at the wall clock, which may jump.
	maxSleep = 10 * time.Minute
	// nodeInterest is how long after the last request a node's answer is still renewed, or two of its lives if that is longer: the next pod comes when it comes. But it is not renewed for more than
	// interestingLives: an answer of minutes is not worth a call a minute for a day.
	nodeInterest     = 24 * time.Hour
	interestingLives = 30
	// shortestRenewed is how long an answer has to live to be renewed ahead of need: to ask for a shorter one when it is wanted is no more calls.
	shortestRenewed = time.Minute
	// failureInterest is how long after the last request the cache still tries to get what nobody gave: the kubelet comes back within 5 min.
	failureInterest = 5 * time.Minute
)

// arm sets the timer for the item that is due first.
func (c *Cache) arm() {
	i := c.store.next()
	if owed := c.owed.next(); i == nil || owed != nil && owed.due.Before(i.due) {
		i = owed
	}
	if i == nil || c.closed {
		if c.timer != nil {
			c.timer.Stop()
		}
		return
	}
	sleep := min(max(i.due.Sub(c.now()), 0), maxSleep)
	if c.timer == nil {
		c.timer = time.AfterFunc(sleep, c.tick)
		return
	}
	c.timer.Reset(sleep)
}

// tick sees to what is due.
func (c *Cache) tick() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	now := c.now()
	for range maxSweep {
		i := c.store.next()
		if i == nil || i.due.After(now) {
			break
		}
		if i.answer != nil {
			c.answerDue(i, now)
		} else {
			c.failureDue(i, now)
		}
	}
	c.revokeDue(now)
	c.arm()
}

// due is when something is to be done about an answer.
func (a *keptAnswer) due(now time.Time) time.Time {
	end := a.good
	if now.Before(a.fresh) {
		end = a.fresh
	}
	if a.renewing {
		return end
	}
	return earliest(end, a.renewal)
}

func (c *Cache) replan(i *item, now time.Time) { c.store.plan(i, i.answer.due(now)) }

// stillWanted says that somebody is likely to ask for an answer again: for a node's, that somebody did not long ago; for a pod's, that it asked again at all, since most pods pull once.
func stillWanted(i *item, now time.Time) bool {
	a := i.answer
	if i.ask.who.pod {
		return a.wanted
	}
	life := a.fresh.Sub(a.obtained)
	return now.Sub(a.lastUsed) <= max(min(nodeInterest, interestingLives*life), 2*life)
}

// worthwhile says that an answer that is asked for anew with a token could be kept for longer than the one that is there: nothing is kept beyond the token's own end.
func worthwhile(tokenExpires, fresh time.Time) bool {
	return tokenExpires.IsZero() || tokenExpires.After(fresh.Add(renewalMargin))
}

// long says that an answer lives long enough to be renewed ahead of need.
func (l life) long() bool { return l.fresh.Sub(l.obtained) >= shortestRenewed }

// renewable says that an answer is worth a renewal now.
func (c *Cache) renewable(i *item, now time.Time) bool {
	a := i.answer
	return a.long() && stillWanted(i, now) && worthwhile(a.tokenExpires, a.fresh) && (a.tokenExpires.IsZero() || now.Before(a.tokenExpires))
}

// answerDue renews an answer, or drops it at its end.
func (c *Cache) answerDue(i *item, now time.Time) {
	a := i.answer
	if !now.Before(a.good) {
		c.store.drop(i)
		return
	}
	if !a.renewing && !a.renewal.IsZero() && !now.Before(a.renewal) {
		switch {
		case !c.renewable(i, now):
			a.renewal, a.lapsed = time.Time{}, true
		case c.flights[i.ask.one].joinable():
			a.renewal = now.Add(Pause(1, c.random())) // it may bring what is wanted, or nothing
		default:
			a.renewing = true
			c.inBackground(i)
		}
	}
	c.replan(i, now)
}

// failureDue tries again what failed, or forgets it.
func (c *Cache) failureDue(i *item, now time.Time) {
	f := i.failure
	expires := i.ask.who.expires
	switch {
	case f.mark() && now.Before(f.until.Add(failureInterest)):
		c.store.plan(i, f.until.Add(failureInterest)) // so long it counts how often the registry has failed
		return
	case !f.retry, now.Sub(f.lastUsed) > failureInterest, !expires.IsZero() && !now.Before(expires), c.find(&i.ask, now) != nil:
		c.store.drop(i)
		return
	case c.flights[i.ask.one].joinable():
		c.store.plan(i, now.Add(Pause(1, c.random())))
		return
	}
	if i.key.digest == i.ask.one && c.reach(&i.ask) != oneImage {
		// What fails for one image of a registry most likely fails for all: one of them tries, the others take their turns.
		if mark := c.store.get(itemKey{failureItem, i.ask.all}); mark != nil && mark.failure.holds(now) {
			c.store.plan(i, mark.failure.until)
			return
		}
		if c.leaders[i.ask.all].joinable() {
			c.store.plan(i, now.Add(Pause(1, c.random())))
			return
		}
	}
	c.store.plan(i, now.Add(failureInterest)) // unless the call says something else
	c.inBackground(i)
}

// inBackground asks for an item anew as soon as there are few enough such calls.
func (c *Cache) inBackground(i *item) {
	if c.busy >= maxBackground {
		c.backlog = append(c.backlog, i)
		return
	}
	c.busy++
	f := &flight{ask: i.ask, background: true}
	f.request.Token = i.token()
	if i.answer != nil {
		f.lease, f.leaseID, f.lastUsed, f.who.expires = i.answer.lease(), i.answer.id, i.answer.lastUsed, i.answer.tokenExpires
	} else {
		f.lastUsed = i.failure.lastUsed
	}
	c.launch(c.background, f)
}

// startWaiting begins the calls that have waited for their turn, of those items that are still there.
func (c *Cache) startWaiting(now time.Time) {
	for c.busy < maxBackground && len(c.backlog) > 0 && !c.closed {
		i := c.backlog[0]
		c.backlog[0] = nil
		c.backlog = c.backlog[1:]
		switch {
		case c.store.get(i.key) != i:
		case i.answer != nil && (!c.renewable(i, now) || c.flights[i.ask.one].joinable()):
			i.answer.renewing, i.answer.renewal, i.answer.lapsed = false, time.Time{}, true // a request makes it due again
		case i.answer == nil && c.flights[i.ask.one].joinable():
		default:
			c.inBackground(i)
		}
	}
}

// remembered is the failure as a caller gets it that did not wait for it.
func (f *keptFailure) remembered(now time.Time) error {
	return broker.Errorf(f.kind, "%s (asked %s ago; asked again in %s)", f.text, now.Sub(f.at).Round(time.Second/10), f.until.Sub(now).Round(time.Second/10))
}

// bounded cuts a text that would take too much memory.
func bounded(text string) string {
	const most = 2000
	if len(text) > most {
		return text[:most] + "…"
	}
	return text
}

// attrs are what logs say of an item.
func (i *item) attrs() []any {
	h := i.held()
	return []any{"provider", h.Provider, "scope", string(h.Scope), "name", h.Name, "identity", h.Identity}
}
