package kubelet

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	_ "unsafe" // for go:linkname

	"k8s.io/apimachinery/pkg/util/validation/field"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"

	brokerkubelet "github.com/credential-broker/credential-broker/broker/kubelet"
	"github.com/credential-broker/credential-broker/test/kubelet/internal/behaviour"
)

//go:linkname decodeProviderConfig k8s.io/kubernetes/pkg/credentialprovider/plugin.decode
func decodeProviderConfig(data []byte) (*kubeletconfig.CredentialProviderConfig, error)

//go:linkname validateProviderConfig k8s.io/kubernetes/pkg/credentialprovider/plugin.validateCredentialProviderConfig
func validateProviderConfig(config *kubeletconfig.CredentialProviderConfig, tokens bool) field.ErrorList

// FuzzResponse holds the broker's reading of a response against the kubelet's.
func FuzzResponse(f *testing.F) {
	hour := "1h0m0s"
	good := behaviour.Answer{CacheKeyType: "Registry", CacheDuration: &hour, Auth: map[string]behaviour.Value{"*.io": {Username: "u", Password: "p"}, "": {}}}
	for _, version := range []string{behaviour.V1, behaviour.V1Beta1, behaviour.V1Alpha1} {
		for _, fault := range append([]string{""}, behaviour.Faults...) {
			answer := good
			answer.Fault = fault
			out, _ := answer.Write(behaviour.Request{APIVersion: version})
			f.Add(out)
		}
	}
	head := `{"apiVersion":"` + behaviour.V1 + `","kind":"CredentialProviderResponse",`
	for _, rest := range []string{
		`"cacheKeyType":"Image","cacheDuration":null,"auth":null}`, `"cacheKeyType":"Image","cacheDuration":"1s ","auth":{}}`, `"cacheKeyType":"Image","cacheDuration":3}`,
		`"cacheKeyType":"Image","auth":{"a":null}}`, `"cacheKeyType":"Image","auth":{"a":{"username":null}}}`, `"cacheKeyType":"Image","auth":{"a":{"user":"x"}}}`,
		`"cacheKeyType":"Image","auth":{"a":{},"a":{}}}`, `"cacheKeyType":"image"}`, `"cacheKeyType":null}`, `"metadata":{},"cacheKeyType":"Image"}`, `"cacheKeyType":"Image"} {}`,
		`"cacheKeyType":"Image","auth":{"\ud800":{"password":"\u0000\ud800"}}}`, `"cacheKeyType":"Image","cacheDuration":"-1h"}`, `"CacheKeyType":"Image"}`, `"cacheKeyType":"Image","cacheDuration":"9999999h"}`,
		`"cacheKeyType":"Image","kind":"CredentialProviderResponse"}`, `"cacheKeyType":"Image","cacheDuration":"","auth":{}}`,
	} {
		f.Add([]byte(head + rest))
	}
	n := startInProcess(f, []entry{{Name: "p", APIVersion: behaviour.V1, DefaultCacheDuration: "0s", MatchImages: []string{"x"}}}, map[string]process{"p": nil}, identities{})
	decoder := n.decoder()
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, version := range []string{behaviour.V1, behaviour.V1Beta1, behaviour.V1Alpha1} {
			if !bytes.Contains(data, []byte(version)) && version != behaviour.V1 {
				continue
			}
			want, wrong := readResponse(decoder, version, data)
			if wrong == nil && !slices.Contains([]string{"Image", "Registry", "Global"}, string(want.CacheKeyType)) {
				wrong = errPlugin // the kubelet finds that out a little later
			}
			got, err := brokerkubelet.DecodeResponse(version, data)
			if (err == nil) != (wrong == nil) {
				t.Fatalf("%s as %s: the kubelet says %v, we say %v", data, version, wrong, err)
			}
			if err != nil {
				continue
			}
			lasts := time.Duration(0)
			if want.CacheDuration != nil {
				lasts = want.CacheDuration.Duration
			}
			if got.CacheKeyType != string(want.CacheKeyType) || got.CacheDuration != lasts || len(got.Auth) != len(want.Auth) {
				t.Fatalf("%s: the kubelet reads %+v, we read %+v", data, want, got)
			}
			for key, value := range want.Auth {
				if ours, ok := got.Auth[key]; !ok || ours.Username != value.Username || string(ours.Password) != value.Password {
					t.Fatalf("%s: the kubelet reads %q: %+v, we read %q %q (%v)", data, key, value, ours.Username, string(ours.Password), ok)
				}
			}
		}
	})
}

// stricter are the reasons for which the broker refuses a configuration that the kubelet would take: nobody means them.
var stricter = []string{
	"name: is required",          // the kubelet would execute the directory
	"a second document",          // the kubelet passes over it in silence
	"must be a mapping, is null", // the kubelet takes an item that is null for one whose fields are empty
}

// FuzzProviderConfig holds the broker's reading and validation of a CredentialProviderConfig against the kubelet's.
func FuzzProviderConfig(f *testing.F) {
	head := "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n"
	one := "- name: a\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n  matchImages: [\"*.io\"]\n  defaultCacheDuration: 1h\n"
	token := "  tokenAttributes:\n    serviceAccountTokenAudience: a\n    cacheType: Token\n    requireServiceAccount: true\n"
	for _, s := range []string{
		head, head + one, head + one + one, head + one + "  args: [a, \"\"]\n  env: [{name: A, value: b}]\n", head + one + token, head + one + token + "    requiredServiceAccountAnnotationKeys: [a/b, \"A B\"]\n",
		head + one + token + "    optionalServiceAccountAnnotationKeys: [x, x]\n", head + strings.Replace(one, "1h", "1", 1), head + strings.Replace(one, "1h", "-1h", 1), head + strings.Replace(one, "name: a", "name: a b", 1),
		head + strings.Replace(one, "name: a", "name: ..", 1), head + strings.Replace(one, `"*.io"`, `"[", "%"`, 1), strings.Replace(head, "/v1", "/v1alpha1", 1) + one, strings.Replace(head, "/v1", "/v1beta1", 1) + one + token,
		head + strings.Replace(one, "/v1\n", "/v1alpha1\n", 1) + token, head + one + "  extra: 1\n", head + one + "  name: b\n", head + one + "---\n" + head + one, "{}", "[]", "", "null", "# nothing\n", head + one + "  args: null\n",
		head + one + "  env: [null]\n", head + one + "  args: [null]\n", head + "- null\n", head + "- &a\n  name: a\n- *a\n", head + one + "  args: [1]\n", head + one + "  args: [yes, 0x1, 1e3, ~, 2001-01-01]\n", head + strings.Replace(one, "name: a", "name: yes", 1),
		"{\"apiVersion\":\"kubelet.config.k8s.io/v1\",\"kind\":\"CredentialProviderConfig\",\"providers\":[]}", string(providerConfig([]entry{{Name: "a", APIVersion: behaviour.V1, DefaultCacheDuration: "0s", MatchImages: []string{"a"}}})),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 4096 {
			return
		}
		want, wrong := decodeProviderConfig(data)
		if wrong == nil {
			if errs := validateProviderConfig(want, true); len(errs) > 0 {
				wrong = errs.ToAggregate()
			}
		}
		got, err := brokerkubelet.ParseConfig("file", data)
		if err != nil {
			if wrong == nil && !slices.ContainsFunc(stricter, func(reason string) bool { return strings.Contains(err.Error(), reason) }) {
				t.Fatalf("%s\nthe kubelet accepts it, we say %v", data, err)
			}
			return
		}
		if wrong != nil {
			t.Fatalf("%s\nwe accept it, the kubelet says %v", data, wrong)
		}
		if len(got.Providers) != len(want.Providers) {
			t.Fatalf("%s\nthe kubelet reads %d providers, we read %d", data, len(want.Providers), len(got.Providers))
		}
		for i, w := range want.Providers {
			g := got.Providers[i]
			same := g.Name == w.Name && g.APIVersion == w.APIVersion && slices.Equal(g.MatchImages, w.MatchImages) && *g.DefaultCacheDuration == w.DefaultCacheDuration.Duration &&
				slices.Equal(g.Args, w.Args) && len(g.Env) == len(w.Env) && (g.TokenAttributes == nil) == (w.TokenAttributes == nil)
			for j := range w.Env {
				same = same && g.Env[j] == brokerkubelet.EnvVar(w.Env[j])
			}
			if same && w.TokenAttributes != nil {
				a, b := g.TokenAttributes, w.TokenAttributes
				same = a.ServiceAccountTokenAudience == b.ServiceAccountTokenAudience && a.CacheType == string(b.CacheType) && *a.RequireServiceAccount == *b.RequireServiceAccount &&
					slices.Equal(a.RequiredServiceAccountAnnotationKeys, b.RequiredServiceAccountAnnotationKeys) &&
					slices.Equal(a.OptionalServiceAccountAnnotationKeys, b.OptionalServiceAccountAnnotationKeys)
			}
			if !same {
				t.Fatalf("%s\nthe kubelet reads %+v, we read %+v", data, w, g)
			}
		}
	})
}
