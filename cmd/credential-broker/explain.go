package main

import (
	"strconv"

	"github.com/spf13/cobra"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/image"
)

// explanation is what `explain -o json` prints.
type explanation struct {
	Image         string      `json:"image"`
	OverlapPolicy string      `json:"overlapPolicy"`
	Providers     []explained `json:"providers"`
}

// explained is one provider's part.
type explained struct {
	Provider string `json:"provider"`
	Backend  string `json:"backend"`
	Matches  bool   `json:"matches"`
	// Rank counts the providers that match from 1, in order of precedence.
	Rank int `json:"rank,omitempty"`
	// By is the pattern or mirror that matched.
	By string `json:"by,omitempty"`
	// AskedFor is the image under a mirror's endpoint.
	AskedFor string `json:"askedFor,omitempty"`
	// PassedOver: it matches, and is not asked for a request without token and annotations nevertheless.
	PassedOver string `json:"passedOver,omitempty"`
	// WhyNot has a reason for each pattern that does not match.
	WhyNot []whyNot `json:"whyNot,omitempty"`
	At     string   `json:"at"`
}

type whyNot struct {
	Pattern string `json:"pattern"`
	Reason  string `json:"reason"`
}

func explainCommand(opts *options) *cobra.Command {
	var output outputFormat
	cmd := &cobra.Command{
		Use:   "explain IMAGE",
		Short: "Say which providers match an image, in which precedence, and why others do not",
		Long:  "Say which providers match an image, in which precedence, and why others do not. No backend is started.",
		Example: `  credential-broker explain registry.example:5000/team/app
  credential-broker explain nginx`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := imageArgument(args[0])
			if err != nil {
				return err
			}
			cfg, err := opts.load()
			if err != nil {
				return err
			}
			routing := broker.Route(opts.providers(cmd, cfg, noteOn(cmd)), broker.Request{Image: name})
			if output.json() {
				return printJSON(cmd, explanation{name, string(cfg.OverlapPolicy), explainAll(routing)})
			}
			printExplained(newScreen(cmd), name, cfg, routing)
			return nil
		},
	}
	opts.registerAudience(cmd)
	output.register(cmd)
	return cmd
}

func explainAll(routing broker.Routing) []explained {
	all := make([]explained, 0, len(routing.Decisions))
	rank := 0
	for _, d := range routing.Decisions {
		e := explained{Provider: d.Provider.Name, Backend: d.Provider.Backend, By: d.Pattern, PassedOver: d.PassedOver, At: d.Provider.At}
		if d.Mirror != nil {
			e.By, e.AskedFor = "mirror of "+d.Mirror.Source, d.Image
		}
		if e.Matches = e.By != ""; e.Matches {
			rank++
			e.Rank = rank
		} else {
			for _, pattern := range d.Provider.MatchImages {
				e.WhyNot = append(e.WhyNot, whyNot{pattern, image.Explain(pattern, d.Image)})
			}
		}
		all = append(all, e)
	}
	return all
}

func printExplained(s screen, name string, cfg *config.Config, routing broker.Routing) {
	s.printf("%s\n\n", s.paint(bold, name))
	all := explainAll(routing)
	rows := make([][]cell, 0, len(all))
	rank := 0
	for _, e := range all {
		if e.Matches {
			rank = e.Rank
			by, word := e.By, cell{"matches", green}
			if e.AskedFor != "" {
				by += ", asked for as " + e.AskedFor
			}
			if e.PassedOver != "" {
				by, word.style = by+"; passed over where "+e.PassedOver, yellow
			}
			rows = append(rows, []cell{{strconv.Itoa(rank), bold}, {e.Provider, plain}, {e.Backend, plain}, word, {by, plain}})
		} else {
			for i, w := range e.WhyNot {
				row := []cell{{"-", dim}, {e.Provider, dim}, {e.Backend, dim}, {"no match", dim}, {w.Pattern + ": " + w.Reason, plain}}
				if i > 0 {
					row[0], row[1], row[2], row[3] = cell{}, cell{}, cell{}, cell{}
				}
				rows = append(rows, row)
			}
		}
	}
	s.table([]string{"RANK", "PROVIDER", "BACKEND", "", "BY, OR WHY NOT"}, rows)
	switch {
	case rank == 0:
		s.printf("\nNo provider matches: the kubelet pulls without credentials from here.\n")
	case rank > 1 && cfg.OverlapPolicy == config.First:
		s.printf("\nFor an auth key that several of them answer, the first one's value is used (overlapPolicy: First).\n")
	case rank > 1:
		s.printf("\nIf several of them answer one auth key, all values are tried in this order (overlapPolicy: Fallback).\n")
	}
	if entries := entriesOf(routing.Asked()); entries > 1 {
		s.printf("They belong to %d entries of the kubelet's, by audience; that holds within each of them (--audience shows one).\n", entries)
	}
}

// entriesOf counts the kubelet's entries that the providers belong to, where there is one for each audience.
func entriesOf(asked []broker.Decision) int {
	audiences := make(map[string]bool)
	for _, d := range asked {
		audience := ""
		if d.Provider.TokenAttributes != nil {
			audience = d.Provider.TokenAttributes.ServiceAccountTokenAudience
		}
		audiences[audience] = true
	}
	return len(audiences)
}
