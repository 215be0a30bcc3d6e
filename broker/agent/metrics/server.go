package metrics

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"

	"github.com/credential-broker/credential-broker/broker/agent"
)

const (
	// path is where the metrics are, by Prometheus' custom.
	path = "/metrics"
	// maxConnections and maxScrapes bound what somebody on the node can take of the agent's files and time: a loopback address keeps no local user out.
	maxConnections = 16
	maxScrapes     = 4
	// headerTimeout, writeTimeout and idleTimeout bound how long somebody may take to ask, to read, and to ask again. Prometheus asks once a minute by default, on one connection.
	headerTimeout  = 5 * time.Second
	writeTimeout   = 30 * time.Second
	idleTimeout    = 2 * time.Minute
	maxHeaderBytes = 8 << 10
	// closeTimeout is how long a scrape that is going on may take when the agent ends.
	closeTimeout = time.Second
)

// Server answers those who scrape. A nil one has nothing to do.
type Server struct {
	listener net.Listener // *net.TCPListener or *net.UnixListener
	server   *http.Server
	done     chan struct{}
}

// Serve serves the metrics at a loopback address or "unix:PATH"; nil for an empty address. A listening socket that a predecessor handed on is used if it is the one of that address, and closed
// otherwise. A unix socket is for this process's user alone, as the agent's is.
func (m *Metrics) Serve(address string, handed *os.File, log *slog.Logger) (*Server, error) {
	listener, err := listen(address, handed)
	if err != nil || listener == nil {
		return nil, err
	}
	handler := promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog: errorLog{log}, ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: maxScrapes,
	})
	s := &Server{
		listener: listener, done: make(chan struct{}),
		server: &http.Server{
			Handler: only(handler), ReadHeaderTimeout: headerTimeout, ReadTimeout: headerTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes,
			ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		},
	}
	log.Info("metrics are served", "address", address)
	go func() {
		defer close(s.done)
		if err := s.server.Serve(netutil.LimitListener(listener, maxConnections)); err != nil && !errors.Is(err, http.ErrServerClosed) {
			log.Error("metrics are not served any more", "address", address, "reason", err.Error())
		}
	}()
	return s, nil
}

// only lets GET /metrics pass.
func only(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path != path:
			http.Error(w, "there is nothing here but "+path, http.StatusNotFound)
		case r.Method != http.MethodGet:
			w.Header().Set("Allow", http.MethodGet)
			http.Error(w, "only GET is understood", http.StatusMethodNotAllowed)
		default:
			handler.ServeHTTP(w, r)
		}
	})
}

// errorLog tells of metrics that contradict each other.
type errorLog struct{ *slog.Logger }

// Println implements promhttp.Logger.
func (l errorLog) Println(v ...any) {
	l.Error("metrics are incomplete", "reason", strings.TrimSuffix(fmt.Sprintln(v...), "\n"))
}

// listen gives what to serve on; nil for an empty address.
func listen(address string, handed *os.File) (net.Listener, error) {
	if handed != nil {
		defer func() { _ = handed.Close() }() // FileListener makes a copy
		inherited, err := net.FileListener(handed)
		switch {
		case err != nil: // then one is made anew
		case isAt(inherited, address):
			return inherited, nil
		default:
			_ = inherited.Close()
		}
	}
	if address == "" {
		return nil, nil //nolint:nilnil // nothing is to be served, and that is no error
	}
	var listener net.Listener
	var err error
	if socket, ok := strings.CutPrefix(address, "unix:"); ok {
		listener, err = agent.ListenBeside(socket)
	} else {
		listener, err = net.Listen("tcp", address) //nolint:noctx // of a loopback address: nothing to wait for
	}
	if err != nil {
		return nil, fmt.Errorf("metrics: listen at %s: %w", address, err)
	}
	return listener, nil
}

// isAt says that a listening socket is the one that an address asks for.
func isAt(l net.Listener, address string) bool {
	switch at := l.Addr().(type) {
	case *net.UnixAddr:
		return address == "unix:"+at.Name
	case *net.TCPAddr:
		want, err := net.ResolveTCPAddr("tcp", address)
		return err == nil && want.Port == at.Port && want.IP.Equal(at.IP)
	default:
		return false
	}
}

// File is the listening socket, for a successor; nil if there is none. The caller closes it.
func (s *Server) File() *os.File {
	if s == nil {
		return nil
	}
	conn, ok := s.listener.(syscall.Conn)
	if !ok {
		return nil
	}
	file, err := agent.FileOf(conn)
	if err != nil {
		return nil // then the successor makes its own
	}
	return file
}

// Close ends it, and what is being scraped a second later. The file of a unix socket stays, for a successor or for Remove.
func (s *Server) Close() {
	if s == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if s.server.Shutdown(ctx) != nil {
		_ = s.server.Close()
	}
	<-s.done
}

// Remove closes it and takes a unix socket's file away.
func (s *Server) Remove() {
	if s == nil {
		return
	}
	s.Close()
	if at, ok := s.listener.Addr().(*net.UnixAddr); ok {
		_ = os.Remove(at.Name)
	}
}
