//go:build !linux

package conformance

import (
	"errors"
	"os/exec"
	"runtime"
)

// family is not known on this system beyond the backend itself, which is waited for as a child.
type family struct{}

type member struct{}

func (member) String() string { return "a process" }

func newFamily(int, string) *family { return &family{} }

func (*family) look() []member    { return nil }
func (*family) living() []member  { return nil }
func (*family) size() int         { return 0 }
func (*family) kill()             {}
func (*family) arguments() []byte { return nil }

const seesFamilies = false

func descriptors(int) (int, error) {
	return 0, errors.New("open files are counted on Linux only, not on " + runtime.GOOS)
}

func withoutNetwork(*exec.Cmd) error {
	return errors.New("a network can be taken away on Linux only, not on " + runtime.GOOS)
}
