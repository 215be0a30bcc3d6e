package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/kubelet"
)

func kubeletConfigCommand(opts *options) *cobra.Command {
	var (
		entryOptions kubelet.EntryOptions
		audience     string
		rbac, link   bool
		binDir       string
	)
	cmd := &cobra.Command{
		Use:   "kubelet-config",
		Short: "Print the kubelet's CredentialProviderConfig that covers the configured providers",
		Long: `Print the kubelet's CredentialProviderConfig that covers the configured providers: one entry wherever that is right. Providers with
tokenAttributes get an entry for each audience, since the kubelet has one audience for an entry and asks for a token before it runs us; what
the cluster has to allow for that is printed as a comment, or by itself with --rbac. Entries are for kubelets since 1.26, those with
tokenAttributes since 1.34: older ones pass over them (to 1.31) or do not start (1.32 and 1.33).`,
		Example: `  credential-broker kubelet-config > /etc/kubernetes/credential-provider.yaml
  credential-broker kubelet-config --match '*.example,*.*.example'      # room for providers to come, without a kubelet restart
  credential-broker kubelet-config --link --bin-dir /usr/libexec/kubernetes/credential-provider
  credential-broker kubelet-config --rbac | kubectl apply -f -`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if link != (binDir != "") {
				return errors.New("--link and --bin-dir go together: --bin-dir names the kubelet's --image-credential-provider-bin-dir")
			}
			cfg, err := opts.load()
			if err != nil {
				return err
			}
			if entryOptions.ConfigPath, err = opts.configToHandOn(); err != nil {
				return err
			}
			if opts.backendDir != "" {
				if entryOptions.BackendDir, err = filepath.Abs(opts.backendDir); err != nil {
					return err
				}
			}
			entries, notes, err := kubelet.Entries(cfg, entryOptions)
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("audience") {
				if entries, err = entryOf(entries, audience); err != nil {
					return err
				}
			}
			errs := screen{out: cmd.ErrOrStderr()}
			switch {
			case link:
				return makeLinks(newScreen(cmd), binDir, entries)
			case rbac:
				return printRBAC(newScreen(cmd), entries)
			}
			for _, note := range notes {
				errs.printf("note: %s\n", note)
			}
			newScreen(cmd).printf("%s", kubelet.Render(entries))
			return nil
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&entryOptions.Single, "single", false, "one entry even with tokens, where there is at most one audience; the output says what it costs")
	flags.StringSliceVar(&entryOptions.Match, "match", nil, "patterns to print instead of the providers' own, which they must cover")
	flags.StringVar(&audience, "audience", "", `only the entry of this audience; "" for the one without a token`)
	flags.BoolVar(&rbac, "rbac", false, "print what the cluster must allow for tokens, for kubectl, instead")
	flags.BoolVar(&link, "link", false, "make the links named like the entries in --bin-dir, instead of printing")
	flags.StringVar(&binDir, "bin-dir", "", "the kubelet's --image-credential-provider-bin-dir, for --link")
	cmd.MarkFlagsMutuallyExclusive("link", "rbac")
	_ = cmd.MarkFlagDirname("bin-dir")
	return cmd
}

// configToHandOn is the configuration that the kubelet has to name: empty for the default one.
func (o *options) configToHandOn() (string, error) {
	paths, isDefault, err := config.Find(o.config, os.Getenv)
	if err != nil || isDefault {
		return "", err
	}
	return filepath.Abs(paths[0])
}

func entryOf(entries []kubelet.Entry, audience string) ([]kubelet.Entry, error) {
	var audiences []string
	for _, e := range entries {
		if e.Audience == audience {
			return []kubelet.Entry{e}, nil
		}
		audiences = append(audiences, `"`+e.Audience+`"`)
	}
	return nil, errors.New("no entry has this audience; there are " + strings.Join(audiences, ", "))
}

func makeLinks(s screen, binDir string, entries []kubelet.Entry) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if self, err = filepath.EvalSymlinks(self); err != nil {
		return err
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name)
	}
	links, err := kubelet.Link(binDir, self, names)
	if err != nil {
		return err
	}
	for _, l := range links {
		word := "already there"
		if l.Made {
			word = "made"
		}
		s.printf("%s -> %s (%s)\n", l.Path, self, word)
	}
	return nil
}

func printRBAC(s screen, entries []kubelet.Entry) error {
	var audiences []string
	for _, e := range entries {
		if e.Audience != "" {
			audiences = append(audiences, e.Audience)
		}
	}
	if len(audiences) == 0 {
		return errors.New("no provider has tokenAttributes: nothing has to be allowed")
	}
	s.printf("%s", kubelet.RBAC(audiences))
	return nil
}
