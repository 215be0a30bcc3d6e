package main

import (
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/credential-broker/credential-broker/broker/kubelet"
)

func migrateCommand() *cobra.Command {
	var options kubelet.MigrateOptions
	cmd := &cobra.Command{
		Use:   "migrate FILE",
		Short: "Turn a kubelet's CredentialProviderConfig into a configuration of exec backends that behaves as before",
		Long: `Turn a kubelet's CredentialProviderConfig, a file or a directory, into a configuration of exec backends that behaves as the kubelet did with
it. What cannot be kept is said in comments of the output and on standard error. Afterwards, kubelet-config prints the one entry that takes
the place of the old ones.`,
		Example: `  credential-broker migrate /etc/kubernetes/credential-provider.yaml --bin-dir /usr/libexec/kubernetes/credential-provider > config.yaml
  credential-broker --config config.yaml validate
  credential-broker --config config.yaml kubelet-config`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			source, err := kubelet.ReadConfig(args[0])
			if err != nil {
				return err
			}
			if options.BinDir != "" {
				if options.BinDir, err = filepath.Abs(options.BinDir); err != nil {
					return err
				}
			}
			migrated, notes, err := kubelet.Migrate(source, options)
			if err != nil {
				return err
			}
			errs := screen{out: cmd.ErrOrStderr()}
			for _, note := range notes {
				errs.printf("note: %s\n", note)
			}
			newScreen(cmd).printf("%s", migrated)
			return nil
		},
	}
	cmd.Flags().StringVar(&options.BinDir, "bin-dir", "", "the kubelet's --image-credential-provider-bin-dir, where the programs are")
	_ = cmd.MarkFlagDirname("bin-dir")
	return cmd
}
