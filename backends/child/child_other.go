//go:build !unix

package child

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
)

func isAbs(path string) bool { return filepath.IsAbs(path) }

// run has no guardian to rely on: see the package's documentation for what that means.
func run(ctx context.Context, c Command, stdout, stderr io.Writer) error {
	cmd := exec.CommandContext(ctx, c.Path, c.Args...)
	cmd.Env = append([]string{}, c.Env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(c.Stdin), stdout, stderr
	cmd.WaitDelay = grace
	if err := cmd.Start(); err != nil {
		return &StartError{Path: c.Path, Err: err}
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return &ExitError{Code: exit.ExitCode()}
	}
	return err
}
