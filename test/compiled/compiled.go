// Package compiled keeps programs that tests run and that take minutes to compile: below credential-broker in the user's cache directory, under a name with the digest of what they are made of.
package compiled

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
)

// Program is one to keep.
type Program struct {
	// Name is its file's, without ".exe", and Of whose it is: programs of the same are kept in one directory.
	Name, Of string
	// Module is the directory of the module that pins its version, Package what is built in it.
	Module, Package string
	// Linker gives flags of the linker's, which are asked for when it is built; nil for none. Variant says in the digest what they depend on besides the module.
	Linker  func() (string, error)
	Variant string
	// Says is what is printed before it is built, behind "building": what it is, how long that takes.
	Says string
}

// Executable gives the program's path, and builds it where this machine does not have it yet. Processes that want it at the same time build it once. Before it begins it says so on standard error.
func (p Program) Executable() (string, error) {
	file, err := p.file()
	if err != nil {
		return "", err
	}
	return p.built(file, os.Stderr, p.compile)
}

// Built gives the path of the program that this machine has; empty: Executable would have to build it.
func (p Program) Built() string {
	file, err := p.file()
	if err == nil {
		_, err = os.Stat(file)
	}
	if err != nil {
		return ""
	}
	return file
}

// file is the one that the program is in, or will be once it is built.
func (p Program) file() (string, error) {
	if _, err := os.Stat(filepath.Join(p.Module, "go.mod")); err != nil {
		return "", fmt.Errorf("the module that pins %s is not where its package's sources are (build without -trimpath): %w", p.Name, err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("where to keep %s: %w", p.Name, err)
	}
	digest, err := p.digest()
	if err != nil {
		return "", err
	}
	return filepath.Join(cache, "credential-broker", p.Of+"-"+digest, p.Name+extension()), nil
}

// digest names what the program is made of: the modules, the compiler, the platform, the variant.
func (p Program) digest() (string, error) {
	h := sha256.New()
	for _, name := range []string{"go.mod", "go.sum"} {
		content, err := os.ReadFile(filepath.Join(p.Module, name))
		if err != nil {
			return "", fmt.Errorf("reading which %s is wanted: %w", p.Name, err)
		}
		_, _ = h.Write(content)
	}
	_, _ = io.WriteString(h, runtime.Version()+" "+runtime.GOOS+"/"+runtime.GOARCH)
	if p.Variant != "" {
		_, _ = io.WriteString(h, " "+p.Variant)
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

// built gives the program in file, made by build unless it is there.
func (p Program) built(file string, say io.Writer, build func(to string) error) (string, error) {
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	dir := filepath.Dir(file)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("making a place for %s: %w", p.Name, err)
	}
	lock, err := Lock(filepath.Join(dir, "lock"), true)
	if err != nil {
		return "", fmt.Errorf("waiting for whoever builds %s: %w", p.Name, err)
	}
	defer lock.Close()
	if _, err := os.Stat(file); err == nil { // another process has built it in the meantime
		return file, nil
	}
	_, _ = fmt.Fprintf(say, "building %s (it is kept in %s)\n", p.Says, dir)
	if err := build(file + ".unfinished"); err != nil {
		return "", err
	}
	if err := os.Rename(file+".unfinished", file); err != nil {
		return "", fmt.Errorf("putting %s in its place: %w", p.Name, err)
	}
	return file, nil
}

func (p Program) compile(to string) error {
	linker := ""
	if p.Linker != nil {
		var err error
		if linker, err = p.Linker(); err != nil {
			return err
		}
	}
	return Build(p.Module, p.Package, to, linker)
}

// Build builds one program of the module in dir, for this process's platform whatever is being tested, and without cgo also where the race detector needs that. The flags are further ones of the linker's.
func Build(dir, pkg, to string, flags ...string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", strings.TrimSpace(strings.Join(append([]string{"-s -w"}, flags...), " ")), "-o", to, pkg)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOOS="+runtime.GOOS, "GOARCH="+runtime.GOARCH, "GOWORK=off", "GOFLAGS=-mod=readonly")
	if output, err := cmd.CombinedOutput(); err != nil {
		return errors.Join(fmt.Errorf("building %s in %s: %w", pkg, dir, err), errors.New(string(output)))
	}
	return nil
}

func extension() string {
	if runtime.GOOS == "windows" {
		return ".exe"
	}
	return ""
}
