package install

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestMain is also the installer that is killed: with KILL_AT it ends like a killed process when it is about to make that change.
func TestMain(m *testing.M) {
	if at := os.Getenv("INSTALL_KILL_AT"); at != "" {
		n, _ := strconv.Atoi(at)
		i := newInstaller(os.Getenv("INSTALL_FROM"), os.Getenv("INSTALL_DIR"), os.Getenv("INSTALL_CONFIG"), nil)
		i.Version = os.Getenv("INSTALL_VERSION")
		i.disk.step = func(string, string) error {
			if n--; n < 0 {
				os.Exit(137)
			}
			return nil
		}
		act := func() error { return i.Apply(context.Background()) }
		if os.Getenv("INSTALL_REMOVE") != "" {
			act = i.Remove
		}
		if err := act(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// fake stands for the broker: it refuses configurations that say "bad", and versions that do not run. A picky version refuses what an old one takes, and takes what an old one refuses.
func fake(_ context.Context, program string, args ...string) (stdout, stderr []byte, err error) {
	content, err := os.ReadFile(program)
	if err != nil {
		return nil, nil, err
	}
	if args[0] == "version" {
		if bytes.Contains(content, []byte("damaged")) {
			return nil, nil, errors.New("exec format error")
		}
		return nil, nil, nil
	}
	config, err := os.ReadFile(filepath.Join(args[2], "config.yaml"))
	if err != nil {
		return nil, nil, err
	}
	if args[0] == "validate" {
		if !takes(string(content), string(config)) {
			return nil, []byte("config.yaml:1: it is bad\n"), errors.New("exit status 1")
		}
		return nil, nil, nil
	}
	if bytes.Contains(config, []byte("unprintable")) {
		return nil, []byte("--match covers no such image\n"), errors.New("exit status 1")
	}
	out := "# Printed by " + program + ".\nkind: CredentialProviderConfig\nproviders:\n- name: credential-broker\n  args: [--config, " + args[2] + "]\n"
	if bytes.Contains(config, []byte("audience")) {
		out += "- name: credential-broker-sts.example\n"
	}
	return []byte(out), nil, nil
}

// takes says whether a version takes a configuration, both by their content.
func takes(version, config string) bool {
	picky := strings.Contains(version, "picky")
	return !strings.Contains(config, "bad") && (!picky || !strings.Contains(config, "old")) && (picky || !strings.Contains(config, "modern"))
}

func newInstaller(from, dir, config string, log *bytes.Buffer) *Installer {
	i := &Installer{
		From: from, Version: "1.0.0", Dir: dir, ConfigFrom: config, Keep: time.Hour, Run: fake, Now: time.Now, Log: slog.New(slog.DiscardHandler), disk: disk{hasty: true},
	}
	if log != nil {
		i.Log = slog.New(slog.NewTextHandler(log, nil))
	}
	return i
}

// release makes the directory of a release; what is the version's own stands in each file.
func release(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	var sums strings.Builder
	for _, name := range []string{"credential-broker", "backends/credential-backend-ecr", "backends/gar-check"} {
		content := name + " of " + text + "\n"
		put(t, filepath.Join(dir, name), content)
		fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256([]byte(content)), name)
	}
	put(t, filepath.Join(dir, Manifest), sums.String())
	return dir
}

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func host(t *testing.T) string {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("the installer is for Linux nodes")
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(dir, "opt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func configMap(t *testing.T, content string) string {
	t.Helper()
	dir := t.TempDir()
	put(t, filepath.Join(dir, "config.yaml"), content)
	return dir
}

func apply(t *testing.T, i *Installer) {
	t.Helper()
	if err := i.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func content(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// whole is what a kubelet would find: all of one version, under its one name, and the configuration; "" where there is nothing.
func whole(dir string) (version, config string, err error) {
	at, err := filepath.EvalSymlinks(filepath.Join(dir, "bin", "credential-broker"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", "", nil
	}
	if err != nil {
		return "", "", err
	}
	for _, name := range []string{"credential-broker", "backends/credential-backend-ecr", "backends/gar-check"} {
		path := filepath.Join(filepath.Dir(at), name)
		text, err := os.ReadFile(path)
		if err != nil {
			return "", "", err
		}
		of, found := strings.CutPrefix(string(text), name+" of ")
		if version == "" {
			version = of
		}
		if !found || of != version {
			return "", "", fmt.Errorf("%s is %q beside %q", path, text, version)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o755 {
			return "", "", fmt.Errorf("%s: mode %v, %w", path, info.Mode(), err)
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "config", "config.yaml"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", "", err
	}
	return version, string(text), nil
}

func TestAHostGetsTheReleaseAndItsConfiguration(t *testing.T) {
	dir := host(t)
	i := newInstaller(release(t, "one"), dir, configMap(t, "with an audience"), nil)
	apply(t, i)
	version, config, err := whole(dir)
	if version != "one\n" || config != "with an audience" || err != nil {
		t.Fatalf("got %q and %q, %v", version, config, err)
	}
	// The stable names stand in what the kubelet is given, since the versions' names change.
	want := mark + "# Printed by " + dir + "/current/credential-broker.\nkind: CredentialProviderConfig\nproviders:\n- name: credential-broker\n  args: [--config, " + dir + "/config]\n- name: credential-broker-sts.example\n"
	if diff := cmp.Diff(want, content(t, filepath.Join(dir, "kubelet.yaml"))); diff != "" {
		t.Error(diff)
	}
	for _, name := range []string{"credential-broker", "credential-broker-sts.example"} {
		if to, err := os.Readlink(filepath.Join(dir, "bin", name)); to != dir+"/current/credential-broker" {
			t.Errorf("%s leads to %q, %v", name, to, err)
		}
	}
}

func TestWhatIsRightIsNotTouched(t *testing.T) {
	dir := host(t)
	i := newInstaller(release(t, "one"), dir, configMap(t, "fine"), nil)
	apply(t, i)
	i.disk.step = func(what, path string) error {
		if what == "links" {
			return nil
		}
		return fmt.Errorf("%s %s", what, path)
	}
	apply(t, i)
}

func TestWhatDiffersIsRepairedAndSaid(t *testing.T) {
	tests := map[string]func(t *testing.T, file string){
		"other content": func(t *testing.T, file string) { put(t, file, "a trojan") },
		"no file":       func(_ *testing.T, file string) { _ = os.Remove(file) },
		"another mode":  func(_ *testing.T, file string) { _ = os.Chmod(file, 0o777) },
		"a link in its place": func(t *testing.T, file string) {
			copied := filepath.Join(t.TempDir(), "copy")
			if err := os.Rename(file, copied); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(copied, file); err != nil {
				t.Fatal(err)
			}
		},
		"an open directory": func(_ *testing.T, file string) { _ = os.Chmod(filepath.Dir(file), 0o777) },
	}
	for name, damage := range tests {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			dir := host(t)
			i := newInstaller(release(t, "one"), dir, configMap(t, "fine"), &log)
			apply(t, i)
			log.Reset()
			damage(t, filepath.Join(dir, "current", "backends", "credential-backend-ecr"))
			apply(t, i)
			if version, _, err := whole(dir); version != "one\n" || err != nil {
				t.Errorf("got %q, %v", version, err)
			}
			if name != "an open directory" && !strings.Contains(log.String(), "credential-backend-ecr") {
				t.Errorf("the log does not say what was repaired: %s", log.String())
			}
			if info, err := os.Stat(filepath.Join(dir, "current", "backends")); err != nil || info.Mode().Perm() != 0o755 {
				t.Errorf("the directory has the mode %v, %v", info.Mode(), err)
			}
		})
	}
}

// TestTheKubeletsConfigurationIsMadeAnewIfOthersCanWriteIt has nobody restart a kubelet for it if what it says is right.
func TestTheKubeletsConfigurationIsMadeAnewIfOthersCanWriteIt(t *testing.T) {
	for _, text := range []string{"", "more of somebody\n"} {
		var log bytes.Buffer
		dir := host(t)
		i := newInstaller(release(t, "one"), dir, configMap(t, "fine"), &log)
		apply(t, i)
		path := i.kubeletConfig()
		want := content(t, path)
		put(t, path, want+text)
		if err := os.Chmod(path, 0o666); err != nil {
			t.Fatal(err)
		}
		log.Reset()
		apply(t, i)
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o644 || content(t, path) != want {
			t.Errorf("it has the mode %v, %v, and says %s", info.Mode(), err, content(t, path))
		}
		if said := log.String(); !strings.Contains(said, "msg=repaired file="+path) || !strings.Contains(said, "chmod") || strings.Contains(said, "restart it") != (text != "") {
			t.Errorf("with %q added, the log says %s", text, said)
		}
	}
}

func TestADamagedImageIsNotInstalled(t *testing.T) {
	dir := host(t)
	config := configMap(t, "fine")
	apply(t, newInstaller(release(t, "one"), dir, config, nil))
	from := release(t, "two")
	put(t, filepath.Join(from, "backends/gar-check"), "something else")
	i := newInstaller(from, dir, config, nil)
	if err := i.Apply(t.Context()); err == nil || !strings.Contains(err.Error(), "gar-check has the SHA-256 digest") {
		t.Errorf("got %v", err)
	}
	if version, _, err := whole(dir); version != "one\n" || err != nil {
		t.Errorf("got %q, %v", version, err)
	}
}

func TestAVersionThatDoesNotRunIsNotUsed(t *testing.T) {
	dir := host(t)
	config := configMap(t, "fine")
	apply(t, newInstaller(release(t, "one"), dir, config, nil))
	if err := newInstaller(release(t, "damaged two"), dir, config, nil).Apply(t.Context()); err == nil || !strings.Contains(err.Error(), "noexec") {
		t.Errorf("got %v", err)
	}
	if version, _, err := whole(dir); version != "one\n" || err != nil {
		t.Errorf("got %q, %v", version, err)
	}
}

func TestARefusedConfigurationLeavesTheOneBefore(t *testing.T) {
	tests := []struct {
		name, before, after, release string
		version, config              string
	}{
		{"of the same version", "fine", "bad", "one", "one\n", "fine"},
		{"with a new version that takes the one in use", "fine", "bad", "two", "two\n", "fine"},
		{"with a new version that refuses the one in use as well", "old", "bad", "picky two", "one\n", "old"},
		{"with a new version whose new configuration mends that", "old", "new", "picky two", "picky two\n", "new"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir, config := host(t), configMap(t, tt.before)
			one := release(t, "one")
			apply(t, newInstaller(one, dir, config, nil))
			from := one
			if tt.release != "one" {
				from = release(t, tt.release)
			}
			put(t, filepath.Join(config, "config.yaml"), tt.after)
			err := newInstaller(from, dir, config, nil).Apply(t.Context())
			if refused := tt.after == "bad"; refused != (err != nil) || refused && !strings.Contains(err.Error(), "config.yaml:1: it is bad") {
				t.Errorf("got the error %v", err)
			}
			if version, is, err := whole(dir); version != tt.version || is != tt.config || err != nil {
				t.Errorf("got %q and %q, %v", version, is, err)
			}
		})
	}
}

func TestAConfigMapsUpdateIsReadAtOneMoment(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "..one", "config.yaml"), "one")
	for target, link := range map[string]string{"..one": "..data", "..data/config.yaml": "config.yaml"} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Skip("no symbolic links here: ", err)
		}
	}
	c, err := read(dir)
	if err != nil || string(c.contents["config.yaml"]) != "one" || len(c.names) != 1 {
		t.Fatalf("got %v, %v", c, err)
	}
}

func TestOldVersionsStayForAWhile(t *testing.T) {
	dir, config := host(t), configMap(t, "fine")
	apply(t, newInstaller(release(t, "one"), dir, config, nil))
	two := newInstaller(release(t, "two"), dir, config, nil)
	apply(t, two)
	count := func(want int) {
		t.Helper()
		if entries, _ := os.ReadDir(filepath.Join(dir, "versions")); len(entries) != want {
			t.Errorf("there are %v", entries)
		}
	}
	count(2)
	two.Now = func() time.Time { return time.Now().Add(2 * time.Hour) }
	apply(t, two)
	count(1)
	if version, _, err := whole(dir); version != "two\n" || err != nil {
		t.Errorf("got %q, %v", version, err)
	}
}

func TestSomebodyElsesFilesAreLeftAlone(t *testing.T) {
	dir, bin := host(t), host(t)
	kubelet := filepath.Join(t.TempDir(), "credential-providers.yaml")
	i := newInstaller(release(t, "one"), dir, configMap(t, "fine"), nil)
	i.BinDir, i.KubeletConfig = bin, kubelet

	put(t, kubelet, "theirs")
	if err := i.Apply(t.Context()); err == nil || !strings.Contains(err.Error(), "somebody else's") {
		t.Errorf("got %v", err)
	}
	if got := content(t, kubelet); got != "theirs" {
		t.Errorf("their file is now %q", got)
	}
	_ = os.Remove(kubelet)
	put(t, filepath.Join(bin, "ecr-credential-provider"), "theirs")
	apply(t, i)
	if err := i.Remove(); err != nil {
		t.Fatal(err)
	}
	entries, _ := os.ReadDir(bin)
	if len(entries) != 1 || entries[0].Name() != "ecr-credential-provider" {
		t.Errorf("in the kubelet's bin directory are %v", entries)
	}
}

func TestOneInstallerAtATime(t *testing.T) {
	dir := host(t)
	unlock, err := lock(filepath.Join(dir, ".lock"))
	if err != nil {
		t.Fatal(err)
	}
	i := newInstaller(release(t, "one"), dir, "", nil)
	if err := i.Apply(t.Context()); err == nil || !strings.Contains(err.Error(), "another installer") {
		t.Errorf("got %v", err)
	}
	unlock()
	apply(t, i)
}

func TestADirectoryThatOthersCanWriteIsRefused(t *testing.T) {
	dir := host(t)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := newInstaller(release(t, "one"), dir, "", nil).Apply(t.Context()); err == nil || !strings.Contains(err.Error(), "chmod") {
		t.Errorf("got %v", err)
	}
}

func TestRemoveLeavesNothing(t *testing.T) {
	dir := host(t)
	i := newInstaller(release(t, "one"), dir, configMap(t, "with an audience"), nil)
	apply(t, i)
	for range 2 {
		if err := i.Remove(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("%s is there: %v", dir, err)
		}
	}
}

// change is what an installer finds, and what it is to bring.
type change struct {
	version, config         string // before; no version: nothing is there
	nextVersion, nextConfig string
	links                   bool // of a host whose links do not lead through in-use yet
}

// changes are those that are interrupted. In the last two the version before refuses the configuration after, and the version after the configuration before.
var changes = map[string]change{
	"from nothing":                   {nextVersion: "two", nextConfig: "with an audience"},
	"of both":                        {"one", "fine", "two", "with an audience", false},
	"of both, which need each other": {"one", "old", "picky two", "modern, with an audience", false},
	"of both, which need each other, from links of their own": {"one", "old", "picky two", "modern, with an audience", true},
}

// hosts gives a function that makes a host on which the change is to be made, and the installer that makes it.
func (c change) hosts(t *testing.T) func() *Installer {
	t.Helper()
	from, config := "", ""
	if c.version != "" {
		from, config = release(t, c.version), configMap(t, c.config)
	}
	nextFrom, nextConfig := release(t, c.nextVersion), configMap(t, c.nextConfig)
	return func() *Installer {
		dir := host(t)
		if c.version != "" {
			apply(t, newInstaller(from, dir, config, nil))
		}
		if c.links {
			linksOfTheirOwn(t, dir)
		}
		return newInstaller(nextFrom, dir, nextConfig, nil)
	}
}

// linksOfTheirOwn makes a host as it was before there were pairs.
func linksOfTheirOwn(t *testing.T, dir string) {
	t.Helper()
	for link, in := range map[string]string{"current": "versions", "config": "configs"} {
		to, err := filepath.EvalSymlinks(filepath.Join(dir, link))
		if err == nil {
			err = os.Remove(filepath.Join(dir, link))
		}
		if err == nil {
			err = os.Symlink(filepath.Join(in, filepath.Base(to)), filepath.Join(dir, link))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// After a way back to such a version in-use is there, and leads to what is used no more.
	if err := errors.Join(os.RemoveAll(filepath.Join(dir, "pairs")), os.Remove(filepath.Join(dir, "in-use")), os.Symlink("pairs/gone", filepath.Join(dir, "in-use"))); err != nil {
		t.Fatal(err)
	}
}

// usable says that nothing is broken: the host has one of the two versions with one of the two configurations, and they take each other.
func (c change) usable(t *testing.T, dir string) (version, config string) {
	t.Helper()
	version, config, err := whole(dir)
	if err != nil {
		t.Fatal(err)
	}
	version = strings.TrimSuffix(version, "\n")
	if c.version == "" && (version == "" || config == "") {
		return version, config // not all of it yet, and no kubelet can need it
	}
	if version != c.version && version != c.nextVersion || config != c.config && config != c.nextConfig || !takes(version, config) {
		t.Fatalf("the version %q is used with the configuration %q", version, config)
	}
	return version, config
}

// check is what holds of the host when the change is made.
func (c change) check(t *testing.T, dir string) {
	t.Helper()
	if version, config := c.usable(t, dir); version != c.nextVersion || config != c.nextConfig {
		t.Fatalf("the version %q is used with the configuration %q", version, config)
	}
	if got, want := strings.Contains(content(t, filepath.Join(dir, "kubelet.yaml")), "sts.example"), strings.Contains(c.nextConfig, "audience"); got != want {
		t.Errorf("kubelet.yaml is not of the configuration %q", c.nextConfig)
	}
	for link, to := range map[string]string{"current": "in-use/current", "config": "in-use/config"} {
		if is, _ := os.Readlink(filepath.Join(dir, link)); is != to {
			t.Errorf("%s leads to %q", link, is)
		}
	}
	noLeftovers(t, dir)
}

// TestKilledAtAnyMomentTheVersionBeforeWorksAndTheNextRunFinishes ends an installer's process at each change that it is about to make.
func TestKilledAtAnyMomentTheVersionBeforeWorksAndTheNextRunFinishes(t *testing.T) {
	for name, c := range changes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host, steps := c.hosts(t), 0
			for done := false; !done; steps++ {
				i := host()
				done = child(t, steps, false, i.From, i.Dir, i.ConfigFrom)
				c.usable(t, i.Dir)
				apply(t, i)
				c.check(t, i.Dir)
			}
			t.Logf("killed before each of %d changes", steps-1)
			if steps < 10 {
				t.Errorf("only %d changes were seen", steps)
			}
		})
	}
}

// TestAStepThatFailsLeavesWhatBelongsTogether has each change fail once, that of the kubelet's links and what the broker is asked included.
func TestAStepThatFailsLeavesWhatBelongsTogether(t *testing.T) {
	for name, c := range changes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host, failed := c.hosts(t), 0
			for n := 0; ; n++ {
				i := host()
				left := n
				refuse := func(what, path string) error {
					if left--; left == -1 {
						return &fs.PathError{Op: what, Path: path, Err: syscall.EIO}
					}
					return nil
				}
				i.disk.step = refuse
				i.Run = func(ctx context.Context, program string, args ...string) (stdout, stderr []byte, err error) {
					if err := refuse("run", program); err != nil {
						return nil, nil, err
					}
					return fake(ctx, program, args...)
				}
				err := i.Apply(t.Context())
				c.usable(t, i.Dir)
				if err == nil && left >= 0 {
					break
				}
				if !errors.Is(err, syscall.EIO) {
					t.Fatalf("change %d failed, and the error is %v", n, err)
				}
				failed++
				i.disk.step, i.Run = nil, fake
				apply(t, i)
				c.check(t, i.Dir)
			}
			t.Logf("each of %d steps failed once", failed)
			if failed < 10 {
				t.Errorf("only %d steps were seen", failed)
			}
		})
	}
}

func TestKilledAtAnyMomentARemovalFinishesTheNextTime(t *testing.T) {
	one, config := release(t, "one"), configMap(t, "with an audience")
	steps := 0
	for done := false; !done; steps++ {
		dir := host(t)
		i := newInstaller(one, dir, config, nil)
		apply(t, i)
		done = child(t, steps, true, one, dir, config)
		if err := i.Remove(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("killed before change %d, removed again, and %s is there", steps, dir)
		}
	}
	t.Logf("killed before each of %d changes", steps-1)
}

// child runs an installer in a process of its own, which is killed before change n. It says whether it came to its end.
func child(t *testing.T, n int, remove bool, from, dir, config string) bool {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "INSTALL_KILL_AT="+strconv.Itoa(n), "INSTALL_FROM="+from, "INSTALL_DIR="+dir, "INSTALL_CONFIG="+config, "INSTALL_VERSION=1.0.0")
	if remove {
		cmd.Env = append(cmd.Env, "INSTALL_REMOVE=1")
	}
	out, err := cmd.CombinedOutput()
	if err == nil {
		return true
	}
	if cmd.ProcessState.ExitCode() != 137 {
		t.Fatalf("%v: %s", err, out)
	}
	return false
}

func noLeftovers(t *testing.T, dir string) {
	t.Helper()
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(d.Name(), unfinished) {
			t.Errorf("%s was left", path)
		}
		return err
	})
}

// TestAFullDiskChangesNothing has no room from each change on: a full disk does not become empty by itself. Removing works.
func TestAFullDiskChangesNothing(t *testing.T) {
	for name, c := range changes {
		if c.version == "" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host, ran := c.hosts(t), 0
			for n := 0; ; n++ {
				i := host()
				left := n
				i.disk.step = func(what, path string) error {
					if left--; left < 0 && slices.Contains([]string{"mkdir", "create", "write", "symlink", "links"}, what) {
						return &fs.PathError{Op: what, Path: path, Err: syscall.ENOSPC}
					}
					return nil
				}
				err := i.Apply(t.Context())
				version, _ := c.usable(t, i.Dir)
				if err == nil {
					break
				}
				if !errors.Is(err, syscall.ENOSPC) {
					t.Fatalf("got %v", err)
				}
				if entries, _ := os.ReadDir(filepath.Join(i.Dir, "versions")); version == c.version && len(entries) > 1 && !complete(i.Dir, entries) {
					t.Errorf("full from change %d on: half a version was left: %v", n, entries)
				}
				noLeftovers(t, i.Dir)
				ran++
			}
			t.Logf("full from each of %d changes on", ran)
			if ran < 10 {
				t.Errorf("only %d changes were seen", ran)
			}
		})
	}
}

func complete(dir string, entries []fs.DirEntry) bool {
	for _, e := range entries {
		for _, name := range []string{"credential-broker", "backends/credential-backend-ecr", "backends/gar-check"} {
			if _, err := os.Stat(filepath.Join(dir, "versions", e.Name(), name)); err != nil {
				return false
			}
		}
	}
	return true
}

func TestAnEntryThatCannotBePrintedIsARefusal(t *testing.T) {
	dir, config := host(t), configMap(t, "fine")
	apply(t, newInstaller(release(t, "one"), dir, config, nil))
	put(t, filepath.Join(config, "config.yaml"), "unprintable")
	err := newInstaller(release(t, "two"), dir, config, nil).Apply(t.Context())
	if err == nil || !strings.Contains(err.Error(), "--match covers no such image") || !strings.Contains(err.Error(), "the configuration before stays in use") {
		t.Errorf("got %v", err)
	}
	if version, is, err := whole(dir); version != "two\n" || is != "fine" || err != nil {
		t.Errorf("got %q and %q, %v", version, is, err)
	}
}

func TestAConfigurationThatIsNoLongerGivenIsSaidAndJudged(t *testing.T) {
	dir := host(t)
	apply(t, newInstaller(release(t, "one"), dir, configMap(t, "old, with an audience"), nil))

	var log bytes.Buffer
	i := newInstaller(release(t, "two"), dir, "", &log)
	for range 2 { // each time, not only once
		log.Reset()
		if err := os.Remove(filepath.Join(dir, "kubelet.yaml")); err != nil {
			t.Fatal(err)
		}
		apply(t, i)
		for _, want := range []string{"no configuration is given any more", dir + "/config, stays in use as it is", "--config-from", "rm " + dir + "/config"} {
			if !strings.Contains(log.String(), want) || !strings.Contains(i.Unclaimed(), want) {
				t.Errorf("%q is said neither in %s nor in %s", want, i.Unclaimed(), log.String())
			}
		}
		if !strings.Contains(content(t, filepath.Join(dir, "kubelet.yaml")), "sts.example") {
			t.Error("kubelet.yaml was not repaired")
		}
	}
	if version, config, err := whole(dir); version != "two\n" || config != "old, with an audience" || err != nil {
		t.Errorf("got %q and %q, %v", version, config, err)
	}

	if err := newInstaller(release(t, "picky three"), dir, "", nil).Apply(t.Context()); err == nil || !strings.Contains(err.Error(), "it is bad") || !strings.Contains(err.Error(), "-config-from") {
		t.Errorf("got %v", err)
	}
	if version, config, err := whole(dir); version != "two\n" || config != "old, with an audience" || err != nil {
		t.Errorf("a version that refuses the configuration in use: got %q and %q, %v", version, config, err)
	}

	put(t, filepath.Join(dir, "config", "config.yaml"), "fine, of somebody")
	if note := i.Unclaimed(); !strings.Contains(note, "was changed on the host") {
		t.Errorf("got %q", note)
	}
	_ = os.RemoveAll(filepath.Join(dir, "configs"))
	if note := i.Unclaimed(); !strings.Contains(note, "cannot be read") {
		t.Errorf("got %q", note)
	}

	if err := i.Apply(t.Context()); err == nil || !strings.Contains(err.Error(), "cannot be read") {
		t.Errorf("of a configuration that is gone: got %v", err)
	}

	// What the note says to do, with the host's own in our file's place in between.
	dir = host(t)
	apply(t, newInstaller(release(t, "one"), dir, configMap(t, "fine"), nil))
	i = newInstaller(release(t, "one"), dir, "", &log)
	put(t, filepath.Join(dir, "kubelet.yaml"), "the host's own")
	apply(t, i)
	if err := os.Remove(filepath.Join(dir, "config")); err != nil {
		t.Fatal(err)
	}
	log.Reset()
	apply(t, i)
	if note := i.Unclaimed(); note != "" || strings.Contains(log.String(), "WARN") {
		t.Errorf("got %q, and the log says %s", note, log.String())
	}
	if got := content(t, filepath.Join(dir, "kubelet.yaml")); got != "the host's own" {
		t.Errorf("kubelet.yaml is %q", got)
	}
	if _, err := os.Lstat(filepath.Join(dir, "config")); err == nil {
		t.Error("the link to the configuration is there again")
	}
}

// TestNothingUnfinishedIsReadAsAConfiguration looks, at each change, for files that the kubelet or the broker would read in a directory: those with these endings, whatever they begin with.
func TestNothingUnfinishedIsReadAsAConfiguration(t *testing.T) {
	dir, elsewhere, config := host(t), host(t), configMap(t, "fine")
	i := newInstaller(release(t, "one"), dir, config, nil)
	i.KubeletConfig = filepath.Join(elsewhere, "credential-broker.yaml")
	seen := 0
	i.disk.step = func(string, string) error {
		for _, root := range []string{dir, elsewhere} {
			_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
				if err == nil && strings.HasPrefix(d.Name(), unfinished) {
					seen++
					if slices.Contains([]string{".json", ".yaml", ".yml"}, filepath.Ext(path)) {
						t.Errorf("%s would be read", path)
					}
				}
				return nil
			})
		}
		return nil
	}
	apply(t, i)
	put(t, filepath.Join(dir, "config", "config.yaml"), "damaged, and repaired while it is in use")
	apply(t, i)
	if seen < 5 {
		t.Errorf("only %d unfinished files were seen", seen)
	}
}

// TestWhatAKilledRunLeftElsewhereIsRemoved is of a kubelet's directory, which is not ours to sweep.
func TestWhatAKilledRunLeftElsewhereIsRemoved(t *testing.T) {
	dir, elsewhere := host(t), host(t)
	i := newInstaller(release(t, "one"), dir, configMap(t, "fine"), nil)
	i.KubeletConfig = filepath.Join(elsewhere, "credential-broker.yaml")
	apply(t, i)
	put(t, unfinishedName(i.KubeletConfig), "half of it")
	apply(t, i)
	noLeftovers(t, elsewhere)
	put(t, unfinishedName(i.KubeletConfig), "half of it")
	if err := i.Remove(); err != nil {
		t.Fatal(err)
	}
	noLeftovers(t, elsewhere)
}

func TestDirectoriesOfTheKubeletsThatOthersCanWriteAreRefused(t *testing.T) {
	for _, which := range []string{"bin directory", "configuration"} {
		dir, open := host(t), host(t)
		i := newInstaller(release(t, "one"), dir, configMap(t, "fine"), nil)
		if which == "bin directory" {
			i.BinDir = open
		} else {
			i.KubeletConfig = filepath.Join(open, "credential-broker.yaml")
		}
		apply(t, i)
		if err := os.Chmod(open, 0o777); err != nil {
			t.Fatal(err)
		}
		i.From = release(t, "two")
		if err := i.Apply(t.Context()); err == nil || !strings.Contains(err.Error(), which) || !strings.Contains(err.Error(), "chmod") {
			t.Errorf("got %v", err)
		}
		if to := i.inUse().version; !strings.Contains(content(t, filepath.Join(dir, to, program)), "one") {
			t.Error("the new version is used all the same")
		}
	}
}

func TestWhatTheKubeletNeedsIsReadyBeforeAnythingIsSwapped(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, i *Installer){
		"a link that cannot be made": func(t *testing.T, i *Installer) {
			put(t, filepath.Join(i.Dir, "bin", "credential-broker-sts.example"), "theirs")
		},
		"a kubelet's configuration of somebody else's": func(t *testing.T, i *Installer) {
			put(t, i.kubeletConfig(), "theirs")
		},
		"a directory where the version's link was":       func(t *testing.T, i *Installer) { inPlaceOf(t, i, "current") },
		"a directory where the configuration's link was": func(t *testing.T, i *Installer) { inPlaceOf(t, i, "config") },
		"an entry that is none": func(_ *testing.T, i *Installer) {
			i.Run = func(ctx context.Context, program string, args ...string) (stdout, stderr []byte, err error) {
				stdout, stderr, err = fake(ctx, program, args...)
				return bytes.ReplaceAll(stdout, []byte("providers:"), []byte("providers")), stderr, err
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := changes["of both"]
			i := c.hosts(t)()
			spoil(t, i)
			if err := i.Apply(t.Context()); err == nil {
				t.Error("no error")
			}
			if version, config := c.usable(t, i.Dir); version != c.version || config != c.config {
				t.Errorf("got %q and %q", version, config)
			}
			noLeftovers(t, i.Dir)
		})
	}
}

// inPlaceOf has what the link leads to stand where the link was.
func inPlaceOf(t *testing.T, i *Installer, link string) {
	t.Helper()
	to, err := filepath.EvalSymlinks(i.path(link))
	if err == nil {
		err = errors.Join(os.Remove(i.path(link)), os.Rename(to, i.path(link)))
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestALinkToAVersionItselfDoesNotStayBehind(t *testing.T) {
	dir, bin, config := host(t), host(t), configMap(t, "fine")
	i := newInstaller(release(t, "one"), dir, config, nil)
	i.BinDir = bin
	apply(t, i)
	link := filepath.Join(bin, program)
	if err := errors.Join(os.Remove(link), os.Symlink(filepath.Join(dir, i.inUse().version, program), link)); err != nil {
		t.Fatal(err)
	}
	i.From = release(t, "two")
	apply(t, i)
	if got := content(t, link); !strings.Contains(got, "two") {
		t.Errorf("the kubelet runs %s", got)
	}
}

func TestTwoConfigurationsOfSimilarDigestsDoNotShareADirectory(t *testing.T) {
	dir := host(t)
	i := newInstaller(release(t, "one"), dir, configMap(t, "fine"), nil)
	apply(t, i)
	// 128 bits: nobody finds two.
	if name := filepath.Base(i.inUse().config); len(name) < 32 {
		t.Errorf("its name is %s", name)
	}
}

func TestAConfigMapThatIsUpdatedMeanwhileIsReadAgain(t *testing.T) {
	dir := host(t)
	for _, update := range []string{"..one", "..two"} {
		put(t, filepath.Join(dir, update, "a.yaml"), update)
		put(t, filepath.Join(dir, update, "b.yaml"), update)
	}
	lead := func(to string) {
		if err := errors.Join(os.Symlink(to, filepath.Join(dir, "..data.new")), os.Rename(filepath.Join(dir, "..data.new"), filepath.Join(dir, "..data"))); err != nil {
			t.Fatal(err)
		}
	}
	lead("..one")
	reads := 0
	c, err := readWhole(dir, func(dir string) (configuration, error) {
		if reads++; reads == 1 {
			// As the kubelet does: it swaps the link, then removes the files behind the old one, in whatever order.
			lead("..two")
			if err := os.Remove(filepath.Join(dir, "a.yaml")); err != nil {
				t.Fatal(err)
			}
		}
		return readFiles(dir)
	})
	if err != nil || reads != 2 || len(c.names) != 2 || string(c.contents["a.yaml"]) != "..two" || string(c.contents["b.yaml"]) != "..two" {
		t.Errorf("after %d reads: %v, %v", reads, c, err)
	}
	if _, err := readWhole(dir, func(dir string) (configuration, error) {
		lead(map[bool]string{true: "..one", false: "..two"}[filepath.Base(dir) == "..two"])
		return readFiles(dir)
	}); err == nil || !strings.Contains(err.Error(), "changed each time") {
		t.Errorf("got %v", err)
	}
}

func TestAManifestNamesOnlyWhatIsInside(t *testing.T) {
	digest := strings.Repeat("0", 64)
	for name, text := range map[string]string{
		"above":         digest + "  ../credential-broker\n",
		"absolute":      digest + "  /etc/shadow\n",
		"no digest":     "abc  credential-broker\n",
		"no path":       digest + "\n",
		"no broker":     digest + "  backends/gar-check\n",
		"an unfinished": digest + "  .new-credential-broker\n",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			put(t, filepath.Join(dir, Manifest), text)
			if m, err := readManifest(dir); err == nil {
				t.Errorf("got %v", m)
			}
		})
	}
}
