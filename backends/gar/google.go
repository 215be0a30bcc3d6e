package gar

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"runtime"
	"time"

	"github.com/credential-broker/credential-broker/backends/internal/remote"
	"github.com/credential-broker/credential-broker/backends/webidentity"
)

// google is what all calls to Google have in common.
type google struct {
	cfg       *Config
	web       webidentity.Source // nil: not used
	transport *http.Transport
	// link is the way to the metadata server, whatever its address.
	link *http.Transport

	now   func() time.Time
	sleep func(ctx context.Context, d time.Duration) bool // false: ctx ended before
}

const isWindows = runtime.GOOS == "windows"

// silent takes what Google's libraries would log: they write whole answers.
var silent = slog.New(slog.DiscardHandler)

// webSources: Google takes an AWS identity as it is, and AWS's SDK is nothing that a program should carry which is started for each pull.
var webSources = webidentity.Sources{InsteadOfAWS: "set aws: true, and no webIdentity"}

func newGoogle(c *Config) (*google, error) {
	g := &google{cfg: c, now: time.Now, sleep: remote.Sleep}
	if !c.WebIdentity.IsZero() {
		web, err := webidentity.New(c.WebIdentity, "https:"+providerAudience(c.WorkloadIdentityProvider), webSources)
		if err != nil {
			return nil, err
		}
		g.web = web
	}
	g.transport = remote.Transport(string(c.Proxy))
	choose, patient, hasty := g.transport.Proxy, g.transport.DialContext, &net.Dialer{Timeout: remote.LinkConnectTimeout}
	g.transport.Proxy = func(r *http.Request) (*url.URL, error) {
		if isMetadata(r.URL.Hostname()) {
			return nil, nil //nolint:nilnil // net/http's way to say: no proxy
		}
		return choose(r)
	}
	g.transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if host, _, err := net.SplitHostPort(address); err == nil && isMetadata(host) {
			return hasty.DialContext(ctx, network, address)
		}
		return patient(ctx, network, address)
	}
	g.link = remote.LinkTransport()
	return g, nil
}

// linkTimeout bounds a question to one of them, which may have to ask its cloud first. On EC2, one from behind too many hops is never answered.
const linkTimeout = 4 * time.Second

// isMetadata says whether a host is on the machine's own link, as metadata servers of clouds are. Google's library asks AWS's there.
func isMetadata(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "metadata.google.internal" || err == nil && (ip.Unmap().IsLinkLocalUnicast() || ip == awsMetadata6)
}

// awsMetadata6 is where EC2's metadata service is by IPv6.
var awsMetadata6 = netip.AddrFrom16([16]byte{0: 0xfd, 2: 0x0e, 3: 0xc2, 14: 0x02, 15: 0x54})

// wait pauses; false: there would be too little time afterwards.
func (g *google) wait(ctx context.Context, d time.Duration) bool {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < 2*d {
		return false
	}
	return g.sleep(ctx, d)
}
