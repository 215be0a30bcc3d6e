package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/credential-broker/credential-broker/backends"
	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

// fake is a backend without package backends: a stranger's.
type fake struct {
	backendv1.UnimplementedBackendServer
	configure func(*backendv1.ConfigureRequest) (*backendv1.ConfigureResponse, error)
	get       func(*backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error)
}

func (f *fake) Describe(context.Context, *backendv1.DescribeRequest) (*backendv1.DescribeResponse, error) {
	return &backendv1.DescribeResponse{Name: "misbehave", Version: "0"}, nil
}

func (f *fake) Configure(_ context.Context, r *backendv1.ConfigureRequest) (*backendv1.ConfigureResponse, error) {
	if f.configure != nil {
		return f.configure(r)
	}
	return &backendv1.ConfigureResponse{}, nil
}

func (f *fake) GetCredentials(_ context.Context, r *backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error) {
	if f.get != nil {
		return f.get(r)
	}
	return answer(readLogin()), nil
}

func answer(l login) *backendv1.GetCredentialsResponse {
	return &backendv1.GetCredentialsResponse{
		Scope: backendv1.Scope_SCOPE_REGISTRY, CacheDuration: durationpb.New(time.Hour),
		Credentials: []*backendv1.Credential{{Key: l.Key, Username: l.Username, Password: l.Password}},
	}
}

// plugin is go-plugin's view of a fake.
type plugin struct {
	goplugin.NetRPCUnsupportedPlugin
	server backendv1.BackendServer
}

func (p *plugin) GRPCServer(_ *goplugin.GRPCBroker, s *grpc.Server) error {
	backendv1.RegisterBackendServer(s, p.server)
	return nil
}

func (p *plugin) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.New("this is the backend's side")
}

func serve(f *fake, change ...func(*goplugin.ServeConfig)) {
	config := &goplugin.ServeConfig{
		HandshakeConfig: backendv1.Handshake,
		Plugins:         goplugin.PluginSet{backendv1.PluginName: &plugin{server: f}},
		GRPCServer: func(options []grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(options, grpc.MaxSendMsgSize(1<<31-1))...)
		},
	}
	for _, c := range change {
		c(config)
	}
	goplugin.Serve(config)
}

// gets serves a backend whose GetCredentials is f.
func gets(f func(*backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error)) {
	serve(&fake{get: f})
}

// does serves a backend that does something when asked, and then answers as a healthy one.
func does(f func()) {
	gets(func(*backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error) {
		f()
		return answer(readLogin()), nil
	})
}

// announce listens, and prints the handshake.
func announce() net.Listener {
	path := filepath.Join(os.Getenv("PLUGIN_UNIX_SOCKET_DIR"), "s")
	listener := must(net.Listen("unix", path))
	fmt.Fprintf(os.Stdout, "1|1|unix|%s|grpc\n", path)
	return listener
}

// author is a backend made with package backends, as its users make them.
type author struct {
	cfg  settings
	mode string
}

type settings struct {
	Password backends.Secret `json:"password"`
	Note     string          `json:"note"`
}

func (a *author) Credentials(ctx context.Context, req backends.Request) (backends.Response, error) {
	l := readLogin()
	everything := fmt.Errorf("the registry says %s to %s and %s and %s", "no", l.Password, string(req.Token), string(a.cfg.Password))
	response := backends.Response{Scope: backends.ScopeRegistry, Credentials: []backends.Credential{{Key: l.Key, Username: l.Username, Password: backends.Secret(l.Password)}}}
	switch a.mode {
	case "good":
	case "hang":
		hang()
	case "leaks":
		leak(os.Stdout, l, string(req.Token))
		leak(os.Stderr, l, string(req.Token))
		slog.WarnContext(ctx, "careless "+l.Password, "token", string(req.Token), "settings", string(a.cfg.Password), "typed", a.cfg.Password, "request", req)
		fmt.Fprintf(os.Stdout, "%+v %#v %q\n", a.cfg, req, string(a.cfg.Password))
	case "unavailable":
		return response, backends.Unavailable(everything)
	case "refused":
		return response, backends.Refused(everything)
	case "misconfigured":
		return response, backends.InvalidConfig("password", "%w", everything)
	case "panic":
		panic("no luck with " + string(req.Token) + string(a.cfg.Password))
	case "goroutine": // a panic that nothing in the backend catches
		go func() { panic("no luck with " + string(req.Token) + " and " + string(a.cfg.Password)) }()
		hang()
	}
	return response, nil
}

// Check fails with all that the broker knows to be secret.
func (a *author) Check(_ context.Context, req backends.Request) error {
	if a.mode == "good" {
		return nil
	}
	return backends.Refused(fmt.Errorf("the registry says no to %s and %s", string(req.Token), string(a.cfg.Password)))
}

func backend(mode, argument string) {
	switch mode {
	case "good":
		serve(&fake{})
	case "whose":
		whose()
	case "slow":
		<-time.After(300 * time.Millisecond)
		serve(&fake{})
	case "author":
		backends.Serve("misbehave", "0", func(_ context.Context, cfg settings) (backends.Backend, error) {
			if argument == "settings" {
				return nil, backends.InvalidConfig("note", "%q does not go with %s", cfg.Note, string(cfg.Password))
			}
			return &author{cfg, argument}, nil
		})

	case "hangStart":
		hang()
	case "hangConfigure":
		serve(&fake{configure: func(*backendv1.ConfigureRequest) (*backendv1.ConfigureResponse, error) { hang(); return nil, nil }})
	case "hangAsk":
		does(hang)
	case "hangStopped": // stopped as by a debugger: no signal handler, no thread runs
		does(func() { must(0, syscall.Kill(os.Getpid(), syscall.SIGSTOP)); hang() })
	case "deaf":
		announce()
		hang()

	case "exitStart":
		fmt.Fprintln(os.Stderr, "no disk today")
		os.Exit(int(number(argument)))
	case "panicStart":
		panic("out of ideas")
	case "killStart":
		killSelf()
	case "exitAfterHandshake":
		announce()
		os.Exit(6)
	case "killAfterHandshake":
		announce()
		killSelf()
	case "panicConfigure":
		serve(&fake{configure: func(*backendv1.ConfigureRequest) (*backendv1.ConfigureResponse, error) { panic("bad day") }})
	case "killConfigure":
		serve(&fake{configure: func(*backendv1.ConfigureRequest) (*backendv1.ConfigureResponse, error) { killSelf(); return nil, nil }})
	case "panicAsk":
		does(func() { panic("bad day") })
	case "killAsk":
		does(killSelf)
	case "exitAsk":
		does(func() { os.Exit(0) })

	case "print":
		fmt.Fprintln(os.Stdout, argument)
		hang()
	case "printAndExit":
		fmt.Fprintln(os.Stdout, argument)
	case "closeStdout":
		must(0, os.Stdout.Close())
		hang()
	case "netrpc":
		serve(&fake{}, func(c *goplugin.ServeConfig) { c.GRPCServer = nil })
	case "version":
		serve(&fake{}, func(c *goplugin.ServeConfig) { c.ProtocolVersion = uint(number(argument)) })
	case "tcp":
		listener := must(net.Listen("tcp", "127.0.0.1:0"))
		fmt.Fprintf(os.Stdout, "1|1|tcp|%s|grpc\n", listener.Addr())
		hang()
	case "elsewhere":
		fmt.Fprintf(os.Stdout, "1|1|unix|/tmp/elsewhere|grpc\n")
		hang()
	case "rubbish":
		listener := announce()
		for {
			conn := must(listener.Accept())
			_, _ = io.CopyN(conn, must(os.Open("/dev/urandom")), 1<<20)
		}
	case "unimplemented":
		serve(&fake{}, func(c *goplugin.ServeConfig) {
			c.GRPCServer = func(options []grpc.ServerOption) *grpc.Server {
				return grpc.NewServer(append(options, grpc.UnaryInterceptor(func(context.Context, any, *grpc.UnaryServerInfo, grpc.UnaryHandler) (any, error) {
					return nil, status.Error(codes.Unimplemented, "no")
				}))...)
			}
		})
	case "chatter":
		fmt.Fprint(os.Stdout, "warming up\n\x00\xff\x1b[31m\nloading... ")
		serve(&fake{})
	case "garbageFirst":
		_, _ = io.CopyN(os.Stdout, must(os.Open("/dev/urandom")), 64<<10)
		fmt.Fprintln(os.Stdout)
		serve(&fake{})
	case "garbageThenHang":
		_, _ = io.CopyN(os.Stdout, must(os.Open("/dev/urandom")), 64<<10)
		hang()
	case "stdoutFirst":
		flood(os.Stdout, 0)
	case "stderrFirst":
		flood(os.Stderr, number(argument))
		serve(&fake{})
	case "floodAsk":
		stdout, stderr := os.Stdout, os.Stderr // go-plugin exchanges them
		does(func() {
			done := make(chan struct{})
			for _, f := range []*os.File{stdout, stderr} {
				go func() { flood(f, number(argument)); done <- struct{}{} }()
			}
			<-done
			<-done
		})

	case "fork":
		fork(false)
		serve(&fake{})
	case "forkAway":
		fork(true)
		serve(&fake{})
	case "forkAndExit":
		fork(false)
		os.Exit(4)
	case "forkAwayAndExit":
		fork(true)
		os.Exit(4)
	case "forkAwayAndKill":
		fork(true)
		does(killSelf)

	case "large":
		l := readLogin()
		gets(func(*backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error) {
			l.Password = strings.Repeat("x", int(number(argument)))
			return answer(l), nil
		})
	case "zeros": // memory that nobody ever wrote to costs nothing
		serve(&fake{}, func(c *goplugin.ServeConfig) {
			c.GRPCServer = func(options []grpc.ServerOption) *grpc.Server {
				return grpc.NewServer(append(options, grpc.MaxSendMsgSize(1<<31-1), grpc.ForceServerCodec(raw{make([]byte, number(argument))}))...)
			}
		})
	case "bomb": // a megabyte that unpacks to a gigabyte
		zeros := make([]byte, 900<<20)
		serve(&fake{}, func(c *goplugin.ServeConfig) {
			c.GRPCServer = func(options []grpc.ServerOption) *grpc.Server {
				return grpc.NewServer(append(options, grpc.RPCCompressor(grpc.NewGZIPCompressor()), grpc.MaxSendMsgSize(1<<31-1), grpc.ForceServerCodec(raw{zeros}))...) //nolint:staticcheck // nothing newer can do it unasked
			}
		})
	case "keys":
		gets(func(*backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error) {
			response := &backendv1.GetCredentialsResponse{}
			for i := range number(argument) {
				response.Credentials = append(response.Credentials, &backendv1.Credential{Key: "registry.example/" + strconv.FormatInt(i, 10), Username: "u", Password: "p"})
			}
			return response, nil
		})
	case "emptyCredentials":
		serve(&fake{}, func(c *goplugin.ServeConfig) {
			c.GRPCServer = func(options []grpc.ServerOption) *grpc.Server {
				return grpc.NewServer(append(options, grpc.ForceServerCodec(raw{bytes.Repeat([]byte{0x0a, 0x00}, backendv1.MaxMessageBytes/2-8)}))...)
			}
		})
	case "hugeStatus":
		gets(func(*backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error) {
			return nil, errors.New(strings.Repeat("x", int(number(argument))))
		})
	case "problems":
		serve(&fake{configure: func(*backendv1.ConfigureRequest) (*backendv1.ConfigureResponse, error) {
			response := &backendv1.ConfigureResponse{}
			for range number(argument) {
				response.Errors = append(response.Errors, &backendv1.Error{Field: "f", Message: "m\nn"})
			}
			return response, nil
		}})
	case "error":
		gets(func(*backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error) {
			return &backendv1.GetCredentialsResponse{Error: &backendv1.Error{Kind: backendv1.Error_Kind(number(argument)), Message: "because\n\x1b[2Jof this"}}, nil
		})
	case "none":
		gets(func(*backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error) {
			return &backendv1.GetCredentialsResponse{}, nil
		})
	case "zeroByte":
		gets(func(*backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error) {
			l := readLogin()
			l.Password += "\x00"
			return answer(l), nil
		})

	case "leak", "leakError", "leakStatus", "leakCrash", "leakHang":
		leaky(mode)
	case "leakEnvironment": // prints what it was started with, and ends before it could be asked anything
		fmt.Fprintln(os.Stderr, "started with", os.Getenv("VAULT_TOKEN"))
		fmt.Fprintln(os.Stdout, "VAULT_TOKEN="+os.Getenv("VAULT_TOKEN"))
		os.Exit(3)
	case "leakSettings": // a stranger's backend that does not know what is secret in its settings
		stderr := os.Stderr // go-plugin exchanges it for one whose content may arrive too late
		serve(&fake{configure: func(r *backendv1.ConfigureRequest) (*backendv1.ConfigureResponse, error) {
			var cfg settings
			must(0, json.Unmarshal(r.GetSettings(), &cfg))
			fmt.Fprintln(stderr, "configured with", string(cfg.Password))
			return &backendv1.ConfigureResponse{Errors: []*backendv1.Error{{Field: "password", Message: "is not right: " + string(cfg.Password)}}}, nil
		}})
	default:
		fmt.Fprintln(os.Stderr, "no such backend:", mode)
		os.Exit(3)
	}
}

// leaky is a stranger's backend that prints the secrets that pass through it.
func leaky(mode string) {
	stdout, stderr := os.Stdout, os.Stderr // go-plugin exchanges them
	gets(func(r *backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error) {
		l := readLogin()
		if mode == "leakStatus" || mode == "leakCrash" || mode == "leakHang" {
			l.Password = "" // nobody else will ever hear of it, so nobody could know that it is one
		}
		for _, w := range []io.Writer{stdout, stderr, os.Stdout, os.Stderr} {
			leak(w, l, r.GetServiceAccountToken())
		}
		all := "no luck with " + r.GetServiceAccountToken() + " and " + l.Password
		switch mode {
		case "leakError":
			response := answer(l)
			response.Error = &backendv1.Error{Kind: backendv1.Error_KIND_REFUSED, Message: all}
			return response, nil
		case "leakStatus":
			return nil, errors.New("no luck with " + r.GetServiceAccountToken())
		case "leakCrash":
			panic("no luck with " + r.GetServiceAccountToken())
		case "leakHang":
			hang()
		}
		return answer(l), nil
	})
}

// raw answers GetCredentials with these bytes.
type raw struct{ answer []byte }

func (raw) Name() string { return "proto" }

func (raw) Unmarshal(b []byte, v any) error { return proto.Unmarshal(b, v.(proto.Message)) }

func (r raw) Marshal(v any) ([]byte, error) {
	if _, ok := v.(*backendv1.GetCredentialsResponse); ok {
		return r.answer, nil
	}
	return proto.Marshal(v.(proto.Message))
}
