package caller

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/plugin"
	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
	"github.com/credential-broker/credential-broker/proto/secret"
)

// KeeperOptions are a Keeper's. The zero value is good.
type KeeperOptions struct {
	Options
	// IdleTimeout is how long a backend that nobody asks is kept running; 0: five minutes.
	IdleTimeout time.Duration
	// HealthInterval is how long a backend that has not answered anything is believed to be alive before it is asked what it is; 0: half a minute.
	HealthInterval time.Duration
	// Now is the clock; nil: time.Now.
	Now func() time.Time
	// Random gives numbers in [0, 1), by which pauses differ from node to node; nil: math/rand/v2's.
	Random func() float64
}

const (
	defaultIdleTimeout    = 5 * time.Minute
	defaultHealthInterval = 30 * time.Second
	// maxAttempts is how many processes one call may see die under it. Where those had other calls too, which may be what they died of, the last one is its own.
	maxAttempts = 3
)

// Keeper is a broker.Caller that keeps one process running for each provider. A process is started when it is first needed, and stopped when nobody has asked it for a while. It is replaced when it
// ends or hangs, when its file changes, and, since a provider whose entry has changed is another provider, when its configuration does; the calls that it has are answered first.
type Keeper struct {
	host
	idleTimeout    time.Duration
	healthInterval time.Duration
	now            func() time.Time
	random         func() float64
	// launch starts and configures a process; a test puts another in its place.
	launch func(ctx context.Context, provider *config.Provider, path string, steps *parts) (process, error)
	// stat is os.Stat; a test puts another in its place.
	stat func(path string) (fs.FileInfo, error)

	minds sync.WaitGroup // the goroutines that start and watch processes
	alone chan struct{}  // has an element for each process that runs for one call alone

	mu       sync.Mutex
	kept     map[string]*kept // by the provider's fingerprint
	retained map[string]bool  // by fingerprint; nil: all
	calls    int              // that are going on
	closing  bool             // no new calls
	closed   bool             // nor new processes
	quiet    chan struct{}    // closed when closing, and no call is going on any more
}

var _ broker.Caller = (*Keeper)(nil)

// NewKeeper makes a Keeper. It does not touch the disk.
func NewKeeper(o KeeperOptions) *Keeper {
	k := &Keeper{
		host: newHost(o.Options), idleTimeout: o.IdleTimeout, healthInterval: o.HealthInterval, now: o.Now, random: o.Random,
		stat: os.Stat, kept: map[string]*kept{}, quiet: make(chan struct{}), alone: make(chan struct{}, max(2, 2*runtime.NumCPU())),
	}
	if k.idleTimeout == 0 {
		k.idleTimeout = defaultIdleTimeout
	}
	if k.healthInterval == 0 {
		k.healthInterval = defaultHealthInterval
	}
	if k.now == nil {
		k.now = time.Now
	}
	if k.random == nil {
		k.random = rand.Float64
	}
	k.launch = k.startAndConfigure
	return k
}

// startAndConfigure is launch with a real process.
func (k *Keeper) startAndConfigure(ctx context.Context, provider *config.Provider, path string, steps *parts) (process, error) {
	p, err := k.start(ctx, provider, path, steps)
	if err != nil {
		return nil, err
	}
	if err := configure(ctx, p, steps); err != nil {
		p.Stop()
		return nil, err
	}
	return p, nil
}

// Call implements broker.Caller: it asks the provider's process, which it starts if need be. Where the process ends meanwhile it asks another one, until ctx is done or three have
// ended. The parts of the answer are "check", "start" and "configure" for the call that had to start the process, "wait" for others that had to wait for that, and "ask".
func (k *Keeper) Call(ctx context.Context, provider *config.Provider, request broker.Request) (broker.Answer, error) {
	question := questionOf(request)
	return k.answer(ctx, provider, func(in *instance) (*backendv1.GetCredentialsResponse, error) {
		return in.process.GetCredentials(ctx, question)
	})
}

// Renew is Call for an answer that is to take the place of an earlier one, whose lease it gives: a backend that can renew renews it. Where there is no lease, or nothing to renew, it is
// Call.
func (k *Keeper) Renew(ctx context.Context, provider *config.Provider, request broker.Request, lease secret.Secret) (broker.Answer, error) {
	if lease == "" {
		return k.Call(ctx, provider, request)
	}
	question := questionOf(request)
	return k.answer(ctx, provider, func(in *instance) (*backendv1.GetCredentialsResponse, error) {
		can, err := in.can(ctx, backendv1.Feature_FEATURE_RENEW)
		if err != nil {
			return nil, err
		}
		if can {
			response, err := in.process.Renew(ctx, &backendv1.RenewRequest{Request: question, Lease: []byte(lease)})
			if !errors.Is(err, plugin.ErrNothingToRenew) {
				return response, err
			}
		}
		return in.process.GetCredentials(ctx, question)
	})
}

// Revoke has the provider's backend end what it lent with an answer of that lease. It is nil where the backend cannot do that, or has nothing to do. The process of a provider that is not retained any more
// is started once more for it, and ends with it.
func (k *Keeper) Revoke(ctx context.Context, provider *config.Provider, lease secret.Secret) error {
	if lease == "" {
		return nil
	}
	return k.do(ctx, provider, &parts{began: time.Now()}, func(in *instance) error {
		if can, err := in.can(ctx, backendv1.Feature_FEATURE_REVOKE); err != nil || !can {
			return err
		}
		if err := in.process.Revoke(ctx, []byte(lease)); !errors.Is(err, plugin.ErrNothingToRevoke) {
			return err
		}
		return nil
	})
}

func (k *Keeper) answer(ctx context.Context, provider *config.Provider, ask func(*instance) (*backendv1.GetCredentialsResponse, error)) (broker.Answer, error) {
	parts := &parts{began: time.Now()}
	var response *backendv1.GetCredentialsResponse
	if err := k.do(ctx, provider, parts, func(in *instance) (err error) {
		began := time.Now()
		response, err = ask(in)
		parts.addCall("ask", began, time.Since(began), response.GetSpans())
		return err
	}); err != nil {
		return broker.Answer{Parts: parts.done}, err
	}
	return answerOf(response, parts), nil
}

// do lets ask have a process of the provider's, and another one where that ends under it.
func (k *Keeper) do(ctx context.Context, provider *config.Provider, parts *parts, ask func(*instance) error) error {
	s, err := k.enter(provider)
	if err != nil {
		return err
	}
	defer k.leave(s)
	crowded := false
	for attempt := 1; ; attempt++ {
		var err error
		if attempt == maxAttempts && crowded {
			err = s.onceAlone(ctx, parts, ask)
		} else {
			crowded, err = s.once(ctx, parts, ask)
		}
		if err == nil {
			return nil
		}
		if attempt == maxAttempts || ctx.Err() != nil || !worthAnother(err) {
			err = explain(ctx, parts.began, err)
			s.note(err)
			return err
		}
	}
}

var errEnding = broker.Errorf(broker.Unavailable, "the broker is ending")

// enter begins a call.
func (k *Keeper) enter(provider *config.Provider) (*kept, error) {
	fingerprint := provider.Fingerprint()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closing {
		return nil, errEnding
	}
	s := k.kept[fingerprint]
	if s == nil {
		s = &kept{keeper: k, provider: provider, fingerprint: fingerprint}
		k.kept[fingerprint] = s
	}
	s.calls++
	k.calls++
	return s, nil
}

// leave ends a call.
func (k *Keeper) leave(s *kept) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s.calls--
	k.calls--
	k.dropLocked(s)
	if k.closing && k.calls == 0 {
		close(k.quiet)
	}
}

// dropLocked forgets a provider that is not retained and has no calls any more.
func (k *Keeper) dropLocked(s *kept) {
	if k.retained == nil || k.retained[s.fingerprint] || s.calls > 0 {
		return
	}
	if s.current != nil {
		s.current.retireLocked()
	}
	delete(k.kept, s.fingerprint)
}

// Retain has the processes of all other providers stopped, each when it has no calls any more. A provider whose entry has changed is another one.
func (k *Keeper) Retain(providers []*config.Provider) {
	retained := make(map[string]bool, len(providers))
	for _, provider := range providers {
		retained[provider.Fingerprint()] = true
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.retained = retained
	for _, s := range k.kept {
		k.dropLocked(s)
	}
}

// Replace has the processes of these providers stopped, each when it has no calls any more; the next call starts another one, with nothing in its memory, at once.
func (k *Keeper) Replace(of func(*config.Provider) bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, s := range k.kept {
		if !of(s.provider) {
			continue
		}
		s.failures, s.notBefore = 0, time.Time{}
		if s.current != nil {
			s.current.retireLocked()
		}
	}
}

// KeptBackend is what is known of one provider's process.
type KeptBackend struct {
	Provider    string `json:"provider"`
	Fingerprint string `json:"fingerprint"` // config.Provider.Fingerprint
	Backend     string `json:"backend"`     // as in the configuration
	Path        string `json:"path"`        // the file last started; empty: none was
	// PID is 0 while no process runs, or one is only being started.
	PID      int       `json:"pid"`
	Started  time.Time `json:"started,omitzero"` // of the process that runs
	Restarts int       `json:"restarts"`         // starts in place of a process that had ended by itself, hung, or could not be started
	InFlight int       `json:"inFlight"`         // calls that are going on, or wait for a start
	LastUsed time.Time `json:"lastUsed,omitzero"`
	// LastExit says how a process ended by itself the last time, or why it had to be killed: "exited with status 2". Empty: never.
	LastExit string `json:"lastExit,omitempty"`
	// LastError is the last failure of a call. Empty: there was none.
	LastError string `json:"lastError,omitempty"`
}

// Status tells of every provider that has been asked and is still retained, in the order of their names.
func (k *Keeper) Status() []KeptBackend {
	k.mu.Lock()
	defer k.mu.Unlock()
	status := make([]KeptBackend, 0, len(k.kept))
	for _, s := range k.kept {
		status = append(status, s.statusLocked())
	}
	slices.SortFunc(status, func(a, b KeptBackend) int {
		if byName := strings.Compare(a.Provider, b.Provider); byName != 0 {
			return byName
		}
		return strings.Compare(a.Fingerprint, b.Fingerprint)
	})
	return status
}

// Close takes no new calls, waits for those that are going on, lets each backend that can end in good order, kills what is left, and removes the files of this Keeper. When ctx is done it waits
// for nothing any more, and says what was cut off.
func (k *Keeper) Close(ctx context.Context) error {
	k.mu.Lock()
	if !k.closing {
		k.closing = true
		if k.calls == 0 {
			close(k.quiet)
		}
	}
	k.mu.Unlock()
	select {
	case <-k.quiet:
	case <-ctx.Done():
	}

	k.mu.Lock()
	k.closed = true
	cutOff := k.calls
	for _, s := range k.kept {
		if s.current != nil {
			s.current.retireLocked()
		}
	}
	k.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		k.minds.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
	}
	err := k.runtime.Close()
	if cutOff > 0 {
		err = errors.Join(err, fmt.Errorf("stop the backends: %d calls were still going on", cutOff))
	}
	return err
}
