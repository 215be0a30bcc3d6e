package node

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/credential-broker/credential-broker/test/compiled"
)

// Program gives the path of a program of Kubernetes, "kubelet" or "kube-apiserver", which it builds where this machine does not have it yet: see compiled.Program.
func Program(name string) (string, error) {
	module := filepath.Join(sourceDir(), "kubernetes")
	return compiled.Program{
		Name: name, Of: "kubernetes", Module: module, Package: "k8s.io/kubernetes/cmd/" + name, Variant: versionVariable,
		Linker: func() (string, error) { return versionOf(module) },
		Says:   name + ", once: three to ten minutes on two cores",
	}.Executable()
}

func sourceDir() string {
	_, here, _, _ := runtime.Caller(0)
	return filepath.Dir(here)
}

// versionVariable is where Kubernetes' own build writes the version that its programs print and report; without it they are v0.0.0.
const versionVariable = "k8s.io/component-base/version.gitVersion"

// versionOf is the linker's flag that has a program say which version it is.
func versionOf(module string) (string, error) {
	list := exec.Command("go", "list", "-mod=readonly", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes")
	list.Dir, list.Env = module, append(os.Environ(), "GOWORK=off")
	version, err := list.Output()
	if err != nil {
		return "", fmt.Errorf("asking which Kubernetes %s has: %w", module, err)
	}
	return "-X " + versionVariable + "=" + strings.TrimSpace(string(version)), nil
}
