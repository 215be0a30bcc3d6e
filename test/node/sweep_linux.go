package node

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/credential-broker/credential-broker/test/compiled"
)

// prefix begins the name of every rig's directory.
const prefix = "credential-node-"

// sweepOthers removes what rigs left behind that were killed: those whose lock nobody holds any more.
func sweepOthers() error {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	if err != nil {
		return err
	}
	var problems []error
	for _, dir := range dirs {
		held, err := compiled.Lock(filepath.Join(dir, "lock"), false)
		if err != nil {
			continue // it is at work
		}
		problems = append(problems, sweep(dir))
		_ = held.Close()
	}
	return errors.Join(problems...)
}

// sweep ends the containers of a rig whose containerd and kubelet have ended, and removes all that they left: processes, sockets, cgroups, mounts, files. Containers outlive containerd on purpose: it
// is their shims, and what these started, that are killed.
func sweep(dir string) error {
	var problems []error
	for _, pid := range shims(dir) {
		for _, child := range append(descendants(pid), pid) {
			_ = unix.Kill(child, syscall.SIGKILL)
		}
		gone(pid)
	}
	for _, pid := range running(dir) { // an agent's successor is nobody's child
		_ = unix.Kill(pid, syscall.SIGKILL)
		gone(pid)
	}
	bundles, _ := filepath.Glob(filepath.Join(dir, "containerd/state/io.containerd.runtime.v2.task/k8s.io/*"))
	for _, bundle := range bundles {
		// A shim's socket lies where containerd 1.6 puts it whatever its configuration says.
		if address, err := os.ReadFile(filepath.Join(bundle, "address")); err == nil {
			_ = os.Remove(strings.TrimPrefix(string(address), "unix://"))
		}
		for _, pattern := range []string{"/sys/fs/cgroup/k8s.io/", "/sys/fs/cgroup/*/k8s.io/"} {
			cgroups, _ := filepath.Glob(pattern + filepath.Base(bundle))
			for _, cgroup := range cgroups {
				_ = os.Remove(cgroup) // fails while the kernel still counts a process that has just been killed; an empty cgroup costs nothing
			}
		}
	}
	parents, _ := filepath.Glob("/sys/fs/cgroup/*/k8s.io")
	for _, parent := range append(parents, "/sys/fs/cgroup/k8s.io") {
		_ = os.Remove(parent) // fails where it is not empty
	}
	// Their links have names of the kubelet's choice, in a directory of its choice.
	links, _ := filepath.Glob("/var/log/containers/*")
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && strings.HasPrefix(to, dir+"/") {
			problems = append(problems, os.Remove(link))
		}
	}
	mounts, err := mountsBelow(dir)
	problems = append(problems, err)
	for _, mount := range mounts {
		if err := unix.Unmount(mount, unix.MNT_DETACH); err != nil {
			problems = append(problems, fmt.Errorf("unmounting %s: %w", mount, err))
		}
	}
	if left, err := mountsBelow(dir); err != nil || len(left) != 0 {
		return errors.Join(append(problems, fmt.Errorf("%s is left as it is: it still has mounts: %v", dir, left))...) // whatever is mounted there would be removed with it
	}
	return errors.Join(append(problems, os.RemoveAll(dir))...)
}

// shims are the processes of containerd's that hold this rig's containers. Their command line names its socket.
func shims(dir string) []int {
	var found []int
	for pid := range processes() {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && bytes.Contains(line, []byte("containerd-shim")) && bytes.Contains(line, []byte("\x00"+dir+"/")) {
			found = append(found, pid)
		}
	}
	return found
}

// running are the processes whose program is a file below a directory, or was when they began.
func running(dir string) []int {
	var found []int
	for pid := range processes() {
		if program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && strings.HasPrefix(program, dir+"/") {
			found = append(found, pid)
		}
	}
	return found
}

func descendants(of int) []int {
	var found []int
	for pid, parent := range processes() {
		if parent == of {
			found = append(append(found, descendants(pid)...), pid)
		}
	}
	return found
}

// processes gives the parent of each.
func processes() map[int]int {
	all := map[int]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range stats {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if _, after, ok := bytes.Cut(stat, []byte(") ")); ok {
			if fields := bytes.Fields(after); len(fields) > 1 {
				all[pid], _ = strconv.Atoi(string(fields[1]))
			}
		}
	}
	return all
}

// gone waits until a killed process has ended, for a while.
func gone(pid int) {
	deadline, tick := time.After(10*time.Second), time.NewTicker(20*time.Millisecond)
	defer tick.Stop()
	for unix.Kill(pid, 0) == nil {
		select {
		case <-tick.C:
		case <-deadline:
			return
		}
	}
}

// mountsBelow lists what is mounted below dir, the innermost first.
func mountsBelow(dir string) ([]string, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var mounts []string
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			mounts = append(mounts, fields[4])
		}
	}
	slices.Reverse(mounts) // later ones lie in or above earlier ones
	return mounts, nil
}

// kernelSettings are those that the kubelet changes (pkg/kubelet/cm, setupKernelTunables), below /proc/sys.
var kernelSettings = []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"}

// rememberKernel gives back what undoes the kubelet's changes to the machine's settings.
func rememberKernel() (restore func()) {
	before := map[string][]byte{}
	for _, name := range kernelSettings {
		if value, err := os.ReadFile(filepath.Join("/proc/sys", name)); err == nil {
			before[name] = value
		}
	}
	return func() {
		for name, value := range before {
			_ = os.WriteFile(filepath.Join("/proc/sys", name), value, 0o600) // one that cannot be written the kubelet has not written either
		}
	}
}
