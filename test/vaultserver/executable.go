package vaultserver

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
	"sync"
)

// Executable gives the path of the Vault server, which it builds where this machine does not have it yet: into the user's cache directory, below credential-broker, under a name with the digest of
// what it is made of. Processes that want it at the same time build it once. Before it begins it says on standard error how long that takes.
func Executable() (string, error) { return executable() }

var executable = sync.OnceValues(func() (string, error) {
	file, err := cached()
	if err != nil {
		return "", err
	}
	return built(file, os.Stderr, compile)
})

// cached is the file that the server is in, or will be once it is built.
func cached() (string, error) {
	module, err := moduleDir()
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("where to keep the Vault server: %w", err)
	}
	name, err := digest(module)
	if err != nil {
		return "", err
	}
	return filepath.Join(cache, "credential-broker", "vault-"+name, "vault"+extension()), nil
}

// Built gives the path of the server that this machine has; empty: Executable would have to build it.
func Built() string {
	file, err := cached()
	if err == nil {
		_, err = os.Stat(file)
	}
	if err != nil {
		return ""
	}
	return file
}

// built gives the server in file, made by build unless it is there.
func built(file string, say io.Writer, build func(to string) error) (string, error) {
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	dir := filepath.Dir(file)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("making a place for the Vault server: %w", err)
	}
	unlock, err := lock(filepath.Join(dir, "lock"))
	if err != nil {
		return "", fmt.Errorf("waiting for whoever builds the Vault server: %w", err)
	}
	defer unlock()
	if _, err := os.Stat(file); err == nil { // another process has built it in the meantime
		return file, nil
	}
	_, _ = fmt.Fprintf(say, "building the Vault server that tests run: ten to twenty minutes on two cores, once. Where a test's time limit is shorter: make vault-server (it is kept in %s)\n", dir)
	unfinished := filepath.Join(dir, "unfinished"+extension())
	if err := build(unfinished); err != nil {
		return "", err
	}
	if err := os.Rename(unfinished, file); err != nil {
		return "", fmt.Errorf("putting the Vault server in its place: %w", err)
	}
	return file, nil
}

// moduleDir is the directory of the module that pins the server, in this checkout.
func moduleDir() (string, error) {
	_, here, _, _ := runtime.Caller(0)
	dir := filepath.Join(filepath.Dir(here), "server")
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
		return "", fmt.Errorf("the module that pins the Vault server is not where this package's sources are (build without -trimpath): %w", err)
	}
	return dir, nil
}

// digest names what the server is made of: the modules, the compiler, the platform.
func digest(module string) (string, error) {
	h := sha256.New()
	for _, name := range []string{"go.mod", "go.sum"} {
		content, err := os.ReadFile(filepath.Join(module, name))
		if err != nil {
			return "", fmt.Errorf("reading which Vault server is wanted: %w", err)
		}
		_, _ = h.Write(content)
	}
	_, _ = io.WriteString(h, runtime.Version()+" "+runtime.GOOS+"/"+runtime.GOARCH)
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

func compile(to string) error {
	module, err := moduleDir()
	if err != nil {
		return err
	}
	// The server is for this process's platform whatever is being tested, and without cgo also where the race detector needs that.
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", to, "github.com/hashicorp/vault")
	cmd.Dir, cmd.Env = module, append(os.Environ(), "CGO_ENABLED=0", "GOOS="+runtime.GOOS, "GOARCH="+runtime.GOARCH, "GOWORK=off", "GOFLAGS=-mod=readonly")
	output, err := cmd.CombinedOutput()
	if err != nil {
		return errors.Join(fmt.Errorf("building the Vault server in %s: %w", module, err), errors.New(string(output)))
	}
	return nil
}

func extension() string {
	if runtime.GOOS == "windows" {
		return ".exe"
	}
	return ""
}
