package vault

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/hashicorp/vault/api"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
	"github.com/credential-broker/credential-broker/backends/internal/settings"
)

// Check finds out whether Vault is there and unsealed, who the login is, and, for an image, whether it may read the secret and whether that has what is wanted. It changes nothing, and has no engine make anything; what is merely
// worth knowing is logged.
func (b *Backend) Check(ctx context.Context, req backends.Request) error {
	b.using.RLock()
	defer b.using.RUnlock()
	ctx, cancel := remote.WithinBudget(ctx)
	defer cancel()
	if err := b.health(ctx); err != nil {
		return err
	}
	if req.Image == "" && (!b.cfg.Auth.node() || b.cfg.Auth.PodIdentity == settings.PodIdentityRequire) && req.Token == "" {
		slog.InfoContext(ctx, "only a request with a pod's token can be checked further: only pods log in")
		return nil
	}
	if req.Image == "" && len(b.role.parts) > 0 && b.role.literal() != b.cfg.Auth.Role {
		slog.InfoContext(ctx, "the role depends on the request: the login can be checked with an image", "role", b.cfg.Auth.Role)
		return nil
	}
	w, err := b.who(req)
	if err != nil {
		return err
	}
	return b.with(ctx, w, func(l *login) error {
		if err := b.whoAmI(ctx, l); err != nil {
			return err
		}
		if req.Image == "" {
			return nil
		}
		matching, _ := b.matching(req.Image)
		if len(matching) == 0 {
			return backends.Refused(fmt.Errorf("no secret of the settings is for %s: see secrets[].matchImages", remote.Cut(string(req.Image))))
		}
		var problems []error
		for _, e := range matching {
			if err := b.checkSecret(ctx, req, w, l, e); err != nil {
				problems = append(problems, err)
			}
		}
		return errors.Join(problems...)
	})
}

// health asks what anybody may ask (https://developer.hashicorp.com/vault/api-docs/system/health).
func (b *Backend) health(ctx context.Context) error {
	client, err := b.server.as("", "")
	if err != nil {
		return err
	}
	ctx, c := b.server.call(ctx, "state of Vault")
	h, err := client.Sys().HealthWithContext(ctx)
	if err != nil {
		return b.server.explain(ctx, c, err, nil)
	}
	state := exchange{}
	switch {
	case !h.Initialized:
		state.hint = hintUninitialized
	case h.Sealed:
		state.hint = hintSealed
	default:
		slog.InfoContext(ctx, "Vault answers", "address", b.server.address.String(), "version", remote.Cut(h.Version), "cluster", remote.Cut(h.ClusterName), "standby", h.Standby, "performanceStandby", h.PerformanceStandby)
		if b.cfg.Namespace != "" && !h.Enterprise {
			slog.WarnContext(ctx, "there is a namespace in the settings, which Vault Community does not heed; Vault Enterprise and OpenBao do", "namespace", b.cfg.Namespace)
		}
		return nil
	}
	return backends.Unavailable(fmt.Errorf("state of Vault: %s: %s: %s", b.server.address, state.words(), b.server.generalAdvice(state)))
}

// whoAmI tells whose login it is, by its own word.
func (b *Backend) whoAmI(ctx context.Context, l *login) error {
	got, _, err := b.lookUpSelf(ctx, l)
	if denied(err) {
		slog.WarnContext(ctx, "the login may not look itself up", "reason", err.Error())
		return nil
	}
	if err != nil {
		return err
	}
	ttl, _ := got.TokenTTL()
	policies, _ := got.TokenPolicies()
	name, _ := got.Data["display_name"].(string)
	lasts := ttl.String()
	if ttl == 0 {
		lasts = "for ever"
	}
	slog.InfoContext(ctx, "logged in to Vault", "as", remote.Cut(name), "policies", remote.Cut(strings.Join(policies, ", ")), "lasts", lasts)
	if slices.Contains(policies, "root") {
		slog.WarnContext(ctx, "the login may do everything in Vault: give it a policy that may read these secrets, and nothing else")
	}
	return nil
}

// checkSecret finds out whether the login may read an entry's secret, and, where reading makes nothing, reads it.
func (b *Backend) checkSecret(ctx context.Context, req backends.Request, w who, l *login, e *entry) error {
	key, err := b.authKey(req, w, e)
	if err != nil {
		return err
	}
	path, err := e.path.render(b.value(req, w))
	if err != nil {
		return backends.Refused(fmt.Errorf("%s.path: %w", e.field, err))
	}
	m := mount{e.mount, e.Engine}
	if e.mount == "" {
		if m, err = b.lookUp(ctx, w, l, e, path); err != nil {
			return err
		}
		if err := b.mayChoose(e, m); err != nil {
			return err
		}
	}
	client, err := b.server.as(l.token, e.Namespace)
	if err != nil {
		return err
	}
	doing := "ask what the login may do with " + m.apiPath(path)
	got, c, err := b.server.write(ctx, doing, client, "sys/capabilities-self", map[string]any{"paths": []string{m.apiPath(path)}})
	if err != nil || got == nil {
		if err = b.server.explain(ctx, c, err, nil); !denied(err) {
			return err
		}
		slog.WarnContext(ctx, "the login may not ask what it may: to add to a policy, unless it has the policy default: "+stanza("sys/capabilities-self", "update"))
		got = &api.Secret{Data: map[string]any{m.apiPath(path): []any{"read"}}} // which will be seen
	}
	may, _ := got.Data[m.apiPath(path)].([]any)
	if !slices.Contains(may, any("read")) && !slices.Contains(may, any("root")) {
		return backends.Refused(fmt.Errorf("%s: it may not read it: %s", doing, b.readAdvice(exchange{status: 403}, w, e, path, m.apiPath(path))))
	}
	if m.engine == EngineOther {
		slog.InfoContext(ctx, "the login may have credentials made; a check does not", "path", m.apiPath(path))
		return nil
	}
	read, err := b.read(ctx, w, l, e, m, path)
	if err != nil {
		return err
	}
	found, _, err := read.credentials(ctx, req.Image, key, e)
	if err != nil {
		return err
	}
	slog.InfoContext(ctx, "the login may read the secret", "path", m.apiPath(path), "engine", string(m.engine), "fields", fieldsOf(read.data), "credentials", len(found))
	return nil
}

// denied: the login's policies do not let it, and nothing else is wrong.
func denied(err error) bool {
	f, ok := errors.AsType[*failure](err)
	return ok && f.err == nil && f.hint == hintDenied
}
