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

func TestNear(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost": true, "LOCALHOST": true, "127.0.0.1": true, "127.8.9.1": true, "::1": true, "169.254.169.254": true, "::ffff:169.254.169.254": true, "fe80::1": true,
		"": false, "10.0.0.1": false, "localhost.example": false, "8.8.8.8": false, "fd00:ec2::254": false,
	} {
		if IsNear(host) != want {
			t.Errorf("%q: want %t", host, want)
		}
	}
}

func TestUUIDs(t *testing.T) {
	for s, want := range map[string]bool{
		"11111111-2222-3333-4444-55555555abcd": true, "11111111-2222-3333-4444-55555555ABCD": true,
		"": false, "11111111-2222-3333-4444-55555555abc": false, "11111111-2222-3333-4444-55555555abcg": false, "111111112-222-3333-4444-55555555abcd": false, "11111111-2222-3333-4444-55555555/../": false,
	} {
		if IsUUID(s) != want {
			t.Errorf("%q: want %t", s, want)
		}
	}
}

func TestIsLoopback(t *testing.T) {
	for host, want := range map[string]bool{"localhost": true, "LocalHost": true, "127.0.0.1": true, "127.9.9.9": true, "::1": true, "::ffff:127.0.0.1": true, "169.254.1.1": false, "fe80::1": false, "10.0.0.1": false, "localhost.example": false, "": false} {
		if IsLoopback(host) != want {
			t.Errorf("%s: %t", host, !want)
		}
	}
}
