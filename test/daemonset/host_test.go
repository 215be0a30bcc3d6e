package daemonset

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

const bin = "../../bin"

// built copies the few programs that the tests need, so that nothing here waits for a hundred megabytes.
func built(t *testing.T, dir string) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("the DaemonSet is for Linux nodes")
	}
	for _, name := range []string{"credential-broker", "credential-broker-installer", "backends/credential-backend-dockerconfig"} {
		text, err := os.ReadFile(filepath.Join(bin, name))
		if err != nil {
			t.Fatalf("%v: run make build", err)
		}
		write(t, filepath.Join(dir, name), text, 0o755)
	}
}

func write(t *testing.T, path string, content []byte, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, mode); err != nil {
		t.Fatal(err)
	}
}

// configMap is the configuration for one user's password, which the answer shows.
func configMap(t *testing.T, dir, user string) {
	t.Helper()
	credentials := filepath.Join(filepath.Dir(dir), user+".json")
	if _, err := os.Stat(credentials); err != nil { // a file that is written anew is empty for a moment, and somebody may be reading it
		write(t, credentials, fmt.Appendf(nil, `{"auths":{"registry.example":{"username":%q,"password":"secret"}}}`, user), 0o600)
	}
	text := fmt.Sprintf("apiVersion: credential-broker.io/v1alpha1\nkind: BrokerConfig\nproviders:\n- name: files\n  backend: dockerconfig\n  matchImages: [registry.example]\n  config:\n    file: %s\n", credentials)
	write(t, filepath.Join(dir, "config.yaml"), []byte(text), 0o644)
}

// image makes the image of a directory's programs and gives the layout's file, and what the command printed.
func image(t *testing.T, dir, out string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "-C", "../../tools", "run", "./image", "--out", out, "--version", "1.2.3", "--created", "2026-01-02T03:04:05Z", "linux/"+runtime.GOARCH+"="+dir)
	cmd.Stderr = os.Stderr
	said, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(said)
}

// unpack puts an image's one layer into a directory, owners and times aside.
func unpack(t *testing.T, layout, dir string) {
	t.Helper()
	f, err := os.Open(layout)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	blobs := map[string][]byte{}
	each(t, f, func(h *tar.Header, content []byte) { blobs[h.Name] = content })
	type descriptor struct {
		Digest string `json:"digest"`
	}
	blob := func(d descriptor, into any) {
		if err := json.Unmarshal(blobs["blobs/"+strings.Replace(d.Digest, ":", "/", 1)], into); err != nil {
			t.Fatal(err)
		}
	}
	var index struct {
		Manifests []descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(blobs["index.json"], &index); err != nil {
		t.Fatal(err)
	}
	blob(index.Manifests[0], &index)
	var manifest struct {
		Layers []descriptor `json:"layers"`
	}
	blob(index.Manifests[0], &manifest)
	layer, err := gzip.NewReader(bytes.NewReader(blobs["blobs/"+strings.Replace(manifest.Layers[0].Digest, ":", "/", 1)]))
	if err != nil {
		t.Fatal(err)
	}
	each(t, layer, func(h *tar.Header, content []byte) {
		if h.Typeflag == tar.TypeReg {
			write(t, filepath.Join(dir, h.Name), content, os.FileMode(h.Mode))
		}
		if h.Uid != 0 || h.Gid != 0 || h.Mode&0o022 != 0 {
			t.Errorf("%s belongs to %d:%d, mode %o", h.Name, h.Uid, h.Gid, h.Mode)
		}
	})
}

func each(t *testing.T, from io.Reader, do func(*tar.Header, []byte)) {
	t.Helper()
	for r := tar.NewReader(from); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		do(h, content)
	}
}

// caller calls what is installed as the kubelet does: the name in the bin directory, with the entry's arguments.
type caller struct {
	dir   string
	calls atomic.Int64
	users sync.Map
}

func (k *caller) call(ctx context.Context) error {
	text, err := os.ReadFile(filepath.Join(k.dir, "kubelet.yaml"))
	if err != nil {
		return err
	}
	var entries struct {
		Providers []struct {
			Name string   `json:"name"`
			Args []string `json:"args"`
		} `json:"providers"`
	}
	if err := yaml.Unmarshal(text, &entries); err != nil {
		return err
	}
	if len(entries.Providers) != 1 {
		return fmt.Errorf("%d entries in %s", len(entries.Providers), text)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(k.dir, "bin", entries.Providers[0].Name), entries.Providers[0].Args...)
	cmd.Stdin = strings.NewReader(`{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderRequest","image":"registry.example/app"}`)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%w: %s", err, stderr.String())
	}
	var answer struct {
		Auth map[string]struct {
			Username string `json:"username"`
		} `json:"auth"`
	}
	if err := json.Unmarshal(out, &answer); err != nil {
		return err
	}
	user := answer.Auth["registry.example"].Username
	if user == "" {
		return fmt.Errorf("no credentials: %s", stderr.String())
	}
	k.users.Store(user, true)
	k.calls.Add(1)
	return nil
}

// callUntil has callers call without a pause until the function ends; no call may fail.
func (k *caller) callUntil(t *testing.T, do func()) {
	t.Helper()
	var stop atomic.Bool
	var callers sync.WaitGroup
	for range 3 {
		callers.Go(func() {
			for !stop.Load() {
				if err := k.call(context.WithoutCancel(t.Context())); err != nil {
					t.Errorf("a call failed: %v", err)
					return
				}
			}
		})
	}
	defer callers.Wait()
	defer stop.Store(true)
	do()
}

func installer(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", program, args, err, out)
	}
	return string(out)
}

// release makes what lies in an image: the manifest beside the programs. What is appended makes it another version, which runs alike.
func release(t *testing.T, appended string) string {
	t.Helper()
	dir := t.TempDir()
	built(t, dir)
	for _, name := range []string{"credential-broker", "backends/credential-backend-dockerconfig"} {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(appended); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	image(t, dir, filepath.Join(dir, "image.tar"))
	root := t.TempDir()
	unpack(t, filepath.Join(dir, "image.tar"), root)
	return root
}

func TestTheSameProgramsGiveTheSameImage(t *testing.T) {
	dir := t.TempDir()
	built(t, dir)
	var said, bytes [2]string
	for n := range said {
		out := filepath.Join(dir, "image.tar")
		said[n] = image(t, dir, out)
		content, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		bytes[n] = string(content)
	}
	if said[0] != said[1] || bytes[0] != bytes[1] {
		t.Errorf("two images: %s and %s", said[0], said[1])
	}
	if !strings.Contains(said[0], ":1.2.3@sha256:") {
		t.Errorf("no digest is printed: %s", said[0])
	}
}

func TestNoCallFailsWhileVersionsAndConfigurationsAreSwapped(t *testing.T) {
	roots := []string{release(t, "one"), release(t, "two")}
	work, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	host := filepath.Join(work, "opt")
	if err := os.Mkdir(host, 0o755); err != nil {
		t.Fatal(err)
	}
	apply := func(n int) {
		config := filepath.Join(work, "config")
		configMap(t, config, []string{"robot", "machine"}[n/2%2])
		root := roots[n%2]
		installer(t, filepath.Join(root, "credential-broker-installer"), "install", "--from", filepath.Join(root, "usr/libexec/credential-broker"), "--dir", host, "--config-from", config)
	}
	apply(0)
	k := &caller{dir: host}
	const swaps = 16
	k.callUntil(t, func() {
		for n := range swaps {
			apply(n + 1)
		}
	})
	for _, user := range []string{"robot", "machine"} {
		if _, seen := k.users.Load(user); !seen {
			t.Errorf("no call got %s's credentials", user)
		}
	}
	t.Logf("%d calls while versions were swapped %d times and configurations %d times", k.calls.Load(), swaps, swaps/2)

	// What kubelet-config says of the configuration in its own words is what the installer hands on.
	program := filepath.Join(roots[0], "credential-broker-installer")
	entry := installer(t, program, "kubelet", "--entry", "--dir", host)
	cmd := exec.CommandContext(t.Context(), filepath.Join(host, "bin", "credential-broker"), "kubelet-config", "--config", filepath.Join(host, "config"))
	printed, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if entry != string(printed) {
		t.Errorf("the installer has %s\nkubelet-config prints %s", entry, printed)
	}
	installer(t, program, "remove", "--dir", host)
	if _, err := os.Stat(host); !os.IsNotExist(err) {
		t.Errorf("%s is there", host)
	}
}

// TestTheImageInstallsFromAContainer runs the image as the DaemonSet does: root without a capability, a root file system that cannot be written, one directory of the host's, and a /run as an emptyDir is.
func TestTheImageInstallsFromAContainer(t *testing.T) {
	runc, err := exec.LookPath("runc")
	if err != nil || os.Geteuid() != 0 {
		t.Skip("it needs root and runc (Debian: apt-get install runc)")
	}
	root := release(t, "")
	work, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	host, config := filepath.Join(work, "opt"), filepath.Join(work, "map")
	configMap(t, config, "robot")
	if err := os.Mkdir(host, 0o755); err != nil {
		t.Fatal(err)
	}
	// A container's file system belongs to root, all of it; the directory of a test may not.
	write(t, filepath.Join(work, "bundle", "config.json"), bundle(t, root, host, config, filepath.Join(work, "robot.json")), 0o600)
	id := fmt.Sprintf("credential-broker-test-%d", os.Getpid())
	state := filepath.Join(work, "runc")
	var said bytes.Buffer
	container := exec.Command(runc, "--root", state, "run", "--bundle", filepath.Join(work, "bundle"), id)
	container.Stdout, container.Stderr = &said, &said
	if err := container.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- container.Wait() }()
	t.Cleanup(func() {
		_ = exec.Command(runc, "--root", state, "kill", id, "KILL").Run() // it may have ended
		select {
		case err := <-ended:
			t.Logf("the container ended: %v", err)
		case <-time.After(30 * time.Second):
			_ = container.Process.Kill()
		}
		_ = exec.Command(runc, "--root", state, "delete", "--force", id).Run()
	})
	status := func() (string, error) {
		out, err := exec.CommandContext(t.Context(), runc, "--root", state, "exec", id, "/credential-broker-installer", "status").CombinedOutput()
		return string(out), err
	}
	var last string
	until := func(what string, ok func() bool) {
		t.Helper()
		deadline := time.After(2 * time.Minute)
		for !ok() {
			select {
			case err := <-ended:
				ended <- err
				if strings.Contains(said.String(), "runc create failed") || strings.Contains(said.String(), "runc run failed") {
					t.Skipf("this machine runs no container: %s", said.String())
				}
				t.Fatalf("the container ended: %v: %s", err, said.String())
			case <-deadline:
				t.Fatalf("not %s: %s", what, last)
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	ready := func() bool {
		var err error
		last, err = status()
		return err == nil
	}
	until("ready", ready)
	k := &caller{dir: host}
	got := func(user string) func() bool {
		return func() bool {
			if err := k.call(t.Context()); err != nil {
				t.Fatal(err)
			}
			_, seen := k.users.Load(user)
			return seen
		}
	}
	until("the first configuration", got("robot"))

	// A configuration that is refused: not ready, and the one before in use.
	write(t, filepath.Join(config, "config.yaml"), []byte("apiVersion: credential-broker.io/v1alpha1\nkind: BrokerConfig\nproviders:\n- name: files\n  backend: dockerconfig\n  matchImage: [registry.example]\n"), 0o644)
	until("refused", func() bool { return !ready() && strings.Contains(last, "matchImage") })
	if err := k.call(t.Context()); err != nil {
		t.Error(err)
	}
	// What is broken on the host is repaired at the next look, which the mended configuration brings about.
	program, err := filepath.EvalSymlinks(filepath.Join(host, "bin", "credential-broker"))
	if err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(program)
	configMap(t, config, "robot")
	until("ready again", ready)
	if err := k.call(t.Context()); err != nil {
		t.Error(err)
	}
}

// bundle is the container's configuration: what a runtime makes of the DaemonSet's pod.
func bundle(t *testing.T, root, host, config string, readable string) []byte {
	t.Helper()
	type object = map[string]any
	bind := func(path, at string, options ...string) object {
		return object{"destination": at, "type": "bind", "source": path, "options": append([]string{"rbind"}, options...)}
	}
	capabilities := object{}
	for _, set := range []string{"bounding", "effective", "permitted"} {
		capabilities[set] = []string{}
	}
	spec := object{
		"ociVersion": "1.0.2",
		"root":       object{"path": root, "readonly": true},
		"process": object{
			"user": object{"uid": 0, "gid": 0}, "cwd": "/", "noNewPrivileges": true, "capabilities": capabilities,
			"args": []string{"/credential-broker-installer", "run", "--dir", host, "--config-from", "/config", "--interval", "200ms"},
			"env":  []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		},
		"mounts": []object{
			{"destination": "/proc", "type": "proc", "source": "proc"},
			{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "mode=755"}},
			{"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "nodev", "mode=777"}},
			bind(config, "/config", "ro"), bind(readable, readable, "ro"), bind(host, host),
		},
		"linux": object{"namespaces": []object{{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}}},
	}
	text, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestBackendsOfOtherUsersAreTriedWithTheChartsCapabilities validates a configuration with `user:` as root that has what the chart leaves a pod, and nothing else.
func TestBackendsOfOtherUsersAreTriedWithTheChartsCapabilities(t *testing.T) {
	setpriv, err := exec.LookPath("setpriv")
	if err != nil || os.Geteuid() != 0 {
		t.Skip("it needs root and setpriv, of util-linux")
	}
	bounding := "-all"
	for _, capability := range rendered(t, map[string]any{"backendUsers": true}).daemonSet.Spec.Template.Spec.Containers[0].SecurityContext.Capabilities.Add {
		bounding += ",+" + strings.ToLower(string(capability))
	}
	dir := t.TempDir()
	built(t, dir)
	for _, readable := range []string{filepath.Dir(dir), dir, filepath.Join(dir, "backends")} { // for the user, too
		if err := os.Chmod(readable, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	credentials, config := filepath.Join(dir, "docker.json"), filepath.Join(dir, "config.yaml")
	write(t, credentials, []byte(`{"auths":{"registry.example":{"username":"robot","password":"secret"}}}`), 0o644)
	write(t, config, fmt.Appendf(nil, "apiVersion: credential-broker.io/v1alpha1\nkind: BrokerConfig\nproviders:\n- name: files\n  backend: dockerconfig\n  user: nobody\n  matchImages: [registry.example]\n  config:\n    file: %s\n", credentials), 0o644)
	cmd := exec.CommandContext(t.Context(), setpriv, "--bounding-set="+bounding, filepath.Join(dir, "credential-broker"), "--config", config, "validate")
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("with %s: %v: %s", bounding, err, said)
	}
}
