// Package trust has the one rule on files that are executed or that say what is executed: nobody but root and the user of this process can change them.
//
// A file is trusted when it, and every directory above it, belongs to root or to this process's effective user and cannot be written by anybody else. Symbolic
// links are followed the way the kernel follows them, and the directories of every link count as well as those of what it points to. Write permission for the
// group is refused whatever the group, root's (gid 0) included, since root's group may have other members; only where this process is not root does its own primary group
// count as itself, as on systems that give each user a private group. A directory that others can write is no danger if it is sticky, as /tmp is: what
// is in it and belongs to root or to us can be neither replaced nor renamed by anybody else.
//
// What the rule does not look at: mount options, security modules, who can write the block device, and access control lists as such. A POSIX access control
// list that lets somebody write shows in the group's write bit (acl(5): the bit is the list's mask), so it is refused all the same. A hard link in a directory that only we can
// write was made by us; one in a sticky directory was made by whoever the kernel let (fs.protected_hardlinks).
//
// The package imports nothing of this project, keeps no state, and costs one lstat for each element of the path.
package trust

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Error says which element of a path is not to be trusted, and what to do about it.
type Error struct {
	// Path is the file that was asked about.
	Path string
	// Element is the part of its way that is at fault: a directory above it, a symbolic link, or the file itself.
	Element string
	// Reason says what is wrong with the element, with its owner and mode.
	Reason string
	// Remedy is the command to run, or what to do instead.
	Remedy string
}

// Error names the element, its owner and mode, and the remedy.
func (e *Error) Error() string {
	if e.Element == e.Path {
		return fmt.Sprintf("%s is not safe to use: %s: %s", e.Path, e.Reason, e.Remedy)
	}
	return fmt.Sprintf("%s is not safe to use: %s %s: %s", e.Path, e.Element, e.Reason, e.Remedy)
}

// File finds out whether nobody but root and this process's user can change what is at path, a file or a directory. The error is an *Error where somebody else
// can, and an *fs.PathError where the path cannot be followed (fs.ErrNotExist and the like). A relative path starts at the working directory. A directory that
// others can add files to is refused even if it is sticky: they could add to what it means.
func File(path string) error { return FileIn("", path) }

// FileIn is File for the file system that is mounted at root, as if that were "/": symbolic links do not lead out of it, and the directories above it are not judged. Path, which is absolute, and
// the paths in an *Error are those within; an empty root is this system's.
func FileIn(root, path string) error {
	_, _, err := follow(root, path, judge, judgeOwner)
	return err
}

// Resolve gives the path without symbolic links, which are followed as FileIn does; nothing is judged.
func Resolve(root, path string) (string, error) {
	element := func(string, string, fs.FileInfo, bool) error { return nil }
	link := func(string, string, fs.FileInfo) error { return nil }
	_, file, err := follow(root, path, element, link)
	return inside(root, file), err
}

// inside is the path within root of one of this process's; an empty root is this system's.
func inside(root, path string) string {
	if root == "" || path == "" {
		return path
	}
	return filepath.Clean(string(filepath.Separator) + strings.TrimPrefix(path, filepath.Clean(root)))
}

// Executable is File for a program: it must also be a regular file that may be executed and, where digests are given, have one of these SHA-256 digests
// (64 hexadecimal digits each). The digest is that of the file at the end of all symbolic links.
func Executable(path string, digests []string) error { return ExecutableIn("", path, digests) }

// ExecutableIn is Executable for the file system that is mounted at root, as FileIn is File.
func ExecutableIn(root, path string, digests []string) error {
	info, file, err := follow(root, path, judge, judgeOwner)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return &Error{Path: path, Element: path, Reason: "it is " + kindOf(info.Mode()) + ", not a program", Remedy: "name the program's own file"}
	}
	if !executable(info) {
		return &Error{Path: path, Element: path, Reason: fmt.Sprintf("it is not executable (mode %v)", info.Mode().Perm()), Remedy: "chmod +x " + Quote(path)}
	}
	if len(digests) == 0 {
		return nil
	}
	found, err := digest(file)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(digests, func(d string) bool { return strings.EqualFold(d, found) }) {
		return nil
	}
	return &Error{
		Path: path, Element: path, Reason: "its SHA-256 digest is " + found + ", which is not in the list",
		Remedy: "if this is the file you mean to run, put that digest into sha256; else put the right file in its place",
	}
}

func digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// maxLinks is how many symbolic links one path may pass through: the kernel's own limit (path_resolution(7)).
const maxLinks = 40

// follow walks path as the kernel would below the root, has every element on the way judged, and returns what is at the end, and where that is for this process.
func follow(
	within, path string, element func(path, at string, info fs.FileInfo, last bool) error, link func(path, at string, info fs.FileInfo) error,
) (info fs.FileInfo, file string, err error) {
	if path == "" {
		return nil, "", &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	rest := path
	if !filepath.IsAbs(path) {
		wd, err := os.Getwd()
		if err != nil {
			return nil, "", err
		}
		// Joined by hand: filepath.Join would drop "..", which means something else behind a symbolic link.
		rest = wd + string(filepath.Separator) + path
	}
	volume := filepath.VolumeName(rest)
	root := volume + string(filepath.Separator)
	if within != "" {
		root = filepath.Clean(within)
	}
	lstat := func(at string) (fs.FileInfo, error) {
		if at == root { // which may be a link of the kernel's, /proc/PID/root
			return os.Stat(at)
		}
		return os.Lstat(at)
	}
	at, links := root, 0
	if info, err = lstat(root); err != nil {
		return nil, "", err
	}
	todo := elements(rest[len(volume):])
	for {
		last := len(todo) == 0
		if err := element(path, inside(within, at), info, last); err != nil {
			return nil, "", err
		}
		if last {
			return info, at, nil
		}
		if !info.IsDir() {
			return nil, "", &fs.PathError{Op: "open", Path: path, Err: fmt.Errorf("%s is not a directory", inside(within, at))}
		}
		var name string
		name, todo = todo[0], todo[1:]
		if name == ".." {
			// What is above has been judged on the way down, but not as the end of the way.
			if at != root {
				at = filepath.Dir(at)
			}
			if info, err = lstat(at); err != nil {
				return nil, "", err
			}
			continue
		}
		next := filepath.Join(at, name)
		if info, err = os.Lstat(next); err != nil {
			return nil, "", err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			at = next
			continue
		}
		if err := link(path, inside(within, next), info); err != nil {
			return nil, "", err
		}
		if links++; links > maxLinks {
			return nil, "", &fs.PathError{Op: "open", Path: path, Err: fmt.Errorf("more than %d symbolic links", maxLinks)}
		}
		target, err := os.Readlink(next)
		if err != nil {
			return nil, "", err
		}
		todo = append(elements(target), todo...)
		if filepath.IsAbs(target) {
			at = root
		}
		if info, err = lstat(at); err != nil {
			return nil, "", err
		}
	}
}

// elements are the names in a path, without those that mean nothing.
func elements(path string) []string {
	var names []string
	for name := range strings.SplitSeq(filepath.ToSlash(path), "/") {
		if name != "" && name != "." {
			names = append(names, name)
		}
	}
	return names
}

func kindOf(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "a directory"
	case m&fs.ModeNamedPipe != 0:
		return "a named pipe"
	case m&fs.ModeSocket != 0:
		return "a socket"
	case m&fs.ModeDevice != 0:
		return "a device"
	default:
		return "no regular file"
	}
}

// Quote makes a path, or another word, safe to paste into a shell.
func Quote(path string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:@%,=", r)
	}
	if strings.IndexFunc(path, func(r rune) bool { return !plain(r) }) < 0 {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
