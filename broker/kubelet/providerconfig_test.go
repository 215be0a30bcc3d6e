package kubelet

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"k8s.io/apimachinery/pkg/api/validate/content"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	configv1 "k8s.io/kubelet/config/v1"

	"github.com/credential-broker/credential-broker/broker/config"
)

// theirConfigs decodes a CredentialProviderConfig (v1) as strictly as the kubelet, with its own types.
var theirConfigs = func() runtime.Decoder {
	scheme := runtime.NewScheme()
	if err := configv1.AddToScheme(scheme); err != nil {
		panic(err)
	}
	return serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
}()

func theirConfig(data []byte) (*configv1.CredentialProviderConfig, error) {
	object, _, err := theirConfigs.Decode(data, nil, nil)
	if err != nil {
		return nil, err
	}
	config, ok := object.(*configv1.CredentialProviderConfig)
	if !ok {
		return nil, fmt.Errorf("%T", object)
	}
	return config, nil
}

// asTheirs is our configuration in the kubelet's types.
func asTheirs(c *CredentialProviderConfig) *configv1.CredentialProviderConfig {
	theirs := &configv1.CredentialProviderConfig{TypeMeta: metav1.TypeMeta{APIVersion: ConfigV1, Kind: ConfigKind}}
	for _, p := range c.Providers {
		their := configv1.CredentialProvider{Name: p.Name, APIVersion: p.APIVersion, MatchImages: p.MatchImages, Args: p.Args}
		if p.DefaultCacheDuration != nil {
			their.DefaultCacheDuration = &metav1.Duration{Duration: *p.DefaultCacheDuration}
		}
		for _, e := range p.Env {
			their.Env = append(their.Env, configv1.ExecEnvVar{Name: e.Name, Value: e.Value})
		}
		if t := p.TokenAttributes; t != nil {
			their.TokenAttributes = &configv1.ServiceAccountTokenAttributes{
				ServiceAccountTokenAudience: t.ServiceAccountTokenAudience, CacheType: configv1.ServiceAccountTokenCacheType(t.CacheType),
				RequireServiceAccount: t.RequireServiceAccount, RequiredServiceAccountAnnotationKeys: t.RequiredServiceAccountAnnotationKeys,
				OptionalServiceAccountAnnotationKeys: t.OptionalServiceAccountAnnotationKeys,
			}
		}
		theirs.Providers = append(theirs.Providers, their)
	}
	return theirs
}

// agree fails the test unless the kubelet's decoder finds in data what c says.
func agree(t testing.TB, data []byte, c *CredentialProviderConfig) {
	t.Helper()
	their, err := theirConfig(data)
	if err != nil {
		t.Fatalf("the kubelet's decoder says %v of\n%s", err, data)
	}
	if diff := cmp.Diff(their, asTheirs(c), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("the kubelet reads otherwise:\n%s\n%s", diff, data)
	}
}

const fullConfig = `# what a cloud's image ships
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- name: ecr-credential-provider
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  matchImages:
  - "*.dkr.ecr.*.amazonaws.com"
  - public.ecr.aws   # the public one
  defaultCacheDuration: 12h
  args: [get-credentials, --region=eu-west-1, "--empty="]
  env:
  - {name: AWS_PROFILE, value: "1"}
  - name: TEXT
    value: |
      two
      lines
- name: acr-credential-provider
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  matchImages: ['*.azurecr.io:5000/team']
  defaultCacheDuration: "0s"
  tokenAttributes:
    serviceAccountTokenAudience: api://AzureADTokenExchange
    cacheType: ServiceAccount
    requireServiceAccount: yes
    requiredServiceAccountAnnotationKeys:
    - azure.workload.identity/client-id
    optionalServiceAccountAnnotationKeys: [Azure.workload.identity/tenant-id]
- name: old
  apiVersion: credentialprovider.kubelet.k8s.io/v1alpha1
  matchImages: [registry.example:5000]
  defaultCacheDuration: 1m30s
  args: null
  tokenAttributes:
`

func TestParseConfigReadsWhatTheKubeletReads(t *testing.T) {
	read, err := ParseConfig("providers.yaml", []byte(fullConfig))
	if err != nil {
		t.Fatal(err)
	}
	agree(t, []byte(fullConfig), read)
	if p := read.Providers[1]; p.File != "providers.yaml" || p.Line != 18 {
		t.Errorf("the second entry stands at %s:%d", p.File, p.Line)
	}
	if d := read.Providers[2].DefaultCacheDuration; d == nil || *d != 90*time.Second {
		t.Errorf("defaultCacheDuration %v", d)
	}
}

func TestParseConfigReadsJSONAndYAMLOddities(t *testing.T) {
	entry := "\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n  matchImages: [a.io]\n  defaultCacheDuration: 1h\n"
	head := "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n"
	for name, data := range map[string]string{
		"JSON": ` {"apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig",
			"providers": [{"name": "a", "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "matchImages": ["a.io\/b", "\ud834\udd1e.io"], "defaultCacheDuration": "1h",
			"args": ["\u0041\t", null], "env": [{"name": "A", "value": ""}, {"name": "B"}], "tokenAttributes": null}]}`,
		"anchors, aliases and merge keys":    head + "- name: a\n  <<: &a\n    apiVersion: credentialprovider.kubelet.k8s.io/v1\n    matchImages: &m [a.io]\n    defaultCacheDuration: 1h\n  args: &args [x, \"y z\"]\n- <<: *a\n  name: b\n- {<<: [*a], name: c, args: *args}\n",
		"a document that is begun and ended": "%YAML 1.1\n---\n" + head + "- name: a" + entry + "...\n",
		"a comment before a document":        "# x\n---\n# y\n" + head + "\n\n- name: a" + entry + "# z\n",
		"folded, literal and quoted text": head + "- name: a" + entry + "  args:\n  - >-\n    a\n    b\n\n    c\n  - |+\n    d\n\n  - 'it''s'\n  - \"\\x41\\u00e9\\n\\\n     z\"\n" +
			"  - plain\n    text\n  - a:b\n  - --x=[y]\n  - \"# no comment\"\n  - a#b\n",
		"strings that look like something else": head + "- name: a" + entry + "  args: [!!str 12, 1.2.3, 12:30, 2001-01-01, 0x, '1', \"yes\", +, =, 10.0.0.1, nil]\n",
		"windows line ends":                     strings.ReplaceAll(head+"- name: a"+entry, "\n", "\r\n"),
		"indented lists":                        head + "  - name: a" + strings.ReplaceAll(entry, "\n  ", "\n    ") + "    env:\n      -\n        name: A\n        value: b\n",
	} {
		t.Run(name, func(t *testing.T) {
			read, err := ParseConfig("x", []byte(data))
			if err != nil {
				t.Fatalf("%v\n%s", err, data)
			}
			agree(t, []byte(data), read)
		})
	}
}

func TestParseConfigListsAllProblemsWithLineAndField(t *testing.T) {
	const data = `apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providerz: []
providers:
- name: a/b
  apiVersion: v1
  matchImages: a.io
  defaultCacheDuration: -1s
  command: x
  args: [1, yes, [a]]
- name: same
  apiVersion: credentialprovider.kubelet.k8s.io/v1beta1
  matchImages: ["a.io:port", ok.io]
  defaultCacheDuration: 1 hour
  name: twice
  env:
  - {name: A, valu: b}
  - c
  tokenAttributes:
    cacheType: Pod
    requireServiceAccount: "true"
    requiredServiceAccountAnnotationKeys: [a, a, -]
- name: same
- tokenAttributes:
    serviceAccountTokenAudience: x
    requireServiceAccount: false
    requiredServiceAccountAnnotationKeys: [b]
    optionalServiceAccountAnnotationKeys: [b]
`
	_, err := ParseConfig("f", []byte(data))
	want := []string{
		`f:3: providerz: unknown field; known are apiVersion, kind, providers`,
		`f:7: providers[0].matchImages: must be a list, is a string`,
		`f:9: providers[0].command: unknown field; known are apiVersion, args, defaultCacheDuration, env, matchImages, name, tokenAttributes`,
		`f:10: providers[0].args[0]: must be a string, is a number; put it in quotes`,
		`f:10: providers[0].args[1]: must be a string, is a boolean; put it in quotes`,
		`f:10: providers[0].args[2]: must be a string, is a list`,
		`f:14: providers[1].defaultCacheDuration: must be a duration such as "12h" or "0s", is "1 hour"`,
		`f:15: providers[1].name: stands twice, first in line 11`,
		`f:17: providers[1].env[0].valu: unknown field; known are name, value`,
		`f:18: providers[1].env[1]: must be a mapping, is a string`,
		`f:21: providers[1].tokenAttributes.requireServiceAccount: must be true or false, is a string`,
		`f:5: providers[0].name: "a/b" is no file name: without / and spaces, neither . nor ..`,
		`f:5: providers[0].apiVersion: "v1" is none of ` + V1 + ", " + V1Beta1 + " and " + V1Alpha1,
		`f:5: providers[0].defaultCacheDuration: -1s is negative`,
		`f:11: providers[1].matchImages[0]: "a.io:port" is not of the form host[:port][/path]: invalid port ":port" after host`,
		`f:11: providers[1].tokenAttributes: needs apiVersion ` + V1,
		`f:11: providers[1].tokenAttributes.serviceAccountTokenAudience: is required`,
		`f:11: providers[1].tokenAttributes.cacheType: "Pod" is neither Token nor ServiceAccount`,
		`f:11: providers[1].tokenAttributes.requiredServiceAccountAnnotationKeys[1]: "a" stands in tokenAttributes.requiredServiceAccountAnnotationKeys[0] too`,
		`f:11: providers[1].tokenAttributes.requiredServiceAccountAnnotationKeys[2]: "-" is no annotation key: [prefix/]name`,
		`f:23: providers[2].apiVersion: is required; ` + V1,
		`f:23: providers[2].matchImages: at least one pattern is required`,
		`f:23: providers[2].defaultCacheDuration: is required; "0s" for an answer that is not to be cached`,
		`f:24: providers[3].name: is required`,
		`f:24: providers[3].apiVersion: is required; ` + V1,
		`f:24: providers[3].matchImages: at least one pattern is required`,
		`f:24: providers[3].defaultCacheDuration: is required; "0s" for an answer that is not to be cached`,
		`f:24: providers[3].tokenAttributes: needs apiVersion ` + V1,
		`f:24: providers[3].tokenAttributes.cacheType: is required; Token or ServiceAccount`,
		`f:24: providers[3].tokenAttributes.requiredServiceAccountAnnotationKeys: needs requireServiceAccount: true`,
		`f:24: providers[3].tokenAttributes.optionalServiceAccountAnnotationKeys[0]: "b" stands in tokenAttributes.requiredServiceAccountAnnotationKeys[0] too`,
		`f:23: providers[2].name: "same" is the name of the entry at f:11 too; rename one`,
	}
	if diff := cmp.Diff(want, strings.Split(fmt.Sprint(err), "\n")); diff != "" {
		t.Error(diff)
	}
}

func TestParseConfigRefusesOtherDocuments(t *testing.T) {
	good := "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- {name: a, apiVersion: " + V1 + ", matchImages: [a.io], defaultCacheDuration: 1h}\n"
	for name, tt := range map[string]struct{ data, want string }{
		"an empty file":                       {"", "f:1: must be a mapping, is null"},
		"a file with nothing but comments":    {"# x\n---\n", "f:1: must be a mapping, is null"},
		"text":                                {"hello", "f:1: must be a mapping, is a string"},
		"another kind":                        {strings.Replace(good, "CredentialProviderConfig", "KubeletConfiguration", 1), `f:2: kind: must be CredentialProviderConfig, is "KubeletConfiguration"; is this the file that --image-credential-provider-config names?`},
		"another version":                     {strings.Replace(good, "io/v1", "io/v2", 1), `f:1: apiVersion: must be kubelet.config.k8s.io/v1, kubelet.config.k8s.io/v1beta1 or kubelet.config.k8s.io/v1alpha1, is "kubelet.config.k8s.io/v2"`},
		"no providers":                        {"apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders: []\n", "f:3: providers: at least one provider is required"},
		"two documents":                       {good + "---\n" + good, "f:6: a second document: the kubelet reads only the first of a file, put the others into files of their own"},
		"YAML that is none":                   {"a: [b\n", "f:1: not YAML: did not find expected ',' or ']'"},
		"JSON that is cut off":                {"{\n\"a\": [1,", "f:2: not JSON: the text ends too early"},
		"JSON with a comment":                 {"{\n# x\n}", "f:2: not JSON: invalid character '#'"},
		"JSON with something behind":          {"{}\n{}", "f:2: something follows the JSON"},
		"an alias without anchor":             {"a: *b\n", "f:1: not YAML: unknown anchor 'b' referenced"},
		"an alias of what it stands in":       {"a: &b [*b]\n", "f:1: an alias of what it stands in"},
		"a tag of another kind":               {"a: !!binary x\n", `f:1: tag "!!binary" is not understood here: leave it out`},
		"deep nesting":                        {strings.Repeat("[", 200) + strings.Repeat("]", 200), "f:1: nested more than 100 deep"},
		"deep nesting of lists":               {strings.Repeat("- ", 1<<18), "f:1: not YAML: exceeded max depth of 10000"},
		"deep nesting in JSON":                {strings.Repeat(`{"a":`, 1<<17), "f:1: nested more than 100 deep"},
		"a large file":                        {strings.Repeat("#", 1<<20+1), "f:1: the file has more than 1048576 bytes"},
		"tokenAttributes in an older version": {strings.Replace(strings.Replace(good, "io/v1", "io/v1beta1", 1), "name: a", "name: a, tokenAttributes: {}", 1), "f:4: providers[0].tokenAttributes: unknown field; known are apiVersion, args, defaultCacheDuration, env, matchImages, name"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseConfig("f", []byte(tt.data))
			if fmt.Sprint(err) != tt.want {
				t.Errorf("\ngot  %v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestParseConfigBoundsWhatAliasesMake(t *testing.T) {
	var b strings.Builder
	b.WriteString("a0: &a0 [x, x, x, x, x, x, x, x]\n")
	for i := 1; i < 10; i++ {
		fmt.Fprintf(&b, "a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 8), ", "))
	}
	_, err := ParseConfig("f", []byte(b.String()))
	if err == nil || !strings.Contains(err.Error(), "more than 131072 values") {
		t.Errorf("%.200v", err)
	}
}

func TestReadConfigTakesAFileOrADirectory(t *testing.T) {
	dir := t.TempDir()
	entry := func(name string) string {
		return "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: " + name +
			"\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n  matchImages: [a.io]\n  defaultCacheDuration: 1h\n"
	}
	write := func(name, data string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	names := func(c *CredentialProviderConfig) string {
		var out []string
		for _, p := range c.Providers {
			out = append(out, p.Name)
		}
		return strings.Join(out, " ")
	}
	if _, err := ReadConfig(dir); err == nil || !strings.Contains(err.Error(), "has no *.json, *.yaml or *.yml") {
		t.Errorf("an empty directory: %v", err)
	}
	if _, err := ReadConfig(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	write("b.yaml", entry("second"))
	write("a.yml", entry("first"))
	write("c.txt", "nonsense")
	write("readme.yaml~", "nonsense")
	if err := os.Mkdir(filepath.Join(dir, "d.yaml"), 0o700); err != nil {
		t.Fatal(err)
	}
	c, err := ReadConfig(dir)
	if err != nil {
		t.Fatal(err)
	}
	if names(c) != "first second" || len(c.Sources) != 2 || c.Providers[1].File != filepath.Join(dir, "b.yaml") || c.Providers[1].Line != 4 {
		t.Errorf("%s %v", names(c), c.Sources)
	}
	if c, err = ReadConfig(filepath.Join(dir, "b.yaml")); err != nil || names(c) != "second" {
		t.Errorf("%v", err)
	}
	write("z.json", `{"kind": "Wrong"}`)
	write("c.yaml", entry("first"))
	_, err = ReadConfig(dir)
	want := filepath.Join(dir, "z.json")
	for _, problem := range []string{
		want + `:1: kind: must be CredentialProviderConfig, is "Wrong"; is this the file that --image-credential-provider-config names?`,
		filepath.Join(dir, "c.yaml") + `:4: providers[2].name: "first" is the name of the entry at ` + filepath.Join(dir, "a.yml") + `:4 too; rename one`,
	} {
		if err == nil || !strings.Contains(err.Error(), problem) {
			t.Errorf("missing: %s\nin: %v", problem, err)
		}
	}
}

func TestAnnotationKeysAreWhatTheKubeletTakes(t *testing.T) {
	long := strings.Repeat("a", 63)
	for _, key := range []string{
		"", "a", "A", "a.b_c-d", "-a", "a-", "a/b", "a.io/b", "A.io/b", "a.io/B", "/b", "a/", "a/b/c", "a..b/c", "a_b/c", "é", "a b", "a\n", long, long + "a",
		strings.Repeat("a.", 126) + "a/b", strings.Repeat("a.", 127) + "a/b", "a.io/" + long + "a", "-.io/a", "a-.io/a",
	} {
		if got, want := qualifiedName(key), len(content.IsLabelKey(key)) == 0; got != want {
			t.Errorf("%q: %v, the kubelet's rule says %v", key, got, want)
		}
		if got, want := dnsSubdomain(key), len(content.IsDNS1123Subdomain(key)) == 0; got != want {
			t.Errorf("%q as a DNS subdomain: %v, the kubelet's rule says %v", key, got, want)
		}
	}
}

// FuzzParseConfig holds the reader against the kubelet's strict decoder: what both accept means the same.
func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(fullConfig))
	f.Add([]byte("apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- &a {name: a, apiVersion: " + V1 + ", matchImages: [a.io], defaultCacheDuration: 1h}\n- <<: *a\n  name: 'b'\n"))
	f.Add([]byte(`{"apiVersion":"kubelet.config.k8s.io/v1","kind":"CredentialProviderConfig","providers":[{"name":"a","apiVersion":"` + V1 + `","matchImages":["a"],"defaultCacheDuration":"1h"}]}`))
	f.Add([]byte("a: |\n  b\nc: >-\n d\n e\nf: \"\\x41\"\n? g\n: !!str 1\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		read, err := ParseConfig("f", data)
		if err != nil {
			var problems config.Problems
			if !errors.As(err, &problems) || len(problems) == 0 {
				t.Fatalf("an error without problems: %v", err)
			}
			return
		}
		their, err := theirConfig(data)
		if err != nil {
			return // no harm in reading what the kubelet would have refused
		}
		if diff := cmp.Diff(their, asTheirs(read), cmpopts.EquateEmpty()); diff != "" && their.APIVersion == ConfigV1 {
			t.Errorf("the kubelet reads otherwise:\n%s", diff)
		}
	})
}
