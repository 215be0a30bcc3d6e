// Package config is the broker's configuration: its types, how it is read from a file or a directory, and what makes it valid. It starts no
// backend, so it cannot judge a provider's own `config`; and it decides no routing.
package config

import (
	"encoding/json"
	"time"
)

// The apiVersion and kind of a configuration file.
const (
	APIVersion = "credential-broker.io/v1alpha1"
	Kind       = "BrokerConfig"
)

// Defaults and bounds of the settings.
const (
	DefaultTimeout         = 45 * time.Second
	MaxTimeout             = 58 * time.Second // the kubelet kills its plugin after 60 s
	DefaultProviderTimeout = 15 * time.Second
	DefaultIdleTimeout     = 15 * time.Minute
	// DefaultMaxCacheDurationWithAgent is the bound where an agent is set and nobody said otherwise: asking it again is cheap, and what the kubelet caches
	// nobody can take back.
	DefaultMaxCacheDurationWithAgent = time.Minute
)

// OverlapPolicy is what happens when two providers answer one auth key.
type OverlapPolicy string

// The overlap policies.
const (
	First    OverlapPolicy = "First"
	Fallback OverlapPolicy = "Fallback"
)

// CacheType is how far an answer made with a service account token may be shared; the kubelet's own words (KEP-4412).
type CacheType string

// The cache types.
const (
	CacheTypeToken          CacheType = "Token"
	CacheTypeServiceAccount CacheType = "ServiceAccount"
)

// Config is a whole BrokerConfig: defaults filled in, durations parsed, valid.
type Config struct {
	// Sources are the files it was read from, in order.
	Sources []string
	// BackendDir is empty if the configuration does not set it.
	BackendDir string
	Timeout    time.Duration
	// MaxCacheDuration bounds every cacheDuration that is answered; nil means no bound.
	MaxCacheDuration *time.Duration
	OverlapPolicy    OverlapPolicy
	Log              Log
	Agent            Agent
	Providers        []*Provider
	// Warnings are what is odd but works, such as a pattern that can match no image.
	Warnings Problems

	places map[string]entryPlace // by provider
	// cacheBoundSaid: maxCacheDuration stands in the configuration, be it empty.
	cacheBoundSaid bool
}

// SetAgent says where the agent is, whatever the configuration says: empty for no agent. Where the configuration has no maxCacheDuration, that decides the default one.
func (c *Config) SetAgent(socket string) {
	c.Agent.Socket = socket
	c.setDefaultBound(socket != "")
}

// ServedByAgent says that an agent uses this configuration, wherever its socket is: see SetAgent.
func (c *Config) ServedByAgent() { c.setDefaultBound(true) }

func (c *Config) setDefaultBound(withAgent bool) {
	if c.cacheBoundSaid {
		return
	}
	c.MaxCacheDuration = nil
	if withAgent {
		bound := DefaultMaxCacheDurationWithAgent
		c.MaxCacheDuration = &bound
	}
}

// Log is where the broker's log goes besides standard error and the journal.
type Log struct {
	Level  string // debug | info | warn | error
	Format string // text | json
	File   string
}

// Agent is the long-lived side's settings.
type Agent struct {
	Socket      string
	AutoStart   bool
	IdleTimeout time.Duration
	Metrics     string
}

// Provider is one entry of `providers`.
type Provider struct {
	Name string
	// Backend is a backend's name or an absolute path.
	Backend     string
	MatchImages []string
	// DefaultCacheDuration is used where neither credentials nor backend say how long an answer holds; nil where the configuration does not set it, which counts as zero.
	DefaultCacheDuration *time.Duration
	Timeout              time.Duration
	Env                  []EnvVar
	InheritEnv           []string
	SHA256               []string // lower-case hex, 64 digits
	User                 string
	TokenAttributes      *TokenAttributes
	Mirrors              []Mirror
	// Config is the backend's own settings as one JSON object; "{}" if none are given.
	Config json.RawMessage
	// At is where the entry stands, for messages: "/etc/credential-broker/config.yaml:12".
	At string
}

// EnvVar is a variable that is set for a provider's backend.
type EnvVar struct {
	Name  string
	Value string
}

// TokenAttributes let a provider see the pod's service account token.
type TokenAttributes struct {
	ServiceAccountTokenAudience          string
	CacheType                            CacheType
	RequireServiceAccount                bool
	RequiredServiceAccountAnnotationKeys []string
	OptionalServiceAccountAnnotationKeys []string
}

// Mirror says that images under Source are asked for as if under Endpoint. Both are "host[:port][/path]".
type Mirror struct {
	Source   string
	Endpoint string
}
