package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Bounds of one file.
const (
	maxFileSize = 1 << 20 // bytes
	maxDepth    = 64      // of values in values, aliases followed
)

// nodeKind is what a node of the document is.
type nodeKind uint8

const (
	nullNode nodeKind = iota
	boolNode
	numberNode
	stringNode
	listNode
	mapNode
)

// node is one value of the document, with its place. The tree says what the configuration needs of YAML and no more, so that decoding knows nothing of YAML.
type node struct {
	kind         nodeKind
	line, column int
	// text is a string's value, a number as it was written, "true" or "false".
	text string
	// json is a number as JSON writes it; empty for one that cannot be said in JSON or that YAML readers disagree on.
	json    string
	items   []*node
	entries []entry
	// bad says why this value cannot be used whatever is expected here; reported where its path is known.
	bad string
	// height is how deep values are nested in this one.
	height int
}

// entry is one key of a mapping with its value.
type entry struct {
	name         string
	line, column int
	value        *node
	bad          string
}

// child is the value of a field, nil if there is none.
func (n *node) child(name string) *node {
	for i := range n.entries {
		if n.entries[i].name == name {
			return n.entries[i].value
		}
	}
	return nil
}

// unset says whether a field is missing or has no value.
func (n *node) unset(name string) bool {
	v := n.child(name)
	return v == nil || v.kind == nullNode && v.bad == ""
}

// parse reads the one document of a file, with the successor of the kubelet's own YAML library: it takes time linear in the file's length, and a text means here what it
// means to the kubelet. A file that is no document at all gives a Problem without path.
func parse(file string, data []byte) (root *node, problem *Problem) {
	wrong := func(line, column int, format string, args ...any) (*node, *Problem) {
		return nil, &Problem{File: file, Line: max(line, 1), Column: column, Message: fmt.Sprintf(format, args...)}
	}
	if len(data) > maxFileSize {
		return wrong(1, 0, "the file is larger than %d bytes; a directory can hold the providers in several files", maxFileSize)
	}
	if bytes.HasPrefix(data, []byte("\xff\xfe")) || bytes.HasPrefix(data, []byte("\xfe\xff")) {
		return wrong(1, 0, "the file is UTF-16; save it as UTF-8")
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	data = bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n"))
	if line, what := badText(data); line > 0 {
		return wrong(line, 0, "%s", what)
	}
	if text := bytes.TrimSpace(data); bytes.HasPrefix(text, []byte("{")) && bytes.IndexByte(text, '\\') >= 0 && json.Valid(text) {
		data = plainEscapes(data)
	}
	documents, err := parseYAML(data)
	if err != nil {
		line, message := describe(err, data)
		if strings.Contains(message, "cannot start any token") && indentedWithTab(data, line) {
			return wrong(line, 0, "a tab indents this line, which YAML does not allow; use spaces")
		}
		return wrong(line, 0, "%s", message)
	}
	switch len(documents) {
	case 0:
		return wrong(1, 0, "the file is empty; a configuration begins with \"apiVersion: %s\" and \"kind: %s\"", APIVersion, Kind)
	case 1:
		c := converter{done: map[*yaml.Node]*node{}}
		return c.convert(documents[0]), nil
	}
	return wrong(documents[1].Line, documents[1].Column, "a second document begins here; one file holds one document, a directory holds several files")
}

// parseYAML gives the first two documents that are not empty. A panic of the library, which a broken file should not but might cause, becomes an error.
func parseYAML(data []byte) (documents []*yaml.Node, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the YAML library gives up on this file (%v)", r)
		}
	}()
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	for len(documents) < 2 {
		var document yaml.Node
		if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		if body := document.Content[0]; body.Kind != yaml.ScalarNode || body.Value != "" || body.Style != 0 {
			documents = append(documents, body)
		}
	}
	return documents, nil
}

// describe takes the library's error apart: "yaml: line 3: message", or without a line in the first one. Where its parser complains, rather than its scanner, it counts
// lines from zero. It names no line for an unknown anchor.
func describe(err error, data []byte) (line int, message string) {
	message = strings.TrimPrefix(err.Error(), "yaml: ")
	line = 1
	if rest, ok := strings.CutPrefix(message, "line "); ok {
		if number, text, ok := strings.Cut(rest, ": "); ok {
			if n, err := strconv.Atoi(number); err == nil {
				line, message = n, text
				for _, ours := range []string{"key", "'-' indicator", "',' or ']'", "',' or '}'", "node content", "<document start>"} {
					if message == "did not find expected "+ours {
						line++
					}
				}
			}
		}
	}
	if rest, ok := strings.CutPrefix(message, "unknown anchor '"); ok {
		name, _, _ := strings.Cut(rest, "'")
		if at := bytes.Index(data, []byte("*"+name)); at >= 0 {
			line = bytes.Count(data[:at], []byte("\n")) + 1
		}
		message = fmt.Sprintf("alias *%s has no anchor &%s before it; define the anchor first, or write the value out", name, name)
	} else {
		message = "not YAML: " + message + "; look at this line and the next ones"
	}
	return min(line, bytes.Count(bytes.TrimRight(data, "\n"), []byte("\n"))+1), message
}

// badText finds the first line that is not text. YAML allows of the control characters only tab, line feed and carriage return; old YAML takes the last three
// for ends of lines, which JSON does not.
func badText(data []byte) (line int, what string) {
	line = 1
	for i := 0; i < len(data); {
		r, size := rune(data[i]), 1
		if r >= utf8.RuneSelf {
			r, size = utf8.DecodeRune(data[i:])
		}
		switch {
		case r == utf8.RuneError && size == 1:
			return line, fmt.Sprintf("byte 0x%02x is not UTF-8; save the file as UTF-8", data[i])
		case r == '\n':
			line++
		case r == '\r':
			return line, "a carriage return stands without a line feed; save the file with plain ends of lines"
		case r < ' ' && r != '\t', 0x7f <= r && r < 0xa0, r == 0xfeff, r == 0xfffe, r == 0xffff, r == 0x2028, r == 0x2029:
			return line, fmt.Sprintf("character U+%04X cannot stand in a configuration; in double quotes write \\u%04x", r, r)
		}
		i += size
	}
	return 0, ""
}

// plainEscapes writes out the two escapes of JSON that the YAML library does not know: a slash, and a character in two halves. The data is JSON.
func plainEscapes(data []byte) []byte {
	out := make([]byte, 0, len(data))
	half := func(i int) rune {
		if i+6 > len(data) || data[i] != '\\' || data[i+1] != 'u' {
			return 0
		}
		v, _ := strconv.ParseUint(string(data[i+2:i+6]), 16, 16)
		return rune(v)
	}
	for i := 0; i < len(data); {
		if data[i] != '\\' {
			out = append(out, data[i])
			i++
			continue
		}
		whole := utf16.DecodeRune(half(i), half(i+6))
		switch {
		case whole != utf8.RuneError:
			out = utf8.AppendRune(out, whole)
			i += len(`\ud800\udc00`)
		case data[i+1] == '/':
			out = append(out, '/')
			i += 2
		default: // a backslash and what it escapes, perhaps a backslash
			out = append(out, data[i], data[i+1])
			i += 2
		}
	}
	return out
}

func indentedWithTab(data []byte, line int) bool {
	lines := bytes.SplitN(data, []byte("\n"), line+1)
	if len(lines) < line {
		return false
	}
	text := lines[line-1]
	return bytes.ContainsRune(text[:len(text)-len(bytes.TrimLeft(text, " \t"))], '\t')
}

// converter makes our tree of the library's. Aliases share the tree of their anchor, so converting costs no more than the file is long.
type converter struct {
	done map[*yaml.Node]*node // what has an anchor, once it is complete
}

func (c *converter) convert(n *yaml.Node) *node {
	if n.Kind == yaml.AliasNode {
		return c.alias(n)
	}
	out := &node{line: n.Line, column: n.Column}
	switch {
	case n.Style&yaml.TaggedStyle != 0:
		out.bad = fmt.Sprintf("tag %s is not read; leave it out, and put a string in quotes", n.Tag)
	case n.Kind == yaml.ScalarNode && n.Style&^yaml.FlowStyle != 0: // quoted or a block
		out.kind, out.text = stringNode, n.Value
	case n.Kind == yaml.ScalarNode:
		out.plain(n.Value)
	case n.Kind == yaml.SequenceNode:
		out.kind = listNode
		out.items = make([]*node, 0, len(n.Content))
		for _, v := range n.Content {
			item := c.convert(v)
			out.items = append(out.items, item)
			out.height = max(out.height, item.height+1)
		}
	case n.Kind == yaml.MappingNode:
		c.mapping(out, n)
	default:
		out.bad = "this kind of YAML value is not read; write a string, a number, true or false, a list or a mapping"
	}
	if out.height > maxDepth {
		// The values around this one count it as flat, so that it is named and they are not.
		out.height, out.bad = 0, fmt.Sprintf("values are nested more than %d deep; no setting needs that", maxDepth)
	}
	if n.Anchor != "" {
		c.done[n] = out
	}
	return out
}

// alias gives the anchor's value the place of the alias.
func (c *converter) alias(n *yaml.Node) *node {
	target, ok := c.done[n.Alias]
	if !ok {
		return &node{line: n.Line, column: n.Column, bad: fmt.Sprintf("alias *%s stands inside its own anchor; write the value out", n.Value)}
	}
	out := *target
	out.line, out.column = n.Line, n.Column
	return &out
}

func (c *converter) mapping(out *node, n *yaml.Node) {
	out.kind = mapNode
	out.entries = make([]entry, 0, len(n.Content)/2)
	var lines map[string]int
	if len(n.Content) > 32 {
		lines = make(map[string]int, len(n.Content)/2)
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		key := c.convert(k)
		e := entry{name: key.text, line: key.line, column: key.column}
		first := firstLine(out.entries, lines, e.name)
		switch {
		case k.Kind == yaml.ScalarNode && k.Style == 0 && k.Value == "<<":
			e.bad = "merge keys are not read; write the fields out, or use an alias for a whole value"
		case key.kind != stringNode || key.bad != "":
			e.name = k.Value
			e.bad = "a key must be a string; put it in quotes"
		case first > 0:
			e.bad = fmt.Sprintf("the field stands twice, first in line %d; keep one", first)
		}
		e.value = c.convert(n.Content[i+1])
		out.height = max(out.height, e.value.height+1)
		if lines != nil && lines[e.name] == 0 {
			lines[e.name] = e.line
		}
		out.entries = append(out.entries, e)
	}
}

func firstLine(entries []entry, lines map[string]int, name string) int {
	if lines != nil {
		return lines[name]
	}
	for i := range entries {
		if entries[i].name == name {
			return entries[i].line
		}
	}
	return 0
}

// plain tells what an unquoted scalar is, by the core schema of YAML 1.2: "yes", "on" and dates are strings. Numbers keep their digits. Those that YAML readers disagree on
// (0777 is 511, 777 or a string; 1_000 is 1000 or a string) get no json.
func (n *node) plain(s string) {
	n.kind, n.text = stringNode, s
	switch s {
	case "", "~", "null", "Null", "NULL":
		n.kind = nullNode
		return
	case "true", "True", "TRUE", "false", "False", "FALSE":
		n.kind, n.text = boolNode, strings.ToLower(s)
		return
	}
	if c := s[0]; (c < '0' || '9' < c) && c != '-' && c != '+' && c != '.' {
		return
	}
	if n.json = jsonNumber(s); n.json != "" {
		n.kind = numberNode
		return
	}
	digits := strings.TrimLeft(s, "+-")
	switch strings.ToLower(digits) {
	case ".inf", ".nan":
		n.kind = numberNode
		return
	}
	if digits == "" || digits[0] < '0' || '9' < digits[0] {
		return
	}
	if bare := strings.ReplaceAll(digits, "_", ""); jsonNumber(bare) != "" || jsonNumber("1"+strings.TrimLeft(bare, "0")) != "" && bare[0] == '0' {
		n.kind = numberNode
	}
}

// jsonNumber is the number as JSON writes it, every digit kept; empty if it is none or may be more than one.
func jsonNumber(s string) string {
	if isJSONNumber(s) {
		return s
	}
	sign, digits := "", strings.TrimPrefix(s, "+")
	if rest, ok := strings.CutPrefix(s, "-"); ok {
		sign, digits = "-", rest
	}
	if len(digits) > 2 && digits[0] == '0' && strings.IndexByte("xob", digits[1]) >= 0 && !strings.ContainsAny(digits[2:], "_+-") {
		if v, ok := new(big.Int).SetString(digits, 0); ok {
			return sign + v.String()
		}
		return ""
	}
	if strings.HasPrefix(digits, ".") {
		digits = "0" + digits
	}
	if i := strings.IndexByte(digits, '.'); i > 0 && (i+1 == len(digits) || digits[i+1] == 'e' || digits[i+1] == 'E') {
		digits = digits[:i+1] + "0" + digits[i+1:]
	}
	if strings.HasPrefix(digits, "-") || !isJSONNumber(digits) {
		return ""
	}
	return sign + digits
}

// isJSONNumber says whether the text is a number by RFC 8259.
func isJSONNumber(s string) bool {
	s = strings.TrimPrefix(s, "-")
	digits := func() bool {
		n := 0
		for n < len(s) && '0' <= s[n] && s[n] <= '9' {
			n++
		}
		s = s[n:]
		return n > 0
	}
	if rest, ok := strings.CutPrefix(s, "0"); ok {
		s = rest
	} else if !digits() {
		return false
	}
	if rest, ok := strings.CutPrefix(s, "."); ok {
		s = rest
		if !digits() {
			return false
		}
	}
	if s != "" && (s[0] == 'e' || s[0] == 'E') {
		s = s[1:]
		if s != "" && (s[0] == '+' || s[0] == '-') {
			s = s[1:]
		}
		if !digits() {
			return false
		}
	}
	return s == ""
}
