package cloud

import (
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// Repository is an image repository of a private registry. Every tag of it exists, and is an image without layers.
type Repository struct {
	// Name is the repository's, or with PullThrough the prefix of a pull-through cache rule.
	Name string
	// Pull are the principals (ARNs) or accounts that the repository's policy lets pull, beyond the registry's own account.
	Pull []string
	// PullThrough: this is a pull-through cache rule. What is below it has to be imported (ecr:BatchImportUpstreamImage), and its repository to be made by the first to pull
	// (ecr:CreateRepository): https://docs.aws.amazon.com/AmazonECR/latest/userguide/pull-through-cache-iam.html
	PullThrough bool
}

// registry is what an account has in a region, under whatever host name it is asked.
type registry struct {
	account, region, partition string

	mu           sync.Mutex
	repositories map[string]*Repository
	caches       map[string]*Repository // by prefix
}

// password is what ECR gave out as a token.
type password struct {
	principal
	region  string
	public  bool
	expires time.Time
}

// An image without layers, which is what every tag of every repository is.
const (
	imageConfig  = `{}`
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	manifest     = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":` +
		`"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}`
)

func digest(content string) string { return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(content))) }

var registryHost = regexp.MustCompile(`^(\d{12})\.dkr[.-]ecr(?:-fips)?\.([a-z0-9-]+)\.[a-z0-9.-]+$`)

// AddRegistry makes a private registry under one of ECR's host names, or adds repositories to it. A registry's several names (dual-stack, FIPS) are one registry, but each has
// to be added to be there.
func (c *Cloud) AddRegistry(host string, repositories ...Repository) {
	m := registryHost.FindStringSubmatch(host)
	if m == nil {
		panic(host + " is no name of a private registry")
	}
	g := c.registryOf(m[2], m[1])
	g.mu.Lock()
	for _, r := range repositories {
		if r.PullThrough {
			g.caches[r.Name] = &r
		} else {
			g.repositories[r.Name] = &r
		}
	}
	g.mu.Unlock()
	c.mu.Lock()
	known := c.registryHosts[host] != nil
	c.registryHosts[host] = g
	c.mu.Unlock()
	if !known {
		c.handle(host, "registry", http.HandlerFunc(c.servePrivate))
	}
}

// registryOf is an account's registry in a region; every account has one, empty until repositories are added.
func (c *Cloud) registryOf(region, account string) *registry {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := region + "/" + account
	if c.registries[key] == nil {
		c.registries[key] = &registry{account: account, region: region, partition: partitionOf(region).name, repositories: map[string]*Repository{}, caches: map[string]*Repository{}}
	}
	return c.registries[key]
}

func (g *registry) repository(name string) *Repository {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.repositories[name]
}

func (g *registry) names() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Sorted(maps.Keys(g.repositories))
}

func (g *registry) rules() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Sorted(maps.Keys(g.caches))
}

// cached is the pull-through cache rule that a repository would be made by.
func (g *registry) cached(name string) *Repository {
	g.mu.Lock()
	defer g.mu.Unlock()
	for prefix, r := range g.caches {
		if strings.HasPrefix(name, prefix+"/") {
			return r
		}
	}
	return nil
}

// publicHosts are the names of the public registry (https://docs.aws.amazon.com/AmazonECR/latest/public/public-registry-auth.html).
func publicHosts() []string { return []string{"public.ecr.aws", "ecr-public.aws.com"} }

func (c *Cloud) startPublicRegistry() {
	for _, host := range publicHosts() {
		c.handle(host, "registry", http.HandlerFunc(c.servePublic))
	}
}

// Pull is what the registry says to a pull of image ("host/name[:tag]") with this credential: nil or a refusal. An empty user name is an anonymous pull. It is in no log.
func (c *Cloud) Pull(image, username, password string) error {
	host, rest, _ := strings.Cut(image, "/")
	name, _, _ := strings.Cut(rest, "@")
	if colon := strings.LastIndexByte(name, ':'); colon > strings.LastIndexByte(name, '/') {
		name = name[:colon]
	}
	var no *refusal
	c.mu.Lock()
	g := c.registryHosts[host]
	c.mu.Unlock()
	azure, isAzure := c.azureHost(strings.ToLower(host))
	switch {
	case isAzure:
		var caller acrCaller
		if caller, no = c.acrLogin(azure, username, password); no == nil {
			no = azure.pullFromAzure(name, caller)
		}
	case slices.Contains(publicHosts(), host):
		if username != "" || password != "" {
			_, no = c.authenticate(username, password, nil)
		}
	case c.googleHost(host):
		var caller string
		if caller, no = c.googleLogin(username, password); no == nil {
			no = c.pullFromGoogle(host, name, caller)
		}
	case g == nil:
		return fmt.Errorf("pulling %s: %w", image, errNotFound)
	default:
		no = c.pull(g, name, username, password)
	}
	if no != nil {
		return fmt.Errorf("pulling %s: %d %s: %s", image, no.status, no.code, no.message)
	}
	return nil
}

// authenticate finds out whose a password is, and whether it is one for this registry; nil: the public one.
func (c *Cloud) authenticate(username, text string, g *registry) (principal, *refusal) {
	if username == "" && text == "" {
		return principal{}, &refusal{http.StatusUnauthorized, "UNAUTHORIZED", "Not Authorized"}
	}
	now := c.Now()
	c.mu.Lock()
	p := c.aws.passwords[text]
	c.mu.Unlock()
	switch {
	case username != "AWS" || p == nil || p.public != (g == nil):
		return principal{}, &refusal{http.StatusBadRequest, "DENIED", "Your Authorization Token is invalid."}
	case g != nil && p.region != g.region:
		return principal{}, &refusal{http.StatusBadRequest, "DENIED", "Your Authorization Token is invalid."}
	case !now.Before(p.expires):
		return principal{}, &refusal{http.StatusForbidden, "DENIED", "Your authorization token has expired. Reauthenticate and try again."}
	}
	return p.principal, nil
}

// pull decides on a pull from a private registry.
func (c *Cloud) pull(g *registry, name, username, text string) *refusal {
	p, no := c.authenticate(username, text, g)
	if no != nil {
		return no
	}
	repository := g.repository(name)
	if rule := g.cached(name); rule != nil {
		actions := []string{"ecr:BatchImportUpstreamImage"}
		if repository == nil {
			actions = append(actions, "ecr:CreateRepository")
			repository = &Repository{Name: name, Pull: rule.Pull}
		}
		for _, action := range actions {
			if !c.mayOnRepository(p, g, repository, action) {
				return deniedPull(p, action, g, name)
			}
		}
	}
	if repository == nil {
		return &refusal{http.StatusNotFound, "NAME_UNKNOWN", "The repository with name '" + name + "' does not exist in the registry with id '" + g.account + "'"}
	}
	for _, action := range []string{"ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"} {
		if !c.mayOnRepository(p, g, repository, action) {
			return deniedPull(p, action, g, name)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.repositories[name] = repository
	return nil
}

func deniedPull(p principal, action string, g *registry, name string) *refusal {
	return &refusal{
		http.StatusForbidden, "DENIED",
		"User: " + p.arn + " is not authorized to perform: " + action + " on resource: " + repositoryARN(g.region, g.account, name) + " because no policy allows the " + action + " action",
	}
}

// servePrivate is the registry's own API (https://github.com/opencontainers/distribution-spec/blob/main/spec.md), as much of it as a pull needs.
func (c *Cloud) servePrivate(w http.ResponseWriter, r *http.Request) {
	if c.faulty(w, r, "registry", entryOf(r).name(), func(f Fault) { writeDistribution(w, r, registryFault(f)) }) {
		return
	}
	host := hostOf(r.Host)
	c.mu.Lock()
	g := c.registryHosts[host]
	c.mu.Unlock()
	username, text, _ := r.BasicAuth()
	p, no := c.authenticate(username, text, g)
	if no == nil {
		entryOf(r).principal(p.arn)
		name, content, ok := requested(r)
		switch {
		case r.URL.Path == "/v2/":
			w.WriteHeader(http.StatusOK)
			return
		case !ok:
			no = &refusal{http.StatusNotFound, "UNSUPPORTED", "there is no such page"}
		default:
			if no = c.pull(g, name, username, text); no == nil {
				writeContent(w, r, content)
				return
			}
		}
	}
	if no.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Basic realm="https://`+host+`/",service="ecr.amazonaws.com"`)
	}
	writeDistribution(w, r, *no)
}

// servePublic is the public registry: bearer tokens from its own token endpoint, for anybody, or for whom a password is good.
func (c *Cloud) servePublic(w http.ResponseWriter, r *http.Request) {
	if c.faulty(w, r, "registry", entryOf(r).name(), func(f Fault) { writeDistribution(w, r, registryFault(f)) }) {
		return
	}
	if r.URL.Path == "/token/" {
		if username, text, ok := r.BasicAuth(); ok {
			p, no := c.authenticate(username, text, nil)
			if no != nil {
				writeDistribution(w, r, *no)
				return
			}
			entryOf(r).principal(p.arn)
		}
		token := random(64)
		c.mu.Lock()
		c.aws.bearers[token] = true
		c.mu.Unlock()
		writeJSON(w, http.StatusOK, map[string]string{"token": token})
		return
	}
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	c.mu.Lock()
	good := c.aws.bearers[token]
	c.mu.Unlock()
	if !good {
		host := hostOf(r.Host)
		w.Header().Set("WWW-Authenticate", `Bearer realm="https://`+host+`/token/",service="`+host+`",scope="aws"`)
		writeDistribution(w, r, refusal{http.StatusUnauthorized, "UNAUTHORIZED", "Not Authorized"})
		return
	}
	_, content, ok := requested(r)
	switch {
	case r.URL.Path == "/v2/":
		w.WriteHeader(http.StatusOK)
	case ok:
		writeContent(w, r, content)
	default:
		writeDistribution(w, r, refusal{http.StatusNotFound, "UNSUPPORTED", "there is no such page"})
	}
}

var contentPath = regexp.MustCompile(`^/v2/(.+)/(manifests|blobs)/([^/]+)$`)

// requested says which repository a request is about, and what of it.
func requested(r *http.Request) (name, content string, ok bool) {
	m := contentPath.FindStringSubmatch(r.URL.Path)
	switch {
	case m == nil || r.Method != http.MethodGet && r.Method != http.MethodHead:
		return "", "", false
	case m[2] == "manifests" && (!strings.Contains(m[3], ":") || m[3] == digest(manifest)):
		return m[1], manifest, true
	case m[2] == "blobs" && m[3] == digest(imageConfig):
		return m[1], imageConfig, true
	}
	return "", "", false
}

func writeContent(w http.ResponseWriter, r *http.Request, content string) {
	kind := "application/octet-stream"
	if content == manifest {
		kind = manifestType
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Docker-Content-Digest", digest(content))
	w.Header().Set("Content-Length", fmt.Sprint(len(content)))
	if r.Method != http.MethodHead {
		_, _ = io.WriteString(w, content)
	}
}

func writeDistribution(w http.ResponseWriter, r *http.Request, no refusal) {
	entryOf(r).code(no.code)
	writeJSON(w, no.status, map[string]any{"errors": []any{map[string]string{"code": no.code, "message": no.message}}})
}

func registryFault(f Fault) refusal {
	if f.Status == 0 {
		f.Status = http.StatusTooManyRequests
	}
	if f.Code == "" {
		f.Code = "TOOMANYREQUESTS"
	}
	return refusal{f.Status, f.Code, "a fault on demand"}
}
