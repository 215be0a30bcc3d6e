//go:build !windows

package amazon

import "github.com/kballard/go-shellquote"

// splitCommand splits a command line as a shell does.
func splitCommand(line string) ([]string, error) { return shellquote.Split(line) }
