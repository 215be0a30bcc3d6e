//go:build linux

package node

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"

	"github.com/credential-broker/credential-broker/broker/doctor"
)

// The way of docs/daemonset.md, from a node that has nothing to one that has nothing any more: the image of `make image`, the manifests of examples/kubernetes/kustomize. There is no controller: the pod
// that the DaemonSet's would make of its template the test makes.

// installation is a DaemonSet of ours on a node.
type installation struct {
	*streams
	cluster   *Cluster
	host      string // its directory on the node
	manifests string // a copy of examples/kubernetes/kustomize
	serial    int    // of the pods
}

const installedIn = "kube-system" // by the manifests

// overlay is what an operator writes: the image by its digest, the configuration, another directory than /opt/credential-broker; and, by hand, what `backendUsers` and `host.readable` are in the Helm chart.
const overlay = `apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [../../base]
images:
- {name: ghcr.io/credential-broker/credential-broker, digest: "%[1]s"}
configMapGenerator:
- name: credential-broker
  namespace: kube-system
  behavior: replace
  files: [config.yaml]
  options: {disableNameSuffixHash: true}
patches:
- target: {kind: DaemonSet, name: credential-broker}
  patch: |-
    - {op: replace, path: /spec/template/spec/containers/0/args/1, value: "--dir=%[2]s"}
    - {op: replace, path: /spec/template/spec/containers/0/volumeMounts/0/mountPath, value: "%[2]s"}
    - {op: replace, path: /spec/template/spec/volumes/0/hostPath/path, value: "%[2]s"}
    - {op: add, path: /spec/template/spec/containers/0/securityContext/capabilities/add, value: [SETUID, SETGID, KILL, CHOWN, DAC_OVERRIDE]}
    - {op: add, path: /spec/template/spec/containers/0/volumeMounts/-, value: {name: passwd, mountPath: /etc/passwd, readOnly: true}}
    - {op: add, path: /spec/template/spec/containers/0/volumeMounts/-, value: {name: group, mountPath: /etc/group, readOnly: true}}
    - {op: add, path: /spec/template/spec/containers/0/volumeMounts/-, value: {name: readable, mountPath: "%[3]s", readOnly: true}}
    - {op: add, path: /spec/template/spec/volumes/-, value: {name: passwd, hostPath: {path: /etc/passwd, type: File}}}
    - {op: add, path: /spec/template/spec/volumes/-, value: {name: group, hostPath: {path: /etc/group, type: File}}}
    - {op: add, path: /spec/template/spec/volumes/-, value: {name: readable, hostPath: {path: "%[3]s"}}}
`

const overlayRemove = `apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [../remove]
images:
- {name: ghcr.io/credential-broker/credential-broker, digest: "%[1]s"}
patches:
- target: {kind: DaemonSet, name: credential-broker}
  patch: |-
    - {op: replace, path: /spec/template/spec/containers/0/args/2, value: "--dir=%[2]s"}
    - {op: replace, path: /spec/template/spec/containers/0/volumeMounts/0/mountPath, value: "%[2]s"}
    - {op: replace, path: /spec/template/spec/volumes/0/hostPath/path, value: "%[2]s"}
`

func TestClusterADaemonSetInstallsUpgradesAndRemoves(t *testing.T) {
	n := New(t)
	if err := os.Chmod(n.Dir, 0o755); err != nil { // somebody else than root starts programs in there
		t.Fatal(err)
	}
	n.PodNetwork(t)
	c := n.Cluster(t)
	s := &streams{Node: n, t: t, registry: n.Registry(t, map[string]string{"robot": "right"})}
	s.source = s.program(t, "opt/source/slow-provider", strings.Replace(fmt.Sprintf(source, s.registry.Host), "sleep 1\n", "sleep 1\nwhile [ -e \"${0%/*}/hold\" ]; do sleep 0.2; done\n", 1))
	i := &installation{streams: s, cluster: c, host: n.path("opt/credential-broker"), manifests: n.path("kustomize")}
	if err := os.CopyFS(i.manifests, os.DirFS(filepath.Join(sourceDir(), "../../examples/kubernetes/kustomize"))); err != nil {
		t.Fatal(err)
	}
	first, second := i.image(t, "9.9.1"), i.image(t, "9.9.2")

	// What the platform must not do: the flags before the files.
	n.Providers, n.BinDir = filepath.Join(i.host, "kubelet.yaml"), filepath.Join(i.host, "bin")
	if words := n.KubeletEnds(t); !strings.Contains(words, i.host) {
		t.Errorf("the kubelet ended for another reason than that %s is not there", i.host)
	}

	n.StartKubelet(t) // without the flags, as what they name is not there
	pod := i.install(t, i.render(t, first))
	i.mustHave(t, "9.9.1")
	flags := regexp.MustCompile(`flags="--image-credential-provider-config=(\S+) --image-credential-provider-bin-dir=(\S+)"`).FindStringSubmatch(i.log(t, pod))
	if len(flags) != 3 {
		t.Fatalf("the pod does not say which flags to set:\n%s", i.log(t, pod))
	}
	n.Providers, n.BinDir = flags[1], flags[2]
	n.RestartKubelet(t)
	t.Run("installed", i.pullAsNobody)
	i.narrow(t, first)
	t.Run("upgrade", func(t *testing.T) { i.upgrade(t, first, second) })
	i.remove(t, first)
}

// upgrade has pods come while the other version is put in the place of the one in use, and back. Calls are held under way until the first of the two has happened.
func (i *installation) upgrade(t *testing.T, first, second string) {
	hold := i.Write(t, "opt/source/hold", "")
	o := i.run(t, "upgrade", func() {
		i.create(t, i.update(t, i.render(t, second)))
	}, func() { // more pods have come by now
		i.ready(t)
		i.mustHave(t, "9.9.2")
		t.Logf("%d calls were under way", len(i.working(t)))
		if err := os.Remove(hold); err != nil {
			t.Error(err)
		}
	}, func() {
		i.replace(t, i.render(t, first)) // and back
		i.mustHave(t, "9.9.1")
	})
	o.unharmed(t)
}

// image makes an image of this commit under some version, has containerd import it, and gives its digest.
func (i *installation) image(t *testing.T, version string) (digest string) {
	t.Helper()
	root := filepath.Join(sourceDir(), "../..")
	file := i.path("tmp", "image-"+version+".tar")
	relative, err := filepath.Rel(root, file)
	if err != nil {
		t.Fatal(err)
	}
	architecture, err := exec.CommandContext(t.Context(), "go", "env", "GOARCH").Output()
	if err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), "make", "image", "VERSION="+version, "IMAGE="+relative, "IMAGE_PLATFORMS=linux/"+strings.TrimSpace(string(architecture)))
	command.Dir = root
	output, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("make image: %v\n%s", err, output)
	}
	_, digest, ok := strings.Cut(strings.TrimSpace(string(output)), "@")
	if !ok {
		t.Fatalf("make image printed no digest: %s", output)
	}
	i.Import(t, "--digests", "--base-name", "ghcr.io/credential-broker/credential-broker", file) // by digest, as the manifest names it
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	return digest
}

// manifest is what an overlay consists of.
type manifest struct {
	daemonSet appsv1.DaemonSet
	configMap corev1.ConfigMap
	account   corev1.ServiceAccount
}

func (i *installation) render(t *testing.T, digest string) *manifest {
	t.Helper()
	i.Write(t, "kustomize/overlays/rig/config.yaml", fmt.Sprintf(`apiVersion: credential-broker.io/v1alpha1
kind: BrokerConfig
timeout: 55s
providers:
- name: slow
  backend: exec
  user: nobody
  timeout: 50s
  matchImages: [%q]
  config: {command: %s}
`, i.registry.Host, i.source))
	return i.kustomize(t, fmt.Sprintf(overlay, digest, i.host, filepath.Dir(i.source)))
}

func (i *installation) kustomize(t *testing.T, kustomization string) *manifest {
	t.Helper()
	i.Write(t, "kustomize/overlays/rig/kustomization.yaml", kustomization)
	found, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join(i.manifests, "overlays/rig"))
	if err != nil {
		t.Fatal(err)
	}
	m := &manifest{}
	for _, resource := range found.Resources() {
		into, known := map[string]any{"DaemonSet": &m.daemonSet, "ConfigMap": &m.configMap, "ServiceAccount": &m.account}[resource.GetKind()]
		if !known {
			t.Fatalf("an object of the kind %s was not expected", resource.GetKind())
		}
		text, err := resource.AsYAML()
		if err == nil {
			err = yaml.UnmarshalStrict(text, into)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// install makes the objects, which the API server judges strictly, and the DaemonSet's pod, and waits until that is ready.
func (i *installation) install(t *testing.T, m *manifest) *corev1.Pod {
	t.Helper()
	strict := metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}
	if _, err := i.cluster.Client.CoreV1().ServiceAccounts(installedIn).Create(t.Context(), &m.account, strict); err != nil {
		t.Fatal(err)
	}
	if _, err := i.cluster.Client.CoreV1().ConfigMaps(installedIn).Create(t.Context(), &m.configMap, strict); err != nil {
		t.Fatal(err)
	}
	made, err := i.cluster.Client.AppsV1().DaemonSets(installedIn).Create(t.Context(), &m.daemonSet, strict)
	if err != nil {
		t.Fatal(err)
	}
	i.create(t, made)
	return i.ready(t)
}

// replace does to the DaemonSet and its pod what an update does.
func (i *installation) replace(t *testing.T, m *manifest) {
	t.Helper()
	i.create(t, i.update(t, m))
	i.ready(t)
}

// update changes the DaemonSet, and ends its pod.
func (i *installation) update(t *testing.T, m *manifest) *appsv1.DaemonSet {
	t.Helper()
	made, err := i.cluster.Client.AppsV1().DaemonSets(installedIn).Update(t.Context(), &m.daemonSet, metav1.UpdateOptions{FieldValidation: metav1.FieldValidationStrict})
	if err != nil {
		t.Fatal(err)
	}
	i.end(t)
	return made
}

func (i *installation) podName() string { return fmt.Sprintf("credential-broker-%d", i.serial) }

// create does what the DaemonSet's controller and the scheduler do.
func (i *installation) create(t *testing.T, set *appsv1.DaemonSet) {
	t.Helper()
	i.serial++
	pod := &corev1.Pod{ObjectMeta: set.Spec.Template.ObjectMeta, Spec: set.Spec.Template.Spec}
	pod.Name, pod.Spec.NodeName = i.podName(), Name
	pod.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(set, appsv1.SchemeGroupVersion.WithKind("DaemonSet"))}
	if _, err := i.cluster.Client.CoreV1().Pods(installedIn).Create(t.Context(), pod, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}); err != nil {
		t.Fatal(err)
	}
}

// ready waits until the pod is ready: everything is installed, or removed.
func (i *installation) ready(t *testing.T) (pod *corev1.Pod) {
	t.Helper()
	await(t, "the installer's pod to be ready", i.Kubelet, func() (bool, string) {
		var err error
		if pod, err = i.cluster.Client.CoreV1().Pods(installedIn).Get(t.Context(), i.podName(), metav1.GetOptions{}); err != nil {
			return false, err.Error()
		}
		for _, condition := range pod.Status.Conditions {
			if condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue {
				return true, ""
			}
		}
		return false, describe(pod)
	})
	t.Logf("pod %s/%s: ready, image %s", pod.Namespace, pod.Name, pod.Spec.Containers[0].Image)
	for line := range strings.Lines(i.log(t, pod)) {
		_, said, _ := strings.Cut(strings.TrimSpace(line), " F ") // what containerd puts before it
		t.Logf("the installer: %s", said)
	}
	return pod
}

// end has the kubelet end the pod, as it does when one is deleted.
func (i *installation) end(t *testing.T) {
	t.Helper()
	pods := i.cluster.Client.CoreV1().Pods(installedIn)
	if err := pods.Delete(t.Context(), i.podName(), metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, "the installer's pod to end", i.Kubelet, func() (bool, string) {
		pod, err := pods.Get(t.Context(), i.podName(), metav1.GetOptions{})
		return apierrors.IsNotFound(err), describe(pod)
	})
}

// log is what the pod's container has said, from the file that the kubelet keeps.
func (i *installation) log(t *testing.T, pod *corev1.Pod) string {
	t.Helper()
	content, err := os.ReadFile(i.path("pod-logs", fmt.Sprintf("%s_%s_%s", pod.Namespace, pod.Name, pod.UID), "installer/0.log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// mustHave sees which version is in use, and that it runs on the node.
func (i *installation) mustHave(t *testing.T, version string) {
	t.Helper()
	program := filepath.Join(i.host, "bin/credential-broker")
	said, err := exec.CommandContext(t.Context(), program, "version").CombinedOutput()
	if err != nil || !strings.Contains(string(said), version) {
		t.Errorf("%s says %q, %v; want version %s", program, said, err, version)
	}
}

// pullAsNobody has a pod run on a private image, through what was installed, and sees who works for it.
func (i *installation) pullAsNobody(t *testing.T) {
	i.StaticPod(t, "installed", i.registry.Push(t, "team/installed"))
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", i.working(t)[0]))
	if err != nil || !regexp.MustCompile(`(?m)^Uid:\t65534\t65534\t65534\t65534$`).Match(status) {
		t.Errorf("the provider does not work as nobody: %v\n%s", err, status)
	}
	i.Running(t, "default", "installed")
	i.mustHaveAsked(t, "credential-broker")
}

// narrow spoils what the installer has written: the doctor of what is installed says that the DaemonSet's pod mends it, and it does.
func (i *installation) narrow(t *testing.T, digest string) {
	t.Helper()
	program, config := filepath.Join(i.host, "bin/credential-broker"), filepath.Join(i.host, "config")
	i.mustBeHealthy(t, program, config, "log") // there is no journal
	entries, err := os.ReadFile(i.Providers)
	if err == nil {
		err = os.WriteFile(i.Providers, []byte(strings.ReplaceAll(string(entries), i.registry.Host, i.registry.Host+"/elsewhere")), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	const remedy = "have the DaemonSet's pod on this node made anew (kubectl -n NAMESPACE delete pod POD), which puts it right; then systemctl daemon-reload && systemctl restart kubelet"
	if first := doctor.WorstFirst(i.examine(t, program).Findings)[0]; first.What != "kubelet's entry" || first.Remedy != remedy {
		t.Errorf("the first is %s %s: %s -> %s", first.Verdict, first.What, first.Text, first.Remedy)
	}
	i.replace(t, i.render(t, digest))
	i.RestartKubelet(t)
	i.mustBeHealthy(t, program, config, "log")
}

// remove takes everything away, in the order of docs/daemonset.md.
func (i *installation) remove(t *testing.T, digest string) {
	t.Helper()
	entries, err := os.ReadFile(i.Providers)
	if err != nil {
		t.Fatal(err)
	}
	i.Providers, i.BinDir = "", ""
	i.RestartKubelet(t)
	i.replace(t, i.kustomize(t, fmt.Sprintf(overlayRemove, digest, i.host)))
	var left []string
	err = filepath.WalkDir(i.host, func(path string, _ fs.DirEntry, err error) error {
		if path != i.host { // what is mounted in the pod it cannot remove
			left = append(left, path)
		}
		return err
	})
	if err != nil || len(left) != 0 {
		t.Errorf("%v is left, %v", left, err)
	}
	if running := running(i.host); len(running) != 0 {
		t.Errorf("processes %v run what was installed", running)
	}
	i.end(t)
	i.StaticPod(t, "without", i.registry.Push(t, "team/without"))
	i.Refused(t, "default", "without")

	// Who leaves the flags has no kubelet.
	i.Kubelet.end()
	i.Providers, i.BinDir = i.Write(t, "etc/kubernetes/left.yaml", string(entries)), i.path("opt/empty")
	if err := os.Mkdir(i.BinDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if words := i.KubeletEnds(t); !strings.Contains(words, "plugin binary executable") {
		t.Error("the kubelet ended for another reason than that the entry's program is not there")
	}
}
