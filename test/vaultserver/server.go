package vaultserver

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/credential-broker/credential-broker/test/cloud"
)

// patience bounds every wait for the server. It is for machines that have much else to do: a server needs about a second.
const patience = 2 * time.Minute

// Options say how the server is started.
type Options struct {
	// Cloud is where the server itself goes out to, for the logins that have it ask AWS, Google or Azure: through the fake cloud's proxy, trusting the fake cloud's CA. nil: nowhere.
	Cloud *cloud.Cloud
	// Standby has a second server beside it, which takes over when the first one steps down: both keep what they have in files that they agree on (raft), and take some seconds to start.
	Standby bool
	// Executable is the server's file, for a machine without this checkout. Empty: what the function of that name gives.
	Executable string
}

// Server is a running Vault server. Its methods may be called at any time, by several at once. Those that set something up end the test where that fails; outside a test they panic.
type Server struct {
	node
	t        testing.TB // nil outside a test
	cloud    *cloud.Cloud
	standby  *node // nil: there is none, nor a cluster
	dir      string
	ca       *authority
	clientCA *authority
	key      string // unseals
	token    string
	client   *api.Client
	done     context.Context //nolint:containedctx // the server's own life, which what stands beside it must not outlast
	cancel   context.CancelFunc
	wait     sync.WaitGroup

	mu      sync.Mutex
	closers []func()                          // run by Close, the last one first
	google  map[string]bool                   // mounts of auth/gcp that have their key
	azure   map[string]cloud.ServicePrincipal // what the server is in Azure, by mount of auth/azure and tenant
}

// node is one process, and its addresses, host:port.
type node struct {
	name           string
	process        *process
	secured, plain string
	fronts         string   // with TLS too, and there the fronts are believed what client and certificate they speak for
	clusters       []string // for other nodes, one with each of these three; the first is the one that they are told of
}

// New starts a server that is ended with the test. Where it would have to be built and tests are to be short (-short), the test is skipped.
func New(t testing.TB, o Options) *Server {
	t.Helper()
	skipUnbuilt(t)
	s, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	s.t = t
	t.Cleanup(s.Close)
	return s
}

func skipUnbuilt(t testing.TB) {
	t.Helper()
	if testing.Short() && Built() == "" {
		t.Skip("the Vault server has not been built on this machine, which takes long: make vault-server")
	}
}

// Start starts a server on 127.0.0.1, initialised and unsealed. Close ends it.
func Start(o Options) (*Server, error) {
	file := o.Executable
	if file == "" {
		var err error
		if file, err = Executable(); err != nil {
			return nil, err
		}
	}
	s := &Server{cloud: o.Cloud, google: map[string]bool{}, azure: map[string]cloud.ServicePrincipal{}}
	s.done, s.cancel = context.WithCancel(context.Background())
	if o.Standby {
		s.standby = &node{name: "standby"}
	}
	if err := s.start(file); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Server) start(file string) error {
	var err error
	if s.dir, err = os.MkdirTemp("", "vault"); err != nil {
		return fmt.Errorf("making the Vault server's directory: %w", err)
	}
	if s.ca, err = newAuthority("Vault's CA"); err != nil {
		return fmt.Errorf("making the Vault server's CA: %w", err)
	}
	if s.clientCA, err = newAuthority("clients' CA"); err != nil {
		return fmt.Errorf("making a CA for clients of the Vault server: %w", err)
	}
	cert, key, err := s.ca.leaf("vault", "127.0.0.1")
	if err != nil {
		return fmt.Errorf("making the Vault server's certificate: %w", err)
	}
	for name, content := range map[string][]byte{"ca.pem": s.ca.pem, "cert.pem": cert, "key.pem": key} {
		if err := os.WriteFile(filepath.Join(s.dir, name), content, 0o600); err != nil {
			return fmt.Errorf("writing the Vault server's certificates: %w", err)
		}
	}
	s.name = "active"
	if err := s.launch(file, &s.node); err != nil {
		return err
	}
	if s.client, err = s.clientFor(s.Address()); err != nil {
		return err
	}
	if err := s.initialise(); err != nil || s.standby == nil {
		return err
	}
	return s.join(file)
}

// launch starts a node's process and waits until it listens. Ports are found by taking them and letting them go, since Vault does not say which ones it got. Once in a long while somebody else is quicker.
func (s *Server) launch(file string, n *node) error {
	var err error
	for range 3 {
		if err = s.launchOnce(file, n); err == nil || !strings.Contains(err.Error(), "address already in use") {
			break
		}
	}
	return err
}

func (s *Server) launchOnce(file string, n *node) error {
	found, err := freeAddresses(s.done, 6)
	if err != nil {
		return fmt.Errorf("finding ports for the Vault server: %w", err)
	}
	n.secured, n.plain, n.fronts, n.clusters = found[0], found[1], found[2], found[3:]
	content, err := json.Marshal(s.config(n))
	if err != nil {
		return err
	}
	config := filepath.Join(s.dir, n.name+".json")
	if err := errors.Join(os.WriteFile(config, content, 0o600), os.MkdirAll(filepath.Join(s.dir, n.name), 0o700)); err != nil {
		return fmt.Errorf("configuring the Vault server: %w", err)
	}
	cmd := exec.Command(file, "server", "-config="+config)
	cmd.Env = s.environ()
	if n.process, err = startProcess(cmd); err != nil {
		return err
	}
	return s.awaitNode(n, "listens", func() error {
		for _, address := range []string{n.secured, n.plain, n.fronts} {
			conn, err := (&net.Dialer{}).DialContext(s.done, "tcp", address)
			if err != nil {
				return err
			}
			_ = conn.Close()
		}
		return nil
	})
}

// freeAddresses are n addresses on loopback that nobody listens on.
func freeAddresses(ctx context.Context, n int) ([]string, error) {
	listeners := make([]net.Listener, n)
	addresses := make([]string, n)
	defer func() { // not before all are found
		for _, l := range listeners {
			if l != nil {
				_ = l.Close()
			}
		}
	}()
	for i := range n {
		var err error
		if listeners[i], err = (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0"); err != nil {
			return nil, err
		}
		addresses[i] = listeners[i].Addr().String()
	}
	return addresses, nil
}

// config is a node's configuration (https://developer.hashicorp.com/vault/docs/configuration).
func (s *Server) config(n *node) map[string]any {
	listener := func(number int, address string) map[string]any {
		return map[string]any{
			"address": address, "cluster_address": n.clusters[number], "tls_cert_file": filepath.Join(s.dir, "cert.pem"), "tls_key_file": filepath.Join(s.dir, "key.pem"),
		}
	}
	plain, fronts := listener(1, n.plain), listener(2, n.fronts)
	plain["tls_disable"] = true
	fronts["x_forwarded_for_authorized_addrs"] = "127.0.0.1"
	fronts["x_forwarded_for_client_cert_header"] = certificateHeader
	fronts["x_forwarded_for_client_cert_header_decoders"] = "BASE64"
	storage := map[string]any{"inmem": map[string]any{}}
	if s.standby != nil {
		storage = map[string]any{"raft": map[string]any{"path": filepath.Join(s.dir, n.name), "node_id": n.name, "performance_multiplier": "1", "autopilot_reconcile_interval": "100ms", "autopilot_update_interval": "100ms"}}
	}
	return map[string]any{
		"storage":  storage,
		"listener": []any{map[string]any{"tcp": listener(0, n.secured)}, map[string]any{"tcp": plain}, map[string]any{"tcp": fronts}},
		"api_addr": "https://" + n.secured, "cluster_addr": "https://" + n.clusters[0], "disable_mlock": true,
	}
}

// environ is the process's environment: nothing of what whoever runs the test has set for Vault or for a cloud.
func (s *Server) environ() []string {
	environ := slices.DeleteFunc(os.Environ(), func(variable string) bool {
		name, _, _ := strings.Cut(strings.ToUpper(variable), "=")
		return strings.HasPrefix(name, "VAULT_") || strings.HasPrefix(name, "AWS_") || strings.HasPrefix(name, "AZURE_") || strings.HasPrefix(name, "GOOGLE_") || strings.HasSuffix(name, "_PROXY") ||
			strings.HasPrefix(name, "SSL_CERT_")
	})
	if s.cloud != nil {
		environ = append(environ, s.cloud.Environ()...)
	}
	return environ
}

// initialise makes the keys, and unseals.
func (s *Server) initialise() error {
	made, err := s.client.Sys().Init(&api.InitRequest{SecretShares: 1, SecretThreshold: 1})
	if err != nil {
		return fmt.Errorf("initialising the Vault server: %w", err)
	}
	s.key, s.token = made.KeysB64[0], made.RootToken
	s.client.SetToken(s.token)
	return s.unseal()
}

func (s *Server) unseal() error {
	if _, err := s.client.Sys().Unseal(s.key); err != nil {
		return fmt.Errorf("unsealing the Vault server: %w", err)
	}
	return s.await("answers", func() error {
		status, err := s.client.Sys().Health()
		if err == nil && (status.Sealed || status.Standby) {
			err = errors.New("it is not active yet")
		}
		return err
	})
}

// await calls ready until it returns nil, and fails with its last error after patience, or as soon as the server has ended.
func (s *Server) await(what string, ready func() error) error {
	return s.awaitNode(&s.node, what, ready)
}

func (s *Server) awaitNode(n *node, what string, ready func() error) error {
	ctx, cancel := context.WithTimeout(s.done, patience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-n.process.ended:
			return fmt.Errorf("the Vault server has ended before it %s:\n%s", what, n.process.output.String())
		case <-ctx.Done():
			return fmt.Errorf("waiting until the Vault server %s: %w\n%s", what, err, n.process.output.String())
		}
	}
}

// clientFor is a client of the server at an address, without a token. It takes nothing from the environment.
func (s *Server) clientFor(address string) (*api.Client, error) {
	client, err := api.NewClient(&api.Config{Address: address, Timeout: patience, DisableRedirects: true, HttpClient: &http.Client{
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.ca.pool, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // else this follows all that Vault's client does not
	}})
	if err != nil {
		return nil, fmt.Errorf("making a client of the Vault server: %w", err)
	}
	client.ClearToken()
	client.ClearNamespace()
	return client, nil
}

// Close ends the server and all that stands beside it.
func (s *Server) Close() {
	s.cancel()
	s.mu.Lock()
	closers := s.closers
	s.closers = nil
	s.mu.Unlock()
	for _, stop := range slices.Backward(closers) {
		stop()
	}
	for _, n := range []*node{&s.node, s.standby} {
		if n != nil && n.process != nil {
			n.process.end()
		}
	}
	s.wait.Wait()
	if s.dir != "" {
		_ = os.RemoveAll(s.dir)
	}
}

func (s *Server) atClose(stop func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closers = append(s.closers, stop)
}

// Address is that of Vault's own listener with TLS, https://127.0.0.1:PORT, which asks clients for certificates as Vault does by default.
func (s *Server) Address() string { return "https://" + s.secured }

// PlainAddress is that of its listener without TLS, http://127.0.0.1:PORT.
func (s *Server) PlainAddress() string { return "http://" + s.plain }

// CAFile is a PEM file with the CA that the certificates of Address, of fronts and of thieves are of.
func (s *Server) CAFile() string { return filepath.Join(s.dir, "ca.pem") }

// RootToken is a token that may do everything.
func (s *Server) RootToken() string { return s.token }

// PID is the server's process id.
func (s *Server) PID() int { return s.process.cmd.Process.Pid }

// API is a client with the root token.
func (s *Server) API() *api.Client { return s.As(s.token) }

// As is a client with a token, or with none. It retries nothing, and follows no redirect.
func (s *Server) As(token string) *api.Client {
	client, err := s.clientFor(s.Address())
	s.must(err)
	client.SetToken(token)
	return client
}

// Seal seals the server: it answers 503 to everything until Unseal. What was in memory is still there then, leases and tokens too.
func (s *Server) Seal() { s.must(s.client.Sys().Seal()) }

// Unseal returns once the server is active again.
func (s *Server) Unseal() { s.must(s.unseal()) }

// must ends the test, or panics outside of one.
func (s *Server) must(err error) {
	if err == nil {
		return
	}
	if s.t == nil {
		panic(err)
	}
	s.t.Helper()
	s.t.Fatal(err)
}
