package vault

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/credential-broker/credential-broker/backends"
)

// environment is what the Vault CLI's variables say, as far as the provider passes them on.
type environment map[string]string

// prefix is that of the variables.
const prefix = "VAULT_"

// takeEnvironment reads the variables and removes them, since Vault's library would read them too: it sends a token, a namespace and headers with every request, and skips the verification of certificates, if they say so.
func takeEnvironment() environment {
	env := environment{}
	for _, variable := range os.Environ() {
		if name, value, _ := strings.Cut(variable, "="); strings.HasPrefix(name, prefix) {
			env[name] = value
			_ = os.Unsetenv(name) // never fails for a name without "="
		}
	}
	return env
}

// fill fills in what the settings leave out.
func (e environment) fill(c *Config) {
	agent := c.Address == "" && e["VAULT_AGENT_ADDR"] != ""
	c.Address = cmp.Or(c.Address, e["VAULT_AGENT_ADDR"], e["VAULT_ADDR"])
	c.Namespace = cmp.Or(c.Namespace, e["VAULT_NAMESPACE"])
	c.caBytes, c.caPath = "", ""
	if c.CAFile == "" {
		c.CAFile, c.caBytes, c.caPath = e["VAULT_CACERT"], e["VAULT_CACERT_BYTES"], e["VAULT_CAPATH"]
	}
	c.TLSServerName = cmp.Or(c.TLSServerName, e["VAULT_TLS_SERVER_NAME"])
	c.Proxy = cmp.Or(c.Proxy, backends.Secret(cmp.Or(e["VAULT_PROXY_ADDR"], e["VAULT_HTTP_PROXY"])))
	if c.Auth.CertFile == "" && c.Auth.KeyFile == "" {
		c.Auth.CertFile, c.Auth.KeyFile = e["VAULT_CLIENT_CERT"], e["VAULT_CLIENT_KEY"]
	}
	if c.Auth.Method == "" {
		switch {
		case agent:
			c.Auth.Method = MethodNone
		case e["VAULT_TOKEN"] != "" || c.Auth.TokenFile != "":
			c.Auth.Method = MethodToken
		}
	}
	if c.Auth.Method == MethodToken && c.Auth.TokenFile == "" {
		c.Auth.token = backends.Secret(e["VAULT_TOKEN"])
	}
}

// without are the variables that are not heeded, with what to do instead.
var without = map[string]string{
	"VAULT_HEADERS":     "requests have the headers that they need",
	"VAULT_MFA":         "nobody is there to answer: log in by a method without it",
	"VAULT_SRV_LOOKUP":  "give address the name and port",
	"VAULT_WRAP_TTL":    "set wrapTTL of the secret",
	"VAULT_SKIP_VERIFY": "give the server's certificate authority in caFile: without verification, anybody on the way would be sent the logins",
}

// needless are those that mean nothing here, and do no harm.
var needless = map[string]string{
	"VAULT_CLIENT_TIMEOUT":    "the provider's timeout bounds everything",
	"VAULT_MAX_RETRIES":       "what passes is tried three times",
	"VAULT_RATE_LIMIT":        "few requests are made, and Vault's own quotas are heeded",
	"VAULT_DISABLE_REDIRECTS": "none is followed but to redirectAddresses",
}

// warn tells of those.
func (e environment) warn(ctx context.Context) {
	for name, why := range needless {
		if e[name] != "" {
			slog.InfoContext(ctx, name+" is not heeded", "why", why)
		}
	}
}

// problems are those that would otherwise be found out later, or never.
func (e environment) problems() error {
	var p problems
	for _, name := range slices.Sorted(maps.Keys(e)) {
		instead, refused := without[name]
		if skip, err := strconv.ParseBool(e[name]); refused && (name != "VAULT_SKIP_VERIFY" && name != "VAULT_SRV_LOOKUP" || skip || err != nil) && e[name] != "" {
			p.Add("", "%s is set, and not heeded: %s; remove it from env or inheritEnv", name, instead)
		}
	}
	if path := e["VAULT_CAPATH"]; path != "" && !filepath.IsAbs(path) {
		p.Add("", "VAULT_CAPATH: want an absolute path, got %q", path)
	}
	return errors.Join(p.Problems...)
}
