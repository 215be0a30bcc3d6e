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

// release is one of another project's, which the module in a directory beside this file pins.
type release struct {
	dir, module string
	// version is the variable into which the project's own build writes which version its programs print and report; without it they do not know.
	version string
	takes   string // to compile, on two cores
}

var (
	ofKubernetes = release{dir: "kubernetes", module: "k8s.io/kubernetes", version: "k8s.io/component-base/version.gitVersion", takes: "three to ten minutes"}
	ofCRITools   = release{dir: "crictl", module: "sigs.k8s.io/cri-tools", version: "sigs.k8s.io/cri-tools/pkg/version.Version", takes: "one to three minutes"}
	ofBuildKit   = release{dir: "buildkit", module: "github.com/moby/buildkit", version: "github.com/moby/buildkit/version.Version", takes: "two to ten minutes"}
)

// programs are those that Program knows. Each is the package cmd/NAME of its module.
var programs = map[string]release{"kubelet": ofKubernetes, "kube-apiserver": ofKubernetes, "crictl": ofCRITools, "buildctl": ofBuildKit, "buildkitd": ofBuildKit}

// Program gives the path of a program of programs, which it builds where this machine does not have it yet: see compiled.Program.
func Program(name string) (string, error) {
	of, known := programs[name]
	if !known {
		return "", fmt.Errorf("no module beside %s pins a program %s", sourceDir(), name)
	}
	return compiled.Program{
		Name: name, Of: of.dir, Module: filepath.Join(sourceDir(), of.dir), Package: of.module + "/cmd/" + name, Variant: of.version,
		Linker: of.linker,
		Says:   name + ", once: " + of.takes + " on two cores",
	}.Executable()
}

func sourceDir() string {
	_, here, _, _ := runtime.Caller(0)
	return filepath.Dir(here)
}

// linker gives the linker's flag that has a program say which version it is.
func (r release) linker() (string, error) {
	list := exec.Command("go", "list", "-mod=readonly", "-m", "-f", "{{.Version}}", r.module)
	list.Dir, list.Env = filepath.Join(sourceDir(), r.dir), append(os.Environ(), "GOWORK=off")
	version, err := list.Output()
	if err != nil {
		return "", fmt.Errorf("asking which version of %s is wanted in %s: %w", r.module, list.Dir, err)
	}
	return "-X " + r.version + "=" + strings.TrimSpace(string(version)), nil
}
