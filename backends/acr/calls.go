package acr

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"github.com/credential-broker/credential-broker/backends/internal/remote"
	"github.com/credential-broker/credential-broker/backends/webidentity"
)

// exchange is a question to Azure, or to a metadata service, and what came of it.
type exchange struct {
	host   string // and port, if it is named
	link   bool   // it is on the machine itself, or its own link
	status int    // of HTTP; 0 if there was no answer
	code   string // of the error, where it is one that has the form of a code
	hint   hint   // what is known of its words
	date   string // by the clock of whoever answered
	wait   time.Duration
	absent bool  // nobody took the connection
	err    error // why there was no answer
}

// hint is what an error's words mean, where its code says too little.
type hint int

const (
	hintNone     hint = iota
	hintSeveral       // there are several managed identities
	hintMissing       // the managed identity is not there
	hintResource      // nobody knows the application that the token is for
)

// calls is the way to Azure for one token. It is the SDK's transport, and remembers the last exchange: the SDK quotes in its errors what was answered, which may have a token in it, so that messages are made
// of this.
type calls struct {
	*azure
	// link: a managed identity's token is asked for.
	link bool
	// binding is the endpoint that is asked in the place of Entra's; nil: none.
	binding *binding

	mu   sync.Mutex
	last exchange
	own  error // why there was nothing to send
	// shown is what the identity token that was sent says of itself.
	shown webidentity.Claims
}

func (a *azure) calls() *calls { return &calls{azure: a} }

// options are the SDK's. It neither tries again nor follows redirects of itself.
func (c *calls) options(in *cloudSettings) azcore.ClientOptions {
	return azcore.ClientOptions{
		Cloud: cloud.Configuration{ActiveDirectoryAuthorityHost: in.authority}, Transport: c,
		Retry: policy.RetryOptions{MaxRetries: -1}, Telemetry: policy.TelemetryOptions{ApplicationID: "credential-broker"},
	}
}

// assertion is get for the SDK, which forgets why there is no assertion.
func (c *calls) assertion(get func(context.Context) (string, error)) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		token, err := get(ctx)
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.own = err; err == nil {
			c.shown, _ = webidentity.ParseClaims(token) // who takes it judges it
		}
		return token, err
	}
}

// close ends what has been opened for these calls alone.
func (c *calls) close() {
	if c.binding != nil {
		c.binding.transport.CloseIdleConnections()
	}
}

// tries is how often Azure is asked that fails in a way that may be over the next moment, and firstPause how long the first pause between is. A metadata service that is being updated is away for longer:
// https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token#retry-guidance.
const (
	tries          = 3
	firstPause     = 100 * time.Millisecond
	linkTries      = 5
	firstLinkPause = 250 * time.Millisecond
	// throttled is how long a host is left alone that is busy and does not say for how long, and mostThrottled how long at most.
	throttled     = time.Second
	mostThrottled = 10 * time.Minute
)

// Do implements policy.Transporter. Whatever is asked here may be asked twice.
func (c *calls) Do(r *http.Request) (*http.Response, error) {
	most, pause := tries, firstPause
	if c.link {
		most, pause = linkTries, firstLinkPause
	}
	for try := 1; ; try++ {
		last := exchange{host: r.URL.Host, link: onLink(r.URL.Hostname())}
		resp, err := c.obedient(r, &last)
		c.remember(last)
		if !last.passing() || try == most || r.Body != nil && r.Body != http.NoBody && r.GetBody == nil {
			return resp, err
		}
		if last.status != http.StatusTooManyRequests { // for which obedient waits
			if spread := pause/2 + rand.N(pause); !c.wait(r.Context(), spread) { //nolint:gosec // G404: no secret
				return resp, err
			}
			pause *= 2
		}
		if c.held(last.host, c.now()) > 0 && !c.patient(r.Context(), last.host) {
			return resp, err
		}
		if r, err = again(r); err != nil {
			return nil, err
		}
	}
}

// again is the same request once more.
func again(r *http.Request) (*http.Request, error) {
	r = r.Clone(r.Context())
	if r.GetBody != nil {
		var err error
		if r.Body, err = r.GetBody(); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// obedient asks, but not before the host wants to be asked.
func (c *calls) obedient(r *http.Request, last *exchange) (*http.Response, error) {
	for c.held(last.host, c.now()) > 0 {
		if !c.patient(r.Context(), last.host) {
			last.status, last.wait = http.StatusTooManyRequests, c.held(last.host, c.now())
			return nil, errHeld
		}
	}
	resp, err := c.exchange(r, last)
	if last.status == http.StatusTooManyRequests || last.status == http.StatusServiceUnavailable && last.wait > 0 {
		if last.wait == 0 {
			last.wait = throttled
		}
		last.wait = min(last.wait, mostThrottled)
		c.hold(last.host, c.now().Add(last.wait))
	}
	return resp, err
}

// errHeld: the host is not asked yet.
var errHeld = errors.New("the service wants to be left alone for a while")

// patient waits until the host may be asked; false: there is not the time.
func (c *calls) patient(ctx context.Context, host string) bool {
	return c.wait(ctx, c.held(host, c.now()))
}

func (c *calls) remember(last exchange) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = last
}

// passing says that the next moment may be better.
func (e exchange) passing() bool {
	_, cut := errors.AsType[*remote.CutError](e.err)
	updating := e.link && (e.status == http.StatusNotFound || e.status == http.StatusGone)
	return e.status >= 500 || e.status == http.StatusTooManyRequests && e.err == nil || cut || updating
}

func (c *calls) exchange(r *http.Request, last *exchange) (*http.Response, error) {
	way := c.transport
	switch {
	case c.binding != nil: // the Host header stays, as the SDK leaves it
		way = c.binding.transport
		r = r.Clone(r.Context())
		query := r.URL.RawQuery
		r.URL = c.binding.proxy.JoinPath(r.URL.EscapedPath())
		r.URL.RawQuery = query
		last.host, last.link = r.URL.Host, false
	case c.link:
		way = c.azure.link
		if host := imdsHost(); host != "" && r.URL.Host == imdsAddress {
			r = r.Clone(r.Context())
			r.URL.Host, r.Host = host, host
			last.host = host
		}
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
		return nil, last.err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, remote.MaxAnswer+1))
	_ = resp.Body.Close()
	*last = last.withAnswer(resp, body, c.now())
	switch {
	case err != nil:
		last.err = remote.Unanswered(r.Context(), err)
	case len(body) > remote.MaxAnswer:
		last.err = errors.New("the answer is too long")
	}
	if last.err != nil {
		return nil, last.err
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, nil
}

// withAnswer notes what is to be known of an answer.
func (e exchange) withAnswer(resp *http.Response, body []byte, now time.Time) exchange {
	e.status, e.date = resp.StatusCode, resp.Header.Get("Date")
	if resp.StatusCode != http.StatusOK {
		e.code, e.hint = meaning(body)
		e.wait = retryAfter(resp.Header.Get("Retry-After"), now)
	}
	return e
}

// retryAfter reads the header of that name (RFC 9110, section 10.2.3); 0 if it is not there, or none.
func retryAfter(value string, now time.Time) time.Duration {
	if seconds, err := strconv.Atoi(value); err == nil && seconds > 0 {
		return time.Duration(min(seconds, int(mostThrottled.Seconds()))) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}

// meaning is an error's code: that of Entra with its number (https://learn.microsoft.com/entra/identity-platform/reference-error-codes), or a registry's
// (https://distribution.github.io/distribution/spec/api/#errors). Its words are looked at where the codes are few, and not shown.
func meaning(body []byte) (string, hint) {
	var answer struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
		Errors      []struct {
			Code string `json:"code"`
		} `json:"errors"`
	}
	if json.Unmarshal(body, &answer) != nil {
		return "", hintNone
	}
	words := []string{answer.Error}
	if len(answer.Errors) > 0 {
		words = []string{answer.Errors[0].Code}
	}
	for field := range strings.FieldsSeq(answer.Description) {
		if number, ok := strings.CutPrefix(field, "AADSTS"); ok {
			words = append(words, "AADSTS"+strings.TrimRight(number, ":."))
			break
		}
	}
	code := strings.Join(words, " ")
	if len(code) > 100 || strings.ContainsFunc(code, func(r rune) bool {
		return r != '_' && r != ' ' && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9')
	}) {
		code = ""
	}
	description := strings.ToLower(answer.Description)
	switch {
	case strings.Contains(description, "multiple user assigned identities"):
		return code, hintSeveral
	case strings.Contains(description, "identity not found"), strings.Contains(description, "no managed identity"), strings.Contains(description, "no user assigned or delegated managed identity"):
		return code, hintMissing
	case strings.Contains(description, "aadsts500011"), answer.Error == "invalid_resource":
		return code, hintResource
	}
	return code, hintNone
}

// watcher remembers exchanges that do not come by calls.
type watcher struct{ *calls }

// Do implements policy.Policy.
func (w watcher) Do(r *policy.Request) (*http.Response, error) {
	last := exchange{host: r.Raw().URL.Host, link: true}
	resp, err := r.Next()
	if err != nil {
		last.err = remote.Unanswered(r.Raw().Context(), err)
		_, last.absent = errors.AsType[*remote.AbsentError](last.err)
	} else {
		last = last.withAnswer(resp, nil, w.now())
	}
	w.remember(last)
	return resp, err
}
