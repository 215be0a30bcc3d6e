// Program podtoken is the simplest backend that there is for a registry that takes service account tokens themselves: it answers with the pod's.
package main

import (
	"context"
	"errors"

	"github.com/credential-broker/credential-broker/backends"
)

type settings struct{}

type podToken struct{}

func (podToken) Credentials(_ context.Context, req backends.Request) (backends.Response, error) {
	if req.Token == "" {
		return backends.Response{}, backends.Refused(errors.New("the request carries no service account token"))
	}
	return backends.Response{Credentials: []backends.Credential{{Key: req.Image.Host(), Username: "pod", Password: req.Token}}}, nil
}

func main() {
	backends.Serve("podtoken", "0.0.0", func(context.Context, settings) (backends.Backend, error) { return podToken{}, nil })
}
