package vault

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/test/cloud"
	"github.com/credential-broker/credential-broker/test/vaultserver"
)

// shared is the Vault server of all tests that leave it as it is; each has mounts of its own.
var shared vaultserver.Shared

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	takeEnvironment() // of whoever runs the tests
	defer shared.Close()
	return m.Run()
}

var mounted atomic.Int32

// rig is a Vault of a test: a front of the shared server, and the names of what the test has there.
type rig struct {
	*vaultserver.Server
	t     *testing.T
	front *vaultserver.Front
	// kv1, kv2, approle and so on are mounts of the test's own.
	n int32
}

const (
	host  = "harbor.example"
	image = host + "/team-a/app"
)

// use gives a test the shared server.
func use(t *testing.T) *rig {
	t.Helper()
	return rigOf(t, shared.Get(t))
}

// alone gives a test a server of its own.
func alone(t *testing.T, o vaultserver.Options) *rig {
	t.Helper()
	return rigOf(t, vaultserver.New(t, o))
}

func rigOf(t *testing.T, s *vaultserver.Server) *rig {
	return &rig{Server: s, t: t, front: s.Front(), n: mounted.Add(1)}
}

// name is one that no other test has.
func (r *rig) name(what string) string { return fmt.Sprintf("%s-%d", what, r.n) }

// file writes a file that nobody else can read.
func (r *rig) file(content string) string {
	r.t.Helper()
	file := filepath.Join(r.t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		r.t.Fatal(err)
	}
	return file
}

// reads makes a policy that may read paths.
func (r *rig) reads(paths ...string) string {
	r.t.Helper()
	var hcl strings.Builder
	for _, path := range paths {
		fmt.Fprintf(&hcl, "path %q { capabilities = [\"read\"] }\n", path)
	}
	name := fmt.Sprintf("%s-%d", r.name("reader"), policies.Add(1))
	r.Policy(name, hcl.String())
	return name
}

var policies, roles atomic.Int32

// appRole is a login by AppRole with policies, and the settings of its role.
func (r *rig) appRole(settings map[string]any, policies ...string) Auth {
	r.t.Helper()
	mount := r.name("approle")
	roleID, secretID := r.AppRole(mount, fmt.Sprintf("node-%d", roles.Add(1)), policies, settings)
	return Auth{Method: MethodAppRole, Mount: mount, RoleID: roleID, SecretIDFile: r.file(secretID)}
}

// kv has a KV v2 engine with the secret registries/harbor.example, and a login that may read it.
func (r *rig) kv() (path string, auth Auth) {
	r.t.Helper()
	mount := r.name("secret")
	r.KV2(mount)
	r.Put(mount, "registries/"+host, map[string]any{"username": "robot", "password": "pw-of-harbor"})
	return mount + "/registries/{host}", r.appRole(nil, r.reads(mount+"/data/registries/*"))
}

// backend makes a backend for the test's front.
func (r *rig) backend(c Config) *Backend {
	r.t.Helper()
	b, err := r.tried(c)
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

func (r *rig) tried(c Config) (*Backend, error) {
	if c.Address == "" {
		c.Address = r.front.Address()
	}
	if c.CAFile == "" {
		c.CAFile = r.CAFile()
	}
	b, err := New(r.t.Context(), c)
	if err == nil {
		r.t.Cleanup(func() { _ = b.Close(r.t.Context()) })
	}
	return b, err
}

// asked are the questions of Vault so far: "PUT auth/approle/login 200", where the test's number is left out of names.
func (r *rig) asked() []string {
	var all []string
	for _, q := range r.front.Requests() {
		all = append(all, fmt.Sprintf("%s %s %d", q.Method, strings.ReplaceAll(q.Path, fmt.Sprintf("-%d", r.n), ""), q.Status))
	}
	return all
}

// pull asks for an image and wants one credential.
func pull(t *testing.T, b *Backend, req backends.Request) backends.Response {
	t.Helper()
	got, err := b.Credentials(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Credentials) != 1 {
		t.Fatalf("%d credentials: %+v", len(got.Credentials), got)
	}
	return got
}

// is compares a credential.
func is(t *testing.T, got backends.Response, key, username, password string) {
	t.Helper()
	c := got.Credentials[0]
	if c.Key != key || c.Username != username || string(c.Password) != password {
		t.Errorf("got %s, %s, %s; want %s, %s, %s", c.Key, c.Username, string(c.Password), key, username, password)
	}
}

// fails judges an error: its kind and what it says, each of the texts.
func fails(t *testing.T, err error, kind backends.Kind, texts ...string) {
	t.Helper()
	e, ok := errors.AsType[*backends.Error](err)
	if !ok || e.Kind != kind {
		t.Errorf("want kind %d: %v", kind, err)
	}
	if err == nil {
		return
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("want %q in: %v", text, err)
		}
	}
}

const (
	unavailable   = backends.KindUnavailable
	refused       = backends.KindRefused
	misconfigured = backends.KindMisconfigured
)

// cluster is an issuer of service accounts' tokens, outside any cloud that the server asks.
func cluster(t *testing.T) *cloud.Issuer {
	t.Helper()
	return cloud.New(t).AddIssuer("https://kubernetes.default.svc")
}

// podToken is a pod's token for Vault.
func podToken(issuer *cloud.Issuer, namespace, account string) backends.Secret {
	return backends.Secret(issuer.Token(map[string]any{
		"sub": "system:serviceaccount:" + namespace + ":" + account, "aud": []string{"vault"}, "nbf": issuer.Now().Unix(), "exp": issuer.Now().Add(time.Hour).Unix(),
		"kubernetes.io": map[string]any{"namespace": namespace, "serviceaccount": map[string]any{"name": account, "uid": "uid-of-" + account}},
	}))
}
