package doctor

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// The kubelet's flags that concern us.
const (
	flagConfig = "image-credential-provider-config"
	flagBinDir = "image-credential-provider-bin-dir"
	gateTokens = "KubeletServiceAccountTokenForCredentialProviders"
)

// flags are the values of the kubelet's flags, and where they stand.
type flags struct {
	config, binDir string
	from           string
}

// flagsOf reads a command line; the later of two wins, as in the kubelet. Words of the form kubelet-arg=NAME=VALUE are k3s's.
func flagsOf(args []string) flags {
	var f flags
	for i, arg := range args {
		arg = strings.TrimPrefix(strings.TrimPrefix(arg, "--kubelet-arg="), "kubelet-arg=")
		name, value, ok := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		if !ok && i+1 < len(args) {
			value = args[i+1]
		}
		f.set(name, value)
	}
	return f
}

func (f *flags) set(name, value string) {
	switch name {
	case flagConfig:
		f.config = value
	case flagBinDir:
		f.binDir = value
	}
}

// flagFiles are what the files say that a kubelet's flags come from.
type flagFiles struct {
	flags
	// opaque is a file in which a flag's value has a variable that cannot be told from here.
	opaque string
	// read are those files that exist.
	read []string
}

// flagPlaces are files with flags of the kubelet's, by globs; the later wins, as on the command line that the unit of kubeadm makes of them. docs/platforms says whose they are.
var flagPlaces = []string{
	"/usr/lib/systemd/system/kubelet.service", "/lib/systemd/system/kubelet.service", "/etc/systemd/system/kubelet.service",
	"/usr/lib/systemd/system/kubelet.service.d/*.conf", "/etc/systemd/system/kubelet.service.d/*.conf",
	"/var/lib/kubelet/kubeadm-flags.env", "/etc/default/kubelet", "/etc/sysconfig/kubelet", "/etc/eks/kubelet/environment",
	"/etc/systemd/system/k3s.service", "/etc/systemd/system/k3s.service.d/*.conf", "/etc/systemd/system/k3s-agent.service", "/etc/systemd/system/k3s-agent.service.d/*.conf",
	"/usr/local/lib/systemd/system/rke2-server.service", "/usr/lib/systemd/system/rke2-server.service", "/etc/systemd/system/rke2-server.service", "/etc/systemd/system/rke2-server.service.d/*.conf",
	"/usr/local/lib/systemd/system/rke2-agent.service", "/usr/lib/systemd/system/rke2-agent.service", "/etc/systemd/system/rke2-agent.service", "/etc/systemd/system/rke2-agent.service.d/*.conf",
	"/etc/rancher/k3s/config.yaml", "/etc/rancher/k3s/config.yaml.d/*.yaml", "/etc/rancher/rke2/config.yaml", "/etc/rancher/rke2/config.yaml.d/*.yaml",
	microk8sArgs,
}

// microk8sArgs is the file that microk8s's kubelite reads the kubelet's flags from.
const microk8sArgs = "/var/snap/microk8s/current/args/kubelet"

// snapVariables are those that microk8s's arguments may have in them.
var snapVariables = strings.NewReplacer(
	"${SNAP_DATA}", "/var/snap/microk8s/current", "$SNAP_DATA", "/var/snap/microk8s/current", "${SNAP_COMMON}", "/var/snap/microk8s/common", "$SNAP_COMMON", "/var/snap/microk8s/common",
	"${SNAP}", "/snap/microk8s/current", "$SNAP", "/snap/microk8s/current",
)

// k3sDefaults is where k3s looks if no flag says otherwise and the files are there (its --image-credential-provider-config and -bin-dir).
var k3sDefaults = flags{config: "/var/lib/rancher/credentialprovider/config.yaml", binDir: "/var/lib/rancher/credentialprovider/bin", from: "k3s's default"}

var flagPattern = regexp.MustCompile(`(` + flagConfig + `|` + flagBinDir + `)(?:=|:?\s+)["']?([^\s"'\\,\]]+)`)

func (n Node) flagFiles() flagFiles {
	var f flagFiles
	for _, glob := range flagPlaces {
		for _, path := range n.glob(glob) {
			data, err := n.readFile(path)
			if err != nil {
				continue
			}
			f.read = append(f.read, path)
			for line := range strings.Lines(string(data)) {
				if strings.HasPrefix(strings.TrimSpace(line), "#") {
					continue
				}
				for _, m := range flagPattern.FindAllStringSubmatch(line, -1) {
					value := m[2]
					if path == microk8sArgs {
						value = snapVariables.Replace(value)
					}
					if strings.Contains(value, "$") {
						f.opaque = path
						continue
					}
					f.set(m[1], value)
					f.from = path
				}
			}
		}
	}
	return f
}

// glob gives the node's files that match, in lexical order; only the last element may have a star.
func (n Node) glob(pattern string) []string {
	dir, last := filepath.Split(pattern)
	if !strings.Contains(last, "*") {
		if n.exists(pattern) {
			return []string{pattern}
		}
		return nil
	}
	entries, err := n.readDir(dir)
	if err != nil {
		return nil
	}
	var found []string
	for _, entry := range entries {
		if ok, _ := filepath.Match(last, entry.Name()); ok {
			found = append(found, dir+entry.Name())
		}
	}
	slices.Sort(found)
	return found
}

var gatePattern = regexp.MustCompile(gateTokens + `["']?\s*[=:]\s*["']?(true|false)`)

// tokensGate is what the kubelet's flags, and the configuration that --config names, say of the feature that service account tokens need: "true", "false" or nothing.
func (n Node) tokensGate(args []string) string {
	var texts []string
	for i, arg := range args {
		texts = append(texts, arg)
		path, ok := strings.CutPrefix(arg, "--config=")
		if arg == "--config" && i+1 < len(args) {
			path, ok = args[i+1], true
		}
		if data, err := n.readFile(path); ok && err == nil {
			texts = append([]string{string(data)}, texts...)
		}
	}
	gate := ""
	for _, text := range texts {
		if m := gatePattern.FindStringSubmatch(text); m != nil {
			gate = m[1]
		}
	}
	return gate
}
