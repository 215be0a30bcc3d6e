package vault

import (
	"context"
	"encoding/base64"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/backends"
)

// kvOf has an engine of a version with one secret, and a login that may read all of it.
func (r *rig) kvOf(version int, secret string, fields map[string]any) (mount string, auth Auth) {
	r.t.Helper()
	mount = r.name("kv")
	if version == 1 {
		r.KV1(mount)
	} else {
		r.KV2(mount)
	}
	r.Put(mount, secret, fields)
	return mount, r.appRole(nil, r.reads(mount+"/*"))
}

// TestWhatASecretSays: fields, their defaults, and what is missing, for both versions of KV.
func TestWhatASecretSays(t *testing.T) {
	soon := time.Now().Add(time.Hour).Truncate(time.Second)
	auth := func(user, password string) string {
		return base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	}
	for name, test := range map[string]struct {
		fields   map[string]any
		secret   Secret
		key      string
		username string
		password string
		expires  time.Time
		narrow   bool // another image may get something else
		says     []string
	}{
		"user name and password":           {fields: map[string]any{"username": "u", "password": "p-1"}, username: "u", password: "p-1"},
		"login in place of the user name":  {fields: map[string]any{"login": "u", "password": "p-1"}, username: "u", password: "p-1"},
		"user name before login":           {fields: map[string]any{"login": "x", "username": "u", "password": "p-1"}, username: "u", password: "p-1"},
		"fields of other names":            {fields: map[string]any{"name": "u", "token": "p-1"}, secret: Secret{UsernameField: "name", PasswordField: "token"}, username: "u", password: "p-1"},
		"a fixed user name":                {fields: map[string]any{"token": "p-1"}, secret: Secret{Username: "robot$pull", PasswordField: "token"}, username: "robot$pull", password: "p-1"},
		"a number":                         {fields: map[string]any{"username": "u", "password": 12345678}, username: "u", password: "12345678"},
		"another auth key":                 {fields: map[string]any{"username": "u", "password": "p-1"}, secret: Secret{Registry: "*.example"}, key: "*.example", username: "u", password: "p-1"},
		"an auth key with a path":          {fields: map[string]any{"username": "u", "password": "p-1"}, secret: Secret{Registry: "{host}/team-a"}, key: host + "/team-a", username: "u", password: "p-1", narrow: true},
		"an auth key of the image":         {fields: map[string]any{"username": "u", "password": "p-1"}, secret: Secret{Registry: "{host}/{repository}"}, key: image, username: "u", password: "p-1", narrow: true},
		"an expiry in Unix seconds":        {fields: map[string]any{"username": "u", "password": "p-1", "end": soon.Unix()}, secret: Secret{ExpiresField: "end"}, username: "u", password: "p-1", expires: soon},
		"an expiry in RFC 3339":            {fields: map[string]any{"username": "u", "password": "p-1", "end": soon.Format(time.RFC3339)}, secret: Secret{ExpiresField: "end"}, username: "u", password: "p-1", expires: soon},
		"an expiry that is none":           {fields: map[string]any{"username": "u", "password": "p-1", "end": "never-secret"}, secret: Secret{ExpiresField: "end"}, says: []string{`secrets[0].expiresField: the field "end" says no time`}},
		"no such field":                    {fields: map[string]any{"user": "secret-value", "pass": "secret-value"}, says: []string{`secrets[0].usernameField: the secret has no field "username": it has "pass", "user"`}},
		"no password":                      {fields: map[string]any{"username": "secret-value"}, says: []string{`secrets[0].passwordField: the secret has no field "password": it has "username"`}},
		"a field that is no text":          {fields: map[string]any{"username": "u", "password": []string{"secret-value"}}, says: []string{`the secret's field "password" is no text`}},
		"an empty password":                {fields: map[string]any{"username": "secret-value", "password": ""}, says: []string{"user name or password is empty"}},
		"an auth key for another registry": {fields: map[string]any{"username": "u", "password": "secret-value"}, secret: Secret{Registry: "other.example"}, says: []string{"secrets[0].registry: other.example is no auth key for the image harbor.example/team-a/app"}},
		"a docker config": {
			fields: map[string]any{".dockerconfigjson": `{"auths":{"https://harbor.example":{"auth":"` + auth("u", "p-1") + `"},"other.example":{"auth":"` + auth("x", "y") + `"}}}`},
			secret: Secret{DockerConfigField: ".dockerconfigjson"}, username: "u", password: "p-1",
		},
		"a docker config with a path": {
			fields: map[string]any{"config": map[string]any{"auths": map[string]any{"harbor.example/team-a": map[string]any{"username": "u", "password": "p-1"}}}},
			secret: Secret{DockerConfigField: "config"}, key: host + "/team-a", username: "u", password: "p-1", narrow: true,
		},
		"a docker config that is none": {fields: map[string]any{"config": "secret-value"}, secret: Secret{DockerConfigField: "config"}, says: []string{"secrets[0].dockerConfigField: line 1, column 1: this is no JSON"}},
		"a docker config with a token": {
			fields: map[string]any{"config": `{"auths":{"harbor.example":{"identitytoken":"secret-value"}}}`}, secret: Secret{DockerConfigField: "config"},
			says: []string{`auths["harbor.example"] in the secret's field config cannot be used: it holds an identity token`},
		},
	} {
		for version := 1; version <= 2; version++ {
			t.Run(name+", KV "+string(rune('0'+version)), func(t *testing.T) {
				t.Parallel()
				r := use(t)
				mount, auth := r.kvOf(version, "x", test.fields)
				s := test.secret
				s.Path = mount + "/x"
				got, err := r.backend(Config{Auth: auth, Secrets: []Secret{s}}).Credentials(t.Context(), backends.Request{Image: image})
				if len(test.says) > 0 {
					kind := refused
					if strings.Contains(test.says[0], "registry:") {
						kind = misconfigured
					}
					fails(t, err, kind, test.says...)
					if err != nil && strings.Contains(err.Error(), "secret-value") {
						t.Errorf("it tells a value: %v", err)
					}
					return
				}
				if err != nil || len(got.Credentials) != 1 {
					t.Fatalf("%+v, %v", got, err)
				}
				key := test.key
				if key == "" {
					key = host
				}
				wide := backends.ScopeRegistry
				if test.narrow {
					wide = backends.ScopeImage
				}
				is(t, got, key, test.username, test.password)
				if !got.Credentials[0].Expires.Equal(test.expires) || got.Scope != wide {
					t.Errorf("%+v", got)
				}
			})
		}
	}
}

// TestVersions: a KV v2 secret has versions, which can be pinned, deleted and destroyed.
func TestVersions(t *testing.T) {
	r := use(t)
	mount, auth := r.kvOf(2, "x", map[string]any{"username": "u", "password": "first"})
	r.Put(mount, "x", map[string]any{"username": "u", "password": "second"})
	ask := func(version int) (backends.Response, error) {
		return r.backend(Config{Auth: auth, Secrets: []Secret{{Path: mount + "/x", Version: version}}}).Credentials(t.Context(), backends.Request{Image: image})
	}
	for version, want := range map[int]string{0: "second", 1: "first", 2: "second"} {
		if got, err := ask(version); err != nil || string(got.Credentials[0].Password) != want {
			t.Errorf("version %d: %+v, %v", version, got, err)
		}
	}
	_, err := ask(9)
	fails(t, err, refused, "read "+mount+"/data/x: there is no such secret")
	if err := r.API().KVv2(mount).DeleteVersions(t.Context(), "x", []int{1}); err != nil {
		t.Fatal(err)
	}
	_, err = ask(1)
	fails(t, err, refused, "version 1 was deleted: `vault kv undelete -versions=1 "+mount+"/x` brings it back")
	if err := r.API().KVv2(mount).Destroy(t.Context(), "x", []int{1}); err != nil {
		t.Fatal(err)
	}
	_, err = ask(1)
	fails(t, err, refused, "version 1 was destroyed")
}

// TestARotatedSecret is the one that the next request gets.
func TestARotatedSecret(t *testing.T) {
	for version := 1; version <= 2; version++ {
		r := use(t)
		mount, auth := r.kvOf(version, "x", map[string]any{"username": "u", "password": "old"})
		b := r.backend(Config{Auth: auth, Secrets: []Secret{{Path: mount + "/x"}}})
		is(t, pull(t, b, backends.Request{Image: image}), host, "u", "old")
		r.Put(mount, "x", map[string]any{"username": "u", "password": "new"})
		is(t, pull(t, b, backends.Request{Image: image}), host, "u", "new")
	}
}

// TestMissingSecrets: each says which path, and what to do.
func TestMissingSecrets(t *testing.T) {
	r := use(t)
	mount, auth := r.kvOf(2, "x", map[string]any{"username": "u", "password": "p"})
	r.KV1(r.name("other"))
	for path, want := range map[string][]string{
		mount + "/none":            {"read " + mount + "/data/none: there is no such secret", "`vault kv put " + mount + "/none username=… password=…` writes it"},
		mount + "/data/x":          {"the path is to be without data/ and metadata/ behind the mount"},
		r.name("other") + "/x":     {"look up the engine of " + r.name("other") + "/x: permission denied (HTTP status 403)", `path "` + r.name("other") + `/data/x" { capabilities = ["read"] }`},
		r.name("nowhere") + "/x/y": {"permission denied (HTTP status 403)", "no policy of the login is for anything in the engine, or there is none"},
	} {
		_, err := r.backend(Config{Auth: auth, Secrets: []Secret{{Path: path}}}).Credentials(t.Context(), backends.Request{Image: image})
		fails(t, err, refused, want...)
	}
	narrow := r.appRole(nil, r.reads(mount+"/data/y"))
	_, err := r.backend(Config{Auth: narrow, Secrets: []Secret{{Path: mount + "/x"}}}).Credentials(t.Context(), backends.Request{Image: image})
	fails(t, err, refused, "read "+mount+"/data/x: permission denied (HTTP status 403): to add to a policy of the login: `path \""+mount+"/data/x\" { capabilities = [\"read\"] }`")
	root := Auth{TokenFile: r.file(r.RootToken())}
	_, err = r.backend(Config{Auth: root, Secrets: []Secret{{Path: r.name("nowhere") + "/x", Engine: EngineKV1}}}).Credentials(t.Context(), backends.Request{Image: image})
	fails(t, err, refused, "nothing is mounted there (HTTP status 404)", "vault secrets list")
}

// TestPinnedEngine spares a question; a wrong one is told.
func TestPinnedEngine(t *testing.T) {
	r := use(t)
	mount, auth := r.kvOf(2, "x", map[string]any{"username": "u", "password": "p"})
	is(t, pull(t, r.backend(Config{Auth: auth, Secrets: []Secret{{Path: mount + "/x", Engine: EngineKV2}}}), backends.Request{Image: image}), host, "u", "p")
	if asked := r.asked(); !slices.Equal(asked, []string{"PUT auth/approle/login 200", "GET kv/data/x 200"}) {
		t.Errorf("asked %q", asked)
	}
	_, err := r.backend(Config{Auth: auth, Secrets: []Secret{{Path: mount + "/x", Engine: EngineKV1}}}).Credentials(t.Context(), backends.Request{Image: image})
	fails(t, err, refused, "read "+mount+"/x: there is no such secret")
	r.KV2(r.name("deep") + "/er")
	r.Put(r.name("deep")+"/er", "x", map[string]any{"username": "u", "password": "deep"})
	deep := Config{Auth: Auth{TokenFile: r.file(r.RootToken())}, Secrets: []Secret{{Path: r.name("deep") + "/er/x", Engine: EngineKV2, Mount: r.name("deep") + "/er"}}}
	is(t, pull(t, r.backend(deep), backends.Request{Image: image}), host, "u", "deep")
}

// TestAnEngineThatBecameAnother is looked up again.
func TestAnEngineThatBecameAnother(t *testing.T) {
	r := use(t)
	mount, auth := r.kvOf(1, "x", map[string]any{"username": "u", "password": "one"})
	b := r.backend(Config{Auth: auth, Secrets: []Secret{{Path: mount + "/x"}}})
	pull(t, b, backends.Request{Image: image})
	if err := r.API().Sys().Unmount(mount); err != nil {
		t.Fatal(err)
	}
	r.KV2(mount)
	r.Put(mount, "x", map[string]any{"username": "u", "password": "two"})
	is(t, pull(t, b, backends.Request{Image: image}), host, "u", "two")
}

// TestWrapped: a policy may demand that answers are wrapped.
func TestWrapped(t *testing.T) {
	r := use(t)
	mount, _ := r.kvOf(2, "x", map[string]any{"username": "u", "password": "p"})
	policy := r.name("wrapped")
	r.Policy(policy, `path "`+mount+`/data/x" { capabilities = ["read"] min_wrapping_ttl = "10s" max_wrapping_ttl = "5m" }`)
	auth := r.appRole(nil, policy)
	s := Secret{Path: mount + "/x", WrapTTL: time.Minute}
	is(t, pull(t, r.backend(Config{Auth: auth, Secrets: []Secret{s}}), backends.Request{Image: image}), host, "u", "p")
	wrapped := 0
	for _, q := range r.front.Requests() {
		if q.Wrap != "" {
			wrapped++
			if q.Path != mount+"/data/x" || q.Wrap != "60s" {
				t.Errorf("%s is wrapped for %s", q.Path, q.Wrap)
			}
		}
	}
	if wrapped != 1 {
		t.Errorf("%d are wrapped", wrapped)
	}
	s.WrapTTL = 0
	_, err := r.backend(Config{Auth: auth, Secrets: []Secret{s}}).Credentials(t.Context(), backends.Request{Image: image})
	fails(t, err, refused, "permission denied", "a policy that demands wrapped answers wants wrapTTL")
}

// TestWhichEntry: the first that matches, or with All every one; how far the answer holds; and none.
func TestWhichEntry(t *testing.T) {
	r := use(t)
	mount, auth := r.kvOf(2, "a", map[string]any{"username": "a", "password": "pw-a"})
	r.Put(mount, "b", map[string]any{"username": "b", "password": "pw-b"})
	entries := []Secret{{MatchImages: []string{host + "/team-*", "*.internal:8443"}, Path: mount + "/a", Registry: "{host}/team-a"}, {MatchImages: []string{host}, Path: mount + "/b"}}
	b := r.backend(Config{Auth: auth, Secrets: entries})
	all := r.backend(Config{Auth: auth, Secrets: entries, All: true})
	for image, want := range map[backends.Image]struct {
		first, all []string
		scope      backends.Scope
	}{
		host + "/team-a/app":   {[]string{"a"}, []string{"a", "b"}, backends.ScopeImage},
		host + "/other/app":    {[]string{"b"}, []string{"b"}, backends.ScopeImage},
		"quay.example/app":     {},
		"x.internal/app":       {},
		"x.y.internal:8443/ap": {},
	} {
		for b, names := range map[*Backend][]string{b: want.first, all: want.all} {
			got, err := b.Credentials(t.Context(), backends.Request{Image: image})
			var users []string
			for _, c := range got.Credentials {
				users = append(users, c.Username)
			}
			if err != nil || !slices.Equal(users, names) || got.Scope != want.scope {
				t.Errorf("%s: %v, %+v, %v", image, users, got, err)
			}
		}
	}
	// One that cannot be read does not spoil the other.
	if err := r.API().KVv2(mount).DeleteMetadata(context.Background(), "a"); err != nil {
		t.Fatal(err)
	}
	got, err := all.Credentials(t.Context(), backends.Request{Image: image})
	if err != nil || len(got.Credentials) != 1 || got.CacheDuration == nil || *got.CacheDuration != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	_, err = b.Credentials(t.Context(), backends.Request{Image: image})
	fails(t, err, refused, "there is no such secret")
}

// TestTTLOfKV1: whoever wrote a secret may say how long it is to be used.
func TestTTLOfKV1(t *testing.T) {
	r := use(t)
	mount, auth := r.kvOf(1, "x", map[string]any{"username": "u", "password": "p", "ttl": "30m"})
	got := pull(t, r.backend(Config{Auth: auth, Secrets: []Secret{{Path: mount + "/x"}}}), backends.Request{Image: image})
	if got.CacheDuration == nil || *got.CacheDuration != 30*time.Minute || !got.Credentials[0].Expires.IsZero() {
		t.Errorf("%+v", got)
	}
}
