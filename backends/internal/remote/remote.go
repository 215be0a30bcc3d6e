// Package remote is what backends that ask a service over the network have in common.
package remote

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// WithinBudget ends a little before the provider's own time, so that an answer that tells what went wrong still arrives.
func WithinBudget(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	left := time.Until(deadline)
	return context.WithDeadline(ctx, deadline.Add(-min(left/10, time.Second)))
}

// Sleep waits for d; false: ctx ended before.
func Sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// ProxyError is a proxy's refusal to connect.
type ProxyError struct {
	// Status is that of HTTP.
	Status int
}

func (e *ProxyError) Error() string {
	if e.Status == http.StatusProxyAuthRequired {
		return "the proxy wants another user and password (status 407)"
	}
	return fmt.Sprintf("the proxy does not connect (status %d)", e.Status)
}

// Connected is an http.Transport's OnProxyConnectResponse, which gives a *ProxyError: net/http's own error repeats the proxy's words.
func Connected(_ context.Context, _ *url.URL, _ *http.Request, answer *http.Response) error {
	if answer.StatusCode == http.StatusOK {
		return nil
	}
	return &ProxyError{answer.StatusCode}
}

// Cut keeps a text of others within bounds, and on a line.
func Cut(s string) string {
	const most = 300
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
