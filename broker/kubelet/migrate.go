package kubelet

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/image"
)

// MigrateOptions say what the configuration of a kubelet does not.
type MigrateOptions struct {
	// BinDir is the directory of the programs, the kubelet's --image-credential-provider-bin-dir; absolute.
	BinDir string
}

// Migrate writes a BrokerConfig that runs the programs of a kubelet's configuration through the exec backend and behaves as the kubelet did with them. What it cannot keep stands in comments of
// the output and in the notes. The programs need not be there.
func Migrate(src *CredentialProviderConfig, opts MigrateOptions) (yaml []byte, notes []string, err error) {
	switch {
	case opts.BinDir == "":
		return nil, nil, errors.New("migrate: where the programs are is not known: give the kubelet's --image-credential-provider-bin-dir with --bin-dir")
	case !filepath.IsAbs(opts.BinDir):
		return nil, nil, fmt.Errorf("migrate: --bin-dir %q is not an absolute path: the kubelet starts the broker in a directory of its own", opts.BinDir)
	}
	if err := src.Validate(); err != nil {
		return nil, nil, err
	}
	m := &migration{own: make(map[string][]string)}
	for _, p := range src.Providers {
		if err := m.provider(p, opts.BinDir); err != nil {
			return nil, nil, err
		}
	}
	entries, _, err := Entries(m.config(), EntryOptions{})
	if err != nil {
		return nil, nil, fmt.Errorf("migrate: %w", err)
	}
	m.compareWaiting()
	m.compareCaching()
	m.compareEntries(entries)
	for _, p := range m.providers {
		for _, text := range m.own[p.Name] {
			notes = append(notes, fmt.Sprintf("provider %q: %s", p.Name, text))
		}
	}
	return m.render(src, entries), append(slices.Clip(m.all), notes...), nil
}

// migrated is one provider of the new configuration, and the settings of its exec backend.
type migrated struct {
	*config.Provider
	command    string
	args       []string
	apiVersion string
}

// migration gathers what the new configuration is and how it differs.
type migration struct {
	providers []migrated
	all       []string            // differences that concern several providers
	own       map[string][]string // those of one
}

func (m *migration) note(name, format string, args ...any) {
	m.own[name] = append(m.own[name], fmt.Sprintf(format, args...))
}

func (m *migration) provider(p CredentialProvider, binDir string) error {
	if len(p.Name) > 253 || strings.ContainsFunc(p.Name, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsGraphic(r) }) {
		return config.Problems{{File: p.File, Line: p.Line, Path: "name", Message: fmt.Sprintf("%q is too long or has characters that cannot be printed; rename the program", p.Name)}}
	}
	out := migrated{
		Provider: &config.Provider{
			Name: p.Name, Backend: "exec", MatchImages: p.MatchImages, DefaultCacheDuration: p.DefaultCacheDuration, Timeout: config.MaxTimeout,
			Env: m.env(p), InheritEnv: []string{"*"},
		},
		command: filepath.Join(binDir, p.Name), args: p.Args, apiVersion: p.APIVersion,
	}
	if t := p.TokenAttributes; t != nil {
		out.TokenAttributes = &config.TokenAttributes{
			ServiceAccountTokenAudience: t.ServiceAccountTokenAudience, CacheType: config.CacheType(t.CacheType), RequireServiceAccount: *t.RequireServiceAccount,
			RequiredServiceAccountAnnotationKeys: t.RequiredServiceAccountAnnotationKeys, OptionalServiceAccountAnnotationKeys: t.OptionalServiceAccountAnnotationKeys,
		}
	}
	switch info, err := os.Stat(out.command); {
	case err != nil:
		m.note(p.Name, "%s is not on this machine: it has to be there when the kubelet calls", out.command)
	case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
		m.note(p.Name, "%s is no file that can be executed", out.command)
	}
	m.providers = append(m.providers, out)
	return nil
}

// env is the program's environment as the kubelet would have made it: "name=value", the last of a name.
func (m *migration) env(p CredentialProvider) []config.EnvVar {
	var out []config.EnvVar
	for _, e := range p.Env {
		name, value, _ := strings.Cut(e.Name+"="+e.Value, "=")
		switch {
		case name == "" || strings.ContainsRune(name+value, 0):
			m.note(p.Name, "the variable %q is left out: no program can be given a variable of that name or value", e.Name)
			continue
		case strings.HasPrefix(name, "PLUGIN_") || name == "CREDENTIAL_BROKER_BACKEND":
			m.note(p.Name, "the variable %s is left out: the broker speaks to its backends with it", name)
			continue
		}
		if i := slices.IndexFunc(out, func(v config.EnvVar) bool { return v.Name == name }); i >= 0 {
			m.note(p.Name, "the variable %s stood twice: the last value is kept, as the kubelet would have it", name)
			out[i].Value = value
			continue
		}
		out = append(out, config.EnvVar{Name: name, Value: value})
	}
	return out
}

// config is what loading the output gives, as far as entries depend on it.
func (m *migration) config() *config.Config {
	cfg := &config.Config{Timeout: config.MaxTimeout, OverlapPolicy: config.Fallback}
	for _, p := range m.providers {
		cfg.Providers = append(cfg.Providers, p.Provider)
	}
	return cfg
}

func (m *migration) compareWaiting() {
	if m.overlap() {
		m.all = append(m.all, "Programs that match one image are asked at the same time, within 58s; the kubelet asked them one after another and waited 60s for each.")
		return
	}
	m.all = append(m.all, "A program is given up after 58s; the kubelet waited 60s.")
}

func (m *migration) compareCaching() {
	if m.overlap() {
		m.all = append(m.all, "The kubelet caches one merged answer for the programs that match an image: for the shortest of their durations, and not at all while one of them fails. "+
			"It cached each program's answer by itself.")
	}
	m.all = append(m.all, "No answer says cacheKeyType Global: what a program says of all images is cached for each registry, or for each image where it might not be the same for the whole registry. "+
		"A program may be asked more often than before, never less often.")
}

// overlap says whether an image can match two programs of one entry, so that their answers are merged.
func (m *migration) overlap() bool {
	for i, a := range m.providers {
		for _, b := range m.providers[:i] {
			if audienceOf(a.Provider) == audienceOf(b.Provider) && overlapping(a.Provider, b.Provider) {
				return true
			}
		}
	}
	return false
}

func overlapping(a, b *config.Provider) bool {
	for _, x := range a.MatchImages {
		for _, y := range b.MatchImages {
			p, err := image.ParsePattern(x)
			q, qerr := image.ParsePattern(y)
			if err == nil && qerr == nil && image.Overlap(p, q) {
				return true
			}
		}
	}
	return false
}

func audienceOf(p *config.Provider) string {
	if p.TokenAttributes == nil {
		return ""
	}
	return p.TokenAttributes.ServiceAccountTokenAudience
}

// compareEntries is about providers with tokens, which the kubelet knows by the entry only.
func (m *migration) compareEntries(entries []Entry) {
	if len(entries) > 1 {
		var names []string
		for _, e := range entries {
			names = append(names, fmt.Sprintf("%s (%s)", e.Name, strings.Join(e.Serves, ", ")))
		}
		m.all = append(m.all, fmt.Sprintf("The kubelet has one token audience for an entry, so `credential-broker kubelet-config` prints %d entries: %s. Answers are merged within an entry; "+
			"those of several entries the kubelet adds up, as it did before.", len(entries), strings.Join(names, "; ")))
		if m.overlap() {
			m.all = append(m.all, "Where an entry gives several credentials for one image, the kubelet may try them before those of an earlier entry.")
		}
		m.compareOrder(entries)
	}
	for _, e := range entries {
		if e.TokenAttributes == nil || len(e.Serves) == 1 {
			continue
		}
		for _, p := range m.providers {
			if audienceOf(p.Provider) == e.Audience {
				m.compareAttributes(p.Provider, e)
			}
		}
	}
}

// compareOrder finds providers that change places because the kubelet goes entry by entry, where that makes a difference: with an image that matches both.
func (m *migration) compareOrder(entries []Entry) {
	rank := make(map[string]int)
	for i, e := range entries {
		rank[e.Audience] = i
	}
	for i, late := range m.providers {
		for _, early := range m.providers[:i] {
			if rank[audienceOf(early.Provider)] > rank[audienceOf(late.Provider)] && overlapping(early.Provider, late.Provider) {
				m.all = append(m.all, fmt.Sprintf("The kubelet tries the credentials of %q before those of %q for one auth key; it tried them in the other order before.", late.Name, early.Name))
			}
		}
	}
}

func (m *migration) compareAttributes(p *config.Provider, e Entry) {
	others := slices.DeleteFunc(slices.Clone(e.Serves), func(name string) bool { return name == p.Name })
	shared := fmt.Sprintf("shares the entry %s with %s", e.Name, strings.Join(others, ", "))
	if string(p.TokenAttributes.CacheType) != e.TokenAttributes.CacheType {
		m.note(p.Name, "%s, so the kubelet caches its answers for each token, no longer for each service account", shared)
	}
	var eased []string
	for _, key := range p.TokenAttributes.RequiredServiceAccountAnnotationKeys {
		if !slices.Contains(e.TokenAttributes.RequiredServiceAccountAnnotationKeys, key) {
			eased = append(eased, key)
		}
	}
	if len(eased) > 0 {
		m.note(p.Name, "%s, so the kubelet gets a token for service accounts without %s too; the broker does not ask the program for them", shared, strings.Join(eased, ", "))
	}
}

func (m *migration) render(src *CredentialProviderConfig, entries []Entry) []byte {
	var d document
	d.comment("The configuration of credential-broker, made by `credential-broker migrate` from " + strings.Join(src.Sources, ", ") + ".")
	d.comment("It runs the same programs through the exec backend, and the kubelet gets from it what it got from them.")
	d.line("#")
	d.comment("Next:")
	d.comment("- Save it as /etc/credential-broker/config.yaml. Nobody but root may be able to write it or the programs. `credential-broker validate` looks for mistakes.")
	d.comment("- `credential-broker kubelet-config` prints the kubelet's new configuration, with --link --bin-dir DIR it makes the " + plural(len(entries), "link", "links") +
		" to the broker. Give it to the kubelet in place of the old one, and restart the kubelet.")
	d.line("#")
	d.comment("What differs from before:")
	for _, text := range m.all {
		d.comment("- " + text)
	}
	d.line("apiVersion: %s", config.APIVersion)
	d.line("kind: %s", config.Kind)
	d.line("overlapPolicy: %s   # as the kubelet does: no value is lost, all are tried in the order of the providers", config.Fallback)
	d.line("timeout: %s   # the kubelet kills the broker after 60s", shortDuration(config.MaxTimeout))
	d.line("providers:")
	for _, p := range m.providers {
		for _, text := range m.own[p.Name] {
			d.comment("Note: " + text + ".")
		}
		p.render(&d)
	}
	return []byte(d.String())
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

func (p migrated) render(d *document) {
	d.line("- name: %s", scalar(p.Name))
	d.line("  backend: %s", p.Backend)
	d.list("  ", "matchImages", p.MatchImages)
	d.line("  defaultCacheDuration: %s", scalar(shortDuration(*p.DefaultCacheDuration)))
	d.line("  timeout: %s", shortDuration(p.Timeout))
	var env []EnvVar
	for _, e := range p.Env {
		env = append(env, EnvVar(e))
	}
	d.env("  ", env)
	d.line("  inheritEnv: [%s]   # the kubelet passes on its whole environment", quoted(p.InheritEnv[0]))
	if t := p.TokenAttributes; t != nil {
		d.tokenAttributes("  ", &TokenAttributes{
			ServiceAccountTokenAudience: t.ServiceAccountTokenAudience, CacheType: string(t.CacheType), RequireServiceAccount: &t.RequireServiceAccount,
			RequiredServiceAccountAnnotationKeys: t.RequiredServiceAccountAnnotationKeys, OptionalServiceAccountAnnotationKeys: t.OptionalServiceAccountAnnotationKeys,
		})
	}
	d.line("  config:")
	d.line("    command: %s", scalar(p.command))
	d.list("    ", "args", p.args)
	d.line("    apiVersion: %s", scalar(p.apiVersion))
}
