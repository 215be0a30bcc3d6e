// The API of the release whose folder this is: what is declared here stays. It has been written by `go test -update`, and never changes.
package conformance

import (
	"context"
	"github.com/credential-broker/credential-broker/proto/secret"
	"os/exec"
	"time"
)

type Options struct {
	Executable  string
	Config      any
	Image       string
	OtherImage  string
	Env         []string
	Token       secret.Secret
	Annotations map[string]string
	Secrets     []secret.Secret
	Timeout     time.Duration
	Host        func(context.Context) (*exec.Cmd, error)
}
