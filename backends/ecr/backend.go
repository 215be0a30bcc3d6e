// Package ecr gives tokens for Amazon's registries: ECR in every partition, and ECR Public. It knows which hosts are Amazon's and what they say (host.go), which AWS
// identity asks (identity.go), and how to ask (token.go); it knows no registry protocol and keeps nothing on disk.
package ecr

import (
	"cmp"
	"context"
	"log/slog"
	"os"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/kept"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
)

// Backend is the backend.
type Backend struct {
	cfg      Config
	sessions *sessions
	tokens   kept.Tokens[tokenKey, token]
}

// New checks the settings. It reads nothing but environment variables, and opens no connection.
func New(_ context.Context, cfg Config) (*Backend, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.PodRoleARN == "" {
		if cfg.PodRoleARN = os.Getenv("AWS_ECR_ROLE_ARN"); cfg.PodRoleARN != "" && !validRoleARN(cfg.PodRoleARN) {
			return nil, backends.InvalidConfig("podRoleARN", "AWS_ECR_ROLE_ARN: want a role such as arn:aws:iam::123456789012:role/name, got %q", cfg.PodRoleARN)
		}
	}
	b := &Backend{cfg: cfg}
	b.tokens.Expires = func(t token) time.Time { return t.expires }
	var err error
	b.sessions, err = newSessions(&b.cfg)
	return b, err
}

// anonymousFor is how long "no token, pull anonymously" is reused: short enough for a permission that has just been granted.
const anonymousFor = 5 * time.Minute

// Credentials answers for one image.
func (b *Backend) Credentials(ctx context.Context, req backends.Request) (backends.Response, error) {
	reg, ok := parseHost(req.Image, b.cfg.RegistrySuffixes)
	if !ok {
		slog.InfoContext(ctx, "the image is in no registry of Amazon's that is known here: its domain can be named in registrySuffixes, if it is one", "host", req.Image.Host())
		return backends.Response{}, nil
	}
	response := backends.Response{Scope: backends.ScopeRegistry}
	key := reg.host
	if b.cfg.Scope == ScopeImage {
		response.Scope, key = backends.ScopeImage, string(req.Image)
	}
	anonymously := func() backends.Response {
		response.CacheDuration = new(anonymousFor)
		return response
	}
	if reg.public && b.cfg.Public == PublicAnonymous {
		return anonymously(), nil
	}
	ctx, cancel := remote.WithinBudget(ctx)
	defer cancel()
	t, err := b.token(ctx, req, reg)
	if err != nil && reg.public && b.cfg.Public == PublicAnonymousFallback && anonymousWillDo(err) {
		slog.WarnContext(ctx, "no token for ECR Public: images are pulled anonymously, at the lower rate limit", "reason", err.Error())
		return anonymously(), nil
	}
	if err != nil {
		return backends.Response{}, err
	}
	response.Credentials = []backends.Credential{{Key: key, Username: t.username, Password: t.password, Expires: t.expires}}
	return response, nil
}

// token finds out who asks, and gets that identity's token for the registry's region: the one that is kept, if it is good for long enough.
func (b *Backend) token(ctx context.Context, req backends.Request, reg registry) (token, error) {
	who, err := b.who(req, reg)
	if err != nil {
		return token{}, err
	}
	return b.tokens.Get(ctx, tokenKey{who: who.key(), endpoint: reg.endpointKey()}, who.until, func(ctx context.Context) (token, error) {
		end := backends.Span(ctx, "AWS configuration")
		s, err := b.sessions.open(ctx, reg)
		end()
		if err != nil {
			return token{}, err
		}
		end = backends.Span(ctx, "AWS identity")
		provider, err := s.provider(ctx, who)
		end()
		if err != nil {
			return token{}, err
		}
		defer backends.Span(ctx, "registry token")()
		return s.authorizationToken(ctx, provider, reg)
	})
}

// endpointKey is equal for registries whose tokens are interchangeable: those of one region and kind, whatever the account.
func (r registry) endpointKey() registry {
	r.host, r.account = "", ""
	return r
}

// stsRegion is the region whose STS is asked for a registry of r.
func (c *Config) stsRegion(r registry) string { return cmp.Or(c.STSRegion, r.region) }
