// Command credential-backend-stub is the source of the dashboard's made-up providers: it answers, refuses, is unavailable, or crashes, as it is told to.
package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"time"

	"github.com/credential-broker/credential-broker/backends"
)

// Config is the provider's `config`.
type Config struct {
	// Latency is about how long a call takes, and Lifetime how long a credential works.
	Latency  string `json:"latency"`
	Lifetime string `json:"lifetime"`
	// Registry: an answer is that of the whole registry.
	Registry bool `json:"registry"`
	// Refuse: there are no credentials for anybody.
	Refuse bool `json:"refuse"`
	// Down and Crash are files: while the first is there nobody can say anything, and the second is removed and ends the process.
	Down  string `json:"down"`
	Crash string `json:"crash"`
}

type stub struct {
	Config
	latency, lifetime time.Duration
}

// Credentials implements backends.Backend.
func (s *stub) Credentials(ctx context.Context, request backends.Request) (backends.Response, error) {
	timer := time.NewTimer(time.Duration((0.6 + 0.8*rand.Float64()) * float64(s.latency)))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return backends.Response{}, ctx.Err()
	}
	if s.Crash != "" && os.Remove(s.Crash) == nil {
		os.Exit(2) //nolint:gocritic // it crashes, which is the point
	}
	if _, err := os.Stat(s.Down); err == nil {
		return backends.Response{}, backends.Unavailable(errors.New("the token service does not answer"))
	}
	if s.Refuse {
		return backends.Response{}, backends.Refused(errors.New("this node has no right to pull"))
	}
	scope := backends.ScopeImage
	if s.Registry {
		scope = backends.ScopeRegistry
	}
	return backends.Response{Scope: scope, Credentials: []backends.Credential{
		{Key: request.Image.Host(), Username: "stub", Password: "stub", Expires: time.Now().Add(s.lifetime)},
	}}, nil
}

func main() {
	backends.Serve("stub", "0", func(_ context.Context, cfg Config) (backends.Backend, error) {
		s := &stub{Config: cfg}
		var err error
		if s.latency, err = time.ParseDuration(cfg.Latency); err != nil {
			return nil, backends.InvalidConfig("latency", "%v", err)
		}
		if s.lifetime, err = time.ParseDuration(cfg.Lifetime); err != nil {
			return nil, backends.InvalidConfig("lifetime", "%v", err)
		}
		return s, nil
	})
}
