package doctor

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Process is what /proc tells of a kubelet.
type Process struct {
	PID  int
	Args []string
	// UID is its effective user; -1: not told.
	UID int
	// OneUser says that it is so in every sense: no user has started a program that runs as another.
	OneUser bool
	Started time.Time
	// Exe is the file of its program, empty where it is not told.
	Exe string
	// Dir is its working directory, which a relative path starts from.
	Dir string
	// Unit is the systemd unit it runs in; empty: none.
	Unit string
	// Environ is its environment, readable by root and its own user.
	Environ    []string
	EnvironErr error
	// Elsewhere says that it has other mounts than we, or than a mounted node's first process.
	Elsewhere bool
}

// errNoProc is for systems without /proc, and for a mounted file system in which there is nothing.
var errNoProc = errors.New("no /proc to look into")

// kubelets gives the node's kubelets, the oldest first.
func (n Node) kubelets() ([]Process, error) {
	entries, err := n.readDir("/proc")
	if err != nil || len(entries) == 0 {
		return nil, errNoProc
	}
	var found []Process
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if p, ok := n.process(pid); ok && isKubelet(p.Args) {
			found = append(found, p)
		}
	}
	slices.SortStableFunc(found, func(a, b Process) int { return a.Started.Compare(b.Started) })
	return found, nil
}

// process is what can be seen of a process. It may end while we look.
func (n Node) process(pid int) (Process, bool) {
	dir := "/proc/" + strconv.Itoa(pid) + "/"
	cmdline, err := n.readFile(dir + "cmdline")
	if err != nil || len(cmdline) == 0 {
		return Process{}, false
	}
	p := Process{PID: pid, Args: strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00"), UID: -1, Dir: "/"}
	if len(p.Args) == 1 { // of a program that changed its title, as k3s does
		p.Args = strings.Fields(p.Args[0])
	}
	if status, err := n.readFile(dir + "status"); err == nil {
		p.UID, p.OneUser = uidOf(string(status))
	}
	p.Started = n.started(dir)
	p.Exe, _ = n.readLink(dir + "exe")
	if cwd, err := n.readLink(dir + "cwd"); err == nil {
		p.Dir = cwd
	}
	if cgroup, err := n.readFile(dir + "cgroup"); err == nil {
		p.Unit = unitOf(string(cgroup))
	}
	p.Environ, p.EnvironErr = n.environ(pid)
	whose := "self"
	if n.Root != "" {
		whose = "1" // the node's own first process, as we may be in a container
	}
	if own, err := n.readLink("/proc/" + whose + "/ns/mnt"); err == nil {
		theirs, err := n.readLink(dir + "ns/mnt")
		p.Elsewhere = err == nil && own != theirs
	}
	return p, true
}

// readLink is where a symbolic link leads, which need not exist: what /proc shows as links are none.
func (n Node) readLink(path string) (string, error) { return os.Readlink(filepath.Join(n.Root, path)) }

func (n Node) environ(pid int) ([]string, error) {
	data, err := n.readFile("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return nil, err
	}
	return strings.FieldsFunc(string(data), func(r rune) bool { return r == 0 }), nil
}

// uidOf gives the effective user, and whether the real and the saved one are the same.
func uidOf(status string) (uid int, one bool) {
	for line := range strings.Lines(status) {
		if fields := strings.Fields(line); len(fields) > 4 && fields[0] == "Uid:" {
			if uid, err := strconv.Atoi(fields[2]); err == nil {
				return uid, fields[1] == fields[2] && fields[3] == fields[2]
			}
		}
	}
	return -1, false
}

// ticks are those of /proc/PID/stat in a second: USER_HZ, which is 100 on every architecture that Kubernetes runs on.
const ticks = 100

// started is when a process was started, to a second: the kernel tells it in ticks since the boot, whose time is told in seconds (proc_pid_stat(5), proc_stat(5)).
func (n Node) started(dir string) time.Time {
	stat, err := n.readFile(dir + "stat")
	if err != nil {
		return time.Time{}
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // the name before it may hold anything
	const starttime = 22 - 3                                                  // counted from the state, the third
	if len(fields) <= starttime {
		return time.Time{}
	}
	since, err := strconv.ParseInt(fields[starttime], 10, 64)
	if err != nil {
		return time.Time{}
	}
	whole, err := n.readFile("/proc/stat")
	if err != nil {
		return time.Time{}
	}
	for line := range strings.Lines(string(whole)) {
		if boot, ok := strings.CutPrefix(line, "btime "); ok {
			if at, err := strconv.ParseInt(strings.TrimSpace(boot), 10, 64); err == nil {
				return time.Unix(at, 0).Add(time.Duration(since) * (time.Second / ticks))
			}
		}
	}
	return time.Time{}
}

// unitOf is the innermost systemd service of a control group; none of a user's own services, which users name as they like.
func unitOf(cgroup string) (unit string) {
	for line := range strings.Lines(cgroup) {
		if strings.Contains(line, "/user.slice/") {
			continue
		}
		for element := range strings.SplitSeq(strings.TrimSpace(line), "/") {
			if name, ok := strings.CutSuffix(element, ".service"); ok && !strings.HasPrefix(element, "user@") {
				unit = name
			}
		}
	}
	return unit
}

// believed says whether a process that is called a kubelet is to be taken for one of this node's own: everybody may call a program of theirs so, and what its arguments and its environment say decides what
// is read, and with what backends are started, as root. So it has to run as root or as the one who looks, from the start, where that one sees the node's files; and for root, whose word others must not put
// into its mouth, be the program that it is called.
func (e *examination) believed(p *Process) bool {
	if p.UID != 0 && p.UID != e.UID || !p.OneUser || p.Elsewhere {
		return false
	}
	name := filepath.Base(strings.TrimSuffix(p.Exe, deleted))
	_, ok := embedded[name]
	return e.UID != 0 || e.Mounted || name == "kubelet" || ok // with --root nothing is started
}

// embedded are programs that have a kubelet in them, with the words that start one.
var embedded = map[string][]string{"k3s": {"server", "agent"}, "kubelite": nil, "hyperkube": {"kubelet"}}

func isKubelet(args []string) bool {
	if len(args) == 0 {
		return false
	}
	name := filepath.Base(args[0])
	words, ok := embedded[name]
	return name == "kubelet" || ok && (words == nil || len(args) > 1 && slices.Contains(words, args[1]))
}
