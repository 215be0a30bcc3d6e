package main

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"debug/elf"
	"debug/pe"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
)

// program is a built executable.
type program struct {
	path    string // in the archive
	content []byte
	info    *buildinfo.BuildInfo
}

// setting is what an executable says that it was built with, or empty.
func (p *program) setting(key string) string {
	for _, s := range p.info.Settings {
		if s.Key == key {
			return s.Value
		}
	}
	return ""
}

// command is the name of the package that was built.
func (p *program) command() string { return path.Base(p.info.Path) }

// wanted are the settings with which a release is built; those with an empty value are the platform's. An executable that says anything else was built with flags or variables of somebody's
// own, and nobody else would get the same. None says its -ldflags (Go leaves them out under -trimpath: https://go.dev/issue/52372), so that the Makefile refuses whoever sets others.
var wanted = map[string]string{
	"-buildmode": "exe", "-compiler": "gc", "-tags": "grpcnotrace", "-trimpath": "true", "CGO_ENABLED": "0", "GOOS": "", "GOARCH": "", "GOAMD64": "v1", "GOARM64": "v8.0", "DefaultGODEBUG": "",
}

// readPrograms reads the executables below a folder, sorted by path, and refuses those that could not be built again from the commit alone.
func readPrograms(ctx context.Context, built, repo string) ([]*program, error) {
	places, err := localPaths(ctx, built, repo)
	if err != nil {
		return nil, err
	}
	var programs []*program
	err = fs.WalkDir(os.DirFS(built), ".", func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Type() == fs.ModeSymlink {
			return err
		}
		p, err := readProgram(filepath.Join(built, filepath.FromSlash(file)))
		if err != nil {
			return err
		}
		for _, place := range places {
			if bytes.Contains(p.content, []byte(place)) {
				return fmt.Errorf("%s: holds the path %s of this machine: build it with -trimpath", file, place)
			}
		}
		p.path = path.Join("bin", file)
		programs = append(programs, p)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(programs) == 0 {
		return nil, fmt.Errorf("%s: has no executables: run `make build OUT=%s` first", built, built)
	}
	first := programs[0]
	for _, p := range programs {
		if p.setting("GOOS") != first.setting("GOOS") || p.setting("GOARCH") != first.setting("GOARCH") || p.info.GoVersion != first.info.GoVersion {
			return nil, fmt.Errorf("%s and %s: are of different platforms, or built by different versions of Go: empty %s and build again", first.path, p.path, built)
		}
	}
	return programs, nil
}

// readLinks are the other names of executables, as links of the archive's, sorted by path.
func readLinks(built string) ([]entry, error) {
	var links []entry
	err := filepath.WalkDir(built, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.Type() != fs.ModeSymlink {
			return err
		}
		target, err := os.Readlink(file)
		if err != nil {
			return err
		}
		if target != filepath.Base(target) {
			return fmt.Errorf("%s: leads to %s, and an archive's links lead to what is beside them", file, target)
		}
		name, err := filepath.Rel(built, file)
		links = append(links, entry{path: path.Join("bin", filepath.ToSlash(name)), mode: fs.ModeSymlink | 0o777, content: []byte(target)})
		return err
	})
	return links, err
}

func readProgram(file string) (*program, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	info, err := buildinfo.Read(bytes.NewReader(content))
	if err != nil {
		return nil, fmt.Errorf("%s: what it was built from: %w", file, err)
	}
	if info.Main.Path != project {
		return nil, fmt.Errorf("%s: its main module is %s, not %s", file, info.Main.Path, project)
	}
	for _, s := range info.Settings {
		value, known := wanted[s.Key]
		if !known || (value != "" && s.Value != value) {
			return nil, fmt.Errorf("%s: was built with %s=%s: unset what brought that about (`go env -changed`), and use `make release`", file, s.Key, s.Value)
		}
	}
	if !slices.ContainsFunc(info.Settings, func(s debug.BuildSetting) bool { return s.Key == "-trimpath" }) {
		return nil, fmt.Errorf("%s: was built without -trimpath: use `make release`", file)
	}
	return &program{content: content, info: info}, nil
}

// holds says whether a variable of the executable is this text, as the linker's -X leaves it: its address and its length stand somewhere. The text itself may be there for another reason:
// dependencies have versions, too, which stand in the build information and in constants.
func (p *program) holds(text string) (bool, error) {
	segments, err := segmentsOf(p.content)
	if err != nil {
		return false, fmt.Errorf("%s: %w", p.path, err)
	}
	for _, s := range segments {
		within := p.content[min(s.offset, uint64(len(p.content))):min(s.offset+s.size, uint64(len(p.content)))]
		for at := 0; ; at++ {
			next := bytes.Index(within[at:], []byte(text))
			if next < 0 {
				break
			}
			at += next
			header := binary.LittleEndian.AppendUint64(nil, s.address+uint64(at))
			if bytes.Contains(p.content, binary.LittleEndian.AppendUint64(header, uint64(len(text)))) {
				return true, nil
			}
		}
	}
	return false, nil
}

// segment is a part of an executable that is loaded to an address.
type segment struct{ offset, size, address uint64 }

// segmentsOf reads them of the formats that are released, whose machines are all 64 bits wide and little-endian.
func segmentsOf(content []byte) (segments []segment, err error) {
	if file, err := elf.NewFile(bytes.NewReader(content)); err == nil {
		for _, p := range file.Progs {
			if p.Type == elf.PT_LOAD {
				segments = append(segments, segment{p.Off, p.Filesz, p.Vaddr})
			}
		}
		return segments, nil
	}
	file, err := pe.NewFile(bytes.NewReader(content))
	if err != nil {
		return nil, errors.New("is neither an ELF nor a PE file, and nothing else is released")
	}
	header, ok := file.OptionalHeader.(*pe.OptionalHeader64)
	if !ok {
		return nil, errors.New("is no PE file of 64 bits, and nothing else is released")
	}
	for _, s := range file.Sections {
		segments = append(segments, segment{uint64(s.Offset), uint64(s.Size), header.ImageBase + uint64(s.VirtualAddress)})
	}
	return segments, nil
}

// localPaths are the folders of this machine whose names no executable may hold. A folder just below the root says nothing: its name may well occur.
func localPaths(ctx context.Context, places ...string) ([]string, error) {
	told, err := output(ctx, "go", "env", "GOPATH", "GOMODCACHE", "GOCACHE", "GOROOT")
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, place := range append(places, strings.Fields(string(told))...) {
		absolute, err := filepath.Abs(place)
		if err != nil {
			return nil, err
		}
		if strings.Count(filepath.ToSlash(absolute), "/") > 1 {
			paths = append(paths, absolute)
		}
	}
	if len(paths) == 0 {
		return nil, errors.New("no path of this machine is long enough to be looked for in the executables")
	}
	return paths, nil
}
