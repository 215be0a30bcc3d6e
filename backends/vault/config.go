package vault

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/authkey"
	"github.com/credential-broker/credential-broker/backends/internal/hosts"
	"github.com/credential-broker/credential-broker/backends/internal/settings"
	"github.com/credential-broker/credential-broker/backends/webidentity"
	"github.com/credential-broker/credential-broker/backends/webidentity/awsprogram"
)

// Config is the provider's `config`. What is left out of its first part is taken from the variables that the Vault CLI reads (https://developer.hashicorp.com/vault/docs/commands#configure-environment-variables), as far as the
// provider's env and inheritEnv pass them on.
type Config struct {
	// Address is Vault's URL: https, or http and unix where it does not leave this machine. Default: VAULT_AGENT_ADDR, else VAULT_ADDR.
	Address string `json:"address"`
	// RedirectAddresses are the URLs of the cluster's other nodes: a standby that does not forward requests points to the active one, and nothing is sent anywhere else.
	RedirectAddresses []string `json:"redirectAddresses"`
	// Namespace is that of the login and of all paths (Vault Enterprise, HCP, OpenBao). Default: VAULT_NAMESPACE.
	Namespace string `json:"namespace"`
	// CAFile has the certificates, in PEM, that the server's is verified with in place of the system's. Default: VAULT_CACERT, VAULT_CACERT_BYTES or VAULT_CAPATH.
	CAFile string `json:"caFile"`
	// TLSServerName is the name that the server's certificate is for. Default: VAULT_TLS_SERVER_NAME, else the address's host.
	TLSServerName string `json:"tlsServerName"`
	// Proxy is the URL of a proxy to Vault. It takes the place of HTTPS_PROXY; NO_PROXY still holds. Default: VAULT_PROXY_ADDR, else VAULT_HTTP_PROXY.
	Proxy backends.Secret `json:"proxy"`

	// Auth is how Vault is logged in to.
	Auth Auth `json:"auth"`
	// Secrets say where the credentials of which images are. The first entry that matches the image is used, unless All is set.
	Secrets []Secret `json:"secrets"`
	// All has every entry used that matches: each gives a credential, and the earlier one wins where two have the same auth key.
	All bool `json:"all"`

	// caBytes and caPath are VAULT_CACERT_BYTES and VAULT_CAPATH.
	caBytes, caPath string
}

// Auth is one of Vault's auth methods with its settings (https://developer.hashicorp.com/vault/api-docs/auth).
type Auth struct {
	// Method is the method's name. Default: "none" where the address is that of VAULT_AGENT_ADDR, "token" where there is a VAULT_TOKEN.
	Method Method `json:"method"`
	// Mount is where the method is enabled, below auth/. Default: the method's name.
	Mount string `json:"mount"`
	// Role is the role that is logged in to; it may have variables, but for annotations. For cert it is the name of one certificate role, and optional.
	Role string `json:"role"`
	// Namespace is that of the login, where it is another than that of the secrets.
	Namespace string `json:"namespace"`

	// TokenFile has Vault's token for the method token, and the JWT for kubernetes and jwt. It is read afresh each time.
	TokenFile string `json:"tokenFile"`
	// RoleID, or the file that has it, and SecretIDFile are AppRole's. A role without bind_secret_id needs no SecretIDFile.
	RoleID       string `json:"roleID"`
	RoleIDFile   string `json:"roleIDFile"`
	SecretIDFile string `json:"secretIDFile"`
	// WebIdentity is where the JWT comes from for jwt, if not from a file: Google, AWS, Azure, SPIFFE, a program, a URL. Its audience is what the role's bound_audiences want, by default "vault".
	WebIdentity webidentity.Config `json:"webIdentity"`
	// CertFile and KeyFile are the client certificate and its private key, in PEM: the login of cert, and shown to the server with any other method too. Default: VAULT_CLIENT_CERT and VAULT_CLIENT_KEY.
	CertFile string `json:"certFile"`
	KeyFile  string `json:"keyFile"`
	// AWS, GCP and Azure are the settings of these methods.
	AWS   *AWS   `json:"aws"`
	GCP   *GCP   `json:"gcp"`
	Azure *Azure `json:"azure"`

	// PodIdentity says for kubernetes and jwt whether the pod's service account token logs in, where the provider has tokenAttributes: "Off", "Prefer" (the default: for requests that carry one; the node's for the
	// rest) or "Require".
	PodIdentity settings.PodIdentity `json:"podIdentity"`

	// token is VAULT_TOKEN.
	token backends.Secret
}

// Secret is where a credential is, and what it is made of.
type Secret struct {
	// MatchImages are patterns by the kubelet's rules, by which a path stands for all that begins with it; a * at its end says the same. Default: every image that is routed to the provider.
	MatchImages []string `json:"matchImages"`
	// Path is the secret's, as one would give it to `vault kv get` or `vault read`. It may have the variables {host}, {repository}, {namespace}, {serviceAccount} and {annotation:KEY}.
	Path string `json:"path"`
	// Engine is "kv1", "kv2" or "other", and spares the question to Vault which it is; Mount is where it is enabled, by default the path's first segment. Default: Vault is asked.
	Engine Engine `json:"engine"`
	Mount  string `json:"mount"`
	// Version is the one of a KV v2 secret that is read. Default: the newest.
	Version int `json:"version"`
	// WrapTTL has Vault wrap its answer for so long (at least 1s), for policies that demand that; it is unwrapped at once. Default: it is not wrapped.
	WrapTTL time.Duration `json:"wrapTTL"`
	// Namespace is that of the path, where it is another than the provider's.
	Namespace string `json:"namespace"`

	// Registry is the auth key that is answered: a host, or a host and the beginning of a path. It may have the variables of Path, but for annotations. Default: the image's host.
	Registry string `json:"registry"`
	// UsernameField is the field that has the user name. Default: "username", else "login".
	UsernameField string `json:"usernameField"`
	// PasswordField is the field that has the password. Default: "password".
	PasswordField string `json:"passwordField"`
	// Username is the user name, in place of a field.
	Username string `json:"username"`
	// DockerConfigField is a field that has a whole docker config: its entries are answered as far as they are for the image.
	DockerConfigField string `json:"dockerConfigField"`
	// ExpiresField is a field that says when the credential ends: in Unix seconds, in RFC 3339, or (a number below a billion) in how many seconds.
	ExpiresField string `json:"expiresField"`
}

// Method is an auth method.
type Method string

// The methods. None leaves the login to a Vault Agent or Proxy at the address.
const (
	MethodToken      Method = "token"
	MethodAppRole    Method = "approle"
	MethodKubernetes Method = "kubernetes"
	MethodJWT        Method = "jwt"
	MethodCert       Method = "cert"
	MethodAWS        Method = "aws"
	MethodGCP        Method = "gcp"
	MethodAzure      Method = "azure"
	MethodNone       Method = "none"
)

// Engine is the kind of a secrets engine.
type Engine string

// The kinds: the two versions of KV, whose paths and answers differ, and all others, which answer with a lease.
const (
	EngineKV1   Engine = "kv1"
	EngineKV2   Engine = "kv2"
	EngineOther Engine = "other"
)

// webSources has AWS's tokens too.
var webSources = webidentity.Sources{AWS: awsprogram.New, At: "auth.webIdentity"}

// methods are all of them.
var methods = []Method{MethodToken, MethodAppRole, MethodKubernetes, MethodJWT, MethodCert, MethodAWS, MethodGCP, MethodAzure, MethodNone}

// withDefaults fills in what was left out, from the environment too.
func (c *Config) withDefaults(env environment) Config {
	full := *c
	env.fill(&full)
	full.Auth.Mount = cmp.Or(c.Auth.Mount, string(full.Auth.Method))
	full.Auth.PodIdentity = cmp.Or(c.Auth.PodIdentity, settings.PodIdentityPrefer)
	full.Auth.Namespace = cmp.Or(c.Auth.Namespace, full.Namespace)
	full.Secrets = slices.Clone(c.Secrets)
	for i := range full.Secrets {
		s := &full.Secrets[i]
		s.Namespace = cmp.Or(s.Namespace, full.Namespace)
		s.Registry = cmp.Or(s.Registry, "{host}")
		s.PasswordField = cmp.Or(s.PasswordField, "password")
	}
	return full
}

// validate finds every problem of a Config that has its defaults, and compiles the templates and patterns.
func (c *Config) validate() ([]entry, template, error) {
	var p problems
	if _, err := parseAddress(c.Address); c.Address == "" {
		p.Add("address", "want Vault's URL, such as https://vault.example:8200; or have inheritEnv name VAULT_ADDR")
	} else if err != nil {
		p.Add("address", "%w", err)
	}
	for i, address := range c.RedirectAddresses {
		if a, err := parseAddress(address); err != nil {
			p.Add(fmt.Sprintf("redirectAddresses[%d]", i), "%w", err)
		} else if a.socket != "" || a.url.Path != "" {
			p.Add(fmt.Sprintf("redirectAddresses[%d]", i), "want a node's URL without a path, got %q", address)
		}
	}
	p.namespace("namespace", c.Namespace)
	p.Path("caFile", c.CAFile)
	if c.TLSServerName != "" && !hosts.ValidDomain(strings.ToLower(c.TLSServerName)) {
		p.Add("tlsServerName", "want the name of a host, got %q", c.TLSServerName)
	}
	if c.Proxy != "" {
		if u, err := url.Parse(string(c.Proxy)); err != nil || u.Host == "" || !slices.Contains([]string{"http", "https", "socks5"}, u.Scheme) {
			p.Add("proxy", "want a URL such as http://proxy.example:3128") // it may hold a password
		}
	}
	role := c.Auth.validate("auth", &p)
	if len(c.Secrets) == 0 {
		p.Add("secrets", "want at least one entry, with the path of a secret")
	}
	entries := make([]entry, len(c.Secrets))
	for i := range c.Secrets {
		entries[i] = c.Secrets[i].validate(fmt.Sprintf("secrets[%d].", i), &c.Auth, &p)
	}
	return entries, role, errors.Join(p.Problems...)
}

// problems collects those of settings.
type problems struct{ settings.Problems }

// namespace wants the path of a namespace, or none.
func (p *problems) namespace(field, namespace string) {
	if namespace != "" && !validLiteral(strings.Trim(namespace, "/")) {
		p.Add(field, "want the path of a namespace, such as team-a or team-a/registries, got %q", namespace)
	}
}

// mount wants the path at which something is enabled, or none.
func (p *problems) mount(field, mount string) {
	if mount != "" && !validLiteral(mount) {
		p.Add(field, "want a path such as secret or team-a/kv, without a slash before and behind it, got %q", mount)
	}
}

// template wants one whose variables are among those that there are.
func (p *problems) template(field, text string, annotations bool) template {
	t, err := parseTemplate(text)
	switch {
	case err != nil:
		p.Add(field, "%w", err)
	case !annotations && t.uses("annotation"):
		p.Add(field, "annotations may stand in a secret's path alone: whoever may annotate a service account is not to choose what is logged in to, or for which registry")
	}
	return t
}

func (a *Auth) validate(field string, p *problems) template {
	if !slices.Contains(methods, a.Method) {
		p.Add(field+".method", "want one of %q, got %q", methods, string(a.Method))
	}
	p.mount(field+".mount", a.Mount)
	p.namespace(field+".namespace", a.Namespace)
	role := p.template(field+".role", a.Role, false)
	if strings.Contains(a.Role, "/") {
		p.Add(field+".role", "want the name of a role, got %q", a.Role)
	}
	for _, f := range []struct{ name, path string }{{".tokenFile", a.TokenFile}, {".roleIDFile", a.RoleIDFile}, {".secretIDFile", a.SecretIDFile}, {".certFile", a.CertFile}, {".keyFile", a.KeyFile}} {
		p.Path(field+f.name, f.path)
	}
	if (a.CertFile == "") != (a.KeyFile == "") {
		p.Add(field+".certFile", "certFile and keyFile go together: set both or neither")
	}
	if known := settings.PodIdentities; !slices.Contains(known, a.PodIdentity) {
		p.Add(field+".podIdentity", "want one of %q, got %q", known, string(a.PodIdentity))
	}
	if a.Method != MethodKubernetes && a.Method != MethodJWT && a.PodIdentity == settings.PodIdentityRequire {
		p.Add(field+".podIdentity", "a pod's token is taken by the methods kubernetes and jwt alone")
	}
	a.settingsOfOthers(field, p)
	switch a.Method {
	case MethodToken:
		if a.TokenFile == "" && a.token == "" {
			p.Add(field+".tokenFile", "want the file of Vault's token; or have inheritEnv name VAULT_TOKEN")
		}
	case MethodAppRole:
		if (a.RoleID == "") == (a.RoleIDFile == "") {
			p.Add(field+".roleID", "want one of roleID and roleIDFile: `vault read auth/%s/role/NAME/role-id` gives it", a.Mount)
		}
	case MethodKubernetes, MethodJWT:
		if a.TokenFile != "" && !a.WebIdentity.IsZero() {
			p.Add(field+".webIdentity", "tokenFile says where the token comes from: keep one")
		}
		if a.PodIdentity == settings.PodIdentityOff && a.TokenFile == "" && a.WebIdentity.IsZero() {
			p.Add(field+".tokenFile", "want the file of the token that is logged in with, since podIdentity is Off")
		}
		if a.Role == "" && a.Method == MethodKubernetes {
			p.Add(field+".role", "want the role to log in to")
		}
		if !a.WebIdentity.IsZero() && a.Method == MethodJWT {
			if err := a.WebIdentity.Validate(field+".webIdentity", webSources); err != nil {
				p.Problems = append(p.Problems, err)
			}
		}
	case MethodCert:
		if a.CertFile == "" {
			p.Add(field+".certFile", "want the file of the client certificate, and its key in keyFile")
		}
	case MethodAWS:
		a.AWS.validate(field+".aws", p)
	case MethodGCP:
		a.GCP.validate(field+".gcp", p)
		if a.Role == "" {
			p.Add(field+".role", "want the role to log in to")
		}
	case MethodAzure:
		a.Azure.validate(field+".azure", p)
		if a.Role == "" {
			p.Add(field+".role", "want the role to log in to")
		}
	case MethodNone:
	}
	return role
}

// settingsOfOthers finds settings that are of no use to the method: whoever set them meant another.
func (a *Auth) settingsOfOthers(field string, p *problems) {
	for _, s := range []struct {
		name string
		set  bool
		of   []Method
	}{
		{".role", a.Role != "", []Method{MethodKubernetes, MethodJWT, MethodCert, MethodAWS, MethodGCP, MethodAzure}},
		{".tokenFile", a.TokenFile != "", []Method{MethodToken, MethodKubernetes, MethodJWT}},
		{".roleID", a.RoleID != "", []Method{MethodAppRole}},
		{".roleIDFile", a.RoleIDFile != "", []Method{MethodAppRole}},
		{".secretIDFile", a.SecretIDFile != "", []Method{MethodAppRole}},
		{".webIdentity", !a.WebIdentity.IsZero(), []Method{MethodJWT}},
		{".aws", a.AWS != nil, []Method{MethodAWS}},
		{".gcp", a.GCP != nil, []Method{MethodGCP}},
		{".azure", a.Azure != nil, []Method{MethodAzure}},
	} {
		if s.set && slices.Contains(methods, a.Method) && !slices.Contains(s.of, a.Method) {
			p.Add(field+s.name, "it is of no use to the method %s: remove it, or set another method", a.Method)
		}
	}
}

// pods says whether a pod's token may log in.
func (a *Auth) pods() bool {
	return (a.Method == MethodKubernetes || a.Method == MethodJWT) && a.PodIdentity != settings.PodIdentityOff
}

// logsIn says whether there are logins at all: a token of the settings is none, and an agent has its own.
func (a *Auth) logsIn() bool { return a.Method != MethodToken && a.Method != MethodNone }

// node says whether the node can log in.
func (a *Auth) node() bool {
	return a.Method != MethodKubernetes && a.Method != MethodJWT || a.TokenFile != "" || !a.WebIdentity.IsZero()
}

func (s *Secret) validate(field string, auth *Auth, p *problems) entry {
	e := entry{Secret: s, field: strings.TrimSuffix(field, ".")}
	for i, pattern := range s.MatchImages {
		k, ok := authkey.Parse(pattern)
		k.Path = strings.TrimSuffix(k.Path, "*") // to the kubelet, all that begins with a path is meant by it
		if !ok || strings.Contains(k.Path, "*") || strings.Contains(pattern, "://") || strings.ContainsAny(pattern, " \t{}") {
			p.Add(fmt.Sprintf("%smatchImages[%d]", field, i), "want a pattern as the provider's own, such as harbor.example/team or *.example:8443, got %q", pattern)
		}
		e.patterns = append(e.patterns, k)
	}
	e.path = p.template(field+"path", s.Path, true)
	switch {
	case s.Path == "":
		p.Add(field+"path", "want the secret's path, as one would give it to `vault kv get` or `vault read`")
	case len(e.path.parts) > 0:
		if problem := e.path.pathProblem(); problem != "" {
			p.Add(field+"path", "%s, got %q", problem, s.Path)
		}
	}
	if e.path.uses("annotation") && !auth.pods() {
		p.Add(field+"path", "{annotation:…} is for logins by the pod's own token: set auth.method to kubernetes or jwt, and podIdentity not to Off")
	}
	e.registry = p.template(field+"registry", s.Registry, false)
	p.namespace(field+"namespace", s.Namespace)
	s.validateEngine(field, &e, p)
	if s.Version != 0 && (s.Version < 0 || s.Engine == EngineKV1 || s.Engine == EngineOther) {
		p.Add(field+"version", "want the number of a version of a KV v2 secret")
	}
	if s.WrapTTL != 0 && s.WrapTTL < time.Second {
		p.Add(field+"wrapTTL", "want a duration of at least 1s")
	}
	if s.Username != "" && s.UsernameField != "" {
		p.Add(field+"username", "usernameField says where the user name is: keep one")
	}
	if s.DockerConfigField != "" && (s.Username != "" || s.UsernameField != "" || s.PasswordField != "password" || s.Registry != "{host}") {
		p.Add(field+"dockerConfigField", "a docker config has its own user names, passwords and registries: remove the other settings")
	}
	return e
}

func (s *Secret) validateEngine(field string, e *entry, p *problems) {
	if known := []Engine{EngineKV1, EngineKV2, EngineOther}; s.Engine != "" && !slices.Contains(known, s.Engine) {
		p.Add(field+"engine", "want one of %q, got %q", known, string(s.Engine))
	}
	p.mount(field+"mount", s.Mount)
	if s.Engine == "" {
		if s.Mount != "" {
			p.Add(field+"mount", "say which engine it is, too: engine is kv1, kv2 or other")
		}
		return
	}
	first, _, _ := strings.Cut(s.Path, "/")
	e.mount = cmp.Or(s.Mount, first)
	if s.Path != "" && !strings.HasPrefix(e.path.literal(), e.mount+"/") {
		p.Add(field+"mount", "the path does not begin with %q", e.mount+"/")
	}
}
