package kubelet

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/credential-broker/credential-broker/broker/config"
)

// loaded is the output of Migrate as the broker loads it.
func loaded(t testing.TB, data []byte) *config.Config {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(path)
	if err != nil {
		t.Fatalf("%v\n%s", err, data)
	}
	return cfg
}

// execSettings are those of the exec backend.
type execSettings struct {
	Command    string   `json:"command"`
	Args       []string `json:"args"`
	APIVersion string   `json:"apiVersion"`
}

// faithful checks that cfg says all that src said; what Migrate notes about variables has to be out of src already.
func faithful(t testing.TB, src *CredentialProviderConfig, binDir string, cfg *config.Config) {
	t.Helper()
	if cfg.OverlapPolicy != config.Fallback || cfg.Timeout != 58*time.Second {
		t.Errorf("overlapPolicy %s, timeout %s", cfg.OverlapPolicy, cfg.Timeout)
	}
	back := &CredentialProviderConfig{}
	for i, p := range cfg.Providers {
		var settings execSettings
		if err := json.Unmarshal(p.Config, &settings); err != nil {
			t.Fatal(err)
		}
		if want := filepath.Join(binDir, src.Providers[i].Name); settings.Command != want || p.Backend != "exec" || p.Timeout != 58*time.Second || len(p.InheritEnv) != 1 || p.InheritEnv[0] != "*" {
			t.Errorf("provider %q: %+v %+v", p.Name, p, settings)
		}
		c := CredentialProvider{Name: p.Name, APIVersion: settings.APIVersion, MatchImages: p.MatchImages, DefaultCacheDuration: p.DefaultCacheDuration, Args: settings.Args}
		for _, e := range p.Env {
			c.Env = append(c.Env, EnvVar(e))
		}
		if a := p.TokenAttributes; a != nil {
			c.TokenAttributes = &TokenAttributes{a.ServiceAccountTokenAudience, string(a.CacheType), &a.RequireServiceAccount, a.RequiredServiceAccountAnnotationKeys, a.OptionalServiceAccountAnnotationKeys}
		}
		back.Providers = append(back.Providers, c)
	}
	if diff := cmp.Diff(src, back, cmpopts.EquateEmpty(), cmpopts.IgnoreFields(CredentialProviderConfig{}, "Sources"), cmpopts.IgnoreFields(CredentialProvider{}, "File", "Line")); diff != "" {
		t.Errorf("lost on the way:\n%s", diff)
	}
}

const head = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n"

func entryYAML(name, pattern, more string) string {
	return fmt.Sprintf("- name: %s\n  apiVersion: %s\n  matchImages: [%q]\n  defaultCacheDuration: 0s\n%s", name, V1, pattern, more)
}

func tokensYAML(cacheType, required string) string {
	return fmt.Sprintf("  tokenAttributes: {serviceAccountTokenAudience: x, cacheType: %s, requireServiceAccount: true, requiredServiceAccountAnnotationKeys: [%s]}\n", cacheType, required)
}

func TestMigrateKeepsWhatTheKubeletWasTold(t *testing.T) {
	for name, data := range map[string]string{
		"full":        strings.ReplaceAll(fullConfig, "args: null", "args: []"),
		"one":         head + entryYAML("ecr-credential-provider", "*.dkr.ecr.*.amazonaws.com", ""),
		"tokens":      head + entryYAML("a", "a.io", tokensYAML("Token", "k.io/a")) + entryYAML("plain", "*.io", "") + entryYAML("b", "b.io", tokensYAML("ServiceAccount", "k.io/b, k.io/a")),
		"interleaved": head + entryYAML("first", "a.io", tokensYAML("Token", "")) + entryYAML("second", "a.io", "") + entryYAML("third", "a.io/x", tokensYAML("Token", "")),
		"overlapping": head + entryYAML("one", "*.io", "") + entryYAML("two", "a.*", ""),
	} {
		t.Run(name, func(t *testing.T) {
			src, err := ParseConfig("/etc/kubernetes/providers.yaml", []byte(data))
			if err != nil {
				t.Fatal(err)
			}
			const binDir = "/nonexistent/bin"
			out, notes, err := Migrate(src, MigrateOptions{BinDir: binDir + "/"})
			if err != nil {
				t.Fatal(err)
			}
			cfg := loaded(t, out)
			faithful(t, src, binDir, cfg)
			golden(t, "migrate-"+name+".yaml", out)
			golden(t, "migrate-"+name+".notes", []byte(strings.Join(notes, "\n")+"\n"))
			flat := strings.Join(strings.Fields(strings.ReplaceAll(string(out), "\n#", "")), " ")
			for _, note := range notes {
				_, text, found := strings.Cut(note, `": `)
				if !found || !strings.HasPrefix(note, "provider ") {
					text = note
				}
				if !strings.Contains(flat, text) {
					t.Errorf("not among the comments: %s", text)
				}
			}
			if entries, _, err := Entries(cfg, EntryOptions{}); err != nil {
				t.Error(err)
			} else {
				accepted(t, entries)
			}
		})
	}
}

func TestMigrateNotesWhatProgramsAreMissing(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"there": 0o755, "text": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	src, err := ParseConfig("f", []byte(head+entryYAML("there", "a.io", "")+entryYAML("text", "b.io", "")+entryYAML("none", "c.io", "")))
	if err != nil {
		t.Fatal(err)
	}
	_, notes, err := Migrate(src, MigrateOptions{BinDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`provider "text": ` + dir + "/text is no file that can be executed",
		`provider "none": ` + dir + "/none is not on this machine: it has to be there when the kubelet calls",
	}
	if diff := cmp.Diff(want, notes[len(notes)-2:]); diff != "" {
		t.Error(diff)
	}
	if joined := strings.Join(notes, "\n"); strings.Contains(joined, `"there"`) {
		t.Error(joined)
	}
}

func TestMigrateGivesProgramsTheEnvironmentTheKubeletGaveThem(t *testing.T) {
	src := &CredentialProviderConfig{Providers: []CredentialProvider{{
		Name: "a", APIVersion: V1, MatchImages: []string{"a.io"}, DefaultCacheDuration: new(time.Duration),
		Env: []EnvVar{{"A", "1"}, {"B", ""}, {"A", "2"}, {"C=D", "E"}, {"", "x"}, {"N", "\x00"}, {"PLUGIN_X", "1"}, {"CREDENTIAL_BROKER_BACKEND", "1"}},
	}}}
	out, notes, err := Migrate(src, MigrateOptions{BinDir: "/"})
	if err != nil {
		t.Fatal(err)
	}
	want := []config.EnvVar{{Name: "A", Value: "2"}, {Name: "B", Value: ""}, {Name: "C", Value: "D=E"}}
	if diff := cmp.Diff(want, loaded(t, out).Providers[0].Env); diff != "" {
		t.Error(diff)
	}
	joined := strings.Join(notes, "\n")
	for _, note := range []string{
		`the variable A stood twice`, `the variable "" is left out: no program`, `the variable "N" is left out: no program`, "the variable PLUGIN_X is left out: the broker", "the variable CREDENTIAL_BROKER_BACKEND is left out: the broker",
	} {
		if !strings.Contains(joined, `provider "a": `+note) {
			t.Errorf("missing: %s\nin %s", note, joined)
		}
	}
}

func TestMigrateRefusesWhatItCannotTurnIntoAConfiguration(t *testing.T) {
	good := CredentialProvider{Name: "a", APIVersion: V1, MatchImages: []string{"a.io"}, DefaultCacheDuration: new(time.Duration), File: "f", Line: 4}
	odd := good
	odd.Name = "a\tb"
	for _, tt := range []struct {
		provider CredentialProvider
		binDir   string
		want     string
	}{
		{good, "", "migrate: where the programs are is not known: give the kubelet's --image-credential-provider-bin-dir with --bin-dir"},
		{good, "bin", `migrate: --bin-dir "bin" is not an absolute path: the kubelet starts the broker in a directory of its own`},
		{odd, "/bin", `f:4: name: "a\tb" is too long or has characters that cannot be printed; rename the program`},
		{CredentialProvider{Name: "a", APIVersion: V1, MatchImages: []string{"a.io"}, File: "f", Line: 4}, "/bin", `f:4: providers[0].defaultCacheDuration: is required; "0s" for an answer that is not to be cached`},
	} {
		out, _, err := Migrate(&CredentialProviderConfig{Providers: []CredentialProvider{tt.provider}}, MigrateOptions{BinDir: tt.binDir})
		if out != nil || fmt.Sprint(err) != tt.want {
			t.Errorf("\ngot  %v\nwant %s", err, tt.want)
		}
	}
}

// FuzzMigrate: whatever text a kubelet's configuration holds, the broker's loader finds it in the output, and a kubelet takes the entries made for it.
func FuzzMigrate(f *testing.F) {
	for _, s := range awkward {
		f.Add("name", s, s, s)
	}
	f.Add("--x", "--config=a: b", "- a", "a.io")
	f.Fuzz(func(t *testing.T, name, arg, value, audience string) {
		for _, s := range []*string{&name, &arg, &value, &audience} {
			*s = strings.ToValidUTF8(*s, "\ufffd")
		}
		require := false
		src := &CredentialProviderConfig{Sources: []string{name + ".yaml"}, Providers: []CredentialProvider{{
			Name: name, APIVersion: V1, MatchImages: []string{"a.io"}, DefaultCacheDuration: new(time.Duration), Args: []string{arg, value},
			Env: []EnvVar{{"A", strings.ReplaceAll(value, "\x00", "")}}, TokenAttributes: &TokenAttributes{ServiceAccountTokenAudience: audience, CacheType: "Token", RequireServiceAccount: &require},
		}}}
		out, _, err := Migrate(src, MigrateOptions{BinDir: "/nonexistent"})
		if err != nil {
			return
		}
		cfg := loaded(t, out)
		faithful(t, src, "/nonexistent", cfg)
		entries, _, err := Entries(cfg, EntryOptions{ConfigPath: "/" + arg})
		if err != nil {
			t.Fatal(err)
		}
		accepted(t, entries)
	})
}
