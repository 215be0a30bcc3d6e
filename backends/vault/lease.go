package vault

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/credential-broker/credential-broker/backends"
)

// loan is a secret that was read, with the lease by which Vault takes it back. What is exported of it goes with the answer, as its Lease, so that another process can renew and revoke it too: it does not change while the loan
// is the same, since answers that share a loan are known by that.
type loan struct {
	// Key is the identity and the secret that it is of, and Namespace the secret's.
	Key       string `json:"key"`
	Namespace string `json:"namespace,omitempty"`
	// LeaseID is empty where there is nothing to renew or revoke.
	LeaseID string `json:"leaseID"`
	// Renewable, and Duration in seconds, are the lease's.
	Renewable bool `json:"renewable,omitempty"`
	Duration  int  `json:"duration"`
	// Token is the login on which the lease hangs, if that was got for it alone; the lease ends with it. Empty: whoever logs in asks for the lease.
	Token string `json:"token,omitempty"`
	// TokenRenewable and TokenExpires are the login's; zero: it does not end by itself, or is renewed.
	TokenRenewable bool      `json:"tokenRenewable,omitempty"`
	TokenExpires   time.Time `json:"tokenExpires,omitzero"`
	// Ends is when the credential ends by its own word, whatever its lease; zero: it has none.
	Ends time.Time `json:"ends,omitzero"`
	// Batch: the login cannot be revoked.
	Batch bool `json:"batch,omitempty"`
	// Data is what the secret says.
	Data map[string]any `json:"data"`

	data    map[string]any // the same, or that of a secret without a lease
	asked   time.Time      // for it, or for its renewal
	expires time.Time      // zero: nobody says
	refresh time.Duration  // when to read it again; zero: nobody says
}

// maxLease is what the broker takes, in bytes.
const maxLease = 16 << 10

// lease is the loan as an answer's Lease; empty if there is nothing to renew or revoke.
func (l loan) lease(ctx context.Context) backends.Secret {
	if l.LeaseID == "" {
		return ""
	}
	text, err := json.Marshal(l)
	if err != nil || len(text) > maxLease {
		slog.WarnContext(ctx, "the lease is too long for the broker: it is neither renewed nor revoked, and ends by itself", "bytes", len(text))
		return ""
	}
	return backends.Secret(text)
}

// loanOf takes it out again; nil: it is none of ours.
func loanOf(lease backends.Secret) *loan {
	var l loan
	decoder := json.NewDecoder(strings.NewReader(string(lease)))
	decoder.UseNumber() // as Vault's library has them
	if decoder.Decode(&l) != nil || l.LeaseID == "" {
		return nil
	}
	l.data = l.Data
	return &l
}

// renewedFor is the share of its life for which whoever is to renew a loan finds that somebody has just done so: many answers have one loan, and each is renewed. It is short, since the broker renews a lease of a minute and a half
// when a fifth of it is over, and never again if it does not get a longer one then.
const renewedFor = 6

// isOf says whether there is a loan, and it is of an identity and a secret.
func isOf(l *loan, key string) bool { return l != nil && l.Key == key }

// stale: a loan is renewed if a request wants that.
func (l loan) stale(now time.Time) bool { return now.Sub(l.asked) > l.expires.Sub(l.asked)/renewedFor }

// borrow gets a secret of an engine that makes it. Requests for the same one share it, for half of its life; then it is renewed, or the old one is that this process does not know, if that is worth it.
func (b *Backend) borrow(ctx context.Context, w who, e *entry, path, key string, old *loan) (loan, error) {
	if old != nil {
		b.loans.Outdate(key, func(l loan) bool { return l.stale(b.server.now()) })
	}
	return b.loans.Next(ctx, key, w.until(), func(ctx context.Context, kept *loan) (loan, error) {
		if kept == nil && isOf(old, key) {
			kept = old
		}
		if kept != nil && kept.LeaseID != "" {
			renewed, worth, err := b.renew(ctx, w, e, *kept)
			switch {
			case err == nil && worth:
				return renewed, nil
			case err != nil && b.server.now().Add(spare).Before(kept.expires): // what there is holds for a while yet
				slog.WarnContext(ctx, "a lease could not be renewed", "expires", kept.expires, "reason", err.Error())
				return *kept, nil
			case err != nil:
				return loan{}, err
			}
		}
		made, err := b.lend(ctx, w, e, path, key)
		if err == nil && made.LeaseID != "" {
			b.ungiven.add(made)
		}
		return made, err
	})
}

// spare is what a lease has to have left to be given out without a renewal.
const spare = time.Minute

// ungiven are the loans that no answer has had yet, by lease: nobody else knows of them, so that this process gives them back in the end.
type ungiven struct {
	mu    sync.Mutex
	loans map[string]loan
}

func (u *ungiven) add(l loan) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.loans == nil {
		u.loans = map[string]loan{}
	}
	maps.DeleteFunc(u.loans, func(_ string, other loan) bool { return !other.expires.After(l.asked) })
	u.loans[l.LeaseID] = l
}

// take is for whoever gives a loan to an answer, or back, and says whether no answer has it yet.
func (u *ungiven) take(l loan) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	_, ok := u.loans[l.LeaseID]
	delete(u.loans, l.LeaseID)
	return ok
}

func (u *ungiven) all() []loan {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Collect(maps.Values(u.loans))
}

// lend reads a secret of such an engine. The login that a lease hangs on is used for nothing else: the lease ends with it, and it with the lease.
func (b *Backend) lend(ctx context.Context, w who, e *entry, path, key string) (loan, error) {
	var made loan
	var shared bool
	on := func(l *login) (err error) {
		made, err = b.read(ctx, w, l, e, mount{engine: EngineOther}, path)
		if l.ours && (err != nil || made.LeaseID == "") {
			l.unclaim(err)
		}
		if err != nil {
			if made.LeaseID != "" && !l.ours { // it ends with no login of ours
				b.giveBackUnasked(ctx, made)
			}
			return err
		}
		made.Key, made.Data = key, made.data
		b.hang(ctx, &made, l)
		return nil
	}
	err := b.with(ctx, w, func(l *login) error {
		if shared = l.ours && !l.claim(); shared {
			return nil
		}
		return on(l)
	})
	if err != nil || !shared {
		return made, err
	}
	own, err := b.newLogin(ctx, w)
	if err != nil {
		return loan{}, err
	}
	defer func() { //nolint:contextcheck // nobody waits for a revocation
		b.retire(own) // if no lease hangs on it, nobody else knows of it
		b.leave(own)
	}()
	own.claim()
	err = on(own)
	return made, err
}

// hang notes the login that a lease hangs on, and has one of ours end with the lease, where that is sooner: nobody may be left to revoke it.
func (b *Backend) hang(ctx context.Context, l *loan, on *login) {
	if l.LeaseID == "" {
		return
	}
	ends := on.expires
	if on.ours {
		l.Token, l.TokenRenewable, l.Batch = string(on.token), on.renewable && !on.batch, on.batch
		if l.TokenRenewable && (ends.IsZero() || ends.After(l.expires.Add(spare))) {
			shorter, err := b.renewToken(ctx, on.token, l.Duration)
			if err != nil {
				slog.WarnContext(ctx, "the login of a lease outlasts it", "expires", ends, "reason", err.Error())
			} else {
				ends = shorter
			}
		}
		if !l.TokenRenewable {
			l.TokenExpires = ends
		}
	} else {
		ends = b.tokenExpiry(ctx, on)
	}
	l.expires = sooner(l.expires, ends)
}

// sooner is the earlier of two times, of which a zero one is never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// renewToken has a login last for so many seconds from now, be that longer or shorter than it would, and says until when it does.
func (b *Backend) renewToken(ctx context.Context, token backends.Secret, seconds int) (time.Time, error) {
	client, err := b.server.as(token, b.cfg.Auth.Namespace)
	if err != nil {
		return time.Time{}, err
	}
	asked := b.server.now()
	got, c, err := b.server.write(ctx, "renew the login of a lease", client, "auth/token/renew-self", map[string]any{"increment": seconds})
	if err != nil || got == nil || got.Auth == nil {
		return time.Time{}, b.server.explain(ctx, c, err, nil)
	}
	if got.Auth.LeaseDuration == 0 {
		return time.Time{}, nil
	}
	return asked.Add(time.Duration(got.Auth.LeaseDuration) * time.Second), nil
}

// tokenExpiry asks when a token ends that was not got here; zero: never, or nobody says. A Vault Agent or Proxy renews its own.
func (b *Backend) tokenExpiry(ctx context.Context, l *login) time.Time {
	if l.token == "" {
		return time.Time{}
	}
	got, asked, err := b.lookUpSelf(ctx, l)
	if err != nil {
		slog.WarnContext(ctx, "when the token ends is not known: the lease may end with it, sooner than it says", "reason", err.Error())
		return time.Time{}
	}
	ttl, err := got.TokenTTL()
	if err != nil || ttl == 0 {
		return time.Time{}
	}
	return asked.Add(ttl)
}

// lookUpSelf asks what Vault knows of a token.
func (b *Backend) lookUpSelf(ctx context.Context, l *login) (*api.Secret, time.Time, error) {
	client, err := b.server.as(l.token, b.cfg.Auth.Namespace)
	if err != nil {
		return nil, time.Time{}, err
	}
	asked := b.server.now()
	got, c, err := b.server.read(ctx, "look the token up", client, "auth/token/lookup-self", nil)
	if err != nil || got == nil {
		return nil, time.Time{}, b.server.explain(ctx, c, err, func(e exchange) string {
			if e.hint == hintDenied {
				return "to add to a policy of the token, unless it has the policy default: " + stanza("auth/token/lookup-self", "read")
			}
			return ""
		})
	}
	return got, asked, nil
}

// Renew answers with the same credentials, if their lease can be made to last, or else with others.
func (b *Backend) Renew(ctx context.Context, req backends.Request, lease backends.Secret) (backends.Response, error) {
	return b.answer(ctx, req, loanOf(lease))
}

// renew makes a loan last. It is not worth it where that is not possible for at least half as long as it was lent for at first: then another one is wanted, and this one ends by itself.
func (b *Backend) renew(ctx context.Context, w who, e *entry, l loan) (renewed loan, worth bool, err error) {
	if !l.Renewable {
		return loan{}, false, nil
	}
	defer backends.Span(ctx, "renewal of the lease")()
	token := backends.Secret(l.Token)
	ends := l.TokenExpires
	if token == "" {
		own, _, err := b.login(ctx, w)
		if err != nil {
			return loan{}, false, err
		}
		defer b.leave(own) //nolint:contextcheck // nobody waits for a revocation
		token, ends = own.token, b.tokenExpiry(ctx, own)
	}
	if l.TokenRenewable {
		if ends, err = b.renewToken(ctx, token, l.Duration); err != nil {
			return loan{}, false, lasting(err)
		}
	}
	client, err := b.server.as(token, e.Namespace)
	if err != nil {
		return loan{}, false, err
	}
	asked := b.server.now()
	got, c, err := b.server.write(ctx, "renew a lease", client, "sys/leases/renew", map[string]any{"lease_id": l.LeaseID, "increment": l.Duration})
	if err != nil || got == nil {
		return loan{}, false, lasting(b.server.explain(ctx, c, err, nil))
	}
	l.asked, l.expires = asked, sooner(sooner(asked.Add(time.Duration(got.LeaseDuration)*time.Second), ends), l.Ends)
	return l, l.expires.Sub(asked) >= time.Duration(l.Duration)*time.Second/2, nil
}

// lasting is err if Vault may take it back, and nil if it is its last word: then another lease is wanted.
func lasting(err error) error {
	if e, ok := errors.AsType[*backends.Error](err); ok && e.Kind == backends.KindRefused {
		return nil
	}
	return err
}

// Revoke ends the loan of an answer: by the login that it hangs on, which every token may end for itself, or by its own name.
func (b *Backend) Revoke(ctx context.Context, lease backends.Secret) error {
	b.using.RLock()
	defer b.using.RUnlock()
	l := loanOf(lease)
	if l == nil {
		return nil
	}
	b.ungiven.take(*l)
	return b.giveBack(ctx, *l)
}

// giveBackUnasked gives back a loan that no answer has.
func (b *Backend) giveBackUnasked(ctx context.Context, l loan) {
	if err := b.giveBack(ctx, l); err != nil {
		slog.WarnContext(ctx, "a lease that nobody gets was not revoked: it ends by itself", "expires", l.expires, "reason", err.Error())
	}
}

// giveBack ends a loan, which is given to nobody any more.
func (b *Backend) giveBack(ctx context.Context, l loan) error {
	b.loans.ForgetIf(l.Key, func(kept loan) bool { return kept.LeaseID == l.LeaseID })
	token := backends.Secret(l.Token)
	switch {
	case token != "" && !l.Batch:
		return b.revokeSelf(ctx, token)
	case token == "": // a login that is given to us, and knows no pod and no role
		own, _, err := b.login(ctx, who{})
		if err != nil {
			return err
		}
		defer b.leave(own) //nolint:contextcheck // nobody waits for a revocation
		token = own.token
	}
	client, err := b.server.as(token, l.Namespace)
	if err != nil {
		return err
	}
	_, c, err := b.server.write(ctx, "revoke a lease", client, "sys/leases/revoke", map[string]any{"lease_id": l.LeaseID})
	if err == nil {
		return nil
	}
	return b.server.explain(ctx, c, err, func(x exchange) string {
		if x.status == http.StatusForbidden {
			return "the lease ends by itself; to add to a policy of the token: " + stanza("sys/leases/revoke", "update")
		}
		return ""
	})
}
