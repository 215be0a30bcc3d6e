// Package kept keeps the tokens that a backend has got, for as long as half of their life.
package kept

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/credential-broker/credential-broker/backends"
)

// Tokens are those of a backend, each filed under all that it depends on. Expires has to be set.
type Tokens[K comparable, T any] struct {
	// Expires is when a token ends.
	Expires func(T) time.Time
	// Now is the clock. nil: time.Now.
	Now func() time.Time
	// Dropped hears of each token that will not be given out any more. It is called while others wait, and must not. nil: nobody does.
	Dropped func(T)

	mu      sync.Mutex
	entries map[K]*entry[T]
}

type entry[T any] struct {
	turn  chan struct{} // holds one element, which whoever asks takes out
	token T             // of whoever has the turn
	// Under the lock of Tokens:
	has   bool      // a token, which Dropped has not heard of
	until time.Time // asked for again after that
	users int
}

// Most bounds how many are kept: the identities of a node's pods, times what they are for.
const Most = 1000

// Get returns a token that has more than half of its life before it, or asks for one. Requests for the same one wait for each other, so that a node that starts many pods at once asks once;
// a failure is nobody else's, though: each tries for itself, within its own time. Latest, if not zero, is when the token is not to be given out any more, whatever its life.
func (t *Tokens[K, T]) Get(ctx context.Context, key K, latest time.Time, ask func(context.Context) (T, error)) (T, error) {
	var none T
	now := t.Now
	if now == nil {
		now = time.Now
	}
	e := t.enter(key, now())
	defer func() { t.leave(key, e, now()) }()
	select {
	case <-e.turn:
	case <-ctx.Done():
		return none, backends.Unavailable(fmt.Errorf("another request for the same token did not get one in time: %w", ctx.Err()))
	}
	defer func() { e.turn <- struct{}{} }()
	asked := now()
	if t.valid(e, asked) {
		return e.token, nil
	}
	fresh, err := ask(ctx)
	if err != nil {
		return none, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drop(e)
	e.token, e.has = fresh, true
	e.until = asked.Add(t.Expires(fresh).Sub(asked) / 2) // a token without an expiry is not kept
	if !latest.IsZero() && latest.Before(e.until) {
		e.until = latest
	}
	return fresh, nil
}

// Forget has the next request ask for the token again: whoever it is for does not take the one that is kept.
func (t *Tokens[K, T]) Forget(key K) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.entries[key]; e != nil {
		e.until = time.Time{}
	}
}

func (t *Tokens[K, T]) valid(e *entry[T], now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return now.Before(e.until)
}

// enter finds the entry, or makes one; nobody removes it until it is left.
func (t *Tokens[K, T]) enter(key K, now time.Time) *entry[T] {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, other := range t.entries { // what nobody will use again is not to lie in memory, and of the rest any may go
		if other.users == 0 && (len(t.entries) >= Most && k != key || !now.Before(other.until)) {
			t.drop(other)
			delete(t.entries, k)
		}
	}
	e := t.entries[key]
	if e == nil {
		if t.entries == nil {
			t.entries = map[K]*entry[T]{}
		}
		e = &entry[T]{turn: make(chan struct{}, 1)}
		e.turn <- struct{}{}
		t.entries[key] = e
	}
	e.users++
	return e
}

func (t *Tokens[K, T]) leave(key K, e *entry[T], now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e.users--; e.users == 0 && !now.Before(e.until) {
		t.drop(e)
		delete(t.entries, key)
	}
}

func (t *Tokens[K, T]) drop(e *entry[T]) {
	if e.has && t.Dropped != nil {
		t.Dropped(e.token)
	}
	e.has = false
}

// Clear drops all tokens. Those that are being asked for are kept as ever.
func (t *Tokens[K, T]) Clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, e := range t.entries {
		e.until = time.Time{}
		if e.users == 0 {
			t.drop(e)
			delete(t.entries, key)
		}
	}
}
