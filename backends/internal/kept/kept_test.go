package kept

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

type token struct {
	password string
	expires  time.Time
}

func keeper(now func() time.Time) *Tokens[string, token] {
	return &Tokens[string, token]{Now: now, Expires: func(t token) time.Time { return t.expires }}
}

func TestATokenIsKeptForHalfOfItsLife(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	kept := keeper(func() time.Time { return now })
	asked := 0
	get := func(who string, lifetime time.Duration) string {
		t.Helper()
		got, err := kept.Get(t.Context(), who, time.Time{}, func(context.Context) (token, error) {
			asked++
			return token{password: fmt.Sprint(who, asked), expires: now.Add(lifetime)}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return got.password
	}
	for _, step := range []struct {
		who     string
		later   time.Duration
		want    string
		expires time.Duration
	}{
		{"a", 0, "a1", 12 * time.Hour},
		{"a", 6*time.Hour - time.Second, "a1", 12 * time.Hour},
		{"b", 0, "b2", 12 * time.Hour},
		{"a", time.Second, "a3", 12 * time.Hour},
		{"c", 0, "c4", 0}, // one without a life is not kept
		{"c", 0, "c5", 0},
	} {
		now = now.Add(step.later)
		if got := get(step.who, step.expires); got != step.want {
			t.Errorf("%s got %s, want %s", step.who, got, step.want)
		}
	}
}

func TestATokenIsNotKeptBeyondTheLatest(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	kept := keeper(func() time.Time { return now })
	asked := 0
	for _, step := range []struct {
		later time.Duration
		asked int
	}{{0, 1}, {10*time.Minute - time.Second, 1}, {time.Second, 2}} {
		now = now.Add(step.later)
		_, err := kept.Get(t.Context(), "a", time.Unix(1_800_000_600, 0), func(context.Context) (token, error) {
			asked++
			return token{expires: now.Add(12 * time.Hour)}, nil
		})
		if err != nil || asked != step.asked {
			t.Errorf("asked %d times, want %d: %v", asked, step.asked, err)
		}
	}
}

func TestManyWhoAskAtOnceAreOneCall(t *testing.T) {
	kept := keeper(nil)
	var asked atomic.Int32
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			_, err := kept.Get(t.Context(), "a", time.Time{}, func(context.Context) (token, error) {
				asked.Add(1)
				return token{expires: time.Now().Add(time.Hour)}, nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if asked.Load() != 1 {
		t.Errorf("asked %d times", asked.Load())
	}
}

func TestAFailureIsNobodyElses(t *testing.T) {
	kept := keeper(nil)
	denied := errors.New("denied")
	if _, err := kept.Get(t.Context(), "a", time.Time{}, func(context.Context) (token, error) { return token{}, denied }); !errors.Is(err, denied) {
		t.Errorf("got %v", err)
	}
	got, err := kept.Get(t.Context(), "a", time.Time{}, func(context.Context) (token, error) {
		return token{password: "p", expires: time.Now().Add(time.Hour)}, nil
	})
	if err != nil || got.password != "p" {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestWhoeverWaitsForAnothersTokenHasATimeOfItsOwn(t *testing.T) {
	kept := keeper(nil)
	asking, done := make(chan struct{}), make(chan struct{})
	go func() {
		_, _ = kept.Get(t.Context(), "a", time.Time{}, func(context.Context) (token, error) {
			close(asking)
			<-done
			return token{}, nil
		})
	}()
	defer close(done)
	<-asking
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := kept.Get(ctx, "a", time.Time{}, nil)
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "another request") {
		t.Errorf("got %v", err)
	}
}

func TestOnlySoManyTokensAreKept(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	kept := keeper(func() time.Time { return now })
	for i := range 3 * Most {
		_, _ = kept.Get(t.Context(), fmt.Sprint(i), time.Time{}, func(context.Context) (token, error) { return token{expires: now.Add(time.Hour)}, nil })
	}
	if n := len(kept.entries); n > Most || n < Most/2 {
		t.Errorf("%d are kept", n)
	}
	now = now.Add(31 * time.Minute)
	_, err := kept.Get(t.Context(), "last", time.Time{}, func(context.Context) (token, error) { return token{}, errors.New("none") })
	if err == nil || len(kept.entries) != 0 {
		t.Errorf("%d are kept that nobody can use", len(kept.entries))
	}
}

// TestWhoHearsOfDroppedTokens: each token is dropped once, when nobody will be given it again.
func TestWhoHearsOfDroppedTokens(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	var dropped []string
	kept := keeper(func() time.Time { return now })
	kept.Dropped = func(t token) { dropped = append(dropped, t.password) }
	ask := func(key, password string) {
		t.Helper()
		if _, err := kept.Get(t.Context(), key, time.Time{}, func(context.Context) (token, error) {
			return token{password: password, expires: now.Add(time.Hour)}, nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	want := func(all ...string) {
		t.Helper()
		if !slices.Equal(dropped, all) {
			t.Errorf("dropped %q, want %q", dropped, all)
		}
		dropped = nil
	}
	ask("a", "a1")
	ask("a", "a2") // is not asked
	want()
	now = now.Add(31 * time.Minute)
	ask("a", "a3")
	want("a1")
	ask("b", "b1")
	kept.Forget("b")
	ask("b", "b2")
	want("b1")
	now = now.Add(31 * time.Minute)
	ask("c", "c1")
	slices.Sort(dropped)
	want("a3", "b2")
	kept.Clear()
	want("c1")
	kept.Clear()
	want()
	if _, err := kept.Get(t.Context(), "d", time.Time{}, func(context.Context) (token, error) { return token{password: "d"}, nil }); err != nil {
		t.Error(err)
	}
	want("d") // which does not say when it ends, and is not kept
}
