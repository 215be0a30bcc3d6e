package cloud

import (
	"encoding/json"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// TestSignJWT is about what the Credentials API signs: claims as they are, with a key of the account that anybody can look up.
func TestSignJWT(t *testing.T) {
	const caller, other = "caller@images.iam.gserviceaccount.com", "other@images.iam.gserviceaccount.com"
	c := fixed(t)
	for _, email := range []string{caller, other, testAccountEmail} {
		c.AddServiceAccount(ServiceAccount{Email: email})
	}
	c.AllowImpersonation(caller, testAccountEmail)
	at := func(d time.Duration) string { return strconv.FormatInt(c.Now().Add(d).Unix(), 10) }
	const invalid = "400 INVALID_ARGUMENT Invalid JWT payload."
	for _, test := range []struct {
		name, target, payload string
		ends                  time.Duration
		want                  string
	}{
		{name: "claims", payload: `{"sub":"x","exp":` + at(time.Minute) + `}`, ends: time.Minute},
		{name: "for twelve hours", payload: `{"sub":"x","exp":` + at(12*time.Hour) + `}`, ends: 12 * time.Hour},
		{name: "without an end", payload: `{"sub":"x"}`, ends: time.Hour},
		{name: "for longer", payload: `{"exp":` + at(12*time.Hour+time.Second) + `}`, want: invalid},
		{name: "for no time", payload: `{"exp":` + at(0) + `}`, want: invalid},
		{name: "until a part of a second", payload: `{"exp":` + at(time.Minute) + `.5}`, want: invalid},
		{name: "until a text", payload: `{"exp":"` + at(time.Minute) + `"}`, want: invalid},
		{name: "no object", payload: `[]`, want: invalid},
		{name: "null", payload: `null`, want: invalid},
		{name: "nothing", want: invalid},
		{name: "of another account", target: other, payload: `{}`, want: "403 PERMISSION_DENIED Permission 'iam.serviceAccounts.signJwt' denied on resource (or it may not exist)."},
	} {
		t.Run(test.name, func(t *testing.T) {
			target := testAccountEmail
			if test.target != "" {
				target = test.target
			}
			answer := c.send(t, http.MethodPost, "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/"+target+":signJwt", string(mustJSON(map[string]string{"payload": test.payload})),
				"Authorization", "Bearer "+c.AccessToken(caller, time.Hour, scopeIAM))
			got := ""
			if answer.status != http.StatusOK {
				got = statusText(answer.status) + " " + answer.text("error.status") + " " + answer.text("error.message")
			}
			if got != test.want {
				t.Fatalf("%q, not %q", got, test.want)
			}
			if r := c.last(t); r.Operation != "signJwt" || r.Principal != caller || r.Status != answer.status {
				t.Errorf("%+v", r)
			}
			if test.want != "" {
				return
			}
			signed, err := jose.ParseSignedCompact(answer.text("signedJwt"), []jose.SignatureAlgorithm{jose.RS256})
			if err != nil {
				t.Fatal(err)
			}
			id := signed.Signatures[0].Header.KeyID
			payload, err := signed.Verify(c.ServiceAccountKey(testAccountEmail, id))
			var claims struct {
				Sub string
				Exp int64
			}
			if err != nil || json.Unmarshal(payload, &claims) != nil || claims.Sub != "x" || claims.Exp != c.Now().Add(test.ends).Unix() || answer.text("keyId") != id {
				t.Errorf("%s, %v", payload, err)
			}
			if c.ServiceAccountKey(other, id) != nil || c.ServiceAccountKey(testAccountEmail, "x") != nil {
				t.Error("the key is another account's too, or has another name")
			}
		})
	}
	c.DeleteServiceAccountKeys(testAccountEmail)
	if _, token, ok := c.signJWT(testAccountEmail, `{"exp":`+at(time.Hour)+`}`); !ok || !c.signedBy(testAccountEmail, token) {
		t.Error("there is no new key in the place of one that was deleted")
	}
}
