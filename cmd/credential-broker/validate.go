package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/credential-broker/credential-broker/broker/config"
)

// validated is what `validate -o json` prints.
type validated struct {
	Valid     bool      `json:"valid"`
	Sources   []string  `json:"sources,omitempty"`
	Providers []string  `json:"providers,omitempty"`
	Problems  []problem `json:"problems"`
	Warnings  []problem `json:"warnings"`
}

// problem is one line of the list.
type problem struct {
	File   string `json:"file"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
	// Field is the path within the file, as in "providers[2].timeout"; for a backend's complaint, within the provider's entry.
	Field string `json:"field,omitempty"`
	// Provider is set where its backend complains.
	Provider string `json:"provider,omitempty"`
	Message  string `json:"message"`
	text     string
}

func problemOf(p config.Problem) problem {
	return problem{File: p.File, Line: p.Line, Column: p.Column, Field: p.Path, Message: p.Message, text: p.Error()}
}

func validateCommand(opts *options) *cobra.Command {
	var output outputFormat
	cmd := &cobra.Command{
		Use:   "validate",
		Short: "Check the configuration, and each provider's own settings with its backend",
		Long: `Check the configuration, and each provider's own settings with its backend. The network is not used. Every problem is listed with its
place; the exit status is 1 if there is one. Warnings are about what is allowed and probably not meant.`,
		Example: `  credential-broker validate
  credential-broker validate --config ./config.d -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, err := validate(cmd, opts)
			if err != nil {
				return err
			}
			if output.json() {
				err = printJSON(cmd, v)
			} else {
				printValidated(cmd, v)
			}
			if err == nil && !v.Valid {
				err = errSilent
			}
			return err
		},
	}
	output.register(cmd)
	return cmd
}

func validate(cmd *cobra.Command, opts *options) (validated, error) {
	v := validated{Problems: []problem{}, Warnings: []problem{}}
	cfg, problems, err := opts.inspect()
	if err != nil {
		return v, err
	}
	for _, p := range problems {
		v.Problems = append(v.Problems, problemOf(p))
	}
	v.Sources = cfg.Sources
	for _, warning := range append(slices.Clone(cfg.Warnings), cfg.Overlaps()...) {
		v.Warnings = append(v.Warnings, problemOf(warning))
	}
	for _, p := range cfg.Providers {
		v.Providers = append(v.Providers, p.Name)
	}
	v.Problems = append(v.Problems, askBackends(cmd, cfg)...)
	v.Valid = len(v.Problems) == 0
	return v, nil
}

// askBackends lets each provider's backend judge its settings, all at once.
func askBackends(cmd *cobra.Command, cfg *config.Config) []problem {
	quiet := cfg.Log
	quiet.Level, quiet.File = "error", ""
	log, closeLog := newLog(quiet, cmd.ErrOrStderr(), false)
	defer closeLog()
	caller := newCaller(cfg, log, false)
	defer func() { _ = caller.Close() }()

	found := make([][]problem, len(cfg.Providers))
	var waiting sync.WaitGroup
	turn := make(chan struct{}, 8) // more processes at once would only wait for each other
	for i, p := range cfg.Providers {
		waiting.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			ctx, cancel := contextWithTimeout(cmd, max(p.Timeout, 5*time.Second))
			defer cancel()
			for _, err := range caller.Validate(ctx, p) {
				found[i] = append(found[i], placed(cfg, p, err))
			}
		})
	}
	waiting.Wait()
	return slices.Concat(found...)
}

// placed puts the place of the setting at fault before a backend's complaint about it.
func placed(cfg *config.Config, p *config.Provider, err error) problem {
	text := strings.ReplaceAll(err.Error(), "\n", "; ")
	field, message, ok := strings.Cut(text, ": ") // "config.auth.role: …" where the backend named a setting
	if !ok || !strings.HasPrefix(field, "config.") {
		field, message = "backend", text
	}
	at := cfg.Position(p.Name, field)
	found := problem{File: at, Field: field, Provider: p.Name, Message: message, text: fmt.Sprintf("%s: provider %q: %s", at, p.Name, text)}
	if colon := strings.LastIndexByte(at, ':'); colon >= 0 {
		if line, err := strconv.Atoi(at[colon+1:]); err == nil {
			found.File, found.Line = at[:colon], line
		}
	}
	return found
}

func printValidated(cmd *cobra.Command, v validated) {
	s := newScreen(cmd)
	errs := screenOn(cmd.ErrOrStderr())
	for _, warning := range v.Warnings {
		errs.printf("%s %s\n", errs.paint(yellow, "warning:"), warning.text)
	}
	for _, p := range v.Problems {
		errs.printf("%s\n", p.text)
	}
	if v.Valid {
		s.printf("%s %s: %d %s\n", s.paint(green, "valid"), strings.Join(v.Sources, ", "), len(v.Providers), plural("provider", len(v.Providers)))
		return
	}
	errs.printf("%s\n", errs.paint(red, fmt.Sprintf("%d %s", len(v.Problems), plural("problem", len(v.Problems)))))
}
