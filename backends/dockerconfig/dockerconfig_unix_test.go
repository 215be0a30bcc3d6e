//go:build unix

package dockerconfig

import (
	"context"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credential-broker/credential-broker/backends"
)

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// configured makes a backend of a file with this content, and of helpers that are shell scripts by these names, the only ones in PATH besides the system's.
func configured(t *testing.T, content string, helpers map[string]string) *Backend {
	t.Helper()
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, script := range helpers {
		if err := os.WriteFile(filepath.Join(bin, "docker-credential-"+name), []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":/usr/bin:/bin")
	name := filepath.Join(dir, "config.json")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := New(t.Context(), Config{File: name})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// has is a helper that has one credential for one server, and says so as helpers do.
func has(server, user, secret string) string {
	return `[ "$1" = get ] || exit 9; read -r server; if [ "$server" = "` + server + `" ]; then echo '{"ServerURL":"` + server + `","Username":"` + user + `","Secret":"` + secret + `"}'; else echo "credentials not found in native keychain"; exit 1; fi`
}

func creds(keyUserPassword ...string) []backends.Credential {
	var all []backends.Credential
	for i := 0; i < len(keyUserPassword); i += 3 {
		all = append(all, backends.Credential{Key: keyUserPassword[i], Username: keyUserPassword[i+1], Password: backends.Secret(keyUserPassword[i+2])}) //nolint:gosec // callers give threes
	}
	return all
}

func TestCredentials(t *testing.T) {
	const image = "r.example/team/app"
	tests := []struct {
		name    string
		file    string
		helpers map[string]string
		image   backends.Image // default: image
		want    []backends.Credential
		scope   backends.Scope // default: ScopeRegistry
		byImage bool           // want ScopeImage
	}{
		{name: "an entry with auth", file: `{"auths":{"r.example":{"auth":"` + b64("u:p:q") + `"}}}`, want: creds("r.example", "u", "p:q")},
		{name: "auth without padding", file: `{"auths":{"r.example":{"auth":"` + strings.TrimRight(b64("u:pp"), "=") + `"}}}`, want: creds("r.example", "u", "pp")},
		{name: "an entry with user name and password", file: `{"auths":{"r.example":{"username":"u","password":"p"}}}`, want: creds("r.example", "u", "p")},
		{name: "auth wins over user name and password", file: `{"auths":{"r.example":{"auth":"` + b64("u:p") + `","username":"x","password":"y"}}}`, want: creds("r.example", "u", "p")},
		{name: "zero bytes are cut off the password", file: `{"auths":{"r.example":{"auth":"` + b64("u:p\x00\x00") + `"}}}`, want: creds("r.example", "u", "p")},
		{name: "another host's entry", file: `{"auths":{"s.example":{"auth":"` + b64("u:p") + `"}}}`},
		{name: "an empty entry, as docker leaves for what a helper has", file: `{"auths":{"r.example":{}}}`},
		{name: "an empty file", file: ``},
		{name: "fields that are not for us", file: `{"auths":{"r.example":{"username":"u","password":"p","email":"e"}},"HttpHeaders":{"a":"b"},"new":[1]}`, want: creds("r.example", "u", "p")},
		{
			name: "a port counts", file: `{"auths":{"r.example":{"username":"a","password":"b"},"r.example:5000":{"username":"u","password":"p"}}}`, image: "r.example:5000/app",
			want: creds("r.example:5000", "u", "p"),
		},
		{name: "a URL as old versions of docker wrote it", file: `{"auths":{"https://r.example/v1/":{"username":"u","password":"p"}}}`, want: creds("r.example", "u", "p")},
		{name: "a URL without a closing slash", file: `{"auths":{"http://r.example/v2":{"username":"u","password":"p"}}}`, want: creds("r.example", "u", "p")},
		{name: "the exact host before a URL", file: `{"auths":{"http://r.example":{"username":"x","password":"y"},"r.example":{"username":"u","password":"p"}}}`, want: creds("r.example", "u", "p")},
		{
			name: "an entry with a path counts for its images, the more specific first", file: `{"auths":{"r.example":{"username":"a","password":"b"},"r.example/team":{"username":"u","password":"p"}}}`,
			want: creds("r.example/team", "u", "p", "r.example", "a", "b"), byImage: true,
		},
		{
			name: "an entry with a path does not count for others, which still makes the answer the image's", file: `{"auths":{"r.example":{"username":"a","password":"b"},"r.example/other":{"username":"u","password":"p"}}}`,
			want: creds("r.example", "a", "b"), byImage: true,
		},
		{name: "a glob in a label", file: `{"auths":{"*.example":{"username":"u","password":"p"}}}`, want: creds("*.example", "u", "p")},
		{name: "a glob is for as many labels as it has", file: `{"auths":{"*":{"username":"u","password":"p"}}}`},
		{name: "a glob that fails to parse", file: `{"auths":{"[.example":{"username":"u","password":"p"}}}`},
		{name: "Docker Hub by docker's name", file: `{"auths":{"https://index.docker.io/v1/":{"username":"u","password":"p"}}}`, image: "docker.io/library/nginx", want: creds("docker.io", "u", "p")},
		{
			name: "Docker Hub by its own name too", file: `{"auths":{"https://index.docker.io/v1/":{"username":"u","password":"p"},"docker.io":{"username":"a","password":"b"}}}`, image: "docker.io/library/nginx",
			want: creds("index.docker.io", "u", "p", "docker.io", "a", "b"),
		},
		{name: "Docker Hub by its old host", file: `{"auths":{"index.docker.io":{"username":"u","password":"p"}}}`, image: "docker.io/library/nginx", want: creds("docker.io", "u", "p")},
		{name: "a helper for the host", file: `{"credHelpers":{"r.example":"one","s.example":"two"}}`, helpers: map[string]string{"one": has("r.example", "u", "p")}, want: creds("r.example", "u", "p")},
		{name: "the store for the rest", file: `{"credHelpers":{"s.example":"two"},"credsStore":"one","auths":{"r.example":{}}}`, helpers: map[string]string{"one": has("r.example", "u", "p")}, want: creds("r.example", "u", "p")},
		{
			name: "a helper for the host comes before the store", file: `{"credHelpers":{"r.example":"one"},"credsStore":"two"}`,
			helpers: map[string]string{"one": has("r.example", "u", "p"), "two": has("r.example", "x", "y")}, want: creds("r.example", "u", "p"),
		},
		{name: "an empty helper means none, store or not", file: `{"credHelpers":{"r.example":""},"credsStore":"two","auths":{"r.example":{"username":"u","password":"p"}}}`, want: creds("r.example", "u", "p")},
		{name: "a helper without credentials is no failure", file: `{"credsStore":"one"}`, helpers: map[string]string{"one": has("s.example", "u", "p")}},
		{name: "entries count where the helper has nothing", file: `{"credsStore":"one","auths":{"r.example":{"username":"a","password":"b"}}}`, helpers: map[string]string{"one": has("s.example", "u", "p")}, want: creds("r.example", "a", "b")},
		{
			name: "a helper's answer comes before an entry for the host", file: `{"credsStore":"one","auths":{"r.example":{"username":"a","password":"b"},"r.example/team":{"username":"c","password":"d"}}}`,
			helpers: map[string]string{"one": has("r.example", "u", "p")}, want: creds("r.example/team", "c", "d", "r.example", "u", "p"), byImage: true,
		},
		{
			name: "a helper knows Docker Hub by docker's name", file: `{"credHelpers":{"https://index.docker.io/v1/":"one"}}`, image: "docker.io/library/nginx",
			helpers: map[string]string{"one": has(dockerHub, "u", "p")}, want: creds("docker.io", "u", "p"),
		},
		{
			name: "Docker Hub's helper by another name", file: `{"credHelpers":{"docker.io":"one"}}`, image: "docker.io/library/nginx",
			helpers: map[string]string{"one": has(dockerHub, "u", "p")}, want: creds("docker.io", "u", "p"),
		},
		{name: "the broker's own helper, which would ask for the same again, counts as none", file: `{"credsStore":"broker","auths":{"r.example":{"username":"u","password":"p"}}}`, helpers: map[string]string{"broker": "exit 3"}, want: creds("r.example", "u", "p")},
		{name: "nor is it one for the host", file: `{"credHelpers":{"r.example":"broker"},"credsStore":"one"}`, helpers: map[string]string{"broker": "exit 3", "one": has("r.example", "x", "y")}},
		{name: "an unusable entry beside a usable one", file: `{"auths":{"r.example":{"auth":"%%"},"r.example/team":{"username":"u","password":"p"}}}`, want: creds("r.example/team", "u", "p"), byImage: true},
		{name: "a broken entry of another host", file: `{"auths":{"r.example":{"username":"u","password":"p"},"s.example":{"auth":"%%"}}}`, want: creds("r.example", "u", "p")},
		{name: "an identity token beside a password", file: `{"auths":{"r.example":{"auth":"` + b64("u:p") + `","identitytoken":"t"}}}`, want: creds("r.example", "u", "p")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("DOCKER_AUTH_CONFIG", `{"auths":{"r.example":{"auth":"`+b64("leaked:leaked")+`"}}}`)
			b := configured(t, tt.file, tt.helpers)
			if tt.image == "" {
				tt.image = image
			}
			got, err := b.Credentials(t.Context(), backends.Request{Image: tt.image})
			if err != nil {
				t.Fatal(err)
			}
			want := backends.Response{Scope: backends.ScopeRegistry, Credentials: tt.want}
			if tt.byImage {
				want.Scope = backends.ScopeImage
			}
			if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b backends.Secret) bool { return a == b })); diff != "" {
				t.Error(diff)
			}
			for i, c := range got.Credentials {
				if i < len(tt.want) && string(c.Password) != string(tt.want[i].Password) {
					t.Errorf("the password of %s is not the expected one", c.Key)
				}
			}
		})
	}
}

func TestFailures(t *testing.T) {
	const canary = "cAnArY-0123456789"
	tests := []struct {
		name    string
		file    string
		helpers map[string]string
		kind    backends.Kind
		says    []string
	}{
		{"no JSON", "{\n  \"auths\": {\"r.example\": {\"auth\": " + canary + "}}\n}", nil, backends.KindMisconfigured, []string{"config.json: line 2, column 35"}},
		{"JSON of another shape", "{\n\"auths\": {\"r.example\": \"" + canary + "\"}}", nil, backends.KindMisconfigured, []string{"config.json: line 2"}},
		{"something behind the JSON", `{} ` + canary, nil, backends.KindMisconfigured, []string{"line 1, column 4"}},
		{"broken base64 names the entry", `{"auths":{"r.example":{"auth":"` + canary + `!"}}}`, nil, backends.KindMisconfigured, []string{`auths["r.example"]`, "base64"}},
		{"auth without a colon", `{"auths":{"r.example":{"auth":"` + b64(canary) + `"}}}`, nil, backends.KindMisconfigured, []string{`auths["r.example"]`, "username:password"}},
		{"auth that is no text", `{"auths":{"r.example":{"auth":"` + b64("\xff"+canary+":"+canary) + `"}}}`, nil, backends.KindMisconfigured, []string{`auths["r.example"]`, "username:password"}},
		{"an identity token", `{"auths":{"r.example":{"auth":"` + b64("u:") + `","identitytoken":"` + canary + `"}}}`, nil, backends.KindMisconfigured, []string{`auths["r.example"]`, "identity token", "log in with"}},
		{"a registry token", `{"auths":{"r.example":{"registrytoken":"` + canary + `"}}}`, nil, backends.KindMisconfigured, []string{"identity token"}},
		{"an identity token from a helper", `{"credsStore":"one"}`, map[string]string{"one": has("r.example", "<token>", canary)}, backends.KindMisconfigured, []string{"docker-credential-one", "identity token"}},
		{"a helper that is not there", `{"credHelpers":{"r.example":"gone"}}`, nil, backends.KindMisconfigured, []string{`credHelpers["r.example"]`, "docker-credential-gone", "PATH"}},
		{"a helper with a path for a name", `{"credsStore":"../../evil"}`, nil, backends.KindMisconfigured, []string{"credsStore", "no name of a helper"}},
		{"a helper that fails", `{"credsStore":"one"}`, map[string]string{"one": `echo "` + canary + `"; echo "locked: ` + canary + `" >&2; exit 4`}, backends.KindUnavailable, []string{"docker-credential-one", "exit status 4", "locked: [redacted]"}},
		{
			"a helper that fails and escapes its secret", `{"credsStore":"one"}`,
			map[string]string{"one": `echo '{"Username":"u","Secret":"cAnArY,<\u00e4 0123456789"}'; echo 'sent cAnArY,<ä 0123456789' >&2; exit 4`},
			backends.KindUnavailable,
			[]string{"exit status 4", "sent [redacted]; to see"},
		},
		{"a helper that prints something else", `{"credsStore":"one"}`, map[string]string{"one": `echo "` + canary + `"`}, backends.KindUnavailable, []string{"docker-credential-one", "no credential"}},
		{"a helper that prints without end", `{"credsStore":"one"}`, map[string]string{"one": `yes ` + canary}, backends.KindUnavailable, []string{"too much"}},
		{"the format before config.json", `{"r.example":{"auth":"` + b64("u:"+canary) + `"}}`, nil, backends.KindMisconfigured, []string{".dockercfg"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := configured(t, tt.file, tt.helpers)
			_, err := b.Credentials(t.Context(), backends.Request{Image: "r.example/team/app"})
			var e *backends.Error
			if !errors.As(err, &e) || e.Kind != tt.kind {
				t.Fatalf("got %#v, want kind %v", err, tt.kind)
			}
			if e.Kind == backends.KindMisconfigured && e.Field != "file" {
				t.Errorf("the field is %q", e.Field)
			}
			for _, want := range tt.says {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "cAnArY") || strings.Contains(err.Error(), b64(canary)[:8]) {
				t.Errorf("a secret is in the error: %v", err)
			}
		})
	}
}

func TestTheFile(t *testing.T) {
	ask := func(b *Backend) error {
		_, err := b.Credentials(t.Context(), backends.Request{Image: "r.example/a"})
		return err
	}
	misconfigured := func(t *testing.T, err error, says string) {
		t.Helper()
		var e *backends.Error
		if !errors.As(err, &e) || e.Kind != backends.KindMisconfigured || e.Field != "file" || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want it to be about the file and say %q", err, says)
		}
	}
	t.Run("is read afresh on each request", func(t *testing.T) {
		b := configured(t, `{}`, nil)
		if err := os.WriteFile(b.cfg.File, []byte(`{"auths":{"r.example":{"username":"u","password":"p"}}}`), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := b.Credentials(t.Context(), backends.Request{Image: "r.example/a"}); err != nil || len(got.Credentials) != 1 {
			t.Errorf("got %v, %v", got, err)
		}
		if err := os.Remove(b.cfg.File); err != nil {
			t.Fatal(err)
		}
		misconfigured(t, ask(b), "log in")
	})
	t.Run("may not be writable by others", func(t *testing.T) {
		b := configured(t, `{}`, nil)
		if err := os.Chmod(b.cfg.File, 0o646); err != nil {
			t.Fatal(err)
		}
		misconfigured(t, ask(b), "chmod o-w")
	})
	t.Run("is no directory", func(t *testing.T) {
		b := configured(t, `{}`, nil)
		b.cfg.File = filepath.Dir(b.cfg.File)
		misconfigured(t, ask(b), "regular")
	})
	t.Run("is not endless", func(t *testing.T) {
		b := configured(t, `{}`, nil)
		if err := os.WriteFile(b.cfg.File, make([]byte, maxFile+1), 0o600); err != nil {
			t.Fatal(err)
		}
		misconfigured(t, ask(b), "bytes")
	})
	t.Run("is named by an absolute path", func(t *testing.T) {
		for _, file := range []string{"", "config.json"} {
			_, err := New(t.Context(), Config{File: file})
			misconfigured(t, err, "absolute path")
		}
	})
}

func TestAHelperThatHangsIsKilledInTime(t *testing.T) {
	b := configured(t, `{"credsStore":"one"}`, map[string]string{"one": `while :; do sleep 60; done`})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := b.Credentials(ctx, backends.Request{Image: "r.example/a"})
	var e *backends.Error
	if !errors.As(err, &e) || e.Kind != backends.KindUnavailable || !strings.Contains(err.Error(), "did not answer in time") {
		t.Errorf("got %v", err)
	}
}

func TestCheck(t *testing.T) {
	b := configured(t, `{"credsStore":"one","credHelpers":{"a.example":"two","b.example":""},"auths":{"c.example":{"auth":"%"},"d.example":{"auth":"`+b64("u:p")+`"}}}`,
		map[string]string{"one": "exit 1"})
	err := b.Check(t.Context(), backends.Request{})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{`credHelpers["a.example"]`, `auths["c.example"]`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	for _, not := range []string{"credsStore", "b.example", "d.example"} {
		if strings.Contains(err.Error(), not) {
			t.Errorf("%q speaks of %q", err, not)
		}
	}
	if err := configured(t, `{"auths":{}}`, nil).Check(t.Context(), backends.Request{}); err != nil {
		t.Error(err)
	}
}
