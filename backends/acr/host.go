package acr

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
	// name is the host that is asked, in lower case: of tokens too, since they are sent to no other.
	name string
	// cloud is the one that the name is in; nil where it does not say.
	cloud *cloudSettings
	// repository is the image's within the registry.
	repository string
}

// parseHost tells which registry of Azure's the image is in; false: none. Further has patterns of names that the settings add.
//
// Names follow https://learn.microsoft.com/azure/container-registry/container-registry-get-started-portal (with a hash behind the name where the registry has a domain name label) and, for regional endpoints,
// …/container-registry-geo-replication. Data endpoints (….data.azurecr.io) take no logins. A token is worth something to whoever gets it, so that nothing is guessed.
func parseHost(image backends.Image, further []string) (registry, bool) {
	r := registry{host: image.Host(), repository: image.Path()}
	r.name = strings.TrimSuffix(strings.ToLower(r.host), ":443")
	if !hosts.ValidDomain(r.name) || strings.ContainsFunc(r.host, func(r rune) bool { return r > unicode.MaxASCII }) { // some of which are ASCII in lower case
		return registry{}, false
	}
	labels := strings.Split(r.name, ".")
	n := len(labels)
	suffix := strings.Join(labels[max(n-2, 0):], ".")
	cloud, known := registryClouds[suffix]
	global := n == 3
	regional := n == 5 && labels[2] == "geo"
	switch {
	case known && (global || regional):
		r.cloud = cloud
	case hosts.Match(further, r.name):
	default:
		return registry{}, false
	}
	return r, true
}

// registryClouds are the domains of registries. Azure's cloud in Germany is closed, and the SDK does not know it: where its registries' names are still used, the settings say who takes logins.
var registryClouds = map[string]*cloudSettings{
	"azurecr.io": &publicCloud,
	"azurecr.cn": &chinaCloud,
	"azurecr.us": &governmentCloud,
	"azurecr.de": nil,
}
