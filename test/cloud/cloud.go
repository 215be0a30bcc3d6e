package cloud

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Options say how the cloud is started.
type Options struct {
	// Now is the cloud's clock. nil: time.Now.
	Now func() time.Time
}

// Cloud is a running fake cloud. All its methods may be called at any time, by several at once.
type Cloud struct {
	now     func() time.Time
	dir     string
	ca      *authority
	proxy   *proxy
	cancel  context.CancelFunc // ends handlers that hang
	done    context.Context    //nolint:containedctx // the cloud's own life, which requests that hang must not outlast
	secrets secrets

	mu            sync.Mutex
	offset        time.Duration
	requests      []*Request
	routes        []func(host string) http.Handler
	closers       []func() // run by Close, the last one first
	faults        []*Fault
	aws           iam
	google        googleIAM
	entra         entra
	acr           acr
	arm           arm
	issuers       map[string]*Issuer   // by URL
	registries    map[string]*registry // by region and account
	registryHosts map[string]*registry
	wait          sync.WaitGroup
}

// Request is one API request that the cloud was sent. It has no secret in it.
type Request struct {
	// Host is the name, without port, under which the service was asked.
	Host string
	// Service is "sts", "ecr", "ecr-public", "imds", "container", "google-oauth", "google-sts", "google-iam", "google-artifacts", "google-metadata", "entra", "acr", "azure-metadata", "registry", "issuer" and so on; "proxy" for what
	// the proxy refused to carry.
	Service string
	// Operation is the API's name for it, or method and path where the API has none.
	Operation string
	// Principal is the ARN (or the other clouds' name) of who was found to ask. Empty: nobody known.
	Principal string
	// Status is the HTTP status of the answer; 0 while there is none, and for a request that was never answered.
	Status int
	// Code is the service's error code. Empty: no error.
	Code string
	// Connection is the number of the TLS connection that it came by, counted from 1 through the cloud's life; 0 for plain HTTP.
	Connection int
}

// Start starts everything on 127.0.0.1. Close ends it.
func Start(o Options) (*Cloud, error) {
	c := &Cloud{now: o.Now, issuers: map[string]*Issuer{}, registries: map[string]*registry{}, registryHosts: map[string]*registry{}}
	if c.now == nil {
		c.now = time.Now
	}
	c.done, c.cancel = context.WithCancel(context.Background())
	var err error
	if c.dir, err = os.MkdirTemp("", "cloud"); err != nil {
		return nil, fmt.Errorf("making the fake cloud's directory: %w", err)
	}
	if err := c.start(); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Cloud) start() error {
	var err error
	if c.ca, err = newAuthority(c.dir); err != nil {
		return fmt.Errorf("making the fake cloud's CA: %w", err)
	}
	if c.proxy, err = c.startProxy(); err != nil {
		return fmt.Errorf("starting the fake cloud's proxy: %w", err)
	}
	c.startAWS()
	c.startGoogle()
	c.startAzure()
	return nil
}

// New starts a cloud that is closed at the test's end.
func New(t testing.TB) *Cloud {
	t.Helper()
	c, err := Start(Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// Close ends all that Start and the other methods have started. Requests that hang are cut off.
func (c *Cloud) Close() {
	c.cancel()
	if c.proxy != nil {
		c.proxy.close()
	}
	c.mu.Lock()
	closers := c.closers
	c.closers = nil
	c.mu.Unlock()
	for _, stop := range slices.Backward(closers) {
		stop()
	}
	c.wait.Wait()
	_ = os.RemoveAll(c.dir)
}

// Now is the cloud's time.
func (c *Cloud) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now().Add(c.offset)
}

// SetClockOffset moves the cloud's clock away from Options.Now, to and fro.
func (c *Cloud) SetClockOffset(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset = d
}

// Environ is the environment in which a program finds this cloud and no other: "NAME=value" each. Plain HTTP is not sent through the proxy; a test that wants to see whether a
// program asks for metadata there adds HTTP_PROXY with ProxyURL. Outside Linux, Go takes its roots from the system and not from SSL_CERT_FILE; AWS_CA_BUNDLE holds everywhere.
func (c *Cloud) Environ() []string {
	return []string{
		"HTTPS_PROXY=" + c.ProxyURL(), "https_proxy=" + c.ProxyURL(), "NO_PROXY=", "no_proxy=",
		"SSL_CERT_FILE=" + c.CAFile(), "SSL_CERT_DIR=" + c.dir, "AWS_CA_BUNDLE=" + c.CAFile(),
		"AWS_EC2_METADATA_DISABLED=true",
	}
}

// Requests are the requests so far, in the order of their arrival.
func (c *Cloud) Requests() []Request {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]Request, 0, len(c.requests))
	for _, r := range c.requests {
		all = append(all, *r)
	}
	return all
}

// ForgetRequests empties the log of requests. Connections are counted on.
func (c *Cloud) ForgetRequests() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests = nil
}

// entry is a request's place in the log.
type entry struct {
	c *Cloud
	r *Request
}

type entryKey struct{}

// record puts a request into the log.
func (c *Cloud) record(r Request) entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := entry{c, &r}
	c.requests = append(c.requests, e.r)
	return e
}

// entryOf is the place in the log of the request that a handler is answering.
func entryOf(r *http.Request) entry {
	e, _ := r.Context().Value(entryKey{}).(entry)
	return e
}

func (e entry) set(change func(*Request)) {
	if e.c == nil {
		return
	}
	e.c.mu.Lock()
	defer e.c.mu.Unlock()
	change(e.r)
}

func (e entry) operation(name string) { e.set(func(r *Request) { r.Operation = name }) }
func (e entry) principal(name string) { e.set(func(r *Request) { r.Principal = name }) }
func (e entry) code(name string)      { e.set(func(r *Request) { r.Code = name }) }

// logged puts what h answers into the log as service's. h sets operation, principal and code by way of entryOf; the operation is method and path unless it does.
func (c *Cloud) logged(service string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Context().Value(unloggedKey{}) != nil {
			h.ServeHTTP(w, r)
			return
		}
		e := c.record(Request{Host: hostOf(r.Host), Service: service, Operation: r.Method + " " + r.URL.Path, Connection: connectionOf(r)})
		w.Header().Set("Date", c.Now().UTC().Format(http.TimeFormat)) // clients learn from it how far their clocks are off
		status := &statusWriter{ResponseWriter: w, e: e}
		h.ServeHTTP(status, r.WithContext(context.WithValue(r.Context(), entryKey{}, e)))
		if !status.wrote {
			status.WriteHeader(http.StatusOK)
		}
	})
}

// statusWriter tells the log the status before the client can have seen it.
type statusWriter struct {
	http.ResponseWriter
	e     entry
	wrote bool
}

func (w *statusWriter) WriteHeader(status int) {
	if !w.wrote {
		w.wrote = true
		w.e.set(func(r *Request) { r.Status = status })
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(b []byte) (int, error) {
	if !w.wrote {
		w.WriteHeader(http.StatusOK)
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap is what http.ResponseController looks for.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// listen serves h on a loopback port of its own in plain HTTP, logged as service's, until the cloud is closed. It returns the URL, without a slash at its end.
func (c *Cloud) listen(service string, h http.Handler) (url string, err error) {
	l, err := (&net.ListenConfig{}).Listen(c.done, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("listening for %s: %w", service, err)
	}
	c.serveOn(l, service, h)
	return "http://" + l.Addr().String(), nil
}

// serveOn serves h on l, logged as service's, until the cloud is closed.
func (c *Cloud) serveOn(l net.Listener, service string, h http.Handler) {
	s := &http.Server{Handler: c.logged(service, h), ReadHeaderTimeout: time.Minute, ErrorLog: silent()}
	c.atClose(func() { _ = s.Close() })
	c.wait.Go(func() { _ = s.Serve(l) })
}

// mustListenTLS is mustListen with TLS, and without the log of connections.
func (c *Cloud) mustListenTLS(service string, config *tls.Config, h http.Handler) string {
	l, err := (&net.ListenConfig{}).Listen(c.done, "tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	c.serveOn(tls.NewListener(l, config), service, h)
	return "https://" + l.Addr().String()
}

// atClose has Close call stop.
func (c *Cloud) atClose(stop func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closers = append(c.closers, stop)
}

// refusing is a URL at which connections are refused. Nobody else gets the port while the cloud runs, as far as that can be had: it has just been this process's.
func (c *Cloud) refusing() string {
	l, err := (&net.ListenConfig{}).Listen(c.done, "tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}

// mustListen is listen for methods that have no error to return: without a loopback port nothing can be tested.
func (c *Cloud) mustListen(service string, h http.Handler) string {
	url, err := c.listen(service, h)
	if err != nil {
		panic(err)
	}
	return url
}

// random is a random text of n capital letters and digits.
func random(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return base32.StdEncoding.EncodeToString(b)[:n]
}

// hostOf is a Host header without its port.
func hostOf(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return strings.ToLower(strings.Trim(host, "[]"))
}

var errNotFound = errors.New("no such host")

// requestID is a number that a service gives a request.
func requestID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	if w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "application/json")
	}
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		panic(http.ErrAbortHandler) // the client has gone
	}
}

type unloggedKey struct{}

// unlogged marks requests that services of the cloud make of one another.
func unlogged(ctx context.Context) context.Context {
	return context.WithValue(ctx, unloggedKey{}, true)
}

// name is the operation's, as far as it is known.
func (e entry) name() string {
	if e.c == nil {
		return ""
	}
	e.c.mu.Lock()
	defer e.c.mu.Unlock()
	return e.r.Operation
}
