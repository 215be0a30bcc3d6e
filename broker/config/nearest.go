package config

import "strings"

// nearest is the name that was probably meant, or nothing: equal but for case, or at most two letters (one in a short name) away.
func nearest(name string, names []string) string {
	best, distance := "", 3
	if len(name) <= 4 {
		distance = 2
	}
	for _, candidate := range names {
		if d := editDistance(strings.ToLower(name), strings.ToLower(candidate), distance); d < distance {
			best, distance = candidate, d
		}
	}
	return best
}

// editDistance counts the letters to insert, remove or replace; at least limit where it would be more.
func editDistance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
