package vaultserver

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	stdlog "log" //nolint:depguard // net/http's servers report to this kind of logger only
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// certificateHeader is how a front tells the server of a client's certificate.
const certificateHeader = "X-Client-Certificate"

// bodyBytes is the most of a request's body that is kept.
const bodyBytes = 1 << 20

// Front is a reverse proxy before the server, with TLS by the server's CA, on an address of its own. It notes each request, and can spoil them. Clients' certificates get through to the server.
type Front struct {
	s       *Server
	address string
	proxy   *httputil.ReverseProxy

	mu       sync.Mutex
	requests []*Request
	faults   []*Fault
}

// Request is one request that a front was sent.
type Request struct {
	Method string
	// Path is without /v1/, and escaped as it was sent. Query is what followed a question mark.
	Path, Query string
	Namespace   string
	// Status is that of the answer; 0 while there is none, and for a request that was never answered.
	Status int
	// Token is the one that was sent, as X-Vault-Token or as a bearer token. Wrap is the time to live that was asked for a wrapped answer.
	Token, Wrap string
	Header      http.Header
	// Body is the first mebibyte of it.
	Body []byte
}

// Front starts a front. It ends with the server.
func (s *Server) Front() *Front {
	target := &url.URL{Scheme: "https", Host: s.fronts}
	f := &Front{s: s}
	f.proxy = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host
			r.Out.Header.Del(certificateHeader)
			if r.In.TLS != nil && len(r.In.TLS.PeerCertificates) > 0 { // that the client has its key, TLS has seen to
				r.Out.Header.Set("X-Forwarded-For", "127.0.0.1")
				r.Out.Header.Set(certificateHeader, base64.StdEncoding.EncodeToString(r.In.TLS.PeerCertificates[0].Raw))
			}
		},
		Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: s.ca.pool, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true, DisableCompression: true, MaxIdleConnsPerHost: 64,
		},
		ErrorLog: silent(),
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) {
			panic(http.ErrAbortHandler) // the client has gone, or the server
		},
	}
	f.address = s.serveTLS(tls.RequestClientCert, f)
	return f
}

// serveTLS serves h on a loopback port of its own with a certificate of the server's CA, and gives the URL. It ends with the server.
func (s *Server) serveTLS(clients tls.ClientAuthType, h http.Handler) string {
	cert, key, err := s.ca.leaf("front", "127.0.0.1")
	s.must(err)
	pair, err := tls.X509KeyPair(cert, key)
	s.must(err)
	config := &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: clients, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	l, err := (&net.ListenConfig{}).Listen(s.done, "tcp", "127.0.0.1:0")
	s.must(err)
	server := &http.Server{Handler: h, TLSConfig: config, ReadHeaderTimeout: time.Minute, ErrorLog: silent(), ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
		return context.WithValue(ctx, connectionKey{}, conn)
	}}
	s.atClose(func() { _ = server.Close() })
	s.wait.Go(func() { _ = server.ServeTLS(l, "", "") })
	return "https://" + l.Addr().String()
}

// silent is for servers whose clients break connections on purpose.
func silent() *stdlog.Logger { return stdlog.New(io.Discard, "", 0) }

// Address is https://127.0.0.1:PORT.
func (f *Front) Address() string { return f.address }

// Requests are the requests so far, oldest first.
func (f *Front) Requests() []Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make([]Request, 0, len(f.requests))
	for _, r := range f.requests {
		all = append(all, *r)
	}
	return all
}

// Forget empties the log of requests.
func (f *Front) Forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests = nil
}

// note puts a request into the log, and leaves it whole.
func (f *Front) note(r *http.Request) (*Request, error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, bodyBytes))
	if err != nil {
		return nil, fmt.Errorf("reading a request: %w", err)
	}
	r.Body = io.NopCloser(io.MultiReader(bytes.NewReader(body), r.Body))
	noted := &Request{
		Method: r.Method, Path: strings.TrimPrefix(r.URL.EscapedPath(), "/v1/"), Query: r.URL.RawQuery, Namespace: r.Header.Get("X-Vault-Namespace"), Token: tokenOf(r), Wrap: r.Header.Get("X-Vault-Wrap-Ttl"),
		Header: r.Header.Clone(), Body: body,
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests = append(f.requests, noted)
	return noted, nil
}

// tokenOf is a request's Vault token, in either of the ways in which Vault takes one.
func tokenOf(r *http.Request) string {
	if token := r.Header.Get("X-Vault-Token"); token != "" {
		return token
	}
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return token
}

func (f *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	noted, err := f.note(r)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	w = &noting{ResponseWriter: w, status: func(status int) {
		f.mu.Lock()
		defer f.mu.Unlock()
		noted.Status = status
	}}
	if fault, ok := f.fault(r); ok {
		f.spoil(w, r, noted, fault)
		return
	}
	f.proxy.ServeHTTP(w, r)
}

// noting tells the log the status before the client can have seen it.
type noting struct {
	http.ResponseWriter
	status func(int)
	wrote  bool
}

func (w *noting) WriteHeader(status int) {
	if !w.wrote && status >= http.StatusOK {
		w.wrote = true
		w.status(status)
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *noting) Write(b []byte) (int, error) {
	if !w.wrote {
		w.WriteHeader(http.StatusOK)
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap is what http.ResponseController looks for.
func (w *noting) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Thief is a server with TLS by the server's CA that answers 200 and {} to anything, and keeps what it is sent.
type Thief struct {
	address string

	mu     sync.Mutex
	stolen []string
}

// Thief starts a thief. It ends with the server.
func (s *Server) Thief() *Thief {
	t := &Thief{}
	t.address = s.serveTLS(tls.RequestClientCert, t)
	return t
}

// Address is https://127.0.0.1:PORT.
func (t *Thief) Address() string { return t.address }

// Stolen is what it has been sent, oldest first: of each request the token, what is in its address but for the server's name, and its body, as far as it had them.
func (t *Thief) Stolen() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.stolen)
}

func (t *Thief) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(r.Body, bodyBytes))
	t.mu.Lock()
	for _, what := range []string{tokenOf(r), r.URL.RequestURI(), string(body)} {
		if what != "" {
			t.stolen = append(t.stolen, what)
		}
	}
	t.mu.Unlock()
	writeJSON(w, http.StatusOK, struct{}{})
}

// servePlain is serveTLS without TLS, for what only the server asks.
func (s *Server) servePlain(h http.Handler) string {
	l, err := (&net.ListenConfig{}).Listen(s.done, "tcp", "127.0.0.1:0")
	s.must(err)
	server := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute, ErrorLog: silent()}
	s.atClose(func() { _ = server.Close() })
	s.wait.Go(func() { _ = server.Serve(l) })
	return "http://" + l.Addr().String()
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		panic(http.ErrAbortHandler) // the client has gone
	}
}
