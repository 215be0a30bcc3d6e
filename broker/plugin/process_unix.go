//go:build unix

package plugin

import (
	"os"
	"os/user"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

// loopbackAllowed: a backend listens on a unix socket or not at all.
const loopbackAllowed = false

// account is the user as whom a backend runs.
type account struct {
	name     string
	uid, gid int
	groups   []uint32
	home     string
}

// lookUp finds the user of that name, or of that number; nil for the empty name. The error is an *Error.
func lookUp(name string) (*account, error) {
	if name == "" {
		return nil, nil
	}
	misconfigured := func(format string, args ...any) (*account, error) {
		return nil, errorf(backendv1.Error_KIND_MISCONFIGURED, format, args...)
	}
	if os.Geteuid() != 0 {
		return misconfigured("user %q: only a broker that runs as root can run a backend as another user: remove `user`, or run the kubelet as root", name)
	}
	u, err := user.Lookup(name)
	if err != nil {
		if _, notNumber := strconv.ParseUint(name, 10, 31); notNumber == nil {
			u, err = user.LookupId(name)
		}
	}
	if err != nil {
		return misconfigured("user %q: %w: create it, or correct the name", name, err)
	}
	a := &account{name: u.Username, home: u.HomeDir}
	if a.uid, err = strconv.Atoi(u.Uid); err != nil {
		return misconfigured("user %q: %w", name, err)
	}
	if a.gid, err = strconv.Atoi(u.Gid); err != nil {
		return misconfigured("user %q: %w", name, err)
	}
	ids, err := u.GroupIds()
	if err != nil {
		return misconfigured("user %q: its groups: %w", name, err)
	}
	for _, id := range ids {
		gid, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			return misconfigured("user %q: its groups: %w", name, err)
		}
		a.groups = append(a.groups, uint32(gid))
	}
	return a, nil
}

// variables are what a login would set for the user.
func (a *account) variables() []string {
	if a == nil {
		return nil
	}
	return []string{"HOME=" + a.home, "USER=" + a.name, "LOGNAME=" + a.name}
}

func credentialOf(a *account) *syscall.Credential {
	if a == nil {
		return nil
	}
	return &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid), Groups: a.groups}
}

// killGroup kills a process and all of its group, which it leads.
func killGroup(p *os.Process) { _ = syscall.Kill(-p.Pid, syscall.SIGKILL) }

// closeUninherited marks every descriptor but the standard ones as not to be inherited. Those that this program opens are marked so already; those that
// it was started with need not be.
var closeUninherited = sync.OnceFunc(func() {
	if markAll(3) {
		return
	}
	entries, err := os.ReadDir("/dev/fd")
	if err != nil {
		return
	}
	for _, entry := range entries {
		if fd, err := strconv.Atoi(entry.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
})
