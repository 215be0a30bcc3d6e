package amazon

import "golang.org/x/sys/windows"

// splitCommand splits a command line as Windows programs do: a backslash quotes nothing but quotes.
func splitCommand(line string) ([]string, error) { return windows.DecomposeCommandLine(line) }
