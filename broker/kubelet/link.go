package kubelet

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// Linked is one link in the kubelet's bin directory.
type Linked struct {
	Path string
	// Made is false for one that was there already.
	Made bool
}

// Link makes a symbolic link to the broker for each entry's name in the kubelet's bin directory. What leads to the broker already is left alone; a link to another
// file called credential-broker, such as that of a version before, is replaced in one step; anything else under one of the names is an error, and then nothing is changed. The broker is its real file's absolute path.
// What is made survives a loss of power, and what a killed run left is removed by one of an hour later.
func Link(binDir, broker string, names []string) ([]Linked, error) {
	return linker{now: time.Now, sync: syncDir}.link(binDir, broker, names)
}

// linker is what Link does, with what tests have to be in place of.
type linker struct {
	now  func() time.Time
	sync func(dir string) error
}

func (l linker) link(binDir, broker string, names []string) ([]Linked, error) {
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
	changed := l.sweep(binDir)
	for i, link := range links {
		changed = changed || link.Made
		switch {
		case replace[i]:
			err = replaceLink(broker, link.Path)
		case link.Made:
			err = os.Symlink(broker, link.Path) // fails if something has come there meanwhile
		}
		if err != nil {
			break
		}
	}
	// Also of what was made before an error.
	if changed {
		err = errors.Join(err, l.sync(binDir))
	}
	if err != nil {
		return nil, fmt.Errorf("link to the broker: %w", err)
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

// unfinished is what the name of a link begins with that is about to replace another. The kubelet runs what its entries name, and looks at nothing else in the directory.
const unfinished = ".credential-broker-"

// abandoned is the age of a link that no run is about to rename any more, which takes moments.
const abandoned = time.Hour

// replaceLink makes the new link beside the old one first, so that a kubelet that starts meanwhile finds one of them.
func replaceLink(target, path string) error {
	temporary := filepath.Join(filepath.Dir(path), unfinished+rand.Text())
	if err := os.Symlink(target, temporary); err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		_ = os.Remove(temporary)
		return err
	}
	return nil
}

// sweep removes what killed runs have left, as far as it can: links with such a name, to a program called as ours is. Younger ones may be those of a run that is at work at the same time.
func (l linker) sweep(dir string) (removed bool) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), unfinished) || e.Type()&fs.ModeSymlink == 0 {
			continue
		}
		path := filepath.Join(dir, e.Name())
		info, err := e.Info()
		to, readErr := os.Readlink(path)
		if err != nil || readErr != nil || filepath.Base(to) != entryName || l.now().Sub(info.ModTime()) < abandoned {
			continue
		}
		removed = os.Remove(path) == nil || removed
	}
	return removed
}

// syncDir has the names in a directory survive a loss of power.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil // directories cannot be opened for it there
	}
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrPermission) {
		return nil // one that may be written to and not be listed
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
