package broker

import (
	"fmt"
	"strings"

	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/image"
)

// Decision is what routing says of one provider.
type Decision struct {
	Provider *config.Provider
	// Asked says that the provider takes part.
	Asked bool
	// Pattern is the entry of matchImages that matched, empty where a mirror or nothing did.
	Pattern string
	// Mirror is the mirror that the image falls under, nil if none.
	Mirror *config.Mirror
	// Image is what the provider is asked for: the requested image, or its place under the mirror's endpoint.
	Image string
	// PassedOver is why a provider that matches is not asked; empty otherwise.
	PassedOver string
}

// Routing is what Route decides for one request.
type Routing struct {
	// Decisions holds one entry for each provider, in order.
	Decisions []Decision
	// RegistryWide says that every image of the requested image's registry is routed to the same providers in the same way.
	RegistryWide bool
}

// Asked returns the decisions for the providers that take part, in order.
func (r Routing) Asked() []Decision {
	var asked []Decision
	for _, d := range r.Decisions {
		if d.Asked {
			asked = append(asked, d)
		}
	}
	return asked
}

// Route decides which providers take part in a request: those with a pattern that matches the image by the kubelet's rules, or with a mirror whose source it
// lies under, unless their tokenAttributes want a token or annotations that the request lacks.
func Route(providers []*config.Provider, request Request) Routing {
	routing := Routing{Decisions: make([]Decision, 0, len(providers)), RegistryWide: true}
	for _, p := range providers {
		routing.Decisions = append(routing.Decisions, decide(p, request))
		routing.RegistryWide = routing.RegistryWide && routedAlike(p, request.Image)
	}
	return routing
}

func decide(p *config.Provider, request Request) Decision {
	d := Decision{Provider: p, Image: request.Image}
	if m := mirrorOf(p, request.Image); m != nil {
		d.Mirror, d.Image = m, m.Endpoint+strings.TrimPrefix(request.Image, m.Source)
	} else if d.Pattern = patternOf(p, request.Image); d.Pattern == "" {
		return d
	}
	d.PassedOver = passedOver(p, request)
	d.Asked = d.PassedOver == ""
	return d
}

func patternOf(p *config.Provider, img string) string {
	for _, pattern := range p.MatchImages {
		if image.Match(pattern, img) {
			return pattern
		}
	}
	return ""
}

// mirrorOf is the provider's mirror with the longest source that the image lies under, whole path segments only.
func mirrorOf(p *config.Provider, img string) *config.Mirror {
	var longest *config.Mirror
	for i, m := range p.Mirrors {
		if (img == m.Source || strings.HasPrefix(img, m.Source+"/")) && (longest == nil || len(m.Source) > len(longest.Source)) {
			longest = &p.Mirrors[i]
		}
	}
	return longest
}

// passedOver says why a provider with tokenAttributes is not asked, as the kubelet would not run its plugin (KEP-4412).
func passedOver(p *config.Provider, request Request) string {
	attributes := p.TokenAttributes
	if attributes == nil {
		return ""
	}
	if attributes.RequireServiceAccount && request.Token == "" {
		return "requireServiceAccount is true and the request carries no service account token"
	}
	for _, key := range attributes.RequiredServiceAccountAnnotationKeys {
		if _, ok := request.Annotations[key]; !ok {
			return fmt.Sprintf("the service account lacks the required annotation %q", key)
		}
	}
	return ""
}

// routedAlike says that the provider treats every image of img's registry alike: none of what decides looks at a path.
func routedAlike(p *config.Provider, img string) bool {
	registry := image.Registry(img)
	mirrored := false
	for _, m := range p.Mirrors {
		switch {
		case m.Source == registry:
			mirrored = true
		case strings.HasPrefix(m.Source, registry+"/"):
			return false
		}
	}
	if mirrored {
		return true
	}
	alike := true
	for _, pattern := range p.MatchImages {
		if !image.MatchHost(pattern, img) {
			continue
		}
		if parsed, err := image.ParsePattern(pattern); err == nil && parsed.Path() == "" {
			return true
		}
		alike = false
	}
	return alike
}

// RequestFor is what one provider gets to see of a request: its own image, and of the pod's identity only what its tokenAttributes name.
func RequestFor(d Decision, request Request) (Request, error) {
	mine := Request{Image: d.Image}
	attributes := d.Provider.TokenAttributes
	if attributes == nil {
		return mine, nil
	}
	if request.Token != "" {
		if err := checkAudience(request.Token, attributes.ServiceAccountTokenAudience); err != nil {
			return mine, err
		}
		mine.Token = request.Token
	}
	for _, keys := range [][]string{attributes.RequiredServiceAccountAnnotationKeys, attributes.OptionalServiceAccountAnnotationKeys} {
		for _, key := range keys {
			if value, ok := request.Annotations[key]; ok {
				if mine.Annotations == nil {
					mine.Annotations = make(map[string]string)
				}
				mine.Annotations[key] = value
			}
		}
	}
	return mine, nil
}
