package docs

import (
	"bytes"
	"fmt"
	"os"
	"strings"
)

// block is a fenced block of a document, or a hidden piece of shell.
type block struct {
	doc    string // relative to the repository
	line   int    // of the block's first line
	lang   string
	attrs  map[string]string
	text   string
	hidden bool
}

func (b block) at() string { return fmt.Sprintf("%s:%d", b.doc, b.line) }

func (b block) has(attr string) bool { _, ok := b.attrs[attr]; return ok }

const (
	fence      = "```"
	hiddenMark = "<!-- run"
)

// blocksOf reads the blocks of one document.
func blocksOf(doc, path string) ([]block, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var blocks []block
	var open *block
	var indent, end string
	number := 0
	for line := range strings.Lines(string(content)) {
		number++
		line = strings.TrimSuffix(line, "\n")
		trimmed := strings.TrimLeft(line, " ")
		switch {
		case open != nil && strings.TrimSpace(line) == end:
			blocks, open = append(blocks, *open), nil
		case open != nil:
			open.text += strings.TrimPrefix(line, indent) + "\n"
		case strings.HasPrefix(trimmed, fence):
			indent, end = line[:len(line)-len(trimmed)], fence
			open = &block{doc: doc, line: number + 1}
			if open.lang, open.attrs, err = info(strings.TrimPrefix(trimmed, fence)); err != nil {
				return nil, fmt.Errorf("%s:%d: %w", doc, number, err)
			}
		case trimmed == hiddenMark:
			indent, end = "", "-->"
			open = &block{doc: doc, line: number + 1, lang: "sh", hidden: true}
		}
	}
	if open != nil {
		return nil, fmt.Errorf("%s: the block does not end", open.at())
	}
	return blocks, nil
}

// info reads what stands behind the fence: a language and attributes, whose values may be in quotes.
func info(text string) (lang string, attrs map[string]string, err error) {
	lang, rest, _ := strings.Cut(strings.TrimSpace(text), " ")
	if lang == "" {
		return "", nil, fmt.Errorf("a block without a language: say what it is (text, if it is nothing else)")
	}
	attrs = map[string]string{}
	for rest = strings.TrimSpace(rest); rest != ""; rest = strings.TrimSpace(rest) {
		end := strings.IndexAny(rest, " =")
		if end < 0 || rest[end] == ' ' {
			name, more, _ := strings.Cut(rest, " ")
			attrs[name], rest = "", more
			continue
		}
		name, value := rest[:end], rest[end+1:]
		if quoted, ok := strings.CutPrefix(value, `"`); ok {
			if value, rest, ok = strings.Cut(quoted, `"`); !ok {
				return "", nil, fmt.Errorf("%s: a quote is not closed", name)
			}
		} else {
			value, rest, _ = strings.Cut(value, " ")
		}
		attrs[name] = value
	}
	for name := range attrs {
		switch name {
		case "file", "mode", "in-code", "wrong", "printed", "norun":
		default:
			return "", nil, fmt.Errorf("a block says %q, which means nothing", name)
		}
	}
	if why, ok := attrs["norun"]; ok && why == "" {
		return "", nil, fmt.Errorf(`norun="…" says why`)
	}
	return lang, attrs, nil
}

// command is one command of a console block, and what it is to print.
type command struct {
	line int
	text string
	want []string
}

// commandsOf takes a console or sh block apart.
func commandsOf(b block) ([]command, error) {
	if b.lang == "sh" {
		return []command{{line: b.line, text: b.text}}, nil
	}
	var commands []command
	for i, line := range strings.Split(strings.TrimSuffix(b.text, "\n"), "\n") {
		if text, ok := strings.CutPrefix(line, "$ "); ok {
			commands = append(commands, command{line: b.line + i, text: text})
			continue
		}
		if len(commands) == 0 {
			return nil, fmt.Errorf("%s:%d: output before the first command", b.doc, b.line+i)
		}
		last := &commands[len(commands)-1]
		if more, ok := strings.CutPrefix(line, "> "); ok && len(last.want) == 0 {
			last.text += "\n" + more
			continue
		}
		last.want = append(last.want, line)
	}
	return commands, nil
}

// sameOutput says whether what was printed is what the document shows.
func sameOutput(want []string, got string) bool {
	var lines []string
	if got = strings.TrimRight(got, "\n"); got != "" {
		lines = strings.Split(got, "\n")
	}
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " \r")
	}
	return sameLines(trimBlank(want), trimBlank(lines))
}

func trimBlank(lines []string) []string {
	for len(lines) > 0 && strings.TrimSpace(lines[len(lines)-1]) == "" {
		lines = lines[:len(lines)-1]
	}
	return lines
}

func sameLines(want, got []string) bool {
	switch {
	case len(want) == 0:
		return len(got) == 0
	case strings.TrimSpace(want[0]) == "...":
		for i := 0; i <= len(got); i++ {
			if sameLines(want[1:], got[i:]) {
				return true
			}
		}
		return false
	case len(got) == 0:
		return false
	}
	return sameLine(want[0], got[0]) && sameLines(want[1:], got[1:])
}

// sameLine compares with "..." for any text, and runs of spaces as one.
func sameLine(want, got string) bool {
	want, got = squeeze(want), squeeze(got)
	parts := strings.Split(want, "...")
	if len(parts) == 1 {
		return want == got
	}
	got, ok := strings.CutPrefix(got, parts[0])
	if !ok {
		return false
	}
	for _, part := range parts[1 : len(parts)-1] {
		i := strings.Index(got, part)
		if i < 0 {
			return false
		}
		got = got[i+len(part):]
	}
	return strings.HasSuffix(got, parts[len(parts)-1])
}

func squeeze(s string) string { return strings.Join(strings.Fields(s), " ") }

// withoutSpace is code without comments and space, to see whether one text contains another.
func withoutSpace(code string) string {
	var out bytes.Buffer
	for line := range strings.Lines(code) {
		line, _, _ = strings.Cut(line, "//")
		out.WriteString(strings.Join(strings.Fields(line), ""))
	}
	return out.String()
}
