package exec

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	metajson "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/kubelet/pkg/apis/credentialprovider"
	"k8s.io/kubelet/pkg/apis/credentialprovider/install"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/redact"
)

var versions = []string{v1, v1beta1, v1alpha1}

// kubeletCodecs is what the kubelet's credential plugin decodes with (pkg/credentialprovider/plugin).
var kubeletCodecs = func() serializer.CodecFactory {
	scheme := runtime.NewScheme()
	install.Install(scheme)
	return serializer.NewCodecFactory(scheme, serializer.EnableStrict)
}()

// kubeletDecodes does with a provider's standard output what the kubelet does, up to where it has the response in hand.
func kubeletDecodes(version string, data []byte) (*credentialprovider.CredentialProviderResponse, error) {
	gvk, err := metajson.DefaultMetaFactory.Interpret(data)
	if err != nil {
		return nil, err
	}
	if gvk.GroupVersion().String() != version {
		return nil, errors.New("apiVersion")
	}
	obj, gvk, err := kubeletCodecs.UniversalDecoder().Decode(data, nil, nil)
	if err != nil {
		return nil, err
	}
	response, ok := obj.(*credentialprovider.CredentialProviderResponse)
	if !ok || gvk.Kind != "CredentialProviderResponse" || gvk.Group != credentialprovider.GroupName {
		return nil, errors.New("kind")
	}
	switch response.CacheKeyType {
	case credentialprovider.ImagePluginCacheKeyType, credentialprovider.RegistryPluginCacheKeyType, credentialprovider.GlobalPluginCacheKeyType:
		return response, nil
	}
	return nil, errors.New("cacheKeyType")
}

// sameAsTheKubelet fails unless the two agree on data.
func sameAsTheKubelet(t *testing.T, version string, data []byte) {
	t.Helper()
	want, wantErr := kubeletDecodes(version, data)
	got, gotErr := decodeResponse(version, data)
	if (wantErr == nil) != (gotErr == nil) {
		t.Fatalf("%q: the kubelet: %v; here: %v", data, wantErr, gotErr)
	}
	if wantErr != nil {
		return
	}
	if got.CacheKeyType != string(want.CacheKeyType) {
		t.Errorf("%q: cacheKeyType %q, the kubelet's %q", data, got.CacheKeyType, want.CacheKeyType)
	}
	if (got.CacheDuration == nil) != (want.CacheDuration == nil) || got.CacheDuration != nil && time.Duration(*got.CacheDuration) != want.CacheDuration.Duration {
		t.Errorf("%q: cacheDuration %v, the kubelet's %v", data, got.CacheDuration, want.CacheDuration)
	}
	auth := map[string]wireAuth{}
	for key, value := range want.Auth {
		auth[key] = wireAuth{value.Username, value.Password}
	}
	if !maps.Equal(got.Auth, auth) {
		t.Errorf("%q: auth %v, the kubelet's %v", data, got.Auth, auth)
	}
}

const head = `"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse"`

var responses = map[string]struct {
	data string
	ok   bool
}{
	"a whole response":                       {`{` + head + `,"cacheKeyType":"Registry","cacheDuration":"6h0m0s","auth":{"a.example":{"username":"u","password":"p"}}}`, true},
	"no credentials":                         {`{` + head + `,"cacheKeyType":"Image"}`, true},
	"null credentials":                       {`{` + head + `,"cacheKeyType":"Image","auth":null,"cacheDuration":null}`, true},
	"space around":                           {" \n{" + head + `,"cacheKeyType":"Image"}` + "\n\n", true},
	"a duration of zero":                     {`{` + head + `,"cacheKeyType":"Global","cacheDuration":"0s"}`, true},
	"a negative duration":                    {`{` + head + `,"cacheKeyType":"Image","cacheDuration":"-1s"}`, true},
	"a duration that is a number":            {`{` + head + `,"cacheKeyType":"Image","cacheDuration":60}`, false},
	"a duration that is none":                {`{` + head + `,"cacheKeyType":"Image","cacheDuration":"6 hours"}`, false},
	"no cacheKeyType":                        {`{` + head + `}`, false},
	"another cacheKeyType":                   {`{` + head + `,"cacheKeyType":"registry"}`, false},
	"an unknown field":                       {`{` + head + `,"cacheKeyType":"Image","extra":1}`, false},
	"an unknown field of a credential":       {`{` + head + `,"cacheKeyType":"Image","auth":{"a":{"username":"u","password":"p","x":1}}}`, false},
	"a duplicate field":                      {`{` + head + `,"cacheKeyType":"Image","cacheKeyType":"Image"}`, false},
	"a duplicate key":                        {`{` + head + `,"cacheKeyType":"Image","auth":{"a":{"username":"u","password":"p"},"a":{"username":"u","password":"p"}}}`, false},
	"a field in other letters":               {`{` + head + `,"CacheKeyType":"Image"}`, false},
	"an apiVersion in other letters":         {`{"APIVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse","cacheKeyType":"Image"}`, false},
	"another version":                        {`{"apiVersion":"credentialprovider.kubelet.k8s.io/v1beta2","kind":"CredentialProviderResponse","cacheKeyType":"Image"}`, false},
	"no version":                             {`{"kind":"CredentialProviderResponse","cacheKeyType":"Image"}`, false},
	"a request":                              {`{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderRequest","image":"a"}`, false},
	"another kind":                           {`{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"Pod","cacheKeyType":"Image"}`, false},
	"metadata, which the type does not have": {`{` + head + `,"metadata":{},"cacheKeyType":"Image"}`, false},
	"something behind it":                    {`{` + head + `,"cacheKeyType":"Image"}x`, false},
	"two of them":                            {`{` + head + `,"cacheKeyType":"Image"}{}`, false},
	"a password that is a number":            {`{` + head + `,"cacheKeyType":"Image","auth":{"a":{"username":"u","password":1}}}`, false},
	"a credential that is null":              {`{` + head + `,"cacheKeyType":"Image","auth":{"a":null}}`, true},
	"a credential without password":          {`{` + head + `,"cacheKeyType":"Image","auth":{"a":{"username":"u"}}}`, true},
	"broken UTF-8 in a password":             {`{` + head + `,"cacheKeyType":"Image","auth":{"a":{"username":"u","password":"` + "\xff" + `"}}}`, true},
	"YAML":                                   {"apiVersion: credentialprovider.kubelet.k8s.io/v1\nkind: CredentialProviderResponse\ncacheKeyType: Image\n", false},
	"nothing":                                {``, false},
	"null":                                   {`null`, false},
	"a list":                                 {`[]`, false},
	"a string":                               {`"x"`, false},
	"cut short":                              {`{` + head + `,"cacheKeyType":"Im`, false},
}

func TestResponsesAreTakenAsByTheKubelet(t *testing.T) {
	for name, tt := range responses {
		t.Run(name, func(t *testing.T) {
			if _, err := decodeResponse(v1, []byte(tt.data)); (err == nil) != tt.ok {
				t.Errorf("got %v, want ok: %v", err, tt.ok)
			}
			for _, version := range versions {
				sameAsTheKubelet(t, version, []byte(tt.data))
				sameAsTheKubelet(t, version, []byte(strings.ReplaceAll(tt.data, v1+`"`, version+`"`)))
			}
		})
	}
}

func FuzzResponse(f *testing.F) {
	for _, tt := range responses {
		f.Add(0, tt.data)
		f.Add(1, strings.ReplaceAll(tt.data, v1, v1beta1))
	}
	f.Fuzz(func(t *testing.T, version int, data string) {
		sameAsTheKubelet(t, versions[uint(version)%3], []byte(data))
		suspect([]byte(data), &redact.Set{})
	})
}

func TestRequestsAreThoseOfTheKubelet(t *testing.T) {
	info, _ := runtime.SerializerInfoForMediaType(kubeletCodecs.SupportedMediaTypes(), "application/json")
	for _, request := range []backends.Request{
		{Image: "registry.example:5000/team/app"},
		{Image: `odd<&>"\` + "\u2028/x"},
		{Image: "r.example/a", Token: "ey.J.x", Annotations: map[string]string{"b": "2", "a": "<1>"}},
		{Image: "r.example/a", Token: "ey.J.x", Annotations: map[string]string{}},
	} {
		for _, version := range versions {
			gv, err := schema.ParseGroupVersion(version)
			if err != nil {
				t.Fatal(err)
			}
			want, err := runtime.Encode(kubeletCodecs.EncoderForVersion(info.Serializer, gv), &credentialprovider.CredentialProviderRequest{
				Image: string(request.Image), ServiceAccountToken: string(request.Token), ServiceAccountAnnotations: request.Annotations,
			})
			if err != nil {
				t.Fatal(err)
			}
			got, err := encodeRequest(version, request)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("%s (-kubelet +here):\n%s", version, diff)
			}
		}
	}
}

func TestNoErrorQuotesTheResponse(t *testing.T) {
	const canary = "cAnArY-0123456789"
	for _, data := range []string{
		canary, `"` + canary + `"`, `{"apiVersion":"` + canary + `"}`, `{` + head + `,"` + canary + `":1}`, `{` + head + `,"cacheKeyType":"` + canary + `"}`,
		`{` + head + `,"cacheDuration":"` + canary + `"}`, `{` + head + `,"auth":{"` + canary + `":1}}`, `{` + head + `,"auth":"` + canary + `"}`,
		`{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"` + canary + `"}`,
	} {
		_, err := decodeResponse(v1, []byte(data))
		if err == nil || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: %v", data, err)
		}
	}
}

func TestAnswer(t *testing.T) {
	zero, hour := time.Duration(0), time.Hour
	minus := wireDuration(-hour)
	wireHour := wireDuration(hour)
	for name, tt := range map[string]struct {
		in   wireResponse
		want backends.Response
	}{
		"Image":                         {wireResponse{CacheKeyType: "Image"}, backends.Response{Scope: backends.ScopeImage}},
		"Registry":                      {wireResponse{CacheKeyType: "Registry", CacheDuration: &wireHour}, backends.Response{Scope: backends.ScopeRegistry, CacheDuration: &hour}},
		"Global holds for the registry": {wireResponse{CacheKeyType: "Global"}, backends.Response{Scope: backends.ScopeRegistry}},
		"a negative duration is zero":   {wireResponse{CacheKeyType: "Image", CacheDuration: &minus}, backends.Response{CacheDuration: &zero}},
		"all keys, other hosts' included, sorted": {wireResponse{CacheKeyType: "Image", Auth: map[string]wireAuth{"b": {"u", "p"}, "a/x": {"v", "q"}}}, backends.Response{Credentials: []backends.Credential{{Key: "a/x", Username: "v", Password: "q"}, {Key: "b", Username: "u", Password: "p"}}}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, tt.in.answer()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// provider makes a provider that is a shell script.
func provider(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "provider")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}
