package kubelet

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/validate/content"

	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/image"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares with testdata/name.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (go test ./broker/kubelet -update writes it anew):\n%s", path, diff)
	}
}

func provider(name string, patterns ...string) *config.Provider {
	return &config.Provider{Name: name, Backend: name, MatchImages: patterns, Timeout: config.DefaultProviderTimeout}
}

func withToken(p *config.Provider, audience string, change func(*config.TokenAttributes)) *config.Provider {
	p.TokenAttributes = &config.TokenAttributes{ServiceAccountTokenAudience: audience, CacheType: config.CacheTypeToken}
	if change != nil {
		change(p.TokenAttributes)
	}
	return p
}

func configOf(providers ...*config.Provider) *config.Config {
	return &config.Config{Timeout: config.DefaultTimeout, OverlapPolicy: config.First, Providers: providers}
}

// accepted renders the entries and reads them back, with the kubelet's decoder and with ours, which validates.
func accepted(t *testing.T, entries []Entry) []byte {
	t.Helper()
	data := Render(entries)
	want := &CredentialProviderConfig{}
	for _, e := range entries {
		want.Providers = append(want.Providers, e.CredentialProvider)
	}
	if err := want.Validate(); err != nil {
		t.Errorf("the kubelet would refuse:\n%v", err)
	}
	if _, err := ParseConfig("entries.yaml", data); err != nil {
		t.Errorf("%v\n%s", err, data)
	}
	agree(t, data, want)
	return data
}

func TestEntriesAreOneWhileNoProviderHasATokenElseOneForEachAudience(t *testing.T) {
	serviceAccount := func(a *config.TokenAttributes) { a.CacheType = config.CacheTypeServiceAccount }
	ecr, hub := provider("ecr", "*.dkr.ecr.*.amazonaws.com", "public.ecr.aws"), provider("hub", "docker.io", "public.ecr.aws")
	hub.Mirrors = []config.Mirror{{Source: "quay.io/team", Endpoint: "mirror.example/quay"}, {Source: "docker.io", Endpoint: "mirror.example/hub"}}
	acr := withToken(provider("acr", "*.azurecr.io"), "api://AzureADTokenExchange", serviceAccount)
	vault := withToken(provider("vault", "registry.example:5000"), "vault", func(a *config.TokenAttributes) {
		a.RequireServiceAccount, a.RequiredServiceAccountAnnotationKeys, a.OptionalServiceAccountAnnotationKeys = true, []string{"example.com/role"}, []string{"example.com/path"}
	})
	full := configOf(ecr, acr, hub, vault)
	full.Agent.Socket = "/run/credential-broker/agent.sock"

	for _, tt := range []struct {
		name  string
		cfg   *config.Config
		opts  EntryOptions
		names string
		notes int
	}{
		{"plain", configOf(ecr, hub), EntryOptions{}, "credential-broker", 0},
		{"plain-options", full1(full, ecr, hub), EntryOptions{ConfigPath: "/etc/my broker/config.yaml", Match: []string{"*.dkr.ecr.*.amazonaws.com", "*.ecr.aws", "docker.io", "quay.io"}, Single: true}, "credential-broker", 0},
		{"tokens", full, EntryOptions{ConfigPath: "/srv/broker.d"}, "credential-broker credential-broker-api-azureadtokenexchange-49fa09d46c71 credential-broker-vault", 0},
		{"one-audience", configOf(vault), EntryOptions{}, "credential-broker-vault", 0},
		{"single", configOf(acr, hub), EntryOptions{Single: true}, "credential-broker", 0},
		{"token-first", configOf(vault, ecr), EntryOptions{Match: []string{"*.dkr.ecr.*.amazonaws.com", "*.ecr.aws", "registry.example:5000", "*"}}, "credential-broker-vault credential-broker", 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			entries, notes, err := Entries(tt.cfg, tt.opts)
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, e := range entries {
				names = append(names, e.Name)
			}
			if got := strings.Join(names, " "); got != tt.names || len(notes) != tt.notes {
				t.Errorf("entries %s, notes %q", got, notes)
			}
			golden(t, "entries-"+tt.name+".yaml", accepted(t, entries))
		})
	}
}

// full1 is cfg with other providers.
func full1(cfg *config.Config, providers ...*config.Provider) *config.Config {
	one := *cfg
	one.Providers = providers
	return &one
}

func TestEntriesRefuseWhatCannotBe(t *testing.T) {
	a, b := withToken(provider("a", "a.io"), "a", nil), withToken(provider("b", "b.io"), "b", nil)
	mirrored := provider("m", "m.io", "*.m.io:5000/x")
	mirrored.Mirrors = []config.Mirror{{Source: "docker.io", Endpoint: "m.io"}}
	for _, tt := range []struct {
		cfg  *config.Config
		opts EntryOptions
		want string
	}{
		{configOf(), EntryOptions{}, "the configuration has no providers: add one, then print the kubelet's entry for it"},
		{configOf(a), EntryOptions{ConfigPath: "config.yaml"}, `the configuration's path "config.yaml" is not absolute: the kubelet starts the broker in a directory of its own`},
		{configOf(a, b), EntryOptions{Single: true}, `--single: the providers have the audiences "a" and "b", and an entry of the kubelet's has one: leave --single out`},
		{configOf(mirrored), EntryOptions{Match: []string{"m.io", "*.m.io:5000/xyz"}}, "provider \"m\": \"*.m.io:5000/x\" is covered by no pattern of --match: add it, or a wider one\n" +
			"provider \"m\": \"docker.io\" is covered by no pattern of --match: add it, or a wider one"},
		{configOf(a), EntryOptions{Match: []string{"a.io:x"}}, `--match "a.io:x" is not of the form host[:port][/path]: invalid port ":x" after host`},
		{configOf(a), EntryOptions{Match: []string{""}}, `--match "" has no host: write host[:port][/path]`},
	} {
		entries, _, err := Entries(tt.cfg, tt.opts)
		if entries != nil || fmt.Sprint(err) != tt.want {
			t.Errorf("\ngot  %v\nwant %s", err, tt.want)
		}
	}
}

func TestTokenAttributesOfAnEntryLetEveryProviderBeAsked(t *testing.T) {
	attributes := func(cacheType config.CacheType, require bool, required, optional string) *config.Provider {
		return withToken(provider("p", "a.io"), "aud", func(a *config.TokenAttributes) {
			a.CacheType, a.RequireServiceAccount = cacheType, require
			a.RequiredServiceAccountAnnotationKeys, a.OptionalServiceAccountAnnotationKeys = strings.Fields(required), strings.Fields(optional)
		})
	}
	const token, account = config.CacheTypeToken, config.CacheTypeServiceAccount
	for name, tt := range map[string]struct {
		providers                     []*config.Provider
		cacheType, required, optional string
		require                       bool
	}{
		"one provider keeps all":                                   {[]*config.Provider{attributes(account, true, "a b", "c")}, "ServiceAccount", "a b", "c", true},
		"all require, keys they share stay required":               {[]*config.Provider{attributes(account, true, "a b", "c"), attributes(account, true, "b d", "a")}, "ServiceAccount", "b", "a c d", true},
		"a key one requires and another takes if any":              {[]*config.Provider{attributes(account, true, "a", ""), attributes(account, true, "", "a")}, "ServiceAccount", "", "a", true},
		"a key required without an account, which loading refuses": {[]*config.Provider{attributes(account, false, "a", "")}, "ServiceAccount", "", "a", false},
		"one that requires no account":                             {[]*config.Provider{attributes(account, true, "a", ""), attributes(account, false, "", "")}, "ServiceAccount", "", "a", false},
		"one that caches by token":                                 {[]*config.Provider{attributes(account, false, "", ""), attributes(token, false, "", "")}, "Token", "", "", false},
		"an unset cacheType is Token":                              {[]*config.Provider{attributes("", false, "", "")}, "Token", "", "", false},
		"one without token, in a single entry":                     {[]*config.Provider{attributes(account, true, "a", ""), provider("q", "b.io")}, "ServiceAccount", "", "a", false},
	} {
		t.Run(name, func(t *testing.T) {
			entries, _, err := Entries(configOf(tt.providers...), EntryOptions{Single: true})
			if err != nil {
				t.Fatal(err)
			}
			accepted(t, entries)
			got := entries[0].TokenAttributes
			if got.CacheType != tt.cacheType || *got.RequireServiceAccount != tt.require ||
				strings.Join(got.RequiredServiceAccountAnnotationKeys, " ") != tt.required || strings.Join(got.OptionalServiceAccountAnnotationKeys, " ") != tt.optional {
				t.Errorf("%+v, requireServiceAccount %v", got, *got.RequireServiceAccount)
			}
		})
	}
}

// awkward audiences, which have to be told apart, and to survive YAML.
var awkward = []string{
	"a", "A", "a ", "a-", "-a", "a.", ".a", "a..b", "a.b", "a.-b", "a-.b", "a-b", "a--b", "a_b", "a/b", "a b", "a\nb", "a#b", "a: b", "é", "日本", ".", "..", "/", "-", "*", "'", `"`, `\`, "\x00",
	"yes", "null", "1", "1.5", "0x1f", "2001-01-01", "~", "[a]", "{a}", "&a", "!a", "|", ">", "%a", "@a", "`a`", "https://a.example", "https://a.example/", "api://AzureADTokenExchange",
	"a-0123456789ab", strings.Repeat("x", 100), strings.Repeat("x", 101), strings.Repeat("x", 102), strings.Repeat("x.", 200), "\u2028", "\u0085", "\ufeff", "𝄞", "x-" + EntryName("X!"),
}

func TestEntryNamesAreFileNamesAndRBACNamesAndDiffer(t *testing.T) {
	awkward := append([]string{""}, awkward...)
	for _, audience := range awkward { // an audience that looks like another's name, too
		awkward = append(awkward, strings.TrimPrefix(EntryName(audience), "credential-broker-"))
	}
	seen := make(map[string]string)
	for _, audience := range unique(awkward) {
		name := EntryName(audience)
		if other, taken := seen[name]; taken {
			t.Errorf("%q and %q are both %s", other, audience, name)
		}
		seen[name] = audience
		if len(content.IsDNS1123Subdomain(name)) > 0 || len(name) > 200 || name != EntryName(audience) {
			t.Errorf("%q: %s", audience, name)
		}
	}
	for audience, want := range map[string]string{"": "credential-broker", "sts.amazonaws.com": "credential-broker-sts.amazonaws.com", "vault": "credential-broker-vault"} {
		if got := EntryName(audience); got != want {
			t.Errorf("%q: %s", audience, got)
		}
	}
}

func TestAwkwardTextSurvivesRendering(t *testing.T) {
	var providers []*config.Provider
	for i, audience := range awkward {
		providers = append(providers, withToken(provider(audience, fmt.Sprintf("r%d.io", i)), audience, nil))
	}
	cfg := configOf(providers...)
	cfg.Agent.Socket = "/run/\u0085\t'\"#: x"
	entries, _, err := Entries(cfg, EntryOptions{ConfigPath: "/etc/a: b # c\n"})
	if err != nil {
		t.Fatal(err)
	}
	accepted(t, entries)
	if rbac := RBAC(awkward); strings.Count(string(rbac), "\n---\n") != 2*len(awkward)-1 {
		t.Error("RBAC has not two documents for each audience")
	}
}

func TestRBACLetsNodesAskForTheTokens(t *testing.T) {
	golden(t, "rbac.yaml", RBAC([]string{"vault", "api://AzureADTokenExchange", "vault"}))
}

func TestCoveredIsWhetherOnePatternMatchesAllOfAnother(t *testing.T) {
	for _, tt := range []struct {
		wide, narrow string
		want         bool
	}{
		{"a.io", "a.io", true},
		{"a.io", "a.io/x", true},
		{"a.io/x", "a.io", false},
		{"a.io/x", "a.io/xy", true},
		{"*.io", "a.io", true},
		{"*.io", "a.b.io", false},
		{"*.io", "*.io", true},
		{"a*.io", "*.io", false},
		{"*.io", "a*b.io", true},
		{"a*.io", "ab*.io", true},
		{"*b.io", "a*.io", false},
		{"a*c.io", "ab*bc.io", true},
		{"a?.io", "a?.io", true},
		{"a.io:5000", "a.io", false},
		{"a.io", "a.io:5000", false},
		{"*.io:5000/x", "b.io:5000/xy/z", true},
		{"*.*.io", "*.a.io", true},
		{"*.a.io", "*.*.io", false},
		{"**.io", "a*.io", true},
		{"*a*a*.io", "*a*.io", false},
	} {
		wide, err := image.ParsePattern(tt.wide)
		if err != nil {
			t.Fatal(err)
		}
		narrow, err := image.ParsePattern(tt.narrow)
		if err != nil {
			t.Fatal(err)
		}
		if got := covered(wide, narrow); got != tt.want {
			t.Errorf("%s covers %s: %v", tt.wide, tt.narrow, got)
		}
	}
}

// FuzzCovered checks the promise: what narrow matches, wide matches too.
func FuzzCovered(f *testing.F) {
	f.Add("a*.io", "ab*.io", "abc.io/x")
	f.Add("*a?.io:5", "?*a?b.io:5", "xab.io:5/x")
	f.Add(`[a-c]*.io`, `\a*.io`, "abc.io")
	f.Fuzz(func(t *testing.T, wide, narrow, img string) {
		w, werr := image.ParsePattern(wide)
		n, nerr := image.ParsePattern(narrow)
		if werr == nil && nerr == nil && covered(w, n) && n.Match(img) && !w.Match(img) {
			t.Errorf("%q does not match %q, which %q matches", wide, img, narrow)
		}
	})
}

func TestShortDurationIsTheSameDuration(t *testing.T) {
	for text, want := range map[string]string{"0s": "0s", "12h": "12h", "90m": "1h30m", "1m": "1m", "10m10s": "10m10s", "1h0m10s": "1h0m10s", "500ms": "500ms", "60s": "1m", "10s": "10s", "20h": "20h"} {
		d, err := time.ParseDuration(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := shortDuration(d); got != want {
			t.Errorf("%s: %s", text, got)
		}
		if back, err := time.ParseDuration(shortDuration(d)); err != nil || back != d {
			t.Errorf("%s: %v %v", text, back, err)
		}
	}
}
