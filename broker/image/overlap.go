package image

import (
	"math/big"
	"path/filepath"
	"strings"
	"unicode/utf8"
)

// Overlap says whether some image could match both patterns: as many host labels, in each of them a text that both globs match, an equal port, and one path a prefix
// of the other. It is exact for globs that parse; a pattern whose glob does not parse matches, and so overlaps, nothing.
func Overlap(a, b Pattern) bool {
	if a.port != b.port || len(a.labels) != len(b.labels) {
		return false
	}
	if !strings.HasPrefix(a.path, b.path) && !strings.HasPrefix(b.path, a.path) {
		return false
	}
	for i := range a.labels {
		if !globsMeet(a.labels[i], b.labels[i]) {
			return false
		}
	}
	return true
}

// globsMeet says whether a label exists that both globs match. Two globs are two automata that move along one text; the search visits each pair of
// positions at most once.
func globsMeet(a, b string) bool {
	x, err := globTokens(a)
	if err != nil {
		return false
	}
	y, err := globTokens(b)
	if err != nil {
		return false
	}
	alphabet := representatives(a + b)
	xSets, ySets := matchedBy(x, alphabet), matchedBy(y, alphabet)
	seen := make([]bool, (len(x)+1)*(len(y)+1))
	var walk func(i, j int) bool
	walk = func(i, j int) bool {
		if i == len(x) && j == len(y) {
			return true
		}
		at := i*(len(y)+1) + j
		if seen[at] {
			return false
		}
		seen[at] = true
		xStar, yStar := i < len(x) && x[i] == "*", j < len(y) && y[j] == "*"
		switch {
		case xStar && walk(i+1, j), yStar && walk(i, j+1): // the star stands for nothing more
			return true
		case i == len(x) || j == len(y):
			return false
		case xStar && yStar:
			return false // one of them ends first, and that was tried
		case xStar:
			return ySets[j].BitLen() > 0 && walk(i, j+1)
		case yStar:
			return xSets[i].BitLen() > 0 && walk(i+1, j)
		}
		return new(big.Int).And(xSets[i], ySets[j]).BitLen() > 0 && walk(i+1, j+1)
	}
	return walk(0, 0)
}

// globTokens splits a glob of path/filepath into tokens that match one character each, and "*".
func globTokens(glob string) ([]string, error) {
	if _, err := filepath.Match(glob, ""); err != nil {
		return nil, err
	}
	var tokens []string
	for rest := glob; rest != ""; {
		n := 1
		switch rest[0] {
		case '*', '?':
		case '[':
			n = classLength(rest)
		case '\\':
			_, size := utf8.DecodeRuneInString(rest[1:])
			n = 1 + size
		default:
			_, n = utf8.DecodeRuneInString(rest)
		}
		tokens = append(tokens, rest[:n])
		rest = rest[n:]
	}
	return tokens, nil
}

// classLength is the length of the character class at the start of a glob that parses.
func classLength(glob string) int {
	for i := 1; i < len(glob); i++ {
		switch glob[i] {
		case '\\':
			i++
		case ']':
			return i + 1
		}
	}
	return len(glob)
}

// representatives has at least one character of every set that a glob made of these characters can tell apart: each of them and its neighbours. Dots and slashes
// stand in no label.
func representatives(chars string) []string {
	var out []string
	seen := map[rune]bool{'.': true, '/': true}
	for _, r := range chars + "az09" {
		for d := rune(-3); d <= 3; d++ { // three, to get past the dot and the slash, which are neighbours
			if c := r + d; !seen[c] && utf8.ValidRune(c) {
				seen[c] = true
				out = append(out, string(c))
			}
		}
	}
	return out
}

// matchedBy gives, for each token, the set of characters of the alphabet that it matches, one bit for each.
func matchedBy(tokens, alphabet []string) []*big.Int {
	sets := make([]*big.Int, len(tokens))
	for i, token := range tokens {
		sets[i] = new(big.Int)
		for bit, c := range alphabet {
			if ok, err := filepath.Match(token, c); ok && err == nil {
				sets[i].SetBit(sets[i], bit, 1)
			}
		}
	}
	return sets
}
