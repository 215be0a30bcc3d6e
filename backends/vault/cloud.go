package vault

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
	"github.com/credential-broker/credential-broker/backends/webidentity"
)

// otherIdentity is what to do where a cloud's own identity is not to be had.
const otherIdentity = "log in with another OIDC identity by auth.method jwt and its webIdentity or tokenFile"

const (
	// metadataAddress is that of metadata services in every cloud.
	metadataAddress = "http://169.254.169.254"
	// linkTimeout bounds one question to them; they may have to ask their cloud first.
	linkTimeout = 4 * time.Second
	// cloudAttempts is how often a service of a cloud is asked that is busy or broken.
	cloudAttempts = 3
)

// reply is a cloud's answer, whole.
type reply struct {
	status int
	header http.Header
	body   []byte
}

// questions are what is asked of a cloud, in one way.
type questions struct {
	by      http.RoundTripper
	timeout time.Duration // of each one
	sleep   func(ctx context.Context, d time.Duration) bool
}

// askLink asks a metadata service, which answers nobody who does not send its own header.
func askLink(ctx context.Context, u *url.URL, header, value string, again func(status int) bool) (reply, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody) //nolint:gosec // G704: the operator says where it is
	if err != nil {
		return reply{}, err
	}
	r.Header.Set(header, value)
	link := remote.LinkTransport()
	defer link.CloseIdleConnections() // there is little to ask, and long until the next time
	return questions{link, linkTimeout, remote.Sleep}.ask(ctx, r, again)
}

// busy says that asking again soon may help.
func busy(status int) bool { return status == http.StatusTooManyRequests || status >= 500 }

// ask sends a request, and once more if the answer is one after which that may help. The error has nothing of what came.
func (q questions) ask(ctx context.Context, r *http.Request, again func(status int) bool) (reply, error) {
	for attempt, pause := 1, 100*time.Millisecond; ; attempt, pause = attempt+1, 3*pause {
		answer, err := q.send(ctx, r)
		if err != nil || attempt == cloudAttempts || !again(answer.status) {
			return answer, err
		}
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < 2*pause || !q.sleep(ctx, pause) {
			return answer, nil // it says more than the lack of one would
		}
	}
}

func (q questions) send(ctx context.Context, r *http.Request) (reply, error) {
	ctx, cancel := context.WithTimeout(ctx, q.timeout)
	defer cancel()
	r = r.Clone(ctx)
	if r.GetBody != nil {
		r.Body, _ = r.GetBody() // of a text, which never fails
	}
	resp, err := q.by.RoundTrip(r) // which follows no redirection: there is none that a token should take
	if err != nil {
		return reply{}, remote.Unanswered(ctx, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, remote.MaxAnswer+1))
	if err != nil {
		return reply{}, remote.Unanswered(ctx, err)
	}
	if len(body) > remote.MaxAnswer {
		return reply{}, errors.New("the answer is too long")
	}
	return reply{resp.StatusCode, resp.Header, body}, nil
}

// validateSource has package webidentity judge the settings of one of its sources, which are here below field.
func validateSource(c webidentity.Config, source, field string, p *problems) {
	joined, ok := c.Validate("", webSources).(interface{ Unwrap() []error })
	if !ok {
		return
	}
	for _, err := range joined.Unwrap() {
		if e, ok := err.(*backends.Error); ok { //nolint:errorlint // as that
			p.Add(field+e.Field[min(len(source), len(e.Field)):], "%w", e.Err)
		}
	}
}
