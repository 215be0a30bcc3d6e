package kubelet

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	kjson "sigs.k8s.io/json"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/image"
	"github.com/credential-broker/credential-broker/proto/secret"
)

// The versions of the request and the response (k8s.io/kubelet/pkg/apis/credentialprovider), as they stand in `apiVersion`.
const (
	V1       = "credentialprovider.kubelet.k8s.io/v1"
	V1Beta1  = "credentialprovider.kubelet.k8s.io/v1beta1"
	V1Alpha1 = "credentialprovider.kubelet.k8s.io/v1alpha1"
)

// MaxRequestSize bounds a request, in bytes. The largest honest one holds a token and some annotations, which Kubernetes bounds at 256 KiB for one object.
const MaxRequestSize = 1 << 20

const requestKind = "CredentialProviderRequest"

// knownVersion says whether version is one of the three.
func knownVersion(version string) bool {
	return version == V1 || version == V1Beta1 || version == V1Alpha1
}

// ReadRequest reads one CredentialProviderRequest and returns it with its apiVersion, in which the response has to be written. Names are case-sensitive and unknown
// fields are ignored, as everywhere in Kubernetes; the token and the annotations exist in v1 only. An error is one line and, the image's name apart, quotes nothing of the data,
// which may hold a token.
func ReadRequest(data []byte) (broker.Request, string, error) {
	request, version, err := readRequest(data)
	if err != nil {
		return broker.Request{}, "", fmt.Errorf("request: %w", err)
	}
	return request, version, nil
}

func readRequest(data []byte) (broker.Request, string, error) {
	if len(data) > MaxRequestSize {
		return broker.Request{}, "", fmt.Errorf("more than %d bytes: a %s is a few kilobytes", MaxRequestSize, requestKind)
	}
	var common struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Image      string `json:"image"`
	}
	if err := decode(data, &common); err != nil {
		return broker.Request{}, "", err
	}
	switch {
	case common.Kind != requestKind:
		return broker.Request{}, "", errors.New("its kind is not " + requestKind)
	case !knownVersion(common.APIVersion):
		return broker.Request{}, "", fmt.Errorf("its apiVersion is none of %s, %s and %s", V1, V1Beta1, V1Alpha1)
	}
	if err := image.CheckName(common.Image); err != nil {
		return broker.Request{}, "", err
	}
	request := broker.Request{Image: common.Image}
	if common.APIVersion != V1 {
		return request, common.APIVersion, nil
	}
	var identity struct {
		Token       string            `json:"serviceAccountToken"`
		Annotations map[string]string `json:"serviceAccountAnnotations"`
	}
	if err := decode(data, &identity); err != nil {
		return broker.Request{}, "", err
	}
	request.Token, request.Annotations = secret.Secret(identity.Token), identity.Annotations
	return request, common.APIVersion, nil
}

// decode is apimachinery's own way of reading JSON, with errors that say where and not what.
func decode(data []byte, into any) error {
	return describe(kjson.UnmarshalCaseSensitivePreserveInts(data, into), data)
}

// describe words an error of sigs.k8s.io/json without its quotations of the data.
func describe(err error, data []byte) error {
	if err == nil {
		return nil
	}
	if len(strings.TrimSpace(string(data))) == 0 {
		return errors.New("empty: JSON was expected")
	}
	if is, offset := kjson.SyntaxErrorOffset(err); is {
		switch {
		case strings.Contains(err.Error(), "unexpected end"):
			return fmt.Errorf("not JSON: cut off at byte %d", len(data))
		case strings.Contains(err.Error(), "after top-level value"):
			return fmt.Errorf("something follows the JSON at byte %d", offset)
		default:
			return fmt.Errorf("not JSON: unexpected character at byte %d", offset)
		}
	}
	var wrong *json.UnmarshalTypeError
	switch {
	case !errors.As(err, &wrong):
		return errors.New("not JSON of the expected form")
	case wrong.Field == "": // the names in Field are those of our types, never the data's
		return errors.New("not a JSON object")
	default:
		return fmt.Errorf("%s has a value of the wrong type", wrong.Field)
	}
}

// WriteRequest writes a request as the kubelet does, in version v1.
func WriteRequest(r broker.Request) ([]byte, error) {
	return json.Marshal(struct {
		APIVersion  string            `json:"apiVersion"`
		Kind        string            `json:"kind"`
		Image       string            `json:"image"`
		Token       string            `json:"serviceAccountToken,omitempty"`
		Annotations map[string]string `json:"serviceAccountAnnotations,omitempty"`
	}{V1, requestKind, r.Image, string(r.Token), r.Annotations})
}
