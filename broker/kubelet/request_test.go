package kubelet

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/kubelet/pkg/apis/credentialprovider"
	"k8s.io/kubelet/pkg/apis/credentialprovider/install"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/proto/secret"
)

// theirs encodes requests and decodes responses with the kubelet's own types and codecs (see its pkg/credentialprovider/plugin/plugin.go).
var theirs = func() serializer.CodecFactory {
	scheme := runtime.NewScheme()
	install.Install(scheme)
	return serializer.NewCodecFactory(scheme, serializer.EnableStrict)
}()

var versions = []string{V1, V1Beta1, V1Alpha1}

func theirRequest(t testing.TB, version string, request *credentialprovider.CredentialProviderRequest) []byte {
	t.Helper()
	info, _ := runtime.SerializerInfoForMediaType(theirs.SupportedMediaTypes(), "application/json")
	data, err := runtime.Encode(theirs.EncoderForVersion(info.Serializer, groupVersion(version)), request)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// plain lets cmp look at a request without the masks of secret.Secret.
func plain(r broker.Request) map[string]any {
	return map[string]any{"image": r.Image, "token": string(r.Token), "annotations": r.Annotations}
}

func TestReadRequestReadsWhatTheKubeletWrites(t *testing.T) {
	const img, token = "registry.example:5000/team/app", "eyJh.eyJz.c2ln"
	annotations := map[string]string{"example.com/role": "arn:aws:iam::1:role/<x> & y", "ünï": "\x00\n\"\\"}
	for _, version := range versions {
		data := theirRequest(t, version, &credentialprovider.CredentialProviderRequest{Image: img, ServiceAccountToken: token, ServiceAccountAnnotations: annotations})
		got, gotVersion, err := ReadRequest(data)
		if err != nil {
			t.Fatal(err)
		}
		want := broker.Request{Image: img}
		if version == V1 {
			want.Token, want.Annotations = token, annotations
		}
		if diff := cmp.Diff(plain(want), plain(got)); diff != "" || gotVersion != version {
			t.Errorf("%s, read as %s:\n%s", version, gotVersion, diff)
		}
	}
}

func TestReadRequestIgnoresWhatTheVersionDoesNotHave(t *testing.T) {
	const common = `"kind":"CredentialProviderRequest","image":"a.io/b"`
	for name, tt := range map[string]struct {
		data string
		want broker.Request
	}{
		"unknown fields":                            {`{"apiVersion":"` + V1 + `",` + common + `,"new":{"a":[1]},"IMAGE":3,"metadata":null}`, broker.Request{Image: "a.io/b"}},
		"a token in v1beta1, of any type":           {`{"apiVersion":"` + V1Beta1 + `",` + common + `,"serviceAccountToken":7}`, broker.Request{Image: "a.io/b"}},
		"annotations in v1alpha1":                   {`{"apiVersion":"` + V1Alpha1 + `",` + common + `,"serviceAccountAnnotations":{"a":"b"}}`, broker.Request{Image: "a.io/b"}},
		"a null token":                              {`{"apiVersion":"` + V1 + `",` + common + `,"serviceAccountToken":null,"serviceAccountAnnotations":null}`, broker.Request{Image: "a.io/b"}},
		"a token whose name differs in case":        {`{"apiVersion":"` + V1 + `",` + common + `,"ServiceAccountToken":"x"}`, broker.Request{Image: "a.io/b"}},
		"space around, and the last of two a field": {" \n{\"apiVersion\":\"" + V1 + `",` + common + `,"image":"a.io/c"}` + "\n\t ", broker.Request{Image: "a.io/c"}},
	} {
		got, _, err := ReadRequest([]byte(tt.data))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if diff := cmp.Diff(plain(tt.want), plain(got)); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}

func TestReadRequestSaysInOneLineWhatIsWrongAndWhere(t *testing.T) {
	const canary = "CANARY"
	head := `{"apiVersion":"` + V1 + `","kind":"CredentialProviderRequest"`
	for _, tt := range []struct{ data, want string }{
		{"", "request: empty: JSON was expected"},
		{" \n", "request: empty: JSON was expected"},
		{head + `,"serviceAccountToken":"CANARY`, "request: not JSON: cut off at byte 117"},
		{head, "request: not JSON: cut off at byte 87"},
		{`{"CANARY": "\q"}`, "request: not JSON: unexpected character at byte 14"},
		{"CANARY", "request: not JSON: unexpected character at byte 1"},
		{"apiVersion: " + V1 + "\n", "request: not JSON: unexpected character at byte 1"},
		{head + `,"image":"a.io/b"} CANARY`, "request: something follows the JSON at byte 107"},
		{head + `,"image":"a.io/b"}` + head + "}", "request: something follows the JSON at byte 106"},
		{"null", "request: its kind is not CredentialProviderRequest"},
		{`"CANARY"`, "request: not a JSON object"},
		{`["CANARY"]`, "request: not a JSON object"},
		{"{}", "request: its kind is not CredentialProviderRequest"},
		{`{"apiVersion":"` + V1 + `","kind":"CANARY","image":"a.io/b"}`, "request: its kind is not CredentialProviderRequest"},
		{`{"apiVersion":"v2CANARY","kind":"CredentialProviderRequest","image":"a.io/b"}`, "request: its apiVersion is none of " + V1 + ", " + V1Beta1 + " and " + V1Alpha1},
		{head + `}`, "request: image is empty: the kubelet sends host[:port]/path"},
		{head + `,"image":null}`, "request: image is empty: the kubelet sends host[:port]/path"},
		{head + `,"image":"https://a.io/b"}`, `request: image "https://a.io/b" has a scheme: write host[:port]/path`},
		{head + `,"image":["CANARY"]}`, "request: image has a value of the wrong type"},
		{head + `,"image":9876543210}`, "request: image has a value of the wrong type"},
		{head + `,"image":"a.io/b","serviceAccountToken":{"CANARY":1}}`, "request: serviceAccountToken has a value of the wrong type"},
		{head + `,"image":"a.io/b","serviceAccountAnnotations":{"CANARY":1}}`, "request: serviceAccountAnnotations has a value of the wrong type"},
		{`{"image":"` + strings.Repeat("CANARY", MaxRequestSize/6) + `"}`, "request: more than 1048576 bytes: a CredentialProviderRequest is a few kilobytes"},
	} {
		_, _, err := ReadRequest([]byte(tt.data))
		if err == nil || err.Error() != tt.want {
			t.Errorf("%.120s:\ngot  %v\nwant %s", tt.data, err, tt.want)
		} else if strings.Contains(err.Error(), canary) || strings.Contains(err.Error(), "\n") {
			t.Errorf("quotes the data or has several lines: %v", err)
		}
	}
}

func TestReadRequestKeepsTheTokenOutOfPrinting(t *testing.T) {
	r, _, err := ReadRequest([]byte(`{"apiVersion":"` + V1 + `","kind":"CredentialProviderRequest","image":"a.io/b","serviceAccountToken":"CANARY"}`))
	if err != nil {
		t.Fatal(err)
	}
	if r.Token != secret.Secret("CANARY") || strings.Contains(r.Token.String(), "CANARY") {
		t.Error("the token is missing, or prints")
	}
}

// FuzzReadRequest holds ReadRequest against apimachinery's lenient decoder: the same fields from whatever is accepted, and nothing accepted that it refuses.
func FuzzReadRequest(f *testing.F) {
	for _, version := range versions {
		f.Add(theirRequest(f, version, &credentialprovider.CredentialProviderRequest{
			Image: "registry.example:5000/team/app", ServiceAccountToken: "CANARY", ServiceAccountAnnotations: map[string]string{"a/b": "c"},
		}))
	}
	f.Add([]byte(`{"apiVersion":"` + V1 + `","kind":"CredentialProviderRequest","image":"a.io/b","x":[{"y":1e999}]}`))
	f.Add([]byte(`{"apiVersion":1,"kind":{}}` + "\x00"))
	lenient := func() runtime.Decoder {
		scheme := runtime.NewScheme()
		install.Install(scheme)
		return serializer.NewCodecFactory(scheme).UniversalDecoder()
	}()
	f.Fuzz(func(t *testing.T, data []byte) {
		got, version, err := ReadRequest(data)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\r") {
				t.Errorf("several lines: %q", err)
			}
			if version != "" || got.Image != "" || got.Token != "" {
				t.Error("an error and a request")
			}
			return
		}
		object, gvk, err := lenient.Decode(data, nil, nil)
		if err != nil {
			t.Fatalf("accepted, but the kubelet's decoder says %v", err)
		}
		want := object.(*credentialprovider.CredentialProviderRequest)
		if gvk.GroupVersion().String() != version {
			t.Errorf("version %s, the kubelet's decoder says %s", version, gvk.GroupVersion())
		}
		if len(want.ServiceAccountAnnotations) == 0 && len(got.Annotations) == 0 {
			want.ServiceAccountAnnotations, got.Annotations = nil, nil
		}
		wanted := broker.Request{Image: want.Image, Token: secret.Secret(want.ServiceAccountToken), Annotations: want.ServiceAccountAnnotations}
		if diff := cmp.Diff(plain(wanted), plain(got)); diff != "" {
			t.Error(diff)
		}
	})
}

func BenchmarkReadRequest(b *testing.B) {
	data := theirRequest(b, V1, &credentialprovider.CredentialProviderRequest{Image: "registry.example:5000/team/app", ServiceAccountToken: string(bytes.Repeat([]byte("x"), 1200))})
	for b.Loop() {
		if _, _, err := ReadRequest(data); err != nil {
			b.Fatal(err)
		}
	}
}
