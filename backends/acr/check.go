package acr

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/containers/azcontainerregistry"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
	"github.com/credential-broker/credential-broker/backends/internal/settings"
	"github.com/credential-broker/credential-broker/proto/trust"
)

// Check finds out who asks, of which tenant, whether the registry lets that identity in, and, for an image, whether it may pull from the image's repository. The error names the command that helps.
// It changes nothing; what is merely worth knowing is logged.
func (b *Backend) Check(ctx context.Context, req backends.Request) error {
	ctx, cancel := remote.WithinBudget(ctx)
	defer cancel()
	reg, ok := parseHost(req.Image, b.cfg.Hosts)
	switch {
	case req.Image == "" && b.cfg.PodIdentity == settings.PodIdentityRequire && req.Token == "":
		slog.InfoContext(ctx, "only a request with a pod's token can be checked: podIdentity is Require")
		return nil
	case req.Image == "":
		return b.checkIdentities(ctx)
	case !ok:
		return backends.Refused(fmt.Errorf("%q is no registry of Azure's that is known here: it can be named in hosts, if it is one; connected registries take users and passwords of their own, for which there are the backends dockerconfig and vault", remote.Cut(req.Image.Host())))
	case reg.repository == "":
		return backends.Refused(fmt.Errorf("%q is no image's name: want %s/REPOSITORY", remote.Cut(string(req.Image)), reg.host))
	}
	w, err := b.who(req, reg)
	if err != nil {
		return err
	}
	var by entraToken
	if !w.anonymous() {
		if by, err = b.entraToken(ctx, w, reg); err != nil {
			return err
		}
		slog.InfoContext(ctx, "asking the registry as", "objectID", by.object, "tenant", by.tenant, "registry", reg.name)
	}
	service, err := b.azure.challenge(ctx, reg)
	if err != nil {
		return err
	}
	slog.InfoContext(ctx, "the registry takes logins at its own address", "registry", reg.name, "service", service)
	if w.anonymous() {
		return b.azure.checkAnonymous(ctx, reg, service)
	}
	refresh, err := b.azure.refresh(ctx, reg, service, by)
	if err != nil {
		return err
	}
	slog.InfoContext(ctx, "the registry has let the identity in", "expires", refresh.expires)
	return b.azure.checkPull(ctx, reg, service, refresh, by.object)
}

// checkIdentities gets a token of each identity, as far as it is known without a registry whom to ask.
func (b *Backend) checkIdentities(ctx context.Context) error {
	var problems []error
	for i := -1; i < len(b.cfg.Identities); i++ {
		w, reg := who{settings: &b.cfg.Identity, entry: i}, registry{}
		if i >= 0 {
			w.settings = &b.cfg.Identities[i].Identity
			labels := strings.Split(b.cfg.Identities[i].Registries[0], ".")
			reg.cloud = registryClouds[strings.Join(labels[len(labels)-2:], ".")]
		}
		if w.anonymous() || i < 0 && len(b.cfg.Identities) > 0 && b.cfg.Identity == (Identity{}) { // where all registries have theirs, the machine need not have one
			continue
		}
		by, err := b.entraToken(ctx, w, reg)
		switch {
		case errors.Is(err, errNoCloud):
			slog.InfoContext(ctx, "which cloud the identity is asked for in is said by the registry's name: it can be checked with an image", "tenant", w.settings.TenantID)
		case err != nil:
			problems = append(problems, err)
		default:
			slog.InfoContext(ctx, "there is a token of", "objectID", by.object, "tenant", by.tenant)
		}
	}
	return errors.Join(problems...)
}

// pullScope is what a pull from a repository asks for (https://distribution.github.io/distribution/spec/auth/scope/).
func pullScope(reg registry) string { return "repository:" + reg.repository + ":pull" }

// checkPull asks for what a container runtime would ask for.
func (a *azure) checkPull(ctx context.Context, reg registry, service string, with refreshToken, object string) error {
	calls := a.calls()
	defer calls.close()
	doing := "ask for a pull from " + reg.name + "/" + remote.Cut(reg.repository)
	client, err := calls.authentication(reg)
	if err != nil {
		return backends.Refused(fmt.Errorf("%s: its name makes no URL", doing))
	}
	grant := azcontainerregistry.TokenGrantTypeRefreshToken
	got, err := client.ExchangeACRRefreshTokenForACRAccessToken(ctx, service, pullScope(reg), string(with.value),
		&azcontainerregistry.AuthenticationClientExchangeACRRefreshTokenForACRAccessTokenOptions{GrantType: &grant})
	if err != nil {
		return calls.explain(ctx, err, doing, func(last exchange) string {
			if last.status == http.StatusUnauthorized || last.status == http.StatusForbidden {
				return a.missingRole(reg, object)
			}
			return ""
		})
	}
	if got.AccessToken == nil || *got.AccessToken == "" {
		return backends.Unavailable(fmt.Errorf("%s: %w", doing, errUndocumented))
	}
	if !grants(*got.AccessToken, reg.repository) {
		return backends.Refused(fmt.Errorf("%s: the registry gives a token that may not: %s", doing, a.missingRole(reg, object)))
	}
	slog.InfoContext(ctx, "the identity may pull", "registry", reg.name, "repository", reg.repository)
	return nil
}

// checkAnonymous asks for a pull as nobody.
func (a *azure) checkAnonymous(ctx context.Context, reg registry, service string) error {
	calls := a.calls()
	defer calls.close()
	doing := "ask for an anonymous pull from " + reg.name + "/" + remote.Cut(reg.repository)
	query := url.Values{"service": {service}, "scope": {pullScope(reg)}}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+reg.name+"/oauth2/token?"+query.Encode(), http.NoBody)
	if err != nil {
		return backends.Refused(fmt.Errorf("%s: its name makes no URL", doing))
	}
	resp, err := calls.Do(r) //nolint:contextcheck // the request has it
	if err != nil || resp.StatusCode != http.StatusOK {
		return calls.explain(ctx, err, doing, func(last exchange) string {
			if last.status == http.StatusUnauthorized || last.status == http.StatusForbidden {
				return fmt.Sprintf("the registry lets nobody pull without a login: `az acr update --name %s --anonymous-pull-enabled`, or name an identity", trust.Quote(resourceName(reg)))
			}
			return ""
		})
	}
	defer resp.Body.Close()
	var got struct {
		AccessToken string `json:"access_token"`
	}
	if json.NewDecoder(resp.Body).Decode(&got) != nil || !grants(got.AccessToken, reg.repository) {
		return backends.Refused(fmt.Errorf("%s: the registry gives a token that may not: is the name right?", doing))
	}
	slog.InfoContext(ctx, "anybody may pull", "registry", reg.name, "repository", reg.repository)
	return nil
}

// grants says whether a registry's access token lets pull from a repository, by what it says. One that says nothing is taken to.
func grants(token, repository string) bool {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return token != ""
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims struct {
		Access *[]struct {
			Type    string   `json:"type"`
			Name    string   `json:"name"`
			Actions []string `json:"actions"`
		} `json:"access"`
	}
	if err != nil || json.Unmarshal(payload, &claims) != nil || claims.Access == nil {
		return true
	}
	for _, access := range *claims.Access {
		if access.Type == "repository" && access.Name == repository && slices.Contains(access.Actions, "pull") {
			return true
		}
	}
	return false
}

// resourceName is the registry's name in Azure, as far as its host says it: before the hash of a domain name label, if it has one.
func resourceName(reg registry) string {
	label, _, _ := strings.Cut(reg.name, ".")
	name, _, _ := strings.Cut(label, "-")
	return name
}

// missingRole says which role is missing, and the command that assigns it.
func (a *azure) missingRole(reg registry, object string) string {
	if object == "" {
		object = "OBJECT_ID"
	}
	name, role := resourceName(reg), "AcrPull"
	if a.cfg.Scope == ScopeImage {
		role = "Container Registry Repository Reader"
	}
	scope := fmt.Sprintf("$(az acr show --name %s --query id --output tsv)", trust.Quote(name))
	text := fmt.Sprintf("%s is missing on %s: %#q", role, name, fmt.Sprintf("az role assignment create --assignee-object-id %s --assignee-principal-type ServicePrincipal --role %q --scope %q", object, role, scope))
	if a.cfg.Scope != ScopeImage {
		text += fmt.Sprintf(" (where %#q says AbacRepositoryPermissions, that role counts for nothing: assign Container Registry Repository Reader)", "az acr show --name "+trust.Quote(name)+" --query roleAssignmentMode")
	}
	return text
}
