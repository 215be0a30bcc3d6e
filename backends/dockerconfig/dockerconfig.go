// Package dockerconfig gives the credentials that are already on the node: those in a docker configuration file and in the helpers that it names. It knows nothing of
// how they came there.
//
// For an image, docker's rules decide first: the helper that `credHelpers` names for the image's host, or else the one in `credsStore`, is asked for that host
// (Docker Hub is "https://index.docker.io/v1/" there). What it has is the answer for the host. Only where there is no helper, or it has nothing, the entries of
// `auths` for the whole host count, an exact spelling of the host before one as a URL. Entries with a path ("registry.example/team"), which docker does not know and
// the kubelet does, always count for the images that start with it, and so do globs in the labels of a host, by the kubelet's rules.
package dockerconfig

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/authkey"
)

// Config is the provider's `config`.
type Config struct {
	// File is the absolute path of the configuration file, such as /root/.docker/config.json. It can name programs to run, so nobody but root and the broker's user may be able to
	// write it or the directories above it. It is read anew for each request.
	File string `json:"file"`
}

// Backend is the backend.
type Backend struct {
	cfg      Config
	readable sync.Once
}

// New checks the settings. The file itself may come later.
func New(_ context.Context, cfg Config) (*Backend, error) {
	switch {
	case cfg.File == "":
		return nil, backends.InvalidConfig("file", "want the absolute path of a docker configuration, such as /root/.docker/config.json")
	case !filepath.IsAbs(cfg.File):
		return nil, backends.InvalidConfig("file", "want an absolute path, got %q", cfg.File)
	}
	return &Backend{cfg: cfg}, nil
}

func (b *Backend) read() (file, error) {
	f, mode, err := readFile(b.cfg.File)
	if err != nil {
		return f, backends.InvalidConfig("file", "%w", err)
	}
	if mode.Perm()&0o004 != 0 && runtime.GOOS != "windows" { // a mode says nothing there
		b.readable.Do(func() {
			slog.Warn("everybody on this machine can read the passwords in the file: chmod o-r it", "file", b.cfg.File, "mode", mode.Perm().String())
		})
	}
	return f, nil
}

// Credentials answers for one image.
func (b *Backend) Credentials(ctx context.Context, req backends.Request) (backends.Response, error) {
	f, err := b.read()
	if err != nil {
		return backends.Response{}, err
	}
	host := req.Image.Host()
	helped := false
	var given []backends.Credential
	if suffix, where := f.helper(host); suffix != "" {
		program, err := findHelper(suffix)
		if err != nil {
			return backends.Response{}, backends.InvalidConfig("file", "%s in %s: %w", where, b.cfg.File, err)
		}
		username, password, found, err := ask(ctx, program, serverURL(host))
		if err != nil {
			return backends.Response{}, err
		}
		if helped = found; found {
			given = append(given, backends.Credential{Key: host, Username: username, Password: backends.Secret(password)})
		}
	}
	answer, err := f.answer(ctx, req.Image, given, helped, b.cfg.File)
	if err != nil {
		return backends.Response{}, backends.InvalidConfig("file", "%w", err)
	}
	return answer, nil
}

// Answer is what a docker configuration that is kept elsewhere than in a file has for an image: of its `auths` alone, since helpers are programs of another machine. Where says in messages where it is kept.
func Answer(ctx context.Context, content []byte, image backends.Image, where string) (backends.Response, error) {
	f, err := parse(content)
	if err != nil {
		return backends.Response{}, err
	}
	return f.answer(ctx, image, nil, false, where)
}

// answer adds to what is given for an image what `auths` has for it; helped says that a helper had something for the host. It is an error if nothing that is there can be used.
func (f file) answer(ctx context.Context, image backends.Image, given []backends.Credential, helped bool, where string) (backends.Response, error) {
	host := image.Host()
	answer := backends.Response{Scope: backends.ScopeRegistry, Credentials: given}
	taken := map[string]bool{}
	for _, credential := range given {
		taken[credential.Key] = true
	}
	var unusable []error
	for _, e := range f.entries() {
		if !e.CoversHost(host) {
			continue
		}
		if e.Path != "" {
			answer.Scope = backends.ScopeImage // another image of the registry may get another answer
		}
		if !e.Covers(host, image.Path()) || e.Path == "" && helped {
			continue
		}
		username, password, ok, err := login(e.auth)
		key := keyFor(e, host, taken)
		switch {
		case err != nil:
			unusable = append(unusable, fmt.Errorf("auths[%q] in %s cannot be used: %w", e.name, where, err))
		case ok && !taken[key]:
			taken[key] = true
			answer.Credentials = append(answer.Credentials, backends.Credential{Key: key, Username: username, Password: backends.Secret(password)})
		}
	}
	if len(unusable) > 0 && len(answer.Credentials) == 0 {
		return backends.Response{}, errors.Join(unusable...)
	}
	for _, err := range unusable {
		slog.WarnContext(ctx, "an entry for the image cannot be used; another one is", "reason", err.Error())
	}
	return sorted(answer), nil
}

// keyFor is the auth key for an entry: what the kubelet would file it under; for Docker Hub's the image's own host, since the kubelet uses index.docker.io only
// where there is no other key.
func keyFor(e entry, host string, taken map[string]bool) string {
	if authkey.IsDockerHub(host) && e.Host == "index.docker.io" && !taken[host+e.Path] {
		return host + e.Path
	}
	return e.String()
}

// sorted puts the more specific key first, as the kubelet tries them.
func sorted(r backends.Response) backends.Response {
	slices.SortFunc(r.Credentials, func(a, b backends.Credential) int { return strings.Compare(b.Key, a.Key) })
	return r
}

// Check says what in the file cannot be used, whatever the image: entries that are broken, helpers that are missing.
func (b *Backend) Check(context.Context, backends.Request) error {
	f, err := b.read()
	if err != nil {
		return err
	}
	var problems []error
	problem := func(format string, args ...any) {
		problems = append(problems, backends.InvalidConfig("file", format, args...))
	}
	helpers := map[string]string{}
	if f.CredsStore != "" && f.CredsStore != brokersHelper {
		helpers[f.CredsStore] = "credsStore"
	}
	for name, suffix := range f.CredHelpers {
		if suffix != "" && suffix != brokersHelper {
			helpers[suffix] = fmt.Sprintf("credHelpers[%q]", name)
		}
	}
	for suffix, where := range helpers {
		if _, err := findHelper(suffix); err != nil {
			problem("%s in %s: %w", where, b.cfg.File, err)
		}
	}
	for _, e := range f.entries() {
		if _, _, _, err := login(e.auth); err != nil {
			problem("auths[%q] in %s cannot be used: %w", e.name, b.cfg.File, err)
		}
	}
	slices.SortFunc(problems, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(problems...)
}
