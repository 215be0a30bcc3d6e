package vault

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/credential-broker/credential-broker/backends"
)

// login is a token of Vault's. One that was got here is given back as soon as nobody will use it any more, unless a lease hangs on it, which would end with it.
type login struct {
	token backends.Secret
	// asked is when it was asked for, and expires when it ends; zero: never, or nobody said.
	asked, expires time.Time
	renewable      bool
	// ours: it was got here, and can be revoked.
	ours, batch bool

	mu      sync.Mutex
	users   int
	retired bool // nobody begins to use it any more
	leased  bool // a lease hangs on it
	dead    bool // Vault does not know it any more
}

// longest is how long a login is used that does not end by itself, and longestOfPod how long a pod's is: most pods pull within minutes of their start.
const (
	longest      = time.Hour
	longestOfPod = 10 * time.Minute
)

// keptUntil is for kept.Tokens, which keeps for half of a life.
func (l *login) keptUntil() time.Time {
	if l.expires.IsZero() {
		return l.asked.Add(2 * longest)
	}
	return l.expires
}

// enter begins to use a login; false: it is too late for that.
func (l *login) enter() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.retired || l.leased {
		return false
	}
	l.users++
	return true
}

// claim has a lease hang on a login; false: others use it, who are not to lose it when the lease is revoked.
func (l *login) claim() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users != 1 || l.retired || l.leased {
		return false
	}
	l.leased = true
	return true
}

// unclaim: there is no lease after all. Where that is because of an error, one may have been made nevertheless, and is to end with the login.
func (l *login) unclaim(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f, failed := errors.AsType[*failure](err)
	refused := failed && f.err == nil && f.status >= 400 && f.status < 500
	l.leased, l.retired = false, l.retired || err != nil && !refused
}

// leave ends the use of a login.
func (b *Backend) leave(l *login) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.users--
	b.giveBackLocked(l)
}

// retire is for a login that nobody is given any more.
func (b *Backend) retire(l *login) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.retired = true
	b.giveBackLocked(l)
}

// bury is for a login that Vault does not take any more.
func (b *Backend) bury(w who, l *login) {
	b.logins.ForgetIf(w.key(), func(kept *login) bool { return kept == l })
	l.mu.Lock()
	defer l.mu.Unlock()
	l.retired, l.dead = true, true
}

func (b *Backend) giveBackLocked(l *login) {
	if !l.retired || l.users > 0 || l.leased || l.dead || !l.ours || l.batch {
		return
	}
	l.dead = true
	b.tasks.Go(func() {
		b.revoking <- struct{}{}
		defer func() { <-b.revoking }()
		ctx, cancel := context.WithTimeout(context.Background(), revokeTimeout)
		defer cancel()
		if err := b.revokeSelf(ctx, l.token); err != nil {
			slog.WarnContext(ctx, "a login was not revoked: it ends by itself", "expires", l.expires, "reason", err.Error())
		}
	})
}

const (
	// revokeTimeout bounds a revocation that nobody waits for, but for the end of the process.
	revokeTimeout = 4 * time.Second
	// maxRevoking bounds those at one time.
	maxRevoking = 4
)

// revokeSelf ends a token, and all leases that hang on it. That there is none any more is no error.
func (b *Backend) revokeSelf(ctx context.Context, token backends.Secret) error {
	client, err := b.server.as(token, b.cfg.Auth.Namespace)
	if err != nil {
		return err
	}
	_, c, err := b.server.write(ctx, "revoke a login", client, "auth/token/revoke-self", nil)
	if err == nil {
		return nil
	}
	if err = b.server.explain(ctx, c, err, func(e exchange) string {
		if e.status == http.StatusForbidden {
			return "to add to a policy of the login, unless it has the policy default: " + stanza("auth/token/revoke-self", "update")
		}
		return ""
	}); unknownToken(err) {
		return nil
	}
	return err
}

// Close gives the logins back, and what was lent and has reached nobody. It waits for requests that were given up and are still under way: what they get is given back too.
func (b *Backend) Close(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { // which ends with the process at the latest
		b.using.Lock()
		defer b.using.Unlock()
		b.closed = true
		if b.sweeper != nil {
			b.sweeper.Stop()
		}
		b.logins.Clear()
		nobodys := b.ungiven.all()
		failed := make([]error, len(nobodys))
		for i, l := range nobodys {
			b.tasks.Go(func() {
				b.revoking <- struct{}{}
				defer func() { <-b.revoking }()
				failed[i] = b.giveBack(ctx, l)
			})
		}
		b.tasks.Wait()
		done <- errors.Join(failed...)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return backends.Unavailable(fmt.Errorf("revoke the logins: %w", ctx.Err()))
	}
}

// sweepSoon has logins that nobody uses any more given back, though nobody asks for others.
func (b *Backend) sweepSoon() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sweeper == nil {
		b.sweeper = time.AfterFunc(longestOfPod, b.sweep)
	}
}

func (b *Backend) sweep() {
	b.using.RLock()
	defer b.using.RUnlock()
	if b.closed {
		return
	}
	left := b.logins.Sweep(b.server.now())
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sweeper = nil; left > 0 {
		b.sweeper = time.AfterFunc(longestOfPod, b.sweep)
	}
}

// login is w's, the one that is kept if it is good for long enough. Whoever gets it leaves it in the end. Fresh: it was made for this.
func (b *Backend) login(ctx context.Context, w who) (l *login, fresh bool, err error) {
	switch b.cfg.Auth.Method { //nolint:exhaustive // the rest log in
	case MethodNone:
		return &login{users: 1}, true, nil
	case MethodToken:
		token := b.cfg.Auth.token
		if b.cfg.Auth.TokenFile != "" {
			if token, err = readSecret(ctx, "auth.tokenFile", b.cfg.Auth.TokenFile); err != nil {
				return nil, false, err
			}
		}
		return &login{token: token, users: 1}, true, nil
	}
	latest := w.until()
	if pod := b.server.now().Add(longestOfPod); w.pod != "" && (latest.IsZero() || pod.Before(latest)) {
		latest = pod
	}
	for {
		var mine *login
		got, err := b.logins.Get(ctx, w.key(), latest, func(ctx context.Context) (_ *login, err error) {
			mine, err = b.newLogin(ctx, w)
			return mine, err
		})
		switch {
		case err != nil:
			return nil, false, err
		case mine != nil:
			b.sweepSoon()
			return mine, true, nil
		case got.enter():
			return got, false, nil
		}
		b.logins.ForgetIf(w.key(), func(kept *login) bool { return kept == got }) // a lease hangs on it now
	}
}

// newLogin logs in. Its one user is whoever asked.
func (b *Backend) newLogin(ctx context.Context, w who) (*login, error) {
	defer backends.Span(ctx, "Vault login")()
	auth := &b.cfg.Auth
	method, err := b.method(ctx, w)
	if err != nil {
		return nil, err
	}
	client, err := b.server.as("", auth.Namespace)
	if err != nil {
		return nil, err
	}
	doing := fmt.Sprintf("login to Vault at %s by auth/%s", b.server.address, auth.Mount)
	if w.role != "" {
		doing += fmt.Sprintf(", role %q", w.role)
	}
	asked := b.server.now()
	ctx, c := b.server.call(ctx, doing)
	got, err := method.Login(ctx, client)
	if err != nil {
		return nil, b.server.explain(ctx, c, err, func(e exchange) string { return b.loginAdvice(e, w) })
	}
	if got == nil || got.Auth == nil || got.Auth.ClientToken == "" {
		if got != nil && got.Auth != nil && got.Auth.MFARequirement != nil {
			return nil, backends.Refused(fmt.Errorf("%s: Vault wants a second factor, which nobody is there to give: exempt the role from it", doing))
		}
		return nil, backends.Unavailable(fmt.Errorf("%s: %w", doing, errUndocumented))
	}
	l := &login{token: backends.Secret(got.Auth.ClientToken), asked: asked, renewable: got.Auth.Renewable, ours: true, users: 1, batch: isBatch(got)}
	if got.Auth.LeaseDuration > 0 {
		l.expires = asked.Add(time.Duration(got.Auth.LeaseDuration) * time.Second)
	}
	slog.DebugContext(ctx, "logged in to Vault", "auth", auth.Mount, "role", w.role, "policies", got.Auth.Policies, "expires", l.expires)
	return l, nil
}

// isBatch: batch tokens cannot be revoked (https://developer.hashicorp.com/vault/docs/concepts/tokens#batch-tokens).
func isBatch(s *api.Secret) bool {
	token := s.Auth.ClientToken
	return len(token) > 4 && (token[:4] == "hvb." || token[:2] == "b.")
}

// with lets use have a login of w's. A login that is kept may have been revoked meanwhile: then there is another one.
func (b *Backend) with(ctx context.Context, w who, use func(*login) error) error {
	for {
		l, fresh, err := b.login(ctx, w)
		if err != nil {
			return err
		}
		err = use(l)
		if unknownToken(err) && !fresh {
			b.bury(w, l)
			b.leave(l) //nolint:contextcheck // nobody waits for a revocation
			continue
		}
		b.leave(l) //nolint:contextcheck // nobody waits for a revocation
		return err
	}
}
