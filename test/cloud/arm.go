package cloud

import (
	"net/http"
	"regexp"
	"slices"
	"strings"
)

// armHost is the Azure Resource Manager of the public cloud.
const armHost = "management.azure.com"

// arm is what the Azure Resource Manager knows. Cloud.mu guards it.
type arm struct {
	machines []*AzureInstance
	readers  map[string]map[string]bool // object ids, by subscription
}

// GrantAzureReader gives a principal the role Reader in a subscription (https://learn.microsoft.com/azure/role-based-access-control/built-in-roles#reader).
func (c *Cloud) GrantAzureReader(subscriptionID, objectID string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	subscriptionID = strings.ToLower(subscriptionID)
	if c.arm.readers[subscriptionID] == nil {
		c.arm.readers[subscriptionID] = map[string]bool{}
	}
	c.arm.readers[subscriptionID][strings.ToLower(objectID)] = true
}

// addMachine makes a machine known to the Resource Manager.
func (c *Cloud) addMachine(a *AzureInstance) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.arm.machines = append(c.arm.machines, a)
}

var (
	armResource = regexp.MustCompile(`(?i)^/subscriptions/([^/]+)/resourceGroups/([^/]+)/providers/([^/]+/[^/]+)(?:/([^/]+))?$`)
	armVersion  = regexp.MustCompile(`^20\d\d-\d\d-\d\d(-[a-z]+)?$`)
)

// The resource types that there are.
const (
	typeMachine  = "Microsoft.Compute/virtualMachines"
	typeScaleSet = "Microsoft.Compute/virtualMachineScaleSets"
	typeIdentity = "Microsoft.ManagedIdentity/userAssignedIdentities"
)

// serveARM is the Azure Resource Manager, of which there is the look at machines, scale sets and user-assigned identities, by anybody who has the role Reader in their subscription
// (https://learn.microsoft.com/rest/api/compute/virtual-machines/get, …/virtual-machine-scale-sets/get, https://learn.microsoft.com/rest/api/managedidentity/user-assigned-identities/get).
func (c *Cloud) serveARM(w http.ResponseWriter, r *http.Request) {
	m := armResource.FindStringSubmatch(r.URL.Path)
	if m != nil && r.Method == http.MethodGet {
		entryOf(r).operation(m[3] + "/read")
	}
	if c.faulty(w, r, "azure-arm", entryOf(r).name(), func(f Fault) { writeARM(w, r, armFault(f)) }) {
		return
	}
	answer, no := c.armAnswer(w, r, m)
	if no != nil {
		writeARM(w, r, *no)
		return
	}
	writeJSON(w, http.StatusOK, answer)
}

// armFault is a fault as the Resource Manager words it (https://learn.microsoft.com/azure/azure-resource-manager/management/request-limits-and-throttling#error-code).
func armFault(f Fault) refusal {
	no := refusal{f.Status, f.Code, "a fault on demand"}
	if no.status == 0 {
		no.status = http.StatusTooManyRequests
	}
	if no.code == "" {
		if no.code = "TooManyRequests"; no.status >= http.StatusInternalServerError {
			no.code = "InternalServerError"
		}
	}
	return no
}

func writeARM(w http.ResponseWriter, r *http.Request, no refusal) {
	entryOf(r).code(no.code)
	writeJSON(w, no.status, map[string]any{"error": map[string]string{"code": no.code, "message": no.message}})
}

func (c *Cloud) armAnswer(w http.ResponseWriter, r *http.Request, m []string) (any, *refusal) {
	tenant, caller, no := c.armCaller(r)
	if no != nil {
		w.Header().Set("WWW-Authenticate", `Bearer authorization_uri="https://login.microsoftonline.com/common", error="invalid_token", error_description="`+no.message+`"`)
		return nil, no
	}
	version := r.URL.Query().Get("api-version")
	switch {
	case m == nil || r.Method != http.MethodGet:
		return nil, &refusal{http.StatusNotFound, "InvalidResourceType", "The resource type could not be found."}
	case version == "":
		return nil, &refusal{http.StatusBadRequest, "MissingApiVersionParameter", "The api-version query parameter (?api-version=) is required for all requests."}
	case !armVersion.MatchString(version):
		return nil, &refusal{http.StatusBadRequest, "InvalidApiVersionParameter", "The api-version '" + version + "' is invalid."}
	case !uuidPattern.MatchString(m[1]):
		return nil, &refusal{http.StatusBadRequest, "InvalidSubscriptionId", "The provided subscription identifier '" + m[1] + "' is malformed or invalid."}
	}
	var there []*AzureInstance
	c.mu.Lock()
	for _, a := range c.arm.machines {
		if strings.EqualFold(a.compute.SubscriptionID, m[1]) {
			there = append(there, a)
		}
	}
	reader := c.arm.readers[strings.ToLower(m[1])][strings.ToLower(caller.ObjectID)]
	c.mu.Unlock()
	switch {
	case len(there) == 0:
		return nil, &refusal{http.StatusNotFound, "SubscriptionNotFound", "The subscription '" + m[1] + "' could not be found."}
	case there[0].t != tenant:
		return nil, &refusal{http.StatusUnauthorized, "InvalidAuthenticationTokenTenant", "The access token is from the wrong issuer '" + tenant.v1.URL() + "'. It must match the tenant '" + there[0].t.v1.URL() + "' associated with this subscription."}
	case !reader:
		return nil, &refusal{
			http.StatusForbidden, "AuthorizationFailed", "The client '" + caller.ClientID + "' with object id '" + caller.ObjectID + "' does not have authorization to perform action '" + m[3] + "/read' over scope '" + r.URL.Path +
				"' or the scope is invalid. If access was recently granted, please refresh your credentials.",
		}
	case !strings.EqualFold(m[2], azureGroup):
		return nil, &refusal{http.StatusNotFound, "ResourceGroupNotFound", "Resource group '" + m[2] + "' could not be found."}
	}
	return armFind(there, m)
}

// armFind finds what a request means among machines of one subscription.
func armFind(there []*AzureInstance, m []string) (any, *refusal) {
	identities := []any{}
	for _, a := range slices.Backward(there) {
		switch {
		case m[4] != "" && strings.EqualFold(m[3], typeMachine) && strings.EqualFold(m[4], a.compute.Name):
			return a.asMachine(), nil
		case m[4] != "" && strings.EqualFold(m[3], typeScaleSet) && a.compute.ScaleSet != "" && strings.EqualFold(m[4], a.compute.ScaleSet):
			return a.asScaleSet(), nil
		}
		for _, id := range a.all {
			if id.System || !strings.EqualFold(m[3], typeIdentity) {
				continue
			}
			one := a.asIdentity(id)
			if m[4] != "" && strings.EqualFold(one["name"].(string), m[4]) { //nolint:forcetypeassert // asIdentity has made it
				return one, nil
			}
			identities = append(identities, one)
		}
	}
	if m[4] == "" && strings.EqualFold(m[3], typeIdentity) {
		return map[string]any{"value": identities}, nil
	}
	return nil, &refusal{
		http.StatusNotFound, "ResourceNotFound", "The Resource '" + m[3] + "/" + m[4] + "' under resource group '" + m[2] + "' was not found. For more details please go to https://aka.ms/ARMResourceNotFoundFix",
	}
}

// armCaller finds out who asks: with a token of Entra for the Resource Manager, by either of its names.
func (c *Cloud) armCaller(r *http.Request) (*tenant, servicePrincipal, *refusal) {
	invalid := func(code, message string) (*tenant, servicePrincipal, *refusal) {
		return nil, servicePrincipal{}, &refusal{http.StatusUnauthorized, code, message}
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return invalid("AuthenticationFailed", "Authentication failed. The 'Authorization' header is missing.")
	}
	claims, err := unverifiedClaims(token)
	if err != nil {
		return invalid("InvalidAuthenticationToken", "The access token is invalid.")
	}
	id, _ := claims["tid"].(string)
	t := c.tenantUnder("", id)
	if t == nil || claims["iss"] != t.v1.URL() {
		return invalid("InvalidAuthenticationToken", "The access token is invalid.")
	}
	if _, err := t.v1.verify(token); err != nil {
		return invalid("InvalidAuthenticationToken", "The access token is invalid.")
	}
	now := c.Now()
	expires, _ := numericDate(claims, "exp")
	from, _ := numericDate(claims, "nbf")
	audience, _ := claims["aud"].(string)
	client, _ := claims["appid"].(string)
	entryOf(r).principal(client)
	switch {
	case !slices.Contains(append([]string{managementApp}, t.cloud.services...), strings.TrimSuffix(audience, "/")):
		return invalid("InvalidAuthenticationTokenAudience", "The access token has been obtained for wrong audience or resource '"+audience+"'. It should exactly match with one of the allowed audiences.")
	case !now.Before(expires):
		return invalid("ExpiredAuthenticationToken", "The access token expiry UTC time is earlier than current UTC time.")
	case now.Before(from.Add(-skew)):
		return invalid("InvalidAuthenticationToken", "The access token is not valid yet.")
	}
	p, known := c.principal(t, client)
	if !known || p.ObjectID != claims["oid"] {
		return invalid("InvalidAuthenticationToken", "The access token is invalid.")
	}
	return t, p, nil
}

// asMachine is the machine as the Resource Manager has it.
func (a *AzureInstance) asMachine() map[string]any {
	return map[string]any{
		"id": a.compute.ResourceID, "name": a.compute.Name, "type": typeMachine, "location": a.compute.Location, "identity": a.assigned(true),
		"properties": map[string]any{"vmId": a.compute.VMID, "provisioningState": "Succeeded"},
	}
}

// asScaleSet is its scale set, whose machines' identities are assigned to it. With flexible orchestration it does not say which principals they are.
func (a *AzureInstance) asScaleSet() map[string]any {
	base, _, _ := strings.Cut(a.compute.ResourceID, "/providers/")
	return map[string]any{
		"id": base + "/providers/" + typeScaleSet + "/" + a.compute.ScaleSet, "name": a.compute.ScaleSet, "type": typeScaleSet, "location": a.compute.Location, "identity": a.assigned(false),
		"properties": map[string]any{"orchestrationMode": "Flexible", "provisioningState": "Succeeded"},
	}
}

// assigned are the identities of a resource, with or without the principals that they are.
func (a *AzureInstance) assigned(principals bool) map[string]any {
	kinds, users := []string{}, map[string]any{}
	identity := map[string]any{}
	for _, id := range a.all {
		if id.System {
			kinds = append(kinds, "SystemAssigned")
			identity["principalId"], identity["tenantId"] = id.ObjectID, a.t.ID
			continue
		}
		users[id.ResourceID] = map[string]any{}
		if principals {
			users[id.ResourceID] = map[string]any{"principalId": id.ObjectID, "clientId": id.ClientID}
		}
	}
	if len(users) > 0 {
		kinds = append(kinds, "UserAssigned")
		identity["userAssignedIdentities"] = users
	}
	if len(kinds) == 0 {
		kinds = append(kinds, "None")
	}
	identity["type"] = strings.Join(kinds, ", ")
	return identity
}

// asIdentity is a user-assigned identity, which is a resource too.
func (a *AzureInstance) asIdentity(id ManagedIdentity) map[string]any {
	return map[string]any{
		"id": id.ResourceID, "name": id.ResourceID[strings.LastIndexByte(id.ResourceID, '/')+1:], "type": typeIdentity, "location": a.compute.Location,
		"properties": map[string]any{"tenantId": a.t.ID, "principalId": id.ObjectID, "clientId": id.ClientID},
	}
}
