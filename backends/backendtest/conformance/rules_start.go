package conformance

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"unicode"

	goplugin "github.com/hashicorp/go-plugin"

	"github.com/credential-broker/credential-broker/broker/plugin"
	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

func startRules() []Rule {
	return []Rule{
		{Name: "started-by-hand", Demand: "Started by a person, without go-plugin's cookie, the backend says what it is and exits with a status other than 0.", judge: startedByHand},
		{Name: "handshake", Demand: "Started by a broker, the backend prints go-plugin's handshake line, and listens with gRPC on a unix socket directly in PLUGIN_UNIX_SOCKET_DIR.", judge: judgeHandshake},
		{Name: "output", Demand: "The handshake is a line of its own, with at most 1 MiB before it.", judge: judgeOutput},
		{Name: "protocol-version", Demand: "Started by a host that speaks only a version of the protocol that does not exist, the backend says at once that it speaks another one.", judge: protocolVersion},
		{Name: "describe", Demand: "Before it has settings, the backend gives its name, which is that of its file, and its version.", judge: judgeDescribe},
	}
}

func startedByHand(ctx context.Context, t *trial) error {
	p, err := t.launch(launch{noCookie: true})
	if err != nil {
		return err
	}
	const mend = "look for the cookie (" + "CREDENTIAL_BROKER_BACKEND" + ") first; without it print one sentence on what the program is for to standard error and exit with status 1; backends.Serve does that"
	if !within(ctx, t.options.Timeout, func() bool { return closed(p.exited) && closed(p.drained) }) {
		return fail(mend, "it still ran after %s", t.options.Timeout)
	}
	said := append(p.output.copyOf("standard error"), p.output.copyOf("standard output")...)
	switch {
	case p.cmd.ProcessState.ExitCode() == 0:
		return fail(mend, "it exited with status 0")
	case len(bytes.TrimSpace(said)) == 0:
		return fail(mend, "it %s and said nothing", p.ended())
	case bytes.Contains(said, []byte("goroutine ")) || p.cmd.ProcessState.ExitCode() < 0:
		return fail(mend, "it crashed: it %s%s", p.ended(), p.lastWords())
	}
	return nil
}

func judgeHandshake(ctx context.Context, t *trial) error {
	p, err := t.launch(launch{})
	if err != nil {
		return err
	}
	if err := p.awaitHandshake(ctx); err != nil {
		return err
	}
	const mend = "print 1|1|unix|PATH|grpc, PATH being a socket made in the directory that PLUGIN_UNIX_SOCKET_DIR names: others could listen anywhere else"
	g := p.greeting
	switch {
	case g.core != strconv.Itoa(goplugin.CoreProtocolVersion):
		return fail(mend, "its handshake names go-plugin's core protocol %s, not %d", g.core, goplugin.CoreProtocolVersion)
	case g.version != strconv.Itoa(backendv1.ProtocolVersion):
		return fail(mend, "its handshake names version %s of the backend protocol, not %d", g.version, backendv1.ProtocolVersion)
	case g.protocol != string(goplugin.ProtocolGRPC):
		return fail(mend, "its handshake names the protocol %q, not grpc", g.protocol)
	case strings.HasPrefix(g.rest, "M"), len(g.rest) > 50:
		return fail("serve without TLS: the socket's directory keeps others out", "its handshake has a TLS certificate")
	case runtime.GOOS == "windows": // where go-plugin listens on a loopback port
	case g.network != "unix":
		return fail(mend, "it listens on %s %s", g.network, shorten(g.address))
	case filepath.Dir(g.address) != p.dir || filepath.Clean(g.address) != g.address:
		return fail(mend, "it listens on %s, and PLUGIN_UNIX_SOCKET_DIR is %s", shorten(g.address), p.dir)
	default:
		info, err := os.Lstat(g.address)
		if err != nil {
			return fail(mend, "the socket that its handshake names is not there: %v", err)
		}
		if info.Mode().Type() != fs.ModeSocket {
			return fail(mend, "%s, which its handshake names, is no socket (%v)", g.address, info.Mode())
		}
	}
	return p.connect(ctx)
}

func judgeOutput(ctx context.Context, t *trial) error {
	p, err := t.start(ctx, launch{})
	if err != nil {
		return err
	}
	const most = 1 << 20
	switch g := p.greeting; {
	case g.glued != "":
		return fail("end the line before the handshake, or better print to standard error", "the handshake stands behind other text on its line: %q", shorten(g.glued))
	case g.bytesBefore > most:
		return fail("print to standard error", "%d bytes stand before the handshake", g.bytesBefore)
	case g.bytesBefore > 1: // an empty line is an end of somebody else's
		t.note("it prints %d bytes on standard output before the handshake: standard error is the place for them", g.bytesBefore)
	}
	return nil
}

func protocolVersion(ctx context.Context, t *trial) error {
	if err := t.needs("handshake"); err != nil {
		return err
	}
	const version = 99
	p, err := t.launch(launch{version: version})
	if err != nil {
		return err
	}
	const mend = "print a handshake with the version that the backend does speak, whatever PLUGIN_PROTOCOL_VERSIONS says, or say so on standard error and exit with a status other than 0"
	within(ctx, t.options.Timeout, func() bool { return closed(p.greeted) || closed(p.exited) && closed(p.drained) })
	switch {
	case closed(p.greeted) && p.greeting.version == strconv.Itoa(version):
		return fail(mend, "asked for version %d of the protocol, it claims to speak it", version)
	case closed(p.greeted):
		return nil // and the broker says what does not fit
	case !closed(p.exited):
		return fail(mend, "asked for version %d of the protocol, it neither answered nor ended within %s", version, t.options.Timeout)
	case p.cmd.ProcessState.ExitCode() == 0 || len(bytes.TrimSpace(p.output.copyOf("standard error"))) == 0:
		return fail(mend, "asked for version %d of the protocol, it %s%s", version, p.ended(), p.lastWords())
	}
	return nil
}

// validName: lower-case letters, digits, and hyphens within.
func validName(name string) bool {
	return name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == "" && name[0] != '-' && name[len(name)-1] != '-'
}

func judgeDescribe(ctx context.Context, t *trial) error {
	p, err := t.start(ctx, launch{})
	if err != nil {
		return err
	}
	about, err := p.describe(ctx)
	if err != nil {
		return p.broken("asked to describe itself before it had settings", err)
	}
	version := about.GetVersion()
	switch name := about.GetName(); {
	case !validName(name):
		return fail("use lower-case letters, digits and hyphens", "its name is %q", shorten(name))
	case t.name() != "" && name != t.name():
		return fail("give the file and Describe the same name: a provider's `backend: NAME` is looked for by the file's", "its file is called %s%s, and it calls itself %q", plugin.Prefix, t.name(), name)
	case strings.TrimSpace(version) == "":
		return fail("give a version: it is what people compare when something goes wrong", "its version is empty")
	case len(version) > 100 || strings.ContainsFunc(version, func(r rune) bool { return !unicode.IsPrint(r) }):
		return fail("give at most 100 printable characters", "its version is %q", shorten(version))
	}
	if t.name() == "" {
		t.note("the file is not called %s%s, so it can be used by its absolute path only", plugin.Prefix, about.GetName())
	}
	return nil
}

func (p *process) describe(ctx context.Context) (*backendv1.DescribeResponse, error) {
	ctx, cancel := p.trial.call(ctx)
	defer cancel()
	return p.rpc.Describe(ctx, &backendv1.DescribeRequest{})
}

func beforeConfigure(ctx context.Context, t *trial) error {
	p, err := t.start(ctx, launch{})
	if err != nil {
		return err
	}
	if err := t.needs("describe"); err != nil {
		return err
	}
	const mend = "answer with an error of KIND_MISCONFIGURED until Configure has succeeded"
	for _, image := range []string{t.image(), t.options.OtherImage} {
		response, err := p.get(ctx, image)
		if err != nil && !p.alive(ctx) {
			return p.broken("asked for credentials before it had settings", err)
		}
		if err == nil && response.GetError() == nil {
			return fail(mend, "without settings it answered with %d credentials and no error", len(response.GetCredentials()))
		}
	}
	if t.failed["settings"] {
		return nil
	}
	if err := p.mustConfigure(ctx); err != nil {
		return fail(mend, "having been asked too early, it no longer takes its settings: %v", err)
	}
	return nil
}

// image is one to ask for where any will do.
func (t *trial) image() string {
	if t.options.Image != "" {
		return t.options.Image
	}
	return t.options.OtherImage
}

// alive says whether the backend still answers.
func (p *process) alive(ctx context.Context) bool {
	_, err := p.describe(ctx)
	return err == nil
}
