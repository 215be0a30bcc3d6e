package config

import (
	"fmt"
	"iter"
	"strconv"

	"github.com/credential-broker/credential-broker/broker/image"
)

// ForAudience gives the providers that take part for a kubelet entry: all for nil, those without tokenAttributes for the empty audience, else those of exactly this
// audience.
func (c *Config) ForAudience(audience *string) []*Provider {
	if audience == nil {
		return c.Providers
	}
	var out []*Provider
	for _, p := range c.Providers {
		if p.audience() == *audience {
			out = append(out, p)
		}
	}
	return out
}

// NobodyOf words that ForAudience gives nobody, which is odd and no error: there may come some provider of that audience.
func NobodyOf(audience string) string {
	if audience == "" {
		return `--audience "": every provider has tokenAttributes, so none takes part; print the kubelet's entries anew with kubelet-config`
	}
	return fmt.Sprintf("--audience %q: no provider has this serviceAccountTokenAudience, so none takes part; correct it, or print the kubelet's entries anew with kubelet-config", audience)
}

// audience is empty without tokenAttributes; an audience never is.
func (p *Provider) audience() string {
	if p.TokenAttributes == nil {
		return ""
	}
	return p.TokenAttributes.ServiceAccountTokenAudience
}

// Overlaps names the patterns that overlap across kubelet entries, that is, between providers of different audiences: the broker merges within an entry only, so
// there the kubelet adds up the answers by itself. It looks at each pair of patterns and is meant for people, not for each pull.
func (c *Config) Overlaps() []Problem {
	type item struct {
		image.Pattern
		provider *Provider
		field    string
	}
	var earlier []item
	var found Problems
	for _, p := range c.Providers {
		var own []item
		for field, text := range p.calledFor() {
			pattern, err := image.ParsePattern(text)
			if err != nil {
				continue // Load refuses it
			}
			own = append(own, item{pattern, p, field})
			for _, other := range earlier {
				if other.provider.audience() == p.audience() || !image.Overlap(other.Pattern, pattern) {
					continue
				}
				problem := c.problemAt(p, field)
				problem.Message = fmt.Sprintf("%q overlaps %q of provider %q (%s), whose kubelet entry is another (%s, not %s); "+
					"the kubelet asks both and overlapPolicy does not hold between them",
					text, other.String(), other.provider.Name, c.Position(other.provider.Name, other.field),
					audienceName(other.provider), audienceName(p))
				found = append(found, problem)
			}
		}
		earlier = append(earlier, own...)
	}
	return found
}

// calledFor gives the patterns for which a kubelet entry calls the provider, by field: its own, and the sources of its mirrors.
func (p *Provider) calledFor() iter.Seq2[string, string] {
	return func(yield func(field, pattern string) bool) {
		for i, pattern := range p.MatchImages {
			if !yield("matchImages["+strconv.Itoa(i)+"]", pattern) {
				return
			}
		}
		for i, m := range p.Mirrors {
			if !yield("mirrors["+strconv.Itoa(i)+"].source", m.Source) {
				return
			}
		}
	}
}

func audienceName(p *Provider) string {
	if p.TokenAttributes == nil {
		return "without token"
	}
	return "audience " + strconv.Quote(p.audience())
}

// crossWarnings are about settings that are odd only together.
func (l *loader) crossWarnings() {
	for _, p := range l.config.Providers {
		place := l.config.places[p.Name]
		if n := place.node.child("timeout"); n != nil && n.kind == stringNode && p.Timeout > l.config.Timeout {
			l.config.Warnings = append(l.config.Warnings, Problem{
				File: place.file, Line: n.line, Column: n.column, Path: place.path + ".timeout",
				Message: fmt.Sprintf("%s is longer than the whole request's timeout, which ends it after %s; shorten it or raise timeout", n.text, short(l.config.Timeout)),
			})
		}
	}
}
