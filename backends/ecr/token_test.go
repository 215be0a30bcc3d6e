package ecr

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/backends"
)

func TestDecodeToken(t *testing.T) {
	encode := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	got, ok := decodeToken(encode("AWS:pass:word"))
	if !ok || got.username != "AWS" || got.password != "pass:word" {
		t.Errorf("got %q, %q, %t", got.username, string(got.password), ok)
	}
	for _, bad := range []string{"", "AWS:password", encode("AWS"), encode("AWS:"), encode(":password")} {
		if _, ok := decodeToken(bad); ok {
			t.Errorf("%q is taken for a token", bad)
		}
	}
}

func TestATokenIsKeptForHalfOfItsLife(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	kept := tokens{now: func() time.Time { return now }}
	asked := 0
	get := func(who string, lifetime time.Duration) string {
		t.Helper()
		got, err := kept.get(t.Context(), tokenKey{who: who}, time.Time{}, func(context.Context) (token, error) {
			asked++
			return token{password: backends.Secret(fmt.Sprint(who, asked)), expires: now.Add(lifetime)}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return string(got.password)
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

func TestManyWhoAskAtOnceAreOneCall(t *testing.T) {
	var kept tokens
	var asked atomic.Int32
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			_, err := kept.get(t.Context(), tokenKey{who: "a"}, time.Time{}, func(context.Context) (token, error) {
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
	var kept tokens
	denied := errors.New("denied")
	if _, err := kept.get(t.Context(), tokenKey{who: "a"}, time.Time{}, func(context.Context) (token, error) { return token{}, denied }); !errors.Is(err, denied) {
		t.Errorf("got %v", err)
	}
	got, err := kept.get(t.Context(), tokenKey{who: "a"}, time.Time{}, func(context.Context) (token, error) {
		return token{password: "p", expires: time.Now().Add(time.Hour)}, nil
	})
	if err != nil || got.password != "p" {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestWhoeverWaitsForAnothersTokenHasATimeOfItsOwn(t *testing.T) {
	var kept tokens
	asking, done := make(chan struct{}), make(chan struct{})
	go func() {
		_, _ = kept.get(t.Context(), tokenKey{who: "a"}, time.Time{}, func(context.Context) (token, error) {
			close(asking)
			<-done
			return token{}, nil
		})
	}()
	defer close(done)
	<-asking
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := kept.get(ctx, tokenKey{who: "a"}, time.Time{}, nil)
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "another request") {
		t.Errorf("got %v", err)
	}
}

func TestOnlySoManyTokensAreKept(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	kept := tokens{now: func() time.Time { return now }}
	for i := range 3 * maxTokens {
		_, _ = kept.get(t.Context(), tokenKey{who: fmt.Sprint(i)}, time.Time{}, func(context.Context) (token, error) { return token{expires: now.Add(time.Hour)}, nil })
	}
	if n := len(kept.entries); n > maxTokens || n < maxTokens/2 {
		t.Errorf("%d are kept", n)
	}
	now = now.Add(31 * time.Minute)
	_, err := kept.get(t.Context(), tokenKey{who: "last"}, time.Time{}, func(context.Context) (token, error) { return token{}, errors.New("none") })
	if err == nil || len(kept.entries) != 0 {
		t.Errorf("%d are kept that nobody can use", len(kept.entries))
	}
}
