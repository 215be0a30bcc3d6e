package main

import (
	"context"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/agent"
	"github.com/credential-broker/credential-broker/broker/agent/trace"
	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/plugin"
	"github.com/credential-broker/credential-broker/broker/plugin/caller"
)

// configurationVersion is the apiVersion of the configuration files.
const configurationVersion = config.APIVersion

// newCaller makes what asks the backends. Close it before the process ends. Slots: it waits for its turn where many processes ask at once.
func newCaller(cfg *config.Config, log *slog.Logger, slots bool) *caller.Caller {
	return caller.New(caller.Options{BackendDir: cfg.BackendDir, Logger: log, Slots: slots})
}

// commands are all subcommands.
func commands(opts *options) []*cobra.Command {
	return []*cobra.Command{
		validateCommand(opts), explainCommand(opts), getCommand(opts), doctorCommand(opts),
		agentCommand(opts), statusCommand(opts), forgetCommand(opts),
		kubeletConfigCommand(opts), migrateCommand(), dockerCredentialCommand(opts),
		backendsCommand(opts), conformanceCommand(opts), conformanceHostCommand(),
		newManualCommand(),
		versionCommand(),
	}
}

// newBackends makes what keeps an agent's backends running.
func newBackends(backendDir string, log *slog.Logger) agent.Backends {
	return keptBackends{caller.NewKeeper(caller.KeeperOptions{Options: caller.Options{BackendDir: backendDir, Logger: log}})}
}

// keptBackends tells the agent of a Keeper's backends in the agent's words.
type keptBackends struct{ *caller.Keeper }

// Call implements broker.Caller: the backend is told which trace it is part of.
func (k keptBackends) Call(ctx context.Context, provider *config.Provider, request broker.Request) (broker.Answer, error) {
	return k.Keeper.Call(plugin.WithTraceParent(ctx, trace.Parent(ctx)), provider, request)
}

func (k keptBackends) Status() []agent.Backend {
	var all []agent.Backend
	for _, b := range k.Keeper.Status() {
		all = append(all, agent.Backend{
			Provider: b.Provider, Path: b.Path, PID: b.PID, Started: b.Started, Restarts: b.Restarts, InFlight: b.InFlight, LastUsed: b.LastUsed, LastExit: b.LastExit, LastError: b.LastError,
		})
	}
	return all
}
