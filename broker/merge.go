package broker

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/image"
	"github.com/credential-broker/credential-broker/proto/secret"
)

// CacheKeyType is how widely the kubelet may use a cached response. "Global" is never answered.
type CacheKeyType string

// The kubelet's cache key types that are answered.
const (
	CacheImage    CacheKeyType = "Image"
	CacheRegistry CacheKeyType = "Registry"
)

// Response is the one answer for the kubelet.
type Response struct {
	// Auth holds at most one value for each of the kubelet's index keys, most specific key first.
	Auth          []AuthEntry
	CacheKeyType  CacheKeyType
	CacheDuration time.Duration
}

// AuthEntry is one auth key and its value.
type AuthEntry struct {
	Key      string
	Username string
	Password secret.Secret
	// Provider is where the value came from.
	Provider string
}

// Note is something that a person may want to know about a merge. It holds no secret.
type Note struct {
	Provider string
	Text     string
	// Warning: something is probably not as it was meant. Otherwise the note is only of interest to who looks for it.
	Warning bool
}

// lastingFailureCache is the longest that an answer is cached while a provider is refused or misconfigured.
const lastingFailureCache = time.Minute

// ExpiryMargin is how long before its expiry a credential is no longer answered from a cache, when so much is left of its life: a tenth of it, at least 30 s and at most 5 min. The pull
// begins after the kubelet took the answer from its cache, and a large image may ask the registry for a new token some minutes into the pull.
func ExpiryMargin(left time.Duration) time.Duration {
	return min(max(left/10, 30*time.Second), 5*time.Minute)
}

// Merging is what Merge needs to know besides the slots.
type Merging struct {
	Request Request
	Policy  config.OverlapPolicy
	// RegistryWide: routing treats every image of the registry alike.
	RegistryWide bool
	// MaxCacheDuration bounds the answer's; nil for no bound.
	MaxCacheDuration *time.Duration
	Now              time.Time
}

// Merge folds the slots, in provider order, into one response. A failed provider spoils no other's answer, but what was answered without it is not kept for long.
// The error is a Failure if there is nothing to answer and a provider failed.
func Merge(m Merging, slots []Slot) (Response, []Note, error) {
	candidates, notes := gather(m, slots)

	var failed []Slot
	lasting := true
	for _, slot := range slots {
		if slot.Err != nil {
			failed = append(failed, slot)
			lasting = lasting && KindOf(slot.Err).Lasting()
		}
	}
	if len(failed) > 0 && len(candidates) == 0 {
		return Response{}, notes, failure(failed)
	}

	response := Response{Auth: first(candidates), CacheKeyType: CacheImage}
	laddered := false
	if m.Policy == config.Fallback && conflict(candidates) {
		values := triedInOrder(candidates)
		if auth, ok := ladder(m.Request.Image, values); ok {
			response.Auth, laddered = auth, true
		} else {
			notes = append(notes, Note{
				Warning: true,
				Text:    fmt.Sprintf("providers answered different values for one key, but %s leaves no room for several keys: only the earliest value of each key is given", m.Request.Image),
			})
		}
	}
	if !laddered && m.RegistryWide && len(failed) == 0 && registryWide(m, slots) {
		response.CacheKeyType = CacheRegistry
	}
	response.CacheDuration = cacheDuration(m, slots)
	switch {
	case len(failed) == 0:
	case lasting:
		response.CacheDuration = min(response.CacheDuration, lastingFailureCache)
	default:
		response.CacheDuration = 0
	}
	return response, notes, nil
}

// candidate is a credential that the kubelet could use for the requested image.
type candidate struct {
	AuthEntry
	// index is the kubelet's index key of Key.
	index string
	// lastResort: the key does not match the image; the kubelet uses it for Docker Hub's images if nothing else matches.
	lastResort bool
}

func (c candidate) sameValue(other candidate) bool {
	return c.Username == other.Username && c.Password == other.Password
}

// gather collects, in provider order, the credentials that the kubelet could use for the requested image, and says which were dropped and why.
func gather(m Merging, slots []Slot) (candidates []candidate, notes []Note) {
	for _, slot := range slots {
		if slot.Err != nil {
			continue
		}
		note := func(warning bool, format string, args ...any) {
			notes = append(notes, Note{Provider: slot.Provider.Name, Warning: warning, Text: fmt.Sprintf(format, args...)})
		}
		for _, credential := range inRank(slot) {
			if echoesToken(slot, m.Request, credential) {
				note(true, "a credential was dropped: it is the pod's service account token, which only cacheType Token may answer")
				continue
			}
			key, ok := sourceKey(slot.Decision, credential.Key)
			if !ok {
				note(false, "a credential was dropped: its key is not below the mirror's endpoint %s", slot.Mirror.Endpoint)
				continue
			}
			index, err := image.IndexKey(key)
			if err != nil {
				note(true, "a credential was dropped: its key does not parse")
				continue
			}
			c := candidate{index: index, AuthEntry: AuthEntry{
				Key: key, Username: credential.Username, Password: credential.Password, Provider: slot.Provider.Name,
			}}
			if !image.KeyMatches(key, m.Request.Image) {
				c.lastResort = index == image.DockerHubKey && image.IsDockerHub(m.Request.Image)
				if !c.lastResort {
					note(false, "a credential was dropped: its key %.200q does not match the image", index)
					continue
				}
			}
			if !credential.Expires.IsZero() && !credential.Expires.After(m.Now) {
				note(true, "the credential for %s has expired already; is a clock wrong?", index)
			}
			candidates = append(candidates, c)
		}
	}
	return candidates, notes
}

// inRank gives a provider's credentials as it did, but for a mirror in the order in which the kubelet would try them for the endpoint: there several of its keys may become one key of
// the source, and the most specific of them is the one that is meant.
func inRank(slot Slot) []Credential {
	if slot.Mirror == nil {
		return slot.Answer.Credentials
	}
	type ranked struct {
		Credential
		index   string
		matches bool // rather than being Docker Hub's last resort
	}
	all := make([]ranked, 0, len(slot.Answer.Credentials))
	for _, credential := range slot.Answer.Credentials {
		index, _ := image.IndexKey(credential.Key) // gather says so if there is an error
		all = append(all, ranked{credential, index, image.KeyMatches(credential.Key, slot.Image)})
	}
	slices.SortStableFunc(all, func(a, b ranked) int {
		if a.matches != b.matches {
			if a.matches {
				return -1
			}
			return 1
		}
		return cmp.Compare(b.index, a.index)
	})
	credentials := make([]Credential, len(all))
	for i, r := range all {
		credentials[i] = r.Credential
	}
	return credentials
}

// echoesToken: a credential whose password is the pod's token may be answered only where answers are never shared between tokens. The kubelet throws the whole response away
// otherwise.
func echoesToken(slot Slot, request Request, credential Credential) bool {
	attributes := slot.Provider.TokenAttributes
	return attributes != nil && attributes.CacheType != config.CacheTypeToken && request.Token != "" && credential.Password == request.Token
}

// first keeps for each index key the earliest provider's value, most specific key first.
func first(candidates []candidate) []AuthEntry {
	taken := make(map[string]bool, len(candidates))
	var kept []candidate
	for _, c := range candidates {
		if !taken[c.index] {
			taken[c.index] = true
			kept = append(kept, c)
		}
	}
	sortByRank(kept)
	auth := make([]AuthEntry, len(kept))
	for i, c := range kept {
		auth[i] = c.AuthEntry
	}
	return auth
}

// sortByRank orders candidates as the kubelet tries them: by index key in reverse byte order, one key's in provider order.
func sortByRank(candidates []candidate) {
	slices.SortStableFunc(candidates, func(a, b candidate) int { return cmp.Compare(b.index, a.index) })
}

// effective leaves out the last resort where anything else matches, as the kubelet's keyring does.
func effective(candidates []candidate) []candidate {
	direct := slices.DeleteFunc(slices.Clone(candidates), func(c candidate) bool { return c.lastResort })
	if len(direct) > 0 {
		return direct
	}
	return candidates
}

// conflict says that the kubelet would have more than one value to try for one key.
func conflict(candidates []candidate) bool {
	earliest := make(map[string]candidate)
	for _, c := range effective(candidates) {
		if e, ok := earliest[c.index]; !ok {
			earliest[c.index] = c
		} else if !e.sameValue(c) {
			return true
		}
	}
	return false
}

// triedInOrder is what the kubelet would try for the image with a separate entry for each provider, repeated values once.
func triedInOrder(candidates []candidate) []candidate {
	ranked := slices.Clone(effective(candidates))
	sortByRank(ranked)
	var tried []candidate
	for _, c := range ranked {
		if !slices.ContainsFunc(tried, c.sameValue) {
			tried = append(tried, c)
		}
	}
	return tried
}

// registryWide says that every image of the registry would get this same answer, as far as the answers tell.
func registryWide(m Merging, slots []Slot) bool {
	if len(slots) == 0 {
		return false
	}
	for _, slot := range slots {
		matching := false
		for _, credential := range slot.Answer.Credentials {
			if echoesToken(slot, m.Request, credential) {
				return false
			}
			key, ok := sourceKey(slot.Decision, credential.Key)
			if !ok {
				continue
			}
			index, err := image.IndexKey(key)
			if err != nil {
				continue
			}
			// A key with a path covers some of the registry's images and not others, whether or not it covers this one.
			if strings.Contains(index, "/") && image.MatchHost(index, m.Request.Image) {
				return false
			}
			matching = matching || image.KeyMatches(key, m.Request.Image) || (index == image.DockerHubKey && image.IsDockerHub(m.Request.Image))
		}
		if !matching || !slot.Answer.RegistryWide {
			return false
		}
	}
	return true
}

// cacheDuration is the shortest of the answers', before failures are considered.
func cacheDuration(m Merging, slots []Slot) time.Duration {
	var shortest *time.Duration
	shorten := func(d time.Duration) {
		d = max(d, 0)
		if shortest == nil || d < *shortest {
			shortest = &d
		}
	}
	for _, slot := range slots {
		if slot.Err != nil {
			continue
		}
		said := slot.Answer.CacheDuration != nil
		if said {
			shorten(*slot.Answer.CacheDuration)
		}
		for _, credential := range slot.Answer.Credentials {
			if !credential.Expires.IsZero() {
				said = true
				left := credential.Expires.Sub(m.Now)
				shorten(left - ExpiryMargin(left))
			}
		}
		switch {
		case said:
		case slot.Provider.DefaultCacheDuration != nil:
			shorten(*slot.Provider.DefaultCacheDuration)
		case len(slot.Answer.Credentials) > 0:
			shorten(0)
		}
	}
	if shortest == nil {
		return 0
	}
	if m.MaxCacheDuration != nil {
		shorten(*m.MaxCacheDuration)
	}
	return *shortest
}

// sourceKey is the auth key under which the kubelet is to find a credential. For an image that was asked for under a mirror's endpoint, a key
// that covers the endpoint comes to cover the source, and a key below the endpoint the same place below the source. False: the key covers neither.
func sourceKey(d Decision, key string) (string, bool) {
	if d.Mirror == nil {
		return key, true
	}
	index, err := image.IndexKey(key)
	if err != nil {
		return key, true // gather says so
	}
	source := d.Mirror.Source
	if index == image.DockerHubKey && image.IsDockerHub(d.Image) {
		return image.KeyOf(source), true
	}
	if !image.MatchHost(index, d.Image) {
		return "", false
	}
	endpoint := pathOf(d.Mirror.Endpoint)
	path := pathOf(index)
	if strings.HasPrefix(endpoint, path) {
		return image.KeyOf(source), true
	}
	below, ok := strings.CutPrefix(path, endpoint)
	// The key of a neighbour ("/hub2" beside "/hub") must not lengthen the name of the source's host.
	if !ok || !strings.Contains(source, "/") && !strings.HasPrefix(below, "/") {
		return "", false
	}
	return image.KeyOf(source + below), true
}

// pathOf is what follows the host of a "host[/path]", with its slash.
func pathOf(name string) string {
	if slash := strings.IndexByte(name, '/'); slash >= 0 {
		return name[slash:]
	}
	return ""
}
