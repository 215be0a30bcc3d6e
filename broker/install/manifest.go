package install

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Manifest is the name of the file, beside credential-broker, that names what a release consists of, as `sha256sum` writes it.
const Manifest = "SHA256SUMS"

// program is the broker's path within a release.
const program = "credential-broker"

// file is one line of the manifest.
type file struct {
	// path is relative, with slashes.
	path   string
	digest string
}

// manifest is what a release consists of.
type manifest struct {
	files []file
	// digest is that of the manifest itself, and so of everything.
	digest string
}

func readManifest(dir string) (manifest, error) {
	name := filepath.Join(dir, Manifest)
	text, err := os.ReadFile(name)
	if err != nil {
		return manifest{}, fmt.Errorf("read what the release consists of: %w: the image is damaged, or --from names another directory", err)
	}
	sum := sha256.Sum256(text)
	m := manifest{digest: hex.EncodeToString(sum[:])}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		digest, path, ok := strings.Cut(lines.Text(), "  ")
		if raw, err := hex.DecodeString(digest); !ok || err != nil || len(raw) != sha256.Size {
			return manifest{}, fmt.Errorf("%s:%d: not a SHA-256 digest, two spaces and a path", name, n)
		}
		if !filepath.IsLocal(filepath.FromSlash(path)) || strings.HasPrefix(filepath.Base(path), unfinished) {
			return manifest{}, fmt.Errorf("%s:%d: %q is no path within a release", name, n, path)
		}
		m.files = append(m.files, file{path, digest})
	}
	if err := lines.Err(); err != nil {
		return manifest{}, fmt.Errorf("%s: %w", name, err)
	}
	if !slices.ContainsFunc(m.files, func(f file) bool { return f.path == program }) {
		return manifest{}, errors.New(name + ": it does not name " + program)
	}
	return m, nil
}
