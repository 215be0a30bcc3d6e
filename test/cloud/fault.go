package cloud

import (
	"net/http"
	"path"
	"strconv"
	"time"
)

// Fault is something that goes wrong on demand.
type Fault struct {
	// Service and Operation say where, by the names that Requests has; empty or with "*" for any.
	Service, Operation string
	// Times is how often it happens before all is well again. 0: until Heal.
	Times int
	// Status and Code are the answer. Defaults: the service's own way of saying that it is throttling.
	Status int
	Code   string
	// Body replaces the answer's body, for tests that prove that nobody repeats it. Sent in it stands for what the request has brought.
	Body string
	// RetryAfter is the answer's Retry-After header, in whole seconds. 0: none.
	RetryAfter time.Duration
	// Hang: no answer, for as long as the client waits.
	Hang bool
	// Reset: the connection is cut instead of an answer.
	Reset bool
}

// Fail lets f happen from now on.
func (c *Cloud) Fail(f Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults = append(c.faults, &f)
}

// Heal ends all faults. Requests that hang go on hanging.
func (c *Cloud) Heal() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults = nil
}

// fault is what is to go wrong with this request, if anything.
func (c *Cloud) fault(service, operation string) (Fault, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, f := range c.faults {
		if !faultMatches(f.Service, service) || !faultMatches(f.Operation, operation) {
			continue
		}
		if f.Times > 0 {
			if f.Times--; f.Times == 0 {
				c.faults = append(c.faults[:i:i], c.faults[i+1:]...)
			}
		}
		return *f, true
	}
	return Fault{}, false
}

func faultMatches(pattern, name string) bool {
	if pattern == "" || pattern == name {
		return true
	}
	ok, _ := path.Match(pattern, name)
	return ok
}

// faulty lets a fault happen to the request if one is to, and says whether it did. answer writes the service's own form of an error; a Status of 0 or an empty Code is for it to fill in.
func (c *Cloud) faulty(w http.ResponseWriter, r *http.Request, service, operation string, answer func(Fault)) bool {
	f, ok := c.fault(service, operation)
	switch {
	case !ok:
		return false
	case f.Hang:
		c.hang(r)
		panic(http.ErrAbortHandler)
	case f.Reset:
		panic(http.ErrAbortHandler)
	}
	if f.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(f.RetryAfter.Seconds())))
	}
	if f.Body == "" {
		answer(f)
		return true
	}
	if f.Status == 0 {
		f.Status = http.StatusInternalServerError
	}
	entryOf(r).code(f.Code)
	w.WriteHeader(f.Status)
	_, _ = w.Write([]byte(Repeated(f.Body, r)))
	return true
}

// hang returns when the client has gone or the cloud is closed.
func (c *Cloud) hang(r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-c.done.Done():
	}
}
