package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// pair is a version and the configuration that it is used with, by their names below Dir. Without a configuration the host has one from others.
//
// A new version may refuse the configuration before, and the version before the new configuration. So one link, in-use, leads to a directory with a link to each, and is all that is swapped;
// `current` and `config`, which the kubelet's side knows, lead through it and stay as they are.
type pair struct{ version, config string }

// name is that of the directory with the two links; empty without a version.
func (p pair) name() string {
	switch {
	case p.version == "":
		return ""
	case p.config == "":
		return filepath.Join("pairs", filepath.Base(p.version))
	}
	return filepath.Join("pairs", filepath.Base(p.version)+"+"+filepath.Base(p.config))
}

// links are the names of the links to the parts, and where those are.
func (p pair) links() (all [][2]string) {
	for _, l := range [][2]string{{"current", p.version}, {"config", p.config}} {
		if l[1] != "" {
			all = append(all, l)
		}
	}
	return all
}

// inUse is what a call of the kubelet's finds now.
func (i *Installer) inUse() pair {
	return pair{i.leadsTo("current", "versions"), i.leadsTo("config", "configs")}
}

// leadsTo says what a link leads to, through others, in the directory of that name; empty if that is elsewhere, or nowhere.
func (i *Installer) leadsTo(link, dir string) string {
	found, err := filepath.EvalSymlinks(i.path(link))
	if err != nil {
		return ""
	}
	if at, err := filepath.EvalSymlinks(i.path(dir)); err != nil || filepath.Dir(found) != at {
		return ""
	}
	return filepath.Join(dir, filepath.Base(found))
}

// use has the kubelet's calls find the next version and configuration, both from the same moment on. What was used before is kept from now on for as long as Keep says.
func (i *Installer) use(before, next pair) error {
	if next != before {
		now := i.Now()
		for _, name := range []string{before.version, before.config, before.name()} {
			if name == "" {
				continue
			}
			if err := os.Chtimes(i.path(name), now, now); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	// The pair before has its turn too, for a host whose `current` and `config` do not lead through in-use yet: they are made to while that changes nothing.
	for _, p := range []pair{before, next} {
		if p.version == "" {
			continue
		}
		if err := i.placePair(p); err != nil {
			return fmt.Errorf("place the links to what is used: %w", err)
		}
		if err := i.swap("in-use", p.name()); err != nil {
			return err
		}
		for _, l := range p.links() {
			if err := i.swap(l[0], filepath.Join("in-use", l[0])); err != nil {
				return err
			}
		}
	}
	if next != before {
		i.Log.Info("in use", "version", next.version, "config", next.config, "before", before.name())
	}
	return nil
}

func (i *Installer) placePair(p pair) error {
	dir := i.path(p.name())
	if err := i.disk.mkdir(dir); err != nil {
		return err
	}
	if err := i.disk.sweep(dir); err != nil {
		return err
	}
	for _, l := range p.links() {
		path, target := filepath.Join(dir, l[0]), filepath.Join("..", "..", l[1])
		if is, err := os.Readlink(path); err == nil && is == target {
			continue
		}
		if err := i.disk.link(target, path); err != nil {
			return err
		}
	}
	return nil
}

// swappable refuses what is no link before the first of them is swapped, which would be half of a change.
func (i *Installer) swappable(next pair) error {
	_, err := i.target("in-use")
	for _, l := range next.links() {
		if err == nil {
			_, err = i.target(l[0])
		}
	}
	return err
}

// target is what the link has in it, empty if there is none.
func (i *Installer) target(link string) (string, error) {
	target, err := os.Readlink(i.path(link))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("swap the link to what is used: %w: move it away", err)
	}
	return target, nil
}

// swap has the link lead to target, in one step, if it does not yet.
func (i *Installer) swap(link, target string) error {
	if before, err := i.target(link); err != nil || before == target {
		return err
	}
	if err := i.disk.link(target, i.path(link)); err != nil {
		return fmt.Errorf("swap the link to what is used: %w", err)
	}
	return nil
}

// prune removes what is not used any more, and nobody can still be running.
func (i *Installer) prune(dir, used string) error {
	entries, err := os.ReadDir(i.path(dir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		info, err := e.Info()
		if err != nil || name == used || i.Now().Sub(info.ModTime()) < i.Keep {
			continue
		}
		if err := i.disk.removeAll(i.path(name)); err != nil {
			return fmt.Errorf("remove what is no longer used: %w", err)
		}
		i.Log.Info("removed what is no longer used", "path", i.path(name))
	}
	return nil
}
