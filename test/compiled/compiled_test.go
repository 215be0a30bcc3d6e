package compiled

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func TestAProgramIsBuiltOnce(t *testing.T) {
	p, file := Program{Name: "server", Says: "a server: twenty minutes"}, filepath.Join(t.TempDir(), "of-1", "server")
	var said bytes.Buffer // nobody writes to it but who has the lock
	var builds atomic.Int32
	build := func(to string) error {
		if builds.Add(1); !strings.Contains(said.String(), "twenty minutes") {
			t.Error("it began without a word")
		}
		return os.WriteFile(to, []byte("server"), 0o700)
	}
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			if got, err := p.built(file, &said, build); err != nil || got != file {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	wait.Wait()
	if got := builds.Load(); got != 1 {
		t.Errorf("it was built %d times", got)
	}
	if content, err := os.ReadFile(file); err != nil || string(content) != "server" {
		t.Errorf("%q, %v", content, err)
	}
}

func TestABuildThatFailsLeavesNoProgram(t *testing.T) {
	p, file := Program{Name: "server", Says: "a server: twenty minutes"}, filepath.Join(t.TempDir(), "of-1", "server")
	broken := errors.New("broken")
	if _, err := p.built(file, &bytes.Buffer{}, func(to string) error {
		return errors.Join(os.WriteFile(to, []byte("half a ser"), 0o700), broken)
	}); !errors.Is(err, broken) {
		t.Error(err)
	}
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("there is a program: %v", err)
	}
	if _, err := p.built(file, &bytes.Buffer{}, func(to string) error { return os.WriteFile(to, []byte("server"), 0o700) }); err != nil {
		t.Errorf("the next time: %v", err)
	}
}

// Another version of anything that it is made of is another program.
func TestTheNameSaysWhatItIsMadeOf(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		all, err := Program{Module: dir}.digest()
		if err != nil {
			return ""
		}
		return all
	}
	if got := write("go.mod", "a"); got != "" {
		t.Errorf("without go.sum: %q", got)
	}
	seen := map[string]bool{write("go.sum", "a"): true, write("go.mod", "b"): true, write("go.sum", "b"): true}
	variant, err := Program{Module: dir, Variant: "b"}.digest()
	if err != nil {
		t.Fatal(err)
	}
	seen[variant] = true
	if len(seen) != 4 || seen[""] {
		t.Errorf("%v", seen)
	}
}
