package install

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/credential-broker/credential-broker/proto/trust"
)

// unfinished is what the names of files begin with that are not yet what they are to be.
const unfinished = ".new-"

// unfinishedName is always the same for a file, so that what a killed run left is overwritten by the next. It has no ending by which the kubelet, or the broker, would read it as one more file of a
// directory with its configuration.
func unfinishedName(path string) string {
	return filepath.Join(filepath.Dir(path), unfinished+filepath.Base(path)+"~")
}

// disk is all that changes something on the host. Whatever is to be seen under its name is complete and on the disk before it gets that name.
type disk struct {
	// step is called before each change, and can refuse it: tests interrupt there.
	step func(what, path string) error
	// hasty leaves it to the kernel when what it has reaches the disk: tests end processes, not machines.
	hasty bool
}

func (d disk) before(what, path string) error {
	if d.step == nil {
		return nil
	}
	return d.step(what, path)
}

// mkdir makes a directory that all may read and one may write, whatever the umask says and whatever mode it had. One that is somebody else's is an error: whoever made it while they could has what is in it.
func (d disk) mkdir(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := d.before("mkdir", path); err != nil {
			return err
		}
		if err := os.Mkdir(path, 0o755); err != nil { //nolint:gosec // backends that run as other users are to be found in it
			return err
		}
		if err := d.syncDir(filepath.Dir(path)); err != nil {
			return err
		}
	case err != nil:
		return err
	case !info.IsDir():
		return fmt.Errorf("%s is no directory: move it away", path)
	case info.Mode().Perm() == 0o755 || runtime.GOOS == "windows":
		return trust.File(path)
	}
	if err := d.before("chmod", path); err != nil {
		return err
	}
	if err := os.Chmod(path, 0o755); err != nil { //nolint:gosec // the same
		return err
	}
	return trust.File(path)
}

// write makes or replaces a file in one step.
func (d disk) write(path string, mode fs.FileMode, content io.Reader) error {
	s, err := d.stage(path, mode, content)
	if err != nil {
		return err
	}
	defer s.discard()
	return s.commit()
}

// staged is what a file is to become, complete and on the disk under another name.
type staged struct {
	disk            disk
	temporary, path string
}

// commit puts it into its place.
func (s *staged) commit() error {
	if err := s.disk.before("rename", s.path); err != nil {
		return err
	}
	if err := os.Rename(s.temporary, s.path); err != nil {
		return err
	}
	s.temporary = ""
	return s.disk.syncDir(filepath.Dir(s.path))
}

// discard removes what was not put into its place.
func (s *staged) discard() {
	if s != nil && s.temporary != "" {
		_ = os.Remove(s.temporary) // the next run does
	}
}

// stage writes what a file is to become.
func (d disk) stage(path string, mode fs.FileMode, content io.Reader) (_ *staged, err error) {
	temporary := unfinishedName(path)
	if err := d.clear(temporary); err != nil {
		return nil, err
	}
	if err := d.before("create", temporary); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close() // closed already, perhaps
			_ = os.Remove(temporary)
		}
	}()
	buffer := make([]byte, 1<<20)
	for {
		n, readErr := content.Read(buffer)
		if n > 0 {
			if err := d.before("write", temporary); err != nil {
				return nil, err
			}
			if _, err := f.Write(buffer[:n]); err != nil {
				return nil, err
			}
		}
		if errors.Is(readErr, io.EOF) {
			break
		}
		if readErr != nil {
			return nil, readErr
		}
	}
	if err := d.before("chmod", temporary); err != nil {
		return nil, err
	}
	if err := f.Chmod(mode); err != nil {
		return nil, err
	}
	if !d.hasty {
		if err := f.Sync(); err != nil {
			return nil, err
		}
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	return &staged{d, temporary, path}, nil
}

// link makes or replaces a symbolic link in one step.
func (d disk) link(target, path string) error {
	temporary := unfinishedName(path)
	if err := d.clear(temporary); err != nil {
		return err
	}
	if err := d.before("symlink", temporary); err != nil {
		return err
	}
	if err := os.Symlink(target, temporary); err != nil {
		return err
	}
	err := d.before("rename", path)
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		_ = os.Remove(temporary)
		return err
	}
	return d.syncDir(filepath.Dir(path))
}

// clear removes what a run before may have left under a name that is nobody else's.
func (d disk) clear(path string) error {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return d.removeAll(path)
}

func (d disk) remove(path string) error {
	if err := d.before("remove", path); err != nil {
		return err
	}
	return os.Remove(path)
}

func (d disk) removeAll(path string) error {
	if err := d.before("remove", path); err != nil {
		return err
	}
	return os.RemoveAll(path)
}

// sweep removes what killed runs have left in a directory.
func (d disk) sweep(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), unfinished) {
			if err := d.removeAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// syncDir has the names in a directory survive a loss of power.
func (d disk) syncDir(dir string) error {
	if d.hasty || runtime.GOOS == "windows" {
		return nil // directories cannot be opened for it there
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
