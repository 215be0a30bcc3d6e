package webidentity

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"net/url"

	"github.com/credential-broker/credential-broker/backends"
)

// metadataAddress is the same in every cloud. The address is asked and not a name: where there is no such service there is no such name either, and a resolver may take
// long to say so.
const metadataAddress = "http://169.254.169.254"

// google is the metadata server of Compute Engine or GKE.
type google struct {
	endpoint, account string
	format            GoogleFormat
	client            *http.Client
	judge             judge
	world             world
}

func newGoogle(c GoogleMetadata, j judge, w world) *google {
	g := &google{endpoint: c.Endpoint, account: c.ServiceAccount, format: cmp.Or(c.Format, GoogleStandard), client: metadataClient(), judge: j, world: w}
	if g.account == "" {
		g.account = "default"
	}
	if g.endpoint == "" {
		g.endpoint = metadataAddress
		if host := w.env("GCE_METADATA_HOST"); host != "" { // a host, as Google's own libraries take it
			g.endpoint = "http://" + host
		}
	}
	return g
}

func (g *google) String() string { return "Google's metadata server at " + withoutQuery(g.endpoint) }

// Token asks for the instance's identity token. Its standard form has no details of the instance: a cloud that takes Google's tokens goes by aud, azp and sub.
// See https://cloud.google.com/compute/docs/instances/verifying-instance-identity.
func (g *google) Token(ctx context.Context) (Token, error) {
	req, err := metadataRequest(ctx, g.endpoint, "/computeMetadata/v1/instance/service-accounts/"+g.account+"/identity", url.Values{"audience": {g.judge.audience}, "format": {string(g.format)}})
	if err != nil {
		return Token{}, g.judge.misconfigured("", g.String(), "its address is none: %w; set endpoint, or mend GCE_METADATA_HOST", err)
	}
	req.Header.Set("Metadata-Flavor", "Google")
	a, err := ask(ctx, g.client, req, g.world, busy)
	if err != nil {
		if _, ok := errors.AsType[*absentError](err); ok {
			return Token{}, problem(backends.Unavailable, g.String(), "%w: is this machine on Google Cloud, and is the metadata server allowed here?%s", err, g.judge.otherwise())
		}
		return Token{}, problem(backends.Unavailable, g.String(), "%w", err)
	}
	if a.header.Get("Metadata-Flavor") != "Google" {
		return Token{}, g.judge.misconfigured("", g.String(), "who answers there (HTTP status %d) is not it: %s on a machine that is not on Google Cloud", a.status, g.judge.elsewhere)
	}
	switch {
	case a.status == http.StatusOK:
		return g.judge.token(string(a.body), g.String())
	case a.status == http.StatusNotFound && g.account == "default":
		return Token{}, problem(backends.Refused, g.String(), "the machine has no service account (HTTP status 404): attach one to the instance; on GKE, see to it that the node pool has one")
	case a.status == http.StatusNotFound:
		return Token{}, g.judge.misconfigured(".serviceAccount", g.String(), "the machine has no service account %q (HTTP status 404): attach it, or name another", g.account)
	case a.status == http.StatusBadRequest:
		return Token{}, g.judge.misconfigured("", g.String(), "it does not take audience %q (HTTP status 400): set %s", g.judge.audience, g.judge.setting)
	case busy(a.status):
		return Token{}, problem(backends.Unavailable, g.String(), "it is busy or broken (HTTP status %d)", a.status)
	default:
		return Token{}, problem(backends.Refused, g.String(), "it refuses a token of service account %q for audience %q (HTTP status %d): see whether the instance may use that account", g.account, g.judge.audience, a.status)
	}
}

// withoutQuery is an address as it can be shown.
func withoutQuery(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return "an address that is none"
	}
	u.User, u.RawQuery, u.ForceQuery, u.Fragment = nil, "", false, ""
	return u.String()
}
