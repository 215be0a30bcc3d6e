//go:build tools

// Package buildkit is a module of its own that pins BuildKit's client and daemon, which test/node builds and runs, so that their dependencies stay out of every other go.mod. Nothing is written here.
package buildkit

import (
	_ "github.com/moby/buildkit/cmd/buildctl"
	_ "github.com/moby/buildkit/cmd/buildkitd"
)
