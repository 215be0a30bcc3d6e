package dockerconfig

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/docker/cli/cli/config/credentials"
	"github.com/docker/cli/cli/config/types"

	"github.com/credential-broker/credential-broker/backends/internal/authkey"
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
	authkey.Key
	auth types.AuthConfig
}

// dockerHub is what docker calls Docker Hub in its files and to its helpers.
const dockerHub = "https://index.docker.io/v1/"

// entries are those of `auths`, the exact spelling of a host before its other spellings, as docker prefers.
func (f file) entries() []entry {
	all := make([]entry, 0, len(f.Auths))
	for name, auth := range f.Auths {
		all = append(all, entry{name, split(name), auth})
	}
	slices.SortFunc(all, func(a, b entry) int {
		exact := func(e entry) int {
			if e.name == e.String() || e.name == dockerHub {
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

// split takes a key of `auths` apart as the kubelet does. Where no URL can be made of it, it is a host to docker (cli/config/credentials, ConvertToHostname), and to us.
func split(name string) authkey.Key {
	k, ok := authkey.Parse(name)
	if !ok {
		return authkey.Key{Host: credentials.ConvertToHostname(name)}
	}
	return k
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
//
// The broker's own helper is none: what it has is what this backend is being asked for, and would be asked for again.
func (f file) helper(host string) (suffix, where string) {
	if suffix, where = f.helperInFile(host); suffix == brokersHelper {
		return "", ""
	}
	return suffix, where
}

// brokersHelper is how a docker configuration names docker-credential-broker.
const brokersHelper = "broker"

// helperInFile is what the file says of a host's helper.
func (f file) helperInFile(host string) (suffix, where string) {
	if suffix, ok := f.CredHelpers[serverURL(host)]; ok {
		return suffix, fmt.Sprintf("credHelpers[%q]", serverURL(host))
	}
	// Docker compares the names as they are. Whoever wrote docker.io, or a scheme, meant it nevertheless.
	var names []string
	for name := range f.CredHelpers {
		if k := split(name); k.Path == "" && (k.Host == host || authkey.IsDockerHub(k.Host) && authkey.IsDockerHub(host)) {
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
	if authkey.IsDockerHub(host) {
		return dockerHub
	}
	return host
}
