package image

import (
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

func FuzzMatch(f *testing.F) {
	for _, s := range [][3]string{
		{"*.registry.io:5000/team", "eu.*.io:5000", "eu.registry.io:5000/team/app"},
		{"https://registry.io", "[::1]:5000", "[::1]:5000/x"},
		{"registry.io/te%61m", "user@registry.io?q", "registry.io/teamfoo"},
		{"a[b-", `a\`, "a"},
		{"", "*", "localhost/x"},
	} {
		f.Add(s[0], s[1], s[2])
	}
	f.Fuzz(func(t *testing.T, a, b, image string) {
		matched := Match(a, image)
		p, err := ParsePattern(a)
		if err != nil && matched {
			t.Errorf("%q does not parse (%v) and matches %q", a, err, image)
		}
		if err == nil && p.Match(image) != matched {
			t.Errorf("%q parsed and unparsed differ on %q", a, image)
		}
		if matched && !MatchHost(a, image) {
			t.Errorf("%q matches %q but not its host", a, image)
		}
		if why := Explain(a, image); (why == "") != matched {
			t.Errorf("%q on %q: match %v, explained by %q", a, image, matched, why)
		}
		if matched && CheckName(image) == nil && strings.Contains(p.Warning(), "matches no image") {
			// The warnings are about images as container runtimes write them, which are lower case, non-empty, and so on.
			if u, _ := ParsePattern(image); u.Warning() == "" {
				t.Errorf("%q matches %q in spite of %q", a, image, p.Warning())
			}
		}
		if utf8.ValidString(a) && utf8.ValidString(b) && utf8.ValidString(image) && matched && Match(b, image) {
			q, _ := ParsePattern(b)
			if !Overlap(p, q) || !Overlap(q, p) {
				t.Errorf("%q and %q both match %q and do not overlap", a, b, image)
			}
		}
	})
}

func FuzzGlobsMeet(f *testing.F) {
	f.Add("a*c", "*b*", "abc")
	f.Add("[^a-c]", `\*[x]`, "*x")
	f.Add("?", "[a-", "é")
	f.Fuzz(func(t *testing.T, a, b, label string) {
		if len(a) > 100 || len(b) > 100 || strings.ContainsAny(label, "./") || !utf8.ValidString(a+b+label) {
			return
		}
		inA, errA := filepath.Match(a, label)
		inB, errB := filepath.Match(b, label)
		meet := globsMeet(a, b)
		if meet != globsMeet(b, a) {
			t.Errorf("%q and %q: the order matters", a, b)
		}
		if inA && inB && errA == nil && errB == nil && !meet {
			t.Errorf("%q and %q both match %q and do not meet", a, b, label)
		}
	})
}

func FuzzIndexKey(f *testing.F) {
	for _, key := range []string{"https://index.docker.io/v1/", "registry.io/v1/v2/x", "http://https://a", "[::1]:5000/v2/", "a%zz", "u:p@a.io/x?y#z"} {
		f.Add(key, "registry.io/v2/x/app")
	}
	f.Fuzz(func(t *testing.T, key, image string) {
		index, err := IndexKey(key)
		if err != nil {
			if index != "" || KeyMatches(key, image) {
				t.Errorf("%q is in error (%v) and is filed under %q", key, err, index)
			}
			return
		}
		if KeyMatches(key, image) != Match(index, image) {
			t.Errorf("%q on %q is not what its index %q says", key, image, index)
		}
		if with, err := IndexKey("https://" + key); err == nil && !strings.HasPrefix(key, "http") && with != index {
			t.Errorf("%q and the same with a scheme are filed under %q and %q", key, index, with)
		}
		_ = CheckName(key)
		_ = IsDockerHub(key)
	})
}
