//go:build !linux || !(amd64 || arm64 || loong64 || riscv64)

package fast

// Supported says that there can be an agent on this platform.
const Supported = false

// Ask finds no agent: there is none on this system.
func Ask(_ string, _ Request) (reply Reply, reason string, absent bool) {
	return Reply{}, "there is no agent on this platform", false
}

// running says that there is a heap: see text.go.
const running = true
