package cache

import (
	"cmp"
	"slices"
	"time"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
)

// Scope is how far an answer reaches.
type Scope string

// The scopes.
const (
	ScopeImage    Scope = "image"
	ScopeRegistry Scope = "registry"
)

// Held is one answer that is kept, or a failure that is remembered without one. It holds no secret.
type Held struct {
	Provider    string `json:"provider"`
	Fingerprint string `json:"fingerprint"` // of the provider's entry, see config.Provider
	Scope       Scope  `json:"scope"`
	Name        string `json:"name"`     // of the image or registry
	Image       string `json:"image"`    // the image that was asked for
	Identity    string `json:"identity"` // for whom, for people: "node", "service account team/builder", "token of team/builder"
	// Keys are the auth keys of the credentials; none for "no credentials", or a failure.
	Keys []string `json:"keys,omitempty"`
	// Obtained is zero where only a failure is remembered.
	Obtained time.Time `json:"obtained,omitzero"`
	// Fresh is until when the answer is given as it is, and Good until when it is given while the source is unavailable.
	Fresh time.Time `json:"fresh,omitzero"`
	Good  time.Time `json:"good,omitzero"`
	// Expires is when the first of the credentials stops working; zero if nobody said.
	Expires time.Time `json:"expires,omitzero"`
	// Next is when the source is asked again without a request; zero for not at all.
	Next     time.Time `json:"next,omitzero"`
	LastUsed time.Time `json:"lastUsed,omitzero"`
	// Failures is how often in a row the source has failed since.
	Failures    int       `json:"failures,omitempty"`
	LastFailure string    `json:"lastFailure,omitempty"`
	FailedAt    time.Time `json:"failedAt,omitzero"`
}

func (a *ask) held(scope Scope) Held {
	h := Held{Provider: a.provider.Name, Fingerprint: a.fingerprint, Scope: scope, Name: a.request.Image, Image: a.request.Image, Identity: a.who.label}
	if scope == ScopeRegistry {
		h.Name = a.registry
	}
	return h
}

// held describes an answer or a failure.
func (i *item) held() Held {
	scope := ScopeImage
	if i.key.digest == i.ask.all {
		scope = ScopeRegistry
	}
	h := i.ask.held(scope)
	switch {
	case i.answer != nil:
		a := i.answer
		for _, credential := range a.credentials {
			h.Keys = append(h.Keys, credential.Key)
			h.Expires = earliest(h.Expires, credential.Expires)
		}
		h.Obtained, h.Fresh, h.Good, h.Next, h.LastUsed = a.obtained, a.fresh, a.good, a.renewal, a.lastUsed
		h.Failures, h.LastFailure, h.FailedAt = a.failures, a.lastFailure, a.failedAt
	case i.failure != nil:
		f := i.failure
		h.LastUsed, h.Failures, h.LastFailure, h.FailedAt = f.lastUsed, f.failures, f.text, f.at
		if f.retry {
			h.Next = i.due
		}
	}
	return h
}

// Held lists what is kept, in the order of provider, name and identity.
func (c *Cache) Held() []Held {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []Held
	for _, i := range c.store.items {
		if i.shown() {
			all = append(all, i.held())
		}
	}
	slices.SortFunc(all, func(a, b Held) int {
		return cmp.Or(cmp.Compare(a.Provider, b.Provider), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Identity, b.Identity), cmp.Compare(a.Fingerprint, b.Fingerprint),
			a.Obtained.Compare(b.Obtained))
	})
	return all
}

// Stats are counts since the cache began, and what it takes now.
type Stats struct {
	// Providers are in the order of their names.
	Providers []ProviderStats `json:"providers"`
	// Entries and Bytes are what is remembered now: answers, failures and registries' scopes. Bytes is an estimate.
	Entries int `json:"entries"`
	Bytes   int `json:"bytes"`
	// Unlocked is how many of the answers lie in memory that may be swapped out, because the system permits no more locked memory (RLIMIT_MEMLOCK) or has none.
	Unlocked int `json:"unlocked"`
}

// ProviderStats are the counts of one provider.
type ProviderStats struct {
	Provider string `json:"provider"`
	// Hits are requests answered from memory; Stale those of them whose answer was past its time, because the source was unavailable.
	Hits  uint64 `json:"hits"`
	Stale uint64 `json:"stale"`
	// Misses are requests for which the source was asked, Shared those that joined a call that was under way, Remembered those that got a failure that was known already.
	Misses     uint64 `json:"misses"`
	Shared     uint64 `json:"shared"`
	Remembered uint64 `json:"remembered"`
	// Calls are those to the source, and the next three those that failed, by kind.
	Calls         uint64 `json:"calls"`
	Unavailable   uint64 `json:"unavailable"`
	Refused       uint64 `json:"refused"`
	Misconfigured uint64 `json:"misconfigured"`
	// Renewals are answers that were got without a request, RenewalFailures answers that could not be replaced in time.
	Renewals        uint64 `json:"renewals"`
	RenewalFailures uint64 `json:"renewalFailures"`
	// Evictions are what was dropped to make room.
	Evictions uint64 `json:"evictions"`
	// LastFailure is the last failed call's error.
	LastFailure string    `json:"lastFailure,omitempty"`
	FailedAt    time.Time `json:"failedAt,omitzero"`
}

// Stats returns the counts.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Stats{Entries: len(c.store.items), Bytes: c.store.bytes}
	for _, p := range c.stats {
		s.Providers = append(s.Providers, *p)
	}
	slices.SortFunc(s.Providers, func(a, b ProviderStats) int { return cmp.Compare(a.Provider, b.Provider) })
	for _, i := range c.store.items {
		if i.answer != nil && len(i.answer.secrets.data) > 0 && !i.answer.secrets.locked {
			s.Unlocked++
		}
	}
	return s
}

func (c *Cache) statsOf(provider *config.Provider) *ProviderStats {
	s := c.stats[provider.Name]
	if s == nil {
		s = &ProviderStats{Provider: provider.Name}
		c.stats[provider.Name] = s
	}
	return s
}

// countCall counts a call to the Source.
func (c *Cache) countCall(provider *config.Provider, err error) {
	s := c.statsOf(provider)
	s.Calls++
	if err == nil {
		return
	}
	s.LastFailure, s.FailedAt = bounded(err.Error()), c.now()
	switch broker.KindOf(err) {
	case broker.Refused:
		s.Refused++
	case broker.Misconfigured:
		s.Misconfigured++
	default:
		s.Unavailable++
	}
}
