package authkey

import (
	"testing"

	"github.com/credential-broker/credential-broker/broker/image"
)

// FuzzCovers compares with the broker's own rule, which is compared with the kubelet's.
func FuzzCovers(f *testing.F) {
	for _, seed := range [][2]string{
		{"harbor.example", "harbor.example/team/app"},
		{"harbor.example/team-", "harbor.example/team-a/app"},
		{"harbor.example/team", "harbor.example/other/app"},
		{"*.example:8443", "harbor.example:8443/app"},
		{"*.example", "harbor.example:8443/app"},
		{"h*r.example/a", "harbor.example/a"},
		{"[a-z].example", "b.example/app"},
		{"[.example", "b.example/app"},
		{"*.*", "harbor.example/app"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, pattern, name string) {
		p, err := image.ParsePattern(pattern)
		if err != nil || image.CheckName(name) != nil || image.IsDockerHub(name) {
			return // no pattern, no image, or one for which keys have a rule of their own
		}
		k, ok := Parse(pattern)
		if p.Path() != k.Path { // a pattern keeps the /v1/ that a key does without
			return
		}
		host, path := cut(name)
		if got, want := ok && k.Covers(host, path), p.Match(name); got != want {
			t.Errorf("%q covers %q: %t, want %t", pattern, name, got, want)
		}
	})
}

func cut(name string) (host, path string) {
	for i, r := range name {
		if r == '/' {
			return name[:i], name[i+1:]
		}
	}
	return name, ""
}

func TestParse(t *testing.T) {
	for text, want := range map[string]string{
		"harbor.example": "harbor.example", "https://harbor.example/v2/": "harbor.example", "https://index.docker.io/v1/": "index.docker.io",
		"harbor.example:8443/team/": "harbor.example:8443/team/", "harbor.example/v1/team": "harbor.example/team", "harbor.example/": "harbor.example",
	} {
		if k, ok := Parse(text); !ok || k.String() != want {
			t.Errorf("%q: %q, %t", text, k, ok)
		}
	}
	for _, text := range []string{"", "https://", "%zz"} {
		if k, ok := Parse(text); ok {
			t.Errorf("%q: %q", text, k)
		}
	}
}

func TestDockerHub(t *testing.T) {
	k, _ := Parse("https://index.docker.io/v1/")
	if !k.Covers("docker.io", "library/alpine") || k.Covers("quay.io", "library/alpine") {
		t.Error("Docker Hub's key is for its images, and no others")
	}
}
