package gar

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/gar/internal/ask"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
)

// exchange is a question to Google, or to a metadata server, and what came of it.
type exchange struct {
	host   string // and port, if it is named
	link   bool   // it is on the machine's own link
	status int    // of HTTP; 0 if there was no answer
	code   string // of the error, where it is one that has the form of a code
	date   string // by the clock of whoever answered
	// absent: nobody took the connection. notGoogle: somebody answers in the place of Google's metadata server.
	absent, notGoogle bool
	err               error // why there was no answer
}

// calls is the way to Google for one token. It remembers the last exchange: Google's libraries quote in their errors what was answered, which may have a token in it, so that messages are made of this.
type calls struct {
	*google
	metadata bool // Google's metadata server is asked, and answers have to be its own
	// mutual is the way by which a client certificate is shown; nil: the usual one.
	mutual *http.Transport

	mu   sync.Mutex // what a library goes on asking in the background is nobody's last exchange
	last exchange
	over bool
}

func (g *google) calls() *calls { return &calls{google: g} }

// client follows no redirect: Google's APIs have none, and what is sent, a token in it, would be sent once more to wherever one points.
func (c *calls) client() *http.Client {
	return &http.Client{Transport: c, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// close ends what has been opened for these calls alone.
func (c *calls) close() {
	if c.mutual != nil {
		c.mutual.CloseIdleConnections()
	}
}

// tries is how often one of Google's APIs is asked that fails in a way that may be over the next moment, and firstPause how long the first pause between is. The libraries do that for metadata
// servers alone.
const (
	tries      = 3
	firstPause = 100 * time.Millisecond
)

// RoundTrip implements http.RoundTripper. Whatever is asked here may be asked twice.
func (c *calls) RoundTrip(r *http.Request) (*http.Response, error) {
	pause := firstPause
	for try := 1; ; try++ {
		last := exchange{host: r.URL.Host, link: c.metadata || isMetadata(r.URL.Hostname())}
		resp, err := c.exchange(r, &last)
		if !c.remember(last) || !last.passing() || last.link || try == tries || r.Body != nil && r.GetBody == nil {
			return resp, err
		}
		if spread := pause/2 + rand.N(pause); !c.wait(r.Context(), spread) { //nolint:gosec // G404: no secret
			return resp, err
		}
		pause *= 2
		r = r.Clone(r.Context())
		if r.GetBody != nil {
			if r.Body, err = r.GetBody(); err != nil {
				return nil, err
			}
		}
	}
}

// remember makes it the last exchange; false: nobody wants to know any more.
func (c *calls) remember(last exchange) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return false
	}
	c.last = last
	return true
}

// passing says that the next moment may be better.
func (e exchange) passing() bool {
	_, cut := errors.AsType[*remote.CutError](e.err)
	return e.status >= 500 || cut
}

func (c *calls) exchange(r *http.Request, last *exchange) (*http.Response, error) {
	way := c.transport
	switch {
	case c.metadata:
		way = c.link
	case c.mutual != nil:
		way = c.mutual
	}
	if last.link {
		ctx, cancel := context.WithTimeout(r.Context(), linkTimeout)
		defer cancel()
		r = r.WithContext(ctx)
	}
	resp, err := way.RoundTrip(r)
	if err != nil {
		last.err = remote.Unanswered(r.Context(), err)
		_, last.absent = errors.AsType[*remote.AbsentError](last.err)
		return nil, last.err // and not the transport's own: libraries try those again that say they are temporary
	}
	last.status, last.date = resp.StatusCode, resp.Header.Get("Date")
	body, err := io.ReadAll(io.LimitReader(resp.Body, remote.MaxAnswer+1))
	_ = resp.Body.Close()
	switch {
	case err != nil:
		last.err = remote.Unanswered(r.Context(), err)
	case len(body) > remote.MaxAnswer:
		last.err = errors.New("the answer is too long")
	case c.metadata && resp.Header.Get("Metadata-Flavor") != "Google":
		last.notGoogle = true
		last.err = fmt.Errorf("what answers is not Google's metadata server (HTTP status %d)", resp.StatusCode)
	}
	if last.err != nil {
		return nil, last.err
	}
	if resp.StatusCode != http.StatusOK {
		last.code = ask.CodeOf(body)
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, nil
}

// callError is a call that failed. Its text has nothing of what was answered but status and code.
type callError struct {
	status int
	text   string
}

func (e *callError) Error() string { return e.text }

var errUndocumented = errors.New("the answer is none that Google documents")

// maxSkew is how far a clock may be off before Google refuses what it signs.
const maxSkew = 4 * time.Minute

// explain makes the error of calls that failed: what was being done, what came of it, and what to do, which advice may know better.
func (c *calls) explain(ctx context.Context, err error, doing string, advice func(exchange) string) error {
	last := c.end()
	text := doing
	if last.host != "" {
		text += ": " + last.host
	}
	switch {
	case last.err != nil:
		text += ": " + last.err.Error()
	case last.status == 0 && ctx.Err() != nil, errors.Is(err, context.DeadlineExceeded):
		text += ": no answer in time"
	case last.status == http.StatusOK, last.status == 0:
		text += ": " + errUndocumented.Error()
	case last.code != "":
		text += fmt.Sprintf(": %s (HTTP status %d)", last.code, last.status)
	default:
		text += fmt.Sprintf(": refused without a code that is known (HTTP status %d)", last.status)
	}
	remedy := ""
	if advice != nil {
		remedy = advice(last)
	}
	if remedy == "" {
		remedy = generalAdvice(last)
	}
	if skew := last.skew(c.now()); skew.Abs() > maxSkew && last.status >= 400 {
		remedy = fmt.Sprintf("this machine's clock is %s off Google's: set it (timedatectl, chronyc)", skew.Abs().Round(time.Minute))
	}
	if remedy != "" {
		text += ": " + remedy
	}
	kind := backends.Unavailable
	if last.final() || last.untrusted() || last.distrusted() {
		kind = backends.Refused
	}
	return kind(&callError{last.status, text})
}

// skew is how far this machine's clock is ahead of that of whoever answered; 0 if that is not known.
func (e exchange) skew(now time.Time) time.Duration {
	date, err := http.ParseTime(e.date)
	if err != nil {
		return 0
	}
	return now.Sub(date)
}

// final says that asking again soon is pointless: a refusal, or somebody else in the place of Google's metadata server, unless it is one that is busy or broken itself.
func (e exchange) final() bool {
	busy := e.status == http.StatusTooManyRequests || e.status == http.StatusRequestTimeout || e.status >= 500
	return !busy && (e.status >= 400 || e.notGoogle)
}

// end is the last exchange, after which none is remembered.
func (c *calls) end() exchange {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	return c.last
}

func (e exchange) untrusted() bool {
	_, ok := errors.AsType[*tls.CertificateVerificationError](e.err)
	return ok
}

// distrusted: the other side does not take the certificate that it was shown, or wants one.
func (e exchange) distrusted() bool {
	_, ok := errors.AsType[*remote.DistrustError](e.err)
	return ok
}

func generalAdvice(last exchange) string {
	switch {
	case last.status == http.StatusTooManyRequests:
		return "throttled: a longer cacheDuration, or an agent on the node, makes fewer calls"
	case last.untrusted():
		return "if a proxy answers in Google's place, the file of its CA belongs into SSL_CERT_FILE"
	case last.distrusted():
		return "who answers there does not take the client certificate: see that the credentials name the right one"
	case last.err != nil && !last.link:
		return "the way there has to be open: routes, Private Google Access, or HTTPS_PROXY"
	}
	return ""
}

// oauthAdvice is for Google's token endpoint.
func oauthAdvice(last exchange) string {
	switch last.code {
	case "invalid_grant":
		return "Google does not know the key or refresh token any more: it is deleted, disabled or revoked, or this machine's clock is wrong"
	case "invalid_client", "unauthorized_client":
		return "Google does not know the OAuth client, or it may not do that"
	case "invalid_scope":
		return "the credentials do not reach as far as Artifact Registry: make them with the scope " + scopeAll
	}
	return ""
}
