package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// logPattern finds what the agent logs.
var logPattern = regexp.MustCompile(`\.(?:Info|Warn|Error)(?:Context)?\((?:ctx, )?"([^"]+)"`)

// agentsCode are the files whose log lines are the agent's, or of those who ask it.
var agentsCode = []string{
	"broker/agent/*.go", "broker/agent/cache/*.go", "broker/agent/metrics/*.go", "broker/plugin/caller/*.go", "cmd/credential-broker/agent.go",
	"cmd/credential-broker/autostart_unix.go", "cmd/credential-broker/plugin.go",
}

func TestTheAgentsPageHasEveryLineOfItsLog(t *testing.T) {
	doc := readDocument(t, "docs/agent.md")
	found := 0
	for _, pattern := range agentsCode {
		for _, match := range logPattern.FindAllStringSubmatch(codeOf(t, pattern), -1) {
			if match[1] == "request" { // docs/errors.md has the outcomes
				continue
			}
			found++
			if !strings.Contains(doc, "`"+match[1]+"`") {
				t.Errorf("docs/agent.md does not explain the log's %q", match[1])
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d lines were found: has the way of logging changed?", found)
	}
}

func TestTheAgentsPageHasEveryReasonNotToUseIt(t *testing.T) {
	doc := readDocument(t, "docs/agent.md")
	var reasons []string
	for _, file := range []string{"broker/agent/fast/ask_linux.go", "broker/agent/fast/frame.go"} {
		reasons = append(reasons, sentencesOf(t, file)...)
	}
	if len(reasons) < 30 {
		t.Errorf("only %d texts were found: has the way of saying why changed?", len(reasons))
	}
	for _, reason := range reasons {
		if !strings.Contains(doc, reason) {
			t.Errorf("docs/agent.md does not explain the reason %q", reason)
		}
	}
}

// A code span of the first column is what the program says, with "…" for what varies.
func TestTheAgentsPageExplainsNothingThatIsNotSaid(t *testing.T) {
	code, err := goCode()
	if err != nil {
		t.Fatal(err)
	}
	_, troubleshooting, ok := strings.Cut(readDocument(t, "docs/agent.md"), "\n## Troubleshooting\n")
	if !ok {
		t.Fatal("docs/agent.md has no troubleshooting")
	}
	for line := range strings.Lines(troubleshooting) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 {
			continue
		}
		for _, span := range codeSpan.FindAllString(cells[1], -1) {
			for part := range strings.SplitSeq(strings.Trim(span, "`"), "…") {
				if part = strings.Trim(part, " :,()"); part != "" && !strings.Contains(code, part) {
					t.Errorf("docs/agent.md explains %s, and the code has no %q", span, part)
				}
			}
		}
	}
}

// sentencesOf are the strings of a Go file that have more than one word.
func sentencesOf(t *testing.T, file string) []string {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join(repo, file), nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var sentences []string
	ast.Inspect(parsed, func(node ast.Node) bool {
		if literal, ok := node.(*ast.BasicLit); ok && literal.Kind == token.STRING {
			if text, err := strconv.Unquote(literal.Value); err == nil && strings.Contains(strings.Trim(text, " :,()"), " ") {
				sentences = append(sentences, strings.Trim(text, " :,()"))
			}
		}
		return true
	})
	return sentences
}

func readDocument(t *testing.T, doc string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(repo, doc))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// codeOf is the Go code of the files that a pattern names, without tests and comments.
func codeOf(t *testing.T, pattern string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(repo, pattern))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files %s: %v", pattern, err)
	}
	var all strings.Builder
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(content)) {
			line, _, _ = strings.Cut(line, "//")
			all.WriteString(strings.TrimSuffix(line, "\n") + "\n")
		}
	}
	return all.String()
}

var promised = regexp.MustCompile("`(Test[A-Z]\\w+|Fuzz[A-Z]\\w+)`")

func TestEveryTestThatThePromisesNameIsThere(t *testing.T) {
	tests := map[string]bool{}
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	err := filepath.WalkDir(repo, func(path string, entry os.DirEntry, err error) error {
		if err == nil && entry.IsDir() && strings.HasPrefix(entry.Name(), ".") && path != repo {
			return filepath.SkipDir
		}
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		content, err := os.ReadFile(path) //nolint:gosec // this repository's own files
		for _, match := range function.FindAllStringSubmatch(string(content), -1) {
			tests[match[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	names := promised.FindAllStringSubmatch(readDocument(t, "SECURITY.md"), -1)
	if len(names) < 30 {
		t.Errorf("only %d tests were found in SECURITY.md", len(names))
	}
	for _, name := range names {
		if !tests[name[1]] {
			t.Errorf("SECURITY.md names %s, and there is no such test", name[1])
		}
	}
}

func TestSystemdTakesTheUnits(t *testing.T) {
	verify, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Log("NOT RUN: systemd-analyze is not installed")
		return
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "credential-broker")
	if err := os.Link(filepath.Join(bin, "credential-broker"), program); err != nil {
		t.Fatal(err)
	}
	units, err := filepath.Glob(filepath.Join(repo, "examples/systemd/credential-broker.*"))
	if err != nil || len(units) != 2 {
		t.Fatalf("units %s, %v", units, err)
	}
	args := []string{"verify"}
	for _, unit := range units {
		text := readDocument(t, "examples/systemd/"+filepath.Base(unit))
		// It looks whether the program is there.
		text = strings.ReplaceAll(text, "/usr/libexec/credential-broker/credential-broker", program)
		unit = filepath.Join(dir, filepath.Base(unit))
		if err := os.WriteFile(unit, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, unit)
	}
	out, err := exec.Command(verify, args...).CombinedOutput()
	if err != nil {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, dir) { // an unknown setting is a warning to it; of the machine's other units it may warn as it likes
			t.Errorf("systemd-analyze verify: %s", line)
		}
	}
}

// ProtectClock= is among them: until systemd 253 it implied DeviceAllow=char-rtc, and that a closed policy for all other devices, https://github.com/systemd/systemd/issues/18142.
func TestTheUnitLeavesATPMToBackends(t *testing.T) {
	shut := regexp.MustCompile(`(?m)^(?:PrivateDevices|DevicePolicy|DeviceAllow|ProtectClock)=.*$`)
	for _, setting := range shut.FindAllString(readDocument(t, "examples/systemd/credential-broker.service"), -1) {
		t.Errorf("%s takes devices away from backends", setting)
	}
	if !strings.Contains(readDocument(t, "docs/agent.md"), "devices for keys in a TPM") {
		t.Error("docs/agent.md does not say that the unit leaves devices open")
	}
}

func TestEveryRunbookOfAnAlertIsThere(t *testing.T) {
	page := filepath.Join(repo, "docs/agent.md")
	anchors := regexp.MustCompile(`docs/agent\.md#([\w-]+)`).FindAllStringSubmatch(readDocument(t, "examples/prometheus/alerts.yaml"), -1)
	if len(anchors) == 0 {
		t.Error("no alert leads to docs/agent.md")
	}
	for _, anchor := range anchors {
		if !hasHeading(t, page, anchor[1]) {
			t.Errorf("an alert leads to docs/agent.md#%s, and there is no such heading", anchor[1])
		}
	}
}
