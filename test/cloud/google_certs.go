package cloud

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/http"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

// serveGoogleCerts is www.googleapis.com: the keys that Google signs with, and those of service accounts, for whoever wants to verify a token (https://developers.google.com/identity/openid-connect/openid-connect#discovery,
// https://cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts/signJwt). As JSON Web Keys, and as certificates, which nobody verifies.
func (c *Cloud) serveGoogleCerts(w http.ResponseWriter, r *http.Request) {
	if c.faulty(w, r, "google-certs", entryOf(r).name(), func(f Fault) { writeGoogle(w, r, googleFault(f)) }) {
		return
	}
	keys, form, ok := c.googleKeys(r.URL.Path)
	switch {
	case !ok || r.Method != http.MethodGet:
		writeGoogle(w, r, googleNotFound())
	case form == "jwk":
		writeJSON(w, http.StatusOK, keys)
	default:
		certificates := map[string]string{}
		for _, key := range keys.Keys {
			certificates[key.KeyID] = c.certificateOf(key)
		}
		writeJSON(w, http.StatusOK, certificates)
	}
}

// googleKeys are those that are published under a path, and the form: "x509" or "jwk".
func (c *Cloud) googleKeys(path string) (keys jose.JSONWebKeySet, form string, ok bool) {
	switch path {
	case "/oauth2/v1/certs":
		return c.AddIssuer(GoogleIssuer).published(), "x509", true
	case "/oauth2/v3/certs":
		return c.AddIssuer(GoogleIssuer).published(), "jwk", true
	}
	rest, ok := strings.CutPrefix(path, "/service_accounts/v1/metadata/")
	if !ok {
		rest, ok = strings.CutPrefix(path, "/robot/v1/metadata/") // its older name
	}
	form, name, _ := strings.Cut(rest, "/")
	account, known := c.serviceAccount(name)
	if !ok || !known || form != "x509" && form != "jwk" {
		return keys, "", false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.google.accounts[account.Email].keys {
		keys.Keys = append(keys.Keys, jose.JSONWebKey{Key: &c.serviceAccountKey().PublicKey, KeyID: id, Algorithm: string(jose.RS256), Use: "sig"})
	}
	return keys, form, true
}

// certificateOf is a certificate with a key in it, in PEM.
func (c *Cloud) certificateOf(key jose.JSONWebKey) string {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "federated-signon.system.gserviceaccount.com"}, NotBefore: c.ca.cert.NotBefore, NotAfter: c.ca.cert.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, c.ca.cert, key.Key, c.ca.key)
	if err != nil {
		panic(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
