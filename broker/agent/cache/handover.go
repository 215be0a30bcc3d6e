package cache

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/image"
	"github.com/credential-broker/credential-broker/proto/secret"
)

// handOverVersion is the form of what one process hands over to the next. Fields are only ever added; what cannot be said so is another version, which an older process ignores as a whole.
const handOverVersion = 1

// handOver is all that a successor needs. Its secrets are plain: it goes through a pipe between two processes of one program, and nowhere else.
type handOver struct {
	Version int            `json:"version"`
	Key     []byte         `json:"key"`
	Answers []handedAnswer `json:"answers"`
	Scopes  []handedScope  `json:"scopes"`
	Leases  []handedLease  `json:"leases,omitempty"`
}

// handedLease is one that is yet to be revoked. The provider may be none of the configuration's any more.
type handedLease struct {
	Fingerprint string           `json:"fingerprint"`
	Provider    *config.Provider `json:"provider"`
	Lease       []byte           `json:"lease"`
	Due         time.Time        `json:"due"`
}

type handedAnswer struct {
	handedAsk
	RegistryWide bool               `json:"registryWide"`
	Duration     *time.Duration     `json:"cacheDuration,omitempty"` // nanoseconds
	Credentials  []handedCredential `json:"credentials"`
	Lease        []byte             `json:"lease,omitempty"` // any bytes
	Token        string             `json:"token,omitempty"`
	TokenExpires time.Time          `json:"tokenExpires,omitzero"`
	Obtained     time.Time          `json:"obtained"`
	Fresh        time.Time          `json:"fresh"`
	Good         time.Time          `json:"good"`
	LastUsed     time.Time          `json:"lastUsed"`
	Provider     *config.Provider   `json:"provider,omitempty"` // of an answer with a lease, which is to be revoked if the successor has another
	Wanted       bool               `json:"wanted,omitempty"`
	Renewal      time.Time          `json:"renewal,omitzero"`
	Lapsed       bool               `json:"lapsed,omitempty"`
	Failures     int                `json:"failures,omitempty"`
	LastFailure  string             `json:"lastFailure,omitempty"`
	FailedAt     time.Time          `json:"failedAt,omitzero"`
	KeptUntil    time.Time          `json:"keptUntil,omitzero"` // by the kubelet
}

type handedCredential struct {
	Key      string    `json:"key"`
	Username string    `json:"username"`
	Password string    `json:"password"`
	Expires  time.Time `json:"expires,omitzero"`
}

type handedAsk struct {
	Fingerprint string            `json:"fingerprint"`
	Image       string            `json:"image"`
	Registry    string            `json:"registry"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Identity    handedIdentity    `json:"identity"`
}

type handedIdentity struct {
	ID      []byte    `json:"id"`
	Label   string    `json:"label"`
	Pod     bool      `json:"pod,omitempty"`
	Shared  bool      `json:"shared,omitempty"`
	Expires time.Time `json:"expires,omitzero"`
}

type handedScope struct {
	handedAsk
	RegistryWide bool `json:"registryWide"`
}

// Export writes all that is still good, secrets included, for Import in another process: only into a pipe to it that nobody else can read. Failures are not handed over.
func (c *Cache) Export(w io.Writer) error {
	return json.NewEncoder(w).Encode(c.snapshot())
}

func (c *Cache) snapshot() handOver {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	h := handOver{Version: handOverVersion, Key: slices.Clone(c.key[:])}
	for element := c.store.recency.Back(); element != nil; element = element.Prev() { // Import puts the last one first again
		i := element.Value.(*item) // the list holds nothing else
		switch {
		case i.scope != nil:
			h.Scopes = append(h.Scopes, handedScope{handedAsk: i.ask.handed(), RegistryWide: i.scope.registryWide})
		case i.answer != nil && now.Before(i.answer.good):
			h.Answers = append(h.Answers, i.handed())
		}
	}
	for _, i := range c.owed.items {
		lease, _ := i.lease.open(0)
		h.Leases = append(h.Leases, handedLease{Fingerprint: i.ask.fingerprint, Provider: i.ask.provider, Lease: []byte(lease), Due: i.due})
	}
	return h
}

func (a *ask) handed() handedAsk {
	return handedAsk{
		Fingerprint: a.fingerprint, Image: a.request.Image, Registry: a.registry, Annotations: a.request.Annotations,
		Identity: handedIdentity{ID: a.who.id[:], Label: a.who.label, Pod: a.who.pod, Shared: a.who.shared, Expires: a.who.expires},
	}
}

func (i *item) handed() handedAnswer {
	a := i.answer
	h := handedAnswer{
		handedAsk: i.ask.handed(), RegistryWide: a.registryWide, Duration: a.duration, Lease: []byte(a.lease()), Token: string(a.token()), TokenExpires: a.tokenExpires,
		Obtained: a.obtained, Fresh: a.fresh, Good: a.good, LastUsed: a.lastUsed, Wanted: a.wanted, Renewal: a.renewal, Lapsed: a.lapsed,
		Failures: a.failures, LastFailure: a.lastFailure, FailedAt: a.failedAt, KeptUntil: a.until,
	}
	if len(h.Lease) > 0 {
		h.Provider = i.ask.provider
	}
	answer, _ := a.answer()
	for _, from := range answer.Credentials {
		h.Credentials = append(h.Credentials, handedCredential{Key: from.Key, Username: from.Username, Password: string(from.Password), Expires: from.Expires})
	}
	return h
}

// Import takes in what another process has exported, as far as it belongs to these providers and is still good, and returns how many answers those were. It has to come before the first request. An error
// says that nothing could be taken: that the data is of another version, or broken.
func (c *Cache) Import(r io.Reader, providers []*config.Provider) (int, error) {
	c.mu.Lock()
	limit := 4 * int64(c.store.maxBytes) // base64 and names make it longer than what is kept
	c.mu.Unlock()
	var h handOver
	if err := json.NewDecoder(io.LimitReader(r, limit)).Decode(&h); err != nil {
		if _, ok := errors.AsType[*json.SyntaxError](err); ok || errors.Is(err, io.ErrUnexpectedEOF) {
			return 0, fmt.Errorf("take over cached answers: %w", err)
		}
		return 0, errors.New("take over cached answers: not of the form that is known") // the error might quote a secret
	}
	if h.Version != handOverVersion || len(h.Key) != len(hashKey{}) {
		return 0, fmt.Errorf("take over cached answers: version %d is not known, only %d", h.Version, handOverVersion)
	}
	known := make(map[string]*config.Provider, len(providers))
	for _, p := range providers {
		known[p.Fingerprint()] = p
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.store.items)+len(c.underWay) > 0 || c.closed {
		return 0, errors.New("take over cached answers: the cache is in use already")
	}
	c.key = hashKey(h.Key)
	now := c.now()
	for _, from := range h.Scopes {
		if a, ok := c.taken(from.handedAsk, known); ok {
			c.store.put(&item{key: itemKey{scopeItem, a.scope}, ask: a, scope: &keptScope{registryWide: from.RegistryWide}})
		}
	}
	n := 0
	for _, from := range h.Answers {
		a, ok := c.taken(from.handedAsk, known)
		if !ok || !from.sound(now) {
			h.Leases = append(h.Leases, handedLease{Fingerprint: from.Fingerprint, Provider: from.Provider, Lease: from.Lease, Due: latest(from.KeptUntil, from.LastUsed).Add(pullMargin)})
			continue
		}
		c.store.put(from.item(c, a, now))
		n++
	}
	for _, from := range h.Leases {
		c.takeLease(from, known)
	}
	c.arm()
	return n, nil
}

// takeLease takes in a lease that is yet to be revoked. A provider that has been removed is asked as it was.
func (c *Cache) takeLease(from handedLease, known map[string]*config.Provider) {
	provider := cmp.Or(known[from.Fingerprint], from.Provider)
	if provider == nil || provider.Name == "" || len(from.Lease) == 0 || from.Due.IsZero() {
		return
	}
	id := c.key.digest("lease", from.Fingerprint, string(from.Lease))
	if c.store.leases[id] == nil {
		c.owed.put(&item{key: itemKey{leaseItem, id}, ask: ask{provider: provider, fingerprint: from.Fingerprint}, due: from.Due, lease: seal(secret.Secret(from.Lease))})
	}
}

// taken makes a question of what was handed over, where it is one of a known provider.
func (c *Cache) taken(from handedAsk, known map[string]*config.Provider) (ask, bool) {
	provider := known[from.Fingerprint]
	if provider == nil || len(from.Identity.ID) != len(digest{}) || from.Identity.Pod != (provider.TokenAttributes != nil) ||
		from.Registry != image.Registry(from.Image) {
		return ask{}, false
	}
	who := from.Identity
	a := ask{
		provider: provider, fingerprint: from.Fingerprint, registry: from.Registry,
		request: broker.Request{Image: from.Image, Annotations: maps.Clone(from.Annotations)},
		who:     identity{id: digest(who.ID), label: who.Label, pod: who.Pod, shared: who.Shared, expires: who.Expires},
	}
	a.derive(&c.key)
	return a, true
}

// sound says that an answer's times make sense, and that it is still good.
func (h *handedAnswer) sound(now time.Time) bool {
	return now.Before(h.Good) && !h.Good.Before(h.Fresh) && h.Fresh.After(h.Obtained) && (h.Identity.Expires.IsZero() || !h.Good.After(h.Identity.Expires))
}

func (h *handedAnswer) item(c *Cache, a ask, now time.Time) *item {
	answer := broker.Answer{RegistryWide: h.RegistryWide, CacheDuration: h.Duration, Lease: secret.Secret(h.Lease)}
	for _, from := range h.Credentials {
		answer.Credentials = append(answer.Credentials, broker.Credential{Key: from.Key, Username: from.Username, Password: secret.Secret(from.Password), Expires: from.Expires})
	}
	i := &item{key: itemKey{answerItem, a.one}, ask: a, answer: &keptAnswer{
		stored: store(answer, secret.Secret(h.Token)), life: life{obtained: h.Obtained, fresh: h.Fresh, good: h.Good},
		lastUsed: h.LastUsed, wanted: h.Wanted, renewal: h.Renewal, lapsed: h.Lapsed, tokenExpires: h.TokenExpires,
		failures: h.Failures, lastFailure: h.LastFailure, failedAt: h.FailedAt, loan: c.loanOf(&a, answer, h.Obtained),
	}}
	i.answer.until = latest(h.KeptUntil, h.LastUsed)
	if h.KeptUntil.IsZero() { // of a version that did not say it
		i.answer.until = i.answer.keepable
	}
	if h.RegistryWide {
		i.key.digest = a.all
	}
	i.due = i.answer.due(now)
	return i
}
