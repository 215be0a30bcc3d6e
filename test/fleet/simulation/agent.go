package simulation

import (
	"time"

	"github.com/credential-broker/credential-broker/broker/agent/cache"
)

// Agent is how agents behave.
type Agent struct {
	// Renewal and Pause are cache.Renewal and cache.Pause, or what they are compared with. Renewal nil: nothing is renewed.
	Renewal func(from, until time.Time, random float64) time.Time
	Pause   func(failures int, random float64) time.Duration
	// Background: what failed is asked for again without waiting for the kubelet to come back.
	Background bool
}

// DefaultAgent is the product's.
func DefaultAgent() Agent {
	return Agent{Renewal: cache.Renewal, Pause: cache.Pause, Background: true}
}

// What the agent's cache does besides.
const (
	// expiryMargin is how long before its expiry a token is not handed out any more (broker/merge.go), except while there is no other.
	expiryMargin = 5 * time.Minute
	// lastMoment is how long before its expiry it is not handed out at all.
	lastMoment = 30 * time.Second
	// kubeletKeeps is maxCacheDuration where there is an agent: asking again is cheap.
	kubeletKeeps = time.Minute
	// stillWanted is how long after somebody last asked the agent goes on trying to get what it never had, and renewWanted how long it renews what it has: a day, or two lives of the token, which is the same.
	stillWanted = 5 * time.Minute
	renewWanted = 2 * TokenLife
)

// entry is what an agent holds for one registry. The images of a registry wait for one answer.
type entry struct {
	expires   time.Duration // of the token; zero: there is none
	asking    bool
	failures  int           // in a row
	again     time.Duration // not before that, after a failure
	due       time.Duration // when the agent asks of its own accord; an event for another time is void
	lastAsked time.Duration
	deadline  time.Duration // of the call under way
	waiting   []waiter
}

// waiter is a look-up that waits for the answer.
type waiter struct{ pull, turn int32 }

// backend is the ECR backend's process on a node, as far as it concerns one API: it keeps a token for the first half of its life, and requests for the same token wait for each other (backends/ecr/token.go).
type backend struct {
	expires, half time.Duration
	busy          bool
	queue         []int // entries; the first one's call is under way
}

func (r *run) backendOf(e int) int {
	node, registry := e/r.Registries, e%r.Registries
	return node*r.APIs + registry%r.APIs
}

// ask is the kubelet's request to the agent.
func (r *run) ask(who int) {
	p := &r.pulls[who]
	place := r.place(p)
	e := &r.entries[place]
	e.lastAsked = r.now
	soft := e.expires - expiryMargin
	switch {
	case r.now < soft:
		r.lookedUp(who, true, min(kubeletKeeps, soft-r.now))
		return
	case e.asking:
	case r.now < e.again:
		switch {
		case r.now < e.expires-lastMoment:
			r.lookedUp(who, true, 0)
			return
		case e.again > r.now+r.Timeout/2: // there would not be enough time left for the next attempt
			r.lookedUp(who, false, 0)
			return
		}
		r.dueAt(place, e.again)
	default:
		defer r.request(place)
	}
	e.waiting = append(e.waiting, waiter{int32(who), p.turn})
	r.queue.push(event{at: r.now + r.Timeout, kind: giveUp, who: int32(who), turn: p.turn})
}

func (r *run) dueAt(place int, t time.Duration) {
	r.entries[place].due = t
	r.at(t, entryDue, place)
}

// due is an entry's renewal, or its next attempt after a failure.
func (r *run) due(place int) {
	e := &r.entries[place]
	if e.due != r.now || e.asking {
		return
	}
	wanted := stillWanted
	if e.expires > r.now {
		wanted = renewWanted
	}
	if r.now-e.lastAsked > wanted {
		return
	}
	r.request(place)
}

// request asks the backend.
func (r *run) request(place int) {
	e := &r.entries[place]
	e.asking, e.deadline = true, r.now+r.Timeout
	which := r.backendOf(place)
	b := &r.backends[which]
	if r.now < b.half {
		r.arrived(place, true, b.expires)
		return
	}
	b.queue = append(b.queue, place)
	r.next(which)
}

// next starts the call of whoever is first in the queue. A call never ends at once, so nobody else changes the queue meanwhile.
func (r *run) next(which int) {
	b := &r.backends[which]
	for !b.busy && len(b.queue) > 0 {
		deadline := r.entries[b.queue[0]].deadline
		if r.now >= deadline {
			r.leaveQueue(b, false)
			continue
		}
		c := &r.calls[which]
		*c = call{api: c.api, adaptive: true, rate: c.rate, deadline: deadline}
		b.busy = true
		r.dial(which)
	}
}

func (r *run) leaveQueue(b *backend, ok bool) {
	place := b.queue[0]
	b.queue = b.queue[1:]
	r.arrived(place, ok, b.expires)
}

// tokenArrived is the end of a backend's call: the token is for all who wait, a failure for who asked.
func (r *run) tokenArrived(which int, ok bool) {
	b := &r.backends[which]
	b.busy = false
	if !ok {
		r.leaveQueue(b, false)
		r.next(which)
		return
	}
	b.expires, b.half = r.now+TokenLife, r.now+TokenLife/2
	for len(b.queue) > 0 {
		r.leaveQueue(b, true)
	}
}

// arrived is the backend's answer to an entry.
func (r *run) arrived(place int, ok bool, expires time.Duration) {
	e := &r.entries[place]
	e.asking, e.due = false, 0
	if ok {
		e.expires, e.failures, e.again = expires, 0, 0
		if r.Agent.Renewal != nil {
			from := time.Unix(0, int64(r.now))
			until := time.Unix(0, int64(expires-expiryMargin))
			r.dueAt(place, time.Duration(r.Agent.Renewal(from, until, r.random.Float64()).UnixNano()))
		}
	} else {
		e.failures++
		e.again = r.now + r.Agent.Pause(e.failures, r.random.Float64())
		if r.Agent.Background {
			r.dueAt(place, e.again)
		}
	}
	waiting := e.waiting
	e.waiting = nil
	for _, w := range waiting {
		switch {
		case r.pulls[w.pull].turn != w.turn: // has given up
		case ok:
			r.lookedUp(int(w.pull), true, min(kubeletKeeps, e.expires-expiryMargin-r.now))
		default:
			r.lookedUp(int(w.pull), r.now < e.expires-lastMoment, 0)
		}
	}
}

// upgrade replaces a node's agent. The backends are started anew in any case, so that the token that they keep is lost; a call under way is answered before the old ones end.
func (r *run) upgrade(node int) {
	for i := range r.APIs {
		r.backends[node*r.APIs+i].half = 0
	}
	if r.HandOver {
		return
	}
	for i := range r.Registries {
		e := &r.entries[node*r.Registries+i]
		if !e.asking {
			*e = entry{lastAsked: e.lastAsked}
		}
	}
}
