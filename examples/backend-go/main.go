// Credential-backend-userfile is an example: it reads "user:password" from a file for each registry host.
package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/credential-broker/credential-broker/backends"
)

// Config is the provider's `config`.
type Config struct {
	// Files gives, for each registry host (with its port, if it has one), the file that holds "user:password".
	Files map[string]string `json:"files"`
}

type userFile struct{ cfg Config }

// Credentials answers for one image: "host[:port]/path", without tag.
func (u *userFile) Credentials(_ context.Context, req backends.Request) (backends.Response, error) {
	host := req.Image.Host()
	file, ok := u.cfg.Files[host]
	if !ok {
		return backends.Response{}, nil // none for this image, which is not a failure
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return backends.Response{}, backends.Unavailable(fmt.Errorf("read the password for %s: %w", host, err))
	}
	user, password, ok := strings.Cut(strings.TrimSpace(string(content)), ":")
	if !ok {
		return backends.Response{}, backends.Refused(fmt.Errorf("%s does not hold user:password", file)) // never quote what it does hold
	}
	return backends.Response{
		Scope:       backends.ScopeRegistry, // every image of this host gets the same answer
		Credentials: []backends.Credential{{Key: host, Username: user, Password: backends.Secret(password)}},
	}, nil
}

// Check says, before anybody pulls, whether the files are there.
func (u *userFile) Check(context.Context, backends.Request) error {
	for host, file := range u.cfg.Files {
		if info, err := os.Stat(file); err != nil {
			return backends.InvalidConfig(fmt.Sprintf("files[%q]", host), "%w: write user:password into it", err)
		} else if info.Mode().Perm()&0o077 != 0 {
			return backends.InvalidConfig(fmt.Sprintf("files[%q]", host), "%s can be read by others (mode %v): chmod 600 it", file, info.Mode().Perm())
		}
	}
	return nil
}

func main() {
	backends.Serve("userfile", "1.0.0", func(_ context.Context, cfg Config) (backends.Backend, error) {
		if len(cfg.Files) == 0 {
			return nil, backends.InvalidConfig("files", `want at least one, such as {"registry.example": "/etc/registry/password"}`)
		}
		return &userFile{cfg}, nil
	})
}
