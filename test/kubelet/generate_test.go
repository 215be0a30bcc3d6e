package kubelet

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"k8s.io/kubernetes/pkg/credentialprovider"
	"pgregory.net/rapid"

	"github.com/credential-broker/credential-broker/test/kubelet/internal/behaviour"
)

// scenario is one node: its providers, and the images that are pulled on it one after another.
type scenario struct {
	Policy    string // First or Fallback
	EntryAPI  string // apiVersion of the broker's entry
	Providers []provider
	Images    []string // a sequence, with repetitions
	Pods      []pod    `json:",omitempty"` // of each lookup, where tokens matter
}

// provider is an entry and what runs behind it.
type provider struct {
	entry
	Behaviour behaviour.Provider
}

// GoString is how rapid prints a set that failed.
func (s scenario) GoString() string {
	out, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err.Error()
	}
	return string(out)
}

// entries are the kubelet's, one for each provider.
func (s scenario) entries() []entry {
	var entries []entry
	for _, p := range s.Providers {
		entries = append(entries, p.entry)
	}
	return entries
}

// shape is what a generator may use.
type shape struct {
	maxProviders int
	maxImages    int
	faults       bool
	tokens       bool
}

var (
	hosts = []string{
		"registry.io", "a.registry.io", "b.registry.io", "eu.a.registry.io", "registry.io:5000", "registry.io:443", "localhost", "localhost:5000", "Registry.IO", "r.io", "x--y.io",
		"docker.io", "docker.io", "docker.io", "index.docker.io", "10.0.0.1", "10.0.0.1:5000", "[::1]:5000", "[fd00::1]:443", "[::1]", "Host", "w", "w:1",
	}
	paths = []string{
		"a", "b", "team", "teamfoo", "team/app", "team/app2", "team/a", "teamfoo/app", "library/nginx", "library/busybox", "v1/x", "v2/team/app", "v2/x", "v1/v2/x", "v2", "v1", "v1/v1/team",
		"a/b/c/d/e/f/g", "deep/er/and/deep/er", "team_x/app", "team-x/app", "x/v2/y",
	}
	users     = []string{"u", "v", "AWS", "_json_key", "00000000-0000-0000-0000-000000000000", ""}
	passwords = []string{"p", "q", "r", "s", "t", "{\"a\":\"<&>\"}", "pä\u2028ß\"\\", ""}
	durations = []string{"", "0s", "5m", "1h", "12h0m0s", "-1s", "24h"}
	versions  = []string{behaviour.V1, behaviour.V1, behaviour.V1, behaviour.V1Beta1, behaviour.V1Alpha1}
)

func pick[T any](t *rapid.T, from []T, what string) T { return rapid.SampledFrom(from).Draw(t, what) }

// oneIn is true once in n times or so, and false when rapid shrinks.
func oneIn(t *rapid.T, n int, what string) bool { return rapid.IntRange(0, n-1).Draw(t, what) == n-1 }

func scenarios(s shape) *rapid.Generator[scenario] {
	return rapid.Custom(s.draw)
}

var annotationKeys = []string{"example.com/role", "example.com/tenant", "client-id"}

// drawTokens gives some providers tokenAttributes, and each pull a pod.
func (s shape) drawTokens(t *rapid.T, made *scenario) {
	audiences := []string{"sts.example", "https://vault.example"}[:rapid.IntRange(1, 2).Draw(t, "audiences")]
	for i := range made.Providers {
		p := &made.Providers[i]
		if oneIn(t, 3, "without token") {
			continue
		}
		a := &tokenAttributes{Audience: pick(t, audiences, "audience"), CacheType: pick(t, []string{"Token", "ServiceAccount"}, "cacheType"), Require: rapid.Bool().Draw(t, "requireServiceAccount")}
		for _, key := range annotationKeys {
			switch rapid.IntRange(0, 3).Draw(t, "annotation") {
			case 2:
				a.OptionalAnnotations = append(a.OptionalAnnotations, key)
			case 3:
				if a.Require {
					a.RequiredAnnotations = append(a.RequiredAnnotations, key)
				}
			}
		}
		p.TokenAttributes = a
		// What an answer depends on is what the provider says it does.
		recipients := []string{"", "account"}
		if a.CacheType == "Token" {
			recipients = append(recipients, "token")
		}
		recipient := pick(t, recipients, "answers for")
		echo := oneIn(t, 4, "echo")
		for scope, answer := range p.Behaviour.Answers {
			answer.For, answer.Echo = recipient, echo
			p.Behaviour.Answers[scope] = answer
		}
	}
	pods := []pod{{Namespace: "team", Name: "static", UID: "u0"}}
	for i, account := range []string{"plain", "plain", "annotated", "half", "absent"} {
		pods = append(pods, pod{Namespace: pick(t, []string{"team", "other"}, "namespace"), Name: fmt.Sprintf("pod%d", i), UID: fmt.Sprintf("u%d", i+1), ServiceAccount: account})
	}
	for range made.Images {
		made.Pods = append(made.Pods, pick(t, pods, "pod"))
	}
}

func (s shape) draw(t *rapid.T) scenario {
	made := scenario{Policy: pick(t, []string{"Fallback", "First"}, "policy"), EntryAPI: pick(t, versions, "entry's apiVersion")}
	nodeHosts := rapid.SliceOfNDistinct(rapid.SampledFrom(hosts), 1, 3, rapid.ID[string]).Draw(t, "hosts")
	images := rapid.SliceOfNDistinct(rapid.Custom(func(t *rapid.T) string {
		return pick(t, nodeHosts, "host") + "/" + pick(t, paths, "path")
	}), 1, 5, rapid.ID[string]).Draw(t, "images")
	made.Images = rapid.SliceOfN(rapid.SampledFrom(images), 1, s.maxImages).Draw(t, "sequence")

	n := rapid.IntRange(1, 4).Draw(t, "providers")
	if oneIn(t, 6, "crowd") {
		n = rapid.IntRange(1, s.maxProviders).Draw(t, "providers")
	}
	values := rapid.SliceOfNDistinct(rapid.Custom(func(t *rapid.T) behaviour.Value {
		return behaviour.Value{Username: pick(t, users, "username"), Password: pick(t, passwords, "password")}
	}), 1, 12, rapid.ID[behaviour.Value]).Draw(t, "values")
	for i := range n {
		made.Providers = append(made.Providers, s.drawProvider(t, fmt.Sprintf("p%d", i), images, values))
	}
	if s.tokens {
		s.drawTokens(t, &made)
	}
	return made
}

func (s shape) drawProvider(t *rapid.T, name string, images []string, values []behaviour.Value) provider {
	p := provider{entry: entry{Name: name, APIVersion: pick(t, versions, "apiVersion"), DefaultCacheDuration: pick(t, []string{"0s", "1h", "10m"}, "defaultCacheDuration")}}
	if s.tokens {
		p.APIVersion = behaviour.V1
	}
	for range rapid.IntRange(1, 3).Draw(t, "patterns") {
		p.MatchImages = append(p.MatchImages, drawPattern(t, images))
	}
	// The answers are what they say of themselves: one for all images, for a registry, or for an image.
	p.Behaviour.Answers = map[string]behaviour.Answer{}
	if oneIn(t, 5, "global") {
		p.Behaviour.Answers["*"] = s.drawAnswer(t, "Global", images, images, values)
	} else {
		byRegistry := map[string][]string{}
		var registries []string
		for _, image := range images {
			registry, _, _ := strings.Cut(image, "/")
			if byRegistry[registry] == nil {
				registries = append(registries, registry)
			}
			byRegistry[registry] = append(byRegistry[registry], image)
		}
		for _, registry := range registries {
			if rapid.Bool().Draw(t, "registry-wide") {
				p.Behaviour.Answers[registry] = s.drawAnswer(t, "Registry", byRegistry[registry], images, values)
				continue
			}
			for _, image := range byRegistry[registry] {
				p.Behaviour.Answers[image] = s.drawAnswer(t, "Image", []string{image}, images, values)
			}
		}
	}
	if s.faults && oneIn(t, 8, "down at first") {
		p.Behaviour.DownUntil = rapid.IntRange(1, 4).Draw(t, "down until")
	}
	return p
}

func (s shape) drawAnswer(t *rapid.T, cacheKeyType string, mine, all []string, values []behaviour.Value) behaviour.Answer {
	a := behaviour.Answer{CacheKeyType: cacheKeyType, Auth: map[string]behaviour.Value{}}
	if d := pick(t, durations, "cacheDuration"); d != "" {
		a.CacheDuration = &d
	}
	n := rapid.IntRange(1, 3).Draw(t, "keys")
	if oneIn(t, 8, "many or no keys") {
		n = rapid.IntRange(0, 8).Draw(t, "keys")
	}
	plain := oneIn(t, 3, "keys without path")
	for range n {
		from := mine
		if oneIn(t, 6, "key of another image") {
			from = all
		}
		key := drawKey(t, from, plain)
		// Two spellings of one key have a random order in the kubelet itself: rare, and compared less strictly.
		if !oneIn(t, 12, "let a key be spelled twice") {
			index, _ := indexOf(key)
			if slices.ContainsFunc(keysOf(a.Auth), func(other string) bool { i, _ := indexOf(other); return i == index }) {
				continue
			}
		}
		a.Auth[key] = pick(t, values, "value")
	}
	if s.faults && oneIn(t, 10, "fault") {
		a.Fault = pick(t, behaviour.Faults, "fault")
	}
	return a
}

func keysOf(auth map[string]behaviour.Value) []string {
	keys := make([]string, 0, len(auth))
	for key := range auth {
		keys = append(keys, key)
	}
	return keys
}

// drawPattern makes an item of matchImages out of one of the images, or something odd. It always passes the kubelet's validation.
func drawPattern(t *rapid.T, images []string) string {
	for {
		image := pick(t, images, "image")
		host, path, _ := strings.Cut(image, "/")
		if rapid.Bool().Draw(t, "globs") {
			host = drawGlobs(t, host)
		}
		pattern := host
		switch rapid.IntRange(0, 9).Draw(t, "pattern") {
		case 0, 1, 2, 3, 4:
		case 5:
			pattern += "/" + path
		case 6, 7:
			pattern += ("/" + path)[:rapid.IntRange(1, len(path)+1).Draw(t, "prefix")]
		case 8:
			pattern = pick(t, []string{"*", "*.*", "*.*.*", "*:5000", "*.*:5000", "*.io", "registry.*", "docker.io", "*.docker.io", "index.docker.io", "unrelated.io", "?.io"}, "wide pattern")
		case 9:
			pattern = pick(t, []string{
				"https://" + image, "[", "reg[.io", "r[.io/", "registry.io:", "registry.io:*", "registry.io/te%61m", "registry.io/*", "registry.io/team/*", "user@registry.io",
				"registry.io?x", "registry.io#x", "", "/", "*.registry.io/", "registry.io//", `registry.io\`, "-", "[a-]", "REGISTRY.IO", ":5000", "registry.io/%2561", "[::1]", "[::1]:5000", "[:*]:5000",
			}, "odd pattern")
		}
		if _, err := credentialprovider.ParseSchemelessURL(pattern); err == nil {
			return pattern
		}
	}
}

// drawGlobs puts globs into the labels of a host.
func drawGlobs(t *rapid.T, host string) string {
	name, port, hasPort := strings.Cut(host, ":")
	if strings.HasPrefix(host, "[") {
		return host
	}
	labels := strings.Split(name, ".")
	for i, label := range labels {
		switch rapid.IntRange(0, 11).Draw(t, "glob") {
		case 0, 1, 2, 3, 4:
		case 5, 6:
			labels[i] = "*"
		case 7:
			labels[i] = label[:rapid.IntRange(0, len(label)).Draw(t, "before the star")] + "*"
		case 8:
			labels[i] = "*" + label[rapid.IntRange(0, len(label)).Draw(t, "behind the star"):]
		case 9:
			labels[i] = label + "*"
		case 10:
			labels[i] = pick(t, []string{"[a-z]*", label[:len(label)-1] + "?", "[^b]*", "[" + label[:1] + "]" + label[1:], "**", "*" + label + "*"}, "class")
		case 11:
			labels[i] = pick(t, []string{"[", label + "[", "[]", "[-]", `\`, label + "]", "[a-"}, "glob that may not parse")
		}
	}
	host = strings.Join(labels, ".")
	if hasPort {
		host += ":" + port
	}
	return host
}

// drawKey makes an auth key for one of the images, in one of its spellings.
func drawKey(t *rapid.T, images []string, plain bool) string {
	image := pick(t, images, "image")
	host, path, _ := strings.Cut(image, "/")
	if oneIn(t, 4, "globs") {
		host = drawGlobs(t, host)
	}
	if (host == "docker.io" || host == "index.docker.io") && oneIn(t, 2, "docker hub's key") {
		return pick(t, []string{
			"https://index.docker.io/v1/", "index.docker.io", "docker.io", "https://index.docker.io/v2/", "https://index.docker.io/v1", "index.docker.io/v1/", "https://docker.io/v1/",
			"registry-1.docker.io", "index.docker.io/library/nginx", "*.docker.io", "http://index.docker.io",
		}, "key")
	}
	rest := ""
	if !plain {
		switch rapid.IntRange(0, 3).Draw(t, "path") {
		case 0:
		case 1:
			rest = "/" + path
		case 2, 3:
			rest = ("/" + path)[:rapid.IntRange(1, len(path)+1).Draw(t, "prefix")]
		}
	}
	scheme := pick(t, []string{"", "", "", "", "https://", "http://"}, "scheme")
	api := pick(t, []string{"", "", "", "", "/v1", "/v2"}, "api")
	switch api {
	case "":
	default:
		if rest == "" {
			rest = pick(t, []string{"/", "/", ""}, "slash")
		}
		rest = api + rest
	}
	key := scheme + host + rest
	if oneIn(t, 15, "odd key") {
		switch rapid.IntRange(0, 12).Draw(t, "oddity") {
		case 0:
			key += "/"
		case 1:
			key = strings.ToUpper(key)
		case 2:
			key = scheme + host + strings.Replace(rest, "a", "%61", 1)
		case 3:
			key = scheme + host + strings.Replace(rest, "a", "%2561", 1)
		case 4:
			key += "?x=y"
		case 5:
			key += "#x"
		case 6:
			key = scheme + "user:secret@" + host + rest
		case 7:
			key += "%zz"
		case 8:
			key = "HTTPS://" + host + rest
		case 9:
			key = "ftp://" + host + rest
		case 10:
			key += " "
		case 11:
			key = pick(t, []string{"", "*", "/", "://", "https://", ":", "[", "%", "*.*", "\x01", "[::1", "é.io", "registry.io:5000:1", "registry.io:x"}, "key")
		case 12:
			key = scheme + host + "/" + rest
		}
	}
	return key
}
