package check

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/credential-broker/credential-broker/backends/gar/internal/ask"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
)

const token = "ya29.a-token"

// served asks an API that answers as h does. The rest is tested against the fake cloud, by package gar.
func served(t *testing.T, q ask.Question, h http.HandlerFunc) ask.Answer {
	t.Helper()
	api := httptest.NewServer(h)
	defer api.Close()
	q.Token, q.Endpoint, q.Project, q.Location, q.Repository = token, api.URL, "p", "l", "r"
	question, err := json.Marshal(q)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := Serve(t.Context(), bytes.NewReader(question), &out); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), token) {
		t.Errorf("it tells the token: %s", &out)
	}
	var a ask.Answer
	if err := json.Unmarshal(out.Bytes(), &a); err != nil {
		t.Fatalf("%v: %s", err, &out)
	}
	return a
}

// TestTheTokenStaysHere: it is sent to no place that a redirection points to.
func TestTheTokenStaysHere(t *testing.T) {
	var asked atomic.Int32
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer elsewhere.Close()
	a := served(t, ask.Question{Redirection: true}, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+token {
			t.Error("the token is not there")
		}
		http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
	})
	for _, f := range []*ask.Failure{a.Permission.Failure, a.Repository.Failure, a.Redirection.Failure} {
		if f == nil || f.Status != http.StatusTemporaryRedirect {
			t.Errorf("%+v", f)
		}
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("the other place was asked %d times", n)
	}
}

// TestFailures: what is told of an answer, and what is not.
func TestFailures(t *testing.T) {
	long := `{"name": "` + strings.Repeat("x", remote.MaxAnswer) + `"}`
	for name, test := range map[string]struct {
		status int
		body   string
		want   ask.Failure
	}{
		"the API is off":        {403, `{"error": {"code": 403, "status": "PERMISSION_DENIED", "details": [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "SERVICE_DISABLED", "metadata": {"consumer": "projects/123"}}]}}`, ask.Failure{Status: 403, Code: "PERMISSION_DENIED SERVICE_DISABLED", Consumer: "projects/123"}},
		"no project's name":     {403, `{"error": {"code": 403, "status": "PERMISSION_DENIED", "details": [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "SERVICE_DISABLED", "metadata": {"consumer": "projects/` + "`id`" + `"}}]}}`, ask.Failure{Status: 403, Code: "PERMISSION_DENIED SERVICE_DISABLED"}},
		"a code that is none":   {403, `{"error": {"code": 403, "status": "` + token + `"}}`, ask.Failure{Status: 403}},
		"a page":                {502, "<html>" + token, ask.Failure{Status: 502}},
		"a page in place of it": {200, "<html>" + token, ask.Failure{Status: 200}},
		"too long":              {200, long, ask.Failure{Status: 200}},
	} {
		t.Run(name, func(t *testing.T) {
			a := served(t, ask.Question{}, func(w http.ResponseWriter, _ *http.Request) {
				w.Header()["Date"] = nil
				w.WriteHeader(test.status)
				_, _ = w.Write([]byte(test.body))
			})
			if diff := cmp.Diff(&test.want, a.Repository.Failure); diff != "" {
				t.Error(diff)
			}
			if a.Permission.Failure == nil || a.Permission.Held {
				t.Errorf("%+v", a.Permission)
			}
			if a.Redirection.Failure != nil {
				t.Errorf("it was not asked for: %+v", a.Redirection)
			}
		})
	}
}

// TestTheTimeIsTheQuestions: there is an answer, and it says so, when the time is over.
func TestTheTimeIsTheQuestions(t *testing.T) {
	a := served(t, ask.Question{Within: 1}, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("{}")) })
	if diff := cmp.Diff(&ask.Failure{Text: "no answer in time"}, a.Permission.Failure); diff != "" {
		t.Error(diff)
	}
}

// TestNoQuestion: the error quotes nothing of what was read, which could be the token.
func TestNoQuestion(t *testing.T) {
	for _, text := range []string{"", token, `{"token": "` + token + `", "project": "` + token, `{"project": {"` + token + `": 1}}`} {
		var out bytes.Buffer
		err := Serve(context.Background(), strings.NewReader(text), &out)
		if err == nil || strings.Contains(err.Error(), token) || out.Len() != 0 {
			t.Errorf("%q: %v, and %q", text, err, &out)
		}
	}
}
