package docs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSameOutput(t *testing.T) {
	tests := []struct {
		name, want, got string
		same            bool
	}{
		{"equal lines are the same", "a\nb", "a\nb\n", true},
		{"runs of spaces count as one", "a  b", "a b\n", true},
		{"a missing line is not the same", "a\nb", "a\n", false},
		{"an additional line is not the same", "a", "a\nb\n", false},
		{"no output is not the same as some", "", "a\n", false},
		{"dots on a line of their own stand for any lines", "a\n...\nd", "a\nb\nc\nd\n", true},
		{"dots on a line of their own stand for no line too", "a\n...\nd", "a\nd\n", true},
		{"what follows the dots must come", "a\n...\nd", "a\nb\n", false},
		{"dots in a line stand for any text", "took ... ms, pid ...", "took 12 ms, pid 99\n", true},
		{"the text around the dots must be there", "took ... ms", "took 12 s\n", false},
		{"the end of a line with dots must be there", "... ms", "took 12 ms or so\n", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var want []string
			if tt.want != "" {
				want = strings.Split(tt.want, "\n")
			}
			if got := sameOutput(want, tt.got); got != tt.same {
				t.Errorf("got %v for %q against %q", got, tt.want, tt.got)
			}
		})
	}
}

func TestBlocksOf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.md")
	const text = "# A\n\n<!-- run\ntouch x\n-->\n\n```console norun=\"needs root\" file=a\n$ a\n```\n\n- in a list:\n  ```json\n  {}\n  ```\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	blocks, err := blocksOf("a.md", path)
	if err != nil {
		t.Fatal(err)
	}
	if len(blocks) != 3 || !blocks[0].hidden || blocks[0].text != "touch x\n" || blocks[1].attrs["norun"] != "needs root" || blocks[1].attrs["file"] != "a" ||
		blocks[2].text != "{}\n" || blocks[2].line != 13 {
		t.Errorf("got %+v", blocks)
	}
	for name, wrong := range map[string]string{
		"a block without a language": "```\nx\n```\n",
		"a block that does not end":  "```text\nx\n",
		"an attribute that is none":  "```text colour=red\n```\n",
		"a norun without a reason":   "```sh norun\n```\n",
	} {
		if err := os.WriteFile(path, []byte(wrong), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := blocksOf("a.md", path); err == nil {
			t.Errorf("%s passes", name)
		}
	}
}

func TestCommandsOf(t *testing.T) {
	commands, err := commandsOf(block{lang: "console", line: 7, text: "$ cat <<E\n> x\n> E\nx\n$ true\n"})
	if err != nil || len(commands) != 2 || commands[0].text != "cat <<E\nx\nE" || commands[0].want[0] != "x" || commands[1].line != 11 {
		t.Errorf("got %+v, %v", commands, err)
	}
	if _, err := commandsOf(block{lang: "console", text: "x\n$ true\n"}); err == nil {
		t.Error("output before the first command passes")
	}
}

func TestSandbox(t *testing.T) {
	s := newSandbox(t, repo, bin)
	for _, step := range []struct {
		command, output string
		status          int
	}{
		{"echo x >/etc/x; cat /etc/x; echo '/etc/x'", "x\n/etc/x\n", 0},
		{"sh -c 'echo out; echo err >&2; exit 3'", "out\nerr\n", 3},
		{"echo $?", "3\n", 0},
		{"cd / && cd - >/dev/null; v=1", "", 0},
		{`echo "$v"; printf 'no newline'`, "1\nno newline", 0},
		{"cat; echo 'it''s'", "its\n", 0},
	} {
		output, status, err := s.run(step.command)
		if err != nil || status != step.status || output != step.output {
			t.Errorf("%s: got %q, status %d, %v; want %q, status %d", step.command, output, status, err, step.output, step.status)
		}
	}
}
