package cloud

import (
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// secrets are what Secrets gives. They have a lock of their own, since they come to be while others are held.
type secrets struct {
	mu  sync.Mutex
	all []string
}

func (s *secrets) add(secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, secret)
}

// Secrets are those that nobody could know before, oldest first: the tokens that all issuers of the cloud have signed (Entra's, registries', AWS's, pods'), the assertions that Entra was shown, and
// what those who give managed identities' tokens want to be shown.
func (c *Cloud) Secrets() []string {
	c.secrets.mu.Lock()
	defer c.secrets.mu.Unlock()
	return slices.Clone(c.secrets.all)
}

// Sent stands, in the Body of a Fault, for the body of the request and the values of its header, as they are within a string of JSON.
const Sent = "$SENT"

// Repeated is a Fault's body with what it repeats: Sent replaced by what stands for it. It reads the request's body.
func Repeated(body string, r *http.Request) string {
	if !strings.Contains(body, Sent) {
		return body
	}
	sent, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	all := []string{string(sent)}
	for _, values := range r.Header {
		all = append(all, values...)
	}
	text, err := json.Marshal(strings.Join(all, " "))
	if err != nil {
		panic(err)
	}
	return strings.ReplaceAll(body, Sent, string(text[1:len(text)-1]))
}
