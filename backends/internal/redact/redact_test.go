package redact

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"
)

func TestText(t *testing.T) {
	const canary = `s3cr"t/+value`
	tests := []struct{ name, in, want string }{
		{"a secret as it is", "login with " + canary + " refused", "login with [redacted] refused"},
		{"a secret twice", canary + canary, "[redacted]"},
		{"quoted as JSON", `{"p":"s3cr\"t/+value"}`, `{"p":"[redacted]"}`},
		{"quoted as JSON in ASCII", `{"p":"k\u00f6nigskind"}`, `{"p":"[redacted]"}`},
		{"a line of a secret of several", "reading MIIabcdef failed", "reading [redacted] failed"},
		{"escaped for a URL", "u=s3cr%22t%2F%2Bvalue&x", "u=[redacted]&x"},
		{"base64", "Basic " + base64.StdEncoding.EncodeToString([]byte(canary)) + ".", "Basic [redacted]==."},
		{"an Authorization header", "Basic " + base64.StdEncoding.EncodeToString([]byte("user:"+canary)), "Basic [redacted]"},
		{"its end at the start of a cut text", "/+value was refused", "[redacted] was refused"},
		{"its start at the end of a cut text", "refused: s3cr\"t", "refused: [redacted]"},
		{"nothing secret", "plain", "plain"},
		{"overlapping secrets", "abcdefgh", "[redacted]"},
		{"what is too short to be a secret stays", "a no b", "a no b"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var s Set
			s.AddPair("user", canary)
			s.Add("abcdef", "defgh", "no", "", "königskind", "{\n  MIIabcdef\n}\n")
			if got := s.Text(tt.in); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestTextOfWhatRepeatsItselfIsReadOnce(t *testing.T) {
	var s Set
	for n := range 500 {
		s.Add(strings.Repeat("a", 4000+n))
	}
	text := strings.Repeat("a", 16<<10)
	began := time.Now()
	if got := s.Text(text); got != "[redacted]" {
		t.Errorf("got %d bytes", len(got))
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
}

func FuzzText(f *testing.F) {
	f.Add("secret", "a secret b")
	f.Fuzz(func(t *testing.T, secret, text string) {
		var s Set
		s.Add(secret)
		got := s.Text(text + secret + text)
		if len(secret) >= minLength && !strings.Contains("[redacted]", secret) && strings.Contains(strings.ReplaceAll(got, "[redacted]", "\x00"), secret) && !strings.ContainsRune(secret, 0) {
			t.Errorf("%q is still in %q", secret, got)
		}
	})
}
