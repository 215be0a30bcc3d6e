// Package beside has programs that are installed beside a backend do what few of its pulls need, or none: a library that takes long to start is then part of the program, and not of each pull. It knows
// neither questions nor answers.
package beside

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/child"
	"github.com/credential-broker/credential-broker/proto/trust"
)

// maxAnswer bounds an answer, in bytes.
const maxAnswer = 64 << 10

// Program is such a program.
type Program struct {
	// Name is its file's, on Windows without .exe.
	Name string
	// For is what needs it, for messages.
	For string
}

// Path is where it is installed: beside the running program.
func (p Program) Path() (string, error) {
	self, err := os.Executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	if err != nil {
		return "", fmt.Errorf("look for the directory of the running program: %w", err)
	}
	name := p.Name
	if runtime.GOOS == "windows" {
		name += ".exe"
	}
	return filepath.Join(filepath.Dir(self), name), nil
}

// Ask has the program at path answer a question; both are JSON, and go by its standard input and output. Its file is held to what a backend's is. Others of this user can read env, which is its whole
// environment: secrets are for the question. The error is of the kinds of package backends, and has nothing of what the program printed, which could quote them.
func (p Program) Ask(ctx context.Context, path string, env []string, question, answer any) error {
	switch err := trust.Executable(path, nil); {
	case errors.Is(err, fs.ErrNotExist):
		return backends.InvalidConfig("", "%s needs %s beside the backend, and there is no %s: install it from the release that the backend is from", p.For, p.Name, path)
	case err != nil:
		return backends.InvalidConfig("", "%s needs %s beside the backend: %w", p.For, p.Name, err)
	}
	input, err := json.Marshal(question)
	if err != nil {
		return err
	}
	result, err := child.Run(ctx, child.Command{Path: path, Env: env, Stdin: input, MaxStdout: maxAnswer})
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return backends.Unavailable(fmt.Errorf("%s: it did not end in time and was killed", path))
	case err != nil:
		return backends.Unavailable(fmt.Errorf("%s: %w", path, err))
	}
	if json.Unmarshal(result.Stdout, answer) != nil {
		return backends.Unavailable(fmt.Errorf("%s: it printed no answer: is it from the release that the backend is from?", path))
	}
	return nil
}
