//go:build tools

// Package crictl is a module of its own that pins crictl, which test/node builds and runs, so that its dependencies stay out of every other go.mod. Nothing is written here.
package crictl

import _ "sigs.k8s.io/cri-tools/cmd/crictl"
