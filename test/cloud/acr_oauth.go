package cloud

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// acrAccessLife is how long a registry's access tokens live.
const acrAccessLife = 75 * time.Minute

// acrExchange gives a refresh token for a token of Entra (https://github.com/Azure/acr/blob/main/docs/AAD-OAuth.md#calling-post-oauth2exchange-to-get-an-acr-refresh-token).
func (c *Cloud) acrExchange(w http.ResponseWriter, r *http.Request, registry azureRegistry) {
	form, no := acrForm(w, r, registry)
	if no == nil && !slices.Contains([]string{"access_token", "access_token_refresh_token"}, form.Get("grant_type")) {
		no = badACR("grant_type has to be access_token")
	}
	if no == nil && form.Get("access_token") == "" {
		no = badACR("access_token is missing")
	}
	if no == nil && form.Get("grant_type") == "access_token_refresh_token" && form.Get("refresh_token") == "" {
		no = badACR("refresh_token is missing")
	}
	var caller acrCaller
	if no == nil {
		caller, no = c.entraCaller(registry, form.Get("access_token"), form.Get("tenant"))
	}
	if no != nil {
		writeDistribution(w, r, *no)
		return
	}
	entryOf(r).principal(caller.client)
	writeJSON(w, http.StatusOK, map[string]string{"refresh_token": c.acrIssue(registry, caller, registry.life, map[string]any{
		"grant_type": "refresh_token", "tenant": strings.ToLower(registry.Tenant), "permissions": map[string]any{"actions": []string{"read"}}, "roles": []string{},
	})})
}

// acrIssue is a token of a registry's, for a caller.
func (c *Cloud) acrIssue(registry azureRegistry, caller acrCaller, life time.Duration, claims map[string]any) string {
	now := c.Now()
	claims["jti"], claims["sub"], claims["aud"], claims["version"], claims["rid"] = newUUID(), caller.object, registry.Host, "1.0", registry.id
	claims["iat"], claims["nbf"], claims["exp"] = now.Unix(), now.Unix(), now.Add(life).Unix()
	if caller.client != "" {
		claims["appid"] = caller.client
	}
	return c.acr.issuer.Token(claims)
}

// acrForm reads the form of a request to one of the endpoints for tokens.
func acrForm(w http.ResponseWriter, r *http.Request, registry azureRegistry) (url.Values, *refusal) {
	if r.Method != http.MethodPost {
		return nil, &refusal{http.StatusNotFound, "NOT_FOUND", "not found"} // and not 405: https://github.com/Azure/acr/issues/166
	}
	body, tooLarge := bodyOf(w, r)
	form, err := url.ParseQuery(string(body))
	switch media, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); {
	case media != "application/x-www-form-urlencoded":
		return nil, &refusal{http.StatusUnsupportedMediaType, "UNSUPPORTED", "the body has to be a form"}
	case tooLarge, err != nil:
		return nil, badACR("the body is not a form")
	case form.Get("service") != registry.Host:
		return nil, badACR("service has to be " + registry.Host)
	}
	return form, nil
}

func badACR(message string) *refusal {
	return &refusal{http.StatusBadRequest, "BAD_REQUEST", message}
}

// entraCaller finds out whose a token of Entra is: one of the registry's own tenant, for registries or for the Resource Manager, of somebody with a role here. Who names a tenant has to name
// the token's.
func (c *Cloud) entraCaller(registry azureRegistry, token, named string) (acrCaller, *refusal) {
	claims, err := unverifiedClaims(token)
	if err != nil {
		return acrCaller{}, unauthorizedACR()
	}
	text := func(name string) string {
		s, _ := claims[name].(string)
		return s
	}
	t := c.tenantUnder("", registry.Tenant)
	if text("iss") != t.v1.URL() || text("tid") != t.ID || named != "" && !strings.EqualFold(named, t.ID) {
		return acrCaller{}, unauthorizedACR()
	}
	if _, err := t.v1.verify(token); err != nil {
		return acrCaller{}, unauthorizedACR()
	}
	now := c.Now()
	expires, _ := numericDate(claims, "exp")
	from, _ := numericDate(claims, "nbf")
	audience := strings.TrimSuffix(text("aud"), "/")
	meant := append([]string{registryAudience, registryApp, managementApp}, t.cloud.services...)
	if !slices.Contains(meant, audience) || !now.Before(expires) || now.Before(from.Add(-skew)) || !registry.hasRole(text("oid")) {
		return acrCaller{}, unauthorizedACR()
	}
	return acrCaller{object: text("oid"), client: text("appid")}, nil
}

// acrTokenEndpoint gives access tokens: to who posts a refresh token, and by docker's older way to who has a user name and password, or may without
// (https://distribution.github.io/distribution/spec/auth/token/, https://distribution.github.io/distribution/spec/auth/oauth/).
func (c *Cloud) acrTokenEndpoint(w http.ResponseWriter, r *http.Request, registry azureRegistry) {
	var caller acrCaller
	var no *refusal
	form := r.URL.Query()
	if r.Method == http.MethodGet {
		username, password, _ := r.BasicAuth()
		if form.Get("service") != registry.Host {
			no = badACR("service has to be " + registry.Host)
		} else {
			caller, no = c.acrLogin(registry, username, password)
		}
	} else if form, no = acrForm(w, r, registry); no == nil {
		switch form.Get("grant_type") {
		case "refresh_token":
			caller, no = c.acrToken(registry, form.Get("refresh_token"), "refresh_token")
		case "password":
			caller, no = c.acrLogin(registry, form.Get("username"), form.Get("password"))
		default:
			no = badACR("grant_type has to be refresh_token or password")
		}
	}
	entryOf(r).principal(caller.client)
	var access []acrAccess
	if no == nil {
		access, no = registry.grant(caller, form["scope"])
	}
	if no != nil {
		writeDistribution(w, r, *no)
		return
	}
	writeJSON(w, http.StatusOK, map[string]string{"access_token": c.acrIssue(registry, caller, acrAccessLife, map[string]any{
		"grant_type": "access_token", "access": access, "roles": []string{},
	})})
}

// grant is what a caller may have of what it asks for. Without a scope it only wants to know whether it is somebody.
func (r azureRegistry) grant(caller acrCaller, scopes []string) ([]acrAccess, *refusal) {
	access := []acrAccess{}
	for scope := range strings.FieldsSeq(strings.Join(scopes, " ")) {
		kind, rest, _ := strings.Cut(scope, ":")
		at := strings.LastIndexByte(rest, ':')
		if at < 0 {
			return nil, badACR("scope " + scope + " is invalid")
		}
		name, wanted := rest[:at], strings.Split(rest[at+1:], ",")
		if kind != "repository" || !slices.Contains(wanted, "pull") && !slices.Contains(wanted, "metadata_read") || !r.allows(caller, name) {
			return nil, unauthorizedACR()
		}
		granted := slices.DeleteFunc(wanted, func(action string) bool { return action != "pull" && action != "metadata_read" })
		access = append(access, acrAccess{kind, name, granted})
	}
	if len(access) == 0 && caller.object == "" {
		return nil, unauthorizedACR()
	}
	return access, nil
}

// into reads a part of decoded JSON as what it is.
func into(part, target any) error {
	text, err := json.Marshal(part)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, target)
}
