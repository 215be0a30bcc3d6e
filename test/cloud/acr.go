package cloud

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

// acr is all of Azure Container Registry. Cloud.mu guards it.
type acr struct {
	issuer     *Issuer // of every registry's tokens, which say what registry they are for
	registries map[string]*azureRegistry
	stolen     []string
}

// AzureRegistry is a registry of Azure Container Registry.
type AzureRegistry struct {
	// Host is its login server: contoso.azurecr.io, a regional name or one of its own.
	Host string
	// Tenant is the tenant that it is in.
	Tenant string
	// Anonymous: anybody may pull.
	Anonymous bool
	// ABAC: roles are assigned by repository (https://learn.microsoft.com/azure/container-registry/container-registry-rbac-abac-repository-permissions).
	ABAC bool
	// Repositories are those that there are. Every tag of them exists, and is an image without layers.
	Repositories []string
}

type azureRegistry struct {
	AzureRegistry
	id      string
	pullers map[string]bool     // object ids
	readers map[string][]string // repositories by object id; none: all
	life    time.Duration       // of refresh tokens
}

// noUser is the user name that goes with a token for a password.
const noUser = "00000000-0000-0000-0000-000000000000"

// AddAzureRegistry makes a registry, or replaces the one of that name, without its roles.
func (c *Cloud) AddAzureRegistry(r AzureRegistry) {
	r.Host = strings.ToLower(r.Host)
	if c.tenantUnder("", r.Tenant) == nil {
		panic("there is no tenant " + r.Tenant)
	}
	c.mu.Lock()
	known := c.acr.registries[r.Host] != nil
	if c.acr.issuer == nil {
		c.acr.issuer = c.newIssuer("Azure Container Registry", 0)
	}
	c.acr.registries[r.Host] = &azureRegistry{AzureRegistry: r, id: strings.ReplaceAll(newUUID(), "-", ""), pullers: map[string]bool{}, readers: map[string][]string{}, life: 3 * time.Hour}
	c.mu.Unlock()
	if !known {
		c.handle(r.Host, "acr", http.HandlerFunc(c.serveACR))
	}
}

// changeRegistry changes a registry that has to be there.
func (c *Cloud) changeRegistry(host string, change func(*azureRegistry)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.acr.registries[strings.ToLower(host)]
	if r == nil {
		panic("there is no registry " + host)
	}
	change(r)
}

// GrantAcrPull gives a principal the role AcrPull on a registry, which is of no effect where roles are assigned by repository.
func (c *Cloud) GrantAcrPull(host, objectID string) {
	c.changeRegistry(host, func(r *azureRegistry) { r.pullers[strings.ToLower(objectID)] = true })
}

// GrantRepositoryReader gives a principal the role Container Registry Repository Reader for these repositories, or for all without any. It is of no effect where roles are not assigned by
// repository.
func (c *Cloud) GrantRepositoryReader(host, objectID string, repositories ...string) {
	c.changeRegistry(host, func(r *azureRegistry) { r.readers[strings.ToLower(objectID)] = slices.Clone(repositories) })
}

// RevokeRoles takes a principal's roles on a registry from it. Access tokens live on.
func (c *Cloud) RevokeRoles(host, objectID string) {
	c.changeRegistry(host, func(r *azureRegistry) {
		delete(r.pullers, strings.ToLower(objectID))
		delete(r.readers, strings.ToLower(objectID))
	})
}

// SetRefreshTokenLife says how long a registry's refresh tokens live from now on; three hours without.
func (c *Cloud) SetRefreshTokenLife(host string, d time.Duration) {
	c.changeRegistry(host, func(r *azureRegistry) { r.life = d })
}

// azureHost is a copy of the registry of that name, which shares its roles.
func (c *Cloud) azureHost(host string) (azureRegistry, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.acr.registries[host]
	if r == nil {
		return azureRegistry{}, false
	}
	own := *r
	own.pullers, own.readers = maps.Clone(r.pullers), maps.Clone(r.readers)
	return own, true
}

// hasRole says whether a principal has any role here.
func (r azureRegistry) hasRole(objectID string) bool {
	_, reader := r.readers[objectID]
	return r.ABAC && reader || !r.ABAC && r.pullers[objectID]
}

// mayPull says whether a principal's role, or anybody's right, lets it pull from a repository.
func (r azureRegistry) mayPull(objectID, name string) bool {
	of := r.readers[objectID]
	return r.Anonymous || r.hasRole(objectID) && (!r.ABAC || len(of) == 0 || slices.Contains(of, name))
}

// acrCaller is who asks a registry.
type acrCaller struct {
	object, client string      // empty: anybody
	access         []acrAccess // what an access token is for
	limited        bool        // by access
}

// acrAccess is an entry of an access token (https://distribution.github.io/distribution/spec/auth/jwt/).
type acrAccess struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

func unauthorizedACR() *refusal {
	return &refusal{http.StatusUnauthorized, "UNAUTHORIZED", "authentication required, visit https://aka.ms/acr/authorization for more information. CorrelationId: " + newUUID()}
}

// acrLogin finds out whose a user name and password are: a token's, or those of a service principal with its secret; nobody's where there are none.
func (c *Cloud) acrLogin(r azureRegistry, username, password string) (acrCaller, *refusal) {
	switch {
	case username == "" && password == "":
		return acrCaller{}, nil
	case username == noUser:
		return c.acrToken(r, password, "refresh_token", "access_token")
	}
	p, ok := c.principal(c.tenantUnder("", r.Tenant), username)
	if !ok || p.Disabled || !slices.Contains(p.Secrets, password) {
		return acrCaller{}, unauthorizedACR()
	}
	return acrCaller{object: p.ObjectID, client: p.ClientID}, nil
}

// acrToken verifies a token that a registry has given out, of one of these kinds.
func (c *Cloud) acrToken(r azureRegistry, token string, kinds ...string) (acrCaller, *refusal) {
	claims, err := c.acr.issuer.verify(token)
	if err != nil {
		return acrCaller{}, unauthorizedACR()
	}
	text := func(name string) string {
		s, _ := claims[name].(string)
		return s
	}
	expires, _ := numericDate(claims, "exp")
	kind := text("grant_type")
	if text("iss") != c.acr.issuer.url || text("aud") != r.Host || text("rid") != r.id || !c.Now().Before(expires) || !slices.Contains(kinds, kind) {
		return acrCaller{}, unauthorizedACR()
	}
	caller := acrCaller{object: text("sub"), client: text("appid"), limited: kind == "access_token"}
	if err := into(claims["access"], &caller.access); err != nil {
		return acrCaller{}, unauthorizedACR()
	}
	return caller, nil
}

// allows says whether a caller may pull from a repository. What an access token may has been decided when it was given out.
func (r azureRegistry) allows(caller acrCaller, name string) bool {
	if !caller.limited {
		return r.mayPull(caller.object, name)
	}
	return slices.ContainsFunc(caller.access, func(a acrAccess) bool {
		return a.Type == "repository" && a.Name == name && slices.Contains(a.Actions, "pull")
	})
}

// pullFromAzure decides on a pull from a registry of Azure's.
func (r azureRegistry) pullFromAzure(name string, caller acrCaller) *refusal {
	switch {
	case !r.allows(caller, name):
		return unauthorizedACR()
	case !slices.Contains(r.Repositories, name):
		return &refusal{http.StatusNotFound, "NAME_UNKNOWN", `repository "` + name + `" is not found`}
	}
	return nil
}

// serveACR is what is under a registry's name: its own API, and the endpoints for its tokens.
func (c *Cloud) serveACR(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/v2/" && r.Method == http.MethodGet && r.Header.Get("Authorization") == "":
		entryOf(r).operation("challenge")
	case r.URL.Path == "/oauth2/exchange":
		entryOf(r).operation("exchange")
	case r.URL.Path == "/oauth2/token":
		entryOf(r).operation("token")
	}
	if c.faulty(w, r, "acr", entryOf(r).name(), func(f Fault) { writeDistribution(w, r, registryFault(f)) }) {
		return
	}
	registry, _ := c.azureHost(hostOf(r.Host))
	switch r.URL.Path {
	case "/oauth2/exchange":
		c.acrExchange(w, r, registry)
		return
	case "/oauth2/token":
		c.acrTokenEndpoint(w, r, registry)
		return
	}
	var caller acrCaller
	var no *refusal
	username, password, basic := r.BasicAuth()
	bearer, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	invalid := ""
	switch {
	case basic:
		caller, no = c.acrLogin(registry, username, password)
	case bearer != "":
		if caller, no = c.acrToken(registry, bearer, "access_token"); no != nil {
			invalid = `,error="invalid_token"`
		}
	default:
		no = unauthorizedACR()
	}
	entryOf(r).principal(caller.client)
	name, content, ok := requested(r)
	switch {
	case no != nil:
	case r.URL.Path == "/v2/":
		w.WriteHeader(http.StatusOK)
		return
	case !ok:
		no = &refusal{http.StatusNotFound, "UNSUPPORTED", "there is no such page"}
	default:
		if no = registry.pullFromAzure(name, caller); no == nil {
			writeContent(w, r, content)
			return
		}
	}
	if no.status == http.StatusUnauthorized {
		challenge := `Bearer realm="https://` + registry.Host + `/oauth2/token",service="` + registry.Host + `"`
		if ok {
			challenge += `,scope="repository:` + name + `:pull"`
		}
		w.Header().Set("WWW-Authenticate", challenge+invalid)
	}
	writeDistribution(w, r, *no)
}
