// Package redact takes secrets out of text that is about to be shown: error messages and what a program wrote to its standard error. It does not know what a secret
// is; it is told.
package redact

import (
	"encoding/base64"
	"encoding/json"
	"net/url"
	"strconv"
	"strings"

	"github.com/credential-broker/credential-broker/proto/secret"
)

// minLength is how long a string must be to be taken out: shorter ones are no secrets worth the name, and taking them out would only make text unreadable.
const minLength = 4

// Set is the secrets that are in play. The zero value is empty and ready. It is not safe for use by several goroutines.
type Set struct {
	forms []string
	known map[string]bool
}

// Add adds secrets. Each is found as it is and the ways that messages spell it: base64 (four alphabets), JSON, Go and URL quoting; and, where it has several lines as
// a key file does, by each of them.
func (s *Set) Add(secrets ...string) {
	for _, v := range secrets {
		if len(v) < minLength {
			continue
		}
		s.add(v)
		s.encoded(v)
		if quoted, err := json.Marshal(v); err == nil {
			s.add(strings.Trim(string(quoted), `"`))
		}
		for _, q := range []string{strconv.Quote(v), strconv.QuoteToASCII(v)} { // the latter as many languages write JSON
			s.add(q[1 : len(q)-1])
		}
		s.add(url.QueryEscape(v))
		s.add(url.PathEscape(v))
		if strings.Contains(v, "\n") {
			for line := range strings.Lines(v) {
				s.add(strings.TrimSpace(line))
			}
		}
	}
}

// AddPair adds a password and the base64 of "username:password" that an Authorization header carries.
func (s *Set) AddPair(username, password string) {
	if password == "" {
		return
	}
	s.Add(password)
	s.encoded(username + ":" + password)
}

func (s *Set) encoded(v string) {
	for _, e := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		s.add(e.EncodeToString([]byte(v))) // the padded form is this one with "=" behind it
	}
}

func (s *Set) add(form string) {
	if len(form) < minLength || s.known[form] {
		return
	}
	if s.known == nil {
		s.known = map[string]bool{}
	}
	s.known[form] = true
	s.forms = append(s.forms, form)
}

// Text is text with every secret replaced by a mask; so is a secret of which only the end stands at the start of the text or only the start at its end, since
// what is shown is often cut.
func (s *Set) Text(text string) string {
	if len(s.forms) == 0 || text == "" {
		return text
	}
	hide := make([]bool, len(text))
	found := false
	mark := func(from, to int) {
		found = true
		for i := from; i < to; i++ {
			hide[i] = true
		}
	}
	for _, form := range s.forms {
		for at, marked := 0, 0; ; {
			i := strings.Index(text[at:], form)
			if i < 0 {
				break
			}
			from, to := at+i, at+i+len(form)
			mark(max(from, marked), to) // what repeats itself is not marked over and over
			at, marked = from+1, to
		}
		for n := min(len(form)-1, len(text)); n >= minLength; n-- {
			if strings.HasPrefix(text, form[len(form)-n:]) {
				mark(0, n)
				break
			}
		}
		for n := min(len(form)-1, len(text)); n >= minLength; n-- {
			if strings.HasSuffix(text, form[:n]) {
				mark(len(text)-n, len(text))
				break
			}
		}
	}
	if !found {
		return text
	}
	var b strings.Builder
	for i := 0; i < len(text); {
		if !hide[i] {
			b.WriteByte(text[i])
			i++
			continue
		}
		b.WriteString(secret.Mask)
		for i < len(text) && hide[i] {
			i++
		}
	}
	return b.String()
}
