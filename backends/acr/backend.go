// Package acr gives credentials for Azure Container Registry. It knows which hosts are Azure's and what they say (host.go, cloud.go), which identity of Microsoft Entra ID asks (identity.go, managed.go,
// azurejson.go), how a registry is logged in to with its token (exchange.go), and how to find out why a pull would fail (check.go); it pulls nothing and keeps nothing on disk.
package acr

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
	cfg   Config
	azure *azure
	// entra are the tokens of Entra's, by identity, and logins the registries' own, by registry and identity.
	entra  kept.Tokens[string, entraToken]
	logins kept.Tokens[string, refreshToken]
}

// New checks the settings. It opens no connection, and reads no credentials.
func New(_ context.Context, cfg Config) (*Backend, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	b := &Backend{cfg: cfg}
	b.azure = newAzure(&b.cfg)
	b.entra.Expires = func(t entraToken) time.Time { return t.expires }
	b.logins.Expires = func(t refreshToken) time.Time { return t.expires }
	return b, nil
}

// username is what registries take a token of theirs with (https://learn.microsoft.com/azure/container-registry/container-registry-authentication).
const username = "00000000-0000-0000-0000-000000000000"

// Credentials answers for one image, with a token for its registry and for no other.
func (b *Backend) Credentials(ctx context.Context, req backends.Request) (backends.Response, error) {
	reg, ok := parseHost(req.Image, b.cfg.Hosts)
	if !ok {
		slog.InfoContext(ctx, "the image is in no registry of Azure's that is known here: its host can be named in hosts, if it is one; connected registries take users and passwords of their own", "host", req.Image.Host())
		return backends.Response{}, nil
	}
	ctx, cancel := remote.WithinBudget(ctx)
	defer cancel()
	w, err := b.who(req, reg)
	if err != nil {
		return backends.Response{}, err
	}
	if w.anonymous() {
		slog.DebugContext(ctx, "the registry is pulled from anonymously, as the settings say", "registry", reg.name)
		return backends.Response{}, nil
	}
	t, err := b.logins.Get(ctx, reg.name+" "+w.key(), w.until, func(ctx context.Context) (refreshToken, error) { return b.login(ctx, w, reg) })
	if err != nil {
		return backends.Response{}, err
	}
	response := backends.Response{Scope: backends.ScopeRegistry}
	key := reg.host
	if b.cfg.Scope == ScopeImage {
		response.Scope, key = backends.ScopeImage, string(req.Image)
	}
	response.Credentials = []backends.Credential{{Key: key, Username: username, Password: t.value, Expires: t.expires}}
	return response, nil
}

// anonymous: nobody asks.
func (w who) anonymous() bool { return w.pod == "" && w.settings.Anonymous }
