// Package settings has what the settings of several backends have in common. It knows none of them.
package settings

import (
	"path/filepath"

	"github.com/credential-broker/credential-broker/backends"
)

// PodIdentity is whether the service account token of the pod that pulls is used, where the provider has tokenAttributes.
type PodIdentity string

// The ways to use it: not at all, for the pods that bring what is needed (the node's identity for the rest), or for every pull.
const (
	PodIdentityOff     PodIdentity = "Off"
	PodIdentityPrefer  PodIdentity = "Prefer"
	PodIdentityRequire PodIdentity = "Require"
)

// PodIdentities are all of them.
var PodIdentities = []PodIdentity{PodIdentityOff, PodIdentityPrefer, PodIdentityRequire}

// Problems collects what is wrong with settings, each as backends.InvalidConfig makes it.
type Problems []error

// Add adds one, of the setting at a path.
func (p *Problems) Add(field, format string, args ...any) {
	*p = append(*p, backends.InvalidConfig(field, format, args...))
}

// Path wants an absolute path, or none.
func (p *Problems) Path(field, path string) {
	if path != "" && !filepath.IsAbs(path) {
		p.Add(field, "want an absolute path, got %q", path)
	}
}
