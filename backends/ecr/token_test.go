package ecr

import (
	"encoding/base64"
	"testing"
)

func TestDecodeToken(t *testing.T) {
	encode := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	got, ok := decodeToken(encode("AWS:pass:word"))
	if !ok || got.username != "AWS" || got.password != "pass:word" {
		t.Errorf("got %q, %q, %t", got.username, string(got.password), ok)
	}
	for _, bad := range []string{"", "AWS:password", encode("AWS"), encode("AWS:"), encode(":password")} {
		if _, ok := decodeToken(bad); ok {
			t.Errorf("%q is taken for a token", bad)
		}
	}
}
