package cloud

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// GoogleIssuer signs what Google's metadata server gives.
const GoogleIssuer = "https://accounts.google.com"

// GoogleInstance is the metadata server of a Compute Engine instance (https://cloud.google.com/compute/docs/metadata/overview).
type GoogleInstance struct {
	c       *Cloud
	project string
	number  int64
	name    string
	id      string
	created time.Time

	mu         sync.Mutex
	url        string
	accounts   []ServiceAccount // the first is the default one
	scopes     []string
	attributes map[string]string
	labels     map[string]string
	status     string
	expired    bool
	life       time.Duration             // of access tokens
	tokens     map[string]*metadataToken // by account and scopes
}

// metadataToken is an access token that a metadata server goes on giving out.
type metadataToken struct {
	text    string
	expires time.Time
}

// GoogleInstance starts a metadata server. The first of the service accounts is the default one, and its project the instance's; without any the instance has none. All instances have the same name, by which the
// Compute Engine API finds the latest of a project.
func (c *Cloud) GoogleInstance(accounts ...ServiceAccount) *GoogleInstance {
	g := &GoogleInstance{
		c: c, project: "test-project", number: 100000000000 + rand.Int64N(1e11), name: "node-1", id: digits(19), created: c.Now().Add(-time.Hour),
		scopes: []string{scopeCloudPlatform}, attributes: map[string]string{}, labels: map[string]string{}, status: "RUNNING", life: googleLife, tokens: map[string]*metadataToken{},
	}
	for i, a := range accounts {
		a = c.AddServiceAccount(a)
		if i == 0 {
			g.project = a.Project
		}
		g.accounts = append(g.accounts, a)
	}
	c.AddIssuer(GoogleIssuer)
	c.mu.Lock()
	c.google.instances = append(c.google.instances, g)
	c.mu.Unlock()
	g.url = c.mustListen("google-metadata", g)
	return g
}

// digits is a number of n digits.
func digits(n int) string {
	b := []byte{'1'}
	for len(b) < n {
		b = append(b, byte('0'+rand.IntN(10)))
	}
	return string(b)
}

// URL is its address.
func (g *GoogleInstance) URL() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.url
}

// Environ points Google's libraries, and what does as they do, to it.
func (g *GoogleInstance) Environ() []string {
	return []string{"GCE_METADATA_HOST=" + strings.TrimPrefix(g.URL(), "http://")}
}

func (g *GoogleInstance) set(change func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change()
}

// Absent makes it as on a machine outside Google: nobody answers. On Linux not even a connection is made.
func (g *GoogleInstance) Absent() {
	url := g.c.unreachable()
	g.set(func() { g.url = url })
}

// Refuse makes it as on a machine outside Google whose network says so: connections are refused.
func (g *GoogleInstance) Refuse() {
	url := g.c.refusing()
	g.set(func() { g.url = url })
}

// ProjectNumber is its project's number.
func (g *GoogleInstance) ProjectNumber() int64 { return g.number }

// SetScopes changes the access scopes that the instance has; cloud-platform without. It forgets the tokens that it has.
func (g *GoogleInstance) SetScopes(scopes ...string) {
	g.set(func() {
		g.scopes = slices.Clone(scopes)
		clear(g.tokens)
	})
}

// SetAttribute sets one of the instance's attributes ("cluster-name" and the like).
func (g *GoogleInstance) SetAttribute(name, value string) {
	g.set(func() { g.attributes[name] = value })
}

// SetTokenLife says how long access tokens live when it gets them (an hour less a second without), and forgets those that it has. It gives out one token until five minutes
// before its end, as Compute Engine does, and until its end if it never had five minutes.
func (g *GoogleInstance) SetTokenLife(d time.Duration) {
	g.set(func() {
		g.life = d
		clear(g.tokens)
	})
}

// ServiceAccounts are the instance's, the default one first.
func (g *GoogleInstance) ServiceAccounts() []ServiceAccount {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]ServiceAccount(nil), g.accounts...)
}

// Expire lets it give tokens that have expired a minute ago, as if from a cache by a wrong clock.
func (g *GoogleInstance) Expire() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.expired = true
}

const googleBase = "/computeMetadata/v1"

// ServeHTTP is the metadata server.
func (g *GoogleInstance) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, metadata := strings.CutPrefix(r.URL.Path, googleBase)
	rest, accounts := strings.CutPrefix(path, "/instance/service-accounts/")
	account, what, _ := strings.Cut(rest, "/")
	if metadata && accounts && (what == "identity" || what == "token") {
		entryOf(r).operation(what)
	}
	// Every answer of it has these two, errors included.
	w.Header().Set("Metadata-Flavor", "Google")
	w.Header().Set("Server", "Metadata Server for VM")
	w.Header().Set("Content-Type", "text/html")
	if g.c.faulty(w, r, "google-metadata", entryOf(r).name(), func(f Fault) { g.refuse(w, r, cmp.Or(f.Status, http.StatusServiceUnavailable), f.Code) }) {
		return
	}
	switch {
	case !metadata && r.URL.Path == "/":
		_, _ = fmt.Fprint(w, "0.1/\ncomputeMetadata/\n")
	case r.Header.Get("X-Forwarded-For") != "":
		g.refuse(w, r, http.StatusForbidden, "Requests with an X-Forwarded-For header are not allowed.")
	case r.Header.Get("Metadata-Flavor") != "Google":
		g.refuse(w, r, http.StatusForbidden, `Your client does not have permission: missing required header "Metadata-Flavor": "Google"`)
	case r.Method != http.MethodGet:
		g.refuse(w, r, http.StatusMethodNotAllowed, "method not allowed")
	case metadata && accounts && account != "":
		g.serveAccount(w, r, account, what)
	default:
		text, ok := g.value(path)
		if !metadata || !ok {
			g.refuse(w, r, http.StatusNotFound, "not found")
			return
		}
		g.text(w, text)
	}
}

// text answers with a value, or with a directory's entries.
func (*GoogleInstance) text(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "application/text")
	_, _ = fmt.Fprint(w, text)
}

// value is what the metadata server has at a path, but for service accounts.
func (g *GoogleInstance) value(path string) (string, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	number := strconv.FormatInt(g.number, 10)
	switch path {
	case "/":
		return "instance/\noslogin/\nproject/\nuniverse/\n", true
	case "/project/project-id":
		return g.project, true
	case "/project/numeric-project-id":
		return number, true
	case "/universe/universe-domain", "/universe/universe_domain": // the libraries ask for either
		return "googleapis.com", true
	case "/instance/id":
		return g.id, true
	case "/instance/name":
		return g.name, true
	case "/instance/zone":
		return "projects/" + number + "/zones/" + googleZone, true
	case "/instance/service-accounts/":
		var entries []string
		for i, a := range g.accounts {
			if i == 0 {
				entries = append(entries, "default/")
			}
			entries = append(entries, a.Email+"/")
		}
		return lines(entries), true
	}
	if name, ok := strings.CutPrefix(path, "/instance/attributes/"); ok {
		text, ok := g.attributes[name]
		return text, ok
	}
	return "", false
}

// serveAccount answers for one service account.
func (g *GoogleInstance) serveAccount(w http.ResponseWriter, r *http.Request, name, what string) {
	a, ok := g.account(name)
	if !ok {
		g.refuse(w, r, http.StatusNotFound, "service account not found")
		return
	}
	entryOf(r).principal(a.Email)
	g.mu.Lock()
	scopes, aliases := g.scopes, []string{}
	if g.accounts[0] == a {
		aliases = append(aliases, "default")
	}
	g.mu.Unlock()
	switch what {
	case "":
		if strings.EqualFold(r.URL.Query().Get("recursive"), "true") {
			w.Header().Set("Content-Type", "application/json")
			writeJSON(w, http.StatusOK, map[string]any{"aliases": aliases, "email": a.Email, "scopes": scopes})
			return
		}
		g.text(w, "aliases\nemail\nidentity\nscopes\ntoken\n")
	case "aliases":
		g.text(w, lines(aliases))
	case "email":
		g.text(w, a.Email)
	case "scopes":
		g.text(w, lines(scopes))
	case "token":
		g.token(w, r, a)
	case "identity":
		g.identity(w, r, a)
	default:
		g.refuse(w, r, http.StatusNotFound, "not found")
	}
}

func lines(all []string) string {
	if len(all) == 0 {
		return ""
	}
	return strings.Join(all, "\n") + "\n"
}

// token gives an account's access token. Scopes that are asked for narrow it; what the instance does not have is not to be had by asking.
func (g *GoogleInstance) token(w http.ResponseWriter, r *http.Request, a ServiceAccount) {
	now := g.c.Now()
	g.mu.Lock()
	scopes := g.scopes
	if asked := r.URL.Query().Get("scopes"); asked != "" {
		wanted := strings.Split(asked, ",")
		beyond := func(s string) bool { return !hasScope(g.scopes, s, scopeCloudPlatform) }
		if !slices.ContainsFunc(wanted, beyond) {
			scopes = wanted
		}
	}
	key := a.Email + " " + strings.Join(scopes, " ")
	t := g.tokens[key]
	if t == nil || !now.Before(t.expires) || g.life > renewal && t.expires.Sub(now) <= renewal {
		t = &metadataToken{}
		t.text, t.expires = g.c.grant(a.Email, scopes, g.life)
		g.tokens[key] = t
	}
	text, left := t.text, int(t.expires.Sub(now).Seconds())
	g.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	writeJSON(w, http.StatusOK, map[string]any{"access_token": text, "expires_in": left, "token_type": "Bearer"})
}

// renewal is how long before its end a token is replaced.
const renewal = 5 * time.Minute

func (g *GoogleInstance) account(name string) (ServiceAccount, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, a := range g.accounts {
		if name == a.Email || name == "default" && i == 0 {
			return a, true
		}
	}
	return ServiceAccount{}, false
}

func (g *GoogleInstance) refuse(w http.ResponseWriter, r *http.Request, status int, text string) {
	entryOf(r).code(http.StatusText(status))
	w.WriteHeader(status)
	_, _ = fmt.Fprint(w, text+"\n")
}

// identity gives the instance's identity token (https://cloud.google.com/compute/docs/instances/verifying-instance-identity).
func (g *GoogleInstance) identity(w http.ResponseWriter, r *http.Request, a ServiceAccount) {
	query := r.URL.Query()
	audience := query.Get("audience")
	if audience == "" {
		g.refuse(w, r, http.StatusBadRequest, "non-empty audience parameter required")
		return
	}
	claims := map[string]any{"aud": audience, "sub": a.UniqueID, "azp": a.UniqueID}
	switch query.Get("format") {
	case "", "standard":
	case "full":
		claims["email"], claims["email_verified"] = a.Email, true
		engine := map[string]any{
			"project_id": g.project, "project_number": g.number, "zone": googleZone, "instance_id": g.id, "instance_name": g.name,
			"instance_creation_timestamp": g.created.Unix(), "instance_confidentiality": 0,
		}
		if strings.EqualFold(query.Get("licenses"), "true") {
			engine["license_id"] = []string{"1000205"}
		}
		claims["google"] = map[string]any{"compute_engine": engine}
	default:
		g.refuse(w, r, http.StatusBadRequest, "format parameter must be standard or full")
		return
	}
	g.mu.Lock()
	if g.expired {
		claims["iat"], claims["exp"] = g.c.Now().Add(-61*time.Minute).Unix(), g.c.Now().Add(-time.Minute).Unix()
	}
	g.mu.Unlock()
	_, _ = fmt.Fprint(w, g.c.AddIssuer(GoogleIssuer).Token(claims))
}
