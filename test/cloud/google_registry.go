package cloud

import (
	"net/http"
	"regexp"
	"slices"
	"strings"
)

// allUsers is everybody, known or not (https://cloud.google.com/iam/docs/principals-overview).
const allUsers = "allUsers"

// artifactLocations are the forms of Artifact Registry's host names, whose first group is the location.
var artifactLocations = []*regexp.Regexp{
	regexp.MustCompile(`^([a-z0-9-]+)-docker\.[a-z0-9.-]+$`),
	regexp.MustCompile(`^docker\.([a-z0-9-]+)\.rep\.[a-z0-9.-]+$`),
}

// gcrLocations are the locations of what the hosts of Container Registry stand for, a repository of the host's name in each project
// (https://cloud.google.com/artifact-registry/docs/transition/gcr-repositories).
var gcrLocations = map[string]string{"gcr.io": "us", "us.gcr.io": "us", "eu.gcr.io": "europe", "asia.gcr.io": "asia"}

// AddGoogleRegistry makes a project's repositories there under one of Artifact Registry's host names, or under one of Container Registry's, which needs no repositories: each
// project has one there. Every image and tag of a repository exists, and is an image without layers. Two names of one location are one registry, but each has to be added to be
// there. A project of a domain is "example.com:project", as its id is.
func (c *Cloud) AddGoogleRegistry(host, project string, repositories ...string) {
	location := gcrLocations[host]
	if location != "" {
		repositories = append(slices.Clone(repositories), host)
	}
	for _, form := range artifactLocations {
		if m := form.FindStringSubmatch(host); m != nil && location == "" {
			location = m[1]
		}
	}
	if location == "" {
		panic(host + " is no name of a registry of Google's")
	}
	c.mu.Lock()
	known := c.google.hosts[host] != ""
	c.google.hosts[host] = location
	for _, name := range repositories {
		c.google.repositories[artifactResource(project, location, name)] = artifactRepository{"DOCKER", "STANDARD_REPOSITORY", c.now()}
	}
	c.mu.Unlock()
	if !known {
		c.handle(host, "registry", http.HandlerFunc(c.serveGoogleRegistry))
	}
}

// GrantReader lets a principal (an email, principal://…, principalSet://…/* or allUsers) pull from a project's repositories, as roles/artifactregistry.reader does.
func (c *Cloud) GrantReader(project, principal string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.google.readers[project] = append(c.google.readers[project], principal)
}

func artifactResource(project, location, repository string) string {
	return "projects/" + project + "/locations/" + location + "/repositories/" + repository
}

// googleHost says whether a host is one of Google's registries.
func (c *Cloud) googleHost(host string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.google.hosts[host] != ""
}

// googleCaller finds out whose an access token is, of those that a registry takes.
func (c *Cloud) googleCaller(token string) (string, *refusal) {
	principal, scopes, _, ok := c.AccessTokenOf(token)
	switch {
	case !ok:
		return "", &refusal{http.StatusUnauthorized, "UNAUTHORIZED", "authentication failed"}
	case !hasScope(scopes, scopeCloudPlatform, scopeCloudPlatform+".read-only", scopePrefix+"devstorage.read_only", scopePrefix+"devstorage.read_write", scopePrefix+"devstorage.full_control"):
		return principal, &refusal{http.StatusForbidden, "DENIED", "Request had insufficient authentication scopes."}
	}
	return principal, nil
}

// helperUsername is what docker-credential-gcr sends, which says its version.
var helperUsername = regexp.MustCompile(`^_dcgcr_\d+(_\d+)*_token$`)

// googleLogin finds out whose a user name and password are; nobody's where there are none.
func (c *Cloud) googleLogin(username, password string) (string, *refusal) {
	if username == "" && password == "" {
		return "", nil
	}
	if username != "oauth2accesstoken" && username != "_token" && !helperUsername.MatchString(username) {
		return "", &refusal{http.StatusUnauthorized, "UNAUTHORIZED", "authentication failed"}
	}
	return c.googleCaller(password)
}

// pullFromGoogle decides on a pull from a repository of Google's.
func (c *Cloud) pullFromGoogle(host, name, caller string) *refusal {
	c.mu.Lock()
	defer c.mu.Unlock()
	location, parts := c.google.hosts[host], strings.Split(name, "/")
	project := parts[0]
	if strings.Contains(project, ".") && len(parts) > 1 {
		project, parts = project+":"+parts[1], parts[1:]
	}
	repository, image := host, parts[1:]
	if gcrLocations[host] == "" && len(parts) > 1 {
		repository, image = parts[1], parts[2:]
	}
	if len(image) == 0 {
		return &refusal{http.StatusNotFound, "NAME_INVALID", "Invalid image name: " + name}
	}
	resource := artifactResource(project, location, repository)
	if gcrLocations[host] != "" && c.redirection(project) == "REDIRECTION_FROM_GCR_IO_DISABLED" {
		return &refusal{http.StatusPreconditionFailed, "DENIED", "Container Registry is shut down, and project " + project + " is not migrated to Artifact Registry"}
	}
	if !c.permitted(project, caller, permissionDownload) {
		const permission = `"` + permissionDownload + `"`
		if caller == "" {
			return &refusal{
				http.StatusForbidden, "DENIED", "Unauthenticated request. Unauthenticated requests do not have permission " + permission + ` on resource "` + resource + `" (or it may not exist)`,
			}
		}
		return &refusal{http.StatusForbidden, "DENIED", "Permission " + permission + ` denied on resource "` + resource + `" (or it may not exist)`}
	}
	switch r, ok := c.google.repositories[resource]; {
	case !ok:
		return &refusal{http.StatusNotFound, "NAME_UNKNOWN", `Repository "` + repository + `" not found`}
	case r.format != "DOCKER":
		return &refusal{http.StatusNotFound, "NAME_UNKNOWN", `Repository "` + repository + `" is of format ` + r.format}
	}
	return nil
}

// serveGoogleRegistry is the registry's own API. It takes a password as it is, or in exchange for a token of its own.
func (c *Cloud) serveGoogleRegistry(w http.ResponseWriter, r *http.Request) {
	if c.faulty(w, r, "registry", entryOf(r).name(), func(f Fault) { writeDistribution(w, r, registryFault(f)) }) {
		return
	}
	host := hostOf(r.Host)
	username, password, basic := r.BasicAuth()
	bearer, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	var caller string
	var no *refusal
	switch {
	case basic:
		caller, no = c.googleLogin(username, password)
	case bearer != "":
		c.mu.Lock()
		if token, ok := c.google.bearers[bearer]; ok {
			bearer = token
		}
		c.mu.Unlock()
		if bearer != "" { // nobody's token is a token too
			caller, no = c.googleCaller(bearer)
		}
	case r.URL.Path != "/v2/token":
		no = &refusal{http.StatusUnauthorized, "UNAUTHORIZED", "Unauthorized access."}
	}
	entryOf(r).principal(caller)
	name, content, ok := requested(r)
	switch {
	case no != nil:
	case r.URL.Path == "/v2/token":
		c.registryToken(w, r, caller, password)
		return
	case r.URL.Path == "/v2/":
		w.WriteHeader(http.StatusOK)
		return
	case !ok:
		no = &refusal{http.StatusNotFound, "UNSUPPORTED", "there is no such page"}
	default:
		if no = c.pullFromGoogle(host, name, caller); no == nil {
			writeContent(w, r, content)
			return
		}
	}
	if no.status == http.StatusUnauthorized {
		challenge := `Bearer realm="https://` + host + `/v2/token",service="` + host + `"`
		if ok {
			challenge += `,scope="repository:` + name + `:pull"`
		}
		w.Header().Set("WWW-Authenticate", challenge)
	}
	writeDistribution(w, r, *no)
}

// registryToken gives a token for what may be pulled; to nobody only for what all may.
func (c *Cloud) registryToken(w http.ResponseWriter, r *http.Request, caller, password string) {
	for _, scope := range r.URL.Query()["scope"] {
		if parts := strings.Split(scope, ":"); len(parts) == 3 && parts[0] == "repository" && caller == "" {
			if no := c.pullFromGoogle(hostOf(r.Host), parts[1], ""); no != nil {
				writeDistribution(w, r, *no)
				return
			}
		}
	}
	token := random(64)
	c.mu.Lock()
	c.google.bearers[token] = password
	c.mu.Unlock()
	writeJSON(w, http.StatusOK, map[string]any{"token": token, "expires_in": 43200})
}
