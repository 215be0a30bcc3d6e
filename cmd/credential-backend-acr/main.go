// Credential-backend-acr gives credentials for Azure Container Registry: see package backends/acr.
package main

import (
	"context"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/acr"
)

var version = "dev" // set by the linker

func main() {
	backends.Serve("acr", version, func(ctx context.Context, cfg acr.Config) (backends.Backend, error) {
		return acr.New(ctx, cfg)
	})
}
