//go:build !unix

package agent

import (
	"context"
	"io"
	"os"
	"time"
)

// Handed is what an agent hands on to the one that takes its place: nothing, on this system.
type Handed struct{ Socket, Lock, Activated, Metrics, Answers, Ready *os.File }

// TakeHanded gives nothing.
func TakeHanded() (Handed, bool) { return Handed{}, false }

// Succeed fails here.
func Succeed(context.Context, string, []string, Handed, func(io.Writer) error, time.Duration) (successor *os.Process, err error) {
	return nil, errNotHere
}

// SayReady has nobody to tell.
func (*Handed) SayReady() {}
