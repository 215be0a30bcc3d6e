package remote

import (
	"net/http"
	"testing"
	"time"
)

func TestWhoIsHeld(t *testing.T) {
	var throttle Throttle
	now := time.Unix(1_800_000_000, 0)
	throttle.Hold("a", now.Add(time.Minute))
	throttle.Hold("a", now.Add(time.Second)) // does not shorten it
	if a, b := throttle.Held("a", now), throttle.Held("b", now); a != time.Minute || b != 0 {
		t.Errorf("%s, %s", a, b)
	}
	if held := throttle.Held("a", now.Add(time.Minute)); held != 0 || len(throttle.until) != 0 {
		t.Errorf("%s, %d are remembered", held, len(throttle.until))
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	at := func(d time.Duration) string { return now.Add(d).Format(http.TimeFormat) }
	for value, want := range map[string]time.Duration{"": 0, "7": 7 * time.Second, "-1": 0, "0": 0, "soon": 0, "99999999": MostThrottled, at(time.Minute): time.Minute, at(-time.Minute): 0, at(time.Hour): MostThrottled} {
		if got := RetryAfter(http.Header{"Retry-After": {value}}, now); got != want {
			t.Errorf("%q: %s, want %s", value, got, want)
		}
	}
	if got := RetryAfter(http.Header{"Retry-After": {at(time.Minute)}, "Date": {at(30 * time.Second)}}, now); got != 30*time.Second {
		t.Errorf("by their clock: %s", got)
	}
}
