package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/proto/trust"
)

// options are the flags that more than one command has.
type options struct {
	config     string
	backendDir string
	audience   string
}

func (o *options) register(root *cobra.Command) {
	root.PersistentFlags().StringVar(&o.config, "config", "", "configuration file or directory (default /etc/credential-broker/config.yaml, then /etc/credential-broker/config.d/)")
	root.PersistentFlags().StringVar(&o.backendDir, "backend-dir", "", `directory of the backends (default "backends" beside the executable)`)
	o.registerAudience(root)
}

// registerAudience adds --audience to a command: to those that answer for one entry of the kubelet's.
func (o *options) registerAudience(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.audience, "audience", "", `only the providers of this service account token audience; "" for those without a token`)
}

// load reads the configuration, refusing one that others could have written.
func (o *options) load() (*config.Config, error) {
	cfg, problems, err := o.inspect()
	if err == nil && len(problems) > 0 {
		err = problems
	}
	if err != nil {
		return nil, err
	}
	return cfg, nil
}

// inspect is load for those who list problems: with them it gives what is sound of the configuration.
func (o *options) inspect() (*config.Config, config.Problems, error) {
	paths, _, err := config.Find(o.config, os.Getenv)
	if err != nil {
		return nil, nil, err
	}
	cfg, problems := config.Inspect(paths...)
	for _, source := range cfg.Sources {
		if err := trust.File(source); err != nil {
			return nil, nil, err
		}
	}
	if o.backendDir != "" {
		cfg.BackendDir = o.backendDir
	}
	return cfg, problems, nil
}

// providers are those that take part: of the audience that cmd was given, or all. There may come some for an audience that none has yet, so that is said with warn
// and is no error.
func (o *options) providers(cmd *cobra.Command, cfg *config.Config, warn func(text string)) []*config.Provider {
	if !cmd.Flags().Changed("audience") {
		return cfg.ForAudience(nil)
	}
	providers := cfg.ForAudience(&o.audience)
	switch {
	case len(providers) > 0:
	case o.audience == "":
		warn(`--audience "": every provider has tokenAttributes, so none takes part; print the kubelet's entries anew with kubelet-config`)
	default:
		warn(fmt.Sprintf("--audience %q: no provider has this serviceAccountTokenAudience, so none takes part; correct it, or print the kubelet's entries anew with kubelet-config", o.audience))
	}
	return providers
}

// noteOn says something beside a command's output.
func noteOn(cmd *cobra.Command) func(text string) {
	return func(text string) { screenOn(cmd.ErrOrStderr()).printf("note: %s\n", text) }
}
