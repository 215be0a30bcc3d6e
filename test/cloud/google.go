package cloud

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"
)

// GoogleIssuer signs what Google's metadata server gives.
const GoogleIssuer = "https://accounts.google.com"

// ServiceAccount is a Google service account.
type ServiceAccount struct {
	Email string
	// UniqueID is its number, 21 digits: the sub and azp of its tokens. Empty: made up.
	UniqueID string
}

// GoogleInstance is the metadata server of a Compute Engine instance (https://cloud.google.com/compute/docs/metadata/overview).
type GoogleInstance struct {
	c       *Cloud
	url     string
	project string
	number  int64
	name    string
	id      string
	created time.Time

	mu       sync.Mutex
	accounts []ServiceAccount // the first is the default one
	expired  bool
}

// GoogleInstance starts a metadata server. The first of the service accounts is the default one; without any the instance has none.
func (c *Cloud) GoogleInstance(accounts ...ServiceAccount) *GoogleInstance {
	g := &GoogleInstance{c: c, project: "test-project", number: 100000000000 + rand.Int64N(1e11), name: "node-1", id: digits(19), created: c.Now().Add(-time.Hour)}
	for _, a := range accounts {
		if a.UniqueID == "" {
			a.UniqueID = digits(21)
		}
		g.accounts = append(g.accounts, a)
	}
	c.AddIssuer(GoogleIssuer)
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
func (g *GoogleInstance) URL() string { return g.url }

// Environ points Google's libraries, and what does as they do, to it.
func (g *GoogleInstance) Environ() []string {
	return []string{"GCE_METADATA_HOST=" + strings.TrimPrefix(g.url, "http://")}
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
	if metadata && accounts && what == "identity" {
		entryOf(r).operation("identity")
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
		return
	case r.Header.Get("X-Forwarded-For") != "":
		g.refuse(w, r, http.StatusForbidden, "Requests with an X-Forwarded-For header are not allowed.")
		return
	case r.Header.Get("Metadata-Flavor") != "Google":
		g.refuse(w, r, http.StatusForbidden, `Your client does not have permission: missing required header "Metadata-Flavor": "Google"`)
		return
	case r.Method != http.MethodGet:
		g.refuse(w, r, http.StatusMethodNotAllowed, "method not allowed")
		return
	case !metadata || !accounts:
		g.refuse(w, r, http.StatusNotFound, "not found")
		return
	}
	a, ok := g.account(account)
	if !ok {
		g.refuse(w, r, http.StatusNotFound, "service account not found")
		return
	}
	entryOf(r).principal(a.Email)
	switch what {
	case "email":
		_, _ = fmt.Fprint(w, a.Email)
	case "identity":
		g.identity(w, r, a)
	default:
		g.refuse(w, r, http.StatusNotFound, "not found")
	}
}

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
			"project_id": g.project, "project_number": g.number, "zone": "europe-west1-b", "instance_id": g.id, "instance_name": g.name,
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
