package kubelet

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/kubelet/pkg/apis/credentialprovider"

	"github.com/credential-broker/credential-broker/proto/secret"
)

func groupVersion(version string) schema.GroupVersion {
	gv, err := schema.ParseGroupVersion(version)
	if err != nil {
		panic(err)
	}
	return gv
}

// theirResponse takes a response as the kubelet's execPlugin and pluginProvider do.
func theirResponse(version string, data []byte) (*credentialprovider.CredentialProviderResponse, error) {
	gvk, err := json.DefaultMetaFactory.Interpret(data)
	if err != nil {
		return nil, err
	}
	if gvk.GroupVersion().String() != version {
		return nil, errors.New("apiVersion")
	}
	object, _, err := theirs.UniversalDecoder().Decode(data, nil, nil)
	if err != nil {
		return nil, err
	}
	response, ok := object.(*credentialprovider.CredentialProviderResponse)
	if !ok {
		return nil, fmt.Errorf("%T", object)
	}
	switch response.CacheKeyType {
	case credentialprovider.ImagePluginCacheKeyType, credentialprovider.RegistryPluginCacheKeyType, credentialprovider.GlobalPluginCacheKeyType:
		return response, nil
	}
	return nil, errors.New("cacheKeyType")
}

// asOurs is a response of the kubelet's as DecodeResponse would give it.
func asOurs(r *credentialprovider.CredentialProviderResponse) Response {
	ours := Response{CacheKeyType: string(r.CacheKeyType)}
	if r.CacheDuration != nil {
		ours.CacheDuration = r.CacheDuration.Duration
	}
	for key, auth := range r.Auth {
		if ours.Auth == nil {
			ours.Auth = make(map[string]AuthConfig)
		}
		ours.Auth[key] = AuthConfig{Username: auth.Username, Password: secret.Secret(auth.Password)}
	}
	return ours
}

var unmasked = cmp.Options{cmp.Transformer("plain", func(a AuthConfig) [2]string { return [2]string{a.Username, string(a.Password)} }), cmpopts.EquateEmpty()}

func TestEncodeWritesWhatTheKubeletReads(t *testing.T) {
	for name, r := range map[string]Response{
		"one credential":   {CacheKeyType: CacheKeyImage, CacheDuration: 6 * time.Hour, Auth: map[string]AuthConfig{"a.io": {"u", "p"}}},
		"no credentials":   {CacheKeyType: CacheKeyImage},
		"empty values":     {CacheKeyType: CacheKeyRegistry, Auth: map[string]AuthConfig{"*.a.io:5000/x": {}}},
		"odd characters":   {CacheKeyType: CacheKeyImage, CacheDuration: time.Nanosecond, Auth: map[string]AuthConfig{"a.io": {"<&>\u2028", "\"\\\n\x00\x7f\u0085𝄞"}}},
		"the longest time": {CacheKeyType: CacheKeyImage, CacheDuration: 1<<63 - 1, Auth: map[string]AuthConfig{"a.io": {"u", "p"}, "b.io": {"v", "q"}}},
	} {
		for _, version := range versions {
			data, err := r.Encode(version)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if n := strings.Count(string(data), "\n"); n != 1 || data[len(data)-1] != '\n' {
				t.Errorf("%s: not one line: %q", name, data)
			}
			their, err := theirResponse(version, data)
			if err != nil {
				t.Errorf("%s: the kubelet says %v", name, err)
				continue
			}
			if their.CacheDuration == nil {
				t.Errorf("%s: no cacheDuration", name)
			}
			if len(r.Auth) == 0 && their.Auth != nil {
				t.Errorf("%s: auth is not null", name)
			}
			if diff := cmp.Diff(r, asOurs(their), unmasked); diff != "" {
				t.Errorf("%s, as the kubelet reads it:\n%s", name, diff)
			}
			ours, err := DecodeResponse(version, data)
			if diff := cmp.Diff(r, ours, unmasked); diff != "" || err != nil {
				t.Errorf("%s: %v\n%s", name, err, diff)
			}
		}
	}
}

func TestEncodeIsByteForByteThis(t *testing.T) {
	r := Response{CacheKeyType: CacheKeyRegistry, CacheDuration: 90 * time.Minute, Auth: map[string]AuthConfig{"b.io": {"v", "<q>"}, "a.io": {"u", "p"}}}
	got, err := r.Encode(V1)
	const want = `{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse","cacheKeyType":"Registry","cacheDuration":"1h30m0s",` +
		`"auth":{"a.io":{"username":"u","password":"p"},"b.io":{"username":"v","password":"<q>"}}}` + "\n"
	if err != nil || string(got) != want {
		t.Errorf("%v\ngot  %s\nwant %s", err, got, want)
	}
	got, err = Response{CacheKeyType: CacheKeyImage, CacheDuration: -time.Second}.Encode(V1Alpha1)
	const none = `{"apiVersion":"credentialprovider.kubelet.k8s.io/v1alpha1","kind":"CredentialProviderResponse","cacheKeyType":"Image","cacheDuration":"0s"}` + "\n"
	if err != nil || string(got) != none {
		t.Errorf("%v\ngot  %s\nwant %s", err, got, none)
	}
}

func TestEncodeRefusesWhatTheKubeletWouldMisread(t *testing.T) {
	auth := func(key, username, password string) map[string]AuthConfig {
		return map[string]AuthConfig{key: {username, secret.Secret(password)}}
	}
	for _, tt := range []struct {
		version string
		r       Response
		want    string
	}{
		{"v1", Response{CacheKeyType: CacheKeyImage}, `response: apiVersion "v1" is none of ` + V1 + ", " + V1Beta1 + " and " + V1Alpha1},
		{V1, Response{}, `response: cacheKeyType "" is neither Image nor Registry`},
		{V1, Response{CacheKeyType: CacheKeyGlobal}, `response: cacheKeyType "Global" is neither Image nor Registry`},
		{V1, Response{CacheKeyType: CacheKeyImage, Auth: auth("a.io", "u", "CANARY\xff")}, `response: the credential for auth key "a.io" is not UTF-8, which JSON cannot carry`},
		{V1, Response{CacheKeyType: CacheKeyImage, Auth: auth("a.io", "CANARY\xff", "p")}, `response: the credential for auth key "a.io" is not UTF-8, which JSON cannot carry`},
		{V1, Response{CacheKeyType: CacheKeyImage, Auth: auth("\xff", "u", "p")}, `response: the credential for auth key "\xff" is not UTF-8, which JSON cannot carry`},
	} {
		data, err := tt.r.Encode(tt.version)
		if data != nil || err == nil || err.Error() != tt.want {
			t.Errorf("got  %v\nwant %s", err, tt.want)
		}
	}
}

func TestDecodeResponseIsAsStrictAsTheKubelet(t *testing.T) {
	head := `{"apiVersion":"` + V1 + `","kind":"CredentialProviderResponse"`
	good := head + `,"cacheKeyType":"Image"`
	for _, tt := range []struct{ data, want string }{
		{good + "}", ""},
		{good + `,"auth":null,"cacheDuration":null}`, ""},
		{good + `,"auth":{"a.io":{"username":"u","password":"p"}}}` + "\n\n", ""},
		{good + `,"auth":{"a.io":{}}}`, ""},
		{"", "response: empty: JSON was expected"},
		{good, "response: not JSON: cut off at byte 111"},
		{good + "}}", "response: something follows the JSON at byte 113"},
		{good + `,"token":"CANARY"}`, "response: it has a field that is unknown or stands twice"},
		{good + `,"Auth":{}}`, "response: it has a field that is unknown or stands twice"},
		{good + `,"auth":{"a.io":{"username":"u","password":"p","auth":"CANARY"}}}`, "response: it has a field that is unknown or stands twice"},
		{good + `,"auth":{"CANARY":{},"CANARY":{}}}`, "response: it has a field that is unknown or stands twice"},
		{good + `,"cacheDuration":"CANARY"}`, "response: not JSON of the expected form"},
		{good + `,"cacheDuration":60}`, "response: cacheDuration has a value of the wrong type"},
		{good + `,"auth":{"a.io":"CANARY"}}`, "response: auth has a value of the wrong type"},
		{head + `}`, "response: its cacheKeyType is none of Image, Registry and Global"},
		{head + `,"cacheKeyType":"image"}`, "response: its cacheKeyType is none of Image, Registry and Global"},
		{`{"apiVersion":"` + V1Beta1 + `","kind":"CredentialProviderResponse","cacheKeyType":"Image"}`, "response: its apiVersion is not the request's, " + V1},
		{`{"apiVersion":"` + V1 + `","kind":"CANARY","cacheKeyType":"Image"}`, "response: its kind is not CredentialProviderResponse"},
	} {
		_, err := DecodeResponse(V1, []byte(tt.data))
		if got := fmt.Sprint(err); err == nil && tt.want != "" || err != nil && got != tt.want {
			t.Errorf("%s:\ngot  %v\nwant %s", tt.data, err, tt.want)
		}
		if _, theirErr := theirResponse(V1, []byte(tt.data)); (err == nil) != (theirErr == nil) {
			t.Errorf("%s: we say %v, the kubelet says %v", tt.data, err, theirErr)
		}
	}
}

// FuzzDecodeResponse holds DecodeResponse against the kubelet's own strict decoding: both take the same, and read the same in it.
func FuzzDecodeResponse(f *testing.F) {
	for _, version := range versions {
		data, err := Response{CacheKeyType: CacheKeyImage, CacheDuration: time.Minute, Auth: map[string]AuthConfig{"a.io": {"u", "p"}}}.Encode(version)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(`{"apiVersion":"` + V1 + `","kind":"CredentialProviderResponse","cacheKeyType":"Global","cacheDuration":"1h","auth":{"a":{"username":"x","username":"y"}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, version := range versions {
			ours, err := DecodeResponse(version, data)
			their, theirErr := theirResponse(version, data)
			if (err == nil) != (theirErr == nil) {
				t.Fatalf("we say %v, the kubelet says %v", err, theirErr)
			}
			if err != nil {
				if strings.ContainsAny(err.Error(), "\n\r") {
					t.Errorf("several lines: %q", err)
				}
				continue
			}
			if diff := cmp.Diff(asOurs(their), ours, unmasked); diff != "" {
				t.Error(diff)
			}
		}
	})
}
