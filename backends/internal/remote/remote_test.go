package remote

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestTheBudgetLeavesTimeForAnAnswer(t *testing.T) {
	for whole, atMost := range map[time.Duration]time.Duration{10 * time.Second: 9 * time.Second, time.Minute: 59 * time.Second, time.Second: 900 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), whole)
		within, done := WithinBudget(ctx)
		outer, _ := ctx.Deadline()
		inner, ok := within.Deadline()
		if kept := outer.Sub(inner); !ok || kept > whole-atMost || kept < (whole-atMost)*9/10 { // time has passed since
			t.Errorf("%s of %s are kept", kept, whole)
		}
		done()
		cancel()
	}
	within, done := WithinBudget(t.Context())
	defer done()
	if _, ok := within.Deadline(); ok {
		t.Error("there is a deadline where there was none")
	}
}

func TestAProxysWordsAreNotRepeated(t *testing.T) {
	if err := Connected(t.Context(), nil, nil, &http.Response{StatusCode: http.StatusOK, Status: "200 secret"}); err != nil {
		t.Error(err)
	}
	for status, want := range map[int]string{407: "another user and password", 502: "status 502"} {
		err := Connected(t.Context(), nil, nil, &http.Response{StatusCode: status, Status: "secret"})
		if _, ok := errors.AsType[*ProxyError](err); !ok || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%d: %v", status, err)
		}
	}
}

func TestCut(t *testing.T) {
	for text, want := range map[string]string{"a\nb\x7fc": "a b c", "a\xffb": "a?b", strings.Repeat("ä", 200): strings.Repeat("ä", 150) + "…", "a" + strings.Repeat("ä", 200): "a" + strings.Repeat("ä", 149) + "…"} {
		if got := Cut(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
