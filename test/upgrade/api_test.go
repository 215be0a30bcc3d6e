//go:build linux

package upgrade

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/exp/apidiff"
	"golang.org/x/tools/go/packages"
)

const module = "github.com/credential-broker/credential-broker/"

// promised are the packages whose Go API stays (docs/upgrade.md), and with it what they mention of others.
var promised = []string{module + "backends", module + "backends/backendtest"}

func TestTheGoAPIOfEveryReleaseIsThere(t *testing.T) {
	releases, err := filepath.Glob("testdata/v*/go")
	if err != nil || len(releases) == 0 {
		t.Fatalf("no release's API is kept: %v", err)
	}
	for _, dir := range releases {
		t.Run(filepath.Base(filepath.Dir(dir)), func(t *testing.T) {
			if kept, err := os.ReadDir(dir); err == nil && len(kept) == 0 && *update {
				freeze(t, dir)
			}
			was, is := keptAPI(t, dir)
			for _, path := range promised {
				if was[path] == nil {
					t.Errorf("%s: nothing of %s is kept", dir, path)
				}
			}
			for _, path := range slices.Sorted(maps.Keys(was)) {
				for _, change := range lost(was[path], is[path]) {
					t.Errorf("%s: %s", path, change)
				}
			}
		})
	}
}

// The comparison itself: what may be added, and what must not go.
func TestWhatIsLostOfAnAPI(t *testing.T) {
	const before = "package p; import `context`; type Options struct { Image string }; type Backend interface { Do(context.Context) error }; func Serve[C any](name string, build func(C) Backend) {}; const Kind int = 1"
	imports := todays(t, "context")
	for name, tt := range map[string]struct{ from, to, want string }{
		"the same":                     {"", "", ""},
		"another field":                {"Image string", "Image string; Later int", ""},
		"another function":             {"const", "func Later() {}; const", ""},
		"an optional interface":        {"const", "type Closer interface { Close() error }; const", ""},
		"a function that is gone":      {"func Serve", "func serve", "Serve: removed"},
		"another parameter":            {"name string", "name, version string", "Serve: changed"},
		"a field that is gone":         {"Image string", "", "Options.Image: removed"},
		"a field of another type":      {"Image string", "Image []string", "Options.Image: changed"},
		"a method that others have to": {"Do(", "Later(); Do(", "Backend.Later: added"},
		"another value":                {"= 1", "= 2", "Kind: value changed"},
	} {
		t.Run(name, func(t *testing.T) {
			check := func(source string) *types.Package {
				fset := token.NewFileSet()
				file, err := parser.ParseFile(fset, "p.go", source, 0)
				if err != nil {
					t.Fatal(err)
				}
				pkg, err := (&types.Config{Importer: imports}).Check("example.com/p", fset, []*ast.File{file}, nil)
				if err != nil {
					t.Fatal(err)
				}
				return pkg
			}
			got := strings.Join(lost(check(before), check(strings.Replace(before, tt.from, tt.to, 1))), "\n")
			if (tt.want == "") != (got == "") || !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// lost says what of an API is another's no longer.
func lost(was, is *types.Package) []string {
	var all []string
	for _, change := range apidiff.Changes(was, is).Changes {
		if !change.Compatible {
			all = append(all, change.Message)
		}
	}
	return all
}

// loaded are packages of today by path.
type loaded map[string]*types.Package

func (l loaded) Import(path string) (*types.Package, error) {
	if pkg := l[path]; pkg != nil {
		return pkg, nil
	}
	return nil, fmt.Errorf("there is no package %s", path)
}

// todays loads packages as the main module has them.
func todays(t *testing.T, paths ...string) loaded {
	t.Helper()
	found, err := packages.Load(&packages.Config{Mode: packages.NeedName | packages.NeedTypes, Context: t.Context(), Dir: "../.."}, paths...)
	if err != nil {
		t.Fatal(err)
	}
	all := loaded{}
	for _, pkg := range found {
		if len(pkg.Errors) != 0 {
			t.Fatalf("%s: %v", pkg.PkgPath, pkg.Errors)
		}
		all[pkg.PkgPath] = pkg.Types
	}
	return all
}

// keptAPI reads what freeze wrote, and gives it with today's packages of the same paths.
func keptAPI(t *testing.T, dir string) (was, is loaded) {
	t.Helper()
	fset, files, imports := token.NewFileSet(), map[string]*ast.File{}, []string{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		file, err := parser.ParseFile(fset, filepath.Join(dir, name), nil, 0)
		if err != nil {
			return err
		}
		files[module+strings.TrimSuffix(name, ".go")] = file
		for _, spec := range file.Imports {
			path, _ := strconv.Unquote(spec.Path.Value)
			imports = append(imports, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	is = todays(t, slices.AppendSeq(imports, maps.Keys(files))...)
	was = loaded{}
	importer := importing(nil)
	importer = func(path string) (*types.Package, error) {
		file := files[path]
		if file == nil {
			return is.Import(path)
		}
		if was[path] == nil {
			// Its path is today's, so that types of other packages are known by their names.
			pkg, err := (&types.Config{Importer: importer, IgnoreFuncBodies: true}).Check(path, fset, []*ast.File{file}, nil)
			if err != nil {
				return nil, err
			}
			was[path] = pkg
		}
		return was[path], nil
	}
	for path := range files {
		if _, err := importer(path); err != nil {
			t.Fatal(err)
		}
	}
	return was, is
}

type importing func(string) (*types.Package, error)

func (f importing) Import(path string) (*types.Package, error) { return f(path) }

// freeze writes today's API as Go without bodies, a file for each package.
func freeze(t *testing.T, dir string) {
	t.Helper()
	now := todays(t, promised...)
	listing := &listing{declared: map[string]map[string]string{}, imports: map[string]map[string]bool{}, names: map[string]string{}}
	for _, path := range promised {
		scope := now[path].Scope()
		for _, name := range scope.Names() {
			if obj := scope.Lookup(name); obj.Exported() {
				listing.add(obj)
			}
		}
	}
	for path, declared := range listing.declared {
		var b bytes.Buffer
		fmt.Fprintf(&b, "// The API of the release whose folder this is: what is declared here stays. It has been written by `go test -update`, and never changes.\npackage %s\n\n", listing.names[path])
		if used := slices.Sorted(maps.Keys(listing.imports[path])); len(used) != 0 {
			fmt.Fprintf(&b, "import (\n%s)\n", "\t\""+strings.Join(used, "\"\n\t\"")+"\"\n")
		}
		for _, name := range slices.Sorted(maps.Keys(declared)) {
			b.WriteString("\n" + declared[name])
		}
		text, err := format.Source(b.Bytes())
		if err != nil {
			t.Fatalf("%v\n%s", err, b.Bytes())
		}
		file := filepath.Join(dir, filepath.FromSlash(strings.TrimPrefix(path, module))+".go")
		if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// listing is an API in the making: declarations by package and name.
type listing struct {
	declared map[string]map[string]string
	imports  map[string]map[string]bool
	names    map[string]string // of packages
}

// add declares an object, and whatever type of this module it mentions.
func (l *listing) add(obj types.Object) {
	path := obj.Pkg().Path()
	if l.declared[path] == nil {
		l.declared[path], l.imports[path], l.names[path] = map[string]string{}, map[string]bool{}, obj.Pkg().Name()
	}
	if l.declared[path][obj.Name()] != "" {
		return
	}
	l.declared[path][obj.Name()] = "…" // a type that mentions itself ends here
	// The printer of types asks for the name of each package of which it prints a type.
	qualifier := func(other *types.Package) string {
		if other == obj.Pkg() {
			return ""
		}
		l.imports[path][other.Path()] = true
		return other.Name()
	}
	text := func(typ types.Type) string {
		l.mentioned(typ)
		return types.TypeString(typ, qualifier)
	}
	signature := func(f *types.Func) string {
		l.mentioned(f.Type())
		var b bytes.Buffer
		types.WriteSignature(&b, f.Signature(), qualifier)
		return f.Name() + b.String() + " { panic(0) }\n"
	}
	var b strings.Builder
	switch obj := obj.(type) {
	case *types.Const:
		typ := text(obj.Type())
		if strings.HasPrefix(typ, "untyped ") {
			typ = ""
		}
		fmt.Fprintf(&b, "const %s %s = %s\n", obj.Name(), typ, obj.Val().ExactString())
	case *types.Var:
		fmt.Fprintf(&b, "var %s %s\n", obj.Name(), text(obj.Type()))
	case *types.Func:
		b.WriteString("func " + signature(obj))
	case *types.TypeName:
		if alias, ok := obj.Type().(*types.Alias); ok {
			fmt.Fprintf(&b, "type %s = %s\n", obj.Name(), text(alias.Rhs()))
			break
		}
		named := obj.Type().(*types.Named) //nolint:forcetypeassert // a type that is declared is an alias or this
		if named.TypeParams().Len() != 0 {
			panic("a type with parameters is not provided for: " + obj.Name())
		}
		fmt.Fprintf(&b, "type %s %s\n", obj.Name(), text(named.Underlying()))
		for m := range named.Methods() {
			if m.Exported() {
				fmt.Fprintf(&b, "\nfunc (%s) %s", text(m.Signature().Recv().Type()), signature(m))
			}
		}
	}
	l.declared[path][obj.Name()] = b.String()
}

// mentioned adds the types of this module of which a type is made.
func (l *listing) mentioned(typ types.Type) {
	switch typ := typ.(type) {
	case *types.Named:
		for arg := range typ.TypeArgs().Types() {
			l.mentioned(arg)
		}
		if pkg := typ.Obj().Pkg(); pkg != nil && strings.HasPrefix(pkg.Path(), module) {
			l.add(typ.Obj())
		}
	case *types.Alias:
		if pkg := typ.Obj().Pkg(); pkg != nil && strings.HasPrefix(pkg.Path(), module) {
			l.add(typ.Obj())
		}
	case *types.Signature:
		l.mentioned(typ.Params())
		l.mentioned(typ.Results())
		for p := range typ.TypeParams().TypeParams() {
			l.mentioned(p.Constraint())
		}
	case *types.Tuple:
		for v := range typ.Variables() {
			l.mentioned(v.Type())
		}
	case *types.Struct:
		for f := range typ.Fields() {
			l.mentioned(f.Type())
		}
	case *types.Interface:
		for m := range typ.Methods() {
			l.mentioned(m.Type())
		}
	case *types.Map:
		l.mentioned(typ.Key())
		l.mentioned(typ.Elem())
	case interface{ Elem() types.Type }: // pointers, lists, channels
		l.mentioned(typ.Elem())
	}
}
