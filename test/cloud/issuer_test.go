package cloud

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"
)

func TestIssuerOverHTTP(t *testing.T) {
	c := New(t)
	client := c.Client()
	t.Cleanup(client.CloseIdleConnections)
	get := func(url string, into any) int {
		answer, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		if answer.StatusCode == http.StatusOK {
			if err := json.NewDecoder(answer.Body).Decode(into); err != nil {
				t.Error(err)
			}
		}
		return answer.StatusCode
	}
	for _, url := range []string{"https://oidc.example.com/id/1", "https://oidc.example.com/id/2", "https://other.example.com", "https://slash.example.com/"} {
		i := c.AddIssuer(url)
		if c.AddIssuer(url) != i || i.URL() != url {
			t.Errorf("%s is not the same issuer when added again", url)
		}
		var discovery struct {
			Issuer string `json:"issuer"`
			JWKS   string `json:"jwks_uri"`
		}
		if status := get(trimmed(url)+"/.well-known/openid-configuration", &discovery); status != http.StatusOK || discovery.Issuer != url {
			t.Errorf("%s: %d, %+v", url, status, discovery)
		}
		var keys struct{ Keys []map[string]string }
		i.Rotate()
		if status := get(discovery.JWKS, &keys); status != http.StatusOK || len(keys.Keys) != 2 || keys.Keys[0]["d"] != "" || keys.Keys[0]["n"] == "" {
			t.Errorf("%s: %d, %d keys", url, status, len(keys.Keys))
		}
		claims, err := c.verifyToken(i.Token(map[string]any{"sub": "me"}), url)
		issued, _ := numericDate(claims, "iat")
		if expires, ok := numericDate(claims, "exp"); err != nil || !ok || expires.Sub(issued) != time.Hour || claims["sub"] != "me" || claims["iss"] != url {
			t.Errorf("%s: %v, %v", url, claims, err)
		}
	}
	if status := get("https://oidc.example.com/id/3/.well-known/openid-configuration", nil); status != http.StatusNotFound {
		t.Errorf("an issuer that was not added: %d", status)
	}
}

func trimmed(url string) string {
	if url[len(url)-1] == '/' {
		return url[:len(url)-1]
	}
	return url
}
