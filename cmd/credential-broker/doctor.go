package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/agent"
	"github.com/credential-broker/credential-broker/broker/agent/fast"
	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/doctor"
	"github.com/credential-broker/credential-broker/broker/plugin"
	"github.com/credential-broker/credential-broker/broker/plugin/caller"
)

// examined is what `doctor -o json` prints.
type examined struct {
	// Problems is how many of the findings are to be mended.
	Problems int `json:"problems"`
	// Findings are in the order in which they were looked at, which is that in which to mend them.
	Findings []doctor.Finding `json:"findings"`
}

func doctorCommand(opts *options) *cobra.Command {
	var output outputFormat
	var o doctor.Options
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "On a node: everything that could be wrong, in the order in which to mend it",
		Long: `On a node: everything that could be wrong, from the kubelet's flags to each backend's own check, in the order in which to mend it. What is wrong stands first, with
the command that mends it; what depends on it is not looked at before. The exit status is 1 if something is wrong.

Nothing is changed. Two kinds of programs are run: the kubelet's own file with --version, if nobody but root can write it, and the backends, as the kubelet's pulls do;
their checks may use the network, and --offline leaves them out. Without root it says what it could not see.`,
		Example: `  credential-broker doctor
  credential-broker doctor --image registry.example/team/app
  credential-broker doctor --root /host --kubelet-version 1.34     # a node's file system, in a pod; starts nothing`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := opts.complete(&o); err != nil {
				return err
			}
			o.Program = &examiner{opts: opts, cmd: cmd}
			findings := doctor.Examine(cmd.Context(), o)
			problems := doctor.Problems(findings)
			if output.json() {
				if err := printJSON(cmd, examined{problems, findings}); err != nil {
					return err
				}
			} else {
				printExamined(newScreen(cmd), findings)
			}
			if problems > 0 {
				return errSilent
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Image, "image", "", "image for the backends to check themselves with; else one that a pattern without wildcards names")
	flags.BoolVar(&o.Offline, "offline", false, "no backend's check, as that may need the network")
	flags.StringVar(&o.Node.Root, "root", "", "where the node's file system is mounted; then only its own /proc is looked into, and nothing is started")
	flags.IntVar(&o.PID, "kubelet-pid", 0, "the kubelet's process, where there are several")
	flags.StringVar(&o.KubeletVersion, "kubelet-version", "", "the kubelet's version, instead of running it with --version")
	_ = cmd.MarkFlagDirname("root")
	output.register(cmd)
	return cmd
}

// complete adds what the process itself tells.
func (o *options) complete(d *doctor.Options) (err error) {
	if d.Self, err = os.Executable(); err == nil {
		d.Self, err = filepath.EvalSymlinks(d.Self)
	}
	if err != nil {
		return err
	}
	if d.Node.Root != "" {
		if d.Node.Root, err = filepath.Abs(d.Node.Root); err != nil {
			return err
		}
		if _, err = os.Stat(d.Node.Root); err != nil {
			return fmt.Errorf("--root: %w", err)
		}
		// As text, the kernel's links to processes' roots, /proc/PID/root, lead to "/", which is this process's.
		if !strings.HasPrefix(d.Node.Root, "/proc/") {
			if d.Node.Root, err = filepath.EvalSymlinks(d.Node.Root); err != nil {
				return fmt.Errorf("--root: %w", err)
			}
		}
		if d.Node.Root == string(filepath.Separator) {
			d.Node.Root = "" // this node itself
		}
		d.Mounted = d.Node.Root != ""
	}
	if d.KubeletVersion != "" && doctor.Version(d.KubeletVersion) == "" {
		return fmt.Errorf("--kubelet-version %q: say it like 1.34 or v1.34.2", d.KubeletVersion)
	}
	if d.Config, d.BackendDir, err = o.place(); err != nil {
		return err
	}
	if d.Image != "" {
		if d.Image, err = imageArgument(d.Image); err != nil {
			return err
		}
	}
	d.Socket, d.SocketGiven = o.agentSocket()
	d.Version, d.Places, d.UID = version, config.DefaultPlaces(), os.Geteuid()
	return nil
}

func printExamined(s screen, findings []doctor.Finding) {
	styles := map[doctor.Verdict]style{doctor.Wrong: red, doctor.Unknown: yellow, doctor.Noted: yellow, doctor.OK: green}
	for _, f := range doctor.WorstFirst(findings) {
		s.printf("%s  %s: %s\n", s.paint(styles[f.Verdict], fmt.Sprintf("%-7s", f.Verdict)), f.What, printable(f.Text))
		if f.Remedy != "" {
			s.printf("         -> %s\n", printable(f.Remedy))
		}
	}
	switch n := doctor.Problems(findings); n {
	case 0:
		s.printf("\n%s\n", s.paint(green, "Nothing is wrong with what could be looked at."))
	case 1:
		s.printf("\n%s\n", s.paint(red, "1 problem: mend it, then look again."))
	default:
		s.printf("\n%s\n", s.paint(red, fmt.Sprintf("%d problems: mend the first, then look again; others may go with it.", n)))
	}
}

// examiner does for the doctor what starts processes, or talks to somebody.
type examiner struct {
	opts *options
	cmd  *cobra.Command
}

// KubeletVersion implements doctor.Program. The program, which nobody but root can write, gets no environment of ours.
func (x *examiner) KubeletVersion(ctx context.Context, path string) (string, error) {
	command := exec.CommandContext(ctx, path, "--version")
	command.Env = []string{"PATH=/usr/bin:/bin"}
	command.WaitDelay = time.Second
	out, err := command.Output()
	return string(out), err
}

// Agent implements doctor.Program.
func (x *examiner) Agent(socket string) doctor.Agent {
	asked, err := x.opts.agentRequest(x.cmd, fast.Status, nil)
	if err != nil {
		return doctor.Agent{Reason: err.Error()}
	}
	reply, reason, absent := fast.Ask(socket, asked)
	if reason != "" {
		return doctor.Agent{Reason: reason, Absent: absent}
	}
	var status agent.Status
	if err := decodeReply(reply, &status); err != nil {
		return doctor.Agent{Reason: err.Error()}
	}
	a := doctor.Agent{Version: status.Version, PID: status.PID}
	for _, c := range status.Configurations {
		a.Unlocked += c.Unlocked
		if c.Refused != "" {
			a.Refused = append(a.Refused, c.Refused)
		}
	}
	return a
}

// Listens implements doctor.Program.
func (x *examiner) Listens(ctx context.Context, address string) error {
	network := "tcp"
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, address = "unix", path
	}
	dialer := net.Dialer{Timeout: time.Second}
	connection, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	return connection.Close()
}

// Find implements doctor.Program.
func (x *examiner) Find(dir, backend string) (string, error) { return plugin.Find(dir, backend) }

// Inherited implements doctor.Program.
func (x *examiner) Inherited(environ []string, p *config.Provider) []string {
	return plugin.Environment(environ, p.InheritEnv, nil)
}

// Describe implements doctor.Program.
func (x *examiner) Describe(ctx context.Context, path string) (version string, err error) {
	c := x.caller(&config.Config{}, nil)
	defer func() { _ = c.Close() }()
	about, err := c.Describe(ctx, path)
	return about.GetVersion(), err
}

// Settings implements doctor.Program.
func (x *examiner) Settings(ctx context.Context, cfg *config.Config, p *config.Provider, environ []string) []error {
	c := x.caller(cfg, environ)
	defer func() { _ = c.Close() }()
	return c.Validate(ctx, p)
}

// Check implements doctor.Program.
func (x *examiner) Check(ctx context.Context, cfg *config.Config, p *config.Provider, image string, environ []string) (supported bool, err error) {
	c := x.caller(cfg, environ)
	defer func() { _ = c.Close() }()
	request := broker.Request{Image: image}
	for _, d := range broker.Route([]*config.Provider{p}, request).Asked() {
		if request, err = broker.RequestFor(d, request); err != nil {
			return true, err
		}
	}
	return c.Check(ctx, p, request)
}

// caller starts backends, and keeps what they print to itself.
func (x *examiner) caller(cfg *config.Config, environ []string) *caller.Caller {
	return caller.New(caller.Options{BackendDir: cfg.BackendDir, Logger: slog.New(slog.DiscardHandler), Environ: environ})
}
