package cache

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
)

func TestASuccessorGoesOnWhereTheCacheWas(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		plain, pods := node("plain"), podded("pods", config.CacheTypeServiceAccount)
		gone := node("gone")
		r := broker.Request{Image: "r.io/a", Token: token("n", "a", "u", time.Now().Add(5*time.Hour)), Annotations: map[string]string{"a": "1"}}
		for _, p := range []*config.Provider{plain, pods, gone} {
			ask1(t, c, p, r)
			ask1(t, c, p, r)
		}
		pass(10 * time.Minute)

		var pipe bytes.Buffer
		if err := c.Export(&pipe); err != nil {
			t.Fatal(err)
		}
		held := c.Held()
		c.Close(t.Context())

		next := New(Options{Source: m, Random: func() float64 { return 0.9 }})
		defer next.Close(t.Context())
		n, err := next.Import(&pipe, []*config.Provider{plain, pods})
		if n != 2 || err != nil {
			t.Fatalf("%d taken over, %v", n, err)
		}
		want := held[1:] // all but gone's
		if diff := cmp.Diff(want, next.Held()); diff != "" {
			t.Errorf("held (-before +after):\n%s", diff)
		}
		before := m.count()
		for _, p := range []*config.Provider{plain, pods} {
			got := ask1(t, next, p, broker.Request{Image: "r.io/b", Token: token("n", "a", "u", time.Now().Add(time.Hour), "another"), Annotations: map[string]string{"a": "1"}})
			if string(got.Credentials[0].Password) != madeFor(p, r, true) {
				t.Errorf("%s answers %+v", p.Name, got)
			}
		}
		if m.count() != before {
			t.Error("the source was asked")
		}
		pass(40 * time.Minute)
		calls := m.made()[before:]
		for _, call := range calls { // a lease is any bytes
			if !strings.HasPrefix(call, "renew r.io/a lease-") || !strings.HasSuffix(call, "\xff") {
				t.Errorf("call: %q", call)
			}
		}
		if len(calls) != 2 {
			t.Errorf("%d calls, want 2", len(calls))
		}
	})
}

// A renewal that is under way when the cache is handed over is the successor's to do.
func TestARenewalUnderWayIsHandedOver(t *testing.T) {
	inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
		p := node("p")
		ask1(t, c, p, broker.Request{Image: "r.io/a"})
		slow(m, 5*time.Second, nil)
		pass(time.Until(c.Held()[0].Next) + time.Second)
		if m.count() != 2 {
			t.Fatalf("calls: %q", m.made())
		}
		var pipe bytes.Buffer
		if err := c.Export(&pipe); err != nil {
			t.Fatal(err)
		}
		next := New(Options{Source: m})
		defer next.Close(t.Context())
		before := m.count() // it may renew before Import is back
		if n, err := next.Import(&pipe, []*config.Provider{p}); n != 1 || err != nil {
			t.Fatalf("%d taken over, %v", n, err)
		}
		pass(time.Second)
		if m.count() != before+1 {
			t.Error("the successor does not renew")
		}
	})
}

func TestOnlyWhatIsUnderstoodIsTakenOver(t *testing.T) {
	export := func(t *testing.T, c *Cache, p *config.Provider) map[string]any {
		t.Helper()
		ask1(t, c, p, broker.Request{Image: "r.io/a", Token: token("n", "a", "u", time.Now().Add(5*time.Hour))})
		var pipe bytes.Buffer
		if err := c.Export(&pipe); err != nil {
			t.Fatal(err)
		}
		var exported map[string]any
		if err := json.Unmarshal(pipe.Bytes(), &exported); err != nil {
			t.Fatal(err)
		}
		return exported
	}
	answer := func(exported map[string]any) map[string]any {
		return exported["answers"].([]any)[0].(map[string]any)
	}
	tests := []struct {
		name   string
		change func(exported map[string]any)
		taken  int
		fails  bool
	}{
		{"all of it", func(map[string]any) {}, 1, false},
		{"without fields of a later release", func(e map[string]any) { e["more"], answer(e)["more"] = 1, 2 }, 1, false},
		{"nothing of another version", func(e map[string]any) { e["version"] = 2 }, 0, true},
		{"nothing without a key", func(e map[string]any) { e["key"] = "" }, 0, true},
		{"nothing of another form", func(e map[string]any) { e["answers"] = "secret" }, 0, true},
		{"nothing of another provider", func(e map[string]any) { answer(e)["fingerprint"] = "f" }, 0, false},
		{"no identity that is none", func(e map[string]any) { answer(e)["identity"] = map[string]any{"id": "aaaa"} }, 0, false},
		{"no pod's answer as the node's", func(e map[string]any) { answer(e)["identity"].(map[string]any)["pod"] = false }, 0, false},
		{"no answer that is past its end", func(e map[string]any) { answer(e)["good"] = time.Now() }, 0, false},
		{"no answer that outlives its token", func(e map[string]any) { answer(e)["good"] = time.Now().Add(6 * time.Hour) }, 0, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, Options{}, func(t *testing.T, c *Cache, m *model) {
				p := podded("p", config.CacheTypeToken)
				exported := export(t, c, p)
				test.change(exported)
				data, err := json.Marshal(exported)
				if err != nil {
					t.Fatal(err)
				}
				next := New(Options{Source: m})
				defer next.Close(t.Context())
				n, err := next.Import(bytes.NewReader(data), []*config.Provider{p})
				if n != test.taken || (err != nil) != test.fails {
					t.Errorf("%d taken over, %v", n, err)
				}
				if err != nil && strings.Contains(err.Error(), "secret") {
					t.Errorf("the error quotes what it read: %v", err)
				}
			})
		})
	}
	t.Run("nothing that is cut off", func(t *testing.T) {
		c := New(Options{})
		if _, err := c.Import(strings.NewReader(`{"version":1,"key":`), nil); err == nil {
			t.Error("no error")
		}
	})
	t.Run("nothing once it is in use", func(t *testing.T) {
		inBubble(t, Options{}, func(t *testing.T, c *Cache, _ *model) {
			var pipe bytes.Buffer
			p := node("p")
			ask1(t, c, p, broker.Request{Image: "r.io/a"})
			if err := c.Export(&pipe); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Import(&pipe, []*config.Provider{p}); err == nil {
				t.Error("no error")
			}
		})
	})
}

func FuzzImport(f *testing.F) {
	f.Add([]byte(`{"version":1,"key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","answers":[{"fingerprint":"f","credentials":null}]}`))
	f.Add([]byte(`{"version":1,"key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","leases":[{"fingerprint":"f","provider":{"Name":"p"},"lease":"bA==","due":"2020-01-01T00:00:00Z"},{"lease":"bA=="}]}`))
	p := node("p")
	f.Fuzz(func(t *testing.T, data []byte) {
		c := New(Options{Source: &model{}})
		defer c.Close(t.Context())
		_, _ = c.Import(bytes.NewReader(bytes.ReplaceAll(data, []byte(`"f"`), []byte(`"`+p.Fingerprint()+`"`))), []*config.Provider{p})
		_ = c.Held()
	})
}
