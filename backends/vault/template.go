package vault

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/credential-broker/credential-broker/backends/internal/hosts"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
)

// template is a text with variables: {host}, {repository}, {namespace}, {serviceAccount} and {annotation:KEY}.
type template struct {
	parts []part
}

// part is a literal text, or a variable.
type part struct {
	literal  string
	variable string // its name; empty: this is a literal
	key      string // of an annotation
}

var variables = []string{"host", "repository", "namespace", "serviceAccount", "annotation"}

func (v part) String() string {
	if v.key != "" {
		return "{" + v.variable + ":" + v.key + "}"
	}
	return "{" + v.variable + "}"
}

func parseTemplate(text string) (template, error) {
	var t template
	for text != "" {
		literal, rest, found := strings.Cut(text, "{")
		if strings.Contains(literal, "}") {
			return template{}, errors.New("it has a } without its {")
		}
		if literal != "" {
			t.parts = append(t.parts, part{literal: literal})
		}
		if !found {
			break
		}
		inner, after, closed := strings.Cut(rest, "}")
		if !closed {
			return template{}, errors.New("it has a { without its }")
		}
		name, key, keyed := strings.Cut(inner, ":")
		switch {
		case !slices.Contains(variables, name):
			return template{}, fmt.Errorf("there is no variable {%s}: there are {host}, {repository}, {namespace}, {serviceAccount} and {annotation:KEY}", remote.Cut(inner))
		case keyed != (name == "annotation") || keyed && key == "":
			return template{}, fmt.Errorf("{%s}: an annotation has a key, {annotation:example.com/team}, and no other variable has", remote.Cut(inner))
		}
		t.parts = append(t.parts, part{variable: name, key: key})
		text = after
	}
	return t, nil
}

func (t template) uses(variable string) bool {
	return slices.ContainsFunc(t.parts, func(p part) bool { return p.variable == variable })
}

// literal is what stands before the first variable.
func (t template) literal() string {
	if len(t.parts) == 0 {
		return ""
	}
	return t.parts[0].literal
}

// pathProblem says why the template is no path of a secret; empty: it is one. Each variable stands for a segment here.
func (t template) pathProblem() string {
	var text strings.Builder
	for _, p := range t.parts {
		if p.variable != "" {
			text.WriteByte('v')
		}
		text.WriteString(p.literal)
	}
	path := text.String()
	first, rest, _ := strings.Cut(path, "/")
	switch {
	case !validLiteral(path):
		return "want a path such as secret/registries/{host}: segments with one slash between them, none of them . or .., without %, ?, #, \\ and control characters"
	case rest == "" || !strings.Contains(t.literal(), "/"):
		return "its first segment is the engine's mount, and has to be written out"
	case first == "sys" || first == "auth":
		return "what is below sys/ and auth/ is no secret"
	}
	return ""
}

// validLiteral takes a path that somebody wrote into the settings.
func validLiteral(path string) bool {
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "" || segment == "." || segment == ".." || strings.TrimSpace(segment) != segment {
			return false
		}
	}
	return utf8.ValidString(path) && !strings.ContainsAny(path, `%?#\*`) && !strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// valueError is a value that is no segment of a path.
type valueError struct{ of, what string }

func (e *valueError) Error() string { return e.of + " " + e.what }

// maxValue bounds a value, in bytes. The names of Kubernetes and of repositories are shorter.
const maxValue = 512

// checkSegment says what is wrong with a value that becomes a segment, or a part of one: nothing that anybody could take for another path, whoever decodes it how often. What is allowed is what names of hosts, repositories and
// Kubernetes' objects are made of, and a little more for annotations.
func checkSegment(of, value string) error {
	wrong := func(what string) error { return &valueError{of, what} }
	switch {
	case value == "":
		return wrong("is empty")
	case len(value) > maxValue:
		return wrong(fmt.Sprintf("has more than %d bytes", maxValue))
	case strings.Trim(value, ".") == "":
		return wrong(fmt.Sprintf("is %q, which means another directory", value))
	case strings.Contains(value, "/"):
		return wrong("has a slash: it is to be one segment")
	case strings.Contains(value, "%"):
		return wrong("has a %, by which a slash or anything else can be spelled")
	case strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return wrong("has a control character")
	}
	for _, r := range value {
		if !hosts.ConsistsOf(strings.ToLower(string(r)), "-._~:@=,[]", 1, 1) || r > 0x7f {
			return wrong(fmt.Sprintf("has the character %q: letters and digits of ASCII and -._~:@=,[] are taken", r))
		}
	}
	return nil
}

// render puts values into the variables. Each is one segment or a part of one, but {repository}, which may have several.
func (t template) render(value func(part) (string, error)) (string, error) {
	var text strings.Builder
	for _, p := range t.parts {
		if p.variable == "" {
			text.WriteString(p.literal)
			continue
		}
		v, err := value(p)
		if err != nil {
			return "", err
		}
		segments := []string{v}
		if p.variable == "repository" {
			segments = strings.Split(v, "/")
		}
		for _, segment := range segments {
			if err := checkSegment(p.String(), segment); err != nil {
				return "", err
			}
		}
		text.WriteString(v)
	}
	rendered := text.String()
	for segment := range strings.SplitSeq(rendered, "/") { // a literal and a value may only together be one of these
		if rendered != "" && (segment == "." || segment == "..") {
			return "", &valueError{fmt.Sprintf("%q", remote.Cut(rendered)), "has a segment that means another directory"}
		}
	}
	return rendered, nil
}
