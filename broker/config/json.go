package config

import (
	"encoding/json"
	"fmt"
)

// maxJSON bounds a provider's own settings, which aliases could make as large as they like, in bytes.
const maxJSON = maxFileSize

// settings is a provider's `config` as JSON; nil if there was a problem.
func (d *decoder) settings(n *node, path string) json.RawMessage {
	before := len(d.problems)
	out := d.appendJSON(make([]byte, 0, 256), n, path)
	if len(d.problems) > before {
		return nil
	}
	return out
}

// appendJSON writes a value as JSON without loss: numbers as they were written, however large or precise. What it writes after a problem is of no use; it goes on to
// find the other problems.
func (d *decoder) appendJSON(out []byte, n *node, path string) []byte {
	if !d.usable(n, path) {
		return out
	}
	if len(out) > maxJSON {
		d.tooLarge(n, path)
		return out
	}
	switch n.kind {
	case nullNode:
		return append(out, "null"...)
	case boolNode:
		return append(out, n.text...)
	case numberNode:
		if n.json == "" {
			d.wrong(n, path, "%s is a number that not every reader understands alike; put a string in quotes, write a number in plain decimal digits", n.text)
		}
		return append(out, n.json...)
	case stringNode:
		return appendString(out, n.text)
	case listNode:
		out = append(out, '[')
		for i, item := range n.items {
			if i > 0 {
				out = append(out, ',')
			}
			out = d.appendJSON(out, item, index(path, i))
		}
		return append(out, ']')
	default:
		out = append(out, '{')
		for i := range n.entries {
			e := &n.entries[i]
			child := join(path, e.name)
			if e.bad != "" {
				d.wrongAt(e.line, e.column, child, "%s", e.bad)
				continue
			}
			if i > 0 {
				out = append(out, ',')
			}
			out = append(appendString(out, e.name), ':')
			out = d.appendJSON(out, e.value, child)
		}
		return append(out, '}')
	}
}

func appendString(out []byte, s string) []byte {
	quoted, err := json.Marshal(s)
	if err != nil {
		panic(fmt.Sprintf("encoding a string as JSON: %v", err)) // json.Marshal knows no error for a string
	}
	return append(out, quoted...)
}
