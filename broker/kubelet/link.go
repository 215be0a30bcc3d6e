package kubelet

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Linked is one link in the kubelet's bin directory.
type Linked struct {
	Path string
	// Made is false for one that was there already.
	Made bool
}

// Link makes a symbolic link to the broker for each entry's name in the kubelet's bin directory. What leads to the broker already is left alone; a link to another
// file called credential-broker, such as that of a version before, is replaced in one step; anything else under one of the names is an error, and then nothing is changed. The broker is its real file's absolute path.
func Link(binDir, broker string, names []string) ([]Linked, error) {
	if !filepath.IsAbs(broker) {
		return nil, fmt.Errorf("link to %q: the broker's path is not absolute", broker)
	}
	target, err := os.Stat(broker)
	if err != nil {
		return nil, fmt.Errorf("link to the broker: %w", err)
	}
	info, err := os.Stat(binDir)
	switch {
	case err != nil:
		return nil, fmt.Errorf("link in the kubelet's bin directory: %w: name the directory of --image-credential-provider-bin-dir, or create it", err)
	case !info.IsDir():
		return nil, fmt.Errorf("link in the kubelet's bin directory: %s is no directory", binDir)
	}
	links := make([]Linked, len(names))
	replace := make([]bool, len(names))
	for i, name := range names {
		if name != filepath.Base(name) || name == "." || name == ".." || name == "" {
			return nil, fmt.Errorf("link %q: no file name", name)
		}
		links[i].Path = filepath.Join(binDir, name)
		if links[i].Made, replace[i], err = wanted(links[i].Path, target); err != nil {
			return nil, err
		}
	}
	for i, link := range links {
		switch {
		case replace[i]:
			err = replaceLink(broker, link.Path)
		case link.Made:
			err = os.Symlink(broker, link.Path) // fails if something has come there meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("link to the broker: %w", err)
		}
	}
	return links, nil
}

// wanted says whether the link has to be made, and whether it replaces another. Somebody else's file is an error.
func wanted(path string, target fs.FileInfo) (wanted, replaces bool, err error) {
	if found, err := os.Stat(path); err == nil && os.SameFile(found, target) {
		return false, false, nil
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return true, false, nil
	case err != nil:
		return false, false, fmt.Errorf("link to the broker: %w", err)
	case info.Mode()&fs.ModeSymlink == 0:
		return false, false, fmt.Errorf("%s is there and is not the broker: move it away, or choose another directory", path)
	}
	to, err := os.Readlink(path)
	if err != nil {
		return false, false, fmt.Errorf("link to the broker: %w", err)
	}
	if filepath.Base(to) != entryName {
		return false, false, fmt.Errorf("%s is a link to %s, which is not the broker: remove it, or choose another directory", path, to)
	}
	return true, true, nil
}

// replaceLink makes the new link beside the old one first, so that a kubelet that starts meanwhile finds one of them.
func replaceLink(target, path string) error {
	temporary := filepath.Join(filepath.Dir(path), ".credential-broker-"+rand.Text())
	if err := os.Symlink(target, temporary); err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		_ = os.Remove(temporary)
		return err
	}
	return nil
}
