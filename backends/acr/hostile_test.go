package acr

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/test/cloud"
)

// TestAHostileRegistryGetsNothing: whoever answers in a registry's name is given no token that is good elsewhere, nor is anybody whom it points to.
func TestAHostileRegistryGetsNothing(t *testing.T) {
	const thief = "thief.example"
	for name, test := range map[string]struct {
		registry cloud.HostileRegistry
		kind     backends.Kind
		want     string
		// own: the registry itself is sent the token, which is for it, and what it says to that is of no use to it.
		own bool
	}{
		"another host's realm":           {cloud.HostileRegistry{Challenge: `Bearer realm="https://` + thief + `/oauth2/token",service="` + host + `"`}, refused, `it wants to have logins sent to "https://thief.example/oauth2/token", which is not its own address`, false},
		"another registry's realm":       {cloud.HostileRegistry{Challenge: `Bearer realm="https://fabrikam.azurecr.io/oauth2/token",service="fabrikam.azurecr.io"`}, refused, "which is not its own address", false},
		"a realm without TLS":            {cloud.HostileRegistry{Challenge: `Bearer realm="http://` + host + `/oauth2/token",service="` + host + `"`}, refused, "which is not its own address", false},
		"a realm at another port":        {cloud.HostileRegistry{Challenge: `Bearer realm="https://` + host + `:8443/oauth2/token",service="` + host + `"`}, refused, "which is not its own address", false},
		"a realm behind a user":          {cloud.HostileRegistry{Challenge: `Bearer realm="https://` + host + `@` + thief + `/oauth2/token",service="` + host + `"`}, refused, "which is not its own address", false},
		"no realm":                       {cloud.HostileRegistry{Challenge: `Bearer service="` + host + `"`}, refused, "which is not its own address", false},
		"another kind of challenge":      {cloud.HostileRegistry{Challenge: `Basic realm="https://` + host + `/oauth2/token"`}, refused, "is no Azure Container Registry that takes logins by Entra", false},
		"a redirected challenge":         {cloud.HostileRegistry{Redirect: "https://" + thief + "/v2/"}, refused, "it points elsewhere (HTTP status 307), and nothing is sent there", false},
		"a redirected exchange":          {cloud.HostileRegistry{RedirectExchange: "https://" + thief + "/oauth2/exchange"}, refused, "it points elsewhere (HTTP status 307), and nothing is sent there", true},
		"an exchange redirected to http": {cloud.HostileRegistry{RedirectExchange: "http://" + thief + "/oauth2/exchange"}, refused, "it points elsewhere (HTTP status 307), and nothing is sent there", true},
		"an answer that is too long":     {cloud.HostileRegistry{Oversized: true}, unavailable, "the answer is too long", false},
		"an answer that does not end":    {cloud.HostileRegistry{Endless: true}, unavailable, "the answer is too long", false},
	} {
		t.Run(name, func(t *testing.T) {
			c, tenant := setUp(t)
			p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Secrets: []string{secret}})
			test.registry.Host = host
			c.AddHostileRegistry(test.registry)
			c.AddThief(thief)
			c.AddThief("fabrikam.azurecr.io")
			b := backendFor(t, c, Config{Identity: Identity{TenantID: tenant, ClientID: p.ClientID, ClientSecretFile: write(t, "secret", []byte(secret))}})
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			_, err := b.Credentials(ctx, backends.Request{Image: image})
			failed(t, err, test.kind, test.want)
			stolen := c.Stolen()
			if !test.own && len(stolen) > 0 {
				t.Errorf("it got %d tokens", len(stolen))
			}
			if test.own && len(stolen) == 0 {
				t.Error("this test sees no theft")
			}
			for _, r := range c.Requests() {
				if r.Host == thief || strings.HasPrefix(r.Host, "fabrikam") {
					t.Errorf("asked: %+v", r)
				}
			}
		})
	}
}

// TestAHostileRegistryIsBelievedForItselfAlone: what it says its token is, is given for its own name.
func TestAHostileRegistryIsBelievedForItselfAlone(t *testing.T) {
	c, tenant := setUp(t)
	p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Secrets: []string{secret}})
	c.AddHostileRegistry(cloud.HostileRegistry{Host: host})
	b := backendFor(t, c, Config{Identity: Identity{TenantID: tenant, ClientID: p.ClientID, ClientSecretFile: write(t, "secret", []byte(secret))}})
	got, err := b.Credentials(t.Context(), backends.Request{Image: image})
	if err != nil || len(got.Credentials) != 1 || got.Credentials[0].Key != host {
		t.Errorf("%+v, %v", got, err)
	}
}
