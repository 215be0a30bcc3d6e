package webidentity

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/backends"
)

const (
	aws = "sts.amazonaws.com"
	// canary is in everything that no error may show.
	canary = "c4n4ry-c4n4ry-c4n4ry"
)

// jwt makes a token whose claims are those and whose signature is the canary.
func jwt(claims map[string]any) string {
	all := map[string]any{"iss": "https://issuer.example", "sub": "s", "aud": aws, "exp": time.Now().Add(time.Hour).Unix(), "secret": canary}
	maps.Copy(all, claims)
	maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
	payload, err := json.Marshal(all)
	if err != nil {
		panic(err)
	}
	return part(`{"alg":"RS256"}`) + "." + part(string(payload)) + "." + part(canary)
}

func part(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// kindOf is the kind of an error and the field that it names.
func kindOf(err error) (backends.Kind, string) {
	if e, ok := errors.AsType[*backends.Error](err); ok {
		return e.Kind, e.Field
	}
	return -1, ""
}

// failure is what an error has to be.
type failure struct {
	kind  backends.Kind
	field string
	says  []string
}

func unavailable(says ...string) *failure { return &failure{backends.KindUnavailable, "", says} }
func refused(says ...string) *failure     { return &failure{backends.KindRefused, "", says} }

func misconfigured(field string, says ...string) *failure {
	return &failure{backends.KindMisconfigured, field, says}
}

// check judges what a source did: want is nil where it was to give a token.
func check(t *testing.T, s Source, token Token, err error, want *failure) {
	t.Helper()
	if want == nil {
		if err != nil || token.Value == "" {
			t.Errorf("want a token: %v", err)
		}
		return
	}
	if err == nil {
		t.Fatalf("want an error that says %q", want.says)
	}
	if token.Value != "" {
		t.Error("there is a token with the error")
	}
	text := fmt.Sprintf("%v %+v", err, err)
	for _, says := range append(want.says, s.String()) {
		if !strings.Contains(text, says) {
			t.Errorf("%v\ndoes not say %q", err, says)
		}
	}
	for _, secret := range []string{canary, part(canary), base64.StdEncoding.EncodeToString([]byte(canary)), part(`{"alg":"RS256"}`)} {
		if strings.Contains(text+s.String(), secret) {
			t.Errorf("shows a secret: %v", err)
		}
	}
	if kind, field := kindOf(err); kind != want.kind || field != want.field {
		t.Errorf("kind %v, field %q; want %v, %q: %v", kind, field, want.kind, want.field, err)
	}
}

// environment is what a source sees of it: "NAME=value" each.
func environment(vars ...string) func(string) string {
	return func(name string) string {
		for _, v := range slices.Backward(vars) {
			if value, ok := strings.CutPrefix(v, name+"="); ok {
				return value
			}
		}
		return ""
	}
}

// testWorld is the real one with another environment, and without waiting.
func testWorld(vars ...string) world {
	w := realWorld()
	w.env = environment(vars...)
	w.wait = func(ctx context.Context, _ time.Duration) bool { return ctx.Err() == nil }
	return w
}

func source(t *testing.T, c Config, w world) Source {
	t.Helper()
	if err := c.Validate("webIdentity"); err != nil {
		t.Fatal(err)
	}
	s, err := newSource(c, aws, w)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestJudge is about what every source's token has to be, by the example of a file.
func TestJudge(t *testing.T) {
	now := time.Now()
	tests := []struct {
		name     string
		content  string
		audience string // instead of the default
		want     *failure
	}{
		{name: "a token", content: jwt(nil)},
		{name: "space around it", content: "\n " + jwt(nil) + "\r\n"},
		{name: "one audience of several", content: jwt(map[string]any{"aud": []string{"a", aws}})},
		{name: "another audience that is set", content: jwt(map[string]any{"aud": "api://x"}), audience: "api://x"},
		{name: "no expiry", content: jwt(map[string]any{"exp": nil})},
		{name: "nothing", content: " \n", want: unavailable("it is empty")},
		{name: "expired", content: jwt(map[string]any{"exp": now.Add(-time.Minute).Unix()}), want: unavailable("it expired at "+now.Add(-time.Minute).UTC().Format(time.RFC3339), "clock")},
		{
			name: "another audience", content: jwt(map[string]any{"aud": "https://kubernetes.default.svc"}),
			want: misconfigured("webIdentity.file.path", `audience "https://kubernetes.default.svc" and not for "sts.amazonaws.com"`, "set webIdentity.audience"),
		},
		{name: "many audiences", content: jwt(map[string]any{"aud": []string{"a", "b", "c", "d", "e"}}), want: misconfigured("webIdentity.file.path", `"a", "b", "c", "d", …`)},
		{name: "a long audience", content: jwt(map[string]any{"aud": strings.Repeat("a", 200) + canary}), want: misconfigured("webIdentity.file.path", `aaaa"`)},
		{name: "no audience", content: jwt(map[string]any{"aud": nil}), want: misconfigured("webIdentity.file.path", "no audience")},
		{name: "no JWT", content: canary, want: misconfigured("webIdentity.file.path", "no JWT", "three parts")},
		{name: "a JWT that is encrypted", content: "a." + jwt(nil) + ".a", want: misconfigured("webIdentity.file.path", "three parts")},
		{name: "a JWT without a signature", content: part(`{"alg":"none"}`) + "." + part(`{}`) + ".", want: misconfigured("webIdentity.file.path", "three parts")},
		{name: "several tokens", content: jwt(nil) + "\n" + jwt(nil), want: misconfigured("webIdentity.file.path", "no JWT")},
		{name: "too long", content: strings.Repeat(canary, 4000), want: misconfigured("webIdentity.file.path", "more than 64 KiB")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := t.TempDir() + "/token"
			if err := os.WriteFile(path, []byte(tt.content), 0o600); err != nil {
				t.Fatal(err)
			}
			s := source(t, Config{Audience: tt.audience, File: &File{Path: path}}, testWorld())
			token, err := s.Token(t.Context())
			check(t, s, token, err, tt.want)
			if tt.want == nil {
				if got, want := string(token.Value), strings.TrimSpace(tt.content); got != want {
					t.Errorf("the token is not what the file has")
				}
				if claims, _ := ParseClaims(string(token.Value)); !claims.Expires.Equal(token.Expires) {
					t.Errorf("expires %v, and not %v", token.Expires, claims.Expires)
				}
			}
		})
	}
}

func TestNewWantsOneSource(t *testing.T) {
	for _, c := range []Config{{}, {Audience: "a"}, {File: &File{Path: "/a"}, SPIFFE: &SPIFFE{}}} {
		if s, err := New(c, aws); err == nil {
			t.Errorf("%+v gives %v", c, s)
		}
	}
	if s, err := New(Config{GoogleMetadata: &GoogleMetadata{}}, aws); err != nil || s == nil {
		t.Error(err)
	}
}
