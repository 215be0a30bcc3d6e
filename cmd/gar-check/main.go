// Gar-check asks the Artifact Registry API for credential-backend-gar, which starts it when it is asked to check itself: see package backends/gar/check. It is no command for people.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/credential-broker/credential-broker/backends/gar/check"
)

var version = "dev" // set by the linker

func main() {
	if err := check.Serve(context.Background(), os.Stdin, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "gar-check %s: %v\n", version, err)
		os.Exit(1)
	}
}
