package plugin

import "golang.org/x/sys/unix"

// roomy says whether a request's sockets and directories fit into base with some to spare. Where the file system does not count them, or does not say, they do.
func roomy(base string) bool {
	var is unix.Statfs_t
	if err := unix.Statfs(base, &is); err != nil {
		return true
	}
	return (is.Files == 0 || is.Ffree >= leastFiles) && (is.Blocks == 0 || is.Bavail > 0)
}
