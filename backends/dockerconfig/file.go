package dockerconfig

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/docker/cli/cli/config/credentials"
	"github.com/docker/cli/cli/config/types"

	"github.com/credential-broker/credential-broker/proto/trust"
)

// file is what matters here of docker's config.json (docs.docker.com/reference/cli/docker, "Docker CLI configuration file"). docker/cli's own type for it
// is not used: it gives up the whole file for one broken entry without naming it, and mixes in the variable DOCKER_AUTH_CONFIG.
type file struct {
	Auths       map[string]types.AuthConfig `json:"auths"`
	CredHelpers map[string]string           `json:"credHelpers"`
	CredsStore  string                      `json:"credsStore"`
}

// maxFile bounds the file, in bytes: far beyond any that people have.
const maxFile = 4 << 20

// readFile reads and parses the file. No error quotes what is in it.
func readFile(name string) (file, os.FileMode, error) {
	var f file
	if err := trust.File(name); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return f, 0, fmt.Errorf("%w: log in with docker, podman, crane or the like, or name another file", err)
		}
		return f, 0, err
	}
	info, err := os.Stat(name)
	if err != nil {
		return f, 0, err
	}
	if !info.Mode().IsRegular() {
		return f, 0, fmt.Errorf("%s is no regular file", name)
	}
	in, err := os.Open(name)
	if err != nil {
		return f, 0, err
	}
	defer in.Close()
	data, err := io.ReadAll(io.LimitReader(in, maxFile+1))
	if err != nil {
		return f, 0, err
	}
	if len(data) > maxFile {
		return f, 0, fmt.Errorf("%s has more than %d bytes: is it docker's config.json?", name, maxFile)
	}
	f, err = parse(data)
	if err != nil {
		return f, 0, fmt.Errorf("%s: %w", name, err)
	}
	return f, info.Mode(), nil
}

// parse reads the file's content. An empty file is one without entries, as to docker.
func parse(data []byte) (file, error) {
	var f file
	if len(bytes.TrimSpace(data)) == 0 {
		return f, nil
	}
	if err := json.Unmarshal(data, &f); err != nil {
		var syntax *json.SyntaxError
		var wrongType *json.UnmarshalTypeError
		switch {
		case errors.As(err, &syntax):
			return f, fmt.Errorf("line %s: this is no JSON", position(data, syntax.Offset))
		case errors.As(err, &wrongType):
			return f, fmt.Errorf("line %s: a %s stands where docker has something else", position(data, wrongType.Offset), wrongType.Value)
		}
		return f, errors.New("it cannot be decoded as docker's config.json")
	}
	if f.Auths == nil && f.CredHelpers == nil && f.CredsStore == "" {
		// The format before config.json had the entries at the top.
		var old map[string]struct {
			Auth string `json:"auth"`
		}
		if json.Unmarshal(data, &old) == nil {
			for _, entry := range old {
				if entry.Auth != "" {
					return f, errors.New(`it is in the format of the old .dockercfg: put its content under "auths"`)
				}
			}
		}
	}
	return f, nil
}

// position is where the byte before offset is: "3, column 14".
func position(data []byte, offset int64) string {
	before := data[:max(0, min(int(offset)-1, len(data)))]
	return fmt.Sprintf("%d, column %d", 1+bytes.Count(before, []byte{'\n'}), len(before)-bytes.LastIndexByte(before, '\n'))
}

// entry is an entry of `auths` and what it covers.
type entry struct {
	name string // as it stands in the file
	host string // may have globs in its labels, and a port
	path string // empty, or starts with a slash
	auth types.AuthConfig
}

// dockerHub is what docker calls Docker Hub in its files and to its helpers.
const dockerHub = "https://index.docker.io/v1/"

func isDockerHub(host string) bool { return host == "docker.io" || host == "index.docker.io" }

// entries are those of `auths`, the exact spelling of a host before its other spellings, as docker prefers.
func (f file) entries() []entry {
	all := make([]entry, 0, len(f.Auths))
	for name, auth := range f.Auths {
		e := entry{name: name, auth: auth}
		e.host, e.path = split(name)
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b entry) int {
		exact := func(e entry) int {
			if e.name == e.key() || e.name == dockerHub {
				return 0
			}
			return 1
		}
		if c := exact(a) - exact(b); c != 0 {
			return c
		}
		return strings.Compare(a.name, b.name)
	})
	return all
}

func (e entry) key() string { return e.host + e.path }

// split takes a key of `auths` apart as the kubelet does (pkg/credentialprovider, BasicDockerKeyring.Add): without scheme, and without /v1/ or /v2/ in front of the path. Where
// nothing but v1 or v2 is left, or no URL can be made of it, it is a host to docker (cli/config/credentials, ConvertToHostname), and to us.
func split(name string) (host, path string) {
	spelled := name
	if !strings.HasPrefix(spelled, "https://") && !strings.HasPrefix(spelled, "http://") {
		spelled = "https://" + spelled
	}
	parsed, err := url.Parse(spelled)
	if err != nil || parsed.Host == "" {
		return credentials.ConvertToHostname(name), ""
	}
	path = parsed.Path
	if strings.HasPrefix(path, "/v2/") || strings.HasPrefix(path, "/v1/") {
		path = path[3:]
	}
	if path == "/" || path == "/v1" || path == "/v2" {
		path = ""
	}
	return parsed.Host, path
}

// coversHost says whether the entry is for images of the host, by the kubelet's rule: equal number of labels, each a glob for the image's, equal ports. Docker Hub's entry goes by its
// old name.
func (e entry) coversHost(host string) bool {
	if isDockerHub(host) && e.host == "index.docker.io" {
		return true
	}
	globs, globPort := labels(e.host)
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

func labels(hostport string) (labels []string, port string) {
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		host, port = hostport, ""
	}
	return strings.Split(host, "."), port
}

// errToken says that an entry holds something that a kubelet's response has no place for.
var errToken = errors.New("it holds an identity token, which the kubelet cannot be given: log in with a password or an access token instead")

// login is the user name and password of an entry; ok says that it has one at all. Docker leaves empty entries for what is in its helpers.
func login(a types.AuthConfig) (username, password string, ok bool, err error) {
	username, password = a.Username, a.Password
	if a.Auth != "" {
		if username, password, err = decodeAuth(a.Auth); err != nil {
			return "", "", false, err
		}
	}
	if password == "" && (a.IdentityToken != "" || a.RegistryToken != "") || username == tokenUser {
		return "", "", false, errToken
	}
	return username, password, username != "" || password != "", nil
}

// decodeAuth takes `auth` apart: base64, with or without padding, of "username:password". Docker cuts zero bytes off the password, and so do we.
func decodeAuth(auth string) (username, password string, err error) {
	decoded, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(strings.TrimSpace(auth), "="))
	if err != nil {
		return "", "", errors.New(`its "auth" is not base64`) // the cause might quote a part of it
	}
	username, password, ok := strings.Cut(string(decoded), ":")
	if !ok || username == "" || !utf8.Valid(decoded) { // only text can be answered
		return "", "", errors.New(`its "auth" is not the base64 of "username:password"`)
	}
	return username, strings.Trim(password, "\x00"), nil
}

// helper is the suffix of the helper that docker would ask for images of the host, or empty, and where it is named.
func (f file) helper(host string) (suffix, where string) {
	if suffix, ok := f.CredHelpers[serverURL(host)]; ok {
		return suffix, fmt.Sprintf("credHelpers[%q]", serverURL(host))
	}
	// Docker compares the names as they are. Whoever wrote docker.io, or a scheme, meant it nevertheless.
	var names []string
	for name := range f.CredHelpers {
		if h, p := split(name); p == "" && (h == host || isDockerHub(h) && isDockerHub(host)) {
			names = append(names, name)
		}
	}
	if len(names) > 0 {
		name := slices.Min(names)
		return f.CredHelpers[name], fmt.Sprintf("credHelpers[%q]", name)
	}
	return f.CredsStore, "credsStore"
}

// serverURL is what docker calls a host to its helpers.
func serverURL(host string) string {
	if isDockerHub(host) {
		return dockerHub
	}
	return host
}
