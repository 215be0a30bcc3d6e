package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// errDoesNotHold is that of a claim that was checked and is wrong.
var errDoesNotHold = errors.New("a claim of the demo does not hold")

// screen prints for people, in colour where that is wanted (https://no-color.org).
type screen struct {
	out    io.Writer
	colour bool
}

func newScreen(out *os.File) *screen {
	info, err := out.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0
	return &screen{out: out, colour: terminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

const (
	bold  = "1"
	dim   = "2"
	red   = "31"
	green = "32"
	cyan  = "36"
)

func (s *screen) paint(style, text string) string {
	if !s.colour || text == "" {
		return text
	}
	return "\x1b[" + style + "m" + text + "\x1b[0m"
}

// title begins an act.
func (s *screen) title(text string) { fmt.Fprintf(s.out, "\n%s\n", s.paint(bold, text)) }

// command shows what is run.
func (s *screen) command(line string) { fmt.Fprintf(s.out, "  %s\n", s.paint(cyan, "$ "+line)) }

// shown prints what a program said, set off from what the demo says.
func (s *screen) shown(text string) {
	for line := range strings.Lines(strings.TrimRight(text, "\n")) {
		fmt.Fprintf(s.out, "%s\n", strings.TrimRight("    "+strings.TrimSuffix(line, "\n"), " "))
	}
}

// say prints a line that needs no proof.
func (s *screen) say(format string, args ...any) {
	fmt.Fprintf(s.out, "  %s\n", s.paint(dim, fmt.Sprintf(format, args...)))
}

// holds prints a claim with a tick if err is nil; otherwise with a cross and the reason, and returns errDoesNotHold.
func (s *screen) holds(err error, format string, args ...any) error {
	claim := fmt.Sprintf(format, args...)
	if err == nil {
		fmt.Fprintf(s.out, "  %s %s\n", s.paint(green, "✓"), claim)
		return nil
	}
	fmt.Fprintf(s.out, "  %s %s\n    %s\n", s.paint(red, "✗"), claim, s.paint(red, "does not hold: "+err.Error()))
	return errDoesNotHold
}

// wrong is nil if ok, and otherwise an error for holds.
func wrong(ok bool, format string, args ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf(format, args...)
}
