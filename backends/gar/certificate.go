package gar

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"cloud.google.com/go/auth/credentials/externalaccount"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/files"
)

// certificateSource is where an external_account file says that the client certificate is. Google's library would ask by an HTTP client of its own making, which knows no proxy of the settings; would read
// the certificate once for the token and again for the connection, between which it may be exchanged; and for keys in hardware would run a program.
type certificateSource struct {
	// UseDefault: the configuration is that of GOOGLE_API_CERTIFICATE_CONFIG, or gcloud's own.
	UseDefault     bool   `json:"use_default_certificate_config"`
	ConfigLocation string `json:"certificate_config_location"`
	TrustChainPath string `json:"trust_chain_path"`
}

// clientCertificate proves who the node is (https://cloud.google.com/iam/docs/workload-identity-federation-with-x509-certificates): it is shown to the Security Token Service when it is connected to, and
// sent to it as the token, with what leads from it to the pool's trust anchors.
type clientCertificate struct {
	pair      tls.Certificate
	path      string
	chain     []*x509.Certificate // of others
	chainPath string
}

// readCertificate reads what the file names: the configuration, the certificate and its key that are named there, and the trust chain. They are read anew for each token, since they are
// exchanged before they expire. Until all of them are, they may be missing, cut short or of two issues: that is no misconfiguration.
func (f *file) readCertificate(ctx context.Context, from *certificateSource) (*clientCertificate, error) {
	problem := func(field, format string, args ...any) error {
		return backends.InvalidConfig("", "credentials of %s: %s: %w", f.path, field, fmt.Errorf(format, args...))
	}
	exchanged := func(field, path string, err error) error {
		return backends.Unavailable(fmt.Errorf("credentials of %s: %s: %s: %w", f.path, field, path, err))
	}
	config, path := "certificate_config_location", from.ConfigLocation
	switch {
	case from.UseDefault == (path != ""):
		return nil, problem("credential_source.certificate", "want either use_default_certificate_config: true or certificate_config_location")
	case from.UseDefault:
		if config, path = "GOOGLE_API_CERTIFICATE_CONFIG", os.Getenv("GOOGLE_API_CERTIFICATE_CONFIG"); path == "" {
			config, path = "use_default_certificate_config, as "+config+" is not set (or not named in inheritEnv)", gcloudFile("certificate_config.json")
		}
	}
	read := func(field, path string) (content []byte, err error) {
		if !filepath.IsAbs(path) {
			return nil, problem(field, "want the absolute path of a file, got %q", path)
		}
		content, mode, err := files.Read(path)
		if errors.Is(err, fs.ErrNotExist) && field != config {
			return nil, exchanged(field, path, err)
		}
		if err != nil {
			return nil, problem(field, "%s: %w", path, err)
		}
		if field == "cert_configs.workload.key_path" {
			files.WarnIfReadable(ctx, path, mode)
		}
		return content, nil
	}
	content, err := read(config, path)
	if err != nil {
		return nil, err
	}
	var named struct {
		Configs struct {
			Workload struct {
				CertPath string `json:"cert_path"`
				KeyPath  string `json:"key_path"`
			} `json:"workload"`
		} `json:"cert_configs"`
	}
	if err := json.Unmarshal(content, &named); err != nil {
		return nil, problem(config, "%s: it is not JSON, or not of the form that Google documents", path)
	}
	workload := named.Configs.Workload
	if workload.CertPath == "" || workload.KeyPath == "" {
		return nil, problem(config, "%s: want cert_configs.workload with cert_path and key_path: keys that are not in files would need a program of Google's, which is not run here", path)
	}
	certificate, err := read("cert_configs.workload.cert_path", workload.CertPath)
	if err != nil {
		return nil, err
	}
	key, err := read("cert_configs.workload.key_path", workload.KeyPath)
	if err != nil {
		return nil, err
	}
	own, err := certificates(certificate)
	if err != nil {
		return nil, exchanged("cert_configs.workload.cert_path", workload.CertPath, err)
	}
	c := &clientCertificate{path: workload.CertPath, chainPath: from.TrustChainPath}
	if c.pair, err = tls.X509KeyPair(certificate, key); err != nil { // whose own words are about the key
		why := "it is no private key in PEM, or one with a passphrase"
		if strings.Contains(err.Error(), "does not match") {
			why = "it is not the key of the certificate in " + workload.CertPath
		}
		return nil, exchanged("cert_configs.workload.key_path", workload.KeyPath, errors.New(why))
	}
	c.pair.Leaf = own[0]
	if why := invalid(c.pair.Leaf, f.now()); why != "" {
		return nil, exchanged("cert_configs.workload.cert_path", workload.CertPath, fmt.Errorf("the certificate %s: whoever issues it has to renew it; or this machine's clock is wrong", why))
	}
	if c.chainPath != "" {
		content, err := read("trust_chain_path", c.chainPath)
		if err != nil {
			return nil, err
		}
		if c.chain, err = certificates(content); err != nil {
			return nil, exchanged("trust_chain_path", c.chainPath, err)
		}
		c.chain = slices.DeleteFunc(c.chain, c.pair.Leaf.Equal) // which is sent in the first place whether it is there or not
	}
	return c, nil
}

// certificates reads the certificates in a PEM file, of which there has to be one.
func certificates(content []byte) (all []*x509.Certificate, err error) {
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" { // a key may be in the same file
			continue
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d in it is broken", len(all)+1)
		}
		all = append(all, certificate)
	}
	switch {
	case bytes.Count(content, []byte("-----BEGIN CERTIFICATE-----")) > len(all): // pem.Decode passes over what it cannot read
		return nil, fmt.Errorf("certificate %d in it is broken", len(all)+1)
	case len(all) == 0:
		return nil, errors.New("there is no certificate in PEM in it")
	}
	return all, nil
}

// invalid says why a certificate does not hold now; empty if it does.
func invalid(c *x509.Certificate, now time.Time) string {
	switch {
	case now.After(c.NotAfter):
		return "has expired at " + c.NotAfter.UTC().Format(time.RFC3339)
	case now.Before(c.NotBefore):
		return "is not valid before " + c.NotBefore.UTC().Format(time.RFC3339)
	}
	return ""
}

// SubjectToken implements externalaccount.SubjectTokenProvider.
func (c *clientCertificate) SubjectToken(context.Context, *externalaccount.RequestOptions) (string, error) {
	list := [][]byte{c.pair.Leaf.Raw} // in base64, as encoding/json has bytes
	for _, other := range c.chain {
		list = append(list, other.Raw)
	}
	token, err := json.Marshal(list)
	return string(token), err
}

// transport is the way to Google of others, by which the certificate is shown to whoever asks for one. It is for one token.
func (c *clientCertificate) transport(as *http.Transport) *http.Transport {
	way := as.Clone()
	way.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c.pair, nil }
	return way
}

// longestLife is for how long Google lets a client's certificate be issued.
const longestLife = 390 * 24 * time.Hour

// doubt is what may be wrong with a certificate that Google has not taken; empty: nothing that can be seen here. It is no error by itself: the pool may know other certificates.
func (c *clientCertificate) doubt(now time.Time) string {
	leaf := c.pair.Leaf
	if leaf.NotAfter.Sub(leaf.NotBefore) > longestLife {
		return fmt.Sprintf("the certificate in %s is issued for longer than 390 days, which is the most that Google takes", c.path)
	}
	issued := len(c.chain) == 0
	for _, other := range c.chain {
		if why := invalid(other, now); why != "" {
			return fmt.Sprintf("in trust_chain_path %s, the certificate of %q %s", c.chainPath, other.Subject, why)
		}
		issued = issued || leaf.CheckSignatureFrom(other) == nil
	}
	if !issued {
		return fmt.Sprintf("in trust_chain_path %s, none has issued the certificate in %s", c.chainPath, c.path)
	}
	return ""
}
