package cloud

import (
	"crypto/sha1" //nolint:gosec // x5t is a SHA-1 thumbprint (RFC 7515, section 4.1.7)
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// skew is how far clocks may differ where a token begins or ends.
const skew = 5 * time.Minute

// clientAssertion is a JWT by which an application proves who it is, before anything is known of its signature.
type clientAssertion struct {
	text            string
	algorithm       string
	header, claims  map[string]any
	issuer, subject string
	audiences       []string
}

// judgeAssertion judges what an application proves itself by: a token of somebody whom a federated credential names, or one that it has signed with the key of a certificate. Whose it is, its
// issuer says.
func (c *Cloud) judgeAssertion(t *tenant, p servicePrincipal, text string) *aadsts {
	a, ok := parseAssertion(text)
	if !ok {
		return &aadsts{http.StatusBadRequest, "invalid_request", 50027, "JWT token is invalid or malformed."}
	}
	if no := a.complete(); no != nil {
		return no
	}
	if strings.Contains(a.issuer, "://") {
		return c.judgeFederated(p, a)
	}
	return c.judgeSigned(t, p, a)
}

func parseAssertion(text string) (clientAssertion, bool) {
	a := clientAssertion{text: text}
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		return a, false
	}
	for i, into := range []*map[string]any{&a.header, &a.claims} {
		decoded, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil || json.Unmarshal(decoded, into) != nil || *into == nil {
			return a, false
		}
	}
	a.algorithm, _ = a.header["alg"].(string)
	a.issuer, _ = a.claims["iss"].(string)
	a.subject, _ = a.claims["sub"].(string)
	a.audiences = audiences(a.claims)
	return a, true
}

func (a clientAssertion) complete() *aadsts {
	for name, is := range map[string]bool{"iss": a.issuer != "", "sub": a.subject != "", "aud": len(a.audiences) > 0} {
		if !is {
			return &aadsts{
				http.StatusBadRequest, "invalid_request", 90014,
				"The required field '" + name + "' is missing from the credential. Ensure that you have all the necessary parameters for the login request.",
			}
		}
	}
	return nil
}

// timely judges an assertion's times by the cloud's clock.
func (c *Cloud) timely(a clientAssertion) *aadsts {
	now := c.Now()
	expires, ok := numericDate(a.claims, "exp")
	from, begins := numericDate(a.claims, "nbf")
	if !begins {
		from, begins = numericDate(a.claims, "iat")
	}
	if ok && now.Before(expires.Add(skew)) && (!begins || !from.After(now.Add(skew))) {
		return nil
	}
	const layout = "2006-01-02T15:04:05.0000000Z"
	return &aadsts{
		http.StatusUnauthorized, "invalid_client", 700024,
		fmt.Sprintf("Client assertion is not within its valid time range. Current time: %s, assertion valid from %s, expiry time of assertion %s. Review the documentation at "+
			"https://learn.microsoft.com/entra/identity-platform/certificate-credentials .", now.UTC().Format(layout), from.UTC().Format(layout), expires.UTC().Format(layout)),
	}
}

// judgeSigned judges an assertion that an application has signed itself (https://learn.microsoft.com/entra/identity-platform/certificate-credentials).
func (c *Cloud) judgeSigned(t *tenant, p servicePrincipal, a clientAssertion) *aadsts {
	refused := func(number int, text string) *aadsts {
		return &aadsts{http.StatusUnauthorized, "invalid_client", number, text}
	}
	const review = " Review the documentation at https://learn.microsoft.com/entra/identity-platform/certificate-credentials ."
	if !slices.Contains([]string{"PS256", "RS256", "RS384", "RS512"}, a.algorithm) {
		return unsupported(a.algorithm, "'PS256,RS256,RS384,RS512'")
	}
	if !strings.EqualFold(a.issuer, p.ClientID) || !strings.EqualFold(a.subject, p.ClientID) {
		return refused(700021, "Client assertion application identifier doesn't match 'client_id' parameter."+review)
	}
	if !slices.ContainsFunc(a.audiences, t.isTokenEndpoint) {
		return refused(700023, "Client assertion audience claim does not match Realm issuer."+review)
	}
	key, ok := a.thumbprint()
	if !ok {
		return refused(5002723, "Invalid JWT token. No certificate SHA-1 thumbprint, certificate SHA-256 thumbprint, nor keyId specified in token header.")
	}
	parsed, err := jose.ParseSignedCompact(a.text, []jose.SignatureAlgorithm{jose.PS256, jose.RS256, jose.RS384, jose.RS512})
	if err != nil {
		return &aadsts{http.StatusBadRequest, "invalid_request", 50027, "JWT token is invalid or malformed."}
	}
	now := c.Now()
	for _, certificate := range p.Certificates {
		old, sum := sha1.Sum(certificate.Raw), sha256.Sum256(certificate.Raw) //nolint:gosec // as above
		if key != string(old[:]) && key != string(sum[:]) {
			continue
		}
		if now.Before(certificate.NotBefore) || !now.Before(certificate.NotAfter) {
			return refused(700027, fmt.Sprintf("Client assertion contains an invalid signature. [Reason - The key used is expired., Thumbprint of key used by client: '%X', Found key 'Start=%s, End=%s']",
				key, certificate.NotBefore.UTC().Format("01/02/2006 15:04:05"), certificate.NotAfter.UTC().Format("01/02/2006 15:04:05")))
		}
		if _, err := parsed.Verify(certificate.PublicKey); err != nil {
			return refused(700027, fmt.Sprintf("Client assertion contains an invalid signature. [Reason - The provided signature value did not match the expected signature value., Thumbprint of key used by client: '%X']", key))
		}
		return c.timely(a)
	}
	return refused(700027, fmt.Sprintf("Client assertion contains an invalid signature. [Reason - The key was not found., Thumbprint of key used by client: '%X']", key))
}

func unsupported(algorithm, supported string) *aadsts {
	return &aadsts{
		http.StatusUnauthorized, "invalid_client", 5002738,
		"Invalid JWT token. '" + algorithm + "' is not a supported signature algorithm. Supported signing algorithms are: " + supported,
	}
}

// isTokenEndpoint says whether an audience is the tenant's token endpoint, under any of its names, or its issuer, which is taken for it.
func (t *tenant) isTokenEndpoint(audience string) bool {
	for _, host := range t.cloud.names {
		rest, ok := strings.CutPrefix(audience, "https://"+host+"/"+t.ID)
		if ok && slices.Contains([]string{"/oauth2/v2.0/token", "/oauth2/token", "/v2.0"}, rest) {
			return true
		}
	}
	return false
}

// thumbprint is what the header says of the certificate. Both alphabets of Base64 are about, with padding and without.
func (a clientAssertion) thumbprint() (string, bool) {
	for _, name := range []string{"x5t#S256", "x5t"} {
		text, _ := a.header[name].(string)
		text = strings.NewReplacer("+", "-", "/", "_", "=", "").Replace(text)
		if decoded, err := base64.RawURLEncoding.DecodeString(text); err == nil && len(decoded) > 0 {
			return string(decoded), true
		}
	}
	return "", false
}

// judgeFederated judges a token of another issuer by the principal's federated credentials (https://learn.microsoft.com/entra/workload-id/workload-identity-federation).
func (c *Cloud) judgeFederated(p servicePrincipal, a clientAssertion) *aadsts {
	refused := func(number int, text string) *aadsts {
		return &aadsts{http.StatusUnauthorized, "invalid_client", number, text}
	}
	if a.algorithm != "RS256" {
		return unsupported(a.algorithm, "'RS256'")
	}
	if len(p.Federated) == 0 {
		return refused(70025, "The client '"+p.ClientID+"' has no configured federated identity credentials.")
	}
	unmatched := func(number int, what, value string) *aadsts {
		return refused(number, "No matching federated identity record found for presented assertion "+what+" '"+value+"'. Please check your federated identity credential Subject, Audience and Issuer "+
			"against the presented assertion. https://learn.microsoft.com/entra/workload-id/workload-identity-federation")
	}
	home := c.tenantOf(a.issuer)
	if home != nil {
		if no := judgeIdentityToken(home, p, a); no != nil {
			return no
		}
		if slices.Contains(a.audiences, exchangeApp) {
			a.audiences = []string{home.cloud.exchange} // what credentials call the application that it is for
		}
	}
	if !slices.ContainsFunc(p.Federated, func(f FederatedCredential) bool { return f.Issuer == a.issuer }) {
		return unmatched(700211, "issuer", a.issuer)
	}
	if !slices.ContainsFunc(p.Federated, func(f FederatedCredential) bool { return f.Issuer == a.issuer && f.Subject == a.subject }) {
		return unmatched(700213, "subject", a.subject)
	}
	if !slices.ContainsFunc(p.Federated, func(f FederatedCredential) bool {
		return f.Issuer == a.issuer && f.Subject == a.subject && slices.Contains(a.audiences, f.Audience)
	}) {
		return unmatched(700212, "audience", a.audiences[0])
	}
	if no := c.timely(a); no != nil {
		return no
	}
	verify := func() (map[string]any, error) { return c.verifyToken(a.text, a.issuer) }
	if home != nil {
		verify = func() (map[string]any, error) { return home.v2.verify(a.text) } // Entra need not ask itself for its keys
	}
	_, err := verify()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errIssuerSilent), errors.Is(err, errIssuerDisagrees):
		return &aadsts{http.StatusBadRequest, "invalid_request", 501661, "Request to External OIDC endpoint failed."}
	case errors.Is(err, errNoKey):
		return refused(700027, "Client assertion contains an invalid signature. [Reason - The key was not found.]")
	default:
		return refused(700027, "Client assertion contains an invalid signature. [Reason - The provided signature value did not match the expected signature value.]")
	}
}

// tenantOf is the tenant whose tokens have this issuer.
func (c *Cloud) tenantOf(issuer string) *tenant {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.entra.tenants {
		if issuer == t.v1.URL() || issuer == t.v2.URL() {
			return t
		}
	}
	return nil
}

// judgeIdentityToken judges a token of Entra's own: only a managed identity's serves, and only one that is meant for it
// (https://learn.microsoft.com/entra/workload-id/workload-identity-federation-config-app-trust-managed-identity).
func judgeIdentityToken(home *tenant, p servicePrincipal, a clientAssertion) *aadsts {
	refused := func(number int, text string) *aadsts {
		return &aadsts{http.StatusBadRequest, "invalid_request", number, text}
	}
	switch {
	case a.issuer != home.v2.URL():
		return refused(700227, "Forbidden token audience.")
	case p.resource != "":
		return refused(700236, "Entra ID tokens issued by issuer '"+a.issuer+"' may not be used for federated identity credential flows for applications or managed identities registered in this tenant.")
	case !slices.Contains(a.audiences, exchangeApp):
		return nil // no credential has another one
	case a.claims["xms_mirid"] == nil:
		return refused(700226, "Only MSI tokens may be used as Federated Identity Credentials for AAD issuer.")
	}
	return nil
}
