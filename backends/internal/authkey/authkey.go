// Package authkey judges the kubelet's auth keys and image patterns, which have one form and one rule: "host[:port][/path]", where the labels of the host may be globs (the kubelet's pkg/credentialprovider,
// URLsMatch and BasicDockerKeyring.Add). It is for backends, which do not import the broker's own package of it; the tests compare the two.
package authkey

import (
	"net"
	"net/url"
	"path"
	"strings"
)

// Key is an auth key or a pattern.
type Key struct {
	// Host may have globs in its labels, and a port.
	Host string
	// Path is empty, or starts with a slash.
	Path string
}

// Parse takes a key apart as the kubelet does: without scheme, and without /v1/ or /v2/ in front of the path. False: no URL can be made of it.
func Parse(s string) (Key, bool) {
	if !strings.HasPrefix(s, "https://") && !strings.HasPrefix(s, "http://") {
		s = "https://" + s
	}
	parsed, err := url.Parse(s)
	if err != nil || parsed.Host == "" {
		return Key{}, false
	}
	k := Key{parsed.Host, parsed.Path}
	if strings.HasPrefix(k.Path, "/v2/") || strings.HasPrefix(k.Path, "/v1/") {
		k.Path = k.Path[3:]
	}
	if k.Path == "/" || k.Path == "/v1" || k.Path == "/v2" {
		k.Path = ""
	}
	return k, true
}

// String is the key as the kubelet files it.
func (k Key) String() string { return k.Host + k.Path }

// CoversHost says whether the key is for images of the host: equal number of labels, each a glob for the image's, equal ports. Docker Hub's key goes by its old name.
func (k Key) CoversHost(host string) bool {
	if IsDockerHub(host) && k.Host == "index.docker.io" {
		return true
	}
	globs, globPort := labels(k.Host)
	names, port := labels(host)
	if len(globs) != len(names) || globPort != port {
		return false
	}
	for i, glob := range globs {
		if ok, err := path.Match(glob, names[i]); err != nil || !ok {
			return false
		}
	}
	return true
}

// Covers says whether the key is for an image of the host with that path, which has no slash in front.
func (k Key) Covers(host, path string) bool {
	return k.CoversHost(host) && strings.HasPrefix("/"+path, k.Path)
}

// IsDockerHub says whether a host is Docker Hub's, by either of its names.
func IsDockerHub(host string) bool { return host == "docker.io" || host == "index.docker.io" }

func labels(hostport string) (labels []string, port string) {
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		host, port = hostport, ""
	}
	return strings.Split(host, "."), port
}
