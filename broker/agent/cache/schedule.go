package cache

import "time"

// When an answer is renewed, as a share of its life. Half of an answer's life is what the token services themselves suggest, and asking earlier than that only costs calls: each answer would then be used
// for less than half of the time that it was good for. What is left after the latest renewal is for outages: at 85 % of an ECR token's twelve hours a source may be down for nearly two hours before a pull
// feels it. Between the two a fleet that started in one minute spreads its calls over a third of the life, again at each renewal: 5,000 nodes with twelve-hour tokens ask every three seconds, where they
// would come 80 a second if they kept in step.
const (
	earliestRenewal = 0.50
	latestRenewal   = 0.85
	// renewalMargin is left at the end in any case: a call, a pause and another call.
	renewalMargin = time.Minute
)

// Renewal is when an answer that is good from one time until another is to be renewed, for a random number in [0, 1): between 50 % and 85 % of its life, and not within its last minute. An answer that
// lives for less than two minutes is renewed before its half is over, since otherwise a minute's margin would have it renewed without end. An answer without a life is due at once.
func Renewal(from, until time.Time, random float64) time.Time {
	life := max(until.Sub(from), 0)
	latest := min(scale(life, latestRenewal), max(life-renewalMargin, life/2))
	earliest := scale(latest, earliestRenewal/latestRenewal)
	return from.Add(earliest + scale(latest-earliest, random))
}

// How long a source that is unavailable is left alone. The first pause is short: most outages are a dropped connection or a moment's throttling, and a pod is waiting. The longest is a minute: long enough
// that thousands of nodes do not keep a service down that is coming up, short enough that the kubelet, which tries again after 10 s to 5 min, finds the credential there when it does.
const (
	shortestPause = time.Second
	longestPause  = time.Minute
)

// Pause is how long to wait after so many failures in a row (from 1), for a random number in [0, 1): a second after the first, doubled with each failure up to a minute, of which at least half is kept and
// the rest is random, so that nodes that failed together do not ask again together.
func Pause(failures int, random float64) time.Duration {
	whole := shortestPause
	for n := 1; n < failures && whole < longestPause; n++ {
		whole *= 2
	}
	whole = min(whole, longestPause)
	return whole/2 + scale(whole/2, random)
}

func scale(d time.Duration, share float64) time.Duration { return time.Duration(float64(d) * share) }
