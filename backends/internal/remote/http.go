package remote

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"
)

// MaxAnswer bounds an answer, in bytes.
const MaxAnswer = 1 << 20

// Transport is a way to a service. Proxy, a URL, takes the place of HTTPS_PROXY if it is not empty; NO_PROXY holds for either.
func Transport(proxy string) *http.Transport {
	proxies := httpproxy.FromEnvironment()
	if proxy != "" {
		proxies = &httpproxy.Config{HTTPProxy: proxy, HTTPSProxy: proxy, NoProxy: proxies.NoProxy}
	}
	choose := proxies.ProxyFunc()
	return &http.Transport{
		Proxy:                  func(r *http.Request) (*url.URL, error) { return choose(r.URL) },
		DialContext:            (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		OnProxyConnectResponse: Connected,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    10 * time.Second,
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    4,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
	}
}

// LinkConnectTimeout is for services on the machine's own link, such as metadata services: one that has not taken the connection by then is not there.
const LinkConnectTimeout = time.Second

// LinkTransport is a way to such services. It knows no proxy: none has business there, which would see the tokens, or answer with its own machine's.
func LinkTransport() *http.Transport {
	return &http.Transport{
		DialContext:            (&net.Dialer{Timeout: LinkConnectTimeout}).DialContext,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    1,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
	}
}

// AbsentError says that nobody took the connection.
type AbsentError struct{ text string }

func (e *AbsentError) Error() string { return e.text }

// DistrustError is the other side's word, in TLS, on the certificate that it was shown.
type DistrustError struct{ text string }

func (e *DistrustError) Error() string { return e.text }

// CutError says that the connection broke before there was an answer that can be read. The next one may not.
type CutError struct{ text string }

func (e *CutError) Error() string { return e.text }

// Unanswered says why there was no answer. Errors of net/http itself are not shown: they quote the URL, and what came.
func Unanswered(ctx context.Context, err error) error {
	op, isOp := errors.AsType[*net.OpError](err)
	var netErr net.Error
	timeout := errors.As(err, &netErr) && netErr.Timeout()
	proxy, isProxy := errors.AsType[*ProxyError](err)
	certificate, isCertificate := errors.AsType[*tls.CertificateVerificationError](err)
	record, isRecord := errors.AsType[tls.RecordHeaderError](err)
	alert, isAlert := errors.AsType[tls.AlertError](err)
	switch {
	case isProxy:
		return proxy
	case isOp && op.Op == "dial" && timeout && ctx.Err() == nil:
		return &AbsentError{"nobody answers there: no connection in time"}
	case errors.Is(ctx.Err(), context.Canceled):
		return errors.New("given up")
	case ctx.Err() != nil, timeout:
		return errors.New("no answer in time")
	case isOp && op.Op == "dial":
		return &AbsentError{op.Err.Error()}
	case isOp && op.Op == "remote error" && strings.Contains(op.Err.Error(), "certificate"):
		return &DistrustError{op.Op + ": " + op.Err.Error()}
	case isOp:
		return &CutError{op.Op + ": " + op.Err.Error()}
	case isCertificate:
		return certificate
	case isRecord:
		return errors.New(record.Msg)
	case isAlert:
		return alert
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &CutError{"the connection was closed before there was an answer"}
	}
	return &CutError{"no valid HTTP answer came"}
}
