//go:build !unix

package conformance

import (
	"os"
	"syscall"
)

func processAttributes() *syscall.SysProcAttr { return nil }

func killGroup(p *os.Process) { _ = p.Kill() }
