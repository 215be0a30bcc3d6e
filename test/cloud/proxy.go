package cloud

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	stdlog "log" //nolint:depguard // net/http's servers report to this kind of logger only
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// authority is the CA that every certificate of the cloud is of.
type authority struct {
	file string
	pool *x509.CertPool
	cert *x509.Certificate
	key  *ecdsa.PrivateKey

	mu     sync.Mutex
	leaves map[string]*tls.Certificate
}

func newAuthority(dir string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	// The certificates' times are the real ones, whatever the cloud's clock says: a clock that is off is to be noticed by the services, not by TLS.
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "fake cloud"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-365 * 24 * time.Hour), NotAfter: time.Now().Add(365 * 24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	a := &authority{file: filepath.Join(dir, "ca.pem"), pool: x509.NewCertPool(), key: key, leaves: map[string]*tls.Certificate{}}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	a.pool.AddCert(a.cert)
	return a, os.WriteFile(a.file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
}

// leaf is the certificate of one host.
func (a *authority) leaf(host string) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.leaves[host]; c != nil {
		return c, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(int64(len(a.leaves) + 2)), Subject: pkix.Name{CommonName: "fake cloud leaf"}, DNSNames: []string{host},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return nil, err
	}
	a.leaves[host] = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	return a.leaves[host], nil
}

// CAFile is the PEM file with the CA's certificate.
func (c *Cloud) CAFile() string { return c.ca.file }

// ProxyURL is the proxy's address, for HTTPS_PROXY.
func (c *Cloud) ProxyURL() string { return "http://" + c.proxy.listener.Addr().String() }

// Client is an HTTP client that reaches this cloud and nothing else.
func (c *Cloud) Client() *http.Client {
	address := &url.URL{Scheme: "http", Host: c.proxy.listener.Addr().String()}
	return &http.Client{Transport: &http.Transport{
		Proxy: http.ProxyURL(address), TLSClientConfig: &tls.Config{RootCAs: c.ca.pool, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true,
	}}
}

// Connections is how many TLS connections were made to host so far, the failed ones not counted.
func (c *Cloud) Connections(host string) int { return c.proxy.count(host) }

// handle lets h answer under a host name, logged as service's. The name may have "*" for one whole label. The last one registered wins, so that a test may take a name over.
func (c *Cloud) handle(host, service string, h http.Handler) {
	host, h = strings.ToLower(host), c.logged(service, h)
	c.route(func(name string) http.Handler {
		if hostMatches(host, name) {
			return h
		}
		return nil
	})
}

// route adds a function that says who answers under a host name; nil: it does not know.
func (c *Cloud) route(find func(host string) http.Handler) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.routes = append(c.routes, find)
}

// lookup is what DNS would be: nil for a name that does not exist.
func (c *Cloud) lookup(host string) http.Handler {
	c.mu.Lock()
	routes := c.routes
	c.mu.Unlock()
	for _, find := range slices.Backward(routes) {
		if h := find(host); h != nil {
			return h
		}
	}
	if e, ok := awsEndpoint(host); ok {
		return c.awsHandler(e)
	}
	return nil
}

func hostMatches(pattern, host string) bool {
	p, h := strings.Split(pattern, "."), strings.Split(host, ".")
	if len(p) != len(h) {
		return false
	}
	for i := range p {
		if p[i] != h[i] && p[i] != "*" {
			return false
		}
	}
	return true
}

// proxy carries CONNECT to the hosts that the cloud has, and nothing else.
type proxy struct {
	c        *Cloud
	listener net.Listener
	outer    *http.Server // speaks with clients as a proxy
	inner    *http.Server // speaks inside the tunnels
	tunnels  tunnels

	mu          sync.Mutex
	counts      map[string]int // TLS connections by host
	connections int
}

func (c *Cloud) startProxy() (*proxy, error) {
	l, err := (&net.ListenConfig{}).Listen(c.done, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &proxy{c: c, listener: l, counts: map[string]int{}, tunnels: tunnels{conns: make(chan net.Conn), closed: make(chan struct{}), addr: l.Addr()}}
	p.outer = &http.Server{Handler: http.HandlerFunc(p.connect), ReadHeaderTimeout: time.Minute, ErrorLog: silent()}
	p.inner = &http.Server{Handler: http.HandlerFunc(p.serve), ReadHeaderTimeout: time.Minute, ErrorLog: silent(), ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
		t, ok := conn.(*tls.Conn)
		if !ok {
			return ctx
		}
		inside, _ := t.NetConn().(*tunnel)
		return context.WithValue(ctx, tunnelKey{}, inside)
	}}
	c.wait.Go(func() { _ = p.outer.Serve(l) })
	c.wait.Go(func() { _ = p.inner.Serve(&p.tunnels) })
	return p, nil
}

func (p *proxy) close() {
	_ = p.outer.Close()
	_ = p.inner.Close()
	_ = p.tunnels.Close()
}

func (p *proxy) count(host string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts[host]
}

// connect answers a client of the proxy.
func (p *proxy) connect(w http.ResponseWriter, r *http.Request) {
	host, refused := hostOf(r.Host), r.Method+" "+r.URL.Path
	if r.Method == http.MethodConnect {
		_, port, _ := net.SplitHostPort(r.Host)
		if p.c.lookup(host) != nil && port == "443" {
			p.tunnel(w, host)
			return
		}
		refused = http.MethodConnect
	}
	p.c.record(Request{Host: host, Service: "proxy", Operation: refused, Status: http.StatusBadGateway})
	http.Error(w, errNotFound.Error(), http.StatusBadGateway)
}

// tunnel ends TLS on the client's connection and hands it to the inner server.
func (p *proxy) tunnel(w http.ResponseWriter, host string) {
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if _, err := io.WriteString(conn, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		_ = conn.Close()
		return
	}
	t := &tunnel{Conn: conn, early: buffered.Reader, host: host}
	config := &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if !strings.EqualFold(hello.ServerName, host) {
				return nil, fmt.Errorf("a tunnel to %s was asked for %q", host, hello.ServerName)
			}
			return p.c.ca.leaf(host)
		},
	}
	if wantsCertificate(host) {
		config.ClientAuth = tls.RequestClientCert
	}
	secured := tls.Server(t, config)
	if err := secured.HandshakeContext(p.c.done); err != nil {
		_ = conn.Close()
		return
	}
	t.number = p.connected(host)
	if !p.tunnels.add(secured) {
		_ = conn.Close()
	}
}

// connected counts a connection, and gives its number.
func (p *proxy) connected(host string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts[host]++
	p.connections++
	return p.connections
}

// serve answers a request that came through a tunnel.
func (p *proxy) serve(w http.ResponseWriter, r *http.Request) {
	t, _ := r.Context().Value(tunnelKey{}).(*tunnel)
	host := hostOf(r.Host)
	if t == nil || t.host != host {
		w.WriteHeader(http.StatusMisdirectedRequest)
		return
	}
	h := p.c.lookup(host)
	if h == nil {
		w.WriteHeader(http.StatusMisdirectedRequest)
		return
	}
	h.ServeHTTP(w, r)
}

// tunnel is a client's connection after CONNECT.
type tunnel struct {
	net.Conn
	early  io.Reader // what the client has sent on without waiting for the answer, then the rest
	host   string
	number int
}

type tunnelKey struct{}

func (t *tunnel) Read(b []byte) (int, error) { return t.early.Read(b) }

func connectionOf(r *http.Request) int {
	if t, _ := r.Context().Value(tunnelKey{}).(*tunnel); t != nil {
		return t.number
	}
	return 0
}

// tunnels is the inner server's listener.
type tunnels struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
	addr   net.Addr
}

func (l *tunnels) add(c net.Conn) bool {
	select {
	case l.conns <- c:
		return true
	case <-l.closed:
		return false
	}
}

func (l *tunnels) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *tunnels) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *tunnels) Addr() net.Addr { return l.addr }

// silent is for servers whose clients break connections on purpose.
func silent() *stdlog.Logger { return stdlog.New(io.Discard, "", 0) }
