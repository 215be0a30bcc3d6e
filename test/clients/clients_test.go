package clients

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"

	orasremote "oras.land/oras-go/v2/registry/remote"
)

var bin string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "credential-broker-clients-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	bin = dir
	for _, program := range []struct{ out, module, pkg string }{
		{"credential-broker", "../..", "./cmd/credential-broker"},
		{"backends/credential-backend-exec", "../..", "./cmd/credential-backend-exec"},
		{"crane", ".", "github.com/google/go-containerregistry/cmd/crane"}, // a tool of this module's
	} {
		build := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(dir, program.out), program.pkg)
		build.Dir, build.Env = program.module, append(os.Environ(), "CGO_ENABLED=0")
		if output, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n%s", program.pkg, err, output)
			return 1
		}
	}
	if err := os.Symlink("credential-broker", filepath.Join(dir, "docker-credential-broker")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// site is a registry on a loopback port that wants a password, and a user's home whose clients ask the broker for it.
type site struct {
	host, home string
	password   string

	mu        sync.Mutex
	anonymous bool
}

// newSite has the image host/team/app in its registry. Where `part` is set, the provider is for that path of the registry alone.
func newSite(t *testing.T, part string) *site {
	t.Helper()
	s := &site{password: rand.Text(), home: t.TempDir()}
	silent := slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	blobs := registry.New(registry.Logger(silent))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		s.mu.Lock()
		anonymous := s.anonymous && r.Header.Get("Authorization") == ""
		s.mu.Unlock()
		if !anonymous && (user != "node" || password != s.password) {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"a password is needed"}]}`, http.StatusUnauthorized)
			return
		}
		blobs.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	s.host = strings.TrimPrefix(server.URL, "http://")
	content, err := random.Image(1<<10, 1)
	if err != nil {
		t.Fatal(err)
	}
	err = remote.Write(s.reference(t), content, remote.WithAuth(&authn.Basic{Username: "node", Password: s.password}), remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}

	s.write(t, "provider.sh", 0o700, `#!/bin/sh
cat >/dev/null
[ "$1" = "" ] || { echo "no luck today" >&2; exit 1; }
echo '{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse","cacheKeyType":"Registry","cacheDuration":"1h","auth":{"`+s.host+part+`":{"username":"node","password":"`+s.password+`"}}}'
`)
	s.configure(t, s.host+part, "")
	t.Setenv("HOME", s.home)
	t.Setenv("DOCKER_CONFIG", filepath.Join(s.home, ".docker"))
	t.Setenv("XDG_RUNTIME_DIR", "")
	t.Setenv("XDG_CONFIG_HOME", "")
	t.Setenv("PATH", bin+string(filepath.ListSeparator)+os.Getenv("PATH"))
	t.Setenv("CREDENTIAL_BROKER_CONFIG", filepath.Join(s.home, "broker.yaml"))
	t.Setenv("CREDENTIAL_BROKER_AGENT", "")
	return s
}

// configure gives the broker one provider; an argument makes it fail.
func (s *site) configure(t *testing.T, pattern, argument string) {
	t.Helper()
	s.write(t, "broker.yaml", 0o600, fmt.Sprintf(`apiVersion: credential-broker.io/v1alpha1
kind: BrokerConfig
log: {level: error} # standard error is the test's
providers:
- {name: node, backend: exec, matchImages: [%q], config: {command: %q, args: [%q]}}
`, pattern, filepath.Join(s.home, "provider.sh"), argument))
}

// docker writes the client's configuration.
func (s *site) docker(t *testing.T, format string, args ...any) {
	t.Helper()
	s.write(t, ".docker/config.json", 0o600, fmt.Sprintf(format, args...))
}

func (s *site) write(t *testing.T, file string, mode os.FileMode, content string) {
	t.Helper()
	path := filepath.Join(s.home, file)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

func (s *site) openToAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.anonymous = true
}

func (s *site) reference(t *testing.T) name.Reference {
	t.Helper()
	reference, err := name.ParseReference(s.host + "/team/app:1")
	if err != nil {
		t.Fatal(err)
	}
	return reference
}

// client asks a registry for a manifest, the way in which its program does.
type client struct {
	name string
	// helpers and store say whether it knows credHelpers and credsStore; paths, whether it asks for an image before it asks for the whole registry (with credsStore).
	helpers, store, paths bool
	pull                  func(ctx context.Context, t *testing.T, s *site) error
}

var clients = []client{
	{name: "go-containerregistry", helpers: true, store: true, paths: true, pull: func(ctx context.Context, t *testing.T, s *site) error {
		t.Helper()
		_, err := remote.Get(s.reference(t), remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithContext(ctx))
		return err
	}},
	{name: "crane", helpers: true, store: true, paths: true, pull: func(ctx context.Context, t *testing.T, s *site) error {
		t.Helper()
		out, err := exec.CommandContext(ctx, filepath.Join(bin, "crane"), "pull", s.host+"/team/app:1", filepath.Join(t.TempDir(), "app.tar")).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}},
	{name: "docker's library", helpers: true, store: true, pull: func(ctx context.Context, t *testing.T, s *site) error {
		t.Helper()
		file, err := config.Load(filepath.Join(s.home, ".docker"))
		if err != nil {
			return err
		}
		login, err := file.GetAuthConfig(s.host) // as docker, BuildKit and nerdctl do
		if err != nil {
			return err
		}
		as := authn.Anonymous
		if login.Username != "" {
			as = &authn.Basic{Username: login.Username, Password: login.Password}
		}
		_, err = remote.Get(s.reference(t), remote.WithAuth(as), remote.WithContext(ctx))
		return err
	}},
	{name: "ORAS", helpers: true, store: true, pull: func(ctx context.Context, t *testing.T, s *site) error {
		t.Helper()
		store, err := credentials.NewStoreFromDocker(credentials.StoreOptions{})
		if err != nil {
			return err
		}
		repository, err := orasremote.NewRepository(s.host + "/team/app")
		if err != nil {
			return err
		}
		repository.PlainHTTP = true
		repository.Client = &auth.Client{Client: http.DefaultClient, Credential: credentials.Credential(store)}
		_, err = repository.Resolve(ctx, "1")
		return err
	}},
	{name: "skopeo", helpers: true, pull: func(ctx context.Context, t *testing.T, s *site) error {
		t.Helper()
		skopeo, err := exec.LookPath("skopeo")
		if err != nil {
			t.Skip("there is no skopeo, of Debian's package skopeo")
		}
		s.write(t, "policy.json", 0o600, `{"default":[{"type":"insecureAcceptAnything"}]}`)
		out, err := exec.CommandContext(ctx, skopeo, "--policy", filepath.Join(s.home, "policy.json"), "copy", "--src-tls-verify=false", "docker://"+s.host+"/team/app:1", "dir:"+t.TempDir()).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}},
}

// each runs a test for each client that does what it is about.
func each(t *testing.T, does func(client) bool, test func(t *testing.T, c client)) {
	t.Helper()
	for _, c := range clients {
		if does(c) {
			t.Run(c.name, func(t *testing.T) { test(t, c) })
		}
	}
}

func TestAClientPullsWithTheHelperOfARegistry(t *testing.T) {
	each(t, func(c client) bool { return c.helpers }, func(t *testing.T, c client) {
		s := newSite(t, "")
		s.docker(t, `{}`)
		if err := c.pull(t.Context(), t, s); err == nil {
			t.Fatal("the registry wants no password")
		}
		s.docker(t, `{"credHelpers":{%q:"broker"}}`, s.host)
		if err := c.pull(t.Context(), t, s); err != nil {
			t.Fatal(err)
		}
	})
}

func TestAClientPullsWithTheStoreForAll(t *testing.T) {
	each(t, func(c client) bool { return c.store }, func(t *testing.T, c client) {
		s := newSite(t, "")
		s.docker(t, `{"credsStore":"broker"}`)
		if err := c.pull(t.Context(), t, s); err != nil {
			t.Fatal(err)
		}
	})
}

// A provider for a part of the registry is for clients that say which part they mean, and for no others.
func TestOnlyAClientThatNamesTheImageGetsAPartsCredential(t *testing.T) {
	each(t, func(c client) bool { return c.store }, func(t *testing.T, c client) {
		s := newSite(t, "/team")
		s.docker(t, `{"credsStore":"broker"}`)
		if err := c.pull(t.Context(), t, s); (err == nil) != c.paths {
			t.Errorf("the pull with a credential for a part of the registry gave %v", err)
		}
	})
}

// Where there is no provider, clients go on without credentials.
func TestAClientPullsWhatIsPublicWhereThereIsNoProvider(t *testing.T) {
	each(t, func(c client) bool { return c.helpers }, func(t *testing.T, c client) {
		s := newSite(t, "")
		s.openToAll()
		s.configure(t, "other.example", "")
		s.docker(t, `{"credHelpers":{%q:"broker"}}`, s.host)
		if err := c.pull(t.Context(), t, s); err != nil {
			t.Error(err)
		}
	})
}

// Where a provider fails, clients say why rather than that the registry wants a password.
func TestAClientShowsWhyAProviderFailed(t *testing.T) {
	each(t, func(c client) bool { return c.helpers }, func(t *testing.T, c client) {
		s := newSite(t, "")
		s.configure(t, s.host, "fail")
		s.docker(t, `{"credHelpers":{%q:"broker"}}`, s.host)
		err := c.pull(t.Context(), t, s)
		if err == nil || !strings.Contains(err.Error(), "credential-broker: provider") || !strings.Contains(err.Error(), "no luck today") {
			t.Errorf("the client says %v", err)
		}
		if err != nil && strings.Contains(err.Error(), s.password) {
			t.Error("and shows the password")
		}
	})
}

// docker build without BuildKit sends every login that there is: those of the registries that credHelpers names, and what the store lists, which is nothing.
func TestDockerAsksForAllLogins(t *testing.T) {
	s := newSite(t, "")
	for content, want := range map[string]bool{`{"credsStore":"broker"}`: false, fmt.Sprintf(`{"credsStore":"broker","credHelpers":{%q:"broker"}}`, s.host): true} {
		s.docker(t, "%s", content)
		file, err := config.Load(filepath.Join(s.home, ".docker"))
		if err != nil {
			t.Fatal(err)
		}
		logins, err := file.GetAllCredentials()
		if err != nil || (logins[s.host].Password == s.password) != want || len(logins) > 1 {
			t.Errorf("%s: the registry's login is among them: %t (%d in all, %v)", content, !want, len(logins), err)
		}
	}
}

// docker login and docker logout are told why there is nothing to do.
func TestDockerLoginIsRefused(t *testing.T) {
	s := newSite(t, "")
	s.docker(t, `{"credsStore":"broker"}`)
	file, err := config.Load(filepath.Join(s.home, ".docker"))
	if err != nil {
		t.Fatal(err)
	}
	store := file.GetCredentialsStore(s.host)
	const canary = "cAnArY"
	err = store.Store(types.AuthConfig{ServerAddress: s.host, Username: "u", Password: canary})
	if err == nil || !strings.Contains(err.Error(), "the broker keeps no credentials") || strings.Contains(err.Error(), canary) {
		t.Errorf("docker login says %v", err)
	}
	if err := store.Erase(s.host); err == nil || !strings.Contains(err.Error(), "the broker keeps no credentials") {
		t.Errorf("docker logout says %v", err)
	}
}
