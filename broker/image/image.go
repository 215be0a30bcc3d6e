// Package image is the kubelet's rules for image names, match patterns and auth keys, and nothing else: which pattern matches which image, under which
// index an auth key is filed, what counts as Docker Hub. It follows k8s.io/kubernetes/pkg/credentialprovider, oddities included, and knows neither
// configuration nor credentials; test/kubelet holds its exported functions against the kubelet's own.
package image

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxNameLength bounds an image name, in bytes. References are at most 255 bytes plus a host; what is longer is no image.
const MaxNameLength = 4096

// location is what patterns and images are compared by. The kubelet reads both as URLs, so a query, a fragment and a user name are dropped and the path is
// decoded.
type location struct {
	labels []string // of the host, split at "."
	port   string
	path   string // "" or "/…"
}

func parse(s string) (location, error) {
	u, err := parseURL("https://" + s)
	if err != nil {
		return location{}, err
	}
	host, port, err := net.SplitHostPort(u.Host)
	if err != nil { // no port; an IPv6 host keeps its brackets then
		host, port = u.Host, ""
	}
	return location{labels: strings.Split(host, "."), port: port, path: u.Path}, nil
}

// parseURL leaves the URL out of the error: callers name what they parsed, which has no scheme.
func parseURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err
		}
		return nil, err
	}
	return u, nil
}

// matchLabels is false for a glob that does not parse, as in the kubelet.
func (p location) matchLabels(image location) bool {
	if len(p.labels) != len(image.labels) {
		return false
	}
	for i, label := range p.labels {
		if ok, err := filepath.Match(label, image.labels[i]); !ok || err != nil {
			return false
		}
	}
	return true
}

func (p location) matchHost(image location) bool {
	return p.port == image.port && p.matchLabels(image)
}

func (p location) match(image location) bool {
	return p.matchHost(image) && strings.HasPrefix(image.path, p.path)
}

// Pattern is one parsed item of `matchImages`: "host[:port][/path]", where the labels of the host may be globs.
type Pattern struct {
	text string
	location
}

// ParsePattern accepts exactly what the kubelet's validation of matchImages accepts, which includes patterns that match no image: see Warning. The error says
// what is wrong with the pattern, without repeating it.
func ParsePattern(pattern string) (Pattern, error) {
	l, err := parse(pattern)
	if err != nil {
		return Pattern{}, fmt.Errorf("not of the form host[:port][/path]: %w", err)
	}
	return Pattern{text: pattern, location: l}, nil
}

// String is the pattern as it was written.
func (p Pattern) String() string { return p.text }

// Host is the host without port, globs and all.
func (p Pattern) Host() string { return strings.Join(p.labels, ".") }

// Labels are the parts of the host between dots.
func (p Pattern) Labels() []string { return append([]string(nil), p.labels...) }

// Port is empty if the pattern has none; such a pattern matches only images without a port.
func (p Pattern) Port() string { return p.port }

// Path is "" or begins with a slash. It is compared as a prefix, byte by byte: "/team" matches "/teamfoo" too.
func (p Pattern) Path() string { return p.path }

// Match says whether the pattern matches the image, by the kubelet's rules.
func (p Pattern) Match(image string) bool {
	l, err := parse(image)
	return err == nil && p.match(l)
}

// Match says whether the pattern matches the image: as many labels in the host, each matched by its glob; an equal port, where none equals none only; and the
// pattern's path a byte-wise prefix of the image's. What does not parse matches nothing.
func Match(pattern, image string) bool {
	p, err := parse(pattern)
	if err != nil {
		return false
	}
	l, err := parse(image)
	return err == nil && p.match(l)
}

// MatchHost is Match without the path: the pattern concerns some images of the image's registry.
func MatchHost(pattern, image string) bool {
	p, err := parse(pattern)
	if err != nil {
		return false
	}
	l, err := parse(image)
	return err == nil && p.matchHost(l)
}

// Explain says why the pattern does not match the image: the first reason of host, port and path. It is empty if it does match.
func Explain(pattern, image string) string {
	p, err := ParsePattern(pattern)
	if err != nil {
		return fmt.Sprintf("the pattern is %v", err)
	}
	l, err := parse(image)
	if err != nil {
		return fmt.Sprintf("the image is not of the form host[:port]/path: %v", err)
	}
	reason := p.explain(l)
	if reason == "" {
		return ""
	}
	if w := p.Warning(); w != "" {
		reason += " (" + w + ")"
	}
	return reason
}

func (p Pattern) explain(image location) string {
	for _, label := range p.labels {
		if _, err := filepath.Match(label, ""); err != nil {
			return fmt.Sprintf("glob %q does not parse", label)
		}
	}
	if len(p.labels) != len(image.labels) {
		return fmt.Sprintf("pattern has %s, image has %d", count(len(p.labels), "host label"), len(image.labels))
	}
	for i, label := range p.labels {
		if ok, _ := filepath.Match(label, image.labels[i]); !ok {
			return fmt.Sprintf("label %q does not match %q", image.labels[i], label)
		}
	}
	if p.port != image.port {
		return fmt.Sprintf("pattern has %s, image has %s", portName(p.port), portName(image.port))
	}
	if !strings.HasPrefix(image.path, p.path) {
		return fmt.Sprintf("path %q is no prefix of %q", p.path, image.path)
	}
	return ""
}

func portName(port string) string {
	if port == "" {
		return "no port"
	}
	return "port " + port
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// Warning says what is odd about a pattern that the kubelet accepts: mostly why no image that a kubelet asks for can match it, and what was probably meant. It is
// empty for a pattern in order.
func (p Pattern) Warning() string {
	for _, scheme := range []string{"https://", "http://", "oci://", "docker://"} {
		if rest, ok := strings.CutPrefix(p.text, scheme); ok {
			return fmt.Sprintf("a pattern has no scheme, so this matches no image: write %q", rest)
		}
	}
	if strings.Contains(p.text, "://") {
		return "a pattern has no scheme, so this matches no image: write host[:port][/path]"
	}
	host, path := p.Host(), p.path
	for _, label := range p.labels {
		if _, err := filepath.Match(label, ""); err != nil {
			return fmt.Sprintf("glob %q does not parse, so this matches no image", label)
		}
	}
	registry, _, _ := strings.Cut(p.text, "/")
	switch {
	case strings.ContainsAny(p.text, "?#"):
		return "all after ? or # is ignored: the kubelet reads a pattern as a URL"
	case strings.Contains(registry, "@"):
		return "all before @ is ignored: the kubelet reads a pattern as a URL"
	case host == "":
		return "the pattern has no host, so this matches no image: write host[:port][/path]"
	case strings.HasPrefix(host, "["):
		return "the brackets of an IPv6 address without a port are read as a glob, so this matches no image: name the port"
	case strings.HasPrefix(host, ".") || strings.HasSuffix(host, ".") || strings.Contains(host, ".."):
		return "the host has an empty label, so this matches no image"
	case host == "index.docker.io" && p.port == "":
		return "images of Docker Hub are asked for as docker.io/…, so this matches no image: write \"docker.io" + path + "\""
	case host == "*" && p.port == "":
		return "* stands for one label, so this matches only localhost: there is no pattern for all registries, list them"
	case len(p.labels) == 1 && p.port == "" && host != "localhost" && !isGlob(host) && strings.ToLower(host) == host:
		return fmt.Sprintf("a host without dot or port is read as a path on Docker Hub, so this matches no image: write \"docker.io/%s%s\" or name the port", host, path)
	case isGlob(path):
		before, _, _ := strings.Cut(path, "*")
		return fmt.Sprintf("the path is a prefix, not a glob, so this matches no image: write %q", registry+before)
	case strings.ContainsAny(path, ":@"):
		return "an image is asked for without its tag or digest, so this matches no image: leave it out"
	case strings.Contains(path, "//"):
		return "an image's path has no empty part, so this matches no image: write one slash"
	case strings.ToLower(path) != path:
		return "an image's path is lower case, so this matches no image"
	case strings.ContainsFunc(path, func(r rune) bool { return !isPathRune(r) }):
		return "an image's path has only letters, digits, and . _ - /, so this matches no image"
	}
	return ""
}

func isGlob(s string) bool { return strings.ContainsAny(s, "*?[") }

func isPathRune(r rune) bool {
	return 'a' <= r && r <= 'z' || '0' <= r && r <= '9' || strings.ContainsRune("._-/", r)
}

// DockerHubKey is the auth key that the kubelet falls back to for an image of Docker Hub that no key matches.
const DockerHubKey = "index.docker.io"

// IsDockerHub says whether the kubelet takes the image for one of Docker Hub's: named so, or without anything that looks like a registry.
func IsDockerHub(image string) bool {
	host, _, hasPath := strings.Cut(image, "/")
	switch {
	case host == "":
		return false
	case !hasPath, host == "docker.io", host == DockerHubKey:
		return true
	}
	return !strings.ContainsAny(host, ".:")
}

// Registry is the image's host with its port: all before the first slash. The kubelet files an answer with cacheKeyType Registry under it.
func Registry(image string) string {
	host, _, _ := strings.Cut(image, "/")
	return host
}

// IndexKey is the index under which the kubelet's keyring files an auth key: without scheme, without a leading /v1/ or /v2/, without a lone slash, with its
// path decoded. It is not idempotent ("foo.io/v1/v2/x" becomes "foo.io/v2/x"): apply it once, to keys as providers give them. A key with an error is one that
// the kubelet ignores.
func IndexKey(key string) (string, error) {
	full := key
	if !strings.HasPrefix(key, "https://") && !strings.HasPrefix(key, "http://") {
		full = "https://" + key
	}
	u, err := parseURL(full)
	if err != nil {
		return "", fmt.Errorf("auth key %q is not of the form host[:port][/path]: %w", key, err)
	}
	path := u.Path
	if strings.HasPrefix(path, "/v1/") || strings.HasPrefix(path, "/v2/") {
		path = path[len("/v1"):]
	}
	if path == "/" {
		path = ""
	}
	return u.Host + path, nil
}

// KeyOf is an auth key that the kubelet's keyring files under the index "host[:port][/path]": that text itself, unless its path begins with one of the prefixes that IndexKey drops.
// What a URL would not read as it stands (%, ? and #, which no image has) it leaves alone.
func KeyOf(index string) string {
	if slash := strings.IndexByte(index, '/'); slash >= 0 {
		if path := index[slash:]; strings.HasPrefix(path, "/v1/") || strings.HasPrefix(path, "/v2/") {
			return index[:slash] + path[:len("/v1")] + path
		}
	}
	return index
}

// KeyMatches says whether the kubelet's keyring finds the auth key when it looks for the image. The last resort for Docker Hub (DockerHubKey) does not count.
func KeyMatches(key, image string) bool {
	index, err := IndexKey(key)
	return err == nil && Match(index, image)
}

// CheckName says what is wrong with an image name in a request: it has to be "host[:port]/path" as the kubelet writes it, and read the same as a URL and up to its
// first slash, so that no two parts of the broker can take it for two registries.
func CheckName(image string) error {
	switch {
	case image == "":
		return errors.New("image is empty: the kubelet sends host[:port]/path")
	case len(image) > MaxNameLength:
		return fmt.Errorf("image has %d bytes: at most %d are read", len(image), MaxNameLength)
	case !utf8.ValidString(image):
		return fmt.Errorf("image %q is not UTF-8", image)
	case strings.ContainsFunc(image, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsGraphic(r) }):
		return fmt.Errorf("image %q has a space or a character that cannot be printed: write host[:port]/path", image)
	case strings.Contains(image, "://"):
		return fmt.Errorf("image %q has a scheme: write host[:port]/path", image)
	}
	u, err := parseURL("https://" + image)
	if err != nil {
		return fmt.Errorf("image %q is not of the form host[:port]/path: %w", image, err)
	}
	if u.Host == "" {
		return fmt.Errorf("image %q has no registry: write host[:port]/path", image)
	}
	if u.Host+u.Path != image {
		return fmt.Errorf("image %q is not of the form host[:port]/path: leave out what comes with @, ?, # or %%", image)
	}
	return nil
}
