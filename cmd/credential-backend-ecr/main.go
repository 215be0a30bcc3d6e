// Credential-backend-ecr gives tokens for Amazon's registries, ECR and ECR Public: see package backends/ecr.
package main

import (
	"context"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/ecr"
)

var version = "dev" // set by the linker

func main() {
	backends.Serve("ecr", version, func(ctx context.Context, cfg ecr.Config) (backends.Backend, error) {
		return ecr.New(ctx, cfg)
	})
}
