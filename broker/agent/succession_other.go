//go:build !unix

package agent

import (
	"io"
	"os"
	"time"
)

// Handed is what an agent hands on to the one that takes its place: nothing, on this system.
type Handed struct{ Socket, Lock, Activated, Metrics, Answers, Ready *os.File }

// TakeHanded gives nothing.
func TakeHanded() (Handed, bool) { return Handed{}, false }

// Succeed fails here.
func Succeed(string, []string, Handed, func(io.Writer) error, time.Duration) (pid int, err error) {
	return 0, errNotHere
}

// SayReady has nobody to tell.
func (*Handed) SayReady() {}
