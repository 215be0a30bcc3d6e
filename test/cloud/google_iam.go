package cloud

import (
	"cmp"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"slices"
	"strings"
	"time"
)

// googleIAM is all that Google knows of identities. Cloud.mu guards it.
type googleIAM struct {
	key           *rsa.PrivateKey            // of every service account: making keys is slow, and their ids keep them apart
	accounts      map[string]*serviceAccount // by email
	users         map[string]*googleUser     // by refresh token
	tokens        map[string]*accessToken
	impersonators map[string][]string           // by email of the account
	providers     map[string]*WorkloadProvider  // by full name
	clusters      map[string]*GKECluster        // by the audience of their tokens' exchange
	hosts         map[string]string             // the locations of registries, by host name
	repositories  map[string]artifactRepository // by resource name
	redirections  map[string]string             // by project, as the next ones
	readers       map[string][]string
	custom        map[string][]string // by project and permission
	disabled      map[string]bool     // where the Artifact Registry API is off
	bearers       map[string]string   // access tokens by registries' tokens
	instances     []*GoogleInstance
}

func (c *Cloud) startGoogle() {
	c.google = googleIAM{
		accounts: map[string]*serviceAccount{}, users: map[string]*googleUser{}, tokens: map[string]*accessToken{}, impersonators: map[string][]string{},
		providers: map[string]*WorkloadProvider{}, clusters: map[string]*GKECluster{},
		hosts: map[string]string{}, repositories: map[string]artifactRepository{}, redirections: map[string]string{}, readers: map[string][]string{}, custom: map[string][]string{}, disabled: map[string]bool{},
		bearers: map[string]string{},
	}
	c.handle("oauth2.googleapis.com", "google-oauth", http.HandlerFunc(c.serveGoogleOAuth))
	for _, way := range []string{"", ".mtls"} {
		c.handle("sts"+way+".googleapis.com", "google-sts", http.HandlerFunc(c.serveGoogleSTS))
		c.handle("iamcredentials"+way+".googleapis.com", "google-iam", http.HandlerFunc(c.serveIAMCredentials))
	}
	c.handle("www.googleapis.com", "google-certs", http.HandlerFunc(c.serveGoogleCerts))
	c.handle("iam.googleapis.com", "google-iam", http.HandlerFunc(c.serveGoogleIAM))
	c.handle("compute.googleapis.com", "google-compute", http.HandlerFunc(c.serveCompute))
	for _, host := range []string{artifactsAPI, "artifactregistry.*.rep.googleapis.com"} {
		c.handle(host, "google-artifacts", http.HandlerFunc(c.serveArtifacts))
	}
}

// ServiceAccount is a Google service account.
type ServiceAccount struct {
	Email string
	// UniqueID is its number, 21 digits: the sub and azp of its tokens. Empty: made up.
	UniqueID string
	// Project is the id of its project. Empty: as the email says, or "test-project".
	Project string
}

type serviceAccount struct {
	ServiceAccount
	keys    map[string]bool // their ids
	managed string          // the id of the one that Google itself keeps; empty: there is none yet
}

// googleUser is somebody who has let an OAuth client act for them.
type googleUser struct {
	email, client, secret string
	revoked               bool
}

// accessToken is what Google gave out as an OAuth access token.
type accessToken struct {
	principal string // email, or principal://… of a federated identity
	scopes    []string
	expires   time.Time
}

// Scopes that Google's services ask for.
const (
	scopePrefix        = "https://www.googleapis.com/auth/"
	scopeCloudPlatform = scopePrefix + "cloud-platform"
	scopeIAM           = scopePrefix + "iam"
)

// AddServiceAccount makes a service account, or replaces one, and gives it as it is. An account that is there keeps its number, project and keys where a has none.
func (c *Cloud) AddServiceAccount(a ServiceAccount) ServiceAccount {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.google.accounts[a.Email]
	if s == nil {
		s = &serviceAccount{keys: map[string]bool{}}
		c.google.accounts[a.Email] = s
	}
	a.UniqueID = cmp.Or(a.UniqueID, s.UniqueID)
	if a.UniqueID == "" {
		a.UniqueID = digits(21)
	}
	a.Project = cmp.Or(a.Project, s.Project)
	if _, domain, _ := strings.Cut(a.Email, "@"); a.Project == "" {
		a.Project = "test-project"
		if project, ok := strings.CutSuffix(domain, ".iam.gserviceaccount.com"); ok {
			a.Project = project
		}
	}
	s.ServiceAccount = a
	return a
}

// DeleteServiceAccount makes an account unknown from now on. Its access tokens live on.
func (c *Cloud) DeleteServiceAccount(email string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.google.accounts, email)
}

// serviceAccount finds an account by its email or number.
func (c *Cloud) serviceAccount(name string) (ServiceAccount, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.google.accounts[name]; s != nil {
		return s.ServiceAccount, true
	}
	for _, s := range c.google.accounts {
		if s.UniqueID == name {
			return s.ServiceAccount, true
		}
	}
	return ServiceAccount{}, false
}

// ServiceAccountKeyFile makes a key for a service account, and gives the file that holds it (https://cloud.google.com/iam/docs/keys-create-delete).
func (c *Cloud) ServiceAccountKeyFile(email string) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.google.accounts[email]
	if s == nil {
		panic("no service account " + email)
	}
	der, err := x509.MarshalPKCS8PrivateKey(c.serviceAccountKey())
	if err != nil {
		panic(err)
	}
	id := strings.ToLower(random(40))
	s.keys[id] = true
	return mustJSON(map[string]string{
		"type": "service_account", "project_id": s.Project, "private_key_id": id, "private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
		"client_email": s.Email, "client_id": s.UniqueID, "auth_uri": "https://accounts.google.com/o/oauth2/auth", "token_uri": googleTokenURI,
		"auth_provider_x509_cert_url": "https://www.googleapis.com/oauth2/v1/certs", "client_x509_cert_url": "https://www.googleapis.com/robot/v1/metadata/x509/" + s.Email,
		"universe_domain": "googleapis.com",
	})
}

// serviceAccountKey is every account's. The caller holds the lock.
func (c *Cloud) serviceAccountKey() *rsa.PrivateKey {
	if c.google.key == nil {
		c.google.key = newRSAKey()
	}
	return c.google.key
}

// ServiceAccountKey is the public part of a service account's key; nil: the account has none with this id.
func (c *Cloud) ServiceAccountKey(email, id string) *rsa.PublicKey {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.google.accounts[email]; s == nil || !s.keys[id] {
		return nil
	}
	return &c.google.key.PublicKey
}

// DeleteServiceAccountKeys makes all keys of an account unknown from now on.
func (c *Cloud) DeleteServiceAccountKeys(email string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.google.accounts[email]; s != nil {
		clear(s.keys)
		s.managed = ""
	}
}

// AddGoogleUser makes a user who has logged in with gcloud, and gives the file of credentials that is left behind by that (gcloud auth application-default login).
func (c *Cloud) AddGoogleUser(email string) []byte {
	u := &googleUser{email: email, client: digits(12) + "-" + strings.ToLower(random(32)) + ".apps.googleusercontent.com", secret: "GOCSPX-" + random(28)}
	token := "1//0" + random(64)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.google.users[token] = u
	return mustJSON(map[string]string{
		"type": "authorized_user", "account": "", "client_id": u.client, "client_secret": u.secret, "refresh_token": token, "universe_domain": "googleapis.com",
	})
}

// RevokeGoogleUser revokes the refresh tokens of a user. Their access tokens live on.
func (c *Cloud) RevokeGoogleUser(email string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, u := range c.google.users {
		if u.email == email {
			u.revoked = true
		}
	}
}

// AllowImpersonation lets a principal (an email, principal://… or principalSet://…/*) have tokens of a service account, as roles/iam.serviceAccountTokenCreator and
// roles/iam.workloadIdentityUser do.
func (c *Cloud) AllowImpersonation(caller, target string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.google.impersonators[target] = append(c.google.impersonators[target], caller)
}

// mayImpersonate says whether a principal may have tokens of a service account.
func (c *Cloud) mayImpersonate(caller, target string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.google.impersonators[target], func(member string) bool { return isMember(caller, member) })
}

// isMember says whether a principal is what an allow policy names: itself, or a pool with everybody in it (https://cloud.google.com/iam/docs/principal-identifiers).
func isMember(principal, member string) bool {
	if principal == "" {
		return false
	}
	if pool, ok := strings.CutSuffix(member, "/*"); ok {
		pool, ok = strings.CutPrefix(pool, "principalSet://")
		return ok && strings.HasPrefix(principal, "principal://"+pool+"/subject/")
	}
	return member == principal
}

// accessTokenPrefix is how those begin that Google gives out. It has as many dots as a JWT.
const accessTokenPrefix = "ya29.c."

// grant makes an access token.
func (c *Cloud) grant(principal string, scopes []string, life time.Duration) (token string, expires time.Time) {
	expires = c.Now().Add(life)
	token = accessTokenPrefix + random(160)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.google.tokens[token] = &accessToken{principal, slices.Clone(scopes), expires}
	return token, expires
}

// AccessToken makes an access token for any principal, without anybody's having asked for it.
func (c *Cloud) AccessToken(principal string, life time.Duration, scopes ...string) string {
	token, _ := c.grant(principal, scopes, life)
	return token
}

// AccessTokenOf says what an access token is for, be it one that a service account has signed itself. ok: it is alive. Of one that has ended the rest is still said, of one that is unknown or
// revoked nothing.
func (c *Cloud) AccessTokenOf(token string) (principal string, scopes []string, expires time.Time, ok bool) {
	now := c.Now()
	if strings.Count(token, ".") == 2 && !strings.HasPrefix(token, accessTokenPrefix) {
		return c.selfSigned(token)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.google.tokens[token]
	if a == nil {
		return "", nil, time.Time{}, false
	}
	return a.principal, slices.Clone(a.scopes), a.expires, now.Before(a.expires)
}

// RevokeAccessTokens makes all access tokens so far unknown. Metadata servers go on giving out those that they have; SetTokenLife lets them forget.
func (c *Cloud) RevokeAccessTokens() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.google.tokens)
}

// hasScope says whether one of these scopes is among a token's.
func hasScope(scopes []string, wanted ...string) bool {
	return slices.ContainsFunc(wanted, func(s string) bool { return slices.Contains(scopes, s) })
}

// scopesKnown says whether all scopes are of the forms that Google's have. There has to be one.
func scopesKnown(scopes []string) bool {
	for _, s := range scopes {
		name, ok := strings.CutPrefix(s, scopePrefix)
		if (!ok || name == "") && s != "openid" && s != "email" && s != "profile" {
			return false
		}
	}
	return len(scopes) > 0
}

// idToken makes an ID token of a service account.
func (c *Cloud) idToken(a ServiceAccount, audience, party string, email bool) string {
	claims := map[string]any{"aud": audience, "sub": a.UniqueID, "azp": party}
	if email {
		claims["email"], claims["email_verified"] = a.Email, true
	}
	return c.AddIssuer(GoogleIssuer).Token(claims)
}

func mustJSON(v any) []byte {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		panic(err)
	}
	return b
}
