package agent

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/credential-broker/credential-broker/broker/agent/cache"
	"github.com/credential-broker/credential-broker/broker/config"
)

// place is what an exec plugin names when it asks: the same request has another answer under another configuration.
type place struct {
	path       string // of --config; empty: the default places
	backendDir string // of --backend-dir; empty: what the configuration says
}

// name is the configuration's, for people.
func (p place) name() string {
	if p.path == "" {
		return "default"
	}
	return p.path
}

// label is the name of the configuration with these backends: two that differ only in their backends are two.
func (p place) label() string {
	if p.backendDir == "" {
		return p.name()
	}
	return p.name() + " --backend-dir " + p.backendDir
}

// set is one configuration, as it changes.
type set struct {
	agent *Agent
	place
	log  *slog.Logger // that of the configuration as it is
	logs *handlers
	used atomic.Int64 // when, Unix nanoseconds

	mu       sync.Mutex // held while the configuration is loaded
	loaded   atomic.Pointer[loaded]
	broken   atomic.Bool // what is on disk is refused
	refused  refusal
	givenUp  bool
	refusals int
	reloads  int
}

// loaded is one whole configuration, which is never changed, and what is kept for it.
type loaded struct {
	cfg     *config.Config
	version config.Version
	at      time.Time
	kept    *kept
}

// refusal is a configuration that was not taken.
type refusal struct {
	version config.Version
	at      time.Time // when it was looked at
	err     error     // nil: the last one was taken
}

func newSet(a *Agent, at place) *set {
	s := &set{agent: a, place: at, logs: newHandlers()}
	s.log = slog.New(s.logs)
	return s
}

// errGivenUp is use's where the set has been given up.
var errGivenUp = errors.New("given up")

// use is current for who is going to ask backends. What it gives must be released.
func (s *set) use(ctx context.Context) (*loaded, error) {
	for {
		l, err := s.current(ctx)
		switch {
		case err != nil:
			return nil, err
		case l.kept.acquire():
			return l, nil
		case s.loaded.Load() == l:
			return nil, errGivenUp
		}
		// The directory of the backends has been changed since.
	}
}

func (l *loaded) release() { l.kept.release() }

// current gives the configuration as it is on disk now or, if that is broken, as it last was in order. There is an error only where it never was.
func (s *set) current(ctx context.Context) (*loaded, error) {
	version := config.Look(s.agent.Paths(s.path)...)
	if l := s.loaded.Load(); l.holds(version) && !s.broken.Load() {
		return l, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.givenUp {
		return nil, errGivenUp
	}
	previous := s.loaded.Load()
	if previous.holds(version) { // another request has loaded it meanwhile, or it is again what it was before it was broken
		s.accept()
		return previous, nil
	}
	if r := s.refused; r.err != nil && r.version.Equal(version) && version.Settled(r.at) && s.agent.Now().Sub(r.at).Abs() < refusalAge {
		return orError(previous, r.err)
	}
	var cfg *config.Config
	var err error
	version, began, changing := config.ReadWhole(s.agent.Now, func() []string { return s.agent.Paths(s.path) }, func() { cfg, err = s.agent.Load(s.path, s.backendDir) })
	if changing != nil {
		return orError(previous, changing)
	}
	if err != nil {
		if s.refused.err == nil || !s.refused.version.Equal(version) {
			s.refusals++
		}
		if previous != nil && (s.refused.err == nil || s.refused.err.Error() != err.Error()) {
			s.log.Error("the configuration has been changed and is broken: the one before serves on", "config", s.name(), "reason", err.Error())
		}
		s.refused = refusal{version, began, err}
		s.broken.Store(true)
		return orError(previous, err)
	}
	s.accept()
	next := &loaded{cfg: cfg, version: version, at: began}
	if previous != nil && sameConfiguration(previous.cfg, cfg) {
		next.cfg, next.kept = previous.cfg, previous.kept
		s.loaded.Store(next)
		return next, nil
	}
	s.replace(ctx, previous, next)
	return next, nil
}

// refusalAge is how long a refusal is remembered: what the files are judged by is more than what tells their version, the directories above them for one.
const refusalAge = 5 * time.Second

// accept notes that the configuration on disk is the one that serves.
func (s *set) accept() {
	s.refused = refusal{}
	s.broken.Store(false)
}

func orError(l *loaded, err error) (*loaded, error) {
	if l == nil {
		return nil, err
	}
	return l, nil
}

// holds says that the files are still those that were loaded.
func (l *loaded) holds(version config.Version) bool {
	return l != nil && l.version.Equal(version) && version.Settled(l.at)
}

// replace puts next in the place of previous, which may be nil.
func (s *set) replace(ctx context.Context, previous, next *loaded) {
	s.logs.set(s.agent.Log(next.cfg.Log).Handler())
	if previous == nil || previous.cfg.BackendDir != next.cfg.BackendDir {
		next.kept = newKept(s, next.cfg)
		s.loaded.Store(next)
		if previous != nil {
			s.agent.sets.giveUp(ctx, previous.kept)
		}
	} else {
		next.kept = previous.kept
		s.loaded.Store(next)
		next.kept.backends.Retain(next.cfg.Providers)
		next.kept.cache.Retain(next.cfg.Providers, next.cfg.MaxCacheDuration)
	}
	if previous == nil {
		return
	}
	s.reloads++
	s.log.Info("the configuration has been changed", "config", s.name(), "providers", len(next.cfg.Providers))
	if next.cfg.Agent != previous.cfg.Agent {
		s.log.Warn("the settings of the agent itself hold from its next start on", "config", s.name())
	}
}

// sameConfiguration says that a file was touched and nothing in it changed.
func sameConfiguration(a, b *config.Config) bool {
	return a.BackendDir == b.BackendDir && a.Timeout == b.Timeout && a.OverlapPolicy == b.OverlapPolicy && a.Log == b.Log && a.Agent == b.Agent &&
		(a.MaxCacheDuration == nil) == (b.MaxCacheDuration == nil) && (a.MaxCacheDuration == nil || *a.MaxCacheDuration == *b.MaxCacheDuration) &&
		slices.Equal(a.Sources, b.Sources) && slices.EqualFunc(a.Providers, b.Providers, func(p, q *config.Provider) bool { return p.Fingerprint() == q.Fingerprint() })
}

// kept is what outlives a request: backends that run and answers that hold.
type kept struct {
	backends Backends
	cache    *cache.Cache

	mu      sync.Mutex
	users   int // requests in flight
	retired bool
	unused  chan struct{} // closed when it is retired and nobody uses it any more
}

func newKept(s *set, cfg *config.Config) *kept {
	k := &kept{backends: s.agent.Backends(cfg.BackendDir, s.log), unused: make(chan struct{})}
	options := cache.Options{Source: k.backends, Log: s.log, MaxCacheDuration: cfg.MaxCacheDuration}
	if observe := s.agent.ObserveCall; observe != nil {
		configuration := s.label()
		options.OnCall = func(e cache.Event) { observe(Call{configuration, e}) }
	}
	k.cache = cache.New(options)
	return k
}

// acquire keeps it from being closed until release. False: it was retired already.
func (k *kept) acquire() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.retired {
		return false
	}
	k.users++
	return true
}

func (k *kept) release() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.users--; k.users == 0 && k.retired {
		close(k.unused)
	}
}

func (k *kept) retire() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.retired {
		return
	}
	k.retired = true
	if k.users == 0 {
		close(k.unused)
	}
}

// await waits until its users are done, or ctx is.
func (k *kept) await(ctx context.Context) {
	select {
	case <-k.unused:
	case <-ctx.Done():
	}
}

// close ends it once its users are done, for whom half of the time until ctx is done is left: what it has lent is revoked then, while the backends are there, and the backends put away what they have.
func (k *kept) close(ctx context.Context) error {
	k.retire()
	waiting, cancel := ctx, context.CancelFunc(func() {})
	if deadline, ok := ctx.Deadline(); ok {
		waiting, cancel = context.WithTimeout(ctx, time.Until(deadline)/2)
	}
	defer cancel()
	k.await(waiting)
	k.cache.Close(ctx)
	return k.backends.Close(ctx)
}

// sets are all configurations that were asked about.
type sets struct {
	agent *Agent
	own   *set // is never given up

	mu  sync.Mutex
	all map[place]*set
	// leaving are those that were given up and may still have requests in flight, or something lent. They do not wait for that any more once ending is done.
	leaving sync.WaitGroup
	ending  context.Context
	end     context.CancelFunc
}

// maxSets bounds the configurations that are kept at once. A node has one; others come from people who try something.
const maxSets = 8

// leavingTimeout bounds the wait for the requests that still use a configuration's backends when those are given up: no request takes longer.
const leavingTimeout = config.MaxTimeout

func (ss *sets) init(a *Agent, path, backendDir string) {
	ss.agent = a
	ss.ending, ss.end = context.WithCancel(context.Background())
	ss.own = newSet(a, place{path, backendDir})
	ss.all = map[place]*set{ss.own.place: ss.own}
}

// use is set.use for who asks from there.
func (ss *sets) use(ctx context.Context, where place) (*set, *loaded, error) {
	for {
		s := ss.get(ctx, where)
		s.used.Store(ss.agent.Now().UnixNano())
		l, err := s.use(ctx)
		if errors.Is(err, errGivenUp) {
			continue // somebody else needed the room
		}
		return s, l, err
	}
}

func (ss *sets) get(ctx context.Context, where place) *set {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if s := ss.all[where]; s != nil {
		return s
	}
	if len(ss.all) >= maxSets {
		ss.makeRoom(ctx)
	}
	s := newSet(ss.agent, where)
	s.used.Store(ss.agent.Now().UnixNano())
	ss.all[where] = s
	return s
}

// makeRoom gives up the set that was asked about longest ago.
func (ss *sets) makeRoom(ctx context.Context) {
	var oldest *set
	for _, s := range ss.all {
		if s != ss.own && (oldest == nil || s.used.Load() < oldest.used.Load()) {
			oldest = s
		}
	}
	delete(ss.all, oldest.place)
	oldest.mu.Lock() // it may just be loading, or reloading
	oldest.givenUp = true
	l := oldest.loaded.Load()
	oldest.mu.Unlock()
	if l != nil {
		ss.giveUp(ctx, l.kept)
	}
}

// giveUp closes what is kept when its last request has been answered, and what it has lent has been revoked. The backends that do that are started for it once more.
func (ss *sets) giveUp(ctx context.Context, k *kept) {
	k.retire()
	ss.leaving.Go(func() {
		ctx := context.WithoutCancel(ctx)
		used, cancel := context.WithTimeout(ctx, leavingTimeout)
		stop := context.AfterFunc(ss.ending, cancel) //nolint:contextcheck // it is the agent's end, which waits for them itself
		k.await(used)
		stop()
		cancel()
		k.backends.Retain(nil)
		k.cache.Settle(ss.ending) //nolint:contextcheck // as above: what is lent may be in use for longer than a request
		ctx, cancel = context.WithTimeout(ctx, leavingTimeout)
		defer cancel()
		if err := k.close(ctx); err != nil {
			ss.agent.Logger().Warn("backends that are not needed any more did not end well", "reason", err.Error())
		}
	})
}

// snapshot gives all sets, the agent's own first.
func (ss *sets) snapshot() []*set {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	all := []*set{ss.own}
	for _, s := range ss.all {
		if s != ss.own {
			all = append(all, s)
		}
	}
	slices.SortFunc(all[1:], func(a, b *set) int {
		return cmp.Or(strings.Compare(a.path, b.path), strings.Compare(a.backendDir, b.backendDir))
	})
	return all
}

func (ss *sets) refresh(ctx context.Context) {
	for _, s := range ss.snapshot() {
		if s.loaded.Load() != nil {
			_, _ = s.current(ctx) // what is wrong is logged, and the one before serves on
		}
	}
}

// handedOn leaves what is lent to a successor, but for what was given up: of that it knows nothing.
func (ss *sets) handedOn() {
	for _, s := range ss.snapshot() {
		if l := s.loaded.Load(); l != nil {
			l.kept.cache.HandedOn()
		}
	}
}

func (ss *sets) close(ctx context.Context) error {
	ss.end()
	all := ss.snapshot()
	errs := make([]error, len(all), len(all)+1)
	var closing sync.WaitGroup
	for i, s := range all {
		if l := s.loaded.Load(); l != nil {
			closing.Go(func() { errs[i] = l.kept.close(ctx) })
		}
	}
	closing.Wait()
	left := make(chan struct{})
	go func() { ss.leaving.Wait(); close(left) }()
	select {
	case <-left:
	case <-ctx.Done():
		errs = append(errs, ctx.Err())
	}
	return errors.Join(errs...)
}
