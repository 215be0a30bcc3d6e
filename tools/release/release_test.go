package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/github/go-spdx/v2/spdxexp"
	spdxjson "github.com/spdx/tools-golang/json"
	spdx "github.com/spdx/tools-golang/spdx/v2/v2_3"
	"github.com/spdx/tools-golang/spdxlib"
)

const testVersion = "9.8.7-witness"

// build builds one small backend as the Makefile builds all.
func build(t *testing.T, goos string, flags ...string) string {
	t.Helper()
	out := t.TempDir()
	cmd := exec.Command("make", append([]string{"build", "BROKER=", "HELPERS=", "OTHERS=", "BACKENDS=./cmd/credential-backend-exec", "COMMANDS=", "OUT=" + out, "VERSION=" + testVersion}, flags...)...)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "GOOS="+goos, "GOARCH=amd64", "GOFLAGS=", "MAKEFLAGS=")
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	return out
}

func needClone(t *testing.T) {
	t.Helper()
	if err := exec.Command("git", "-C", "../..", "rev-parse", "HEAD").Run(); err != nil {
		t.Skip("a release is of a commit, and this is no clone")
	}
}

// made makes a release of the executables in built, and returns its folder.
func made(t *testing.T, built string) string {
	t.Helper()
	needClone(t)
	out, share := t.TempDir(), t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(share, "man"), 0o755), os.WriteFile(filepath.Join(share, "man", "page.8"), []byte("a page"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, subcommand := range []string{"archive", "sums"} {
		if err := run(t.Context(), []string{subcommand, "-repo", "../..", "-version", testVersion, "-share", share, "-out", out, built}); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func read(t *testing.T, path ...string) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func TestAReleaseIsWhatItsExecutablesSay(t *testing.T) {
	for goos, suffix := range map[string]string{"linux": ".tar.gz", "windows": ".zip"} {
		t.Run(goos, func(t *testing.T) {
			t.Parallel()
			built := build(t, goos)
			out := made(t, built)
			base := name + "_" + testVersion + "_" + goos + "_amd64"
			programs, err := readPrograms(t.Context(), built, "../..")
			if err != nil {
				t.Fatal(err)
			}
			checkSBOM(t, read(t, out, base+".spdx.json"), read(t, out, base+suffix), programs[0])
			checkLicences(t, string(unpack(t, read(t, out, base+suffix), base+"/LICENSES-third-party.txt")), programs[0])
			checkSums(t, out)
			list := map[string]func(*testing.T, []byte, time.Time) []string{".tar.gz": listTarGz, ".zip": listZip}[suffix]
			r, err := newRelease(t.Context(), "../..", testVersion, "HEAD", out)
			if err != nil {
				t.Fatal(err)
			}
			page := name + "_" + testVersion + "_" + goos + "_amd64/share/man/page.8 -rw-r--r--"
			if got := list(t, read(t, out, base+suffix), r.time); !slices.Contains(got, page) {
				t.Errorf("no %s in %q", page, got)
			}
			checkProvenance(t, out)

			again := made(t, built)
			for _, file := range []string{base + suffix, base + ".spdx.json", provenanceFile, sumsFile} {
				if !bytes.Equal(read(t, out, file), read(t, again, file)) {
					t.Errorf("%s: made again, it is another", file)
				}
			}
		})
	}
}

// known are licences of some modules, as a person reads them.
var known = map[string]string{"google.golang.org/grpc": "Apache-2.0", "github.com/hashicorp/go-plugin": "MPL-2.0", "github.com/hashicorp/go-hclog": "MIT", "golang.org/x/net": "BSD-3-Clause"}

// checkSBOM: every module that the executable names is there, with its purl and a licence that is one.
func checkSBOM(t *testing.T, bill, archive []byte, p *program) {
	t.Helper()
	var doc spdx.Document
	if err := spdxjson.ReadInto(bytes.NewReader(bill), &doc); err != nil {
		t.Fatal(err)
	}
	if err := spdxlib.ValidateDocument(&doc); err != nil {
		t.Error(err)
	}
	found := map[string]bool{}
	var purls []string
	ids := map[string]bool{}
	recognised := 0
	for _, pkg := range doc.Packages {
		if id := string(pkg.PackageSPDXIdentifier); ids[id] {
			t.Errorf("two packages are %s", id)
		} else {
			ids[id] = true
		}
		found[pkg.PackageName+" "+pkg.PackageVersion] = true
		if pkg.PrimaryPackagePurpose == "LIBRARY" {
			for _, reference := range pkg.PackageExternalReferences {
				purls = append(purls, reference.RefType+" "+reference.Locator)
			}
		}
		// A module whose licence is not recognised (NOASSERTION) is for a person to read, and to be named here.
		if valid, _ := spdxexp.ValidateLicenses([]string{pkg.PackageLicenseDeclared}); !valid {
			t.Errorf("%s: licence %s", pkg.PackageName, pkg.PackageLicenseDeclared)
		}
		if want, ok := known[pkg.PackageName]; ok {
			recognised++
			if pkg.PackageLicenseDeclared != want {
				t.Errorf("%s: licence %s, want %s", pkg.PackageName, pkg.PackageLicenseDeclared, want)
			}
		}
	}
	if recognised != len(known) {
		t.Errorf("%d of the %d modules whose licence is known are there", recognised, len(known))
	}
	want := []string{"purl pkg:golang/stdlib@" + strings.TrimPrefix(p.info.GoVersion, "go")}
	for _, dep := range p.info.Deps {
		want = append(want, "purl pkg:golang/"+dep.Path+"@"+dep.Version)
	}
	slices.Sort(purls)
	slices.Sort(want)
	if !slices.Equal(purls, want) {
		t.Errorf("purls %q, want %q", purls, want)
	}
	for _, dep := range p.info.Deps {
		if !found[dep.Path+" "+dep.Version] {
			t.Errorf("the executable has %s %s in it, and the SBOM has not", dep.Path, dep.Version)
		}
	}
	if !found[standard+" "+strings.TrimPrefix(p.info.GoVersion, "go")] {
		t.Error("the standard library is missing")
	}
	// The archive and the executable come on top of the modules, and the standard library.
	if want := len(p.info.Deps) + 3; len(doc.Packages) != want {
		t.Errorf("%d packages, want %d", len(doc.Packages), want)
	}
	sum := sha256.Sum256(archive)
	if got := doc.Packages[0].PackageChecksums[0].Value; got != hex.EncodeToString(sum[:]) {
		t.Errorf("the archive's digest is not %s", got)
	}
}

// checkLicences: every module that the executable names stands above a text, once for each of its files.
func checkLicences(t *testing.T, text string, p *program) {
	t.Helper()
	modules := []string{"stdlib@" + strings.TrimPrefix(p.info.GoVersion, "go")}
	for _, dep := range p.info.Deps {
		modules = append(modules, dep.Path+"@"+dep.Version)
	}
	times, licensed := map[string]int{}, map[string]bool{}
	for _, part := range strings.Split(text, "\n"+strings.Repeat("=", 80)+"\n")[1:] {
		owners, terms, ok := strings.Cut(part, strings.Repeat("-", 80)+"\n\n")
		if !ok || len(strings.TrimSpace(terms)) < 100 {
			t.Errorf("%q stands above no text", owners)
		}
		for owner := range strings.Lines(owners) {
			module, file, _ := strings.Cut(strings.TrimSpace(owner), " ")
			if !slices.Contains(modules, module) {
				t.Errorf("%s is not linked in", module)
			}
			licensed[module] = licensed[module] || isLicence(file)
			if times[owner]++; times[owner] > 1 {
				t.Errorf("%q stands there again", owner)
			}
		}
	}
	for _, module := range modules {
		if !licensed[module] {
			t.Errorf("%s has no licence's text", module)
		}
	}
}

func checkSums(t *testing.T, out string) {
	t.Helper()
	var listed []string
	for line := range strings.Lines(string(read(t, out, sumsFile))) {
		want, file, _ := strings.Cut(strings.TrimSpace(line), "  ")
		sum := sha256.Sum256(read(t, out, file))
		if hex.EncodeToString(sum[:]) != want {
			t.Errorf("%s: the sum is not that of the file", file)
		}
		listed = append(listed, file)
	}
	entries, err := os.ReadDir(out)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != sumsFile && !slices.Contains(listed, e.Name()) {
			t.Errorf("%s has no sum", e.Name())
		}
	}
}

func checkProvenance(t *testing.T, out string) {
	t.Helper()
	var statement struct {
		Type          string `json:"_type"`
		PredicateType string `json:"predicateType"`
		Subject       []struct {
			Name   string            `json:"name"`
			Digest map[string]string `json:"digest"`
		} `json:"subject"`
	}
	if err := json.Unmarshal(read(t, out, provenanceFile), &statement); err != nil {
		t.Fatal(err)
	}
	if statement.Type != "https://in-toto.io/Statement/v1" || statement.PredicateType != predicateType {
		t.Errorf("%s of %s", statement.Type, statement.PredicateType)
	}
	if len(statement.Subject) != 2 {
		t.Errorf("%d subjects, want archive and SBOM", len(statement.Subject))
	}
	for _, s := range statement.Subject {
		sum := sha256.Sum256(read(t, out, s.Name))
		if s.Digest["sha256"] != hex.EncodeToString(sum[:]) {
			t.Errorf("%s: its digest is another", s.Name)
		}
	}
}

func TestWhatSomebodyBuiltForThemselvesIsNoRelease(t *testing.T) {
	built := build(t, "linux", "GO_BUILD=go build -buildvcs=false -tags grpcnotrace")
	if _, err := readPrograms(t.Context(), built, "../.."); err == nil || !strings.Contains(err.Error(), "-trimpath") {
		t.Errorf("got %v, want a word of -trimpath", err)
	}
	built = build(t, "linux", "GO_BUILD=go build -trimpath -buildvcs=false -tags mine")
	if _, err := readPrograms(t.Context(), built, "../.."); err == nil || !strings.Contains(err.Error(), "-tags=mine") {
		t.Errorf("got %v, want a word of -tags=mine", err)
	}
}

const chart, daemonSet = "examples/kubernetes/helm/credential-broker/Chart.yaml", "examples/kubernetes/kustomize/base/daemonset.yaml"

// script is a repository that has little more than the script and the manifests.
type script struct {
	dir, stubs string // stubs are the programs in it, before those of $PATH
	env        []string
}

// newScript has a go that answers what it is asked, and otherwise does what the stub says.
func newScript(t *testing.T, stub string) *script {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("the script needs a shell")
	}
	found, err := exec.LookPath("go")
	if err != nil {
		t.Fatal(err)
	}
	s := &script{dir: t.TempDir(), stubs: t.TempDir()}
	for _, name := range []string{"tools/release.sh", "tools/release/main.go", chart, daemonSet} {
		s.put(t, filepath.Join(s.dir, name), string(read(t, "../..", name)))
	}
	s.put(t, filepath.Join(s.stubs, "go"), "#!/bin/sh\n[ \"$1\" != env ] || exec '"+found+"' \"$@\"\n"+stub)
	s.env = append(os.Environ(), "VERSION=1.2.3-rc.1+one", "COMMIT=abc", "MAKE=make", "PATH="+s.stubs+string(filepath.ListSeparator)+os.Getenv("PATH"), "GIT_CONFIG_GLOBAL=/dev/null")
	return s
}

func (s *script) put(t *testing.T, path, content string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o755)); err != nil {
		t.Fatal(err)
	}
}

func (s *script) run(t *testing.T, program string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir, cmd.Env = s.dir, s.env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (s *script) git(t *testing.T, args ...string) {
	t.Helper()
	if out, err := s.run(t, "git", append([]string{"-c", "user.name=a", "-c", "user.email=a@example.com"}, args...)...); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// TestATagIsReleasedWithManifestsOfItsVersion has a release that is not refused get as far as building.
func TestATagIsReleasedWithManifestsOfItsVersion(t *testing.T) {
	s := newScript(t, "echo it builds\nexit 1\n")
	release := func(want string) {
		t.Helper()
		if out, err := s.run(t, "bash", "tools/release.sh"); err == nil || !strings.Contains(out, want) || strings.Contains(out, "it builds") != (want == "it builds") {
			t.Errorf("%v: want %q: %s", err, want, out)
		}
	}
	s.git(t, "init", "-q")
	s.git(t, "add", ".")
	s.git(t, "commit", "-q", "-m", "one")
	release("it builds") // of no tag: of no version that anybody installs by its name
	s.git(t, "tag", "v1.2.3-rc.1+one")
	release(daemonSet + " has no line:         image: ghcr.io/credential-broker/credential-broker:1.2.3-rc.1-one")
	if out, err := s.run(t, "bash", "tools/release.sh", "--prepare", "v1"); err == nil || !strings.Contains(out, "say which version") {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := s.run(t, "bash", "tools/release.sh", "--prepare", "1.2.3-rc.1+one"); err != nil || !strings.Contains(out, "2 files changed") {
		t.Errorf("%v: %s", err, out)
	}
	s.git(t, "commit", "-q", "-a", "-m", "two")
	s.git(t, "tag", "-f", "v1.2.3-rc.1+one")
	release("it builds")
	s.git(t, "rm", "-q", "--cached", "tools/release/main.go")
	release("commit it, or put it away")
}

// TestWhatAMachineIsSetToIsNotInARelease has whatever the script calls say what it was given.
func TestWhatAMachineIsSetToIsNotInARelease(t *testing.T) {
	s := newScript(t, "printf '#!/bin/sh\\n' >\"$4\"; chmod +x \"$4\"\n")
	s.put(t, filepath.Join(s.dir, "tools/package/pages.sh"), "#!/bin/sh\nmkdir -p \"$1/man\"\nfor f in man/a.8 completion.bash completion.zsh completion.fish; do : >\"$1/$f\"; done\n")
	s.put(t, filepath.Join(s.stubs, "make"), `#!/bin/sh
echo "$1:" $(go env GOFLAGS GOPROXY) "$GO_EXTLINK_ENABLED ${ARCH-} ${DIST-} ${IMAGE_PLATFORMS-} ${GOCOMPILEDEBUG-} ${MAKEFILES-}."
`)
	s.git(t, "init", "-q")
	s.git(t, "add", ".")
	s.git(t, "commit", "-q", "-m", "one")
	file := filepath.Join(t.TempDir(), "env")
	s.env = append(s.env, "PLATFORMS=plan9/amd64", "GOENV="+file, "GOPROXY=")
	for _, flags := range []string{"", "-tags=mine"} { // Go reads the file where the environment says nothing
		s.put(t, file, "GOFLAGS=-overlay=/mine.json\nGO_EXTLINK_ENABLED=1\nGOPROXY=https://proxy.example\n")
		s.env = append(s.env, "GOFLAGS="+flags, "GO_EXTLINK_ENABLED=1", "ARCH=amd64", "DIST=mine", "IMAGE_PLATFORMS=linux/amd64", "GOCOMPILEDEBUG=wb=0", "MAKEFILES=mine.mk")
		out, err := s.run(t, "bash", "tools/release.sh")
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for _, target := range []string{"build", "packages", "image"} {
			if want := target + ": -buildvcs=false https://proxy.example 0     .\n"; !strings.Contains(out, want) {
				t.Errorf("no %q: %s", want, out)
			}
		}
	}
	s.put(t, file, "GOEXPERIMENT=arenas\n")
	if out, err := s.run(t, "bash", "tools/release.sh"); err == nil || !strings.Contains(out, "takes back arenas") || strings.Contains(out, "build:") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestWhoeverHasVariablesOfMakesOfTheirOwnMakesNoRelease(t *testing.T) {
	for _, tt := range []struct {
		args   []string
		refuse string // what has to go; empty for nothing
	}{
		{nil, ""},
		{[]string{"-j2", "VERSION=1.0.0", "COMMIT=abc", "PLATFORMS=linux/amd64 linux/arm64"}, ""},
		{[]string{"GO_STRIP="}, "GO_STRIP="},
		{[]string{"VERSION=1.0.0", "ENTRY="}, "ENTRY="},
		{[]string{"GO_BUILD=go build -trimpath -tags grpcnotrace -buildvcs=false"}, "GO_BUILD="},
		{[]string{"-e"}, "-e"},
	} {
		cmd := exec.Command("make", append([]string{"-n", "release"}, tt.args...)...)
		cmd.Dir, cmd.Env = "../..", append(os.Environ(), "MAKEFLAGS=")
		said, err := cmd.CombinedOutput()
		switch {
		case tt.refuse == "" && (err != nil || !strings.Contains(string(said), "tools/release.sh")):
			t.Errorf("make release %q: %v\n%s", tt.args, err, said)
		case tt.refuse != "" && (err == nil || !strings.Contains(string(said), "leave out "+tt.refuse) || strings.Contains(string(said), "tools/release.sh")):
			t.Errorf("make release %q: %v, want a word of %s\n%s", tt.args, err, tt.refuse, said)
		}
	}
}

func TestAnExecutableThatWasNotToldItsVersionIsNoRelease(t *testing.T) {
	for _, platform := range [][2]string{{"linux", "amd64"}, {"linux", "arm64"}, {"windows", "amd64"}} {
		t.Run(platform[0]+"/"+platform[1], func(t *testing.T) {
			t.Parallel()
			needClone(t)
			// As the Makefile has it, without -X.
			built := build(t, platform[0], "GOARCH="+platform[1], "GO_BUILD=go build -trimpath -tags grpcnotrace -buildvcs=false -ldflags '-s -w'")
			programs, err := readPrograms(t.Context(), built, "../..")
			if err != nil {
				t.Fatal(err)
			}
			// That of a dependency is in every executable.
			version := strings.TrimPrefix(programs[0].info.Deps[0].Version, "v")
			if !bytes.Contains(programs[0].content, []byte(version)) {
				t.Fatalf("no %s in it", version)
			}
			err = run(t.Context(), []string{"archive", "-repo", "../..", "-version", version, "-out", t.TempDir(), built})
			if err == nil || !strings.Contains(err.Error(), "does not hold the version "+version) {
				t.Errorf("got %v, want a word of the version %s", err, version)
			}
			told, err := readPrograms(t.Context(), build(t, platform[0], "GOARCH="+platform[1], "GO_STRIP=-s -w", "VERSION="+version), "../..")
			if err != nil {
				t.Fatal(err)
			}
			if ok, err := told[0].holds(version); !ok || err != nil {
				t.Errorf("told the version %s, it holds it: %t, %v", version, ok, err)
			}
		})
	}
}

func TestArchivesDependOnNothingButTheirFiles(t *testing.T) {
	at := time.Date(2026, 3, 4, 5, 6, 8, 0, time.FixedZone("somewhere", 5400))
	entries := []entry{{"bin/b", 0o755, []byte("program")}, {"a", 0o644, nil}, {"bin/a/c", 0o644, []byte("text")}, {"bin/d", fs.ModeSymlink | 0o777, []byte("b")}}
	turned := slices.Clone(entries)
	slices.Reverse(turned)
	want := []string{"base/ drwxr-xr-x", "base/a -rw-r--r--", "base/bin/ drwxr-xr-x", "base/bin/a/ drwxr-xr-x", "base/bin/a/c -rw-r--r--", "base/bin/b -rwxr-xr-x", "base/bin/d Lrwxrwxrwx"}
	for kind, f := range map[string]struct {
		pack func(string, []entry, time.Time) ([]byte, error)
		list func(*testing.T, []byte, time.Time) []string
	}{"tar.gz": {packTarGz, listTarGz}, "zip": {packZip, listZip}} {
		one, err := f.pack("base", entries, at)
		if err != nil {
			t.Fatal(err)
		}
		two, err := f.pack("base", turned, at.UTC())
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(one, two) {
			t.Errorf("%s: order or time zone shows", kind)
		}
		if got := f.list(t, one, at); !slices.Equal(got, want) {
			t.Errorf("%s: has %q, want %q", kind, got, want)
		}
	}
}

func listTarGz(t *testing.T, packed []byte, at time.Time) (list []string) {
	t.Helper()
	uncompressed, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	for reader := tar.NewReader(uncompressed); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		if header.Uid != 0 || header.Gid != 0 || !header.ModTime.Equal(at) {
			t.Errorf("%s: owner %d:%d, time %s", header.Name, header.Uid, header.Gid, header.ModTime)
		}
		list = append(list, header.Name+" "+header.FileInfo().Mode().String())
	}
}

// unpack reads one file of an archive of either kind.
func unpack(t *testing.T, packed []byte, path string) []byte {
	t.Helper()
	if zipped, err := zip.NewReader(bytes.NewReader(packed), int64(len(packed))); err == nil {
		content, err := fs.ReadFile(zipped, path)
		if err != nil {
			t.Fatal(err)
		}
		return content
	}
	uncompressed, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	for reader := tar.NewReader(uncompressed); ; {
		header, err := reader.Next()
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if header.Name == path {
			content, err := io.ReadAll(reader)
			if err != nil {
				t.Fatal(err)
			}
			return content
		}
	}
}

func listZip(t *testing.T, packed []byte, at time.Time) (list []string) {
	t.Helper()
	reader, err := zip.NewReader(bytes.NewReader(packed), int64(len(packed)))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range reader.File {
		if !file.Modified.Equal(at) {
			t.Errorf("%s: time %s", file.Name, file.Modified)
		}
		list = append(list, file.Name+" "+file.Mode().String())
	}
	return list
}
