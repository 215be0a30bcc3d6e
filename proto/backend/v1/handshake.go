// Package backendv1 is the protocol between the broker and its backends: the messages and service of backend.proto, and the go-plugin
// handshake. It knows neither side.
package backendv1

import (
	"time"

	"github.com/hashicorp/go-plugin"
)

// ProtocolVersion is go-plugin's application protocol version of this package. A backend that speaks another one is not started
// further than its handshake.
const ProtocolVersion = 1

// PluginName is the name under which the backend is dispensed by go-plugin.
const PluginName = "backend"

// Limits that both sides keep to.
const (
	// MaxMessageBytes bounds every message in either direction.
	MaxMessageBytes = 1 << 20
	// MaxCredentials bounds the credentials of one answer.
	MaxCredentials = 1000
	// MaxLeaseBytes bounds the lease of one answer.
	MaxLeaseBytes = 16 << 10
	// MaxSpans bounds the spans of one answer.
	MaxSpans = 100
)

// CloseTimeout is how long a backend may take to answer Close before it is killed, and ShortCloseTimeout how long one that was started for a single answer may, since the pull waits for it.
const (
	CloseTimeout      = 5 * time.Second
	ShortCloseTimeout = time.Second
)

// Handshake tells a program that it was started as a backend. The cookie is no secret: it only keeps a person who runs a backend by hand from
// waiting for an answer.
var Handshake = plugin.HandshakeConfig{
	ProtocolVersion:  ProtocolVersion,
	MagicCookieKey:   "CREDENTIAL_BROKER_BACKEND",
	MagicCookieValue: "4e54a7c9-6d0f-4b7e-9a55-credential-backend",
}
