package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/kubelet"
)

const (
	kubeletFlags = "--image-credential-provider-config=/etc/kubernetes/providers.yaml --image-credential-provider-bin-dir=/opt/providers"
	kubeletPID   = 4711
	agentPID     = 4712
	otherPID     = 99

	configuration = `apiVersion: credential-broker.io/v1alpha1
kind: BrokerConfig
providers:
- name: files
  backend: dockerconfig
  matchImages: [registry.example]
`
	entries = `apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- name: credential-broker
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  matchImages: [registry.example]
  defaultCacheDuration: 0s
`
)

// node is a healthy node, for tests to break.
type node struct {
	t       *testing.T
	root    string
	options Options
	program *program
	ignore  string // findings on this are not looked at
}

// program does what a healthy one does, unless told otherwise.
type program struct {
	version  string
	agent    Agent
	metrics  error
	describe error
	settings map[string][]error
	checks   map[string]error
	noCheck  bool

	mu       sync.Mutex          // checks run side by side
	environs map[string][]string // by provider: what its settings and its check were judged with
}

func (p *program) KubeletVersion(context.Context, string) (string, error) { return p.version, nil }
func (p *program) Agent(string) Agent                                     { return p.agent }
func (p *program) Listens(context.Context, string) error                  { return p.metrics }
func (p *program) Describe(context.Context, string) (string, error)       { return "1.2.3", p.describe }

func (p *program) Find(dir, backend string) (string, error) {
	path := filepath.Join(dir, "credential-backend-"+backend)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("backend %q: no file %s: install it there", backend, path)
	}
	return path, nil
}

func (p *program) Settings(_ context.Context, _ *config.Config, provider *config.Provider, environ []string) []error {
	p.saw(provider, environ)
	return p.settings[provider.Name]
}

func (p *program) Check(_ context.Context, _ *config.Config, provider *config.Provider, _ string, environ []string) (bool, error) {
	p.saw(provider, environ)
	return !p.noCheck, p.checks[provider.Name]
}

func (p *program) saw(provider *config.Provider, environ []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.environs[provider.Name] = append(p.environs[provider.Name], environ...)
}

func (p *program) Inherited(environ []string, _ *config.Provider) []string { return environ }

func healthy(t *testing.T) *node {
	t.Helper()
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, root: root, program: &program{version: "Kubernetes v1.37.2\n", settings: map[string][]error{}, checks: map[string]error{}, environs: map[string][]string{}}}
	n.options = Options{
		Node: Node{Root: root}, Program: n.program, Version: "1.2.3", Places: config.DefaultPlaces(), UID: 0,
		Self: filepath.Join(root, "usr/libexec/credential-broker/credential-broker"),
	}
	n.write("/etc/credential-broker/config.yaml", configuration)
	n.write("/etc/kubernetes/providers.yaml", entries)
	n.write("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
	n.write("/run/systemd/journal/socket", "")
	n.write("/run/credential-backends/x", "")
	n.writeProgram("/usr/libexec/credential-broker/credential-broker", "broker")
	n.writeProgram("/usr/libexec/credential-broker/backends/credential-backend-dockerconfig", "backend")
	n.writeProgram("/usr/bin/kubelet", "kubelet")
	n.link("/usr/libexec/credential-broker/credential-broker", "/opt/providers/credential-broker")
	n.run(kubeletFlags)
	return n
}

// run has a kubelet with these flags, started in an hour, when all files are older.
func (n *node) run(flags string) {
	n.startAt(time.Now().Add(time.Hour), "/usr/bin/kubelet "+flags)
}

func (n *node) startAt(at time.Time, words string) {
	const boot = 1_000_000_000
	n.write("/proc/stat", fmt.Sprintf("cpu 1 2 3\nbtime %d\n", boot))
	dir := fmt.Sprintf("/proc/%d/", kubeletPID)
	n.write(dir+"cmdline", strings.Join(strings.Fields(words), "\x00")+"\x00")
	n.write(dir+"status", "Name:\tkubelet\nUid:\t0\t0\t0\t0\n")
	n.write(dir+"stat", fmt.Sprintf("%d (kube let)) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 %d 20\n", kubeletPID, (at.Unix()-boot)*100))
	n.write(dir+"cgroup", "0::/system.slice/kubelet.service\n")
	n.write(dir+"environ", "PATH=/bin\x00AWS_REGION=eu-west-1\x00")
	n.link("/usr/bin/kubelet", dir+"exe")
	n.link("/", dir+"cwd")
}

func (n *node) write(path, content string) {
	n.t.Helper()
	path = filepath.Join(n.root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) writeProgram(path, content string) {
	n.write(path, content)
	n.chmod(path, 0o755)
}

func (n *node) chmod(path string, mode os.FileMode) {
	n.t.Helper()
	if err := os.Chmod(filepath.Join(n.root, path), mode); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) link(target, path string) {
	n.t.Helper()
	path = filepath.Join(n.root, path)
	_ = os.Remove(path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Symlink(target, path); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) pipe(path string) {
	n.t.Helper()
	if err := syscall.Mkfifo(filepath.Join(n.root, path), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

// other is another process than the kubelet, with the same arguments, which is older.
func (n *node) other(uids, exe, words string) {
	n.startAt(time.Now().Add(30*time.Minute), words)
	n.write(fmt.Sprintf("/proc/%d/environ", kubeletPID), "HOME=/tmp/attack\x00")
	n.write(fmt.Sprintf("/proc/%d/status", kubeletPID), "Name:\tkubelet\nUid:\t"+uids+"\n")
	n.link(exe, fmt.Sprintf("/proc/%d/exe", kubeletPID))
	if err := os.Rename(filepath.Join(n.root, "proc", strconv.Itoa(kubeletPID)), filepath.Join(n.root, "proc", strconv.Itoa(otherPID))); err != nil {
		n.t.Fatal(err)
	}
	n.run(kubeletFlags)
}

func (n *node) remove(path string) {
	n.t.Helper()
	if err := os.RemoveAll(filepath.Join(n.root, path)); err != nil {
		n.t.Fatal(err)
	}
}

// add appends to the configuration.
func (n *node) configure(text string) {
	n.write("/etc/credential-broker/config.yaml", configuration+text)
}

// withAgent has one that answers.
func (n *node) withAgent() {
	n.configure("agent: {socket: /run/agent.sock}\n")
	n.program.agent = Agent{Version: "1.2.3", PID: agentPID}
	n.write("/etc/kubernetes/providers.yaml", entries+"  env: [{name: CREDENTIAL_BROKER_AGENT, value: /run/agent.sock}]\n")
	n.write(fmt.Sprintf("/proc/%d/environ", agentPID), "PATH=/usr/bin\x00AWS_REGION=eu-west-1\x00CREDENTIAL_BROKER_AGENT=/run/agent.sock\x00")
}

// withTokens has a second provider, for tokens, and the entries for both.
func (n *node) withTokens() {
	n.configure(`- name: pods
  backend: dockerconfig
  matchImages: [pods.example]
  tokenAttributes: {serviceAccountTokenAudience: sts.example, cacheType: Token, requireServiceAccount: true}
`)
	n.write("/etc/kubernetes/providers.yaml", entries+`  args: [--audience, ""]
- name: credential-broker-sts.example
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  matchImages: [pods.example]
  defaultCacheDuration: 0s
  args: [--audience, sts.example]
  tokenAttributes: {serviceAccountTokenAudience: sts.example, cacheType: Token, requireServiceAccount: true}
`)
	n.link("/usr/libexec/credential-broker/credential-broker", "/opt/providers/credential-broker-sts.example")
}

// shown is a finding on one line.
func shown(f Finding) string {
	return strings.TrimSuffix(fmt.Sprintf("%s %s: %s -> %s", f.Verdict, f.What, f.Text, f.Remedy), " -> ")
}

func all(findings []Finding) string {
	var b strings.Builder
	for _, f := range WorstFirst(findings) {
		b.WriteString("  " + shown(f) + "\n")
	}
	return b.String()
}

func (n *node) examine() []Finding { return Examine(n.t.Context(), n.options) }

func TestNothingIsWrongWithAHealthyNode(t *testing.T) {
	for name, change := range map[string]func(*node){
		"as it is":       func(*node) {},
		"with an agent":  (*node).withAgent,
		"with tokens":    (*node).withTokens,
		"without checks": func(n *node) { n.options.Offline = true },
		"mounted":        func(n *node) { n.options.Mounted = true },
		"wider patterns": func(n *node) {
			n.write("/etc/kubernetes/providers.yaml", strings.Replace(entries, "[registry.example]", `["*.example"]`, 1))
		},
		"flags in files": func(n *node) {
			n.remove(fmt.Sprintf("/proc/%d", kubeletPID))
			n.options.UID = 1000
			n.write("/var/lib/kubelet/kubeadm-flags.env", `KUBELET_KUBEADM_ARGS="--x=y `+kubeletFlags+`"`)
		},
		"a relative path": func(n *node) {
			n.run("--image-credential-provider-config etc/kubernetes/providers.yaml --image-credential-provider-bin-dir /opt/providers")
		},
		"k3s": func(n *node) {
			n.startAt(time.Now().Add(time.Hour), "/usr/local/bin/k3s server")
			n.write("/etc/rancher/k3s/config.yaml", "kubelet-arg:\n- \"image-credential-provider-config=/etc/kubernetes/providers.yaml\"\n- 'image-credential-provider-bin-dir=/opt/providers'\n")
		},
		"microk8s": func(n *node) {
			n.startAt(time.Now().Add(time.Hour), "/snap/microk8s/1/kubelite --kubelet-args-file=/var/snap/microk8s/current/args/kubelet")
			n.write("/var/snap/microk8s/current/args/kubelet", strings.ReplaceAll(kubeletFlags, " --", "\n--")+"\n")
		},
		"k3s, by its unit": func(n *node) {
			n.startAt(time.Now().Add(time.Hour), "/usr/local/bin/k3s server")
			n.write("/etc/systemd/system/k3s.service", "[Service]\nExecStart=/usr/local/bin/k3s \\\n    server \\\n\t'--kubelet-arg=image-credential-provider-config=/etc/kubernetes/providers.yaml' \\\n\t'--kubelet-arg=image-credential-provider-bin-dir=/opt/providers' \\\n")
		},
		"microk8s with variables": func(n *node) {
			n.startAt(time.Now().Add(time.Hour), "/snap/microk8s/1/kubelite --kubelet-args-file=/var/snap/microk8s/current/args/kubelet")
			n.write("/var/snap/microk8s/current/args/kubelet", "--image-credential-provider-config=${SNAP_DATA}/providers.yaml\n--image-credential-provider-bin-dir=$SNAP_COMMON/bin\n")
			n.write("/var/snap/microk8s/current/providers.yaml", entries)
			n.link("/usr/libexec/credential-broker/credential-broker", "/var/snap/microk8s/common/bin/credential-broker")
		},
		"an agent that the entry alone names": func(n *node) {
			n.withAgent()
			n.configure("")
		},
		"backends in the default place, named": func(n *node) { n.options.BackendDir = "/usr/libexec/credential-broker/backends" },
		"a new file beside the entries": func(n *node) {
			n.remove("/etc/kubernetes/providers.yaml")
			n.write("/etc/kubernetes/providers.yaml/a.yaml", entries)
			n.run(kubeletFlags)
			later := time.Now().Add(2 * time.Hour)
			if err := os.Chtimes(filepath.Join(n.root, "/etc/kubernetes/providers.yaml"), later, later); err != nil {
				n.t.Fatal(err)
			}
		},
		"a backend that is an absolute link, mounted": func(n *node) {
			n.options.Mounted = true
			n.writeProgram("/opt/real/backend", "backend")
			n.link("/opt/real/backend", "/usr/libexec/credential-broker/backends/credential-backend-dockerconfig")
		},
		"a process of another user's that is called kubelet": func(n *node) { n.other("1000\t1000\t1000\t1000", "/usr/bin/kubelet", "kubelet --v=2") },
		"a program that runs as root for another user":       func(n *node) { n.other("1000\t0\t0\t0", "/usr/bin/kubelet", "kubelet --v=2") },
		"another program of root's that is called kubelet":   func(n *node) { n.other("0\t0\t0\t0", "/usr/bin/passwd", "kubelet --v=2") },
		"a kubelet whose program cannot be seen, mounted": func(n *node) {
			n.options.Mounted = true
			n.remove(fmt.Sprintf("/proc/%d/exe", kubeletPID))
		},
		"a kubelet in a container": func(n *node) {
			n.other("0\t0\t0\t0", "/usr/bin/kubelet", "/usr/bin/kubelet --v=2")
			n.link("mnt:[1]", "/proc/1/ns/mnt")
			n.link("mnt:[2]", fmt.Sprintf("/proc/%d/ns/mnt", otherPID))
			n.link("mnt:[1]", fmt.Sprintf("/proc/%d/ns/mnt", kubeletPID))
		},
		"EKS, not running": func(n *node) {
			n.remove(fmt.Sprintf("/proc/%d", kubeletPID))
			n.options.UID = 1000
			n.write("/etc/eks/kubelet/environment", "NODEADM_KUBELET_ARGS=--image-credential-provider-config=/etc/eks/image-credential-provider/config.json "+kubeletFlags+"\n")
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := healthy(t)
			change(n)
			findings := n.examine()
			if Problems(findings) != 0 {
				t.Errorf("%d problems:\n%s", Problems(findings), all(findings))
			}
			for provider, environ := range n.program.environs {
				if slices.Contains(environ, "HOME=/tmp/attack") {
					t.Errorf("%s was judged with the environment of a process that is no kubelet", provider)
				}
			}
			for _, f := range findings {
				if f.WaitsFor != "" {
					t.Errorf("not looked at: %s", shown(f))
				}
			}
		})
	}
}

// TestFirstOfAllIsWhatToMend has one thing wrong, and so one problem.
func TestFirstOfAllIsWhatToMend(t *testing.T) {
	entry := func(from, to string) func(*node) {
		return func(n *node) {
			n.write("/etc/kubernetes/providers.yaml", strings.Replace(entries, from, to, 1))
		}
	}
	tests := []struct {
		name   string
		harm   func(*node)
		first  string // what the first problem's line begins with
		remedy string // and what its remedy holds
		waits  string // what has to be waiting for it
	}{
		{"no kubelet and nothing of one", func(n *node) { n.remove(fmt.Sprintf("/proc/%d", kubeletPID)) }, "WRONG kubelet: no kubelet runs here", "run it on a node", whatFlags},
		{"a process that is no kubelet", func(n *node) { n.options.PID = 1 }, "WRONG kubelet: process 1 is no kubelet", "ps ", whatFlags},
		{
			"a kubelet without the flags", func(n *node) { n.run("--v=2") },
			"WRONG kubelet flags: --image-credential-provider-config and --image-credential-provider-bin-dir are not given", "KUBELET_EXTRA_ARGS in /etc/default/kubelet; then systemctl daemon-reload && systemctl restart kubelet", whatKubeConfig,
		},
		{"a kubelet with one flag", func(n *node) { n.run(strings.Fields(kubeletFlags)[0]) }, "WRONG kubelet flags: --image-credential-provider-bin-dir is not given", "systemctl restart kubelet", whatBinDir},
		{"flags that came after the kubelet's start", func(n *node) {
			n.run("--v=2")
			n.write("/etc/systemd/system/kubelet.service.d/10.conf", "[Service]\nExecStart=\nExecStart=/usr/bin/kubelet "+kubeletFlags+"\n")
			n.write("/etc/systemd/system/kubelet.service.d/20.conf", "# --image-credential-provider-config=/old\n")
		}, "WRONG kubelet flags: /etc/systemd/system/kubelet.service.d/10.conf gives", "systemctl daemon-reload && systemctl restart kubelet", ""},
		{"a kubelet that is too old", func(n *node) { n.program.version = "Kubernetes v1.24.17" }, "WRONG kubelet version: v1.24.17 does not know", "upgrade", ""},
		{
			"a kubelet configuration that is not there", func(n *node) { n.remove("/etc/kubernetes/providers.yaml") },
			"WRONG kubelet's credential provider configuration: /etc/kubernetes/providers.yaml is not there", "credential-broker kubelet-config >/etc/kubernetes/providers.yaml", whatEntry,
		},
		{"a kubelet configuration that it does not take", entry("0s", "soon"), "WRONG kubelet's credential provider configuration: /etc/kubernetes/providers.yaml:7: providers[0].defaultCacheDuration: must be a duration", "correct it", whatEntry},
		{
			"a kubelet configuration that everybody can write", func(n *node) { n.chmod("/etc/kubernetes/providers.yaml", 0o646) },
			"WRONG kubelet's credential provider configuration: /etc/kubernetes/providers.yaml is not safe to use", "chmod o-w /etc/kubernetes/providers.yaml", whatEntry,
		},
		{"a directory for a kubelet before 1.34", func(n *node) {
			n.remove("/etc/kubernetes/providers.yaml")
			n.write("/etc/kubernetes/providers.yaml/a.yaml", entries)
			n.program.version = "Kubernetes v1.33.4"
		}, "WRONG kubelet's credential provider configuration: /etc/kubernetes/providers.yaml is a directory", "name a file", ""},
		{"a bin directory that is not there", func(n *node) { n.remove("/opt/providers") }, "WRONG kubelet's bin directory: /opt/providers is not there", "mkdir -p /opt/providers && credential-broker kubelet-config --link --bin-dir /opt/providers", whatProgram},
		{"a bin directory that everybody can write", func(n *node) { n.chmod("/opt/providers", 0o757) }, "WRONG kubelet's bin directory: /opt/providers is not safe", "chmod o-w /opt/providers", whatProgram},
		{"no configuration", func(n *node) { n.remove("/etc/credential-broker") }, "WRONG configuration: neither /etc/credential-broker/config.yaml nor", "create /etc/credential-broker/config.yaml", whatBackend},
		{"a configuration with a mistake", func(n *node) { n.configure("  timeout: ten\n") }, "WRONG configuration: /etc/credential-broker/config.yaml:7:", "", whatEntry},
		{"a configuration that others can write", func(n *node) { n.chmod("/etc/credential-broker/config.yaml", 0o646) }, "WRONG configuration: /etc/credential-broker/config.yaml is not safe", "chmod o-w /etc/credential-broker/config.yaml", whatBackend},
		{
			"the configuration that the entry names is not there", func(n *node) {
				n.write("/etc/kubernetes/providers.yaml", entries+"  args: [--config, /etc/other.yaml]\n")
			},
			"WRONG configuration: /etc/other.yaml is not there", "", whatBackend,
		},
		{"no link", func(n *node) { n.remove("/opt/providers/credential-broker") }, "WRONG program: /opt/providers/credential-broker is not there", "credential-broker kubelet-config --link --bin-dir /opt/providers", ""},
		{"a link that leads nowhere", func(n *node) { n.link("/nowhere", "/opt/providers/credential-broker") }, "WRONG program: /opt/providers/credential-broker is not there or leads nowhere", "--link", ""},
		{"a program of another version", func(n *node) {
			n.remove("/opt/providers/credential-broker")
			n.writeProgram("/opt/providers/credential-broker", "older")
			n.writeProgram("/opt/providers/backends/credential-backend-dockerconfig", "backend")
		}, "WRONG program: /opt/providers/credential-broker is another program", "look with /opt/providers/credential-broker doctor", ""},
		{"a link to a program of another version", func(n *node) {
			n.writeProgram("/opt/old/credential-broker", "older")
			n.writeProgram("/opt/old/backends/credential-backend-dockerconfig", "backend")
			n.link("/opt/old/credential-broker", "/opt/providers/credential-broker")
		}, "WRONG program: /opt/providers/credential-broker -> /opt/old/credential-broker is another program", "/usr/libexec/credential-broker/credential-broker kubelet-config --link --bin-dir /opt/providers, or look with /opt/old/credential-broker doctor", ""},
		{"a program that cannot be executed", func(n *node) { n.chmod("/usr/libexec/credential-broker/credential-broker", 0o644) }, "WRONG program: /opt/providers/credential-broker is not safe to use: it is not executable", "chmod +x /opt/providers/credential-broker", ""},
		{"no entry of ours", func(n *node) {
			entry("name: credential-broker", "name: other")(n)
			n.writeProgram("/opt/providers/other", "other")
		}, "WRONG kubelet's entry: /etc/kubernetes/providers.yaml has no entry of the broker's; it has other", "put the entry, as `credential-broker kubelet-config` prints it, into /etc/kubernetes/providers.yaml", whatProgram},
		{
			"an entry that covers too little", func(n *node) { n.configure("- {name: more, backend: dockerconfig, matchImages: [more.example]}\n") },
			`WRONG kubelet's entry: /etc/kubernetes/providers.yaml:4: entry credential-broker: no pattern of matchImages covers "more.example" of provider "more"`,
			"credential-broker kubelet-config >/etc/kubernetes/providers.yaml.new && mv /etc/kubernetes/providers.yaml.new /etc/kubernetes/providers.yaml && systemctl daemon-reload && systemctl restart kubelet", "",
		},
		{"an entry for another configuration", func(n *node) {
			n.write("/etc/mine.yaml", configuration)
			n.options.Config = "/etc/mine.yaml"
		}, "WRONG kubelet's entry: /etc/kubernetes/providers.yaml:4: entry credential-broker: it uses the configuration in the default place, not /etc/mine.yaml", "credential-broker kubelet-config --config /etc/mine.yaml >", ""},
		{"an entry for another agent", func(n *node) {
			n.withAgent()
			n.write("/etc/kubernetes/providers.yaml", entries+"  env: [{name: CREDENTIAL_BROKER_AGENT, value: /run/old.sock}]\n")
		}, `WRONG kubelet's entry: /etc/kubernetes/providers.yaml:4: entry credential-broker: it asks an agent on "/run/old.sock"`, "kubelet-config", ""},
		{"no entry for an audience", func(n *node) {
			n.withTokens()
			n.write("/etc/kubernetes/providers.yaml", entries+"  args: [--audience, \"\"]\n")
			n.remove("/opt/providers/credential-broker-sts.example")
		}, `WRONG kubelet's entry: there is no entry for audience "sts.example" (pods)`, "credential-broker kubelet-config --link --bin-dir /opt/providers && credential-broker kubelet-config >", ""},
		{"a single entry that covers too little", func(n *node) {
			n.withTokens()
			n.configure(`- name: pods
  backend: dockerconfig
  matchImages: [pods.example, more.example]
  tokenAttributes: {serviceAccountTokenAudience: sts.example, cacheType: Token, requireServiceAccount: false}
`)
			n.write("/etc/kubernetes/providers.yaml", strings.Replace(entries, "[registry.example]", "[registry.example, pods.example]", 1)+"  tokenAttributes: {serviceAccountTokenAudience: sts.example, cacheType: Token, requireServiceAccount: false}\n")
			n.link("/usr/libexec/credential-broker/credential-broker", "/opt/providers/credential-broker-sts.example")
		}, `WRONG kubelet's entry: /etc/kubernetes/providers.yaml:4: entry credential-broker: no pattern of matchImages covers "more.example"`, "credential-broker kubelet-config --single >", ""},
		{"wider patterns that cover too little", func(n *node) {
			n.write("/etc/kubernetes/providers.yaml", strings.Replace(entries, "[registry.example]", `["*.example"]`, 1))
			n.configure("- {name: more, backend: dockerconfig, matchImages: [more.other]}\n")
		}, "WRONG kubelet's entry: /etc/kubernetes/providers.yaml:4: ", "kubelet-config --match '*.example' --match more.other >", ""},
		{"tokens to be for a kubelet of 1.33", func(n *node) {
			n.withTokens()
			n.program.version = "Kubernetes v1.33.4"
			n.write("/etc/kubernetes/providers.yaml", entries+"  args: [--audience, \"\"]\n")
			n.ignore = whatEntry
		}, "WRONG service account tokens: v1.33.4 does not know tokenAttributes", "1.34", ""},
		{"a kubelet configuration that is a pipe", func(n *node) {
			n.remove("/etc/kubernetes/providers.yaml")
			n.pipe("/etc/kubernetes/providers.yaml")
		}, "WRONG kubelet's credential provider configuration: /etc/kubernetes/providers.yaml is neither a file nor a directory", "kubelet-config", whatEntry},
		{"a kubelet configuration behind a directory that everybody can write", func(n *node) {
			n.link("/etc/kubernetes/providers.yaml", "/srv/open/providers.yaml")
			n.chmod("/srv/open", 0o757)
			n.run(strings.Replace(kubeletFlags, "/etc/kubernetes", "/srv/open", 1))
		}, "WRONG kubelet's credential provider configuration: /srv/open/providers.yaml is not safe to use: /srv/open can be written by everybody", "chmod o-w /srv/open", whatEntry},
		{"k3s that is not running", func(n *node) {
			n.write("/etc/rancher/k3s/config.yaml", "kubelet-arg: [image-credential-provider-config=/etc/kubernetes/providers.yaml, image-credential-provider-bin-dir=/opt/providers]\n")
			n.remove(fmt.Sprintf("/proc/%d", kubeletPID))
		}, "WRONG kubelet restart: no kubelet runs", "systemctl start k3s-agent; journalctl -u k3s-agent", ""},
		{"an entry in the second of two files", func(n *node) {
			n.remove("/etc/kubernetes/providers.yaml")
			n.writeProgram("/opt/providers/ecr", "ecr")
			n.write("/etc/kubernetes/providers.yaml/10-ecr.yaml", strings.NewReplacer("name: credential-broker", "name: ecr", "registry.example", "ecr.example").Replace(entries))
			n.write("/etc/kubernetes/providers.yaml/20-broker.yaml", strings.Replace(entries, "registry.example", "other.example", 1))
			n.run(kubeletFlags)
		}, "WRONG kubelet's entry: /etc/kubernetes/providers.yaml/20-broker.yaml:4: ", "put credential-broker, as `credential-broker kubelet-config --match other.example --match registry.example` prints it, into /etc/kubernetes/providers.yaml/20-broker.yaml; then ", ""},
		{"no entry of ours in two files", func(n *node) {
			n.remove("/etc/kubernetes/providers.yaml")
			n.writeProgram("/opt/providers/ecr", "ecr")
			n.writeProgram("/opt/providers/acr", "acr")
			n.write("/etc/kubernetes/providers.yaml/10-ecr.yaml", strings.Replace(entries, "name: credential-broker", "name: ecr", 1))
			n.write("/etc/kubernetes/providers.yaml/20-acr.yaml", strings.Replace(entries, "name: credential-broker", "name: acr", 1))
			n.run(kubeletFlags)
		}, "WRONG kubelet's entry: /etc/kubernetes/providers.yaml has no entry of the broker's; it has ecr, acr", "prints it, into a file of its own in /etc/kubernetes/providers.yaml; then ", whatProgram},
		{"no kubelet, and a stranger", func(n *node) {
			n.write("/etc/default/kubelet", "KUBELET_EXTRA_ARGS="+kubeletFlags)
			n.other("0\t0\t0\t0", "/usr/bin/kubelet", "/usr/bin/kubelet --v=2")
			n.link("mnt:[1]", "/proc/1/ns/mnt")
			n.link("mnt:[2]", fmt.Sprintf("/proc/%d/ns/mnt", otherPID))
			n.remove(fmt.Sprintf("/proc/%d", kubeletPID))
		}, "WRONG kubelet restart: no kubelet runs", "systemctl start kubelet", ""},
		{"a configuration with mistakes that others can write", func(n *node) {
			n.configure("  timeout: ten\n")
			n.chmod("/etc/credential-broker/config.yaml", 0o646)
		}, "WRONG configuration: /etc/credential-broker/config.yaml is not safe", "chmod o-w /etc/credential-broker/config.yaml", whatBackend},
		{"backends in another place than the operator says", func(n *node) {
			n.writeProgram("/opt/backends/credential-backend-dockerconfig", "backend")
			n.options.BackendDir = "/opt/backends"
		}, "WRONG kubelet's entry: /etc/kubernetes/providers.yaml:4: entry credential-broker: it takes backends from /usr/libexec/credential-broker/backends, not /opt/backends", "kubelet-config --backend-dir /opt/backends >", ""},
		{"answers for one token that the kubelet would share", func(n *node) {
			n.withTokens()
			text, _ := os.ReadFile(filepath.Join(n.root, "/etc/kubernetes/providers.yaml"))
			n.write("/etc/kubernetes/providers.yaml", strings.Replace(string(text), "cacheType: Token", "cacheType: ServiceAccount", 1))
		}, "WRONG kubelet's entry: /etc/kubernetes/providers.yaml:9: entry credential-broker-sts.example: its cacheType is ServiceAccount", "kubelet-config", ""},
		{"tokens for a kubelet of 1.33", func(n *node) {
			n.withTokens()
			n.program.version = "Kubernetes v1.33.4"
		}, "WRONG service account tokens: v1.33.4 does not know tokenAttributes", "1.34", ""},
		{"tokens for a kubelet of 1.31", func(n *node) {
			n.withTokens()
			n.program.version = "Kubernetes v1.31.14"
		}, "WRONG service account tokens: v1.31.14 does not know tokenAttributes, passes over them", "1.34", ""},
		{"tokens that a feature gate forbids", func(n *node) {
			n.withTokens()
			n.write("/var/lib/kubelet/config.yaml", "featureGates:\n  KubeletServiceAccountTokenForCredentialProviders: false\n")
			n.run(kubeletFlags + " --config=/var/lib/kubelet/config.yaml")
		}, "WRONG service account tokens: the feature gate", "remove KubeletServiceAccountTokenForCredentialProviders=false", ""},
		{"an entry of somebody else's without a program", func(n *node) {
			n.write("/etc/kubernetes/providers.yaml", entries+"- {name: ecr, apiVersion: credentialprovider.kubelet.k8s.io/v1, matchImages: [ecr.example], defaultCacheDuration: 0s}\n")
		}, "WRONG other entries: /etc/kubernetes/providers.yaml:8: entry ecr:", "install it, or remove the entry", ""},
		{
			"an entry that is newer than the kubelet's start", func(n *node) { n.startAt(time.Now().Add(-time.Hour), "/usr/bin/kubelet "+kubeletFlags) },
			"WRONG kubelet restart: /etc/kubernetes/providers.yaml was changed at", "systemctl daemon-reload && systemctl restart kubelet", "",
		},
		{"a kubelet that is not running", func(n *node) {
			n.write("/etc/default/kubelet", "KUBELET_EXTRA_ARGS="+kubeletFlags)
			n.remove(fmt.Sprintf("/proc/%d", kubeletPID))
		}, "WRONG kubelet restart: no kubelet runs", "systemctl start kubelet", ""},
		{
			"a backend that is not there", func(n *node) { n.remove("/usr/libexec/credential-broker/backends") },
			`WRONG backend of files: backend "dockerconfig": no file /usr/libexec/credential-broker/backends/credential-backend-dockerconfig`, "install it there", whatCheck + " of files",
		},
		{
			"a backend that others can write", func(n *node) { n.chmod("/usr/libexec/credential-broker/backends", 0o757) },
			"WRONG backend of files: /usr/libexec/credential-broker/backends/credential-backend-dockerconfig is not safe to use", "chmod o-w /usr/libexec/credential-broker/backends", whatCheck + " of files",
		},
		{
			"a backend with another digest", func(n *node) { n.configure("  sha256: [\"" + strings.Repeat("0", 64) + "\"]\n") }, "WRONG backend of files: /usr/libexec/credential-broker/backends/credential-backend-dockerconfig is not safe to use: its SHA-256 digest",
			"put that digest", whatCheck + " of files",
		},
		{"a user that is not there", func(n *node) { n.configure("  user: nobody-here\n") }, `WRONG backend of files: /etc/credential-broker/config.yaml:4: user "nobody-here"`, "useradd --system", whatCheck + " of files"},
		{"a backend that does not start", func(n *node) { n.program.describe = errors.New("it exited with status 3") }, "WRONG backend of files: ", "conformance", whatCheck + " of files"},
		{
			"settings that the backend refuses", func(n *node) { n.program.settings["files"] = []error{errors.New("config.fiel: unknown field")} },
			"WRONG backend of files: /etc/credential-broker/config.yaml:4: config.fiel: unknown field", "", whatCheck + " of files",
		},
		{"no agent where there is to be one", func(n *node) {
			n.withAgent()
			n.program.agent = Agent{Reason: "nobody listens on /run/agent.sock", Absent: true}
		}, "WRONG agent: nobody listens on /run/agent.sock", "systemctl enable --now credential-broker.socket", ""},
		{"an agent with a broken configuration", func(n *node) {
			n.withAgent()
			n.program.agent.Refused = []string{"config.yaml:3: what"}
		}, "WRONG agent: it serves on with the configuration before", "credential-broker validate", ""},
		{"metrics that nobody serves", func(n *node) {
			n.withAgent()
			n.configure("agent: {socket: /run/agent.sock, metrics: \"127.0.0.1:9099\"}\n")
			n.program.metrics = errors.New("connection refused")
		}, "WRONG agent: nobody serves agent.metrics", "systemctl restart credential-broker", ""},
		{"a log file without a directory", func(n *node) { n.configure("log: {file: /var/log/broker/log}\n") }, "WRONG log: /var/log/broker: the directory of log.file is not there", "mkdir -p /var/log/broker", ""},
		{"a log file that is a directory", func(n *node) { n.configure("log: {file: /etc}\n") }, "WRONG log: /etc is a directory", "name a file in log.file", ""},
		{"a backend of two providers that does not start", func(n *node) {
			n.configure("- name: more\n  backend: dockerconfig\n  matchImages: [registry.example]\n")
			n.program.describe = errors.New("it exited with status 3")
		}, "WRONG backend of files: ", "conformance", whatBackend + " of more"},
		{"a check that fails", func(n *node) { n.program.checks["files"] = errors.New("refused: no such user") }, "WRONG check of files: for registry.example/app: refused: no such user", "credential-broker get registry.example/app", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			n := healthy(t)
			test.harm(n)
			findings := n.examine()
			findings = slices.DeleteFunc(findings, func(f Finding) bool { return n.ignore != "" && f.What == n.ignore })
			if got := Problems(findings); got != 1 {
				t.Errorf("%d problems, want the one:\n%s", got, all(findings))
			}
			first := WorstFirst(findings)[0]
			if !strings.HasPrefix(shown(first), test.first) || !strings.Contains(first.Remedy, test.remedy) {
				t.Errorf("the first line is\n  %s\nwant\n  %s … -> … %s", shown(first), test.first, test.remedy)
			}
			waiting := test.waits == ""
			for _, f := range findings {
				waiting = waiting || f.What == test.waits && f.WaitsFor != ""
				if strings.Contains(shown(f), n.root) {
					t.Errorf("a path is not the node's: %s", shown(f))
				}
			}
			if !waiting {
				t.Errorf("%s was looked at:\n%s", test.waits, all(findings))
			}
		})
	}
}

// A reader of a mounted directory would follow links in it into this system's own files.
func TestLinksInDirectoriesOfAMountedNodeAreNotRead(t *testing.T) {
	for what, dir := range map[string]string{whatConfig: "/etc/credential-broker/config.d", whatKubeConfig: "/etc/kubernetes/providers.yaml"} {
		n := healthy(t)
		n.options.Mounted = true
		n.write("/srv/file.yaml", "mistake")
		if what == whatConfig {
			n.remove("/etc/credential-broker/config.yaml")
		} else {
			n.remove(dir)
		}
		n.link("/srv/file.yaml", dir+"/a.yaml")
		n.run(kubeletFlags)
		if text := all(n.examine()); !strings.Contains(text, "unknown "+what+": "+dir+"/a.yaml is a symbolic link") {
			t.Errorf("got\n%s", text)
		}
	}
}

func TestNoFileThatAKubeletNamesIsWaitedFor(t *testing.T) {
	n := healthy(t)
	n.withTokens()
	n.pipe("/etc/pipe")
	n.run(kubeletFlags + " --config=/etc/pipe")
	if findings := n.examine(); Problems(findings) != 0 {
		t.Errorf("got\n%s", all(findings))
	}
}

func TestAFirstProviderForTokensTakesNothingFromTheOthers(t *testing.T) {
	n := healthy(t)
	n.withTokens()
	n.write("/etc/kubernetes/providers.yaml", entries)
	findings := n.examine()
	text := all(findings)
	if Problems(findings) != 2 || !strings.Contains(text, `entry credential-broker: its args lack --audience ""`) || !strings.Contains(text, `there is no entry for audience "sts.example" (pods)`) || strings.Contains(text, "remove it") {
		t.Errorf("got\n%s", text)
	}
}

// What the DaemonSet's installer keeps as it should be is not mended by hand: a file that it has not written it leaves alone from then on, and a link of another's making stays with one version.
func TestWhatADaemonSetInstalledItsPodMends(t *testing.T) {
	const again = installAgain
	for _, test := range []struct {
		name          string
		harm          func(n *node, entries string)
		first, remedy string
		problems      int
	}{
		{"nothing", func(*node, string) {}, "ok kubelet:", "", 0},
		{"an entry that covers too little", func(n *node, entries string) {
			n.write("/etc/kubernetes/providers.yaml", strings.Replace(entries, "registry.example", "other.example", 1))
		}, "WRONG kubelet's entry: ", again + "; then systemctl daemon-reload && systemctl restart kubelet", 1},
		{"a file that the kubelet does not take", func(n *node, entries string) {
			n.write("/etc/kubernetes/providers.yaml", strings.Replace(entries, "0s", "soon", 1))
		}, "WRONG kubelet's credential provider configuration: ", again, 1},
		{"no link", func(n *node, _ string) { n.remove("/opt/providers/credential-broker") }, "WRONG program: /opt/providers/credential-broker is not there", again, 1},
		{"no file", func(n *node, _ string) {
			n.remove("/etc/kubernetes/providers.yaml")
			n.writeProgram("/opt/cb/versions/1/credential-broker", "broker")
			n.link("../versions/1", "/opt/cb/pairs/1/current")
			n.link("pairs/1", "/opt/cb/in-use")
			n.link("/opt/cb/current/credential-broker", "/opt/providers/credential-broker")
		}, "WRONG kubelet's credential provider configuration: /etc/kubernetes/providers.yaml is not there", again, 1},
		{"a directory", func(n *node, entries string) {
			n.remove("/etc/kubernetes/providers.yaml")
			n.write("/etc/kubernetes/providers.yaml/a.yaml", strings.Replace(entries, "registry.example", "other.example", 1))
			n.run(kubeletFlags)
		}, "WRONG kubelet's entry: ", again + "; then systemctl daemon-reload && systemctl restart kubelet", 1},
		{"the doctor of another version", func(n *node, _ string) {
			n.writeProgram("/opt/credential-broker/credential-broker", "older")
			n.writeProgram("/opt/credential-broker/backends/credential-backend-dockerconfig", "backend")
			n.link("/opt/credential-broker/credential-broker", "/opt/providers/credential-broker")
		}, "note program: /opt/providers/credential-broker -> /opt/credential-broker/credential-broker is the DaemonSet's, and another", "/opt/credential-broker/credential-broker doctor", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := healthy(t)
			entries := kubelet.InstallerMark + "\n" + entries
			n.write("/etc/kubernetes/providers.yaml", entries)
			test.harm(n, entries)
			findings := n.examine()
			first := WorstFirst(findings)[0]
			if Problems(findings) != test.problems || !strings.HasPrefix(shown(first), test.first) || first.Remedy != test.remedy {
				t.Errorf("got\n%s", all(findings))
			}
		})
	}
}

func TestSeveralProblemsComeInTheOrderToMend(t *testing.T) {
	n := healthy(t)
	n.withAgent()
	n.startAt(time.Now().Add(-time.Hour), "/usr/bin/kubelet "+kubeletFlags)
	n.chmod("/opt/providers", 0o777)
	n.program.agent = Agent{Reason: "nobody listens", Absent: true}
	n.program.checks["files"] = errors.New("refused")
	n.program.version = "v1.20.0"
	var got []string
	for _, f := range WorstFirst(n.examine()) {
		if f.Verdict == Wrong {
			got = append(got, f.What)
		}
	}
	if want := "kubelet version, kubelet's bin directory, kubelet restart, agent, check of files"; strings.Join(got, ", ") != want {
		t.Errorf("in the order %s; want %s", strings.Join(got, ", "), want)
	}
}

func TestVariablesAreNamedAndNotTold(t *testing.T) {
	n := healthy(t)
	n.withAgent()
	n.write(fmt.Sprintf("/proc/%d/environ", kubeletPID), "PATH=/bin\x00AWS_REGION=eu-west-1\x00AWS_SECRET_ACCESS_KEY=hush-kubelet\x00SAME=1\x00")
	n.write(fmt.Sprintf("/proc/%d/environ", agentPID), "PATH=/usr/bin\x00AWS_REGION=hush-agent\x00SAME=1\x00AWS_PROFILE=hush\x00CREDENTIAL_BROKER_AGENT=/run/agent.sock\x00")
	text := all(n.examine())
	if want := "AWS_PROFILE (only the agent has it), AWS_REGION (differs), AWS_SECRET_ACCESS_KEY (only the kubelet has it)"; !strings.Contains(text, want+" ->") {
		t.Errorf("want %q in\n%s", want, text)
	}
	if strings.Contains(text, "hush") || strings.Contains(text, "SAME") || strings.Contains(text, "PATH") {
		t.Errorf("values, or what is the same, in\n%s", text)
	}
	if got := n.program.environs["files"]; strings.Count(strings.Join(got, " "), "AWS_PROFILE=hush") != 2 {
		t.Errorf("settings and check had the environment %q, not the agent's", got)
	}
}

func TestAProviderHasTheEnvironmentOfItsEntry(t *testing.T) {
	n := healthy(t)
	n.withTokens()
	file := n.options.Node.outside("/etc/kubernetes/providers.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	of := func(args, who string) []string {
		return []string{args, args + "\n  env: [{name: OF, value: " + who + "}]"}
	}
	with := strings.NewReplacer(append(of(`  args: [--audience, ""]`, "those-without"), of(`  args: [--audience, sts.example]`, "pods")...)...).Replace(string(text))
	n.write("/etc/kubernetes/providers.yaml", with)
	n.examine()
	for provider, want := range map[string]string{"files": "OF=those-without", "pods": "OF=pods"} {
		if got := n.program.environs[provider]; !slices.Contains(got, want) {
			t.Errorf("%s was judged with %q, want %s", provider, got, want)
		}
	}
}

func TestAnOverlappingEntryIsNamed(t *testing.T) {
	n := healthy(t)
	n.writeProgram("/opt/providers/ecr", "ecr")
	n.write("/etc/kubernetes/providers.yaml", entries+"- {name: ecr, apiVersion: credentialprovider.kubelet.k8s.io/v1, matchImages: [\"*.example\"], defaultCacheDuration: 0s}\n")
	findings := n.examine()
	if text := all(findings); Problems(findings) != 0 || !strings.Contains(text, `note other entries: /etc/kubernetes/providers.yaml:8: "*.example" of entry ecr overlaps "registry.example" of credential-broker`) {
		t.Errorf("got\n%s", text)
	}
}

func TestWithoutRootItSaysWhatItCouldNotSee(t *testing.T) {
	n := healthy(t)
	n.options.UID = 1000
	n.remove(fmt.Sprintf("/proc/%d/environ", kubeletPID))
	text := all(n.examine())
	for _, want := range []string{"it runs as root, and user 1000 looks", "environment that backends take variables from is that of this command"} {
		if !strings.Contains(text, want) {
			t.Errorf("want %q in\n%s", want, text)
		}
	}
}

func TestASystemWithoutProcSaysSo(t *testing.T) {
	n := healthy(t)
	n.remove("/proc")
	if text := all(n.examine()); !strings.Contains(text, "unknown kubelet: no /proc to look into") {
		t.Errorf("got\n%s", text)
	}
}

func TestLinksOfAMountedNodeStayInIt(t *testing.T) {
	n := healthy(t)
	n.link("../../../../../../etc/kubernetes/providers.yaml", "/etc/up")
	n.link("/etc/round", "/etc/round")
	if file, err := n.options.Node.follow("/etc/up"); err != nil || file != "/etc/kubernetes/providers.yaml" {
		t.Errorf("%q, %v", file, err)
	}
	if _, err := n.options.Node.follow("/etc/round"); err == nil {
		t.Error("a link to itself leads somewhere")
	}
}

func TestOnlyPathsOfAMountedNodeAreReworded(t *testing.T) {
	n := Node{Root: "/mnt"}
	for path, want := range map[string]string{"/mnt/etc/x": "/etc/x", "/mnt": "/", "/mnt2/x": "/mnt2/x", "/etc/mnt/x": "/etc/mnt/x"} {
		if got := n.inside(path); got != want {
			t.Errorf("inside %s: %s, want %s", path, got, want)
		}
	}
	const text = `open /mnt/etc/x: in "/mnt/a" and (/mnt), not registry.example/mnt/app, /mnt2 or mnt/x`
	if got, want := n.reword(text), `open /etc/x: in "/a" and (/), not registry.example/mnt/app, /mnt2 or mnt/x`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// What a stranger's process sees as its files is never executed: it is the stranger's.
func TestNobodyIsToldToRunAStrangersProgram(t *testing.T) {
	for uids, want := range map[string]string{
		"1000\t1000\t1000\t1000": fmt.Sprintf("credential-broker doctor --kubelet-pid %d, if that is a kubelet", otherPID),
		"0\t0\t0\t0":             "credential-broker doctor --root ",
	} {
		n := healthy(t)
		n.other(uids, "/usr/bin/kubelet", "kubelet --v=2")
		n.link("mnt:[1]", "/proc/1/ns/mnt")
		n.link("mnt:[2]", fmt.Sprintf("/proc/%d/ns/mnt", otherPID))
		n.remove(fmt.Sprintf("/proc/%d", kubeletPID))
		i := slices.IndexFunc(n.examine(), func(f Finding) bool {
			return strings.HasPrefix(f.Text, fmt.Sprintf("process %d is called a kubelet", otherPID))
		})
		if i < 0 {
			t.Fatalf("nothing is said of it")
		}
		if got := n.examine()[i].Remedy; !strings.HasPrefix(got, want) || strings.Contains(got, "nsenter") {
			t.Errorf("%s: %q, want %q", uids, got, want)
		}
	}
}

func TestAUsersServiceIsNoUnitOfTheKubelets(t *testing.T) {
	for cgroup, want := range map[string]string{
		"0::/system.slice/kubelet.service\n":                                          "kubelet",
		"0::/user.slice/user-1000.slice/user@1000.service/app.slice/x$(id).service\n": "",
		"0::/system.slice/user@1000.service\n":                                        "",
		"0::/system.slice/containerd.service/x/k3s-agent.service\n":                   "k3s-agent",
	} {
		if got := unitOf(cgroup); got != want {
			t.Errorf("%s: %q, want %q", cgroup, got, want)
		}
	}
	e := examination{kubelet: &Process{Unit: "x$(id)"}}
	if got := e.restart(); !strings.HasSuffix(got, " restart 'x$(id)'") {
		t.Errorf("a shell would read it: %s", got)
	}
}

func TestWhatAKubeletIs(t *testing.T) {
	for words, want := range map[string]bool{
		"/usr/bin/kubelet --v=2": true, "kubelet": true, "/usr/local/bin/k3s agent": true, "/snap/kubelite --x": true, "/hyperkube kubelet --x": true,
		"/usr/local/bin/k3s kubectl": false, "/bin/kubelet-exporter": false, "vi kubelet": false,
	} {
		if isKubelet(strings.Fields(words)) != want {
			t.Errorf("%s: %v", words, !want)
		}
	}
}
