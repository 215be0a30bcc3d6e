// Package ask is what the backend and its program gar-check have in common: how Google's APIs are reached, how a call that failed is told without repeating what was answered, and what the
// one asks the other. It knows no API.
package ask

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"

	"github.com/credential-broker/credential-broker/backends/internal/remote"
)

// MaxAnswer bounds an answer, in bytes.
const MaxAnswer = 1 << 20

// Transport is a way to Google's APIs. Proxy, a URL, takes the place of HTTPS_PROXY if it is not empty; NO_PROXY holds for either.
func Transport(proxy string) *http.Transport {
	proxies := httpproxy.FromEnvironment()
	if proxy != "" {
		proxies = &httpproxy.Config{HTTPProxy: proxy, HTTPSProxy: proxy, NoProxy: proxies.NoProxy}
	}
	choose := proxies.ProxyFunc()
	return &http.Transport{
		Proxy:                  func(r *http.Request) (*url.URL, error) { return choose(r.URL) },
		DialContext:            (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		OnProxyConnectResponse: remote.Connected,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    10 * time.Second,
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    4,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
	}
}

// CodeOf is the error code in an answer, in the form of RFC 6749 or in that of Google's APIs (https://google.aip.dev/193); empty if there is none, or if it could be something else.
func CodeOf(body []byte) string {
	var answer struct {
		Error json.RawMessage `json:"error"`
	}
	var code string
	var status struct {
		Status  string `json:"status"`
		Details []struct {
			Reason string `json:"reason"`
		} `json:"details"`
	}
	if json.Unmarshal(body, &answer) != nil || json.Unmarshal(answer.Error, &code) != nil && json.Unmarshal(answer.Error, &status) != nil {
		return ""
	}
	if code == "" {
		code = status.Status
		for _, detail := range status.Details {
			if detail.Reason != "" {
				code += " " + detail.Reason
				break
			}
		}
	}
	if len(code) > 100 || strings.ContainsFunc(code, func(r rune) bool { return r != '_' && r != ' ' && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') }) {
		return ""
	}
	return code
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
	proxy, isProxy := errors.AsType[*remote.ProxyError](err)
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
