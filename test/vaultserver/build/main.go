// Program build builds the Vault server that tests run, unless this machine has it, and prints where it is. `make vault-server` runs it. With -built it builds nothing, and prints nothing where there is none.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/credential-broker/credential-broker/test/vaultserver"
)

func main() {
	built := flag.Bool("built", false, "print where the server is, if it is there")
	flag.Parse()
	if *built {
		fmt.Fprintln(os.Stdout, vaultserver.Built())
		return
	}
	file, err := vaultserver.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Fprintln(os.Stdout, file)
}
