package docs

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/format"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/kubelet"
)

var (
	repository = flag.String("repo", "../..", "the repository, with bin/ built")
	verbose    = flag.Bool("show", false, "print every command with its output")
)

// repo is the repository, bin a private copy of its bin/: the broker refuses files that others can write, and a clone may lie anywhere.
var repo, bin string

// counts is what was done, for the line at the end.
var counts = struct {
	sync.Mutex
	documents, blocks, commands, configurations, links int
	notRun                                             []string
}{}

func count(add *int, n int) {
	counts.Lock()
	defer counts.Unlock()
	*add += n
}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var err error
	if repo, err = filepath.Abs(*repository); err == nil {
		bin, err = copyBin(filepath.Join(repo, "bin"))
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%v: run `make build` first\n", err)
		return 1
	}
	defer func() { _ = os.RemoveAll(bin) }()
	status := m.Run()
	fmt.Printf("%d documents, %d blocks, %d commands run, %d configurations loaded, %d links followed, %d blocks not run\n",
		counts.documents, counts.blocks, counts.commands, counts.configurations, counts.links, len(counts.notRun))
	slices.Sort(counts.notRun)
	for _, why := range counts.notRun {
		fmt.Println("  not run:", why)
	}
	return status
}

func copyBin(from string) (string, error) {
	if _, err := os.Stat(filepath.Join(from, "credential-broker")); err != nil {
		return "", err
	}
	to, err := os.MkdirTemp("", "credential-broker-docs-")
	if err != nil {
		return "", err
	}
	if to, err = filepath.EvalSymlinks(to); err != nil {
		return "", err
	}
	return to, os.CopyFS(to, os.DirFS(from))
}

// documents are the paths of all documents, relative to the repository.
func documents(t *testing.T) []string {
	t.Helper()
	var found []string
	for _, pattern := range []string{"README.md", "CONTRIBUTING.md", "SECURITY.md"} {
		if _, err := os.Stat(filepath.Join(repo, pattern)); err == nil {
			found = append(found, pattern)
		}
	}
	for _, dir := range []string{"docs", "examples"} {
		err := filepath.WalkDir(filepath.Join(repo, dir), func(path string, _ fs.DirEntry, err error) error {
			if err == nil && filepath.Ext(path) == ".md" {
				path, err = filepath.Rel(repo, path)
				found = append(found, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(found)
	return found
}

func TestDocuments(t *testing.T) {
	all := documents(t)
	if len(all) < 10 {
		t.Errorf("only %d documents were found: %s", len(all), all)
	}
	for _, doc := range all {
		t.Run(doc, func(t *testing.T) {
			t.Parallel()
			blocks, err := blocksOf(doc, filepath.Join(repo, doc))
			if err != nil {
				t.Fatal(err)
			}
			count(&counts.documents, 1)
			count(&counts.blocks, len(blocks))
			runDocument(t, doc, blocks)
		})
	}
}

func runDocument(t *testing.T, doc string, blocks []block) {
	s := newSandbox(t, repo, bin)
	if needsVault(doc) {
		s.addVault(t)
	}
	for _, b := range blocks {
		if why, ok := b.attrs["norun"]; ok {
			t.Logf("NOT RUN: %s: %s", b.at(), why)
			counts.Lock()
			counts.notRun = append(counts.notRun, b.at()+": "+why)
			counts.Unlock()
			if b.lang == "console" || b.lang == "sh" {
				continue
			}
		}
		if err := check(s, b); err != nil {
			t.Errorf("%s: %v", b.at(), err)
		}
		if b.has("file") {
			if err := s.write(b); err != nil {
				t.Fatalf("%s: %v", b.at(), err)
			}
		}
		if b.lang == "console" || b.lang == "sh" {
			runBlock(t, s, b)
		}
	}
}

func runBlock(t *testing.T, s *sandbox, b block) {
	commands, err := commandsOf(b)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range commands {
		output, status, err := s.run(c.text)
		if err != nil {
			t.Fatalf("%s:%d: %s: %v\n%s", b.doc, c.line, c.text, err, output)
		}
		if *verbose {
			fmt.Printf("── %s:%d $ %s\n%s", b.doc, c.line, c.text, output)
		}
		if !b.hidden {
			count(&counts.commands, 1)
		}
		statusShown := i+1 < len(commands) && commands[i+1].text == "echo $?"
		switch {
		case status != 0 && !statusShown:
			t.Errorf("%s:%d: %s\nexited with %d:\n%s", b.doc, c.line, c.text, status, output)
		case b.lang == "console" && !sameOutput(c.want, output):
			t.Errorf("%s:%d: %s\nprinted\n%s\nThe document shows\n%s", b.doc, c.line, c.text, output, strings.Join(c.want, "\n"))
		}
	}
}

// check looks at a block that is no command.
func check(s *sandbox, b block) error {
	switch b.lang {
	case "console", "sh", "hcl":
		return nil
	case "yaml":
		return checkYAML(s, b)
	case "json":
		return checkJSON(b)
	case "go":
		return checkGo(b)
	case "protobuf":
		return checkProtobuf(b)
	case "text":
		if b.has("in-code") {
			return checkInCode(b)
		}
		return nil
	default:
		return fmt.Errorf("the language %q means nothing here: see the package's documentation", b.lang)
	}
}

func checkYAML(s *sandbox, b block) error {
	kind, err := kindOf(b.text)
	if err != nil {
		return err
	}
	switch kind {
	case config.Kind:
		count(&counts.configurations, 1)
		err := loadBroker(s, b.text)
		if b.has("wrong") {
			if err == nil {
				return errors.New("this is shown as wrong, and is right")
			}
			return nil
		}
		return err
	case "CredentialProviderConfig":
		count(&counts.configurations, 1)
		if _, err := kubelet.ParseConfig(b.at(), []byte(b.text)); err != nil || !b.has("printed") {
			return err
		}
		return checkPrinted(s, b.text)
	}
	return nil
}

// kindOf reads all documents of a YAML text, and gives the kind of the first; empty for a fragment.
func kindOf(text string) (kind string, err error) {
	decoder := yaml.NewDecoder(strings.NewReader(text))
	for first := true; ; first = false {
		var document any
		if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
			return kind, nil
		} else if err != nil {
			return "", err
		}
		if fields, ok := document.(map[string]any); ok && first {
			kind, _ = fields["kind"].(string)
		}
	}
}

// checkPrinted compares with what kubelet-config prints now, comments aside.
func checkPrinted(s *sandbox, text string) error {
	output, status, err := s.run("credential-broker kubelet-config")
	if err != nil || status != 0 {
		return fmt.Errorf("credential-broker kubelet-config: status %d, %w\n%s", status, err, output)
	}
	if want, got := withoutComments(text), withoutComments(output); want != got {
		return fmt.Errorf("credential-broker kubelet-config prints\n%s\nThe document shows\n%s", got, want)
	}
	return nil
}

func withoutComments(yaml string) string {
	var out strings.Builder
	for line := range strings.Lines(yaml) {
		if line, _, _ = strings.Cut(strings.TrimSuffix(line, "\n"), "#"); strings.TrimSpace(line) != "" {
			out.WriteString(strings.TrimRight(line, " ") + "\n")
		}
	}
	return out.String()
}

// loadBroker loads a configuration and, if all its backends are there, lets them judge their settings.
func loadBroker(s *sandbox, text string) error {
	path := filepath.Join(s.root, "loaded.yaml")
	if err := os.WriteFile(path, []byte(s.inside(text)), 0o600); err != nil {
		return err
	}
	cfg, err := config.Load(path)
	if err != nil {
		return errors.New(s.outside(err.Error()))
	}
	for _, p := range cfg.Providers {
		if err := s.provide(p.Config); err != nil {
			return err
		}
	}
	if !allInstalled(cfg) {
		return nil
	}
	if cfg.BackendDir != "" {
		if _, err := os.Stat(cfg.BackendDir); err != nil {
			return fmt.Errorf("backendDir: %w", err)
		}
	}
	validate := exec.Command(filepath.Join(bin, "credential-broker"), "validate", "--config", path)
	validate.Dir = filepath.Join(s.root, "work")
	if out, err := validate.CombinedOutput(); err != nil {
		return fmt.Errorf("credential-broker validate: %w\n%s", err, s.outside(string(out)))
	}
	return nil
}

func allInstalled(cfg *config.Config) bool {
	for _, p := range cfg.Providers {
		if _, err := os.Stat(filepath.Join(bin, "backends", "credential-backend-"+p.Backend)); err != nil {
			return false
		}
	}
	return true
}

func checkJSON(b block) error {
	var common struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
	}
	if err := json.Unmarshal([]byte(b.text), &common); err != nil {
		return err
	}
	switch common.Kind {
	case "CredentialProviderRequest":
		_, _, err := kubelet.ReadRequest([]byte(b.text))
		return err
	case "CredentialProviderResponse":
		_, err := kubelet.DecodeResponse(common.APIVersion, []byte(b.text))
		return err
	case "CredentialProviderConfig":
		_, err := kubelet.ParseConfig(b.at(), []byte(b.text))
		return err
	}
	return nil
}

func checkGo(b block) error {
	text := b.text
	if whole := strings.HasPrefix(strings.TrimLeft(text, "\n"), "package ") || strings.Contains(text, "\npackage "); whole {
		if !b.has("file") {
			return errors.New("a whole file needs file=PATH, and a console block that builds it")
		}
		formatted, err := format.Source([]byte(text))
		if err == nil && !bytes.Equal(bytes.TrimSpace(formatted), []byte(strings.TrimSpace(text))) {
			err = errors.New("not as gofmt has it")
		}
		return err
	}
	_, asDeclarations := parser.ParseFile(token.NewFileSet(), b.at(), "package p\n"+text, 0)
	if asDeclarations == nil {
		return nil
	}
	_, err := parser.ParseFile(token.NewFileSet(), b.at(), "package p\nfunc f() {\n"+text+"\n}", 0)
	return err
}

func checkProtobuf(b block) error {
	proto, err := os.ReadFile(filepath.Join(repo, "proto/backend/v1/backend.proto"))
	if err == nil && !strings.Contains(withoutSpace(string(proto)), withoutSpace(b.text)) {
		err = errors.New("this does not occur so in proto/backend/v1/backend.proto")
	}
	return err
}

// goCode is all Go code of the product, as one text without the marks between the pieces of a string.
var goCode = sync.OnceValues(func() (string, error) {
	var all strings.Builder
	for _, dir := range []string{"backends", "broker", "cmd", "proto"} {
		err := filepath.WalkDir(filepath.Join(repo, dir), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return err
			}
			content, err := os.ReadFile(path)
			all.Write(content)
			return err
		})
		if err != nil {
			return "", err
		}
	}
	text := regexp.MustCompile("[\"`] ?\\+\\s*[\"`]").ReplaceAllString(all.String(), "")
	return strings.ReplaceAll(text, `\"`, `"`), nil
})

func checkInCode(b block) error {
	code, err := goCode()
	if err != nil {
		return err
	}
	var missing []error
	for line := range strings.Lines(b.text) {
		for part := range strings.SplitSeq(strings.TrimSpace(line), "...") {
			if part = strings.TrimSpace(part); !strings.Contains(code, part) {
				missing = append(missing, fmt.Errorf("the code does not have %q", part))
			}
		}
	}
	return errors.Join(missing...)
}

var (
	linkPattern = regexp.MustCompile(`\]\(([^)\s]+)\)|(?:src|href)="([^"]+)"`)
	codeSpan    = regexp.MustCompile("`[^`\n]*`")
)

func TestLinksLeadSomewhere(t *testing.T) {
	for _, doc := range documents(t) {
		content, err := os.ReadFile(filepath.Join(repo, doc))
		if err != nil {
			t.Fatal(err)
		}
		for _, match := range linkPattern.FindAllStringSubmatch(codeSpan.ReplaceAllString(prose(string(content)), ""), -1) {
			link := match[1] + match[2]
			if strings.Contains(link, "://") || strings.HasPrefix(link, "mailto:") {
				continue
			}
			count(&counts.links, 1)
			path, anchor, _ := strings.Cut(link, "#")
			target := filepath.Join(repo, filepath.Dir(doc), path)
			if path == "" {
				target = filepath.Join(repo, doc)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: link to %s: %v", doc, link, err)
				continue
			}
			if anchor != "" && filepath.Ext(target) == ".md" && !hasHeading(t, target, anchor) {
				t.Errorf("%s: link to %s: there is no such heading", doc, link)
			}
		}
	}
}

// prose is a document without its blocks.
func prose(text string) string {
	var out strings.Builder
	inside := false
	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimLeft(line, " "), fence) {
			inside = !inside
			continue
		}
		if !inside {
			out.WriteString(line)
		}
	}
	return out.String()
}

// hasHeading says whether a document has a heading that GitHub gives this anchor.
func hasHeading(t *testing.T, path, anchor string) bool {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(prose(string(content))) {
		if heading := strings.TrimLeft(line, "#"); heading != line && strings.HasPrefix(heading, " ") && anchorOf(heading) == anchor {
			return true
		}
	}
	return false
}

func anchorOf(heading string) string {
	var out strings.Builder
	for _, r := range strings.ToLower(strings.TrimSpace(heading)) {
		switch {
		case r == ' ':
			out.WriteByte('-')
		case r == '-' || r == '_' || r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r > 0x7f:
			out.WriteRune(r)
		}
	}
	return out.String()
}

// fieldPattern finds the settings that broker/config decodes: {"name", d.string(…)} and the like.
var fieldPattern = regexp.MustCompile(`\{"([a-z][A-Za-z0-9]+)", (?:d\.|oneOf|func|side)`)

func TestConfigureNamesEveryFieldOfTheConfiguration(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join(repo, "docs/configure.md"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(repo, "broker/config/*.go"))
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]bool{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		code, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, match := range fieldPattern.FindAllStringSubmatch(string(code), -1) {
			fields[match[1]] = true
		}
	}
	if len(fields) < 25 {
		t.Errorf("only %d fields were found in broker/config: has its way of naming them changed?", len(fields))
	}
	for field := range fields {
		if !regexp.MustCompile("`([a-zA-Z]+\\.)?" + field + "`").Match(doc) {
			t.Errorf("docs/configure.md has no `%s`", field)
		}
	}
}

func TestArchitectureListsEveryDecision(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join(repo, "docs/architecture.md"))
	if err != nil {
		t.Fatal(err)
	}
	decisions, err := filepath.Glob(filepath.Join(repo, "docs/decisions/*.md"))
	if err != nil || len(decisions) == 0 {
		t.Fatalf("no decisions were found: %v", err)
	}
	for _, path := range decisions {
		if !strings.Contains(string(doc), "(decisions/"+filepath.Base(path)+")") {
			t.Errorf("docs/architecture.md does not link to decisions/%s", filepath.Base(path))
		}
	}
}

// TestEveryPlatformIsListedAndSaysWhatWasTried: and who names one of the kubelet's two flags in a block names the other too, since neither does anything alone.
func TestEveryPlatformIsListedAndSaysWhatWasTried(t *testing.T) {
	index, err := os.ReadFile(filepath.Join(repo, "docs/platforms.md"))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob(filepath.Join(repo, "docs/platforms/*.md"))
	if err != nil || len(pages) == 0 {
		t.Fatalf("no platforms were found: %v", err)
	}
	for _, path := range pages {
		name := "platforms/" + filepath.Base(path)
		if !strings.Contains(string(index), "("+name+")") {
			t.Errorf("docs/platforms.md does not link to %s", name)
		}
		page, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(page), "\n## What was tried\n") {
			t.Errorf("docs/%s does not say what was tried", name)
		}
		for i, part := range strings.Split(string(page), "```") {
			if i%2 == 1 && strings.Contains(part, "image-credential-provider-config:") != strings.Contains(part, "image-credential-provider-bin-dir:") ||
				i%2 == 1 && strings.Contains(part, "image-credential-provider-config=") != strings.Contains(part, "image-credential-provider-bin-dir=") {
				t.Errorf("docs/%s: only one of the two flags in the block%s", name, part)
			}
		}
	}
}

var update = flag.Bool("update", false, "write examples/kubelet anew")

func TestExamples(t *testing.T) {
	configurations, err := filepath.Glob(filepath.Join(repo, "examples/broker/*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if len(configurations) < 3 {
		t.Errorf("only %d configurations were found", len(configurations))
	}
	for _, path := range configurations {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			s := newSandbox(t, repo, bin)
			content, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			b := block{doc: path, line: 1, lang: "yaml", text: string(content), attrs: map[string]string{"file": "/etc/credential-broker/config.yaml"}}
			if err := check(s, b); err != nil {
				t.Fatal(err)
			}
			if err := s.write(b); err != nil {
				t.Fatal(err)
			}
			got, status, err := s.run("credential-broker kubelet-config")
			if err != nil || status != 0 {
				t.Fatalf("kubelet-config: status %d, %v\n%s", status, err, got)
			}
			entry := filepath.Join(repo, "examples/kubelet", filepath.Base(path))
			if *update {
				if err := os.WriteFile(entry, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(entry)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("kubelet-config prints\n%s\n%s has\n%s\nRun this test with -update if the former is right", got, entry, want)
			}
			if _, err := kubelet.ParseConfig(entry, want); err != nil {
				t.Error(err)
			}
		})
	}
}
