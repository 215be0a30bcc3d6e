package vault

import (
	"errors"
	"net/url"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/webidentity"
)

// hostile are names and annotations by which somebody may try to read another path than the pattern's; Vault itself takes %2f for a slash, and cleans paths.
var hostile = []string{
	"", ".", "..", "...", "/", "//", "a/b", "/a", "a/", "../a", "a/..", "a/../../b", "..%2fb", "%2e%2e", "%2F", "%2f..%2f", "a%2fb", "%252f", "a%00", "%", "a%b",
	"a\x00b", "a\nb", "\r\n", "a\tb", "\x7f", "a b", " a", "a ", `a\b`, `..\..`, "a?list=true", "a?version=1", "a#b", "*", "a*", "+", "a+b", "{host}", "{annotation:x}", "a;b", "a&b", "a|b", "$a", "`a`", "<a>", `"a"`, "'a'",
	"\u202e", "\uff0e\uff0e", "\u2024\u2024", "\uff0f", "\u2215", "\u2044", "a\u200bb", "é", "\xff", "\xc0\xae\xc0\xae", "\xc0\xaf", strings.Repeat("a", 513),
}

// harmless are such as there are.
var harmless = []string{"team-a", "a", "A_b.c", "example.com:8443", "a..b", ".a", "a.", "-", "a@b", "a=c,d~e", "[fd00::1]:5000", strings.Repeat("a", 512)}

// TestNoValueLeavesItsSegment: the attack table. Each value in each place is refused by its variable's name, or gives a path that differs from the pattern in that segment alone.
func TestNoValueLeavesItsSegment(t *testing.T) {
	pattern := parsed(t, "secret/a/{namespace}/{serviceAccount}/{annotation:example.com/team}/{host}/end")
	for _, name := range []string{"namespace", "serviceAccount", "annotation", "host"} {
		render := func(value string) (string, error) {
			return pattern.render(func(p part) (string, error) {
				if p.variable == name {
					return value, nil
				}
				return "x", nil
			})
		}
		for _, value := range hostile {
			got, err := render(value)
			if err == nil {
				t.Errorf("%s %q is taken: %q", name, value, got)
			} else if !strings.HasPrefix(err.Error(), "{"+name) {
				t.Errorf("%s %q: the error does not name it: %v", name, value, err)
			}
		}
		for _, value := range harmless {
			if got, err := render(value); err != nil || len(strings.Split(got, "/")) != 7 || !slices.Contains(strings.Split(got, "/"), value) {
				t.Errorf("%s %q: %q, %v", name, value, got, err)
			}
		}
	}
}

// TestARepositoryHasItsSegments, each checked by itself.
func TestARepositoryHasItsSegments(t *testing.T) {
	pattern := parsed(t, "secret/{repository}")
	render := func(value string) (string, error) {
		return pattern.render(func(part) (string, error) { return value, nil })
	}
	if got, err := render("team/a/app"); err != nil || got != "secret/team/a/app" {
		t.Errorf("%q, %v", got, err)
	}
	for _, value := range []string{"", "a//b", "/a", "a/", "a/../b", "../b", "a/./b", "a/..", "a/%2e%2e/b", "a/b%2fc", "a/b?c", "a/\x00"} {
		if got, err := render(value); err == nil || !strings.HasPrefix(err.Error(), "{repository}") {
			t.Errorf("%q: %q, %v", value, got, err)
		}
	}
}

// TestPartsOfASegment: a literal and a value are no way out together either.
func TestPartsOfASegment(t *testing.T) {
	for pattern, value := range map[string]string{"secret/.{namespace}": ".", "secret/{namespace}.": ".", "secret/x{namespace}": "/../y"} {
		if got, err := parsed(t, pattern).render(func(part) (string, error) { return value, nil }); err == nil {
			t.Errorf("%s with %q: %q", pattern, value, got)
		}
	}
	if got, err := parsed(t, "secret/robot-{namespace}-pull").render(func(part) (string, error) { return "team", nil }); err != nil || got != "secret/robot-team-pull" {
		t.Errorf("%q, %v", got, err)
	}
}

// FuzzTemplate: whatever the values are, the path as Vault would see it, decoded and cleaned as often as one likes, keeps the pattern's segments.
func FuzzTemplate(f *testing.F) {
	for _, value := range slices.Concat(hostile, harmless) {
		f.Add(value, "x", "team/app")
		f.Add("x", value, "team/app")
		f.Add("x", "y", value)
	}
	pattern := "secret/registries/{namespace}/in-{annotation:team}-pull/{repository}/end"
	f.Fuzz(func(t *testing.T, namespace, annotation, repository string) {
		got, err := parsed(t, pattern).render(func(p part) (string, error) {
			return map[string]string{"namespace": namespace, "annotation": annotation, "repository": repository}[p.variable], nil
		})
		if err != nil {
			return
		}
		seen := got
		for range 3 {
			decoded, err := url.PathUnescape(seen)
			if err != nil {
				t.Fatalf("%q cannot be decoded", seen)
			}
			if seen = path.Clean(decoded); seen != got {
				t.Fatalf("%q is %q to somebody", got, seen)
			}
		}
		segments, inner := strings.Split(got, "/"), strings.Count(repository, "/")
		if len(segments) != 6+inner || segments[0] != "secret" || segments[1] != "registries" || segments[2] != namespace || segments[3] != "in-"+annotation+"-pull" || segments[5+inner] != "end" {
			t.Fatalf("%q is not of the pattern", got)
		}
		if strings.ContainsAny(got, "?#%\\*+") {
			t.Fatalf("%q has more than a path", got)
		}
	})
}

func parsed(t testing.TB, text string) template {
	t.Helper()
	p, err := parseTemplate(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestParseTemplate(t *testing.T) {
	for text, want := range map[string]string{
		"secret/{hosts}": "there is no variable {hosts}", "secret/{}": "there is no variable {}", "secret/{host": "a { without its }", "secret/host}": "a } without its {", "secret/{annotation}": "an annotation has a key",
		"secret/{annotation:}": "an annotation has a key", "secret/{host:x}": "no other variable has", "secret/{{host}}": "there is no variable",
	} {
		if _, err := parseTemplate(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

func TestPathsOfSettings(t *testing.T) {
	for _, text := range []string{"secret/a", "secret/{host}", "kv/team a/x", "gitlab/token/puller", "secret/{host}/{repository}", "secret/x-{namespace}.y"} {
		if problem := parsed(t, text).pathProblem(); problem != "" {
			t.Errorf("%s: %s", text, problem)
		}
	}
	for text, want := range map[string]string{
		"secret": "first segment", "{host}/a": "first segment", "x{host}/a": "first segment", "/secret/a": "segments with one slash", "secret/a/": "segments with one slash", "secret//a": "segments with one slash",
		"secret/../a": "none of them", "secret/./a": "none of them", "secret/a%2fb": "without %", "secret/a?b": "without %", "secret/*": "without %", "secret/ a": "segments", "secret/a\n": "segments", "sys/raw/a": "no secret", "auth/token/x": "no secret",
	} {
		if problem := parsed(t, text).pathProblem(); !strings.Contains(problem, want) {
			t.Errorf("%s: %q, want %s", text, problem, want)
		}
	}
}

// TestHostileRequests: the same through a whole request, to a real Vault that would answer: nothing is asked for but what the pattern names.
func TestHostileRequests(t *testing.T) {
	r := use(t)
	mount := r.name("secret")
	r.KV2(mount)
	r.Put(mount, "team-a/color/red", map[string]any{"username": "a", "password": "pw-a"})
	r.Put(mount, "team-b/color/red", map[string]any{"username": "b", "password": "pw-b"})
	r.Put(mount, "red", map[string]any{"username": "c", "password": "pw-c"})
	issuer := cluster(t)
	r.JWT(r.name("jwt"), issuer)
	r.JWTRole(r.name("jwt"), "puller", map[string]any{"token_policies": []string{r.reads(mount + "/*")}}) // may read all, so that only the template is in the way
	b := r.backend(Config{Auth: Auth{Method: MethodJWT, Mount: r.name("jwt"), Role: "puller"}, Secrets: []Secret{{Path: mount + "/{namespace}/color/{annotation:color}"}}})
	token := podToken(issuer, "team-a", "builder")
	is(t, pull(t, b, backends.Request{Image: image, Token: token, Annotations: map[string]string{"color": "red"}}), host, "a", "pw-a")
	for _, value := range hostile {
		_, err := b.Credentials(t.Context(), backends.Request{Image: image, Token: token, Annotations: map[string]string{"color": value}})
		fails(t, err, refused, "secrets[0].path: {annotation:color}")
	}
	for _, q := range r.front.Requests() {
		if strings.HasPrefix(q.Path, mount+"/") && q.Path != mount+"/data/team-a/color/red" {
			t.Errorf("asked for %s", q.Path)
		}
	}
}

// TestAnnotationsChooseNoMount: nor does any other variable.
func TestAnnotationsChooseNoMount(t *testing.T) {
	r := use(t)
	for _, team := range []string{"a", "b"} {
		r.KV1(r.name("kv") + "/" + team)
		r.Put(r.name("kv")+"/"+team, "x/y", map[string]any{"username": team, "password": "pw-" + team})
	}
	issuer := cluster(t)
	r.JWT(r.name("jwt"), issuer)
	r.JWTRole(r.name("jwt"), "puller", map[string]any{"token_policies": []string{r.reads(r.name("kv") + "/*")}})
	auth := Auth{Method: MethodJWT, Mount: r.name("jwt"), Role: "puller"}
	req := backends.Request{Image: image, Token: podToken(issuer, "b", "builder"), Annotations: map[string]string{"team": "b"}}
	for _, variable := range []string{"{annotation:team}", "{namespace}"} {
		_, err := r.backend(Config{Auth: auth, Secrets: []Secret{{Path: r.name("kv") + "/" + variable + "/x/y"}}}).Credentials(t.Context(), req)
		fails(t, err, refused, "secrets[0].path: the engine is mounted at "+r.name("kv")+"/b, which the path has to begin with as it is")
	}
	for _, q := range r.front.Requests() {
		if strings.HasSuffix(q.Path, "/b/x/y") && !strings.HasPrefix(q.Path, "sys/") {
			t.Errorf("asked for %s", q.Path)
		}
	}
	is(t, pull(t, r.backend(Config{Auth: auth, Secrets: []Secret{{Path: r.name("kv") + "/b/x/y"}}}), req), host, "b", "pw-b")
}

// TestAnnotationsAreOfPodsThatLogIn: the node's login reads nothing that an annotation names.
func TestAnnotationsAreOfPodsThatLogIn(t *testing.T) {
	b := &Backend{cfg: Config{Auth: Auth{Method: MethodJWT}}}
	_, err := b.value(backends.Request{Annotations: map[string]string{"team": "a"}}, who{claims: webidentity.Claims{Namespace: "n"}})(part{variable: "annotation", key: "team"})
	if err == nil || !strings.Contains(err.Error(), "for logins by the pod's own token") {
		t.Error(err)
	}
	if e, ok := errors.AsType[*backends.Error](err); ok {
		t.Errorf("%v", e)
	}
}
