package node

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"text/template"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/crypto/bcrypt"

	"github.com/credential-broker/credential-broker/test/compiled"
)

// Registry is Debian's docker-registry. Each has a loopback address of its own and all of a node's have one port, so that one pattern of the kubelet's can stand for several: 127.0.0.*:PORT.
type Registry struct {
	Host string // "127.0.0.12:41234"

	node    *Node
	pusher  string // the password of who pushes
	private bool   // a password is needed
	behind  string // where the program listens: Host, unless something stands before it
}

var registryConfig = template.Must(template.New("registry").Parse(`version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: {{.Files}}}}
http: {addr: "{{.Host}}"}
{{if .Passwords}}auth: {htpasswd: {realm: node, path: {{.Passwords}}}}
{{end}}`))

// Registry starts a registry that lets these users in by password; with no users, everybody.
func (n *Node) Registry(t testing.TB, passwords map[string]string) *Registry {
	t.Helper()
	r := n.registry()
	r.behind = r.Host
	r.start(t, passwords)
	return r
}

func (n *Node) registry() *Registry {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.registries++
	return &Registry{node: n, Host: fmt.Sprintf("127.0.0.%d:%d", 10+n.registries, n.port), pusher: rand.Text()}
}

// Pattern matches every registry of the node's.
func (n *Node) Pattern() string { return fmt.Sprintf("127.0.0.*:%d", n.port) }

func (r *Registry) start(t testing.TB, passwords map[string]string) {
	t.Helper()
	program := "registry-" + strings.ReplaceAll(r.Host, ":", "-")
	values := map[string]any{"Files": r.node.path(program), "Host": r.behind}
	if len(passwords) != 0 {
		r.private = true
		values["Passwords"] = r.Passwords(t, passwords)
	}
	config := r.node.Write(t, program+".yaml", fill(t, registryConfig, values))
	p, err := r.node.startProcess(program, exec.Command(filepath.Join(r.node.packages, "usr/bin/docker-registry"), "serve", config))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	await(t, "the registry "+r.behind, p, func() (bool, string) {
		connection, err := net.Dial("tcp", r.behind)
		if err != nil {
			return false, err.Error()
		}
		_ = connection.Close()
		return true, ""
	})
}

// Passwords changes who is let in; the registry reads the file again when it has changed.
func (r *Registry) Passwords(t testing.TB, passwords map[string]string) (file string) {
	t.Helper()
	var lines strings.Builder
	for user, password := range passwords {
		lines.WriteString(passwordLine(t, user, password))
	}
	lines.WriteString(passwordLine(t, "pusher", r.pusher))
	return r.node.Write(t, "registry-"+strings.ReplaceAll(r.Host, ":", "-")+".htpasswd", lines.String())
}

func passwordLine(t testing.TB, user, password string) string {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return user + ":" + string(hash) + "\n"
}

// Push makes an image of one static program and stores it under a path of its own, such as "team/app"; no two images are the same, so that none is there before it is pulled. It gives the image's name, with registry and tag.
func (r *Registry) Push(t testing.TB, path string) (image string) {
	t.Helper()
	content, err := r.image()
	if err != nil {
		t.Fatal(err)
	}
	image = r.Host + "/" + path + ":v1"
	reference, err := name.ParseReference(r.behind+"/"+path+":v1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	as := authn.Anonymous
	if r.private {
		as = &authn.Basic{Username: "pusher", Password: r.pusher}
	}
	if err := remote.Write(reference, content, remote.WithAuth(as), remote.WithContext(t.Context())); err != nil {
		t.Fatalf("pushing %s: %v", image, err)
	}
	if r.private {
		r.mustRefuse(t, path)
	}
	return image
}

// mustRefuse makes sure that the image is private: a pod that ran without credentials would show nothing.
func (r *Registry) mustRefuse(t testing.TB, path string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.Host+"/v2/"+path+"/manifests/v1", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	if response.StatusCode != http.StatusUnauthorized {
		t.Fatalf("the registry %s gives %s to anybody: %s", r.Host, path, response.Status)
	}
}

func (r *Registry) image() (v1.Image, error) {
	program := r.node.path("tmp/pod")
	if _, err := os.Stat(program); err != nil {
		if err := compiled.Build(filepath.Join(sourceDir(), "pod"), ".", program); err != nil {
			return nil, err
		}
	}
	binary, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	var files bytes.Buffer
	archive := tar.NewWriter(&files)
	for _, file := range []struct {
		name    string
		mode    int64
		content []byte
	}{{"pod", 0o755, binary}, {"serial", 0o644, []byte(rand.Text())}} {
		if err := archive.WriteHeader(&tar.Header{Name: file.name, Mode: file.mode, Size: int64(len(file.content))}); err != nil {
			return nil, err
		}
		if _, err := archive.Write(file.content); err != nil {
			return nil, err
		}
	}
	if err := archive.Close(); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files.Bytes())), nil })
	if err != nil {
		return nil, err
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	described, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	described.OS, described.Architecture, described.Config = "linux", runtime.GOARCH, v1.Config{Entrypoint: []string{"/pod"}}
	return mutate.ConfigFile(image, described)
}
