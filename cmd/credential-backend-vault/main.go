// Credential-backend-vault gives registry credentials that Vault keeps or makes: see package backends/vault.
package main

import (
	"context"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/vault"
)

var version = "dev" // set by the linker

func main() {
	backends.Serve("vault", version, func(ctx context.Context, cfg vault.Config) (backends.Backend, error) {
		b, err := vault.New(ctx, cfg)
		if err != nil {
			return nil, err
		}
		return b.Serving(), nil
	})
}
