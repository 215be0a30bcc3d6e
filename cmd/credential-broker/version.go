package main

import (
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/credential-broker/credential-broker/broker/kubelet"
	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

// version and commit are set by the linker (`make build`).
var (
	version = "devel"
	commit  = ""
)

// versions is what `version -o json` prints.
type versions struct {
	Version         string   `json:"version"`
	Commit          string   `json:"commit"`
	Go              string   `json:"go"`
	Platform        string   `json:"platform"`
	BackendProtocol int      `json:"backendProtocol"`
	KubeletAPI      []string `json:"kubeletAPI"`
	Configuration   string   `json:"configuration"`
}

func thisVersion() versions {
	v := versions{
		Version: version, Commit: commit, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, BackendProtocol: backendv1.ProtocolVersion,
		KubeletAPI: []string{kubelet.V1, kubelet.V1Beta1, kubelet.V1Alpha1}, Configuration: configurationVersion,
	}
	if info, ok := debug.ReadBuildInfo(); ok && v.Commit == "" {
		for _, setting := range info.Settings {
			if setting.Key == "vcs.revision" {
				v.Commit = setting.Value
			}
		}
	}
	if v.Commit == "" {
		v.Commit = "unknown"
	}
	return v
}

func versionCommand() *cobra.Command {
	var output outputFormat
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print version, commit, Go and protocol versions",
		Example: "  credential-broker version -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := thisVersion()
			if output.json() {
				return printJSON(cmd, v)
			}
			s := newScreen(cmd)
			s.printf("credential-broker %s\n", v.Version)
			s.printf("  commit            %s\n", v.Commit)
			s.printf("  go                %s %s\n", v.Go, v.Platform)
			s.printf("  backend protocol  %d\n", v.BackendProtocol)
			s.printf("  configuration     %s\n", v.Configuration)
			for _, api := range v.KubeletAPI {
				s.printf("  kubelet           %s\n", api)
			}
			return nil
		},
	}
	output.register(cmd)
	return cmd
}
