package broker

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credential-broker/credential-broker/broker/config"
)

func provider(name string, patterns ...string) *config.Provider {
	return &config.Provider{Name: name, MatchImages: patterns, Timeout: 5 * time.Second}
}

func askedNames(r Routing) []string {
	var names []string
	for _, d := range r.Asked() {
		names = append(names, d.Provider.Name)
	}
	return names
}

func TestRoute(t *testing.T) {
	withToken := func(p *config.Provider, a config.TokenAttributes) *config.Provider {
		p.TokenAttributes = &a
		return p
	}
	mirrored := func(p *config.Provider, mirrors ...config.Mirror) *config.Provider {
		p.Mirrors = mirrors
		return p
	}
	tests := []struct {
		name         string
		providers    []*config.Provider
		request      Request
		want         []string
		registryWide bool
	}{
		{"no provider matches", []*config.Provider{provider("a", "other.example")}, Request{Image: "registry.example/app"}, nil, true},
		{
			"matching providers keep their order",
			[]*config.Provider{provider("b", "*.example"), provider("x", "x.example"), provider("a", "registry.example")},
			Request{Image: "registry.example/app"},
			[]string{"b", "a"},
			true,
		},
		{
			"a path in a pattern makes routing differ within the registry",
			[]*config.Provider{provider("a", "registry.example"), provider("b", "registry.example/team")},
			Request{Image: "registry.example/team/app"},
			[]string{"a", "b"},
			false,
		},
		{
			"also where the pattern does not match this image",
			[]*config.Provider{provider("a", "registry.example"), provider("b", "registry.example/team")},
			Request{Image: "registry.example/app"},
			[]string{"a"},
			false,
		},
		{
			"but not beside a pattern without a path",
			[]*config.Provider{provider("a", "registry.example/team", "registry.*")},
			Request{Image: "registry.example/team/app"},
			[]string{"a"},
			true,
		},
		{
			"a pattern with a path for another port is of no matter",
			[]*config.Provider{provider("a", "registry.example"), provider("b", "registry.example:5000/team")},
			Request{Image: "registry.example/app"},
			[]string{"a"},
			true,
		},
		{
			"a provider that requires a token is passed over without one",
			[]*config.Provider{withToken(provider("a", "registry.example"), config.TokenAttributes{RequireServiceAccount: true}), provider("b", "registry.example")},
			Request{Image: "registry.example/app"},
			[]string{"b"},
			true,
		},
		{
			"a provider that only likes a token is asked without one",
			[]*config.Provider{withToken(provider("a", "registry.example"), config.TokenAttributes{})},
			Request{Image: "registry.example/app"},
			[]string{"a"},
			true,
		},
		{
			"a provider whose required annotation is missing is passed over",
			[]*config.Provider{withToken(provider("a", "registry.example"), config.TokenAttributes{RequireServiceAccount: true, RequiredServiceAccountAnnotationKeys: []string{"k"}})},
			Request{Image: "registry.example/app", Token: "t", Annotations: map[string]string{"other": "v"}},
			nil, true,
		},
		{
			"an empty annotation is there",
			[]*config.Provider{withToken(provider("a", "registry.example"),
				config.TokenAttributes{RequireServiceAccount: true, RequiredServiceAccountAnnotationKeys: []string{"k"}})},
			Request{Image: "registry.example/app", Token: "t", Annotations: map[string]string{"k": ""}},
			[]string{"a"},
			true,
		},
		{
			"an image under a mirror's source needs no pattern",
			[]*config.Provider{mirrored(provider("a", "mirror.example"), config.Mirror{Source: "docker.io", Endpoint: "mirror.example/hub"})},
			Request{Image: "docker.io/library/nginx"},
			[]string{"a"},
			true,
		},
		{
			"a mirror's source ends at a segment",
			[]*config.Provider{mirrored(provider("a", "mirror.example"), config.Mirror{Source: "docker.io/lib", Endpoint: "mirror.example/hub"})},
			Request{Image: "docker.io/library/nginx"},
			nil, false,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			routing := Route(test.providers, test.request)
			if diff := cmp.Diff(test.want, askedNames(routing)); diff != "" {
				t.Errorf("asked (-want +got):\n%s", diff)
			}
			if routing.RegistryWide != test.registryWide {
				t.Errorf("RegistryWide = %v, want %v", routing.RegistryWide, test.registryWide)
			}
		})
	}
}

func TestMirrorWithTheLongestSourceIsAskedFor(t *testing.T) {
	p := provider("a", "mirror.example")
	p.Mirrors = []config.Mirror{{Source: "docker.io", Endpoint: "mirror.example/hub"}, {Source: "docker.io/library", Endpoint: "mirror.example/official"}}
	for image, want := range map[string]string{
		"docker.io/library/nginx": "mirror.example/official/nginx",
		"docker.io/team/app":      "mirror.example/hub/team/app",
	} {
		if got := Route([]*config.Provider{p}, Request{Image: image}).Decisions[0].Image; got != want {
			t.Errorf("%s is asked for as %s, want %s", image, got, want)
		}
	}
}

func TestAProviderSeesOfThePodOnlyWhatItsTokenAttributesName(t *testing.T) {
	request := Request{Image: "registry.example/app", Token: jwt(`{"aud":["one","two"]}`), Annotations: map[string]string{"wanted": "1", "liked": "2", "private": "3"}}

	plain, err := RequestFor(Decision{Provider: provider("plain"), Image: request.Image}, request)
	if err != nil || plain.Token != "" || plain.Annotations != nil {
		t.Errorf("without tokenAttributes: %d bytes of token, annotations %v, error %v", len(plain.Token), plain.Annotations, err)
	}

	p := provider("token")
	p.TokenAttributes = &config.TokenAttributes{
		ServiceAccountTokenAudience:          "two",
		RequiredServiceAccountAnnotationKeys: []string{"wanted"}, OptionalServiceAccountAnnotationKeys: []string{"liked", "absent"},
	}
	got, err := RequestFor(Decision{Provider: p, Image: request.Image}, request)
	if err != nil || got.Token != request.Token {
		t.Errorf("token not handed over (error %v)", err)
	}
	if diff := cmp.Diff(map[string]string{"wanted": "1", "liked": "2"}, got.Annotations); diff != "" {
		t.Errorf("annotations (-want +got):\n%s", diff)
	}
}

func TestATokenForAnotherAudienceIsNotHandedOver(t *testing.T) {
	tests := map[string]struct {
		token string
		ok    bool
	}{
		"one audience, the right one":      {string(jwt(`{"aud":"want"}`)), true},
		"a list with the right one":        {string(jwt(`{"aud":["other","want"]}`)), true},
		"another audience":                 {string(jwt(`{"aud":"other"}`)), false},
		"a prefix of it":                   {string(jwt(`{"aud":"wan"}`)), false},
		"the claim's name in capitals":     {string(jwt(`{"aud":"other","AUD":"want"}`)), false},
		"no audience":                      {string(jwt(`{}`)), false},
		"an audience of a wrong type":      {string(jwt(`{"aud":{"want":1}}`)), false},
		"no JWT":                           {"opaque", false},
		"a payload that is no base64":      {"a.$$$.c", false},
		"a payload that is no JSON":        {string(jwt(`want`)), false},
		"an audience in the wrong section": {"eyJhdWQiOiJ3YW50In0.e30.c", false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			p := provider("a")
			p.TokenAttributes = &config.TokenAttributes{ServiceAccountTokenAudience: "want"}
			got, err := RequestFor(Decision{Provider: p}, Request{Token: secretOf(test.token)})
			if (err == nil) != test.ok {
				t.Fatalf("error = %v, want ok = %v", err, test.ok)
			}
			if err != nil && (got.Token != "" || KindOf(err) != Misconfigured) {
				t.Errorf("refused token: handed over %v, kind %s", got.Token != "", KindOf(err))
			}
		})
	}
}
