package cloud

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// WorkloadAPI is a SPIFFE Workload API on a unix socket, as far as JWT-SVIDs go
// (https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Workload_API.md).
type WorkloadAPI struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	c      *Cloud
	socket string
	domain string
	issuer *Issuer

	mu  sync.Mutex
	ids []string
}

// WorkloadAPI starts a Workload API of a trust domain, with the SPIFFE IDs that whoever asks has, the default one first. Its tokens are of an OIDC issuer, as
// SPIRE's discovery provider is one.
func (c *Cloud) WorkloadAPI(trustDomain string, ids ...string) *WorkloadAPI {
	l, socket, err := c.listenUnix("workload")
	if err != nil {
		panic(err)
	}
	a := &WorkloadAPI{c: c, socket: socket, domain: trustDomain, issuer: c.AddIssuer("https://oidc." + trustDomain), ids: ids}
	s := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(s, a)
	c.wait.Go(func() { _ = s.Serve(l) })
	c.wait.Go(func() {
		<-c.done.Done()
		s.Stop()
	})
	return a
}

// listenUnix makes a socket of its own in the cloud's directory, whose path is short enough for one.
func (c *Cloud) listenUnix(name string) (net.Listener, string, error) {
	path := filepath.Join(c.dir, name+"-"+random(4)+".sock")
	l, err := (&net.ListenConfig{}).Listen(c.done, "unix", path)
	return l, path, err
}

// Socket is the socket's path.
func (a *WorkloadAPI) Socket() string { return a.socket }

// Environ points SPIFFE's libraries to it.
func (a *WorkloadAPI) Environ() []string {
	return []string{"SPIFFE_ENDPOINT_SOCKET=unix://" + a.socket}
}

// Issuer is the issuer of its tokens.
func (a *WorkloadAPI) Issuer() *Issuer { return a.issuer }

// SetIDs replaces the SPIFFE IDs that whoever asks has; none: no identity is issued.
func (a *WorkloadAPI) SetIDs(ids ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ids = ids
}

// begin is what every call begins with.
func (a *WorkloadAPI) begin(ctx context.Context, operation string) (entry, error) {
	e := a.c.record(Request{Host: a.domain, Service: "spiffe", Operation: operation})
	err := a.admit(ctx, operation)
	if err != nil {
		e.code(status.Code(err).String())
	}
	return e, err
}

func (a *WorkloadAPI) admit(ctx context.Context, operation string) error {
	if f, ok := a.c.fault("spiffe", operation); ok {
		switch {
		case f.Hang:
			select {
			case <-ctx.Done():
			case <-a.c.done.Done():
			}
			return status.FromContextError(ctx.Err()).Err()
		case f.Code != "":
			var code codes.Code
			if err := code.UnmarshalJSON([]byte(`"` + f.Code + `"`)); err != nil {
				panic(fmt.Errorf("a gRPC code such as UNAVAILABLE is wanted: %w", err))
			}
			return status.Error(code, f.Body)
		default:
			return status.Error(codes.Unavailable, f.Body)
		}
	}
	// Without this header it could be a browser that was tricked into asking (SPIFFE Workload Endpoint, section 5).
	if md, _ := metadata.FromIncomingContext(ctx); !slices.Equal(md.Get("workload.spiffe.io"), []string{"true"}) {
		return status.Error(codes.InvalidArgument, "security header missing from request")
	}
	return nil
}

var errNoIdentity = status.Error(codes.PermissionDenied, "no identity issued")

// FetchJWTSVID gives a token for each identity, or for the one that is asked for.
func (a *WorkloadAPI) FetchJWTSVID(ctx context.Context, r *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	e, err := a.begin(ctx, "FetchJWTSVID")
	if err != nil {
		return nil, err
	}
	if len(r.GetAudience()) == 0 || slices.Contains(r.GetAudience(), "") {
		e.code(codes.InvalidArgument.String())
		return nil, status.Error(codes.InvalidArgument, "audience must be specified")
	}
	a.mu.Lock()
	ids := slices.Clone(a.ids)
	a.mu.Unlock()
	answer := &workload.JWTSVIDResponse{}
	for _, id := range ids {
		if r.GetSpiffeId() != "" && r.GetSpiffeId() != id {
			continue
		}
		if len(answer.GetSvids()) == 0 {
			e.principal(id)
		}
		claims := map[string]any{"sub": id, "aud": r.GetAudience(), "exp": a.c.Now().Add(5 * time.Minute).Unix()}
		answer.Svids = append(answer.Svids, &workload.JWTSVID{SpiffeId: id, Svid: a.issuer.Token(claims)})
	}
	if len(answer.GetSvids()) == 0 {
		e.code(codes.PermissionDenied.String())
		return nil, errNoIdentity
	}
	return answer, nil
}

// FetchJWTBundles gives the keys that the trust domain's tokens are verified with.
func (a *WorkloadAPI) FetchJWTBundles(_ *workload.JWTBundlesRequest, stream grpc.ServerStreamingServer[workload.JWTBundlesResponse]) error {
	e, err := a.begin(stream.Context(), "FetchJWTBundles")
	if err != nil {
		return err
	}
	a.mu.Lock()
	issued := len(a.ids) > 0
	a.mu.Unlock()
	if !issued {
		e.code(codes.PermissionDenied.String())
		return errNoIdentity
	}
	bundle, err := a.issuer.bundle()
	if err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	if err := stream.Send(&workload.JWTBundlesResponse{Bundles: map[string][]byte{"spiffe://" + a.domain: bundle}}); err != nil {
		return err
	}
	select { // the stream stays open for new keys
	case <-stream.Context().Done():
	case <-a.c.done.Done():
	}
	return nil
}

// bundle is the published keys, as a JWT bundle has them.
func (i *Issuer) bundle() ([]byte, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	keys := jose.JSONWebKeySet{}
	for _, k := range i.keys.Keys {
		k.Use = "jwt-svid"
		keys.Keys = append(keys.Keys, k)
	}
	return json.Marshal(keys)
}
