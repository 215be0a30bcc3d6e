package broker

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Slot is where one provider's answer or failure lands.
type Slot struct {
	Decision
	Answer Answer
	// Err is why there is no answer; see KindOf.
	Err error
	// Took is how long the provider was waited for.
	Took time.Duration
}

// ask asks all providers at once, each within its own timeout, all within ctx's. It returns when every slot has been filled, in the order given.
func ask(ctx context.Context, caller Caller, now func() time.Time, asked []Decision, request Request) []Slot {
	slots := make([]Slot, len(asked))
	done := make(chan int, len(asked))
	for i, d := range asked {
		slots[i].Decision = d
		go func() {
			began := now()
			slots[i].Answer, slots[i].Err = askOne(ctx, caller, d, request)
			slots[i].Took = now().Sub(began)
			done <- i
		}()
	}
	for range asked {
		<-done
	}
	return slots
}

func askOne(ctx context.Context, caller Caller, d Decision, request Request) (Answer, error) {
	mine, err := RequestFor(d, request)
	if err != nil {
		return Answer{}, err
	}
	allowed := d.Provider.Timeout
	if deadline, ok := ctx.Deadline(); ok {
		allowed = min(allowed, time.Until(deadline).Round(time.Millisecond))
	}
	ctx, cancel := context.WithTimeout(ctx, allowed)
	defer cancel()

	type reply struct {
		answer Answer
		err    error
	}
	replies := make(chan reply, 1)
	go func() {
		answer, err := caller.Call(ctx, d.Provider, mine)
		replies <- reply{answer, err}
	}()
	select {
	case r := <-replies:
		return r.answer, explainTimeout(ctx, allowed, r.err)
	case <-ctx.Done():
	}
	// The Caller gives up by itself now and may say more than that the time is over: what step it was at. A call that is stuck in the system, on a dead
	// network file system say, cannot hold up the others' answers.
	grace := time.NewTimer(callerGrace)
	defer grace.Stop()
	select {
	case r := <-replies:
		return r.answer, explainTimeout(ctx, allowed, r.err)
	case <-grace.C:
		return Answer{}, explainTimeout(ctx, allowed, ctx.Err())
	}
}

// callerGrace is how long a Caller may take to return once its context is done. Killing a backend takes a few milliseconds.
const callerGrace = time.Second

// explainTimeout puts the time that was allowed into an error that is only "context deadline exceeded".
func explainTimeout(ctx context.Context, allowed time.Duration, err error) error {
	if err == nil || !errors.Is(ctx.Err(), context.DeadlineExceeded) || !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if _, ok := errors.AsType[*Error](err); ok {
		return err // the Caller has said it better
	}
	return &Error{Kind: Unavailable, Err: fmt.Errorf("no answer within %s: %w", allowed, err)}
}
