package acr

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/containers/azcontainerregistry"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
	"github.com/credential-broker/credential-broker/backends/webidentity"
)

// refreshToken is a registry's own token, which it takes as a password (https://azure.github.io/acr/AAD-OAuth.html).
type refreshToken struct {
	value   backends.Secret
	expires time.Time // zero: it does not say
}

// challenge asks a registry how it wants to be logged in to, and gives what it calls itself. Whoever answers is sent nothing, and is sent nothing afterwards if it wants that elsewhere than at the
// registry's own host: an Entra token is good for all registries of an identity.
func (a *azure) challenge(ctx context.Context, reg registry) (service string, err error) {
	calls := a.calls()
	defer calls.close()
	doing := "challenge of registry " + reg.name
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+reg.name+"/v2/", http.NoBody)
	if err != nil {
		return "", backends.Refused(fmt.Errorf("%s: its name makes no URL", doing))
	}
	resp, err := calls.Do(r) //nolint:contextcheck // the request has it
	if err != nil {
		return "", calls.explain(ctx, err, doing, nil)
	}
	_ = resp.Body.Close()
	header := resp.Header.Get("WWW-Authenticate")
	scheme, parameters, _ := strings.Cut(header, " ")
	if resp.StatusCode != http.StatusUnauthorized || !strings.EqualFold(scheme, "Bearer") {
		return "", calls.explain(ctx, nil, doing, func(last exchange) string {
			if last.status == http.StatusForbidden {
				return "the registry's firewall refuses this machine: allow its address, or use a private endpoint"
			}
			if last.status == http.StatusTooManyRequests || last.status >= 500 {
				return ""
			}
			return notARegistry
		})
	}
	realm, service := parameter(parameters, "realm"), parameter(parameters, "service")
	if !ownRealm(realm, reg.name) {
		slog.ErrorContext(ctx, "a registry wants to have logins sent elsewhere than to itself: nothing was sent", "registry", reg.name, "realm", remote.Cut(realm))
		return "", backends.Refused(fmt.Errorf("%s: it wants to have logins sent to %q, which is not its own address https://%s: nothing was sent; who answers in the registry's name may be an attacker: see its DNS, and the proxies on the way",
			doing, remote.Cut(realm), reg.name))
	}
	if service == "" || len(service) > 255 {
		return "", backends.Unavailable(fmt.Errorf("%s: %w", doing, errUndocumented))
	}
	return service, nil
}

const notARegistry = "what answers is no Azure Container Registry that takes logins by Entra: a connected registry, or another's, takes users and passwords of its own, for which there are the backends dockerconfig and vault"

// ownRealm says whether a realm is on the registry's own host, by TLS, at the usual port.
func ownRealm(realm, name string) bool {
	u, err := url.Parse(realm)
	return err == nil && u.Scheme == "https" && u.User == nil && u.Opaque == "" && strings.EqualFold(u.Hostname(), name) && (u.Port() == "" || u.Port() == "443") && u.Host == strings.TrimSuffix(u.Host, ".")
}

// parameter is one of a challenge's (RFC 9110, section 11.2); empty if it is not there. The first of a name counts.
func parameter(parameters, name string) string {
	for rest := parameters; rest != ""; {
		key, after, ok := strings.Cut(rest, "=")
		if !ok {
			return ""
		}
		key, after = strings.Trim(key, " \t,"), strings.TrimLeft(after, " \t")
		var value string
		if quoted, ok := strings.CutPrefix(after, `"`); ok {
			var text strings.Builder
			end := false
			for i := 0; i < len(quoted); i++ {
				if quoted[i] == '\\' && i+1 < len(quoted) {
					i++
				} else if quoted[i] == '"' {
					rest, end = quoted[i+1:], true
					break
				}
				text.WriteByte(quoted[i])
			}
			if !end {
				return ""
			}
			value = text.String()
		} else {
			value, rest, _ = strings.Cut(after, ",")
			value = strings.TrimSpace(value)
		}
		if strings.EqualFold(key, name) {
			return value
		}
	}
	return ""
}

// authentication is the SDK's client of a registry.
func (c *calls) authentication(reg registry) (*azcontainerregistry.AuthenticationClient, error) {
	return azcontainerregistry.NewAuthenticationClient("https://"+reg.name, &azcontainerregistry.AuthenticationClientOptions{ClientOptions: c.options(&publicCloud)})
}

// refresh exchanges an Entra token for one of the registry's own.
func (a *azure) refresh(ctx context.Context, reg registry, service string, by entraToken) (refreshToken, error) {
	calls := a.calls()
	defer calls.close()
	doing := "exchange of the Entra token at registry " + reg.name
	client, err := calls.authentication(reg)
	if err != nil {
		return refreshToken{}, backends.Refused(fmt.Errorf("%s: its name makes no URL", doing))
	}
	token := string(by.value)
	got, err := client.ExchangeAADAccessTokenForACRRefreshToken(ctx, azcontainerregistry.PostContentSchemaGrantTypeAccessToken, service,
		&azcontainerregistry.AuthenticationClientExchangeAADAccessTokenForACRRefreshTokenOptions{AccessToken: &token, Tenant: &by.tenant})
	if err != nil {
		return refreshToken{}, calls.explain(ctx, err, doing, func(last exchange) string {
			switch last.status {
			case http.StatusUnauthorized, http.StatusForbidden:
				return "the identity may do nothing there: " + a.missingRole(reg, by.object) + "; or the registry is in another tenant than the token (" + remote.Cut(by.tenant) + ")"
			case http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed:
				return notARegistry
			}
			return ""
		})
	}
	if got.RefreshToken == nil || *got.RefreshToken == "" {
		return refreshToken{}, backends.Unavailable(fmt.Errorf("%s: %w", doing, errUndocumented))
	}
	fresh := refreshToken{value: backends.Secret(*got.RefreshToken)}
	claims, err := webidentity.ParseClaims(*got.RefreshToken)
	switch {
	case err != nil || claims.Expires.IsZero():
		slog.WarnContext(ctx, "the registry's token does not say when it expires: it is not kept", "registry", reg.name)
	case !claims.Expires.After(a.now()):
		return refreshToken{}, backends.Unavailable(fmt.Errorf("%s: its token has expired at %s, and this machine's clock says %s: set the clock (timedatectl, chronyc)",
			doing, claims.Expires.UTC().Format(time.RFC3339), a.now().UTC().Format(time.RFC3339)))
	default:
		fresh.expires = claims.Expires
	}
	return fresh, nil
}

// login gets the registry's token for w. Entra and the registry are asked at the same time, since neither needs to know what the other says until the exchange.
func (b *Backend) login(ctx context.Context, w who, reg registry) (refreshToken, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type challenged struct {
		service string
		err     error
	}
	result := make(chan challenged, 1)
	go func() {
		defer backends.Span(ctx, "registry challenge")()
		service, err := b.azure.challenge(ctx, reg)
		result <- challenged{service, err}
	}()
	by, err := b.entraToken(ctx, w, reg)
	if err != nil {
		cancel()
		<-result
		return refreshToken{}, err
	}
	theirs := <-result
	if theirs.err != nil {
		return refreshToken{}, theirs.err
	}
	defer backends.Span(ctx, "registry exchange")()
	t, err := b.azure.refresh(ctx, reg, theirs.service, by)
	if own, ok := errors.AsType[*backends.Error](err); ok && own.Kind == backends.KindRefused {
		b.entra.Forget(entraKey(w, reg)) // a managed identity's lives for a day: if the machine has got another meanwhile, its own is wanted
	}
	return t, err
}

// entraKey is what an Entra token is filed under.
func entraKey(w who, reg registry) string { return w.key() + " " + reg.cloudName() }

// entraToken is w's token for registries, the one that is kept if it is good for long enough.
func (b *Backend) entraToken(ctx context.Context, w who, reg registry) (entraToken, error) {
	return b.entra.Get(ctx, entraKey(w, reg), w.until, func(ctx context.Context) (entraToken, error) {
		defer backends.Span(ctx, "Microsoft Entra ID")()
		return b.azure.entra(ctx, w, reg)
	})
}

// cloudName tells the clouds of registries apart; empty where the name does not say.
func (r registry) cloudName() string {
	if r.cloud == nil {
		return ""
	}
	return r.cloud.name
}
