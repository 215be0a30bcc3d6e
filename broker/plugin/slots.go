package plugin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// A node that starts a hundred pods starts a hundred brokers, and each of them a backend for each provider. What bounds them is files beside the runtime directories that processes lock: as
// many for a provider as backends may run for it at once. A lock ends with its process, however that ends.
const (
	slotPrefix = "s-"
	slotHash   = 12 // hexadecimal digits, of what the backends have in common
	// slotAge is how old a file becomes before it is swept. One that is swept and needed again is made again.
	slotAge = time.Hour
)

// Pauses between looks for a free slot, each a random one between half and one and a half times the value: from less than a backend takes to start and answer, up to what keeps a hundred
// waiting processes from being a load.
const (
	firstSlotPause   = 4 * time.Millisecond
	longestSlotPause = 40 * time.Millisecond
)

// slotWait is the time that who asks for a slot is taken to have where ctx has no deadline.
const slotWait = 20 * time.Second

// Slot waits until fewer than the given number of processes hold a slot of this name, and takes one, until release is called. All processes that have the same directories to work in share the
// slots. Who waits must still have time for what it is about to do: when half of ctx's time is gone there are twice as many slots for it, when three quarters are, four times, and when seven eighths
// are, it goes on without one, as it does where there are none. So a crowd that waits in vain does not set out all at one moment.
func (rt *Runtime) Slot(ctx context.Context, name string, number int) (release func(), waited bool) {
	none := func() {}
	base, err := rt.workIn()
	if err != nil {
		return none, false // Start will say so
	}
	began, allowed := time.Now(), slotWait
	if deadline, ok := ctx.Deadline(); ok {
		allowed = deadline.Sub(began)
	}
	sum := sha256.Sum256([]byte(name))
	prefix := filepath.Join(base, slotPrefix+hex.EncodeToString(sum[:])[:slotHash])
	for pause := firstSlotPause; ; pause = min(pause*3/2, longestSlotPause) {
		times, next := slotsAfter(time.Since(began), allowed)
		if times == 0 {
			return none, waited
		}
		lock, err := lockOneOf(prefix, number*times)
		if err == nil && lock != nil {
			return func() { _ = lock.Close() }, waited
		}
		if !errors.Is(err, errTaken) {
			return none, waited
		}
		waited = true
		timer := time.NewTimer(min(pause/2+rand.N(pause), max(next, time.Millisecond))) //nolint:gosec // it spreads pauses and guards nothing
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return none, true
		}
	}
}

// slotsAfter says how many times the usual number of slots there are for who has waited for so long of the time that it has, none being that it waits no more, and for how long that holds.
func slotsAfter(waited, allowed time.Duration) (times int, next time.Duration) {
	for _, step := range []struct {
		until time.Duration
		times int
	}{{allowed / 2, 1}, {allowed * 3 / 4, 2}, {allowed * 7 / 8, 4}} {
		if waited < step.until {
			return step.times, step.until - waited
		}
	}
	return 0, 0
}

// lockOneOf takes the lock on any of the files. errTaken: other processes have them all.
func lockOneOf(prefix string, number int) (*os.File, error) {
	first := rand.IntN(number) //nolint:gosec // where to begin to look
	for i := range number {
		lock, err := lockFile(fmt.Sprintf("%s-%d", prefix, (first+i)%number))
		if !errors.Is(err, errTaken) {
			return lock, err
		}
	}
	return nil, errTaken
}

func isSlot(name string) bool { return strings.HasPrefix(name, slotPrefix) }
