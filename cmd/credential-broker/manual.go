package main

import (
	"encoding/json"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// manualCommand is one command in what `manual` prints.
type manualCommand struct {
	Use      string          `json:"use"`
	Short    string          `json:"short"`
	Long     string          `json:"long,omitempty"`
	Example  string          `json:"example,omitempty"`
	Flags    []manualFlag    `json:"flags,omitempty"`
	Commands []manualCommand `json:"commands,omitempty"`
}

// manualFlag is a flag of a command's own, or one that the commands below it have too.
type manualFlag struct {
	Name       string `json:"name"`
	Shorthand  string `json:"shorthand,omitempty"`
	Type       string `json:"type"`
	Default    string `json:"default,omitempty"`
	NoValue    string `json:"noValue,omitempty"`
	Usage      string `json:"usage"`
	Persistent bool   `json:"persistent,omitempty"`
}

// newManualCommand is for tools/package/manual alone, which makes manual pages of it. What makes those (cobra/doc) needs a library for Markdown, which the product shall not depend on; and nobody can import a command.
func newManualCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "manual",
		Short:  "Print the commands and their flags as JSON, to make manual pages of",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return json.NewEncoder(cmd.OutOrStdout()).Encode(describeCommand(cmd.Root()))
		},
	}
}

func describeCommand(cmd *cobra.Command) manualCommand {
	described := manualCommand{Use: cmd.Use, Short: cmd.Short, Long: cmd.Long, Example: cmd.Example}
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden && f.Name != "help" {
			described.Flags = append(described.Flags, manualFlag{
				Name: f.Name, Shorthand: f.Shorthand, Type: f.Value.Type(), Default: f.DefValue, NoValue: f.NoOptDefVal, Usage: f.Usage, Persistent: cmd.PersistentFlags().Lookup(f.Name) != nil,
			})
		}
	})
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() && sub.Name() != "completion" {
			described.Commands = append(described.Commands, describeCommand(sub))
		}
	}
	return described
}
