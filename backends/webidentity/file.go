package webidentity

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"

	"github.com/credential-broker/credential-broker/backends"
)

// file is a token in a file.
type file struct {
	File
	judge judge
	warn  sync.Once
}

func (f *file) String() string { return "file " + f.Path }

// Token reads the file. A missing, empty or expired one is somebody else's to mend, and may be at any moment; one that cannot be read is for whoever wrote the settings.
func (f *file) Token(ctx context.Context) (Token, error) {
	info, err := os.Stat(f.Path)
	if err != nil {
		return Token{}, f.unreadable(err)
	}
	if !info.Mode().IsRegular() { // a pipe would be waited for
		return Token{}, f.judge.misconfigured("", f.String(), "it is no regular file: name a file that has the token")
	}
	raw, err := f.read()
	if err != nil {
		return Token{}, f.unreadable(err)
	}
	if len(raw) > maxToken {
		return Token{}, f.judge.misconfigured("", f.String(), "it has more than %d KiB: name a file that has the token and nothing else", maxToken>>10)
	}
	token, err := f.judge.token(string(raw), f.String())
	if err == nil && worldReadable(info) {
		// Whoever reads it can be this node to the cloud. It is the work of whoever projects the token, and pulls go on.
		f.warn.Do(func() {
			slog.WarnContext(ctx, "everybody on this machine can read the identity token: chmod o-r it", "file", f.Path, "mode", info.Mode().Perm().String())
		})
	}
	return token, err
}

func (f *file) read() ([]byte, error) {
	r, err := os.Open(f.Path)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, maxToken+1))
}

func (f *file) unreadable(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return problem(backends.Unavailable, f.String(), "it does not exist: see to it that the token is written there")
	case errors.Is(err, fs.ErrPermission):
		return f.judge.misconfigured("", f.String(), "this process (uid %d) may not read it: change the file's owner or mode, or the provider's user", os.Getuid())
	default:
		if path, ok := errors.AsType[*fs.PathError](err); ok {
			err = path.Err
		}
		return problem(backends.Unavailable, f.String(), "it cannot be read: %w", err)
	}
}
