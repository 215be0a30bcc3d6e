package main

import (
	"cmp"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/kubelet"
	"github.com/credential-broker/credential-broker/proto/trust"
)

// options are the flags that more than one command has.
type options struct {
	config     string
	backendDir string
	audience   string
	agent      optionalString
}

// optionalString is a flag's value that tells "" from none.
type optionalString struct {
	value string
	given bool
}

// String implements pflag.Value.
func (s *optionalString) String() string { return s.value }

// Set implements pflag.Value.
func (s *optionalString) Set(value string) error {
	s.value, s.given = value, true
	return nil
}

// Type implements pflag.Value: the word that the help has for it.
func (s *optionalString) Type() string { return "string" }

func (o *options) register(root *cobra.Command) {
	flags := root.PersistentFlags()
	flags.StringVar(&o.config, "config", "", "configuration file or directory (default /etc/credential-broker/config.yaml, then /etc/credential-broker/config.d/)")
	flags.StringVar(&o.backendDir, "backend-dir", "", `directory of the backends (default "backends" beside the executable)`)
	flags.Var(&o.agent, "agent", "socket of the agent (default $"+kubelet.AgentVariable+", then the configuration's agent.socket); \"\" for none")
	o.registerAudience(root)
}

// registerAudience adds --audience to a command: to those that answer for one entry of the kubelet's.
func (o *options) registerAudience(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.audience, "audience", "", `only the providers of this service account token audience; "" for those without a token`)
}

// load reads the configuration, refusing one that others could have written.
func (o *options) load() (*config.Config, error) { return loaded(o.inspect()) }

func loaded(cfg *config.Config, problems config.Problems, err error) (*config.Config, error) {
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
	cfg, problems, err := inspect(paths, o.backendDir)
	if err == nil {
		if socket, given := o.agentSocket(); given {
			cfg.SetAgent(socket)
		}
	}
	return cfg, problems, err
}

// inspect reads the configuration from these paths.
func inspect(paths []string, backendDir string) (*config.Config, config.Problems, error) {
	var cfg *config.Config
	var problems config.Problems
	if _, _, err := config.ReadWhole(time.Now, func() []string { return paths }, func() { cfg, problems = config.Inspect(paths...) }); err != nil {
		return nil, nil, err
	}
	for _, source := range cfg.Sources {
		if err := trust.File(source); err != nil {
			return nil, nil, err
		}
	}
	cfg.BackendDir = cmp.Or(backendDir, cfg.BackendDir)
	return cfg, problems, nil
}

// agentSocket is where the command line or the environment says that the agent is; empty and given: there is to be none.
func (o *options) agentSocket() (socket string, given bool) {
	if o.agent.given {
		return o.agent.value, true
	}
	socket = os.Getenv(kubelet.AgentVariable)
	return socket, socket != ""
}

// place is where this process would read its configuration and look for backends, in words that hold in the agent's process too. An empty configuration means the default places.
func (o *options) place() (path, backendDir string, err error) {
	if path = cmp.Or(o.config, os.Getenv(config.Environment)); path != "" {
		if path, err = filepath.Abs(path); err != nil {
			return "", "", err
		}
	}
	if backendDir = o.backendDir; backendDir != "" {
		backendDir, err = filepath.Abs(backendDir)
	}
	return path, backendDir, err
}

// providers are those that take part: of the audience that cmd was given, or all. There may come some for an audience that none has yet, so that is said with warn
// and is no error.
func (o *options) providers(cmd *cobra.Command, cfg *config.Config, warn func(text string)) []*config.Provider {
	if !cmd.Flags().Changed("audience") {
		return cfg.ForAudience(nil)
	}
	providers := cfg.ForAudience(&o.audience)
	if len(providers) == 0 {
		warn(config.NobodyOf(o.audience))
	}
	return providers
}

// noteOn says something beside a command's output.
func noteOn(cmd *cobra.Command) func(text string) {
	return func(text string) { screenOn(cmd.ErrOrStderr()).printf("note: %s\n", text) }
}
