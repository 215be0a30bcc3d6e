package simulation

import (
	"math"
	"time"
)

// call is one use of an SDK's client: attempts, until one succeeds or the SDK gives up.
type call struct {
	api      int32
	attempts int32
	others   int32 // of the attempts, those that failed for other reasons than throttling
	answer   outcome
	deadline time.Duration
	gaveUp   time.Duration
	adaptive bool // in the SDK's adaptive mode, with a rate of its own
	rate     rateLimit
}

// The official provider's client is the SDK's standard one (aws/retry of the aws-sdk-go-v2 v1.41.1 that cloud-provider-aws v1.37.0 is built with): three attempts, and between them a random part of 2^n
// seconds, at most 20 s, which three attempts never reach. Its own budget of retries is that of a process, and large enough for one call.
const standardAttempts = 3

// The ECR backend's client is the SDK's adaptive one as backends/internal/amazon/call.go sets it (aws-sdk-go-v2 v1.48.0): up to 20 attempts while throttled, three for other failures, a random part of 2^(n-1) seconds
// between them (of a twentieth of that where it was not throttled), at most 5 s, and never beyond the provider's timeout.
const (
	adaptiveAttempts = 20
	otherAttempts    = 3
	adaptiveBackoff  = 5 * time.Second
	throttledBase    = time.Second
	otherBase        = 50 * time.Millisecond
)

// roundTrip is how long one attempt takes, the process that makes it included. At the scale of minutes it hardly matters.
const roundTrip = 100 * time.Millisecond

// again is when the client makes its next attempt, after an answer at the given time; false: it gives up, at gaveUp if that is later.
func (c *call) again(now time.Duration, random float64) (time.Duration, bool) {
	if !c.adaptive {
		return now + scale(time.Second<<c.attempts, random), c.attempts < standardAttempts
	}
	base := throttledBase
	if c.answer == down {
		base = otherBase
		if c.others++; c.others >= otherAttempts {
			return 0, false
		}
	}
	next := now + scale(min(base<<(c.attempts-1), adaptiveBackoff), random)
	if c.attempts >= adaptiveAttempts || next > c.deadline {
		return 0, false
	}
	return c.turn(next)
}

// turn is when the client's own limit lets it make an attempt, not before the given time; false: not until the call's time is over, and until then it waits.
func (c *call) turn(now time.Duration) (time.Duration, bool) {
	for c.adaptive {
		wait := c.rate.acquire(now)
		if wait == 0 {
			break
		}
		if now += wait; now > c.deadline {
			c.gaveUp = c.deadline
			return 0, false
		}
	}
	return now, true
}

func scale(d time.Duration, share float64) time.Duration { return time.Duration(float64(d) * share) }

// rateLimit is the limit that the SDK's adaptive mode sets itself once it has been throttled (aws/retry/adaptive_ratelimit.go): it measures how often it asks, cuts that by 30 % when it is throttled, and
// raises it again along a cubic curve. In practice a client that has just been throttled asks no more than once in two seconds.
type rateLimit struct {
	enabled           bool
	tokens, capacity  float64
	fill              float64 // tokens a second
	filled            time.Duration
	hasFilled         bool
	measured, lastMax float64 // requests a second
	bucket            float64 // the half second that is measured, in seconds
	requests          int
	lastThrottle      time.Duration
}

// The SDK's constants: how quickly the measured rate follows, what is left of it after throttling, how steep the curve is, and the least rate (a second).
const (
	rateSmooth = 0.8
	rateBeta   = 0.7
	rateScale  = 0.4
	rateLeast  = 0.5
)

func newRateLimit(now time.Duration) rateLimit {
	return rateLimit{bucket: math.Floor(now.Seconds()), lastThrottle: now}
}

// acquire takes a token, or says how long to wait before asking again.
func (r *rateLimit) acquire(now time.Duration) (wait time.Duration) {
	if !r.enabled {
		return 0
	}
	r.refill(now)
	if r.tokens < 1 {
		return max(time.Duration((1-r.tokens)/r.fill*float64(time.Second)), time.Millisecond)
	}
	r.tokens--
	return 0
}

func (r *rateLimit) update(now time.Duration, wasThrottled bool) {
	r.requests++
	if half := math.Floor(now.Seconds()*2) / 2; half > r.bucket {
		r.measured = float64(float64(r.requests)/(half-r.bucket)*rateSmooth) + float64(r.measured*(1-rateSmooth))
		r.requests, r.bucket = 0, half
	}
	var calculated float64
	if wasThrottled {
		r.lastMax = r.measured
		if r.enabled {
			r.lastMax = min(r.measured, r.fill)
		}
		r.lastThrottle, r.enabled = now, true
		calculated = r.lastMax * rateBeta
	}
	if !wasThrottled {
		window := math.Cbrt(r.lastMax * (1 - rateBeta) / rateScale) // seconds until the curve is back at the last rate
		since := (now - r.lastThrottle).Seconds() - window
		calculated = float64(rateScale*since*since*since) + r.lastMax
	}
	r.refill(now)
	rate := min(calculated, 2*r.measured)
	r.fill, r.capacity = max(rate, rateLeast), max(rate, 1)
	r.tokens = min(r.tokens, r.capacity)
}

func (r *rateLimit) refill(now time.Duration) {
	if r.hasFilled {
		r.tokens = min(r.tokens+float64((now-r.filled).Seconds()*r.fill), r.capacity)
	}
	r.filled, r.hasFilled = now, true
}
