package simulation

import "time"

// What ECR allows an account in a region: GetAuthorizationToken 20 times a second, with bursts of 200
// (https://docs.aws.amazon.com/AmazonECR/latest/userguide/service-quotas.html). A token is good for 12 hours.
const (
	Rate      = 20
	Burst     = 200
	TokenLife = 12 * time.Hour
)

// outcome is what became of one call.
type outcome uint8

const (
	granted outcome = iota
	throttled
	down
)

// Window is a time from the start of a run to another.
type Window struct{ From, Until time.Duration }

func (w Window) contains(t time.Duration) bool { return t >= w.From && t < w.Until }

// api is the token service of one account in one region: a bucket of tokens. A call that it refuses takes nothing out of the bucket.
type api struct {
	left    float64
	filled  time.Duration
	outages []Window
}

func (a *api) ask(now time.Duration) outcome {
	for _, w := range a.outages {
		if w.contains(now) {
			return down
		}
	}
	a.left = min(Burst, a.left+float64(Rate*(now-a.filled).Seconds()))
	a.filled = now
	if a.left < 1 {
		return throttled
	}
	a.left--
	return granted
}

// Second counts the calls that arrived within one second, at all APIs together.
type Second struct{ Granted, Throttled, Down int32 }

// Calls is how many there were.
func (s *Second) Calls() int { return int(s.Granted + s.Throttled + s.Down) }

func (s *Second) add(o outcome) {
	switch o {
	case granted:
		s.Granted++
	case throttled:
		s.Throttled++
	case down:
		s.Down++
	}
}
