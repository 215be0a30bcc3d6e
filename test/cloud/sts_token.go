package cloud

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"
)

// EnableOutboundFederation lets an account (as for AddOIDCProvider) issue identity tokens, as EnableOutboundWebIdentityFederation of IAM does, and gives the issuer, which is the account's own. Where it is enabled already,
// that is the one that there is.
func (c *Cloud) EnableOutboundFederation(account string) *Issuer {
	key := accountKey(account)
	c.mu.Lock()
	issuer := c.aws.issuing[key]
	c.mu.Unlock()
	if issuer != nil {
		return issuer
	}
	name, _, _ := strings.Cut(key, "/")
	domain := ""
	for _, p := range partitions() {
		if p.name == name {
			domain = p.dualStack // documented for the first partition
		}
	}
	issuer = c.AddIssuer("https://" + requestID() + ".tokens.sts.global." + domain)
	issuer.alsoES384()
	c.mu.Lock()
	defer c.mu.Unlock()
	if first := c.aws.issuing[key]; first != nil { // another was quicker
		return first
	}
	c.aws.issuing[key] = issuer
	return issuer
}

type identityToken struct {
	WebIdentityToken string
	Expiration       string
}

// maxPayload is the longest of all claims that has been seen to be signed, in bytes. That there is a limit is documented.
const maxPayload = 14984

// webIdentityToken: https://docs.aws.amazon.com/STS/latest/APIReference/API_GetWebIdentityToken.html
func (call *stsCall) webIdentityToken(caller principal) (any, *refusal) {
	if hostOf(call.r.Host) == "sts.amazonaws.com" { // which of the ways to say so it is, is not documented
		return nil, &refusal{http.StatusBadRequest, "InvalidAction", "Could not find operation GetWebIdentityToken at the global endpoint"}
	}
	audience, algorithm, life, no := call.tokenParameters()
	if no != nil {
		return nil, no
	}
	tags, no := call.tags()
	if no != nil {
		return nil, no
	}
	needed := []string{"sts:GetWebIdentityToken"}
	if len(tags) > 0 {
		needed = append(needed, "sts:TagGetWebIdentityToken")
	}
	self := "arn:" + caller.partition() + ":sts::" + caller.account() + ":self"
	for _, action := range needed {
		if !call.c.may(caller, action, self) {
			return nil, &refusal{
				http.StatusForbidden, "AccessDenied",
				"User: " + caller.arn + " is not authorized to perform: " + action + " on resource: " + self + " because no identity-based policy allows the " + action + " action",
			}
		}
	}
	now := call.c.Now()
	expires := now.Add(life)
	if !caller.expires.IsZero() && expires.After(caller.expires) {
		return nil, &refusal{http.StatusForbidden, "SessionDurationEscalationException", "Requested token expiry time must be before the original session's expiry time."}
	}
	call.c.mu.Lock()
	issuer := call.c.aws.issuing[caller.partition()+"/"+caller.account()]
	call.c.mu.Unlock()
	if issuer == nil {
		return nil, &refusal{http.StatusForbidden, "OutboundWebIdentityFederationDisabledException", "OutboundWebIdentityFederation is disabled."}
	}
	claims := call.tokenClaims(caller, tags)
	claims["iss"], claims["aud"], claims["iat"], claims["exp"] = issuer.URL(), audience, now.Unix(), expires.Unix()
	if len(audience) == 1 {
		claims["aud"] = audience[0]
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		panic(err)
	}
	if len(payload) > maxPayload {
		return nil, &refusal{http.StatusBadRequest, "JWTPayloadSizeExceededException", "The size of the token's payload exceeds the limit."}
	}
	return identityToken{issuer.sign(payload, algorithm), expires.UTC().Format("2006-01-02T15:04:05.000Z")}, nil
}

// tokenParameters reads Audience, SigningAlgorithm and DurationSeconds.
func (call *stsCall) tokenParameters() (audience []string, algorithm jose.SignatureAlgorithm, life time.Duration, no *refusal) {
	long := false
	for n := 1; call.form.Has(fmt.Sprintf("Audience.member.%d", n)); n++ {
		member := call.form.Get(fmt.Sprintf("Audience.member.%d", n))
		long = long || member == "" || utf8.RuneCountInString(member) > 1000
		audience = append(audience, member)
	}
	listed := "[" + strings.Join(audience, ", ") + "]"
	algorithm = jose.SignatureAlgorithm(call.form.Get("SigningAlgorithm"))
	text := cmp.Or(call.form.Get("DurationSeconds"), "300")
	seconds, err := strconv.Atoi(text)
	if err != nil {
		return nil, "", 0, &refusal{http.StatusBadRequest, "MalformedInput", "DurationSeconds is not a number"}
	}
	if no := validated(
		constraint{len(audience) == 0, "audience", "null", "Member must not be null"},
		constraint{len(audience) > 10, "audience", listed, atMost(10)},
		constraint{long, "audience", listed, "Member must satisfy constraint: [" + atMost(1000) + ", " + atLeast(1) + "]"},
		constraint{len(algorithm) < 5, "signingAlgorithm", string(algorithm), atLeast(5)},
		constraint{len(algorithm) > 5, "signingAlgorithm", string(algorithm), atMost(5)},
		constraint{seconds < 60, "durationSeconds", text, "Member must have value greater than or equal to 60"},
		constraint{seconds > 3600, "durationSeconds", text, "Member must have value less than or equal to 3600"},
	); no != nil {
		return nil, "", 0, no
	}
	if algorithm != jose.RS256 && algorithm != jose.ES384 {
		return nil, "", 0, &refusal{http.StatusBadRequest, "ValidationError", "Requested SigningAlgorithm is not supported. See the GetWebIdentityToken documentation for supported algorithms"}
	}
	return audience, algorithm, time.Duration(seconds) * time.Second, nil
}

// tokenClaims are what a token says of a principal (https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles_providers_outbound_token_claims.html): of a session, its role.
// What they would say of organizations, and of an instance, is left out.
func (call *stsCall) tokenClaims(p principal, tags map[string]string) map[string]any {
	subject := cmp.Or(p.role, p.arn)
	own := map[string]any{"aws_account": p.account(), "source_region": call.e.region, "principal_id": subject}
	if !p.expires.IsZero() {
		own["original_session_exp"] = p.expires.UTC().Format(time.RFC3339)
	}
	if len(p.tags) > 0 {
		own["principal_tags"] = p.tags
	}
	if len(tags) > 0 {
		own["request_tags"] = tags
	}
	return map[string]any{"sub": subject, "jti": requestID(), "https://sts.amazonaws.com/": own}
}
