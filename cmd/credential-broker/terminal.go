package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// style is an ANSI "select graphic rendition" parameter.
type style string

const (
	plain  style = ""
	bold   style = "1"
	dim    style = "2"
	red    style = "31"
	green  style = "32"
	yellow style = "33"
)

// cell is one field of a table.
type cell struct {
	text  string
	style style
}

// screen prints for people: aligned, and coloured where the output is a terminal and NO_COLOR (https://no-color.org) is not set.
type screen struct {
	out    io.Writer
	colour bool
}

func newScreen(cmd *cobra.Command) screen { return screenOn(cmd.OutOrStdout()) }

func screenOn(out io.Writer) screen {
	file, ok := out.(*os.File)
	return screen{out: out, colour: ok && isTerminal(file) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

func (s screen) printf(format string, args ...any) { _, _ = fmt.Fprintf(s.out, format, args...) }

// paint puts text in a style, if colours are shown.
func (s screen) paint(st style, text string) string {
	if !s.colour || st == plain || text == "" {
		return text
	}
	return "\x1b[" + string(st) + "m" + text + "\x1b[0m"
}

// table prints rows below a header, each column as wide as its widest cell.
func (s screen) table(header []string, rows [][]cell) {
	all := make([][]cell, 0, len(rows)+1)
	head := make([]cell, len(header))
	for i, text := range header {
		head[i] = cell{text, bold}
	}
	all = append(append(all, head), rows...)
	widths := make([]int, len(header))
	for _, row := range all {
		for i, c := range row {
			row[i].text = printable(c.text)
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	for _, row := range all {
		var line strings.Builder
		for i, c := range row {
			if i > 0 {
				line.WriteString("  ")
			}
			line.WriteString(s.paint(c.style, c.text))
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text)))
			}
		}
		s.printf("%s\n", strings.TrimRight(line.String(), " "))
	}
}

// printable replaces what would move the cursor or change the terminal: names come from outside.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) { // the latter change the direction of what follows, or cannot be seen
			return utf8.RuneError
		}
		return r
	}, text)
}

// barWidth is the width of a whole bar chart, in characters.
const barWidth = 40

// bar draws the stretch from start to start+took on a line that is whole long, in eighths of a character. Something that took any time at all is seen.
func bar(start, took, whole time.Duration) string {
	if whole <= 0 {
		return ""
	}
	const eighths = " ▏▎▍▌▋▊▉█"
	steps := []rune(eighths)
	from := int(start * barWidth / whole)
	length := max(int(took*barWidth*8/whole), 1)
	length = min(length, (barWidth-min(from, barWidth-1))*8)
	out := strings.Repeat(" ", min(from, barWidth-1)) + strings.Repeat("█", length/8)
	if length%8 > 0 {
		out += string(steps[length%8])
	}
	return out
}

// outputFormat is the flag -o.
type outputFormat string

func (f *outputFormat) register(cmd *cobra.Command) {
	cmd.Flags().VarP(f, "output", "o", `"text" for people or "json" for programs`)
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
}

func (f *outputFormat) String() string {
	if *f == "" {
		return "text"
	}
	return string(*f)
}

// Set implements pflag.Value.
func (f *outputFormat) Set(value string) error {
	if value != "text" && value != "json" {
		return fmt.Errorf(`want "text" or "json"`)
	}
	*f = outputFormat(value)
	return nil
}

// Type implements pflag.Value.
func (f *outputFormat) Type() string { return "format" }

func (f *outputFormat) json() bool { return *f == "json" }

// printJSON writes a value for programs.
func printJSON(cmd *cobra.Command, value any) error {
	encoder := json.NewEncoder(cmd.OutOrStdout())
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}

// milliseconds rounds a duration for people.
func milliseconds(d time.Duration) string {
	if d < 10*time.Millisecond {
		return d.Round(100 * time.Microsecond).String()
	}
	return d.Round(time.Millisecond).String()
}
