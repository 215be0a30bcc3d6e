package main

import (
	"context"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/plugin"
	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

// installedBackend is one backend in `backends -o json`.
type installedBackend struct {
	Name     string   `json:"name"`
	Version  string   `json:"version,omitempty"`
	Protocol int      `json:"protocol,omitempty"`
	Features []string `json:"features,omitempty"`
	Path     string   `json:"path"`
	Error    string   `json:"error,omitempty"`
}

func backendsCommand(opts *options) *cobra.Command {
	var output outputFormat
	cmd := &cobra.Command{
		Use:     "backends",
		Short:   "List the installed backends with version and protocol",
		Long:    "List the backends in the backend directory. Each is started and asked what it is; one that cannot be started is listed with the reason.",
		Example: "  credential-broker backends\n  credential-broker backends --backend-dir ./bin/backends -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := opts.backendDirectory()
			if err != nil {
				return err
			}
			installed, err := plugin.List(dir)
			if err != nil {
				return err
			}
			all := describeAll(cmd, installed)
			if output.json() {
				return printJSON(cmd, all)
			}
			printBackends(newScreen(cmd), dir, all)
			return nil
		},
	}
	output.register(cmd)
	return cmd
}

// backendDirectory is where backends are looked for: by the flag, by the configuration if there is one, beside the executable.
func (o *options) backendDirectory() (string, error) {
	if o.backendDir != "" {
		return o.backendDir, nil
	}
	if _, isDefault, err := config.Find(o.config, os.Getenv); err != nil && isDefault {
		return plugin.DefaultDir() // an installation without a configuration yet
	}
	cfg, err := o.load()
	if err != nil {
		return "", err
	}
	if cfg.BackendDir != "" {
		return cfg.BackendDir, nil
	}
	return plugin.DefaultDir()
}

func describeAll(cmd *cobra.Command, installed []plugin.Installed) []installedBackend {
	log, closeLog := newLog(config.Log{Level: "error"}, cmd.ErrOrStderr(), false)
	defer closeLog()
	caller := newCaller(&config.Config{}, log, false)
	defer func() { _ = caller.Close() }()

	all := make([]installedBackend, len(installed))
	var waiting sync.WaitGroup
	for i, b := range installed {
		waiting.Go(func() {
			ctx, cancel := contextWithTimeout(cmd, 10*time.Second)
			defer cancel()
			all[i] = installedBackend{Name: b.Name, Path: b.Path}
			about, err := caller.Describe(ctx, b.Path)
			if err != nil {
				all[i].Error = err.Error()
				return
			}
			all[i].Version, all[i].Protocol = about.GetVersion(), backendv1.ProtocolVersion
			for _, feature := range about.GetFeatures() {
				all[i].Features = append(all[i].Features, strings.ToLower(strings.TrimPrefix(feature.String(), "FEATURE_")))
			}
			if about.GetName() != b.Name {
				all[i].Error = "it calls itself " + about.GetName()
			}
		})
	}
	waiting.Wait()
	return all
}

func printBackends(s screen, dir string, all []installedBackend) {
	if len(all) == 0 {
		s.printf("No backends in %s; a backend is an executable named %s<name>.\n", dir, plugin.Prefix)
		return
	}
	rows := make([][]cell, 0, len(all))
	for _, b := range all {
		protocol, note := "-", cell{b.Path, dim}
		if b.Protocol != 0 {
			protocol = strconv.Itoa(b.Protocol)
		}
		if b.Error != "" {
			note = cell{b.Error, red}
		}
		rows = append(rows, []cell{{b.Name, bold}, {b.Version, plain}, {protocol, plain}, {strings.Join(b.Features, ","), plain}, note})
	}
	s.table([]string{"BACKEND", "VERSION", "PROTOCOL", "FEATURES", "FILE"}, rows)
}

// contextWithTimeout bounds a command's step.
func contextWithTimeout(cmd *cobra.Command, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(cmd.Context(), d)
}
