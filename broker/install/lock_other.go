//go:build !unix

package install

// lock does nothing: the DaemonSet is for Linux.
func lock(string) (unlock func(), err error) { return func() {}, nil }
