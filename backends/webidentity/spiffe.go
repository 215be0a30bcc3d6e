package webidentity

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/credential-broker/credential-broker/backends"
)

// spiffeTimeout bounds one question to a Workload API. An agent may have to ask its server for a token first.
const spiffeTimeout = 5 * time.Second

// spiffe is a SPIFFE Workload API. It is called by the client that is generated from go-spiffe's protocol; the client of its package workloadapi is this one with X.509, JOSE and watching
// around it, none of which one token needs.
type spiffe struct {
	SPIFFE
	judge judge
	env   func(string) string
}

func (s *spiffe) String() string {
	if at, err := s.address(); err == nil {
		return "the SPIFFE Workload API at " + at.String()
	}
	return "the SPIFFE Workload API"
}

const socketVariable = "SPIFFE_ENDPOINT_SOCKET"

func (s *spiffe) address() (socket, error) {
	if s.Socket != "" {
		return parseSocket(s.Socket)
	}
	fromEnv := s.env(socketVariable)
	if fromEnv == "" {
		return socket{}, fmt.Errorf("nothing says where it is: set socket, or %s in the provider's env", socketVariable)
	}
	at, err := parseSocket(fromEnv)
	if err != nil {
		return socket{}, fmt.Errorf("%s: %w", socketVariable, err)
	}
	return at, nil
}

// Token asks for a JWT-SVID (SPIFFE Workload API, section 6.2.1).
func (s *spiffe) Token(ctx context.Context) (Token, error) {
	at, err := s.address()
	if err != nil {
		return Token{}, s.judge.misconfigured(".socket", s.String(), "%w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, spiffeTimeout)
	defer cancel()
	d := dialer{socket: at}
	// The name is no more than a name: the dialer knows where to go. So nothing is looked up, and no proxy is asked.
	conn, err := grpc.NewClient("passthrough:///workload", grpc.WithContextDialer(d.dial), grpc.WithNoProxy(), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(),
		grpc.WithAuthority("localhost"), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxToken)))
	if err != nil {
		return Token{}, problem(backends.Unavailable, s.String(), "%w", err)
	}
	defer conn.Close()
	ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true") // without it the API answers nobody (SPIFFE Workload Endpoint, section 5)
	resp, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{s.judge.audience}, SpiffeId: s.ID})
	if err != nil {
		return Token{}, s.refusal(ctx, status.Code(err), d.failure())
	}
	for _, svid := range resp.GetSvids() { // the first is the default one
		if s.ID == "" || svid.GetSpiffeId() == s.ID {
			return s.judge.token(svid.GetSvid(), s.String())
		}
	}
	return Token{}, s.notIssued()
}

// notIssued: who this process is, the API finds out by itself; it was not told.
func (s *spiffe) notIssued() error {
	wanted := "no identity is"
	if s.ID != "" {
		wanted = s.ID + " is not"
	}
	return problem(backends.Refused, s.String(), "%s issued to this process: register an entry whose selectors fit the backend (uid %d, path of its executable)", wanted, os.Getuid())
}

// refusal says what a call's failure means. dial is why the last connection failed, if one did.
func (s *spiffe) refusal(ctx context.Context, code codes.Code, dial error) error {
	switch {
	case code == codes.PermissionDenied:
		return s.notIssued()
	case code == codes.InvalidArgument:
		return s.judge.misconfigured("", s.String(), "it does not take audience %q or SPIFFE ID %q (code %v): set %s, or id", s.judge.audience, s.ID, code, s.judge.setting)
	case code == codes.Unimplemented:
		return s.judge.misconfigured(".socket", s.String(), "who answers there gives no JWT-SVIDs (code %v): name the socket of a Workload API", code)
	case code == codes.ResourceExhausted:
		return problem(backends.Unavailable, s.String(), "it is busy, or its answer is too long (code %v)", code)
	case code == codes.Unavailable && errors.Is(dial, fs.ErrNotExist):
		return problem(backends.Unavailable, s.String(), "there is no such socket: is the agent running, and is its socket there for this process to see?")
	case code == codes.Unavailable && errors.Is(dial, fs.ErrPermission):
		return s.judge.misconfigured(".socket", s.String(), "this process (uid %d) may not use the socket: change the socket's mode or its directory's, or the provider's user", os.Getuid())
	case code == codes.Unavailable && errors.Is(dial, syscall.ECONNREFUSED):
		return problem(backends.Unavailable, s.String(), "nobody listens there: is the agent running?")
	case code == codes.Unavailable && dial != nil:
		return problem(backends.Unavailable, s.String(), "it cannot be connected to: %w", dial)
	case ctx.Err() != nil:
		return problem(backends.Unavailable, s.String(), "%w", ended(ctx))
	default:
		return problem(backends.Unavailable, s.String(), "it gave no token (code %v): see the agent's log", code)
	}
}

// dialer connects, and remembers why it could not: gRPC makes a text of that.
type dialer struct {
	socket socket
	mu     sync.Mutex
	err    error
}

func (d *dialer) dial(ctx context.Context, _ string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: connectTimeout}).DialContext(ctx, d.socket.network, d.socket.address)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = err
	return conn, err
}

func (d *dialer) failure() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if op, ok := errors.AsType[*net.OpError](d.err); ok {
		return op.Err
	}
	return d.err
}

// isSPIFFEID says whether s has the form of a SPIFFE ID (SPIFFE-ID, section 2): spiffe://trust-domain/path.
func isSPIFFEID(s string) bool {
	rest, ok := strings.CutPrefix(s, "spiffe://")
	domain, path, hasPath := strings.Cut(rest, "/")
	if !ok || domain == "" || len(s) > 2048 || hasPath && path == "" {
		return false
	}
	for segment := range strings.SplitSeq(path, "/") {
		if hasPath && (segment == "" || segment == "." || segment == "..") {
			return false
		}
	}
	other := func(also string) func(rune) bool {
		return func(r rune) bool { return !alphanumeric(r) && !strings.ContainsRune(also, r) }
	}
	return strings.ToLower(domain) == domain && !strings.ContainsFunc(domain, other(".-_")) && !strings.ContainsFunc(path, other(".-_/"))
}
