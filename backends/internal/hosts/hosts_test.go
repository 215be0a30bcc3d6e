package hosts

import "testing"

func TestPatterns(t *testing.T) {
	for pattern, want := range map[string]bool{
		"*-docker.registry.example": true, "registry.example.com": true, "*.azsacr.region.example": true,
		"": false, "*": false, "*.example": false, "a.*.example": false, "Registry.example.com": false, "registry.example.com:5000": false, "https://registry.example.com": false,
	} {
		if ValidPattern(pattern) != want {
			t.Errorf("%q: want %t", pattern, want)
		}
	}
}

func TestMatch(t *testing.T) {
	patterns := []string{"*-docker.registry.example", "one.example.com"}
	for host, want := range map[string]bool{
		"europe-docker.registry.example": true, "one.example.com": true,
		"registry.example": false, "a.b-docker.registry.example": false, "two.example.com": false, "one.example.com.evil.example": false,
	} {
		if Match(patterns, host) != want {
			t.Errorf("%q: want %t", host, want)
		}
	}
}
