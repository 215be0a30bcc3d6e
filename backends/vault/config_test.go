package vault

import (
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/settings"
	"github.com/credential-broker/credential-broker/backends/webidentity"
)

// TestSettings: each that is wrong is told with its field, and the right ones are taken.
func TestSettings(t *testing.T) {
	good := func() Config {
		return Config{Address: "https://vault.example:8200", Auth: Auth{Method: MethodAppRole, RoleID: "id", SecretIDFile: "/etc/secret"}, Secrets: []Secret{{Path: "secret/{host}"}}}
	}
	for name, test := range map[string]struct {
		change func(c *Config)
		says   []string // none: it is right
	}{
		"right":                         {func(*Config) {}, nil},
		"no address":                    {func(c *Config) { c.Address = "" }, []string{"address: want Vault's URL", "VAULT_ADDR"}},
		"plain http":                    {func(c *Config) { c.Address = "http://vault.example:8200" }, []string{"address: want https"}},
		"plain http at hand":            {func(c *Config) { c.Address = "http://127.0.0.1:8100" }, nil},
		"a socket":                      {func(c *Config) { c.Address = "unix:///run/vault-agent.sock" }, nil},
		"a relative socket":             {func(c *Config) { c.Address = "unix://run/agent.sock" }, []string{"address: want the absolute path of a socket"}},
		"a user in the address":         {func(c *Config) { c.Address = "https://u:secret-pw@vault.example" }, []string{"address: want a URL without user"}},
		"link-local":                    {func(c *Config) { c.Address = "http://169.254.7.7:8200" }, []string{"address: want https"}},
		"a URL that cannot be read":     {func(c *Config) { c.Address = "https://u:secret-%zz@vault.example" }, []string{"address: want a URL such as https://vault.example:8200, and this is none"}},
		"no URL":                        {func(c *Config) { c.Address = "vault.example" }, []string{"address: want a URL such as"}},
		"a redirect with a path":        {func(c *Config) { c.RedirectAddresses = []string{"https://v.example/x", "ftp://v.example"} }, []string{"redirectAddresses[0]: want a node's URL without a path", "redirectAddresses[1]: want a URL"}},
		"a namespace":                   {func(c *Config) { c.Namespace = "admin/team-a/" }, nil},
		"a namespace that is none":      {func(c *Config) { c.Namespace = "../x" }, []string{"namespace: want the path of a namespace"}},
		"a relative CA":                 {func(c *Config) { c.CAFile = "ca.pem" }, []string{"caFile: want an absolute path"}},
		"a name that is none":           {func(c *Config) { c.TLSServerName = "a b" }, []string{"tlsServerName: want the name of a host"}},
		"a proxy that is none":          {func(c *Config) { c.Proxy = "secret-proxy" }, []string{"proxy: want a URL such as"}},
		"no method":                     {func(c *Config) { c.Auth = Auth{} }, []string{"auth.method: want one of"}},
		"an unknown method":             {func(c *Config) { c.Auth.Method = "ldap" }, []string{`auth.method: want one of ["token" "approle" "kubernetes" "jwt" "cert" "aws" "gcp" "azure" "none"], got "ldap"`}},
		"a mount with slashes":          {func(c *Config) { c.Auth.Mount = "/approle/" }, []string{"auth.mount: want a path"}},
		"a token without one":           {func(c *Config) { c.Auth = Auth{Method: MethodToken} }, []string{"auth.tokenFile: want the file of Vault's token"}},
		"no role ID":                    {func(c *Config) { c.Auth.RoleID = "" }, []string{"auth.roleID: want one of roleID and roleIDFile: `vault read auth/approle/role/NAME/role-id` gives it"}},
		"two role IDs":                  {func(c *Config) { c.Auth.RoleIDFile = "/x" }, []string{"auth.roleID: want one of"}},
		"Kubernetes without a role":     {func(c *Config) { c.Auth = Auth{Method: MethodKubernetes} }, []string{"auth.role: want the role"}},
		"nobody who logs in":            {func(c *Config) { c.Auth = Auth{Method: MethodJWT, PodIdentity: settings.PodIdentityOff} }, []string{"auth.tokenFile: want the file of the token"}},
		"a certificate without a key":   {func(c *Config) { c.Auth = Auth{Method: MethodCert, CertFile: "/x"} }, []string{"auth.certFile: certFile and keyFile go together"}},
		"cert without a certificate":    {func(c *Config) { c.Auth = Auth{Method: MethodCert} }, []string{"auth.certFile: want the file of the client certificate"}},
		"settings of another method":    {func(c *Config) { c.Auth.Role, c.Auth.TokenFile = "x", "/x" }, []string{"auth.role: it is of no use to the method approle", "auth.tokenFile: it is of no use to the method approle"}},
		"a pod that may not":            {func(c *Config) { c.Auth.PodIdentity = settings.PodIdentityRequire }, []string{"auth.podIdentity: a pod's token is taken by the methods kubernetes and jwt alone"}},
		"a podIdentity that is none":    {func(c *Config) { c.Auth.PodIdentity = "Maybe" }, []string{"auth.podIdentity: want one of"}},
		"an annotation in the role":     {func(c *Config) { c.Auth = Auth{Method: MethodJWT, Role: "{annotation:role}"} }, []string{"auth.role: annotations may stand in a secret's path alone"}},
		"an annotation in the registry": {func(c *Config) { c.Auth = Auth{Method: MethodJWT}; c.Secrets[0].Registry = "{annotation:host}" }, []string{"secrets[0].registry: annotations may stand in a secret's path alone"}},
		"an annotation, but no pod":     {func(c *Config) { c.Secrets[0].Path = "secret/{annotation:team}" }, []string{"secrets[0].path: {annotation:…} is for logins by the pod's own token"}},
		"an annotation": {func(c *Config) {
			c.Auth = Auth{Method: MethodJWT}
			c.Secrets[0].Path = "secret/{annotation:example.com/team}"
		}, nil},
		"a role with a path": {func(c *Config) { c.Auth = Auth{Method: MethodJWT, Role: "a/b"} }, []string{"auth.role: want the name of a role"}},
		"two sources of a token": {func(c *Config) {
			c.Auth = Auth{Method: MethodJWT, TokenFile: "/x", WebIdentity: webidentity.Config{File: &webidentity.File{Path: "/y"}}}
		}, []string{"auth.webIdentity: tokenFile says where"}},
		"a web identity that is wrong": {func(c *Config) {
			c.Auth = Auth{Method: MethodJWT, WebIdentity: webidentity.Config{File: &webidentity.File{Path: "y"}}}
		}, []string{"auth.webIdentity.file.path: want an absolute path"}},
		"no secrets":                      {func(c *Config) { c.Secrets = nil }, []string{"secrets: want at least one entry"}},
		"no path":                         {func(c *Config) { c.Secrets[0].Path = "" }, []string{"secrets[0].path: want the secret's path"}},
		"a path that is none":             {func(c *Config) { c.Secrets[0].Path = "secret/../x" }, []string{"secrets[0].path: want a path such as"}},
		"an unknown variable":             {func(c *Config) { c.Secrets[0].Path = "secret/{pod}" }, []string{"secrets[0].path: there is no variable {pod}"}},
		"a pattern that is none":          {func(c *Config) { c.Secrets[0].MatchImages = []string{"https://harbor.example", "", "h.example/*/x"} }, []string{"secrets[0].matchImages[0]: want a pattern", "secrets[0].matchImages[1]: want a pattern", "secrets[0].matchImages[2]: want a pattern"}},
		"an engine that is none":          {func(c *Config) { c.Secrets[0].Engine = "kv3" }, []string{"secrets[0].engine: want one of"}},
		"a mount without an engine":       {func(c *Config) { c.Secrets[0].Mount = "secret" }, []string{"secrets[0].mount: say which engine"}},
		"a mount of another path":         {func(c *Config) { c.Secrets[0].Engine, c.Secrets[0].Mount = EngineKV2, "kv" }, []string{`secrets[0].mount: the path does not begin with "kv/"`}},
		"a version of KV v1":              {func(c *Config) { c.Secrets[0].Engine, c.Secrets[0].Version = EngineKV1, 2 }, []string{"secrets[0].version: want the number of a version"}},
		"wrapped for too short":           {func(c *Config) { c.Secrets[0].WrapTTL = time.Millisecond }, []string{"secrets[0].wrapTTL: want a duration of at least 1s"}},
		"two user names":                  {func(c *Config) { c.Secrets[0].Username, c.Secrets[0].UsernameField = "a", "b" }, []string{"secrets[0].username: usernameField says"}},
		"a docker config and a user":      {func(c *Config) { c.Secrets[0].Username, c.Secrets[0].DockerConfigField = "a", "b" }, []string{"secrets[0].dockerConfigField: a docker config has its own"}},
		"a namespace of one secret":       {func(c *Config) { c.Secrets[0].Namespace = "a//b" }, []string{"secrets[0].namespace: want the path of a namespace"}},
		"a login in another namespace":    {func(c *Config) { c.Auth.Namespace = "a//b" }, []string{"auth.namespace: want the path of a namespace"}},
		"relative files":                  {func(c *Config) { c.Auth.SecretIDFile = "secret" }, []string{"auth.secretIDFile: want an absolute path"}},
		"several at once are all told of": {func(c *Config) { c.Address, c.Secrets[0].Path = "", "" }, []string{"address: ", "secrets[0].path: "}},
	} {
		t.Run(name, func(t *testing.T) {
			c := good()
			test.change(&c)
			_, err := New(t.Context(), c)
			if len(test.says) == 0 && err != nil {
				t.Error(err)
			}
			for _, want := range test.says {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("want %q in: %v", want, err)
				}
			}
			if err != nil && strings.Contains(err.Error(), "secret-") {
				t.Errorf("it tells a secret: %v", err)
			}
		})
	}
}

// TestVariables: those of Vault's CLI, where the settings say nothing.
func TestVariables(t *testing.T) {
	r := use(t)
	mount, _ := r.kvOf(1, "x", map[string]any{"username": "u", "password": "p"})
	token := r.Token([]string{r.reads(mount + "/*")}, nil)
	secrets := []Secret{{Path: mount + "/x"}}
	set := func(t *testing.T, variables map[string]string) {
		for name, value := range variables {
			t.Setenv(name, value)
		}
	}
	t.Run("address, CA and token", func(t *testing.T) {
		set(t, map[string]string{"VAULT_ADDR": r.front.Address(), "VAULT_CACERT": r.CAFile(), "VAULT_TOKEN": token, "VAULT_NAMESPACE": "team-a"})
		b, err := New(t.Context(), Config{Secrets: secrets})
		if err != nil {
			t.Fatal(err)
		}
		is(t, pull(t, b, backends.Request{Image: image}), host, "u", "p")
		for _, q := range r.front.Requests() {
			if q.Namespace != "team-a" {
				t.Errorf("%s is asked in the namespace %q", q.Path, q.Namespace)
			}
		}
	})
	t.Run("the settings come first", func(t *testing.T) {
		set(t, map[string]string{"VAULT_ADDR": "https://127.0.0.1:1", "VAULT_CACERT": "/nonexistent", "VAULT_TOKEN": "wrong", "VAULT_NAMESPACE": "wrong"})
		b, err := New(t.Context(), Config{Address: r.front.Address(), CAFile: r.CAFile(), Namespace: "right", Auth: Auth{Method: MethodToken, TokenFile: r.file(token)}, Secrets: secrets})
		if err != nil {
			t.Fatal(err)
		}
		r.front.Forget()
		is(t, pull(t, b, backends.Request{Image: image}), host, "u", "p")
		for _, q := range r.front.Requests() {
			if q.Namespace != "right" || q.Token != token {
				t.Errorf("%s is asked in the namespace %q", q.Path, q.Namespace)
			}
		}
	})
	t.Run("an agent", func(t *testing.T) {
		set(t, map[string]string{"VAULT_AGENT_ADDR": "http://127.0.0.1:1", "VAULT_ADDR": "https://vault.example"})
		b, err := New(t.Context(), Config{Secrets: secrets})
		if err != nil || b.cfg.Auth.Method != MethodNone || b.cfg.Address != "http://127.0.0.1:1" {
			t.Errorf("%+v, %v", b, err)
		}
	})
	for name, value := range map[string]string{"VAULT_SKIP_VERIFY": "true", "VAULT_WRAP_TTL": "60s", "VAULT_HEADERS": "{}", "VAULT_MFA": "x", "VAULT_SRV_LOOKUP": "1"} {
		t.Run(name, func(t *testing.T) {
			set(t, map[string]string{name: value})
			_, err := New(t.Context(), Config{Address: r.front.Address(), Auth: Auth{Method: MethodNone}, Secrets: secrets})
			if err == nil || !strings.Contains(err.Error(), name+" is set, and not heeded") {
				t.Errorf("%v", err)
			}
		})
	}
}
