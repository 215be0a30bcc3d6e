package cloud

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// assertionType is what client_assertion_type says of a JWT (RFC 7523, section 2.2).
const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// entraTokenEndpoint gives applications their own tokens (https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow).
func (c *Cloud) entraTokenEndpoint(w http.ResponseWriter, r *http.Request, t *tenant) {
	answer, no := c.clientCredentials(w, r, t)
	if no != nil {
		c.writeEntra(w, r, *no)
		return
	}
	w.Header().Set("Cache-Control", "no-store, no-cache")
	writeJSON(w, http.StatusOK, answer)
}

func (c *Cloud) clientCredentials(w http.ResponseWriter, r *http.Request, t *tenant) (map[string]any, *aadsts) {
	form, no := entraForm(w, r)
	if no != nil {
		return nil, no
	}
	for _, name := range []string{"grant_type", "client_id"} {
		if form.Get(name) == "" {
			return nil, missing(name)
		}
	}
	if grant := form.Get("grant_type"); grant != "client_credentials" {
		return nil, &aadsts{http.StatusBadRequest, "unsupported_grant_type", 70003, "The app requested an unsupported grant type '" + grant + "'."}
	}
	id := form.Get("client_id")
	p, known := c.principal(t, id)
	if !known {
		return nil, unknownApplication(id, t)
	}
	scope := form.Get("scope")
	if scope == "" {
		return nil, missing("scope")
	}
	if no := c.authenticateClient(t, p, form); no != nil {
		return nil, no
	}
	if p.Disabled {
		return nil, disabled(p)
	}
	entryOf(r).principal(p.ClientID)
	// MSAL asks for scopes that are for users too, which are of no effect.
	scopes := slices.DeleteFunc(strings.Fields(scope), func(s string) bool { return slices.Contains([]string{"openid", "offline_access", "profile"}, s) })
	resource, whole := strings.CutSuffix(strings.Join(scopes, " "), "/.default")
	if len(scopes) != 1 || !whole || resource == "" {
		return nil, &aadsts{
			http.StatusBadRequest, "invalid_scope", 1002012, "The provided value for scope " + scope +
				" is not valid. Client credential flows must have a scope value with /.default suffixed to the resource identifier (application ID URI).",
		}
	}
	app, known := c.application(t, resource)
	if !known {
		return nil, unknownResource(resource, t)
	}
	acr := "1"
	if form.Has("client_assertion") {
		acr = "2"
	}
	seconds := int(entraLife.Seconds()) - 1
	return map[string]any{
		"token_type": "Bearer", "expires_in": seconds, "ext_expires_in": seconds, "access_token": c.entraToken(t, p, app, resource, acr, entraLife),
	}, nil
}

// entraForm reads the request's form. A parameter that is there twice makes it malformed.
func entraForm(w http.ResponseWriter, r *http.Request) (url.Values, *aadsts) {
	if r.Method != http.MethodPost {
		return nil, &aadsts{http.StatusMethodNotAllowed, "invalid_request", 900561, "The endpoint only accepts POST requests. Received a " + r.Method + " request."}
	}
	body, tooLarge := bodyOf(w, r)
	form, err := url.ParseQuery(string(body))
	media, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	if tooLarge || err != nil || media != "application/x-www-form-urlencoded" {
		return nil, missing("grant_type") // it sees no parameters in what is no form
	}
	for name, values := range form {
		if len(values) > 1 {
			return nil, &aadsts{http.StatusBadRequest, "invalid_request", 9000410, "Malformed request: the parameter '" + name + "' is included more than once."}
		}
	}
	return form, nil
}

func missing(name string) *aadsts {
	return &aadsts{http.StatusBadRequest, "invalid_request", 900144, "The request body must contain the following parameter: '" + name + "'."}
}

func unknownApplication(id string, t *tenant) *aadsts {
	return &aadsts{
		http.StatusBadRequest, "unauthorized_client", 700016, "Application with identifier '" + id + "' was not found in the directory '" + t.ID +
			"'. This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant. " +
			"You may have sent your authentication request to the wrong tenant.",
	}
}

func unknownResource(resource string, t *tenant) *aadsts {
	return &aadsts{
		http.StatusBadRequest, "invalid_resource", 500011, "The resource principal named " + resource + " was not found in the tenant named " + t.ID +
			". This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant. " +
			"You might have sent your authentication request to the wrong tenant.",
	}
}

func disabled(p servicePrincipal) *aadsts {
	return &aadsts{http.StatusUnauthorized, "unauthorized_client", 7000112, "Application '" + p.ClientID + "' is disabled."}
}

// authenticateClient judges how a client proves who it is: by a secret or by an assertion, not both.
func (c *Cloud) authenticateClient(t *tenant, p servicePrincipal, form url.Values) *aadsts {
	secret, assertion := form.Get("client_secret"), form.Get("client_assertion")
	if assertion != "" {
		c.secrets.add(assertion)
	}
	switch {
	case assertion == "" && secret == "":
		return &aadsts{http.StatusUnauthorized, "invalid_client", 7000218, "The request body must contain the following parameter: 'client_assertion' or 'client_secret'."}
	case assertion != "" && form.Get("client_assertion_type") == "":
		return missing("client_assertion_type")
	case assertion != "" && form.Get("client_assertion_type") != assertionType:
		return &aadsts{http.StatusBadRequest, "invalid_request", 50027, "JWT token is invalid or malformed."}
	case assertion != "":
		return c.judgeAssertion(t, p, assertion)
	case !slices.Contains(p.Secrets, secret):
		return &aadsts{
			http.StatusUnauthorized, "invalid_client", 7000215, "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the client secret ID, " +
				"for a secret added to app '" + p.ClientID + "'.",
		}
	}
	return nil
}
