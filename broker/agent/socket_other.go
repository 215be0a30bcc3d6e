//go:build !unix

package agent

import (
	"errors"
	"net"
	"os"
	"syscall"
)

// Socket is the agent's, which there is on unix only.
type Socket struct{ Listener *net.UnixListener }

// ErrServed is Listen's where an agent serves already.
var ErrServed = errors.New("an agent serves there already")

var errNotHere = errors.New("there is no agent on this system: what it keeps others out with, owner and mode of a socket, does not exist here")

// Listen fails here.
func Listen(string) (*Socket, error) { return nil, errNotHere }

// ListenBeside fails here.
func ListenBeside(string) (*net.UnixListener, error) { return nil, errNotHere }

// Activated fails here.
func Activated(*os.File) (*Socket, error) { return nil, errNotHere }

// Inherited fails here.
func Inherited(Handed) (*Socket, error) { return nil, errNotHere }

// Path is where the socket is.
func (*Socket) Path() string { return "" }

// HandOn fails here.
func (*Socket) HandOn(*Handed) error { return errNotHere }

// HandedOn has nothing to do.
func (*Socket) HandedOn() {}

// FileOf fails here.
func FileOf(syscall.Conn) (*os.File, error) { return nil, errNotHere }

// Remove has nothing to do.
func (*Socket) Remove() {}
