//go:build !unix

package plugin

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

// loopbackAllowed: go-plugin listens on a loopback port where there are no unix sockets, and any local process can connect to it.
const loopbackAllowed = true

type account struct {
	name     string
	uid, gid int
}

func lookUp(name string) (*account, error) {
	if name == "" {
		return nil, nil
	}
	return nil, errorf(backendv1.Error_KIND_MISCONFIGURED, "user %q: backends run as another user on unix only: remove `user`", name)
}

func (*account) variables() []string { return nil }

func processAttributes(*account) *syscall.SysProcAttr { return nil }

func keepThread() (release func()) { return func() {} }

func awaitExit(int) bool { return false }

func killGroup(p *os.Process) { _ = p.Kill() }

func closeUninherited() {}

func baseDirs(int, func(string) string) []string {
	return []string{filepath.Join(os.TempDir(), "credential-broker")}
}

func prepareBase(base string) error { return os.MkdirAll(base, 0o700) }

// lockDir locks nothing: a directory that is in use cannot be told from one that is not, so what a killed process leaves stays until the system clears its temporary files.
func lockDir(dir string) (*os.File, error) {
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		return nil, errTaken
	}
	return nil, nil
}

// lockFile locks nothing, so there are no slots here.
func lockFile(string) (*os.File, error) { return nil, nil }

func ownerOf(fs.FileInfo) (uid int, known bool) { return -1, false }
