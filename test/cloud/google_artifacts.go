package cloud

import (
	"encoding/json"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"
)

// artifactsAPI is the host of the Artifact Registry API; each region has one of its own, too (https://cloud.google.com/artifact-registry/docs/reference/rest).
const artifactsAPI = "artifactregistry.googleapis.com"

// artifactRepository is a repository of Artifact Registry's.
type artifactRepository struct {
	format, mode string // as the API spells them
	made         time.Time
}

// The members of the API's enumerations, with their numbers.
var (
	artifactFormats     = map[string]int{"FORMAT_UNSPECIFIED": 0, "DOCKER": 1, "MAVEN": 2, "NPM": 3, "APT": 5, "YUM": 6, "GOOGET": 7, "PYTHON": 8, "KFP": 9, "GO": 10, "GENERIC": 11}
	artifactModes       = map[string]int{"MODE_UNSPECIFIED": 0, "STANDARD_REPOSITORY": 1, "VIRTUAL_REPOSITORY": 2, "REMOTE_REPOSITORY": 3}
	artifactRedirection = map[string]int{
		"REDIRECTION_STATE_UNSPECIFIED": 0, "REDIRECTION_FROM_GCR_IO_DISABLED": 1, "REDIRECTION_FROM_GCR_IO_ENABLED": 2, "REDIRECTION_FROM_GCR_IO_FINALIZED": 3,
		"REDIRECTION_FROM_GCR_IO_ENABLED_AND_COPYING": 5, "REDIRECTION_FROM_GCR_IO_PARTIAL_AND_COPYING": 6,
	}
)

// The permissions that the API and the registries ask for.
const (
	permissionDownload = "artifactregistry.repositories.downloadArtifacts"
	permissionLook     = "artifactregistry.repositories.get"
	permissionSettings = "artifactregistry.projectsettings.get"
)

// readerPermissions are those of roles/artifactregistry.reader that something here asks for.
var readerPermissions = []string{permissionDownload, permissionLook, permissionSettings}

// SetGoogleRepository gives a repository that AddGoogleRegistry has made another format ("DOCKER" without) and mode ("STANDARD_REPOSITORY" without).
func (c *Cloud) SetGoogleRepository(host, project, repository, format, mode string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	name := artifactResource(project, c.google.hosts[host], repository)
	r, ok := c.google.repositories[name]
	_, known := artifactFormats[format]
	if _, too := artifactModes[mode]; !ok || !known || !too {
		panic("no " + name + " of this kind")
	}
	r.format, r.mode = format, mode
	c.google.repositories[name] = r
}

// DeleteGoogleRepository takes a repository away again.
func (c *Cloud) DeleteGoogleRepository(host, project, repository string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.google.repositories, artifactResource(project, c.google.hosts[host], repository))
}

// SetRedirection sets a project's legacyRedirectionState: whether Artifact Registry serves its gcr.io hosts. "REDIRECTION_FROM_GCR_IO_ENABLED" without.
func (c *Cloud) SetRedirection(project, state string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := artifactRedirection[state]; !ok {
		panic("no redirection state " + state)
	}
	c.google.redirections[project] = state
}

// GrantCustomRole gives a principal some permissions in a project. Known are those of roles/artifactregistry.reader (artifactregistry.repositories.downloadArtifacts, artifactregistry.repositories.get and
// artifactregistry.projectsettings.get), iam.serviceAccounts.get and compute.instances.get.
func (c *Cloud) GrantCustomRole(project, principal string, permissions ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, permission := range permissions {
		if !slices.Contains(readerPermissions, permission) && permission != permissionAccount && permission != permissionInstance {
			panic("no permission " + permission + " is known")
		}
		key := project + " " + permission
		c.google.custom[key] = append(c.google.custom[key], principal)
	}
}

// DisableArtifactRegistry turns the API off in a project: for the requests that are counted for it, which are those of its service accounts, and of all others for its repositories.
func (c *Cloud) DisableArtifactRegistry(project string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.google.disabled[project] = true
}

// permitted says whether a principal, nobody's being empty, has a permission in a project. Cloud.mu is held.
func (c *Cloud) permitted(project, principal, permission string) bool {
	among := func(members []string) bool {
		return slices.ContainsFunc(members, func(member string) bool { return member == allUsers || isMember(principal, member) })
	}
	return slices.Contains(readerPermissions, permission) && among(c.google.readers[project]) || among(c.google.custom[project+" "+permission])
}

var (
	artifactName     = regexp.MustCompile(`^/v1/projects/([^/]+)/locations/([^/]+)/repositories/([^/:]+)(:testIamPermissions)?$`)
	artifactSettings = regexp.MustCompile(`^/v1/projects/([^/]+)/projectSettings$`)
)

// serveArtifacts is the API.
func (c *Cloud) serveArtifacts(w http.ResponseWriter, r *http.Request) {
	name, settings := artifactName.FindStringSubmatch(r.URL.Path), artifactSettings.FindStringSubmatch(r.URL.Path)
	method, project := "", ""
	switch {
	case len(name) > 4 && name[4] != "" && r.Method == http.MethodPost:
		method, project = "TestIamPermissions", name[1]
	case len(name) > 4 && name[4] == "" && r.Method == http.MethodGet:
		method, project = "GetRepository", name[1]
	case settings != nil && r.Method == http.MethodGet:
		method, project = "GetProjectSettings", settings[1]
	}
	if method != "" {
		entryOf(r).operation(method)
	}
	if c.faulty(w, r, "google-artifacts", entryOf(r).name(), func(f Fault) { writeGoogle(w, r, googleFault(f)) }) {
		return
	}
	if method == "" {
		writeGoogle(w, r, googleNotFound())
		return
	}
	caller, no := c.googleAPICaller(r, map[string]string{"service": artifactsAPI, "method": "google.devtools.artifactregistry.v1.ArtifactRegistry." + method}, scopeCloudPlatform, scopeCloudPlatform+".read-only")
	entryOf(r).principal(caller)
	var answer any
	if no == nil {
		no = c.artifactsOff(caller, project)
	}
	if region := strings.Split(hostOf(r.Host), "."); no == nil && name != nil && len(region) > 3 && region[1] != name[2] {
		refusal := googleNotFound() // a region's own endpoint knows its own region
		no = &refusal
	}
	if no == nil {
		switch method {
		case "TestIamPermissions":
			answer, no = c.testPermissions(w, r, caller, name)
		case "GetRepository":
			answer, no = c.artifactRepository(r, caller, name)
		default:
			answer, no = c.artifactSettings(r, caller, project)
		}
	}
	switch {
	case no == nil:
		writeJSON(w, http.StatusOK, answer)
		return
	case no.status == http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", `Bearer realm="https://accounts.google.com/", error="invalid_token"`)
	case no.info != nil && no.info.Reason == "ACCESS_TOKEN_SCOPE_INSUFFICIENT":
		w.Header().Set("WWW-Authenticate", `Bearer realm="https://accounts.google.com/", error="insufficient_scope", scope="`+scopeCloudPlatform+" "+scopeCloudPlatform+`.read-only"`)
	}
	writeGoogle(w, r, *no)
}

// artifactsOff refuses a request that is counted for a project in which the API is not enabled.
func (c *Cloud) artifactsOff(caller, project string) *googleRefusal {
	if account, ok := c.serviceAccount(caller); ok {
		project = account.Project
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.google.disabled[project] {
		return nil
	}
	page := "https://console.developers.google.com/apis/api/" + artifactsAPI + "/overview?project=" + project
	return &googleRefusal{
		http.StatusForbidden, "PERMISSION_DENIED",
		"Artifact Registry API has not been used in project " + project + " before or it is disabled. Enable it by visiting " + page + " then retry.",
		errorInfo("SERVICE_DISABLED", "googleapis.com", map[string]string{"service": artifactsAPI, "serviceTitle": "Artifact Registry API", "consumer": "projects/" + project, "containerInfo": project, "activationUrl": page}),
	}
}

func artifactDenied(permission, resource string) *googleRefusal {
	return &googleRefusal{
		http.StatusForbidden, "PERMISSION_DENIED", "Permission '" + permission + "' denied on resource '//" + artifactsAPI + "/" + resource + "' (or it may not exist).",
		errorInfo("IAM_PERMISSION_DENIED", artifactsAPI, map[string]string{"permission": permission, "resource": resource}),
	}
}

// testPermissions answers which of some permissions the caller has: none of what does not exist.
func (c *Cloud) testPermissions(w http.ResponseWriter, r *http.Request, caller string, name []string) (any, *googleRefusal) {
	var call struct {
		Permissions []string `json:"permissions"`
	}
	body, tooLarge := bodyOf(w, r)
	if tooLarge || json.Unmarshal(body, &call) != nil {
		return nil, &googleRefusal{http.StatusBadRequest, "INVALID_ARGUMENT", "Invalid JSON payload received.", nil}
	}
	if len(call.Permissions) == 0 || slices.ContainsFunc(call.Permissions, func(p string) bool { return !strings.HasPrefix(p, "artifactregistry.") || strings.Contains(p, "*") }) {
		return nil, &googleRefusal{http.StatusBadRequest, "INVALID_ARGUMENT", "Request contains an invalid argument.", nil}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_, there := c.google.repositories[artifactResource(name[1], name[2], name[3])]
	answer := struct {
		Permissions []string `json:"permissions,omitempty"`
	}{}
	for _, permission := range call.Permissions {
		if there && c.permitted(name[1], caller, permission) {
			answer.Permissions = append(answer.Permissions, permission)
		}
	}
	return answer, nil
}

// enumerated is a member of an enumeration in the form that the request wants: its number, or its name.
func enumerated(r *http.Request, members map[string]int, name string) any {
	if strings.Contains(r.URL.Query().Get("$alt"), "enum-encoding=int") {
		return members[name]
	}
	return name
}

func (c *Cloud) artifactRepository(r *http.Request, caller string, name []string) (any, *googleRefusal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	resource := artifactResource(name[1], name[2], name[3])
	if !c.permitted(name[1], caller, permissionLook) {
		return nil, artifactDenied(permissionLook, resource)
	}
	repository, ok := c.google.repositories[resource]
	if !ok {
		return nil, &googleRefusal{http.StatusNotFound, "NOT_FOUND", "Requested entity was not found.", nil}
	}
	return map[string]any{
		"name": resource, "format": enumerated(r, artifactFormats, repository.format), "mode": enumerated(r, artifactModes, repository.mode),
		"createTime": repository.made.UTC().Format(time.RFC3339), "registryUri": name[2] + "-docker.pkg.dev/" + strings.ReplaceAll(name[1], ":", "/") + "/" + name[3],
	}, nil
}

func (c *Cloud) artifactSettings(r *http.Request, caller, project string) (any, *googleRefusal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	resource := "projects/" + project + "/projectSettings"
	if !c.permitted(project, caller, permissionSettings) {
		return nil, artifactDenied(permissionSettings, resource)
	}
	return map[string]any{"name": resource, "legacyRedirectionState": enumerated(r, artifactRedirection, c.redirection(project))}, nil
}

// redirection is a project's legacyRedirectionState. Cloud.mu is held.
func (c *Cloud) redirection(project string) string {
	if state, ok := c.google.redirections[project]; ok {
		return state
	}
	return "REDIRECTION_FROM_GCR_IO_ENABLED"
}
