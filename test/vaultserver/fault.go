package vaultserver

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/credential-broker/credential-broker/test/cloud"
)

// OversizedBytes is how long an oversized answer is.
const OversizedBytes = 64 << 20

// Fault is something that goes wrong on demand.
type Fault struct {
	// Method and Path say with which requests: the path, without /v1/, begins with Path. Empty: with any.
	Method, Path string
	// Times is how often it happens before all is well again. 0: until Heal.
	Times int
	// Status, Body and Header are the answer. Defaults: 500, no body, and JSON. cloud.Sent in the body stands for what the request has brought.
	Status int
	Body   string
	Header http.Header
	// Hang: no answer, for as long as the client waits.
	Hang bool
	// Reset: the connection is cut instead of an answer.
	Reset bool
	// Truncate: the request is answered as ever, and half-way through the answer's body that ends, as an error of HTTP/2's stream or of the connection.
	Truncate bool
	// Oversized: the answer is JSON, status 200, of OversizedBytes.
	Oversized bool
	// Redirect is a base URL, to which the client is sent for the same path and query. Status is 307 by default.
	Redirect string
	// After: the request reaches Vault, and only the answer is spoiled.
	After bool
}

// Fail lets fault happen from now on. Of several that a request matches, the first happens.
func (f *Front) Fail(fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = append(f.faults, &fault)
}

// Heal ends all faults. Requests that hang go on hanging.
func (f *Front) Heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = nil
}

// fault is what is to go wrong with this request, if anything.
func (f *Front) fault(r *http.Request) (Fault, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, fault := range f.faults {
		if fault.Method != "" && fault.Method != r.Method || !strings.HasPrefix(strings.TrimPrefix(r.URL.EscapedPath(), "/v1/"), fault.Path) {
			continue
		}
		if fault.Times > 0 {
			if fault.Times--; fault.Times == 0 {
				f.faults = append(f.faults[:i:i], f.faults[i+1:]...)
			}
		}
		return *fault, true
	}
	return Fault{}, false
}

// spoil lets a fault happen to a request.
func (f *Front) spoil(w http.ResponseWriter, r *http.Request, noted *Request, fault Fault) {
	answer := httptest.NewRecorder()
	if fault.After || fault.Truncate {
		f.proxy.ServeHTTP(answer, r)
	}
	switch {
	case fault.Hang:
		select {
		case <-r.Context().Done():
		case <-f.s.done.Done():
		}
		panic(http.ErrAbortHandler)
	case fault.Reset:
		cut(r)
	case fault.Truncate:
		maps.Copy(w.Header(), answer.Header())
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes()[:answer.Body.Len()/2])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler) // a reset would take away from the client what it has not read yet
	case fault.Oversized:
		oversized(w)
	case fault.Redirect != "":
		maps.Copy(w.Header(), fault.Header)
		w.Header().Set("Location", strings.TrimSuffix(fault.Redirect, "/")+r.URL.RequestURI())
		w.WriteHeader(cmp.Or(fault.Status, http.StatusTemporaryRedirect))
	default:
		w.Header().Set("Content-Type", "application/json")
		maps.Copy(w.Header(), fault.Header)
		w.WriteHeader(cmp.Or(fault.Status, http.StatusInternalServerError))
		r.Body = io.NopCloser(bytes.NewReader(noted.Body))
		_, _ = io.WriteString(w, cloud.Repeated(fault.Body, r))
	}
}

// oversized is one secret with one field.
func oversized(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, `{"data":{"password":"`)
	for chunk, left := bytes.Repeat([]byte("a"), 64<<10), OversizedBytes; left > 0; left -= len(chunk) {
		if _, err := w.Write(chunk); err != nil {
			return // the client has had enough
		}
	}
	_, _ = io.WriteString(w, `"}}`)
}

type connectionKey struct{}

// cut ends the client's connection, whatever else goes on by it.
func cut(r *http.Request) {
	if conn, ok := r.Context().Value(connectionKey{}).(*tls.Conn); ok {
		if under, ok := conn.NetConn().(*net.TCPConn); ok {
			_ = under.SetLinger(0) // a reset, not an end
		}
		_ = conn.NetConn().Close()
	}
	panic(http.ErrAbortHandler)
}
