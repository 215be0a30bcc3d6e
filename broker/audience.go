package broker

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"

	"github.com/credential-broker/credential-broker/proto/secret"
)

// checkAudience returns an error unless the token's `aud` claim (RFC 7519, 4.1.3: one string or a list) names the audience. It verifies no signature: the kubelet, from which
// the token comes, is trusted; this only keeps a token that was made for somebody else from being handed on.
func checkAudience(token secret.Secret, audience string) error {
	const remedy = "print the kubelet's entry anew with `credential-broker kubelet-config`"
	parts := strings.Split(string(token), ".")
	if len(parts) != 3 {
		return Errorf(Misconfigured, "the service account token is not handed over: it is no JWT, so its audience cannot be known")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return Errorf(Misconfigured, "the service account token is not handed over: its payload is not base64url")
	}
	var claims map[string]json.RawMessage // a struct's field would take "AUD" for "aud"
	var named audiences
	if json.Unmarshal(payload, &claims) != nil || len(claims["aud"]) > 0 && json.Unmarshal(claims["aud"], &named) != nil { // their errors would quote the payload
		return Errorf(Misconfigured, "the service account token is not handed over: its payload is not the JSON of a JWT")
	}
	if !slices.Contains(named, audience) {
		return Errorf(Misconfigured, "the service account token is not handed over: it is for audience %q, the provider wants %q; %s",
			[]string(named), audience, remedy)
	}
	return nil
}

// audiences decodes a claim that is one string or a list of them.
type audiences []string

func (a *audiences) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*a = audiences{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(a))
}
