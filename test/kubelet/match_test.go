package kubelet

import (
	"net/url"
	"strings"
	"testing"
	_ "unsafe" // for go:linkname

	"k8s.io/kubernetes/pkg/credentialprovider"
	"pgregory.net/rapid"

	"github.com/credential-broker/credential-broker/broker/image"
)

//go:linkname isDefaultRegistryMatch k8s.io/kubernetes/pkg/credentialprovider.isDefaultRegistryMatch
func isDefaultRegistryMatch(image string) bool

//go:linkname parseRegistry k8s.io/kubernetes/pkg/credentialprovider/plugin.parseRegistry
func parseRegistry(image string) string

// fataler is what *testing.T and *rapid.T share here.
type fataler interface{ Fatalf(string, ...any) }

// matchAlike holds every rule of broker/image against the kubelet's function for it. Both may be any bytes at all: the pattern serves as a pattern and as an auth key.
func matchAlike(t fataler, pattern, img string) {
	matched, _ := credentialprovider.URLsMatchStr(pattern, img)
	if got := image.Match(pattern, img); got != matched {
		t.Fatalf("pattern %q, image %q: the kubelet says %v, we say %v", pattern, img, matched, got)
	}
	_, invalid := credentialprovider.ParseSchemelessURL(pattern)
	parsed, err := image.ParsePattern(pattern)
	if (err == nil) != (invalid == nil) {
		t.Fatalf("pattern %q: the kubelet's validation says %v, we say %v", pattern, invalid, err)
	}
	if err == nil && parsed.Match(img) != matched {
		t.Fatalf("pattern %q, image %q: the kubelet says %v, the parsed pattern says %v", pattern, img, matched, !matched)
	}
	if got, want := image.MatchHost(pattern, img), hostsMatch(pattern, img); got != want {
		t.Fatalf("pattern %q, image %q without their paths: the kubelet says %v, we say %v", pattern, img, want, got)
	}

	wantIndex, filed := indexOf(pattern)
	index, err := image.IndexKey(pattern)
	if filed != (err == nil) || filed && index != wantIndex {
		t.Fatalf("auth key %q: the kubelet files it under %q (%v), we under %q (%v)", pattern, wantIndex, filed, index, err)
	}
	keyring := &credentialprovider.BasicDockerKeyring{}
	keyring.Add(nil, credentialprovider.DockerConfig{pattern: {Username: "u"}})
	_, found := keyring.Lookup(img)
	ours := image.KeyMatches(pattern, img) || err == nil && index == image.DockerHubKey && image.IsDockerHub(img)
	if found != ours {
		t.Fatalf("auth key %q, image %q: the kubelet's keyring says %v, we say %v", pattern, img, found, ours)
	}

	if got, want := image.IsDockerHub(img), isDefaultRegistryMatch(img); got != want {
		t.Fatalf("image %q: is it Docker Hub's? The kubelet says %v, we say %v", img, want, got)
	}
	if got, want := image.Registry(img), parseRegistry(img); got != want {
		t.Fatalf("image %q: the kubelet's cache calls its registry %q, we call it %q", img, want, got)
	}
}

// hostsMatch is the kubelet's match of two names without their paths.
func hostsMatch(pattern, img string) bool {
	p, err := credentialprovider.ParseSchemelessURL(pattern)
	if err != nil {
		return false
	}
	i, err := credentialprovider.ParseSchemelessURL(img)
	if err != nil {
		return false
	}
	matched, _ := credentialprovider.URLsMatch(&url.URL{Host: p.Host}, &url.URL{Host: i.Host})
	return matched
}

// oddPairs are a pattern and an image each, chosen for what is odd about them. They are the fuzz targets' seeds as well.
var oddPairs = []struct{ name, pattern, image string }{
	{"a path is a prefix of bytes, not of segments", "registry.io/team", "registry.io/teamfoo"},
	{"a path with a closing slash is one of segments", "registry.io/team/", "registry.io/teamfoo"},
	{"a glob that fails to parse matches nothing", "reg[.io", "reg[.io/x"},
	{"a class that fails to parse in a label behind one that does not match", "x.[", "registry.io/x"},
	{"a range that fails to parse", "[a-].io", "a.io/x"},
	{"a star stands for one label", "*.io", "a.b.io/x"},
	{"a star stands for an empty label too", "*.io", ".io/x"},
	{"a star in a port is no glob", "registry.io:*", "registry.io:5000/x"},
	{"a star in a path is no glob", "registry.io/*", "registry.io/x"},
	{"a question mark begins a query", "r?.io/x", "r/x"},
	{"a pattern with a scheme", "https://registry.io", "registry.io/x"},
	{"an empty port is not an absent one", "registry.io:", "registry.io/x"},
	{"a port of letters", "registry.io:abc", "registry.io:abc/x"},
	{"a decoded path", "registry.io/te%61m", "registry.io/team"},
	{"a path decoded twice as an auth key", "registry.io/te%2561m", "registry.io/team"},
	{"an escape that fails to parse", "registry.io/%zz", "registry.io/%zz"},
	{"an auth key that parses once, not twice", "registry.io/%25zz", "registry.io/%zz"},
	{"a user name is dropped", "user@registry.io", "registry.io/x"},
	{"a fragment is dropped", "registry.io#x", "registry.io/x"},
	{"upper case is another host", "Registry.io", "registry.io/x"},
	{"IPv6 with a port", "[::1]:5000", "[::1]:5000/x"},
	{"IPv6 without a port is a class of characters", "[::1]", "[::1]/x"},
	{"IPv6 without brackets", "::1", "::1/x"},
	{"IPv6 with a zone", "[fe80::1%25en0]:5000", "[fe80::1%25en0]:5000/x"},
	{"an empty pattern", "", "localhost/x"},
	{"nothing but a slash", "/", "/"},
	{"a leading /v1/ of an auth key is dropped", "https://registry.io/v1/", "registry.io/x"},
	{"a leading /v1 without its slash stays", "https://registry.io/v1", "registry.io/v1/x"},
	{"one leading /v1/ is dropped, not two", "registry.io/v1/v2/x", "registry.io/v2/x"},
	{"a lone slash is dropped", "registry.io/", "registry.io/x"},
	{"two slashes stay", "registry.io//", "registry.io/x"},
	{"Docker Hub's key", "https://index.docker.io/v1/", "docker.io/library/nginx"},
	{"Docker Hub's key for an image without host", "https://index.docker.io/v1/", "nginx"},
	{"Docker Hub's key for a host without dot and port", "index.docker.io", "localhost/x"},
	{"Docker Hub's key for an image of no host at all", "index.docker.io", "/x"},
	{"Docker Hub's key with a path is no last resort", "index.docker.io/library", "docker.io/library/nginx"},
	{"a scheme in capitals", "HTTPS://registry.io", "registry.io/x"},
	{"a scheme with nothing behind it", "https://", ""},
	{"an escaped slash in a path", "registry.io/a%2Fb", "registry.io/a/b"},
	{"a backslash", `registry.io\`, `registry.io\/x`},
	{"bytes that are no UTF-8", "registry.io/\xff", "registry.io/\xff"},
	{"a null byte", "registry.io/\x00", "registry.io/\x00"},
	{"letters beyond ASCII", "é.io/ß", "é.io/ß"},
}

func TestMatchingOfOddNamesIsTheKubelets(t *testing.T) {
	for _, c := range oddPairs {
		t.Run(c.name, func(t *testing.T) {
			matchAlike(t, c.pattern, c.image)
			matchAlike(t, c.image, c.pattern)
		})
	}
}

func TestMatchingIsTheKubelets(t *testing.T) {
	checks(*flagSets * 5)
	imageNames := rapid.Custom(func(t *rapid.T) string { return pick(t, hosts, "host") + "/" + pick(t, paths, "path") })
	rapid.Check(t, func(t *rapid.T) {
		images := rapid.SliceOfN(imageNames, 1, 3).Draw(t, "images")
		for _, img := range images {
			matchAlike(t, drawPattern(t, images), img)
			matchAlike(t, drawKey(t, images, false), img)
		}
	})
}

// FuzzMatch compares on any bytes at all.
func FuzzMatch(f *testing.F) {
	for _, c := range oddPairs {
		f.Add(c.pattern, c.image)
	}
	f.Fuzz(func(t *testing.T, pattern, img string) {
		matchAlike(t, pattern, img)
		matchAlike(t, img, pattern)
		// Two random strings seldom share a host: match the one that is there with its own beginnings, too.
		if cut := strings.IndexByte(img, '/'); cut >= 0 {
			matchAlike(t, img[:cut], img)
			matchAlike(t, pattern+img[cut:], img)
		}
	})
}
