package main

import (
	"fmt"
	"strings"

	"github.com/credential-broker/credential-broker/broker/image"
)

// imageArgument turns what a person types into the name that the kubelet would ask for: without tag and digest, Docker Hub's short names written out.
func imageArgument(name string) (string, error) {
	if scheme, rest, ok := strings.Cut(name, "://"); ok {
		return "", fmt.Errorf("image %q: leave out %q: write %s", name, scheme+"://", rest)
	}
	given := name
	name, _, _ = strings.Cut(name, "@")
	if colon := strings.LastIndexByte(name, ':'); colon > strings.LastIndexByte(name, '/') && strings.Contains(name, "/") {
		name = name[:colon]
	} else if colon >= 0 && !strings.Contains(name, "/") {
		name = name[:colon] // "nginx:1.27"; a bare "host:port" is no image
	}
	host, path, ok := strings.Cut(name, "/")
	switch {
	case !ok:
		host, path = "docker.io", name
	case host == "index.docker.io":
		host = "docker.io"
	case !strings.ContainsAny(host, ".:") && host != "localhost" && strings.ToLower(host) == host:
		host, path = "docker.io", name
	}
	if host == "" || path == "" || strings.HasPrefix(name, "/") || strings.HasSuffix(path, "/") {
		return "", fmt.Errorf("image %q names no image: write one such as registry.example/team/app", given)
	}
	if host == "docker.io" && !strings.Contains(path, "/") {
		path = "library/" + path
	}
	name = host + "/" + path
	if err := image.CheckName(name); err != nil {
		return "", err
	}
	return name, nil
}
