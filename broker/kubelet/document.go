package kubelet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Bounds of a configuration file of the kubelet's: its size in bytes, how many values it has once its aliases are followed, how deep it is nested.
const (
	maxDocumentSize = 1 << 20
	maxValues       = 1 << 17
	maxDepth        = 100
)

// kind is what a value is to the kubelet, in words for a message.
type kind string

const (
	null    kind = "null"
	boolean kind = "a boolean"
	number  kind = "a number"
	text    kind = "a string"
	list    kind = "a list"
	mapping kind = "a mapping"
)

// node is one value of a YAML or JSON document, with the line it stands on.
type node struct {
	kind   kind
	line   int
	text   string // of a string; "true" or "false" of a boolean
	items  []*node
	fields []field
}

type field struct {
	name  string
	line  int
	value *node
}

func (n *node) field(name string) *field {
	for i := range n.fields {
		if n.fields[i].name == name {
			return &n.fields[i]
		}
	}
	return nil
}

// syntaxError is why a document cannot be read at all.
type syntaxError struct {
	line int
	text string
}

func (e *syntaxError) Error() string { return fmt.Sprintf("line %d: %s", e.line, e.text) }

func syntaxErrorf(line int, format string, args ...any) error {
	return &syntaxError{line: line, text: fmt.Sprintf(format, args...)}
}

// parseDocument reads JSON where the kubelet does, in what begins with a brace, and YAML otherwise.
func parseDocument(data []byte) (*node, error) {
	if len(data) > maxDocumentSize {
		return nil, syntaxErrorf(1, "the file has more than %d bytes", maxDocumentSize)
	}
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		return parseJSON(data)
	}
	return parseYAML(data)
}

// jsonReader reads token by token, so as to know the lines and to see fields that stand twice.
type jsonReader struct {
	data []byte
	*json.Decoder
}

func parseJSON(data []byte) (*node, error) {
	r := &jsonReader{data: data, Decoder: json.NewDecoder(bytes.NewReader(data))}
	r.UseNumber()
	n, err := r.value(0)
	if err != nil {
		return nil, err
	}
	if _, err := r.Token(); !errors.Is(err, io.EOF) {
		return nil, syntaxErrorf(r.line(), "something follows the JSON")
	}
	return n, nil
}

func (r *jsonReader) line() int { return lineAt(r.data, r.InputOffset()) }

func lineAt(data []byte, offset int64) int {
	return 1 + bytes.Count(data[:min(offset, int64(len(data)))], []byte("\n"))
}

func (r *jsonReader) token() (json.Token, error) {
	t, err := r.Token()
	var e *json.SyntaxError
	switch {
	case err == nil:
		return t, nil
	case errors.As(err, &e):
		return nil, syntaxErrorf(lineAt(r.data, e.Offset), "not JSON: %s", e.Error())
	default:
		return nil, syntaxErrorf(lineAt(r.data, int64(len(r.data))), "not JSON: the text ends too early")
	}
}

func (r *jsonReader) value(depth int) (*node, error) {
	if depth > maxDepth {
		return nil, syntaxErrorf(r.line(), "nested more than %d deep", maxDepth)
	}
	t, err := r.token()
	if err != nil {
		return nil, err
	}
	n := &node{line: r.line()}
	switch t := t.(type) {
	case nil:
		n.kind = null
	case bool:
		n.kind, n.text = boolean, strconv.FormatBool(t)
	case json.Number:
		n.kind = number
	case string:
		n.kind, n.text = text, t
	case json.Delim:
		n.kind = list
		if t == '{' {
			n.kind = mapping
		}
		for r.More() {
			var f field
			if n.kind == mapping {
				name, err := r.token()
				if err != nil {
					return nil, err
				}
				f.name, f.line = name.(string), r.line() // the decoder takes nothing else for a name
			}
			if f.value, err = r.value(depth + 1); err != nil {
				return nil, err
			}
			if n.kind == mapping {
				n.fields = append(n.fields, f)
			} else {
				n.items = append(n.items, f.value)
			}
		}
		if _, err := r.token(); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// parseYAML uses the successor of the kubelet's own YAML library (go.yaml.in/yaml/v2), because what a document of the kubelet's means is for that one to say; the values of
// scalars are those of version 2, see unquoted.
func parseYAML(data []byte) (*node, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var body *yaml.Node
	for {
		var document yaml.Node
		err := decoder.Decode(&document)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			line, message := yamlError(err)
			return nil, syntaxErrorf(line, "not YAML: %s", message)
		}
		content := document.Content[0]
		switch {
		case content.Kind == yaml.ScalarNode && content.Value == "":
		case body != nil:
			return nil, syntaxErrorf(content.Line, "a second document: the kubelet reads only the first of a file, put the others into files of their own")
		default:
			body = content
		}
	}
	if body == nil {
		return &node{kind: null, line: 1}, nil
	}
	c := &converter{aliases: make(map[*yaml.Node]bool)}
	return c.convert(body, 0)
}

// yamlError takes apart an error of the YAML library: "yaml: line 3: message", or without a line.
func yamlError(err error) (line int, message string) {
	message = strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(message, "line "); ok {
		digits, rest, _ := strings.Cut(rest, ": ")
		if n, err := strconv.Atoi(digits); err == nil {
			return max(n, 1), rest
		}
	}
	return 1, message
}

// converter follows aliases and merge keys, within bounds.
type converter struct {
	values  int
	aliases map[*yaml.Node]bool // being followed
}

func (c *converter) convert(n *yaml.Node, depth int) (*node, error) {
	c.values++
	switch {
	case c.values > maxValues:
		return nil, syntaxErrorf(n.Line, "more than %d values", maxValues)
	case depth > maxDepth:
		return nil, syntaxErrorf(n.Line, "nested more than %d deep", maxDepth)
	}
	if n.Kind == yaml.AliasNode {
		if c.aliases[n.Alias] {
			return nil, syntaxErrorf(n.Line, "an alias of what it stands in")
		}
		c.aliases[n.Alias] = true
		defer delete(c.aliases, n.Alias)
		return c.convert(n.Alias, depth+1)
	}
	if tagged := n.Style&yaml.TaggedStyle != 0; tagged && (n.Kind != yaml.ScalarNode || n.Tag != "!!str") {
		return nil, syntaxErrorf(n.Line, "tag %s is not understood here: leave it out", strconv.Quote(n.Tag))
	}
	switch n.Kind {
	case yaml.ScalarNode:
		if n.Style&^yaml.FlowStyle != 0 { // quoted, literal, folded or tagged as a string
			return &node{kind: text, line: n.Line, text: n.Value}, nil
		}
		return unquoted(n.Line, n.Value), nil
	case yaml.SequenceNode:
		out := &node{kind: list, line: n.Line}
		for _, item := range n.Content {
			value, err := c.convert(item, depth+1)
			if err != nil {
				return nil, err
			}
			out.items = append(out.items, value)
		}
		return out, nil
	default:
		return c.mapping(n, depth)
	}
}

func (c *converter) mapping(n *yaml.Node, depth int) (*node, error) {
	out := &node{kind: mapping, line: n.Line}
	var merged []*node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, err := c.convert(n.Content[i], depth+1)
		if err != nil {
			return nil, err
		}
		value, err := c.convert(n.Content[i+1], depth+1)
		if err != nil {
			return nil, err
		}
		switch {
		case n.Content[i].Tag == "!!merge" && value.kind == list:
			merged = append(merged, value.items...)
		case n.Content[i].Tag == "!!merge":
			merged = append(merged, value)
		case key.kind == text:
			out.fields = append(out.fields, field{name: key.text, line: key.line, value: value})
		default:
			return nil, syntaxErrorf(key.line, "the name of a field is %s: no field is named so", key.kind)
		}
	}
	for _, source := range merged {
		if source.kind != mapping {
			return nil, syntaxErrorf(n.Line, "a merge key (<<) of %s: only a mapping can be merged", source.kind)
		}
		for _, f := range source.fields {
			if out.field(f.name) == nil {
				out.fields = append(out.fields, f)
			}
		}
	}
	return out, nil
}

// unquoted is a scalar without quotes, by the rules of the kubelet's YAML 1.1, which has more booleans than YAML 1.2 and other numbers.
func unquoted(line int, value string) *node {
	n := &node{kind: text, line: line, text: value}
	switch value {
	case "", "~", "null", "Null", "NULL":
		n.kind = null
	case "y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON":
		n.kind, n.text = boolean, "true"
	case "n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF":
		n.kind, n.text = boolean, "false"
	default:
		if isNumber(value) {
			n.kind = number
		}
	}
	return n
}

func isNumber(value string) bool {
	switch strings.ToLower(strings.TrimLeft(value, "+-")) {
	case ".inf", ".nan":
		return true
	}
	digits := value
	if value[0] != '.' {
		digits = strings.ReplaceAll(value, "_", "")
	}
	if _, err := strconv.ParseInt(digits, 0, 64); err == nil {
		return true
	}
	if _, err := strconv.ParseUint(digits, 0, 64); err == nil {
		return true
	}
	_, err := strconv.ParseFloat(digits, 64)
	return err == nil && strings.Trim(digits, "0123456789.eE+-") == "" // neither hexadecimal nor Inf
}
