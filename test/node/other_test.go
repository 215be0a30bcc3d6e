//go:build !linux

package node

import "testing"

func TestANodeNeedsLinux(t *testing.T) {
	t.Skip("a real node needs Linux and root: make node-test, there")
}
