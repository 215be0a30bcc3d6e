package vaultserver

import (
	"sync"
	"testing"
)

// Shared is one server for all tests of a package that leave it unsealed, each with engines and logins of its own there. It is started by the first that wants it; the package's TestMain closes it. The zero value is ready.
type Shared struct {
	once   sync.Once
	server *Server
	err    error
}

// Get is the server. Where it would have to be built and tests are to be short (-short), the test is skipped.
func (s *Shared) Get(t testing.TB) *Server {
	t.Helper()
	skipUnbuilt(t)
	s.once.Do(func() { s.server, s.err = Start(Options{}) })
	if s.err != nil {
		t.Fatal(s.err)
	}
	return s.server
}

// Close ends the server, if there is one. Nobody wants it any more.
func (s *Shared) Close() {
	s.once.Do(func() {}) // nor starts it now
	if s.server != nil {
		s.server.Close()
	}
}
