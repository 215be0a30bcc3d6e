package cache

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/proto/secret"
)

// digest stands for what an answer depends on. It is keyed with a random number of the cache's own, so that it tells nothing of a token that went into it.
type digest [sha256.Size]byte

// hashKey is that random number.
type hashKey [sha256.Size]byte

// digest of a list of strings. Each goes in with its length, so that no two lists look alike.
func (k *hashKey) digest(list ...string) digest {
	mac := hmac.New(sha256.New, k[:])
	var length [8]byte
	for _, s := range list {
		binary.BigEndian.PutUint64(length[:], uint64(len(s)))
		mac.Write(length[:])
		_, _ = io.WriteString(mac, s) // a hash takes everything
	}
	return digest(mac.Sum(nil))
}

// identity is for whom a provider was asked, as far as its answer may depend on it.
type identity struct {
	// id tells identities apart: an answer for one of them never serves another.
	id digest
	// label is for people. It tells nothing of a token.
	label string
	// pod: the provider may see the pod's token and annotations. Otherwise all requests are the node's.
	pod bool
	// shared: requests with different tokens have this identity, because they are of one service account.
	shared bool
	// expires is when the token does; zero without a token, or for one without end.
	expires time.Time
	// alone: the token is not good now, or cannot be read, so that nothing may be kept or taken from what is kept.
	alone bool
}

// identify says who asks. What a provider may see of the pod decides how far its answer may be shared: nothing of it, and every request is the same to it; else the pod's annotations count, and its token,
// for which its service account may stand where the provider's cacheType says so.
func (k *hashKey) identify(provider *config.Provider, request broker.Request, now time.Time) identity {
	attributes := provider.TokenAttributes
	if attributes == nil {
		return identity{id: k.digest("node"), label: "node"}
	}
	annotations := make([]string, 0, 2*len(request.Annotations))
	for _, name := range slices.Sorted(maps.Keys(request.Annotations)) {
		annotations = append(annotations, name, request.Annotations[name])
	}
	if request.Token == "" {
		return identity{id: k.digest(append([]string{"no token"}, annotations...)...), label: "no token", pod: true}
	}
	who := identity{label: "token", pod: true}
	claims, ok := readClaims(request.Token)
	if !ok || !claims.good(now) {
		who.alone = true
		return who
	}
	who.expires = claims.expires
	if claims.account.complete() {
		who.label = "token of " + claims.account.String()
	}
	if attributes.CacheType == config.CacheTypeServiceAccount && claims.account.complete() {
		a := claims.account
		who.label, who.shared = "service account "+a.String(), true
		who.id = k.digest(append([]string{"service account", a.namespace, a.name, a.uid}, annotations...)...)
		return who
	}
	who.id = k.digest(append([]string{"token", string(request.Token)}, annotations...)...)
	return who
}

// account is the service account that a token names.
type account struct{ namespace, name, uid string }

func (a account) complete() bool { return a.namespace != "" && a.name != "" && a.uid != "" }

func (a account) String() string { return a.namespace + "/" + a.name }

// claims are those of a service account token that matter here.
type claims struct {
	account            account
	expires, notBefore time.Time // zero where the token does not say
}

func (c claims) good(now time.Time) bool {
	return (c.expires.IsZero() || now.Before(c.expires)) && !now.Before(c.notBefore)
}

// readClaims reads a token's payload (RFC 7519). It verifies no signature: the token comes from the kubelet, and only the kubelet's user is heard. False: it is no JWT, or a claim is not what it has to be.
func readClaims(token secret.Secret) (claims, bool) {
	parts := strings.Split(string(token), ".")
	if len(parts) != 3 {
		return claims{}, false
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return claims{}, false
	}
	var named map[string]json.RawMessage // a struct's field would take "EXP" for "exp"
	if json.Unmarshal(payload, &named) != nil {
		return claims{}, false
	}
	var c claims
	var ok bool
	if c.expires, ok = numericDate(named["exp"], math.Floor); !ok {
		return claims{}, false
	}
	if c.notBefore, ok = numericDate(named["nbf"], math.Ceil); !ok {
		return claims{}, false
	}
	var kubernetes, serviceAccount map[string]json.RawMessage
	if json.Unmarshal(named["kubernetes.io"], &kubernetes) == nil && json.Unmarshal(kubernetes["serviceaccount"], &serviceAccount) == nil {
		c.account = account{namespace: text(kubernetes["namespace"]), name: text(serviceAccount["name"]), uid: text(serviceAccount["uid"])}
	}
	return c, true
}

// numericDate decodes the seconds since 1970 of a claim, whose fraction is rounded to the safe side. A claim that is absent gives the zero time.
func numericDate(claim json.RawMessage, round func(float64) float64) (time.Time, bool) {
	if len(claim) == 0 {
		return time.Time{}, true
	}
	var seconds *float64
	if json.Unmarshal(claim, &seconds) != nil || seconds == nil {
		return time.Time{}, false
	}
	const year9999 = 253402300799 // what lies further off says nothing that a sooner end does not
	return time.Unix(int64(round(min(max(*seconds, 0), year9999))), 0), true
}

func text(claim json.RawMessage) string {
	var s string
	if json.Unmarshal(claim, &s) != nil {
		return ""
	}
	return s
}
