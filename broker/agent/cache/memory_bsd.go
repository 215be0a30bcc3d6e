//go:build unix && !linux

package cache

// keepOutOfCoreDumps does nothing: these systems have no such advice for single pages.
func keepOutOfCoreDumps([]byte) {}
