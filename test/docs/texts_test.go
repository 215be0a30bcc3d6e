package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"
)

// garCheck are the files of the check of Google's registries.
var garCheck = []string{"check.go", "member.go", "program.go"}

// acrCheck is that of Azure's.
var acrCheck = []string{"check.go"}

// vaultCheck is that of Vault.
var vaultCheck = []string{"check.go"}

// errorTables are the documents that say what every error of a package means.
var errorTables = []struct {
	doc string
	// heading is that of the section with the tables, and least how many texts there are at least.
	heading string
	least   int
	// packages have no text that the table lacks.
	packages []string
	// others have texts that the table may have too.
	others []string
	// only are the files that count; without are those whose texts have a place of their own.
	only, without []string
}{
	{
		doc: "docs/backends/gar.md", heading: "## What every error means", least: 60, packages: []string{"backends/gar", "backends/internal/files", "backends/internal/kept", "backends/internal/remote"}, others: []string{"proto/trust", "backends/child"},
		without: garCheck,
	},
	{doc: "docs/backends/gar.md", heading: "### What a check says", least: 20, packages: []string{"backends/gar"}, others: []string{"backends/internal/beside"}, only: garCheck},
	{
		doc: "docs/backends/acr.md", heading: "## What every error means", least: 60, packages: []string{"backends/acr", "backends/internal/files", "backends/internal/kept", "backends/internal/remote", "backends/internal/settings"},
		others: []string{"backends/webidentity"}, without: acrCheck,
	},
	{doc: "docs/backends/acr.md", heading: "### What a check says", least: 10, packages: []string{"backends/acr"}, only: acrCheck},
	{
		doc: "docs/backends/vault.md", heading: "## What every error means", least: 100,
		packages: []string{"backends/vault", "backends/internal/authkey", "backends/internal/files", "backends/internal/kept", "backends/internal/remote", "backends/internal/settings"},
		others:   []string{"backends/webidentity", "backends/webidentity/awsprogram", "backends/dockerconfig"}, without: vaultCheck,
	},
	{doc: "docs/backends/vault.md", heading: "### What a check says", least: 3, packages: []string{"backends/vault"}, only: vaultCheck},
}

// TestTablesHaveEveryError: what a table of errors says stands in the code, and what the code says stands in the table, where it has three words: fewer are a name, or part of a text.
func TestTablesHaveEveryError(t *testing.T) {
	for _, table := range errorTables {
		content, err := os.ReadFile(filepath.Join(repo, table.doc))
		if err != nil {
			t.Fatal(err)
		}
		known := tableTexts(string(content), table.heading)
		own, foreign := codeTexts(t, table.packages, table.only, table.without), codeTexts(t, table.others, nil, nil)
		if len(known) < table.least || len(own) < table.least {
			t.Fatalf("%s, %s: only %d texts in the table and %d in the code were found", table.doc, table.heading, len(known), len(own))
		}
		for _, text := range known {
			if !slices.ContainsFunc(append(foreign, own...), func(code string) bool { return strings.Contains(code, text) }) {
				t.Errorf("%s: the code does not say %q", table.doc, text)
			}
		}
		for _, code := range own {
			if words(code) > 2 && !slices.ContainsFunc(known, func(text string) bool { return len(text) > 10 && strings.Contains(code, text) }) {
				t.Errorf("%s: the table has nothing of %q", table.doc, code)
			}
		}
	}
}

// words is how many a text has, besides what is put into it.
func words(code string) (n int) {
	for word := range strings.FieldsSeq(verb.ReplaceAllString(code, "")) {
		if strings.ContainsFunc(word, unicode.IsLetter) {
			n++
		}
	}
	return n
}

var verb = regexp.MustCompile(`%[a-z]`)

// tableTexts are the texts in the first columns of the tables below a heading, in pieces between what differs.
func tableTexts(doc, heading string) []string {
	_, rest, _ := strings.Cut(doc, "\n"+heading+"\n")
	section, _, _ := strings.Cut(rest, "\n## ")
	var all []string
	for line := range strings.Lines(section) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 || !strings.HasPrefix(line, "| `") {
			continue
		}
		for _, span := range codeSpan.FindAllString(cells[1], -1) {
			for piece := range strings.SplitSeq(strings.Trim(span, "`"), "…") {
				if piece = strings.Trim(piece, " :,;"); len(piece) > 3 {
					all = append(all, piece)
				}
			}
		}
	}
	return all
}

// codeTexts are the texts of packages' code that somebody may get to read, as strings are written there; neither those for the log and for traces nor those that are looked for.
func codeTexts(t *testing.T, packages, only, without []string) []string {
	t.Helper()
	var all []string
	for _, dir := range packages {
		files, err := filepath.Glob(filepath.Join(repo, dir, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no code in %s: %v", dir, err)
		}
		for _, path := range files {
			if only != nil && !slices.Contains(only, filepath.Base(path)) || slices.Contains(without, filepath.Base(path)) || strings.HasSuffix(path, "_test.go") {
				continue
			}
			parsed, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			var collect func(ast.Node) bool
			collect = func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.CallExpr:
					called, _ := n.Fun.(*ast.SelectorExpr)
					return called == nil || !isNamed(called.X, "slog") && !isNamed(called.X, "strings") && called.Sel.Name != "Span"
				case *ast.ValueSpec: // words of others, by which an answer is known
					return !slices.ContainsFunc(n.Names, func(name *ast.Ident) bool { return name.Name == "phrases" })
				case *ast.Field: // its tag is none
					ast.Inspect(n.Type, collect)
					return false
				case *ast.BasicLit:
					text, err := strconv.Unquote(n.Value)
					if n.Kind == token.STRING && err == nil {
						all = append(all, text)
					}
				}
				return true
			}
			ast.Inspect(parsed, collect)
		}
	}
	return all
}

func isNamed(e ast.Expr, name string) bool {
	ident, ok := e.(*ast.Ident)
	return ok && ident.Name == name
}
