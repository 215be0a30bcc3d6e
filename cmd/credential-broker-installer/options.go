package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/credential-broker/credential-broker/broker/install"
)

// options are the flags that all commands share, so that the pod's one list of arguments serves its probes too.
type options struct {
	from, dir, configFrom, binDir, kubeletConfig, state string

	match  []string
	single bool
	log    *slog.Logger
}

func (o *options) register(root *cobra.Command) {
	flags := root.PersistentFlags()
	flags.StringVar(&o.from, "from", "/usr/libexec/credential-broker", "the release's directory in the image, with its "+install.Manifest)
	flags.StringVar(&o.dir, "dir", "/opt/credential-broker", "the directory on the host, mounted under the same path; root's, as all above it")
	flags.StringVar(&o.configFrom, "config-from", "", "a directory with the configuration to install, such as a mounted ConfigMap; without it the node's own /etc/credential-broker is used")
	flags.StringVar(&o.binDir, "bin-dir", "", "the kubelet's --image-credential-provider-bin-dir, mounted under the same path (default DIR/bin)")
	flags.StringVar(&o.kubeletConfig, "kubelet-config", "", "where to write the kubelet's CredentialProviderConfig (default DIR/kubelet.yaml)")
	flags.StringSliceVar(&o.match, "match", nil, "patterns of the kubelet's entry, as of credential-broker kubelet-config --match")
	flags.BoolVar(&o.single, "single", false, "one entry, as of credential-broker kubelet-config --single")
	flags.StringVar(&o.state, "state", "/run/credential-broker-installer", "a directory in the container, for the probes")
}

func (o *options) installer() (*install.Installer, error) {
	for flag, path := range map[string]string{"dir": o.dir, "bin-dir": o.binDir, "kubelet-config": o.kubeletConfig} {
		if path != "" && (!filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/") {
			return nil, fmt.Errorf("--%s %q is no absolute, plain path below /", flag, path)
		}
	}
	var entry []string
	if len(o.match) > 0 {
		entry = append(entry, "--match", strings.Join(o.match, ","))
	}
	if o.single {
		entry = append(entry, "--single")
	}
	return &install.Installer{
		From: o.from, Version: version, Dir: o.dir, ConfigFrom: o.configFrom, BinDir: o.binDir, KubeletConfig: o.kubeletConfig,
		EntryFlags: entry, Keep: time.Hour, Run: run, Log: o.log, Now: time.Now,
	}, nil
}

// run runs the installed broker. What this pod's own environment says of a configuration is not the node's.
func run(ctx context.Context, program string, args ...string) (stdout, stderr []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "CREDENTIAL_BROKER_") })
	cmd.WaitDelay = time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	if ctx.Err() != nil {
		err = errors.Join(ctx.Err(), err)
	}
	return out.Bytes(), errs.Bytes(), err
}
