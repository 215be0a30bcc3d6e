package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/flate"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// entry is a file of an archive.
type entry struct {
	path    string // with slashes, relative
	mode    fs.FileMode
	content []byte // a link's: where it leads
}

// published are the paths of the commit that an archive has beside the executables.
var published = []string{"LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs", "examples"}

// documents are the files of the commit that are published, as git has them rather than as they lie in the checkout: without the modes, ends of lines and untracked files of this machine.
func (r *release) documents(ctx context.Context, system string) ([]entry, error) {
	packed, err := r.git(ctx, append([]string{"archive", "--format=tar", r.commit, "--"}, published...)...)
	if err != nil {
		return nil, err
	}
	var entries []entry
	for reader := tar.NewReader(bytes.NewReader(packed)); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return entries, nil
		}
		if err != nil {
			return nil, err
		}
		switch header.Typeflag {
		case tar.TypeReg:
		case tar.TypeDir, tar.TypeXGlobalHeader:
			continue
		default:
			return nil, fmt.Errorf("%s: is no regular file, and Windows has nothing else", header.Name)
		}
		if system == "windows" && strings.HasPrefix(header.Name, "examples/systemd/") {
			continue
		}
		content, err := io.ReadAll(reader)
		if err != nil {
			return nil, err
		}
		mode := fs.FileMode(0o644)
		if header.Mode&0o100 != 0 {
			mode = 0o755
		}
		entries = append(entries, entry{path: header.Name, mode: mode, content: content})
	}
}

// readShare gives the files of a folder, to stand below share/; none of an empty path.
func readShare(dir string) (entries []entry, err error) {
	if dir == "" {
		return nil, nil
	}
	files := os.DirFS(dir)
	err = fs.WalkDir(files, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := fs.ReadFile(files, name)
		entries = append(entries, entry{path: path.Join("share", name), mode: 0o644, content: content})
		return err
	})
	return entries, err
}

// ordered sorts entries and puts them below a folder named base, each folder before what is in it. A folder's name ends in a slash.
func ordered(base string, entries []entry) []entry {
	var all []entry
	made := map[string]bool{}
	for _, e := range entries {
		e.path = path.Join(base, e.path)
		all = append(all, e)
		for dir := path.Dir(e.path); dir != "." && !made[dir]; dir = path.Dir(dir) {
			made[dir] = true
			all = append(all, entry{path: dir + "/", mode: fs.ModeDir | 0o755})
		}
	}
	slices.SortFunc(all, func(a, b entry) int { return strings.Compare(a.path, b.path) })
	return all
}

func packTarGz(base string, entries []entry, at time.Time) ([]byte, error) {
	var packed bytes.Buffer
	// The gzip header has no name and no time unless they are set.
	compressed, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	w := tar.NewWriter(compressed)
	for _, e := range ordered(base, entries) {
		header := tar.Header{
			Typeflag: tar.TypeReg, Name: e.path, Size: int64(len(e.content)), Mode: int64(e.mode.Perm()), Uname: "root", Gname: "root", ModTime: at, Format: tar.FormatUSTAR,
		}
		content := e.content
		switch {
		case e.mode.IsDir():
			header.Typeflag = tar.TypeDir
		case e.mode.Type() == fs.ModeSymlink:
			header.Typeflag, header.Linkname, header.Size, content = tar.TypeSymlink, string(e.content), 0, nil
		}
		if err := w.WriteHeader(&header); err != nil {
			return nil, err
		}
		if _, err := w.Write(content); err != nil {
			return nil, err
		}
	}
	err = errors.Join(w.Close(), compressed.Close())
	return packed.Bytes(), err
}

func packZip(base string, entries []entry, at time.Time) ([]byte, error) {
	var packed bytes.Buffer
	w := zip.NewWriter(&packed)
	w.RegisterCompressor(zip.Deflate, func(out io.Writer) (io.WriteCloser, error) { return flate.NewWriter(out, flate.BestCompression) })
	for _, e := range ordered(base, entries) {
		header := &zip.FileHeader{Name: e.path, Modified: at.UTC(), Method: zip.Deflate}
		if e.mode.IsDir() {
			header.Method = zip.Store
		}
		header.SetMode(e.mode)
		file, err := w.CreateHeader(header)
		if err != nil {
			return nil, err
		}
		if _, err := file.Write(e.content); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return packed.Bytes(), err
}
