package webidentity

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxToken bounds a token, and every answer that has one in it, in bytes. What clouds take is shorter: AWS at most 20,000, Google 16 KiB of the whole request.
const maxToken = 64 << 10

// Claims are what a JWT says of itself (RFC 7519, section 4.1), unverified: only for messages, session names and choosing; whoever gets the token verifies it.
type Claims struct {
	Issuer, Subject string
	Audience        []string
	// AuthorizedParty is azp (OpenID Connect Core, section 2).
	AuthorizedParty string
	// Expires is zero where the token does not tell.
	Expires time.Time
	// TenantID and ObjectID are of a token of Microsoft Entra ID: tid and oid.
	TenantID, ObjectID string
	// Namespace, ServiceAccount and UID are of a Kubernetes service account token.
	Namespace, ServiceAccount, UID string
}

// ParseClaims reads the claims of a JWT. Names are compared exactly; a claim of another type than it should have is an error. No error quotes anything of the token.
func ParseClaims(token string) (Claims, error) {
	payload, err := payloadOf(token)
	if err != nil {
		return Claims{}, err
	}
	claims, ok := objectOf(payload)
	if !ok {
		return Claims{}, errors.New("it is no JWT: its second part is no JSON object")
	}
	var c Claims
	for _, claim := range []struct {
		name string
		into *string
	}{{"iss", &c.Issuer}, {"sub", &c.Subject}, {"azp", &c.AuthorizedParty}} {
		if !decode(claims[claim.name], claim.into) {
			return Claims{}, errors.New("the token's " + claim.name + " claim is no string")
		}
	}
	var one string
	if decode(claims["aud"], &one) {
		if one != "" {
			c.Audience = []string{one}
		}
	} else if !decode(claims["aud"], &c.Audience) {
		return Claims{}, errors.New("the token's aud claim is neither a string nor a list of strings")
	}
	var exp json.Number
	if raw := claims["exp"]; len(raw) > 0 && raw[0] == '"' || !decode(raw, &exp) {
		return Claims{}, errors.New("the token's exp claim is no number")
	}
	if exp != "" {
		seconds, err := strconv.ParseFloat(string(exp), 64)
		if err != nil || math.Abs(seconds) > maxSeconds {
			return Claims{}, errors.New("the token's exp claim is no time")
		}
		c.Expires = time.Unix(int64(math.Floor(seconds)), 0)
	}
	// An issuer's own claims, which another may use otherwise: not an error.
	_ = decode(claims["tid"], &c.TenantID)
	_ = decode(claims["oid"], &c.ObjectID)
	if cluster, ok := objectOf(claims["kubernetes.io"]); ok {
		if account, ok := objectOf(cluster["serviceaccount"]); ok {
			_ = decode(cluster["namespace"], &c.Namespace)
			_ = decode(account["name"], &c.ServiceAccount)
			_ = decode(account["uid"], &c.UID)
		}
	}
	return c, nil
}

// maxSeconds is the end of the year 9999, the last that RFC 3339 can write.
const maxSeconds = 253402300799

// payloadOf is the middle of a JWS in its compact form (RFC 7515, section 7.1), decoded.
func payloadOf(token string) ([]byte, error) {
	if len(token) > maxToken {
		return nil, errors.New("it is no JWT: it is too long")
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 || slices.Contains(parts, "") {
		return nil, errors.New("it is no JWT: want three parts with dots between them")
	}
	var decoded [3][]byte
	for i, part := range parts {
		var err error
		if decoded[i], err = base64.RawURLEncoding.DecodeString(part); err != nil || strings.ContainsAny(part, "\r\n") { // which the decoder would pass over
			return nil, errors.New("it is no JWT: a part is not base64url")
		}
	}
	if _, ok := objectOf(decoded[0]); !ok {
		return nil, errors.New("it is no JWT: its first part is no JSON object")
	}
	return decoded[1], nil
}

// objectOf decodes into a map, since a struct's fields would match names in any case.
func objectOf(raw json.RawMessage) (map[string]json.RawMessage, bool) {
	var object map[string]json.RawMessage
	return object, len(raw) > 0 && json.Unmarshal(raw, &object) == nil && object != nil
}

// decode says whether raw could be decoded. What is absent is zero.
func decode(raw json.RawMessage, into any) bool {
	return len(raw) == 0 || json.Unmarshal(raw, into) == nil
}

// tokenIn finds the token in a JSON answer: path is the names of the fields that lead to it, with dots between them.
func tokenIn(answer []byte, path string) (token string, found bool) {
	raw := json.RawMessage(answer)
	for name := range strings.SplitSeq(path, ".") {
		object, ok := objectOf(raw)
		if !ok {
			return "", false
		}
		raw = object[name]
	}
	return token, len(raw) > 0 && raw[0] == '"' && decode(raw, &token)
}
