package main

import (
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/plugin/caller"
)

// configurationVersion is the apiVersion of the configuration files.
const configurationVersion = config.APIVersion

// newCaller makes what asks the backends. Close it before the process ends.
func newCaller(cfg *config.Config, log *slog.Logger) *caller.Caller {
	return caller.New(caller.Options{BackendDir: cfg.BackendDir, Logger: log})
}

// commands are all subcommands.
func commands(opts *options) []*cobra.Command {
	return []*cobra.Command{
		validateCommand(opts), explainCommand(opts), getCommand(opts),
		kubeletConfigCommand(opts), migrateCommand(),
		backendsCommand(opts), conformanceCommand(opts), conformanceHostCommand(),
		versionCommand(),
	}
}
