package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// table is one of docs/fleet.md, found there by its name.
type table struct {
	name string
	head []string
	rows []*scenario
	row  func(*scenario) []string
}

func (s *scenarios) tables() []table {
	start := []string{"", "tokens given out", "calls throttled", "calls in the busiest second", "half have a credential", "all have one", "half have pulled", "all have pulled", "pulls without credentials"}
	ofStart := func(s *scenario) []string {
		return []string{
			s.name, count(int(s.total.Granted)), count(int(s.total.Throttled)), count(s.busiest),
			clock(quantile(s.credential, 0.5)), clock(quantile(s.credential, 1)), clock(quantile(s.pulled, 0.5)), clock(quantile(s.pulled, 1)), count(s.unauthorized),
		}
	}
	return []table{
		{"four", start, s.four, ofStart},
		{"one", start, s.one, ofStart},
		{"size", start, s.size, ofStart},
		{"constants", start, s.constants, ofStart},
		{
			"outage",
			[]string{"", "calls while nothing answers", "calls throttled afterwards", "half have a credential", "all have one", "half have pulled", "all have pulled"},
			s.outage,
			func(s *scenario) []string {
				return []string{
					s.name, count(s.inOutage), count(int(s.total.Throttled)),
					clock(quantile(s.credential, 0.5)), clock(quantile(s.credential, 1)), clock(quantile(s.pulled, 0.5)), clock(quantile(s.pulled, 1)),
				}
			},
		},
		{
			"day",
			[]string{
				"", "tokens given out", "calls throttled after the first hour", "calls in the busiest minute after that", "calls that failed in the outage", "pulls held up by the outage", "roll-out: half have pulled", "all have pulled",
			},
			s.day,
			func(s *scenario) []string {
				return []string{
					s.name, count(int(s.total.Granted)), count(s.throttledAfter), count(s.busiestAfter), count(s.inOutage), count(s.heldUp), clock(quantile(s.rollout, 0.5)), clock(quantile(s.rollout, 1)),
				}
			},
		},
	}
}

// String is Markdown.
func (t table) String() string {
	var b strings.Builder
	line := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	line(t.head)
	line(append([]string{"---"}, slices.Repeat([]string{"---:"}, len(t.head)-1)...))
	for _, row := range t.rows {
		line(t.row(row))
	}
	return b.String()
}

// count has commas between thousands.
func count(n int) string {
	digits := fmt.Sprint(n)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// clock is a time in minutes and seconds.
func clock(d time.Duration) string {
	seconds := int(d.Round(time.Second) / time.Second)
	return fmt.Sprintf("%d:%02d", seconds/60, seconds%60)
}
