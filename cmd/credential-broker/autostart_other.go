//go:build !unix

package main

import (
	"context"
	"errors"

	"github.com/credential-broker/credential-broker/broker/config"
)

var errNoAgent = errors.New("there is no agent on this system")

func startAgent(context.Context, *options, *config.Config) error { return errNoAgent }

func takeEnvironment(string) error { return nil }
