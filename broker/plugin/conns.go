package plugin

import (
	"context"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
)

// conns knows the connections that go-plugin makes to one backend. It forgets those whose first stream fails, and they would try to connect for ever.
type conns struct {
	mu     sync.Mutex
	seen   []*grpc.ClientConn
	closed bool
}

// intercept sees every stream that go-plugin opens. The one over which a backend may offer further connections is refused: nothing here uses it, and go-plugin keeps
// whatever a backend offers there, without bound.
func (c *conns) intercept(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if !c.keep(conn) {
		_ = conn.Close()
		return nil, status.Error(codes.Unavailable, "the backend has been stopped")
	}
	if strings.HasSuffix(method, ".GRPCBroker/StartStream") {
		return nil, status.Error(codes.Unimplemented, "no connections besides the first")
	}
	return open(ctx, desc, conn, method, opts...)
}

func (c *conns) keep(conn *grpc.ClientConn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.seen = append(c.seen, conn)
	return true
}

// broken says that a connection has been lost or closed.
func (c *conns) broken() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed || slices.ContainsFunc(c.seen, func(conn *grpc.ClientConn) bool { return conn.GetState() != connectivity.Ready })
}

func (c *conns) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, conn := range c.seen {
		_ = conn.Close()
	}
	c.seen = nil
}
