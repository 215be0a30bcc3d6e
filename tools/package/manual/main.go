// Command manual makes manual pages: one of each command, of what `credential-broker manual` says on standard input.
//
//	credential-broker manual | manual -version VERSION -date UNIX-SECONDS DIRECTORY
//
// It builds cobra's commands anew from that description, since a command cannot be imported, and lives here so that what cobra/doc needs stays out of the product's go.mod.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// command is what cmd/credential-broker/manual.go prints.
type command struct {
	Use, Short, Long, Example string
	Flags                     []struct {
		Name, Shorthand, Type, Default, NoValue, Usage string
		Persistent                                     bool
	}
	Commands []command
}

// value has a flag's type and default, which is all of it that a page shows.
type value struct{ kind, value string }

func (v *value) String() string   { return v.value }
func (v *value) Set(string) error { return nil }
func (v *value) Type() string     { return v.kind }

func main() {
	version := flag.String("version", "", "version that the pages are of")
	date := flag.Int64("date", 0, "date of the pages, in seconds since 1970")
	flag.Parse()
	if err := write(flag.Arg(0), *version, time.Unix(*date, 0).UTC(), os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "manual:", err)
		os.Exit(1)
	}
}

func write(dir, version string, date time.Time, description io.Reader) error {
	var root command
	if err := json.NewDecoder(description).Decode(&root); err != nil {
		return fmt.Errorf("reading what credential-broker manual prints: %w", err)
	}
	header := &doc.GenManHeader{Section: "8", Date: &date, Source: "credential-broker " + version, Manual: "credential-broker"}
	if err := doc.GenManTree(root.cobra(), header, dir); err != nil {
		return fmt.Errorf("writing the pages of the commands: %w", err)
	}
	return nil
}

func (c *command) cobra() *cobra.Command {
	cmd := &cobra.Command{Use: c.Use, Short: c.Short, Long: c.Long, Example: c.Example, Run: func(*cobra.Command, []string) {}, DisableAutoGenTag: true}
	for _, f := range c.Flags {
		flags := cmd.Flags()
		if f.Persistent {
			flags = cmd.PersistentFlags()
		}
		flags.VarPF(&value{kind: f.Type, value: f.Default}, f.Name, f.Shorthand, f.Usage).NoOptDefVal = f.NoValue
	}
	for _, sub := range c.Commands {
		cmd.AddCommand(sub.cobra())
	}
	return cmd
}
