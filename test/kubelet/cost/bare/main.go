// Command bare is the least that a go-plugin host with one or several backends costs: no TLS, the host's one call answered by a backend that knows its answer, then SIGKILL. It has
// no configuration, checks nothing, and leaves its sockets behind. Started with a number it is the host of so many backends, else a backend.
package main

import (
	"context"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

type service struct {
	plugin.NetRPCUnsupportedPlugin
	backendv1.UnimplementedBackendServer
}

func (s *service) GRPCServer(_ *plugin.GRPCBroker, server *grpc.Server) error { //nolint:unparam // the interface is go-plugin's
	backendv1.RegisterBackendServer(server, s)
	return nil
}

func (s *service) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, conn *grpc.ClientConn) (any, error) { //nolint:unparam // the interface is go-plugin's
	return backendv1.NewBackendClient(conn), nil
}

func (s *service) GetCredentials(context.Context, *backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error) {
	return &backendv1.GetCredentialsResponse{Credentials: []*backendv1.Credential{{Key: "a.example", Username: "user", Password: "password"}}}, nil
}

func main() {
	plugins := plugin.PluginSet{backendv1.PluginName: &service{}}
	if len(os.Args) < 2 {
		plugin.Serve(&plugin.ServeConfig{HandshakeConfig: backendv1.Handshake, Plugins: plugins, GRPCServer: plugin.DefaultGRPCServer, Logger: hclog.NewNullLogger()})
		return
	}
	n, err := strconv.Atoi(os.Args[1])
	check(err)
	_, err = io.Copy(io.Discard, os.Stdin)
	check(err)
	var waiting sync.WaitGroup
	for range n {
		waiting.Go(func() { ask(plugins) })
	}
	waiting.Wait()
	_, err = os.Stdout.WriteString("{}\n")
	check(err)
}

func ask(plugins plugin.PluginSet) {
	cmd := exec.Command(os.Args[0])
	client := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig: backendv1.Handshake, Plugins: plugins, Cmd: cmd, SkipHostEnv: true,
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC}, Logger: hclog.NewNullLogger(),
	})
	protocol, err := client.Client()
	check(err)
	raw, err := protocol.Dispense(backendv1.PluginName)
	check(err)
	_, err = raw.(backendv1.BackendClient).GetCredentials(context.Background(), &backendv1.GetCredentialsRequest{Image: "a.example/app"})
	check(err)
	check(cmd.Process.Kill())
}

func check(err error) {
	if err != nil {
		_, _ = os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
}
