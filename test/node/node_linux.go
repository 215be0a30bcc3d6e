package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/template"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/credential-broker/credential-broker/test/compiled"
)

// Node is one node, and what it needs around it.
type Node struct {
	Dir       string // everything lies below it
	Libexec   string // the product, as packages install it: Libexec/credential-broker and Libexec/backends
	Config    string // the broker's configuration, which Configure writes
	BinDir    string // the kubelet's --image-credential-provider-bin-dir
	Providers string // the kubelet's --image-credential-provider-config
	Kubelet   *Process
	OwnMounts bool // the kubelet, and so the broker, sees mounts of its own: what Within mounts is there for nobody else on the machine

	containerd *Process
	packages   string // where Debian's programs are
	kubelet    string // the program
	sandbox    string // the image of each pod's sandbox
	port       int    // of every registry; each has an address of its own
	readOnly   string // the kubelet's port for reading without a password
	secure     int    // and the other one
	cluster    *Cluster

	mu         sync.Mutex
	registries int
}

// Name is the node's.
const Name = "node1"

// New makes a node with containerd, the product and a public registry for what every pod needs, and no kubelet yet. It skips the test where a node cannot be had.
func New(t testing.TB) *Node {
	t.Helper()
	switch {
	case os.Getenv("NODE_TEST") != "1":
		t.Skip("a real node takes minutes to build and needs root: make node-test")
	case os.Geteuid() != 0:
		t.Skip("a real node needs root: make node-test, as root")
	}
	for _, dir := range []string{"/var/lib/kubelet/pods", "/run/containerd/containerd.sock"} {
		if _, err := os.Stat(dir); err == nil {
			t.Skipf("this machine has a kubelet or a containerd of its own (%s), which make node-test leaves alone", dir)
		}
	}
	if err := sweepOthers(); err != nil {
		t.Fatalf("removing what killed tests have left: %v", err)
	}
	dir, err := os.MkdirTemp("", prefix)
	if err != nil {
		t.Fatal(err)
	}
	n := &Node{
		Dir: dir, Libexec: filepath.Join(dir, "usr/libexec/credential-broker"), Config: filepath.Join(dir, "etc/credential-broker/config.yaml"),
		BinDir: filepath.Join(dir, "usr/libexec/kubernetes/credential-provider"), Providers: filepath.Join(dir, "etc/kubernetes/credential-providers.yaml"),
	}
	held, err := compiled.Lock(n.path("lock"), false)
	if err != nil {
		t.Fatal(err)
	}
	restore := rememberKernel()
	var ours []string
	for _, path := range []string{"/var/lib/kubelet", "/var/log/containers", "/run/containerd"} {
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			ours = append(ours, path)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			n.logTails(t)
		}
		if err := sweep(dir); err != nil {
			t.Errorf("the rig leaves something behind: %v", err)
		}
		restore()
		for _, path := range ours { // the kubelet and containerd make these wherever they are told to keep their state
			if err := os.RemoveAll(path); err != nil {
				t.Error(err)
			}
		}
		_ = held.Close()
	})
	if err := n.prepare(); err != nil {
		t.Fatal(err)
	}
	n.sandbox = n.Registry(t, nil).Push(t, "sandbox")
	n.startContainerd(t)
	return n
}

// path is one below the rig's directory.
func (n *Node) path(elements ...string) string {
	return filepath.Join(append([]string{n.Dir}, elements...)...)
}

// env is what the rig's programs see: no variable of whoever runs the test but what is said here.
func (n *Node) env() []string {
	programs := []string{filepath.Join(n.packages, "usr/bin"), filepath.Join(n.packages, "usr/sbin"), "/usr/sbin", "/usr/bin", "/sbin", "/bin"}
	return []string{"PATH=" + strings.Join(programs, ":"), "HOME=" + n.Dir, "TMPDIR=" + n.path("tmp"), "LANG=C"}
}

// prepare finds the programs and puts the product in its place.
func (n *Node) prepare() error {
	for _, dir := range []string{"logs", "tmp", "manifests", "pod-logs", "cni/bin", "cni/net", "opt", "etc/credential-broker", "etc/kubernetes"} {
		if err := os.MkdirAll(n.path(dir), 0o755); err != nil {
			return err
		}
	}
	root := filepath.Join(sourceDir(), "../..")
	var stderr bytes.Buffer
	command := exec.Command(filepath.Join(root, "tools/node-packages.sh"))
	command.Stderr = &stderr
	packages, err := command.Output()
	if err != nil {
		return fmt.Errorf("%s: %w", strings.TrimSpace(stderr.String()), err)
	}
	n.packages = strings.TrimSpace(string(packages))
	if n.kubelet, err = Program("kubelet"); err != nil {
		return err
	}
	built := filepath.Join(root, "bin")
	if err := install(filepath.Join(built, "credential-broker"), n.Libexec); err != nil {
		return fmt.Errorf("%w (make build first)", err)
	}
	backends, err := filepath.Glob(filepath.Join(built, "backends/*"))
	if err != nil {
		return err
	}
	for _, backend := range backends {
		if err := install(backend, filepath.Join(n.Libexec, "backends")); err != nil {
			return err
		}
	}
	if n.port, err = freePort("127.0.0.11"); err != nil {
		return err
	}
	readOnly, err := freePort("127.0.0.1")
	if err != nil {
		return err
	}
	n.readOnly = fmt.Sprintf("127.0.0.1:%d", readOnly)
	n.secure, err = freePort("127.0.0.1")
	return err
}

// install puts a copy of a program into a directory, under its own name, whole or not at all.
func install(file, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	from, err := os.Open(file)
	if err != nil {
		return err
	}
	defer from.Close()
	unfinished := filepath.Join(dir, "."+filepath.Base(file))
	to, err := os.OpenFile(unfinished, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(to, from); err != nil {
		_ = to.Close()
		return err
	}
	if err := to.Close(); err != nil {
		return err
	}
	return os.Rename(unfinished, filepath.Join(dir, filepath.Base(file)))
}

// Install puts a backend or a provider, a program built from a directory below the repository's root, into a directory of the node's.
func (n *Node) Install(t testing.TB, source, dir, name string) string {
	t.Helper()
	built := n.path("tmp", name)
	if err := compiled.Build(filepath.Join(sourceDir(), "../..", source), ".", built); err != nil {
		t.Fatal(err)
	}
	if err := install(built, dir); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

func freePort(address string) (int, error) {
	listener, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port, nil
}

// Write writes a file below the rig's directory that only root may write, and gives its path.
func (n *Node) Write(t testing.TB, name, content string) string {
	t.Helper()
	path := n.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Login writes the file of a `docker login` to one registry, for the backend dockerconfig, and gives its path.
func (n *Node) Login(t testing.TB, name string, r *Registry, username, password string) string {
	t.Helper()
	content, err := json.Marshal(map[string]any{"auths": map[string]any{r.Host: map[string]string{"username": username, "password": password}}})
	if err != nil {
		t.Fatal(err)
	}
	return n.Write(t, filepath.Join("etc/credential-broker", name+".json"), string(content))
}

// Configure writes the broker's configuration, whole, as an operator's tool would: into a new file that takes the place of the old one.
func (n *Node) Configure(t testing.TB, providers string) {
	t.Helper()
	unfinished := n.Write(t, "etc/credential-broker/.config.yaml", "apiVersion: credential-broker.io/v1alpha1\nkind: BrokerConfig\n"+providers)
	if err := os.Rename(unfinished, n.Config); err != nil {
		t.Fatal(err)
	}
	n.Broker(t, "validate")
}

// Broker runs a subcommand of credential-broker's on the node, and gives what it prints.
func (n *Node) Broker(t testing.TB, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	command := exec.CommandContext(ctx, filepath.Join(n.Libexec, "credential-broker"), append([]string{"--config", n.Config}, args...)...)
	var stderr bytes.Buffer
	command.Env, command.Stderr = n.env(), &stderr
	output, err := command.Output()
	if err != nil {
		t.Fatalf("credential-broker %s: %v\n%s%s", strings.Join(args, " "), err, output, &stderr)
	}
	return string(output)
}

// Enter makes the kubelet's entries what `credential-broker kubelet-config` prints with the flags given, with the links that those need.
func (n *Node) Enter(t testing.TB, flags ...string) (printed string) {
	t.Helper()
	printed = n.Broker(t, append([]string{"kubelet-config"}, flags...)...)
	n.Write(t, "etc/kubernetes/credential-providers.yaml", printed)
	if err := os.MkdirAll(n.BinDir, 0o755); err != nil {
		t.Fatal(err)
	}
	n.Broker(t, "kubelet-config", "--link", "--bin-dir", n.BinDir)
	return printed
}

var containerdConfig = template.Must(template.New("containerd").Parse(`version = 2
root = "{{.Dir}}/containerd/root"
state = "{{.Dir}}/containerd/state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "{{.Dir}}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{{.Dir}}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{{.Sandbox}}"
  disable_apparmor = true
  restrict_oom_score_adj = true # a container may not go below what its parent has
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native" # overlay on overlay is refused
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{{.Dir}}/cni/bin"
    conf_dir = "{{.Dir}}/cni/net"
`))

func (n *Node) startContainerd(t testing.TB) {
	t.Helper()
	n.Write(t, "containerd.toml", fill(t, containerdConfig, map[string]any{"Dir": n.Dir, "Sandbox": n.sandbox}))
	var err error
	n.containerd, err = n.startProcess("containerd", exec.Command(filepath.Join(n.packages, "usr/bin/containerd"), "--config", n.path("containerd.toml")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.containerd.end() })
	await(t, "containerd", n.containerd, func() (bool, string) {
		connection, err := net.Dial("unix", n.path("containerd.sock"))
		if err != nil {
			return false, err.Error()
		}
		_ = connection.Close()
		return true, ""
	})
}

var kubeletConfig = template.Must(template.New("kubelet").Parse(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 127.0.0.1
port: {{.Port}}
readOnlyPort: {{.ReadOnlyPort}}
healthzPort: 0
containerRuntimeEndpoint: unix://{{.Dir}}/containerd.sock
staticPodPath: {{.Dir}}/manifests
podLogsDir: {{.Dir}}/pod-logs
volumePluginDir: {{.Dir}}/volume-plugins
fileCheckFrequency: 1s
authentication: {anonymous: {enabled: false}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow} # nobody gets as far as that
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
failSwapOn: false
localStorageCapacityIsolation: false
makeIPTablesUtilChains: false
evictionHard: {memory.available: 100Mi}
resolvConf: ""
`))

// StartKubelet starts the kubelet with the entries that are there, as a member of the cluster if there is one.
func (n *Node) StartKubelet(t testing.TB) {
	t.Helper()
	_, err := os.Stat(n.Providers)
	n.Kubelet = n.launchKubelet(t, err == nil)
	await(t, "the kubelet", n.Kubelet, func() (bool, string) {
		_, err := n.pods(t.Context())
		return err == nil, fmt.Sprint(err)
	})
}

// KubeletEnds starts a kubelet whose flags name the entries whether or not they are there, waits until it has ended by itself, and gives its last words.
func (n *Node) KubeletEnds(t testing.TB) string {
	t.Helper()
	p := n.launchKubelet(t, true)
	select {
	case <-p.ended:
	case <-time.After(patience):
		t.Fatalf("the kubelet runs, with --image-credential-provider-config %s and --image-credential-provider-bin-dir %s", n.Providers, n.BinDir)
	}
	lines := strings.Split(strings.TrimSpace(p.Log()), "\n")
	last := lines[len(lines)-1]
	t.Logf("a kubelet that ended: %s", last)
	return last
}

func (n *Node) launchKubelet(t testing.TB, withEntries bool) *Process {
	t.Helper()
	_, readOnly, _ := net.SplitHostPort(n.readOnly)
	config := n.Write(t, "kubelet.yaml", fill(t, kubeletConfig, map[string]any{"Dir": n.Dir, "Port": n.secure, "ReadOnlyPort": readOnly}))
	args := []string{"--config", config, "--root-dir", n.path("kubelet"), "--cert-dir", n.path("kubelet-pki"), "--hostname-override", Name, "--node-ip", "127.0.0.1", "--v", "2"}
	if withEntries {
		args = append(args, "--image-credential-provider-config", n.Providers, "--image-credential-provider-bin-dir", n.BinDir)
	}
	if n.cluster != nil {
		args = append(args, "--kubeconfig", n.cluster.kubeconfig)
	}
	command := exec.Command(n.kubelet, args...)
	if n.OwnMounts {
		command.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	}
	p, err := n.startProcess("kubelet", command)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill) // a second time does nothing
	return p
}

// PodNetwork gives pods that are not in the host's network one of their own, in which there is nothing: a real node has a plugin for that (CNI), and what is asked of it here is only to say so.
func (n *Node) PodNetwork(t testing.TB) {
	t.Helper()
	const plugin = `#!/bin/sh
cat >/dev/null
[ "$CNI_COMMAND" != ADD ] ||
  printf '{"cniVersion": "0.3.1", "interfaces": [{"name": "%s", "sandbox": "%s"}], "ips": [{"version": "4", "interface": 0, "address": "192.0.2.9/32"}]}' "$CNI_IFNAME" "$CNI_NETNS"
`
	for _, name := range []string{"loopback", "nothing"} { // containerd asks for the first by itself
		if err := os.Chmod(n.Write(t, "cni/bin/"+name, plugin), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	n.Write(t, "cni/net/nothing.conflist", `{"cniVersion": "0.3.1", "name": "nothing", "plugins": [{"type": "nothing"}]}`)
}

// Import has containerd take an image from a file, as an operator does by hand.
func (n *Node) Import(t testing.TB, flags ...string) {
	t.Helper()
	command := exec.CommandContext(t.Context(), filepath.Join(n.packages, "usr/bin/ctr"), append([]string{"--address", n.path("containerd.sock"), "--namespace", "k8s.io", "images", "import"}, flags...)...)
	command.Env = n.env()
	output, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("ctr images import %s: %v\n%s", strings.Join(flags, " "), err, output)
	}
	t.Logf("ctr images import: %s", strings.TrimSpace(string(output)))
}

// RestartKubelet ends the kubelet and starts it again, with the entries that are there by then. The pods run on.
func (n *Node) RestartKubelet(t testing.TB) {
	t.Helper()
	n.Kubelet.end()
	n.StartKubelet(t)
}

// Within is a command that sees the mounts that the kubelet sees.
func (n *Node) Within(args ...string) *exec.Cmd {
	command := exec.Command("nsenter", append([]string{"--target", fmt.Sprint(n.Kubelet.PID()), "--mount", "--"}, args...)...)
	command.Env = n.env()
	return command
}

// StartAgent starts the broker's agent as a service manager would, and waits until it serves.
func (n *Node) StartAgent(t testing.TB) *Process {
	t.Helper()
	p, err := n.startProcess("agent", n.Within(filepath.Join(n.Libexec, "credential-broker"), "--config", n.Config, "agent"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	await(t, "the agent", p, func() (bool, string) {
		status, err := n.AgentStatus()
		return err == nil && status.PID == p.PID(), fmt.Sprint(err)
	})
	return p
}

// AgentStatus is what an agent says of itself.
type AgentStatus struct {
	Version  string `json:"version"`
	PID      int    `json:"pid"`
	Requests int    `json:"requests"`
}

// AgentStatus is what `credential-broker status` says of the agent that serves.
func (n *Node) AgentStatus() (status AgentStatus, err error) {
	output, err := n.Within(filepath.Join(n.Libexec, "credential-broker"), "--config", n.Config, "status", "-o", "json").Output()
	if err != nil {
		return status, fmt.Errorf("no agent answers: %w", err)
	}
	err = json.Unmarshal(output, &status)
	return status, err
}

// read gives a page of the kubelet's that needs no password, such as "/metrics".
func (n *Node) read(ctx context.Context, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.readOnly+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", path, response.Status)
	}
	return body, err
}

// Metrics is what the kubelet tells Prometheus.
func (n *Node) Metrics(t testing.TB) string {
	t.Helper()
	body, err := n.read(t.Context(), "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// pods are those that the kubelet has, with what it says of them.
func (n *Node) pods(ctx context.Context) ([]corev1.Pod, error) {
	body, err := n.read(ctx, "/pods")
	if err != nil {
		return nil, err
	}
	var list corev1.PodList
	err = json.Unmarshal(body, &list)
	return list.Items, err
}

// newPod is a pod as this node can run it: in the host's network, for there is no other, and with nothing of the cluster's mounted into it.
func newPod(namespace, name, image string) *corev1.Pod {
	no, grace := false, int64(1)
	pod := &corev1.Pod{}
	pod.APIVersion, pod.Kind, pod.Namespace, pod.Name = "v1", "Pod", namespace, name
	pod.Spec = corev1.PodSpec{
		NodeName: Name, HostNetwork: true, AutomountServiceAccountToken: &no, EnableServiceLinks: &no, TerminationGracePeriodSeconds: &grace,
		Containers:  []corev1.Container{{Name: "app", Image: image, ImagePullPolicy: corev1.PullIfNotPresent}},
		Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
	}
	return pod
}

// StaticPod has the kubelet run a pod that no API server knows of. Its name in the functions below is the one given here.
func (n *Node) StaticPod(t testing.TB, name, image string) {
	t.Helper()
	pod := newPod("default", name, image)
	pod.Spec.NodeName = ""
	manifest, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	unfinished := n.Write(t, "tmp/"+name+".json", string(manifest))
	if err := os.Rename(unfinished, n.path("manifests", name+".json")); err != nil {
		t.Fatal(err)
	}
}

// pod finds a pod by its name; a static one has the node's behind it.
func (n *Node) pod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	pods, err := n.pods(ctx)
	if err != nil {
		return nil, err
	}
	for i := range pods {
		if pods[i].Namespace == namespace && (pods[i].Name == name || pods[i].Name == name+"-"+Name) {
			return &pods[i], nil
		}
	}
	return nil, fmt.Errorf("the kubelet has no pod %s/%s", namespace, name)
}

// Running waits until a pod runs, and gives it.
func (n *Node) Running(t testing.TB, namespace, name string) *corev1.Pod {
	t.Helper()
	var pod *corev1.Pod
	await(t, fmt.Sprintf("pod %s/%s to run", namespace, name), n.Kubelet, func() (bool, string) {
		var err error
		if pod, err = n.pod(t.Context(), namespace, name); err != nil {
			return false, err.Error()
		}
		return pod.Status.Phase == corev1.PodRunning && len(pod.Status.ContainerStatuses) == 1 && pod.Status.ContainerStatuses[0].State.Running != nil, describe(pod)
	})
	t.Logf("pod %s/%s: Running, image %s", namespace, name, pod.Spec.Containers[0].Image)
	return pod
}

// Refused waits until the registry has refused a pod's image, and gives the kubelet's words.
func (n *Node) Refused(t testing.TB, namespace, name string) (words string) {
	t.Helper()
	await(t, fmt.Sprintf("the image of pod %s/%s to be refused", namespace, name), n.Kubelet, func() (bool, string) {
		pod, err := n.pod(t.Context(), namespace, name)
		if err != nil {
			return false, err.Error()
		}
		for i := range pod.Status.ContainerStatuses {
			if waiting := pod.Status.ContainerStatuses[i].State.Waiting; waiting != nil && (waiting.Reason == "ErrImagePull" || waiting.Reason == "ImagePullBackOff") {
				words = waiting.Reason + ": " + waiting.Message
				return true, ""
			}
		}
		return false, describe(pod)
	})
	t.Logf("pod %s/%s: %s", namespace, name, words)
	return words
}

// describe says in a line what became of a pod so far.
func describe(pod *corev1.Pod) string {
	status, err := json.Marshal(map[string]any{"phase": pod.Status.Phase, "reason": pod.Status.Reason, "message": pod.Status.Message, "containers": pod.Status.ContainerStatuses})
	if err != nil {
		return err.Error()
	}
	return string(status)
}

// logTails shows the end of every program's log.
func (n *Node) logTails(t testing.TB) {
	logs, _ := filepath.Glob(n.path("logs/*.log"))
	for _, log := range logs {
		if content, err := os.ReadFile(log); err == nil {
			t.Logf("the end of %s:\n%s", filepath.Base(log), tail(string(content)))
		}
	}
}

func fill(t testing.TB, text *template.Template, values any) string {
	t.Helper()
	var filled strings.Builder
	if err := text.Execute(&filled, values); err != nil {
		t.Fatal(err)
	}
	return filled.String()
}
