package webidentity

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	// connectTimeout is for metadata services: they are on the machine's own link, so one that has not taken the connection by then is not there.
	connectTimeout = time.Second
	// metadataTimeout bounds one question to a metadata service. They may have to ask the cloud for a token first.
	metadataTimeout = 4 * time.Second
	// urlTimeout bounds one question to a web address.
	urlTimeout = 10 * time.Second
	// attempts is how often a service that is busy or broken is asked.
	attempts = 3
)

// metadataClient asks metadata services: at once, and never by way of a proxy, which would see the token or answer with its own machine's. Idle connections are not
// kept, since a token is needed once in a long while.
func metadataClient() *http.Client {
	return &http.Client{Timeout: metadataTimeout, CheckRedirect: stay, Transport: &http.Transport{
		Proxy:                  nil,
		DialContext:            (&net.Dialer{Timeout: connectTimeout}).DialContext,
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxToken,
	}}
}

// stay has redirections given back as they are. Nothing here has a reason to redirect, and elsewhere is where a token or a header must not go.
func stay(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// answer is an HTTP answer that came whole.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// ask sends the request, up to three times where the service says that it is busy or broken; one that cannot be reached is asked once. An error is one for people
// and has nothing of what was answered.
func ask(ctx context.Context, client *http.Client, req *http.Request, w world, again func(status int) bool) (answer, error) {
	pause := 100 * time.Millisecond
	for attempt := 1; ; attempt++ {
		a, err := send(ctx, client, req)
		if err != nil || attempt == attempts || !again(a.status) {
			return a, err
		}
		if seconds, err := strconv.Atoi(a.header.Get("Retry-After")); err == nil && seconds >= 0 {
			pause = max(pause, time.Duration(min(seconds, 3))*time.Second)
		}
		// The answer that there is says more than the lack of one would.
		if deadline, ok := ctx.Deadline(); ok && w.now().Add(pause).After(deadline) || !w.wait(ctx, pause) {
			return a, nil
		}
		pause *= 3
	}
}

func send(ctx context.Context, client *http.Client, req *http.Request) (answer, error) {
	resp, err := client.Do(req.Clone(ctx))
	if err != nil {
		return answer{}, unreached(ctx, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxToken+1))
	if err != nil {
		return answer{}, unreached(ctx, err)
	}
	if len(body) > maxToken {
		return answer{}, fmt.Errorf("the answer has more than %d KiB, which no token has", maxToken>>10)
	}
	return answer{resp.StatusCode, resp.Header, body}, nil
}

// busy says that asking again soon may help.
func busy(status int) bool { return status == http.StatusTooManyRequests || status >= 500 }

// absentError says that nobody took the connection.
type absentError struct{ err error }

func (e *absentError) Error() string { return e.err.Error() }

// unreached says why there was no answer. Errors of net/http itself are not shown: they quote the URL, which may have a secret in it, and what came.
func unreached(ctx context.Context, err error) error {
	op, isOp := errors.AsType[*net.OpError](err)
	var netErr net.Error
	timeout := errors.As(err, &netErr) && netErr.Timeout()
	switch {
	case isOp && op.Op == "dial" && timeout && ctx.Err() == nil:
		return &absentError{errors.New("nobody answers there: no connection in time")}
	case ctx.Err() != nil:
		return ended(ctx)
	case timeout:
		return errors.New("no answer in time")
	case isOp && op.Op == "dial":
		return &absentError{op}
	case isOp:
		return op
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the connection was closed before there was an answer")
	case errors.Is(err, http.ErrSchemeMismatch):
		return errors.New("it speaks plain HTTP, not TLS")
	}
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return e
	}
	if e, ok := errors.AsType[tls.AlertError](err); ok {
		return e
	}
	if e, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return errors.New(e.Msg)
	}
	return errors.New("no valid HTTP answer came")
}

// MetadataURL is a path at the address of a metadata service. The error says what would be one.
func MetadataURL(base, path string, query url.Values) (*url.URL, error) {
	u, err := url.Parse(base)
	if err != nil || u.Hostname() == "" || u.User != nil || u.Scheme != "http" && u.Scheme != "https" || strings.Contains(u.Path, "//") {
		return nil, errors.New("want a URL such as http://169.254.169.254")
	}
	u = u.JoinPath(path)
	u.RawQuery, u.Fragment = query.Encode(), ""
	return u, nil
}

// metadataRequest asks for a path at the address of a metadata service.
func metadataRequest(ctx context.Context, base, path string, query url.Values) (*http.Request, error) {
	u, err := MetadataURL(base, path, query)
	if err != nil {
		return nil, err
	}
	return http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
}
