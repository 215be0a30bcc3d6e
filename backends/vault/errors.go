package vault

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
)

var errUndocumented = errors.New("the answer is none that Vault documents")

// failure is an error with what is known of the exchange that it comes from. Its words are made here: Vault's own may have in them what they are about.
type failure struct {
	exchange
	error
}

func (f *failure) Unwrap() error { return f.error }

// unknownToken says that Vault may not know a token any more: some versions say of it no more than of one that is used from another network, but that its policies deny something they say otherwise.
func unknownToken(err error) bool {
	f, ok := errors.AsType[*failure](err)
	return ok && f.err == nil && f.status == http.StatusForbidden && (f.hint == hintToken || f.hint == hintNone)
}

// elsewhere says that it may be another engine by now that is asked.
func (f *failure) elsewhere() bool {
	return f.err == nil && (f.status == http.StatusNotFound || f.status == http.StatusBadRequest || f.status == http.StatusMethodNotAllowed)
}

// hint is what an error's words mean.
type hint int

const (
	hintNone hint = iota
	hintSealed
	hintUninitialized
	hintStandby
	hintToken
	hintDenied
	hintKeys
	hintUnconfigured
	hintNoRole
	hintNoEngine
	hintNamespace
	hintRole
	hintSecretID
	hintAudience
	hintExpired
	hintNotYet
	hintIssuer
	hintClaims
	hintSignature
	hintReview
	hintCertificate
	hintAddress
	hintWrapping
	hintNoLease
	hintServerID
)

// phrases are words of Vault's errors, in lower case, and what they mean. The first that is found counts.
var phrases = []struct {
	words string
	means hint
}{
	{"vault is sealed", hintSealed},
	{"not yet initialized", hintUninitialized},
	{"local node not active", hintStandby},
	{"standby", hintStandby},
	{"wrapping token", hintWrapping},
	{"invalid token", hintToken},
	{"bad token", hintToken},
	{"missing client token", hintToken},
	{"error occurred:\n\t* permission denied", hintDenied},
	{"preflight capability check", hintDenied},
	{"fetching keys", hintKeys},
	{"could not load backend configuration", hintUnconfigured},
	{"'aud': source data must be", hintAudience}, // of a Kubernetes role without one
	{"missing role", hintNoRole},
	{"no handler for route", hintNoEngine},
	{"unsupported path", hintNoEngine},
	{"namespace not found", hintNamespace},
	{"invalid secret id", hintSecretID},
	{"invalid role or secret id", hintSecretID},
	{"invalid role id", hintSecretID},
	{"invalid role name", hintRole},
	{"role could not be found", hintRole},
	{"could not be found", hintRole},
	{"unknown role", hintRole},
	{"entry for role", hintRole},
	{"\" not found", hintRole}, // auth/gcp's, with the role's name before
	{"iam-server-id", hintServerID},
	{"does not belong to", hintClaims},
	{"not in bound", hintClaims},
	{"missing bound label", hintClaims},
	{"audience", hintAudience},
	{"(iss) claim", hintIssuer},
	{"issuer", hintIssuer},
	{"token is expired", hintExpired},
	{"token has expired", hintExpired},
	{"(exp) claim", hintExpired},
	{"not before", hintNotYet},
	{"(nbf) claim", hintNotYet},
	{"issued", hintNotYet},
	{"not authorized", hintClaims},
	{"bound claim", hintClaims},
	{"(sub) claim", hintClaims},
	{"claim", hintClaims},
	{"signature", hintSignature},
	{"no known key", hintSignature},
	{"lookup failed", hintReview},
	{"service account unauthorized", hintReview},
	{"certificate", hintCertificate},
	{"failed to match all constraints", hintCertificate},
	{"tls connection required", hintCertificate},
	{"cidr", hintAddress},
	{"source address", hintAddress},
	{"lease not found", hintNoLease},
	{"invalid lease", hintNoLease},
}

// meaning looks at an error's words, which are not shown.
func meaning(body []byte) hint {
	var answer struct {
		Errors []string `json:"errors"`
	}
	if json.Unmarshal(body, &answer) != nil {
		return hintNone
	}
	text := strings.ToLower(strings.Join(answer.Errors, "\n"))
	for _, p := range phrases {
		if strings.Contains(text, p.words) {
			return p.means
		}
	}
	return hintNone
}

// passing says that the next moment may be better. That a role is for somebody else is for good, although auth/azure says so with status 500.
func (e exchange) passing() bool {
	_, cut := errors.AsType[*remote.CutError](e.err)
	return cut || e.err == nil && e.hint != hintClaims && (e.hint == hintKeys || e.status >= 500 && e.status != http.StatusNotImplemented && e.hint != hintUnconfigured && e.hint != hintAudience || e.status == http.StatusTooManyRequests || e.status == http.StatusPreconditionFailed)
}

// untouched says that Vault has done nothing about the question.
func (e exchange) untouched() bool {
	_, absent := errors.AsType[*remote.AbsentError](e.err)
	return absent || e.err == nil && (e.hint == hintSealed || e.hint == hintStandby || e.status == http.StatusTooManyRequests || e.status == http.StatusPreconditionFailed)
}

// final says that asking again soon is pointless.
func (e exchange) final() bool {
	return e.redirect != "" && e.err != nil || e.err == nil && e.status >= 400 && !e.passing() && e.status != http.StatusRequestTimeout
}

func (e exchange) untrusted() bool {
	_, ok := errors.AsType[*tls.CertificateVerificationError](e.err)
	return ok
}

// skew is how far this machine's clock is ahead of Vault's; 0 if that is not known.
func (e exchange) skew(now time.Time) time.Duration {
	date, err := http.ParseTime(e.date)
	if err != nil {
		return 0
	}
	return now.Sub(date)
}

// maxSkew is how far a clock may be off before Vault refuses what was signed by it.
const maxSkew = time.Minute

// explain makes the error of a question that failed: what was being done, what came of it, and what to do, which advice may know better.
func (s *server) explain(ctx context.Context, c *call, err error, advice func(exchange) string) error {
	last := c.exchange()
	if own, ok := errors.AsType[*backends.Error](err); ok {
		return own
	}
	if own, ok := errors.AsType[*backends.Error](last.err); ok {
		return own
	}
	text := c.doing + ": "
	switch {
	case last.redirect != "" && last.err != nil:
		text += fmt.Sprintf("%s points to %s", s.address, last.redirect)
	case last.err != nil:
		text += fmt.Sprintf("%s: %s", s.address, last.err)
	case !last.asked && ctx.Err() != nil:
		text += "no time was left to ask"
	case !last.asked:
		text += "Vault's library does not send it"
	case last.status < 400:
		text += errUndocumented.Error()
	default:
		text += fmt.Sprintf("%s (HTTP status %d)", last.words(), last.status)
	}
	remedy := ""
	if advice != nil {
		remedy = advice(last)
	}
	if remedy == "" {
		remedy = s.generalAdvice(last)
	}
	if skew := last.skew(s.now()); skew.Abs() > maxSkew && last.status >= 400 {
		off := fmt.Sprintf("this machine's clock is %s off Vault's: set it (timedatectl, chronyc)", skew.Abs().Round(time.Second))
		if remedy == "" || last.hint == hintExpired || last.hint == hintNotYet {
			remedy = off
		} else {
			remedy += "; besides, " + off
		}
	}
	if remedy != "" {
		text += ": " + remedy
	}
	kind := backends.Unavailable
	if last.final() || last.untrusted() {
		kind = backends.Refused
	}
	return &failure{last, kind(errors.New(text))}
}

// words are ours for what Vault has said.
func (e exchange) words() string {
	switch e.hint { //nolint:exhaustive // the rest is told by the status
	case hintSealed:
		return "Vault is sealed"
	case hintUninitialized:
		return "Vault is not initialized"
	case hintStandby:
		return "the node is a standby, and knows no active one"
	case hintToken:
		return "Vault does not know the token, or not any more"
	case hintDenied:
		return "permission denied"
	case hintKeys:
		return "Vault cannot get the keys of the token's issuer"
	case hintUnconfigured:
		return "the auth method is enabled, and not configured"
	case hintNoRole:
		return "no role is named, and the auth method has no default"
	case hintNoEngine:
		return "nothing is mounted there"
	case hintNamespace:
		return "there is no such namespace"
	case hintRole:
		return "there is no such role"
	case hintSecretID:
		return "the role ID or the secret ID is wrong, has expired, or was used up"
	case hintAudience:
		return "the token is for another audience than the role wants"
	case hintExpired:
		return "the token has expired"
	case hintNotYet:
		return "the token is not valid yet"
	case hintIssuer:
		return "the token is of another issuer than the auth method trusts"
	case hintClaims:
		return "the role is not for whom the token is of"
	case hintSignature:
		return "the token is signed by nobody whom the auth method trusts"
	case hintReview:
		return "Kubernetes does not vouch for the token"
	case hintCertificate:
		return "the role is not for the client certificate"
	case hintAddress:
		return "Vault does not take the token or the login from this machine's address"
	case hintWrapping:
		return "the wrapping token has been used or has expired"
	case hintNoLease:
		return "there is no such lease"
	case hintServerID:
		return "the request to AWS is signed for another server than this Vault is"
	}
	switch {
	case e.status == http.StatusTooManyRequests:
		return "Vault is busy: a rate limit quota is used up"
	case e.status == http.StatusPreconditionFailed:
		return "the node has not yet seen what another node has just written"
	case e.status == http.StatusForbidden:
		return "permission denied"
	case e.status == http.StatusNotFound:
		return "there is nothing at that path"
	case e.status >= 500:
		return "Vault has failed"
	}
	return "Vault refuses it"
}

// generalAdvice is what to do whatever was asked for.
func (s *server) generalAdvice(e exchange) string {
	text := s.remedy(e)
	if e.wait > 0 && !errors.Is(e.err, errHeld) {
		if text != "" {
			text += "; "
		}
		text += fmt.Sprintf("it wants to be asked again in %s, and is not asked before", e.wait.Round(time.Second))
	}
	return text
}

func (s *server) remedy(e exchange) string {
	switch {
	case e.redirect != "" && e.err != nil:
		return "nothing is sent there; if that is a node of the same cluster, name it in redirectAddresses"
	case e.status == http.StatusTooManyRequests:
		return "a longer cacheDuration, or an agent on the node, makes fewer requests; `vault read sys/quotas/rate-limit/NAME` shows the quota"
	case e.hint == hintSealed:
		return "`vault operator unseal`, on each node"
	case e.hint == hintUninitialized:
		return "`vault operator init`"
	case e.hint == hintStandby:
		return "`vault operator members` and the node's log say why the cluster has no leader"
	case e.status == http.StatusPreconditionFailed:
		return "a performance standby is behind: it is asked again; if it stays so, see the cluster's replication"
	case e.untrusted():
		return distrusted(e.err)
	case e.hint == hintNamespace, e.hint == hintNoEngine && s.cfg.Namespace != "":
		return fmt.Sprintf("see namespace (%q), and those of auth and of the secret: `vault namespace list` shows those that there are; Vault Community has none", s.cfg.Namespace)
	case isDistrust(e.err):
		return "Vault wants a client certificate that it trusts: see auth.certFile"
	case e.err != nil:
		return "the way there has to be open: address, DNS, routes, a firewall's list, HTTPS_PROXY; `curl ADDRESS/v1/sys/health` tries it"
	}
	return ""
}

// distrusted is what to do about a certificate of Vault's that is not taken.
func distrusted(err error) string {
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "give the name that the certificate is for in tlsServerName, or another address"
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return "the certificate has to be renewed, or this machine's clock be set (timedatectl, chronyc)"
	}
	return "give the certificate authority of Vault's certificate in caFile"
}

func isDistrust(err error) bool {
	_, ok := errors.AsType[*remote.DistrustError](err)
	return ok
}

// loginAdvice is for logins.
func (b *Backend) loginAdvice(e exchange, w who) string {
	auth := &b.cfg.Auth
	role := fmt.Sprintf("`vault read auth/%s/role/%s`", auth.Mount, w.role)
	says := b.alsoSays(w)
	switch e.hint { //nolint:exhaustive // the rest is no matter of logins alone
	case hintNoEngine:
		return fmt.Sprintf("the auth method is not enabled at auth/%s: `vault auth list` shows those that are; see auth.mount and namespace", auth.Mount)
	case hintRole:
		return fmt.Sprintf("`vault list auth/%s/role` shows those that there are", auth.Mount)
	case hintSecretID:
		return fmt.Sprintf("`vault write -f auth/%s/role/NAME/secret-id` gives another one", auth.Mount)
	case hintAudience:
		return role + " shows its bound audiences: the kubelet's token is for serviceAccountTokenAudience of tokenAttributes" + says
	case hintExpired, hintNotYet:
		return "see to it that it is renewed, and that the clocks of both machines are right"
	case hintIssuer:
		return fmt.Sprintf("`vault read auth/%s/config` shows whom it trusts", auth.Mount)
	case hintClaims:
		return role + " shows whom it is for" + says
	case hintSignature:
		return fmt.Sprintf("`vault read auth/%s/config` shows by which keys it judges", auth.Mount)
	case hintKeys:
		return fmt.Sprintf("`vault read auth/%s/config` shows where they are: can Vault reach that?", auth.Mount)
	case hintUnconfigured:
		return fmt.Sprintf("`vault write auth/%s/config …` does that", auth.Mount)
	case hintNoRole:
		return "set auth.role"
	case hintServerID:
		return fmt.Sprintf("auth.aws.serverID has to be the iam_server_id_header_value that `vault read auth/%s/config/client` shows", auth.Mount)
	case hintReview:
		return fmt.Sprintf("the account may have been deleted, or the token be for another audience than the API server's, which a Vault without token_reviewer_jwt cannot have reviewed: see `vault read auth/%s/config`, or use the method jwt", auth.Mount) + says
	case hintCertificate:
		return fmt.Sprintf("`vault list auth/%s/certs` shows the roles; is a proxy on the way that ends TLS?", auth.Mount)
	}
	if e.status == http.StatusForbidden && auth.Method == MethodKubernetes {
		return fmt.Sprintf("either no method is enabled at auth/%s, or the API server does not vouch for the token: the account may have been deleted, the token be for another audience than the API server's own, or Vault have no token_reviewer_jwt of an account with system:auth-delegator; `vault read auth/%s/config` and Vault's log say more, and the method jwt needs no review", auth.Mount, auth.Mount) + says
	}
	if e.status == http.StatusForbidden {
		return fmt.Sprintf("is the method enabled at auth/%s, and its role for this identity? Vault's log says more", auth.Mount) + says
	}
	return ""
}

// readAdvice is for reading a secret. Path is as in the settings, apiPath what was read; empty: the engine was looked up.
func (b *Backend) readAdvice(e exchange, w who, of *entry, path, apiPath string) string {
	switch {
	case e.hint == hintToken:
		return "if it is a token of the settings, give another one"
	case e.hint == hintRole:
		return fmt.Sprintf("is the engine's role in %s spelled right?", path)
	case e.hint == hintNoEngine || e.status == http.StatusNotFound:
		return fmt.Sprintf("no engine is mounted at the beginning of %s: `vault secrets list` shows those that are; see %s.path and namespace", path, of.field)
	case e.status == http.StatusForbidden && apiPath == "":
		mounted := mount{engine: EngineKV2}
		mounted.path, _, _ = strings.Cut(path, "/")
		return fmt.Sprintf("no policy of the login is for anything in the engine, or there is none. To add: %s (KV v2), or %s", stanza(mounted.apiPath(path), "read"), stanza(path, "read")) + b.alsoSays(w)
	case e.status == http.StatusForbidden:
		text := "to add to a policy of the login: " + stanza(apiPath, "read")
		if of.WrapTTL == 0 {
			text += "; a policy that demands wrapped answers wants wrapTTL"
		}
		return text + b.alsoSays(w)
	case e.hint == hintWrapping:
		return "somebody else may have unwrapped it: see who can read what passes to Vault"
	}
	return ""
}

// stanza is what a policy has to have (https://developer.hashicorp.com/vault/docs/concepts/policies).
func stanza(path, capability string) string {
	return fmt.Sprintf("`path %q { capabilities = [%q] }`", path, capability)
}
