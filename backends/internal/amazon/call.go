package amazon

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/smithy-go"
)

const (
	// maxAttempts of a call that is throttled are not reached in a provider's usual time: its deadline ends the trying. ECR bounds the calls of an account in a region, and a fleet
	// that starts at once is throttled.
	maxAttempts = 20
	// maxOtherAttempts is how often a call is made that fails for other reasons, as in the SDK: whoever waits for the answer is better served with what is wrong.
	maxOtherAttempts = 3
)

// newRetryer is the SDK's adaptive one: exponential backoff with full jitter, and a rate of its own once throttled.
func newRetryer() aws.RetryerV2 {
	return retry.NewAdaptiveMode(func(o *retry.AdaptiveModeOptions) {
		o.StandardOptions = append(o.StandardOptions, func(o *retry.StandardOptions) {
			o.MaxAttempts, o.MaxBackoff = maxAttempts, 5*time.Second
			o.RateLimiter = unlimited{}
		})
	})
}

// unlimited: the provider's time limits the retries of a call, not a budget that a process which makes few calls would begin with.
type unlimited struct{}

func (unlimited) GetToken(context.Context, uint) (func() error, error) {
	return func() error { return nil }, nil
}
func (unlimited) AddTokens(uint) error { return nil }

// Call is one call's retryer. It remembers the last failure, which the SDK forgets when time runs out while it waits for the next attempt.
type Call struct {
	aws.RetryerV2
	ctx context.Context //nolint:containedctx // lives as long as the call

	mu       sync.Mutex
	last     error
	attempts int
	others   int // of them, those that were not throttled
	host     string
}

// newCall gives the call, and the context to make it with.
func newCall(ctx context.Context, r aws.RetryerV2) (context.Context, *Call) {
	c := &Call{RetryerV2: r, ctx: ctx}
	return context.WithValue(ctx, callKey{}, c), c
}

type callKey struct{}

// client is an HTTP client that tells the call which host is asked: the SDK's errors do not, if time has run out.
type client struct{ *http.Client }

// Do implements aws.HTTPClient.
func (h client) Do(r *http.Request) (*http.Response, error) {
	if c, ok := r.Context().Value(callKey{}).(*Call); ok {
		c.mu.Lock()
		c.host = r.URL.Host
		c.mu.Unlock()
	}
	return h.Client.Do(r) //nolint:gosec // the SDK says where
}

// GetAttemptToken waits for the rate that throttling has left; to whom it leaves none in time is throttled, too.
func (c *Call) GetAttemptToken(ctx context.Context) (func(error) error, error) {
	release, err := c.RetryerV2.GetAttemptToken(ctx)
	if err != nil {
		err = &smithy.GenericAPIError{Code: "ThrottlingException"}
	}
	return release, err
}

// IsErrorRetryable hears of every failure.
func (c *Call) IsErrorRetryable(err error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		return false
	}
	c.last, c.attempts = err, c.attempts+1
	switch CauseOf(err) {
	case CauseThrottled:
	case CauseUntrusted:
		return false
	default:
		if c.others++; c.others >= maxOtherAttempts {
			return false
		}
	}
	return c.RetryerV2.IsErrorRetryable(err)
}

// RetryDelay does not wait for a time that there is not: then the failure is the answer.
func (c *Call) RetryDelay(attempt int, err error) (time.Duration, error) {
	delay, delayErr := c.RetryerV2.RetryDelay(attempt, err)
	if deadline, ok := c.ctx.Deadline(); delayErr == nil && ok && time.Now().Add(delay).After(deadline) {
		return 0, err
	}
	return delay, delayErr
}

// failure is why the call failed at last: not the end of its time, if there is something better.
func (c *Call) failure(err error) (attempts int, why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	op, called := errors.AsType[*smithy.OperationError](err)
	if why = err; called {
		why = op.Err
	}
	if c.ctx.Err() != nil && c.last != nil {
		why = c.last
	}
	if _, ok := errors.AsType[*url.Error](why); !ok && c.host != "" && statusOf(why) == 0 && CauseOf(why) == CauseUnreachable {
		why = &url.Error{Op: http.MethodPost, URL: "https://" + c.host, Err: why}
	}
	if _, ok := errors.AsType[*smithy.OperationError](why); !ok && called {
		why = &smithy.OperationError{ServiceID: op.ServiceID, OperationName: op.OperationName, Err: why}
	}
	return max(c.attempts, 1), why
}
