// Command image makes the container image of the DaemonSet from built executables: one layer for each platform, from nothing, as an OCI layout in a tar file. The same executables give the same
// bytes: all times are those of the flag, all owners root, all names in order. It prints the digest by which a manifest can name the image.
//
//	go -C tools run ./image --out image.tar --version 1.2.3 --created 2026-01-02T15:04:05Z linux/amd64=DIR linux/arm64=DIR
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	installer = "credential-broker-installer"
	// where is where the release lies in the image: where packages put it too.
	where = "usr/libexec/credential-broker"
)

func main() {
	var out, version, name, license, created string
	flag.StringVar(&out, "out", "", "the tar file to write")
	flag.StringVar(&version, "version", "", "the release's version, which becomes the tag")
	flag.StringVar(&name, "name", "ghcr.io/credential-broker/credential-broker", "the image's name without tag, for those who load the file")
	flag.StringVar(&license, "license", "../LICENSE", "the license's file")
	flag.StringVar(&created, "created", "1970-01-01T00:00:00Z", "the time of everything, in RFC 3339: that of the commit")
	flag.Parse()
	at, err := time.Parse(time.RFC3339, created)
	if err == nil {
		err = build(out, name, version, license, at.UTC(), flag.Args())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func build(out, name, version, license string, created time.Time, platforms []string) error {
	// Characters of a version that a tag cannot have (semver's build metadata).
	tag := strings.ReplaceAll(version, "+", "-")
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, p := range platforms {
		platform, dir, ok := strings.Cut(p, "=")
		goos, arch, both := strings.Cut(platform, "/")
		if !ok || !both {
			return fmt.Errorf("%q: not OS/ARCHITECTURE=DIRECTORY", p)
		}
		image, err := imageOf(dir, license, arch, version, created)
		if err != nil {
			return fmt.Errorf("%s: %w", platform, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: goos, Architecture: arch}}})
	}
	digest, err := index.Digest()
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	files, err := layout.Write(work, empty.Index)
	if err != nil {
		return err
	}
	// The first is what skopeo looks for, the second what containerd names it on import.
	if err := files.AppendIndex(index, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": tag, "io.containerd.image.name": name + ":" + tag})); err != nil {
		return err
	}
	if err := pack(out, work, created); err != nil {
		return err
	}
	fmt.Printf("%s\n%s:%s@%s\n", out, name, tag, digest)
	return nil
}

func imageOf(dir, license, arch, version string, created time.Time) (v1.Image, error) {
	content, err := layerOf(dir, license, created)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil },
		tarball.WithMediaType(types.OCILayer), tarball.WithCompressionLevel(gzip.BestSpeed))
	if err != nil {
		return nil, err
	}
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err = mutate.Append(image, mutate.Addendum{Layer: layer, History: v1.History{Created: v1.Time{Time: created}, CreatedBy: "make image"}})
	if err != nil {
		return nil, err
	}
	return mutate.ConfigFile(image, configOf(image, arch, version, created))
}

func configOf(image v1.Image, arch, version string, created time.Time) *v1.ConfigFile {
	config, err := image.ConfigFile()
	if err != nil {
		panic(err) // of an image in memory
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = "linux", arch, v1.Time{Time: created}
	config.Config.Entrypoint = []string{"/" + installer}
	config.Config.Cmd = []string{"run"}
	config.Config.User = "0:0"
	config.Config.Labels = map[string]string{
		"org.opencontainers.image.title":    "credential-broker",
		"org.opencontainers.image.version":  version,
		"org.opencontainers.image.source":   "https://github.com/credential-broker/credential-broker",
		"org.opencontainers.image.licenses": "Apache-2.0",
	}
	return config
}

// layerOf is the installer, the release and its manifest, as a tar file.
func layerOf(dir, license string, created time.Time) ([]byte, error) {
	var programs []string
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, file)
		if name := filepath.ToSlash(name); name == "credential-broker" || path.Dir(name) == "backends" {
			programs = append(programs, name)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(programs)
	if !slices.Contains(programs, "credential-broker") || len(programs) < 2 {
		return nil, fmt.Errorf("%s has no credential-broker with its backends: make build OUT=%s", dir, dir)
	}
	var layer bytes.Buffer
	w := &writer{tar.NewWriter(&layer), created, map[string]bool{}}
	text, err := os.ReadFile(license)
	if err != nil {
		return nil, err
	}
	if err := w.file("LICENSE", 0o644, text); err != nil {
		return nil, err
	}
	text, err = os.ReadFile(filepath.Join(dir, installer))
	if err != nil {
		return nil, err
	}
	if err := w.file(installer, 0o755, text); err != nil {
		return nil, err
	}
	// Where Go's programs look for users, for `user:` in a configuration that is validated in the container; the host's own files are mounted over them where the names are the host's.
	if err := w.file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n")); err != nil {
		return nil, err
	}
	if err := w.file("etc/group", 0o644, []byte("root:x:0:\nnogroup:x:65534:\n")); err != nil {
		return nil, err
	}
	var sums bytes.Buffer
	for _, name := range programs {
		content, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256(content), name)
		if err := w.file(path.Join(where, name), 0o755, content); err != nil {
			return nil, err
		}
	}
	if err := w.file(path.Join(where, "SHA256SUMS"), 0o644, sums.Bytes()); err != nil {
		return nil, err
	}
	return layer.Bytes(), w.tar.Close()
}

// writer writes a tar file whose bytes depend on nothing but names and contents.
type writer struct {
	tar     *tar.Writer
	created time.Time
	dirs    map[string]bool
}

func (w *writer) file(name string, mode int64, content []byte) error {
	if err := w.dir(path.Dir(name)); err != nil {
		return err
	}
	err := w.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content)), ModTime: w.created, Format: tar.FormatPAX})
	if err != nil {
		return err
	}
	_, err = w.tar.Write(content)
	return err
}

func (w *writer) dir(name string) error {
	if name == "." || w.dirs[name] {
		return nil
	}
	if err := w.dir(path.Dir(name)); err != nil {
		return err
	}
	w.dirs[name] = true
	return w.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: w.created, Format: tar.FormatPAX})
}

// pack puts an OCI layout into one file, as skopeo (oci-archive:), podman and containerd read it.
func pack(out, dir string, created time.Time) error {
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	w := &writer{tar.NewWriter(f), created, map[string]bool{}}
	err = filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error { // in the order of names
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		return w.file(filepath.ToSlash(name), 0o644, content)
	})
	if err == nil {
		err = w.tar.Close()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}
