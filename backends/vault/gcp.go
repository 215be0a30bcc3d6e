package vault

import (
	"cmp"
	"context"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/files"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
	"github.com/credential-broker/credential-broker/backends/webidentity"
)

// GCP is the login by a Google identity (https://developer.hashicorp.com/vault/docs/auth/gcp).
type GCP struct {
	// Type is "gce" (the default) or "iam". A role of the type gce takes the first; one of the type iam the second, and the first too with allow_gce_inference.
	Type GCPType `json:"type"`
	// ServiceAccount is a service account's email address. For gce it is one of the instance's; default: "default". For iam it is the one that signs; default: that of the key, or the instance's default one.
	ServiceAccount string `json:"serviceAccount"`
	// CredentialsFile is the key file of a service account, for iam. Default: GOOGLE_APPLICATION_CREDENTIALS; without that, Google signs (the IAM credentials API's signJwt) for whom the instance's default service
	// account may ask it to, itself not excepted: it needs roles/iam.serviceAccountTokenCreator on the account that signs.
	CredentialsFile string `json:"credentialsFile"`
	// Endpoint is the URL of the metadata server. Default: http:// and the environment's GCE_METADATA_HOST, else http://169.254.169.254.
	Endpoint string `json:"endpoint"`

	// by is another way to Google's API than over the network as it is, for tests.
	by http.RoundTripper
}

// GCPType is what a Google identity shows.
type GCPType string

// The types: the instance's identity token, which tells of the instance; or claims that are signed with a service account's key.
const (
	GCPTypeGCE GCPType = "gce"
	GCPTypeIAM GCPType = "iam"
)

const (
	credentialsVariable = "GOOGLE_APPLICATION_CREDENTIALS" //nolint:gosec // G101: its name
	// signedFor is how long signed claims hold. They are used at once; a role's max_jwt_exp is a quarter of an hour unless it is set, and Vault's clock may be another.
	signedFor = 5 * time.Minute
	// signTimeout bounds a question to Google's API.
	signTimeout = 8 * time.Second
)

func (g *GCP) validate(field string, p *problems) {
	if g == nil {
		return
	}
	iam := g.Type == GCPTypeIAM
	if known := []GCPType{GCPTypeGCE, GCPTypeIAM}; g.Type != "" && !slices.Contains(known, g.Type) {
		p.Add(field+".type", "want one of %q, got %q", known, g.Type)
	}
	if iam && g.ServiceAccount != "" && !isEmail(g.ServiceAccount) {
		p.Add(field+".serviceAccount", "want a service account's email address, got %q", g.ServiceAccount)
	}
	if g.CredentialsFile != "" && !iam {
		p.Add(field+".credentialsFile", "is for type iam: the token of type gce is the instance's own")
	}
	if g.CredentialsFile != "" && g.Endpoint != "" {
		p.Add(field+".endpoint", "is of no use with credentialsFile, with which no metadata server is asked: remove one of them")
	}
	p.Path(field+".credentialsFile", g.CredentialsFile)
	source := webidentity.GoogleMetadata{Endpoint: g.Endpoint}
	if !iam {
		source.ServiceAccount = g.ServiceAccount
	}
	validateSource(webidentity.Config{GoogleMetadata: &source}, ".googleMetadata", field, p)
}

// isEmail says whether s can be a service account's address, and so part of a URL's path.
func isEmail(s string) bool {
	name, domain, ok := strings.Cut(s, "@")
	return ok && name != "" && strings.Contains(domain, ".") && !strings.ContainsFunc(name+domain, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-", r)
	})
}

// parameters get a token that is for this role alone: Vault wants its audience to end in vault/ROLE.
func (g *GCP) parameters(ctx context.Context, role string) (map[string]any, error) {
	var s GCP
	if g != nil {
		s = *g
	}
	if role == "" {
		return nil, backends.InvalidConfig("auth.role", "want the role to log in to: a Google identity proves itself to one alone")
	}
	audience := "http://vault/" + role
	var token backends.Secret
	var err error
	if s.Type == GCPTypeIAM {
		token, err = s.signed(ctx, audience)
	} else {
		var t webidentity.Token
		t, err = webidentity.NewGoogleMetadata(webidentity.GoogleMetadata{ServiceAccount: s.ServiceAccount, Format: webidentity.GoogleFull, Endpoint: s.Endpoint}, audience,
			webidentity.Fields{Source: "auth.gcp", Audience: "auth.role", Elsewhere: "set auth.gcp.type to iam and credentialsFile, or " + otherIdentity}).Token(ctx)
		token = t.Value
	}
	if err != nil {
		return nil, err
	}
	return map[string]any{"jwt": string(token)}, nil
}

// signed are claims for an audience with a service account's signature.
func (g *GCP) signed(ctx context.Context, audience string) (backends.Secret, error) {
	if g.CredentialsFile != "" {
		return g.signedWithKey(ctx, g.CredentialsFile, "auth.gcp.credentialsFile", audience)
	}
	if path := os.Getenv(credentialsVariable); path != "" {
		return g.signedWithKey(ctx, path, credentialsVariable, audience)
	}
	return g.signedByGoogle(ctx, audience)
}

// claims are what Vault wants to see (https://developer.hashicorp.com/vault/docs/auth/gcp#generating-iam-tokens).
func claims(account, audience string) []byte {
	text, err := json.Marshal(map[string]any{"sub": account, "aud": audience, "exp": time.Now().Add(signedFor).Unix()})
	if err != nil {
		panic(err) // texts and a number
	}
	return text
}

// signedWithKey signs with a key file's key. From is what names the file: the setting or the variable.
func (g *GCP) signedWithKey(ctx context.Context, path, from, audience string) (backends.Secret, error) {
	field := "auth.gcp"
	if from != credentialsVariable {
		field = from
	}
	misconfigured := func(format string, args ...any) error {
		return backends.InvalidConfig(field, "service account key in %s (%s): %w", path, from, fmt.Errorf(format, args...))
	}
	content, mode, err := files.Read(path)
	if err != nil {
		return "", misconfigured("%w", err)
	}
	var key struct {
		Type  string `json:"type"`
		Email string `json:"client_email"`
		ID    string `json:"private_key_id"`
		Key   string `json:"private_key"`
	}
	if json.Unmarshal(content, &key) != nil {
		return "", misconfigured("it is not JSON, or not of the form that Google documents") // the parser's own error could quote a secret
	}
	switch key.Type {
	case "service_account":
		files.WarnIfReadable(ctx, path, mode)
	case "external_account", "impersonated_service_account", "authorized_user", "external_account_authorized_user", "gdch_service_account":
		return "", misconfigured("credentials of type %s have no service account's key to sign with: name a file of type service_account, or %s", key.Type, otherIdentity)
	default:
		return "", misconfigured("want a file of type service_account") // what it has in its place may be a secret
	}
	signer := rsaKey(key.Key)
	switch {
	case !isEmail(key.Email) || key.ID == "" || signer == nil:
		return "", misconfigured("it lacks client_email, private_key_id or private_key, or has something else there: make it anew with `gcloud iam service-accounts keys create`")
	case g.ServiceAccount != "" && g.ServiceAccount != key.Email:
		return "", backends.InvalidConfig("auth.gcp.serviceAccount", "it is %s, and the key in %s (%s) is that of %s: name that one or none, or another file", g.ServiceAccount, path, from, key.Email)
	}
	made, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: signer, KeyID: key.ID}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return "", misconfigured("its key cannot sign")
	}
	jws, err := made.Sign(claims(key.Email, audience))
	if err != nil {
		return "", misconfigured("its key cannot sign")
	}
	text, err := jws.CompactSerialize()
	return backends.Secret(text), err
}

// rsaKey is a private key of a key file; nil: it is none. Google writes PKCS #8, and has written PKCS #1.
func rsaKey(text string) *rsa.PrivateKey {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil
	}
	if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return key
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	key, ok := parsed.(*rsa.PrivateKey)
	if err != nil || !ok {
		return nil
	}
	return key
}

// signedByGoogle has Google sign with the key that it keeps of an account (https://cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts/signJwt).
func (g *GCP) signedByGoogle(ctx context.Context, audience string) (backends.Secret, error) {
	account, asker := g.ServiceAccount, ""
	if account == "" {
		told, err := g.metadata(ctx, "email")
		if err != nil {
			return "", err
		}
		if account = strings.TrimSpace(string(told)); !isEmail(account) {
			return "", backends.InvalidConfig("auth.gcp.serviceAccount", "service account from Google's metadata server: what it tells is no service account's address, as where a pool stands for one: set it")
		}
		asker = account
	}
	told, err := g.metadata(ctx, "token")
	if err != nil {
		return "", err
	}
	var access struct {
		Token string `json:"access_token"`
	}
	if json.Unmarshal(told, &access) != nil || access.Token == "" || strings.ContainsFunc(access.Token, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return "", backends.Unavailable(errors.New("access token from Google's metadata server: the answer is none that Google documents"))
	}
	payload, err := json.Marshal(map[string]string{"payload": string(claims(account, audience))})
	if err != nil {
		return "", err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/"+url.PathEscape(account)+":signJwt", strings.NewReader(string(payload)))
	if err != nil {
		return "", err
	}
	r.Header.Set("Authorization", "Bearer "+access.Token)
	r.Header.Set("Content-Type", "application/json")
	by := g.by
	if by == nil {
		transport := remote.Transport("")
		defer transport.CloseIdleConnections() // it is asked once
		by = transport
	}
	answer, err := questions{by, signTimeout, remote.Sleep}.ask(ctx, r, busy)
	if err != nil {
		return "", g.unsigned(account, asker, reply{}, err)
	}
	var signed struct {
		JWT string `json:"signedJwt"`
	}
	if answer.status != http.StatusOK {
		return "", g.unsigned(account, asker, answer, nil)
	}
	if json.Unmarshal(answer.body, &signed) == nil {
		if said, err := webidentity.ParseClaims(signed.JWT); err == nil && said.Subject == account && slices.Contains(said.Audience, audience) {
			return backends.Secret(signed.JWT), nil
		}
	}
	return "", backends.Unavailable(fmt.Errorf("signature of service account %s by iamcredentials.googleapis.com: the answer is none that Google documents", account))
}

// unsigned says why Google has not signed. asker is the instance's service account, if that is known.
func (g *GCP) unsigned(account, asker string, answer reply, err error) error {
	doing := fmt.Sprintf("signature of service account %s by iamcredentials.googleapis.com", account)
	if _, untrusted := errors.AsType[*tls.CertificateVerificationError](err); untrusted {
		return backends.Refused(fmt.Errorf("%s: %w: see to it that this machine trusts the CA of what is in between", doing, err))
	}
	if err != nil {
		return backends.Unavailable(fmt.Errorf("%s: %w: the way there has to be open, or HTTPS_PROXY be named in the provider's inheritEnv", doing, err))
	}
	reason := googleReason(answer.body)
	said := func(advice string) error {
		return fmt.Errorf("%s: HTTP status %d: %s", doing, answer.status, advice)
	}
	switch {
	case busy(answer.status):
		return backends.Unavailable(said("it is busy or broken: the next pull asks again"))
	case answer.status == http.StatusUnauthorized:
		return backends.Unavailable(said("it does not take the token that the metadata server gives: the server may have kept one that was revoked"))
	case answer.status == http.StatusNotFound && g.ServiceAccount != "":
		return backends.InvalidConfig("auth.gcp.serviceAccount", "%w", said("there is no such service account"))
	case reason == "ACCESS_TOKEN_SCOPE_INSUFFICIENT":
		return backends.Refused(said("the instance's access scopes leave this API out: give it the scope cloud-platform, or log in by auth.gcp.type gce, which needs none"))
	case reason == "SERVICE_DISABLED":
		return backends.Refused(said("the API is not enabled in the instance's project: `gcloud services enable iamcredentials.googleapis.com`"))
	case answer.status == http.StatusForbidden:
		return backends.Refused(said("the instance's service account may not have that signed, which it has to be allowed for itself too: `gcloud iam service-accounts add-iam-policy-binding " + account +
			" --member=serviceAccount:" + cmp.Or(asker, "EMAIL") + " --role=roles/iam.serviceAccountTokenCreator`"))
	default:
		return backends.Refused(said("it refuses"))
	}
}

// googleReason is what an error of Google's API is about (https://google.aip.dev/193#errorinfo). It is compared, and never shown.
func googleReason(body []byte) string {
	var answer struct {
		Error struct {
			Details []struct {
				Reason string `json:"reason"`
			} `json:"details"`
		} `json:"error"`
	}
	_ = json.Unmarshal(body, &answer) // what has another form has no reason
	for _, detail := range answer.Error.Details {
		if detail.Reason != "" {
			return detail.Reason
		}
	}
	return ""
}

// metadata asks the metadata server for something of the instance's default service account (https://cloud.google.com/compute/docs/access/authenticate-workloads).
func (g *GCP) metadata(ctx context.Context, what string) ([]byte, error) {
	base := g.Endpoint
	if host := os.Getenv("GCE_METADATA_HOST"); base == "" && host != "" { // a host, as Google's own libraries take it
		base = "http://" + host
	}
	base = cmp.Or(base, metadataAddress)
	doing := "service account's " + what + " from Google's metadata server"
	u, err := webidentity.MetadataURL(base, "/computeMetadata/v1/instance/service-accounts/default/"+what, nil)
	if err != nil {
		return nil, backends.InvalidConfig("auth.gcp.endpoint", "%s: its address is none: %w; mend it, or GCE_METADATA_HOST", doing, err)
	}
	answer, err := askLink(ctx, u, "Metadata-Flavor", "Google", busy)
	const withoutOne = "name a key in auth.gcp.credentialsFile or " + credentialsVariable + ", or " + otherIdentity
	if _, absent := errors.AsType[*remote.AbsentError](err); absent {
		return nil, backends.Unavailable(fmt.Errorf("%s: %w: there is no key file (%s is not set, or not named in inheritEnv), and none to ask as there would be on Google Cloud: %s", doing, err, credentialsVariable, withoutOne))
	}
	switch {
	case err != nil:
		return nil, backends.Unavailable(fmt.Errorf("%s: %w", doing, err))
	case answer.header.Get("Metadata-Flavor") != "Google":
		return nil, backends.InvalidConfig("auth.gcp", "%s: who answers there (HTTP status %d) is not it: on a machine that is not on Google Cloud, %s", doing, answer.status, withoutOne)
	case answer.status == http.StatusOK:
		return answer.body, nil
	case busy(answer.status):
		return nil, backends.Unavailable(fmt.Errorf("%s: it is busy or broken (HTTP status %d)", doing, answer.status))
	case answer.status == http.StatusNotFound:
		return nil, backends.Refused(fmt.Errorf("%s: the machine has no service account (HTTP status 404): attach one to the instance", doing))
	default:
		return nil, backends.Refused(fmt.Errorf("%s: it refuses (HTTP status %d): see whether GCE_METADATA_HOST names the right server", doing, answer.status))
	}
}
