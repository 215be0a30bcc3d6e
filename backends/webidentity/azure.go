package webidentity

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/hosts"
)

// azure is the Azure Instance Metadata Service.
type azure struct {
	endpoint string
	id       AzureManagedIdentity
	client   *http.Client
	judge    judge
	world    world
}

func newAzure(c AzureManagedIdentity, j judge, w world) *azure {
	a := &azure{endpoint: c.Endpoint, id: c, client: metadataClient(), judge: j, world: w}
	if a.endpoint == "" {
		if a.endpoint = w.env("AZURE_POD_IDENTITY_AUTHORITY_HOST"); a.endpoint == "" {
			a.endpoint = metadataAddress
		}
	}
	return a
}

func (a *azure) String() string { return "Azure's metadata service at " + withoutQuery(a.endpoint) }

// identity names the managed identity that is asked for.
func (a *azure) identity() string {
	switch {
	case a.id.ClientID != "":
		return "the managed identity with client id " + a.id.ClientID
	case a.id.ObjectID != "":
		return "the managed identity with object id " + a.id.ObjectID
	case a.id.ResourceID != "":
		return "the managed identity " + a.id.ResourceID
	default:
		return "the machine's managed identity"
	}
}

// again: besides being busy or broken, the service is away while it is being updated (404, 410). See
// https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token, "Retry guidance".
func (a *azure) again(status int) bool {
	return busy(status) || status == http.StatusNotFound || status == http.StatusGone
}

// Token asks for an access token for the audience: for an application of the tenant's own, such a token is a JWT that others can verify.
func (a *azure) Token(ctx context.Context) (Token, error) {
	query := url.Values{"api-version": {"2018-02-01"}, "resource": {a.judge.audience}}
	for name, value := range map[string]string{"client_id": a.id.ClientID, "object_id": a.id.ObjectID, "msi_res_id": a.id.ResourceID} {
		if value != "" {
			query.Set(name, value)
		}
	}
	req, err := metadataRequest(ctx, a.endpoint, "/metadata/identity/oauth2/token", query)
	if err != nil {
		return Token{}, a.judge.misconfigured("", a.String(), "its address is none: %w; set endpoint, or mend AZURE_POD_IDENTITY_AUTHORITY_HOST", err)
	}
	req.Header.Set("Metadata", "true")
	answered, err := ask(ctx, a.client, req, a.world, a.again)
	if err != nil {
		if _, ok := errors.AsType[*absentError](err); ok {
			return Token{}, problem(backends.Unavailable, a.String(), "%w: is this machine on Azure, and is the metadata service allowed here?%s", err, a.judge.otherwise())
		}
		return Token{}, problem(backends.Unavailable, a.String(), "%w", err)
	}
	if answered.status != http.StatusOK {
		return Token{}, a.refusal(answered)
	}
	var body struct {
		AccessToken string `json:"access_token"`
	}
	if json.Unmarshal(answered.body, &body) != nil || body.AccessToken == "" {
		return Token{}, a.judge.misconfigured("", a.String(), "what it answers has no access_token: %s on a machine that is not on Azure", a.judge.elsewhere)
	}
	// An application that takes tokens of version 2.0 has its client id as their audience, whatever name it was asked for by. Which application that id is of, only
	// the tenant knows.
	j := a.judge
	if claims, err := ParseClaims(strings.TrimSpace(body.AccessToken)); err == nil && len(claims.Audience) == 1 &&
		(hosts.IsUUID(claims.Audience[0]) || strings.TrimSuffix(claims.Audience[0], "/") == strings.TrimSuffix(j.audience, "/")) {
		j.audience = claims.Audience[0]
	}
	return j.token(body.AccessToken, a.String())
}

// refusal says what an error of the service means. Its text is looked at, since the codes are few, and not shown.
func (a *azure) refusal(answered answer) error {
	var body struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	_ = json.Unmarshal(answered.body, &body) // an answer of another form has no code
	description := strings.ToLower(body.Description)
	status := answered.status
	switch {
	case a.again(status):
		return problem(backends.Unavailable, a.String(), "it is busy, broken or being updated (HTTP status %d)", status)
	case body.Error == "":
		return a.judge.misconfigured("", a.String(), "who answers there (HTTP status %d) is not it: %s on a machine that is not on Azure", status, a.judge.elsewhere)
	case body.Error == "invalid_resource" || strings.Contains(description, "aadsts500011") || strings.Contains(description, "aadsts50001:"):
		return a.judge.misconfigured("", a.String(), "the tenant has no application %q (HTTP status %d): register one with that application ID URI, or set %s to one that there is",
			a.judge.audience, status, a.judge.setting)
	case strings.Contains(description, "multiple user assigned identities"):
		return a.judge.misconfigured("", a.String(), "the machine has several managed identities (HTTP status %d): say which by clientID, objectID or resourceID", status)
	case strings.Contains(description, "identity not found") || strings.Contains(description, "no managed identity"):
		if a.id.ClientID+a.id.ObjectID+a.id.ResourceID == "" {
			return problem(backends.Refused, a.String(), "the machine has no managed identity (HTTP status %d): assign one to it", status)
		}
		return a.judge.misconfigured("", a.String(), "the machine does not have %s (HTTP status %d): assign it, or name another", a.identity(), status)
	default:
		return problem(backends.Refused, a.String(), "it refuses a token of %s for %q (HTTP status %d)", a.identity(), a.judge.audience, status)
	}
}
