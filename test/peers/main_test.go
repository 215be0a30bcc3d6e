package peers

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/credential-broker/credential-broker/test/peers/internal/program"
)

var flagUpdate = flag.Bool("update", false, "write the document that is made of the comparison anew")

// bin is where the programs under test are.
var bin string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	// Most of these tests wait for retries. A -parallel on the command line wins, since it is read later.
	if err := flag.Set("test.parallel", "8"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	flag.Parse()
	dir, err := os.MkdirTemp("", "credential-broker-test-peers-")
	if err == nil {
		defer func() { _ = os.RemoveAll(dir) }()
		err = program.Build(".", dir, program.Broker, program.ECRBackend, program.GARBackend, program.ACRBackend, program.VaultBackend, program.CloudProviderAWS, program.ECRLogin, program.GCRLogin, program.MetadataMock)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	bin = dir
	defer sharedVault.Close()
	return m.Run()
}

func path(p program.Program) string { return filepath.Join(bin, p.File) }
