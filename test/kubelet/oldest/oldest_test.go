package oldest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

var a, b, c = value{"a", "1"}, value{"b", "2"}, value{"c", `3"<&>é`}

func same(t *testing.T, what string, got, want []value) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: the kubelet tries %q, not %q", what, got, want)
	}
}

// One provider, its answers of each kind, and a kubelet with the entry as printed: comments are in it.
func TestTheOldestKubeletTakesThePrintedEntryAndItsAnswers(t *testing.T) {
	s := newStage(t, "Fallback", provider{
		entry: entry{Name: "p", APIVersion: v1, MatchImages: []string{"*.io", "docker.io"}, DefaultCacheDuration: "1h"},
		answers: map[string]answer{
			"image.io":    {Auth: map[string]value{"image.io/team": a}, CacheKeyType: "Image", CacheDuration: "1h"},
			"registry.io": {Auth: map[string]value{"registry.io": b}, CacheKeyType: "Registry", CacheDuration: "1h"},
			"never.io":    {Auth: map[string]value{"never.io": c}, CacheKeyType: "Registry", CacheDuration: "0s"},
			"several.io":  {Auth: map[string]value{"several.io": a, "several.io/team": b, "*.io": c, "other.io": a}, CacheKeyType: "Image", CacheDuration: "1h"},
			"docker.io":   {Auth: map[string]value{"https://index.docker.io/v1/": a}, CacheKeyType: "Registry", CacheDuration: "1h"},
			"down.io":     {Fault: "exit 1"},
		},
	})
	n := s.printed()
	for _, step := range []struct {
		image  string
		want   []value
		starts int // of the provider, so far
		why    string
	}{
		{"image.io/team/x", []value{a}, 1, ""},
		{"image.io/team/x", []value{a}, 1, "the answer is for this image"},
		{"image.io/team/y", []value{a}, 2, "the answer was for another image"},
		{"registry.io/x", []value{b}, 3, ""},
		{"registry.io/y", []value{b}, 3, "the answer was for the registry"},
		{"never.io/x", []value{c}, 4, ""},
		{"never.io/x", []value{c}, 5, "the answer was not to be kept"},
		{"several.io/team/x", []value{b, a, c}, 6, "the longer key is tried first, and a glob last"},
		{"several.io/x", []value{a, c}, 7, "one of the keys is for a path"},
		{"docker.io/library/nginx", []value{a}, 8, "the last resort for Docker Hub"},
		{"docker.io/library/redis", []value{a}, 8, "the answer was for the registry"},
		{"down.io/x", []value{}, 9, "the provider failed"},
		{"elsewhere.example/x", []value{}, 9, "no pattern matches"},
	} {
		same(t, step.image, n.lookup(step.image), step.want)
		if got := len(s.starts("wrapped", "p")); got != step.starts {
			t.Errorf("%s: %d starts of the provider, not %d: %s", step.image, got, step.starts, step.why)
		}
	}
}

func TestTheOldestKubeletMayAskInEachVersion(t *testing.T) {
	for _, version := range []string{v1, v1beta1, v1alpha1} {
		p := says("p", map[string]value{"r.io": a})
		p.APIVersion = version
		s := newStage(t, "Fallback", p)
		same(t, version, s.ours(s.wide(version)).lookup("r.io/x"), []value{a})
		if seen := s.starts("wrapped", "p"); len(seen) != 1 || !strings.Contains(seen[0], `"apiVersion":"`+version+`"`) {
			t.Errorf("%s: the provider was shown %q", version, seen)
		}
	}
}

// Up to 1.26 the kubelet orders entries by their names. The broker has the order of its configuration, whatever the names.
func TestTheOldestKubeletTriesOverlappingProvidersInTheBrokersOrder(t *testing.T) {
	providers := []provider{says("p2", map[string]value{"r.io": a}), says("p1", map[string]value{"r.io": b, "r.io/team": c}), says("p0", map[string]value{"r.io": c})}
	s := newStage(t, "Fallback", providers...)
	same(t, "separate entries", s.native().lookup("r.io/x"), []value{c, b, a})
	same(t, "the broker's entry", s.printed().lookup("r.io/x"), []value{a, b, c})

	slices.Reverse(providers)
	s = newStage(t, "Fallback", providers...)
	for _, image := range []string{"r.io/x", "r.io/team/x"} {
		same(t, image, s.printed().lookup(image), s.native().lookup(image))
	}
	s = newStage(t, "First", providers...)
	same(t, "First", s.printed().lookup("r.io/x"), []value{c})
}

func TestTheOldestKubeletHandsArgumentsAndVariablesOn(t *testing.T) {
	p := says("p", map[string]value{"r.io": a})
	p.Args, p.Env = []string{"--flag", "a b", "$HOME", `quote " and \`}, []envVar{{"STUB_ENV", "a value"}}
	s := newStage(t, "Fallback", p)
	s.native().lookup("r.io/x")
	s.write("config.yaml", s.command("migrate", s.path("native.json"), "--bin-dir", s.path("wrapped")))
	same(t, "migrated", s.printed().lookup("r.io/x"), []value{a})
	if native, ours := s.starts("native", "p"), s.starts("wrapped", "p"); len(native) != 1 || !slices.Equal(native, ours) || !strings.Contains(native[0], `"env":"a value"`) {
		t.Errorf("the kubelet shows the provider %q, the broker %q", native, ours)
	}
	// The broker's own configuration may be named by a variable as well.
	e := s.wide(v1)
	e.Args, e.Env = nil, []envVar{{"CREDENTIAL_BROKER_CONFIG", s.path("config.yaml")}}
	same(t, "a configuration named by a variable", s.ours(e).lookup("r.io/y"), []value{a})
}

// A pull goes on without credentials if the broker fails, and with what there is if a provider does.
func TestTheOldestKubeletGoesOnWhereSomethingFails(t *testing.T) {
	down := says("down", nil)
	down.answers["*"] = answer{Fault: "answer and exit 1"}
	s := newStage(t, "Fallback", down, says("up", map[string]value{"r.io": a}))
	n := s.printed()
	same(t, "one of two fails", n.lookup("r.io/x"), []value{a})

	if err := os.Remove(s.path("config.yaml")); err != nil {
		t.Fatal(err)
	}
	same(t, "no configuration", n.lookup("r.io/y"), []value{})
}

// This kubelet does not know tokenAttributes, and says nothing of them: it runs the entry, without a token.
func TestTheOldestKubeletPassesOverTokenAttributes(t *testing.T) {
	s := newStage(t, "Fallback", says("node", map[string]value{"r.io": a}), says("pod", map[string]value{"r.io": b}))
	config, err := os.ReadFile(s.path("config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	attributes := `"tokenAttributes":{"serviceAccountTokenAudience":"sts.example","cacheType":"Token","requireServiceAccount":true},"name":"pod"`
	s.write("config.yaml", bytes.Replace(config, []byte(`"name":"pod"`), []byte(attributes), 1))
	s.command("kubelet-config", "--config", s.path("config.yaml"), "--link", "--bin-dir", s.path("bin"))
	n := s.printed()
	if printed, _ := os.ReadFile(s.path("ours.yaml")); !bytes.Contains(printed, []byte("\n  tokenAttributes:\n")) || len(n) != 2 {
		t.Fatalf("%d entries, of which one should have tokenAttributes:\n%s", len(n), printed)
	}
	same(t, "with tokenAttributes", n.lookup("r.io/x"), []value{a})
	if seen := s.starts("wrapped", "pod"); len(seen) != 0 {
		t.Errorf("the provider that wants a token was run without: %q", seen)
	}
}

func TestTheOldestKubeletReadsNoDirectory(t *testing.T) {
	s := newStage(t, "Fallback", says("p", nil))
	if _, err := startNode(s.path("native"), s.path("native")); err == nil || !strings.Contains(err.Error(), "is a directory") {
		t.Errorf("a directory as configuration: %v", err)
	}
}

var (
	hosts    = []string{"r.io", "a.r.io", "b.r.io", "r.io:5000", "localhost", "localhost:5000", "docker.io", "index.docker.io", "10.0.0.1", "10.0.0.1:5000", "R.IO", "w"}
	paths    = []string{"a", "team", "teamfoo", "team/app", "team/app2", "library/nginx", "v1/x", "v2/team", "a/b/c"}
	globs    = []string{"*", "*.*", "*.io", "r.*", "*.r.io", "a*.r.io", "docker.io", "index.docker.io", "*:5000", "r.io:", "r.io/te%61m", "R.IO", "", "r.io/*"}
	prefixes = []string{"", "", "", "", "https://", "http://"}
	endings  = []string{"", "", "", "", "/", "/v1/", "/v2/", "/v1", "/team", "/te", "/%61", "/%zz", "?x", "#x"}
)

// The same sets of providers as separate entries, and as the broker's: the same credentials in the same order.
func TestTheOldestKubeletAgreesOnGeneratedProviderSets(t *testing.T) {
	if *flagSeed == 0 {
		*flagSeed = uint64(time.Now().UnixNano())
	}
	r := rand.New(rand.NewPCG(*flagSeed, 0))
	pick := func(from []string) string { return from[r.IntN(len(from))] }
	compared, found, several := 0, 0, 0
	for set := range *flagSets {
		image := func() string { return pick(hosts) + "/" + pick(paths) }
		images := []string{image(), image(), image()}
		var providers []provider
		for i := range 1 + r.IntN(4) {
			p := provider{entry: entry{Name: fmt.Sprintf("p%d", i), APIVersion: []string{v1, v1, v1beta1, v1alpha1}[r.IntN(4)], DefaultCacheDuration: pick([]string{"0s", "1h"})}, answers: map[string]answer{}}
			for range 1 + r.IntN(2) {
				pattern := pick(globs)
				if r.IntN(3) > 0 {
					pattern = pick(images)
					pattern = pattern[:len(pattern)-r.IntN(len(pattern)-strings.IndexByte(pattern, '/')+1)]
				}
				p.MatchImages = append(p.MatchImages, pattern)
			}
			for _, image := range images {
				said := answer{Auth: map[string]value{}, CacheKeyType: "Image", CacheDuration: pick([]string{"0s", "5m"})}
				for range r.IntN(3) {
					host, _, _ := strings.Cut(image, "/")
					key := pick(prefixes) + host + pick(endings)
					if r.IntN(5) == 0 {
						key = pick(globs)
					}
					if host == "docker.io" && r.IntN(2) == 0 {
						key = "https://index.docker.io/v1/"
					}
					// Two spellings of one key have a random order in the kubelet itself.
					if len(said.Auth) == 0 || !strings.Contains(key, host) {
						said.Auth[key] = value{fmt.Sprintf("%s-%d", p.Name, r.IntN(3)), "x"}
					}
				}
				if r.IntN(10) == 0 {
					said.Fault = pick([]string{"exit 1", "garbage", "another apiVersion", "unknown cacheKeyType", "no duration", "answer and exit 1"})
				}
				p.answers[image] = said
			}
			providers = append(providers, p)
		}
		s := newStage(t, "Fallback", providers...)
		native, ours := s.native(), s.ours(s.wide([]string{v1, v1, v1beta1, v1alpha1}[r.IntN(4)]))
		for _, image := range images {
			want, got := native.lookup(image), ours.lookup(image)
			if !slices.Equal(got, want) {
				t.Fatalf("set %d of seed %d, image %s: separate entries give %q, the broker's %q\n%s", set, *flagSeed, image, want, got, document(t, answersOf(providers)))
			}
			compared++
			if len(want) > 0 {
				found++
			}
			if len(want) > 1 {
				several++
			}
		}
	}
	t.Logf("%d answers compared, %d with credentials, %d with several, seed %d", compared, found, several, *flagSeed)
	if *flagSets >= 60 && (found < compared/10 || several == 0) {
		t.Errorf("of %d answers %d had credentials and %d several: too few to show anything", compared, found, several)
	}
}

// answersOf are providers as a failure prints them.
func answersOf(providers []provider) []map[string]any {
	var printed []map[string]any
	for _, p := range providers {
		printed = append(printed, map[string]any{"entry": p.entry, "answers": p.answers})
	}
	return printed
}
