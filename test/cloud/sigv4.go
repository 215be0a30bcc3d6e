package cloud

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// refusal is what an AWS API says no with.
type refusal struct {
	status        int
	code, message string
}

// signing says how a protocol of AWS names what is wrong with a signature
// (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-troubleshooting.html, and each API's page of common errors).
type signing struct {
	missing, incomplete, unknownKey, badSignature, expired string
	status                                                 int
	missingStatus                                          int
	skew                                                   time.Duration // how far a signature's time may be off
	skewText                                               string
}

// querySigning is how services of the query protocol (STS) put it.
func querySigning() signing {
	return signing{
		missing: "MissingAuthenticationToken", incomplete: "IncompleteSignature", unknownKey: "InvalidClientTokenId", badSignature: "SignatureDoesNotMatch", expired: "ExpiredToken",
		status: http.StatusForbidden, missingStatus: http.StatusForbidden, skew: 15 * time.Minute, skewText: "15 min.",
	}
}

// jsonSigning is how services of the JSON protocol (ECR) put it.
func jsonSigning() signing {
	return signing{
		missing: "MissingAuthenticationTokenException", incomplete: "IncompleteSignatureException", unknownKey: "UnrecognizedClientException",
		badSignature: "InvalidSignatureException", expired: "ExpiredTokenException",
		status: http.StatusBadRequest, missingStatus: http.StatusBadRequest, skew: 5 * time.Minute, skewText: "5 min.",
	}
}

const amzTime = "20060102T150405Z"

var authorizationPattern = regexp.MustCompile(`^AWS4-HMAC-SHA256 Credential=([^/,]+)/(\d{8})/([^/,]+)/([^/,]+)/aws4_request, ?SignedHeaders=([a-z0-9;_-]+), ?Signature=([0-9a-f]{64})$`)

// verify finds out who signed a request for an endpoint, by signing it again with that one's key.
func (c *Cloud) verify(r *http.Request, body []byte, e endpoint, s signing) (principal, *refusal) {
	header := r.Header.Get("Authorization")
	if header == "" {
		return principal{}, &refusal{s.missingStatus, s.missing, "Request is missing Authentication Token"}
	}
	m := authorizationPattern.FindStringSubmatch(header)
	if m == nil {
		return principal{}, &refusal{s.status, s.incomplete, "Authorization header requires 'Credential', 'SignedHeaders' and 'Signature' parameters."}
	}
	id, date, region, service, signed, signature := m[1], m[2], m[3], m[4], strings.Split(m[5], ";"), m[6]

	now := c.Now()
	c.mu.Lock()
	key := c.aws.keys[id]
	c.mu.Unlock()
	token := r.Header.Get("X-Amz-Security-Token")
	if key == nil || key.partition() != e.partition || subtle.ConstantTimeCompare([]byte(token), []byte(key.SessionToken)) != 1 {
		return principal{}, &refusal{s.status, s.unknownKey, "The security token included in the request is invalid."}
	}
	if !key.expires.IsZero() && !now.Before(key.expires) {
		return principal{}, &refusal{s.status, s.expired, "The security token included in the request is expired"}
	}
	switch {
	case region != e.region:
		return principal{}, &refusal{s.status, s.badSignature, "Credential should be scoped to a valid region. "}
	case service != e.service:
		return principal{}, &refusal{s.status, s.badSignature, "Credential should be scoped to correct service: '" + e.service + "'. "}
	}

	at, err := time.Parse(amzTime, r.Header.Get("X-Amz-Date"))
	switch {
	case err != nil:
		return principal{}, &refusal{s.status, s.incomplete, "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header."}
	case at.Format("20060102") != date:
		return principal{}, &refusal{s.status, s.badSignature, "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP."}
	case at.Before(now.Add(-s.skew)):
		return principal{}, &refusal{
			s.status, s.badSignature,
			"Signature expired: " + at.Format(amzTime) + " is now earlier than " + now.Add(-s.skew).UTC().Format(amzTime) + " (" + now.UTC().Format(amzTime) + " - " + s.skewText + ")",
		}
	case at.After(now.Add(s.skew)):
		return principal{}, &refusal{
			s.status, s.badSignature,
			"Signature not yet current: " + at.Format(amzTime) + " is still later than " + now.Add(s.skew).UTC().Format(amzTime) + " (" + now.UTC().Format(amzTime) + " + " + s.skewText + ")",
		}
	}
	if again, ok := signAgain(r, body, key.Keys, region, service, signed, at); !ok || subtle.ConstantTimeCompare([]byte(again), []byte(signature)) != 1 {
		return principal{}, &refusal{
			s.status, s.badSignature,
			"The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details.",
		}
	}
	return key.principal, nil
}

// normalized is a path as all services but S3 have it signed: without slashes that follow one another, "." and ".."
// (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html#create-canonical-request). Vault sends a request of others' to "//".
func normalized(p string) string {
	plain := path.Clean("/" + p)
	if strings.HasSuffix(p, "/") && plain != "/" {
		plain += "/"
	}
	return plain
}

// signAgain gives the signature that the request ought to have. What has to be signed (host, time, target, token, and a claimed hash of the body, which must be right) must be among the headers signed.
func signAgain(r *http.Request, body []byte, k Keys, region, service string, signed []string, at time.Time) (string, bool) {
	sum := sha256.Sum256(body)
	hash := hex.EncodeToString(sum[:])
	if claimed := r.Header.Get("X-Amz-Content-Sha256"); claimed != "" && claimed != hash {
		return "", false
	}
	if !slices.Contains(signed, "host") || !slices.IsSorted(signed) {
		return "", false
	}
	for name := range r.Header {
		if name := strings.ToLower(name); strings.HasPrefix(name, "x-amz-") && !slices.Contains(signed, name) {
			return "", false
		}
	}
	u := &url.URL{Scheme: "https", Host: r.Host, Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery}
	if plain := normalized(r.URL.Path); plain != r.URL.Path {
		u.Path, u.RawPath = plain, ""
	}
	again := &http.Request{Method: r.Method, URL: u, Host: r.Host, Header: http.Header{}}
	for _, name := range signed {
		switch name {
		case "host":
		case "content-length":
			again.ContentLength = int64(len(body))
		default:
			values := r.Header.Values(name)
			if len(values) == 0 {
				return "", false
			}
			again.Header[http.CanonicalHeaderKey(name)] = values
		}
	}
	credentials := aws.Credentials{AccessKeyID: k.AccessKeyID, SecretAccessKey: k.SecretAccessKey, SessionToken: k.SessionToken}
	if err := v4.NewSigner().SignHTTP(r.Context(), credentials, again, hash, service, region, at); err != nil {
		return "", false
	}
	_, signature, ok := strings.Cut(again.Header.Get("Authorization"), "Signature=")
	return signature, ok
}
