package config

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"
)

func TestFingerprintTellsProvidersApart(t *testing.T) {
	full := func() *Provider {
		hour := time.Hour
		return &Provider{
			Name: "n", Backend: "b", MatchImages: []string{"m"}, DefaultCacheDuration: &hour, Timeout: time.Second, Env: []EnvVar{{"N", "v"}}, InheritEnv: []string{"i"},
			SHA256: []string{"s"}, User: "u", TokenAttributes: &TokenAttributes{ServiceAccountTokenAudience: "a", CacheType: CacheTypeToken}, Mirrors: []Mirror{{"s", "e"}},
			Config: json.RawMessage(`{"a":1}`), At: "f:1",
		}
	}
	want := full().Fingerprint()
	if elsewhere := full(); elsewhere.Fingerprint() != want {
		t.Error("two equal providers differ")
	}
	moved := full()
	moved.At = "g:2"
	if moved.Fingerprint() != want {
		t.Error("where an entry stands counts")
	}
	fields := reflect.TypeFor[Provider]()
	for i := range fields.NumField() {
		if fields.Field(i).Name == "At" {
			continue
		}
		changed := full()
		reflect.ValueOf(changed).Elem().Field(i).SetZero()
		if changed.Fingerprint() == want {
			t.Errorf("%s does not count", fields.Field(i).Name)
		}
	}
}
