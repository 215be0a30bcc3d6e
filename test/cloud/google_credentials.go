package cloud

import (
	"encoding/json"
	"math"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// credentialsCall is one request for a service account's credentials (https://cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts).
type credentialsCall struct {
	Delegates    []string `json:"delegates"`
	Scope        []string `json:"scope"`
	Lifetime     string   `json:"lifetime"`
	Audience     string   `json:"audience"`
	IncludeEmail bool     `json:"includeEmail"`
	Payload      string   `json:"payload"`
}

var (
	credentialsPath = regexp.MustCompile(`^/v1/projects/-/serviceAccounts/([^/:]+):(generateAccessToken|generateIdToken|signJwt)$`)
	delegateName    = regexp.MustCompile(`^projects/-/serviceAccounts/([^/]+)$`)
)

// serveIAMCredentials lets principals have tokens of service accounts.
func (c *Cloud) serveIAMCredentials(w http.ResponseWriter, r *http.Request) {
	m := credentialsPath.FindStringSubmatch(r.URL.Path)
	if m != nil {
		entryOf(r).operation(m[2])
	}
	if c.faulty(w, r, "google-iam", entryOf(r).name(), func(f Fault) { writeGoogle(w, r, googleFault(f)) }) {
		return
	}
	if m == nil || r.Method != http.MethodPost {
		writeGoogle(w, r, googleNotFound())
		return
	}
	caller, no := c.googleAPICaller(r, nil, scopeCloudPlatform, scopeIAM)
	entryOf(r).principal(caller)
	if no == nil {
		var answer map[string]string
		if answer, no = c.impersonate(w, r, caller, m[1], m[2]); no == nil {
			writeJSON(w, http.StatusOK, answer)
			return
		}
	}
	if no.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="https://accounts.google.com/", error="invalid_token"`)
	}
	writeGoogle(w, r, *no)
}

// googleAPICaller finds out who asks an API of Google's, with a token of one of these scopes. What was asked for is part of the refusal of another one.
func (c *Cloud) googleAPICaller(r *http.Request, asked map[string]string, wanted ...string) (string, *googleRefusal) {
	const expected = "Expected OAuth 2 access token, login cookie or other valid authentication credential. See https://developers.google.com/identity/sign-in/web/devconsole-project."
	refused := func(message, reason string) *googleRefusal {
		return &googleRefusal{http.StatusUnauthorized, "UNAUTHENTICATED", message + " " + expected, errorInfo(reason, "googleapis.com", nil)}
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return "", refused("Request is missing required authentication credential.", "CREDENTIALS_MISSING")
	}
	principal, scopes, _, live := c.AccessTokenOf(token)
	switch {
	case principal == "":
		return "", refused("Request had invalid authentication credentials.", "ACCESS_TOKEN_TYPE_UNSUPPORTED")
	case !live:
		return "", refused("Request had invalid authentication credentials.", "ACCESS_TOKEN_EXPIRED")
	case !hasScope(scopes, wanted...):
		return principal, &googleRefusal{
			http.StatusForbidden, "PERMISSION_DENIED", "Request had insufficient authentication scopes.", errorInfo("ACCESS_TOKEN_SCOPE_INSUFFICIENT", "googleapis.com", asked),
		}
	}
	return principal, nil
}

// impersonate gives a token of a service account to a principal.
func (c *Cloud) impersonate(w http.ResponseWriter, r *http.Request, caller, name, operation string) (map[string]string, *googleRefusal) {
	invalid := func(message string) *googleRefusal {
		return &googleRefusal{http.StatusBadRequest, "INVALID_ARGUMENT", message, nil}
	}
	var call credentialsCall
	body, tooLarge := bodyOf(w, r)
	if tooLarge || json.Unmarshal(body, &call) != nil {
		return nil, invalid("Invalid JSON payload received.")
	}
	permission := "iam.serviceAccounts.getAccessToken"
	switch {
	case operation == "generateIdToken":
		permission = "iam.serviceAccounts.getOpenIdToken"
		if call.Audience == "" {
			return nil, invalid("Request contains an invalid argument.")
		}
	case operation == "signJwt":
		permission = "iam.serviceAccounts.signJwt"
	case !scopesKnown(call.Scope):
		return nil, invalid("Request contains an invalid argument.")
	}
	account, no := c.reach(caller, name, permission, call.Delegates)
	if no != nil {
		return nil, no
	}
	switch operation {
	case "signJwt":
		id, token, ok := c.signJWT(account.Email, call.Payload)
		if !ok {
			return nil, invalid("Invalid JWT payload.")
		}
		return map[string]string{"keyId": id, "signedJwt": token}, nil
	case "generateIdToken":
		return map[string]string{"token": c.idToken(account, call.Audience, account.UniqueID, call.IncludeEmail)}, nil
	}
	life := time.Hour
	if call.Lifetime != "" {
		var err error
		if life, err = time.ParseDuration(call.Lifetime); err != nil || !strings.HasSuffix(call.Lifetime, "s") {
			return nil, invalid("Invalid value at 'lifetime' (type.googleapis.com/google.protobuf.Duration), \"" + call.Lifetime + "\"")
		}
	}
	switch {
	case life <= 0:
		return nil, invalid("Lifetime of access token must be larger then zero.")
	case life > time.Hour:
		return nil, invalid("Access tokens for service account " + account.Email + " can not have lifetimes of more than 1 hour. " +
			"Use the Org Policy Constraint constraints/iam.allowServiceAccountCredentialLifetimeExtension to allow up to 12 hours.")
	}
	token, expires := c.grant(account.Email, call.Scope, life)
	return map[string]string{"accessToken": token, "expireTime": expires.UTC().Format(time.RFC3339)}, nil
}

// signJWT signs claims with a key of the account's that Google manages. They may say when they end: later than now, and in twelve hours at most; else they end in one.
func (c *Cloud) signJWT(email, payload string) (id, token string, ok bool) {
	claims, err := decodeClaims([]byte(payload))
	if err != nil || claims == nil {
		return "", "", false
	}
	now := c.Now()
	if claims["exp"] == nil {
		claims["exp"] = now.Add(time.Hour).Unix()
		payload = string(mustJSON(claims))
	} else if seconds, number := claims["exp"].(float64); !number || seconds != math.Trunc(seconds) || seconds <= float64(now.Unix()) || seconds > float64(now.Add(12*time.Hour).Unix()) {
		return "", "", false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.google.accounts[email]
	if s.managed == "" {
		s.managed = strings.ToLower(random(40))
		s.keys[s.managed] = true
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: c.serviceAccountKey(), KeyID: s.managed}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		panic(err)
	}
	signed, err := signer.Sign([]byte(payload))
	if err != nil {
		panic(err)
	}
	if token, err = signed.CompactSerialize(); err != nil {
		panic(err)
	}
	c.secrets.add(token)
	return s.managed, token, true
}

// reach says whether a principal may have tokens of an account, by way of delegates each of which may have those of the next.
func (c *Cloud) reach(caller, name, permission string, delegates []string) (ServiceAccount, *googleRefusal) {
	step := func(name, permission string) (ServiceAccount, *googleRefusal) {
		account, ok := c.serviceAccount(name)
		switch {
		case !ok:
			return account, &googleRefusal{http.StatusNotFound, "NOT_FOUND", "Not found; Gaia id not found for email " + name, nil}
		case !c.mayImpersonate(caller, account.Email):
			return account, &googleRefusal{
				http.StatusForbidden, "PERMISSION_DENIED", "Permission '" + permission + "' denied on resource (or it may not exist).",
				errorInfo("IAM_PERMISSION_DENIED", "iam.googleapis.com", map[string]string{"permission": permission}),
			}
		}
		return account, nil
	}
	for _, delegate := range delegates {
		m := delegateName.FindStringSubmatch(delegate)
		if m == nil {
			return ServiceAccount{}, &googleRefusal{http.StatusBadRequest, "INVALID_ARGUMENT", "Request contains an invalid argument.", nil}
		}
		account, no := step(m[1], "iam.serviceAccounts.implicitDelegation")
		if no != nil {
			return account, no
		}
		caller = account.Email
	}
	return step(name, permission)
}
