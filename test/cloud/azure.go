package cloud

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ManagedIdentity is a managed identity of Azure. Ids that are empty are made up.
type ManagedIdentity struct {
	ClientID, ObjectID, ResourceID string
	// System: system-assigned, else user-assigned.
	System bool
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

// AzureInstance is the instance metadata service of a virtual machine of Azure, as far as managed identities go
// (https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token).
type AzureInstance struct {
	c      *Cloud
	url    string
	tenant string

	mu           sync.Mutex
	identities   []ManagedIdentity
	applications []Application
}

// AzureInstance starts a metadata service. Its tenant has Azure's own resources, and those of AddApplication.
func (c *Cloud) AzureInstance(identities ...ManagedIdentity) *AzureInstance {
	a := &AzureInstance{c: c, tenant: newUUID()}
	a.AddApplication(Application{URI: "https://management.azure.com/"})
	a.AddApplication(Application{URI: "https://containerregistry.azure.net"})
	a.AddApplication(Application{URI: "api://AzureADTokenExchange", ClientID: "fb60f99c-7a34-4190-8149-302f77469936"})
	for i, id := range identities {
		id.ClientID, id.ObjectID = cmp.Or(id.ClientID, newUUID()), cmp.Or(id.ObjectID, newUUID())
		if id.ResourceID == "" {
			group := "/subscriptions/" + newUUID() + "/resourceGroups/test/providers/"
			if id.ResourceID = group + "Microsoft.ManagedIdentity/userAssignedIdentities/identity" + strconv.Itoa(i); id.System {
				id.ResourceID = group + "Microsoft.Compute/virtualMachines/node-1"
			}
		}
		a.identities = append(a.identities, id)
	}
	c.AddIssuer(a.Issuer(false))
	c.AddIssuer(a.Issuer(true))
	a.url = c.mustListen("azure-metadata", a)
	return a
}

// newUUID is a random UUID (RFC 9562, version 4).
func newUUID() string {
	text := hex.EncodeToString([]byte(random(16)))
	return text[:8] + "-" + text[8:12] + "-4" + text[13:16] + "-8" + text[17:20] + "-" + text[20:32]
}

// URL is its address.
func (a *AzureInstance) URL() string { return a.url }

// Environ points what goes by the variable of the Azure SDKs to it.
func (a *AzureInstance) Environ() []string {
	return []string{"AZURE_POD_IDENTITY_AUTHORITY_HOST=" + a.url}
}

// Tenant is the tenant's id.
func (a *AzureInstance) Tenant() string { return a.tenant }

// Issuer is the issuer of the tenant's access tokens of version 1.0 or 2.0.
func (a *AzureInstance) Issuer(v2 bool) string {
	if v2 {
		return "https://login.microsoftonline.com/" + a.tenant + "/v2.0"
	}
	return "https://sts.windows.net/" + a.tenant + "/"
}

// AddApplication makes an app registration in the tenant, and gives it with its ids.
func (a *AzureInstance) AddApplication(app Application) Application {
	app.ClientID = cmp.Or(app.ClientID, newUUID())
	a.mu.Lock()
	defer a.mu.Unlock()
	a.applications = append(a.applications, app)
	return app
}

// Identities are the machine's managed identities.
func (a *AzureInstance) Identities() []ManagedIdentity {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]ManagedIdentity(nil), a.identities...)
}

// ServeHTTP is the metadata service.
func (a *AzureInstance) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Server", "IMDS/150.870.65.1854")
	if r.URL.Path == "/metadata/identity/oauth2/token" {
		entryOf(r).operation("token")
	}
	if a.c.faulty(w, r, "azure-metadata", entryOf(r).name(), func(f Fault) {
		a.refuse(w, r, cmp.Or(f.Status, http.StatusTooManyRequests), cmp.Or(f.Code, "too_many_requests"), "Too many requests")
	}) {
		return
	}
	query := r.URL.Query()
	switch {
	case !strings.EqualFold(r.Header.Get("Metadata"), "true"):
		a.refuse(w, r, http.StatusBadRequest, "bad_request_102", "Required metadata header not specified")
	case r.Header.Get("X-Forwarded-For") != "":
		a.refuse(w, r, http.StatusBadRequest, "invalid_request", "Requests with an X-Forwarded-For header are not served")
	case r.URL.Path != "/metadata/identity/oauth2/token":
		a.refuse(w, r, http.StatusNotFound, "unknown_source", "Unknown source "+r.URL.Path)
	case r.Method != http.MethodGet:
		a.refuse(w, r, http.StatusMethodNotAllowed, "invalid_request", "Method not allowed")
	case query.Get("api-version") == "":
		a.refuse(w, r, http.StatusBadRequest, "invalid_request", "Required query variable 'api-version' is missing")
	case query.Get("api-version") < "2018-02-01":
		a.refuse(w, r, http.StatusBadRequest, "invalid_request", "The api-version is not supported")
	case query.Get("resource") == "":
		a.refuse(w, r, http.StatusBadRequest, "invalid_request", "Required query variable 'resource' is missing")
	default:
		a.token(w, r)
	}
}

func (a *AzureInstance) token(w http.ResponseWriter, r *http.Request) {
	id, problem := a.identity(r)
	if problem != "" {
		a.refuse(w, r, http.StatusBadRequest, "invalid_request", problem)
		return
	}
	entryOf(r).principal(id.ClientID)
	resource := r.URL.Query().Get("resource")
	app, ok := a.application(resource)
	if !ok {
		a.refuse(w, r, http.StatusBadRequest, "invalid_resource", fmt.Sprintf(
			"AADSTS500011: The resource principal named %s was not found in the tenant named %s. Trace ID: %s", resource, a.tenant, newUUID()))
		return
	}
	now := a.c.Now()
	expires := now.Add(24 * time.Hour)
	claims := map[string]any{
		"iat": now.Unix(), "nbf": now.Unix(), "exp": expires.Unix(), "tid": a.tenant, "oid": id.ObjectID, "sub": id.ObjectID, "idtyp": "app", "uti": random(22),
		"xms_mirid": id.ResourceID,
	}
	if app.V2 {
		claims["aud"], claims["ver"], claims["azp"], claims["azpacr"] = app.ClientID, "2.0", id.ClientID, "2"
	} else {
		claims["aud"], claims["ver"], claims["appid"], claims["appidacr"] = resource, "1.0", id.ClientID, "2"
		claims["idp"] = a.Issuer(false)
		if resource == "api://AzureADTokenExchange" {
			claims["aud"] = app.ClientID
		}
	}
	seconds := strconv.FormatInt(int64(expires.Sub(now).Seconds()), 10)
	writeJSON(w, http.StatusOK, map[string]string{
		"access_token": a.c.AddIssuer(a.Issuer(app.V2)).Token(claims), "client_id": id.ClientID, "expires_in": seconds, "ext_expires_in": seconds,
		"expires_on": strconv.FormatInt(expires.Unix(), 10), "not_before": strconv.FormatInt(now.Unix(), 10), "resource": resource, "token_type": "Bearer",
	})
}

// identity is the one that the request means, or what is wrong with it.
func (a *AzureInstance) identity(r *http.Request) (found ManagedIdentity, problem string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	query := r.URL.Query()
	client, object, resource := query.Get("client_id"), cmp.Or(query.Get("object_id"), query.Get("principal_id")), cmp.Or(query.Get("msi_res_id"), query.Get("mi_res_id"))
	given := 0
	for _, v := range []string{client, object, resource} {
		if v != "" {
			given++
		}
	}
	if given > 1 {
		return found, "Only one of client_id, object_id and msi_res_id may be given"
	}
	user := 0
	for _, id := range a.identities {
		switch {
		case client != "" && strings.EqualFold(client, id.ClientID), object != "" && strings.EqualFold(object, id.ObjectID), resource != "" && strings.EqualFold(resource, id.ResourceID):
			return id, ""
		case given == 0 && id.System:
			return id, ""
		case given == 0:
			user, found = user+1, id
		}
	}
	switch user {
	case 0:
		return ManagedIdentity{}, "Identity not found"
	case 1:
		return found, ""
	default:
		return ManagedIdentity{}, "Multiple user assigned identities exist, please specify the clientId / resourceId of the identity in the token request"
	}
}

func (a *AzureInstance) application(resource string) (Application, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, app := range a.applications {
		if strings.TrimSuffix(app.URI, "/") == strings.TrimSuffix(resource, "/") || strings.EqualFold(app.ClientID, resource) {
			return app, true
		}
	}
	return Application{}, false
}

func (a *AzureInstance) refuse(w http.ResponseWriter, r *http.Request, status int, code, text string) {
	entryOf(r).code(code)
	writeJSON(w, status, map[string]string{"error": code, "error_description": text})
}
