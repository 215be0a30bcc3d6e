package vault

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/test/cloud"
	"github.com/credential-broker/credential-broker/test/vaultserver"
)

// vaultSays is an error of Vault's.
func vaultSays(status int, text string) vaultserver.Fault {
	return vaultserver.Fault{Status: status, Body: `{"errors":["` + text + ` ` + cloud.Sent + `"]}`}
}

// TestUnwell: each way in which Vault can be unwell is an error of its own, with the remedy and the right kind, and none repeats what Vault has said.
func TestUnwell(t *testing.T) {
	header := func(f vaultserver.Fault, name, value string) vaultserver.Fault {
		f.Header = http.Header{name: {value}}
		return f
	}
	at := func(path string, f vaultserver.Fault) vaultserver.Fault {
		f.Path = path
		return f
	}
	for name, test := range map[string]struct {
		fault vaultserver.Fault
		kind  backends.Kind
		says  []string
		asks  int // how often, where that matters
	}{
		"sealed":                                {at("auth/", vaultSays(503, "Vault is sealed")), unavailable, []string{"login to Vault at https://127.0.0.1:", "by auth/approle-", "Vault is sealed (HTTP status 503)", "`vault operator unseal`, on each node"}, tries},
		"not initialized":                       {vaultSays(503, "server is not yet initialized"), unavailable, []string{"Vault is not initialized", "vault operator init"}, tries},
		"no leader":                             {vaultSays(500, "local node not active but active cluster node not found"), unavailable, []string{"the node is a standby, and knows no active one", "vault operator members"}, tries},
		"a performance standby behind":          {at("secret", vaultSays(412, "required index state not present")), unavailable, []string{"read secret-", "has not yet seen what another node has just written (HTTP status 412)", "a performance standby is behind"}, 0},
		"a quota":                               {header(vaultSays(429, "rate limit quota exceeded"), "Retry-After", "120"), unavailable, []string{"a rate limit quota is used up (HTTP status 429)", "it wants to be asked again in 2m0s, and is not asked before"}, 1},
		"busy for a while":                      {header(vaultSays(503, "the proxy is busy"), "Retry-After", "120"), unavailable, []string{"Vault has failed (HTTP status 503): it wants to be asked again in 2m0s, and is not asked before"}, 1},
		"a method that is not configured":       {at("auth/", vaultSays(500, "could not load backend configuration")), refused, []string{"the auth method is enabled, and not configured (HTTP status 500)", "vault write auth/approle-"}, 1},
		"permission denied":                     {at("sys/internal", vaultSays(403, "preflight capability check returned 403")), refused, []string{"look up the engine of secret-", "permission denied (HTTP status 403)", "To add: `path \"secret-"}, 0},
		"no such namespace":                     {vaultSays(404, "namespace not found"), refused, []string{"there is no such namespace (HTTP status 404)", "see namespace (\"\")"}, 1},
		"no such method":                        {at("auth/", vaultSays(403, "permission denied")), refused, []string{"permission denied (HTTP status 403)", "is the method enabled at auth/approle-"}, 1},
		"no such method, by name":               {at("auth/", vaultSays(404, "no handler for route")), refused, []string{"nothing is mounted there", "`vault auth list` shows those that are"}, 1},
		"another address":                       {at("auth/", vaultSays(400, "source address unauthorized by CIDR restrictions")), refused, []string{"from this machine's address"}, 1},
		"failed":                                {vaultSays(500, "internal error"), unavailable, []string{"Vault has failed (HTTP status 500)"}, tries},
		"a gateway":                             {vaultserver.Fault{Status: 502, Body: "<html>" + cloud.Sent}, unavailable, []string{"Vault has failed (HTTP status 502)"}, tries},
		"nonsense":                              {vaultserver.Fault{Status: 200, Body: "<html>" + cloud.Sent}, unavailable, []string{"the answer is none that Vault documents"}, 1},
		"nonsense instead of an error":          {vaultserver.Fault{Status: 418, Body: cloud.Sent}, refused, []string{"Vault refuses it (HTTP status 418)"}, 1},
		"an empty answer":                       {at("auth/", vaultserver.Fault{Status: 200, Body: "{}"}), unavailable, []string{"the answer is none that Vault documents"}, 1},
		"cut":                                   {vaultserver.Fault{Reset: true}, unavailable, []string{"the way there has to be open"}, tries},
		"truncated":                             {vaultserver.Fault{Truncate: true}, unavailable, []string{"https://127.0.0.1:"}, tries},
		"oversized":                             {vaultserver.Fault{Oversized: true}, unavailable, []string{"the answer is too long"}, 1},
		"a second factor":                       {at("auth/", vaultserver.Fault{Status: 200, Body: `{"auth":{"mfa_requirement":{"mfa_request_id":"x","mfa_constraints":{}}}}`}), refused, []string{"Vault wants a second factor"}, 1},
		"a redirect elsewhere":                  {vaultserver.Fault{Redirect: "https://elsewhere.example:8200"}, refused, []string{"points to https://elsewhere.example:8200", "nothing is sent there", "name it in redirectAddresses"}, 1},
		"a redirect to plain http":              {vaultserver.Fault{Redirect: "http://127.0.0.1:1"}, refused, []string{"points to http://127.0.0.1:1"}, 1},
		"a redirect without an address":         {vaultserver.Fault{Status: 307, Body: "{}"}, unavailable, []string{"it points elsewhere, without saying where"}, 1},
		"the keys of an issuer are not there":   {at("auth/", vaultSays(400, "error validating token: error verifying token signature: fetching keys oidc: get keys failed")), unavailable, []string{"Vault cannot get the keys of the token's issuer", "can Vault reach that?"}, tries},
		"the answer to the secret is an error":  {at("secret", vaultSays(400, "unknown role: none")), refused, []string{"there is no such role", "is the engine's role in secret-"}, 0},
		"the answer to the mount is nonsense":   {at("sys/internal", vaultserver.Fault{Status: 200, Body: `{"data":{"path":"other/","type":"kv"}}`}), unavailable, []string{"look up the engine of", "none that Vault documents"}, 0},
		"a wrapping token that somebody stole":  {at("sys/wrapping", vaultSays(400, "wrapping token is not valid or does not exist")), refused, []string{"read secret-", "unwrap it", "the wrapping token has been used or has expired", "somebody else may have unwrapped it"}, 0},
		"the login is unknown as soon as made":  {at("sys/internal", vaultSays(403, "2 errors occurred: permission denied, invalid token")), refused, []string{"Vault does not know the token, or not any more"}, 0},
		"a TLS listener that speaks HTTP alone": {vaultserver.Fault{Status: 400, Body: "Client sent an HTTP request to an HTTPS server."}, refused, []string{"Vault refuses it (HTTP status 400)"}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := use(t)
			path, auth := r.kv()
			b := r.backend(Config{Auth: auth, Secrets: []Secret{{Path: path, WrapTTL: time.Minute}}})
			b.server.sleep = func(context.Context, time.Duration) bool { return true }
			switch test.fault.Path {
			case "secret":
				test.fault.Path = r.name("secret")
			case "auth/":
				test.fault.Path = "auth/" + r.name("approle")
			}
			r.front.Fail(test.fault)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			_, err := b.Credentials(ctx, backends.Request{Image: image})
			fails(t, err, test.kind, test.says...)
			if asked := len(r.front.Requests()); test.asks > 0 && asked != test.asks {
				t.Errorf("asked %d times", asked)
			}
			secretID, _ := os.ReadFile(auth.SecretIDFile)
			for _, secret := range []string{string(secretID), "hvs.", "pw-of-harbor", auth.RoleID} {
				if err != nil && strings.Contains(err.Error(), secret) {
					t.Errorf("it tells %q: %v", secret, err)
				}
			}
		})
	}
}

// TestWhatPasses is asked again, and nobody notices.
func TestWhatPasses(t *testing.T) {
	for name, fault := range map[string]vaultserver.Fault{
		"sealed for a moment": vaultSays(503, "Vault is sealed"), "behind for a moment": vaultSays(412, "required index state not present"), "cut": {Reset: true}, "cut in the middle": {Truncate: true},
		"a quota": {Status: 429, Header: http.Header{"Retry-After": {"1"}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := use(t)
			path, auth := r.kv()
			b := r.backend(Config{Auth: auth, Secrets: []Secret{{Path: path}}})
			now := time.Now()
			b.server.now = func() time.Time { return now }
			b.server.sleep = func(_ context.Context, d time.Duration) bool { now = now.Add(d); return true }
			fault.Times = 2
			r.front.Fail(fault)
			is(t, pull(t, b, backends.Request{Image: image}), host, "robot", "pw-of-harbor")
		})
	}
}

// TestHangingVault is left when the time is up, with the reason.
func TestHangingVault(t *testing.T) {
	r := use(t)
	path, auth := r.kv()
	r.front.Fail(vaultserver.Fault{Hang: true})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := r.backend(Config{Auth: auth, Secrets: []Secret{{Path: path}}}).Credentials(ctx, backends.Request{Image: image})
	fails(t, err, unavailable, "no answer in time", "the way there has to be open")
	if ctx.Err() != nil {
		t.Error("nothing of the time was left to say so")
	}
}

// TestAQuotaHoldsForAll: nobody asks before Vault wants to be asked.
func TestAQuotaHoldsForAll(t *testing.T) {
	r := use(t)
	path, auth := r.kv()
	b := r.backend(Config{Auth: auth, Secrets: []Secret{{Path: path}}})
	r.front.Fail(vaultserver.Fault{Status: 429, Header: http.Header{"Retry-After": {"600"}}, Times: 1})
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		_, err := b.Credentials(ctx, backends.Request{Image: image})
		cancel()
		fails(t, err, unavailable, "busy")
	}
	if asked := r.asked(); len(asked) != 1 {
		t.Errorf("asked %q", asked)
	}
}

// TestARealQuota of Vault's own.
func TestARealQuota(t *testing.T) {
	r := use(t)
	mount, auth := r.kvOf(1, "x", map[string]any{"username": "u", "password": "p"})
	r.RateLimit(r.name("quota"), mount, 1, time.Hour)
	b := r.backend(Config{Auth: auth, Secrets: []Secret{{Path: mount + "/x"}}})
	b.server.sleep = func(context.Context, time.Duration) bool { return false }
	pull(t, b, backends.Request{Image: image})
	_, err := b.Credentials(t.Context(), backends.Request{Image: image})
	fails(t, err, unavailable, "read "+mount+"/x", "a rate limit quota is used up (HTTP status 429)", "asked again in 1s")
}

// TestSealed and unsealed: a real one.
func TestSealed(t *testing.T) {
	r := alone(t, vaultserver.Options{})
	path, auth := r.kv()
	b := r.backend(Config{Auth: auth, Secrets: []Secret{{Path: path}}})
	b.server.sleep = func(context.Context, time.Duration) bool { return true }
	pull(t, b, backends.Request{Image: image})
	r.Seal()
	_, err := b.Credentials(t.Context(), backends.Request{Image: image})
	fails(t, err, unavailable, "Vault is sealed (HTTP status 503)")
	err = b.Check(t.Context(), backends.Request{Image: image})
	fails(t, err, unavailable, "state of Vault", "Vault is sealed", "vault operator unseal")
	r.Unseal()
	is(t, pull(t, b, backends.Request{Image: image}), host, "robot", "pw-of-harbor")
}

// TestRedirects: to the addresses of the settings, and to no thief.
func TestRedirects(t *testing.T) {
	r := use(t)
	path, auth := r.kv()
	active := r.Front()
	c := Config{Auth: auth, Secrets: []Secret{{Path: path}}, RedirectAddresses: []string{active.Address()}}
	r.front.Fail(vaultserver.Fault{Redirect: active.Address()})
	is(t, pull(t, r.backend(c), backends.Request{Image: image}), host, "robot", "pw-of-harbor")
	if len(active.Requests()) != 3 {
		t.Errorf("%d questions reached the active node", len(active.Requests()))
	}
	thief := r.Thief()
	active.Fail(vaultserver.Fault{Redirect: thief.Address()})
	_, err := r.backend(c).Credentials(t.Context(), backends.Request{Image: image})
	fails(t, err, refused, "points to "+thief.Address())
	active.Heal()
	active.Fail(vaultserver.Fault{Redirect: r.front.Address()})
	_, err = r.backend(c).Credentials(t.Context(), backends.Request{Image: image})
	fails(t, err, unavailable, "its nodes point to each other")
	if stolen := thief.Stolen(); len(stolen) > 0 {
		t.Errorf("stolen: %q", stolen)
	}
}

// TestTLS: who is believed to be Vault.
func TestTLS(t *testing.T) {
	r := use(t)
	path, auth := r.kv()
	for name, test := range map[string]struct {
		change func(c *Config)
		kind   backends.Kind
		says   []string
	}{
		"another authority": {func(c *Config) { c.CAFile = r.file(string(r.ClientCA())) }, refused, []string{"certificate signed by unknown authority", "give the certificate authority of Vault's certificate in caFile"}},
		"another name":      {func(c *Config) { c.TLSServerName = "vault.example" }, refused, []string{"give the name that the certificate is for in tlsServerName"}},
		"no file":           {func(c *Config) { c.CAFile = "/nonexistent/ca.pem" }, misconfigured, []string{"caFile: /nonexistent/ca.pem: no such file"}},
		"no certificate":    {func(c *Config) { c.CAFile = r.file("secret") }, misconfigured, []string{"caFile", "there is no certificate in it"}},
		"nobody there":      {func(c *Config) { c.Address = "https://127.0.0.1:1" }, unavailable, []string{"https://127.0.0.1:1", "refused", "the way there has to be open"}},
		"no client certificate": {func(c *Config) {
			c.Auth.CertFile, c.Auth.KeyFile = "/nonexistent/cert.pem", "/nonexistent/key.pem"
		}, misconfigured, []string{"auth.certFile: /nonexistent/cert.pem"}},
		"a key that is none": {func(c *Config) {
			c.Auth.CertFile, c.Auth.KeyFile = r.file("secret-cert"), r.file("secret-key")
		}, misconfigured, []string{"auth.certFile", "want a certificate and the private key that belongs to it"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := Config{Auth: auth, Secrets: []Secret{{Path: path}}}
			test.change(&c)
			b := r.backend(c)
			b.server.sleep = func(context.Context, time.Duration) bool { return true }
			_, err := b.Credentials(t.Context(), backends.Request{Image: image})
			fails(t, err, test.kind, test.says...)
			if err != nil && strings.Contains(err.Error(), "secret-") && !strings.Contains(err.Error(), "caFile") {
				t.Errorf("it tells what is in a file: %v", err)
			}
		})
	}
}

// TestClocks that differ are told where they matter.
func TestClocks(t *testing.T) {
	r := use(t)
	issuer := cluster(t)
	r.JWT(r.name("jwt"), issuer)
	r.JWTRole(r.name("jwt"), "puller", nil)
	late := issuer.Token(map[string]any{"sub": "node", "aud": []string{"vault"}, "nbf": time.Now().Add(2 * time.Hour).Unix(), "iat": time.Now().Add(2 * time.Hour).Unix(), "exp": time.Now().Add(3 * time.Hour).Unix()})
	b := r.backend(Config{Auth: Auth{Method: MethodJWT, Mount: r.name("jwt"), Role: "puller", TokenFile: r.file(late)}, Secrets: []Secret{{Path: "secret/x"}}})
	b.server.now = func() time.Time { return time.Now().Add(2 * time.Hour) }
	_, err := b.Credentials(t.Context(), backends.Request{Image: image})
	fails(t, err, refused, "the token is not valid yet", "this machine's clock is 2h0m", "off Vault's: set it")
	b.server.now = func() time.Time { return time.Now().Add(4 * time.Hour) }
	_, err = b.Credentials(t.Context(), backends.Request{Image: image})
	fails(t, err, unavailable, "(auth.tokenFile): the token expired at", "that the clock is right")
}

// TestFilesOfSecrets: what is in their place.
func TestFilesOfSecrets(t *testing.T) {
	r := use(t)
	path, auth := r.kv()
	for name, test := range map[string]struct {
		file string
		kind backends.Kind
		says string
	}{
		"not there yet": {filepath.Join(t.TempDir(), "none"), unavailable, "no such file"},
		"empty":         {r.file("\n"), misconfigured, "want one line of ASCII"},
		"two lines":     {r.file("secret-a\nsecret-b\n"), misconfigured, "want one line of ASCII"},
		"a directory":   {t.TempDir(), misconfigured, "it is no regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			auth := auth
			auth.SecretIDFile = test.file
			_, err := r.backend(Config{Auth: auth, Secrets: []Secret{{Path: path}}}).Credentials(t.Context(), backends.Request{Image: image})
			fails(t, err, test.kind, "auth.secretIDFile", test.says)
			if strings.Contains(err.Error(), "secret-a") {
				t.Errorf("it tells what is in the file: %v", err)
			}
		})
	}
}

// TestNothingSecretIsLogged, at the level that says most.
func TestNothingSecretIsLogged(t *testing.T) {
	var log bytes.Buffer
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	defer slog.SetDefault(before)
	r := use(t)
	path, auth := r.kv()
	_, c := r.lending(time.Hour, time.Hour, nil)
	secretID, err := os.ReadFile(auth.SecretIDFile)
	if err != nil {
		t.Fatal(err)
	}
	var secrets []string
	for _, c := range []Config{{Auth: auth, Secrets: []Secret{{Path: path, WrapTTL: time.Minute}}}, c} {
		b := r.backend(c)
		got := pull(t, b, backends.Request{Image: image})
		secrets = append(secrets, string(got.Credentials[0].Password))
		_, renewed := b.Renew(t.Context(), backends.Request{Image: image}, got.Lease)
		if err := errors.Join(renewed, b.Check(t.Context(), backends.Request{Image: image}), b.Close(t.Context()), b.Revoke(t.Context(), got.Lease)); err != nil {
			t.Error(err)
		}
	}
	for _, q := range r.front.Requests() {
		secrets = append(secrets, q.Token)
	}
	secrets = append(secrets, strings.TrimSpace(string(secretID)), auth.RoleID, "hvs.")
	for _, secret := range slices.Compact(secrets) {
		if secret != "" && strings.Contains(log.String(), secret) {
			t.Errorf("%q is in the log:\n%s", secret, log.String())
		}
	}
	if !strings.Contains(log.String(), "logged in to Vault") {
		t.Errorf("nothing was logged: %s", log.String())
	}
}

// TestAQuotaOfOneIsNoTroubleOfAnother: Vault counts by mount and namespace.
func TestAQuotaOfOneIsNoTroubleOfAnother(t *testing.T) {
	r := use(t)
	mount, _ := r.kvOf(1, "x", map[string]any{"username": "u", "password": "p"})
	path, _ := r.kv()
	auth := r.appRole(nil, r.reads(mount+"/*", r.name("secret")+"/*"))
	b := r.backend(Config{Auth: auth, Secrets: []Secret{{MatchImages: []string{host}, Path: path}, {Path: mount + "/x"}}})
	r.front.Fail(vaultserver.Fault{Path: mount, Status: 429, Header: http.Header{"Retry-After": {"600"}}})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := b.Credentials(ctx, backends.Request{Image: "quay.example/app"})
	fails(t, err, unavailable, "busy")
	is(t, pull(t, b, backends.Request{Image: image}), host, "robot", "pw-of-harbor")
	if err := b.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if asked := r.asked(); asked[len(asked)-1] != "PUT auth/token/revoke-self 204" {
		t.Errorf("asked %q", asked)
	}
}

// TestWhatIsAskedOnce is not repeated where Vault may have done it: a credential that nobody knows would be left behind.
func TestWhatIsAskedOnce(t *testing.T) {
	r := use(t)
	mq, c := r.lending(time.Hour, time.Hour, nil)
	c.Auth = Auth{TokenFile: r.file(r.Token([]string{r.reads(r.name("mq") + "/*")}, nil))}
	for i, fault := range []vaultserver.Fault{{Truncate: true}, {Reset: true, After: true}} { // net/http would repeat the second of itself
		fault.Path, fault.Times = r.name("mq"), 1
		r.front.Fail(fault)
		_, err := r.backend(c).Credentials(t.Context(), backends.Request{Image: image})
		fails(t, err, unavailable, "read "+r.name("mq")+"/creds/pull")
		if len(mq.Users()) != i+1 {
			t.Errorf("%d were made", len(mq.Users()))
		}
	}
}

// TestAnotherAuthority: caFile may be replaced while the process lives.
func TestAnotherAuthority(t *testing.T) {
	r := use(t)
	path, auth := r.kv()
	ca := r.file(string(r.ClientCA()))
	b := r.backend(Config{Auth: auth, CAFile: ca, Secrets: []Secret{{Path: path}}})
	_, err := b.Credentials(t.Context(), backends.Request{Image: image})
	fails(t, err, refused, "give the certificate authority of Vault's certificate in caFile")
	right, err := os.ReadFile(r.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	for _, content := range []string{string(right) + "\n\n", "", "half of"} { // the last two are what somebody is just writing
		if err := os.WriteFile(ca, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		is(t, pull(t, b, backends.Request{Image: image}), host, "robot", "pw-of-harbor")
	}
}

// TestGates: whom Vault's wish to be left alone is of, also where its address has a path.
func TestGates(t *testing.T) {
	for path, want := range map[string]string{"/v1/secret/data/x": " secret", "/v1/auth/approle/login": " auth/approle", "/lb/v1/kv/x": " kv", "/v1/sys/internal/ui/mounts/secret/x": " sys"} {
		if got := gate(&http.Request{URL: &url.URL{Path: path}}); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	if got := gate(&http.Request{URL: &url.URL{Path: "/v1/kv/x"}, Header: http.Header{"X-Vault-Namespace": {"a"}}}); got != "a kv" {
		t.Errorf("%q", got)
	}
}
