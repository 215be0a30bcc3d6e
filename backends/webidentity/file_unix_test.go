//go:build unix

package webidentity

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestFile(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := os.Mkdir(at("dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(at("pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at("denied"), []byte(jwt(nil)), 0); err != nil {
		t.Fatal(err)
	}
	tests := map[string]*failure{
		"missing":     unavailable("it does not exist", "written there"),
		"missing/too": unavailable("it does not exist"),
		"denied/file": unavailable("cannot be read: not a directory"),
		"dir":         misconfigured("webIdentity.file.path", "no regular file"),
		"pipe":        misconfigured("webIdentity.file.path", "no regular file"),
		"denied":      misconfigured("webIdentity.file.path", "may not read it", "uid"),
	}
	for name, want := range tests {
		t.Run(name, func(t *testing.T) {
			if name == "denied" && os.Geteuid() == 0 {
				t.Log("NOT RUN: root may read every file")
				return
			}
			s := source(t, Config{File: &File{Path: at(name)}}, testWorld())
			token, err := s.Token(t.Context())
			check(t, s, token, err, want)
		})
	}
}

// TestFileDenied is what TestFile cannot try as root.
func TestFileDenied(t *testing.T) {
	f := &file{File: File{Path: "/t"}, judge: judge{field: "webIdentity.file.path"}}
	check(t, f, Token{}, f.unreadable(&os.PathError{Op: "open", Path: "/t", Err: syscall.EACCES}), misconfigured("webIdentity.file.path", "may not read it"))
}

func TestFileIsReadAfresh(t *testing.T) {
	path := t.TempDir() + "/token"
	s := source(t, Config{File: &File{Path: path}}, testWorld())
	for _, subject := range []string{"one", "two"} {
		want := jwt(map[string]any{"sub": subject})
		if err := os.WriteFile(path, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Token(t.Context()); err != nil || string(got.Value) != want {
			t.Errorf("%s: %v", subject, err)
		}
	}
}

func TestFileForEverybodyIsWarnedOfOnce(t *testing.T) {
	var log bytes.Buffer
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	t.Cleanup(func() { slog.SetDefault(before) })
	for mode, warnings := range map[os.FileMode]int{0o600: 0, 0o640: 0, 0o644: 1} {
		log.Reset()
		path := t.TempDir() + "/token"
		if err := os.WriteFile(path, []byte(jwt(nil)), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		s := source(t, Config{File: &File{Path: path}}, testWorld())
		for range 2 {
			if _, err := s.Token(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if got := strings.Count(log.String(), "everybody on this machine can read"); got != warnings {
			t.Errorf("mode %v: %d warnings, want %d", mode, got, warnings)
		}
		if strings.Contains(log.String(), part(canary)) {
			t.Error("the log has the token")
		}
	}
}
