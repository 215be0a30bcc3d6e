package peer

import (
	"net"

	"golang.org/x/sys/unix"
)

// UID is the user of the process at the other end: of the one that connected, or for who connected of the one that listens (SO_PEERCRED, unix(7)). Known is false where the system
// does not tell.
func UID(conn *net.UnixConn) (uid int, known bool, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, false, err
	}
	var peer *unix.Ucred
	var peerErr error
	if err := raw.Control(func(fd uintptr) { peer, peerErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, false, err
	}
	if peerErr != nil {
		return 0, false, peerErr
	}
	return int(peer.Uid), true, nil
}
