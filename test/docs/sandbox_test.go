package docs

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// sandbox is where one document's blocks run.
type sandbox struct {
	root  string // stands for /
	shell *exec.Cmd
	in    io.WriteCloser
	out   *bufio.Reader
	repo  string
	// stands are texts of the document, and what stands for them here.
	stands [][2]string
}

// patience bounds one command; the longest builds a backend.
const patience = 5 * time.Minute

func newSandbox(t *testing.T, repo, bin string) *sandbox {
	t.Helper()
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := &sandbox{root: root, repo: repo}
	for _, dir := range []string{"work", "home", "etc/credential-broker", "usr/libexec", "usr/bin", "opt", "var", "run"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := linkTree(bin, filepath.Join(root, "usr/libexec/credential-broker")); err != nil {
		t.Fatal(err)
	}
	s.shell = exec.Command("bash", "--noprofile", "--norc")
	s.shell.Dir = filepath.Join(root, "work")
	s.shell.Env = append(goEnvironment(t),
		"PATH="+bin+string(os.PathListSeparator)+os.Getenv("PATH"), "HOME="+filepath.Join(root, "home"), "LANG=C.UTF-8", "NO_COLOR=1", "REPO="+repo,
		"CREDENTIAL_BROKER_CONFIG="+filepath.Join(root, "etc/credential-broker/config.yaml"))
	if s.in, err = s.shell.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := s.shell.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.shell.Stderr = s.shell.Stdout
	s.out = bufio.NewReader(out)
	if err := s.shell.Start(); err != nil {
		t.Fatal(err)
	}
	// What a document has left running, an agent say, ends with it.
	if _, err := fmt.Fprintln(s.in, "trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.in.Close()
		_ = s.shell.Wait()
	})
	return s
}

// linkTree makes another tree of the same files.
func linkTree(from, to string) error {
	return fs.WalkDir(os.DirFS(from), ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return errors.Join(err, os.Mkdir(filepath.Join(to, path), 0o755))
		}
		return os.Link(filepath.Join(from, path), filepath.Join(to, path))
	})
}

// goEnvironment is what the go command needs to build without fetching anything again.
func goEnvironment(t *testing.T) []string {
	t.Helper()
	names := []string{"GOCACHE", "GOMODCACHE", "GOPROXY", "GOSUMDB", "GONOSUMDB", "GOFLAGS", "GOPATH", "GOTOOLCHAIN"}
	out, err := exec.Command("go", append([]string{"env"}, names...)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	env := []string{"CGO_ENABLED=0"}
	for i, value := range strings.Split(strings.TrimSuffix(string(out), "\n"), "\n") {
		env = append(env, names[i]+"="+value)
	}
	return env
}

// moved are the absolute paths that stand for something in the sandbox.
var moved = regexp.MustCompile(`(^|unix://|[\s"'=:\[{(,<>@|])/(etc|usr/libexec|usr/bin/credential-broker|opt|var|run)\b`)

// inside puts the paths of a text into the sandbox.
func (s *sandbox) inside(text string) string {
	for _, pair := range s.stands {
		text = strings.ReplaceAll(text, pair[0], pair[1])
	}
	return moved.ReplaceAllString(text, "${1}"+s.root+"/${2}")
}

// outside takes them out again.
func (s *sandbox) outside(text string) string {
	for _, pair := range s.stands {
		text = strings.ReplaceAll(text, pair[1], pair[0])
	}
	text = strings.ReplaceAll(text, filepath.Join(s.root, "work")+"/", "")
	text = strings.ReplaceAll(text, s.root, "")
	text = withoutDefaultConfig(text)
	return strings.ReplaceAll(text, s.repo, "$REPO")
}

// withoutDefaultConfig takes out how kubelet-config hands on a configuration that, outside of the sandbox, would be the default one.
func withoutDefaultConfig(text string) string {
	lines := strings.SplitAfter(text, "\n")
	var kept []string
	for i := 0; i < len(lines); i++ {
		if lines[i] != "  - --config\n" || i+1 == len(lines) || lines[i+1] != "  - /etc/credential-broker/config.yaml\n" {
			kept = append(kept, lines[i])
			continue
		}
		i++
		alone := i+1 == len(lines) || !strings.HasPrefix(lines[i+1], "  - ")
		if last := len(kept) - 1; alone && kept[last] == "  args:\n" {
			kept = kept[:last]
		}
	}
	return strings.Join(kept, "")
}

// path is a file of a document in the sandbox.
func (s *sandbox) path(file string) string {
	if filepath.IsAbs(file) {
		return filepath.Join(s.root, file)
	}
	return filepath.Join(s.root, "work", file)
}

func (s *sandbox) write(b block) error {
	path := s.path(b.attrs["file"])
	mode := os.FileMode(0o644)
	if m := b.attrs["mode"]; m != "" {
		parsed, err := strconv.ParseUint(m, 8, 32)
		if err != nil {
			return err
		}
		mode = os.FileMode(parsed)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, []byte(s.inside(b.text)), mode); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

// end marks the end of a command's output and carries its status.
const end = "\x01end "

// run gives a command to the shell, and returns what it printed and its exit status.
func (s *sandbox) run(text string) (output string, status int, err error) {
	quoted := "'" + strings.ReplaceAll(s.inside(text), "'", `'\''`) + "'"
	// $? is the previous command's for the next one.
	if _, err := fmt.Fprintf(s.in, "(exit ${__status:-0}); eval %s </dev/null; __status=$?; printf '\\001end %%d\\n' $__status\n", quoted); err != nil {
		return "", 0, err
	}
	timer := time.AfterFunc(patience, func() { _ = s.shell.Process.Kill() })
	defer timer.Stop()
	var out strings.Builder
	for {
		line, err := s.out.ReadString('\n')
		if before, after, ok := strings.Cut(line, end); ok {
			out.WriteString(before)
			status, err = strconv.Atoi(strings.TrimSpace(after))
			return s.outside(out.String()), status, err
		}
		out.WriteString(line)
		if err != nil {
			return s.outside(out.String()), 0, errors.Join(errors.New("the shell ended"), err)
		}
	}
}

// provide makes the files that a provider's settings name in the sandbox, where they are not there: a docker configuration, a credential provider of the kubelet's.
func (s *sandbox) provide(settings []byte) error {
	var named struct{ File, Command string }
	_ = json.Unmarshal(settings, &named) // those of another backend may name something else
	for path, content := range map[string]string{named.File: "{}", named.Command: "#!/bin/sh\ncat >/dev/null\n"} {
		if _, err := os.Stat(path); err == nil || !strings.HasPrefix(path, s.root+"/") {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o700); err != nil {
			return err
		}
	}
	return nil
}
