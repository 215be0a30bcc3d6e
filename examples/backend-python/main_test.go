//go:build unix

// Package backendpython judges the example as backends in Go are judged.
package backendpython

import (
	"bytes"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/backendtest"
	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

// python is an interpreter that has grpcio, which tools/python.sh sees to in `make test`.
func python(t *testing.T) string {
	t.Helper()
	candidates := []string{"/usr/bin/python3", "python3"}
	if cache, err := os.UserCacheDir(); err == nil {
		candidates = append(candidates, filepath.Join(cache, "credential-broker/python/bin/python3"))
	}
	for _, candidate := range candidates {
		if found, err := exec.LookPath(candidate); err == nil && exec.Command(found, "-I", "-c", "import grpc, google.protobuf").Run() == nil {
			return found
		}
	}
	t.Skip("there is no Python with grpcio: apt-get install python3-grpcio python3-protobuf, or see tools/python.sh")
	return ""
}

func TestConformance(t *testing.T) {
	interpreter := python(t)
	dir := t.TempDir()
	executable := filepath.Join(dir, "credential-backend-userfile-python")
	if out, err := exec.Command(interpreter, "-m", "zipapp", "src", "-p", interpreter+" -I", "-o", executable).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte("pull:s3cret-from-a-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	backendtest.Run(t, backendtest.Options{
		Executable: executable,
		Config:     map[string]any{"files": map[string]string{"registry.example:5000": password}},
		Image:      "registry.example:5000/team/app",
		Secrets:    []backends.Secret{"s3cret-from-a-file"},
	})
}

func TestTheGeneratedCodeIsOfThisProtocol(t *testing.T) {
	// -B: nothing is written into the clone.
	cmd := exec.Command(python(t), "-B", "-c", "import backend_pb2; print(backend_pb2.DESCRIPTOR.serialized_pb.hex())")
	cmd.Dir = "src"
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	generated, err := hex.DecodeString(string(bytes.TrimSpace(out)))
	if err != nil {
		t.Fatal(err)
	}
	var got descriptorpb.FileDescriptorProto
	if err := proto.Unmarshal(generated, &got); err != nil {
		t.Fatal(err)
	}
	want := protodesc.ToFileDescriptorProto(backendv1.File_backend_v1_backend_proto)
	// Options are what the code is generated without, and names in JSON follow from the others.
	ignored := protocmp.IgnoreFields(&descriptorpb.FieldDescriptorProto{}, "options", "json_name")
	if diff := cmp.Diff(want, &got, protocmp.Transform(), protocmp.IgnoreFields(&descriptorpb.FileDescriptorProto{}, "name"), ignored); diff != "" {
		t.Errorf("generate it again, as the README says:\n%s", diff)
	}
}
