package ecr

import (
	"context"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
)

const (
	// maxAttempts of a call that is throttled are not reached in a provider's usual time: its deadline ends the trying. ECR allows 20 calls a second for each account and region, and a fleet
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

// call is one call's retryer. It remembers the last failure, which the SDK forgets when time runs out while it waits for the next attempt.
type call struct {
	aws.RetryerV2
	ctx context.Context //nolint:containedctx // lives as long as the call

	mu       sync.Mutex
	last     error
	attempts int
	others   int // of them, those that were not throttled
}

func newCall(ctx context.Context, r aws.RetryerV2) *call { return &call{RetryerV2: r, ctx: ctx} }

// IsErrorRetryable hears of every failure.
func (c *call) IsErrorRetryable(err error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last, c.attempts = err, c.attempts+1
	if causeOf(err) != causeThrottled {
		if c.others++; c.others >= maxOtherAttempts {
			return false
		}
	}
	return c.RetryerV2.IsErrorRetryable(err)
}

// RetryDelay does not wait for a time that there is not: then the failure is the answer.
func (c *call) RetryDelay(attempt int, err error) (time.Duration, error) {
	delay, delayErr := c.RetryerV2.RetryDelay(attempt, err)
	if deadline, ok := c.ctx.Deadline(); delayErr == nil && ok && time.Now().Add(delay).After(deadline) {
		return 0, err
	}
	return delay, delayErr
}

// failure is why the call failed at last: not the end of its time, if there is something better.
func (c *call) failure(err error) (attempts int, why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil && c.last != nil {
		return c.attempts, c.last
	}
	return max(c.attempts, 1), err
}
