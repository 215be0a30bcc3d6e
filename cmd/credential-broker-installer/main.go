// Command credential-broker-installer puts the release that lies beside it in an image onto a host, keeps it as it should be, and removes it: see package broker/install. It is what the
// DaemonSet of docs/daemonset.md runs.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

var version = "dev" // set by the linker

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err := root.ExecuteContext(ctx); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "credential-broker-installer:", err)
		os.Exit(1) //nolint:gocritic // stop has nothing left to do
	}
}

func newRoot(log *slog.Logger) *cobra.Command {
	opts := &options{log: log}
	root := &cobra.Command{
		Use:               "credential-broker-installer",
		Short:             "Install credential-broker on a host, from a container",
		Version:           version,
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	opts.register(root)
	root.AddCommand(
		&cobra.Command{
			Use:   "install",
			Short: "Bring the host to what it should be, once",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				i, err := opts.installer()
				if err != nil {
					return err
				}
				return i.Apply(cmd.Context())
			},
		},
		runCommand(opts),
		removeCommand(opts),
		&cobra.Command{
			Use:   "status",
			Short: "Say whether the host is as it should be, for a probe: exit 1 and the reason if not; a note where it works and something is to be decided",
			Args:  cobra.NoArgs,
			RunE:  func(cmd *cobra.Command, _ []string) error { return opts.readStatus(cmd.OutOrStdout()) },
		},
		&cobra.Command{
			Use:   "alive",
			Short: "Say whether the installer is at work, for a probe, whatever it finds",
			Args:  cobra.NoArgs,
			RunE:  func(*cobra.Command, []string) error { return opts.readPulse() },
		},
		kubeletCommand(opts),
	)
	return root
}

// kubeletCommand prints what the platform has to do, since nothing here touches the kubelet.
func kubeletCommand(opts *options) *cobra.Command {
	var entryOnly bool
	cmd := &cobra.Command{
		Use:   "kubelet",
		Short: "Print what the platform has to set on the kubelet: its flags and its entry",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			i, err := opts.installer()
			if err != nil {
				return err
			}
			entry, err := i.Entry()
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if !entryOnly {
				for _, flag := range i.Flags() {
					fmt.Fprintln(out, "#", flag)
				}
			}
			_, err = out.Write(entry)
			return err
		},
	}
	cmd.Flags().BoolVar(&entryOnly, "entry", false, "only the CredentialProviderConfig, for a file")
	return cmd
}
