package acr

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/hosts"
	"github.com/credential-broker/credential-broker/backends/internal/settings"
	"github.com/credential-broker/credential-broker/backends/webidentity"
)

// Config is the provider's `config`. All of it is optional: without any, the identity is the one of the environment, or else the machine's own.
type Config struct {
	// Identity is whose token is asked for, where no entry of Identities is for the registry.
	Identity
	// Identities are for certain registries: those of another tenant or cloud, for instance. The first that names the registry is the one; it takes nothing from Identity.
	Identities []RegistryIdentity `json:"identities"`

	// PodIdentity says whether the pod's service account token is used, where the provider has tokenAttributes: "Off", "Prefer" (the default: for pods for which there is a client ID, by the annotation
	// kubernetes.azure.com/acr-client-id or PodClientID; the node's identity for the rest) or "Require".
	PodIdentity settings.PodIdentity `json:"podIdentity"`
	// PodClientID and PodTenantID are for pods whose service account has not the annotations kubernetes.azure.com/acr-client-id and kubernetes.azure.com/acr-tenant-id.
	PodClientID string `json:"podClientID"`
	// PodTenantID has TenantID as its default.
	PodTenantID string `json:"podTenantID"`
	// IdentityBindings has the tokens of pods, and of federatedTokenFile, exchanged by the cluster's own endpoint in the place of Entra's
	// (https://learn.microsoft.com/azure/aks/identity-bindings-concepts).
	IdentityBindings *IdentityBindings `json:"identityBindings"`

	// Scope is "registry" (the default), or "image" where role assignments differ by repository (ABAC): the answer is then given for each image by itself.
	Scope Scope `json:"scope"`
	// Hosts are further registries of Azure's: names such as *.azsacr.region.example, in which "*" stands for any part of the first label. They need Cloud or AuthorityHost.
	Hosts []string `json:"hosts"`
	// Proxy is the URL of the proxy for Entra and the registries. It takes the place of HTTPS_PROXY; NO_PROXY still holds. Managed identities are never asked for through a proxy.
	Proxy backends.Secret `json:"proxy"`
}

// Identity is an identity of Microsoft Entra ID. At most one of the ways to prove it is set; without any, it is that of the environment (AZURE_TENANT_ID, AZURE_CLIENT_ID, and AZURE_CLIENT_SECRET or
// AZURE_CLIENT_CERTIFICATE_PATH), else workload identity (AZURE_FEDERATED_TOKEN_FILE), else the machine's managed identity (AZURE_CLIENT_ID says which).
type Identity struct {
	// TenantID is the tenant that the application and the registry are in: its ID, or one of its domains. For a managed identity it is not needed.
	TenantID string `json:"tenantID"`
	// ClientID is the application that asks.
	ClientID string `json:"clientID"`

	// ClientSecretFile has a secret of the application. It is sent to Entra and to nobody else.
	ClientSecretFile string `json:"clientSecretFile"`
	// ClientCertificateFile has a certificate of the application and its private key, as PEM or PKCS#12.
	ClientCertificateFile string `json:"clientCertificateFile"`
	// ClientCertificatePasswordFile has the password of ClientCertificateFile.
	ClientCertificatePasswordFile string `json:"clientCertificatePasswordFile"`
	// SendCertificateChain has the certificates sent along, for applications that trust a subject name and issuer.
	SendCertificateChain bool `json:"sendCertificateChain"`
	// FederatedTokenFile has an identity token for which the application has a federated credential, such as a projected service account token. It is read afresh each time.
	FederatedTokenFile string `json:"federatedTokenFile"`
	// WebIdentity is where else such a token comes from: AWS, Google or any OIDC issuer. Its default audience is api://AzureADTokenExchange, or what the cloud has in its place.
	WebIdentity webidentity.Config `json:"webIdentity"`
	// ManagedIdentity is that of the machine, on Azure or Arc, or of the service that this runs in. With ClientID, it is the federated credential of that application, of any tenant.
	ManagedIdentity *ManagedIdentity `json:"managedIdentity"`
	// AzureConfigFile is the file of Azure's cloud provider, /etc/kubernetes/azure.json: tenant, cloud and identity are what it says.
	AzureConfigFile string `json:"azureConfigFile"`
	// Anonymous: no credential is given, so that pulls are anonymous, which a registry can allow.
	Anonymous bool `json:"anonymous"`

	// Cloud is "AzureCloud", "AzureChinaCloud" or "AzureUSGovernment". Default: the one whose domain the registry's name is in.
	Cloud string `json:"cloud"`
	// AuthorityHost is the URL of Entra ID in any other cloud, such as Azure Stack Hub's. Default: the cloud's, or AZURE_AUTHORITY_HOST with the identity of the environment.
	AuthorityHost string `json:"authorityHost"`
	// DisableInstanceDiscovery has an AuthorityHost that Microsoft does not know trusted without asking Microsoft: for clouds that are disconnected.
	DisableInstanceDiscovery bool `json:"disableInstanceDiscovery"`
	// Audience is what the Entra token is for. Default: https://containerregistry.azure.net.
	Audience string `json:"audience"`
}

// ManagedIdentity says which managed identity, by at most one of its ids; without any it is the system-assigned one, or the only one that there is.
type ManagedIdentity struct {
	ClientID   string `json:"clientID"`
	ObjectID   string `json:"objectID"`
	ResourceID string `json:"resourceID"`
}

// RegistryIdentity is the identity for some registries.
type RegistryIdentity struct {
	// Registries are names of hosts, in which "*" stands for any part of the first label.
	Registries []string `json:"registries"`
	Identity
}

// IdentityBindings is where an AKS cluster exchanges tokens of its service accounts.
type IdentityBindings struct {
	// TokenProxy is the endpoint's URL. Default: AZURE_KUBERNETES_TOKEN_PROXY.
	TokenProxy string `json:"tokenProxy"`
	// SNIName is the name that its certificate is for. Default: AZURE_KUBERNETES_SNI_NAME.
	SNIName string `json:"sniName"`
	// CAFile has the certificates, in PEM, that its certificate is verified with. Default: AZURE_KUBERNETES_CA_FILE.
	CAFile string `json:"caFile"`
}

// Scope is how far an answer holds.
type Scope string

// The scopes.
const (
	ScopeRegistry Scope = "registry"
	ScopeImage    Scope = "image"
)

// defaultAudience is the application of all of Azure's registries, in all of its clouds (https://learn.microsoft.com/azure/container-registry/container-registry-authentication).
const defaultAudience = "https://containerregistry.azure.net"

// withDefaults fills in what was left out.
func (c *Config) withDefaults() Config {
	full := *c
	full.PodIdentity = cmp.Or(c.PodIdentity, settings.PodIdentityPrefer)
	full.Scope = cmp.Or(c.Scope, ScopeRegistry)
	return full
}

// proofs are the ways to prove an identity that are set.
func (i *Identity) proofs() []string {
	var names []string
	for _, p := range []struct {
		name string
		set  bool
	}{
		{"clientSecretFile", i.ClientSecretFile != ""},
		{"clientCertificateFile", i.ClientCertificateFile != ""},
		{"federatedTokenFile", i.FederatedTokenFile != ""},
		{"webIdentity", !i.WebIdentity.IsZero()},
		{"managedIdentity", i.ManagedIdentity != nil},
		{"azureConfigFile", i.AzureConfigFile != ""},
		{"anonymous", i.Anonymous},
	} {
		if p.set {
			names = append(names, p.name)
		}
	}
	return names
}

// validate finds every problem of a Config that has its defaults.
func (c *Config) validate() error {
	var p settings.Problems
	c.Identity.validate("", &p)
	seen := map[string]string{}
	for i := range c.Identities {
		entry := &c.Identities[i]
		field := fmt.Sprintf("identities[%d].", i)
		entry.validate(field, &p)
		if len(entry.Registries) == 0 {
			p.Add(field+"registries", "want the registries that this identity is for")
		}
		for j, host := range entry.Registries {
			at := fmt.Sprintf("%sregistries[%d]", field, j)
			switch {
			case !hosts.ValidPattern(host):
				p.Add(at, "want the name of a registry in lower case, with * in its first label only, such as contoso.azurecr.io, got %q", host)
			case !c.known(host):
				p.Add(at, "%s is no registry of Azure's that is known here: name it in hosts, too, if it is one", host)
			case seen[host] != "":
				p.Add(at, "%s has an identity already, by %s", host, seen[host])
			default:
				seen[host] = at
			}
		}
	}
	if known := settings.PodIdentities; !slices.Contains(known, c.PodIdentity) {
		p.Add("podIdentity", "want one of %q, got %q", known, c.PodIdentity)
	}
	if known := []Scope{ScopeRegistry, ScopeImage}; !slices.Contains(known, c.Scope) {
		p.Add("scope", "want one of %q, got %q", known, c.Scope)
	}
	if c.PodIdentity == settings.PodIdentityOff && c.PodClientID != "" {
		p.Add("podClientID", "it is for pods' tokens, and podIdentity is Off: remove one of them")
	}
	if c.PodClientID != "" && !hosts.IsUUID(c.PodClientID) {
		p.Add("podClientID", "want the client ID of an application or a managed identity, a UUID, got %q", c.PodClientID)
	}
	if c.PodTenantID != "" && !validTenant(c.PodTenantID) {
		p.Add("podTenantID", "want the ID of a tenant, or one of its domains, got %q", c.PodTenantID)
	}
	if b := c.IdentityBindings; b != nil {
		if b.TokenProxy != "" && !validTokenProxy(b.TokenProxy) {
			p.Add("identityBindings.tokenProxy", "want an https URL without user, query and fragment, got %q", b.TokenProxy)
		}
		if b.SNIName != "" && !hosts.ValidDomain(strings.ToLower(b.SNIName)) {
			p.Add("identityBindings.sniName", "want the name of a host, got %q", b.SNIName)
		}
		p.Path("identityBindings.caFile", b.CAFile)
	}
	for i, host := range c.Hosts {
		if !hosts.ValidPattern(host) {
			p.Add(fmt.Sprintf("hosts[%d]", i), "want the name of a registry in lower case, with at least two labels behind the first one without *, such as *.azsacr.region.example, got %q", host)
		}
	}
	if c.Proxy != "" {
		if u, err := url.Parse(string(c.Proxy)); err != nil || u.Host == "" || !slices.Contains([]string{"http", "https", "socks5"}, u.Scheme) {
			p.Add("proxy", "want a URL such as http://proxy.example:3128") // it may hold a password
		}
	}
	return errors.Join(p...)
}

// known says whether a pattern of registries can be for one that images are taken for.
func (c *Config) known(pattern string) bool {
	labels := strings.Split(pattern, ".")
	_, azures := registryClouds[strings.Join(labels[len(labels)-2:], ".")]
	return azures || slices.Contains(c.Hosts, pattern) || hosts.Match(c.Hosts, pattern)
}

func (i *Identity) validate(field string, p *settings.Problems) {
	proofs := i.proofs()
	if len(proofs) > 1 {
		p.Add(field+proofs[1], "an identity is proved in one way, and %s is one already", proofs[0])
	}
	proof := ""
	if len(proofs) > 0 {
		proof = proofs[0]
	}
	switch proof {
	case "":
		if i.ClientID != "" {
			p.Add(field+"clientID", "it names an application: say how that proves itself, by one of clientSecretFile, clientCertificateFile, federatedTokenFile, webIdentity and managedIdentity; a managed identity's own client ID is managedIdentity.clientID")
		}
	case "clientSecretFile", "clientCertificateFile", "federatedTokenFile", "webIdentity":
		i.needApplication(field, proof, p)
	case "managedIdentity":
		if i.ClientID != "" {
			i.needApplication(field, "managedIdentity with clientID", p)
		}
	case "azureConfigFile", "anonymous":
		for name, value := range map[string]string{"clientID": i.ClientID, "tenantID": i.TenantID} {
			if value != "" {
				p.Add(field+name, "%s leaves no use for it: remove one of them", proof)
			}
		}
	}
	if i.TenantID != "" && !validTenant(i.TenantID) {
		p.Add(field+"tenantID", "want the ID of a tenant, or one of its domains, got %q", i.TenantID)
	}
	if i.ClientID != "" && !hosts.IsUUID(i.ClientID) {
		p.Add(field+"clientID", "want the client ID of an application, a UUID, got %q", i.ClientID)
	}
	for _, f := range []struct{ name, path string }{
		{"clientSecretFile", i.ClientSecretFile},
		{"clientCertificateFile", i.ClientCertificateFile},
		{"clientCertificatePasswordFile", i.ClientCertificatePasswordFile},
		{"federatedTokenFile", i.FederatedTokenFile},
		{"azureConfigFile", i.AzureConfigFile},
	} {
		p.Path(field+f.name, f.path)
	}
	if i.ClientCertificateFile == "" && i.ClientCertificatePasswordFile != "" {
		p.Add(field+"clientCertificatePasswordFile", "there is no clientCertificateFile that it would be for")
	}
	if i.ClientCertificateFile == "" && i.SendCertificateChain {
		p.Add(field+"sendCertificateChain", "there is no clientCertificateFile that it would be for")
	}
	if aws := i.WebIdentity.AWS; aws != nil && aws.SigningAlgorithm != "" && aws.SigningAlgorithm != webidentity.RS256 {
		p.Add(field+"webIdentity.aws.signingAlgorithm", "Entra takes RS256 alone: remove it")
	}
	if !i.WebIdentity.IsZero() {
		if err := i.WebIdentity.Validate(field+"webIdentity", webSources); err != nil {
			*p = append(*p, err)
		}
	}
	if i.ManagedIdentity != nil {
		i.ManagedIdentity.validate(field+"managedIdentity", p)
	}
	if i.Cloud != "" && cloudNamed(i.Cloud) == nil {
		p.Add(field+"cloud", "want one of %q, got %q: another cloud is named by authorityHost", []string{publicCloud.name, chinaCloud.name, governmentCloud.name}, i.Cloud)
	}
	if i.Cloud != "" && i.AuthorityHost != "" {
		p.Add(field+"authorityHost", "cloud says whose Entra ID is asked: remove one of them")
	}
	if i.AuthorityHost != "" && !validAuthority(i.AuthorityHost) {
		p.Add(field+"authorityHost", "want the https URL of an Entra ID, without a path, such as https://login.microsoftonline.com, got %q", i.AuthorityHost)
	}
	if u, err := url.Parse(i.Audience); i.Audience != "" && (err != nil || u.Scheme == "" || strings.ContainsAny(i.Audience, " ?#") || strings.HasSuffix(i.Audience, "/.default")) {
		p.Add(field+"audience", "want the application ID URI of the registries, such as %s, got %q", defaultAudience, i.Audience)
	}
}

// needApplication: the proof is an application's.
func (i *Identity) needApplication(field, proof string, p *settings.Problems) {
	if i.ClientID == "" {
		p.Add(field+"clientID", "%s proves an application: want its client ID", proof)
	}
	if i.TenantID == "" {
		p.Add(field+"tenantID", "%s proves an application: want the ID of its tenant", proof)
	}
}

func (m *ManagedIdentity) validate(field string, p *settings.Problems) {
	ids := 0
	for _, id := range []struct{ name, value string }{{".clientID", m.ClientID}, {".objectID", m.ObjectID}, {".resourceID", m.ResourceID}} {
		if id.value == "" {
			continue
		}
		ids++
		if id.name != ".resourceID" && !hosts.IsUUID(id.value) {
			p.Add(field+id.name, "want a UUID such as 00000000-0000-0000-0000-000000000000, got %q", id.value)
		}
	}
	if m.ResourceID != "" && !strings.HasPrefix(strings.ToLower(m.ResourceID), "/subscriptions/") {
		p.Add(field+".resourceID", "want the identity's resource ID, /subscriptions/…/userAssignedIdentities/NAME, got %q", m.ResourceID)
	}
	if ids > 1 {
		p.Add(field, "it names the identity by more than one of clientID, objectID and resourceID: keep one")
	}
}

// validTokenProxy is as the SDK has it for AZURE_KUBERNETES_TOKEN_PROXY.
func validTokenProxy(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Scheme == "https" && u.Host != "" && u.User == nil && u.RawQuery == "" && u.Fragment == ""
}
