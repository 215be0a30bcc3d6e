// Credential-backend-vault gives registry credentials that Vault keeps or makes: see package backends/vault.
package main

import (
	"context"
	"crypto/x509"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/vault"
)

var version = "dev" // set by the linker

func main() {
	// As for acr: the certificates that the machine trusts are read while the broker is yet to ask, if they may be needed.
	go func() { _, _ = x509.SystemCertPool() }()
	backends.Serve("vault", version, func(ctx context.Context, cfg vault.Config) (backends.Backend, error) {
		return vault.New(ctx, cfg)
	})
}
