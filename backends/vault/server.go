package vault

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/files"
	"github.com/credential-broker/credential-broker/backends/internal/hosts"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
)

// server is Vault. It is the transport of Vault's own library, which of itself would follow a redirect to any host with the token, and quotes what was answered in its errors.
type server struct {
	cfg     *Config
	address address
	// redirects are the addresses that Vault may point to: "https://host:port".
	redirects map[string]bool
	// open gives the way there, once the files that it needs can be read.
	mu        sync.Mutex
	transport *http.Transport
	client    *api.Client
	trusted   fs.FileInfo // caFile as it was read
	remote.Throttle

	now   func() time.Time
	sleep func(ctx context.Context, d time.Duration) bool // false: ctx ended before
}

// address is where Vault is.
type address struct {
	url    *url.URL
	socket string // the path of a unix socket; empty: none
}

func (a address) String() string {
	if a.socket != "" {
		return "unix://" + a.socket
	}
	return a.url.String()
}

// parseAddress takes an https URL, or one whose traffic stays on this machine.
func parseAddress(s string) (address, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil: // it may have a password in it
		return address{}, errors.New("want a URL such as https://vault.example:8200, and this is none")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Opaque != "":
		return address{}, errors.New("want a URL without user, password, query and fragment")
	case u.Scheme == "unix":
		if u.Host != "" || !filepath.IsAbs(u.Path) {
			return address{}, fmt.Errorf("want the absolute path of a socket, such as unix:///run/vault-agent.sock, got %q", s)
		}
		return address{&url.URL{Scheme: "http", Host: "localhost"}, u.Path}, nil
	case u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		return address{}, fmt.Errorf("want a URL such as https://vault.example:8200, got %q", s)
	case u.Scheme == "http" && !hosts.IsLoopback(u.Hostname()):
		return address{}, errors.New("want https: plain http, which shows tokens and passwords to everybody on the way, is for loopback addresses only")
	}
	u.Path = strings.TrimRight(u.Path, "/")
	return address{u, ""}, nil
}

func newServer(c *Config) *server {
	s := &server{cfg: c, redirects: map[string]bool{}, now: time.Now, sleep: remote.Sleep}
	s.address, _ = parseAddress(c.Address) // validated
	for _, other := range append([]string{c.Address}, c.RedirectAddresses...) {
		if a, err := parseAddress(other); err == nil && a.socket == "" {
			s.redirects[origin(a.url)] = true
		}
	}
	return s
}

// origin is scheme, host and port.
func origin(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	return u.Scheme + "://" + net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// as is Vault's client with a token, in a namespace.
func (s *server) as(token backends.Secret, namespace string) (*api.Client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client == nil || s.renewedLocked() {
		client, err := s.openLocked()
		switch {
		case err == nil:
			s.client = client
		case s.client == nil:
			return nil, err
		default: // somebody is writing the file: the next question tries again
			slog.Warn("the certificates of caFile cannot be read anew: those from before are used", "reason", err.Error())
		}
	}
	c := s.client.WithNamespace(strings.Trim(namespace, "/"))
	c.SetToken(string(token))
	return c, nil
}

// prepare opens the way to Vault, and connects to nobody.
func (s *server) prepare() {
	if _, err := s.as("", ""); err != nil {
		return // the same for whoever asks
	}
	s.mu.Lock()
	trusts := s.transport.TLSClientConfig.RootCAs
	s.mu.Unlock()
	if trusts == nil && s.address.url.Scheme == "https" {
		// The certificates that the machine trusts are 20 ms of work on a Debian, as much as the rest of a pull; most Vaults have a CA of their own, and then they are not read at all.
		_, _ = x509.SystemCertPool()
	}
}

// renewedLocked says whether somebody has put another file in the place of caFile.
func (s *server) renewedLocked() bool {
	if s.cfg.CAFile == "" {
		return false
	}
	now, err := os.Stat(s.cfg.CAFile)
	return err == nil && (s.trusted == nil || !now.ModTime().Equal(s.trusted.ModTime()) || now.Size() != s.trusted.Size())
}

func (s *server) openLocked() (*api.Client, error) {
	trusted, _ := os.Stat(s.cfg.CAFile) // before it is read: a change meanwhile is noticed the next time
	transport := remote.Transport(string(s.cfg.Proxy))
	transport.ForceAttemptHTTP2 = false // a pull asks a few times, one after the other: HTTP/2 would only have more to agree on first
	if s.address.socket != "" {
		transport.Proxy = nil
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", s.address.socket)
		}
	}
	t := transport.TLSClientConfig
	t.ServerName = s.cfg.TLSServerName
	var err error
	if t.RootCAs, err = s.authorities(); err != nil {
		return nil, err
	}
	if s.cfg.Auth.CertFile != "" {
		t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return s.certificate() }
	}
	client, err := api.NewClient(&api.Config{
		Address: s.address.url.String(), HttpClient: &http.Client{Transport: s, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		MaxRetries: 0, DisableRedirects: true, ReadYourWrites: true,
	})
	if err != nil {
		return nil, backends.InvalidConfig("address", "Vault's library does not take it")
	}
	if s.transport != nil {
		s.transport.CloseIdleConnections()
	}
	s.transport, s.trusted = transport, trusted
	return client, nil
}

// authorities are the certificates that the server's is verified with; nil: the system's.
func (s *server) authorities() (*x509.CertPool, error) {
	field, from := "caFile", s.cfg.CAFile
	var content []byte
	switch {
	case s.cfg.CAFile != "":
		var err error
		if content, _, err = files.Read(s.cfg.CAFile); err != nil {
			return nil, backends.InvalidConfig(field, "%s: %w", s.cfg.CAFile, err)
		}
	case s.cfg.caBytes != "":
		content, from, field = []byte(s.cfg.caBytes), "VAULT_CACERT_BYTES", ""
	case s.cfg.caPath != "":
		from, field = s.cfg.caPath, ""
		entries, err := os.ReadDir(s.cfg.caPath)
		if err != nil {
			return nil, backends.InvalidConfig("", "VAULT_CAPATH: %w", err)
		}
		for _, e := range entries {
			if one, _, err := files.Read(filepath.Join(s.cfg.caPath, e.Name())); err == nil {
				content = append(append(content, one...), '\n')
			}
		}
	default:
		return nil, nil //nolint:nilnil // crypto/tls's way to say: the system's
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(content) {
		return nil, backends.InvalidConfig(field, "%s: there is no certificate in it, in PEM", from)
	}
	return pool, nil
}

// certificate is the client's. It is read afresh for each connection, since somebody renews it.
func (s *server) certificate() (*tls.Certificate, error) {
	cert, _, err := files.Read(s.cfg.Auth.CertFile)
	if err != nil {
		return nil, backends.InvalidConfig("auth.certFile", "%s: %w", s.cfg.Auth.CertFile, err)
	}
	key, _, err := files.Read(s.cfg.Auth.KeyFile)
	if err != nil {
		return nil, backends.InvalidConfig("auth.keyFile", "%s: %w", s.cfg.Auth.KeyFile, err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil { // which may quote what is in the files
		return nil, backends.InvalidConfig("auth.certFile", "%s and %s: want a certificate and the private key that belongs to it, in PEM, the key without a password", s.cfg.Auth.CertFile, s.cfg.Auth.KeyFile)
	}
	return &pair, nil
}

// exchange is a question to Vault, and what came of it.
type exchange struct {
	asked    bool
	status   int    // of HTTP; 0 if there was no answer
	hint     hint   // what is known of an error's words
	date     string // by Vault's clock
	wait     time.Duration
	redirect string // where it points to, and nothing is sent
	err      error  // why there was no answer
}

// call remembers the last exchange of a question.
type call struct {
	doing string
	// once: it is not to be asked twice.
	once bool
	mu   sync.Mutex
	last exchange
}

type callKey struct{}

type onceKey struct{}

// once is for questions that Vault does something about each time: they are asked again only if it surely has not.
func once(ctx context.Context) context.Context { return context.WithValue(ctx, onceKey{}, true) }

// call begins a question, which doing names for messages.
func (s *server) call(ctx context.Context, doing string) (context.Context, *call) {
	c := &call{doing: doing}
	c.once, _ = ctx.Value(onceKey{}).(bool)
	return context.WithValue(ctx, callKey{}, c), c
}

// gate is by whom Vault may want to be left alone: its quotas are of namespaces and mounts, and what is one's trouble is not to be another's.
func gate(r *http.Request) string {
	_, path, _ := strings.Cut(r.URL.Path, "/v1/") // the address may have a path
	mount, rest, _ := strings.Cut(path, "/")
	if mount == "auth" {
		below, _, _ := strings.Cut(rest, "/")
		mount += "/" + below
	}
	return r.Header.Get(api.NamespaceHeaderName) + " " + mount
}

func (c *call) exchange() exchange {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

const (
	// tries is how often Vault is asked that fails in a way which may be over the next moment, and firstPause how long the first pause between is.
	tries      = 3
	firstPause = 100 * time.Millisecond
	// leastTime is what an answer takes, if all is well.
	leastTime = time.Second
	// maxRequest bounds what is sent, in bytes.
	maxRequest = 1 << 20
)

// RoundTrip implements http.RoundTripper. What is asked here may be asked twice, but for what once is for.
func (s *server) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		var err error
		body, err = io.ReadAll(io.LimitReader(r.Body, maxRequest))
		_ = r.Body.Close()
		if err != nil {
			return nil, err
		}
	}
	c, _ := r.Context().Value(callKey{}).(*call)
	if c == nil {
		c = &call{} // of nobody who would read it
	}
	pause := firstPause
	for try := 1; ; try++ {
		resp, last, err := s.obedient(r, body)
		c.mu.Lock()
		c.last = last
		c.mu.Unlock()
		if !last.passing() || c.once && !last.untouched() || try == tries {
			return resp, err
		}
		if last.wait == 0 { // for which obedient waits
			if spread := pause/2 + rand.N(pause); !s.wait(r.Context(), spread) { //nolint:gosec // G404: no secret
				return resp, err
			}
			pause *= 2
		}
		if held := s.Held(gate(r), s.now()); held > 0 && !s.wait(r.Context(), held) {
			return resp, err
		}
	}
}

// wait pauses; false: there would be too little time afterwards.
func (s *server) wait(ctx context.Context, d time.Duration) bool {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < d+min(d, leastTime) {
		return false
	}
	return s.sleep(ctx, d)
}

// errHeld: Vault is not asked yet.
var errHeld = errors.New("it was busy a moment ago, and is left alone for as long as it said")

// obedient asks, but not before Vault wants to be asked.
func (s *server) obedient(r *http.Request, body []byte) (*http.Response, exchange, error) {
	for {
		held := s.Held(gate(r), s.now())
		if held <= 0 {
			break
		}
		if !s.wait(r.Context(), held) {
			return nil, exchange{asked: true, status: http.StatusTooManyRequests, wait: held, err: errHeld}, errHeld
		}
	}
	resp, last, err := s.follow(r, body)
	if last.status == http.StatusTooManyRequests && last.wait == 0 {
		last.wait = remote.Throttled
	}
	if last.wait > 0 {
		s.Hold(gate(r), s.now().Add(last.wait))
	}
	return resp, last, err
}

// maxRedirects is how often one question is sent on. A standby points to the active node, which may have changed meanwhile.
const maxRedirects = 2

// follow asks, and goes where Vault points to if that is an address of the settings.
func (s *server) follow(r *http.Request, body []byte) (*http.Response, exchange, error) {
	at := r.URL
	for redirects := 0; ; redirects++ {
		resp, last, err := s.ask(r, at, body)
		if err != nil || resp.StatusCode < 300 || resp.StatusCode >= 400 {
			return resp, last, err
		}
		location, err := resp.Location()
		if err != nil {
			last.err = errors.New("it points elsewhere, without saying where")
			return nil, last, last.err
		}
		if redirects == maxRedirects {
			last.err = errors.New("its nodes point to each other: they do not agree yet which of them is active")
			return nil, last, last.err
		}
		if last.redirect = remote.Cut(origin(location)); !s.redirects[origin(location)] || location.User != nil {
			last.err = errors.New("it points to another address")
			return nil, last, last.err
		}
		next := *at // its path is what was asked for, whatever the answer says
		next.Scheme, next.Host = location.Scheme, location.Host
		at = &next
	}
}

// ask asks once, and reads the answer.
func (s *server) ask(r *http.Request, at *url.URL, body []byte) (*http.Response, exchange, error) {
	last := exchange{asked: true}
	r = r.Clone(r.Context())
	r.URL, r.Host = at, at.Host
	// net/http sends again what it can, if a connection that was used before breaks: which is right, but for what is asked once.
	c, _ := r.Context().Value(callKey{}).(*call)
	once := c != nil && c.once
	r.Body, r.GetBody, r.ContentLength = http.NoBody, nil, 0
	switch {
	case len(body) > 0:
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		if !once {
			r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
		}
	case once:
		r.Body = io.NopCloser(strings.NewReader("")) // a body that cannot be had again
	}
	if parent := backends.TraceParent(r.Context()); parent != "" { //nolint:contextcheck // the request has it
		r.Header.Set("Traceparent", parent)
	}
	s.mu.Lock()
	way := s.transport // which another caFile replaces
	s.mu.Unlock()
	resp, err := way.RoundTrip(r)
	if err != nil {
		if own, ok := errors.AsType[*backends.Error](err); ok { // the client's certificate
			last.err = own
			return nil, last, own
		}
		last.err = remote.Unanswered(r.Context(), err) //nolint:contextcheck // the request has it
		return nil, last, last.err
	}
	content, err := io.ReadAll(io.LimitReader(resp.Body, remote.MaxAnswer+1))
	_ = resp.Body.Close()
	last.status, last.date = resp.StatusCode, resp.Header.Get("Date")
	switch {
	case err != nil:
		last.err = remote.Unanswered(r.Context(), err) //nolint:contextcheck // the request has it
	case len(content) > remote.MaxAnswer:
		last.err = errors.New("the answer is too long")
	}
	if last.err != nil {
		return nil, last, last.err
	}
	if resp.StatusCode >= 400 {
		last.hint = meaning(content)
		if resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable {
			last.wait = remote.RetryAfter(resp.Header, s.now())
		}
	}
	resp.Body = io.NopCloser(bytes.NewReader(content))
	return resp, last, nil
}

// read gets what is at a path; nil: nothing is.
func (s *server) read(ctx context.Context, doing string, client *api.Client, path string, query map[string][]string) (*api.Secret, *call, error) {
	ctx, c := s.call(ctx, doing)
	secret, err := client.Logical().ReadWithDataWithContext(ctx, path, query)
	return secret, c, err
}

// write sends data to a path.
func (s *server) write(ctx context.Context, doing string, client *api.Client, path string, data map[string]any) (*api.Secret, *call, error) {
	ctx, c := s.call(ctx, doing)
	secret, err := client.Logical().WriteWithContext(ctx, path, data)
	return secret, c, err
}
