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

// brought is a source that a backend brings.
type brought struct {
	AWS
	audience string
	token    Token
	err      error
}

func (b *brought) String() string                       { return "a source that is brought" }
func (b *brought) Token(context.Context) (Token, error) { return b.token, b.err }

// testSources has one of each; it has no SDK, so that neither do these tests.
var testSources = Sources{AWS: func(c AWS, audience string) Source { return &brought{AWS: c, audience: audience} }}

func source(t *testing.T, c Config, w world) Source {
	t.Helper()
	if err := c.Validate("webIdentity", testSources); err != nil {
		t.Fatal(err)
	}
	s, err := newSource(c, aws, testSources, w)
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
		if s, err := New(c, aws, Sources{}); err == nil {
			t.Errorf("%+v gives %v", c, s)
		}
	}
	if s, err := New(Config{GoogleMetadata: &GoogleMetadata{}}, aws, Sources{}); err != nil || s == nil {
		t.Error(err)
	}
}

// TestBrought: what a source of a backend's gives is judged as that of the others, and what it says is put as they would.
func TestBrought(t *testing.T) {
	for _, tt := range []struct {
		name  string
		token Token
		err   error
		want  *failure
	}{
		{name: "a token", token: Token{Value: backends.Secret(jwt(nil))}},
		{name: "none", want: unavailable("identity token from a source that is brought: it is empty")},
		{name: "another's", token: Token{Value: backends.Secret(jwt(map[string]any{"aud": "x"}))}, want: misconfigured("webIdentity.aws", `audience "x" and not for "sts.amazonaws.com"`)},
		{name: "a token that has expired", token: Token{Value: backends.Secret(jwt(map[string]any{"exp": 1}))}, want: unavailable("it expired at")},
		{name: "a refusal", err: backends.Refused(errors.New("no")), want: refused("identity token from a source that is brought: no")},
		{name: "no answer", err: backends.Unavailable(errors.New("no")), want: unavailable("identity token from a source that is brought: no")},
		{name: "a problem of its settings", err: backends.InvalidConfig(".region", "want one"), want: misconfigured("webIdentity.aws.region", "webIdentity.aws.region: identity token from a source that is brought: want one")},
		{name: "a problem of all its settings", err: backends.InvalidConfig("", "want some"), want: misconfigured("webIdentity.aws", "want some")},
		{name: "an error of no kind", err: errors.New("no"), want: unavailable("identity token from a source that is brought: no")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var asked *brought
			s, err := New(Config{AWS: &AWS{}}, aws, Sources{AWS: func(c AWS, audience string) Source {
				asked = &brought{AWS: c, audience: audience, token: tt.token, err: tt.err}
				return asked
			}})
			if err != nil {
				t.Fatal(err)
			}
			if asked.SigningAlgorithm != RS256 || asked.Duration != 5*time.Minute || asked.audience != aws {
				t.Errorf("defaults: %+v", asked)
			}
			token, err := s.Token(t.Context())
			check(t, s, token, err, tt.want)
			if tt.want == nil && token.Expires.IsZero() {
				t.Error("the token's end is not told")
			}
		})
	}
}

func TestNotOffered(t *testing.T) {
	c, from := Config{AWS: &AWS{Region: "?"}}, Sources{InsteadOfAWS: "do that"}
	_, made := New(c, aws, from)
	for _, err := range []error{made, c.Validate("webIdentity", from)} {
		if kind, field := kindOf(err); err == nil || kind != backends.KindMisconfigured || field != "webIdentity.aws" || !strings.Contains(err.Error(), "this backend does not take it: do that") || strings.Contains(err.Error(), "region") {
			t.Errorf("%v", err)
		}
	}
	if err := (Config{}).Validate("webIdentity", from); err == nil || strings.Contains(err.Error(), "aws") {
		t.Errorf("a source is named that is not offered: %v", err)
	}
}
