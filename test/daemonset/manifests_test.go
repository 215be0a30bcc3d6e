package daemonset

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"

	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/kubelet"
)

const (
	kustomizations = "../../examples/kubernetes/kustomize"
	chart          = "../../examples/kubernetes/helm/credential-broker"
	namespace      = "kube-system"
)

// objects are what an API server would be given.
type objects struct {
	daemonSet *appsv1.DaemonSet
	account   *corev1.ServiceAccount
	configMap *corev1.ConfigMap
	role      *rbacv1.ClusterRole
	binding   *rbacv1.ClusterRoleBinding
	notes     string
}

// decode reads documents strictly: a field that Kubernetes does not know is an error, not something that it drops.
func decode(t *testing.T, text string) objects {
	t.Helper()
	var o objects
	for document := range strings.SplitSeq("\n"+text, "\n---") {
		if strings.TrimSpace(strings.TrimSpace(regexp.MustCompile(`(?m)^\s*#.*$`).ReplaceAllString(document, ""))) == "" {
			continue
		}
		var meta metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(document), &meta); err != nil {
			t.Fatalf("%v in %s", err, document)
		}
		var into any
		switch meta.Kind {
		case "DaemonSet":
			o.daemonSet = &appsv1.DaemonSet{}
			into = o.daemonSet
		case "ServiceAccount":
			o.account = &corev1.ServiceAccount{}
			into = o.account
		case "ConfigMap":
			o.configMap = &corev1.ConfigMap{}
			into = o.configMap
		case "ClusterRole":
			o.role = &rbacv1.ClusterRole{}
			into = o.role
		case "ClusterRoleBinding":
			o.binding = &rbacv1.ClusterRoleBinding{}
			into = o.binding
		default:
			t.Fatalf("an object of the kind %q was not expected: %s", meta.Kind, document)
		}
		if err := yaml.UnmarshalStrict([]byte(document), into); err != nil {
			t.Fatalf("%s: %v", meta.Kind, err)
		}
	}
	return o
}

func kustomize(t *testing.T, dir string) objects {
	t.Helper()
	found, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join(kustomizations, dir))
	if err != nil {
		t.Fatal(err)
	}
	text, err := found.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	return decode(t, string(text))
}

// helm renders the chart with values on top of its own; the error is that of the schema or of a template.
func helm(values map[string]any) (string, string, error) {
	c, err := loader.Load(chart)
	if err != nil {
		return "", "", err
	}
	// As from a file: types as JSON has them.
	text, err := json.Marshal(values)
	if err != nil {
		return "", "", err
	}
	plain, err := chartutil.ReadValues(text)
	if err != nil {
		return "", "", err
	}
	all, err := chartutil.ToRenderValues(c, plain, chartutil.ReleaseOptions{Name: "credential-broker", Namespace: namespace, Revision: 1, IsInstall: true}, chartutil.DefaultCapabilities)
	if err != nil {
		return "", "", err
	}
	files, err := engine.Render(c, all)
	if err != nil {
		return "", "", err
	}
	var documents []string
	notes := ""
	for name, text := range files {
		switch {
		case strings.HasSuffix(name, "NOTES.txt"):
			notes = text
		case strings.HasSuffix(name, ".yaml"):
			documents = append(documents, text)
		}
	}
	return strings.Join(documents, "\n---\n"), notes, nil
}

func rendered(t *testing.T, values map[string]any) objects {
	t.Helper()
	text, notes, err := helm(values)
	if err != nil {
		t.Fatal(err)
	}
	o := decode(t, text)
	o.notes = notes
	return o
}

// values read the base's configuration as the chart's.
func baseConfig(t *testing.T) map[string]any {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(kustomizations, "base", "config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var c map[string]any
	if err := yaml.Unmarshal(text, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestKustomizeAndHelmSayTheSame(t *testing.T) {
	k, h := kustomize(t, "base"), rendered(t, map[string]any{"config": baseConfig(t)})
	for _, labels := range []map[string]string{h.daemonSet.Labels, h.account.Labels, h.configMap.Labels} {
		if labels["helm.sh/chart"] == "" || labels["app.kubernetes.io/managed-by"] == "" {
			t.Errorf("Helm's own labels are missing: %v", labels)
		}
		delete(labels, "helm.sh/chart")
		delete(labels, "app.kubernetes.io/managed-by")
	}
	for what, pair := range map[string][2]any{"DaemonSet": {k.daemonSet, h.daemonSet}, "ServiceAccount": {k.account, h.account}, "ConfigMap's meta data": {k.configMap.ObjectMeta, h.configMap.ObjectMeta}} {
		if diff := cmp.Diff(pair[0], pair[1]); diff != "" {
			t.Errorf("the %ss differ (- kustomize, + helm):\n%s", what, diff)
		}
	}
	if diff := cmp.Diff(k.daemonSet.Spec.Template.Spec.Containers[0].Args, rendered(t, map[string]any{"config": baseConfig(t)}).daemonSet.Spec.Template.Spec.Containers[0].Args); diff != "" {
		t.Error(diff)
	}
	removal := rendered(t, map[string]any{"mode": "remove", "config": baseConfig(t)}).daemonSet.Spec.Template.Spec.Containers[0]
	if diff := cmp.Diff(kustomize(t, "overlays/remove").daemonSet.Spec.Template.Spec.Containers[0].Args, removal.Args); diff != "" {
		t.Errorf("the removals differ: %s", diff)
	}
}

func TestThePodMayDoNoMoreThanItNeeds(t *testing.T) {
	everything := map[string]any{
		"config": baseConfig(t), "backendUsers": true, "audiences": []any{"sts.example"},
		"host":  map[string]any{"binDir": "/usr/libexec/kubernetes/credential-provider", "kubeletConfig": "/etc/kubernetes/providers/credential-broker.yaml", "readable": []any{"/etc/credential-broker"}},
		"entry": map[string]any{"match": []any{"*.example", "*.*.example"}, "single": true},
	}
	for name, o := range map[string]objects{
		"kustomize": kustomize(t, "base"), "kustomize, example": kustomize(t, "overlays/example"), "kustomize, remove": kustomize(t, "overlays/remove"),
		"helm": rendered(t, nil), "helm, everything": rendered(t, everything), "helm, remove": rendered(t, map[string]any{"mode": "remove"}),
	} {
		t.Run(name, func(t *testing.T) {
			if o.account.AutomountServiceAccountToken == nil || *o.account.AutomountServiceAccountToken {
				t.Error("the service account hands out its token")
			}
			if o.daemonSet.Namespace != namespace || o.account.Namespace != namespace {
				t.Error("the namespace is missing")
			}
			pod := o.daemonSet.Spec.Template.Spec
			checkPod(t, pod)
			c := pod.Containers[0]
			checkContainer(t, c)
			want := []corev1.Capability(nil)
			if name == "helm, everything" {
				want = []corev1.Capability{"SETUID", "SETGID", "KILL", "CHOWN", "DAC_OVERRIDE"}
			}
			if diff := cmp.Diff(want, c.SecurityContext.Capabilities.Add); diff != "" {
				t.Errorf("capabilities: %s", diff)
			}
			checkMounts(t, pod)
		})
	}
}

func checkPod(t *testing.T, pod corev1.PodSpec) {
	t.Helper()
	switch {
	case pod.HostPID || pod.HostNetwork || pod.HostIPC:
		t.Error("it shares a namespace with the host")
	case pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken:
		t.Error("it gets a token")
	case pod.PriorityClassName != "system-node-critical":
		t.Errorf("its priority class is %q", pod.PriorityClassName)
	case !slices.ContainsFunc(pod.Tolerations, func(t corev1.Toleration) bool { return t.Operator == corev1.TolerationOpExists && t.Key == "" }):
		t.Error("a tainted node would go without")
	case pod.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault:
		t.Error("no seccomp profile")
	case len(pod.Containers) != 1 || len(pod.InitContainers) != 0:
		t.Error("one container was expected")
	case pod.NodeSelector["kubernetes.io/os"] != "linux":
		t.Error("it would be put onto Windows nodes")
	}
}

func checkContainer(t *testing.T, c corev1.Container) {
	t.Helper()
	s := c.SecurityContext
	switch {
	case s.Privileged == nil || *s.Privileged, s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation:
		t.Error("it is, or may become, privileged")
	case s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem:
		t.Error("its root file system can be written")
	case !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}):
		t.Errorf("it drops only %v", s.Capabilities.Drop)
	case c.ReadinessProbe == nil || c.LivenessProbe == nil || c.StartupProbe == nil:
		t.Error("a probe is missing")
	case c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() || c.Resources.Limits.Memory().IsZero():
		t.Errorf("its resources are %v", c.Resources)
	}
}

// checkMounts: every path of the host's has the same name in the container, every mount has its volume, and only three directories can be written.
func checkMounts(t *testing.T, pod corev1.PodSpec) {
	t.Helper()
	volumes := map[string]corev1.Volume{}
	for _, v := range pod.Volumes {
		volumes[v.Name] = v
	}
	for _, m := range pod.Containers[0].VolumeMounts {
		v, ok := volumes[m.Name]
		if !ok {
			t.Errorf("%s has no volume", m.Name)
		}
		delete(volumes, m.Name)
		if v.HostPath == nil {
			continue
		}
		if v.HostPath.Path != m.MountPath {
			t.Errorf("the host's %s is %s in the container", v.HostPath.Path, m.MountPath)
		}
		if writable := []string{"host", "bin-dir", "kubelet-config"}; !m.ReadOnly && !slices.Contains(writable, m.Name) {
			t.Errorf("%s can be written", m.MountPath)
		}
	}
	if len(volumes) != 0 {
		t.Errorf("volumes without a mount: %v", volumes)
	}
}

func TestTheImageCanBeNamedByItsDigest(t *testing.T) {
	digest := "sha256:" + strings.Repeat("ab", 32)
	want := "ghcr.io/credential-broker/credential-broker@" + digest
	if got := rendered(t, map[string]any{"image": map[string]any{"digest": digest}}).daemonSet.Spec.Template.Spec.Containers[0].Image; got != want {
		t.Errorf("helm: %s", got)
	}
	if got := kustomize(t, "overlays/example").daemonSet.Spec.Template.Spec.Containers[0].Image; !strings.Contains(got, "credential-broker@sha256:") {
		t.Errorf("kustomize: %s", got)
	}
}

func TestTheChartIsClean(t *testing.T) {
	for name, values := range map[string]map[string]any{"as it is": nil, "with a configuration": {"config": baseConfig(t), "audiences": []any{"sts.example"}}} {
		for _, m := range lint.AllWithKubeVersion(chart, values, namespace, nil).Messages {
			// An icon is for catalogues.
			if m.Severity > support.InfoSev || m.Severity == support.InfoSev && !strings.Contains(m.Err.Error(), "icon") {
				t.Errorf("%s: %v", name, m)
			}
		}
	}
}

func TestTheChartRefusesWhatCannotBeMeant(t *testing.T) {
	for name, values := range map[string]map[string]any{
		"a misspelt value":         {"confg": map[string]any{}},
		"a mode that is none":      {"mode": "uninstall"},
		"a digest that is none":    {"image": map[string]any{"digest": "sha256:abc"}},
		"a relative directory":     {"host": map[string]any{"dir": "opt/credential-broker"}},
		"the whole host":           {"host": map[string]any{"dir": "/"}},
		"a file in the root":       {"host": map[string]any{"kubeletConfig": "/providers.yaml"}},
		"two configurations":       {"config": map[string]any{"kind": "BrokerConfig"}, "existingConfigMap": "other"},
		"a configuration as text":  {"config": "kind: BrokerConfig"},
		"a duration without units": {"verify": "10"},
	} {
		if _, _, err := helm(values); err == nil {
			t.Errorf("%s is rendered", name)
		}
	}
}

func TestTheConfigurationsAreTheBrokers(t *testing.T) {
	for name, o := range map[string]objects{"base": kustomize(t, "base"), "example": kustomize(t, "overlays/example"), "helm": rendered(t, map[string]any{"config": baseConfig(t)})} {
		dir := t.TempDir()
		for file, content := range o.configMap.Data {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c, err := config.Load(dir)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, arg := range o.daemonSet.Spec.Template.Spec.Containers[0].Args {
			patterns, found := strings.CutPrefix(arg, "--match=")
			if !found {
				continue
			}
			if _, _, err := kubelet.Entries(c, kubelet.EntryOptions{Match: strings.Split(patterns, ",")}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// TestTokensNeedWhatTheBrokerPrints compares with `credential-broker kubelet-config --rbac`, which has one role for each audience.
func TestTokensNeedWhatTheBrokerPrints(t *testing.T) {
	audiences := []string{"sts.example", "https://registry.example"}
	o := rendered(t, map[string]any{"audiences": []any{audiences[0], audiences[1]}})
	var resources []string
	for document := range strings.SplitSeq(string(kubelet.RBAC(audiences)), "---\n") {
		want := decode(t, document)
		if want.role != nil {
			resources = append(resources, want.role.Rules[0].Resources...)
			want.role.Rules[0].Resources = o.role.Rules[0].Resources
			if diff := cmp.Diff(want.role.Rules, o.role.Rules); diff != "" {
				t.Error(diff)
			}
		}
		if want.binding != nil {
			if diff := cmp.Diff(want.binding.Subjects, o.binding.Subjects); diff != "" {
				t.Error(diff)
			}
		}
	}
	if diff := cmp.Diff(resources, o.role.Rules[0].Resources); diff != "" {
		t.Error(diff)
	}
	if o.binding.RoleRef.Name != o.role.Name {
		t.Errorf("%s is bound, %s is made", o.binding.RoleRef.Name, o.role.Name)
	}
	if rendered(t, nil).role != nil {
		t.Error("a role without tokens")
	}
}

func TestTheNotesSayWhatThePlatformHasToSet(t *testing.T) {
	for name, tt := range map[string]struct {
		values map[string]any
		says   []string
	}{
		"as it is": {nil, []string{"--image-credential-provider-config=/opt/credential-broker/kubelet.yaml", "--image-credential-provider-bin-dir=/opt/credential-broker/bin", "kubelet-config >"}},
		"elsewhere": {
			map[string]any{"host": map[string]any{"dir": "/var/lib/cb", "binDir": "/usr/libexec/providers", "kubeletConfig": "/etc/kubernetes/cb.yaml"}, "existingConfigMap": "mine"},
			[]string{"--image-credential-provider-config=/etc/kubernetes/cb.yaml", "--image-credential-provider-bin-dir=/usr/libexec/providers", "-- /credential-broker-installer kubelet --dir=/var/lib/cb --bin-dir=/usr/libexec/providers"},
		},
		"removal": {map[string]any{"mode": "remove"}, []string{"uninstall", "does not start"}},
	} {
		o := rendered(t, tt.values)
		for _, want := range tt.says {
			if !strings.Contains(o.notes, want) {
				t.Errorf("%s: the notes do not say %q:\n%s", name, want, o.notes)
			}
		}
	}
}

// TestEveryValueIsDescribed holds the chart's README and its schema to its values.
func TestEveryValueIsDescribed(t *testing.T) {
	c, err := loader.Load(chart)
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile(filepath.Join(chart, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	var schema struct {
		Properties map[string]any `json:"properties"`
	}
	if err := json.Unmarshal(c.Schema, &schema); err != nil {
		t.Fatal(err)
	}
	for name, value := range c.Values {
		if schema.Properties[name] == nil {
			t.Errorf("values.schema.json does not know %s", name)
		}
		names := []string{name}
		if inner, ok := value.(map[string]any); ok && slices.Contains([]string{"image", "host", "entry"}, name) {
			names = nil
			for n := range inner {
				names = append(names, name+"."+n)
			}
		}
		for _, n := range names {
			if !strings.Contains(string(readme), "| `"+n+"` |") {
				t.Errorf("README.md does not describe %s", n)
			}
		}
	}
}
