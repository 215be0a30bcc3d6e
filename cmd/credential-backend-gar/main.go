// Credential-backend-gar gives tokens for Google's registries, Artifact Registry and gcr.io: see package backends/gar.
package main

import (
	"context"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/gar"
)

var version = "dev" // set by the linker

func main() {
	backends.Serve("gar", version, func(ctx context.Context, cfg gar.Config) (backends.Backend, error) {
		return gar.New(ctx, cfg)
	})
}
