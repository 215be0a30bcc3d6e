package kubelet

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/image"
)

// AgentVariable names the agent's socket in the environment, so that the program the kubelet starts need not read a configuration first.
const AgentVariable = "CREDENTIAL_BROKER_AGENT"

// entryName is the entry without audience, and what the names of the others begin with.
const entryName = "credential-broker"

// EntryOptions say how entries are to be made.
type EntryOptions struct {
	// ConfigPath is handed on to the broker with --config; absolute. Empty: the broker finds its default configuration by itself.
	ConfigPath string
	// BackendDir is handed on with --backend-dir; absolute. Empty: the configuration or the broker's place decides.
	BackendDir string
	// Match replaces the union of the providers' patterns, which these have to cover.
	Match []string
	// Single asks for one entry where there is at most one audience.
	Single bool
}

// Entry is one entry of the kubelet's configuration that runs the broker.
type Entry struct {
	CredentialProvider
	// Audience is that of the tokens; empty for an entry without token.
	Audience string
	// Serves are the names of the providers that take part in it.
	Serves []string
	// Comments are paragraphs for whoever reads the printed entry.
	Comments []string
}

// EntryName is the name of the entry for an audience, "credential-broker" for none. It is that of a file, too: the link to the broker in the kubelet's bin directory; and
// that of a ClusterRole, so it is a DNS subdomain. An audience that is no such name itself is told from all others by a digest at the end, which no audience that stands for itself has.
func EntryName(audience string) string {
	if audience == "" {
		return entryName
	}
	name := dnsName(audience)
	if name == audience && len(name) <= maxName && !hasDigest(name) {
		return entryName + "-" + name
	}
	sum := sha256.Sum256([]byte(audience))
	digest := hex.EncodeToString(sum[:])[:digestDigits]
	if name = strings.TrimRight(name[:min(len(name), maxName)], "-."); name == "" {
		return entryName + "-" + digest
	}
	return entryName + "-" + name + "-" + digest
}

const (
	maxName      = 100 // characters of an audience in a name
	digestDigits = 12
)

func hasDigest(name string) bool {
	i := strings.LastIndexByte(name, '-')
	digest := name[i+1:]
	return len(digest) == digestDigits && strings.Trim(digest, "0123456789abcdef") == ""
}

// dnsName is s in lower case with a dash for whatever cannot stand in a DNS subdomain. It may be empty.
func dnsName(s string) string {
	var out []byte
	for _, c := range []byte(strings.ToLower(s)) {
		last := byte('.')
		if len(out) > 0 {
			last = out[len(out)-1]
		}
		switch {
		case alphanumeric(c):
			out = append(out, c)
		case c == '.' && last == '-':
			out[len(out)-1] = '.'
		case c == '.' && last != '.':
			out = append(out, '.')
		case c != '.' && last != '.' && (last != '-' || c == '-'):
			out = append(out, '-')
		}
	}
	return strings.TrimRight(string(out), "-.")
}

// Entries makes the entries of the kubelet's configuration that cover the providers: one while no provider has tokenAttributes, else one for the providers without and
// one for each audience, in the order of their first providers. The notes are for the person who asked; they hold nothing that Render does not print too, except what concerns the options.
func Entries(cfg *config.Config, opts EntryOptions) (entries []Entry, notes []string, err error) {
	if len(cfg.Providers) == 0 {
		return nil, nil, errors.New("the configuration has no providers: add one, then print the kubelet's entry for it")
	}
	if opts.ConfigPath != "" && !filepath.IsAbs(opts.ConfigPath) {
		return nil, nil, fmt.Errorf("the configuration's path %q is not absolute: the kubelet starts the broker in a directory of its own", opts.ConfigPath)
	}
	groups := groupByAudience(cfg.Providers)
	withTokens := len(groups) > 1 || groups[0].audience != ""
	if opts.Single && withTokens {
		if groups, err = joined(groups, cfg.Providers); err != nil {
			return nil, nil, err
		}
	}
	match, err := patternsOf(opts.Match)
	if err != nil {
		return nil, nil, err
	}
	names := make(map[string]string)
	for _, g := range groups {
		entry, err := g.entry(cfg, opts, withTokens)
		if err != nil {
			return nil, nil, err
		}
		if len(match) > 0 {
			if err := covers(match, g.providers); err != nil {
				return nil, nil, err
			}
			entry.MatchImages = unique(opts.Match)
		}
		if other, taken := names[entry.Name]; taken {
			return nil, nil, fmt.Errorf("audiences %q and %q would both get the entry %s: change one of them", other, g.audience, entry.Name)
		}
		names[entry.Name] = g.audience
		entries = append(entries, entry)
	}
	return entries, notesOn(cfg, entries, match), nil
}

func notesOn(cfg *config.Config, entries []Entry, match []image.Pattern) (notes []string) {
	for _, pattern := range match {
		if warning := pattern.Warning(); warning != "" {
			notes = append(notes, fmt.Sprintf("--match %q: %s", pattern, warning))
		}
	}
	if len(entries) == 1 {
		return notes
	}
	if len(match) > 0 {
		notes = append(notes, "every entry has all patterns of --match: the kubelet asks for a token of each audience for every image that matches")
	}
	if len(cfg.Overlaps()) > 0 {
		notes = append(notes, "patterns of providers in different entries overlap: for such an image the kubelet asks both entries and adds up their answers; "+
			"`credential-broker validate` names the patterns")
	}
	return notes
}

// group is the providers of one entry.
type group struct {
	audience  string
	providers []*config.Provider
	single    bool // joined by --single
}

func groupByAudience(providers []*config.Provider) []group {
	var groups []group
	for _, p := range providers {
		audience := ""
		if p.TokenAttributes != nil {
			audience = p.TokenAttributes.ServiceAccountTokenAudience
		}
		i := slices.IndexFunc(groups, func(g group) bool { return g.audience == audience })
		if i < 0 {
			i = len(groups)
			groups = append(groups, group{audience: audience})
		}
		groups[i].providers = append(groups[i].providers, p)
	}
	return groups
}

// joined makes one group of all providers, if they have one audience between them.
func joined(groups []group, providers []*config.Provider) ([]group, error) {
	one := group{single: true, providers: providers}
	for _, g := range groups {
		if g.audience != "" && one.audience != "" {
			return nil, fmt.Errorf("--single: the providers have the audiences %q and %q, and an entry of the kubelet's has one: leave --single out", one.audience, g.audience)
		}
		if g.audience != "" {
			one.audience = g.audience
		}
	}
	return []group{one}, nil
}

func (g group) entry(cfg *config.Config, opts EntryOptions, withTokens bool) (Entry, error) {
	var notCached time.Duration
	e := Entry{Audience: g.audience, CredentialProvider: CredentialProvider{
		Name: EntryName(g.audience), APIVersion: V1, MatchImages: imagesOf(g.providers), DefaultCacheDuration: &notCached,
		TokenAttributes: g.tokenAttributes(),
	}}
	if g.single {
		e.Name = entryName
	}
	if len(e.MatchImages) == 0 {
		return Entry{}, fmt.Errorf("the providers of entry %s have no matchImages", e.Name)
	}
	for _, p := range g.providers {
		e.Serves = append(e.Serves, p.Name)
	}
	if opts.ConfigPath != "" {
		e.Args = append(e.Args, "--config", opts.ConfigPath)
	}
	if opts.BackendDir != "" {
		e.Args = append(e.Args, "--backend-dir", opts.BackendDir)
	}
	if withTokens && !g.single {
		e.Args = append(e.Args, "--audience", g.audience)
	}
	if cfg.Agent.Socket != "" {
		e.Env = []EnvVar{{Name: AgentVariable, Value: cfg.Agent.Socket}}
	}
	e.Comments = g.comments(withTokens)
	return e, nil
}

func (g group) comments(withTokens bool) []string {
	var names []string
	for _, p := range g.providers {
		names = append(names, p.Name)
	}
	who := strings.Join(names, ", ")
	mixed := slices.ContainsFunc(g.providers, func(p *config.Provider) bool { return p.TokenAttributes == nil }) && g.audience != ""
	switch {
	case mixed:
		return []string{
			"All providers, with and without service account token: " + who + ".",
			"One entry for both (--single) costs this:",
			"- no token, no broker: where the kubelet cannot get a token for the pod's service account (API server away, RBAC missing), the providers that need none are not asked either;",
			"- the kubelet caches every answer for one pod or one service account only, those of the node's own identity included;",
			"- what is pulled with any of these credentials is recorded as that service account's: pods of other accounts have to authenticate for it again.",
		}
	case g.audience != "":
		return []string{
			fmt.Sprintf("Providers that see the pod's service account token, for audience %q: %s.", g.audience, who),
			"The kubelet gets the token before it starts the broker, and records what it pulls with these credentials as the service account's.",
		}
	case withTokens:
		return []string{"Providers without token: " + who + ". They work without service account and API server."}
	default:
		return []string{"Providers: " + who + "."}
	}
}

// imagesOf are the patterns for which the kubelet has to call: the providers' own and, since nothing else routes them here, the sources of their mirrors.
func imagesOf(providers []*config.Provider) []string {
	var patterns []string
	for _, p := range providers {
		patterns = append(patterns, p.MatchImages...)
		for _, m := range p.Mirrors {
			patterns = append(patterns, m.Source)
		}
	}
	return unique(patterns)
}

func unique(in []string) []string {
	seen := make(map[string]bool, len(in))
	var out []string
	for _, s := range in {
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	return out
}

// tokenAttributes are what lets the kubelet call the broker whenever one of the providers could be asked. The broker passes over those that want more than the request has.
func (g group) tokenAttributes() *TokenAttributes {
	if g.audience == "" {
		return nil
	}
	require := true
	out := &TokenAttributes{ServiceAccountTokenAudience: g.audience, CacheType: string(config.CacheTypeServiceAccount), RequireServiceAccount: &require}
	var keys []string
	requiredBy := make(map[string]int)
	for _, p := range g.providers {
		t := p.TokenAttributes
		if t == nil {
			require = false
			continue
		}
		require = require && t.RequireServiceAccount
		if t.CacheType != config.CacheTypeServiceAccount {
			out.CacheType = string(config.CacheTypeToken)
		}
		keys = append(append(keys, t.RequiredServiceAccountAnnotationKeys...), t.OptionalServiceAccountAnnotationKeys...)
		for _, key := range unique(t.RequiredServiceAccountAnnotationKeys) {
			requiredBy[key]++
		}
	}
	for _, key := range unique(keys) {
		if require && requiredBy[key] == len(g.providers) {
			out.RequiredServiceAccountAnnotationKeys = append(out.RequiredServiceAccountAnnotationKeys, key)
		} else {
			out.OptionalServiceAccountAnnotationKeys = append(out.OptionalServiceAccountAnnotationKeys, key)
		}
	}
	return out
}

func patternsOf(match []string) ([]image.Pattern, error) {
	var patterns []image.Pattern
	for _, text := range unique(match) {
		pattern, err := image.ParsePattern(text)
		if err != nil {
			return nil, fmt.Errorf("--match %q is %w", text, err)
		}
		if pattern.Host() == "" {
			return nil, fmt.Errorf("--match %q has no host: write host[:port][/path]", text)
		}
		patterns = append(patterns, pattern)
	}
	return patterns, nil
}

// covers returns an error that names every pattern of the providers for which the kubelet would not call.
func covers(match []image.Pattern, providers []*config.Provider) error {
	var missing []string
	for _, u := range uncovered(match, providers) {
		missing = append(missing, fmt.Sprintf("provider %q: %q is covered by no pattern of --match: add it, or a wider one", u.Provider, u.Pattern))
	}
	if len(missing) > 0 {
		return errors.New(strings.Join(missing, "\n"))
	}
	return nil
}

// UncoveredPattern is a provider's pattern for which the kubelet would not call.
type UncoveredPattern struct {
	Provider, Pattern string
}

// Uncovered gives the providers' patterns, the sources of mirrors among them, that no pattern of an entry's matchImages covers. One that does not parse covers nothing.
func Uncovered(matchImages []string, providers []*config.Provider) []UncoveredPattern {
	var match []image.Pattern
	for _, text := range matchImages {
		if pattern, err := image.ParsePattern(text); err == nil {
			match = append(match, pattern)
		}
	}
	return uncovered(match, providers)
}

func uncovered(match []image.Pattern, providers []*config.Provider) []UncoveredPattern {
	var missing []UncoveredPattern
	for _, p := range providers {
		for _, text := range imagesOf([]*config.Provider{p}) {
			pattern, err := image.ParsePattern(text)
			if err != nil || !slices.ContainsFunc(match, func(wide image.Pattern) bool { return covered(wide, pattern) }) {
				missing = append(missing, UncoveredPattern{p.Name, text})
			}
		}
	}
	return missing
}

// covered says whether wide matches every image that narrow matches.
func covered(wide, narrow image.Pattern) bool {
	if wide.String() == narrow.String() {
		return true
	}
	w, n := wide.Labels(), narrow.Labels()
	if wide.Port() != narrow.Port() || len(w) != len(n) || !strings.HasPrefix(narrow.Path(), wide.Path()) {
		return false
	}
	for i := range w {
		if !labelCovered(w[i], n[i]) {
			return false
		}
	}
	return true
}

// labelCovered reads narrow as a text in which a star is a letter of its own, which only a star of wide can stand for. A label with a class or an escape is covered by itself and by "*"
// alone, though it might be by others; a question mark stands in no label, since the kubelet reads patterns as URLs.
func labelCovered(wide, narrow string) bool {
	switch {
	case wide == narrow || wide == "*":
		return true
	case strings.ContainsAny(wide+narrow, `?[\`):
		return false
	}
	parts := strings.Split(wide, "*")
	if len(parts) == 1 {
		return false
	}
	first, last := parts[0], parts[len(parts)-1]
	if len(narrow) < len(first)+len(last) || !strings.HasPrefix(narrow, first) || !strings.HasSuffix(narrow, last) {
		return false
	}
	rest := narrow[len(first) : len(narrow)-len(last)]
	for _, part := range parts[1 : len(parts)-1] {
		_, after, found := strings.Cut(rest, part)
		if !found {
			return false
		}
		rest = after
	}
	return true
}

// Render prints the entries as a CredentialProviderConfig, with comments for the person who installs it. The RBAC that tokens need is among the comments: the kubelet reads
// one document of a file.
func Render(entries []Entry) []byte {
	var d document
	var audiences, names []string
	for _, e := range entries {
		names = append(names, e.Name)
		if e.Audience != "" {
			audiences = append(audiences, e.Audience)
		}
	}
	d.comment("The kubelet's entries for credential-broker, printed by `credential-broker kubelet-config`, for a kubelet with")
	d.line("#   --image-credential-provider-config=THIS-FILE --image-credential-provider-bin-dir=DIR")
	d.comment("where DIR has " + strings.Join(names, ", ") + ": `credential-broker kubelet-config --link --bin-dir DIR` makes the links. The kubelet reads this file once, when it starts.")
	d.line("apiVersion: %s", ConfigV1)
	d.line("kind: %s", ConfigKind)
	d.line("providers:")
	for _, e := range entries {
		e.render(&d)
	}
	if len(audiences) > 0 {
		d.line("#")
		d.comment("Nodes have to be allowed to ask for these tokens, else the kubelet never starts the broker for them. Apply this to the cluster, without the leading \"# \":")
		d.line("#")
		for line := range strings.Lines(string(RBAC(audiences))) {
			d.line("%s", strings.TrimRight("# "+line, " \n"))
		}
	}
	return []byte(d.String())
}

func (e Entry) render(d *document) {
	for _, comment := range e.Comments {
		d.comment(comment)
	}
	d.line("- name: %s", scalar(e.Name))
	d.line("  apiVersion: %s", scalar(e.APIVersion))
	d.list("  ", "matchImages", e.MatchImages)
	if e.DefaultCacheDuration != nil {
		d.line("  defaultCacheDuration: %s   # never used: every answer of the broker's says how long it may be cached", scalar(shortDuration(*e.DefaultCacheDuration)))
	}
	d.list("  ", "args", e.Args)
	d.env("  ", e.Env)
	d.tokenAttributes("  ", e.TokenAttributes)
}

// shortDuration is a duration without the zeros that String writes at its end: "12h", not "12h0m0s".
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// RBAC is what a cluster needs so that its nodes may ask for tokens of the audiences (NodeRestriction, since Kubernetes 1.33): for each a ClusterRole and a ClusterRoleBinding to
// the group system:nodes, as YAML documents for `kubectl apply`.
func RBAC(audiences []string) []byte {
	var d document
	const group = "rbac.authorization.k8s.io"
	for i, audience := range unique(audiences) {
		if i > 0 {
			d.line("---")
		}
		name := scalar(EntryName(audience))
		d.line("apiVersion: %s/v1", group)
		d.line("kind: ClusterRole")
		d.line("metadata:")
		d.line("  name: %s", name)
		d.line("rules:")
		d.line(`- apiGroups: [""]`)
		d.line("  resources: [%s]", quoted(audience))
		d.line("  verbs: [request-serviceaccounts-token-audience]")
		d.line("---")
		d.line("apiVersion: %s/v1", group)
		d.line("kind: ClusterRoleBinding")
		d.line("metadata:")
		d.line("  name: %s", name)
		d.line("roleRef:")
		d.line("  apiGroup: %s", group)
		d.line("  kind: ClusterRole")
		d.line("  name: %s", name)
		d.line("subjects:")
		d.line("- apiGroup: %s", group)
		d.line("  kind: Group")
		d.line("  name: system:nodes")
	}
	return []byte(d.String())
}
