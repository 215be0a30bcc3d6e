package cache

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/proto/secret"
)

// imageScoped lets a source answer for each image alone.
func imageScoped(m *model) {
	m.set(func(_ context.Context, p *config.Provider, r broker.Request) (broker.Answer, error) {
		return m.good(p, r, false, time.Hour), nil
	})
}

func TestWhatWasUsedLeastRecentlyGoesFirst(t *testing.T) {
	inBubble(t, Options{MaxEntries: 4}, func(t *testing.T, c *Cache, m *model) { // three answers, and the registry's scope
		imageScoped(m)
		p := node("p")
		r := images(4)
		for _, i := range []int{0, 1, 2, 0, 3} {
			ask1(t, c, p, r[i])
		}
		var kept []string
		for _, h := range c.Held() {
			kept = append(kept, h.Name)
		}
		if diff := cmp.Diff([]string{"r.io/0", "r.io/2", "r.io/3"}, kept); diff != "" {
			t.Errorf("kept (-want +got):\n%s", diff)
		}
		if s := c.Stats(); s.Entries != 4 || s.Providers[0].Evictions != 1 {
			t.Errorf("stats: %+v", s)
		}
	})
}

func TestBytesAreBounded(t *testing.T) {
	const bound = 200_000
	inBubble(t, Options{MaxBytes: bound}, func(t *testing.T, c *Cache, m *model) {
		p := node("p")
		m.set(func(_ context.Context, p *config.Provider, r broker.Request) (broker.Answer, error) {
			if strings.HasSuffix(r.Image, "7") {
				return broker.Answer{}, broker.Errorf(broker.Refused, "%s", strings.Repeat("no ", 10_000))
			}
			answer := m.good(p, r, false, time.Hour)
			answer.Lease = "l"
			return answer, nil
		})
		for _, r := range images(300) {
			_, _ = c.Call(t.Context(), p, r)
			if s := c.Stats(); s.Bytes > bound {
				t.Fatalf("%d bytes after %s", s.Bytes, r.Image)
			}
		}
		if s := c.Stats(); s.Bytes < bound/2 {
			t.Errorf("only %d bytes are used", s.Bytes)
		}
		c.Forget(func(Held) bool { return true })
		if s := c.Stats(); s.Entries != 1 || s.Bytes > itemOverhead+100 {
			t.Errorf("left: %+v", s)
		}
	})
}

// An agent that runs for months sees tokens without number, each of which is good for minutes.
func TestMemoryStaysFlat(t *testing.T) {
	requests, accounts := 100_000, 1_000
	if testing.Short() {
		requests = 20_000
	}
	synctest.Test(t, func(t *testing.T) {
		m := &model{}
		m.set(func(_ context.Context, p *config.Provider, r broker.Request) (broker.Answer, error) {
			answer := m.good(p, r, false, time.Hour)
			m.mu.Lock()
			m.calls = m.calls[:0]
			m.mu.Unlock()
			if len(r.Image)%9 == 0 {
				return broker.Answer{}, broker.Errorf(broker.Refused, "no")
			}
			return answer, nil
		})
		c := New(Options{Source: m})
		defer c.Close(t.Context())
		p := podded("p", config.CacheTypeToken)
		var early, late uint64
		var tk secret.Secret
		mapped := mappedBytes(t)
		for i := range requests {
			// Each pod has a token of its own and pulls five times, 100 pods in a minute: 1,000 tokens are good at any time.
			pod := i / 5
			if i%5 == 0 {
				tk = token("n", fmt.Sprint("account-", pod%accounts), "u", time.Now().Add(10*time.Minute), fmt.Sprint(pod))
			}
			_, _ = c.Call(t.Context(), p, broker.Request{Image: fmt.Sprintf("r.io/%d/%s", pod%accounts, strings.Repeat("x", pod%10)), Token: tk})
			if i%500 == 499 {
				<-time.After(time.Minute)
			}
			switch i {
			case requests / 5:
				early = heapBytes()
			case requests - 1:
				late = heapBytes()
			}
		}
		if s := c.Stats(); s.Entries > 1300 {
			t.Errorf("%d entries", s.Entries)
		}
		if late > early+early/4+256<<10 {
			t.Errorf("the heap grew from %d to %d bytes", early, late)
		}
		if grown := mappedBytes(t) - mapped; grown > 8<<20 {
			t.Errorf("%d bytes more are mapped", grown)
		}
	})
}

func heapBytes() uint64 {
	runtime.GC()
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

// mappedBytes is what the process has locked into memory or mapped without a file.
func mappedBytes(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Log("NOT RUN: only Linux says what is mapped")
		return 0
	}
	for line := range strings.Lines(string(data)) {
		var kilobytes int
		if n, _ := fmt.Sscanf(line, "VmLck: %d kB", &kilobytes); n == 1 {
			return kilobytes << 10
		}
	}
	t.Error("no VmLck")
	return 0
}
