package cloud

import (
	"net/http"
	"regexp"
	"slices"
	"time"
)

// The permissions that are asked for by those who look at accounts and machines.
const (
	permissionAccount  = "iam.serviceAccounts.get"
	permissionInstance = "compute.instances.get"
)

var (
	accountPath  = regexp.MustCompile(`^/v1/projects/([^/]+)/serviceAccounts/([^/:]+)$`)
	instancePath = regexp.MustCompile(`^/compute/v1/projects/([^/]+)/zones/([^/]+)/instances/([^/]+)$`)
)

// serveGoogleIAM is the IAM API, of which there is the look at a service account (https://cloud.google.com/iam/docs/reference/rest/v1/projects.serviceAccounts/get).
func (c *Cloud) serveGoogleIAM(w http.ResponseWriter, r *http.Request) {
	m := accountPath.FindStringSubmatch(r.URL.Path)
	if m != nil && r.Method == http.MethodGet {
		entryOf(r).operation("GetServiceAccount")
	}
	if c.faulty(w, r, "google-iam", entryOf(r).name(), func(f Fault) { writeGoogle(w, r, googleFault(f)) }) {
		return
	}
	if m == nil || r.Method != http.MethodGet {
		writeGoogle(w, r, googleNotFound())
		return
	}
	caller, no := c.googleAPICaller(r, map[string]string{"service": "iam.googleapis.com", "method": "google.iam.admin.v1.IAM.GetServiceAccount"}, scopeCloudPlatform, scopeIAM)
	entryOf(r).principal(caller)
	if no != nil {
		writeGoogle(w, r, *no)
		return
	}
	account, known := c.serviceAccount(m[2])
	project := m[1]
	if project == "-" { // is the account's; of one that there is not, nobody may know
		project = account.Project
	}
	c.mu.Lock()
	permitted := c.permitted(project, caller, permissionAccount)
	c.mu.Unlock()
	switch {
	case !permitted:
		writeGoogle(w, r, googleRefusal{
			http.StatusForbidden, "PERMISSION_DENIED", "Permission '" + permissionAccount + "' denied on resource (or it may not exist).",
			errorInfo("IAM_PERMISSION_DENIED", "iam.googleapis.com", map[string]string{"permission": permissionAccount}),
		})
	case !known || project != account.Project:
		writeGoogle(w, r, googleRefusal{http.StatusNotFound, "NOT_FOUND", "Unknown service account", nil})
	default:
		writeJSON(w, http.StatusOK, map[string]any{
			"name": "projects/" + account.Project + "/serviceAccounts/" + account.Email, "projectId": account.Project, "uniqueId": account.UniqueID, "email": account.Email,
			"oauth2ClientId": account.UniqueID, "etag": "MDEwMjE5MjA=",
		})
	}
}

// serveCompute is the Compute Engine API, of which there is the look at an instance (https://cloud.google.com/compute/docs/reference/rest/v1/instances/get).
func (c *Cloud) serveCompute(w http.ResponseWriter, r *http.Request) {
	m := instancePath.FindStringSubmatch(r.URL.Path)
	if m != nil && r.Method == http.MethodGet {
		entryOf(r).operation("GetInstance")
	}
	if c.faulty(w, r, "google-compute", entryOf(r).name(), func(f Fault) { writeGoogle(w, r, googleFault(f)) }) {
		return
	}
	if m == nil || r.Method != http.MethodGet {
		writeGoogle(w, r, googleNotFound())
		return
	}
	caller, no := c.googleAPICaller(r, map[string]string{"service": "compute.googleapis.com", "method": "compute.v1.InstancesService.Get"}, scopeCloudPlatform, scopePrefix+"compute", scopePrefix+"compute.readonly")
	entryOf(r).principal(caller)
	if no != nil {
		writeGoogle(w, r, *no)
		return
	}
	resource := "projects/" + m[1] + "/zones/" + m[2] + "/instances/" + m[3]
	c.mu.Lock()
	permitted := c.permitted(m[1], caller, permissionInstance)
	instances := c.google.instances
	c.mu.Unlock()
	if !permitted {
		writeCompute(w, r, http.StatusForbidden, "forbidden", "Required '"+permissionInstance+"' permission for '"+resource+"'")
		return
	}
	for _, g := range slices.Backward(instances) {
		if g.project == m[1] && googleZone == m[2] && g.name == m[3] {
			writeJSON(w, http.StatusOK, g.resource())
			return
		}
	}
	writeCompute(w, r, http.StatusNotFound, "notFound", "The resource '"+resource+"' was not found")
}

// writeCompute is a refusal of Compute Engine's, which has an older form than those of other APIs.
func writeCompute(w http.ResponseWriter, r *http.Request, status int, reason, message string) {
	entryOf(r).code(reason)
	writeJSON(w, status, map[string]any{"error": map[string]any{
		"code": status, "message": message, "errors": []any{map[string]string{"message": message, "domain": "global", "reason": reason}},
	}})
}

// googleZone is the zone of every instance.
const googleZone = "europe-west1-b"

// resource is the instance as the Compute Engine API has it.
func (g *GoogleInstance) resource() map[string]any {
	const base = "https://www.googleapis.com/compute/v1/projects/"
	g.mu.Lock()
	defer g.mu.Unlock()
	accounts := []any{}
	for _, a := range g.accounts {
		accounts = append(accounts, map[string]any{"email": a.Email, "scopes": g.scopes})
	}
	zone := base + g.project + "/zones/" + googleZone
	return map[string]any{
		"kind": "compute#instance", "id": g.id, "name": g.name, "zone": zone, "selfLink": zone + "/instances/" + g.name, "status": g.status,
		"creationTimestamp": g.created.UTC().Format(time.RFC3339Nano), "labels": g.labels, "serviceAccounts": accounts,
	}
}

// SetLabel labels the instance.
func (g *GoogleInstance) SetLabel(name, value string) {
	g.set(func() { g.labels[name] = value })
}

// SetStatus sets what the Compute Engine API says of the instance: "RUNNING" without, "TERMINATED", "SUSPENDED" and so on. Its metadata server goes on.
func (g *GoogleInstance) SetStatus(status string) {
	g.set(func() { g.status = status })
}
