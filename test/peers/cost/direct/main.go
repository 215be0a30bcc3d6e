// Command direct is the ECR backend's work without the processes around it: it reads an image's name, gets the credentials in its own process, and says on standard output how long
// the parts took, in nanoseconds.
package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http/httptrace"
	"os"
	"sync"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/ecr"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "direct:", err)
		os.Exit(1)
	}
}

// parts are stages of one request, by name.
type parts struct {
	sync.Mutex
	took map[string]time.Duration
	from map[string]time.Time
}

func (p *parts) begin(name string) {
	p.Lock()
	defer p.Unlock()
	if p.from[name].IsZero() {
		p.from[name] = time.Now()
	}
}

func (p *parts) end(name string) {
	p.Lock()
	defer p.Unlock()
	if from := p.from[name]; !from.IsZero() {
		p.took[name] += time.Since(from)
		delete(p.from, name)
	}
}

func run() error {
	if len(os.Args) != 2 {
		return fmt.Errorf("usage: direct IMAGE")
	}
	p := &parts{took: map[string]time.Duration{}, from: map[string]time.Time{}}
	// The request to the API begins with the connection; what comes before is configuration, and what comes after the first byte is reading.
	ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
		GetConn:              func(string) { p.end("configuration"); p.begin("connection") },
		TLSHandshakeStart:    func() { p.end("connection"); p.begin("TLS handshake") },
		TLSHandshakeDone:     func(tls.ConnectionState, error) { p.end("TLS handshake") },
		GotConn:              func(httptrace.GotConnInfo) { p.end("connection"); p.begin("API call") },
		GotFirstResponseByte: func() { p.end("API call") },
	})
	p.begin("all")
	p.begin("configuration")
	backend, err := ecr.New(ctx, ecr.Config{})
	if err != nil {
		return err
	}
	response, err := backend.Credentials(ctx, backends.Request{Image: backends.Image(os.Args[1])})
	if err != nil {
		return err
	}
	p.end("all")
	if len(response.Credentials) != 1 {
		return fmt.Errorf("%d credentials, want 1", len(response.Credentials))
	}
	return json.NewEncoder(os.Stdout).Encode(p.took)
}
