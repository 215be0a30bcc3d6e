package config

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestAWholeConfigurationIsRead(t *testing.T) {
	const text = head + `
backendDir: /usr/libexec/credential-broker/backends
timeout: 50s
maxCacheDuration: 10m
overlapPolicy: Fallback
log: {level: debug, format: json, file: /var/log/broker.log}
agent:
  socket: /run/credential-broker/agent.sock
  autoStart: true
  idleTimeout: 5m
  metrics: unix:/run/credential-broker/metrics.sock
providers:
- name: ecr
  matchImages: ["*.dkr.ecr.*.amazonaws.com"]
  defaultCacheDuration: 6h
- name: team's-own
  backend: /opt/backends/mine
  matchImages: [registry.example.com/team, "registry.example.com:5000"]
  defaultCacheDuration: 0s
  timeout: 20s
  env:
  - {name: AWS_REGION, value: eu-west-1}
  - name: EMPTY
  inheritEnv: ["AWS_*", HTTP]
  sha256: ["sha256:ABCDEF0123456789abcdef0123456789abcdef0123456789abcdef0123456789"]
  user: 1000
  tokenAttributes:
    serviceAccountTokenAudience: sts.example
    cacheType: ServiceAccount
    requireServiceAccount: true
    requiredServiceAccountAnnotationKeys: [Example.com/Role]
    optionalServiceAccountAnnotationKeys: [other]
  mirrors:
  - {source: docker.io, endpoint: "mirror.example.com:5000/dockerhub"}
  config:
    auth: {role: r}
`
	got, err := load(t, text)
	if err != nil {
		t.Fatal(err)
	}
	bound, zero, sixHours := 10*time.Minute, time.Duration(0), 6*time.Hour
	want := &Config{
		Sources:          []string{"a.yaml"},
		BackendDir:       "/usr/libexec/credential-broker/backends",
		Timeout:          50 * time.Second,
		MaxCacheDuration: &bound,
		OverlapPolicy:    Fallback,
		Log:              Log{Level: "debug", Format: "json", File: "/var/log/broker.log"},
		Agent: Agent{
			Socket: "/run/credential-broker/agent.sock", AutoStart: true, IdleTimeout: 5 * time.Minute, Metrics: "unix:/run/credential-broker/metrics.sock",
		},
		Providers: []*Provider{
			{
				Name: "ecr", Backend: "ecr", MatchImages: []string{"*.dkr.ecr.*.amazonaws.com"}, DefaultCacheDuration: &sixHours,
				Timeout: 15 * time.Second, Config: json.RawMessage("{}"), At: "a.yaml:15",
			},
			{
				Name: "team's-own", Backend: "/opt/backends/mine", MatchImages: []string{"registry.example.com/team", "registry.example.com:5000"},
				DefaultCacheDuration: &zero, Timeout: 20 * time.Second,
				Env:        []EnvVar{{"AWS_REGION", "eu-west-1"}, {"EMPTY", ""}},
				InheritEnv: []string{"AWS_*", "HTTP"},
				SHA256:     []string{"abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789"},
				User:       "1000",
				TokenAttributes: &TokenAttributes{
					ServiceAccountTokenAudience: "sts.example", CacheType: CacheTypeServiceAccount, RequireServiceAccount: true,
					RequiredServiceAccountAnnotationKeys: []string{"Example.com/Role"}, OptionalServiceAccountAnnotationKeys: []string{"other"},
				},
				Mirrors: []Mirror{{"docker.io", "mirror.example.com:5000/dockerhub"}},
				Config:  json.RawMessage(`{"auth":{"role":"r"}}`), At: "a.yaml:18",
			},
		},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Config{}), cmpopts.IgnoreFields(Config{}, "Warnings")); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestTheContractsOwnExampleIsRead(t *testing.T) {
	const text = `apiVersion: credential-broker.io/v1alpha1
kind: BrokerConfig
backendDir: /usr/libexec/credential-broker/backends
timeout: 45s             # whole request
maxCacheDuration: ""
overlapPolicy: First     # First (default) | Fallback
log:
  level: info
  format: text
  file: ""
agent:
  socket: ""
  autoStart: false
  idleTimeout: 15m
  metrics: ""
providers:
- name: ecr
  backend: ecr
  matchImages: ["*.dkr.ecr.*.amazonaws.com"]
  defaultCacheDuration: 6h
  timeout: 15s
  env:
  - {name: AWS_REGION, value: eu-west-1}
  inheritEnv: ["AWS_*"]
  sha256: []
  user: ""
  tokenAttributes:
    serviceAccountTokenAudience: sts.example
    cacheType: Token
    requireServiceAccount: false
    requiredServiceAccountAnnotationKeys: []
    optionalServiceAccountAnnotationKeys: []
  mirrors:
  - {source: docker.io, endpoint: mirror.example.com/dockerhub}
  config: {}
`
	c, err := load(t, text)
	if err != nil {
		t.Fatal(err)
	}
	if c.MaxCacheDuration != nil {
		t.Errorf("an empty maxCacheDuration bounds by %v", *c.MaxCacheDuration)
	}
	want := Problems{{File: "a.yaml", Line: 34, Column: 5, Path: "providers[0].mirrors[0]", Message: "a container runtime that falls back from " +
		"mirror.example.com/dockerhub to docker.io may offer these credentials to docker.io; make sure that it does not, or that they may be seen there"}}
	if diff := cmp.Diff(want, c.Warnings); diff != "" {
		t.Errorf("warnings, -want +got:\n%s", diff)
	}
}

func TestDefaultsFillInWhatIsNotSet(t *testing.T) {
	c, err := load(t, head+"providers: [{name: a, matchImages: [x.io]}]\n")
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Sources: []string{"a.yaml"}, Timeout: 45 * time.Second, OverlapPolicy: First, Log: Log{Level: "info", Format: "text"}, Agent: Agent{IdleTimeout: 15 * time.Minute},
		Providers: []*Provider{{Name: "a", Backend: "a", MatchImages: []string{"x.io"}, Timeout: 15 * time.Second, Config: json.RawMessage("{}"), At: "a.yaml:3"}},
	}
	if diff := cmp.Diff(want, c, cmpopts.IgnoreUnexported(Config{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestAnAgentBoundsTheCacheUnlessSomebodySaidOtherwise(t *testing.T) {
	const provider = "providers: [{name: a, matchImages: [x.io]}]\n"
	for name, tt := range map[string]struct {
		text string
		want string
	}{
		"no agent, nothing said":       {"", "none"},
		"an agent, nothing said":       {"agent: {socket: /run/a.sock}\n", "1m0s"},
		"an agent, explicitly none":    {"agent: {socket: /run/a.sock}\nmaxCacheDuration: \"\"\n", "none"},
		"an agent, a bound":            {"agent: {socket: /run/a.sock}\nmaxCacheDuration: 5m\n", "5m0s"},
		"no agent, never to be cached": {"maxCacheDuration: 0s\n", "0s"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := load(t, head+tt.text+provider)
			if err != nil {
				t.Fatal(err)
			}
			got := "none"
			if c.MaxCacheDuration != nil {
				got = c.MaxCacheDuration.String()
			}
			if got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestBackendSettingsBecomeJSONWithoutLoss(t *testing.T) {
	tests := []struct{ name, yaml, json string }{
		{"nothing", "{}", `{}`},
		{"strings", `{a: x, b: 'it''s', c: "tab\t", d: ""}`, `{"a":"x","b":"it's","c":"tab\t","d":""}`},
		{"integers stay as they are", `{a: 1, b: -1, c: 0, d: 123456789012345678901234567890}`, `{"a":1,"b":-1,"c":0,"d":123456789012345678901234567890}`},
		{"fractions stay as they are", `{a: 1.10, b: 1e400, c: 0.1, d: 1E-3}`, `{"a":1.10,"b":1e400,"c":0.1,"d":1E-3}`},
		{"numbers that JSON writes otherwise", `{a: 0x1F, b: 0o17, c: +5, d: .5, e: 0b11}`, `{"a":31,"b":15,"c":5,"d":0.5,"e":3}`},
		{"words that old YAML takes for booleans", `{a: yes, on: off, b: n, c: true}`, `{"a":"yes","on":"off","b":"n","c":true}`},
		{
			"dates, times and versions are strings", `{a: 2026-01-02, b: 12:30:00, c: 1.2.3, d: 2026-01-02T03:04:05Z}`,
			`{"a":"2026-01-02","b":"12:30:00","c":"1.2.3","d":"2026-01-02T03:04:05Z"}`,
		},
		{"nothing is null", `{a: null, b: ~, c: , d: "null"}`, `{"a":null,"b":null,"c":null,"d":"null"}`},
		{"numbers in quotes are strings", `{a: "1", b: '0777', c: "true"}`, `{"a":"1","b":"0777","c":"true"}`},
		{"nested", `{a: [1, [2, {b: [ ]}]], c: {d: {e: f}}}`, `{"a":[1,[2,{"b":[]}]],"c":{"d":{"e":"f"}}}`},
		{"keys of any letters", `{"a b": 1, é: 2, "": 3, "1": 4, a.b: 5}`, `{"a b":1,"é":2,"":3,"1":4,"a.b":5}`},
		{"a text of several lines", "\n    a: |\n      one\n      two\n    b: >-\n      one\n      two", `{"a":"one\ntwo\n","b":"one two"}`},
		{"a value with an alias", `{a: &x {b: 1}, c: *x}`, `{"a":{"b":1},"c":{"b":1}}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := load(t, head+"providers:\n- name: a\n  matchImages: [x.io]\n  config: "+tt.yaml+"\n")
			if err != nil {
				t.Fatal(err)
			}
			got := string(c.Providers[0].Config)
			if got != tt.json {
				t.Errorf("got  %s\nwant %s", got, tt.json)
			}
			if !json.Valid([]byte(got)) {
				t.Errorf("%s is not JSON", got)
			}
		})
	}
}

func TestJSONFilesAreRead(t *testing.T) {
	const text = "{\n\t\"apiVersion\": \"credential-broker.io/v1alpha1\",\n\t\"kind\": \"BrokerConfig\",\n\t\"providers\": [\n\t\t{\n\t\t\t\"name\": \"a\",\n" +
		"\t\t\t\"matchImages\": [\"x.io\\/team\"],\n\t\t\t\"config\": {\"a\": \"\\ud83d\\ude00\\\\/\\\\ud83d\", \"b\": [1, 2.50, null, true]}\n\t\t}\n\t]\n}\n"
	for name, text := range map[string]string{
		"with tabs":            text,
		"on Windows":           strings.ReplaceAll(text, "\n", "\r\n"),
		"with byte order mark": "\ufeff" + text,
		"on one line":          strings.NewReplacer("\n", "", "\t", "").Replace(text),
	} {
		t.Run(name, func(t *testing.T) {
			c, err := load(t, text)
			if err != nil {
				t.Fatal(err)
			}
			p := c.Providers[0]
			if p.Name != "a" || p.MatchImages[0] != "x.io/team" || string(p.Config) != `{"a":"😀\\/\\ud83d","b":[1,2.50,null,true]}` {
				t.Errorf("got %+v with %s", p, p.Config)
			}
		})
	}
}

func TestAliasesStandForWholeValues(t *testing.T) {
	c, err := load(t, head+`providers:
- name: a
  matchImages: &images [x.io, y.io]
  env: &env
  - {name: A, value: b}
- name: b
  matchImages: *images
  env: *env
`)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"x.io", "y.io"}, c.Providers[1].MatchImages); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]EnvVar{{"A", "b"}}, c.Providers[1].Env); diff != "" {
		t.Error(diff)
	}
}

func TestADirectorysFilesAreJoinedInLexicalOrder(t *testing.T) {
	dir := t.TempDir()
	provider := func(name string) string { return head + "providers: [{name: " + name + ", matchImages: [x.io]}]\n" }
	write(t, dir, "20.json", provider("c"))
	write(t, dir, "10.yaml", provider("b")+"timeout: 30s\n")
	write(t, dir, "30.yml", provider("d"))
	write(t, dir, "README", "no configuration")
	write(t, dir, "sub.yaml/x.yaml", "not read")
	file := write(t, t.TempDir(), "main.conf", provider("a")+"overlapPolicy: Fallback\n")
	c, err := Load(file, dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range c.Providers {
		names = append(names, p.Name)
	}
	if got := strings.Join(names, ""); got != "abcd" {
		t.Errorf("order %s", got)
	}
	if c.Timeout != 30*time.Second || c.OverlapPolicy != Fallback {
		t.Errorf("settings of several files were not joined: %+v", c)
	}
	want := []string{file, filepath.Join(dir, "10.yaml"), filepath.Join(dir, "20.json"), filepath.Join(dir, "30.yml")}
	if diff := cmp.Diff(want, c.Sources); diff != "" {
		t.Errorf("sources, -want +got:\n%s", diff)
	}
	if want := file + ":3"; c.Providers[0].At != want {
		t.Errorf("At = %s, want %s", c.Providers[0].At, want)
	}
}

func TestAnEmptyDirectoryBesideAFileIsNoProblem(t *testing.T) {
	file := write(t, t.TempDir(), "config.yaml", head+"providers: [{name: a, matchImages: [x.io]}]\n")
	if _, err := Load(file, t.TempDir()); err != nil {
		t.Error(err)
	}
}

func TestFilesThatCannotBeReadAreProblems(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(dir, "broken")
	write(t, broken, "b.yaml", "a: [\n")
	if err := os.Symlink("nowhere", filepath.Join(broken, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(empty, filepath.Join(broken, "c.yaml")); err != nil {
		t.Fatal(err)
	}
	huge := write(t, dir, "huge.yaml", head+strings.Repeat("#\n", maxFileSize))
	missing := filepath.Join(dir, "missing.yaml")
	tests := []struct {
		name, path string
		want       string
	}{
		{"a missing file", missing, missing + ": no such file or directory; create it, or name another configuration with --config or CREDENTIAL_BROKER_CONFIG"},
		{"an empty directory", empty, empty + ": no *.json, *.yaml or *.yml file is here; create one, such as config.yaml"},
		{"a dangling link, a broken file and a link to a directory", broken, broken + "/a.yaml: no such file or directory\n" +
			broken + "/b.yaml:1: not YAML: did not find expected node content; look at this line and the next ones\n" +
			broken + "/c.yaml: not a regular file; write the configuration to one"},
		{"a device", os.DevNull, os.DevNull + ": not a regular file; write the configuration to one"},
		{"a huge file", huge, huge + ":1: the file is larger than 1048576 bytes; a directory can hold the providers in several files"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Load(tt.path)
			if err == nil || err.Error() != tt.want {
				t.Errorf("got\n%v\nwant\n%s", err, tt.want)
			}
			if c != nil {
				t.Error("a configuration came with the error")
			}
			var problems Problems
			var problem Problem
			if !errors.As(err, &problems) || !errors.As(err, &problem) || problem != problems[0] {
				t.Errorf("%T is not Problems", err)
			}
		})
	}
}

func TestFindLooksAtFlagThenEnvironmentThenThePlaces(t *testing.T) {
	dir := t.TempDir()
	file := write(t, dir, "config.yaml", "")
	both := Places{File: file, Directory: dir}
	none := Places{File: filepath.Join(dir, "no.yaml"), Directory: filepath.Join(dir, "no.d")}
	tests := []struct {
		name        string
		places      Places
		flag, env   string
		want        []string
		wantDefault bool
	}{
		{"the flag wins", both, "/flag", "/env", []string{"/flag"}, false},
		{"then the environment", both, "", "/env", []string{"/env"}, false},
		{"then both places", both, "", "", []string{file, dir}, true},
		{"or the file alone", Places{file, none.Directory}, "", "", []string{file}, true},
		{"or the directory alone", Places{none.File, dir}, "", "", []string{dir}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, isDefault, err := tt.places.Find(tt.flag, func(name string) string {
				if name != "CREDENTIAL_BROKER_CONFIG" {
					t.Errorf("asks for %s", name)
				}
				return tt.env
			})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" || isDefault != tt.wantDefault {
				t.Errorf("default %v, -want +got:\n%s", isDefault, diff)
			}
		})
	}
	_, isDefault, err := none.Find("", func(string) string { return "" })
	want := "no configuration: neither " + none.File + " nor " + none.Directory + " exists; create one of them, or name another with --config or CREDENTIAL_BROKER_CONFIG"
	if err == nil || err.Error() != want || !isDefault {
		t.Errorf("got %v, default %v\nwant %s", err, isDefault, want)
	}
	if p := DefaultPlaces(); p.File != "/etc/credential-broker/config.yaml" || p.Directory != "/etc/credential-broker/config.d" {
		t.Errorf("default places %v", p)
	}
}

const audiences = head + `providers:
- name: node
  matchImages: ["*.registry.io", "registry.io:5000"]
- name: pod
  matchImages: [b.io, eu.registry.io/team]
  tokenAttributes: {serviceAccountTokenAudience: one}
- name: other
  matchImages:
  - eu*.registry.*
  tokenAttributes: {serviceAccountTokenAudience: two}
- name: same
  matchImages: [b.io]
  tokenAttributes: {serviceAccountTokenAudience: one}
`

func TestForAudienceChoosesTheProvidersOfAnEntry(t *testing.T) {
	c, err := load(t, audiences)
	if err != nil {
		t.Fatal(err)
	}
	s := func(v string) *string { return &v }
	for _, tt := range []struct {
		audience *string
		want     string
	}{{nil, "node pod other same"}, {s(""), "node"}, {s("one"), "pod same"}, {s("two"), "other"}, {s("three"), ""}} {
		var names []string
		for _, p := range c.ForAudience(tt.audience) {
			names = append(names, p.Name)
		}
		if got := strings.Join(names, " "); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

func TestOverlapsNamesPatternsOfDifferentEntries(t *testing.T) {
	c, err := load(t, audiences)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Join([]string{
		`a.yaml:7:23: providers[1].matchImages[1]: "eu.registry.io/team" overlaps "*.registry.io" of provider "node" (a.yaml:5), whose kubelet entry is another (without token, not audience "one"); the kubelet asks both and overlapPolicy does not hold between them`,
		`a.yaml:11:5: providers[2].matchImages[0]: "eu*.registry.*" overlaps "*.registry.io" of provider "node" (a.yaml:5), whose kubelet entry is another (without token, not audience "two"); the kubelet asks both and overlapPolicy does not hold between them`,
		`a.yaml:11:5: providers[2].matchImages[0]: "eu*.registry.*" overlaps "eu.registry.io/team" of provider "pod" (a.yaml:7), whose kubelet entry is another (audience "one", not audience "two"); the kubelet asks both and overlapPolicy does not hold between them`,
	}, "\n")
	if got := Problems(c.Overlaps()).Error(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestOverlapsCountTheSourcesOfMirrors(t *testing.T) {
	c, err := load(t, head+`providers:
- name: mirrored
  matchImages: [mirror.example]
  mirrors:
  - {source: ghcr.io/team, endpoint: mirror.example/ghcr}
- name: pod
  matchImages: [ghcr.io]
  tokenAttributes: {serviceAccountTokenAudience: one}
`)
	if err != nil {
		t.Fatal(err)
	}
	found := c.Overlaps()
	if len(found) != 1 || found[0].Line != 9 || !strings.Contains(found[0].Message, `"ghcr.io" overlaps "ghcr.io/team" of provider "mirrored" (a.yaml:7)`) {
		t.Errorf("got %v", found)
	}
}

func TestPositionIsThatOfTheFieldOrTheNearestAroundIt(t *testing.T) {
	c, err := load(t, head+`providers:
- name: a
  matchImages:
  - x.io
  - y.io
  config:
    auth:
      role: r
    list:
    - one
    - key: v
    dotted: {other: 1}
    dotted.key:
      sub: 1
- {name: b, matchImages: [x.io]}
`)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ provider, field, want string }{
		{"a", "", "a.yaml:4"},
		{"a", "name", "a.yaml:4"},
		{"a", "matchImages", "a.yaml:5"},
		{"a", "matchImages[1]", "a.yaml:7"},
		{"a", "matchImages[9]", "a.yaml:5"},
		{"a", "config.auth.role", "a.yaml:10"},
		{"a", "config.auth.roleARN", "a.yaml:9"},
		{"a", "config.auth.role.deeper", "a.yaml:10"},
		{"a", "config.url", "a.yaml:8"},
		{"a", "config.list[1].key", "a.yaml:13"},
		{"a", "config.list[x].key", "a.yaml:11"},
		{"a", "config.dotted.key.sub", "a.yaml:16"},
		{"a", "config.dotted.other", "a.yaml:14"},
		{"a", "timeout", "a.yaml:4"},
		{"a", "[[..]", "a.yaml:4"},
		{"b", "config.url", "a.yaml:17"},
		{"c", "name", ""},
	} {
		if got := c.Position(tt.provider, tt.field); got != tt.want {
			t.Errorf("Position(%q, %q) = %q, want %q", tt.provider, tt.field, got, tt.want)
		}
	}
	byHand := &Config{Providers: []*Provider{{Name: "a", At: "here:7"}}}
	if got := byHand.Position("a", "config.x"); got != "here:7" {
		t.Errorf("a configuration that was not loaded gives %q", got)
	}
}
