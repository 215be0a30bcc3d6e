package cloud

import (
	"cmp"
	"crypto/x509"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

// WorkloadProvider is a provider of a workload identity pool (https://cloud.google.com/iam/docs/workload-identity-federation): whose identities the pool takes for whose. It is for
// the tokens of Issuer, for certificates of TrustAnchors, or else for AWS.
type WorkloadProvider struct {
	// ProjectNumber is the number of the pool's project.
	ProjectNumber  string
	Pool, Provider string
	// Issuer is the URL of an OIDC issuer.
	Issuer string
	// AllowedAudiences are what a token may be for. None: the provider's full name, with or without https: before it.
	AllowedAudiences []string
	// TrustAnchors are the CAs that clients' certificates have to lead to, Intermediates others on the way there.
	TrustAnchors, Intermediates []*x509.Certificate
	// AWSAccount is the account that may sign in.
	AWSAccount string
	// Subject is the mapping of google.subject. nil: as Google has it where nothing is said, sub of a token, arn of AWS, and subject.dn.cn of a certificate.
	Subject func(Assertion) string
	// Condition is the attribute condition. nil: none. (Google has an expression for either, in CEL.)
	Condition func(Assertion) bool
	// Disabled: it is there, and nobody may use it.
	Disabled bool
}

// Assertion is what a credential says, and what mappings and conditions are made of: a token's claims, AWS's account, arn and userid, or a certificate's attributes.
type Assertion map[string]any

// Text is a text in it; empty if there is none there. Names lead through objects: Text("subject", "dn", "cn").
func (a Assertion) Text(names ...string) string {
	for i, name := range names {
		if i == len(names)-1 {
			text, _ := a[name].(string)
			return text
		}
		a, _ = a[name].(map[string]any)
	}
	return ""
}

// Audience is the provider's full name, which a token exchange has to say.
func (p WorkloadProvider) Audience() string { return p.pool() + "/providers/" + p.Provider }

// Principal is a subject of the pool.
func (p WorkloadProvider) Principal(subject string) string {
	return "principal:" + p.pool() + "/subject/" + subject
}

// PrincipalSet is everybody in the pool.
func (p WorkloadProvider) PrincipalSet() string { return "principalSet:" + p.pool() + "/*" }

func (p WorkloadProvider) pool() string { return workloadPool(p.ProjectNumber, p.Pool) }

func workloadPool(project, pool string) string {
	return "//iam.googleapis.com/projects/" + project + "/locations/global/workloadIdentityPools/" + pool
}

// AddWorkloadPool makes a provider and the pool that it is in, or replaces the provider. Its issuer is to be added by AddIssuer.
func (c *Cloud) AddWorkloadPool(p WorkloadProvider) {
	p.AllowedAudiences, p.TrustAnchors, p.Intermediates = slices.Clone(p.AllowedAudiences), slices.Clone(p.TrustAnchors), slices.Clone(p.Intermediates)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.google.providers[p.Audience()] = &p
}

// GKECluster is a cluster of Google Kubernetes Engine with workload identity, whose service accounts are in the pool of its project.
type GKECluster struct{ Project, ProjectNumber, Location, Name string }

func (g GKECluster) issuer() string {
	return "https://container.googleapis.com/v1/projects/" + g.Project + "/locations/" + g.Location + "/clusters/" + g.Name
}

// Pool is the name of the project's pool, and the audience that tokens of the cluster's service accounts must have.
func (g GKECluster) Pool() string { return g.Project + ".svc.id.goog" }

// Audience is what a token exchange has to say.
func (g GKECluster) Audience() string { return "identitynamespace:" + g.Pool() + ":" + g.issuer() }

// Principal is a service account of the cluster.
func (g GKECluster) Principal(namespace, name string) string {
	return "principal:" + workloadPool(g.ProjectNumber, g.Pool()) + "/subject/ns/" + namespace + "/sa/" + name
}

// AddGKECluster makes a cluster, and gives the issuer of its service accounts' tokens.
func (c *Cloud) AddGKECluster(g GKECluster) *Issuer {
	c.mu.Lock()
	c.google.clusters[g.Audience()] = &g
	c.mu.Unlock()
	return c.AddIssuer(g.issuer())
}

// federated is somebody whom Google's STS has come to know.
type federated struct {
	principal string
	life      time.Duration // of the token that was the proof
}

const (
	tokenTypeAccess = "urn:ietf:params:oauth:token-type:access_token"
	tokenTypeJWT    = "urn:ietf:params:oauth:token-type:jwt"
	tokenTypeID     = "urn:ietf:params:oauth:token-type:id_token"
	tokenTypeAWS    = "urn:ietf:params:aws:token-type:aws4_request"
	tokenTypeMTLS   = "urn:ietf:params:oauth:token-type:mtls"
)

var googleAudience = regexp.MustCompile(`^(//iam\.googleapis\.com/projects/\d+/locations/global/workloadIdentityPools/[a-z0-9-]+/providers/[a-z0-9-]+|identitynamespace:[^:]+:https://.+)$`)

// serveGoogleSTS exchanges tokens (https://cloud.google.com/iam/docs/reference/sts/rest/v1/TopLevel/token), from a form only.
func (c *Cloud) serveGoogleSTS(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/v1/token" || r.Method != http.MethodPost {
		writeGoogle(w, r, googleNotFound())
		return
	}
	entryOf(r).operation("token")
	if c.faulty(w, r, "google-sts", "token", func(f Fault) {
		if f.Code != "" {
			writeOAuth(w, r, oauthFault(f))
			return
		}
		writeGoogle(w, r, googleFault(f))
	}) {
		return
	}
	form, no := googleForm(w, r)
	var who federated
	if no == nil {
		who, no = c.exchange(form, clientCertificate(r)) //nolint:contextcheck // what it asks others ends with the cloud
	}
	if no != nil {
		writeOAuth(w, r, *no)
		return
	}
	entryOf(r).principal(who.principal)
	life := max(min(who.life, googleLife), time.Second).Truncate(time.Second)
	token, _ := c.grant(who.principal, strings.Fields(form.Get("scope")), life)
	writeJSON(w, http.StatusOK, map[string]any{
		"access_token": token, "issued_token_type": tokenTypeAccess, "token_type": "Bearer", "expires_in": int(life.Seconds()),
	})
}

// exchange judges a token exchange (RFC 8693). Peer is the certificate that the client has shown, if any.
func (c *Cloud) exchange(form url.Values, peer *x509.Certificate) (federated, *refusal) {
	invalid := func(name string) (federated, *refusal) {
		return federated{}, &refusal{http.StatusBadRequest, "invalid_request", `Invalid value for "` + name + `".`}
	}
	audience, kind, token := form.Get("audience"), form.Get("subject_token_type"), form.Get("subject_token")
	switch {
	case form.Get("grant_type") != grantType+"token-exchange":
		return federated{}, &refusal{http.StatusBadRequest, "unsupported_grant_type", `Invalid value for "grant_type".`}
	case !googleAudience.MatchString(audience):
		return federated{}, &refusal{
			http.StatusBadRequest, "invalid_request", `Invalid value for "audience". This value should be the full resource name of the Identity Provider. ` +
				`See https://cloud.google.com/iam/docs/reference/sts/rest/v1/TopLevel/token for the list of possible formats.`,
		}
	case form.Get("requested_token_type") != tokenTypeAccess:
		return invalid("requested_token_type")
	case !slices.Contains([]string{tokenTypeJWT, tokenTypeID, tokenTypeAWS, tokenTypeMTLS}, kind):
		return invalid("subject_token_type")
	case token == "":
		return invalid("subject_token")
	case !scopesKnown(strings.Fields(form.Get("scope"))):
		return federated{}, &refusal{http.StatusBadRequest, "invalid_scope", `Invalid value for "scope".`}
	}
	c.mu.Lock()
	provider, cluster := c.google.providers[audience], c.google.clusters[audience]
	c.mu.Unlock()
	switch {
	case cluster != nil:
		if kind != tokenTypeJWT && kind != tokenTypeID {
			return invalid("subject_token_type")
		}
		return c.federateGKE(*cluster, token)
	case provider == nil || provider.Disabled:
		return federated{}, &refusal{
			http.StatusBadRequest, "invalid_target",
			`The target service indicated by the "audience" parameters is invalid. This might either be because the pool or provider is disabled or deleted or because it doesn't exist.`,
		}
	case !provider.takes(kind):
		return invalid("subject_token_type")
	case kind == tokenTypeAWS:
		return c.federateAWS(*provider, token)
	case kind == tokenTypeMTLS:
		return c.federateX509(*provider, token, peer)
	}
	allowed := provider.AllowedAudiences
	if len(allowed) == 0 {
		allowed = []string{audience, "https:" + audience}
	}
	claims, life, no := c.federateOIDC(token, provider.Issuer, allowed)
	if no != nil {
		return federated{}, no
	}
	return provider.admit(claims, []string{"sub"}, life)
}

// takes says whether a kind of token is the provider's.
func (p WorkloadProvider) takes(kind string) bool {
	switch {
	case p.Issuer != "":
		return kind == tokenTypeJWT || kind == tokenTypeID
	case p.TrustAnchors != nil:
		return kind == tokenTypeMTLS
	}
	return kind == tokenTypeAWS
}

// admit is whose a credential is that has been found to be good, and that holds for life: by the mapping, or as is said by what these names lead to.
func (p WorkloadProvider) admit(said Assertion, names []string, life time.Duration) (federated, *refusal) {
	subject := said.Text(names...)
	if p.Subject != nil {
		subject = p.Subject(said)
	}
	if no := mapped(subject); no != nil {
		return federated{}, no
	}
	if p.Condition != nil && !p.Condition(said) {
		return federated{}, &refusal{http.StatusBadRequest, "unauthorized_client", "The given credential is rejected by the attribute condition."}
	}
	return federated{p.Principal(subject), life}, nil
}

func notGranted(format string, a ...any) *refusal {
	return &refusal{http.StatusBadRequest, "invalid_grant", fmt.Sprintf(format, a...)}
}

// federateOIDC verifies a token for an issuer, and gives its claims and how long it still lives.
func (c *Cloud) federateOIDC(token, issuer string, allowed []string) (said Assertion, life time.Duration, no *refusal) {
	claims, err := unverifiedClaims(token)
	if err != nil {
		return nil, 0, &refusal{http.StatusBadRequest, "invalid_request", "The subject token is not a valid JWT."}
	}
	if iss, ok := claims["iss"].(string); iss != issuer {
		if !ok {
			iss = "null"
		}
		return nil, 0, notGranted("The issuer in ID Token %s does not match the expected one in config: %s", iss, issuer)
	}
	is := audiences(claims)
	if !slices.ContainsFunc(is, func(a string) bool { return slices.Contains(allowed, a) }) {
		return nil, 0, notGranted("The audience in ID Token [%s] does not match the expected audience.", strings.Join(is, ", "))
	}
	// Clocks may differ by a minute.
	now := c.Now()
	issued, ok := numericDate(claims, "iat")
	expires, okay := numericDate(claims, "exp")
	switch {
	case !ok:
		return nil, 0, notGranted("ID Token issued at null is stale to sign-in.")
	case !okay || !now.Before(expires.Add(time.Minute)) || issued.After(now.Add(time.Minute)):
		return nil, 0, notGranted("ID Token issued at %d is stale to sign-in.", issued.Unix())
	}
	_, err = c.verifyToken(token, issuer)
	switch {
	case errors.Is(err, errWrongSignature):
		return nil, 0, notGranted("Unable to verify the ID Token signature.")
	case err != nil:
		return nil, 0, notGranted("Error connecting to the given credential's issuer.")
	}
	return claims, expires.Sub(now), nil
}

// mapped judges a subject.
func mapped(subject string) *refusal {
	switch {
	case subject == "":
		return notGranted("Could not obtain a value for google.subject from the given credential.")
	case len(subject) > 127:
		return notGranted("The size of mapped attribute google.subject exceeds the 127 bytes limit. Either modify your attribute mapping or the incoming assertion to produce a " +
			"mapped attribute that is less than 127 bytes.")
	}
	return nil
}

// federateGKE verifies the token of a cluster's service account.
func (c *Cloud) federateGKE(g GKECluster, token string) (federated, *refusal) {
	claims, life, no := c.federateOIDC(token, g.issuer(), []string{g.Pool()})
	if no != nil {
		return federated{}, no
	}
	namespaced, ok := strings.CutPrefix(claims.Text("sub"), "system:serviceaccount:")
	namespace, name, okay := strings.Cut(namespaced, ":")
	if !ok || !okay || namespace == "" || name == "" {
		return federated{}, mapped("")
	}
	return federated{g.Principal(namespace, name), life}, nil
}

// federateAWS finds out whose a signed request for GetCallerIdentity is, by making it (https://cloud.google.com/iam/docs/workload-identity-federation-with-other-clouds). The
// request has to name the provider that it is for, and the signature to cover that.
func (c *Cloud) federateAWS(p WorkloadProvider, token string) (federated, *refusal) {
	var signed struct {
		URL, Method, Body string
		Headers           []struct{ Key, Value string }
	}
	text, err := url.QueryUnescape(token)
	if err != nil || json.Unmarshal([]byte(text), &signed) != nil {
		return federated{}, notGranted("Invalid format of AWS credentials.")
	}
	u, err := url.Parse(signed.URL)
	if err != nil || u.Scheme != "https" || u.Path != "" && u.Path != "/" || u.Query().Get("Action") != "GetCallerIdentity" || signed.Method != http.MethodPost {
		return federated{}, notGranted("Invalid format of AWS credentials: this is no request for GetCallerIdentity.")
	}
	r, err := http.NewRequestWithContext(c.done, http.MethodPost, signed.URL, strings.NewReader(signed.Body))
	if err != nil {
		return federated{}, notGranted("Invalid format of AWS credentials.")
	}
	for _, h := range signed.Headers {
		r.Header.Add(h.Key, h.Value)
	}
	if hostOf(r.Header.Get("Host")) != hostOf(u.Host) {
		return federated{}, notGranted("Invalid format of AWS credentials: the host is missing, or not that of the URL.")
	}
	r.Header.Del("Host")
	const target = "x-goog-cloud-target-resource"
	m := authorizationPattern.FindStringSubmatch(r.Header.Get("Authorization"))
	if m == nil || r.Header.Get(target) != p.Audience() || !slices.Contains(strings.Split(m[5], ";"), target) {
		return federated{}, notGranted("Invalid format of AWS credentials: the header %s is missing, not signed, or not the audience.", target)
	}
	e, ok := awsEndpoint(hostOf(u.Host))
	if !ok || e.service != "sts" {
		return federated{}, notGranted("Invalid format of AWS credentials: %s is no endpoint of STS.", u.Host)
	}
	w := httptest.NewRecorder()
	c.stsAPI(e).ServeHTTP(w, r)
	var said struct {
		Arn     string `xml:"GetCallerIdentityResult>Arn"`
		UserID  string `xml:"GetCallerIdentityResult>UserId"`
		Account string `xml:"GetCallerIdentityResult>Account"`
	}
	if err := xml.Unmarshal(w.Body.Bytes(), &said); w.Code != http.StatusOK || err != nil {
		return federated{}, notGranted("AWS refuses the credentials: status %d.", w.Code)
	}
	if said.Account != p.AWSAccount {
		return federated{}, notGranted("The AWS account %s is not the one that the provider is for.", said.Account)
	}
	return p.admit(Assertion{"arn": said.Arn, "account": said.Account, "userid": said.UserID}, []string{"arn"}, time.Hour)
}

// googleRefusal is what a Google API says no with (https://cloud.google.com/apis/design/errors).
type googleRefusal struct {
	status        int
	code, message string
	info          *googleErrorInfo
}

type googleErrorInfo struct {
	Type     string            `json:"@type"`
	Reason   string            `json:"reason"`
	Domain   string            `json:"domain"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

func errorInfo(reason, domain string, metadata map[string]string) *googleErrorInfo {
	return &googleErrorInfo{"type.googleapis.com/google.rpc.ErrorInfo", reason, domain, metadata}
}

func googleNotFound() googleRefusal {
	return googleRefusal{http.StatusNotFound, "NOT_FOUND", "Requested entity was not found.", nil}
}

// googleFault is a fault as Google's APIs word it.
func googleFault(f Fault) googleRefusal {
	no := googleRefusal{cmp.Or(f.Status, http.StatusTooManyRequests), f.Code, "a fault on demand", nil}
	if f.Code == "" {
		switch {
		case no.status == http.StatusServiceUnavailable:
			no.code, no.message = "UNAVAILABLE", "The service is currently unavailable."
		case no.status >= http.StatusInternalServerError:
			no.code, no.message = "INTERNAL", "Internal error encountered."
		default:
			no.code, no.message = "RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota)."
		}
	}
	return no
}

func writeGoogle(w http.ResponseWriter, r *http.Request, no googleRefusal) {
	entryOf(r).code(no.code)
	said := map[string]any{"code": no.status, "message": no.message, "status": no.code}
	if no.info != nil {
		said["details"] = []any{no.info}
	}
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	writeJSON(w, no.status, map[string]any{"error": said})
}
