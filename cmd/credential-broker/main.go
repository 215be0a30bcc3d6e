// Command credential-broker is the kubelet's one image credential provider. Without a subcommand it is the exec plugin: one CredentialProviderRequest on
// standard input, one CredentialProviderResponse on standard output. The subcommands are for operators. Nothing is decided here: main and its neighbours
// wire the packages together, one file for each subcommand.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
)

func main() {
	harden()
	os.Exit(run(append(calledAs(os.Args[0]), os.Args[1:]...), os.Stdin, os.Stdout, os.Stderr))
}

// run is main without the process: it returns the exit status.
func run(args []string, stdin *os.File, stdout, stderr io.Writer) int {
	root := newRoot(stdin)
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	if err := root.ExecuteContext(context.Background()); err != nil {
		complain(stderr, err)
		return 1
	}
	return 0
}

// errSilent is for commands that have said already what is wrong.
var errSilent = errors.New("said already")

// complain prints an error.
func complain(w io.Writer, err error) { _, _ = w.Write(complaint(err)) }

// complaint words an error as this program prints it. Problems that name a place, and providers' failures, stand in lines of their own.
func complaint(err error) []byte {
	var problems config.Problems
	var failure *broker.Failure
	switch {
	case errors.Is(err, errSilent):
		return nil
	case errors.As(err, &problems), errors.As(err, &failure):
		return fmt.Appendln(nil, err)
	default:
		return fmt.Appendln(nil, "credential-broker:", err)
	}
}

func newRoot(stdin *os.File) *cobra.Command {
	opts := &options{}
	root := &cobra.Command{
		Use:   "credential-broker",
		Short: "The one image credential provider a Kubernetes node needs",
		Long: `The one image credential provider a Kubernetes node needs.

Without a command it is the kubelet's exec plugin: it reads one CredentialProviderRequest from standard input, asks the backends of
all providers that match the image, and writes one CredentialProviderResponse to standard output.`,
		Example: `  # what the kubelet does
  echo '{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderRequest","image":"registry.example/app"}' | credential-broker

  # what an operator does
  credential-broker validate
  credential-broker get registry.example/app`,
		Args:              noSuchCommand,
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,

		SuggestionsMinimumDistance: 2, // letters
		RunE: func(cmd *cobra.Command, _ []string) error {
			if isTerminal(stdin) {
				return cmd.Help()
			}
			return servePlugin(cmd, opts, stdin)
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w: see %s --help", err, cmd.CommandPath())
	})
	opts.register(root)
	root.AddCommand(commands(opts)...)
	return root
}

// noSuchCommand refuses every argument: the root command has none, so it was meant for a command.
func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	remedy := "see " + cmd.CommandPath() + " --help"
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		remedy = "did you mean " + strings.Join(near, " or ") + "?"
	}
	return fmt.Errorf("unknown command %q: %s", args[0], remedy)
}
