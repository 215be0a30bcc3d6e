package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Remove takes away everything that Apply has put onto the host, and nothing else. The kubelet must not need it any more: one that is started with an entry whose program is missing does not start.
// Nothing to remove is no error, so that it can be repeated.
func (i *Installer) Remove() error {
	if _, err := os.Stat(i.Dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	unlock, err := lock(i.path(".lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if err := i.unlink(); err != nil {
		return fmt.Errorf("remove the kubelet's links: %w", err)
	}
	if ours, there := i.ourEntry(); there && !ours {
		i.Log.Warn("somebody else's file is left alone", "file", i.kubeletConfig())
	} else if there {
		if err := i.disk.remove(i.kubeletConfig()); err != nil {
			return fmt.Errorf("remove the kubelet's configuration: %w", err)
		}
	}
	if err := i.disk.clear(unfinishedName(i.kubeletConfig())); err != nil {
		return fmt.Errorf("remove the kubelet's configuration: %w", err)
	}
	for _, name := range []string{"config", "current", "in-use"} {
		if err := i.disk.remove(i.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the link to what is used: %w", err)
		}
	}
	for _, name := range []string{"pairs", "versions", "configs", ".lock"} {
		if err := i.disk.removeAll(i.path(name)); err != nil {
			return fmt.Errorf("remove what was installed: %w", err)
		}
	}
	if err := i.disk.sweep(i.Dir); err != nil {
		return err
	}
	// Only if nothing of anybody else's is in it.
	_ = os.Remove(i.path("bin"))
	_ = os.Remove(i.Dir) // a mount point stays
	i.Log.Info("removed", "dir", i.Dir)
	return nil
}

// ourEntry says whether the kubelet's configuration is there, and ours; what is no regular file is not.
func (i *Installer) ourEntry() (ours, there bool) {
	info, err := os.Lstat(i.kubeletConfig())
	if err != nil {
		return false, false
	}
	_, ours, err = i.readEntry()
	return err == nil && ours && info.Mode().IsRegular(), true
}

// unlink removes the links that lead to our program, of entries that there are no more too.
func (i *Installer) unlink() error {
	entries, err := os.ReadDir(i.binDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(i.binDir(), e.Name())
		if to, err := os.Readlink(path); err != nil || to != i.path(filepath.Join("current", program)) {
			continue
		}
		if err := i.disk.remove(path); err != nil {
			return err
		}
		i.Log.Info("removed", "link", path)
	}
	return nil
}
