package cache

import (
	"container/heap"
	"container/list"
	"maps"
	"strings"
	"time"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/image"
	"github.com/credential-broker/credential-broker/proto/secret"
)

// kind is what an item remembers.
type kind byte

const (
	answerItem kind = iota
	failureItem
	scopeItem
	leaseItem
)

// itemKey is under what something is remembered.
type itemKey struct {
	kind kind
	digest
}

// item is one thing that the cache remembers: an answer, a failure, a registry's scope, or a lease whose answer is gone.
type item struct {
	key  itemKey
	ask  ask // without its token
	size int // of memory, in bytes; an estimate

	// due is when something is to be done about it: zero for never.
	due   time.Time
	place int // in the schedule, -1 if it is not there

	recency *list.Element

	// Of these one is there.
	answer  *keptAnswer
	failure *keptFailure
	scope   *keptScope
	lease   *sealed
}

// keptAnswer is an answer with what is to become of it.
type keptAnswer struct {
	stored
	life

	lastUsed time.Time
	// wanted: asked for since it was obtained.
	wanted bool

	// renewal is when it is to be renewed, or tried again: zero for never.
	renewal time.Time
	// renewing: that is being done, or waits for its turn.
	renewing bool
	// lapsed: nobody wanted it when it was to be renewed, or it could not be worth it.
	lapsed bool
	// tokenExpires is when the token to renew with does.
	tokenExpires time.Time

	failures    int // to renew it, in a row
	lastFailure string
	failedAt    time.Time

	loan
}

// sharedLease is what several answers may have come with.
type sharedLease struct {
	answers int
	until   time.Time // loan's, of those that are gone
	// expires is loan's, the latest of them all: one may have been renewed after another. endless: of one it is not known.
	expires time.Time
	endless bool
}

// lasts takes note of when an answer's credentials stop working.
func (s *sharedLease) lasts(l loan) {
	s.expires, s.endless = latest(s.expires, l.expires), s.endless || l.expires.IsZero()
}

// ends is when the last of them does; zero where that is not known.
func (s *sharedLease) ends() time.Time {
	if s.endless {
		return time.Time{}
	}
	return s.expires
}

// keptFailure is one that need not be found out again at once.
type keptFailure struct {
	kind     broker.Kind
	text     string
	failures int // in a row
	at       time.Time
	// until is how long it is taken for the truth, and for a source that is unavailable also when it is asked again.
	until    time.Time
	lastUsed time.Time
	// retry: the cache asks again by itself.
	retry bool
	token *sealed // to ask again with; nil if there is none
}

// holds says that it is still taken for the truth. A failure of the future is none: the clock has been put back since.
func (f *keptFailure) holds(now time.Time) bool { return now.Before(f.until) && !now.Before(f.at) }

// mark says that the failure is only there to keep the cache from asking for one image after the other.
func (f *keptFailure) mark() bool { return !f.retry && !f.kind.Lasting() }

// keptScope is how far a provider's answers for a registry reach, as far as the last one tells.
type keptScope struct {
	registryWide bool
}

// shown says that people hear of an item.
func (i *item) shown() bool { return i.answer != nil || i.failure != nil && !i.failure.mark() }

func (i *item) wipe() {
	switch {
	case i.answer != nil:
		i.answer.secrets.wipe()
	case i.failure != nil && i.failure.token != nil:
		i.failure.token.wipe()
	case i.lease != nil:
		i.lease.wipe()
	}
}

// token is the one that the cache may ask again with.
func (i *item) token() secret.Secret {
	switch {
	case i.answer != nil:
		return i.answer.token()
	case i.failure != nil && i.failure.token != nil:
		token, _ := i.failure.token.open(0)
		return token
	}
	return ""
}

// itemOverhead is what an item takes besides what is counted, in bytes, measured as the growth of the heap over 10,000 items.
const itemOverhead = 1200

func (i *item) measure() {
	i.size = itemOverhead + len(i.ask.request.Image) + len(i.ask.registry) + len(i.ask.who.label)
	for name, value := range i.ask.request.Annotations {
		i.size += len(name) + len(value) + 32
	}
	switch {
	case i.answer != nil:
		i.size += i.answer.size()
	case i.failure != nil:
		i.size += len(i.failure.text)
		if i.failure.token != nil {
			i.size += i.failure.token.size()
		}
	case i.lease != nil:
		i.size += i.lease.size()
	}
}

// store holds items within bounds, knows which was used least recently, and which is due next. It does no locking.
type itemStore struct {
	maxEntries, maxBytes int

	items    map[itemKey]*item
	bytes    int
	recency  list.List // of *item, most recently used first
	schedule schedule
	evicted  func(*item)
	// leases are those that answers came with. released hears of an answer with one that is dropped, while its secrets are still there.
	leases   map[digest]*sharedLease
	released func(*item)
}

func (s *itemStore) get(key itemKey) *item { return s.items[key] }

// use makes an item the one that goes last when room is needed.
func (s *itemStore) use(i *item) { s.recency.MoveToFront(i.recency) }

// put takes an item in, in the place of what had its key, and makes room for it.
func (s *itemStore) put(i *item) {
	if old := s.items[i.key]; old != nil {
		s.drop(old)
	}
	i.measure()
	i.place = -1
	i.recency = s.recency.PushFront(i)
	s.items[i.key] = i
	s.bytes += i.size
	if i.leased() {
		shared := s.leases[i.answer.id]
		if shared == nil {
			shared = &sharedLease{}
			s.leases[i.answer.id] = shared
		}
		shared.answers++
		shared.lasts(i.answer.loan)
	}
	s.plan(i, i.due)
	for len(s.items) > s.maxEntries || s.bytes > s.maxBytes {
		last := s.recency.Back().Value.(*item) // the list holds nothing else
		s.drop(last)
		s.evicted(last)
	}
}

// resize counts an item anew whose content has changed.
func (s *itemStore) resize(i *item) {
	before := i.size
	i.measure()
	s.bytes += i.size - before
}

// drop forgets an item and wipes its secrets.
func (s *itemStore) drop(i *item) {
	if s.items[i.key] != i {
		return
	}
	delete(s.items, i.key)
	s.recency.Remove(i.recency)
	s.plan(i, time.Time{})
	s.bytes -= i.size
	if i.leased() {
		s.release(i)
	}
	i.wipe()
}

// release notes that an answer is gone with its share of a lease. The last one to go has been in use for as long as any of them.
func (s *itemStore) release(i *item) {
	shared := s.leases[i.answer.id]
	shared.until = latest(shared.until, i.answer.until)
	i.answer.until, i.answer.expires = shared.until, shared.ends()
	if shared.answers--; shared.answers == 0 {
		delete(s.leases, i.answer.id)
	}
	s.released(i)
}

// plan says when an item is due: the zero time for never.
func (s *itemStore) plan(i *item, due time.Time) {
	i.due = due
	switch {
	case due.IsZero() && i.place >= 0:
		heap.Remove(&s.schedule, i.place)
	case due.IsZero():
	case i.place >= 0:
		heap.Fix(&s.schedule, i.place)
	default:
		heap.Push(&s.schedule, i)
	}
}

// next is the item that is due first; nil if none is due ever.
func (s *itemStore) next() *item {
	if len(s.schedule) == 0 {
		return nil
	}
	return s.schedule[0]
}

// schedule is a heap (container/heap) of items, the one that is due first on top.
type schedule []*item //nolint:recvcheck // container/heap wants it so

func (s schedule) Len() int           { return len(s) }
func (s schedule) Less(i, j int) bool { return s[i].due.Before(s[j].due) }
func (s schedule) Swap(i, j int) {
	s[i], s[j] = s[j], s[i]
	s[i].place, s[j].place = i, j
}

// Push implements heap.Interface.
func (s *schedule) Push(x any) {
	i := x.(*item) // the heap holds nothing else
	i.place = len(*s)
	*s = append(*s, i)
}

// Pop implements heap.Interface.
func (s *schedule) Pop() any {
	last := len(*s) - 1
	i := (*s)[last]
	(*s)[last] = nil
	*s = (*s)[:last]
	i.place = -1
	return i
}

// ask is one question to one provider.
type ask struct {
	provider    *config.Provider
	fingerprint string
	request     broker.Request
	registry    string
	who         identity
	// one and all are what an answer for this image alone, and one for its whole registry, are kept under; group is what the registry's scope is.
	one, all, scope digest
}

func (k *hashKey) question(provider *config.Provider, request broker.Request, registry string, now time.Time) ask {
	if provider.TokenAttributes == nil {
		request = broker.Request{Image: request.Image} // such a provider sees nothing of the pod
	}
	a := ask{provider: provider, fingerprint: provider.Fingerprint(), request: request, registry: registry, who: k.identify(provider, request, now)}
	a.derive(k)
	return a
}

// derive makes the keys from what they depend on: the provider's whole configuration, how far the answer reaches, and for whom it is.
func (a *ask) derive(k *hashKey) {
	id := string(a.who.id[:])
	a.one = k.digest("image", a.fingerprint, a.request.Image, id)
	a.all = k.digest("registry", a.fingerprint, a.registry, id)
	a.scope = k.digest("scope", a.fingerprint, a.registry)
}

// withoutToken is what may be kept in ordinary memory.
func (a *ask) withoutToken() ask {
	kept := *a
	kept.request = broker.Request{Image: strings.Clone(a.request.Image), Annotations: maps.Clone(a.request.Annotations)}
	kept.registry = image.Registry(kept.request.Image)
	return kept
}
