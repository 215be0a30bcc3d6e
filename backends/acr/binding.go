package acr

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/files"
)

// binding is an AKS cluster's endpoint for its service accounts' tokens, in the place of Entra's (https://learn.microsoft.com/azure/aks/identity-bindings-concepts). It is asked as the SDK does
// (azidentity's WorkloadIdentityCredential with EnableAzureProxy), which does so for tokens in files only, and follows no limits of ours.
type binding struct {
	proxy     *url.URL
	transport *http.Transport
}

// bind has the calls made to the cluster's endpoint.
func (c *calls) bind(b *IdentityBindings) error {
	if b == nil {
		return nil
	}
	first := func(setting, variable string) string {
		if setting != "" {
			return setting
		}
		return os.Getenv(variable)
	}
	address := first(b.TokenProxy, "AZURE_KUBERNETES_TOKEN_PROXY")
	if !validTokenProxy(address) {
		return backends.InvalidConfig("identityBindings.tokenProxy", "want the https URL of the cluster's endpoint, here or as AZURE_KUBERNETES_TOKEN_PROXY (named in inheritEnv)")
	}
	proxy, _ := url.Parse(address)
	if proxy.Path == "" {
		proxy.Path = "/" // which JoinPath needs
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: first(b.SNIName, "AZURE_KUBERNETES_SNI_NAME")}
	data := []byte(os.Getenv("AZURE_KUBERNETES_CA_DATA"))
	if path := first(b.CAFile, "AZURE_KUBERNETES_CA_FILE"); path != "" {
		var err error
		if data, _, err = files.Read(path); err != nil {
			return fileProblem("identityBindings.caFile", path, "%w", err)
		}
		if config.RootCAs = x509.NewCertPool(); !config.RootCAs.AppendCertsFromPEM(data) {
			return fileProblem("identityBindings.caFile", path, "it has no certificate in PEM")
		}
	} else if len(data) > 0 {
		if config.RootCAs = x509.NewCertPool(); !config.RootCAs.AppendCertsFromPEM(data) {
			return backends.InvalidConfig("identityBindings.caFile", "AZURE_KUBERNETES_CA_DATA has no certificate in PEM")
		}
	}
	c.binding = &binding{proxy, &http.Transport{
		DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext, TLSClientConfig: config, TLSHandshakeTimeout: 10 * time.Second, ForceAttemptHTTP2: true, MaxResponseHeaderBytes: 64 << 10,
	}}
	return nil
}
