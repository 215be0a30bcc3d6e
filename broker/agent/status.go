package agent

import (
	"os"
	"time"

	"github.com/credential-broker/credential-broker/broker/agent/cache"
)

// Status is what the agent does and holds. There is no secret in it.
type Status struct {
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Began   time.Time `json:"began"`
	// Requests is how many were served, InFlight how many are being served.
	Requests       uint64          `json:"requests"`
	InFlight       int64           `json:"inFlight"`
	Configurations []Configuration `json:"configurations"`
}

// Configuration is one that was asked about, and what is kept for it.
type Configuration struct {
	// Config and BackendDir are those of the exec plugin that asks; empty: the default ones.
	Config     string    `json:"config"`
	BackendDir string    `json:"backendDir,omitempty"`
	Files      []string  `json:"files"`
	Loaded     time.Time `json:"loaded"`
	// Reloads is how often a changed configuration was taken, Refusals how often one was not, because it was broken.
	Reloads  int `json:"reloads"`
	Refusals int `json:"refusals"`
	// Refused is why the configuration that is on disk now is not used, empty if it is.
	Refused   string     `json:"refused,omitempty"`
	Providers []Provider `json:"providers"`
	// Answers are those that are held, and the failures that are remembered.
	Answers []cache.Held `json:"answers"`
	// Omitted is how many of them are not listed, because a reply has no room for all.
	Omitted int `json:"omitted,omitempty"`
	// Entries is how much is remembered, Bytes about how much memory that takes, and Unlocked how many answers lie in memory that may be swapped out.
	Entries  int `json:"entries"`
	Bytes    int `json:"bytes"`
	Unlocked int `json:"unlocked"`
}

// Name is the configuration's, for people and for metrics: "default" or its path, with its --backend-dir where there is one. No two have the same.
func (c *Configuration) Name() string { return place{c.Config, c.BackendDir}.label() }

// Provider is one that is configured.
type Provider struct {
	Name    string `json:"name"`
	Backend string `json:"backend"`
	// Processes are those of its backend, mostly one; a replaced one may be answering its last requests.
	Processes []Backend           `json:"processes,omitempty"`
	Asked     cache.ProviderStats `json:"asked"`
}

// Backend is a provider's backend and its process.
type Backend struct {
	Provider string `json:"provider"`
	// Path is the file that was started last; empty if none was.
	Path string `json:"path"`
	// PID is 0 while none runs.
	PID     int       `json:"pid"`
	Started time.Time `json:"started,omitzero"` // of the process that runs
	// Restarts counts starts in the place of a process that had ended by itself, hung, or could not be started.
	Restarts int       `json:"restarts"`
	InFlight int       `json:"inFlight"`
	LastUsed time.Time `json:"lastUsed,omitzero"`
	// LastExit says how a process ended by itself the last time, or why it had to be killed: "exited with status 2".
	LastExit  string `json:"lastExit,omitempty"`
	LastError string `json:"lastError,omitempty"`
}

// Status is what the agent does and holds now.
func (a *Agent) Status() Status {
	status := Status{Version: a.Version, PID: os.Getpid(), Began: a.began, Requests: a.served.Load(), InFlight: a.inFlight.Load(), Configurations: []Configuration{}}
	for _, s := range a.sets.snapshot() {
		l := s.loaded.Load()
		if l == nil || !l.kept.acquire() {
			continue
		}
		status.Configurations = append(status.Configurations, s.status(l))
		l.release()
	}
	return status
}

// shorten leaves out half of the answers, the last in their order. False: there are none to leave out.
func (s *Status) shorten() bool {
	shortened := false
	for i := range s.Configurations {
		c := &s.Configurations[i]
		keep := len(c.Answers) / 2
		shortened = shortened || keep < len(c.Answers)
		c.Omitted += len(c.Answers) - keep
		c.Answers = c.Answers[:keep]
	}
	return shortened
}

func (s *set) status(l *loaded) Configuration {
	s.mu.Lock()
	c := Configuration{Config: s.path, BackendDir: s.backendDir, Files: l.cfg.Sources, Loaded: l.at, Reloads: s.reloads, Refusals: s.refusals}
	if s.refused.err != nil {
		c.Refused = s.refused.err.Error()
	}
	s.mu.Unlock()
	processes := map[string][]Backend{}
	for _, b := range l.kept.backends.Status() {
		processes[b.Provider] = append(processes[b.Provider], b)
	}
	stats := l.kept.cache.Stats()
	c.Entries, c.Bytes, c.Unlocked = stats.Entries, stats.Bytes, stats.Unlocked
	asked := map[string]cache.ProviderStats{}
	for _, p := range stats.Providers {
		asked[p.Provider] = p
	}
	for _, p := range l.cfg.Providers {
		c.Providers = append(c.Providers, Provider{Name: p.Name, Backend: p.Backend, Processes: processes[p.Name], Asked: asked[p.Name]})
	}
	c.Answers = l.kept.cache.Held()
	return c
}
