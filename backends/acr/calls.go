package acr

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"github.com/credential-broker/credential-broker/backends/internal/hosts"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
	"github.com/credential-broker/credential-broker/backends/webidentity"
)

// exchange is a question to Azure, or to a metadata service, and what came of it.
type exchange struct {
	host   string        // and port, if it is named
	near   bool          // it is on the machine itself, or its own link
	status int           // of HTTP; 0 if there was no answer
	code   string        // of the error, where it is one that has the form of a code
	hint   hint          // what is known of its words
	date   string        // by the clock of whoever answered
	wait   time.Duration // until it wants to be asked again
	imds   bool          // the answer says that the metadata service gives it
	absent bool          // nobody took the connection
	err    error         // why there was no answer
}

// hint is what an error's words mean, where its code says too little.
type hint int

const (
	hintNone     hint = iota
	hintSeveral       // there are several managed identities
	hintMissing       // the managed identity is not there
	hintResource      // nobody knows the application that the token is for
)

// calls is the way to Azure for one thing that is wanted there: a token, a challenge, an exchange. It is the SDK's transport, and remembers the last exchange: the SDK quotes in its errors what was answered,
// which may have a token in it, so that messages are made of this.
type calls struct {
	*azure
	// managed: the token of a managed identity is asked for.
	managed bool
	// as is whom Entra counts the calls for: it throttles each application in each tenant by itself. Empty: the host counts them.
	as string
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
)

// Do implements policy.Transporter. Whatever is asked here may be asked twice.
func (c *calls) Do(r *http.Request) (*http.Response, error) {
	r, err := c.directed(r)
	if err != nil {
		c.remember(exchange{host: r.URL.Host, err: err})
		return nil, err
	}
	most, pause := tries, firstPause
	if c.managed {
		most, pause = linkTries, firstLinkPause
	}
	for try := 1; ; try++ {
		last := exchange{host: r.URL.Host, near: hosts.IsNear(r.URL.Hostname())}
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
		if c.Held(c.counted(last.host), c.now()) > 0 && !c.patient(r.Context(), last.host) {
			return resp, err
		}
		if r, err = again(r); err != nil {
			return nil, err
		}
	}
}

// directed is the request to where it really goes: a cluster's endpoint in the place of Entra's, or the metadata service's other address.
func (c *calls) directed(r *http.Request) (*http.Request, error) {
	switch {
	case c.binding != nil: // the Host header stays, as the SDK leaves it
		query := r.URL.RawQuery
		r = r.Clone(r.Context())
		r.URL = c.binding.proxy.JoinPath(r.URL.EscapedPath())
		r.URL.RawQuery = query
	case c.managed && r.URL.Host == imdsAddress:
		base, err := imdsBase()
		if base == nil || err != nil {
			return r, err
		}
		query := r.URL.RawQuery
		r = r.Clone(r.Context())
		r.URL = base.JoinPath(r.URL.EscapedPath())
		r.URL.RawQuery, r.Host = query, base.Host
	case !c.managed && r.URL.Scheme != "https": // which the SDK would take from the Entra ID's own description of itself
		return r, errors.New("it would be asked without TLS, and nothing is sent so")
	}
	return r, nil
}

// counted is what a host's wish to be left alone is filed under.
func (c *calls) counted(host string) string { return host + " " + c.as }

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
	key := c.counted(last.host)
	for c.Held(key, c.now()) > 0 {
		if !c.patient(r.Context(), last.host) {
			last.wait, last.err = c.Held(key, c.now()), errHeld
			return nil, errHeld
		}
	}
	resp, err := c.exchange(r, last)
	if last.status == http.StatusTooManyRequests || last.status == http.StatusServiceUnavailable && last.wait > 0 {
		if last.wait == 0 {
			last.wait = remote.Throttled
		}
		last.wait = min(last.wait, remote.MostThrottled)
		c.Hold(key, c.now().Add(last.wait))
	}
	return resp, err
}

// errHeld: the host is not asked yet.
var errHeld = errors.New("it was busy a moment ago, and is left alone for as long as it said")

// patient waits until the host may be asked; false: there is not the time.
func (c *calls) patient(ctx context.Context, host string) bool {
	return c.wait(ctx, c.Held(c.counted(host), c.now()))
}

func (c *calls) remember(last exchange) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = last
}

// passing says that the next moment may be better.
func (e exchange) passing() bool {
	_, cut := errors.AsType[*remote.CutError](e.err)
	return e.status >= 500 || e.status == http.StatusTooManyRequests && e.err == nil || cut || e.updating()
}

// updating: the metadata service is away for a while.
func (e exchange) updating() bool {
	return e.imds && (e.status == http.StatusNotFound || e.status == http.StatusGone)
}

func (c *calls) exchange(r *http.Request, last *exchange) (*http.Response, error) {
	way := c.transport
	switch {
	case c.binding != nil:
		way = c.binding.transport
	case c.managed:
		way = c.link
	}
	if last.near && c.managed {
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
	e.imds = strings.HasPrefix(resp.Header.Get("Server"), "IMDS")
	if resp.StatusCode != http.StatusOK {
		e.code, e.hint = meaning(body)
		e.wait = remote.RetryAfter(resp.Header, now)
	}
	return e
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
	code := answer.Error
	if len(answer.Errors) > 0 {
		code = answer.Errors[0].Code
	}
	if !isCode(code) {
		code = ""
	}
	for field := range strings.FieldsSeq(answer.Description) {
		number, ok := strings.CutPrefix(strings.TrimRight(field, ":."), "AADSTS")
		if ok && len(number) < 10 && strings.Trim(number, "0123456789") == "" {
			code = strings.TrimSpace(code + " AADSTS" + number)
			break
		}
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

// isCode takes a word such as invalid_client or bad_request_102, and nothing that could be anything else.
func isCode(s string) bool {
	letters := strings.TrimRight(s, "0123456789")
	return len(s) <= 40 && len(s)-len(letters) <= 3 && !strings.ContainsFunc(letters, func(r rune) bool { return r != '_' && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') })
}

// watcher remembers exchanges that do not come by calls.
type watcher struct{ *calls }

// Do implements policy.Policy.
func (w watcher) Do(r *policy.Request) (*http.Response, error) {
	last := exchange{host: r.Raw().URL.Host, near: true}
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
