package cloud

import (
	"cmp"
	"encoding/hex"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// AzureInstance is the instance metadata service of a virtual machine of Azure, as far as managed identities go
// (https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token), and what the machine is.
type AzureInstance struct {
	*identities
	compute AzureCompute

	mu  sync.Mutex
	url string
}

// AzureCompute is what the metadata service tells of the machine, as far as others go by it (https://learn.microsoft.com/azure/virtual-machines/instance-metadata-service#instance-metadata).
type AzureCompute struct {
	SubscriptionID    string `json:"subscriptionId"`
	ResourceGroupName string `json:"resourceGroupName"`
	Name              string `json:"name"`
	// ScaleSet is the name of the scale set that it is in; empty: none.
	ScaleSet   string `json:"vmScaleSetName"`
	ResourceID string `json:"resourceId"`
	Location   string `json:"location"`
	VMID       string `json:"vmId"`
}

// AzureInstance starts a metadata service in a tenant of its own.
func (c *Cloud) AzureInstance(ids ...ManagedIdentity) *AzureInstance {
	return c.AzureInstanceIn(c.AddEntraTenant(EntraTenant{}).ID, ids...)
}

// AzureInstanceIn starts a metadata service in a tenant.
func (c *Cloud) AzureInstanceIn(tenantID string, ids ...ManagedIdentity) *AzureInstance {
	return c.azureInstance(tenantID, "node-1", "", ids)
}

// AzureScaleSetInstance is AzureInstanceIn for a machine of a scale set (of flexible orchestration).
func (c *Cloud) AzureScaleSetInstance(tenantID, scaleSet string, ids ...ManagedIdentity) *AzureInstance {
	return c.azureInstance(tenantID, scaleSet+"_"+newUUID()[:8], scaleSet, ids)
}

func (c *Cloud) azureInstance(tenantID, name, scaleSet string, ids []ManagedIdentity) *AzureInstance {
	a := &AzureInstance{identities: c.addIdentities(tenantID, "Microsoft.Compute/virtualMachines/"+name, ids)}
	a.compute = AzureCompute{SubscriptionID: a.subscription, ResourceGroupName: azureGroup, Name: name, ScaleSet: scaleSet, ResourceID: a.resource, Location: "westeurope", VMID: newUUID()}
	c.addMachine(a)
	a.url = c.mustListen("azure-metadata", a)
	return a
}

// Compute is what it tells of the machine.
func (a *AzureInstance) Compute() AzureCompute { return a.compute }

// newUUID is a random UUID (RFC 9562, version 4).
func newUUID() string {
	text := hex.EncodeToString([]byte(random(16)))
	return text[:8] + "-" + text[8:12] + "-4" + text[13:16] + "-8" + text[17:20] + "-" + text[20:32]
}

// URL is its address.
func (a *AzureInstance) URL() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.url
}

// Environ points what goes by the variable of the Azure SDKs to it.
func (a *AzureInstance) Environ() []string {
	return []string{"AZURE_POD_IDENTITY_AUTHORITY_HOST=" + a.URL()}
}

func (a *AzureInstance) move(url string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.url = url
}

// Absent makes it as on a machine outside Azure: nobody answers. On Linux not even a connection is made.
func (a *AzureInstance) Absent() { a.move(a.c.unreachable()) }

// Refuse makes it as on a machine outside Azure whose network says so: connections are refused.
func (a *AzureInstance) Refuse() { a.move(a.c.refusing()) }

// ServeHTTP is the metadata service.
func (a *AzureInstance) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Server", "IMDS/150.870.65.1854")
	const token, compute = "/metadata/identity/oauth2/token", "/metadata/instance/compute"
	switch r.URL.Path {
	case token:
		entryOf(r).operation("token")
	case compute:
		entryOf(r).operation("compute")
	}
	if a.c.faulty(w, r, "azure-metadata", entryOf(r).name(), func(f Fault) { writeIMDS(w, r, identityFault(f)) }) {
		return
	}
	query := r.URL.Query()
	invalid := func(text string) { writeIMDS(w, r, refusal{http.StatusBadRequest, "invalid_request", text}) }
	switch {
	case !strings.EqualFold(r.Header.Get("Metadata"), "true"):
		writeIMDS(w, r, refusal{http.StatusBadRequest, "bad_request_102", "Required metadata header not specified"})
	case r.Header.Get("X-Forwarded-For") != "":
		invalid("Requests with an X-Forwarded-For header are not served")
	case r.URL.Path == compute && r.Method == http.MethodGet:
		a.serveCompute(w, r)
	case r.URL.Path != token:
		writeIMDS(w, r, refusal{http.StatusNotFound, "unknown_source", "Unknown source " + r.URL.Path})
	case r.Method != http.MethodGet:
		writeIMDS(w, r, refusal{http.StatusMethodNotAllowed, "invalid_request", "Method not allowed"})
	case query.Get("api-version") == "":
		invalid("Required query variable 'api-version' is missing")
	case query.Get("api-version") < "2018-02-01":
		invalid("The api-version is not supported")
	case query.Get("resource") == "":
		invalid("Required query variable 'resource' is missing")
	default:
		id, problem := a.find(query.Get("client_id"), cmp.Or(query.Get("object_id"), query.Get("principal_id")), cmp.Or(query.Get("msi_res_id"), query.Get("mi_res_id")))
		if problem != "" {
			invalid(problem)
			return
		}
		answer, no := a.token(r, id, query.Get("resource"))
		if no != nil {
			writeIMDS(w, r, *no)
			return
		}
		writeJSON(w, http.StatusOK, answer)
	}
}

// serveCompute tells of the machine. Which versions there are is said where none is, or another; what is newer than the two that are known here is not.
func (a *AzureInstance) serveCompute(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	switch version := query.Get("api-version"); {
	case version != "2021-02-01" && version != "2021-12-13":
		entryOf(r).code("Bad Request")
		writeJSON(w, http.StatusBadRequest, map[string]any{"error": "Bad request. api-version was not specified in the request", "newest-versions": []string{"2021-12-13", "2021-02-01"}})
	case query.Get("format") != "" && query.Get("format") != "json":
		entryOf(r).code("Bad Request")
		writeJSON(w, http.StatusBadRequest, map[string]string{"error": "Bad request. Format not supported for this resource"})
	default:
		writeJSON(w, http.StatusOK, a.compute)
	}
}

// identityFault is a fault as those who give managed identities their tokens word it.
func identityFault(f Fault) refusal {
	return refusal{cmp.Or(f.Status, http.StatusTooManyRequests), cmp.Or(f.Code, "too_many_requests"), "Too many requests"}
}

func writeIMDS(w http.ResponseWriter, r *http.Request, no refusal) {
	entryOf(r).code(no.code)
	writeJSON(w, no.status, map[string]string{"error": no.code, "error_description": no.message})
}

// ManagedIdentity is a managed identity of Azure. Ids that are empty are made up.
type ManagedIdentity struct {
	ClientID, ObjectID, ResourceID string
	// System: system-assigned, else user-assigned.
	System bool
}

// identities are the managed identities that something in Azure has.
type identities struct {
	c                      *Cloud
	t                      *tenant
	subscription, resource string // where it is, and its id
	all                    []ManagedIdentity
}

// azureGroup is the resource group of everything.
const azureGroup = "test"

// addIdentities makes managed identities in a tenant. A system-assigned one is the resource itself.
func (c *Cloud) addIdentities(tenantID, resource string, ids []ManagedIdentity) *identities {
	m := &identities{c: c, t: c.tenantUnder("", tenantID), subscription: newUUID()}
	if m.t == nil {
		panic("there is no tenant " + tenantID)
	}
	group := "/subscriptions/" + m.subscription + "/resourceGroups/" + azureGroup + "/providers/"
	m.resource = group + resource
	for i, id := range ids {
		if id.ResourceID == "" {
			if id.ResourceID = group + "Microsoft.ManagedIdentity/userAssignedIdentities/identity" + strconv.Itoa(i); id.System {
				id.ResourceID = m.resource
			}
		}
		p := c.addPrincipal(tenantID, servicePrincipal{ServicePrincipal: ServicePrincipal{ClientID: id.ClientID, ObjectID: id.ObjectID}, resource: id.ResourceID})
		id.ClientID, id.ObjectID = p.ClientID, p.ObjectID
		m.all = append(m.all, id)
	}
	return m
}

// Tenant is the tenant's id.
func (m *identities) Tenant() string { return m.t.ID }

// Issuer is the issuer of the tenant's access tokens of version 1.0 or 2.0.
func (m *identities) Issuer(v2 bool) string {
	if v2 {
		return m.t.v2.URL()
	}
	return m.t.v1.URL()
}

// AddApplication makes an app registration in the tenant, and gives it with its ids.
func (m *identities) AddApplication(app Application) Application {
	return m.c.AddApplication(m.t.ID, app)
}

// Identities are the managed identities.
func (m *identities) Identities() []ManagedIdentity { return append([]ManagedIdentity(nil), m.all...) }

// noIdentity is what the metadata service says where there is no such identity.
const noIdentity = "Identity not found"

// find is the one that a request means, by one of its ids or by none, or what is wrong with it.
func (m *identities) find(client, object, resource string) (found ManagedIdentity, problem string) {
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
	for _, id := range m.all {
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
		return ManagedIdentity{}, noIdentity
	case 1:
		return found, ""
	default:
		return ManagedIdentity{}, "Multiple user assigned identities exist, please specify the clientId / resourceId of the identity in the token request"
	}
}

// token gets an identity's token from Entra, with what all who give them out say of it.
func (m *identities) token(r *http.Request, id ManagedIdentity, resource string) (map[string]string, *refusal) {
	entryOf(r).principal(id.ClientID)
	resource = strings.TrimSuffix(resource, "/.default")
	app, known := m.c.application(m.t, resource)
	p, there := m.c.principal(m.t, id.ClientID)
	var no *aadsts
	switch {
	case !there:
		no = unknownApplication(id.ClientID, m.t)
	case p.Disabled:
		no = disabled(p)
	case !known:
		no = unknownResource(resource, m.t)
	}
	if no != nil {
		text, _ := no.answer(m.c, r)["error_description"].(string)
		return nil, &refusal{no.status, no.code, text}
	}
	if !id.System {
		p.on = m.resource
	}
	now := m.c.Now()
	seconds := strconv.Itoa(int(identityLife.Seconds()))
	return map[string]string{
		"access_token": m.c.entraToken(m.t, p, app, resource, "2", identityLife), "client_id": id.ClientID, "expires_in": seconds, "ext_expires_in": seconds,
		"expires_on": strconv.FormatInt(now.Add(identityLife).Unix(), 10), "not_before": strconv.FormatInt(now.Unix(), 10), "resource": resource, "token_type": "Bearer",
	}, nil
}
