package vaultserver

import (
	"path/filepath"
	"runtime"
	"sync"

	"github.com/credential-broker/credential-broker/test/compiled"
)

// Executable gives the path of the Vault server, which it builds where this machine does not have it yet: see compiled.Program.
func Executable() (string, error) { return executable() }

var executable = sync.OnceValues(func() (string, error) { return program().Executable() })

// Built gives the path of the server that this machine has; empty: Executable would have to build it.
func Built() string { return program().Built() }

func program() compiled.Program {
	_, here, _, _ := runtime.Caller(0)
	return compiled.Program{
		Name: "vault", Of: "vault", Module: filepath.Join(filepath.Dir(here), "server"), Package: "github.com/hashicorp/vault",
		Says: "the Vault server that tests run: ten to twenty minutes on two cores, once. Where a test's time limit is shorter: make vault-server",
	}
}
