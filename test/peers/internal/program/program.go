// Package program builds the programs that are compared, from the sources in this tree and from the modules that pin the peers.
package program

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Program is one that can be built.
type Program struct {
	// File is where it is put, below the directory of all.
	File string
	// module is the directory of the module it is built in, from test/peers; pkg what is built there.
	module, pkg string
}

// Ours.
var (
	Broker     = Program{"credential-broker", ours, "./cmd/credential-broker"}
	ECRBackend = Program{"backends/credential-backend-ecr", ours, "./cmd/credential-backend-ecr"}
	GARBackend = Program{"backends/credential-backend-gar", ours, "./cmd/credential-backend-gar"}
	ACRBackend = Program{"backends/credential-backend-acr", ours, "./cmd/credential-backend-acr"}

	VaultBackend = Program{"backends/credential-backend-vault", ours, "./cmd/credential-backend-vault"}

	DockerConfigBackend = Program{"backends/credential-backend-dockerconfig", ours, "./cmd/credential-backend-dockerconfig"}
	ExecBackend         = Program{"backends/credential-backend-exec", ours, "./cmd/credential-backend-exec"}
)

// The peers.
var (
	CloudProviderAWS = Program{"ecr-credential-provider", "cloud-provider-aws", "k8s.io/cloud-provider-aws/cmd/ecr-credential-provider"}
	ECRLogin         = Program{"docker-credential-ecr-login", "ecr-login", "github.com/awslabs/amazon-ecr-credential-helper/ecr-login/cli/docker-credential-ecr-login"}
	GCRLogin         = Program{"docker-credential-gcr", "gcr", "github.com/GoogleCloudPlatform/docker-credential-gcr/v2"}
	MetadataMock     = Program{"ec2-metadata-mock", "ec2-metadata-mock", "github.com/aws/amazon-ec2-metadata-mock/cmd/ec2-metadata-mock"}
)

// Own is a program of this module itself.
func Own(file, pkg string) Program { return Program{file, ".", pkg} }

// ours is the module of the programs that `make build` makes.
const ours = "../.."

// Build builds programs into dir as releases are built: ours by `make build`, the rest likewise, without cgo and without the paths of this machine. peers is the directory of test/peers.
func Build(peers, dir string, programs ...Program) error {
	for _, p := range programs {
		target, err := filepath.Abs(filepath.Join(dir, p.File))
		if err != nil {
			return err
		}
		build := exec.Command("go", "build", "-trimpath", "-tags", "grpcnotrace", "-buildvcs=false", "-o", target, p.pkg)
		if p.module == ours {
			out, err := filepath.Abs(dir)
			if err != nil {
				return err
			}
			build = exec.Command("make", "--silent", "build", "OUT="+out, "COMMANDS="+p.pkg)
		}
		build.Dir, build.Env = filepath.Join(peers, p.module), append(os.Environ(), "CGO_ENABLED=0")
		if output, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", p.pkg, err, output)
		}
		if err := install(target); err != nil {
			return fmt.Errorf("install %s: %w", p.File, err)
		}
	}
	return nil
}

// install puts a copy in the place of a program, as whoever installs it does. The linker writes a file here and there, and its pages lie scattered in memory: to start it costs a sixth more than to start a
// copy, or than after the machine's next boot.
func install(program string) error {
	data, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	if err := os.WriteFile(program+".new", data, 0o755); err != nil {
		return err
	}
	return os.Rename(program+".new", program)
}
