// Package frozen is the backend protocol as it was when the first backends were built with it. Tests serve it as such a backend does, and ask it as such a broker did, to
// prove that they still go together with what is here today. Nothing in it ever changes, and only tests use it.
package frozen

import (
	"context"
	_ "embed" // the protocol
	"fmt"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// descriptors is backend.proto with what it imports, as `buf build proto --exclude-source-info` wrote it before Renew, Revoke, Close, leases and spans came.
//
//go:embed backend.binpb
var descriptors []byte

// What go-plugin's handshake was.
const (
	CookieKey       = "CREDENTIAL_BROKER_BACKEND"
	CookieValue     = "4e54a7c9-6d0f-4b7e-9a55-credential-backend"
	ProtocolVersion = 1
	PluginName      = "backend"
)

const protocol protoreflect.FullName = "credentialbroker.backend.v1"

// Message makes a message of the protocol, such as "DescribeRequest", from protobuf's text format. It panics if there is no such message, or no such field.
func Message(name, text string) *dynamicpb.Message {
	message := dynamicpb.NewMessage(find(protoreflect.Name(name)).(protoreflect.MessageDescriptor))
	if err := prototext.Unmarshal([]byte(text), message); err != nil {
		panic(fmt.Errorf("message %s of the frozen protocol: %w", name, err))
	}
	return message
}

// Methods are the names of what a backend can be asked.
func Methods() []string {
	var names []string
	methods := service().Methods()
	for i := range methods.Len() {
		names = append(names, string(methods.Get(i).Name()))
	}
	return names
}

// Register makes a server a backend. Handle answers each method, "Describe" for one; the response that it is given is empty.
func Register(server *grpc.Server, handle func(ctx context.Context, method string, request, response *dynamicpb.Message) error) {
	described := grpc.ServiceDesc{ServiceName: string(service().FullName()), HandlerType: (*any)(nil)}
	methods := service().Methods()
	for i := range methods.Len() {
		method := methods.Get(i)
		described.Methods = append(described.Methods, grpc.MethodDesc{
			MethodName: string(method.Name()),
			Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				request, response := dynamicpb.NewMessage(method.Input()), dynamicpb.NewMessage(method.Output())
				if err := decode(request); err != nil {
					return nil, err
				}
				return response, handle(ctx, string(method.Name()), request, response)
			},
		})
	}
	server.RegisterService(&described, nil)
}

// Ask calls a backend's method.
func Ask(ctx context.Context, conn grpc.ClientConnInterface, method string, request *dynamicpb.Message) (*dynamicpb.Message, error) {
	described := service().Methods().ByName(protoreflect.Name(method))
	response := dynamicpb.NewMessage(described.Output())
	return response, conn.Invoke(ctx, "/"+string(service().FullName())+"/"+method, request, response)
}

func service() protoreflect.ServiceDescriptor {
	return find("Backend").(protoreflect.ServiceDescriptor)
}

func find(name protoreflect.Name) protoreflect.Descriptor {
	found, err := files().FindDescriptorByName(protocol.Append(name))
	if err != nil {
		panic(fmt.Errorf("the frozen protocol: %s: %w", name, err))
	}
	return found
}

var files = sync.OnceValue(func() *protoregistry.Files {
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(descriptors, &set); err != nil {
		panic(fmt.Errorf("the frozen protocol: %w", err))
	}
	files, err := protodesc.NewFiles(&set)
	if err != nil {
		panic(fmt.Errorf("the frozen protocol: %w", err))
	}
	return files
})
