package webidentity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"

	"github.com/credential-broker/credential-broker/backends"
)

// address is a web address that answers with the token.
type address struct {
	URL
	judge judge
	world world
}

func newURL(c URL, j judge, w world) *address { return &address{URL: c, judge: j, world: w} }

func (u *address) String() string { return withoutQuery(u.URL.URL) }

// client is made for each question, as is the reading of the file with the CA's certificates.
func (u *address) client() (*http.Client, error) {
	t := &http.Transport{
		DialContext: (&net.Dialer{Timeout: urlTimeout / 2}).DialContext, TLSHandshakeTimeout: urlTimeout / 2,
		DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxToken, ForceAttemptHTTP2: true,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if strings.HasPrefix(strings.ToLower(u.URL.URL), "https:") {
		t.Proxy = http.ProxyFromEnvironment // an address with http is this machine's own business
	}
	if u.CAFile != "" {
		pem, err := os.ReadFile(u.CAFile)
		if err != nil {
			if path, ok := errors.AsType[*fs.PathError](err); ok {
				err = path.Err
			}
			return nil, u.judge.misconfigured(".caFile", u.String(), "%s cannot be read: %w", u.CAFile, err)
		}
		t.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
			return nil, u.judge.misconfigured(".caFile", u.String(), "%s has no certificate in PEM", u.CAFile)
		}
	}
	return &http.Client{Timeout: urlTimeout, CheckRedirect: stay, Transport: t}, nil
}

// Token asks with GET.
func (u *address) Token(ctx context.Context) (Token, error) {
	client, err := u.client()
	if err != nil {
		return Token{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.URL.URL, http.NoBody)
	if err != nil {
		return Token{}, u.judge.misconfigured(".url", u.String(), "want a URL such as https://issuer.example/token")
	}
	for name, value := range u.Headers {
		req.Header.Set(name, string(value))
	}
	a, err := ask(ctx, client, req, u.world, busy)
	if err != nil {
		return Token{}, problem(backends.Unavailable, u.String(), "%w", err)
	}
	switch {
	case a.status == http.StatusOK:
	case a.status >= 300 && a.status < 400:
		return Token{}, u.judge.misconfigured(".url", u.String(), "it redirects (HTTP status %d), which is not followed: set the address where the token is", a.status)
	case a.status == http.StatusNotFound || a.status == http.StatusMethodNotAllowed || a.status == http.StatusGone:
		return Token{}, u.judge.misconfigured(".url", u.String(), "there is nothing to GET (HTTP status %d)", a.status)
	case busy(a.status):
		return Token{}, problem(backends.Unavailable, u.String(), "it is busy or broken (HTTP status %d)", a.status)
	default:
		return Token{}, problem(backends.Refused, u.String(), "it gives no token (HTTP status %d): see what it wants to be sent, such as a header", a.status)
	}
	raw := string(a.body)
	if u.TokenField != "" {
		token, found := tokenIn(a.body, u.TokenField)
		if !found {
			return Token{}, u.judge.misconfigured(".tokenField", u.String(), "what it answers is no JSON with a string in field %q", u.TokenField)
		}
		raw = token
	}
	return u.judge.token(raw, u.String())
}
