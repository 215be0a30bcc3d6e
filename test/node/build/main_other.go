//go:build !linux

// Program build builds programs for a node, on Linux only.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "a node needs Linux")
	os.Exit(1)
}
