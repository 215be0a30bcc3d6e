package webidentity

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseClaims(t *testing.T) {
	token := func(payload string) string { return part(`{"alg":"RS256"}`) + "." + part(payload) + "." + part("s") }
	tests := []struct {
		name  string
		token string
		want  Claims
		fails string
	}{
		{name: "none", token: token(`{}`)},
		{
			name: "all", token: token(`{"iss":"https://i","sub":"s","aud":["a","b"],"azp":"p","exp":1700000000}`),
			want: Claims{Issuer: "https://i", Subject: "s", Audience: []string{"a", "b"}, AuthorizedParty: "p", Expires: time.Unix(1700000000, 0)},
		},
		{
			name:  "a Kubernetes service account token",
			token: token(`{"aud":"a","kubernetes.io":{"namespace":"n","serviceaccount":{"name":"sa","uid":"u"},"pod":{"name":"p","uid":"q"}},"sub":"system:serviceaccount:n:sa"}`),
			want:  Claims{Subject: "system:serviceaccount:n:sa", Audience: []string{"a"}, Namespace: "n", ServiceAccount: "sa", UID: "u"},
		},
		{name: "a Kubernetes token of a node", token: token(`{"kubernetes.io":{"node":{"name":"n"}}}`)},
		{name: "another's claim of that name", token: token(`{"kubernetes.io":"x"}`)},
		{name: "other than Kubernetes' claims of that name", token: token(`{"kubernetes.io":{"namespace":1,"serviceaccount":{"name":[],"uid":"u"}}}`), want: Claims{UID: "u"}},
		{name: "times with fractions and exponents", token: token(`{"exp":1.7000000005e9}`), want: Claims{Expires: time.Unix(1700000000, 0)}},
		{name: "names in another case", token: token(`{"AUD":"a","Sub":"s","Kubernetes.IO":{"namespace":"n"}}`)},
		{name: "nulls", token: token(`{"aud":null,"sub":null,"exp":null,"kubernetes.io":null}`)},
		{name: "nothing", token: "", fails: "three parts"},
		{name: "two parts", token: "a.b", fails: "three parts"},
		{name: "four parts", token: token(`{}`) + ".a", fails: "three parts"},
		{name: "an empty part", token: part(`{}`) + ".." + part("s"), fails: "three parts"},
		{name: "base64 with padding", token: part(`{}`) + "." + part(`{}`) + "=." + part("s"), fails: "base64url"},
		{name: "standard base64", token: part(`{}`) + "." + part(`{}`) + ".+/+/", fails: "base64url"},
		{name: "a line break", token: part(`{}`) + "." + part(`{}`)[:2] + "\n" + part(`{}`)[2:] + "." + part("s"), fails: "base64url"},
		{name: "a header that is no object", token: part(`[]`) + "." + part(`{}`) + "." + part("s"), fails: "first part is no JSON object"},
		{name: "claims that are no object", token: token(`"` + canary + `"`), fails: "second part is no JSON object"},
		{name: "claims that are null", token: token(`null`), fails: "second part is no JSON object"},
		{name: "more than claims", token: token(`{}{}`), fails: "second part is no JSON object"},
		{name: "sub is no string", token: token(`{"sub":["` + canary + `"]}`), fails: "sub claim"},
		{name: "aud is no string", token: token(`{"aud":{"a":"` + canary + `"}}`), fails: "aud claim"},
		{name: "aud is not all strings", token: token(`{"aud":["a",1]}`), fails: "aud claim"},
		{name: "exp is a string", token: token(`{"exp":"1700000000"}`), fails: "exp claim"},
		{name: "exp is beyond all years", token: token(`{"exp":1e300}`), fails: "exp claim"},
		{name: "exp is beyond all numbers", token: token(`{"exp":1e999}`), fails: "exp claim"},
		{name: "too long", token: token(`{"a":"` + strings.Repeat("a", maxToken) + `"}`), fails: "too long"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseClaims(tt.token)
			if (err == nil) != (tt.fails == "") || err != nil && !strings.Contains(err.Error(), tt.fails) {
				t.Fatalf("error %v, want %q", err, tt.fails)
			}
			if err != nil && strings.Contains(err.Error(), canary) {
				t.Errorf("shows what the token says: %v", err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestTokenIn(t *testing.T) {
	for _, tt := range []struct{ answer, path, want string }{
		{`{"token":"t"}`, "token", "t"},
		{`{"data":{"token":"t"}}`, "data.token", "t"},
		{`{"data":{"token":"t"}}`, "token", ""},
		{`{"Token":"t"}`, "token", ""},
		{`{"token":1}`, "token", ""},
		{`{"token":null}`, "token", ""},
		{`{"token":{}}`, "token", ""},
		{`["t"]`, "token", ""},
		{`{"token":"t"`, "token", ""},
		{`t`, "token", ""},
	} {
		if got, found := tokenIn([]byte(tt.answer), tt.path); got != tt.want || found != (tt.want != "") {
			t.Errorf("%s of %s: %q, %v", tt.path, tt.answer, got, found)
		}
	}
}

func FuzzParseClaims(f *testing.F) {
	for _, payload := range []string{
		`{}`, `{"aud":["a"],"exp":1.5e9,"sub":"s"}`, `{"kubernetes.io":{"namespace":"n","serviceaccount":{"name":"a","uid":"u"}}}`, `null`, `{"exp":-1e99}`, `{"aud":[null]}`,
	} {
		f.Add(part(`{"alg":"RS256"}`) + "." + part(payload) + "." + part("s"))
		f.Add(payload)
	}
	f.Fuzz(func(t *testing.T, token string) {
		c, err := ParseClaims(token)
		if err != nil {
			if diff := cmp.Diff(Claims{}, c); diff != "" {
				t.Errorf("claims with an error: %s", diff)
			}
			if len(err.Error()) > 100 {
				t.Errorf("an error that may quote the token: %v", err)
			}
			return
		}
		if strings.Count(token, ".") != 2 || strings.ContainsAny(token, "\r\n =+/") {
			t.Errorf("took what is no JWT")
		}
		if _, err := c.Expires.MarshalText(); err != nil {
			t.Errorf("a time that cannot be shown: %v", err)
		}
	})
}
