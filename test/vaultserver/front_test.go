package vaultserver

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/api"

	"github.com/credential-broker/credential-broker/test/cloud"
)

// get reads a secret through a front by HTTP alone, and gives the status and the body.
func (f *Front) get(ctx context.Context, path string) (status int, body []byte, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, f.address+"/v1/"+path, http.NoBody)
	if err != nil {
		return 0, nil, err
	}
	r.Header.Set("X-Vault-Token", f.s.token)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: f.s.ca.pool, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true}}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	defer client.CloseIdleConnections()
	w, err := client.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer w.Body.Close()
	body, err = io.ReadAll(w.Body)
	return w.StatusCode, body, err
}

func TestTheFrontNotesRequests(t *testing.T) {
	s := New(t, Options{})
	s.KV2("secret")
	s.Put("secret", "a b", map[string]any{"password": "p"})
	f := s.Front()
	client, err := s.clientFor(f.Address())
	if err != nil {
		t.Fatal(err)
	}
	client.SetToken(s.RootToken())
	client.SetNamespace("team")
	client.SetWrappingLookupFunc(func(string, string) string { return "1m" })
	if _, err := client.Logical().ReadWithData("secret/data/a b", map[string][]string{"version": {"1"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Logical().Write("auth/approle/login", map[string]any{"role_id": "r"}); err == nil {
		t.Error("a login where there is none")
	}
	all := f.Requests()
	for i := range all {
		all[i].Header = nil
	}
	if diff := cmp.Diff([]Request{
		{Method: "GET", Path: "secret/data/a%20b", Query: "version=1", Namespace: "team", Status: 200, Token: s.RootToken(), Wrap: "1m", Body: []byte{}},
		{Method: "PUT", Path: "auth/approle/login", Namespace: "team", Status: 404, Token: s.RootToken(), Wrap: "1m", Body: []byte(`{"role_id":"r"}`)},
	}, all); diff != "" {
		t.Error(diff)
	}
	if f.Forget(); len(f.Requests()) != 0 {
		t.Error("it does not forget")
	}
}

func TestFaults(t *testing.T) {
	s := New(t, Options{})
	s.KV1("kv")
	s.Put("kv", "a", map[string]any{"password": strings.Repeat("p", 1000)})
	f := s.Front()
	for name, test := range map[string]struct {
		fault  Fault
		status int
		check  func(body []byte, err error) bool
	}{
		"a status":         {Fault{Status: 503, Body: "busy"}, 503, func(body []byte, _ error) bool { return string(body) == "busy" }},
		"no status":        {Fault{}, 500, func(body []byte, _ error) bool { return len(body) == 0 }},
		"what was sent":    {Fault{Status: 400, Body: `{"errors":["` + cloud.Sent + `"]}`}, 400, func(body []byte, _ error) bool { return bytes.Contains(body, []byte(s.token)) }},
		"a reset":          {Fault{Reset: true}, 0, func(_ []byte, err error) bool { return err != nil }},
		"a truncated one":  {Fault{Truncate: true}, 200, func(body []byte, err error) bool { return err != nil && len(body) > 100 && len(body) < 1000 }},
		"an oversized one": {Fault{Oversized: true}, 200, func(body []byte, err error) bool { return err == nil && len(body) > OversizedBytes }},
		"a redirect":       {Fault{Redirect: "https://other.example/"}, 307, func([]byte, error) bool { return true }},
		"another path":     {Fault{Path: "kv/b"}, 200, func(_ []byte, err error) bool { return err == nil }},
		"another method":   {Fault{Method: http.MethodPut}, 200, func(_ []byte, err error) bool { return err == nil }},
		"this path":        {Fault{Path: "kv/", Method: http.MethodGet}, 500, func(_ []byte, err error) bool { return err == nil }},
	} {
		t.Run(name, func(t *testing.T) {
			test.fault.Times = 1
			f.Fail(test.fault)
			if status, body, err := f.get(t.Context(), "kv/a"); status != test.status || !test.check(body, err) {
				t.Errorf("status %d, %d bytes, %v", status, len(body), err)
			}
			f.Heal()
			if status, _, err := f.get(t.Context(), "kv/a"); status != http.StatusOK {
				t.Errorf("afterwards: %d, %v", status, err)
			}
		})
	}
}

func TestAFaultPassesAfterItsTimes(t *testing.T) {
	f := New(t, Options{}).Front()
	f.Fail(Fault{Status: 502, Times: 2})
	for n, want := range []int{502, 502, 200} {
		if got, _, err := f.get(t.Context(), "sys/health"); got != want {
			t.Errorf("request %d: %d, %v", n+1, got, err)
		}
	}
	f.Fail(Fault{Status: 502})
	for range 3 {
		if got, _, err := f.get(t.Context(), "sys/health"); got != 502 {
			t.Errorf("until it is healed: %d, %v", got, err)
		}
	}
}

func TestHang(t *testing.T) {
	s := New(t, Options{})
	f := s.Front()
	f.Fail(Fault{Hang: true})
	ctx, cancel := context.WithCancel(t.Context())
	var came error
	go func() {
		came = s.await("is asked", func() error {
			if len(f.Requests()) == 0 {
				return errors.New("nobody has asked yet")
			}
			return nil
		})
		cancel() // an answer would have come before, as often as not
	}()
	if _, _, err := f.get(ctx, "sys/health"); !errors.Is(err, context.Canceled) || came != nil {
		t.Errorf("%v, %v", err, came)
	}
	if all := f.Requests(); len(all) != 1 || all[0].Status != 0 {
		t.Errorf("%+v", all)
	}
}

// After tells an answer that was lost from a request that was.
func TestAfter(t *testing.T) {
	s := New(t, Options{})
	s.KV1("kv")
	f := s.Front()
	client, err := s.clientFor(f.Address())
	if err != nil {
		t.Fatal(err)
	}
	client.SetToken(s.RootToken())
	for _, after := range []bool{false, true} {
		f.Fail(Fault{Status: 502, After: after, Times: 1})
		if _, err := client.Logical().Write("kv/a", map[string]any{"b": "c"}); err == nil {
			t.Error("no fault")
		}
		secret, err := s.API().Logical().Read("kv/a")
		if err != nil || (secret != nil) != after {
			t.Errorf("after: %t, and Vault has %+v, %v", after, secret, err)
		}
	}
}

// A client that follows redirects, as Vault's own does once, gives its token away.
func TestThief(t *testing.T) {
	s := New(t, Options{})
	f, thief := s.Front(), s.Thief()
	f.Fail(Fault{Redirect: thief.Address()})
	client, err := s.clientFor(f.Address())
	if err != nil {
		t.Fatal(err)
	}
	client.SetToken("a token")
	if _, err := client.Logical().Write("kv/a", map[string]any{"password": "p"}); err != nil || len(thief.Stolen()) != 0 {
		t.Errorf("without redirects: %v, stolen %q", err, thief.Stolen())
	}
	follows, err := api.NewClient(&api.Config{Address: f.Address(), HttpClient: client.CloneConfig().HttpClient})
	if err != nil {
		t.Fatal(err)
	}
	follows.SetToken("a token")
	if _, err := follows.Logical().Write("kv/a", map[string]any{"password": "p"}); err != nil {
		t.Error(err)
	}
	if want := []string{"a token", "/v1/kv/a", `{"password":"p"}`}; !slices.Equal(thief.Stolen(), want) {
		t.Errorf("stolen: %q", thief.Stolen())
	}
}
