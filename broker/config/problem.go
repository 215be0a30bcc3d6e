package config

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// Problem is one thing that is wrong, or odd, in a configuration.
type Problem struct {
	File string
	// Line and Column count from 1. They are zero where the problem is the file itself.
	Line, Column int
	// Path is the field, as in "providers[2].matchImages[0]"; empty where the problem concerns the whole file. It counts the providers of this file only.
	Path string
	// Message says what is wrong, and after a semicolon what to do.
	Message string
}

// Error is "file:line:column: path: message", without the parts that are not known.
func (p Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		b.WriteString(":" + strconv.Itoa(p.Line))
		if p.Column > 0 {
			b.WriteString(":" + strconv.Itoa(p.Column))
		}
	}
	if p.Path != "" {
		b.WriteString(": " + p.Path)
	}
	b.WriteString(": " + p.Message)
	return b.String()
}

// Problems are all that was found, in the order of the files and of the lines within each. As an error they print one to a line.
type Problems []Problem

// Error prints one problem to a line.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i := range p {
		lines[i] = p[i].Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives the problems one by one to errors.As.
func (p Problems) Unwrap() []error {
	errs := make([]error, len(p))
	for i := range p {
		errs[i] = p[i]
	}
	return errs
}

// sortWithin puts the problems in the order of their places; files come in the order in which they were read.
func (p Problems) sortWithin(files []string) {
	slices.SortStableFunc(p, func(a, b Problem) int {
		return cmp.Or(
			cmp.Compare(slices.Index(files, a.File), slices.Index(files, b.File)),
			cmp.Compare(a.Line, b.Line),
			cmp.Compare(a.Column, b.Column),
		)
	})
}
