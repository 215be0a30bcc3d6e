//go:build unix

package metrics

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/credential-broker/credential-broker/broker/agent"
)

var silent = slog.New(slog.DiscardHandler)

// freePort is a loopback address that nobody listened at a moment ago.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// socketPath is one in a directory that is not there yet.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cb-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "run", "metrics.sock")
}

func serve(t *testing.T, address string, handed *os.File) *Server {
	t.Helper()
	s, err := watching(full).Serve(address, handed, silent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Remove)
	return s
}

// client asks at an address as Serve has it.
func client(t *testing.T, address string) *http.Client {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		if socket, ok := strings.CutPrefix(address, "unix:"); ok {
			return d.DialContext(ctx, "unix", socket)
		}
		return d.DialContext(ctx, "tcp", address)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: time.Minute}
}

// get gives the status and the body of a request.
func get(t *testing.T, address, method, path string) (int, string) {
	t.Helper()
	request, err := http.NewRequest(method, "http://agent"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client(t, address).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

func TestWhoScrapes(t *testing.T) {
	for name, address := range map[string]string{"over TCP": freePort(t), "over a unix socket": "unix:" + socketPath(t)} {
		t.Run(name, func(t *testing.T) {
			serve(t, address, nil)
			status, body := get(t, address, http.MethodGet, "/metrics")
			if status != http.StatusOK || !strings.Contains(body, "credential_broker_answers_held{") || !strings.Contains(body, `credential_broker_build_info{goversion="go`) {
				t.Errorf("status %d: %s", status, body)
			}
			if strings.Contains(body, canary) {
				t.Error("there is a secret in it")
			}
			for _, c := range []struct {
				method, path string
				want         int
			}{
				{http.MethodPost, "/metrics", http.StatusMethodNotAllowed},
				{http.MethodHead, "/metrics", http.StatusMethodNotAllowed},
				{http.MethodGet, "/", http.StatusNotFound},
				{http.MethodGet, "/metrics/", http.StatusNotFound},
				{http.MethodGet, "/debug/pprof/", http.StatusNotFound},
			} {
				if status, _ := get(t, address, c.method, c.path); status != c.want {
					t.Errorf("%s %s: status %d, want %d", c.method, c.path, status, c.want)
				}
			}
		})
	}
}

func TestALongHeaderIsNotRead(t *testing.T) {
	address := freePort(t)
	serve(t, address, nil)
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = fmt.Fprintf(conn, "GET /metrics HTTP/1.1\r\nHost: agent\r\nX: %s\r\n\r\n", strings.Repeat("x", 2*maxHeaderBytes)) // it need not take all
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("status %d", response.StatusCode)
	}
}

func TestTheSocketIsForTheAgentsUserAlone(t *testing.T) {
	socket := socketPath(t)
	s := serve(t, "unix:"+socket, nil)
	for path, want := range map[string]fs.FileMode{socket: fs.ModeSocket | 0o600, filepath.Dir(socket): fs.ModeDir | 0o700} {
		if info, err := os.Lstat(path); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
	if _, err := New("").Serve("unix:"+socket, nil, silent); !errors.Is(err, agent.ErrServed) {
		t.Errorf("where somebody serves: %v", err)
	}
	s.Close() // as when it is killed: the file stays
	if _, err := os.Lstat(socket); err != nil {
		t.Fatal(err)
	}
	again := serve(t, "unix:"+socket, nil)
	if status, _ := get(t, "unix:"+socket, http.MethodGet, "/metrics"); status != http.StatusOK {
		t.Errorf("in the place of a stale one: status %d", status)
	}
	again.Remove()
	if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
	if err := os.Chmod(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := New("").Serve("unix:"+socket, nil, silent); err == nil || !strings.Contains(err.Error(), "lets others in") {
		t.Errorf("in a directory that lets others in: %v", err)
	}
}

func TestASuccessorServesOnTheSameSocket(t *testing.T) {
	for name, address := range map[string]string{"TCP": freePort(t), "unix": "unix:" + socketPath(t)} {
		t.Run(name, func(t *testing.T) {
			first := serve(t, address, nil)
			file := first.File()
			if file == nil {
				t.Fatal("nothing is handed on")
			}
			second := serve(t, address, file)
			first.Close()
			if status, _ := get(t, address, http.MethodGet, "/metrics"); status != http.StatusOK {
				t.Errorf("status %d", status)
			}
			second.Remove()
		})
	}
}

func TestToStartASuccessorLeavesTheSocketAsItIs(t *testing.T) {
	for name, address := range map[string]string{"TCP": freePort(t), "unix": "unix:" + socketPath(t)} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, address, nil)
			file := s.File()
			if file == nil {
				t.Fatal("nothing is handed on")
			}
			defer file.Close()
			cmd := exec.Command("true")
			cmd.ExtraFiles = []*os.File{file}
			if err := cmd.Run(); err != nil {
				t.Fatal(err)
			}
			conn, err := s.listener.(syscall.Conn).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			var flags int
			if controlled := conn.Control(func(fd uintptr) { flags, err = unix.FcntlInt(fd, unix.F_GETFL, 0) }); controlled != nil || err != nil {
				t.Fatal(controlled, err)
			}
			if flags&unix.O_NONBLOCK == 0 {
				t.Error("the socket blocks: it could not be closed before somebody connects")
			}
		})
	}
}

func TestASuccessorWithAnotherAddressServesThere(t *testing.T) {
	first := serve(t, freePort(t), nil)
	address := freePort(t)
	serve(t, address, first.File())
	if status, _ := get(t, address, http.MethodGet, "/metrics"); status != http.StatusOK {
		t.Errorf("status %d", status)
	}
	before := first.listener.Addr().String()
	if s, err := New("").Serve("", first.File(), silent); err != nil || s != nil {
		t.Errorf("without an address: %v, %v", s, err)
	}
	first.Close()
	if conn, err := net.Dial("tcp", before); err == nil {
		_ = conn.Close()
		t.Error("a socket that was handed on is kept open")
	}
}

func TestWithoutAnAddressThereIsNothing(t *testing.T) {
	s, err := New("").Serve("", nil, silent)
	if s != nil || err != nil {
		t.Fatalf("%v, %v", s, err)
	}
	if s.File() != nil {
		t.Error("there is a file")
	}
	s.Close()
	s.Remove()
}
