package conformance

import (
	"net"
	"net/url"
	"path/filepath"
	"strings"
)

// The kubelet's rule for auth keys (k8s.io/kubernetes/pkg/credentialprovider, keyring.go), as far as an answer can be judged by it. A backend's side does not import the broker's
// package for it.

// key is a parsed auth key, or an image.
type key struct {
	host, port, path string
}

// parseKey reads an auth key as the kubelet files it: without scheme, without a leading /v1/ or /v2/, without a lone slash.
func parseKey(s string) (key, error) {
	if !strings.HasPrefix(s, "https://") && !strings.HasPrefix(s, "http://") {
		s = "https://" + s
	}
	u, err := url.Parse(s)
	if err != nil {
		return key{}, err
	}
	path := u.Path
	if strings.HasPrefix(path, "/v1/") || strings.HasPrefix(path, "/v2/") {
		path = path[len("/v1"):]
	}
	if path == "/" {
		path = ""
	}
	host, port, err := net.SplitHostPort(u.Host)
	if err != nil {
		host, port = u.Host, ""
	}
	return key{host, port, path}, nil
}

// parseImage is the same for an image, which keeps all of its path.
func parseImage(s string) (key, error) {
	u, err := url.Parse("https://" + s)
	if err != nil {
		return key{}, err
	}
	host, port, err := net.SplitHostPort(u.Host)
	if err != nil {
		host, port = u.Host, ""
	}
	return key{host, port, u.Path}, nil
}

// covers says whether the key is one of the image's registry: as many labels in the host, each matched by its glob, and an equal port.
func (k key) covers(image key) bool {
	labels, others := strings.Split(k.host, "."), strings.Split(image.host, ".")
	if k.port != image.port || len(labels) != len(others) {
		return false
	}
	for i, label := range labels {
		if ok, err := filepath.Match(label, others[i]); !ok || err != nil {
			return false
		}
	}
	return true
}

// keyMatches says whether the kubelet uses a credential of that key for the image.
func keyMatches(authKey, image string) bool {
	k, err := parseKey(authKey)
	if err != nil {
		return false
	}
	i, err := parseImage(image)
	if err != nil {
		return false
	}
	if k == (key{host: "index.docker.io"}) && i.host == "docker.io" && i.port == "" {
		return true // the kubelet's last resort for Docker Hub
	}
	return k.covers(i) && strings.HasPrefix(i.path, k.path)
}

// hasPathFor says whether the key concerns only some images of the image's registry.
func hasPathFor(authKey, image string) bool {
	k, err := parseKey(authKey)
	if err != nil {
		return false
	}
	i, err := parseImage(image)
	return err == nil && k.covers(i) && k.path != ""
}
