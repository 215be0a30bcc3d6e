package conformance

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// family is a process with all that it has started. Who belongs to it is found by looking often enough, as a parent that ends leaves its children to others, and in the end by a
// variable in the environment, for those that were missed.
type family struct {
	root   int
	marker []byte

	mu    sync.Mutex
	known map[member]bool
}

// member is a process; its start tells it from a later one of the same number.
type member struct {
	pid   int
	start string
}

func (m member) String() string {
	line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", m.pid))
	return fmt.Sprintf("process %d (%s)", m.pid, bytes.TrimSpace(line))
}

func newFamily(root int, marker string) *family {
	f := &family{root: root, marker: []byte(marker), known: map[member]bool{}}
	f.look()
	return f
}

type stat struct {
	member
	parent int
	zombie bool
}

func statOf(pid int) (stat, bool) {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, false
	}
	_, rest, _ := strings.Cut(string(line[bytes.LastIndexByte(line, ')')+1:]), " ") // the name before it may hold anything
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return stat{}, false
	}
	parent, err := strconv.Atoi(fields[1])
	return stat{member{pid, fields[19]}, parent, fields[0] == "Z" || fields[0] == "X"}, err == nil
}

func processes() []stat {
	entries, _ := os.ReadDir("/proc")
	var all []stat
	for _, entry := range entries {
		if pid, err := strconv.Atoi(entry.Name()); err == nil {
			if s, ok := statOf(pid); ok {
				all = append(all, s)
			}
		}
	}
	return all
}

// look records who belongs to the family now, and returns those who live, the root among them.
func (f *family) look() []member {
	all := processes()
	f.mu.Lock()
	defer f.mu.Unlock()
	in := map[int]bool{f.root: true}
	for grown := true; grown; {
		grown = false
		for _, s := range all {
			if !in[s.pid] && (in[s.parent] || f.known[s.member]) {
				in[s.pid], grown = true, true
			}
		}
	}
	var living []member
	for _, s := range all {
		if in[s.pid] {
			f.known[s.member] = true
			if !s.zombie {
				living = append(living, s.member)
			}
		}
	}
	return living
}

func (f *family) marked(pid int) bool {
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	return err == nil && bytes.Contains(environ, f.marker)
}

// living are those known, or known by their mark, who have not ended.
func (f *family) living() []member {
	var living []member
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range processes() {
		if !s.zombie && (f.known[s.member] || f.marked(s.pid)) {
			f.known[s.member] = true
			living = append(living, s.member)
		}
	}
	return living
}

// size counts the members below the root, zombies included: a child that nobody waits for is a leak too.
func (f *family) size() int {
	f.look()
	n := 0
	f.mu.Lock()
	defer f.mu.Unlock()
	for m := range f.known {
		if s, ok := statOf(m.pid); ok && s.start == m.start && m.pid != f.root {
			n++
		}
	}
	return n
}

func (f *family) kill() {
	for _, m := range f.living() {
		_ = syscall.Kill(m.pid, syscall.SIGKILL)
	}
}

// arguments are the command lines of the members, which everybody on the machine can read.
func (f *family) arguments() []byte {
	var all []byte
	for _, m := range f.look() {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", m.pid))
		all = append(append(all, line...), '\n')
	}
	return all
}

// seesFamilies: look sees the whole family.
const seesFamilies = true

// descriptors counts a process's open files. It cannot where the process keeps others from looking and this one is not root.
func descriptors(pid int) (int, error) {
	entries, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "fd"))
	return len(entries), err
}

func processAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

func killGroup(p *os.Process) { _ = syscall.Kill(-p.Pid, syscall.SIGKILL) }

// withoutNetwork starts the command in a network of its own, in which not even the loopback interface is up. It takes root, or a system that lets everybody make user
// namespaces. A unix socket with a path is reached all the same.
func withoutNetwork(cmd *exec.Cmd) error {
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNET
	if uid := os.Geteuid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
	}
	return nil
}
