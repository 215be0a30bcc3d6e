// Package clients has real clients of registries ask docker-credential-broker: go-containerregistry (crane, ko, many scanners), docker's own configuration library (docker, BuildKit, nerdctl), ORAS, and skopeo where
// it is installed, which tools/skopeo.sh sees to. Each pulls from a registry that wants a password, as a user of the client would have it: a configuration file in its home, and the helper in PATH.
package clients
