package remote

import (
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Throttle knows the services that have said when they want to be asked again, each by a key of the caller's choosing. All requests of a process hold to it. The zero value is ready.
type Throttle struct {
	mu    sync.Mutex
	until map[string]time.Time
}

// Hold has nobody ask until then.
func (t *Throttle) Hold(key string, until time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.until == nil {
		t.until = map[string]time.Time{}
	}
	if t.until[key].Before(until) {
		t.until[key] = until
	}
}

// Held is for how long nobody is to ask; 0 if all may.
func (t *Throttle) Held(key string, now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	for other, until := range t.until {
		if !now.Before(until) {
			delete(t.until, other)
		}
	}
	return max(0, t.until[key].Sub(now))
}

const (
	// Throttled is how long a service is left alone that is busy and does not say for how long.
	Throttled = time.Second
	// MostThrottled is how long one is left alone at most, whatever it says.
	MostThrottled = 10 * time.Minute
)

// RetryAfter reads the header of that name (RFC 9110, section 10.2.3), whatever this machine's clock says if the answer has a Date; 0 if it is not there, or none.
func RetryAfter(header http.Header, now time.Time) time.Duration {
	value := header.Get("Retry-After")
	if seconds, err := strconv.Atoi(value); err == nil && seconds > 0 {
		return time.Duration(min(seconds, int(MostThrottled.Seconds()))) * time.Second
	}
	if theirs, err := http.ParseTime(header.Get("Date")); err == nil {
		now = theirs
	}
	if at, err := http.ParseTime(value); err == nil {
		return min(MostThrottled, max(0, at.Sub(now)))
	}
	return 0
}
