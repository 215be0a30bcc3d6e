// Command credential-backend-trivial is a backend that knows its answer. With a file in its settings it writes the broker's peak memory and its own there, in KiB.
package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/credential-broker/credential-broker/backends"
)

type config struct {
	MemoryFile string `json:"memoryFile"`
}

type backend struct{ config }

func (b backend) Credentials(_ context.Context, req backends.Request) (backends.Response, error) {
	if b.MemoryFile != "" {
		var peaks strings.Builder
		for _, pid := range []int{os.Getppid(), os.Getpid()} {
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if err != nil {
				return backends.Response{}, err
			}
			_, rest, _ := strings.Cut(string(status), "VmHWM:")
			line, _, _ := strings.Cut(rest, "\n")
			peaks.WriteString(strings.TrimSuffix(strings.TrimSpace(line), "kB") + "\n")
		}
		if err := os.WriteFile(b.MemoryFile, []byte(peaks.String()), 0o600); err != nil {
			return backends.Response{}, err
		}
	}
	return backends.Response{Credentials: []backends.Credential{{Key: req.Image.Host(), Username: "user", Password: "password"}}}, nil
}

func main() {
	backends.Serve("trivial", "1", func(_ context.Context, cfg config) (backends.Backend, error) { return backend{cfg}, nil })
}
