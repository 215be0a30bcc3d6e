// Package docker is the rules for clients that speak the Docker credential helper protocol (https://github.com/docker/docker-credential-helpers): for which image a server's name is asked, which of an
// answer's credentials is the server's, and why there may be none. Such a client names a registry where the kubelet names an image, and takes one credential where the kubelet takes several. The package
// knows no process and no socket.
package docker

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/docker/docker-credential-helpers/credentials"

	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/image"
	"github.com/credential-broker/credential-broker/broker/kubelet"
)

// hub is how the kubelet names Docker Hub's images, and hubNames are what clients call it.
const hub = "docker.io"

var hubNames = []string{hub, image.DockerHubKey, "registry-1.docker.io"}

// ReadServer reads what a client writes for `get`: one server. It gives the server as the client wrote it, which is how the answer has to name it, and the image to ask for. An error quotes nothing that could be a
// password. The library's own reading joins lines, so that two servers would become a third.
func ReadServer(data []byte) (server, img string, err error) {
	data = bytes.TrimSpace(data)
	switch {
	case len(data) == 0:
		return "", "", credentials.NewErrCredentialsMissingServerURL()
	case len(data) > image.MaxNameLength:
		return "", "", fmt.Errorf("the server's name is longer than %d bytes: write host[:port]", image.MaxNameLength)
	case bytes.ContainsAny(data, "\r\n"):
		return "", "", errors.New("there is more than one line: write one server, host[:port]")
	}
	img, err = ImageOf(string(data))
	return string(data), img, err
}

// ImageOf is the name that is asked for: host[:port], and a path where the client gave one. A server without a path stands for the whole registry, so nothing matches it that is for a part of the registry alone.
// Of a URL, scheme and API version are left out ("https://index.docker.io/v1/"); the several names of Docker Hub are the kubelet's, docker.io.
func ImageOf(server string) (string, error) {
	switch {
	case strings.ContainsAny(server, "@?#%"):
		return "", errors.New("the server's name has one of @ ? # %, which could come with a password: write host[:port]")
	case !utf8.ValidString(server):
		return "", errors.New("the server's name is not UTF-8: write host[:port]")
	}
	scheme, name, isURL := strings.Cut(server, "://")
	switch {
	case !isURL:
		name = server
	case !strings.EqualFold(scheme, "https") && !strings.EqualFold(scheme, "http"):
		return "", fmt.Errorf("server %q is neither host[:port] nor a URL with https or http", server)
	}
	host, path, _ := strings.Cut(name, "/")
	if isURL {
		path = withoutVersion(path)
	}
	host, path = strings.Map(lower, host), strings.TrimRight(path, "/")
	switch {
	case host == "":
		return "", errors.New("the server's name has no host: write host[:port]")
	case slices.Contains(hubNames, host):
		host = hub
	}
	name = host
	if path != "" {
		name += "/" + path
	}
	if err := image.CheckName(name); err != nil {
		return "", fmt.Errorf("server: %w", err)
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "." || segment == ".." {
			return "", fmt.Errorf("server %q has a path that leads elsewhere: write host[:port]", server)
		}
	}
	return name, nil
}

// lower is for host names, of ASCII alone: Unicode has letters whose lower case is another host's.
func lower(r rune) rune {
	if 'A' <= r && r <= 'Z' {
		return r + 'a' - 'A'
	}
	return r
}

// withoutVersion is the path of a registry's URL without the API's version, as docker itself reads its old names of servers.
func withoutVersion(path string) string {
	for _, version := range []string{"v1", "v2"} {
		if rest, ok := strings.CutPrefix(path, version); ok && (rest == "" || rest[0] == '/') {
			return strings.TrimPrefix(rest, "/")
		}
	}
	return path
}

// IsHubToken says that a server is none, but a place where docker keeps tokens of its own login to Docker Hub. What is a provider's for Docker Hub is no such token.
func IsHubToken(img string) bool { return img == hub+"/access-token" || img == hub+"/refresh-token" }

// Pick is the credential that is the server's: the one that the kubelet would try first for an image of this name, save that Docker Hub's last resort is for Docker Hub alone. A credential with a path is never that
// of the whole registry. False: there is none.
func Pick(img string, response kubelet.Response) (kubelet.AuthConfig, bool) {
	type candidate struct{ key, index string }
	var matching []candidate
	for _, key := range slices.Sorted(maps.Keys(response.Auth)) {
		index, err := image.IndexKey(key)
		auth := response.Auth[key]
		if err != nil || auth.Username == "" && auth.Password == "" {
			continue
		}
		switch {
		case image.KeyMatches(key, img):
			matching = append(matching, candidate{key, index})
		case index == image.DockerHubKey && image.Registry(img) == hub: // less than any that matches, as no index is empty
			matching = append(matching, candidate{key, ""})
		}
	}
	if len(matching) == 0 {
		return kubelet.AuthConfig{}, false
	}
	first := slices.MaxFunc(matching, func(a, b candidate) int { return cmp.Compare(a.index, b.index) })
	return response.Auth[first.key], true
}

// WhyNone says, for a person, what there is for parts of the server's registry, or for pods, where nothing was answered: one text for each such provider.
func WhyNone(providers []*config.Provider, img string) []string {
	var why []string
	for _, p := range providers {
		var parts []string
		whole := false
		for _, pattern := range p.MatchImages {
			switch {
			case image.Match(pattern, img):
				whole = true
			case image.MatchHost(pattern, img):
				parts = append(parts, pattern)
			}
		}
		for _, m := range p.Mirrors {
			switch {
			case img == m.Source || strings.HasPrefix(img, m.Source+"/"):
				whole = true
			case image.Registry(m.Source) == image.Registry(img):
				parts = append(parts, m.Source)
			}
		}
		switch {
		case p.TokenAttributes != nil && (whole || len(parts) > 0):
			why = append(why, fmt.Sprintf("provider %q answers for pods alone (tokenAttributes)", p.Name))
		case !whole && len(parts) > 0:
			why = append(why, fmt.Sprintf("provider %q is for %s alone", p.Name, strings.Join(parts, ", ")))
		}
	}
	return why
}
