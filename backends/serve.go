package backends

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

// Serve is the whole of a backend's main: it serves the backend protocol until the broker is done with it, and does not return. Name is the part of the executable's name
// after "credential-backend-" (lower-case letters, digits and hyphens), version is for people. C is the type of the provider's settings, decoded strictly from JSON: see the
// package's documentation. build makes the Backend from them; it is called once, must not use the network, and reports what is wrong with InvalidConfig, several problems joined with
// errors.Join. Its ctx lives as long as the backend does, so clients that keep it go on working.
//
// From the moment Serve is called
//
//   - what anything prints on standard output or standard error, child processes included, reaches the broker's log and never the protocol; log and slog write there too,
//     with level and attributes;
//   - standard input is empty: the real one tells when the broker is gone, and the process then ends at once;
//   - no core file of this process or its children is written, since it would hold secrets;
//   - interrupts from a terminal are left to the broker;
//   - the environment is the provider's own: what the broker needed for the handshake is taken out.
//
// Started by a person, Serve prints what the program is and exits with status 1; with --version, the version and status 0.
func Serve[C any](name, version string, build func(ctx context.Context, cfg C) (Backend, error)) {
	os.Exit(serve(name, version, os.Args[1:], func(ctx context.Context, settings []byte) (Backend, []string, error) {
		var cfg C
		err := decodeSettings(settings, &cfg)
		secrets := secretsIn(reflect.ValueOf(&cfg).Elem())
		if err != nil {
			return nil, secrets, err
		}
		backend, err := build(ctx, cfg)
		if err == nil && backend == nil {
			err = errors.New("the backend made nothing of its settings: this is a bug in it")
		}
		return backend, secrets, err
	}))
}

// builder makes a backend of settings. The strings are the secrets in the settings, whatever the error.
type builder func(ctx context.Context, settings []byte) (Backend, []string, error)

var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

func serve(name, version string, args []string, build builder) int {
	if !validName.MatchString(name) {
		fmt.Fprintf(os.Stderr, "backends.Serve: the name %q is not made of lower-case letters, digits and hyphens\n", name)
		return 1
	}
	if len(args) == 1 && (args[0] == "--version" || args[0] == "-version" || args[0] == "version") {
		_, _ = fmt.Fprintf(os.Stdout, "credential-backend-%s %s (backend protocol %d)\n", name, version, backendv1.ProtocolVersion)
		return 0
	}
	if os.Getenv(backendv1.Handshake.MagicCookieKey) != backendv1.Handshake.MagicCookieValue {
		introduce(os.Stderr, name, version)
		return 1
	}
	if os.Getenv("PLUGIN_CLIENT_CERT") != "" {
		fmt.Fprintln(os.Stderr, "the broker asked for TLS (go-plugin's AutoMTLS), which backends do not speak: the socket's private directory keeps others out")
		return 1
	}
	forbidCoreFiles()
	delayCollection()
	streams, err := takeStreams()
	if err != nil {
		fmt.Fprintf(os.Stderr, "credential-backend-%s: separating standard output from the protocol: %v\n", name, err)
		return 1
	}
	slog.SetDefault(slog.New(logHandler(os.Stderr)))
	go func() {
		_, _ = io.Copy(io.Discard, streams.lifeline)
		// Nothing is left to answer to. What was started here ends by the same sign: see package child.
		os.Exit(0)
	}()
	ignoreInterrupts()

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	return servePlugin(streams.handshake, &server{name: name, version: version, life: ctx, build: build})
}

// delayCollection keeps the garbage collector away from a backend's first request. A backend with a cloud's SDK has allocated nearly as much in its initialisation as starts the first collection,
// which then costs a pull more than its own work (a fifth of the whole, measured with `ecr`) and frees nothing that a process of one request needs. A backend that lives on is
// collected as usual. Whoever sets GOGC knows better.
func delayCollection() {
	if os.Getenv("GOGC") != "" {
		return
	}
	usual := debug.SetGCPercent(400) // the first collection at 16 MiB, not at 4
	time.AfterFunc(10*time.Second, func() { debug.SetGCPercent(usual) })
}

// introduce tells a person who runs a backend what it is.
func introduce(w io.Writer, name, version string) {
	self := os.Args[0]
	if exe, err := os.Executable(); err == nil {
		self = exe
	}
	fmt.Fprintf(w, `credential-backend-%[1]s %[2]s gives image pull credentials to credential-broker, which starts it when an image is
pulled; run by hand it has nothing to do. To use it, put it into the broker's backend directory and name it in the configuration:

  providers:
  - name: %[1]s
    backend: %[1]s            # or its absolute path
    matchImages: ["registry.example/*"]
    config: {}

Then try: credential-broker validate; credential-broker get registry.example/team/app
To see whether it keeps the protocol's rules: credential-broker conformance %[3]s
`, name, version, filepath.Clean(self))
}

// handshakeVariables are what go-plugin's host puts into the environment. A backend's own children have no use for them, and one that is itself a go-plugin host or plugin would
// take them for its own.
var handshakeVariables = []string{
	backendv1.Handshake.MagicCookieKey, "PLUGIN_CLIENT_CERT", "PLUGIN_MAX_PORT", "PLUGIN_MIN_PORT", "PLUGIN_MULTIPLEX_GRPC", "PLUGIN_PROTOCOL_VERSIONS",
	"PLUGIN_UNIX_SOCKET_DIR", "PLUGIN_UNIX_SOCKET_GROUP",
}

// servePlugin lets go-plugin serve until its host says stop, and gives the exit status.
//
// go-plugin's way of serving in tests is used in production on purpose. Its usual way prints the handshake line with fmt.Printf, so that anything else that prints at that moment
// spoils it, and then exchanges os.Stdout and os.Stderr for pipes into a gRPC stream, which block their writers for as long as the host does not read
// that stream, and which child processes and writes to descriptors 1 and 2 pass by. Here descriptors 1 and 2 both lead to the host's log, and
// the handshake line is written, in one piece, to a descriptor nobody else knows.
func servePlugin(handshake *os.File, s *server) int {
	multiplex := os.Getenv("PLUGIN_MULTIPLEX_GRPC") != ""
	announce := make(chan *plugin.ReattachConfig, 1)
	done := make(chan struct{})
	go plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: backendv1.Handshake,
		Plugins:         plugin.PluginSet{backendv1.PluginName: &grpcPlugin{server: s}},
		GRPCServer: func(options []grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(options,
				grpc.MaxRecvMsgSize(backendv1.MaxMessageBytes),
				grpc.MaxSendMsgSize(backendv1.MaxMessageBytes),
				// As on the broker's side: no pings to size the windows, no large buffers to clear.
				grpc.InitialWindowSize(backendv1.MaxMessageBytes),
				grpc.InitialConnWindowSize(backendv1.MaxMessageBytes),
				grpc.ReadBufferSize(4<<10),
				grpc.WriteBufferSize(4<<10),
			)...)
		},
		Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, Output: os.Stderr, JSONFormat: true}),
		Test:   &plugin.ServeTestConfig{Context: s.life, ReattachConfigCh: announce, CloseCh: done},
	})
	select {
	case <-done:
		return 1 // the reason has been logged
	case at := <-announce:
		for _, name := range handshakeVariables {
			_ = os.Unsetenv(name) // fails for no name that was set
		}
		line := fmt.Sprintf("%d|%d|%s|%s|%s|", plugin.CoreProtocolVersion, at.ProtocolVersion, at.Addr.Network(), at.Addr.String(), at.Protocol)
		if multiplex {
			line += "|true"
		}
		// The leading newline ends whatever a library printed before Serve was reached.
		if _, err := io.WriteString(handshake, "\n"+line+"\n"); err != nil {
			return 1 // nobody is there to be told
		}
	}
	<-done
	runtime.KeepAlive(handshake) // as every plugin's, it stays open until the end
	return 0
}

// grpcPlugin is go-plugin's view of the server.
type grpcPlugin struct {
	plugin.NetRPCUnsupportedPlugin
	server *server
}

func (p *grpcPlugin) GRPCServer(_ *plugin.GRPCBroker, g *grpc.Server) error {
	backendv1.RegisterBackendServer(g, p.server)
	return nil
}

func (p *grpcPlugin) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.New("this is the backend's side")
}

// logHandler writes one JSON object a line with the keys that go-plugin's host knows (@level, @message), so that the broker logs each with
// its own level and attributes. It has no time, which the broker gives it, and keeps every level, of which the broker chooses.
func logHandler(w io.Writer) slog.Handler {
	return slog.NewJSONHandler(w, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) > 0 {
				return a
			}
			switch a.Key {
			case slog.TimeKey:
				return slog.Attr{}
			case slog.LevelKey:
				level, _ := a.Value.Any().(slog.Level)
				return slog.String("@level", levelWord(level))
			case slog.MessageKey:
				return slog.String("@message", strings.ToValidUTF8(a.Value.String(), "\uFFFD"))
			}
			return a
		},
	})
}

// levelWord is the level below or at l that has a name on both sides.
func levelWord(l slog.Level) string {
	switch {
	case l < slog.LevelInfo:
		return "debug"
	case l < slog.LevelWarn:
		return "info"
	case l < slog.LevelError:
		return "warn"
	default:
		return "error"
	}
}
