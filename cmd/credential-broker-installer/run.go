package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/credential-broker/credential-broker/broker/install"
)

// retryAfter is how long a failure is left alone while nothing changes.
const retryAfter = time.Minute

// pulseWithin is how long the loop may take from one turn to the next: it does not wait longer for any program that it runs, and runs a few.
const pulseWithin = 10 * time.Minute

func runCommand(opts *options) *cobra.Command {
	var interval, verify time.Duration
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Install, and stay: look at the configuration every --interval, and verify all that is installed every --verify",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			i, err := opts.installer()
			if err != nil {
				return err
			}
			if interval <= 0 || verify <= 0 {
				return errors.New("--interval and --verify are longer than nothing")
			}
			return opts.watch(cmd.Context(), i, interval, verify)
		},
	}
	cmd.Flags().DurationVar(&interval, "interval", 10*time.Second, "how often to look whether the configuration has changed")
	cmd.Flags().DurationVar(&verify, "verify", 10*time.Minute, "how often to verify, and to repair, all that is installed")
	return cmd
}

// watch installs, and does so again when the configuration is another, when it is time to verify, and soon after a failure.
func (o *options) watch(ctx context.Context, i *install.Installer, interval, verify time.Duration) error {
	turn := time.NewTicker(interval)
	defer turn.Stop()
	// A pod's emptyDir can be written by everybody, and the broker that is tried does not work below such a directory.
	if parent := filepath.Dir(o.state); parent == "/run" {
		if err := os.Chmod(parent, 0o755); err != nil { //nolint:gosec // what backends that run as other users have to cross
			o.log.Warn("the broker may find no directory to work in", "error", err)
		}
	}
	// A pod's emptyDir outlives its containers: what the one before said is not said of this one.
	for _, name := range []string{"status", "note", "pulse"} {
		if err := os.Remove(filepath.Join(o.state, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	var last, said string
	var next time.Time
	for {
		fingerprint := i.Fingerprint()
		if now := time.Now(); fingerprint != last || !now.Before(next) {
			err := i.Apply(ctx)
			if ctx.Err() != nil {
				return ctx.Err() // a pod that is asked to end: what is not finished the next run finishes
			}
			last, next = fingerprint, time.Now().Add(verify)
			if err != nil {
				next = time.Now().Add(min(retryAfter, verify))
				o.log.Error("the host is not as it should be", "error", err)
			}
			said = o.report(i, err, i.Unclaimed(), said)
		}
		if err := o.write("pulse", ""); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-turn.C:
		}
	}
}

// report tells the probes, and what the platform has to set whenever that has changed.
func (o *options) report(i *install.Installer, err error, note, said string) string {
	text := ""
	if err != nil {
		text = err.Error()
	}
	// The note first: who finds the status finds the note that belongs to it.
	if err := errors.Join(o.write("note", note), o.write("status", text)); err != nil {
		o.log.Error("tell the probes", "error", err)
	}
	flags := strings.Join(i.Flags(), " ")
	if err == nil && said != flags {
		o.log.Info("installed; this does not touch the kubelet: the platform has to start it with these flags", "flags", flags, "entry", "credential-broker-installer kubelet")
		said = flags
	}
	return said
}

func removeCommand(opts *options) *cobra.Command {
	var stay bool
	cmd := &cobra.Command{
		Use:   "remove",
		Short: "Remove everything that was installed, after the kubelet has been started without it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			i, err := opts.installer()
			if err != nil {
				return err
			}
			removed := false
			for {
				if !removed {
					err := i.Remove()
					if !stay {
						return err
					}
					removed = err == nil
					_ = opts.report(i, err, "", strings.Join(i.Flags(), " ")) // nothing is to be said of flags
					if err != nil {
						opts.log.Error("not everything is removed", "error", err)
					}
				}
				if err := opts.write("pulse", ""); err != nil {
					return err
				}
				select {
				case <-cmd.Context().Done():
					return nil
				case <-time.After(retryAfter):
				}
			}
		},
	}
	cmd.Flags().BoolVar(&stay, "stay", false, "wait afterwards, as a DaemonSet's pod has to; ready means removed")
	return cmd
}

// write replaces a file for the probes.
func (o *options) write(name, text string) error {
	if err := os.MkdirAll(o.state, 0o750); err != nil {
		return err
	}
	path := filepath.Join(o.state, name)
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// readStatus is the readiness probe: what the last run said. What works, and should be known, does not keep a pod from being ready.
func (o *options) readStatus(out io.Writer) error {
	if note, err := os.ReadFile(filepath.Join(o.state, "note")); err == nil && len(note) > 0 {
		fmt.Fprintf(out, "note: %s\n", note)
	}
	text, err := os.ReadFile(filepath.Join(o.state, "status"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("the first run has not ended yet")
	case err != nil:
		return err
	case len(text) > 0:
		return errors.New(string(text))
	}
	return nil
}

// readPulse is the liveness probe.
func (o *options) readPulse() error {
	info, err := os.Stat(filepath.Join(o.state, "pulse"))
	if err != nil {
		return fmt.Errorf("the first run has not ended yet: %w", err)
	}
	if age := time.Since(info.ModTime()); age > pulseWithin {
		return fmt.Errorf("the last turn ended %v ago", age.Round(time.Second))
	}
	return nil
}
