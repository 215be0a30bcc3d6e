package main

import (
	"fmt"
	"strings"
)

// fill puts the tables into a document, each between a comment with its name and the next one that says end.
func fill(document string, tables []table) (string, error) {
	const end = "<!-- end -->\n"
	for _, t := range tables {
		begin := "<!-- " + t.name + " -->\n"
		before, rest, found := strings.Cut(document, begin)
		_, after, ended := strings.Cut(rest, end)
		if !found || !ended {
			return "", fmt.Errorf("the document has no place for the table %q: put %q and %q where it is to stand", t.name, strings.TrimSpace(begin), strings.TrimSpace(end))
		}
		document = before + begin + "\n" + t.String() + "\n" + end + after
	}
	return document, nil
}
