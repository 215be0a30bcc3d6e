package cloud

import (
	"cmp"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// entra is Microsoft Entra ID. Cloud.mu guards it.
type entra struct {
	authorities map[string]*nationalCloud // by the host names that each is asked under
	tenants     map[string]*tenant        // by id
}

// nationalCloud is one of Microsoft's clouds, which know nothing of one another's tenants (https://learn.microsoft.com/entra/identity-platform/authentication-national-cloud).
type nationalCloud struct {
	names    []string // the first one is what the issuer of its tokens of version 2.0 is called
	issuer   string   // of tokens of version 1.0
	graph    string
	services []string // its Resource Manager's audiences
	exchange string   // the audience of federated credentials
}

func nationalClouds() []*nationalCloud {
	return []*nationalCloud{
		{
			names: []string{"login.microsoftonline.com", "login.windows.net", "login.microsoft.com"}, issuer: "sts.windows.net", graph: "graph.microsoft.com",
			services: []string{"https://management.azure.com", "https://management.core.windows.net"}, exchange: "api://AzureADTokenExchange",
		},
		{
			names: []string{"login.partner.microsoftonline.cn", "login.chinacloudapi.cn"}, issuer: "sts.chinacloudapi.cn", graph: "microsoftgraph.chinacloudapi.cn",
			services: []string{"https://management.chinacloudapi.cn", "https://management.core.chinacloudapi.cn"}, exchange: "api://AzureADTokenExchangeChina",
		},
		{
			names: []string{"login.microsoftonline.us", "login.usgovcloudapi.net"}, issuer: "sts.windows.net", graph: "graph.microsoft.us",
			services: []string{"https://management.usgovcloudapi.net", "https://management.core.usgovcloudapi.net"}, exchange: "api://AzureADTokenExchangeUSGov",
		},
	}
}

// EntraTenant is a tenant of Microsoft Entra ID.
type EntraTenant struct {
	// ID is its directory id, a UUID. Empty: made up.
	ID string
	// Authority is the host name that it is asked under: login.microsoftonline.com (the default), login.chinacloudapi.cn, login.microsoftonline.us, or one of a cloud of its own.
	Authority string
}

// tenant is a tenant with what is in it.
type tenant struct {
	EntraTenant
	cloud        *nationalCloud
	v1, v2       *Issuer // of its tokens
	principals   map[string]*servicePrincipal
	applications []Application
}

// ServicePrincipal is an application of a tenant with its service principal there, or a user-assigned managed identity, which can have federated credentials too.
type ServicePrincipal struct {
	// ClientID and ObjectID are UUIDs. Empty: made up.
	ClientID, ObjectID string
	// Secrets are its client secrets.
	Secrets []string
	// Certificates are the public parts of its keys.
	Certificates []*x509.Certificate
	// Federated are its federated credentials.
	Federated []FederatedCredential
	// Disabled: nobody can sign in as it.
	Disabled bool
}

// FederatedCredential says whose tokens stand for a service principal. All of it is compared to the letter
// (https://learn.microsoft.com/entra/workload-id/workload-identity-federation#how-it-works).
type FederatedCredential struct {
	Issuer, Subject string
	// Audience is the token's. Empty: api://AzureADTokenExchange.
	Audience string
}

// servicePrincipal is a service principal, or the identity of a resource of Azure.
type servicePrincipal struct {
	ServicePrincipal
	resource string // of a managed identity
	on       string // the resource that it is assigned to, if it is another one
}

// Application is an app registration of the tenant: a resource that tokens can be for.
type Application struct {
	// URI is its application ID URI. The audience of its tokens, unless V2.
	URI string
	// ClientID is its client id. Empty: made up.
	ClientID string
	// V2: it accepts access tokens of version 2.0, whose issuer and audience are others.
	V2 bool
}

// The audience of tokens for container registries, and the applications that stand for Azure's own services.
const (
	registryAudience = "https://containerregistry.azure.net"
	registryApp      = "6a0ec4d3-30cb-4a83-91c0-ae56bc0e3d26"
	managementApp    = "797f4846-ba00-4fd7-ba43-dc1f8f63013c"
	exchangeApp      = "fb60f99c-7a34-4190-8149-302f77469936"
)

func (c *Cloud) startAzure() {
	c.entra = entra{authorities: map[string]*nationalCloud{}, tenants: map[string]*tenant{}}
	c.acr = acr{registries: map[string]*azureRegistry{}}
	c.arm = arm{readers: map[string]map[string]bool{}}
	c.handle(armHost, "azure-arm", http.HandlerFunc(c.serveARM))
	for _, n := range nationalClouds() {
		c.addAuthority(n)
	}
}

func (c *Cloud) addAuthority(n *nationalCloud) {
	for _, host := range n.names {
		c.mu.Lock()
		c.entra.authorities[host] = n
		c.mu.Unlock()
		c.handle(host, "entra", http.HandlerFunc(c.serveEntra))
	}
}

// AddEntraTenant makes a tenant, and gives it with its id. One that is there stays as it is. It has Azure's own resources.
func (c *Cloud) AddEntraTenant(t EntraTenant) EntraTenant {
	t.ID, t.Authority = strings.ToLower(cmp.Or(t.ID, newUUID())), cmp.Or(t.Authority, "login.microsoftonline.com")
	c.mu.Lock()
	known, n := c.entra.tenants[t.ID], c.entra.authorities[t.Authority]
	c.mu.Unlock()
	if known != nil {
		return known.EntraTenant
	}
	if n == nil {
		n = nationalClouds()[0]
		n.names, n.issuer = []string{t.Authority}, t.Authority
		c.addAuthority(n)
	}
	made := &tenant{EntraTenant: t, cloud: n, principals: map[string]*servicePrincipal{}}
	made.v2 = c.AddIssuer("https://" + n.names[0] + "/" + t.ID + "/v2.0")
	made.v1 = c.addIssuer("https://"+n.issuer+"/"+t.ID+"/", made.v2)
	for _, uri := range n.services {
		made.applications = append(made.applications, Application{URI: uri, ClientID: managementApp})
	}
	made.applications = append(made.applications, Application{URI: registryAudience, ClientID: registryApp}, Application{URI: n.exchange, ClientID: exchangeApp, V2: true})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entra.tenants[t.ID] = made
	return t
}

// AddApplication makes an app registration in a tenant, a resource that its tokens can be for, and gives it with its ids.
func (c *Cloud) AddApplication(tenantID string, app Application) Application {
	app.ClientID = cmp.Or(app.ClientID, newUUID())
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.entra.tenants[strings.ToLower(tenantID)]
	if t == nil {
		panic("there is no tenant " + tenantID)
	}
	t.applications = append(t.applications, app)
	return app
}

// AddServicePrincipal makes a service principal, or replaces the one with its client id, and gives it with its ids.
func (c *Cloud) AddServicePrincipal(tenantID string, p ServicePrincipal) ServicePrincipal {
	return c.addPrincipal(tenantID, servicePrincipal{ServicePrincipal: p}).ServicePrincipal
}

func (c *Cloud) addPrincipal(tenantID string, p servicePrincipal) servicePrincipal {
	p.Federated = slices.Clone(p.Federated)
	for i := range p.Federated {
		p.Federated[i].Audience = cmp.Or(p.Federated[i].Audience, "api://AzureADTokenExchange")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.entra.tenants[strings.ToLower(tenantID)]
	if t == nil {
		panic("there is no tenant " + tenantID)
	}
	p.ClientID = strings.ToLower(cmp.Or(p.ClientID, newUUID()))
	if known := t.principals[p.ClientID]; known != nil {
		p.ObjectID, p.resource = cmp.Or(p.ObjectID, known.ObjectID), cmp.Or(p.resource, known.resource)
	}
	p.ObjectID = cmp.Or(p.ObjectID, newUUID())
	t.principals[p.ClientID] = &p
	return p
}

// RemoveServicePrincipal makes a service principal unknown from now on. Its access tokens live on.
func (c *Cloud) RemoveServicePrincipal(tenantID, clientID string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.entra.tenants[strings.ToLower(tenantID)]; t != nil {
		delete(t.principals, strings.ToLower(clientID))
	}
}

// tenantUnder finds a tenant by its id, for who asks for it under one of Entra's host names; any if that is empty.
func (c *Cloud) tenantUnder(host, id string) *tenant {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.entra.tenants[strings.ToLower(id)]
	if t == nil || host != "" && c.entra.authorities[host] != t.cloud {
		return nil
	}
	return t
}

// principal is a copy of a tenant's service principal.
func (c *Cloud) principal(t *tenant, clientID string) (servicePrincipal, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := t.principals[strings.ToLower(clientID)]; p != nil {
		return *p, true
	}
	return servicePrincipal{}, false
}

// application finds the resource that a token is asked for, by its URI or client id.
func (c *Cloud) application(t *tenant, resource string) (Application, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, app := range t.applications {
		if app.URI != "" && strings.TrimSuffix(app.URI, "/") == strings.TrimSuffix(resource, "/") || strings.EqualFold(app.ClientID, resource) {
			return app, true
		}
	}
	return Application{}, false
}

// aadsts is a refusal of Entra (https://learn.microsoft.com/entra/identity-platform/reference-error-codes).
type aadsts struct {
	status int
	code   string // OAuth's
	number int    // Entra's own
	text   string
}

func (no aadsts) name() string { return fmt.Sprintf("AADSTS%d", no.number) }

// answer is the refusal as Entra writes it, and as its messengers repeat it.
func (no aadsts) answer(c *Cloud, r *http.Request) map[string]any {
	trace, correlation, at := newUUID(), cmp.Or(r.Header.Get("Client-Request-Id"), newUUID()), c.Now().UTC().Format("2006-01-02 15:04:05Z")
	return map[string]any{
		"error": no.code, "error_codes": []int{no.number}, "timestamp": at, "trace_id": trace, "correlation_id": correlation,
		"error_description": fmt.Sprintf("%s: %s Trace ID: %s Correlation ID: %s Timestamp: %s", no.name(), no.text, trace, correlation, at),
		"error_uri":         fmt.Sprintf("https://login.microsoftonline.com/error?code=%d", no.number),
	}
}

func (c *Cloud) writeEntra(w http.ResponseWriter, r *http.Request, no aadsts) {
	entryOf(r).code(no.name())
	writeJSON(w, no.status, no.answer(c, r))
}

// entraFault is a fault as Entra words it. A Code of the form AADSTS… is one of Entra's own, else it is OAuth's.
func entraFault(f Fault) aadsts {
	number, err := strconv.Atoi(strings.TrimPrefix(f.Code, "AADSTS"))
	switch {
	case err == nil:
		return aadsts{cmp.Or(f.Status, http.StatusUnauthorized), "invalid_client", number, "A fault on demand."}
	case f.Status >= http.StatusInternalServerError:
		return aadsts{f.Status, cmp.Or(f.Code, "temporarily_unavailable"), 90033, "A transient error has occurred. Please try again."}
	case f.Status == 0 || f.Status == http.StatusTooManyRequests:
		return aadsts{http.StatusTooManyRequests, cmp.Or(f.Code, "temporarily_unavailable"), 90055, "The request was throttled. Please try again later."}
	default:
		return aadsts{f.Status, cmp.Or(f.Code, "invalid_request"), 90033, "A fault on demand."}
	}
}

var (
	uuidPattern   = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)
	domainPattern = regexp.MustCompile(`^([a-zA-Z0-9-]+\.)+[a-zA-Z]+$`)
)

// serveEntra is what is under one of Entra's host names.
func (c *Cloud) serveEntra(w http.ResponseWriter, r *http.Request) {
	host := hostOf(r.Host)
	id, page, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch page {
	case "v2.0/.well-known/openid-configuration", ".well-known/openid-configuration", "discovery/instance":
		entryOf(r).operation("discovery")
	case "discovery/v2.0/keys", "discovery/keys":
		entryOf(r).operation("keys")
	case "oauth2/v2.0/token":
		entryOf(r).operation("token")
	default:
		c.serveIssuers(w, r)
		return
	}
	if c.faulty(w, r, "entra", entryOf(r).name(), func(f Fault) { c.writeEntra(w, r, entraFault(f)) }) {
		return
	}
	if page == "discovery/instance" {
		c.discoverInstance(w, r)
		return
	}
	t := c.tenantUnder(host, id)
	switch {
	case t == nil:
		c.writeEntra(w, r, unknownTenant(id, page))
	case page == "oauth2/v2.0/token":
		c.entraTokenEndpoint(w, r, t) //nolint:contextcheck // what it asks an issuer ends with the cloud
	case r.Method != http.MethodGet:
		w.WriteHeader(http.StatusMethodNotAllowed)
	case page == "discovery/v2.0/keys":
		c.publish(w, t.v2)
	case page == "discovery/keys":
		c.publish(w, t.v1)
	default:
		writeJSON(w, http.StatusOK, t.discovery(host, strings.HasPrefix(page, "v2.0/")))
	}
}

func unknownTenant(id, page string) aadsts {
	code := "invalid_tenant"
	if page == "oauth2/v2.0/token" {
		code = "invalid_request"
	}
	if !uuidPattern.MatchString(id) && !domainPattern.MatchString(id) {
		return aadsts{http.StatusBadRequest, code, 900023, "Specified tenant identifier '" + id + "' is neither a valid DNS name, nor a valid external domain."}
	}
	return aadsts{
		http.StatusBadRequest, code, 90002, "Tenant '" + id + "' not found. Check to make sure you have the correct tenant ID and are signing into the correct cloud. " +
			"Check with your subscription administrator, this may happen if there are no active subscriptions for the tenant.",
	}
}

func (*Cloud) publish(w http.ResponseWriter, i *Issuer) {
	writeJSON(w, http.StatusOK, i.published())
}

// discovery is the tenant's metadata (https://learn.microsoft.com/entra/identity-platform/v2-protocols-oidc#fetch-the-openid-configuration-document).
func (t *tenant) discovery(host string, v2 bool) map[string]any {
	base, version, issuer := "https://"+host+"/"+t.ID, "", t.v1
	if v2 {
		version, issuer = "/v2.0", t.v2
	}
	return map[string]any{
		"issuer": issuer.URL(), "token_endpoint": base + "/oauth2" + version + "/token", "authorization_endpoint": base + "/oauth2" + version + "/authorize",
		"device_authorization_endpoint": base + "/oauth2" + version + "/devicecode", "end_session_endpoint": base + "/oauth2" + version + "/logout",
		"jwks_uri": base + "/discovery" + version + "/keys", "userinfo_endpoint": "https://" + t.cloud.graph + "/oidc/userinfo", "kerberos_endpoint": base + "/kerberos",
		"token_endpoint_auth_methods_supported": []string{"client_secret_post", "private_key_jwt", "client_secret_basic"},
		"response_modes_supported":              []string{"query", "fragment", "form_post"}, "response_types_supported": []string{"code", "id_token", "code id_token", "id_token token"},
		"subject_types_supported": []string{"pairwise"}, "id_token_signing_alg_values_supported": []string{"RS256"},
		"scopes_supported": []string{"openid", "profile", "email", "offline_access"}, "tenant_region_scope": "EU", "cloud_instance_name": strings.TrimPrefix(t.cloud.names[0], "login."),
		"msgraph_host": t.cloud.graph,
	}
}

// discoverInstance says which hosts are Entra's, for clients that want to know before they show a secret to one.
func (c *Cloud) discoverInstance(w http.ResponseWriter, r *http.Request) {
	asked, err := url.Parse(r.URL.Query().Get("authorization_endpoint"))
	metadata, known := []map[string]any{}, false
	for _, n := range nationalClouds() {
		known = known || err == nil && slices.Contains(n.names, asked.Host)
		metadata = append(metadata, map[string]any{"preferred_network": n.names[0], "preferred_cache": n.names[0], "aliases": n.names})
	}
	if !known {
		c.writeEntra(w, r, aadsts{http.StatusBadRequest, "invalid_instance", 50049, "Unknown or invalid instance."})
		return
	}
	id, _, _ := strings.Cut(strings.TrimPrefix(asked.Path, "/"), "/")
	writeJSON(w, http.StatusOK, map[string]any{
		"tenant_discovery_endpoint": "https://" + asked.Host + "/" + id + "/v2.0/.well-known/openid-configuration", "api-version": "1.1", "metadata": metadata,
	})
}

// How long Entra's access tokens live; a managed identity's live for a day.
const (
	entraLife    = time.Hour
	identityLife = 24 * time.Hour
)

// claimed is a resource's id as tokens have it.
func claimed(resource string) string {
	return strings.Replace(resource, "/resourceGroups/", "/resourcegroups/", 1)
}

// entraToken is an access token of a service principal for a resource, as the resource wants it (https://learn.microsoft.com/entra/identity-platform/access-token-claims-reference). acr
// says how the principal has proved who it is: "1" by a secret, "2" by anything better.
func (c *Cloud) entraToken(t *tenant, p servicePrincipal, app Application, resource, acr string, life time.Duration) string {
	now := c.Now()
	claims := map[string]any{
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(life).Unix(), "tid": t.ID, "oid": p.ObjectID, "sub": p.ObjectID, "idtyp": "app", "uti": random(22),
		"aio": random(48), "rh": "1." + random(40), "ver": "1.0", "xms_idrel": "7 30",
	}
	if p.resource != "" {
		claims["xms_mirid"] = claimed(p.resource)
	}
	if p.on != "" {
		claims["xms_az_rid"] = claimed(p.on)
	}
	if app.V2 {
		claims["aud"], claims["ver"], claims["azp"], claims["azpacr"] = app.ClientID, "2.0", p.ClientID, acr
		return t.v2.Token(claims)
	}
	claims["aud"], claims["appid"], claims["appidacr"], claims["idp"] = resource, p.ClientID, acr, t.v1.URL()
	return t.v1.Token(claims)
}
