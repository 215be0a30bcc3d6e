//go:build unix

package plugin

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

// backendMain is the test binary as a backend. The first word of the mode says which.
func backendMain(mode string) {
	mode, argument, _ := strings.Cut(mode, " ")
	run, ok := testBackends[mode]
	if !ok {
		fmt.Fprintf(os.Stderr, "no such backend: %s\n", mode)
		os.Exit(3)
	}
	run(argument)
}

// tells serves a backend that answers with a text as the user name.
func tells(text func() string) {
	serve(&fake{get: func(context.Context, *backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error) {
		return oneCredential(text(), "password"), nil
	}})
}

// answers serves a backend with one answer.
func answers(response *backendv1.GetCredentialsResponse) {
	serve(&fake{get: func(context.Context, *backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error) {
		return response, nil
	}})
}

// announce prints a handshake line for an address, and stays.
func announce(network, address string) {
	fmt.Printf("1|1|%s|%s|grpc\n", network, address)
	hang()
}

func socketDir() string { return os.Getenv("PLUGIN_UNIX_SOCKET_DIR") }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

var testBackends = map[string]func(argument string){
	"good": func(string) {
		var settings, provider string
		serve(&fake{
			configure: func(r *backendv1.ConfigureRequest) (*backendv1.ConfigureResponse, error) {
				settings, provider = string(r.GetSettings()), r.GetProvider()
				return &backendv1.ConfigureResponse{}, nil
			},
			get: func(ctx context.Context, r *backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error) {
				deadline, ok := ctx.Deadline()
				saw := fmt.Sprintf("settings=%s provider=%s image=%s token=%s role=%s deadline=%t", settings, provider, r.GetImage(), r.GetServiceAccountToken(),
					r.GetServiceAccountAnnotations()["role"], ok && r.GetDeadline().AsTime().Sub(deadline).Abs() < time.Second)
				return oneCredential(saw, "password"), nil
			},
		})
	},

	// What it was given.
	"stdin": func(string) {
		must(0, syscall.SetNonblock(0, true))
		tells(func() string {
			b := make([]byte, 100)
			n, err := syscall.Read(0, b)
			return fmt.Sprintf("%q %v", b[:max(n, 0)], err)
		})
	},
	"env": func(string) {
		env := strings.Join(os.Environ(), "\n")
		tells(func() string { return env })
	},
	"descriptors": func(string) {
		var open []string
		for _, fd := range must(os.ReadDir("/proc/self/fd")) {
			n, target := must(strconv.Atoi(fd.Name())), ""
			if target, _ = os.Readlink("/proc/self/fd/" + fd.Name()); target != "" {
				open = append(open, fmt.Sprintf("%d %s", n, target))
			}
		}
		tells(func() string { return strings.Join(open, "\n") })
	},
	"whoami": func(string) {
		groups := must(os.Getgroups())
		who := fmt.Sprintf("uid=%d gid=%d groups=%v HOME=%s USER=%s", os.Getuid(), os.Getgid(), groups, os.Getenv("HOME"), os.Getenv("USER"))
		tells(func() string { return who })
	},

	// Addresses.
	"tcp": func(string) { announce("tcp", must(net.Listen("tcp", "127.0.0.1:0")).Addr().String()) },
	"outside": func(dir string) {
		path := filepath.Join(dir, "socket")
		must(net.Listen("unix", path))
		announce("unix", path)
	},
	"below": func(string) {
		path := filepath.Join(socketDir(), "d", "s")
		must(0, os.Mkdir(filepath.Dir(path), 0o700))
		must(net.Listen("unix", path))
		announce("unix", path)
	},
	"dots": func(dir string) {
		must(0, os.Mkdir(filepath.Join(dir, "d"), 0o700))
		must(net.Listen("unix", filepath.Join(dir, "s")))
		must(0, os.Symlink(filepath.Join(dir, "d"), filepath.Join(socketDir(), "x")))
		announce("unix", socketDir()+"/x/../s") // which is dir/s
	},
	"symlink": func(dir string) {
		must(net.Listen("unix", filepath.Join(dir, "socket")))
		link := filepath.Join(socketDir(), "s")
		must(0, os.Symlink(filepath.Join(dir, "socket"), link))
		announce("unix", link)
	},
	"file": func(string) {
		path := filepath.Join(socketDir(), "s")
		must(0, os.WriteFile(path, nil, 0o600))
		announce("unix", path)
	},
	"missing": func(string) { announce("unix", filepath.Join(socketDir(), "s")) },
	"abstract": func(string) {
		must(net.Listen("unix", "@test-"+filepath.Base(socketDir())))
		announce("unix", "@test-"+filepath.Base(socketDir()))
	},
	"foreign": func(string) {
		path := filepath.Join(socketDir(), "s")
		must(net.Listen("unix", path))
		must(0, os.Chown(path, 65534, -1))
		announce("unix", path)
	},
	"deaf": func(string) { // connected to, it never says a word
		path := filepath.Join(socketDir(), "s")
		must(net.Listen("unix", path))
		announce("unix", path)
	},
	"deafFork": func(exits string) { // as deaf, and something else keeps the connection open when it ends
		path := filepath.Join(socketDir(), "s")
		socket := must(must(net.Listen("unix", path)).(*net.UnixListener).File())
		fmt.Fprintf(os.Stderr, "child %d\n", fork(true, socket))
		if exits != "" {
			time.AfterFunc(100*time.Millisecond, func() { os.Exit(5) })
		}
		announce("unix", path)
	},
	"rubbish": func(string) { // what it says over the socket is no HTTP/2
		path := filepath.Join(socketDir(), "s")
		listener := must(net.Listen("unix", path))
		fmt.Printf("1|1|unix|%s|grpc\n", path)
		for {
			conn := must(listener.Accept())
			_, _ = io.Copy(conn, io.LimitReader(rand.Reader, 1<<20))
		}
	},

	// Handshakes.
	"print":        func(lines string) { fmt.Print(must(strconv.Unquote(lines))); hang() },
	"printAndExit": func(lines string) { fmt.Print(must(strconv.Unquote(lines))) },
	"closedStdout": func(string) { os.Stdout.Close(); hang() },
	"netrpc":       func(string) { serve(&fake{}, func(c *goplugin.ServeConfig) { c.GRPCServer = nil }) },
	"version2":     func(string) { serve(&fake{}, func(c *goplugin.ServeConfig) { c.ProtocolVersion = 2 }) },
	"certificate": func(string) {
		key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
		template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
		der := must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))
		path := filepath.Join(socketDir(), "s")
		must(net.Listen("unix", path))
		fmt.Printf("1|1|unix|%s|grpc|%s\n", path, base64.RawStdEncoding.EncodeToString(der))
		hang()
	},
	"chatter": func(string) { // lines, and the beginning of one, before the handshake, and more behind it
		fmt.Print("warming up\n2026|11|23|table|of|dates\n\n\x00\xff\x1b[31m\nloading... ")
		stdout := os.Stdout
		tells(func() string { fmt.Fprintln(stdout, "said late"); return "" })
	},
	"longLine": func(string) { fmt.Print(strings.Repeat("x", 100<<10)); fmt.Println(); serve(&fake{}) },
	"flood":    func(string) { flood(os.Stdout, 1<<40) },

	// Output.
	"floodBoth": func(size string) {
		n, stdout, stderr := must(strconv.ParseInt(size, 10, 64)), os.Stdout, os.Stderr
		tells(func() string {
			written := make(chan struct{})
			for _, f := range []*os.File{stdout, stderr, os.Stdout, os.Stderr} { // directly, and through go-plugin
				go func() { flood(f, n); written <- struct{}{} }()
			}
			for range 4 {
				<-written
			}
			return "after the flood"
		})
	},
	"leaky": func(failing string) {
		stderr, stdout := os.Stderr, os.Stdout
		serve(&fake{get: func(_ context.Context, r *backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error) {
			token, password := r.GetServiceAccountToken(), "p4ssw\"ord\\<&>"
			basic := base64.StdEncoding.EncodeToString([]byte("user:" + password))
			for _, w := range []io.Writer{stderr, stdout, os.Stderr, os.Stdout} {
				fmt.Fprintf(w, "Authorization: Bearer %s\nAuthorization: Basic %s\npassword %s quoted %q\n", token, basic, password, password)
				record := must(json.Marshal(map[string]any{"level": "WARN", "msg": "login " + password, "token": token, "nested": map[string]string{"password": password}}))
				fmt.Fprintf(w, "%s\n", record)
				fmt.Fprintf(w, "%s%s\n", strings.Repeat("x", maxLine-20), token) // the line is cut within the token
			}
			if failing == "crash" {
				fmt.Fprintf(stderr, "panic: no luck with %s", token)
				os.Exit(2)
			}
			response := oneCredential("user", password)
			if failing == "error" {
				response.Error = &backendv1.Error{Message: "the registry said: " + token + " " + password}
			}
			return response, nil
		}})
	},
	"records": func(string) {
		fmt.Fprintln(os.Stderr, `{"time":"2026-11-23T18:00:00Z","level":"WARN","msg":"from slog","n":1,"who":"me"}`)
		fmt.Fprintln(os.Stderr, `{"@level":"error","@message":"from hclog","@timestamp":"2026-11-23T18:00:00Z","@module":"m"}`)
		fmt.Fprintln(os.Stderr, `{"level":"DEBUG","msg":"detail"}`)
		fmt.Fprintln(os.Stderr, `{"no":"record"}`)
		fmt.Fprint(os.Stderr, "plain\x1b[31m text")
		serve(&fake{})
	},

	// Answers.
	"old": func(string) { serveOld() },
	"lends": func(string) {
		serve(&fake{
			get: func(ctx context.Context, _ *backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error) {
				response := oneCredential("trace="+strings.Join(metadata.ValueFromIncomingContext(ctx, "traceparent"), ","), "password")
				response.Lease = []byte("lease one")
				return response, nil
			},
			renew: func(ctx context.Context, r *backendv1.RenewRequest) (*backendv1.GetCredentialsResponse, error) {
				deadline, ok := ctx.Deadline()
				saw := fmt.Sprintf("image=%s lease=%s trace=%t deadline=%t", r.GetRequest().GetImage(), r.GetLease(), len(metadata.ValueFromIncomingContext(ctx, "traceparent")) == 1,
					ok && r.GetRequest().GetDeadline().AsTime().Sub(deadline).Abs() < time.Second)
				fmt.Fprintf(os.Stderr, "renewing %s and %q\n", r.GetLease(), base64.StdEncoding.EncodeToString(r.GetLease()))
				response := oneCredential(saw, "password")
				response.Lease = []byte("lease two")
				response.Spans = []*backendv1.Span{{Name: "login for lease two", Start: durationpb.New(1), Took: durationpb.New(2)}}
				return response, nil
			},
			revoke: func(r *backendv1.RevokeRequest) (*backendv1.RevokeResponse, error) {
				if string(r.GetLease()) == "lease two" {
					return &backendv1.RevokeResponse{}, nil
				}
				return &backendv1.RevokeResponse{Error: &backendv1.Error{Kind: backendv1.Error_KIND_REFUSED, Message: "may not revoke " + string(r.GetLease())}}, nil
			},
			close: func() (*backendv1.CloseResponse, error) {
				return &backendv1.CloseResponse{Error: &backendv1.Error{Message: "could not log out"}}, nil
			},
		})
	},
	"breaksPromises": func(string) { // it names features, and crashes over each
		crash := func() { os.Exit(7) }
		serve(&fake{
			renew: func(context.Context, *backendv1.RenewRequest) (*backendv1.GetCredentialsResponse, error) {
				return &backendv1.GetCredentialsResponse{Error: &backendv1.Error{Kind: backendv1.Error_KIND_REFUSED, Message: "the lease is over"}, Spans: []*backendv1.Span{{Name: "look"}}}, nil
			},
			revoke: func(*backendv1.RevokeRequest) (*backendv1.RevokeResponse, error) { crash(); return nil, nil },
		})
	},
	"lease": func(size string) {
		response := oneCredential("user", "password")
		response.Lease = bytes.Repeat([]byte("l"), must(strconv.Atoi(size)))
		answers(response)
	},
	"spans": func(count string) {
		response := oneCredential("user", "password")
		for i := range must(strconv.Atoi(count)) {
			response.Spans = append(response.Spans, &backendv1.Span{Name: strconv.Itoa(i)})
		}
		answers(response)
	},
	"oddSpans": func(string) {
		response := oneCredential("user", "password")
		response.Spans = []*backendv1.Span{
			{Name: "before the call", Start: durationpb.New(-1)},
			{Name: "less than no time", Took: durationpb.New(-1)},
			{Name: "no duration", Took: &durationpb.Duration{Nanos: -1, Seconds: 1}},
			{},
			{Name: "a\nlogin with password " + strings.Repeat("é", 1000), Start: durationpb.New(3), Took: durationpb.New(4)},
		}
		answers(response)
	},

	"huge": func(string) { answers(oneCredential("user", strings.Repeat("x", 2<<20))) },
	"keys": func(count string) {
		response := &backendv1.GetCredentialsResponse{}
		for i := range must(strconv.Atoi(count)) {
			response.Credentials = append(response.Credentials, &backendv1.Credential{Key: strconv.Itoa(i)})
		}
		answers(response)
	},
	"emptyCredentials": func(string) { // as many as fit into a message
		serve(&fake{}, rawAnswers(bytes.Repeat([]byte{0x0a, 0x00}, backendv1.MaxMessageBytes/2-8)))
	},
	"key": func(key string) {
		key = must(strconv.Unquote(key))
		raw := append([]byte{0x0a, byte(len(key) + 2), 0x0a, byte(len(key))}, key...)
		serve(&fake{}, rawAnswers(raw))
	},
	"noTime": func(string) {
		r := oneCredential("u", "p")
		r.Credentials[0].Expires = &timestamppb.Timestamp{Nanos: -1}
		answers(r)
	},
	"noDuration": func(string) {
		r := oneCredential("u", "p")
		r.CacheDuration = &durationpb.Duration{Seconds: -5}
		answers(r)
	},
	"errorKind": func(kind string) {
		answers(&backendv1.GetCredentialsResponse{Error: &backendv1.Error{Kind: backendv1.Error_Kind(must(strconv.Atoi(kind))), Message: "because\n\x1b[2Jof this", Field: "a.b"}})
	},
	"longError": func(string) {
		answers(&backendv1.GetCredentialsResponse{Error: &backendv1.Error{Message: strings.Repeat("é", 100_000)}})
	},
	"hugeStatus": func(string) {
		serve(&fake{get: func(context.Context, *backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error) {
			return nil, fmt.Errorf("%s", strings.Repeat("x", 100_000))
		}})
	},
	"badSettings": func(string) {
		serve(&fake{configure: func(*backendv1.ConfigureRequest) (*backendv1.ConfigureResponse, error) {
			return &backendv1.ConfigureResponse{Errors: []*backendv1.Error{{Field: "url", Message: "is no URL"}, {Field: "auth.role", Message: "is missing"}}}, nil
		}})
	},
	"unimplemented": func(string) {
		serve(nil, func(c *goplugin.ServeConfig) { c.Plugins = goplugin.PluginSet{"other": &empty{}} })
	},

	"offers": func(string) { // connections that nobody asked for, through go-plugin's broker
		serve(nil, func(c *goplugin.ServeConfig) {
			c.Plugins = goplugin.PluginSet{backendv1.PluginName: &offering{}}
		})
	},

	// Ends.
	"crashStart":  func(status string) { fmt.Fprintln(os.Stderr, "no disk today"); os.Exit(must(strconv.Atoi(status))) },
	"panicStart":  func(string) { panic("out of ideas") },
	"signalStart": func(string) { must(0, syscall.Kill(os.Getpid(), syscall.SIGKILL)); hang() },
	"crashConfigure": func(string) {
		serve(&fake{configure: func(*backendv1.ConfigureRequest) (*backendv1.ConfigureResponse, error) { panic("bad day") }})
	},
	"crashAsk": func(string) {
		serve(&fake{get: func(context.Context, *backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error) {
			must(0, syscall.Kill(os.Getpid(), syscall.SIGKILL))
			hang()
			return nil, context.Canceled
		}})
	},
	"slowStart": func(string) { <-time.After(300 * time.Millisecond); serve(&fake{}) },
	"hangStart": func(string) { hang() },
	"hangConfigure": func(string) {
		serve(&fake{configure: func(*backendv1.ConfigureRequest) (*backendv1.ConfigureResponse, error) {
			hang()
			return nil, context.Canceled
		}})
	},
	"hangAsk": func(string) {
		serve(&fake{get: func(context.Context, *backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error) {
			hang()
			return nil, context.Canceled
		}})
	},

	// Children. They tell their process id, and hold on to the pipes.
	"forks":                func(string) { pid := fork(false); tells(func() string { return strconv.Itoa(pid) }) },
	"forksAway":            func(string) { pid := fork(true); tells(func() string { return strconv.Itoa(pid) }) },
	"forksAndExits":        func(string) { fmt.Fprintf(os.Stderr, "child %d\n", fork(true)); os.Exit(4) },
	"forksInGroupAndExits": func(string) { fmt.Fprintf(os.Stderr, "child %d\n", fork(false)); os.Exit(4) },
	"readsLifeline": func(string) {
		pid := forkAs("untilEndOfStdin", true)
		tells(func() string { return strconv.Itoa(pid) })
	},
	"untilEndOfStdin": func(string) { _, _ = io.Copy(io.Discard, os.Stdin) },
	"sleep":           func(string) { <-time.After(2 * time.Minute) }, // a test that fails may leave it behind
}

// fork starts a process that holds this one's standard streams open; away: in a session of its own, so that killing the group does not reach it.
func fork(away bool, more ...*os.File) int { return forkAs("sleep", away, more...) }

func forkAs(mode string, away bool, more ...*os.File) int {
	cmd := exec.Command(must(os.Executable()))
	cmd.Env = append(os.Environ(), asBackend+"="+mode)
	cmd.ExtraFiles = more
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: away}
	must(0, cmd.Start())
	return cmd.Process.Pid
}

func flood(f *os.File, size int64) {
	line := []byte(strings.Repeat("never again ", 1000) + "\n")
	for size > 0 {
		n, err := f.Write(line)
		if err != nil {
			return
		}
		size -= int64(n)
	}
}

// offering has a hundred connections to offer, and answers when the host has taken note of them all or a while has passed.
type offering struct {
	goplugin.NetRPCUnsupportedPlugin
}

func (*offering) GRPCServer(broker *goplugin.GRPCBroker, server *grpc.Server) error {
	taken := make(chan struct{})
	go func() {
		defer close(taken)
		for i := range 100 {
			must(broker.Accept(uint32(i)))
		}
	}()
	backendv1.RegisterBackendServer(server, &fake{get: func(context.Context, *backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error) {
		select {
		case <-taken:
		case <-time.After(500 * time.Millisecond):
		}
		return oneCredential("user", "password"), nil
	}})
	return nil
}

func (*offering) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, nil
}

type empty struct {
	goplugin.NetRPCUnsupportedPlugin
}

func (*empty) GRPCServer(*goplugin.GRPCBroker, *grpc.Server) error { return nil }

func (*empty) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, nil
}

// rawAnswers makes a backend answer GetCredentials with these bytes.
func rawAnswers(raw []byte) func(*goplugin.ServeConfig) {
	return func(c *goplugin.ServeConfig) {
		c.GRPCServer = func(options []grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(options, grpc.ForceServerCodec(rawCodec{raw}))...)
		}
	}
}

type rawCodec struct{ answer []byte }

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Unmarshal(b []byte, v any) error { return proto.Unmarshal(b, v.(proto.Message)) }

func (c rawCodec) Marshal(v any) ([]byte, error) {
	if _, ok := v.(*backendv1.GetCredentialsResponse); ok {
		return c.answer, nil
	}
	return proto.Marshal(v.(proto.Message))
}

// hostMain is the test binary as a host, in a process of its own so that it can be killed. It starts the backends that its arguments name, and tells what they tell.
func hostMain(base string) {
	rt := NewRuntime(RuntimeOptions{BaseDirs: []string{base}})
	if os.Getenv("TEST_EXHAUST") != "" {
		for {
			if _, err := syscall.Open("/dev/null", syscall.O_RDONLY, 0); err != nil { // an os.File that nobody refers to is closed
				break
			}
		}
	}
	for _, mode := range os.Args[1:] {
		ctx := context.Background()
		p, err := Start(ctx, rt, Spec{Provider: "tested", Path: must(os.Executable()), Env: []string{asBackend + "=" + mode}})
		if err != nil {
			fmt.Println(err)
			continue
		}
		if problems := p.Configure(ctx); problems != nil {
			fmt.Println(problems[0])
			continue
		}
		response, err := p.GetCredentials(ctx, &backendv1.GetCredentialsRequest{})
		if err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Printf("%d %q\n", p.PID(), response.GetCredentials()[0].GetUsername())
	}
	fmt.Println("ready")
	hang()
}

// hang does not return. To block for ever on nothing is a deadlock to the runtime of a program that has no other goroutine, and would end it.
func hang() {
	time.Sleep(time.Hour) //nolint:forbidigo // whoever started this has the deadline
	panic("nobody ended this process")
}
