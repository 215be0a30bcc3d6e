package config

import (
	"fmt"
	"net"
	"net/netip"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/credential-broker/credential-broker/broker/image"
)

// The functions named wrong… say what is wrong with a value and what to do; nothing if it is in order.

func wrongPath(s string) string {
	switch {
	case strings.ContainsRune(s, 0):
		return "a path has no NUL byte; remove it"
	case !filepath.IsAbs(s):
		return fmt.Sprintf("%s is not an absolute path; begin it with /", quote(s))
	case filepath.Clean(s) != s:
		return fmt.Sprintf("%s is not a clean path; write %q", quote(s), filepath.Clean(s))
	}
	return ""
}

// maxSocketPath is what sockaddr_un holds on Linux, less its closing NUL, in bytes.
const maxSocketPath = 107

// WrongSocket says what is wrong with a path as that of the agent's socket, and what to do; nothing if it is in order.
func WrongSocket(path string) string { return wrongSocket(path) }

func wrongSocket(s string) string {
	if message := wrongPath(s); message != "" {
		return message
	}
	if len(s) > maxSocketPath {
		return fmt.Sprintf("the path has %d bytes, a unix socket's has at most %d; choose a shorter one, such as /run/credential-broker/agent.sock", len(s), maxSocketPath)
	}
	return ""
}

func wrongMetrics(s string) string {
	if socket, ok := strings.CutPrefix(s, "unix:"); ok {
		return wrongSocket(socket)
	}
	const remedy = "write one such as 127.0.0.1:9099, or unix:/run/credential-broker/metrics.sock"
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Sprintf("%s is no address; %s", quote(s), remedy)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Sprintf("%s has no port between 1 and 65535; %s", quote(s), remedy)
	}
	if addr, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !addr.IsLoopback()) {
		return fmt.Sprintf("%s is not a loopback address; %s", quote(s), remedy)
	}
	return ""
}

// wrongName holds the kubelet's rules for a provider's name, and that it can be printed.
func wrongName(s string) string {
	switch {
	case s == "":
		return "must not be empty; give the provider a name of its own"
	case s == "." || s == "..":
		return fmt.Sprintf("must not be %q; choose another", s)
	case strings.Contains(s, "/"):
		return fmt.Sprintf("%s has a slash; choose a name without", quote(s))
	case strings.ContainsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsGraphic(r) }):
		return fmt.Sprintf("%s has a space or a character that cannot be printed; choose a name without", quote(s))
	case len(s) > 253:
		return fmt.Sprintf("the name has %d bytes; choose one of at most 253", len(s))
	}
	return ""
}

func wrongBackend(s string) string {
	if strings.HasPrefix(s, "/") {
		return wrongPath(s)
	}
	legal := func(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }
	ok := s != "" && legal(s[0]) && legal(s[len(s)-1])
	for i := range len(s) {
		ok = ok && (legal(s[i]) || s[i] == '-')
	}
	if !ok {
		return fmt.Sprintf("%s is neither a backend's name (a-z, 0-9 and - between them) nor an absolute path", quote(s))
	}
	if len(s) > 200 {
		return fmt.Sprintf("the name has %d bytes; a file's name has no room for it", len(s))
	}
	return ""
}

func wrongGlob(s string) string {
	if s == "" {
		return "must not be empty; name a variable, or a glob such as AWS_*"
	}
	if strings.ContainsAny(s, "=\x00") {
		return fmt.Sprintf("%s is no variable's name; leave out what comes with =", quote(s))
	}
	if _, err := path.Match(s, ""); err != nil {
		return fmt.Sprintf("%s does not parse as a glob; close its brackets", quote(s))
	}
	return ""
}

func wrongVariable(s string) string {
	switch {
	case s == "":
		return "must not be empty; name the variable"
	case strings.ContainsAny(s, "=\x00"): // what follows may be a secret
		return fmt.Sprintf("%s… is no variable's name; leave out = and NUL, and put the value into value", quote(s[:strings.IndexAny(s, "=\x00")]))
	case s == "CREDENTIAL_BROKER_BACKEND" || strings.HasPrefix(s, "PLUGIN_"):
		return fmt.Sprintf("%s is how the broker speaks to its backend; remove it", quote(s))
	}
	return ""
}

// wrongAnnotationKey holds the rules of Kubernetes for an annotation's key: a qualified name, in any case.
func wrongAnnotationKey(s string) string {
	prefix, name, qualified := strings.Cut(s, "/")
	if !qualified {
		prefix, name = "", s
	}
	alnum := func(c byte) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' }
	ok := name != "" && len(name) <= 63 && alnum(name[0]) && alnum(name[len(name)-1])
	for i := range len(name) {
		ok = ok && (alnum(name[i]) || strings.IndexByte("-_.", name[i]) >= 0)
	}
	if qualified {
		ok = ok && prefix != "" && len(prefix) <= 253
		for label := range strings.SplitSeq(prefix, ".") {
			ok = ok && label != "" && alnum(label[0]) && alnum(label[len(label)-1])
			for i := range len(label) {
				ok = ok && (alnum(label[i]) || label[i] == '-')
			}
		}
	}
	if !ok {
		return fmt.Sprintf("%s is no annotation key; write one such as example.com/role", quote(s))
	}
	return ""
}

// wrongReference is for the two sides of a mirror.
func wrongReference(s string) string {
	switch {
	case s == "":
		return "must not be empty; write host[:port][/path]"
	case strings.Contains(s, "://"):
		_, rest, _ := strings.Cut(s, "://")
		return fmt.Sprintf("%s has a scheme; write %q", quote(s), rest)
	case strings.HasSuffix(s, "/"):
		return fmt.Sprintf("%s ends with a slash; leave it out", quote(s))
	case strings.ContainsAny(s, "*?["):
		return fmt.Sprintf("%s is a glob; write one host[:port][/path]", quote(s))
	}
	if err := image.CheckName(s); err != nil {
		return fmt.Sprintf("%s is not of the form host[:port][/path]; write it so", quote(s))
	}
	if _, path, _ := strings.Cut(s, "/"); strings.ContainsAny(path, ":@") {
		return fmt.Sprintf("%s has a tag or digest; leave it out", quote(s))
	}
	return ""
}

func (d *decoder) name(p *Provider) func(*node, string) {
	return func(n *node, path string) {
		if !d.be(n, path, stringNode, "a string") {
			return
		}
		if message := wrongName(n.text); message != "" {
			d.wrong(n, path, "%s", message)
			return
		}
		p.Name = n.text
		at := d.file + ":" + strconv.Itoa(n.line)
		if first, ok := d.names[p.Name]; ok {
			d.wrong(n, path, "the name %s is taken by the provider at %s; choose another", quote(p.Name), first)
			return
		}
		d.names[p.Name] = at
	}
}

func (d *decoder) matchImages(p *Provider) func(*node, string) {
	return func(n *node, path string) {
		if n.kind == listNode && len(n.items) == 0 && n.bad == "" {
			d.wrong(n, path, "is empty; list the images that this provider has credentials for, such as registry.example.com")
			return
		}
		d.list(n, path, "patterns", func(_ int, item *node, path string) {
			if !d.be(item, path, stringNode, "a string") {
				return
			}
			pattern, err := image.ParsePattern(item.text)
			if err != nil {
				d.wrong(item, path, "%s is %v", quote(item.text), err)
				return
			}
			if w := pattern.Warning(); w != "" {
				d.odd(item, path, "%s: %s", quote(item.text), w)
			}
			if slices.Contains(p.MatchImages, item.text) {
				d.odd(item, path, "%s stands twice; remove one", quote(item.text))
			}
			p.MatchImages = append(p.MatchImages, item.text)
		})
	}
}

func (d *decoder) env(p *Provider) func(*node, string) {
	return func(n *node, path string) {
		lines := map[string]int{}
		d.list(n, path, "variables", func(_ int, item *node, path string) {
			var v EnvVar
			d.object(item, path, []field{
				{"name", func(n *node, path string) {
					if !d.be(n, path, stringNode, "a string") {
						return
					}
					if message := wrongVariable(n.text); message != "" {
						d.wrong(n, path, "%s", message)
						return
					}
					if first := lines[n.text]; first > 0 {
						d.wrong(n, path, "the variable %s stands twice, first in line %d; keep one", quote(n.text), first)
						return
					}
					lines[n.text] = n.line
					v.Name = n.text
				}},
				{"value", func(n *node, path string) {
					if !d.be(n, path, stringNode, "a string") {
						return
					}
					if strings.ContainsRune(n.text, 0) {
						d.wrong(n, path, "a variable's value has no NUL byte; remove it")
					}
					v.Value = n.text
				}},
			})
			if item.kind == mapNode && item.bad == "" && item.unset("name") {
				d.wrong(item, path+".name", "is missing; name the variable")
			}
			if v.Name != "" {
				p.Env = append(p.Env, v)
			}
		})
	}
}

func (d *decoder) digests(p *Provider) func(*node, string) {
	check := func(s string) string {
		hex := strings.ToLower(strings.TrimPrefix(s, "sha256:"))
		if len(hex) != 64 || strings.Trim(hex, "0123456789abcdef") != "" {
			return fmt.Sprintf("%s is no SHA-256 digest; write the 64 hexadecimal digits that sha256sum prints", quote(s))
		}
		return ""
	}
	return func(n *node, path string) {
		d.strings(&p.SHA256, "digests", check)(n, path)
		for i, s := range p.SHA256 {
			p.SHA256[i] = strings.ToLower(strings.TrimPrefix(s, "sha256:"))
		}
	}
}

// user takes a number too: nobody thinks of quotes there.
func (d *decoder) user(p *Provider) func(*node, string) {
	return func(n *node, path string) {
		if n.kind == numberNode && n.bad == "" {
			if id, err := strconv.ParseUint(n.text, 10, 32); err != nil || strconv.FormatUint(id, 10) != n.text || id == 1<<32-1 {
				d.wrong(n, path, "%s is no user's number; write one from 0 to 4294967294, or a name", n.text)
				return
			}
			p.User = n.text
			return
		}
		d.checked(&p.User, func(s string) string {
			if strings.ContainsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsGraphic(r) || r == ':' || r == '/' }) {
				return fmt.Sprintf("%s is no user; write a name or a number, without a group", quote(s))
			}
			return ""
		})(n, path)
	}
}

// tokenAttributes holds the kubelet's rules for them, except that what it demands to be written out has a default here.
func (d *decoder) tokenAttributes(p *Provider) func(*node, string) {
	return func(n *node, path string) {
		a := &TokenAttributes{CacheType: CacheTypeToken}
		p.TokenAttributes = a
		d.object(n, path, []field{
			{"serviceAccountTokenAudience", d.required(&a.ServiceAccountTokenAudience)},
			{"cacheType", oneOf(d, &a.CacheType, CacheTypeToken, CacheTypeServiceAccount)},
			{"requireServiceAccount", d.bool(&a.RequireServiceAccount)},
			{"requiredServiceAccountAnnotationKeys", d.annotationKeys(&a.RequiredServiceAccountAnnotationKeys)},
			{"optionalServiceAccountAnnotationKeys", d.annotationKeys(&a.OptionalServiceAccountAnnotationKeys)},
		})
		if n.kind != mapNode || n.bad != "" {
			return
		}
		if n.unset("serviceAccountTokenAudience") {
			d.wrong(n, path+".serviceAccountTokenAudience", "is missing; name the audience of the token that the backend takes")
		}
		if keys := n.child("requiredServiceAccountAnnotationKeys"); len(a.RequiredServiceAccountAnnotationKeys) > 0 && !a.RequireServiceAccount {
			d.wrong(keys, path+".requiredServiceAccountAnnotationKeys", "needs requireServiceAccount: true; set it, or list the keys as optional ones")
		}
		for i, key := range a.OptionalServiceAccountAnnotationKeys {
			if slices.Contains(a.RequiredServiceAccountAnnotationKeys, key) {
				keys := n.child("optionalServiceAccountAnnotationKeys")
				d.wrong(keys.items[i], index(path+".optionalServiceAccountAnnotationKeys", i), "%s is among the required keys too; keep it in one list", quote(key))
			}
		}
	}
}

func (d *decoder) annotationKeys(to *[]string) func(*node, string) {
	return func(n *node, path string) {
		d.strings(to, "annotation keys", func(s string) string {
			if message := wrongAnnotationKey(s); message != "" {
				return message
			}
			if slices.Contains(*to, s) {
				return fmt.Sprintf("%s stands twice; keep one", quote(s))
			}
			return ""
		})(n, path)
	}
}

func (d *decoder) mirrors(p *Provider) func(*node, string) {
	return func(n *node, path string) {
		d.list(n, path, "mirrors", func(_ int, item *node, path string) {
			var m Mirror
			side := func(to *string) func(*node, string) {
				return func(n *node, path string) {
					if !d.be(n, path, stringNode, "a string") {
						return
					}
					if message := wrongReference(n.text); message != "" {
						d.wrong(n, path, "%s", message)
						return
					}
					*to = n.text
				}
			}
			d.object(item, path, []field{{"source", side(&m.Source)}, {"endpoint", side(&m.Endpoint)}})
			if item.kind != mapNode || item.bad != "" {
				return
			}
			for _, name := range []string{"source", "endpoint"} {
				if item.unset(name) {
					d.wrong(item, join(path, name), "is missing; write host[:port][/path]")
				}
			}
			if m.Source == "" || m.Endpoint == "" {
				return
			}
			if m.Source == m.Endpoint {
				d.wrong(item, path, "source and endpoint are the same; remove the mirror")
				return
			}
			if slices.ContainsFunc(p.Mirrors, func(other Mirror) bool { return other.Source == m.Source }) {
				d.wrong(item.child("source"), join(path, "source"), "%s has a mirror already; keep one", quote(m.Source))
				return
			}
			if source, err := image.ParsePattern(m.Source); err == nil && source.Warning() != "" {
				d.odd(item.child("source"), join(path, "source"), "%s: %s", quote(m.Source), source.Warning())
			}
			d.odd(item, path, "a container runtime that falls back from %s to %s may offer these credentials to %s; make sure that it does not, or that they may be seen there",
				m.Endpoint, m.Source, image.Registry(m.Source))
			p.Mirrors = append(p.Mirrors, m)
		})
	}
}
