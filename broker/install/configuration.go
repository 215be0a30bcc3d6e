package install

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/credential-broker/credential-broker/broker/kubelet"
	"github.com/credential-broker/credential-broker/proto/trust"
)

// mark is the first line of the kubelet's configuration as we write it: nobody else's file is overwritten, or removed.
const mark = kubelet.InstallerMark + ", which writes it anew when it changes. The kubelet reads it when it starts.\n"

// configuration is the files of a configuration, as they were at one moment.
type configuration struct {
	names    []string
	contents map[string][]byte
	digest   string
}

// read takes the configuration's files, all of the same update.
func read(dir string) (configuration, error) { return readWhole(dir, readFiles) }

// readWhole follows a mounted ConfigMap's link ..data once, and reads again if that has been swapped meanwhile: the files behind it are then being removed, and what was found of them need not be all.
func readWhole(dir string, files func(dir string) (configuration, error)) (configuration, error) {
	at := dataOf(dir)
	for range 10 {
		c, err := files(at)
		now := dataOf(dir)
		if now == at {
			return c, err
		}
		at = now
	}
	return configuration{}, fmt.Errorf("read the configuration to install: %s changed each time that it was read", dir)
}

func dataOf(dir string) string {
	if data, err := filepath.EvalSymlinks(filepath.Join(dir, "..data")); err == nil {
		return data
	}
	return dir
}

func readFiles(dir string) (configuration, error) {
	c := configuration{contents: map[string][]byte{}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return c, fmt.Errorf("read the configuration to install: %w", err)
	}
	sum := sha256.New()
	for _, e := range entries {
		name := e.Name()
		if !slices.Contains([]string{".json", ".yaml", ".yml"}, filepath.Ext(name)) || strings.HasPrefix(name, ".") {
			continue
		}
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return c, fmt.Errorf("read the configuration to install: %w", err)
		}
		c.names = append(c.names, name)
		c.contents[name] = content
		fmt.Fprintf(sum, "%q %d\n%s", name, len(content), content)
	}
	if len(c.names) == 0 {
		return c, fmt.Errorf("read the configuration to install: no *.json, *.yaml or *.yml file in %s: give the ConfigMap one, such as config.yaml", dir)
	}
	c.digest = fmt.Sprintf("%x", sum.Sum(nil))
	return c, nil
}

// Fingerprint changes when the configuration to install does. It is the empty string where there is none, or none that could be read.
func (i *Installer) Fingerprint() string {
	if i.ConfigFrom == "" {
		return ""
	}
	c, err := read(i.ConfigFrom)
	if err != nil {
		return ""
	}
	return c.digest
}

// digits of a configuration's digest are its name. Twelve would do against chance, but who writes the ConfigMap could find two of one name, and the second would lie where the first is in use before it is judged.
const digits = 32

// choose finds the configuration that a version is to be used with, the one to install or else the one in use, and the kubelet's entry for it. No pair says that everything stays as it is, because the
// version would also refuse what is in use: then it is worse than the version before. The error says what is refused, also beside a pair.
func (i *Installer) choose(ctx context.Context, version string, before pair) (next pair, entry []byte, err error) {
	if i.ConfigFrom != "" {
		config, refused := i.placeGiven()
		if refused == nil {
			entry, refused = i.judge(ctx, version, config)
		}
		if refused == nil {
			return pair{version, config}, entry, nil
		}
		if err = refused; before.config != "" {
			err = fmt.Errorf("%w; the configuration before stays in use", refused)
		}
	}
	if before.config == "" {
		if note := i.Unclaimed(); note != "" { // nothing of it is left
			err = errors.New(note)
		}
		return pair{version: version}, nil, err
	}
	next = pair{version, before.config}
	entry, inUse := i.judge(ctx, version, before.config)
	switch {
	case inUse == nil:
		return next, entry, err
	case before.version != "" && before.version != version:
		next = pair{}
		inUse = fmt.Errorf("%s stays in use, because %s refuses the configuration in use: %w", before.version, version, inUse)
	default:
		inUse = fmt.Errorf("of the configuration in use: %w", inUse)
	}
	if err == nil {
		return next, nil, fmt.Errorf("%w; %s", inUse, i.Unclaimed())
	}
	return next, nil, fmt.Errorf("%w; %w", err, inUse)
}

// placeGiven puts the configuration to install beside the one in use, and gives its name below Dir.
func (i *Installer) placeGiven() (string, error) {
	c, err := read(i.ConfigFrom)
	if err != nil {
		return "", err
	}
	name := filepath.Join("configs", c.digest[:digits])
	if err := i.placeConfig(c, i.path(name)); err != nil {
		return "", fmt.Errorf("install the configuration: %w", err)
	}
	return name, nil
}

// Unclaimed says what to do about a configuration that is in use though nobody gives it any more; it is empty if there is none. The kubelet's entry names it, so it is not taken away.
func (i *Installer) Unclaimed() string {
	if i.ConfigFrom != "" {
		return ""
	}
	used := i.inUse().config
	if to, err := os.Readlink(i.path("config")); used == "" && (err != nil || !strings.HasPrefix(to, "in-use") && !strings.HasPrefix(to, "configs")) {
		return "" // none, or one that somebody else leads to
	}
	state := "stays in use as it is"
	if c, err := read(i.path("config")); err != nil {
		state = "is in use, and cannot be read"
	} else if !strings.HasPrefix(c.digest, filepath.Base(used)) {
		state = "stays in use, and was changed on the host"
	}
	return fmt.Sprintf("no configuration is given any more, and the former one, %s, %s: give one again (--config-from), or have the kubelet use the host's own: %s kubelet-config >%s, restart the kubelet, then rm %[1]s",
		i.path("config"), state, filepath.Join(i.binDir(), program), i.kubeletConfig())
}

func (i *Installer) placeConfig(c configuration, dir string) error {
	if err := i.disk.mkdir(dir); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, ok := c.contents[e.Name()]; !ok {
			i.Log.Warn("removed a file that is not in the configuration", "file", filepath.Join(dir, e.Name()))
			if err := i.disk.removeAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	for _, name := range c.names {
		path := filepath.Join(dir, name)
		if is, err := os.ReadFile(path); err == nil {
			wrong := trust.File(path)
			if wrong == nil && !bytes.Equal(is, c.contents[name]) {
				wrong = errors.New("its content was changed")
			}
			if wrong == nil {
				continue
			}
			i.Log.Warn("repaired", "file", path, "because", wrong)
		}
		if err := i.disk.write(path, 0o644, bytes.NewReader(c.contents[name])); err != nil {
			return err
		}
	}
	return nil
}

// judge has a version judge a configuration, each provider's settings by its backend included, and print the kubelet's entry for it.
func (i *Installer) judge(ctx context.Context, version, config string) (entry []byte, err error) {
	broker := filepath.Join(i.path(version), program)
	if stdout, stderr, err := i.Run(ctx, broker, "validate", "--config", i.path(config)); err != nil {
		return nil, fmt.Errorf("the configuration is refused: %w: %s", err, said(stdout, stderr))
	}
	entry, stderr, err := i.Run(ctx, broker, append([]string{"kubelet-config", "--config", i.path(config)}, i.EntryFlags...)...)
	if err != nil {
		return nil, fmt.Errorf("print the kubelet's entry: %w: %s", err, said(stderr))
	}
	// What the broker says of a directory whose name will change holds for the link that leads to it.
	entry = bytes.ReplaceAll(entry, []byte(i.path(config)), []byte(i.path("config")))
	return bytes.ReplaceAll(entry, []byte(i.path(version)), []byte(i.path("current"))), nil
}

// namesOf are the links' that the kubelet's entry needs, and the program's own.
func namesOf(entry []byte) ([]string, error) {
	var document struct {
		Providers []struct {
			Name string `yaml:"name"`
		} `yaml:"providers"`
	}
	if err := yaml.Unmarshal(entry, &document); err != nil {
		return nil, fmt.Errorf("read the kubelet's entry: %w", err)
	}
	names := []string{program}
	for _, p := range document.Providers {
		if p.Name != program {
			names = append(names, p.Name)
		}
	}
	return names, nil
}

func (i *Installer) links(names []string) error {
	if err := i.disk.before("links", i.binDir()); err != nil {
		return err
	}
	if err := trust.File(i.binDir()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("link in the kubelet's bin directory: %w", err)
	}
	broker := i.path(filepath.Join("current", program))
	links, err := kubelet.Link(i.binDir(), broker, names)
	if err != nil {
		return err
	}
	for _, l := range links {
		// One that leads to the version itself, as `kubelet-config --link` of an installed program makes it, would stay behind with it.
		if to, err := os.Readlink(l.Path); err == nil && to != broker {
			if err := i.disk.link(broker, l.Path); err != nil {
				return fmt.Errorf("link in the kubelet's bin directory: %w", err)
			}
			l.Made = true
		}
		if l.Made {
			i.Log.Info("linked", "link", l.Path)
		}
	}
	return nil
}

func (i *Installer) binDir() string {
	if i.BinDir != "" {
		return i.BinDir
	}
	return i.path("bin")
}

func (i *Installer) kubeletConfig() string {
	if i.KubeletConfig != "" {
		return i.KubeletConfig
	}
	return i.path("kubelet.yaml")
}

// stagedEntry is the kubelet's configuration, ready to be put into its place; the zero value if nothing is to be done.
type stagedEntry struct {
	*staged
	// wrong is what makes the file that is there one that others could change, and same says that all the same its content is right.
	wrong error
	same  bool
}

// stageEntry makes the kubelet's configuration ready, unless there is none, or the same is there already.
func (i *Installer) stageEntry(entry []byte) (next stagedEntry, err error) {
	if entry == nil {
		return stagedEntry{}, nil
	}
	path := i.kubeletConfig()
	if err := trust.File(filepath.Dir(path)); err != nil {
		return stagedEntry{}, fmt.Errorf("write the kubelet's configuration: %w", err)
	}
	// What a killed run left: the kubelet's directory is not one that is swept.
	if err := i.disk.clear(unfinishedName(path)); err != nil {
		return stagedEntry{}, fmt.Errorf("write the kubelet's configuration: %w", err)
	}
	want := append([]byte(mark), entry...)
	is, ours, err := i.readEntry()
	switch {
	case err == nil && ours:
		next.wrong, next.same = trust.File(path), bytes.Equal(is, want)
		if next.same && next.wrong == nil {
			return stagedEntry{}, nil
		}
	case err == nil && i.ConfigFrom == "":
		return stagedEntry{}, nil // the host's own is taking the place of ours, as Unclaimed says
	case err == nil:
		return stagedEntry{}, fmt.Errorf("write the kubelet's configuration: %s is somebody else's: choose another path, or turn it into a provider of ours with credential-broker migrate and move it away", path)
	case !errors.Is(err, fs.ErrNotExist):
		return stagedEntry{}, fmt.Errorf("write the kubelet's configuration: %w", err)
	}
	if next.staged, err = i.disk.stage(path, 0o644, bytes.NewReader(want)); err != nil {
		return stagedEntry{}, fmt.Errorf("write the kubelet's configuration: %w", err)
	}
	return next, nil
}

// readEntry reads the kubelet's configuration, and says whether it is ours. What is no regular file is not opened: a directory that others can write may have anything under that name.
func (i *Installer) readEntry() (is []byte, ours bool, err error) {
	info, err := os.Stat(i.kubeletConfig())
	if err != nil || !info.Mode().IsRegular() {
		return nil, false, err
	}
	is, err = os.ReadFile(i.kubeletConfig())
	return is, bytes.HasPrefix(is, []byte(mark)), err
}

// commitEntry puts the kubelet's configuration into its place, and says that the kubelet has to be restarted for it.
func (i *Installer) commitEntry(next stagedEntry) error {
	if next.staged == nil {
		return nil
	}
	if err := next.commit(); err != nil {
		return fmt.Errorf("write the kubelet's configuration: %w", err)
	}
	if next.wrong != nil {
		i.Log.Warn("repaired", "file", next.path, "because", next.wrong)
	}
	if !next.same {
		i.Log.Warn("the kubelet's configuration is new: a running kubelet has what it read when it started, so restart it", "file", next.path)
	}
	return nil
}

// Flags are what the platform has to set on the kubelet.
func (i *Installer) Flags() []string {
	return []string{"--image-credential-provider-config=" + i.kubeletConfig(), "--image-credential-provider-bin-dir=" + i.binDir()}
}

// Entry is what the kubelet's configuration consists of, as installed.
func (i *Installer) Entry() ([]byte, error) {
	text, err := os.ReadFile(i.kubeletConfig())
	if err != nil {
		return nil, fmt.Errorf("%w: it is written with the first configuration that is installed", err)
	}
	return bytes.TrimPrefix(text, []byte(mark)), nil
}

// said is what a program printed, for an error: one line, and not without end.
func said(output ...[]byte) string {
	lines := strings.FieldsFunc(string(bytes.Join(output, []byte("\n"))), func(r rune) bool { return r == '\n' || r == '\r' })
	text := strings.Join(lines, "; ")
	if len(text) > 4000 {
		text = text[:4000] + "..."
	}
	return text
}
