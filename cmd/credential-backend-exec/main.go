// Credential-backend-exec makes a backend of an existing kubelet credential provider: see package backends/exec.
package main

import (
	"context"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/exec"
)

var version = "dev" // set by the linker

func main() {
	backends.Serve("exec", version, func(ctx context.Context, cfg exec.Config) (backends.Backend, error) { return exec.New(ctx, cfg) })
}
