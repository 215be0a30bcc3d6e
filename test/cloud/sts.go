package cloud

import (
	"cmp"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// stsCall is one request to STS (https://docs.aws.amazon.com/STS/latest/APIReference/).
type stsCall struct {
	c    *Cloud
	r    *http.Request
	e    endpoint
	form url.Values
}

// stsAPI is STS at an endpoint: the query protocol, with answers in XML.
func (c *Cloud) stsAPI(e endpoint) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, tooLarge := bodyOf(w, r)
		if tooLarge {
			writeXML(w, r, refusal{http.StatusRequestEntityTooLarge, "RequestEntityTooLarge", "the request is too large"})
			return
		}
		form, err := url.ParseQuery(string(body))
		if err != nil {
			writeXML(w, r, refusal{http.StatusBadRequest, "MalformedInput", "the request's body is not a form"})
			return
		}
		for name, values := range r.URL.Query() {
			form[name] = append(form[name], values...)
		}
		operation := form.Get("Action")
		entryOf(r).operation(operation)
		if c.faulty(w, r, "sts", operation, func(f Fault) { writeXML(w, r, stsFault(f)) }) {
			return
		}
		result, no := c.callSTS(&stsCall{c, r, e, form}, operation, body) //nolint:contextcheck // what it asks an issuer ends with the cloud
		if no != nil {
			writeXML(w, r, *no)
			return
		}
		writeResult(w, operation, result)
	})
}

func (c *Cloud) callSTS(call *stsCall, operation string, body []byte) (any, *refusal) {
	if version := call.form.Get("Version"); version != "2011-06-15" || !slices.Contains([]string{"GetCallerIdentity", "AssumeRole", "AssumeRoleWithWebIdentity", "GetWebIdentityToken"}, operation) {
		return nil, &refusal{http.StatusBadRequest, "InvalidAction", "Could not find operation " + operation + " for version " + version}
	}
	if operation == "AssumeRoleWithWebIdentity" { // its token is all the proof that it needs
		return call.assumeRoleWithWebIdentity()
	}
	caller, no := c.verify(call.r, body, call.e, querySigning())
	if no != nil {
		return nil, no
	}
	entryOf(call.r).principal(caller.arn)
	switch operation {
	case "AssumeRole":
		return call.assumeRole(caller)
	case "GetWebIdentityToken":
		return call.webIdentityToken(caller)
	}
	return callerIdentity{Arn: caller.arn, UserID: caller.userID, Account: caller.account()}, nil
}

// stsFault is a fault as STS words it.
func stsFault(f Fault) refusal {
	switch {
	case f.Code != "":
		return refusal{cmp.Or(f.Status, http.StatusBadRequest), f.Code, "a fault on demand"}
	case f.Status == http.StatusServiceUnavailable:
		return refusal{f.Status, "ServiceUnavailable", "The request has failed due to a temporary failure of the server."}
	case f.Status >= http.StatusInternalServerError:
		return refusal{f.Status, "InternalFailure", "The request processing has failed because of an unknown error, exception or failure."}
	default:
		return refusal{cmp.Or(f.Status, http.StatusBadRequest), "Throttling", "Rate exceeded"}
	}
}

type callerIdentity struct {
	Arn     string
	UserID  string `xml:"UserId"`
	Account string
}

type stsCredentials struct {
	AccessKeyID     string `xml:"AccessKeyId"`
	SecretAccessKey string
	SessionToken    string
	Expiration      string
}

type assumedRoleUser struct {
	AssumedRoleID string `xml:"AssumedRoleId"`
	Arn           string
}

type assumedRole struct {
	SubjectFromWebIdentityToken string `xml:",omitempty"`
	Audience                    string `xml:",omitempty"`
	AssumedRoleUser             assumedRoleUser
	Credentials                 stsCredentials
	Provider                    string `xml:",omitempty"`
	PackedPolicySize            int    `xml:",omitempty"`
}

// assumeRole: https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html
func (call *stsCall) assumeRole(caller principal) (any, *refusal) {
	role, name, no := call.roleAndSession()
	if no != nil {
		return nil, no
	}
	external, tags, no := call.externalIDAndTags()
	if no != nil {
		return nil, no
	}
	bound, no := call.sessionPolicy()
	if no != nil {
		return nil, no
	}
	roleARN := call.form.Get("RoleArn")
	denied := func(action string) *refusal {
		return &refusal{http.StatusForbidden, "AccessDenied", "User: " + caller.arn + " is not authorized to perform: " + action + " on resource: " + roleARN}
	}
	if role == nil || !call.c.trusts(role, caller, external, "sts:AssumeRole") {
		return nil, denied("sts:AssumeRole")
	}
	if len(tags) > 0 && !call.c.trusts(role, caller, external, "sts:TagSession") {
		return nil, denied("sts:TagSession")
	}
	life, no := call.duration(role, caller.role != "")
	if no != nil {
		return nil, no
	}
	return newAssumedRole(call.c.session(roleARN, name, life, bound, tags)), nil
}

func newAssumedRole(k *accessKey) assumedRole {
	return assumedRole{
		AssumedRoleUser: assumedRoleUser{k.userID, k.arn},
		Credentials:     stsCredentials{k.AccessKeyID, k.SecretAccessKey, k.SessionToken, k.expires.UTC().Format(time.RFC3339)},
	}
}

// trusts says whether a principal may do this to a role: the role's trust policy must name it, and its own policy must allow it unless the role's, in its own account, names
// it directly (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic_policy-eval-basics-cross-account.html).
func (c *Cloud) trusts(role *Role, caller principal, external, action string) bool {
	a, _ := parseARN(role.ARN)
	allowed := c.may(caller, action, role.ARN)
	for _, t := range role.Trust {
		if t.ExternalID != "" && !globMatches(t.ExternalID, external) || action == "sts:TagSession" && !t.Tags {
			continue
		}
		switch names(t.AWS, caller) {
		case namedDirectly:
			if allowed || a.account == caller.account() {
				return true
			}
		case namedByAccount:
			if allowed {
				return true
			}
		case notNamed:
		}
	}
	return false
}

var (
	sessionNamePattern = regexp.MustCompile(`^[\w+=,.@-]*$`)
	externalIDPattern  = regexp.MustCompile(`^[\w+=,.@:/-]*$`)
	tagPattern         = regexp.MustCompile(`^[\p{L}\p{Z}\p{N}_.:/=+\-@]*$`)
)

// constraint is one of the checks that all AWS APIs make first.
type constraint struct {
	failed            bool
	field, value, why string
}

// validated is what AWS says of all the constraints that are not met.
func validated(constraints ...constraint) *refusal {
	var failed []string
	for _, c := range constraints {
		if c.failed {
			failed = append(failed, fmt.Sprintf("Value '%s' at '%s' failed to satisfy constraint: %s", c.value, c.field, c.why))
		}
	}
	if len(failed) == 0 {
		return nil
	}
	s := ""
	if len(failed) > 1 {
		s = "s"
	}
	return &refusal{http.StatusBadRequest, "ValidationError", fmt.Sprintf("%d validation error%s detected: %s", len(failed), s, strings.Join(failed, "; "))}
}

func atLeast(n int) string {
	return fmt.Sprintf("Member must have length greater than or equal to %d", n)
}

func atMost(n int) string { return fmt.Sprintf("Member must have length less than or equal to %d", n) }

// roleAndSession reads RoleArn and RoleSessionName. The role is nil where there is none of that name, which is refused like any other that may not be assumed.
func (call *stsCall) roleAndSession() (*Role, string, *refusal) {
	roleARN, name := call.form.Get("RoleArn"), call.form.Get("RoleSessionName")
	if no := validated(
		constraint{len(roleARN) < 20, "roleArn", roleARN, atLeast(20)},
		constraint{len(roleARN) > 2048, "roleArn", roleARN, atMost(2048)},
		constraint{!sessionNamePattern.MatchString(name), "roleSessionName", name, `Member must satisfy regular expression pattern: [\w+=,.@-]*`},
		constraint{len(name) < 2, "roleSessionName", name, atLeast(2)},
		constraint{len(name) > 64, "roleSessionName", name, atMost(64)},
	); no != nil {
		return nil, "", no
	}
	a, ok := parseARN(roleARN)
	if !ok || a.service != "iam" || len(a.account) != 12 || !strings.HasPrefix(a.resource, "role/") || path.Base(a.resource) == "" {
		return nil, "", &refusal{http.StatusBadRequest, "ValidationError", roleARN + " is invalid"}
	}
	if a.partition != call.e.partition {
		return nil, "", &refusal{http.StatusBadRequest, "ValidationError", "Request ARN is invalid"}
	}
	call.c.mu.Lock()
	defer call.c.mu.Unlock()
	return call.c.aws.roles[roleARN], name, nil
}

func (call *stsCall) externalIDAndTags() (string, map[string]string, *refusal) {
	external := call.form.Get("ExternalId")
	if no := validated(
		constraint{!externalIDPattern.MatchString(external), "externalId", external, `Member must satisfy regular expression pattern: [\w+=,.@:\/-]*`},
		constraint{call.form.Has("ExternalId") && len(external) < 2, "externalId", external, atLeast(2)},
		constraint{len(external) > 1224, "externalId", external, atMost(1224)},
	); no != nil {
		return "", nil, no
	}
	tags, no := call.tags()
	for key := range tags {
		if strings.HasPrefix(strings.ToLower(key), "aws:") {
			return "", nil, &refusal{http.StatusBadRequest, "InvalidParameterValue", "Tag keys cannot start with the prefix aws:"}
		}
	}
	return external, tags, no
}

// tags reads Tags.
func (call *stsCall) tags() (map[string]string, *refusal) {
	tags := map[string]string{}
	seen := map[string]bool{} // AWS holds tag keys that differ in case only for one
	for n := 1; call.form.Has(fmt.Sprintf("Tags.member.%d.Key", n)); n++ {
		prefix, where := fmt.Sprintf("Tags.member.%d.", n), fmt.Sprintf("tags.%d.member.", n)
		key, value := call.form.Get(prefix+"Key"), call.form.Get(prefix+"Value")
		if no := validated(
			constraint{n > 50, "tags", "[...]", atMost(50)},
			constraint{key == "", where + "key", key, atLeast(1)},
			constraint{utf8.RuneCountInString(key) > 128, where + "key", key, atMost(128)},
			constraint{!tagPattern.MatchString(key), where + "key", key, `Member must satisfy regular expression pattern: [\p{L}\p{Z}\p{N}_.:/=+\-@]+`},
			constraint{utf8.RuneCountInString(value) > 256, where + "value", value, atMost(256)},
			constraint{!tagPattern.MatchString(value), where + "value", value, `Member must satisfy regular expression pattern: [\p{L}\p{Z}\p{N}_.:/=+\-@]*`},
		); no != nil {
			return nil, no
		}
		if seen[strings.ToLower(key)] {
			return nil, &refusal{http.StatusBadRequest, "InvalidParameterValue", "Duplicate tag keys found. Please note that Tag keys are case insensitive."}
		}
		seen[strings.ToLower(key)] = true
		tags[key] = value
	}
	return tags, nil
}

// sessionPolicy reads Policy, of which it knows Allow, Action and Resource only. PolicyArns are refused: nobody here has managed policies.
func (call *stsCall) sessionPolicy() ([]Statement, *refusal) {
	if call.form.Has("PolicyArns.member.1.arn") {
		return nil, &refusal{http.StatusBadRequest, "ValidationError", "The fake cloud has no managed policies"}
	}
	document := call.form.Get("Policy")
	if document == "" {
		return nil, nil
	}
	malformed := &refusal{http.StatusBadRequest, "MalformedPolicyDocument", "Syntax errors in policy."}
	var policy struct {
		Version   string
		Statement []struct {
			Sid, Effect      string
			Action, Resource any
		}
	}
	decoder := json.NewDecoder(strings.NewReader(document))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&policy); err != nil || len(policy.Statement) == 0 {
		return nil, malformed
	}
	bound := []Statement{}
	for _, s := range policy.Statement {
		actions, ok := stringOrList(s.Action)
		resources, okay := stringOrList(s.Resource)
		if s.Effect != "Allow" || !ok || !okay {
			return nil, malformed
		}
		bound = append(bound, Statement{actions, resources})
	}
	return bound, nil
}

func stringOrList(v any) ([]string, bool) {
	switch v := v.(type) {
	case string:
		return []string{v}, true
	case []any:
		var all []string
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, false
			}
			all = append(all, s)
		}
		return all, len(all) > 0
	}
	return nil, false
}

// duration reads DurationSeconds. A session of a session (role chaining) lasts an hour at most, whatever the role says.
func (call *stsCall) duration(role *Role, chained bool) (time.Duration, *refusal) {
	text := call.form.Get("DurationSeconds")
	if text == "" {
		return time.Hour, nil
	}
	seconds, err := strconv.Atoi(text)
	if err != nil {
		return 0, &refusal{http.StatusBadRequest, "MalformedInput", "DurationSeconds is not a number"}
	}
	if no := validated(
		constraint{seconds < 900, "durationSeconds", text, "Member must have value greater than or equal to 900"},
		constraint{seconds > 43200, "durationSeconds", text, "Member must have value less than or equal to 43200"},
	); no != nil {
		return 0, no
	}
	life := time.Duration(seconds) * time.Second
	switch {
	case chained && life > time.Hour:
		return 0, &refusal{http.StatusBadRequest, "ValidationError", "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining."}
	case life > role.MaxSession:
		return 0, &refusal{http.StatusBadRequest, "ValidationError", "The requested DurationSeconds exceeds the MaxSessionDuration set for this role."}
	}
	return life, nil
}

// assumeRoleWithWebIdentity: https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html
func (call *stsCall) assumeRoleWithWebIdentity() (any, *refusal) {
	token := call.form.Get("WebIdentityToken")
	role, name, no := call.roleAndSession()
	if no != nil {
		return nil, no
	}
	if no := validated(
		constraint{len(token) < 4, "webIdentityToken", "***", atLeast(4)},
		constraint{len(token) > 20000, "webIdentityToken", "***", atMost(20000)},
	); no != nil {
		return nil, no
	}
	for _, unknown := range []string{"ExternalId", "Tags.member.1.Key", "ProviderId"} {
		if call.form.Has(unknown) { // ProviderId is for access tokens of OAuth 2.0
			return nil, &refusal{http.StatusBadRequest, "ValidationError", unknown + " cannot go with an OpenID Connect token"}
		}
	}
	bound, no := call.sessionPolicy()
	if no != nil {
		return nil, no
	}
	web, no := call.webIdentity(token)
	if no != nil {
		return nil, no
	}
	denied := func(action string) *refusal {
		return &refusal{http.StatusForbidden, "AccessDenied", "Not authorized to perform " + action}
	}
	tags, tagged := web.tags()
	if role == nil || !web.trustedBy(role, false) {
		return nil, denied("sts:AssumeRoleWithWebIdentity")
	}
	if tagged && !web.trustedBy(role, true) {
		return nil, denied("sts:TagSession")
	}
	life, no := call.duration(role, false)
	if no != nil {
		return nil, no
	}
	k := call.c.session(role.ARN, name, life, bound, tags)
	entryOf(call.r).principal(k.arn)
	result := newAssumedRole(k)
	result.SubjectFromWebIdentityToken, result.Audience, result.Provider = web.subject, web.audience, web.issuer
	return result, nil
}

// webIdentity is what a verified token says.
type webIdentity struct {
	issuer, subject string
	audience        string // what AWS takes for the audience: azp where there is one
	original        []string
	party           string // azp
	claims          map[string]any
}

// webIdentity verifies a token for the account that the role is in.
func (call *stsCall) webIdentity(token string) (*webIdentity, *refusal) {
	invalid := func(message string) *refusal {
		return &refusal{http.StatusBadRequest, "InvalidIdentityToken", message}
	}
	claims, err := unverifiedClaims(token)
	if err != nil {
		return nil, invalid("The ID Token provided is not a valid JWT. (You may see this error if you sent an Access Token)")
	}
	web := &webIdentity{original: audiences(claims), claims: claims}
	web.issuer, _ = claims["iss"].(string)
	web.subject, _ = claims["sub"].(string)
	web.party, _ = claims["azp"].(string)
	if web.issuer == "" {
		return nil, invalid("Missing a required claim: iss")
	}
	if web.issuer == withoutScheme(GoogleIssuer) {
		web.issuer = GoogleIssuer // Google may leave the scheme out
	}
	a, _ := parseARN(call.form.Get("RoleArn"))
	call.c.mu.Lock()
	provider := call.c.aws.providers[a.partition+"/"+a.account][withoutScheme(web.issuer)]
	own := slices.ContainsFunc(slices.Collect(maps.Values(call.c.aws.issuing)), func(i *Issuer) bool { return i.url == web.issuer })
	call.c.mu.Unlock()
	if own { // https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles_providers_outbound_getting_started.html; the words are made up
		return nil, invalid("AWS takes no token that it has issued itself")
	}
	if provider == nil && web.issuer != GoogleIssuer { // Google is the one issuer here that AWS knows without being told
		return nil, invalid("No OpenIDConnect provider found in your account for " + web.issuer)
	}
	if _, err := call.c.verifyToken(token, web.issuer); err != nil {
		if errors.Is(err, errIssuerSilent) {
			return nil, &refusal{
				http.StatusBadRequest, "IDPCommunicationError",
				"The request could not be fulfilled because the identity provider (IDP) that was asked to verify the incoming identity token could not be reached.",
			}
		}
		return nil, invalid("Couldn't retrieve verification key from your identity provider,  please reference AssumeRoleWithWebIdentity documentation for requirements")
	}
	if no := call.timely(claims); no != nil {
		return nil, no
	}
	if web.subject == "" {
		return nil, invalid("Missing a required claim: sub")
	}
	if no := web.audienceFor(provider); no != nil {
		return nil, no
	}
	return web, nil
}

// timely judges a token's times. Clocks may differ by five minutes where a token is not valid yet.
func (call *stsCall) timely(claims map[string]any) *refusal {
	now := call.c.Now()
	expires, ok := numericDate(claims, "exp")
	if !ok {
		return &refusal{http.StatusBadRequest, "InvalidIdentityToken", "Missing a required claim: exp"}
	}
	if !now.Before(expires) {
		return &refusal{
			http.StatusBadRequest, "ExpiredTokenException",
			fmt.Sprintf("Token expired: current date/time %d must be before the expiration date/time %d", now.Unix(), expires.Unix()),
		}
	}
	issued, ok := numericDate(claims, "iat")
	if !ok {
		return &refusal{http.StatusBadRequest, "InvalidIdentityToken", "Missing a required claim: iat"}
	}
	if now.Sub(issued) > 24*time.Hour {
		return &refusal{http.StatusBadRequest, "ExpiredTokenException", fmt.Sprintf("Token too old: %d", int(now.Sub(issued).Seconds()))}
	}
	from, ok := numericDate(claims, "nbf")
	if !ok {
		from = issued
	}
	if from.After(now.Add(5 * time.Minute)) {
		return &refusal{http.StatusBadRequest, "InvalidIdentityToken", "Token is not valid yet"}
	}
	return nil
}

// audienceFor finds the audience and has it compared with those that the account's provider has. azp goes before aud
// (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_iam-condition-keys.html#condition-keys-wif; github.com/aws/aws-sdk-net/issues/3100 shows it for another issuer than Google).
func (web *webIdentity) audienceFor(provider *oidcProvider) *refusal {
	candidates := web.original
	if web.party != "" {
		candidates = []string{web.party}
	}
	for _, candidate := range candidates {
		if provider == nil || slices.Contains(provider.audiences, candidate) {
			web.audience = candidate
			return nil
		}
	}
	return &refusal{http.StatusBadRequest, "InvalidIdentityToken", "Incorrect token audience"}
}

// trustedBy says whether a role's trust policy lets the token's bearer assume it, or tag the session.
func (web *webIdentity) trustedBy(role *Role, tag bool) bool {
	for _, t := range role.Trust {
		if t.Federated == "" || withoutScheme(t.Federated) != withoutScheme(web.issuer) || tag && !t.Tags {
			continue
		}
		met := func(condition string, values ...string) bool {
			return condition == "" || slices.ContainsFunc(values, func(v string) bool { return v != "" && globMatches(condition, v) })
		}
		original := web.original
		if web.issuer != GoogleIssuer {
			original = nil
		}
		if met(t.Audience, web.audience) && met(t.Subject, web.subject) && met(t.AuthorizedParty, web.party) && met(t.OriginalAudience, original...) {
			return true
		}
	}
	return false
}

// tags are the session tags that a token carries (https://docs.aws.amazon.com/IAM/latest/UserGuide/id_session-tags.html#id_session-tags_adding-assume-role-idp).
func (web *webIdentity) tags() (map[string]string, bool) {
	claim, _ := web.claims["https://aws.amazon.com/tags"].(map[string]any)
	principalTags, _ := claim["principal_tags"].(map[string]any)
	tags := map[string]string{}
	for key, values := range principalTags {
		if list, ok := values.([]any); ok && len(list) == 1 {
			tags[key], _ = list[0].(string)
		}
	}
	return tags, len(tags) > 0
}

const stsNamespace = "https://sts.amazonaws.com/doc/2011-06-15/"

// writeResult writes an answer of the query protocol.
func writeResult(w http.ResponseWriter, operation string, result any) {
	var b strings.Builder
	b.WriteString("<" + operation + "Response xmlns=\"" + stsNamespace + "\">")
	encoder := xml.NewEncoder(&b)
	if err := encoder.EncodeElement(result, xml.StartElement{Name: xml.Name{Local: operation + "Result"}}); err != nil {
		panic(err)
	}
	b.WriteString("<ResponseMetadata><RequestId>" + requestID() + "</RequestId></ResponseMetadata></" + operation + "Response>")
	w.Header().Set("Content-Type", "text/xml")
	_, _ = io.WriteString(w, b.String())
}

// writeXML writes a refusal of the query protocol.
func writeXML(w http.ResponseWriter, r *http.Request, no refusal) {
	entryOf(r).code(no.code)
	var message strings.Builder
	_ = xml.EscapeText(&message, []byte(no.message))
	kind, id := "Sender", requestID()
	if no.status >= http.StatusInternalServerError {
		kind = "Receiver"
	}
	w.Header().Set("Content-Type", "text/xml")
	w.Header().Set("X-Amzn-Requestid", id)
	w.WriteHeader(no.status)
	_, _ = fmt.Fprintf(w, `<ErrorResponse xmlns=%q><Error><Type>%s</Type><Code>%s</Code><Message>%s</Message></Error><RequestId>%s</RequestId></ErrorResponse>`,
		stsNamespace, kind, no.code, message.String(), id)
}
