package kubelet

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/credential-broker/credential-broker/broker/config"
)

// The apiVersions and the kind of a CredentialProviderConfig (k8s.io/kubelet/config). tokenAttributes exist in v1 only.
const (
	ConfigV1       = "kubelet.config.k8s.io/v1"
	ConfigV1Beta1  = "kubelet.config.k8s.io/v1beta1"
	ConfigV1Alpha1 = "kubelet.config.k8s.io/v1alpha1"
	ConfigKind     = "CredentialProviderConfig"
)

// CredentialProviderConfig names the programs that a kubelet asks for credentials: the file or directory given with --image-credential-provider-config.
type CredentialProviderConfig struct {
	// Sources are the files it was read from, in order.
	Sources   []string
	Providers []CredentialProvider
}

// CredentialProvider is one entry. Field for field the kubelet's.
type CredentialProvider struct {
	// Name is that of a file in the kubelet's --image-credential-provider-bin-dir.
	Name string
	// APIVersion is that of request and response: V1, V1Beta1 or V1Alpha1.
	APIVersion  string
	MatchImages []string
	// DefaultCacheDuration holds where a response has no cacheDuration. The kubelet requires it; nil is a missing one.
	DefaultCacheDuration *time.Duration
	Args                 []string
	Env                  []EnvVar
	TokenAttributes      *TokenAttributes
	// File and Line are where the entry stands, for messages.
	File string
	Line int
}

// EnvVar is a variable that is set for the program, over the kubelet's own environment.
type EnvVar struct {
	Name  string
	Value string
}

// TokenAttributes make the kubelet send a service account token along with the request (KEP-4412).
type TokenAttributes struct {
	ServiceAccountTokenAudience string
	// CacheType is Token or ServiceAccount.
	CacheType string
	// RequireServiceAccount has no default: nil is a missing one.
	RequireServiceAccount                *bool
	RequiredServiceAccountAnnotationKeys []string
	OptionalServiceAccountAnnotationKeys []string
}

// ReadConfig reads a CredentialProviderConfig as the kubelet does: a file, or all *.json, *.yaml and *.yml of a directory in lexical order (since 1.34), strictly. Besides it
// applies the kubelet's validation. The error is config.Problems, except where a file cannot be opened.
func ReadConfig(path string) (*CredentialProviderConfig, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read the kubelet's credential provider configuration: %w", err)
	}
	files := []string{path}
	if info.IsDir() {
		if files, err = configFiles(path); err != nil {
			return nil, err
		}
	}
	all := &CredentialProviderConfig{}
	var problems config.Problems
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read the kubelet's credential provider configuration: %w", err)
		}
		one, err := ParseConfig(file, data)
		if some, ok := errors.AsType[config.Problems](err); ok {
			problems = append(problems, some...)
		}
		all.Sources = append(all.Sources, file)
		if one != nil {
			all.Providers = append(all.Providers, one.Providers...)
		}
	}
	if len(files) > 1 {
		problems = append(problems, namedTwice(all.Providers, problems)...)
	}
	if len(problems) > 0 {
		return nil, problems
	}
	return all, nil
}

// InstallerMark begins a configuration that the DaemonSet's installer has written, and keeps as it should be.
const InstallerMark = "# Written by credential-broker-installer"

func configFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil {
		return nil, fmt.Errorf("read the kubelet's credential provider configuration: %w", err)
	}
	var files []string
	for _, entry := range entries {
		if extension := filepath.Ext(entry.Name()); !entry.IsDir() && (extension == ".json" || extension == ".yaml" || extension == ".yml") {
			files = append(files, filepath.Join(dir, entry.Name()))
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("read the kubelet's credential provider configuration: %s has no *.json, *.yaml or *.yml", dir)
	}
	return files, nil
}

// ParseConfig reads one file's text and applies the kubelet's validation. The name is for messages. The error is config.Problems; what could be read is returned with it.
func ParseConfig(name string, data []byte) (*CredentialProviderConfig, error) {
	r := &reader{name: name}
	all := &CredentialProviderConfig{Sources: []string{name}}
	root, err := parseDocument(data)
	if err != nil {
		var e *syntaxError
		errors.As(err, &e)
		return nil, config.Problems{{File: name, Line: e.line, Message: e.text}}
	}
	r.config(root, all)
	all.validate(&r.problems)
	if len(r.problems) > 0 {
		return all, r.problems
	}
	return all, nil
}

// reader decodes nodes strictly and collects what is wrong with them.
type reader struct {
	name     string
	problems config.Problems
}

func (r *reader) problem(line int, path, format string, args ...any) {
	r.problems = append(r.problems, config.Problem{File: r.name, Line: line, Path: path, Message: fmt.Sprintf(format, args...)})
}

// object calls the decoder of each field that is there; null counts as absent, as in JSON. It returns false if the node is no mapping.
func (r *reader) object(n *node, path string, decoders map[string]func(*node, string)) bool {
	if n.kind != mapping {
		r.problem(n.line, path, "must be a mapping, is %s", n.kind)
		return false
	}
	seen := make(map[string]int)
	for _, f := range n.fields {
		sub := f.name
		if path != "" {
			sub = path + "." + f.name
		}
		decode, known := decoders[f.name]
		if first, twice := seen[f.name]; twice {
			r.problem(f.line, sub, "stands twice, first in line %d", first)
			continue
		}
		seen[f.name] = f.line
		if !known {
			r.problem(f.line, sub, "unknown field; known are %s", strings.Join(sortedKeys(decoders), ", "))
			continue
		}
		if f.value.kind != null {
			decode(f.value, sub)
		}
	}
	return true
}

func sortedKeys(m map[string]func(*node, string)) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

func (r *reader) string(into *string) func(*node, string) {
	return func(n *node, path string) {
		if n.kind != text {
			hint := ""
			if n.kind == number || n.kind == boolean {
				hint = "; put it in quotes"
			}
			r.problem(n.line, path, "must be a string, is %s%s", n.kind, hint)
			return
		}
		*into = n.text
	}
}

func (r *reader) strings(into *[]string) func(*node, string) {
	return r.list(func(item *node, path string) {
		var s string
		if item.kind != null { // the kubelet reads null as an empty string here
			r.string(&s)(item, path)
		}
		*into = append(*into, s)
	})
}

func (r *reader) bool(into **bool) func(*node, string) {
	return func(n *node, path string) {
		if n.kind != boolean {
			r.problem(n.line, path, "must be true or false, is %s", n.kind)
			return
		}
		value := n.text == "true"
		*into = &value
	}
}

func (r *reader) duration(into **time.Duration) func(*node, string) {
	return func(n *node, path string) {
		if n.kind != text {
			r.problem(n.line, path, `must be a duration such as "12h" or "0s", is %s`, n.kind)
			return
		}
		d, err := time.ParseDuration(n.text)
		if err != nil {
			r.problem(n.line, path, `must be a duration such as "12h" or "0s", is %q`, n.text)
			return
		}
		*into = &d
	}
}

func (r *reader) list(each func(*node, string)) func(*node, string) {
	return func(n *node, path string) {
		if n.kind != list {
			r.problem(n.line, path, "must be a list, is %s", n.kind)
			return
		}
		for i, item := range n.items {
			each(item, fmt.Sprintf("%s[%d]", path, i))
		}
	}
}

func (r *reader) config(n *node, all *CredentialProviderConfig) {
	var apiVersion, kind string
	var providers *node
	ok := r.object(n, "", map[string]func(*node, string){
		"apiVersion": r.string(&apiVersion),
		"kind":       r.string(&kind),
		"providers":  func(n *node, _ string) { providers = n },
	})
	if !ok {
		return
	}
	if kind != ConfigKind {
		r.problem(lineOfField(n, "kind"), "kind", "must be %s, is %q; is this the file that --image-credential-provider-config names?", ConfigKind, kind)
	}
	if apiVersion != ConfigV1 && apiVersion != ConfigV1Beta1 && apiVersion != ConfigV1Alpha1 {
		r.problem(lineOfField(n, "apiVersion"), "apiVersion", "must be %s, %s or %s, is %q", ConfigV1, ConfigV1Beta1, ConfigV1Alpha1, apiVersion)
	}
	if providers == nil || providers.kind == list && len(providers.items) == 0 {
		r.problem(lineOfField(n, "providers"), "providers", "at least one provider is required")
		return
	}
	r.list(func(item *node, path string) {
		all.Providers = append(all.Providers, r.provider(item, path, apiVersion))
	})(providers, "providers")
}

func lineOfField(n *node, name string) int {
	if f := n.field(name); f != nil {
		return f.line
	}
	return n.line
}

func (r *reader) provider(n *node, path, apiVersion string) CredentialProvider {
	p := CredentialProvider{File: r.name, Line: n.line}
	decoders := map[string]func(*node, string){
		"name":                 r.string(&p.Name),
		"apiVersion":           r.string(&p.APIVersion),
		"matchImages":          r.strings(&p.MatchImages),
		"defaultCacheDuration": r.duration(&p.DefaultCacheDuration),
		"args":                 r.strings(&p.Args),
		"env": r.list(func(item *node, path string) {
			var e EnvVar
			r.object(item, path, map[string]func(*node, string){"name": r.string(&e.Name), "value": r.string(&e.Value)})
			p.Env = append(p.Env, e)
		}),
	}
	if apiVersion == ConfigV1 {
		decoders["tokenAttributes"] = func(n *node, path string) { p.TokenAttributes = r.tokenAttributes(n, path) }
	}
	r.object(n, path, decoders)
	return p
}

func (r *reader) tokenAttributes(n *node, path string) *TokenAttributes {
	t := &TokenAttributes{}
	r.object(n, path, map[string]func(*node, string){
		"serviceAccountTokenAudience":          r.string(&t.ServiceAccountTokenAudience),
		"cacheType":                            r.string(&t.CacheType),
		"requireServiceAccount":                r.bool(&t.RequireServiceAccount),
		"requiredServiceAccountAnnotationKeys": r.strings(&t.RequiredServiceAccountAnnotationKeys),
		"optionalServiceAccountAnnotationKeys": r.strings(&t.OptionalServiceAccountAnnotationKeys),
	})
	return t
}

// Validate applies the kubelet's rules (validateCredentialProviderConfig in its pkg/credentialprovider/plugin/config.go); what it accepts the kubelet starts with, if the files that the
// entries name are there. An empty name is refused too: the kubelet would take the directory for the program.
func (c *CredentialProviderConfig) Validate() error {
	var problems config.Problems
	c.validate(&problems)
	if len(problems) > 0 {
		return problems
	}
	return nil
}

func (c *CredentialProviderConfig) validate(problems *config.Problems) {
	if len(c.Providers) == 0 && len(*problems) == 0 {
		*problems = append(*problems, config.Problem{File: strings.Join(c.Sources, ", "), Path: "providers", Message: "at least one provider is required"})
	}
	for i, p := range c.Providers {
		p.validate(fmt.Sprintf("providers[%d]", i), problems)
	}
	*problems = append(*problems, namedTwice(c.Providers, *problems)...)
}

// namedTwice finds entries with the name of an earlier one, except those that are known already.
func namedTwice(providers []CredentialProvider, known config.Problems) config.Problems {
	var problems config.Problems
	first := make(map[string]string)
	for i, p := range providers {
		at, twice := first[p.Name]
		if !twice {
			first[p.Name] = fmt.Sprintf("%s:%d", p.File, p.Line)
			continue
		}
		problem := config.Problem{File: p.File, Line: p.Line, Path: fmt.Sprintf("providers[%d].name", i), Message: fmt.Sprintf("%q is the name of the entry at %s too; rename one", p.Name, at)}
		if !slices.ContainsFunc(known, func(k config.Problem) bool {
			return k.File == problem.File && k.Line == problem.Line && k.Message == problem.Message
		}) {
			problems = append(problems, problem)
		}
	}
	return problems
}

func (p *CredentialProvider) validate(path string, problems *config.Problems) {
	// What the reader has said about a field need not be said again.
	said := func(field string) bool {
		return slices.ContainsFunc(*problems, func(k config.Problem) bool {
			return k.File == p.File && (k.Path == field || strings.HasPrefix(k.Path, field+"["))
		})
	}
	complain := func(field, format string, args ...any) {
		if field = path + "." + field; !said(field) {
			*problems = append(*problems, config.Problem{File: p.File, Line: p.Line, Path: field, Message: fmt.Sprintf(format, args...)})
		}
	}
	switch {
	case p.Name == "":
		complain("name", "is required")
	case strings.ContainsAny(p.Name, "/ ") || p.Name == "." || p.Name == "..":
		complain("name", "%q is no file name: without / and spaces, neither . nor ..", p.Name)
	}
	switch {
	case p.APIVersion == "":
		complain("apiVersion", "is required; %s", V1)
	case !knownVersion(p.APIVersion):
		complain("apiVersion", "%q is none of %s, %s and %s", p.APIVersion, V1, V1Beta1, V1Alpha1)
	}
	if len(p.MatchImages) == 0 {
		complain("matchImages", "at least one pattern is required")
	}
	for i, pattern := range p.MatchImages {
		if _, err := url.Parse("https://" + pattern); err != nil {
			var e *url.Error
			errors.As(err, &e)
			complain(fmt.Sprintf("matchImages[%d]", i), "%q is not of the form host[:port][/path]: %v", pattern, e.Err)
		}
	}
	switch d := p.DefaultCacheDuration; {
	case d == nil:
		complain("defaultCacheDuration", `is required; "0s" for an answer that is not to be cached`)
	case *d < 0:
		complain("defaultCacheDuration", "%s is negative", *d)
	}
	if p.TokenAttributes != nil {
		p.TokenAttributes.validate(p.APIVersion, complain)
	}
}

func (t *TokenAttributes) validate(apiVersion string, complain func(field, format string, args ...any)) {
	const (
		required = "tokenAttributes.requiredServiceAccountAnnotationKeys"
		optional = "tokenAttributes.optionalServiceAccountAnnotationKeys"
	)
	if apiVersion != V1 {
		complain("tokenAttributes", "needs apiVersion %s", V1)
	}
	if t.ServiceAccountTokenAudience == "" {
		complain("tokenAttributes.serviceAccountTokenAudience", "is required")
	}
	switch t.CacheType {
	case "Token", "ServiceAccount":
	case "":
		complain("tokenAttributes.cacheType", "is required; Token or ServiceAccount")
	default:
		complain("tokenAttributes.cacheType", "%q is neither Token nor ServiceAccount", t.CacheType)
	}
	switch {
	case t.RequireServiceAccount == nil:
		complain("tokenAttributes.requireServiceAccount", "is required; true or false")
	case !*t.RequireServiceAccount && len(t.RequiredServiceAccountAnnotationKeys) > 0:
		complain(required, "needs requireServiceAccount: true")
	}
	seen := make(map[string]string)
	for _, keys := range []struct {
		field string
		keys  []string
	}{{required, t.RequiredServiceAccountAnnotationKeys}, {optional, t.OptionalServiceAccountAnnotationKeys}} {
		for i, key := range keys.keys {
			field := fmt.Sprintf("%s[%d]", keys.field, i)
			if first, twice := seen[key]; twice {
				complain(field, "%q stands in %s too", key, first)
				continue
			}
			seen[key] = field
			if !qualifiedName(strings.ToLower(key)) {
				complain(field, "%q is no annotation key: [prefix/]name", key)
			}
		}
	}
}

// qualifiedName is IsQualifiedName of k8s.io/apimachinery: a name of at most 63 letters, digits and "-_." that begins and ends with a letter or a digit, after an optional DNS
// subdomain and a slash.
func qualifiedName(s string) bool {
	prefix, name, hasPrefix := strings.Cut(s, "/")
	if !hasPrefix {
		name = s
	} else if !dnsSubdomain(prefix) {
		return false
	}
	return len(name) <= 63 && edged(name, func(c byte) bool { return alphanumeric(c) || 'A' <= c && c <= 'Z' }, "-_.")
}

// dnsSubdomain is IsDNS1123Subdomain of k8s.io/apimachinery, which is what names of API objects have to be.
func dnsSubdomain(s string) bool {
	if len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if !edged(label, alphanumeric, "-") {
			return false
		}
	}
	return true
}

func alphanumeric(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }

// edged says that s begins and ends with a character of the set, and has between them also those of inner.
func edged(s string, set func(byte) bool, inner string) bool {
	for i := range len(s) {
		if !set(s[i]) && (i == 0 || i == len(s)-1 || !strings.Contains(inner, s[i:i+1])) {
			return false
		}
	}
	return s != ""
}
