// Credential-backend-acr gives credentials for Azure Container Registry: see package backends/acr.
package main

import (
	"context"
	"crypto/x509"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/acr"
)

var version = "dev" // set by the linker

func main() {
	// The certificates that the machine trusts are 20 ms of work on a Debian, as much as the rest of a pull. The first TLS handshake waits for this; until then there is time, since the broker is yet to ask.
	go func() { _, _ = x509.SystemCertPool() }()
	backends.Serve("acr", version, func(ctx context.Context, cfg acr.Config) (backends.Backend, error) {
		return acr.New(ctx, cfg)
	})
}
