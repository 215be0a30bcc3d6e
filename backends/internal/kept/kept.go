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
	// UntilEnd keeps tokens to their end, and not only for as long as they are given out unasked: whoever asks for another one is then told of it.
	UntilEnd bool
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
	end   time.Time // forgotten after that
	asked bool      // somebody asks
	// unwanted says of what is being asked for that it is not to be given out again.
	unwanted func(T) bool
	users    int
}

// Most bounds how many are kept: the identities of a node's pods, times what they are for.
const Most = 1000

// Get returns a token that has more than half of its life before it, or asks for one. Requests for the same one wait for each other, so that a node that starts many pods at once asks once;
// a failure is nobody else's, though: each tries for itself, within its own time. Latest, if not zero, is when the token is not to be given out any more, whatever its life.
func (t *Tokens[K, T]) Get(ctx context.Context, key K, latest time.Time, ask func(context.Context) (T, error)) (T, error) {
	return t.Next(ctx, key, latest, func(ctx context.Context, _ *T) (T, error) { return ask(ctx) })
}

// Next is Get for whoever can make the next token of the one that is kept, which ask is given: nil if there is none, or it has ended.
func (t *Tokens[K, T]) Next(ctx context.Context, key K, latest time.Time, ask func(ctx context.Context, kept *T) (T, error)) (T, error) {
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
	fresh, err := ask(ctx, t.kept(e, asked))
	t.mu.Lock()
	defer t.mu.Unlock()
	unwanted := e.unwanted
	e.asked, e.unwanted = false, nil
	if err != nil {
		return none, err
	}
	t.drop(e)
	e.token, e.has = fresh, true
	e.until = asked.Add(t.Expires(fresh).Sub(asked) / 2) // a token without an expiry is not kept
	if !latest.IsZero() && latest.Before(e.until) {
		e.until = latest
	}
	if e.end = e.until; t.UntilEnd {
		e.end = t.Expires(fresh)
	}
	if unwanted != nil && unwanted(fresh) {
		e.until, e.end = time.Time{}, time.Time{}
	}
	return fresh, nil
}

// kept is an entry's token, for whoever has the turn.
func (t *Tokens[K, T]) kept(e *entry[T], now time.Time) *T {
	t.mu.Lock()
	defer t.mu.Unlock()
	e.asked = true
	if !e.has || !t.UntilEnd || !now.Before(e.end) {
		return nil
	}
	return &e.token
}

// Has says whether a token is kept, be it only to make the next one of.
func (t *Tokens[K, T]) Has(key K, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entries[key]
	return e != nil && e.has && now.Before(e.end)
}

// Forget has the next request ask for the token again: whoever it is for does not take the one that is kept.
func (t *Tokens[K, T]) Forget(key K) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.entries[key]; e != nil {
		e.until, e.end = time.Time{}, time.Time{}
	}
}

// ForgetIf is Forget for a token that may have been replaced meanwhile: it is forgotten if it is the one, and so is what somebody gets who is asking just now. Is must not wait.
func (t *Tokens[K, T]) ForgetIf(key K, is func(T) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entries[key]
	if e == nil {
		return
	}
	if e.has && is(e.token) {
		e.until, e.end = time.Time{}, time.Time{}
	}
	if e.asked {
		e.unwanted = is
	}
}

// Outdate has the next request ask for another token, of a token that is so: with UntilEnd, whoever asks is told of the one that is kept.
func (t *Tokens[K, T]) Outdate(key K, is func(T) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.entries[key]; e != nil && e.has && is(e.token) {
		e.until = time.Time{}
	}
}

// Sweep drops what has ended, and says how many tokens are kept.
func (t *Tokens[K, T]) Sweep(now time.Time) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, e := range t.entries {
		if e.users == 0 && !now.Before(e.end) {
			t.drop(e)
			delete(t.entries, key)
		}
	}
	return len(t.entries)
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
		if other.users == 0 && (len(t.entries) >= Most && k != key || !now.Before(other.end)) {
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
	if e.users--; e.users == 0 && !now.Before(e.end) {
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
		e.until, e.end = time.Time{}, time.Time{}
		if e.users == 0 {
			t.drop(e)
			delete(t.entries, key)
		}
	}
}
