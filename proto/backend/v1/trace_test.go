package backendv1

import (
	"strings"
	"testing"
)

func TestIsTraceParent(t *testing.T) {
	const ids = "-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for name, tt := range map[string]struct {
		value string
		want  bool
	}{
		"as of today":                     {"00" + ids, true},
		"of a later version":              {"01" + ids, true},
		"of a later version, with more":   {"cc" + ids + "-what-the-future-will-be-like", true},
		"of today's version, with more":   {"00" + ids + "-x", false},
		"of a later version, with a line": {"cc" + ids + "-a\nb", false},
		"of a later version, too long":    {"cc" + ids + "-" + strings.Repeat("x", 300), false},
		"of the version that is none":     {"ff" + ids, false},
		"nothing":                         {"", false},
		"in capitals":                     {"00" + strings.ToUpper(ids), false},
		"of no trace":                     {"00-" + strings.Repeat("0", 32) + "-00f067aa0ba902b7-01", false},
		"of no parent":                    {"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", false},
		"a digit short":                   {"00" + ids[:len(ids)-1], false},
		"without flags":                   {"00" + ids[:len(ids)-3], false},
		"a digit within that is none":     {"00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01", false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := IsTraceParent(tt.value); got != tt.want {
				t.Errorf("%q: got %t", tt.value, got)
			}
		})
	}
}
