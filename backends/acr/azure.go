package acr

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"runtime"
	"sync"
	"time"

	azlog "github.com/Azure/azure-sdk-for-go/sdk/azcore/log"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/files"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
)

const isWindows = runtime.GOOS == "windows"

// azure is what all calls to Azure have in common.
type azure struct {
	cfg       *Config
	transport *http.Transport
	// link is the way to what is on this machine or its own link: metadata services, agents.
	link *http.Transport
	throttle

	now   func() time.Time
	sleep func(ctx context.Context, d time.Duration) bool // false: ctx ended before
}

func newAzure(c *Config) *azure {
	azlog.SetListener(nil) // which AZURE_SDK_GO_LOGGING would set, to write requests and answers to standard error
	transport := remote.Transport(string(c.Proxy))
	// A login asks each host twice, one after the other. What HTTP/2 does first, on both sides, is a thirtieth of a pull's whole time (test/peers/cost, with a managed identity), and would spare nothing.
	transport.ForceAttemptHTTP2 = false
	return &azure{cfg: c, transport: transport, link: remote.LinkTransport(), throttle: throttle{until: map[string]time.Time{}}, now: time.Now, sleep: sleep}
}

const (
	// linkTimeout bounds a question to a metadata service, which may have to ask Entra first.
	linkTimeout = 5 * time.Second
	// managedTimeout bounds all questions for one token of a managed identity, so that off Azure there is time left to say so.
	managedTimeout = 8 * time.Second
)

// onLink says whether a host is on this machine or its own link, as what gives managed identities' tokens is.
func onLink(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && (ip.Unmap().IsLinkLocalUnicast() || ip.Unmap().IsLoopback())
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// wait pauses; false: there would be too little time afterwards.
func (a *azure) wait(ctx context.Context, d time.Duration) bool {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < d+min(d, leastTime) {
		return false
	}
	return a.sleep(ctx, d)
}

// leastTime is what an answer takes, if all is well.
const leastTime = time.Second

// throttle knows the hosts that have said when they want to be asked again. All requests of a process hold to it, whoever they are for.
type throttle struct {
	mu    sync.Mutex
	until map[string]time.Time
}

// hold has nobody ask the host for so long.
func (t *throttle) hold(host string, until time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.until[host].Before(until) {
		t.until[host] = until
	}
}

// held is for how long the host is not to be asked; 0 if it may be.
func (t *throttle) held(host string, now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	until, ok := t.until[host]
	if ok && !now.Before(until) {
		delete(t.until, host)
		return 0
	}
	return max(0, until.Sub(now))
}

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

// warnIfReadable warns of a file with a secret that everybody can read.
func warnIfReadable(ctx context.Context, path string, mode fs.FileMode) {
	if mode.Perm()&0o004 != 0 && !isWindows {
		slog.WarnContext(ctx, "the file has a secret, and can be read by every user of this machine: chmod 0600", "file", path)
	}
}
