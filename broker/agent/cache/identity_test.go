package cache

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/proto/secret"
)

func TestWhoSharesAnAnswer(t *testing.T) {
	soon := noon.Add(time.Hour)
	perToken, perAccount := podded("p", config.CacheTypeToken), podded("p", config.CacheTypeServiceAccount)
	with := func(token secret.Secret, annotations ...string) broker.Request {
		r := broker.Request{Image: "r.io/a", Token: token}
		for pair := range slices.Chunk(annotations, 2) {
			if r.Annotations == nil {
				r.Annotations = map[string]string{}
			}
			r.Annotations[pair[0]] = pair[1]
		}
		return r
	}
	builder := func(jti string) secret.Secret { return token("team", "builder", "uid-1", soon, jti) }
	tests := []struct {
		name     string
		provider *config.Provider
		a, b     broker.Request
		same     bool
	}{
		{"all requests to a provider without tokenAttributes", node("p"), with(builder("1"), "a", "1"), with(builder("2")), true},
		{"one token's", perToken, with(builder("1")), with(builder("1")), true},
		{"not two tokens of one account", perToken, with(builder("1")), with(builder("2")), false},
		{"but where the account stands for them", perAccount, with(builder("1")), with(builder("2")), true},
		{"not two accounts'", perAccount, with(builder("1")), with(token("team", "deployer", "uid-1", soon)), false},
		{"nor those of one name in two namespaces", perAccount, with(builder("1")), with(token("other", "builder", "uid-1", soon)), false},
		{"nor of one name at different times", perAccount, with(builder("1")), with(token("team", "builder", "uid-2", soon)), false},
		{"nor of one whose uid is not known", perAccount, with(token("team", "builder", "", soon, "1")), with(token("team", "builder", "", soon, "2")), false},
		{"nor of one without a namespace", perAccount, with(token("", "builder", "u", soon, "1")), with(token("", "builder", "u", soon, "2")), false},
		{"names do not run into each other", perAccount, with(token("team", "abuilder", "u", soon)), with(token("teama", "builder", "u", soon)), false},
		{"a token and none", perAccount, with(builder("1")), with(""), false},
		{"no token and no token", perAccount, with(""), with(""), true},
		{"not different annotations", perToken, with(builder("1"), "a", "1"), with(builder("1"), "a", "2"), false},
		{"nor those of an account", perAccount, with(builder("1"), "a", "1"), with(builder("1"), "a", "2"), false},
		{"nor those without a token", perAccount, with("", "a", "1"), with("", "a", "2"), false},
		{"nor an annotation and none", perAccount, with(builder("1"), "a", ""), with(builder("1")), false},
		{"annotations do not run into each other", perAccount, with(builder("1"), "a", "1b", "c", "2"), with(builder("1"), "a", "1", "bc", "2"), false},
		{"an annotation's value is not the next one's name", perAccount, with(builder("1"), "a", "b", "c", "d"), with(builder("1"), "a", "b"), false},
		{"annotations have no order", perAccount, with(builder("1"), "a", "1", "b", "2"), with(builder("1"), "b", "2", "a", "1"), true},
	}
	key := &hashKey{1}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			a, b := key.question(test.provider, test.a, "r.io", noon), key.question(test.provider, test.b, "r.io", noon)
			if a.who.alone || b.who.alone {
				t.Fatal("a token is not good")
			}
			if got := a.one == b.one; got != test.same {
				t.Errorf("same for the image: %v, want %v", got, test.same)
			}
			if got := a.all == b.all; got != test.same {
				t.Errorf("same for the registry: %v, want %v", got, test.same)
			}
		})
	}
}

func TestEverythingElseIsPartOfTheKeyToo(t *testing.T) {
	key := &hashKey{1}
	a := key.question(node("p"), broker.Request{Image: "r.io/a"}, "r.io", noon)
	changed := node("p")
	changed.Env = []config.EnvVar{{Name: "ROLE", Value: "other"}}
	for name, b := range map[string]ask{
		"another provider":      key.question(node("q"), broker.Request{Image: "r.io/a"}, "r.io", noon),
		"another configuration": key.question(changed, broker.Request{Image: "r.io/a"}, "r.io", noon),
		"another registry":      key.question(node("p"), broker.Request{Image: "s.io/a"}, "s.io", noon),
		"another cache":         (&hashKey{2}).question(node("p"), broker.Request{Image: "r.io/a"}, "r.io", noon),
	} {
		if a.one == b.one || a.all == b.all || a.scope == b.scope {
			t.Errorf("%s has the same key", name)
		}
	}
	other := key.question(node("p"), broker.Request{Image: "r.io/b"}, "r.io", noon)
	if a.one == other.one || a.all != other.all || a.scope != other.scope {
		t.Error("images of one registry differ in nothing but their own answers")
	}
	// An image may be named like a registry.
	if bare := key.question(node("p"), broker.Request{Image: "r.io"}, "r.io", noon); bare.one == bare.all {
		t.Error("an image and a registry of one name have one key")
	}
}

func TestTokensThatAreGivenNothingFromTheCache(t *testing.T) {
	good := map[string]any{"exp": noon.Add(time.Hour).Unix(), "nbf": noon.Unix()}
	claims := func(name string, value any) secret.Secret {
		changed := map[string]any{"exp": good["exp"], "nbf": good["nbf"]}
		changed[name] = value
		return rawToken(changed)
	}
	tests := []struct {
		name  string
		token secret.Secret
		alone bool
	}{
		{"a good one is not among them", rawToken(good), false},
		{"nor one without claims about time", rawToken(map[string]any{}), false},
		{"nor one whose end is a fraction of a second away", claims("exp", float64(noon.Unix())+1.5), false},
		{"one that ends now", claims("exp", noon.Unix()), true},
		{"one that ended long ago", claims("exp", 0), true},
		{"one that ended before 1970", claims("exp", -1e300), true},
		{"one that is not good yet", claims("nbf", noon.Unix()+1), true},
		{"one that is not good for a moment", claims("nbf", float64(noon.Unix())+0.1), true},
		{"one whose end is no number", claims("exp", "1767358800"), true},
		{"one whose end is null", claims("exp", nil), true},
		{"one whose beginning is no number", claims("nbf", []int{1}), true},
		{"no JWT", "abc", true},
		{"no base64", "a.*.c", true},
		{"no JSON", "e30.e30x.c", true},
		{"no object", "e30.W10.c", true},
		{"four parts", rawToken(good) + ".d", true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for _, cacheType := range []config.CacheType{config.CacheTypeToken, config.CacheTypeServiceAccount} {
				if got := (&hashKey{}).identify(podded("p", cacheType), broker.Request{Token: test.token}, noon).alone; got != test.alone {
					t.Errorf("%s: alone is %v, want %v", cacheType, got, test.alone)
				}
			}
		})
	}
}

func TestClaimsAreReadByTheirExactNames(t *testing.T) {
	tk := rawToken(map[string]any{
		"exp": noon.Add(time.Hour).Unix(), "EXP": noon.Add(9 * time.Hour).Unix(),
		"kubernetes.io": map[string]any{"namespace": "n", "NAMESPACE": "m", "serviceaccount": map[string]any{"name": "a", "Name": "b", "uid": "u", "UID": "v"}},
	})
	got, ok := readClaims(tk)
	if !ok || got.account != (account{"n", "a", "u"}) || !got.expires.Equal(noon.Add(time.Hour)) {
		t.Errorf("got %+v", got)
	}
}

func TestALabelTellsNothingOfAToken(t *testing.T) {
	for _, tk := range []secret.Secret{token("team", "builder", "uid-1", noon.Add(time.Hour)), "abc.def.ghi", rawToken(map[string]any{"exp": noon.Add(time.Hour).Unix()})} {
		for _, cacheType := range []config.CacheType{config.CacheTypeToken, config.CacheTypeServiceAccount} {
			label := (&hashKey{}).identify(podded("p", cacheType), broker.Request{Token: tk}, noon).label
			for part := range strings.SplitSeq(string(tk), ".") {
				if strings.Contains(label, part) {
					t.Errorf("%q holds %q", label, part)
				}
			}
		}
	}
}

func FuzzClaims(f *testing.F) {
	f.Add(string(token("n", "a", "u", noon)))
	f.Add("e30.eyJleHAiOjFlMzB9.c")
	f.Fuzz(func(t *testing.T, tk string) {
		c, ok := readClaims(secret.Secret(tk))
		if ok && c.expires.Year() > 9999 {
			t.Errorf("ends in %s", fmt.Sprint(c.expires))
		}
	})
}
