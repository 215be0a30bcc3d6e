// Package vault gives registry credentials that HashiCorp Vault or OpenBao keeps, or makes on demand. It knows how Vault is logged in to (identity.go, login.go, aws.go, gcp.go, azure.go), which secret is for which image (config.go,
// template.go), what the engines answer (secret.go), how long that is good for and how it is given back (lease.go), what is wrong when there is no answer (errors.go), and how to find that out beforehand (check.go). What all
// of them ask goes through server.go, to the addresses of the settings and nowhere else. Nothing is kept on disk.
package vault

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/authkey"
	"github.com/credential-broker/credential-broker/backends/internal/kept"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
	"github.com/credential-broker/credential-broker/backends/webidentity"
)

// Backend is the backend.
type Backend struct {
	cfg     Config
	server  *server
	role    template
	entries []entry
	web     webidentity.Source // nil: not used

	// logins are those that may be used again, by identity.
	logins kept.Tokens[string, *login]
	// loans are credentials with a lease, or an expiry of their own, by identity and secret.
	loans   kept.Tokens[string, loan]
	ungiven ungiven
	// mounts are what is known of Vault's engines, and lookUps has one request find out for many; nothing is kept there.
	mounts  mounts
	lookUps kept.Tokens[string, mount]
	// tasks are under way that nobody waits for before the end; revoking has an element for each revocation.
	tasks    sync.WaitGroup
	revoking chan struct{}

	// using is held by requests, and taken by the end.
	using  sync.RWMutex
	closed bool

	mu      sync.Mutex
	sweeper *time.Timer // nil: there is nothing to sweep
}

// entry is one of the settings' secrets, compiled.
type entry struct {
	*Secret
	field          string
	patterns       []authkey.Key // none: every image
	path, registry template
	mount          string // where the engine is, if the settings say which it is
}

// New checks the settings. It opens no connection, and reads no credentials.
func New(ctx context.Context, cfg Config) (*Backend, error) {
	env := takeEnvironment()
	cfg = cfg.withDefaults(env)
	b := &Backend{cfg: cfg}
	entries, role, err := b.cfg.validate()
	if err := errors.Join(env.problems(), err); err != nil {
		return nil, err
	}
	env.warn(ctx)
	b.entries, b.role = entries, role
	b.server = newServer(&b.cfg)
	if !b.cfg.Auth.WebIdentity.IsZero() {
		if b.web, err = webidentity.New(b.cfg.Auth.WebIdentity, defaultAudience, webSources); err != nil {
			return nil, err
		}
	}
	b.logins.Expires, b.logins.Dropped = (*login).keptUntil, b.retire
	b.lookUps.Expires = func(mount) time.Time { return time.Time{} }
	b.loans.Expires, b.loans.UntilEnd = func(l loan) time.Time { return l.expires }, true
	b.revoking = make(chan struct{}, maxRevoking)
	return b, nil
}

// defaultAudience is what an identity token is for, where the settings do not say.
const defaultAudience = "vault"

// Serving is the backend as it is served: one that never logs in has nothing to put away in the end, and is no backends.Closer. Ahead of the first request, which waits for it, it begins to do what that needs and nobody is asked
// for: to read the certificates that Vault's is verified with. What fails there, fails again in a request.
func (b *Backend) Serving() backends.Backend {
	b.tasks.Go(b.server.prepare)
	if b.cfg.Auth.logsIn() {
		return b
	}
	return struct {
		backends.Backend
		backends.Checker
		backends.Renewer
		backends.Revoker
	}{b, b, b, b}
}

// Credentials answers for one image.
func (b *Backend) Credentials(ctx context.Context, req backends.Request) (backends.Response, error) {
	return b.answer(ctx, req, nil)
}

// answer answers for one image. Old is a loan that may be renewed; nil: there is none.
func (b *Backend) answer(ctx context.Context, req backends.Request, old *loan) (backends.Response, error) {
	b.using.RLock()
	defer b.using.RUnlock()
	whole := ctx
	ctx, cancel := remote.WithinBudget(ctx)
	defer cancel()
	matching, scope := b.matching(req.Image)
	if len(matching) == 0 {
		slog.DebugContext(ctx, "no secret is for the image", "image", string(req.Image))
		return backends.Response{}, nil
	}
	w, err := b.who(req)
	if err != nil {
		return backends.Response{}, err
	}
	response := backends.Response{Scope: scope}
	var lent loan // with a lease, if one of them has it
	var failed []error
	for _, e := range matching {
		l, credentials, wide, err := b.entry(ctx, req, w, e, old)
		if err == nil && l.LeaseID != "" && lent.LeaseID != "" && l.LeaseID != lent.LeaseID {
			err = backends.InvalidConfig("all", "%s makes a credential with a lease, and another entry for the image does too: a broker knows one lease of an answer", e.field)
		}
		if err != nil {
			failed = append(failed, err)
			b.ungive(ctx, l)
			continue
		}
		if l.LeaseID != "" {
			lent = l
		}
		if !wide {
			response.Scope = backends.ScopeImage
		}
		response.Credentials = append(response.Credentials, credentials...)
		if l.refresh > 0 && (response.CacheDuration == nil || l.refresh < *response.CacheDuration) {
			response.CacheDuration = &l.refresh
		}
	}
	if len(failed) == len(matching) {
		return backends.Response{}, joined(failed)
	}
	for _, err := range failed {
		slog.WarnContext(ctx, "a secret for the image cannot be used; another one is", "reason", err.Error())
		response.CacheDuration = new(time.Duration) // so that it is tried again
	}
	response.Lease = lent.lease(ctx)
	if whole.Err() == nil { // otherwise nobody is there any more to get it
		b.ungiven.take(lent)
	}
	return response, nil
}

// entry is what one of the entries has for a request: the secret, and the credentials that are made of it; wide: every image of the registry gets the same. With an error, the secret may be there all the same.
func (b *Backend) entry(ctx context.Context, req backends.Request, w who, e *entry, old *loan) (l loan, credentials []backends.Credential, wide bool, err error) {
	key, err := b.authKey(req, w, e) // before anything is asked for that it would be in vain for
	if err != nil {
		return loan{}, nil, false, err
	}
	if l, err = b.secret(ctx, req, w, e, old); err != nil {
		return loan{}, nil, false, err
	}
	credentials, wide, err = l.credentials(ctx, req.Image, key, e)
	return l, credentials, wide, err
}

// ungive gives back what an answer was not made of and no other has, where there is no login of ours that it ends with: who has one gives it back in the end.
func (b *Backend) ungive(ctx context.Context, l loan) {
	if l.LeaseID != "" && !b.cfg.Auth.logsIn() && b.ungiven.take(l) {
		b.giveBackUnasked(ctx, l)
	}
}

// joined keeps the kind of a single error.
func joined(errs []error) error {
	if len(errs) == 1 {
		return errs[0]
	}
	kind := backends.Refused
	for _, err := range errs {
		if e, ok := errors.AsType[*backends.Error](err); !ok || e.Kind == backends.KindUnavailable {
			kind = backends.Unavailable
		}
	}
	return kind(fmt.Errorf("none of the %d secrets for the image can be used: %w", len(errs), errors.Join(errs...)))
}

// matching are the entries for an image: the first one, or with All every one; and how far an answer holds that is made of them.
func (b *Backend) matching(image backends.Image) ([]*entry, backends.Scope) {
	var found []*entry
	scope := backends.ScopeRegistry
	for i := range b.entries {
		e := &b.entries[i]
		matches := len(e.patterns) == 0
		for _, pattern := range e.patterns {
			if pattern.CoversHost(image.Host()) && pattern.Path != "" {
				scope = backends.ScopeImage // another image of the registry may get another answer
			}
			matches = matches || pattern.Covers(image.Host(), image.Path())
		}
		if !matches {
			continue
		}
		if e.path.uses("repository") || e.registry.uses("repository") || b.role.uses("repository") {
			scope = backends.ScopeImage
		}
		found = append(found, e)
		if !b.cfg.All {
			break
		}
	}
	return found, scope
}
