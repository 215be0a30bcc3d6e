package vault

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/hosts"
	"github.com/credential-broker/credential-broker/backends/webidentity"
	"github.com/credential-broker/credential-broker/backends/webidentity/awsprogram"
)

// Config is the provider's `config`. What is left out of its first part is taken from the variables that the Vault CLI reads (https://developer.hashicorp.com/vault/docs/commands#configure-environment-variables), as far as the
// provider's env and inheritEnv pass them on.
type Config struct {
	// Address is Vault's URL: https, or http and unix where it does not leave this machine. Default: VAULT_AGENT_ADDR or VAULT_PROXY_ADDR, else VAULT_ADDR.
	Address string `json:"address"`
	// RedirectAddresses are the URLs of the cluster's other nodes: a standby that does not forward requests points to the active one, and nothing is sent anywhere else.
	RedirectAddresses []string `json:"redirectAddresses"`
	// Namespace is that of the login and of all paths (Vault Enterprise, HCP, OpenBao). Default: VAULT_NAMESPACE.
	Namespace string `json:"namespace"`
	// CAFile has the certificates, in PEM, that the server's is verified with in place of the system's. Default: VAULT_CACERT, VAULT_CACERT_BYTES or VAULT_CAPATH.
	CAFile string `json:"caFile"`
	// TLSServerName is the name that the server's certificate is for. Default: VAULT_TLS_SERVER_NAME, else the address's host.
	TLSServerName string `json:"tlsServerName"`
	// Proxy is the URL of a proxy to Vault. It takes the place of HTTPS_PROXY; NO_PROXY still holds. Default: VAULT_HTTP_PROXY.
	Proxy backends.Secret `json:"proxy"`

	// Auth is how Vault is logged in to.
	Auth Auth `json:"auth"`
	// Secrets say where the credentials of which images are. The first entry that matches the image is used, unless All is set.
	Secrets []Secret `json:"secrets"`
	// All has every entry used that matches: each gives a credential, and the earlier one wins where two have the same auth key.
	All bool `json:"all"`
}

// Auth is one of Vault's auth methods with its settings (https://developer.hashicorp.com/vault/api-docs/auth).
type Auth struct {
	// Method is the method's name. Default: "token" where there is a VAULT_TOKEN or tokenFile, "none" where the address is that of VAULT_AGENT_ADDR or VAULT_PROXY_ADDR.
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
	PodIdentity PodIdentity `json:"podIdentity"`
}

// Secret is where a credential is, and what it is made of.
type Secret struct {
	// MatchImages are patterns by the kubelet's rules. Default: every image that is routed to the provider.
	MatchImages []string `json:"matchImages"`
	// Path is the secret's, as one would give it to `vault kv get` or `vault read`. It may have the variables {host}, {repository}, {namespace}, {serviceAccount} and {annotation:KEY}.
	Path string `json:"path"`
	// Engine is "kv1", "kv2" or "other", and spares the question to Vault which it is. Default: Vault is asked.
	Engine Engine `json:"engine"`
	// Version is the one of a KV v2 secret that is read. Default: the newest.
	Version int `json:"version"`
	// WrapTTL has Vault wrap its answer for so long (at least 1s), for policies that demand that; it is unwrapped at once. Default: it is not wrapped.
	WrapTTL time.Duration `json:"wrapTTL"`
	// Namespace is that of the path, where it is another than the login's: one below it, as a path from there.
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
	// ExpiresField is a field that says when the credential ends: Unix seconds, or RFC 3339.
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

// PodIdentity is whether a pod's token is used.
type PodIdentity string

// The ways to use it.
const (
	PodIdentityOff     PodIdentity = "Off"
	PodIdentityPrefer  PodIdentity = "Prefer"
	PodIdentityRequire PodIdentity = "Require"
)

// webSources has AWS's tokens too.
var webSources = webidentity.Sources{AWS: awsprogram.New}

// problems collects those of settings.
type problems []error

func (p *problems) add(field, format string, args ...any) {
	*p = append(*p, backends.InvalidConfig(field, format, args...))
}

// path wants an absolute path, or none.
func (p *problems) path(field, path string) {
	if path != "" && !filepath.IsAbs(path) {
		p.add(field, "want an absolute path, got %q", path)
	}
}

var (
	_ = cmp.Or[string]
	_ = errors.Join
	_ = fmt.Sprint
	_ = url.Parse
	_ = slices.Contains[[]string]
	_ = strings.Cut
	_ = hosts.IsNear
)
