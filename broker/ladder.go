package broker

import (
	"cmp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/credential-broker/credential-broker/broker/image"
)

// A kubelet response is a map: one value for each key. The kubelet, though, tries every key that matches the image, in reverse byte order of its index. So values
// that belong to one key are given under several keys, all of them valid for the requested image, such that the kubelet comes to them in the order wanted:
//
//	registry.example/team/app   first value
//	registry.example/team/ap    second
//	registry.example/team/a     third
//	…
//
// Only the requested image may be answered from such a response, hence cacheKeyType Image.

// ladder puts each value under a key of its own. False: the image leaves room for too few keys.
func ladder(img string, values []candidate) ([]AuthEntry, bool) {
	keys := rungs(img, len(values))
	if len(keys) < len(values) {
		return nil, false
	}
	auth := make([]AuthEntry, len(values))
	for i, v := range values {
		auth[i] = v.AuthEntry
		auth[i].Key = keys[i]
	}
	return auth, true
}

// rungs returns n keys that match the image, in the order in which the kubelet tries them, or fewer if the image has no more. It takes the image's own name and then
// ever shorter beginnings of its path; when those run out, as for "registry.example/a", the host's first label with stars behind it, which match nothing but the label itself
// and longer ones.
func rungs(img string, n int) []string {
	host, path := img, ""
	if slash := strings.IndexByte(img, '/'); slash >= 0 {
		host, path = img[:slash], img[slash:]
	}
	if strings.HasPrefix(host, "[") {
		return nil // an IPv6 literal: brackets are a glob to the kubelet
	}
	label, rest := host, ""
	if end := strings.IndexAny(host, ".:"); end >= 0 {
		label, rest = host[:end], host[end:]
	}

	type rung struct{ key, index string }
	var found []rung
	seen := make(map[string]bool)
	for stars := 0; len(found) < n && stars <= n; stars++ {
		host := label + strings.Repeat("*", stars) + rest
		for end := len(path); end >= 0 && len(found) < n; end-- {
			if end < len(path) && !utf8.RuneStart(path[end]) {
				continue // half a character is no JSON
			}
			key := image.KeyOf(host + strings.TrimSuffix(path[:end], "/"))
			index, err := image.IndexKey(key)
			if err != nil || seen[index] || !image.KeyMatches(key, img) {
				continue
			}
			seen[index] = true
			found = append(found, rung{key, index})
		}
	}
	slices.SortFunc(found, func(a, b rung) int { return cmp.Compare(b.index, a.index) })
	keys := make([]string, len(found))
	for i, r := range found {
		keys[i] = r.key
	}
	return keys
}
