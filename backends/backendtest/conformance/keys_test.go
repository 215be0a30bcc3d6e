package conformance

import "testing"

func TestKeysMatchByTheKubeletsRules(t *testing.T) {
	for _, c := range []struct {
		key, image string
		want       bool
	}{
		{"registry.example", "registry.example/app", true},
		{"https://registry.example/v1/", "registry.example/app", true},
		{"registry.example/v2/team", "registry.example/team/app", true},
		{"registry.example:5000", "registry.example/app", false},
		{"registry.example", "registry.example:5000/app", false},
		{"registry.example/team", "registry.example/teamfoo", true},
		{"registry.example/team", "registry.example/other", false},
		{"*.example", "registry.example/app", true},
		{"*.example", "a.registry.example/app", false},
		{"reg*.example", "registry.example/app", true},
		{"[.example", "registry.example/app", false},
		{"https://index.docker.io/v1/", "docker.io/library/nginx", true},
		{"index.docker.io", "registry.example/app", false},
		{"registry.example/%zz", "registry.example/app", false},
	} {
		if got := keyMatches(c.key, c.image); got != c.want {
			t.Errorf("key %q, image %q: %t, want %t", c.key, c.image, got, c.want)
		}
	}
}
