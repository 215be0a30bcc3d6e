package cloud

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// HostileRegistry answers under a registry's name and tries to be given tokens.
type HostileRegistry struct {
	Host string
	// Challenge is the WWW-Authenticate header of its 401. Empty: as an honest registry's.
	Challenge string
	// Redirect is a URL to which each request is redirected, with Status (307 without).
	Redirect string
	// RedirectExchange is a URL to which only POST /oauth2/exchange is redirected, with 307.
	RedirectExchange string
	// Oversized: its answers are 64 MiB of JSON. Endless: they have no end, and are valid JSON as far as they go.
	Oversized, Endless bool
	// Status is a redirection's.
	Status int
}

// AddHostileRegistry makes a hostile registry.
func (c *Cloud) AddHostileRegistry(h HostileRegistry) {
	c.handle(h.Host, "hostile", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.steal(r)
		h.serve(w, r, c.Now())
	}))
}

// AddThief makes a host that answers 200 to anything and keeps what it is sent.
func (c *Cloud) AddThief(host string) {
	c.handle(host, "thief", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.steal(r)
		writeJSON(w, http.StatusOK, map[string]string{"access_token": random(64), "refresh_token": random(64)})
	}))
}

// Stolen is every secret that hostile registries and thieves were sent, oldest first: what is in Authorization after the scheme, and the parameters of forms, JSON and addresses that hold secrets.
func (c *Cloud) Stolen() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.acr.stolen)
}

// steal keeps what is worth keeping of a request.
func (c *Cloud) steal(r *http.Request) {
	var found []string
	if scheme, credential, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok {
		found = append(found, credential)
	} else if scheme != "" {
		found = append(found, scheme)
	}
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	form, _ := url.ParseQuery(string(body))
	var fields map[string]any
	_ = json.Unmarshal(body, &fields)
	for _, name := range []string{"access_token", "refresh_token", "client_assertion", "client_secret", "assertion", "password", "token"} {
		found = append(found, form[name]...)
		found = append(found, r.URL.Query()[name]...)
		if text, ok := fields[name].(string); ok {
			found = append(found, text)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.acr.stolen = append(c.acr.stolen, slices.DeleteFunc(found, func(s string) bool { return s == "" })...)
}

func (h HostileRegistry) serve(w http.ResponseWriter, r *http.Request, now time.Time) {
	exchange := r.Method == http.MethodPost && r.URL.Path == "/oauth2/exchange"
	switch {
	case h.Redirect != "":
		http.Redirect(w, r, h.Redirect, cmp.Or(h.Status, http.StatusTemporaryRedirect))
		return
	case exchange && h.RedirectExchange != "":
		http.Redirect(w, r, h.RedirectExchange, http.StatusTemporaryRedirect)
		return
	}
	begin, end, status := `{"refresh_token":"`, `"}`, http.StatusOK
	if r.Method == http.MethodGet {
		begin, end, status = `{"errors":[{"code":"UNAUTHORIZED","message":"`, `"}]}`, http.StatusUnauthorized
		w.Header().Set("WWW-Authenticate", cmp.Or(h.Challenge, `Bearer realm="https://`+h.Host+`/oauth2/token",service="`+h.Host+`"`))
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	// What looks like a token, so that nobody who wants one can be blamed for not looking at it.
	payload := fmt.Sprintf(`{"iss":"Azure Container Registry","aud":%q,"exp":%d}`, h.Host, now.Add(time.Hour).Unix())
	_, err := io.WriteString(w, begin+base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"RS256"}`))+"."+base64.RawURLEncoding.EncodeToString([]byte(payload))+".")
	chunk := strings.Repeat("a", 1<<16)
	for left := 64 << 20 / len(chunk); err == nil && (h.Endless || h.Oversized && left > 0); left-- {
		_, err = io.WriteString(w, chunk)
	}
	if err == nil {
		_, err = io.WriteString(w, "a"+end)
	}
	if err != nil {
		panic(http.ErrAbortHandler) // the client has gone
	}
}
