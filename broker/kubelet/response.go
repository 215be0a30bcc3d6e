package kubelet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	kjson "sigs.k8s.io/json"

	"github.com/credential-broker/credential-broker/proto/secret"
)

const responseKind = "CredentialProviderResponse"

// The values of cacheKeyType: for which other images the kubelet may use the same answer.
const (
	CacheKeyImage    = "Image"
	CacheKeyRegistry = "Registry"
	CacheKeyGlobal   = "Global"
)

// Response is a CredentialProviderResponse of any version; the three have the same fields.
type Response struct {
	// CacheKeyType is never empty: the kubelet throws such a response away, credentials and all.
	CacheKeyType string
	// CacheDuration of zero means that the kubelet asks again at the next pull.
	CacheDuration time.Duration
	// Auth maps an auth key ("host[:port][/path]", globs in the host's labels) to its credential. Empty means that there are no credentials for the image.
	Auth map[string]AuthConfig
}

// AuthConfig is the credential for one auth key.
type AuthConfig struct {
	Username string
	Password secret.Secret
}

// wireResponse is a response as JSON has it: the one place where passwords are plain strings.
type wireResponse struct {
	APIVersion    string              `json:"apiVersion"`
	Kind          string              `json:"kind"`
	CacheKeyType  string              `json:"cacheKeyType"`
	CacheDuration *duration           `json:"cacheDuration,omitempty"`
	Auth          map[string]wireAuth `json:"auth,omitempty"`
}

type wireAuth struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

// duration is metav1.Duration: a string such as "1h30m0s".
type duration time.Duration

func (d duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

func (d *duration) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return err
	}
	parsed, err := time.ParseDuration(text)
	if err != nil {
		return err
	}
	*d = duration(parsed)
	return nil
}

// Encode writes the response in the given apiVersion, which has to be the request's, as one line of JSON. It always has a cacheDuration, so that the entry's defaultCacheDuration
// never applies; a negative one is written as zero. What the kubelet could not read back as it was meant is an error, and so is cacheKeyType Global: the broker routes by image, so no
// answer of its holds for all images.
func (r Response) Encode(version string) ([]byte, error) {
	if !knownVersion(version) {
		return nil, fmt.Errorf("response: apiVersion %q is none of %s, %s and %s", version, V1, V1Beta1, V1Alpha1)
	}
	if r.CacheKeyType != CacheKeyImage && r.CacheKeyType != CacheKeyRegistry {
		return nil, fmt.Errorf("response: cacheKeyType %q is neither %s nor %s", r.CacheKeyType, CacheKeyImage, CacheKeyRegistry)
	}
	lasts := duration(max(r.CacheDuration, 0))
	wire := wireResponse{APIVersion: version, Kind: responseKind, CacheKeyType: r.CacheKeyType, CacheDuration: &lasts, Auth: make(map[string]wireAuth, len(r.Auth))}
	for key, auth := range r.Auth {
		if !utf8.ValidString(key) || !utf8.ValidString(auth.Username) || !utf8.ValidString(string(auth.Password)) {
			return nil, fmt.Errorf("response: the credential for auth key %q is not UTF-8, which JSON cannot carry", key)
		}
		wire.Auth[key] = wireAuth{Username: auth.Username, Password: string(auth.Password)}
	}
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(wire); err != nil {
		return nil, errors.New("response: cannot be written as JSON") // the error might quote a value
	}
	return out.Bytes(), nil
}

// DecodeResponse reads a response as strictly as the kubelet does: the apiVersion that the request had, no unknown field, no field twice, a cacheKeyType that exists. An absent
// cacheDuration counts as zero, which is the defaultCacheDuration of the entry that Entries makes. An error never quotes the data.
func DecodeResponse(version string, data []byte) (Response, error) {
	wire, err := decodeResponse(version, data)
	if err != nil {
		return Response{}, fmt.Errorf("response: %w", err)
	}
	r := Response{CacheKeyType: wire.CacheKeyType}
	if wire.CacheDuration != nil {
		r.CacheDuration = time.Duration(*wire.CacheDuration)
	}
	if len(wire.Auth) > 0 {
		r.Auth = make(map[string]AuthConfig, len(wire.Auth))
		for key, auth := range wire.Auth {
			r.Auth[key] = AuthConfig{Username: auth.Username, Password: secret.Secret(auth.Password)}
		}
	}
	return r, nil
}

func decodeResponse(version string, data []byte) (wireResponse, error) {
	var wire wireResponse
	strict, err := kjson.UnmarshalStrict(data, &wire)
	switch {
	case err != nil:
		return wire, describe(err, data)
	case wire.Kind != responseKind:
		return wire, errors.New("its kind is not " + responseKind)
	case wire.APIVersion != version:
		return wire, fmt.Errorf("its apiVersion is not the request's, %s", version)
	case len(strict) > 0:
		return wire, errors.New("it has a field that is unknown or stands twice")
	case wire.CacheKeyType != CacheKeyImage && wire.CacheKeyType != CacheKeyRegistry && wire.CacheKeyType != CacheKeyGlobal:
		return wire, fmt.Errorf("its cacheKeyType is none of %s, %s and %s", CacheKeyImage, CacheKeyRegistry, CacheKeyGlobal)
	}
	return wire, nil
}
