// Package upgrade is the protocol of another release than today's: the first one's, which testdata/v0.1.0 keeps as it was, and one that a later release might have, which is the first one's with what may be added. Its
// tests let backends and brokers of such releases meet today's, and hold today's loader and Go API against what the first release had. Nothing in testdata/v0.1.0 ever changes.
package upgrade

import (
	"context"
	"embed"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/bufbuild/protocompile"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

//go:embed testdata/v0.1.0/backend/v1/backend.proto
var released embed.FS

// The handshake of the first release.
const (
	CookieKey   = "CREDENTIAL_BROKER_BACKEND"
	CookieValue = "4e54a7c9-6d0f-4b7e-9a55-credential-backend"
)

// Protocol is that of a release. Its messages are made from the text of its backend.proto, so that those of several releases can be in one program.
type Protocol struct {
	service protoreflect.ServiceDescriptor
}

// additions are what a later release of the same protocol version may have besides, each behind the line that it follows.
var additions = map[string]string{
	"service Backend {\n":                "rpc Foresee(DescribeRequest) returns (DescribeResponse);\n",
	"FEATURE_CLOSE = 4;\n":               "FEATURE_FORESEE = 5;\n",
	"SCOPE_REGISTRY = 2;\n":              "SCOPE_REPOSITORY = 3;\n",
	"KIND_MISCONFIGURED = 3;\n":          "KIND_TIRED = 4;\n",
	"message DescribeRequest {":          "string later = 1000;",
	"message DescribeResponse {\n":       "string later = 1000;\n",
	"message ConfigureRequest {\n":       "string later = 1000;\n",
	"message ConfigureResponse {\n":      "string later = 1000;\n",
	"message GetCredentialsRequest {\n":  "string later = 1000;\n",
	"message GetCredentialsResponse {\n": "string later = 1000;\n",
	"message Credential {\n":             "string later = 1000;\n",
	"message CheckRequest {\n":           "string later = 1000;\n",
}

// First is the protocol of the first release.
func First() (*Protocol, error) { return load(nil) }

// Later is that of a release to come.
func Later() (*Protocol, error) { return load(additions) }

func load(added map[string]string) (*Protocol, error) {
	const file = "backend/v1/backend.proto"
	text, err := released.ReadFile(path.Join("testdata/v0.1.0", file))
	if err != nil {
		return nil, err
	}
	source := string(text)
	for after, add := range added {
		if strings.Count(source, after) != 1 {
			return nil, fmt.Errorf("a later protocol: %q does not stand in the first one's once", after)
		}
		source = strings.Replace(source, after, after+add, 1)
	}
	compiler := protocompile.Compiler{Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{
		Accessor: func(name string) (io.ReadCloser, error) {
			if name != file {
				return nil, fmt.Errorf("there is no %s", name)
			}
			return io.NopCloser(strings.NewReader(source)), nil
		},
	})}
	files, err := compiler.Compile(context.Background(), file)
	if err != nil {
		return nil, err
	}
	return &Protocol{files[0].Services().ByName("Backend")}, nil
}

// Methods are what a backend can be asked.
func (p *Protocol) Methods() []string {
	var names []string
	for i := range p.service.Methods().Len() {
		names = append(names, string(p.service.Methods().Get(i).Name()))
	}
	return names
}

// Register makes a server a backend that has some of the methods: each is answered with a message in protobuf's text format, or an error.
func (p *Protocol) Register(server *grpc.Server, has []string, answer func(method string, request *dynamicpb.Message) (string, error)) {
	described := grpc.ServiceDesc{ServiceName: string(p.service.FullName()), HandlerType: (*any)(nil)}
	for _, name := range has {
		method := p.service.Methods().ByName(protoreflect.Name(name))
		described.Methods = append(described.Methods, grpc.MethodDesc{
			MethodName: name,
			Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				request, response := dynamicpb.NewMessage(method.Input()), dynamicpb.NewMessage(method.Output())
				if err := decode(request); err != nil {
					return nil, err
				}
				text, err := answer(name, request)
				if err == nil {
					err = prototext.Unmarshal([]byte(text), response)
				}
				return response, err
			},
		})
	}
	server.RegisterService(&described, nil)
}

// Ask calls a backend's method with a message in text format.
func (p *Protocol) Ask(ctx context.Context, conn grpc.ClientConnInterface, name, text string) (*dynamicpb.Message, error) {
	method := p.service.Methods().ByName(protoreflect.Name(name))
	request, response := dynamicpb.NewMessage(method.Input()), dynamicpb.NewMessage(method.Output())
	if err := prototext.Unmarshal([]byte(text), request); err != nil {
		return nil, err
	}
	return response, conn.Invoke(ctx, "/"+string(p.service.FullName())+"/"+name, request, response)
}
