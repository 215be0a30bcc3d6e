package ecr

import (
	"context"
	"encoding/base64"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/aws-sdk-go-v2/service/ecrpublic"
	"github.com/aws/smithy-go/middleware"

	"github.com/credential-broker/credential-broker/backends"
)

// token is what docker login takes.
type token struct {
	username string
	password backends.Secret
	expires  time.Time
}

// authorizationToken asks ECR (GetAuthorizationToken) with the given credentials.
func (s *session) authorizationToken(ctx context.Context, as aws.CredentialsProvider, reg registry) (token, error) {
	service := "ecr"
	if reg.public {
		service = "ecr-public"
	}
	ctx, call := newCall(ctx, s.all.retryer(service, reg.region))
	var data *string
	var expires *time.Time
	var answer middleware.Metadata
	var err error
	if reg.public {
		var out *ecrpublic.GetAuthorizationTokenOutput
		out, err = s.publicAPI(as, reg, call).GetAuthorizationToken(ctx, &ecrpublic.GetAuthorizationTokenInput{})
		if err == nil && out.AuthorizationData != nil {
			data, expires, answer = out.AuthorizationData.AuthorizationToken, out.AuthorizationData.ExpiresAt, out.ResultMetadata
		}
	} else {
		var api *ecr.Client
		if api, err = s.api(as, reg, call); err != nil {
			return token{}, err
		}
		var out *ecr.GetAuthorizationTokenOutput
		out, err = api.GetAuthorizationToken(ctx, &ecr.GetAuthorizationTokenInput{})
		if err == nil && len(out.AuthorizationData) > 0 {
			data, expires, answer = out.AuthorizationData[0].AuthorizationToken, out.AuthorizationData[0].ExpiresAt, out.ResultMetadata
		}
	}
	if err != nil {
		return token{}, call.explain(err, "get a token for "+reg.String(), tokenAdvice(reg))
	}
	t, ok := decodeToken(aws.ToString(data))
	if !ok {
		return token{}, backends.Unavailable(fmt.Errorf("get a token for %s: the answer holds none in the form that AWS documents (base64 of user:password)", reg))
	}
	if expires != nil {
		t.expires = expires.Add(-aheadOfUs(answer))
	}
	return t, nil
}

// aheadOfUs is how far AWS's clock is ahead of this machine's, by which times are judged here. Less than a minute counts as nothing: it may be the way that the answer took.
func aheadOfUs(answer middleware.Metadata) time.Duration {
	theirs, ok := awsmiddleware.GetServerTime(answer)
	ours, known := awsmiddleware.GetResponseAt(answer)
	if ahead := theirs.Sub(ours); ok && known && ahead.Abs() > time.Minute {
		return ahead + time.Second // the Date header has whole seconds
	}
	return 0
}

func decodeToken(data string) (token, bool) {
	decoded, err := base64.StdEncoding.DecodeString(data)
	username, password, ok := strings.Cut(string(decoded), ":")
	return token{username: username, password: backends.Secret(password)}, err == nil && ok && username != "" && password != ""
}

// tokenKey is what a token depends on.
type tokenKey struct {
	who      string
	endpoint registry // without host and account
}

// tokens keeps the tokens of a backend that lives for more than one request. The zero value is ready.
type tokens struct {
	now func() time.Time // nil: time.Now

	mu      sync.Mutex
	entries map[tokenKey]*tokenEntry
}

type tokenEntry struct {
	turn  chan struct{} // holds one element, which whoever asks takes out
	token token         // of whoever has the turn
	// Under the lock of tokens:
	until time.Time // asked for again after that
	users int
}

// maxTokens bounds how many are kept: the identities of a node's pods, times regions.
const maxTokens = 1000

// get returns a token that has more than half of its life before it, or asks for one. Requests for the same one wait for each other, so that a node that starts many pods at once asks once;
// a failure is nobody else's, though: each tries for itself, within its own time. Latest, if not zero, is when the token is not to be given out any more, whatever its life.
func (t *tokens) get(ctx context.Context, key tokenKey, latest time.Time, ask func(context.Context) (token, error)) (token, error) {
	now := t.now
	if now == nil {
		now = time.Now
	}
	e := t.enter(key, now())
	defer func() { t.leave(key, e, now()) }()
	select {
	case <-e.turn:
	case <-ctx.Done():
		return token{}, backends.Unavailable(fmt.Errorf("another request for the same token did not get one in time: %w", ctx.Err()))
	}
	defer func() { e.turn <- struct{}{} }()
	asked := now()
	if t.valid(e, asked) {
		return e.token, nil
	}
	fresh, err := ask(ctx)
	if err != nil {
		return token{}, err
	}
	e.token = fresh
	t.mu.Lock()
	defer t.mu.Unlock()
	e.until = asked.Add(fresh.expires.Sub(asked) / 2) // a token without an expiry is not kept
	if !latest.IsZero() && latest.Before(e.until) {
		e.until = latest
	}
	return fresh, nil
}

func (t *tokens) valid(e *tokenEntry, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return now.Before(e.until)
}

// enter finds the entry, or makes one; nobody removes it until it is left.
func (t *tokens) enter(key tokenKey, now time.Time) *tokenEntry {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, other := range t.entries { // what nobody will use again is not to lie in memory, and of the rest any may go
		if other.users == 0 && (len(t.entries) >= maxTokens && k != key || !now.Before(other.until)) {
			delete(t.entries, k)
		}
	}
	e := t.entries[key]
	if e == nil {
		if t.entries == nil {
			t.entries = map[tokenKey]*tokenEntry{}
		}
		e = &tokenEntry{turn: make(chan struct{}, 1)}
		e.turn <- struct{}{}
		t.entries[key] = e
	}
	e.users++
	return e
}

func (t *tokens) leave(key tokenKey, e *tokenEntry, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e.users--; e.users == 0 && !now.Before(e.until) {
		delete(t.entries, key)
	}
}
