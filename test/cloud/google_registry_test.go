package cloud

import (
	"encoding/base64"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

func TestPullFromGoogle(t *testing.T) {
	c := fixed(t)
	c.AddGoogleRegistry("europe-west1-docker.pkg.dev", "images", "app")
	c.AddGoogleRegistry("docker.europe-west1.rep.pkg.dev", "images")
	c.AddGoogleRegistry("us-docker.pkg.dev", "example.com:images", "app")
	c.AddGoogleRegistry("gcr.io", "images")
	c.AddGoogleRegistry("eu.gcr.io", "images")
	c.AddGoogleRegistry("u-france-east1-docker.s3nsregistry.fr", "open", "app")
	c.GrantReader("images", testAccountEmail)
	c.GrantReader("example.com:images", testAccountEmail)
	c.GrantReader("open", allUsers)
	const inPool = "principal://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/subject/me"
	const elsewhere = "principal://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool2/subject/me"
	c.GrantReader("images", "principalSet://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/*")
	token := func(principal string, scopes ...string) string { return c.AccessToken(principal, time.Hour, scopes...) }
	all := token(testAccountEmail, scopeCloudPlatform)
	c.AddServiceAccount(ServiceAccount{Email: testAccountEmail})
	file, key := readKeyFile(t, c.ServiceAccountKeyFile(testAccountEmail))
	signed := func(change map[string]any) string {
		claims := map[string]any{"iss": testAccountEmail, "sub": testAccountEmail, "scope": scopePrefix + "devstorage.read_write", "iat": c.Now().Unix(), "exp": c.Now().Add(time.Hour).Unix()}
		maps.Copy(claims, change)
		return assertion(t, key, jose.RS256, file.PrivateKeyID, claims)
	}
	denied := func(resource string) string {
		return `403 DENIED: Permission "artifactregistry.repositories.downloadArtifacts" denied on resource "` + resource + `" (or it may not exist)`
	}
	const app = "projects/images/locations/europe-west1/repositories/app"
	const failed = "401 UNAUTHORIZED: authentication failed"
	const insufficient = "403 DENIED: Request had insufficient authentication scopes."
	for _, test := range []struct {
		name, image, user, password, want string
	}{
		{name: "with a tag", image: "europe-west1-docker.pkg.dev/images/app/a/b:v1", password: all},
		{name: "with a digest", image: "europe-west1-docker.pkg.dev/images/app/a@sha256:00", password: all},
		{name: "as GKE's provider does", image: "europe-west1-docker.pkg.dev/images/app/a", user: "_token", password: all},
		{name: "at the regional endpoint", image: "docker.europe-west1.rep.pkg.dev/images/app/a", password: all},
		{name: "of a domain's project", image: "us-docker.pkg.dev/example.com/images/app/a", password: all},
		{name: "Container Registry", image: "gcr.io/images/a", password: all},
		{name: "Container Registry in Europe", image: "eu.gcr.io/images/a/b", password: all},
		{name: "a federated identity", image: "europe-west1-docker.pkg.dev/images/app/a", password: token(inPool, scopeCloudPlatform)},
		{name: "with read-only", image: "gcr.io/images/a", password: token(testAccountEmail, scopeCloudPlatform+".read-only")},
		{name: "with storage's scope", image: "gcr.io/images/a", password: token(testAccountEmail, scopePrefix+"devstorage.read_only")},
		{name: "with storage's other scope", image: "gcr.io/images/a", password: token(testAccountEmail, scopePrefix+"devstorage.read_write")},
		{name: "with storage's third scope", image: "gcr.io/images/a", password: token(testAccountEmail, scopePrefix+"devstorage.full_control")},
		{name: "as Google's helper for docker does", image: "gcr.io/images/a", user: "_dcgcr_2_2_1_token", password: all},
		{name: "a token that the account has signed", image: "gcr.io/images/a", password: signed(nil)},
		{name: "for everybody", image: "u-france-east1-docker.s3nsregistry.fr/open/app/a", user: "-"},
		{name: "for everybody, known", image: "u-france-east1-docker.s3nsregistry.fr/open/app/a", password: token("x@y", scopeCloudPlatform)},

		{name: "anonymously", image: "europe-west1-docker.pkg.dev/images/app/a", user: "-", want: `403 DENIED: Unauthenticated request. Unauthenticated requests do not have permission ` +
			`"artifactregistry.repositories.downloadArtifacts" on resource "` + app + `" (or it may not exist)`},
		{name: "another user name", image: "europe-west1-docker.pkg.dev/images/app/a", user: "AWS", password: all, want: failed},
		{name: "another password", image: "europe-west1-docker.pkg.dev/images/app/a", password: "ya29.x", want: failed},
		{name: "an ended token", image: "europe-west1-docker.pkg.dev/images/app/a", password: c.AccessToken(testAccountEmail, 0, scopeCloudPlatform), want: failed},
		{name: "without its scope", image: "europe-west1-docker.pkg.dev/images/app/a", password: token(testAccountEmail, scopeIAM), want: insufficient},
		{name: "signed without a scope", image: "gcr.io/images/a", password: signed(map[string]any{"scope": nil, "aud": "https://artifactregistry.googleapis.com/"}), want: failed},
		{name: "signed without its scope", image: "gcr.io/images/a", password: signed(map[string]any{"scope": scopeIAM}), want: insufficient},
		{name: "signed for somebody else", image: "gcr.io/images/a", password: signed(map[string]any{"sub": "x@y"}), want: failed},
		{name: "signed by somebody else", image: "gcr.io/images/a", password: signed(map[string]any{"iss": "x@y", "sub": "x@y"}), want: failed},
		{name: "signed too long ago", image: "gcr.io/images/a", password: signed(map[string]any{"iat": c.Now().Add(-time.Hour).Unix(), "exp": c.Now().Unix()}), want: failed},
		{name: "a user name like the helper's", image: "gcr.io/images/a", user: "_dcgcr_token", password: all, want: failed},
		{name: "somebody else", image: "europe-west1-docker.pkg.dev/images/app/a", password: token("x@y", scopeCloudPlatform), want: denied(app)},
		{name: "another pool", image: "europe-west1-docker.pkg.dev/images/app/a", password: token(elsewhere, scopeCloudPlatform), want: denied(app)},
		{name: "a project without a grant", image: "gcr.io/example.com/images2/a", password: all, want: denied("projects/example.com:images2/locations/us/repositories/gcr.io")},
		{name: "no such repository", image: "europe-west1-docker.pkg.dev/images/none/a", password: all, want: `404 NAME_UNKNOWN: Repository "none" not found`},
		{name: "elsewhere", image: "us-docker.pkg.dev/images/app/a", password: all, want: `404 NAME_UNKNOWN: Repository "app" not found`},
		{name: "no image", image: "europe-west1-docker.pkg.dev/images/app", password: all, want: "404 NAME_INVALID: Invalid image name: images/app"},
		{name: "no such host", image: "asia-docker.pkg.dev/images/app/a", password: all, want: "no such host"},
	} {
		t.Run(test.name, func(t *testing.T) {
			user := test.user
			switch user {
			case "":
				user = "oauth2accesstoken"
			case "-":
				user = ""
			}
			err := c.Pull(test.image, user, test.password)
			if want := "pulling " + test.image + ": " + test.want; (err == nil) != (test.want == "") || err != nil && err.Error() != want {
				t.Errorf("%v, not %s", err, want)
			}
		})
	}
	c.RevokeAccessTokens()
	if err := c.Pull("gcr.io/images/a", "oauth2accesstoken", all); err == nil {
		t.Error("a revoked token is good")
	}
}

func TestGoogleRegistryOverHTTP(t *testing.T) {
	const host = "europe-west1-docker.pkg.dev"
	c := fixed(t)
	c.AddGoogleRegistry(host, "images", "app")
	c.AddGoogleRegistry(host, "open", "app")
	c.GrantReader("images", testAccountEmail)
	c.GrantReader("open", allUsers)
	access := c.AccessToken(testAccountEmail, time.Hour, scopeCloudPlatform)
	basic := func(password string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte("oauth2accesstoken:"+password))
	}
	get := func(path, authorization string) googleAnswer {
		if authorization == "" {
			return c.send(t, http.MethodGet, "https://"+host+path, "")
		}
		return c.send(t, http.MethodGet, "https://"+host+path, "", "Authorization", authorization)
	}
	exchanged := get("/v2/token?service="+host+"&scope=repository:images/app/a:pull", basic(access)).text("token")
	anonymous := get("/v2/token?service="+host+"&scope=repository:open/app/a:pull", "").text("token")
	if exchanged == "" || anonymous == "" {
		t.Fatalf("tokens %q and %q", exchanged, anonymous)
	}
	for _, test := range []struct {
		name, path, authorization string
		status                    int
		code, principal           string
	}{
		{"the registry", "/v2/", basic(access), 200, "", testAccountEmail},
		{"a manifest", "/v2/images/app/a/manifests/v1", basic(access), 200, "", testAccountEmail},
		{"with the registry's token", "/v2/images/app/a/manifests/v1", "Bearer " + exchanged, 200, "", testAccountEmail},
		{"with the access token", "/v2/images/app/a/manifests/v1", "Bearer " + access, 200, "", testAccountEmail},
		{"an image for everybody", "/v2/open/app/a/manifests/v1", "Bearer " + anonymous, 200, "", ""},
		{"the registry, anonymously", "/v2/", "", 401, "UNAUTHORIZED", ""},
		{"a manifest, anonymously", "/v2/images/app/a/manifests/v1", "", 401, "UNAUTHORIZED", ""},
		{"with nobody's token", "/v2/images/app/a/manifests/v1", "Bearer " + anonymous, 403, "DENIED", ""},
		{"another token", "/v2/images/app/a/manifests/v1", "Bearer x", 401, "UNAUTHORIZED", ""},
		{"another password", "/v2/images/app/a/manifests/v1", basic("x"), 401, "UNAUTHORIZED", ""},
		{"a token for another password", "/v2/token?scope=repository:images/app/a:pull", basic("x"), 401, "UNAUTHORIZED", ""},
		{"nobody's token", "/v2/token?scope=repository:images/app/a:pull", "", 403, "DENIED", ""},
		{"another project", "/v2/other/app/a/manifests/v1", basic(access), 403, "DENIED", testAccountEmail},
		{"no such repository", "/v2/images/none/a/manifests/v1", basic(access), 404, "NAME_UNKNOWN", testAccountEmail},
		{"no such page", "/v2/images/app/a/tags/list", basic(access), 404, "UNSUPPORTED", testAccountEmail},
	} {
		t.Run(test.name, func(t *testing.T) {
			answer := get(test.path, test.authorization)
			if r := c.last(t); answer.status != test.status || r.Status != test.status || r.Code != test.code || r.Principal != test.principal || r.Service != "registry" {
				t.Errorf("%d, %+v", answer.status, r)
			}
			challenge := answer.header.Get("WWW-Authenticate")
			if want := `Bearer realm="https://` + host + `/v2/token",service="` + host + `"`; (answer.status == 401) != strings.HasPrefix(challenge, want) {
				t.Errorf("challenge %q", challenge)
			}
			if manifest := strings.Contains(test.path, "/manifests/"); answer.status == 401 && manifest != strings.HasSuffix(challenge, `,scope="repository:images/app/a:pull"`) {
				t.Errorf("challenge %q", challenge)
			}
		})
	}
	c.SetClockOffset(time.Hour)
	if answer := get("/v2/images/app/a/manifests/v1", "Bearer "+exchanged); answer.status != 401 {
		t.Errorf("after the access token's end: %d", answer.status)
	}
	c.Fail(Fault{Service: "registry", Status: 503, Code: "UNAVAILABLE"})
	if answer := get("/v2/", basic(access)); answer.status != 503 {
		t.Errorf("a fault: %d", answer.status)
	}
}

func TestMembers(t *testing.T) {
	const pool = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool"
	for _, test := range []struct {
		principal, member string
		want              bool
	}{
		{"me@example.com", "me@example.com", true},
		{"principal:" + pool + "/subject/me", "principal:" + pool + "/subject/me", true},
		{"principal:" + pool + "/subject/me", "principalSet:" + pool + "/*", true},
		{"me@example.com", "you@example.com", false},
		{"me@example.com", "principalSet:" + pool + "/*", false},
		{"principal:" + pool + "/subject/me", "principal:" + pool + "/subject/you", false},
		{"principal:" + pool + "/subject/me", "principal:" + pool + "/*", false},
		{"principal:" + pool + "/subject/me", strings.TrimPrefix(pool, "//") + "/*", false},
		{"principal:" + pool + "2/subject/me", "principalSet:" + pool + "/*", false},
		{"", "", false},
	} {
		if got := isMember(test.principal, test.member); got != test.want {
			t.Errorf("%q among %q: %v", test.principal, test.member, got)
		}
	}
}
