package doctor

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/credential-broker/credential-broker/proto/trust"
)

// Node is the node's file system: this one, or one that is mounted at Root. Paths are the node's own; with a Root symbolic links are followed as if it were the root directory.
type Node struct {
	Root string
}

// outside is where this process finds a path of the node's.
func (n Node) outside(path string) string {
	if n.Root == "" {
		return path
	}
	file, err := n.follow(path)
	if err != nil {
		file = filepath.Clean("/" + path)
	}
	return filepath.Join(n.Root, file)
}

// inside is the node's own path of one that outside gave.
func (n Node) inside(path string) string {
	if n.Root == "" {
		return path
	}
	if rest, ok := strings.CutPrefix(path, filepath.Clean(n.Root)); ok && (rest == "" || rest[0] == '/') {
		return filepath.Clean("/" + rest)
	}
	return path
}

// reword puts the node's own paths into a text that has those of this process, such as an error's.
func (n Node) reword(text string) string {
	if n.Root == "" {
		return text
	}
	path := regexp.MustCompile(`(^|[\s"'(=:>])` + regexp.QuoteMeta(filepath.Clean(n.Root)) + `(/|[\s"'):;,]|$)`)
	return path.ReplaceAllStringFunc(text, func(found string) string {
		parts := path.FindStringSubmatch(found)
		return parts[1] + "/" + strings.TrimPrefix(parts[2], "/")
	})
}

// follow gives the node's path without symbolic links.
func (n Node) follow(path string) (string, error) { return trust.Resolve(n.Root, path) }

func (n Node) stat(path string) (fs.FileInfo, error) { return os.Stat(n.outside(path)) }

// maxFile bounds what is read of a file: many times what any that concerns us has.
const maxFile = 4 << 20

// readFile reads a regular file: whose name somebody else chose may be anything. /proc has files without a size.
func (n Node) readFile(path string) ([]byte, error) {
	path = n.outside(path)
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("no regular file")}
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("has more than %d bytes", maxFile)}
	}
	return data, err
}
func (n Node) readDir(path string) ([]fs.DirEntry, error) { return os.ReadDir(n.outside(path)) }
func (n Node) trusted(path string) error                  { return trust.FileIn(n.Root, path) }
func (n Node) executable(path string, sums []string) error {
	return trust.ExecutableIn(n.Root, path, sums)
}

func (n Node) exists(path string) bool {
	_, err := n.stat(path)
	return err == nil
}

// user says whether the node has this user.
func (n Node) user(name string) error {
	if n.Root == "" {
		_, err := user.Lookup(name)
		if _, byNumber := user.LookupId(name); byNumber == nil {
			return nil
		}
		return err
	}
	data, err := n.readFile("/etc/passwd")
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		if fields := strings.Split(lines.Text(), ":"); fields[0] == name || len(fields) > 2 && fields[2] == name {
			return nil
		}
	}
	return fmt.Errorf("user: unknown user %s", name)
}

// split takes an error's remedy from its text.
func (n Node) split(err error, otherwise string) (text, remedy string) {
	if e, ok := errors.AsType[*trust.Error](err); ok {
		return strings.TrimSuffix(e.Error(), ": "+e.Remedy), e.Remedy
	}
	return n.oneLine(err), otherwise
}
