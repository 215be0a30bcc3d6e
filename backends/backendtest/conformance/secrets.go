package conformance

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/credential-broker/credential-broker/proto/secret"
)

// secrets are what a backend must not print or report, in the spellings in which programs print things.
type secrets struct {
	mu    sync.Mutex
	known []known
	short []string // descriptions of those too short to look for
}

type known struct{ what, spelling string }

// minSecret is the length in bytes from which a secret is looked for. Shorter ones are found in ordinary words.
const minSecret = 6

func (s *secrets) add(what, value string) {
	if value == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(value) < minSecret {
		if !slices.Contains(s.short, what) {
			s.short = append(s.short, what)
		}
		return
	}
	asJSON := mustJSON(value)
	quoted := strconv.Quote(value)
	for _, spelling := range []string{
		value, string(asJSON[1 : len(asJSON)-1]), quoted[1 : len(quoted)-1], url.QueryEscape(value), url.PathEscape(value),
		base64.RawStdEncoding.EncodeToString([]byte(value)), base64.RawURLEncoding.EncodeToString([]byte(value)),
	} {
		s.put(what, spelling)
	}
}

// addToken adds a token as a whole, and the parts of a JWT of which something could be made.
func (s *secrets) addToken(token string) {
	s.add("the token", token)
	if parts := strings.Split(token, "."); len(parts) == 3 {
		s.add("the claims of the token", parts[1])
		s.add("the signature of the token", parts[2])
	}
}

// addLogin adds a password, and the pair as an Authorization header has it.
func (s *secrets) addLogin(index int, key, username, password string) {
	what := fmt.Sprintf("the password of credentials[%d] (key %q)", index, shorten(key))
	s.add(what, password)
	if len(password) >= minSecret {
		s.add(what+" with its user name", base64.RawStdEncoding.EncodeToString([]byte(username+":"+password)))
	}
}

func (s *secrets) put(what, spelling string) {
	if !slices.ContainsFunc(s.known, func(k known) bool { return k.spelling == spelling }) {
		s.known = append(s.known, known{what, spelling})
	}
}

// find names the first secret in the text; empty if there is none.
func (s *secrets) find(text []byte) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.known {
		if bytes.Contains(text, []byte(k.spelling)) {
			return k.what
		}
	}
	return ""
}

// mask keeps the secrets out of what the suite itself reports.
func (s *secrets) mask(text string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.known {
		text = strings.ReplaceAll(text, k.spelling, secret.Mask)
	}
	return text
}

func (s *secrets) tooShort() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.short)
}
