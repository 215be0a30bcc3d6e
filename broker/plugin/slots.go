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

// Slot waits until fewer than the given number of processes hold a slot of this name, and takes one, until release is called, which may be called again. All processes that have the same directories to
// work in share the slots. Who waits must still have time for what it is about to do: at some random moment when between a half and seven eighths of ctx's time is gone it goes on without one, as it does
// where there are none. So a crowd that waits in vain does not set out all at one moment.
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
	patience := slotPatience(allowed, rand.Float64()) //nolint:gosec // it spreads moments and guards nothing
	sum := sha256.Sum256([]byte(name))
	prefix := filepath.Join(base, slotPrefix+hex.EncodeToString(sum[:])[:slotHash])
	for pause := firstSlotPause; ; pause = min(pause*3/2, longestSlotPause) {
		left := patience - time.Since(began)
		if left <= 0 {
			return none, waited
		}
		lock, err := lockOneOf(prefix, number)
		if err == nil && lock != nil {
			return func() { _ = lock.Close() }, waited
		}
		if !errors.Is(err, errTaken) {
			return none, waited
		}
		waited = true
		timer := time.NewTimer(min(pause/2+rand.N(pause), left)) //nolint:gosec // as above
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return none, true
		}
	}
}

// slotPatience is for how long of the time that it has somebody waits for a slot; random is in [0, 1).
func slotPatience(allowed time.Duration, random float64) time.Duration {
	return allowed/2 + time.Duration(random*float64(allowed)*3/8)
}

// slotTries is how many of the files one look tries: hundreds that wait on a machine of many processors had better not try hundreds of files each.
const slotTries = 8

// lockOneOf takes the lock on any of the files. errTaken: other processes have all that were tried.
func lockOneOf(prefix string, number int) (*os.File, error) {
	first := rand.IntN(number) //nolint:gosec // where to begin to look
	for i := range min(number, slotTries) {
		lock, err := lockFile(fmt.Sprintf("%s-%d", prefix, (first+i)%number))
		if !errors.Is(err, errTaken) {
			return lock, err
		}
	}
	return nil, errTaken
}

func isSlot(name string) bool { return strings.HasPrefix(name, slotPrefix) }
