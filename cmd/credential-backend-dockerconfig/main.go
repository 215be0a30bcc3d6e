// Credential-backend-dockerconfig gives the credentials of a docker configuration file and its helpers: see package backends/dockerconfig.
package main

import (
	"context"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/dockerconfig"
)

var version = "dev" // set by the linker

func main() {
	backends.Serve("dockerconfig", version, func(ctx context.Context, cfg dockerconfig.Config) (backends.Backend, error) {
		return dockerconfig.New(ctx, cfg)
	})
}
