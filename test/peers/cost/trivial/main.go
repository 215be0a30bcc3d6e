// Command credential-backend-trivial is a backend that knows its answer: what it costs is the broker and the processes.
package main

import (
	"context"

	"github.com/credential-broker/credential-broker/backends"
)

type backend struct{}

func (backend) Credentials(_ context.Context, req backends.Request) (backends.Response, error) {
	return backends.Response{Credentials: []backends.Credential{{Key: req.Image.Host(), Username: "user", Password: "password"}}}, nil
}

func main() {
	backends.Serve("trivial", "1", func(context.Context, struct{}) (backends.Backend, error) { return backend{}, nil })
}
