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

// TestNext: whoever asks is told of the token that is kept, until its end; what is forgotten while somebody asks for it is not kept.
func TestNext(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	now := start
	kept := keeper(func() time.Time { return now })
	kept.UntilEnd = true
	made := 0
	next := func(during func()) (told string, given token) {
		t.Helper()
		told = "nobody asked"
		given, err := kept.Next(t.Context(), "a", time.Time{}, func(_ context.Context, before *token) (token, error) {
			if told = "nothing"; before != nil {
				told = before.password
			}
			if during != nil {
				during()
			}
			made++
			return token{password: fmt.Sprint(made), expires: now.Add(time.Hour)}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return told, given
	}
	for _, step := range []struct {
		what   string
		later  time.Duration
		before func()
		during func()
		told   string
		given  string
	}{
		{what: "first", told: "nothing", given: "1"},
		{what: "within half of its life", later: 29 * time.Minute, told: "nobody asked", given: "1"},
		{what: "past half of its life", later: 2 * time.Minute, told: "1", given: "2"},
		{what: "outdated", before: func() { kept.Outdate("a", func(t token) bool { return t.password == "2" }) }, told: "2", given: "3"},
		{what: "another outdated", before: func() { kept.Outdate("a", func(t token) bool { return t.password == "2" }) }, told: "nobody asked", given: "3"},
		{what: "another forgotten", before: func() { kept.ForgetIf("a", func(t token) bool { return t.password == "2" }) }, told: "nobody asked", given: "3"},
		{what: "forgotten", before: func() { kept.ForgetIf("a", func(t token) bool { return t.password == "3" }) }, told: "nothing", given: "4"},
		{what: "past its end", later: time.Hour, told: "nothing", given: "5"},
		{what: "forgotten while it is asked for", later: 31 * time.Minute, during: func() { kept.ForgetIf("a", func(t token) bool { return t.password == "6" }) }, told: "5", given: "6"},
		{what: "which is noticed", told: "nothing", given: "7"},
		{what: "another forgotten meanwhile", later: 31 * time.Minute, during: func() { kept.ForgetIf("a", func(t token) bool { return t.password == "7" }) }, told: "7", given: "8"},
		{what: "which is no matter", told: "nobody asked", given: "8"},
	} {
		now = now.Add(step.later)
		if step.before != nil {
			step.before()
		}
		if told, given := next(step.during); told != step.told || given.password != step.given {
			t.Errorf("%s: told of %s and given %s, want %s and %s", step.what, told, given.password, step.told, step.given)
		}
	}
	if !kept.Has("a", now) || kept.Has("a", now.Add(time.Hour)) || kept.Has("b", now) {
		t.Error("what is kept is not what there is")
	}
	if left := kept.Sweep(now.Add(59 * time.Minute)); left != 1 {
		t.Errorf("%d are left before its end", left)
	}
	kept.Outdate("a", func(token) bool { return true })
	_, _ = kept.Next(t.Context(), "a", time.Time{}, func(context.Context, *token) (token, error) {
		if left := kept.Sweep(now.Add(time.Hour)); left != 1 {
			t.Errorf("%d are left of those that somebody asks for", left)
		}
		return token{}, errors.New("none")
	})
	now = now.Add(time.Hour)
	if left := kept.Sweep(now); left != 0 {
		t.Errorf("%d are left past the end", left)
	}
}
