package vault

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/backends"
)

// logged gives what fn logs.
func logged(t *testing.T, fn func()) string {
	t.Helper()
	var log bytes.Buffer
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	defer slog.SetDefault(before)
	fn()
	return log.String()
}

// TestCheck: state, version, who, what it may; and nothing is made.
func TestCheck(t *testing.T) {
	r := use(t)
	mount, auth := r.kvOf(2, "x", map[string]any{"username": "u", "password": "p"})
	good := Config{Auth: auth, Secrets: []Secret{{Path: mount + "/x"}}}
	said := logged(t, func() {
		if err := r.backend(good).Check(t.Context(), backends.Request{Image: image}); err != nil {
			t.Error(err)
		}
	})
	for _, want := range []string{"version=1.19.5", "standby=false", "policies=\"default, reader-", "lasts=76", "the login may read the secret", "path=" + mount + "/data/x", "engine=kv2", `fields="\"password\", \"username\""`, "credentials=1"} {
		if !strings.Contains(said, want) {
			t.Errorf("want %s in:\n%s", want, said)
		}
	}
	if err := r.backend(good).Check(t.Context(), backends.Request{}); err != nil {
		t.Error(err)
	}
	for name, test := range map[string]struct {
		change func(c *Config)
		image  backends.Image
		says   []string
	}{
		"may not read": {func(c *Config) { c.Auth = r.appRole(nil, r.reads(mount+"/data/other")) }, image, []string{
			"ask what the login may do with " + mount + "/data/x: it may not read it", "to add to a policy of the login: `path \"" + mount + "/data/x\" { capabilities = [\"read\"] }`",
		}},
		"no entry for the image": {func(c *Config) { c.Secrets[0].MatchImages = []string{"other.example"} }, image, []string{"no secret of the settings is for harbor.example/team-a/app: see secrets[].matchImages"}},
		"no such field":          {func(c *Config) { c.Secrets[0].PasswordField = "token" }, image, []string{`the secret has no field "token"`}},
		"no such secret":         {func(c *Config) { c.Secrets[0].Path = mount + "/y" }, image, []string{"there is no such secret"}},
		"no login":               {func(c *Config) { c.Auth.SecretIDFile = r.file("wrong") }, "", []string{"the role ID or the secret ID is wrong"}},
		"a bad value":            {func(c *Config) { c.Secrets[0].Path = mount + "/{repository}" }, host + "/a/../b", []string{"{repository}"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := good
			c.Secrets = []Secret{good.Secrets[0]}
			test.change(&c)
			err := r.backend(c).Check(t.Context(), backends.Request{Image: test.image})
			fails(t, err, refused, test.says...)
		})
	}
	mq, lending := r.lending(time.Hour, time.Hour, nil)
	said = logged(t, func() {
		if err := r.backend(lending).Check(t.Context(), backends.Request{Image: image}); err != nil {
			t.Error(err)
		}
	})
	if !strings.Contains(said, "the login may have credentials made; a check does not") || len(mq.Users()) > 0 {
		t.Errorf("%d users were made: %s", len(mq.Users()), said)
	}
	root := good
	root.Auth, root.Namespace = Auth{TokenFile: r.file(r.RootToken())}, "team-a"
	said = logged(t, func() {
		if err := r.backend(root).Check(t.Context(), backends.Request{Image: image}); err != nil {
			t.Error(err)
		}
	})
	for _, want := range []string{"the login may do everything in Vault", "lasts=\"for ever\"", "which Vault Community does not heed"} {
		if !strings.Contains(said, want) {
			t.Errorf("want %s in:\n%s", want, said)
		}
	}
}

// TestCheckWithoutTheDefaultPolicy: what a pull does not need is no error.
func TestCheckWithoutTheDefaultPolicy(t *testing.T) {
	r := use(t)
	mount, _ := r.kvOf(1, "x", map[string]any{"username": "u", "password": "p"})
	auth := r.appRole(map[string]any{"token_no_default_policy": true}, r.reads(mount+"/*"))
	said := logged(t, func() {
		if err := r.backend(Config{Auth: auth, Secrets: []Secret{{Path: mount + "/x"}}}).Check(t.Context(), backends.Request{Image: image}); err != nil {
			t.Error(err)
		}
	})
	for _, want := range []string{"the login may not look itself up", "the login may not ask what it may", "the login may read the secret"} {
		if !strings.Contains(said, want) {
			t.Errorf("want %s in:\n%s", want, said)
		}
	}
}

// TestCheckOfPods: without a pod's token there is little to check.
func TestCheckOfPods(t *testing.T) {
	r := use(t)
	issuer := cluster(t)
	r.JWT(r.name("jwt"), issuer)
	r.JWTRole(r.name("jwt"), "puller-team-a", nil)
	c := Config{Auth: Auth{Method: MethodJWT, Mount: r.name("jwt"), Role: "puller-{namespace}"}, Secrets: []Secret{{Path: "secret/x"}}}
	said := logged(t, func() {
		if err := r.backend(c).Check(t.Context(), backends.Request{}); err != nil {
			t.Error(err)
		}
	})
	if !strings.Contains(said, "only pods log in") {
		t.Error(said)
	}
	c.Auth.TokenFile = r.file("x")
	said = logged(t, func() {
		if err := r.backend(c).Check(t.Context(), backends.Request{}); err != nil {
			t.Error(err)
		}
	})
	if !strings.Contains(said, "the role depends on the request") {
		t.Error(said)
	}
	c.Auth.TokenFile = ""
	said = logged(t, func() {
		err := r.backend(c).Check(t.Context(), backends.Request{Image: image, Token: podToken(issuer, "team-a", "builder")})
		fails(t, err, refused, "look up the engine of secret/x", "the pod's token is of team-a/builder")
	})
	if !strings.Contains(said, "logged in to Vault") {
		t.Error(said)
	}
}
