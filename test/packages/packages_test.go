// Package packages holds what the packages contain to what is built, without building them: `make package-test` does that. It needs the executables that `make build` puts into bin/.
package packages

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const root = "../.."

func TestEveryBuiltProgramIsInThePackages(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "tools/package/nfpm.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var packaged struct {
		Contents []struct{ Src, Dst string }
	}
	if err := yaml.Unmarshal(text, &packaged); err != nil {
		t.Fatal(err)
	}
	built := 0
	for _, pattern := range []string{"bin/*", "bin/backends/*"} {
		programs, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, program := range programs {
			if info, err := os.Stat(program); err != nil || info.IsDir() {
				continue
			}
			if filepath.Base(program) == "credential-broker-installer" {
				continue // the DaemonSet's, which does what a package does
			}
			built++
			name := strings.TrimPrefix(filepath.ToSlash(program), root+"/bin/")
			found := false
			for _, content := range packaged.Contents {
				if ok, _ := path.Match(content.Src, name); ok && strings.HasPrefix(content.Dst, "/usr/libexec/credential-broker/") {
					found = true
				}
				found = found || content.Dst == "/usr/libexec/credential-broker/"+name // a link
			}
			if !found {
				t.Errorf("tools/package/nfpm.yaml has nothing for bin/%s: add a line to contents", name)
			}
		}
	}
	if built == 0 {
		t.Error("nothing is built: make build")
	}
}

func TestEveryCommandHasAManualPage(t *testing.T) {
	program := filepath.Join(root, "bin/credential-broker")
	description, err := exec.Command(program, "manual").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	pages := exec.Command("go", "run", "./package/manual", "-version", "1.2.3", "-date", "1700000000", dir)
	pages.Dir, pages.Stdin = filepath.Join(root, "tools"), bytes.NewReader(description)
	if output, err := pages.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	var described struct {
		Commands []struct{ Use, Short string }
	}
	if err := json.Unmarshal(description, &described); err != nil {
		t.Fatal(err)
	}
	if len(described.Commands) < 5 {
		t.Errorf("only %d commands are described", len(described.Commands))
	}
	for _, command := range described.Commands {
		name, _, _ := strings.Cut(command.Use, " ")
		page, err := os.ReadFile(filepath.Join(dir, "credential-broker-"+name+".8"))
		if err != nil {
			t.Error(err)
		} else if !bytes.Contains(page, []byte(`"Nov 2023" "credential-broker 1.2.3"`)) {
			t.Errorf("the page of %s is not dated by what it was told: %.200s", name, page)
		}
	}
}

func TestUnitsAreWhatSystemdTakes(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("no systemd-analyze here")
	}
	dir := t.TempDir()
	program, err := filepath.Abs(filepath.Join(root, "bin/credential-broker"))
	if err != nil {
		t.Fatal(err)
	}
	for _, unit := range []string{"credential-broker.service", "credential-broker.socket"} {
		text, err := os.ReadFile(filepath.Join(root, "examples/systemd", unit))
		if err != nil {
			t.Fatal(err)
		}
		text = bytes.ReplaceAll(text, []byte("/usr/libexec/credential-broker/credential-broker"), []byte(program)) // which has to exist
		if err := os.WriteFile(filepath.Join(dir, unit), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	output, err := exec.Command(analyze, "verify", "--man=no", filepath.Join(dir, "credential-broker.service"), filepath.Join(dir, "credential-broker.socket")).CombinedOutput()
	for line := range strings.Lines(string(output)) {
		if strings.Contains(line, dir) || strings.HasPrefix(line, "credential-broker.") {
			t.Error(line)
		}
	}
	if err != nil {
		t.Errorf("%v\n%s", err, output)
	}
}
