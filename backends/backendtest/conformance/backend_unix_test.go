//go:build unix

package conformance

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

// backend is one made by hand, with go-plugin as it comes, as somebody would who does not use package backends. It keeps every rule; each breakage changes one thing.
type backend struct {
	backendv1.UnimplementedBackendServer
	name, version string
	features      []backendv1.Feature

	// before runs before anything is served, lifeline when standard input has ended.
	before, lifeline func()
	// serving changes how go-plugin serves.
	serving func(*goplugin.ServeConfig)
	// early answers before there are settings.
	early func() (*backendv1.GetCredentialsResponse, error)
	// settings judges settings that are an object, start runs when settings have been accepted.
	settings func(map[string]json.RawMessage) []*backendv1.Error
	object   func([]byte) (map[string]json.RawMessage, error)
	start    func()
	// enter runs for each request; answer changes what it is answered.
	enter  func(context.Context, *backendv1.GetCredentialsRequest) error
	answer func(*backendv1.GetCredentialsRequest, *backendv1.GetCredentialsResponse)
	check  func(context.Context) (*backendv1.CheckResponse, error)
	// renewed changes what Renew is answered; revoke and close are called before their answers.
	renewed func(lease string, r *backendv1.GetCredentialsResponse)
	revoke  func(lease string) *backendv1.Error
	close   func(context.Context) error

	configured atomic.Bool
	inFlight   atomic.Int64
	crowd      atomic.Bool // see crowded
}

const (
	goodUser     = "puller"
	goodPassword = "open-sesame-2718"
	goodImage    = "registry.example:5000/team/app"
	goodLease    = "lease-of-an-answer-3141"
)

func newBackend() *backend {
	b := &backend{
		name: "good", version: "1.2.3", features: []backendv1.Feature{
			backendv1.Feature_FEATURE_CHECK, backendv1.Feature_FEATURE_RENEW, backendv1.Feature_FEATURE_REVOKE, backendv1.Feature_FEATURE_CLOSE,
		},
		lifeline: func() { os.Exit(0) },
		early: func() (*backendv1.GetCredentialsResponse, error) {
			return &backendv1.GetCredentialsResponse{Error: misconfigured("", "no settings yet")}, nil
		},
		object: func(raw []byte) (fields map[string]json.RawMessage, err error) {
			if !json.Valid(raw) || !bytes.HasPrefix(bytes.TrimSpace(raw), []byte("{")) || !bytes.Equal(raw, bytes.ToValidUTF8(raw, nil)) {
				return nil, errors.New("not one JSON object")
			}
			err = json.Unmarshal(raw, &fields)
			return fields, err
		},
		check:   func(context.Context) (*backendv1.CheckResponse, error) { return &backendv1.CheckResponse{}, nil },
		renewed: func(string, *backendv1.GetCredentialsResponse) {},
		revoke:  func(string) *backendv1.Error { return nil },
		close:   func(context.Context) error { return nil },
	}
	b.settings = b.strict
	return b
}

func misconfigured(field, message string) *backendv1.Error {
	return &backendv1.Error{Kind: backendv1.Error_KIND_MISCONFIGURED, Field: field, Message: message}
}

// strict knows the fields url, retries and tags.
func (b *backend) strict(fields map[string]json.RawMessage) (problems []*backendv1.Error) {
	kinds := map[string]any{"url": new(string), "retries": new(int), "tags": new([]string)}
	for field, raw := range fields {
		if kinds[field] == nil {
			problems = append(problems, misconfigured(field, "unknown field"))
		} else if json.Unmarshal(raw, kinds[field]) != nil {
			problems = append(problems, misconfigured(field, "has the wrong type"))
		}
	}
	return problems
}

func (b *backend) Describe(context.Context, *backendv1.DescribeRequest) (*backendv1.DescribeResponse, error) {
	return &backendv1.DescribeResponse{Name: b.name, Version: b.version, Features: b.features}, nil
}

func (b *backend) Configure(_ context.Context, r *backendv1.ConfigureRequest) (*backendv1.ConfigureResponse, error) {
	fields, err := b.object(r.GetSettings())
	if err != nil {
		return &backendv1.ConfigureResponse{Errors: []*backendv1.Error{misconfigured("", err.Error())}}, nil
	}
	problems := b.settings(fields)
	if len(problems) == 0 && !b.configured.Swap(true) && b.start != nil {
		b.start()
	}
	return &backendv1.ConfigureResponse{Errors: problems}, nil
}

func (b *backend) GetCredentials(ctx context.Context, r *backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error) {
	if !b.configured.Load() {
		return b.early()
	}
	b.inFlight.Add(1)
	defer b.inFlight.Add(-1)
	if b.enter != nil {
		if err := b.enter(ctx, r); err != nil {
			return nil, err
		}
	}
	response := &backendv1.GetCredentialsResponse{Scope: backendv1.Scope_SCOPE_REGISTRY}
	if host, _, _ := strings.Cut(r.GetImage(), "/"); host == "registry.example:5000" {
		response.Credentials = []*backendv1.Credential{{Key: host, Username: goodUser, Password: goodPassword, Expires: timestamppb.New(time.Now().Add(time.Hour))}}
		response.Lease = []byte(goodLease)
		response.Spans = []*backendv1.Span{{Name: "look up"}}
	}
	if b.answer != nil {
		b.answer(r, response)
	}
	return response, nil
}

func (b *backend) Check(ctx context.Context, _ *backendv1.CheckRequest) (*backendv1.CheckResponse, error) {
	return b.check(ctx)
}

func (b *backend) Renew(ctx context.Context, r *backendv1.RenewRequest) (*backendv1.GetCredentialsResponse, error) {
	response, err := b.GetCredentials(ctx, r.GetRequest())
	b.renewed(string(r.GetLease()), response)
	return response, err
}

func (b *backend) Revoke(_ context.Context, r *backendv1.RevokeRequest) (*backendv1.RevokeResponse, error) {
	return &backendv1.RevokeResponse{Error: b.revoke(string(r.GetLease()))}, nil
}

func (b *backend) Close(ctx context.Context, _ *backendv1.CloseRequest) (*backendv1.CloseResponse, error) {
	return &backendv1.CloseResponse{}, b.close(ctx)
}

func (b *backend) serve() {
	if b.before != nil {
		b.before()
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		b.lifeline()
	}()
	config := &goplugin.ServeConfig{
		HandshakeConfig: backendv1.Handshake,
		Plugins:         goplugin.PluginSet{backendv1.PluginName: &servedBackend{b: b}},
		GRPCServer: func(o []grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(o, grpc.MaxSendMsgSize(64<<20))...)
		},
		Logger: hclog.NewNullLogger(),
	}
	if b.serving != nil {
		b.serving(config)
	}
	goplugin.Serve(config)
}

type servedBackend struct {
	goplugin.NetRPCUnsupportedPlugin
	b *backend
}

func (s *servedBackend) GRPCServer(_ *goplugin.GRPCBroker, g *grpc.Server) error {
	backendv1.RegisterBackendServer(g, s.b)
	return nil
}

func (s *servedBackend) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.New("this is the backend's side")
}

func hasCookie() bool {
	return os.Getenv(backendv1.Handshake.MagicCookieKey) == backendv1.Handshake.MagicCookieValue
}

// childOf starts the test program as a process that lives until it is killed, or until the process `watched` has gone; 0: nobody.
func childOf(watched int, attributes *syscall.SysProcAttr, args ...string) *exec.Cmd {
	self, _ := os.Executable()
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), asBackend+"=a child", watchedVariable+"="+strconv.Itoa(watched), parentVariable+"="+strconv.Itoa(os.Getpid()))
	cmd.SysProcAttr = attributes
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return cmd
}

const (
	watchedVariable = "TEST_WATCHED"
	parentVariable  = "TEST_PARENT"
	// ownParent is watched instead of a process by its number, which stays taken until somebody waits for the process.
	ownParent = -1
)

func childMain() {
	watched, _ := strconv.Atoi(os.Getenv(watchedVariable))
	parent, _ := strconv.Atoi(os.Getenv(parentVariable))
	for range time.Tick(20 * time.Millisecond) {
		switch {
		case watched == ownParent && os.Getppid() != parent:
			os.Exit(0) // another one has taken it in
		case watched > 0 && syscall.Kill(watched, 0) != nil:
			os.Exit(0)
		}
	}
}

// breakage is one thing that a backend does wrong.
type breakage struct {
	// rule is the one, and the only one, that it breaks.
	rule string
	// name is what it does.
	name string
	// seen is a part of what the suite has to say about it.
	seen string
	// hangs: the suite finds out by waiting, so it is given little time.
	hangs  bool
	change func(*backend)
}

// firstCredential changes the credential in an answer, where there is one.
func firstCredential(change func(*backendv1.Credential)) func(*backend) {
	return func(b *backend) {
		b.answer = func(_ *backendv1.GetCredentialsRequest, r *backendv1.GetCredentialsResponse) {
			for _, c := range r.GetCredentials() {
				change(c)
			}
		}
	}
}

// spans has these in each answer.
func spans(all ...*backendv1.Span) func(*backend) {
	return func(b *backend) {
		b.answer = func(_ *backendv1.GetCredentialsRequest, r *backendv1.GetCredentialsResponse) { r.Spans = all }
	}
}

// crowded waits a little for company, and long where it has more than most rules send at once, so that a slow machine makes no
// difference. It reports whether more are here than any rule but "concurrency" sends.
func (b *backend) crowded(ctx context.Context) bool {
	const most, atMost = 8, 16
	start := time.Now()
	for !b.crowd.Load() {
		if b.inFlight.Load() > atMost {
			b.crowd.Store(true) // for those who are still here when the first of them leave
		}
		patience := 20 * time.Millisecond
		switch here := b.inFlight.Load(); {
		case here > most:
			patience = 10 * time.Second
		case here > 1:
			patience = 100 * time.Millisecond
		}
		if ctx.Err() != nil || time.Since(start) > patience {
			return false
		}
		pause(time.Millisecond)
	}
	return true
}

// pause makes a broken backend slow.
func pause(d time.Duration) { <-time.After(d) }

// forever never returns.
func forever() {
	time.Sleep(time.Hour) //nolint:forbidigo // whoever started this has the deadline
}

var breakages = []breakage{
	{rule: "started-by-hand", name: "exits with status 0 when started by hand", seen: "status 0", change: func(b *backend) {
		b.before = func() {
			if !hasCookie() {
				fmt.Fprintln(os.Stderr, "this is a backend")
				os.Exit(0)
			}
		}
	}},
	{rule: "started-by-hand", name: "says nothing when started by hand", seen: "said nothing", change: func(b *backend) {
		b.before = func() {
			if !hasCookie() {
				os.Exit(1)
			}
		}
	}},
	{rule: "started-by-hand", name: "panics when started by hand", seen: "crashed", change: func(b *backend) {
		b.before = func() {
			if !hasCookie() {
				panic("no cookie")
			}
		}
	}},
	{rule: "started-by-hand", name: "waits when started by hand", seen: "still ran", hangs: true, change: func(b *backend) {
		b.before = func() {
			if !hasCookie() {
				_, _ = io.Copy(io.Discard, os.Stdin)
			}
		}
	}},

	{rule: "handshake", name: "exits at once", seen: "exited with status 3 without a handshake line; the last it printed: no licence", change: func(b *backend) {
		b.before = func() {
			if hasCookie() {
				fmt.Fprintln(os.Stderr, "no licence")
				os.Exit(3)
			}
		}
	}},
	{rule: "handshake", name: "never shakes hands", seen: "no handshake line within", hangs: true, change: func(b *backend) {
		b.before = func() {
			if hasCookie() {
				_, _ = io.Copy(io.Discard, os.Stdin)
				os.Exit(0)
			}
		}
	}},
	{rule: "handshake", name: "listens on a TCP port", seen: "it listens on tcp 127.0.0.1:", change: func(b *backend) {
		b.before = func() {
			if hasCookie() {
				b.serveOn("tcp", "127.0.0.1:0")
			}
		}
	}},
	{rule: "handshake", name: "makes its socket elsewhere", seen: "and PLUGIN_UNIX_SOCKET_DIR is", change: func(b *backend) {
		b.before = func() { _ = os.Setenv("PLUGIN_UNIX_SOCKET_DIR", os.Getenv("TEST_ELSEWHERE")) }
	}},
	{rule: "handshake", name: "serves net/rpc", seen: `names the protocol "netrpc"`, change: func(b *backend) {
		b.serving = func(c *goplugin.ServeConfig) { c.GRPCServer = nil }
	}},

	{rule: "output", name: "prints before the handshake without ending the line", seen: `other text on its line: "loading..."`, change: func(b *backend) {
		b.before = func() { fmt.Print("loading...") }
	}},
	{rule: "output", name: "prints two megabytes before the handshake", seen: "bytes stand before the handshake", change: func(b *backend) {
		b.before = func() { fmt.Println(strings.Repeat("x\n", 1<<20)) }
	}},

	{rule: "protocol-version", name: "claims to speak whatever it is asked for", seen: "claims to speak it", change: func(b *backend) {
		b.serving = func(c *goplugin.ServeConfig) {
			version, _ := strconv.Atoi(os.Getenv("PLUGIN_PROTOCOL_VERSIONS"))
			c.ProtocolVersion = uint(version)
		}
	}},
	{rule: "protocol-version", name: "waits when asked for a version that it does not speak", seen: "neither answered nor ended", hangs: true, change: func(b *backend) {
		b.before = func() {
			if hasCookie() && os.Getenv("PLUGIN_PROTOCOL_VERSIONS") != "1" {
				_, _ = io.Copy(io.Discard, os.Stdin)
			}
		}
	}},
	{rule: "protocol-version", name: "exits without a word when asked for a version that it does not speak", seen: "printed nothing", change: func(b *backend) {
		b.before = func() {
			if hasCookie() && os.Getenv("PLUGIN_PROTOCOL_VERSIONS") != "1" {
				os.Exit(1)
			}
		}
	}},

	{rule: "describe", name: "has another name than its file", seen: `calls itself "other"`, change: func(b *backend) { b.name = "other" }},
	{rule: "describe", name: "has a name with a space", seen: `its name is "Good Backend"`, change: func(b *backend) { b.name = "Good Backend" }},
	{rule: "describe", name: "has no version", seen: "its version is empty", change: func(b *backend) { b.version = "" }},

	{rule: "settings", name: "refuses its settings", seen: "refuses the settings it was given: KIND_MISCONFIGURED url: no such host", change: func(b *backend) {
		b.settings = func(map[string]json.RawMessage) []*backendv1.Error {
			return []*backendv1.Error{misconfigured("url", "no such host")}
		}
	}},
	{rule: "settings-unknown-field", name: "ignores unknown fields", seen: "accepted the field", change: func(b *backend) {
		b.settings = func(fields map[string]json.RawMessage) []*backendv1.Error {
			delete(fields, unknown)
			return b.strict(fields)
		}
	}},
	{rule: "settings-unknown-field", name: "does not name the unknown field", seen: "does not name it", change: func(b *backend) {
		b.settings = func(fields map[string]json.RawMessage) []*backendv1.Error {
			problems := b.strict(fields)
			for _, p := range problems {
				if p.GetField() == unknown {
					p.Field = ""
				}
			}
			return problems
		}
	}},
	{rule: "settings-unknown-field", name: "takes an unknown field for a passing problem", seen: "it answers KIND_UNAVAILABLE", change: func(b *backend) {
		b.settings = func(fields map[string]json.RawMessage) []*backendv1.Error {
			problems := b.strict(fields)
			for _, p := range problems {
				if p.GetField() == unknown {
					p.Kind = backendv1.Error_KIND_UNAVAILABLE
				}
			}
			return problems
		}
	}},
	{rule: "settings-wrong-type", name: "takes any type", seen: `any type in the field "retries"`, change: func(b *backend) {
		b.settings = func(fields map[string]json.RawMessage) []*backendv1.Error {
			delete(fields, "retries")
			return b.strict(fields)
		}
	}},
	{rule: "settings-wrong-type", name: "does not name the field with the wrong type", seen: "does not name the field", change: func(b *backend) {
		b.settings = func(fields map[string]json.RawMessage) []*backendv1.Error {
			problems := b.strict(fields)
			for _, p := range problems {
				if p.GetField() == "tags" {
					p.Field = ""
				}
			}
			return problems
		}
	}},
	{rule: "settings-not-an-object", name: "takes null for an object", seen: "accepted null", change: func(b *backend) {
		strict := b.object
		b.object = func(raw []byte) (map[string]json.RawMessage, error) {
			if string(raw) == "null" {
				return nil, nil
			}
			return strict(raw)
		}
	}},
	{rule: "settings-not-an-object", name: "crashes over settings that are not JSON", seen: "exited with status 2 when it was given settings that break off", change: func(b *backend) {
		strict := b.object
		b.object = func(raw []byte) (map[string]json.RawMessage, error) {
			if string(raw) == `{"` {
				os.Exit(2)
			}
			return strict(raw)
		}
	}},
	{rule: "settings-offline", name: "tries the network when it gets its settings", seen: "without a network it refuses", change: func(b *backend) {
		b.settings = func(fields map[string]json.RawMessage) []*backendv1.Error {
			problems := b.strict(fields)
			if l, err := net.Listen("tcp", "127.0.0.1:0"); err != nil {
				problems = append(problems, misconfigured("url", "cannot be reached"))
			} else if conn, err := net.Dial("tcp", l.Addr().String()); err != nil {
				problems = append(problems, misconfigured("url", "cannot be reached"))
			} else {
				_, _ = conn.Close(), l.Close()
			}
			return problems
		}
	}},
	{rule: "before-configure", name: "crashes when asked before it has settings", seen: "exited with status 2 when it was asked for credentials before it had settings", change: func(b *backend) {
		b.early = func() (*backendv1.GetCredentialsResponse, error) { os.Exit(2); return nil, nil }
	}},
	{rule: "before-configure", name: "has no credentials before it has settings, and no error", seen: "no error", change: func(b *backend) {
		b.early = func() (*backendv1.GetCredentialsResponse, error) { return &backendv1.GetCredentialsResponse{}, nil }
	}},

	{rule: "credentials", name: "has no credentials", seen: "it has no credentials, and no error", change: func(b *backend) {
		b.answer = func(_ *backendv1.GetCredentialsRequest, r *backendv1.GetCredentialsResponse) { r.Credentials = nil }
	}},
	{rule: "credentials", name: "has only an error", seen: "KIND_REFUSED: access denied", change: func(b *backend) {
		b.answer = func(_ *backendv1.GetCredentialsRequest, r *backendv1.GetCredentialsResponse) {
			if r.Credentials != nil {
				r.Error = &backendv1.Error{Kind: backendv1.Error_KIND_REFUSED, Message: "access denied"}
			}
		}
	}},
	{rule: "credentials", name: "crashes over the image that it serves", seen: "exited with status 2 when it was asked for credentials", change: func(b *backend) {
		b.answer = func(_ *backendv1.GetCredentialsRequest, r *backendv1.GetCredentialsResponse) {
			if r.Credentials != nil {
				os.Exit(2)
			}
		}
	}},
	{rule: "keys", name: "leaves the port out of the key", seen: `"registry.example", does not match`, change: firstCredential(func(c *backendv1.Credential) { c.Key = "registry.example" })},
	{rule: "keys", name: "has an empty key", seen: "is empty", change: firstCredential(func(c *backendv1.Credential) { c.Key = "" })},
	{rule: "keys", name: "has a key with a space", seen: "control characters or spaces", change: firstCredential(func(c *backendv1.Credential) { c.Key += " " })},
	{rule: "expiry", name: "gives what has expired", seen: "expired at", change: firstCredential(func(c *backendv1.Credential) { c.Expires = timestamppb.New(time.Now().Add(-time.Second)) })},
	{rule: "expiry", name: "counts the expiry in milliseconds", seen: "milliseconds", change: firstCredential(func(c *backendv1.Credential) { c.Expires.Seconds *= 1000 })},
	{rule: "expiry", name: "has a negative cache duration", seen: "cache_duration is -1 seconds", change: func(b *backend) {
		b.answer = func(_ *backendv1.GetCredentialsRequest, r *backendv1.GetCredentialsResponse) {
			r.CacheDuration = &durationpb.Duration{Seconds: -1}
		}
	}},
	{rule: "scope", name: "has a path in the key of an answer for the registry", seen: "some of its images only", change: firstCredential(func(c *backendv1.Credential) { c.Key += "/team" })},
	{rule: "scope", name: "has another user for each image of a registry", seen: "another user name", change: func(b *backend) {
		b.answer = func(request *backendv1.GetCredentialsRequest, r *backendv1.GetCredentialsResponse) {
			for _, c := range r.GetCredentials() {
				c.Username = request.GetImage()
			}
		}
	}},
	{rule: "scope", name: "says of one image only that its answer is the registry's", seen: "for that image only", change: func(b *backend) {
		b.answer = func(request *backendv1.GetCredentialsRequest, r *backendv1.GetCredentialsResponse) {
			if request.GetImage() != goodImage {
				r.Scope = backendv1.Scope_SCOPE_IMAGE
			}
		}
	}},
	{rule: "size", name: "gives 1,001 credentials", seen: "has 1001 credentials", change: func(b *backend) {
		b.answer = func(_ *backendv1.GetCredentialsRequest, r *backendv1.GetCredentialsResponse) {
			for len(r.GetCredentials()) > 0 && len(r.GetCredentials()) <= backendv1.MaxCredentials {
				r.Credentials = append(r.Credentials, r.GetCredentials()[0])
			}
		}
	}},
	{rule: "size", name: "gives more than a megabyte", seen: "bytes", change: firstCredential(func(c *backendv1.Credential) { c.Username = strings.Repeat("u", 1<<20) })},
	{rule: "size", name: "gives a lease of more than 16 KiB", seen: "the lease has 16385 bytes", change: func(b *backend) {
		b.answer = func(_ *backendv1.GetCredentialsRequest, r *backendv1.GetCredentialsResponse) {
			r.Lease = make([]byte, backendv1.MaxLeaseBytes+1)
		}
	}},
	{rule: "size", name: "tells of 101 spans", seen: "101 spans", change: spans(slices.Repeat([]*backendv1.Span{{Name: "step"}}, 101)...)},
	{rule: "spans", name: "has a span without a name", seen: "spans[1] has no name", change: spans(&backendv1.Span{Name: "step"}, &backendv1.Span{})},
	{rule: "spans", name: "counts spans in milliseconds", seen: `spans[0], "step", begins after 0s and lasts 1m40s`, change: spans(&backendv1.Span{Name: "step", Took: durationpb.New(100 * time.Second)})},
	{rule: "spans", name: "has a span that begins before the call", seen: "less than no time", change: spans(&backendv1.Span{Name: "step", Start: durationpb.New(-1)})},
	{rule: "renew", name: "crashes over a lease that it does not know", seen: "exited with status 2 when it was asked to renew", change: func(b *backend) {
		b.renewed = func(lease string, _ *backendv1.GetCredentialsResponse) {
			if lease != goodLease {
				os.Exit(2)
			}
		}
	}},
	{rule: "renew", name: "renews with a key for another image", seen: `: the key of credentials[0], "elsewhere.example", does not match`, change: func(b *backend) {
		b.renewed = func(_ string, r *backendv1.GetCredentialsResponse) {
			for _, c := range r.GetCredentials() {
				c.Key = "elsewhere.example"
			}
		}
	}},
	{rule: "renew", name: "renews with what has expired", seen: "asked to renew its own answer: credentials[0] expired at", change: func(b *backend) {
		b.renewed = func(lease string, r *backendv1.GetCredentialsResponse) {
			if lease == goodLease {
				r.Credentials[0].Expires = timestamppb.New(time.Now().Add(-time.Second))
			}
		}
	}},
	{rule: "renew", name: "fails to renew without a reason", seen: "it fails and gives no reason", change: func(b *backend) {
		b.renewed = func(_ string, r *backendv1.GetCredentialsResponse) { r.Error = &backendv1.Error{} }
	}},
	{rule: "renew", name: "knows a lease only in the process that gave it", seen: "asked to renew an answer of another process, it gives no credentials, and no error", change: func(b *backend) {
		var requests, renewals atomic.Int64
		b.enter = func(context.Context, *backendv1.GetCredentialsRequest) error { requests.Add(1); return nil }
		b.renewed = func(lease string, r *backendv1.GetCredentialsResponse) {
			if renewals.Add(1); lease == goodLease && requests.Load() == renewals.Load() { // none of which was for an answer
				r.Credentials = nil
			}
		}
	}},
	{rule: "revoke", name: "crashes over a lease that is no text", seen: "exited with status 2 when it was asked to revoke a lease that is no text", change: func(b *backend) {
		b.revoke = func(lease string) *backendv1.Error {
			if !utf8.ValidString(lease) {
				os.Exit(2)
			}
			return nil
		}
	}},
	{rule: "revoke", name: "revokes nothing twice", seen: "asked to revoke an answer that it has revoked, it fails: KIND_REFUSED: no such lease", change: func(b *backend) {
		var revoked atomic.Bool
		b.revoke = func(lease string) *backendv1.Error {
			if lease == goodLease && revoked.Swap(true) {
				return &backendv1.Error{Kind: backendv1.Error_KIND_REFUSED, Message: "no such lease"}
			}
			return nil
		}
	}},
	{rule: "revoke", name: "gives what it has revoked no more", seen: "after something has been revoked it gives", change: func(b *backend) {
		var revoked atomic.Bool
		b.revoke = func(lease string) *backendv1.Error {
			revoked.Store(revoked.Load() || lease == goodLease)
			return nil
		}
		b.answer = func(_ *backendv1.GetCredentialsRequest, r *backendv1.GetCredentialsResponse) {
			if revoked.Load() {
				r.Credentials = nil
			}
		}
	}},
	{rule: "close", name: "hangs when it is closed", seen: "when it was closed, the call ended with gRPC's DeadlineExceeded", hangs: true, change: func(b *backend) {
		b.close = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	}},
	{rule: "close", name: "wants to be closed and takes too long for a single answer", seen: "its answer says wants_close, and closed it took 1.", change: func(b *backend) {
		b.answer = wantsClose
		b.close = func(ctx context.Context) error {
			select {
			case <-time.After(backendv1.ShortCloseTimeout + 100*time.Millisecond):
			case <-ctx.Done():
			}
			return nil
		}
	}},
	{rule: "close", name: "wants to be closed and cannot be", seen: "its answer says wants_close, and closed it answers UNIMPLEMENTED", change: func(b *backend) {
		b.answer = wantsClose
		b.close = func(context.Context) error { return status.Error(codes.Unimplemented, "nothing to close") }
	}},
	{rule: "close", name: "wants to be closed and does not name that", seen: "its answer says wants_close, and it does not name FEATURE_CLOSE", change: func(b *backend) {
		b.answer = wantsClose
		b.features = nil
	}},
	{rule: "close", name: "lives on when it has been closed", seen: "closed, it still ran a second after", change: func(b *backend) {
		var closed atomic.Bool
		b.close = func(context.Context) error { closed.Store(true); return nil }
		b.lifeline = func() {
			if !closed.Load() {
				os.Exit(0)
			}
		}
	}},
	{rule: "secrets", name: "prints the lease of an answer", seen: "the lease of an answer is in standard error", change: func(b *backend) {
		b.answer = func(_ *backendv1.GetCredentialsRequest, r *backendv1.GetCredentialsResponse) {
			fmt.Fprintln(os.Stderr, "lent", string(r.GetLease()))
		}
	}},
	{rule: "secrets", name: "reports a lease that it cannot revoke", seen: "an unknown lease is in the error for the revocation of an unknown lease", change: func(b *backend) {
		b.revoke = func(lease string) *backendv1.Error {
			return &backendv1.Error{Kind: backendv1.Error_KIND_REFUSED, Message: "no lease " + strings.ToValidUTF8(lease, "")}
		}
	}},
	{rule: "secrets", name: "names a span after the token", seen: "the token is in the name of spans[0] for", change: func(b *backend) {
		b.answer = func(request *backendv1.GetCredentialsRequest, r *backendv1.GetCredentialsResponse) {
			r.Spans = []*backendv1.Span{{Name: "log in with " + request.GetServiceAccountToken()}}
		}
	}},
	{rule: "other-image", name: "gives what it has for every image", seen: `for "registry.example:5000"`, change: func(b *backend) {
		b.answer = func(_ *backendv1.GetCredentialsRequest, r *backendv1.GetCredentialsResponse) {
			if r.Credentials == nil {
				r.Credentials = []*backendv1.Credential{{Key: "registry.example:5000", Username: goodUser, Password: goodPassword}}
			}
		}
	}},
	{rule: "odd-requests", name: "crashes over an empty image", seen: "sent the empty image", change: func(b *backend) {
		b.enter = func(_ context.Context, r *backendv1.GetCredentialsRequest) error {
			if r.GetImage() == "" {
				os.Exit(2)
			}
			return nil
		}
	}},
	{rule: "odd-requests", name: "ends the call over an image without a path", seen: "InvalidArgument", change: func(b *backend) {
		b.enter = func(_ context.Context, r *backendv1.GetCredentialsRequest) error {
			if r.GetImage() != "" && !strings.Contains(r.GetImage(), "/") {
				return errInvalidArgument
			}
			return nil
		}
	}},
	{rule: "odd-requests", name: "never recovers from an image with a new line", seen: "after odd requests", change: func(b *backend) {
		var spoilt atomic.Bool
		b.answer = func(request *backendv1.GetCredentialsRequest, r *backendv1.GetCredentialsResponse) {
			spoilt.Store(spoilt.Load() || strings.Contains(request.GetImage(), "\n"))
			if spoilt.Load() {
				r.Credentials = nil
			}
		}
	}},
	{rule: "errors", name: "gives errors without a message", seen: "has no message", change: func(b *backend) {
		b.early = func() (*backendv1.GetCredentialsResponse, error) {
			return &backendv1.GetCredentialsResponse{Error: misconfigured("", "")}, nil
		}
	}},
	{rule: "errors", name: "gives errors of several lines", seen: "several lines", change: func(b *backend) {
		b.early = func() (*backendv1.GetCredentialsResponse, error) {
			return &backendv1.GetCredentialsResponse{Error: misconfigured("", "one\ntwo")}, nil
		}
	}},
	{rule: "check", name: "hangs in its check", seen: "DeadlineExceeded", hangs: true, change: func(b *backend) {
		b.check = func(ctx context.Context) (*backendv1.CheckResponse, error) { <-ctx.Done(); return nil, ctx.Err() }
	}},
	{rule: "check", name: "breaks in its check", seen: "Internal", change: func(b *backend) {
		b.check = func(context.Context) (*backendv1.CheckResponse, error) {
			return nil, status.Error(codes.Internal, "broken")
		}
	}},
	{rule: "check", name: "fails its check without a reason", seen: "gives no reason", change: func(b *backend) {
		b.check = func(context.Context) (*backendv1.CheckResponse, error) {
			return &backendv1.CheckResponse{Error: &backendv1.Error{Kind: backendv1.Error_KIND_REFUSED}}, nil
		}
	}},

	{rule: "secrets", name: "prints the token", seen: "the token is in standard error", change: func(b *backend) {
		b.enter = func(_ context.Context, r *backendv1.GetCredentialsRequest) error {
			fmt.Fprintln(os.Stderr, "using", r.GetServiceAccountToken())
			return nil
		}
	}},
	{rule: "secrets", name: "prints the Authorization header", seen: "with its user name is in standard output", change: func(b *backend) {
		b.enter = func(context.Context, *backendv1.GetCredentialsRequest) error {
			fmt.Println("Authorization: Basic", base64.StdEncoding.EncodeToString([]byte(goodUser+":"+goodPassword)))
			return nil
		}
	}},
	{rule: "secrets", name: "quotes the value of an unknown field", seen: "a value of the wrong type is in the error for", change: func(b *backend) {
		b.settings = func(fields map[string]json.RawMessage) []*backendv1.Error {
			problems := b.strict(fields)
			for _, p := range problems {
				if p.GetField() == "retries" {
					p.Message = "want a number, got " + shorten(string(fields["retries"]))
				}
			}
			return problems
		}
	}},
	{rule: "secrets", name: "reports the token", seen: "the claims of the token is in the error for", change: func(b *backend) {
		b.answer = func(request *backendv1.GetCredentialsRequest, r *backendv1.GetCredentialsResponse) {
			if parts := strings.Split(request.GetServiceAccountToken(), "."); len(parts) == 3 && r.Credentials == nil {
				r.Error = &backendv1.Error{Kind: backendv1.Error_KIND_REFUSED, Message: "cannot read claims " + parts[1]}
			}
		}
	}},
	{rule: "secrets", name: "prints one of its secrets on the way out", seen: "secret 1 of those given is in standard error", change: func(b *backend) {
		b.start = func() { fmt.Fprintln(os.Stderr, "logged in with", os.Getenv("TEST_SECRET")) }
	}},
	{rule: "secrets", name: "hands the token to a child as an argument", seen: "is in the arguments of a process", change: func(b *backend) {
		b.enter = func(_ context.Context, r *backendv1.GetCredentialsRequest) error {
			if token := r.GetServiceAccountToken(); token != "" {
				child := childOf(ownParent, nil, token)
				pause(200 * time.Millisecond)
				_ = child.Process.Kill()
				_ = child.Wait()
			}
			return nil
		}
	}},

	{rule: "concurrency", name: "crashes under load", seen: "exited with status 2 when it was asked 64 times at once", change: func(b *backend) {
		b.enter = func(ctx context.Context, _ *backendv1.GetCredentialsRequest) error {
			if b.crowded(ctx) {
				os.Exit(2)
			}
			return nil
		}
	}},
	{rule: "concurrency", name: "mixes up answers under load", seen: "with 64 requests at once it gives", change: func(b *backend) {
		b.answer = func(_ *backendv1.GetCredentialsRequest, r *backendv1.GetCredentialsResponse) {
			if b.crowded(context.Background()) {
				r.Credentials = nil
			}
		}
	}},
	{rule: "cancellation", name: "keeps its lock when a call is cancelled", seen: "asked for credentials after calls that were cancelled, the call ended with gRPC's DeadlineExceeded", hangs: true, change: func(b *backend) {
		var lock sync.Mutex
		b.enter = func(ctx context.Context, _ *backendv1.GetCredentialsRequest) error {
			lock.Lock()
			defer lock.Unlock()
			if _, ok := ctx.Deadline(); !ok {
				<-ctx.Done()
				forever()
			}
			return nil
		}
	}},
	{rule: "cancellation", name: "leaves a process behind when a call is cancelled", seen: "processes that it started for calls that were cancelled are still there", change: func(b *backend) {
		b.enter = func(ctx context.Context, _ *backendv1.GetCredentialsRequest) error {
			if _, ok := ctx.Deadline(); !ok {
				child := childOf(0, nil)
				go func() { _ = child.Wait() }()
				<-ctx.Done()
			}
			return nil
		}
	}},
	{rule: "deadline", name: "keeps its lock when a deadline passes", seen: "asked for credentials after calls whose deadline passed, the call ended with gRPC's DeadlineExceeded", hangs: true, change: func(b *backend) {
		var lock sync.Mutex
		b.enter = func(ctx context.Context, _ *backendv1.GetCredentialsRequest) error {
			lock.Lock()
			defer lock.Unlock()
			if at, ok := ctx.Deadline(); ok && time.Until(at) < 100*time.Millisecond {
				<-ctx.Done()
				forever()
			}
			return nil
		}
	}},
	{rule: "leaks", name: "leaves a file open", seen: "open files behind", change: func(b *backend) {
		b.enter = func(context.Context, *backendv1.GetCredentialsRequest) error {
			_, err := syscall.Open(os.DevNull, syscall.O_RDONLY, 0)
			return err
		}
	}},
	{rule: "leaks", name: "does not wait for its children", seen: "processes behind", change: func(b *backend) {
		var requests atomic.Int64
		b.enter = func(context.Context, *backendv1.GetCredentialsRequest) error {
			if requests.Add(1) > 40 { // few are no leak
				self, _ := os.Executable()
				_, err := syscall.ForkExec(self, []string{self, "-test.list", "^$"}, &syscall.ProcAttr{})
				return err
			}
			return nil
		}
	}},

	{rule: "host-gone", name: "notices the end of its host only while it is busy", seen: "it still ran a second after", change: func(b *backend) {
		var requests atomic.Int64
		b.enter = func(context.Context, *backendv1.GetCredentialsRequest) error {
			requests.Add(1)
			return nil
		}
		b.lifeline = func() {
			if requests.Load() > 1 {
				os.Exit(0)
			}
		}
	}},
	{rule: "host-gone-busy", name: "takes its time to end when it has been busy", seen: "it still ran a second after", change: func(b *backend) {
		var requests atomic.Int64
		b.enter = func(context.Context, *backendv1.GetCredentialsRequest) error {
			requests.Add(1)
			return nil
		}
		b.lifeline = func() {
			if requests.Load() > 1 {
				pause(5 * time.Second)
			}
			os.Exit(0)
		}
	}},
	{rule: "host-killed", name: "has a child that does not notice when the backend is killed", seen: "after the broker had been killed there is still process", change: func(b *backend) {
		var child *exec.Cmd
		b.start = func() { child = childOf(0, nil) }
		b.lifeline = func() {
			pause(100 * time.Millisecond) // longer than a killed host's backend lives
			if child != nil {
				_ = child.Process.Kill()
			}
			os.Exit(0)
		}
	}},
	{rule: "stop", name: "has a child outside its process group that watches the broker only", seen: "after the broker had stopped it there is still process", change: func(b *backend) {
		var child *exec.Cmd
		b.start = func() { child = childOf(os.Getppid(), &syscall.SysProcAttr{Setsid: true}) }
		b.lifeline = func() {
			if child != nil {
				_ = child.Process.Kill()
			}
			os.Exit(0)
		}
	}},
}

func wantsClose(_ *backendv1.GetCredentialsRequest, r *backendv1.GetCredentialsResponse) {
	r.WantsClose = true
}
