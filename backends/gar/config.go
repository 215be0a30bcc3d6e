package gar

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/hosts"
	"github.com/credential-broker/credential-broker/backends/internal/settings"
	"github.com/credential-broker/credential-broker/backends/webidentity"
)

// Config is the provider's `config`. All of it is optional: without any, the identity is that of Application Default Credentials, or else the machine's own by its metadata server.
type Config struct {
	// CredentialsFile is a file of Google credentials: a service account's key, authorized_user, impersonated_service_account or external_account. Default: GOOGLE_APPLICATION_CREDENTIALS, or
	// else gcloud's application_default_credentials.json, if there is one.
	CredentialsFile string `json:"credentialsFile"`
	// ServiceAccount is that of the machine's service accounts for which the metadata server is asked, by e-mail address or alias; no file is looked for then. Default: "default".
	ServiceAccount string `json:"serviceAccount"`
	// WebIdentity proves who the node is by an identity token of another issuer, which WorkloadIdentityProvider takes. For nodes outside Google Cloud.
	WebIdentity webidentity.Config `json:"webIdentity"`
	// AWS proves who the node is by its AWS identity: the keys of the environment, or those of the instance. It is what an external_account file for AWS says.
	AWS bool `json:"aws"`
	// WorkloadIdentityProvider is the provider of a Workload Identity Federation pool that takes the tokens of WebIdentity, or AWS's:
	// projects/123456789/locations/global/workloadIdentityPools/POOL/providers/PROVIDER.
	WorkloadIdentityProvider string `json:"workloadIdentityProvider"`

	// Impersonate is the e-mail address of the service account whose token is asked for, with the identity of the node. It needs the role roles/iam.serviceAccountTokenCreator on that account.
	Impersonate string `json:"impersonate"`
	// Delegates are service accounts on the way to it: each has that role on the next one, and the node on the first.
	Delegates []string `json:"delegates"`
	// ServiceAccounts are service accounts for the images of certain projects, each in the place of Impersonate.
	ServiceAccounts []ProjectAccount `json:"serviceAccounts"`

	// PodIdentity says whether the pod's service account token is used, where the provider has tokenAttributes: "Off", "Prefer" (the default: for every pod with PodWorkloadIdentityProvider, else for those
	// whose service account is annotated iam.gke.io/enable-wi-image-pull: "true"; the node's identity for the rest) or "Require".
	PodIdentity settings.PodIdentity `json:"podIdentity"`
	// PodWorkloadIdentityProvider is the provider of a Workload Identity Federation pool that takes pods' tokens, as WorkloadIdentityProvider. Default: the workload pool of the GKE cluster that issued the token.
	PodWorkloadIdentityProvider string `json:"podWorkloadIdentityProvider"`

	// Hosts are further registries of Google's, for universes and sovereign clouds, in UniverseDomain: names such as u-france-east1-docker.s3nsregistry.fr, in which "*" stands for any part of a label.
	Hosts []string `json:"hosts"`
	// UniverseDomain is the domain of Google's APIs, whose tokens the registries take; needed with Hosts. Credentials of another universe are refused. Default: googleapis.com.
	UniverseDomain string `json:"universeDomain"`

	// Proxy is the URL of the proxy for Google's APIs. It takes the place of HTTPS_PROXY; NO_PROXY still holds. The metadata server is never asked through a proxy.
	Proxy backends.Secret `json:"proxy"`
}

// ProjectAccount is the service account for the images of some projects.
type ProjectAccount struct {
	// Projects are project IDs; a domain-scoped one is example.com:project.
	Projects    []string `json:"projects"`
	Impersonate string   `json:"impersonate"`
	Delegates   []string `json:"delegates"`
}

// defaultUniverse is the domain of Google's own APIs.
const defaultUniverse = "googleapis.com"

// withDefaults fills in what was left out.
func (c *Config) withDefaults() Config {
	full := *c
	full.PodIdentity = cmp.Or(c.PodIdentity, settings.PodIdentityPrefer)
	return full
}

// account is a service account to impersonate, and those on the way to it.
type account struct {
	email     string
	delegates []string
}

// accountFor is whose token is asked for, for a project's images; its e-mail address is empty where the identity itself asks.
func (c *Config) accountFor(project string) account {
	for _, a := range c.ServiceAccounts {
		if slices.Contains(a.Projects, project) {
			return account{a.Impersonate, a.Delegates}
		}
	}
	return account{c.Impersonate, c.Delegates}
}

// validate finds every problem of a Config that has its defaults.
func (c *Config) validate() error {
	var problems []error
	problem := func(field, format string, args ...any) {
		problems = append(problems, backends.InvalidConfig(field, format, args...))
	}
	if known := settings.PodIdentities; !slices.Contains(known, c.PodIdentity) {
		problem("podIdentity", "want one of %q, got %q", known, c.PodIdentity)
	}
	if c.PodIdentity == settings.PodIdentityOff && c.PodWorkloadIdentityProvider != "" {
		problem("podWorkloadIdentityProvider", "it takes pods' tokens, and podIdentity is Off: remove one of them")
	}
	if c.CredentialsFile != "" && !filepath.IsAbs(c.CredentialsFile) {
		problem("credentialsFile", "want an absolute path, got %q", c.CredentialsFile)
	}
	if c.ServiceAccount != "" && !validEmail(c.ServiceAccount) && !validName(c.ServiceAccount) {
		problem("serviceAccount", "want the e-mail address of a service account, or %q, got %q", "default", c.ServiceAccount)
	}
	var named []string
	for name, given := range map[string]bool{"credentialsFile": c.CredentialsFile != "", "serviceAccount": c.ServiceAccount != "", "webIdentity": !c.WebIdentity.IsZero(), "aws": c.AWS} {
		if given {
			named = append(named, name)
		}
	}
	if slices.Sort(named); len(named) > 1 {
		problem(named[1], "the node has one identity, and %s names one already", named[0])
	}
	federated := c.AWS || !c.WebIdentity.IsZero()
	switch {
	case federated && c.WorkloadIdentityProvider == "":
		problem("workloadIdentityProvider", "%s needs the provider of a Workload Identity Federation pool: name it here", map[bool]string{true: "aws", false: "webIdentity"}[c.AWS])
	case !federated && c.WorkloadIdentityProvider != "":
		problem("workloadIdentityProvider", "it takes the tokens of webIdentity, or of AWS: set webIdentity or aws")
	}
	for _, p := range []struct{ field, provider string }{{"workloadIdentityProvider", c.WorkloadIdentityProvider}, {"podWorkloadIdentityProvider", c.PodWorkloadIdentityProvider}} {
		if p.provider != "" && !validProvider(p.provider) {
			problem(p.field, "want projects/NUMBER/locations/global/workloadIdentityPools/POOL/providers/PROVIDER, with the number of the project, got %q", p.provider)
		}
	}
	if !c.WebIdentity.IsZero() {
		problems = append(problems, c.WebIdentity.Validate("webIdentity", webSources))
	}
	problems = append(problems, account{c.Impersonate, c.Delegates}.validate("", false))
	seen := map[string]string{}
	for i, a := range c.ServiceAccounts {
		field := fmt.Sprintf("serviceAccounts[%d].", i)
		problems = append(problems, account{a.Impersonate, a.Delegates}.validate(field, true))
		if len(a.Projects) == 0 {
			problem(field+"projects", "want the projects for whose images this service account is")
		}
		for j, project := range a.Projects {
			at := fmt.Sprintf("%sprojects[%d]", field, j)
			switch {
			case !validProject(project):
				problem(at, "want the ID of a project, such as my-project or example.com:my-project, got %q", project)
			case seen[project] != "":
				problem(at, "project %s has a service account already, by %s", project, seen[project])
			default:
				seen[project] = at
			}
		}
	}
	for i, host := range c.Hosts {
		if !hosts.ValidPattern(host) {
			problem(fmt.Sprintf("hosts[%d]", i), "want the name of a registry in lower case, with at least two labels behind the first one without *, such as *-docker.registry.example, got %q", host)
		}
	}
	if len(c.Hosts) > 0 && c.UniverseDomain == "" {
		problem("universeDomain", "want the domain of the APIs whose tokens the registries in hosts take, such as %s", defaultUniverse)
	}
	if c.UniverseDomain != "" && !hosts.ValidDomain(c.UniverseDomain) {
		problem("universeDomain", "want a domain in lower case, such as googleapis.com, got %q", c.UniverseDomain)
	}
	if c.Proxy != "" {
		if u, err := url.Parse(string(c.Proxy)); err != nil || u.Host == "" || !slices.Contains([]string{"http", "https", "socks5"}, u.Scheme) {
			problem("proxy", "want a URL such as http://proxy.example:3128") // it may hold a password
		}
	}
	return errors.Join(problems...)
}

func (a account) validate(field string, required bool) error {
	var problems []error
	if a.email == "" && (required || len(a.delegates) > 0) || a.email != "" && !validEmail(a.email) {
		problems = append(problems, backends.InvalidConfig(field+"impersonate", "want the e-mail address of a service account, such as puller@my-project.iam.gserviceaccount.com, got %q", a.email))
	}
	for i, delegate := range a.delegates {
		if !validEmail(delegate) {
			problems = append(problems, backends.InvalidConfig(fmt.Sprintf("%sdelegates[%d]", field, i), "want the e-mail address of a service account, got %q", delegate))
		}
	}
	return errors.Join(problems...)
}

// validName is one of a service account's alias, a pool or a provider.
func validName(s string) bool { return hosts.ConsistsOf(s, "-", 1, 63) }

// validEmail: what may stand in a URL as a service account's address.
func validEmail(s string) bool {
	name, domain, ok := strings.Cut(s, "@")
	return ok && hosts.ConsistsOf(name, "-.", 1, 64) && hosts.ValidDomain(domain)
}

// validProject: letters, digits and hyphens, 6 to 30 nowadays and fewer of old, and maybe a domain before it (https://cloud.google.com/resource-manager/docs/creating-managing-projects).
func validProject(s string) bool {
	domain, id, scoped := strings.Cut(s, ":")
	if !scoped {
		domain, id = "", s
	}
	return hosts.ConsistsOf(id, "-", 4, 30) && (!scoped || hosts.ValidDomain(domain))
}

func validProvider(s string) bool {
	parts := strings.Split(s, "/")
	return len(parts) == 8 && parts[0] == "projects" && strings.Trim(parts[1], "0123456789") == "" && parts[1] != "" && parts[2] == "locations" && parts[3] == "global" &&
		parts[4] == "workloadIdentityPools" && hosts.ConsistsOf(parts[5], "-.", 1, 63) && parts[6] == "providers" && validName(parts[7])
}
