package node

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Program gives the path of a program of Kubernetes, "kubelet" or "kube-apiserver", which it builds where this machine does not have it yet: into the user's cache directory, below credential-broker,
// under a name with the digest of what it is made of. Processes that want it at the same time build it once. Before it begins it says on standard error how long that takes.
func Program(name string) (string, error) {
	file, err := cached(name)
	if err != nil {
		return "", err
	}
	return built(file, os.Stderr, func(to string) error { return compile(name, to) })
}

// cached is the file that a program is in, or will be once it is built.
func cached(name string) (string, error) {
	module, err := moduleDir()
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("where to keep %s: %w", name, err)
	}
	of, err := digest(module)
	if err != nil {
		return "", err
	}
	return filepath.Join(cache, "credential-broker", "kubernetes-"+of, name), nil
}

// built gives the program in file, made by build unless it is there.
func built(file string, say io.Writer, build func(to string) error) (string, error) {
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	dir, name := filepath.Split(file)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("making a place for %s: %w", name, err)
	}
	lock, err := lock(filepath.Join(dir, "lock"), true)
	if err != nil {
		return "", fmt.Errorf("waiting for whoever builds %s: %w", name, err)
	}
	defer lock.Close()
	if _, err := os.Stat(file); err == nil { // another process has built it in the meantime
		return file, nil
	}
	_, _ = fmt.Fprintf(say, "building %s, once: three to ten minutes on two cores (it is kept in %s)\n", name, filepath.Clean(dir))
	if err := build(file + ".unfinished"); err != nil {
		return "", err
	}
	if err := os.Rename(file+".unfinished", file); err != nil {
		return "", fmt.Errorf("putting %s in its place: %w", name, err)
	}
	return file, nil
}

// moduleDir is the directory of the module that pins Kubernetes, in this checkout.
func moduleDir() (string, error) {
	dir := filepath.Join(sourceDir(), "kubernetes")
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
		return "", fmt.Errorf("the module that pins Kubernetes is not where this package's sources are (build without -trimpath): %w", err)
	}
	return dir, nil
}

func sourceDir() string {
	_, here, _, _ := runtime.Caller(0)
	return filepath.Dir(here)
}

// digest names what the programs are made of: the modules, the compiler, the platform, and what they are told of themselves.
func digest(module string) (string, error) {
	h := sha256.New()
	for _, name := range []string{"go.mod", "go.sum"} {
		content, err := os.ReadFile(filepath.Join(module, name))
		if err != nil {
			return "", fmt.Errorf("reading which Kubernetes is wanted: %w", err)
		}
		_, _ = h.Write(content)
	}
	_, _ = io.WriteString(h, runtime.Version()+" "+runtime.GOOS+"/"+runtime.GOARCH+" "+versionVariable)
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

func compile(name, to string) error {
	module, err := moduleDir()
	if err != nil {
		return err
	}
	list := exec.Command("go", "list", "-mod=readonly", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes")
	list.Dir, list.Env = module, append(os.Environ(), "GOWORK=off")
	version, err := list.Output()
	if err != nil {
		return fmt.Errorf("asking which Kubernetes %s has: %w", module, err)
	}
	return goBuild(module, "k8s.io/kubernetes/cmd/"+name, to, "-X "+versionVariable+"="+strings.TrimSpace(string(version)))
}

// versionVariable is where Kubernetes' own build writes the version that its programs print and report; without it they are v0.0.0.
const versionVariable = "k8s.io/component-base/version.gitVersion"

// goBuild builds one program, for this machine and without cgo whatever is being tested.
func goBuild(dir, pkg, to string, ldflags ...string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", strings.Join(append([]string{"-s -w"}, ldflags...), " "), "-o", to, pkg)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOOS="+runtime.GOOS, "GOARCH="+runtime.GOARCH, "GOWORK=off", "GOFLAGS=-mod=readonly")
	if output, err := cmd.CombinedOutput(); err != nil {
		return errors.Join(fmt.Errorf("building %s in %s: %w", pkg, dir, err), errors.New(string(output)))
	}
	return nil
}

// lock takes a lock, and waits for it if asked to. It ends with this process, should that be killed; the file stays.
func lock(path string, wait bool) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	how := unix.LOCK_EX
	if !wait {
		how |= unix.LOCK_NB
	}
	for {
		if err = unix.Flock(int(file.Fd()), how); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}
