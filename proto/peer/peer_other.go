//go:build !linux

package peer

import "net"

// UID is not asked here: the owner of the socket, and of the directory around it, has to do.
func UID(*net.UnixConn) (uid int, known bool, err error) { return 0, false, nil }
