// Program build builds the Vault server that tests run, unless this machine has it, and prints where it is. `make vault-server` runs it.
package main

import (
	"fmt"
	"os"

	"github.com/credential-broker/credential-broker/test/vaultserver"
)

func main() {
	file, err := vaultserver.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Fprintln(os.Stdout, file)
}
