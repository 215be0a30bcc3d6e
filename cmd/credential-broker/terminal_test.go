package main

import "testing"

func TestNothingThatMovesTheCursorOrTurnsTheTextIsPrinted(t *testing.T) {
	for text, want := range map[string]string{
		"plain, ünïcode": "plain, ünïcode", "a\x1b[2Jb": "a\uFFFD[2Jb", "a\nb\tc": "a\uFFFDb\uFFFDc",
		"gpj\u202eexe": "gpj\uFFFDexe", "a\u200bb": "a\uFFFDb",
	} {
		if got := printable(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
