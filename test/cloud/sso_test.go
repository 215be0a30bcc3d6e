package cloud

import (
	"net/http"
	"testing"
	"time"
)

func TestSSO(t *testing.T) {
	c := fixed(t)
	token := c.SSO("eu-west-1", testRole)
	client := c.Client()
	t.Cleanup(client.CloseIdleConnections)
	const right = "https://portal.sso.eu-west-1.amazonaws.com/federation/credentials?account_id=111122223333&role_name=puller"
	for name, test := range map[string]struct {
		url, token string
		later      time.Duration
		status     int
	}{
		"the role":         {right, token, 0, 200},
		"no token":         {right, "", 0, 401},
		"another token":    {right, "x", 0, 401},
		"an old token":     {right, token, 8 * time.Hour, 401},
		"another region":   {"https://portal.sso.us-east-1.amazonaws.com/federation/credentials?account_id=111122223333&role_name=puller", token, 0, 401},
		"another role":     {"https://portal.sso.eu-west-1.amazonaws.com/federation/credentials?account_id=111122223333&role_name=other", token, 0, 403},
		"another account":  {"https://portal.sso.eu-west-1.amazonaws.com/federation/credentials?account_id=444455556666&role_name=puller", token, 0, 403},
		"another function": {"https://portal.sso.eu-west-1.amazonaws.com/assignment/accounts", token, 0, 404},
	} {
		t.Run(name, func(t *testing.T) {
			c.SetClockOffset(test.later)
			defer c.SetClockOffset(0)
			r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, test.url, http.NoBody)
			r.Header.Set("X-Amz-Sso_bearer_token", test.token)
			answer, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			answer.Body.Close()
			if answer.StatusCode != test.status {
				t.Errorf("%d, not %d", answer.StatusCode, test.status)
			}
		})
	}
}
