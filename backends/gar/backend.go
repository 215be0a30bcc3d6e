// Package gar gives tokens for Google's registries: Artifact Registry, and the gcr.io hosts that it serves. It knows which hosts are Google's and what they say (host.go), which Google identity
// asks (identity.go), where tokens of such an identity come from (metadata.go, file.go, federation.go), and how to find out why a pull would fail (check.go); it knows no registry protocol and keeps nothing
// on disk.
package gar

import (
	"context"
	"log/slog"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/kept"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
)

// Backend is the backend.
type Backend struct {
	cfg    Config
	google *google
	tokens kept.Tokens[string, token]
	// program is where gar-check is, for a check.
	program func() (string, error)
}

// New checks the settings. It reads nothing but environment variables, and opens no connection.
func New(_ context.Context, cfg Config) (*Backend, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	b := &Backend{cfg: cfg, program: checkProgram.Path}
	b.tokens.Expires = func(t token) time.Time { return t.expires }
	var err error
	b.google, err = newGoogle(&b.cfg)
	return b, err
}

// username is what Google's registries take an access token with (https://cloud.google.com/artifact-registry/docs/docker/authentication#token).
const username = "oauth2accesstoken"

// Credentials answers for one image, with a token for its host and for no other.
func (b *Backend) Credentials(ctx context.Context, req backends.Request) (backends.Response, error) {
	reg, ok := parseHost(req.Image, b.cfg.Hosts, b.cfg.UniverseDomain)
	if !ok {
		slog.InfoContext(ctx, "the image is in no registry of Google's that is known here: its host can be named in hosts, if it is one", "host", req.Image.Host())
		return backends.Response{}, nil
	}
	ctx, cancel := remote.WithinBudget(ctx)
	defer cancel()
	t, err := b.token(ctx, req, reg)
	if err != nil {
		return backends.Response{}, err
	}
	response := backends.Response{Scope: backends.ScopeRegistry}
	if len(b.cfg.ServiceAccounts) > 0 { // another project's images on the same host may be another account's
		response.Scope = backends.ScopeImage
	}
	key := reg.host
	if response.Scope == backends.ScopeImage {
		key = string(req.Image)
	}
	response.Credentials = []backends.Credential{{Key: key, Username: username, Password: t.value, Expires: t.expires}}
	return response, nil
}

// token finds out who asks, and gets that identity's token: the one that is kept, if it is good for long enough.
func (b *Backend) token(ctx context.Context, req backends.Request, reg registry) (token, error) {
	who, err := b.who(req, reg)
	if err != nil {
		return token{}, err
	}
	if own := b.cfg.UniverseDomain; own != "" && own != reg.universe {
		return token{}, backends.InvalidConfig("universeDomain", "%s takes tokens of %s, and this provider's are of %s: give the images of each a provider of their own", reg.host, reg.universe, own)
	}
	return b.tokens.Get(ctx, who.key(), who.until, func(ctx context.Context) (token, error) {
		defer backends.Span(ctx, "Google identity")()
		return b.google.token(ctx, who)
	})
}
