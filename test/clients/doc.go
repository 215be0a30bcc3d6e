// Package clients has real clients of registries ask docker-credential-broker: the program crane and its library go-containerregistry (ko, many scanners), docker's own configuration library (docker, BuildKit,
// nerdctl), ORAS, and skopeo where it is installed, which tools/skopeo.sh sees to. Each pulls from a registry that wants a password, as a user of the client would have it: a configuration file in its home, and the
// helper in PATH. BuildKit and crictl themselves are in test/node, for they need a daemon.
package clients
