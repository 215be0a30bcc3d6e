package cloud

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"time"
)

// wantsCertificate says whether clients are asked for a certificate under this name. Which are good is not the connection's business.
func wantsCertificate(host string) bool { return strings.HasSuffix(host, ".mtls.googleapis.com") }

// clientCertificate is what the client has shown, and shown to have the key of; nil: nothing.
func clientCertificate(r *http.Request) *x509.Certificate {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil
	}
	return r.TLS.PeerCertificates[0]
}

// Google's limits: how many certificates there may be from a client's to a trust anchor, both counted, and for how long a client's may be issued.
const (
	maxDepth    = 5
	maxLeafLife = 390 * 24 * time.Hour
)

// federateX509 verifies the certificate by which the client has connected (https://cloud.google.com/iam/docs/workload-identity-federation-with-x509-certificates). The token is a list of
// certificates, that one first; the rest are what may be needed on the way to a trust anchor.
func (c *Cloud) federateX509(p WorkloadProvider, token string, peer *x509.Certificate) (federated, *refusal) {
	var list [][]byte // which JSON has in base64
	if err := json.Unmarshal([]byte(token), &list); err != nil || len(list) == 0 {
		return federated{}, &refusal{http.StatusBadRequest, "invalid_request", "The subject token is not a list of certificates."}
	}
	var chain []*x509.Certificate
	for _, der := range list {
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			return federated{}, &refusal{http.StatusBadRequest, "invalid_request", "The subject token has something in it that is not a certificate."}
		}
		chain = append(chain, certificate)
	}
	leaf, now := chain[0], c.Now()
	switch {
	case peer == nil:
		return federated{}, notGranted("There is no client certificate: this needs mutual TLS.")
	case !bytes.Equal(peer.Raw, leaf.Raw):
		return federated{}, notGranted("The client certificate is not the leaf certificate of the subject token.")
	case leaf.NotAfter.Sub(leaf.NotBefore) > maxLeafLife:
		return federated{}, notGranted("The leaf certificate is issued for longer than 390 days.")
	case leaf.IsCA || leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return federated{}, notGranted("The leaf certificate is not one of a client: digitalSignature is not among its uses, or it is a CA's.")
	}
	anchors, others := x509.NewCertPool(), x509.NewCertPool()
	for _, certificate := range p.TrustAnchors {
		anchors.AddCert(certificate)
	}
	for _, certificate := range append(chain[1:], p.Intermediates...) {
		others.AddCert(certificate)
	}
	ways, err := leaf.Verify(x509.VerifyOptions{Roots: anchors, Intermediates: others, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	invalid, _ := errors.AsType[x509.CertificateInvalidError](err)
	switch {
	case err != nil && invalid.Reason == x509.Expired:
		return federated{}, notGranted("A certificate has expired, or is not valid yet.")
	case err != nil || !slices.ContainsFunc(ways, func(way []*x509.Certificate) bool { return len(way) <= maxDepth }):
		return federated{}, notGranted("The certificates do not lead to a trust anchor.")
	}
	return p.admit(attributes(leaf), []string{"subject", "dn", "cn"}, leaf.NotAfter.Sub(now))
}

// attributes are what mappings and conditions can see of a certificate.
func attributes(c *x509.Certificate) Assertion {
	named := func(n pkix.Name) map[string]any {
		dn := map[string]any{"cn": n.CommonName}
		if len(n.Organization) > 0 {
			dn["o"] = n.Organization[0]
		}
		if units := n.OrganizationalUnit; len(units) > 0 {
			dn["ou"] = units[len(units)-1]
		}
		return map[string]any{"dn": dn}
	}
	names := map[string]any{}
	if len(c.DNSNames) > 0 {
		names["dns"] = c.DNSNames[0]
	}
	if len(c.URIs) > 0 {
		names["uri"] = c.URIs[0].String()
	}
	sum := sha256.Sum256(c.Raw)
	return Assertion{
		"serialNumberHex": c.SerialNumber.Text(16), "subject": named(c.Subject), "issuer": named(c.Issuer), "san": names,
		"sha256Fingerprint": base64.StdEncoding.EncodeToString(sum[:]),
	}
}

// ClientCA is a CA of somebody's own, which issues clients' certificates.
type ClientCA struct {
	c           *Cloud
	key         *ecdsa.PrivateKey
	Certificate *x509.Certificate
}

// ClientCA makes one. It, and what it issues, is valid by the cloud's clock: for a year, and a day.
func (c *Cloud) ClientCA(name string) *ClientCA { return (&ClientCA{c: c}).Intermediate(name) }

// Intermediate makes a CA that this one vouches for.
func (a *ClientCA) Intermediate(name string) *ClientCA {
	made := &ClientCA{c: a.c}
	made.Certificate, made.key = a.sign(name, func(t *x509.Certificate) {
		t.IsCA, t.KeyUsage, t.NotAfter = true, x509.KeyUsageCertSign, t.NotAfter.Add(364*24*time.Hour)
	})
	return made
}

// Issue makes a client's certificate with its key, in PEM. Change makes it another one than usual; nil: no.
func (a *ClientCA) Issue(name string, change func(*x509.Certificate)) (certificate, key []byte) {
	made, private := a.sign(name, change)
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		panic(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: made.Raw}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// PEM is the CA's own certificate.
func (a *ClientCA) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Certificate.Raw})
}

// sign makes a certificate; a CA that has none yet, its own.
func (a *ClientCA) sign(name string, change func(*x509.Certificate)) (*x509.Certificate, *ecdsa.PrivateKey) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	number, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: number, Subject: pkix.Name{CommonName: name}, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: a.c.Now().Add(-time.Hour), NotAfter: a.c.Now().Add(24 * time.Hour),
	}
	if change != nil {
		change(template)
	}
	parent, with := a.Certificate, a.key
	if parent == nil {
		parent, with = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, with)
	if err != nil {
		panic(err)
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return made, key
}
