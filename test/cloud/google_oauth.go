package cloud

import (
	"cmp"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const googleTokenURI = "https://oauth2.googleapis.com/token"

// googleLife is how long Google's access tokens live.
const googleLife = 3599 * time.Second

// grantType is the beginning of RFCs' names for grants.
const grantType = "urn:ietf:params:oauth:grant-type:"

// serveGoogleOAuth is the token endpoint (https://developers.google.com/identity/protocols/oauth2/service-account#httprest).
func (c *Cloud) serveGoogleOAuth(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/token" || r.Method != http.MethodPost {
		entryOf(r).code("Not Found")
		http.Error(w, "Error 404 (Not Found)", http.StatusNotFound)
		return
	}
	form, no := googleForm(w, r)
	grant := form.Get("grant_type")
	if grant != "" {
		entryOf(r).operation(strings.TrimPrefix(grant, grantType))
	}
	if c.faulty(w, r, "google-oauth", entryOf(r).name(), func(f Fault) { writeOAuth(w, r, oauthFault(f)) }) {
		return
	}
	var answer map[string]any
	switch {
	case no != nil:
	case grant == grantType+"jwt-bearer":
		answer, no = c.jwtBearer(r, form.Get("assertion"))
	case grant == "refresh_token":
		answer, no = c.refreshToken(r, form)
	case grant == "":
		no = &refusal{http.StatusBadRequest, "invalid_request", "Missing required parameter: grant_type"}
	default:
		no = &refusal{http.StatusBadRequest, "unsupported_grant_type", "Invalid grant_type: " + grant}
	}
	if no != nil {
		writeOAuth(w, r, *no)
		return
	}
	writeJSON(w, http.StatusOK, answer)
}

// googleForm reads a request's form. It is an empty one where the answer is a refusal.
func googleForm(w http.ResponseWriter, r *http.Request) (url.Values, *refusal) {
	body, tooLarge := bodyOf(w, r)
	form, err := url.ParseQuery(string(body))
	if media, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); tooLarge || err != nil || media != "application/x-www-form-urlencoded" {
		return url.Values{}, &refusal{http.StatusBadRequest, "invalid_request", "Bad Request"}
	}
	return form, nil
}

func writeOAuth(w http.ResponseWriter, r *http.Request, no refusal) {
	entryOf(r).code(no.code)
	writeJSON(w, no.status, map[string]string{"error": no.code, "error_description": no.message})
}

// oauthFault is a fault as Google's token endpoints word it.
func oauthFault(f Fault) refusal {
	switch {
	case f.Code != "":
		return refusal{cmp.Or(f.Status, http.StatusBadRequest), f.Code, "a fault on demand"}
	case f.Status >= http.StatusInternalServerError:
		return refusal{f.Status, "internal_failure", "Internal Failure"}
	default:
		return refusal{cmp.Or(f.Status, http.StatusTooManyRequests), "rate_limit_exceeded", "Rate Limit Exceeded"}
	}
}

// jwtBearer gives a service account's token for an assertion that is signed with its key.
func (c *Cloud) jwtBearer(r *http.Request, assertion string) (map[string]any, *refusal) {
	denied := func(why string) *refusal {
		return &refusal{http.StatusBadRequest, "invalid_grant", why}
	}
	if assertion == "" {
		return nil, &refusal{http.StatusBadRequest, "invalid_request", "Missing required parameter: assertion"}
	}
	claims, err := unverifiedClaims(assertion)
	if err != nil {
		return nil, &refusal{http.StatusBadRequest, "invalid_request", "Bad Request"}
	}
	text := func(name string) string {
		s, _ := claims[name].(string)
		return s
	}
	account, ok := c.serviceAccount(text("iss"))
	if !ok || account.Email != text("iss") {
		return nil, denied("Invalid grant: account not found")
	}
	if !c.signedBy(account.Email, assertion) {
		return nil, denied("Invalid JWT Signature.")
	}
	if text("aud") != googleTokenURI {
		return nil, denied("Invalid JWT: Failed audience check.")
	}
	if !c.shortLived(claims) {
		return nil, denied("Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. Check your iat and exp values in the JWT claim.")
	}
	entryOf(r).principal(account.Email)
	if subject := text("sub"); subject != "" && subject != account.Email { // domain-wide delegation, which nobody has
		return nil, &refusal{
			http.StatusUnauthorized, "unauthorized_client",
			"Client is unauthorized to retrieve access tokens using this method, or client not authorized for any of the scopes requested.",
		}
	}
	scopes, audience := strings.Fields(text("scope")), text("target_audience")
	switch {
	case audience != "" && len(scopes) == 0:
		return map[string]any{"id_token": c.idToken(account, audience, account.Email, true)}, nil
	case audience == "" && scopesKnown(scopes):
		token, _ := c.grant(account.Email, scopes, googleLife)
		return map[string]any{"access_token": token, "expires_in": int(googleLife.Seconds()), "token_type": "Bearer"}, nil
	}
	return nil, &refusal{http.StatusBadRequest, "invalid_scope", "Invalid OAuth scope or ID token audience provided."}
}

// signedBy says whether a JWT is signed with a key that the account has, and says so by its id if it has one.
func (c *Cloud) signedBy(email, token string) bool {
	parsed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		return false
	}
	id := parsed.Signatures[0].Header.KeyID
	c.mu.Lock()
	key, account := c.google.key, c.google.accounts[email]
	known := account != nil && (account.keys[id] || id == "" && len(account.keys) > 0)
	c.mu.Unlock()
	if !known {
		return false
	}
	_, err = parsed.Verify(&key.PublicKey)
	return err == nil
}

// shortLived judges an assertion's times: an hour at most, which is now. Clocks may differ by five minutes where it begins.
func (c *Cloud) shortLived(claims map[string]any) bool {
	now := c.Now()
	issued, ok := numericDate(claims, "iat")
	expires, okay := numericDate(claims, "exp")
	return ok && okay && now.Before(expires) && !issued.After(now.Add(5*time.Minute)) && expires.After(issued) && expires.Sub(issued) <= time.Hour
}

// selfSigned judges an assertion that is used as an access token, without having been to the token endpoint (https://google.aip.dev/auth/4111): it says its scopes, or the API that it is for, which no
// registry is.
func (c *Cloud) selfSigned(token string) (principal string, scopes []string, expires time.Time, ok bool) {
	claims, err := unverifiedClaims(token)
	if err != nil {
		return "", nil, time.Time{}, false
	}
	email, _ := claims["iss"].(string)
	scope, _ := claims["scope"].(string)
	if subject, _ := claims["sub"].(string); email == "" || subject != email || !scopesKnown(strings.Fields(scope)) || !c.signedBy(email, token) {
		return "", nil, time.Time{}, false
	}
	expires, _ = numericDate(claims, "exp")
	return email, strings.Fields(scope), expires, c.shortLived(claims)
}

// refreshToken gives a user's token (https://developers.google.com/identity/protocols/oauth2/web-server#offline).
func (c *Cloud) refreshToken(r *http.Request, form url.Values) (map[string]any, *refusal) {
	client, secret, basic := r.BasicAuth()
	if !basic {
		client, secret = form.Get("client_id"), form.Get("client_secret")
	}
	user, no := c.userOf(client, secret, form.Get("refresh_token"))
	if no != nil {
		return nil, no
	}
	entryOf(r).principal(user)
	has := []string{scopeCloudPlatform, scopePrefix + "userinfo.email", "openid"} // what gcloud asks a user for
	scopes := has
	if wanted := strings.Fields(form.Get("scope")); len(wanted) > 0 {
		for _, s := range wanted {
			if !hasScope(has, s) {
				return nil, &refusal{http.StatusBadRequest, "invalid_scope", "Some requested scopes were invalid. {invalid=[" + s + "]}"}
			}
		}
		scopes = wanted
	}
	token, _ := c.grant(user, scopes, googleLife)
	return map[string]any{"access_token": token, "expires_in": int(googleLife.Seconds()), "scope": strings.Join(scopes, " "), "token_type": "Bearer"}, nil
}

// userOf is whose a refresh token is, if the client is who it was given to.
func (c *Cloud) userOf(client, secret, token string) (string, *refusal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known, proven := false, false
	for _, u := range c.google.users {
		if u.client == client {
			known, proven = true, proven || u.secret == secret
		}
	}
	user := c.google.users[token]
	switch {
	case client == "":
		return "", &refusal{http.StatusBadRequest, "invalid_request", "Could not determine client ID from request."}
	case !known:
		return "", &refusal{http.StatusUnauthorized, "invalid_client", "The OAuth client was not found."}
	case !proven:
		return "", &refusal{http.StatusUnauthorized, "invalid_client", "The provided client secret is invalid."}
	case token == "":
		return "", &refusal{http.StatusBadRequest, "invalid_request", "Missing required parameter: refresh_token"}
	case user == nil:
		return "", &refusal{http.StatusBadRequest, "invalid_grant", "Bad Request"}
	case user.client != client:
		return "", &refusal{http.StatusUnauthorized, "unauthorized_client", "Unauthorized"}
	case user.revoked:
		return "", &refusal{http.StatusBadRequest, "invalid_grant", "Token has been expired or revoked."}
	}
	return user.email, nil
}
