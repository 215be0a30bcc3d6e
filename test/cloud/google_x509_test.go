package cloud

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

const googleMutualSTS = "https://sts.mtls.googleapis.com/v1/token"

// clientWith is a client that shows a certificate to whoever asks for one.
func (c *Cloud) clientWith(t testing.TB, certificate, key []byte) *http.Client {
	t.Helper()
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	client := c.Client()
	client.Transport.(*http.Transport).TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	return client
}

// subjectToken is a list of certificates as STS takes it.
func subjectToken(t testing.TB, all ...[]byte) string {
	t.Helper()
	var list []string
	for _, certificate := range all {
		block, _ := pem.Decode(certificate)
		list = append(list, base64.StdEncoding.EncodeToString(block.Bytes))
	}
	token, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	return string(token)
}

func TestFederationOfX509(t *testing.T) {
	c := fixed(t)
	root, other := c.ClientCA("root"), c.ClientCA("another root")
	known, between := root.Intermediate("known to the pool"), root.Intermediate("between, of which the pool does not know")
	second := between.Intermediate("second")
	third := second.Intermediate("third")
	fourth := third.Intermediate("fourth")
	provider := WorkloadProvider{
		ProjectNumber: "123456789012", Pool: "pool", Provider: "x509", TrustAnchors: []*x509.Certificate{other.Intermediate("unused").Certificate, root.Certificate},
		Intermediates: []*x509.Certificate{known.Certificate},
	}
	c.AddWorkloadPool(provider)
	oidc := WorkloadProvider{ProjectNumber: "123456789012", Pool: "pool", Provider: "oidc", Issuer: "https://oidc.example.com"}
	c.AddWorkloadPool(oidc)
	stranger := c.ClientCA("unknown to the pool")
	issue := func(a *ClientCA, change func(*x509.Certificate)) [2][]byte {
		certificate, key := a.Issue("node-1", change)
		return [2][]byte{certificate, key}
	}
	lasting := func(d time.Duration) func(*x509.Certificate) {
		return func(t *x509.Certificate) { t.NotAfter = t.NotBefore.Add(d) }
	}
	now := c.Now()
	usual := issue(root, nil)
	const notLeading = "400 invalid_grant: The certificates do not lead to a trust anchor."
	const expired = "400 invalid_grant: A certificate has expired, or is not valid yet."
	const noClient = "400 invalid_grant: The leaf certificate is not one of a client: digitalSignature is not among its uses, or it is a CA's."
	for _, test := range []struct {
		name     string
		shown    [2][]byte // certificate and key; by default the usual one
		bare     bool      // no certificate is shown
		chain    [][]byte  // in the token, behind the certificate
		token    string    // in its place
		address  string
		kind     string
		provider string
		life     time.Duration
		want     string
	}{
		{name: "of the trust anchor"},
		{name: "of an intermediate CA that the pool has", shown: issue(known, nil)},
		{name: "of an intermediate CA in the chain", shown: issue(between, nil), chain: [][]byte{between.PEM()}},
		{name: "with the trust anchor in the chain", shown: issue(between, nil), chain: [][]byte{between.PEM(), root.PEM()}},
		{name: "with five in all", shown: issue(third, nil), chain: [][]byte{third.PEM(), second.PEM(), between.PEM()}},
		{name: "for clients only", shown: issue(root, func(t *x509.Certificate) { t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })},
		{name: "as long as the certificate", shown: issue(root, func(t *x509.Certificate) { t.NotAfter = now.Add(10 * time.Minute) }), life: 10 * time.Minute},
		{name: "issued for 390 days", shown: issue(root, lasting(390*24*time.Hour))},

		{name: "no certificate", bare: true, want: "400 invalid_grant: There is no client certificate: this needs mutual TLS."},
		{name: "by the way without mutual TLS", address: googleSTS, want: "400 invalid_grant: There is no client certificate: this needs mutual TLS."},
		{name: "somebody else's certificate", token: subjectToken(t, issue(root, nil)[0]), want: "400 invalid_grant: The client certificate is not the leaf certificate of the subject token."},
		{name: "not the first one", token: subjectToken(t, root.PEM(), usual[0]), want: "400 invalid_grant: The client certificate is not the leaf certificate of the subject token."},
		{name: "of another CA", shown: issue(other, nil), want: notLeading},
		{name: "of an unknown CA, with it", shown: issue(stranger, nil), chain: [][]byte{stranger.PEM()}, want: notLeading},
		{name: "of an intermediate CA that nobody has", shown: issue(between, nil), want: notLeading},
		{name: "with six in all", shown: issue(fourth, nil), chain: [][]byte{fourth.PEM(), third.PEM(), second.PEM(), between.PEM()}, want: notLeading},
		{name: "for servers", shown: issue(root, func(t *x509.Certificate) { t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), want: notLeading},
		{name: "for nothing", shown: issue(root, func(t *x509.Certificate) { t.KeyUsage = x509.KeyUsageKeyEncipherment }), want: noClient},
		{name: "a CA", shown: issue(root, func(t *x509.Certificate) { t.IsCA = true }), want: noClient},
		{name: "expired", shown: issue(root, func(t *x509.Certificate) { t.NotAfter = now.Add(-time.Second) }), want: expired},
		{name: "of tomorrow", shown: issue(root, func(t *x509.Certificate) { t.NotBefore = now.Add(time.Second) }), want: expired},
		{name: "issued for longer than 390 days", shown: issue(root, lasting(390*24*time.Hour+time.Second)), want: "400 invalid_grant: The leaf certificate is issued for longer than 390 days."},
		{name: "no list", token: "x", want: "400 invalid_request: The subject token is not a list of certificates."},
		{name: "an empty list", token: "[]", want: "400 invalid_request: The subject token is not a list of certificates."},
		{name: "PEM", token: `["` + url.QueryEscape(string(usual[0])) + `"]`, want: "400 invalid_request: The subject token is not a list of certificates."},
		{name: "no certificates in it", token: `["AAAA"]`, want: "400 invalid_request: The subject token has something in it that is not a certificate."},
		{name: "a JWT's kind of token", kind: tokenTypeJWT, want: `400 invalid_request: Invalid value for "subject_token_type".`},
		{name: "AWS's kind of token", kind: tokenTypeAWS, want: `400 invalid_request: Invalid value for "subject_token_type".`},
		{name: "to a provider of tokens", provider: oidc.Audience(), want: `400 invalid_request: Invalid value for "subject_token_type".`},
		{name: "to no provider", provider: oidc.Audience() + "2", want: invalidTarget},
	} {
		t.Run(test.name, func(t *testing.T) {
			shown, client := test.shown, c.Client()
			if shown[0] == nil {
				shown = usual
			}
			if !test.bare {
				client = c.clientWith(t, shown[0], shown[1])
			}
			token := test.token
			if token == "" {
				token = subjectToken(t, append([][]byte{shown[0]}, test.chain...)...)
			}
			or := func(s, otherwise string) string {
				if s == "" {
					return otherwise
				}
				return s
			}
			body := exchangeForm(or(test.provider, provider.Audience()), or(test.kind, tokenTypeMTLS), token, nil)
			answer := sendBy(t, client, http.MethodPost, or(test.address, googleMutualSTS), body, "Content-Type", formType)
			c.checkOAuth(t, answer, "token", test.want)
			life := test.life
			if life == 0 {
				life = googleLife
			}
			c.checkFederated(t, answer, test.want == "", provider.Principal("node-1"), life)
		})
	}
}

// TestMappingsAndConditions: what is made of each kind of credential, and whom a condition keeps out.
func TestMappingsAndConditions(t *testing.T) {
	c := fixed(t)
	ca, issuer, user := c.ClientCA("root"), c.AddIssuer("https://oidc.example.com"), c.AddUser(testUser)
	certificate, key := ca.Issue("node-1", func(t *x509.Certificate) {
		t.Subject.Organization, t.Subject.OrganizationalUnit = []string{"acme"}, []string{"unit-1", "unit-2"}
		t.DNSNames, t.URIs = []string{"node-1.example", "x"}, []*url.URL{{Scheme: "spiffe", Host: "example", Path: "/node-1"}}
	})
	block, _ := pem.Decode(certificate)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(leaf.Raw)
	proofs := map[string]func(WorkloadProvider) googleAnswer{
		"oidc": func(p WorkloadProvider) googleAnswer {
			p.Issuer = issuer.URL()
			c.AddWorkloadPool(p)
			token := issuer.Token(map[string]any{"aud": p.Audience(), "sub": "repo:acme/app", "repository_owner": "acme", "kubernetes.io": map[string]any{"namespace": "team-a"}})
			return c.post(t, googleSTS, formType, exchangeForm(p.Audience(), tokenTypeJWT, token, nil))
		},
		"aws": func(p WorkloadProvider) googleAnswer {
			p.AWSAccount = testAccount
			c.AddWorkloadPool(p)
			content, err := json.Marshal(c.signIdentity(t, user, "eu-west-1", "https://sts.eu-west-1.amazonaws.com?Action=GetCallerIdentity&Version=2011-06-15", p.Audience()))
			if err != nil {
				t.Fatal(err)
			}
			return c.post(t, googleSTS, formType, exchangeForm(p.Audience(), tokenTypeAWS, url.QueryEscape(string(content)), nil))
		},
		"x509": func(p WorkloadProvider) googleAnswer {
			p.TrustAnchors = []*x509.Certificate{ca.Certificate}
			c.AddWorkloadPool(p)
			return sendBy(t, c.clientWith(t, certificate, key), http.MethodPost, googleMutualSTS, exchangeForm(p.Audience(), tokenTypeMTLS, subjectToken(t, certificate), nil), "Content-Type", formType)
		},
	}
	is := func(want string, names ...string) func(Assertion) bool {
		return func(a Assertion) bool { return a.Text(names...) == want }
	}
	to := func(names ...string) func(Assertion) string {
		return func(a Assertion) string { return a.Text(names...) }
	}
	const rejected = "400 unauthorized_client: The given credential is rejected by the attribute condition."
	const unmapped = "400 invalid_grant: Could not obtain a value for google.subject from the given credential."
	for _, test := range []struct {
		name, proof string
		subject     func(Assertion) string
		condition   func(Assertion) bool
		want        string // the subject
		refused     string
	}{
		{name: "another claim", proof: "oidc", subject: to("repository_owner"), want: "acme"},
		{name: "a claim within one", proof: "oidc", subject: to("kubernetes.io", "namespace"), want: "team-a"},
		{name: "a claim that there is not", proof: "oidc", subject: to("repository"), refused: unmapped},
		{name: "nothing", proof: "oidc", subject: to(), refused: unmapped},
		{name: "something long", proof: "oidc", subject: func(Assertion) string { return strings.Repeat("x", 128) }, refused: "400 invalid_grant: The size of mapped attribute google.subject exceeds the 127 bytes limit. " +
			"Either modify your attribute mapping or the incoming assertion to produce a mapped attribute that is less than 127 bytes."},
		{name: "a condition that holds", proof: "oidc", condition: is("acme", "repository_owner"), want: "repo:acme/app"},
		{name: "a condition that does not", proof: "oidc", condition: is("other", "repository_owner"), refused: rejected},
		{name: "AWS's account", proof: "aws", subject: to("account"), want: testAccount},
		{name: "AWS's condition that holds", proof: "aws", condition: is(testUser, "arn"), want: testUser},
		{name: "AWS's condition that does not", proof: "aws", condition: is("", "userid"), refused: rejected},
		{name: "a certificate's unit", proof: "x509", subject: to("subject", "dn", "ou"), want: "unit-2"},
		{name: "its organization", proof: "x509", subject: to("subject", "dn", "o"), want: "acme"},
		{name: "its issuer", proof: "x509", subject: to("issuer", "dn", "cn"), want: "root"},
		{name: "its name", proof: "x509", subject: to("san", "dns"), want: "node-1.example"},
		{name: "its SPIFFE ID", proof: "x509", subject: to("san", "uri"), want: "spiffe://example/node-1"},
		{name: "its number", proof: "x509", subject: to("serialNumberHex"), want: leaf.SerialNumber.Text(16)},
		{name: "its hash", proof: "x509", subject: to("sha256Fingerprint"), want: base64.StdEncoding.EncodeToString(sum[:])},
		{name: "what it does not have", proof: "x509", subject: to("issuer", "dn", "ou"), refused: unmapped},
		{name: "its condition that holds", proof: "x509", condition: is("spiffe://example/node-1", "san", "uri"), want: "node-1"},
		{name: "its condition that does not", proof: "x509", condition: is("node-2", "subject", "dn", "cn"), refused: rejected},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := WorkloadProvider{ProjectNumber: "123456789012", Pool: "pool", Provider: "provider", Subject: test.subject, Condition: test.condition}
			answer := proofs[test.proof](p)
			c.checkOAuth(t, answer, "token", test.refused)
			c.checkFederated(t, answer, test.refused == "", p.Principal(test.want), googleLife)
		})
	}
}
