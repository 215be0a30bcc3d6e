package exec

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	kjson "sigs.k8s.io/json"

	"github.com/credential-broker/credential-broker/backends"
)

// The versions of the kubelet's request and response (KEP-2133, KEP-4412).
const (
	v1       = "credentialprovider.kubelet.k8s.io/v1"
	v1beta1  = "credentialprovider.kubelet.k8s.io/v1beta1"
	v1alpha1 = "credentialprovider.kubelet.k8s.io/v1alpha1"
)

// wireRequest is a CredentialProviderRequest. The order of the fields is that of the kubelet's own encoding.
type wireRequest struct {
	Kind        string            `json:"kind"`
	APIVersion  string            `json:"apiVersion"`
	Image       string            `json:"image"`
	Token       string            `json:"serviceAccountToken,omitempty"`
	Annotations map[string]string `json:"serviceAccountAnnotations,omitempty"`
}

// encodeRequest writes the request as the kubelet does, byte for byte. Only v1 knows a token and annotations.
func encodeRequest(version string, req backends.Request) ([]byte, error) {
	wire := wireRequest{Kind: "CredentialProviderRequest", APIVersion: version, Image: string(req.Image)}
	if version == v1 {
		wire.Token, wire.Annotations = string(req.Token), req.Annotations
	}
	data, err := json.Marshal(wire)
	return append(data, '\n'), err
}

// wireResponse is a CredentialProviderResponse; its three versions have the same fields.
type wireResponse struct {
	Kind          string              `json:"kind"`
	APIVersion    string              `json:"apiVersion"`
	CacheKeyType  string              `json:"cacheKeyType"`
	CacheDuration *wireDuration       `json:"cacheDuration"`
	Auth          map[string]wireAuth `json:"auth"`
}

type wireAuth struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

// wireDuration is metav1.Duration.
type wireDuration time.Duration

func (d *wireDuration) UnmarshalJSON(data []byte) error {
	var s string
	if err := json.Unmarshal(data, &s); err != nil {
		return err
	}
	parsed, err := time.ParseDuration(s)
	*d = wireDuration(parsed)
	return err
}

// decodeResponse takes a response exactly as the kubelet would (pkg/credentialprovider/plugin, strict decoding), down to how it finds out
// the version. No error quotes the data, since every part of it may be secret.
func decodeResponse(version string, data []byte) (wireResponse, error) {
	var response wireResponse
	// The kubelet looks for version and kind with encoding/json, which does not mind the case of names, before it decodes strictly, which does.
	var meta struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
	}
	if err := json.Unmarshal(data, &meta); err != nil {
		var syntax *json.SyntaxError
		switch {
		case len(data) == 0:
			return response, errors.New("it printed nothing on standard output")
		case errors.As(err, &syntax):
			return response, fmt.Errorf("its standard output is not JSON from byte %d of %d on", syntax.Offset, len(data))
		default:
			return response, errors.New("its standard output is no CredentialProviderResponse")
		}
	}
	if meta.APIVersion != version {
		// A version is quoted only if it is one.
		if slices.Contains([]string{v1, v1beta1, v1alpha1}, meta.APIVersion) {
			return response, fmt.Errorf("it answered with apiVersion %s, and %s was asked for: set apiVersion to what it speaks", meta.APIVersion, version)
		}
		return response, fmt.Errorf("its response has another apiVersion than %s, which was asked for", version)
	}
	if meta.Kind != "CredentialProviderResponse" {
		return response, errors.New("its response is of another kind than CredentialProviderResponse")
	}
	strict, err := kjson.UnmarshalStrict(data, &response)
	if err != nil {
		return response, errors.New("its response has a field of the wrong type")
	}
	if len(strict) > 0 {
		return response, errors.New("its response has an unknown or a duplicate field, which the kubelet does not take")
	}
	switch response.CacheKeyType {
	case "Image", "Registry", "Global":
		return response, nil
	}
	return response, errors.New("its response has no valid cacheKeyType (Image, Registry or Global), without which the kubelet takes none of it")
}

// answer says it in the broker's words. What holds for all images holds for all of this registry: the broker files answers by registry at most.
func (r wireResponse) answer() backends.Response {
	answer := backends.Response{Scope: backends.ScopeImage}
	if r.CacheKeyType != "Image" {
		answer.Scope = backends.ScopeRegistry
	}
	if r.CacheDuration != nil {
		// To the kubelet a negative duration is one that is over already.
		d := max(0, time.Duration(*r.CacheDuration))
		answer.CacheDuration = &d
	}
	for key, auth := range r.Auth {
		answer.Credentials = append(answer.Credentials, backends.Credential{Key: key, Username: auth.Username, Password: backends.Secret(auth.Password)})
	}
	slices.SortFunc(answer.Credentials, func(a, b backends.Credential) int {
		if a.Key < b.Key {
			return -1
		}
		return 1 // keys of a map are never equal
	})
	return answer
}
