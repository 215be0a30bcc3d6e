// Command plain is a backend made from docs/protocol.md alone, as one in another language would be: a gRPC server on a unix socket, a line on standard output, and nothing of
// go-plugin. Its settings are {"username": …, "password": …}.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/grpc"

	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

type backend struct {
	backendv1.UnimplementedBackendServer
	settings struct{ Username, Password string }
}

func (b *backend) Describe(context.Context, *backendv1.DescribeRequest) (*backendv1.DescribeResponse, error) {
	return &backendv1.DescribeResponse{Name: "plain", Version: "1.0.0"}, nil
}

func (b *backend) Configure(_ context.Context, r *backendv1.ConfigureRequest) (*backendv1.ConfigureResponse, error) {
	decoder := json.NewDecoder(strings.NewReader(string(r.GetSettings())))
	decoder.DisallowUnknownFields()
	response := &backendv1.ConfigureResponse{}
	if problem := decoder.Decode(&b.settings); problem != nil { // it names the field, and quotes no value
		response.Errors = []*backendv1.Error{{Kind: backendv1.Error_KIND_MISCONFIGURED, Message: problem.Error()}}
	}
	return response, nil
}

func (b *backend) GetCredentials(_ context.Context, r *backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error) {
	host, _, _ := strings.Cut(r.GetImage(), "/")
	return &backendv1.GetCredentialsResponse{
		Scope:       backendv1.Scope_SCOPE_REGISTRY,
		Credentials: []*backendv1.Credential{{Key: host, Username: b.settings.Username, Password: b.settings.Password}},
	}, nil
}

func main() {
	if os.Getenv("CREDENTIAL_BROKER_BACKEND") != "4e54a7c9-6d0f-4b7e-9a55-credential-backend" {
		fmt.Fprintln(os.Stderr, "this is a backend of credential-broker, which starts it")
		os.Exit(1)
	}
	go func() { // the lifeline
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	socket := filepath.Join(os.Getenv("PLUGIN_UNIX_SOCKET_DIR"), "plain.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Fprintf(os.Stdout, "1|1|unix|%s|grpc\n", socket)
	server := grpc.NewServer()
	backendv1.RegisterBackendServer(server, &backend{})
	if err := server.Serve(listener); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
