// Command backend is a backend of another release: credential-backend-first has the methods that a backend needs and no more, credential-backend-later all that a later protocol has, and says more than today's broker knows. What
// it is asked it notes in the file that ASKED names. The later one fails for an image with "tired" in it, in a way that only a later broker knows, and for one with "refused", in one that all know.
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/credential-broker/credential-broker/test/upgrade"
)

var first = map[string]string{
	"Describe":       `name: "first" version: "0.1.0"`,
	"Configure":      ``,
	"GetCredentials": `scope: SCOPE_REGISTRY cache_duration {seconds: 60} credentials {key: "registry.example" username: "u" password: "p-of-first"}`,
}

var later = map[string]string{
	"Describe":       `name: "later" version: "9.0.0" later: "x" features: [FEATURE_FORESEE, FEATURE_CHECK]`,
	"Configure":      `later: "x"`,
	"GetCredentials": `later: "x" scope: SCOPE_REPOSITORY cache_duration {seconds: 60} credentials {key: "registry.example" username: "u" password: "p-of-later" later: "x"}`,
	"Check":          ``,
	"Foresee":        ``,
}

// laterFails are its answers for an image with such a word in it.
var laterFails = map[string]string{
	"tired":   `later: "x" error {kind: KIND_TIRED message: "tired today"}`,
	"refused": `later: "x" error {kind: KIND_REFUSED message: "refused today"}`,
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	answers, failures, load := first, map[string]string(nil), upgrade.First
	if strings.HasSuffix(os.Args[0], "later") {
		answers, failures, load = later, laterFails, upgrade.Later
	}
	protocol, err := load()
	if err != nil {
		return err
	}
	if os.Getenv(upgrade.CookieKey) != upgrade.CookieValue {
		return errors.New("this is a backend")
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	note := func(method string) {
		if f, err := os.OpenFile(os.Getenv("ASKED"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err == nil {
			_, _ = f.WriteString(method + "\n")
			_ = f.Close()
		}
	}
	socket := filepath.Join(os.Getenv("PLUGIN_UNIX_SOCKET_DIR"), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stdout, "1|1|unix|%s|grpc\n", socket)
	server := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(stream)
		if strings.Contains(method, "credentialbroker") {
			note("unknown " + method)
		}
		return status.Error(codes.Unimplemented, method)
	}))
	var has []string
	for method := range answers {
		has = append(has, method)
	}
	protocol.Register(server, has, func(method string, request *dynamicpb.Message) (string, error) {
		note(method)
		for image, failure := range failures {
			if method == "GetCredentials" && strings.Contains(request.String(), image) {
				return failure, nil
			}
		}
		return answers[method], nil
	})
	return server.Serve(listener)
}
