// Package files reads files that have credentials in them. It knows no format.
package files

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"runtime"
	"syscall"
)

// maxFile bounds a file of credentials, in bytes.
const maxFile = 1 << 20

// Read reads a regular file within bounds: another kind may never end. Its error is about the file, and does not name it.
func Read(path string) (content []byte, mode fs.FileMode, err error) {
	defer func() {
		if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
			err = pathErr.Err
		}
	}()
	opened, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe would be waited for
	if err != nil {
		return nil, 0, err
	}
	defer opened.Close()
	info, err := opened.Stat()
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return nil, 0, errors.New("it is no regular file")
	}
	if content, err = io.ReadAll(io.LimitReader(opened, maxFile+1)); err != nil {
		return nil, 0, err
	}
	if len(content) > maxFile {
		return nil, 0, errors.New("it has more than a megabyte, which no file of credentials has")
	}
	return content, info.Mode(), nil
}

// WarnIfReadable warns of a file with a secret that everybody can read. Mode is as Read gives it.
func WarnIfReadable(ctx context.Context, path string, mode fs.FileMode) {
	if mode.Perm()&0o004 != 0 && runtime.GOOS != "windows" {
		slog.WarnContext(ctx, "the file has a secret, and can be read by every user of this machine: chmod 0600", "file", path)
	}
}
