// Program build builds those programs of Kubernetes, and clients of the node's containerd, that are named as arguments, unless this machine has them, and prints where they are. `make node-test` runs it before the tests, whose time limit
// knows nothing of compiling.
package main

import (
	"fmt"
	"os"

	"github.com/credential-broker/credential-broker/test/node"
)

func main() {
	for _, name := range os.Args[1:] {
		file, err := node.Program(name)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Fprintln(os.Stdout, file)
	}
}
