package kubelet

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// commentWidth is how wide comments in printed YAML are, in characters.
const commentWidth = 110

// document writes YAML as a person would: block style, comments, quotes only where they are needed. Whatever it quotes is read alike by the kubelet's YAML 1.1 and by
// YAML 1.2.
type document struct {
	strings.Builder
}

// line writes one line. The format holds no foreign text: that goes through scalar.
func (d *document) line(format string, args ...any) {
	fmt.Fprintf(d, format+"\n", args...)
}

// comment writes text as a comment, broken at spaces. A "- " at its beginning hangs.
func (d *document) comment(text string) {
	hang := ""
	if strings.HasPrefix(text, "- ") {
		hang = "  "
	}
	line, first := "", true
	flush := func() {
		prefix := "# "
		if !first {
			prefix += hang
		}
		d.line("%s%s", prefix, line)
		line, first = "", false
	}
	for word := range strings.FieldsSeq(printable(text)) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > commentWidth {
			flush()
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	flush()
}

// printable takes out what would end a comment or could not stand in YAML.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsGraphic(r) || r == utf8.RuneError || r == 0xfeff {
			return ' '
		}
		return r
	}, s)
}

// list writes "name:" and one item to a line, and nothing for an empty list.
func (d *document) list(indent, name string, items []string) {
	if len(items) == 0 {
		return
	}
	d.line("%s%s:", indent, name)
	for _, item := range items {
		d.line("%s- %s", indent, scalar(item))
	}
}

func (d *document) env(indent string, env []EnvVar) {
	if len(env) == 0 {
		return
	}
	d.line("%senv:", indent)
	for _, e := range env {
		d.line("%s- name: %s", indent, scalar(e.Name))
		d.line("%s  value: %s", indent, scalar(e.Value))
	}
}

func (d *document) tokenAttributes(indent string, t *TokenAttributes) {
	if t == nil {
		return
	}
	d.line("%stokenAttributes:", indent)
	d.line("%s  serviceAccountTokenAudience: %s", indent, scalar(t.ServiceAccountTokenAudience))
	d.line("%s  cacheType: %s", indent, scalar(t.CacheType))
	if t.RequireServiceAccount != nil {
		d.line("%s  requireServiceAccount: %t", indent, *t.RequireServiceAccount)
	}
	d.list(indent+"  ", "requiredServiceAccountAnnotationKeys", t.RequiredServiceAccountAnnotationKeys)
	d.list(indent+"  ", "optionalServiceAccountAnnotationKeys", t.OptionalServiceAccountAnnotationKeys)
}

// scalar is a string as YAML: as it is where every reader takes it for a string, else in double quotes.
func scalar(s string) string {
	if isPlain(s) {
		return s
	}
	return quoted(s)
}

func isPlain(s string) bool {
	start := strings.TrimPrefix(s, "--") // of an argument
	if start == "" || !isWord(start[0]) && start[0] != '/' || s[len(s)-1] == ':' {
		return false
	}
	for i := range len(s) {
		if !isWord(s[i]) && !strings.Contains("-_./:@+=,", s[i:i+1]) {
			return false
		}
	}
	numeric := isDigit(start[0]) && strings.Trim(s, "0123456789abcdefABCDEFxXoO_.:+-") == "" // number, date or time to some reader
	return !numeric && unquoted(0, s).kind == text
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isWord(c byte) bool { return isDigit(c) || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }

// quoted is JSON, which is YAML too, save that YAML wants more characters escaped.
func quoted(s string) string {
	var plain strings.Builder
	encoder := json.NewEncoder(&plain)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(s); err != nil {
		panic(fmt.Sprintf("encoding a string as JSON: %v", err)) // there is no error for a string
	}
	var out strings.Builder
	for _, r := range strings.TrimSuffix(plain.String(), "\n") {
		switch {
		case r >= ' ' && r < 0x7f, r >= 0xa0 && unicode.IsGraphic(r):
			out.WriteRune(r)
		case r > 0xffff:
			fmt.Fprintf(&out, `\U%08x`, r)
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
	}
	return out.String()
}
