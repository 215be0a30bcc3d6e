// Command kubelet has a kubelet's name and version, and does nothing until its standard input ends: what `credential-broker doctor` finds in /proc.
package main

import (
	"io"
	"os"
	"slices"
)

func main() {
	if slices.Contains(os.Args, "--version") {
		_, _ = os.Stdout.WriteString("Kubernetes v1.37.2\n")
		return
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
}
