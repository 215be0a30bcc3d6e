package install

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/credential-broker/credential-broker/proto/trust"
)

// Installer installs one release on one host.
type Installer struct {
	// From is the release's directory in the image, with its manifest.
	From string
	// Version is the release's, for people to see in a directory's name.
	Version string
	// Dir is the directory on the host, absolute, and the same path here and there: links and the kubelet's entry name it.
	Dir string
	// ConfigFrom is a directory with the configuration's files, such as a mounted ConfigMap; empty to leave the configuration to others.
	ConfigFrom string
	// BinDir is the kubelet's --image-credential-provider-bin-dir; empty for DIR/bin.
	BinDir string
	// KubeletConfig is where the kubelet's CredentialProviderConfig is written; empty for DIR/kubelet.yaml.
	KubeletConfig string
	// EntryFlags are flags of `credential-broker kubelet-config`, such as --match.
	EntryFlags []string
	// Keep is how long a version or a configuration that is no longer used stays: longer than any request takes, and than an agent needs to hand over to its successor.
	Keep time.Duration
	// Run runs the installed broker and gives what it prints.
	Run func(ctx context.Context, program string, args ...string) (stdout, stderr []byte, err error)
	Log *slog.Logger
	Now func() time.Time

	disk disk
}

// Apply brings the host to what it should be, from whatever state it is in, and says what it changed. What is in use works until what follows it is complete and has been tried. An error
// says what is not as it should be; what was in use then still is.
func (i *Installer) Apply(ctx context.Context) error {
	if err := trust.File(i.Dir); err != nil {
		return fmt.Errorf("install into the host's directory: %w", err)
	}
	unlock, err := lock(i.path(".lock"))
	if err != nil {
		return err
	}
	defer unlock()
	release, err := readManifest(i.From)
	if err != nil {
		return err
	}
	for _, dir := range []string{"versions", "configs", "pairs", "bin"} {
		if err := i.disk.mkdir(i.path(dir)); err != nil {
			return fmt.Errorf("install into the host's directory: %w", err)
		}
		if err := i.disk.sweep(i.path(dir)); err != nil {
			return err
		}
	}
	if err := i.disk.sweep(i.Dir); err != nil {
		return err
	}

	before := i.inUse()
	version := filepath.Join("versions", i.Version+"-"+release.digest[:12])
	if err := i.place(release, i.path(version)); err != nil {
		if full(err) && before.version != version {
			// The space is worth more to the host than what half a version could save the next run.
			_ = os.RemoveAll(i.path(version))
		}
		return fmt.Errorf("install %s: %w", version, err)
	}
	if _, stderr, err := i.Run(ctx, filepath.Join(i.path(version), program), "version"); err != nil {
		return fmt.Errorf("install %s: it does not run here: %w: %s: is the host's directory on a file system mounted noexec, or the image one for another processor?", version, err, said(stderr))
	}
	next, entry, refused := i.choose(ctx, version, before)
	if next.version == "" {
		return refused
	}
	if err := i.change(before, next, entry); err != nil {
		return errors.Join(refused, err)
	}
	if note := i.Unclaimed(); note != "" {
		i.Log.Warn(note)
	}
	return errors.Join(refused, i.prune("pairs", next.name()), i.prune("versions", next.version), i.prune("configs", next.config))
}

// change does all that can fail before it swaps what is used, and that in one step: a link or a file of the kubelet's that cannot be made leaves the version before with the configuration before.
func (i *Installer) change(before, next pair, entry []byte) error {
	names, err := namesOf(entry)
	if err != nil {
		return err
	}
	if err := i.swappable(next); err != nil {
		return err
	}
	kubeletConfig, err := i.stageEntry(entry)
	if err != nil {
		return err
	}
	defer kubeletConfig.discard()
	steps := []func() error{func() error { return i.links(names) }, func() error { return i.use(before, next) }}
	if _, err := os.Stat(i.path(filepath.Join("current", program))); err != nil {
		slices.Reverse(steps) // links have to lead to something, and nothing works that could be harmed
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	// The directories were judged one by one; this is the whole way that the kubelet's calls go, with its links.
	for _, name := range names {
		if err := trust.Executable(filepath.Join(i.binDir(), name), nil); err != nil {
			return fmt.Errorf("use %s: %w", next.version, err)
		}
	}
	if next.config != "" {
		if err := trust.File(i.path("config")); err != nil {
			return fmt.Errorf("use %s: %w", next.config, err)
		}
	}
	// Last, since the kubelet that runs has read the one before anyhow, and one that starts now is not to have arguments that the program before may not know.
	if err := i.commitEntry(kubeletConfig); err != nil || entry == nil {
		return err
	}
	if err := trust.File(i.kubeletConfig()); err != nil {
		return fmt.Errorf("use the kubelet's configuration: %w", err)
	}
	return nil
}

func (i *Installer) path(name string) string { return filepath.Join(i.Dir, name) }

// place has every file of the release stand in dir with the right content, owner and mode. What is right is not written again.
func (i *Installer) place(release manifest, dir string) error {
	_, err := os.Lstat(dir)
	fresh := errors.Is(err, fs.ErrNotExist)
	for _, d := range dirs(release, dir) {
		if err := i.disk.mkdir(d); err != nil {
			return err
		}
		if err := i.disk.sweep(d); err != nil {
			return err
		}
	}
	written := 0
	for _, f := range release.files {
		path := filepath.Join(dir, filepath.FromSlash(f.path))
		wrong := sound(path, f.digest)
		if wrong == nil {
			continue
		}
		if !fresh && !errors.Is(wrong, fs.ErrNotExist) {
			i.Log.Warn("repaired", "file", path, "because", wrong)
		} else if !fresh {
			i.Log.Info("completed", "file", path)
		}
		if err := i.copy(f, path); err != nil {
			return err
		}
		// Read back: what counts is what lies there.
		if err := sound(path, f.digest); err != nil {
			return err
		}
		written++
	}
	for _, name := range strangers(release, dir) {
		i.Log.Warn("a file that is none of ours is left alone; a backend of your own belongs into another directory, since this one goes with its version", "file", name)
	}
	if fresh {
		i.Log.Info("placed", "version", filepath.Base(dir), "files", written)
	}
	return nil
}

// full says that there is no room.
func full(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// dirs are the directories of a release, outer ones first.
func dirs(release manifest, dir string) []string {
	all := []string{dir}
	for _, f := range release.files {
		var inner []string
		for d := filepath.Dir(filepath.FromSlash(f.path)); d != "."; d = filepath.Dir(d) {
			inner = append(inner, filepath.Join(dir, d))
		}
		slices.Reverse(inner)
		for _, d := range inner {
			if !slices.Contains(all, d) {
				all = append(all, d)
			}
		}
	}
	return all
}

// sound says what is wrong with an installed program: content, type, mode, or that somebody else could change it.
func sound(path, digest string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file (mode %v)", path, info.Mode())
	}
	return trust.Executable(path, []string{digest})
}

// copy takes a file from the image, and not if it is damaged there.
func (i *Installer) copy(f file, path string) error {
	source, err := os.Open(filepath.Join(i.From, filepath.FromSlash(f.path)))
	if err != nil {
		return fmt.Errorf("%w: the image is damaged", err)
	}
	defer source.Close()
	if info, err := os.Lstat(path); err == nil && info.IsDir() {
		return fmt.Errorf("%s is a directory: move it away", path)
	}
	return i.disk.write(path, 0o755, &verified{from: source, left: sha256.New(), want: f.digest, name: source.Name()})
}

// strangers are files in a version's directory that its manifest does not name.
func strangers(release manifest, dir string) []string {
	var found []string
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil //nolint:nilerr // what cannot be read is not reported, which is all that this is for
		}
		if name, err := filepath.Rel(dir, path); err == nil && !slices.ContainsFunc(release.files, func(f file) bool { return f.path == filepath.ToSlash(name) }) {
			found = append(found, path)
		}
		return nil
	})
	return found
}

// verified gives its file's content, and an error instead of its end if that was not the content expected.
type verified struct {
	from io.Reader
	left interface {
		io.Writer
		Sum([]byte) []byte
	}
	want, name string
}

func (v *verified) Read(p []byte) (int, error) {
	n, err := v.from.Read(p)
	_, _ = v.left.Write(p[:n]) // a hash takes everything
	if errors.Is(err, io.EOF) {
		if got := fmt.Sprintf("%x", v.left.Sum(nil)); got != v.want {
			return n, fmt.Errorf("%s has the SHA-256 digest %s, the manifest says %s: the image is damaged", v.name, got, v.want)
		}
	}
	return n, err
}
