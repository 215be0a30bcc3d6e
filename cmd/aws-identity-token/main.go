// Aws-identity-token proves an AWS identity, by a token of AWS's or by a signed request, for a backend that wants such a proof and starts it then: see package backends/webidentity/awsidentity. It is no command for people.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/credential-broker/credential-broker/backends/webidentity/awsidentity"
)

var version = "dev" // set by the linker

func main() {
	if err := awsidentity.Serve(context.Background(), os.Stdin, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "aws-identity-token %s: %v\n", version, err)
		os.Exit(1)
	}
}
