// Package behaviour is what a make-believe credential provider does: which answer it gives for which image, and in which ways it can be broken. The program in ../../stub plays
// it as a process; the tests play it without one. It imports little, for the program is started thousands of times.
package behaviour

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"strings"
)

// The versions of the kubelet's request and response.
const (
	V1       = "credentialprovider.kubelet.k8s.io/v1"
	V1Beta1  = "credentialprovider.kubelet.k8s.io/v1beta1"
	V1Alpha1 = "credentialprovider.kubelet.k8s.io/v1alpha1"
)

// Provider is one provider's behaviour.
type Provider struct {
	// Answers are by image, or else by registry (host and port), or else by "*". None of them: an answer without credentials, valid for the image.
	Answers map[string]Answer
	// DownUntil is the number of lookups of a sequence during which the provider fails.
	DownUntil int `json:",omitempty"`
}

// Answer is what a provider writes.
type Answer struct {
	Auth map[string]Value `json:",omitempty"`
	// CacheKeyType is Image, Registry or Global.
	CacheKeyType string
	// CacheDuration is absent if nil.
	CacheDuration *string `json:",omitempty"`
	// Fault is one of Faults, or empty.
	Fault string `json:",omitempty"`
	// Echo puts the request's token in place of every password.
	Echo bool `json:",omitempty"`
	// For is whom the answer is for: nobody in particular if empty, "account" (the token's subject, with its annotations) or "token" (the very token). The user names say so.
	For string `json:",omitempty"`
}

// Value is a user name and a password.
type Value struct {
	Username string
	Password string
}

// Faults are the ways in which an answer can be none. The kubelet gets no credentials from any of them.
var Faults = []string{
	"exit 1", "answer and exit 1", "nothing", "garbage", "cut off", "array", "another apiVersion", "another kind", "unknown field", "field twice", "case of a field", "no cacheKeyType",
	"unknown cacheKeyType", "no duration", "wrong type", "yaml",
}

// Answer is what the provider answers for an image at one step of a sequence.
func (p Provider) Answer(image string, step int) Answer {
	answer := Answer{CacheKeyType: "Image"}
	registry, _, _ := strings.Cut(image, "/")
	for _, scope := range []string{image, registry, "*"} {
		if a, ok := p.Answers[scope]; ok {
			answer = a
			break
		}
	}
	if step < p.DownUntil {
		answer.Fault = "exit 1"
	}
	return answer
}

// Request is what a provider gets from the kubelet.
type Request struct {
	APIVersion  string            `json:"apiVersion"`
	Kind        string            `json:"kind"`
	Image       string            `json:"image"`
	Token       string            `json:"serviceAccountToken,omitempty"`
	Annotations map[string]string `json:"serviceAccountAnnotations,omitempty"`
}

func (a Answer) recipient(request Request) string {
	var to any
	switch a.For {
	case "account":
		to = []any{subject(request.Token), request.Annotations}
	case "token":
		to = []any{request.Token, request.Annotations}
	default:
		return ""
	}
	text, err := json.Marshal(to) // maps in the order of their keys
	if err != nil {
		panic(err)
	}
	sum := fnv.New32a()
	_, _ = sum.Write(text)
	return fmt.Sprintf(" for %08x", sum.Sum32())
}

// subject is a token's `sub` claim, empty without a token.
func subject(token string) string {
	var claims struct {
		Subject string `json:"sub"`
	}
	if _, rest, ok := strings.Cut(token, "."); ok {
		payload, _, _ := strings.Cut(rest, ".")
		if data, err := base64.RawURLEncoding.DecodeString(payload); err == nil {
			_ = json.Unmarshal(data, &claims)
		}
	}
	return claims.Subject
}

// Write is an answer as a process gives it: standard output and exit status.
func (a Answer) Write(request Request) (stdout []byte, status int) {
	type auth struct {
		Username string `json:"username"`
		Password string `json:"password"`
	}
	response := map[string]any{"apiVersion": request.APIVersion, "kind": "CredentialProviderResponse", "cacheKeyType": a.CacheKeyType}
	if a.CacheDuration != nil {
		response["cacheDuration"] = *a.CacheDuration
	}
	if len(a.Auth) > 0 {
		entries := map[string]auth{}
		for key, value := range a.Auth {
			if a.Echo {
				value.Password = request.Token
			}
			value.Username += a.recipient(request)
			entries[key] = auth(value)
		}
		response["auth"] = entries
	}
	encode := func() []byte {
		out, err := json.Marshal(response)
		if err != nil {
			panic(err)
		}
		return append(out, '\n')
	}
	switch a.Fault {
	case "":
		return encode(), 0
	case "exit 1":
		return nil, 1
	case "answer and exit 1":
		return encode(), 1
	case "nothing":
		return nil, 0
	case "garbage":
		return []byte("\x00\xff<html>502 Bad Gateway</html>"), 0
	case "cut off":
		out := encode()
		return out[:len(out)-3], 0
	case "array":
		return append(append([]byte("["), encode()...), ']'), 0
	case "another apiVersion":
		response["apiVersion"] = map[string]string{V1: V1Beta1, V1Beta1: V1Alpha1, V1Alpha1: V1}[request.APIVersion]
	case "another kind":
		response["kind"] = "CredentialProviderRequest"
	case "unknown field":
		response["comment"] = "x"
	case "field twice":
		return append([]byte(`{"cacheKeyType":"Image",`), encode()[1:]...), 0
	case "case of a field":
		response["Auth"] = response["auth"]
		delete(response, "auth")
	case "no cacheKeyType":
		delete(response, "cacheKeyType")
	case "unknown cacheKeyType":
		response["cacheKeyType"] = "Pod"
	case "no duration":
		response["cacheDuration"] = "soon"
	case "wrong type":
		response["auth"] = []string{"x"}
	case "yaml":
		return []byte("apiVersion: " + request.APIVersion + "\nkind: CredentialProviderResponse\ncacheKeyType: Image\n"), 0
	default:
		panic("no such fault: " + a.Fault)
	}
	return encode(), 0
}
