package gar

import (
	"strings"
	"unicode"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/hosts"
)

// registry is what an image's name says of its registry.
type registry struct {
	// host is as it stands in the image, with its port: the auth key.
	host string
	// location is that of the repositories: "europe-west1", "us"; empty where the name does not say.
	location string
	// project is the ID of the project that the image is in: "my-project", "example.com:my-project"; empty where the name does not say.
	project string
	// repository is that of Artifact Registry; empty for gcr.io.
	repository string
	// universe is the domain of the APIs whose tokens it takes.
	universe string
	// container: the host is of Container Registry, which Artifact Registry serves nowadays.
	container bool
}

// parseHost tells which registry of Google's the image is in; false: none. Further are patterns of further ones, in the universe.
//
// Names follow https://cloud.google.com/artifact-registry/docs/repositories/repo-locations, and for regional endpoints …/docs/repositories/regional-endpoints. No other name below google.com or
// googleapis.com is a registry; a token is worth something to whoever gets it, so that nothing is guessed.
func parseHost(image backends.Image, further []string, universe string) (registry, bool) {
	r := registry{host: image.Host(), universe: defaultUniverse}
	name := strings.TrimSuffix(strings.ToLower(r.host), ":443")
	if !hosts.ValidDomain(name) || strings.ContainsFunc(r.host, func(r rune) bool { return r > unicode.MaxASCII }) { // some of which are ASCII in lower case
		return registry{}, false
	}
	_, rest, _ := strings.Cut(string(image), "/")
	segments := strings.Split(rest, "/")
	labels := strings.Split(name, ".")
	switch {
	case len(labels) == 3 && labels[1] == "pkg" && labels[2] == "dev" && strings.HasSuffix(labels[0], "-docker"):
		r.location = strings.TrimSuffix(labels[0], "-docker")
		if !validName(r.location) {
			return registry{}, false
		}
	case len(labels) == 5 && labels[0] == "docker" && labels[2] == "rep" && labels[3] == "pkg" && labels[4] == "dev":
		if r.location = labels[1]; !validName(r.location) {
			return registry{}, false
		}
	case name == "gcr.io", name == "container.cloud.google.com":
		r.container = true
	case len(labels) == 3 && labels[1] == "gcr" && labels[2] == "io" && validName(labels[0]):
		r.container = true
	case hosts.Match(further, name):
		r.universe = universe
	default:
		return registry{}, false
	}
	r.project, segments = projectOf(segments)
	if !r.container && len(segments) > 1 { // an image at least is behind the repository
		r.repository = segments[0]
	}
	return r, true
}

// projectOf takes the project from the beginning of an image's path. A first segment with a dot is the domain of a domain-scoped project.
func projectOf(segments []string) (project string, rest []string) {
	if strings.Contains(segments[0], ".") && len(segments) > 1 {
		return segments[0] + ":" + segments[1], segments[2:]
	}
	return segments[0], segments[1:]
}
