package cloud

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// metadata asks a metadata server.
func (g *GoogleInstance) metadata(ctx context.Context, path string, headers ...string) (googleAnswer, string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, g.URL()+path, http.NoBody)
	if err != nil {
		return googleAnswer{}, "", err
	}
	for pair := range slices.Chunk(headers, 2) {
		r.Header.Set(pair[0], pair[1])
	}
	response, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return googleAnswer{}, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	a := googleAnswer{status: response.StatusCode, header: response.Header}
	_ = json.Unmarshal(body, &a.fields) // not all answers are JSON
	return a, string(body), err
}

func TestGoogleMetadata(t *testing.T) {
	const other = "other@images.iam.gserviceaccount.com"
	c := New(t)
	g := c.GoogleInstance(ServiceAccount{Email: testAccountEmail}, ServiceAccount{Email: other})
	g.SetScopes(scopePrefix+"devstorage.read_only", scopePrefix+"logging.write")
	g.SetAttribute("cluster-name", "c1")
	number := strconv.FormatInt(g.ProjectNumber(), 10)
	const accounts = "/computeMetadata/v1/instance/service-accounts/"
	flavor := []string{"Metadata-Flavor", "Google"}
	for _, test := range []struct {
		name, path string
		headers    []string
		status     int
		body       string // "": any
		principal  string
	}{
		{name: "its root", path: "/", status: 200, body: "0.1/\ncomputeMetadata/\n"},
		{name: "the project", path: "/computeMetadata/v1/project/project-id", headers: flavor, status: 200, body: "images"},
		{name: "the project's number", path: "/computeMetadata/v1/project/numeric-project-id", headers: flavor, status: 200, body: number},
		{name: "the universe", path: "/computeMetadata/v1/universe/universe-domain", headers: flavor, status: 200, body: "googleapis.com"},
		{name: "the zone", path: "/computeMetadata/v1/instance/zone", headers: flavor, status: 200, body: "projects/" + number + "/zones/europe-west1-b"},
		{name: "an attribute", path: "/computeMetadata/v1/instance/attributes/cluster-name", headers: flavor, status: 200, body: "c1"},
		{name: "no such attribute", path: "/computeMetadata/v1/instance/attributes/x", headers: flavor, status: 404},
		{name: "the accounts", path: accounts, headers: flavor, status: 200, body: "default/\n" + testAccountEmail + "/\n" + other + "/\n"},
		{name: "the default account", path: accounts + "default/email", headers: flavor, status: 200, body: testAccountEmail, principal: testAccountEmail},
		{name: "an account by name", path: accounts + other + "/email", headers: flavor, status: 200, body: other, principal: other},
		{name: "aliases", path: accounts + "default/aliases", headers: flavor, status: 200, body: "default\n", principal: testAccountEmail},
		{
			name: "all of another account", path: accounts + other + "/?recursive=true", headers: flavor, status: 200, principal: other,
			body: `{"aliases":[],"email":"` + other + `","scopes":["` + scopePrefix + `devstorage.read_only","` + scopePrefix + `logging.write"]}` + "\n",
		},
		{name: "scopes", path: accounts + "default/scopes", headers: flavor, status: 200, body: scopePrefix + "devstorage.read_only\n" + scopePrefix + "logging.write\n", principal: testAccountEmail},
		{name: "an account's entries", path: accounts + "default/", headers: flavor, status: 200, body: "aliases\nemail\nidentity\nscopes\ntoken\n", principal: testAccountEmail},
		{
			name: "all of an account", path: accounts + "default/?recursive=true", headers: flavor, status: 200, principal: testAccountEmail,
			body: `{"aliases":["default"],"email":"` + testAccountEmail + `","scopes":["` + scopePrefix + `devstorage.read_only","` + scopePrefix + `logging.write"]}` + "\n",
		},
		{name: "no such account", path: accounts + "x@y/token", headers: flavor, status: 404},
		{name: "no such page", path: accounts + "default/x", headers: flavor, status: 404, principal: testAccountEmail},
		{name: "no such value", path: "/computeMetadata/v1/x", headers: flavor, status: 404},
		{name: "another version", path: "/computeMetadata/v2/project/project-id", headers: flavor, status: 404},
		{name: "without its header", path: accounts + "default/token", status: 403},
		{name: "with another flavor", path: accounts + "default/token", headers: []string{"Metadata-Flavor", "x"}, status: 403},
		{name: "forwarded", path: accounts + "default/token", headers: append([]string{"X-Forwarded-For", "192.0.2.1"}, flavor...), status: 403},
	} {
		t.Run(test.name, func(t *testing.T) {
			answer, body, err := g.metadata(t.Context(), test.path, test.headers...)
			if err != nil {
				t.Fatal(err)
			}
			if answer.status != test.status || test.body != "" && body != test.body || answer.header.Get("Metadata-Flavor") != "Google" {
				t.Errorf("%d %q, %v", answer.status, body, answer.header)
			}
			if r := c.last(t); r.Service != "google-metadata" || r.Status != test.status || r.Principal != test.principal || (r.Code == "") != (test.status == 200) {
				t.Errorf("%+v", r)
			}
		})
	}
	if none := c.GoogleInstance(); none.URL() != "" {
		for path, want := range map[string]int{accounts: 200, accounts + "default/token": 404} {
			if answer, body, err := none.metadata(t.Context(), path, flavor...); err != nil || answer.status != want || want == 200 && body != "" {
				t.Errorf("without an account, %s: %d %q, %v", path, answer.status, body, err)
			}
		}
	}
}

func TestGoogleMetadataTokens(t *testing.T) {
	c := fixed(t)
	g := c.GoogleInstance(ServiceAccount{Email: testAccountEmail})
	get := func(query string) (string, time.Duration, []string) {
		t.Helper()
		answer, body, err := g.metadata(t.Context(), "/computeMetadata/v1/instance/service-accounts/default/token"+query, "Metadata-Flavor", "Google")
		if err != nil || answer.status != http.StatusOK || answer.text("token_type") != "Bearer" || answer.header.Get("Content-Type") != "application/json" {
			t.Fatalf("%d %s, %v", answer.status, body, err)
		}
		seconds, _ := answer.fields["expires_in"].(float64)
		principal, scopes, expires, ok := c.AccessTokenOf(answer.text("access_token"))
		if left := time.Duration(seconds) * time.Second; principal != testAccountEmail || !ok || expires != c.Now().Add(left) {
			t.Fatalf("%s for %s until %s", principal, left, expires)
		}
		if r := c.last(t); r.Operation != "token" || r.Principal != testAccountEmail {
			t.Errorf("%+v", r)
		}
		return answer.text("access_token"), time.Duration(seconds) * time.Second, scopes
	}
	first, left, scopes := get("")
	if left != googleLife || len(scopes) != 1 || scopes[0] != scopeCloudPlatform {
		t.Errorf("%s, %s", left, scopes)
	}
	c.SetClockOffset(googleLife - 5*time.Minute - time.Second)
	if again, left, _ := get(""); again != first || left != 5*time.Minute+time.Second {
		t.Errorf("another token for %s, before its time", left)
	}
	c.SetClockOffset(googleLife - 5*time.Minute)
	if again, left, _ := get(""); again == first || left != googleLife {
		t.Errorf("the same token for %s, when five minutes are left", left)
	}
	g.SetTokenLife(3 * time.Minute)
	short, left, _ := get("")
	if left != 3*time.Minute {
		t.Errorf("a token for %s", left)
	}
	c.SetClockOffset(googleLife - 5*time.Minute + 3*time.Minute - time.Second)
	if again, left, _ := get(""); again != short || left != time.Second {
		t.Errorf("another token for %s, before its end", left)
	}
	c.SetClockOffset(googleLife)
	if again, _, _ := get(""); again == short {
		t.Error("a token after its end")
	}
	g.SetTokenLife(time.Hour)
	narrow := scopePrefix + "devstorage.read_only"
	for _, test := range []struct {
		has, query, want string
	}{
		{scopeCloudPlatform, "?scopes=" + narrow, narrow},
		{scopeCloudPlatform, "?scopes=" + narrow + "," + scopeIAM, narrow + "," + scopeIAM},
		{narrow + "," + scopeIAM, "?scopes=" + narrow, narrow},
		{narrow, "?scopes=" + scopeCloudPlatform, narrow},
		{narrow, "", narrow},
	} {
		g.SetScopes(strings.Split(test.has, ",")...)
		if _, _, scopes := get(test.query); strings.Join(scopes, ",") != test.want {
			t.Errorf("of %s, %s: %s", test.has, test.query, scopes)
		}
	}
}

func TestGoogleMetadataOutOfOrder(t *testing.T) {
	c := New(t)
	g := c.GoogleInstance(ServiceAccount{Email: testAccountEmail})
	const path = "/computeMetadata/v1/instance/service-accounts/default/token"
	get := func() (googleAnswer, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		answer, _, err := g.metadata(ctx, path, "Metadata-Flavor", "Google")
		return answer, err
	}
	c.Fail(Fault{Service: "google-metadata", Operation: "token", Times: 1, Status: 500})
	if answer, err := get(); err != nil || answer.status != 500 {
		t.Errorf("%d, %v", answer.status, err)
	}
	c.Fail(Fault{Service: "google-metadata", Operation: "token", Times: 1, Hang: true})
	if _, err := get(); err == nil {
		t.Error("an answer from what hangs")
	}
	if answer, err := get(); err != nil || answer.status != 200 {
		t.Errorf("%d, %v", answer.status, err)
	}
	working := g.URL()
	g.Refuse()
	if _, err := get(); err == nil || g.URL() == working || !strings.HasSuffix(g.URL(), strings.TrimPrefix(g.Environ()[0], "GCE_METADATA_HOST=")) {
		t.Errorf("%s, %v", g.URL(), err)
	}
	g.Absent()
	if _, err := get(); err == nil {
		t.Error("an answer from nobody")
	}
}
