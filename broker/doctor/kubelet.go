package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/kubelet"
)

// findKubelet looks for the process, and for the files its flags come from.
func (e *examination) findKubelet() {
	e.settings = e.Node.flagFiles()
	found, err := e.Node.kubelets()
	if e.PID != 0 {
		found = slices.DeleteFunc(found, func(p Process) bool { return p.PID != e.PID })
	}
	own := slices.DeleteFunc(slices.Clone(found), func(p Process) bool { return !e.believed(&p) })
	if len(own) == 0 && e.PID == 0 {
		for _, p := range found {
			e.tellStranger(&p)
		}
	}
	e.noneRuns = err == nil && len(own) == 0 && e.PID == 0
	switch {
	case len(own) > 0:
		e.kubelet = &own[0]
		e.tellKubelet(len(own))
	case e.PID != 0 && len(found) > 0:
		e.kubelet = &found[0]
		e.tellKubelet(1)
		e.note(whatKubelet, "", "it is taken for a kubelet because you named it; its environment is not used, since %s", e.whyNotBelieved(e.kubelet))
		e.kubelet.Environ, e.kubelet.EnvironErr = nil, errNotBelieved
	case e.PID != 0:
		e.wrong(whatKubelet, "ps -e -o pid,args | grep kubelet", "process %d is no kubelet, or has ended", e.PID)
	case len(e.settings.read) > 0 && err != nil:
		e.unknown(whatKubelet, "run it on the node itself, or in a pod with hostPID", "%v; its flags are taken from %s", err, strings.Join(e.settings.read, ", "))
	case len(e.settings.read) > 0:
		e.note(whatKubelet, "", "no kubelet runs%s; its flags are taken from %s", e.unlessHidden(), strings.Join(e.settings.read, ", "))
	case err != nil:
		e.unknown(whatKubelet, "run it on a node, or name a node's file system with --root", "%v, and none of the files that kubelets are set up with", err)
	default:
		remedy := "run it on a node"
		if e.UID > 0 {
			remedy += ", and as root"
		}
		e.wrong(whatKubelet, remedy, "no kubelet runs here%s, and none of the files that kubelets are set up with is here", e.unlessHidden())
	}
}

// errNotBelieved is why an environment is not used.
var errNotBelieved = errors.New("the process may not be a kubelet")

// tellStranger names a process that is called a kubelet and is none of this node's.
func (e *examination) tellStranger(p *Process) {
	remedy := fmt.Sprintf("credential-broker doctor %s--kubelet-pid %d, if that is a kubelet", e.rootFlag(), p.PID)
	if p.Elsewhere && p.UID == 0 {
		remedy = e.lookThere(p.PID) + ", if that is a kubelet"
	}
	e.unknown(whatKubelet, remedy, "process %d is called a kubelet, and is not taken for this node's: %s", p.PID, e.whyNotBelieved(p))
}

func (e *examination) whyNotBelieved(p *Process) string {
	switch {
	case p.UID != 0 && p.UID != e.UID:
		return fmt.Sprintf("it runs as user %d", p.UID)
	case !p.OneUser:
		return "it was started by another user than it runs as"
	case p.Elsewhere:
		return "it has mounts of its own, as in a container"
	case p.Exe == "":
		return "its program cannot be seen, which takes root with CAP_SYS_PTRACE"
	}
	return "its program is " + p.Exe
}

// lookThere is the command that looks at the files that a process sees, with this program and not with what is called so there.
func (e *examination) lookThere(pid int) string {
	root := "/proc/" + strconv.Itoa(pid) + "/root"
	if e.Mounted {
		root = filepath.Join(e.Node.Root, root)
	}
	return "credential-broker doctor --root " + quote(root)
}

// rootFlag hands --root on to a command; it ends with a space.
func (e *examination) rootFlag() string {
	if !e.Mounted {
		return ""
	}
	return "--root " + quote(e.Node.Root) + " "
}

func (e *examination) unlessHidden() string {
	if e.UID <= 0 {
		return ""
	}
	return " that user " + strconv.Itoa(e.UID) + " can see"
}

func (e *examination) tellKubelet(n int) {
	k := e.kubelet
	who := "user " + strconv.Itoa(k.UID)
	if k.UID == 0 {
		who = "root"
	}
	text := fmt.Sprintf("process %d, %s, runs as %s", k.PID, cmp.Or(k.Exe, k.Args[0]), who)
	if !k.Started.IsZero() {
		text += " since " + k.Started.UTC().Format("2006-01-02 15:04:05") + " UTC"
	}
	e.ok(whatKubelet, "%s", text)
	if n > 1 {
		e.note(whatKubelet, "", "%d kubelets run here, and this is the one that was started first: choose another with --kubelet-pid", n)
	}
	if k.Elsewhere {
		e.note(whatKubelet, e.lookThere(k.PID), "it has mounts of its own, so that its paths may lead to other files than those looked at here")
	}
	if e.UID > 0 && k.UID == 0 {
		e.note(whatKubelet, "sudo credential-broker doctor", "it runs as root, and user %d looks: what only root can read is not seen, and files are judged by what user %d may trust", e.UID, e.UID)
	}
}

// hasKubelet says whether anything is known of a kubelet.
func (e *examination) hasKubelet() bool { return e.kubelet != nil || len(e.settings.read) > 0 }

// restart is the command after which the kubelet has read its flags and configuration anew.
func (e *examination) restart() string {
	return "systemctl daemon-reload && systemctl restart " + quote(e.unit())
}

// unit is the systemd unit of the kubelet.
func (e *examination) unit() string {
	unit := "kubelet"
	switch {
	case e.kubelet != nil && e.kubelet.Unit != "":
		unit = e.kubelet.Unit
	case e.Node.exists("/var/lib/rancher/k3s/server"):
		unit = "k3s"
	case e.Node.exists("/etc/rancher/k3s"):
		unit = "k3s-agent"
	case e.Node.exists("/var/lib/rancher/rke2/server"):
		unit = "rke2-server"
	case e.Node.exists("/etc/rancher/rke2"):
		unit = "rke2-agent"
	case e.Node.exists(microk8sArgs):
		unit = "snap.microk8s.daemon-kubelite"
	}
	return unit
}

// flagsGoTo says where on this node flags are given to the kubelet.
func (e *examination) flagsGoTo() string {
	switch {
	case e.kubelet != nil && filepath.Base(e.kubelet.Args[0]) == "k3s", e.Node.exists("/etc/rancher/k3s"):
		return "below kubelet-arg: in /etc/rancher/k3s/config.yaml"
	case e.Node.exists("/etc/rancher/rke2"):
		return "below kubelet-arg: in /etc/rancher/rke2/config.yaml"
	case e.Node.exists(microk8sArgs):
		return "to " + microk8sArgs
	case e.Node.exists("/etc/eks"):
		return "to spec.kubelet.flags of the node's NodeConfig"
	case e.Node.exists("/etc/sysconfig"):
		return "to KUBELET_EXTRA_ARGS in /etc/sysconfig/kubelet"
	default:
		return "to KUBELET_EXTRA_ARGS in /etc/default/kubelet"
	}
}

func (e *examination) findFlags() {
	if !e.hasKubelet() {
		e.waits(whatFlags, whatKubelet)
		return
	}
	if e.kubelet != nil {
		e.flags = flagsOf(e.kubelet.Args)
		e.flags.from = "process " + strconv.Itoa(e.kubelet.PID)
	} else {
		e.flags = e.settings.flags
	}
	name := ""
	if e.kubelet != nil {
		name = filepath.Base(e.kubelet.Args[0])
	}
	fromFile := name == "k3s" || name == "kubelite" // what their files say does not show among their arguments
	if fromFile && e.flags.config == "" && e.flags.binDir == "" {
		e.flags = e.settings.flags
		if name == "k3s" && e.flags.config == "" && e.Node.exists(k3sDefaults.config) && e.Node.exists(k3sDefaults.binDir) {
			e.flags = k3sDefaults
		}
	}
	missing := make([]string, 0, 2)
	if e.flags.config == "" {
		missing = append(missing, "--"+flagConfig)
	}
	if e.flags.binDir == "" {
		missing = append(missing, "--"+flagBinDir)
	}
	switch {
	case len(missing) > 0 && e.kubelet != nil && e.settings.config != "" && e.settings.binDir != "":
		e.wrong(whatFlags, e.restart(), "%s gives %s, and the kubelet that runs (process %d) was started without", e.settings.from, strings.Join(missing, " and "), e.kubelet.PID)
		e.flags = e.settings.flags
	case len(missing) > 0 && e.settings.opaque != "" && (e.kubelet == nil || fromFile):
		e.unknown(whatFlags, "", "%s gives them with a variable, whose value cannot be told from here", e.settings.opaque)
	case len(missing) > 0:
		e.wrong(whatFlags, fmt.Sprintf("add --%s=FILE --%s=DIR %s; then %s", flagConfig, flagBinDir, e.flagsGoTo(), e.restart()), "%s: the kubelet asks nobody for credentials",
			strings.Join(missing, " and ")+plural(len(missing), " is", " are")+" not given")
	case e.kubelet != nil && !fromFile && (e.settings.config != "" && e.settings.config != e.flags.config || e.settings.binDir != "" && e.settings.binDir != e.flags.binDir):
		e.note(whatFlags, e.restart(), "%s says otherwise than the kubelet that runs: it holds from the kubelet's next start on", e.settings.from)
		fallthrough
	default:
		e.ok(whatFlags, "--%s=%s --%s=%s (%s)", flagConfig, e.flags.config, flagBinDir, e.flags.binDir, e.flags.from)
	}
	e.flags.config, e.flags.binDir = e.absolute(e.flags.config), e.absolute(e.flags.binDir)
}

func plural(n int, one, more string) string {
	if n == 1 {
		return one
	}
	return more
}

// absolute is a path of the kubelet's, which starts at its working directory.
func (e *examination) absolute(path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	if e.kubelet != nil {
		return filepath.Join(e.kubelet.Dir, path)
	}
	return "/" + path
}

var versionPattern = regexp.MustCompile(`v?(\d+)\.(\d+)(?:\.\d+)?\S*`)

// Version finds a version of Kubernetes' in a text, such as what `kubelet --version` prints; empty: there is none.
func Version(text string) string { return versionPattern.FindString(text) }

func (e *examination) findVersion(ctx context.Context) {
	switch {
	case !e.hasKubelet():
		e.waits(whatVersion, whatKubelet)
		return
	case e.KubeletVersion != "":
		e.version = Version(e.KubeletVersion)
	default:
		e.version = e.askVersion(ctx)
	}
	if e.version == "" {
		return
	}
	switch {
	case e.olderThan(20):
		e.wrong(whatVersion, "upgrade the kubelet to 1.26 or later", "%s has no credential providers", e.version)
	case e.olderThan(26):
		e.wrong(whatVersion, "upgrade the kubelet to 1.26 or later", "%s does not know %s, in which the broker's entry is", e.version, kubelet.ConfigV1)
	default:
		e.ok(whatVersion, "%s", e.version)
	}
}

// askVersion runs the kubelet's own file with --version, since nothing else on a node says it. Only a file that nobody but root can write is run.
func (e *examination) askVersion(ctx context.Context) string {
	const remedy = "say it with --kubelet-version"
	if e.kubelet == nil || e.Mounted {
		e.unknown(whatVersion, remedy, "only a kubelet that runs here is asked for its version")
		return ""
	}
	path := cmp.Or(e.kubelet.Exe, e.kubelet.Args[0])
	if strings.HasSuffix(path, deleted) {
		e.note(whatRestart, e.restart(), "the kubelet's program was replaced since it was started")
		e.unknown(whatVersion, remedy, "the program that runs is no longer there to be asked")
		return ""
	}
	if name := filepath.Base(path); name != "kubelet" && name != "k3s" || !filepath.IsAbs(path) || e.kubelet.Elsewhere {
		e.unknown(whatVersion, remedy, "%s cannot be asked for its version from here", path)
		return ""
	}
	if err := e.Node.executable(path, nil); err != nil {
		text, _ := e.Node.split(err, "")
		e.unknown(whatVersion, remedy, "not asked: %s", text)
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	said, err := e.Program.KubeletVersion(ctx, e.Node.outside(path))
	version := Version(said)
	if err != nil || version == "" {
		e.unknown(whatVersion, remedy, "%s --version did not tell it", path)
		return ""
	}
	return version
}

// deleted is what the kernel writes behind the path of a program that is no longer there (proc_pid_exe(5)).
const deleted = " (deleted)"

// olderThan says whether the kubelet is known to be older than this minor version of Kubernetes 1.
func (e *examination) olderThan(minor int) bool {
	m := versionPattern.FindStringSubmatch(e.version)
	if len(m) == 0 || m[1] != "1" {
		return false
	}
	is, err := strconv.Atoi(m[2])
	return err == nil && is < minor
}

// readKubeletConfig reads what --image-credential-provider-config names.
func (e *examination) readKubeletConfig() {
	if e.flags.config == "" {
		e.waits(whatKubeConfig, e.firstWrong(whatKubelet, whatFlags))
		return
	}
	path := e.flags.config
	write := "credential-broker kubelet-config >" + quote(path)
	correct := "correct it, or print it anew: " + write
	if e.installed {
		write, correct = installAgain, installAgain
	}
	info, err := e.Node.stat(path)
	if err != nil {
		if !e.unseen(whatKubeConfig, path, err) {
			e.wrong(whatKubeConfig, write, "%s is not there, so that the kubelet does not start", path)
		}
		return
	}
	if info.IsDir() && e.olderThan(34) {
		e.wrong(whatKubeConfig, "name a file in it instead: --"+flagConfig+"="+quote(filepath.Join(path, "credential-broker.yaml")), "%s is a directory, which kubelets read since 1.34, and this one is %s", path, e.version)
	}
	// What others could write is not read: what it says decides how backends are started here.
	if err := e.Node.trusted(path); err != nil {
		e.failure(whatKubeConfig, "", err)
		return
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		e.wrong(whatKubeConfig, write, "%s is neither a file nor a directory", path)
		return
	}
	if e.leadsAway(whatKubeConfig, path, info) {
		return
	}
	all, err := kubelet.ReadConfig(e.Node.outside(path))
	if problems, ok := errors.AsType[config.Problems](err); ok {
		for _, p := range problems {
			p.File = e.Node.inside(p.File)
			e.wrong(whatKubeConfig, correct, "%s: the kubelet does not start with it", p.Error())
		}
		return
	} else if err != nil {
		if !e.unseen(whatKubeConfig, path, err) {
			e.wrong(whatKubeConfig, write, "%s", e.Node.oneLine(err))
		}
		return
	}
	for i, source := range all.Sources {
		all.Sources[i] = e.Node.inside(source)
		if err := e.Node.trusted(all.Sources[i]); err != nil {
			e.failure(whatKubeConfig, "", err)
			return
		}
	}
	for i := range all.Providers {
		all.Providers[i].File = e.Node.inside(all.Providers[i].File)
	}
	e.all = all
	e.ok(whatKubeConfig, "%s: %d %s", strings.Join(all.Sources, ", "), len(all.Providers), plural(len(all.Providers), "entry", "entries"))
}

// leadsAway says that a directory of a mounted node's has symbolic links, which who reads it would follow into this system's own files.
func (e *examination) leadsAway(what, dir string, info fs.FileInfo) bool {
	if e.Node.Root == "" || !info.IsDir() {
		return false
	}
	entries, err := e.Node.readDir(dir)
	i := slices.IndexFunc(entries, func(entry fs.DirEntry) bool { return entry.Type()&fs.ModeSymlink != 0 })
	if err != nil || i < 0 {
		return false
	}
	e.unknown(what, "run it on the node itself", "%s is a symbolic link, which is not followed in a mounted file system", filepath.Join(dir, entries[i].Name()))
	return true
}

// unseen says that something could not be looked at for want of rights, if that is why.
func (e *examination) unseen(what, path string, err error) bool {
	if !isPermission(err) {
		return false
	}
	e.unknown(what, "sudo credential-broker doctor", "%s cannot be read by user %d", path, e.UID)
	return true
}

// firstWrong is the first of these that something is wrong with, or else the last of them.
func (e *examination) firstWrong(whats ...string) string {
	for _, what := range whats {
		if e.isWrong(what) {
			return what
		}
	}
	return whats[len(whats)-1]
}

func (e *examination) lookAtBinDir() {
	dir := e.flags.binDir
	if dir == "" {
		e.waits(whatBinDir, e.firstWrong(whatKubelet, whatFlags))
		return
	}
	info, err := e.Node.stat(dir)
	switch {
	case err != nil && e.unseen(whatBinDir, dir, err):
	case err != nil:
		e.wrong(whatBinDir, "mkdir -p "+quote(dir)+" && credential-broker kubelet-config --link --bin-dir "+quote(dir), "%s is not there, so that the kubelet does not start", dir)
	case !info.IsDir():
		e.wrong(whatBinDir, "name the directory: --"+flagBinDir+"="+quote(filepath.Dir(dir)), "%s is no directory", dir)
	default:
		if err := e.Node.trusted(dir); err != nil {
			e.failure(whatBinDir, "", err)
			return
		}
		e.ok(whatBinDir, "%s", dir)
	}
}

// lookAtRestart finds out whether the kubelet that runs has read what is there now.
func (e *examination) lookAtRestart() {
	switch {
	case !e.hasKubelet():
		e.waits(whatRestart, whatKubelet)
	case e.kubelet == nil:
		if e.noneRuns && e.UID == 0 {
			unit := quote(e.unit())
			e.wrong(whatRestart, "systemctl start "+unit+"; journalctl -u "+unit+" -n 20", "no kubelet runs; one that is set up with files that it cannot use does not start")
		}
	case e.all == nil:
		e.waits(whatRestart, e.firstWrong(whatFlags, whatKubeConfig))
	case e.kubelet.Started.IsZero():
		e.unknown(whatRestart, "", "since when the kubelet runs could not be seen")
	default:
		for _, source := range e.all.Sources { // not their directory, whose time an editor's other files change, too
			info, err := e.Node.stat(source)
			if err == nil && info.ModTime().After(e.kubelet.Started.Add(startAccuracy)) {
				e.wrong(whatRestart, e.restart(), "%s was changed at %s UTC, after the kubelet was started, and it reads it only then", source, info.ModTime().UTC().Format("2006-01-02 15:04:05"))
				return
			}
		}
		e.ok(whatRestart, "the kubelet was started after the last change to its entries")
	}
}

// startAccuracy is how far off the time is at which a process is said to have been started: the boot's is told in whole seconds.
const startAccuracy = time.Second
