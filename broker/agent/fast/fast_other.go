//go:build !linux

package fast

// Ask finds no agent: there is none on this system.
func Ask(_ string, _ Request) (reply Reply, reason string, absent bool) {
	return Reply{}, "there is no agent on this system, only on Linux", false
}
