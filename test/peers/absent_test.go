package peers

import (
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// blackHole takes connections and never answers; it remembers how long each was held.
type blackHole struct {
	url string

	mu   sync.Mutex
	held []time.Duration
	open sync.WaitGroup
}

func newBlackHole(t *testing.T) *blackHole {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &blackHole{url: "http://" + l.Addr().String()}
	b.open.Go(func() {
		for {
			connection, err := l.Accept()
			if err != nil {
				return
			}
			began := time.Now()
			b.open.Go(func() {
				buffer := make([]byte, 4096)
				for {
					if _, err := connection.Read(buffer); err != nil { // the other side has given up
						break
					}
				}
				_ = connection.Close()
				b.mu.Lock()
				defer b.mu.Unlock()
				b.held = append(b.held, time.Since(began))
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); b.open.Wait() })
	return b
}

// attempts are the connections that have ended, in the order of their ends.
func (b *blackHole) attempts() []time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.held)
}

// TestOutsideAWSTheAnswerComesSoon runs where there is no identity and instance metadata never answers. How soon is printed; what is bounded is what was tried.
func TestOutsideAWSTheAnswerComesSoon(t *testing.T) {
	t.Parallel()
	for _, sd := range []side{official, broker} {
		t.Run("a silent metadata service, "+sd.name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			hole := newBlackHole(t)
			s.in(plain)
			s.add("AWS_EC2_METADATA_DISABLED=false", "AWS_EC2_METADATA_SERVICE_ENDPOINT="+hole.url)
			answer := sd.ask(s)
			outsideAWS(t, sd, answer, hole.attempts())
		})
		t.Run("a metadata service that nobody routes to, "+sd.name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			s.in(plain)
			absent := s.Instance("")
			absent.Absent()
			s.add(absent.Environ()...)
			outsideAWS(t, sd, sd.ask(s), nil)
		})
		t.Run("nobody listens, "+sd.name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			s.in(plain)
			refuses := s.Instance("")
			refuses.Refuse()
			s.add(refuses.Environ()...)
			outsideAWS(t, sd, sd.ask(s), nil)
		})
	}
}

// outsideAWS judges an answer. The bounds are wide: a busy machine is no failure, a second round of attempts is.
func outsideAWS(t *testing.T, sd side, answer raw, attempts []time.Duration) {
	t.Helper()
	t.Logf("%s: %d ms, attempts %v: %s", sd.name, answer.took.Milliseconds(), attempts, strings.TrimSpace(answer.said))
	if answer.code != 1 || len(answer.auth) != 0 {
		t.Errorf("exit status %d, want 1", answer.code)
	}
	if sd.name != broker.name {
		return // it is shown, not judged
	}
	if len(attempts) > 1 {
		t.Errorf("%d attempts: what has not answered once is not there", len(attempts))
	}
	for _, a := range attempts {
		if a > 3*time.Second {
			t.Errorf("an attempt lasted %s, want about a second", a)
		}
	}
	if answer.took > 8*time.Second {
		t.Errorf("the answer took %s, want less than 1.5 seconds on a machine that has time", answer.took)
	}
	for _, told := range []string{"no AWS credentials", "environment", "shared configuration", "container credentials endpoint", "instance metadata"} {
		if !strings.Contains(answer.said, told) {
			t.Errorf("the error does not tell of %q", told)
		}
	}
}

// TestInstanceMetadataIsNeverAskedThroughAProxy: whoever runs the proxy would get the node's credentials.
func TestInstanceMetadataIsNeverAskedThroughAProxy(t *testing.T) {
	t.Parallel()
	for _, sd := range []side{official, broker} {
		t.Run(sd.name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			asked := 0
			proxy := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				asked++
				http.Error(w, "", http.StatusNotFound)
			}))
			s := newScene(t)
			s.in(plain)
			// An address for documentation (RFC 5737), which nobody has; Go does not send what is for loopback through a proxy.
			s.add("AWS_EC2_METADATA_DISABLED=false", "AWS_EC2_METADATA_SERVICE_ENDPOINT=http://192.0.2.1", "HTTP_PROXY="+proxy, "http_proxy="+proxy)
			answer := sd.ask(s)
			mu.Lock()
			defer mu.Unlock()
			t.Logf("%s: the proxy was asked %d times: %s", sd.name, asked, strings.TrimSpace(answer.said))
			if throughIt := asked > 0; throughIt != (sd.name == official.name) {
				t.Errorf("asked through the proxy: %t", throughIt)
			}
		})
	}
}

// serve serves on loopback until the test's end.
func serve(t *testing.T, h http.Handler) (url string) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	var done sync.WaitGroup
	done.Go(func() { _ = server.Serve(l) })
	t.Cleanup(func() { _ = server.Close(); done.Wait() })
	return "http://" + l.Addr().String()
}
