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
const mark = "# Written by credential-broker-installer, which writes it anew when it changes. The kubelet reads it when it starts.\n"

// configuration is the files of a configuration, as they were at one moment.
type configuration struct {
	names    []string
	contents map[string][]byte
	digest   string
}

// read takes the configuration's files, all of the same update: a mounted ConfigMap swaps its link ..data, so that is followed once.
func read(dir string) (configuration, error) {
	c := configuration{contents: map[string][]byte{}}
	if data, err := filepath.EvalSymlinks(filepath.Join(dir, "..data")); err == nil {
		dir = data
	}
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

// configure puts the configuration beside the one in use, has the broker judge it, and gives its name below Dir. Without one to install, or with one that is refused, that is the name of the one in use.
func (i *Installer) configure(ctx context.Context, broker string) (string, error) {
	if i.ConfigFrom == "" {
		return "", nil
	}
	used, err := os.Readlink(i.path("config"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("look at the configuration in use: %w: move it away", err)
	}
	c, err := read(i.ConfigFrom)
	if err != nil {
		return used, err
	}
	name := filepath.Join("configs", c.digest[:12])
	if err := i.placeConfig(c, i.path(name)); err != nil {
		return used, fmt.Errorf("install the configuration: %w", err)
	}
	if err := i.accept(ctx, broker, i.path(name)); err != nil {
		return used, err
	}
	return name, nil
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

// accept has the broker judge a configuration, each provider's settings by its backend included.
func (i *Installer) accept(ctx context.Context, broker, config string) error {
	stdout, stderr, err := i.Run(ctx, broker, "validate", "--config", config)
	if err == nil {
		return nil
	}
	return fmt.Errorf("the configuration is refused: %w: %s", err, said(stdout, stderr))
}

// entries makes the links that the kubelet's entries name, and writes its configuration, then swaps the configuration: nothing names what is not there.
func (i *Installer) entries(ctx context.Context, config string) error {
	names := []string{program}
	var entry []byte
	if config != "" {
		stdout, stderr, err := i.Run(ctx, i.path(filepath.Join("current", program)), i.entryArgs(config)...)
		if err != nil {
			return fmt.Errorf("print the kubelet's entry: %w: %s", err, said(stderr))
		}
		// What the broker says of a configuration's own directory holds for the link that leads to it.
		entry = bytes.ReplaceAll(stdout, []byte(i.path(config)), []byte(i.path("config")))
		var document struct {
			Providers []struct {
				Name string `yaml:"name"`
			} `yaml:"providers"`
		}
		if err := yaml.Unmarshal(entry, &document); err != nil {
			return fmt.Errorf("read the kubelet's entry: %w", err)
		}
		for _, p := range document.Providers {
			if p.Name != program {
				names = append(names, p.Name)
			}
		}
	}
	if err := i.links(names); err != nil {
		return err
	}
	if config == "" {
		return nil
	}
	if err := i.writeEntry(entry); err != nil {
		return err
	}
	return i.swap("config", config)
}

func (i *Installer) entryArgs(config string) []string {
	return append([]string{"kubelet-config", "--config", i.path(config)}, i.EntryFlags...)
}

func (i *Installer) links(names []string) error {
	if err := i.disk.before("links", i.binDir()); err != nil {
		return err
	}
	links, err := kubelet.Link(i.binDir(), i.path(filepath.Join("current", program)), names)
	if err != nil {
		return err
	}
	for _, l := range links {
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

// writeEntry writes the kubelet's configuration if it is another, and says that the kubelet has to be restarted for it.
func (i *Installer) writeEntry(entry []byte) error {
	path := i.kubeletConfig()
	want := append([]byte(mark), entry...)
	is, err := os.ReadFile(path)
	switch {
	case err == nil && bytes.Equal(is, want):
		return nil
	case err == nil && !bytes.HasPrefix(is, []byte(mark)):
		return fmt.Errorf("write the kubelet's configuration: %s is somebody else's: choose another path, or turn it into a provider of ours with credential-broker migrate and move it away", path)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("write the kubelet's configuration: %w", err)
	}
	if err := i.disk.write(path, 0o644, bytes.NewReader(want)); err != nil {
		return fmt.Errorf("write the kubelet's configuration: %w", err)
	}
	i.Log.Warn("the kubelet's configuration is new: a running kubelet has what it read when it started, so restart it", "file", path)
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
