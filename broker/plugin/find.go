package plugin

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

// Prefix is what the name of every backend's file begins with.
const Prefix = "credential-backend-"

// Installed is a backend's file in a backend directory.
type Installed struct {
	// Name is the backend's name, as in the configuration.
	Name string
	// Path is the file.
	Path string
}

// DefaultDir is the directory `backends` beside the real file of the running program, symbolic links resolved.
func DefaultDir() (string, error) {
	self, err := os.Executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	if err != nil {
		return "", fmt.Errorf("look for the directory of the running program: %w: set backendDir in the configuration", err)
	}
	return filepath.Join(filepath.Dir(self), "backends"), nil
}

// Find gives the path of a backend's executable: an absolute path as it is, a name as `credential-backend-<name>` in dir. An error says what is in the directory. It does
// not judge the file; Start does. The error is an *Error.
func Find(dir, backend string) (string, error) {
	file := backend
	if !filepath.IsAbs(backend) {
		if !validName(backend) {
			return "", errorf(backendv1.Error_KIND_MISCONFIGURED, "backend %q is neither an absolute path nor a name of lower-case letters, digits and hyphens", backend)
		}
		file = filepath.Join(dir, Prefix+backend+executableSuffix())
	}
	_, err := os.Stat(file)
	switch {
	case err == nil:
		return file, nil
	case !errors.Is(err, fs.ErrNotExist):
		return "", errorf(backendv1.Error_KIND_MISCONFIGURED, "backend %q: %w", backend, err)
	case file == backend:
		return "", errorf(backendv1.Error_KIND_MISCONFIGURED, "backend %q: no such file: install it, or correct the path", backend)
	}
	return "", errorf(backendv1.Error_KIND_MISCONFIGURED, "backend %q: no file %s (%s): install it there, correct the name, or set backendDir", backend, file, contents(dir))
}

// contents says what backends a directory holds.
func contents(dir string) string {
	installed, err := List(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "the directory does not exist"
	case err != nil:
		return err.Error()
	case len(installed) == 0:
		return "the directory has no backends"
	}
	names := make([]string, len(installed))
	for i, backend := range installed {
		names[i] = backend.Name
	}
	return "the directory has " + strings.Join(names, ", ")
}

// List gives the backends installed in dir, in the order of their names.
func List(dir string) ([]Installed, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list the backends: %w", err)
	}
	var installed []Installed
	for _, entry := range entries {
		name, ok := strings.CutPrefix(entry.Name(), Prefix)
		if !ok {
			continue
		}
		if name, ok = strings.CutSuffix(name, executableSuffix()); ok && validName(name) && !entry.IsDir() {
			installed = append(installed, Installed{Name: name, Path: filepath.Join(dir, entry.Name())})
		}
	}
	return installed, nil
}

func validName(name string) bool {
	return name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == "" && name[0] != '-'
}

func executableSuffix() string {
	if runtime.GOOS == "windows" {
		return ".exe"
	}
	return ""
}
