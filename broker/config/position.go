package config

import (
	"strconv"
	"strings"
)

// entryPlace is where a provider's entry stands.
type entryPlace struct {
	file string
	path string // "providers[2]"
	node *node
}

// Position is "file:line" of a field of a provider, such as "config.auth.role" or "matchImages[0]"; of the nearest field around it if it does not stand there; of
// the provider's entry at last. It is empty for a provider that the configuration does not have.
func (c *Config) Position(provider, field string) string {
	place, ok := c.places[provider]
	if !ok {
		for _, p := range c.Providers {
			if p.Name == provider {
				return p.At
			}
		}
		return ""
	}
	line, _ := place.node.find(field)
	return place.file + ":" + strconv.Itoa(line)
}

// problemAt is a Problem of a provider's field, with all but the message.
func (c *Config) problemAt(p *Provider, field string) Problem {
	place, ok := c.places[p.Name]
	if !ok {
		file, line, _ := strings.Cut(p.At, ":")
		n, _ := strconv.Atoi(line)
		return Problem{File: file, Line: n, Path: field}
	}
	line, column := place.node.find(field)
	return Problem{File: place.file, Line: line, Column: column, Path: join(place.path, field)}
}

// find follows a path of fields as far as it goes. Where keys have dots in them the longest one wins.
func (n *node) find(path string) (line, column int) {
	line, column = n.line, n.column
	for path != "" {
		var next *node
		switch n.kind {
		case listNode:
			number, rest, ok := strings.Cut(strings.TrimPrefix(path, "["), "]")
			i, err := strconv.Atoi(number)
			if !ok || err != nil || i < 0 || i >= len(n.items) {
				return line, column
			}
			next, path = n.items[i], strings.TrimPrefix(rest, ".")
			line, column = next.line, next.column
		case mapNode:
			var best *entry
			for i := range n.entries {
				e := &n.entries[i]
				rest, ok := strings.CutPrefix(path, e.name)
				if ok && (rest == "" || rest[0] == '.' || rest[0] == '[') && (best == nil || len(e.name) > len(best.name)) {
					best = e
				}
			}
			if best == nil {
				return line, column
			}
			next, path = best.value, strings.TrimPrefix(path[len(best.name):], ".")
			line, column = best.line, best.column
		default:
			return line, column
		}
		n = next
	}
	return line, column
}
