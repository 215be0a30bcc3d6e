package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/github/go-spdx/v2/spdxexp"
	"github.com/google/licensecheck"
	"golang.org/x/mod/module"
)

// linkedModule is a module, or Go's standard library, of which there is code in an executable.
type linkedModule struct {
	path, version string
	sum           string // of go.sum; empty for the standard library
	licences      []licenceFile
}

// standard is the path under which the standard library goes, in SBOMs and in vulnerability databases.
const standard = "stdlib"

// purl names a module as others look it up: https://github.com/package-url/purl-spec.
func (m *linkedModule) purl() string { return "pkg:golang/" + m.path + "@" + m.version }

// licenceFile is a text that goes with a module's code.
type licenceFile struct {
	path    string // in the module
	content []byte
}

// expression is the SPDX expression for what is recognised in the text, or empty.
func (f licenceFile) expression() string {
	found := licensecheck.Scan(f.content)
	if found.Percent < 75 { // the rest is a copyright line or a heading; below that something else is said, which a person has to read
		return ""
	}
	var names []string
	for _, match := range found.Match {
		if valid, _ := spdxexp.ValidateLicenses([]string{match.ID}); !valid {
			return ""
		}
		names = append(names, match.ID)
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), " AND ")
}

// declared is the SPDX expression for the licences at the module's root, or NOASSERTION.
func (m *linkedModule) declared() string {
	var all []string
	for _, f := range m.licences {
		if path.Dir(f.path) != "." || !isLicence(f.path) {
			continue
		}
		expression := f.expression()
		if expression == "" {
			return "NOASSERTION"
		}
		all = append(all, expression)
	}
	if len(all) == 0 {
		return "NOASSERTION"
	}
	slices.Sort(all)
	return strings.Join(slices.Compact(all), " AND ")
}

// modules finds the sources of modules where the build has put them.
type modules struct{ cache, goroot string }

func newModules(ctx context.Context) (*modules, error) {
	told, err := output(ctx, "go", "env", "GOMODCACHE", "GOROOT")
	if err != nil {
		return nil, err
	}
	lines := strings.Split(string(told), "\n")
	return &modules{cache: lines[0], goroot: lines[1]}, nil
}

// linkedInto are uniqueModules with their licences.
func (c *modules) linkedInto(programs []*program) ([]*linkedModule, error) {
	all := uniqueModules(programs)
	for _, m := range all {
		dir, err := c.dir(m)
		if err == nil {
			m.licences, err = licencesBelow(dir)
		}
		if err != nil {
			return nil, fmt.Errorf("the licence of %s %s: %w", m.path, m.version, err)
		}
		if len(m.licences) == 0 {
			return nil, fmt.Errorf("the licence of %s %s: %s has no file that looks like one", m.path, m.version, dir)
		}
	}
	return all, nil
}

// uniqueModules are those of which there is code in any of the programs, sorted, the standard library among them.
func uniqueModules(programs []*program) []*linkedModule {
	found := map[string]*linkedModule{}
	for _, p := range programs {
		for _, m := range modulesOf(p) {
			found[m.purl()] = m
		}
	}
	return slices.SortedFunc(maps.Values(found), func(a, b *linkedModule) int { return strings.Compare(a.purl(), b.purl()) })
}

// modulesOf is what one executable says that it is made of, besides the main module.
func modulesOf(p *program) []*linkedModule {
	all := []*linkedModule{{path: standard, version: strings.TrimPrefix(p.info.GoVersion, "go")}}
	for _, dep := range p.info.Deps {
		if dep.Replace != nil {
			dep = dep.Replace
		}
		all = append(all, &linkedModule{path: dep.Path, version: dep.Version, sum: dep.Sum})
	}
	return all
}

func (c *modules) dir(m *linkedModule) (string, error) {
	if m.path == standard {
		return c.goroot, nil
	}
	escaped, err := module.EscapePath(m.path)
	if err != nil {
		return "", err
	}
	version, err := module.EscapeVersion(m.version)
	return filepath.Join(c.cache, filepath.FromSlash(escaped)+"@"+version), err
}

// escaped is a path as the module proxy has it: capital letters are written otherwise. The path was read from an executable, so it is a valid one.
func escaped(modulePath string) string {
	text, err := module.EscapePath(modulePath)
	if err != nil {
		return modulePath
	}
	return text
}

var (
	licenceName = regexp.MustCompile(`(?i)^(un)?(licen[cs]e|copying)([-._].*)?$`)
	noticeName  = regexp.MustCompile(`(?i)^(notice|patents|copyright)([-._].*)?$`)
	// unlinked are folders with nothing in them that is linked.
	unlinked = regexp.MustCompile(`^(testdata|vendor|[._].*)$`)
)

func isLicence(file string) bool { return licenceName.MatchString(path.Base(file)) }

// licencesBelow are the licences of a module, and the notices that have to go with copies of it. Folders have licences of their own where their code came from elsewhere.
func licencesBelow(dir string) ([]licenceFile, error) {
	var found []licenceFile
	err := fs.WalkDir(os.DirFS(dir), ".", func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && file != "." && (unlinked.MatchString(d.Name()) || (isGoroot(dir) && file != "src" && !strings.HasPrefix(file, "src/"))):
			return fs.SkipDir
		case !d.Type().IsRegular() || filepath.Ext(file) == ".go" || (!isLicence(file) && !noticeName.MatchString(d.Name())):
			return nil
		}
		content, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(file)))
		found = append(found, licenceFile{path: file, content: bytes.ReplaceAll(content, []byte("\r\n"), []byte("\n"))})
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: build first, which fetches it", err)
	}
	return found, err
}

func isGoroot(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "src", "runtime"))
	return err == nil
}

// licenceTexts is the file that goes with every copy of the executables: each text once, with the modules whose it is.
func licenceTexts(linked []*linkedModule) []byte {
	var order [][sha256.Size]byte
	texts := map[[sha256.Size]byte][]byte{}
	owners := map[[sha256.Size]byte][]string{}
	for _, m := range linked {
		for _, f := range m.licences {
			text := bytes.TrimSpace(f.content)
			sum := sha256.Sum256(text)
			if _, ok := texts[sum]; !ok {
				order, texts[sum] = append(order, sum), text
			}
			owners[sum] = append(owners[sum], m.path+"@"+m.version+" "+f.path)
		}
	}
	var b bytes.Buffer
	b.WriteString("The executables contain code of these modules, under the licences that follow. A module's source is at https://proxy.golang.org/MODULE/@v/VERSION.zip,\nthat of " + standard +
		" (Go's standard library) at https://go.dev/dl/.\n")
	for _, sum := range order {
		b.WriteString("\n" + strings.Repeat("=", 80) + "\n")
		for _, owner := range owners[sum] {
			b.WriteString(owner + "\n")
		}
		b.WriteString(strings.Repeat("-", 80) + "\n\n")
		b.Write(texts[sum])
		b.WriteString("\n")
	}
	return b.Bytes()
}
