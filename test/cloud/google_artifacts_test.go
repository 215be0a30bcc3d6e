package cloud

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestArtifactRegistryAPI(t *testing.T) {
	c := fixed(t)
	const away = "away@other.iam.gserviceaccount.com"
	for _, email := range []string{testAccountEmail, away} {
		c.AddServiceAccount(ServiceAccount{Email: email})
	}
	c.AddGoogleRegistry("europe-west1-docker.pkg.dev", "images", "app", "wheels", "gone")
	c.AddGoogleRegistry("europe-west1-docker.pkg.dev", "off", "app")
	c.AddGoogleRegistry("us-docker.pkg.dev", "example.com:images", "app")
	c.AddGoogleRegistry("eu.gcr.io", "images")
	c.SetGoogleRepository("europe-west1-docker.pkg.dev", "images", "wheels", "PYTHON", "VIRTUAL_REPOSITORY")
	c.DeleteGoogleRepository("europe-west1-docker.pkg.dev", "images", "gone")
	c.SetRedirection("off", "REDIRECTION_FROM_GCR_IO_FINALIZED")
	c.DisableArtifactRegistry("off")
	c.DisableArtifactRegistry("other")
	for _, project := range []string{"images", "off", "example.com:images"} {
		for _, reader := range []string{testAccountEmail, away, "human@example.com"} {
			c.GrantReader(project, reader)
		}
	}
	c.GrantCustomRole("images", "downloader@example.com", permissionDownload)
	c.GrantCustomRole("images", "viewer@example.com", permissionLook, permissionSettings)
	token := func(principal string, scopes ...string) string { return c.AccessToken(principal, time.Hour, scopes...) }
	me, readOnly := token(testAccountEmail, scopeCloudPlatform), token(testAccountEmail, scopeCloudPlatform+".read-only")
	const (
		repositories = "/v1/projects/images/locations/europe-west1/repositories/"
		download     = `{"permissions":["` + permissionDownload + `"]}`
		held         = "200 map[permissions:[" + permissionDownload + "]]"
	)
	denied := func(permission, resource string) string {
		return "403 PERMISSION_DENIED IAM_PERMISSION_DENIED artifactregistry.googleapis.com map[permission:" + permission + " resource:" + resource + "]"
	}
	scope := func(method string) string {
		return "403 PERMISSION_DENIED ACCESS_TOKEN_SCOPE_INSUFFICIENT googleapis.com map[method:google.devtools.artifactregistry.v1.ArtifactRegistry." + method + " service:artifactregistry.googleapis.com]"
	}
	const off = "403 PERMISSION_DENIED SERVICE_DISABLED googleapis.com map[activationUrl:https://console.developers.google.com/apis/api/artifactregistry.googleapis.com/overview?project=%[1]s consumer:projects/%[1]s containerInfo:%[1]s service:artifactregistry.googleapis.com serviceTitle:Artifact Registry API]"
	for _, test := range []struct {
		name, host, path, token, body, want string
	}{
		{name: "may download", path: repositories + "app:testIamPermissions", token: me, body: download, want: held},
		{name: "may download, by a custom role", path: repositories + "app:testIamPermissions", token: token("downloader@example.com", scopeCloudPlatform), body: download, want: held},
		{name: "with the read-only scope", path: repositories + "app:testIamPermissions", token: readOnly, body: download, want: held},
		{name: "may not upload", path: repositories + "app:testIamPermissions", token: me, body: `{"permissions":["artifactregistry.repositories.uploadArtifacts"]}`, want: "200 map[]"},
		{name: "may not download", path: repositories + "app:testIamPermissions", token: token("x@example.com", scopeCloudPlatform), body: download, want: "200 map[]"},
		{name: "may look, and not download", path: repositories + "app:testIamPermissions", token: token("viewer@example.com", scopeCloudPlatform), body: download, want: "200 map[]"},
		{name: "no permission on what does not exist", path: repositories + "gone:testIamPermissions", token: me, body: download, want: "200 map[]"},
		{name: "no permission asked for", path: repositories + "app:testIamPermissions", token: me, body: `{}`, want: "400 INVALID_ARGUMENT"},
		{name: "all permissions asked for", path: repositories + "app:testIamPermissions", token: me, body: `{"permissions":["artifactregistry.*"]}`, want: "400 INVALID_ARGUMENT"},
		{name: "another service's permission", path: repositories + "app:testIamPermissions", token: me, body: `{"permissions":["storage.objects.get"]}`, want: "400 INVALID_ARGUMENT"},
		{name: "no JSON", path: repositories + "app:testIamPermissions", token: me, body: `x`, want: "400 INVALID_ARGUMENT"},

		{name: "a repository", path: repositories + "app", token: me, want: "200 DOCKER STANDARD_REPOSITORY " + repositories[4:] + "app europe-west1-docker.pkg.dev/images/app"},
		{name: "by a custom role", path: repositories + "app", token: token("viewer@example.com", scopeCloudPlatform), want: "200 DOCKER STANDARD_REPOSITORY " + repositories[4:] + "app europe-west1-docker.pkg.dev/images/app"},
		{name: "by number", path: repositories + "app?%24alt=json%3Benum-encoding%3Dint", token: me, want: "200 1 1 " + repositories[4:] + "app europe-west1-docker.pkg.dev/images/app"},
		{name: "of another kind", path: repositories + "wheels?%24alt=json%3Benum-encoding%3Dint", token: readOnly, want: "200 8 2 " + repositories[4:] + "wheels europe-west1-docker.pkg.dev/images/wheels"},
		{name: "of a domain's project", path: "/v1/projects/example.com:images/locations/us/repositories/app", token: me, want: "200 DOCKER STANDARD_REPOSITORY projects/example.com:images/locations/us/repositories/app us-docker.pkg.dev/example.com/images/app"},
		{name: "of Container Registry", path: "/v1/projects/images/locations/europe/repositories/eu.gcr.io", token: me, want: "200 DOCKER STANDARD_REPOSITORY projects/images/locations/europe/repositories/eu.gcr.io europe-docker.pkg.dev/images/eu.gcr.io"},
		{name: "at the region's own endpoint", host: "artifactregistry.europe-west1.rep.googleapis.com", path: repositories + "app", token: me, want: "200 DOCKER STANDARD_REPOSITORY " + repositories[4:] + "app europe-west1-docker.pkg.dev/images/app"},
		{name: "at another region's", host: "artifactregistry.us-east1.rep.googleapis.com", path: repositories + "app", token: me, want: "404 NOT_FOUND"},
		{name: "that does not exist", path: repositories + "gone", token: me, want: "404 NOT_FOUND"},
		{name: "that is not theirs to see", path: repositories + "app", token: token("downloader@example.com", scopeCloudPlatform), want: denied(permissionLook, repositories[4:]+"app")},
		{name: "that neither is nor is theirs to see", path: repositories + "gone", token: token("x@example.com", scopeCloudPlatform), want: denied(permissionLook, repositories[4:]+"gone")},

		{name: "a redirection", path: "/v1/projects/images/projectSettings?%24alt=json%3Benum-encoding%3Dint", token: me, want: "200 map[legacyRedirectionState:2 name:projects/images/projectSettings]"},
		{name: "another", path: "/v1/projects/off/projectSettings", token: me, want: "200 map[legacyRedirectionState:REDIRECTION_FROM_GCR_IO_FINALIZED name:projects/off/projectSettings]"},
		{name: "one that is not theirs to see", path: "/v1/projects/images/projectSettings", token: token("downloader@example.com", scopeCloudPlatform), want: denied(permissionSettings, "projects/images/projectSettings")},

		{name: "an account whose project has the API off", path: repositories + "app", token: token(away, scopeCloudPlatform), want: fmt.Sprintf(off, "other")},
		{name: "a project with the API off", path: "/v1/projects/off/projectSettings", token: token("human@example.com", scopeCloudPlatform), want: fmt.Sprintf(off, "off")},
		{name: "no token", path: repositories + "app", want: "401 UNAUTHENTICATED CREDENTIALS_MISSING googleapis.com map[]"},
		{name: "another token", path: repositories + "app", token: "x", want: "401 UNAUTHENTICATED ACCESS_TOKEN_TYPE_UNSUPPORTED googleapis.com map[]"},
		{name: "an ended token", path: repositories + "app", token: c.AccessToken(testAccountEmail, 0, scopeCloudPlatform), want: "401 UNAUTHENTICATED ACCESS_TOKEN_EXPIRED googleapis.com map[]"},
		{name: "storage's scope", path: repositories + "app", token: token(testAccountEmail, scopePrefix+"devstorage.read_only"), want: scope("GetRepository")},
		{name: "IAM's scope", path: "/v1/projects/images/projectSettings", token: token(testAccountEmail, scopeIAM), want: scope("GetProjectSettings")},
		{name: "another method", path: repositories + "app", token: me, body: "{}", want: "404 NOT_FOUND"},
		{name: "another path", path: "/v1/projects/images/locations/europe-west1", token: me, want: "404 NOT_FOUND"},
	} {
		t.Run(test.name, func(t *testing.T) {
			host, method := test.host, http.MethodGet
			if host == "" {
				host = artifactsAPI
			}
			if test.body != "" {
				method = http.MethodPost
			}
			var headers []string
			if test.token != "" {
				headers = []string{"Authorization", "Bearer " + test.token}
			}
			got := c.send(t, method, "https://"+host+test.path, test.body, headers...)
			said := fmt.Sprint(got.status, " ", got.fields)
			if got.fields["format"] != nil {
				said = fmt.Sprint(got.status, " ", got.fields["format"], " ", got.fields["mode"], " ", got.fields["name"], " ", got.fields["registryUri"])
			}
			if failed, ok := got.fields["error"].(map[string]any); ok {
				said = fmt.Sprint(got.status, " ", failed["status"])
				if failed["code"] != float64(got.status) || failed["message"] == "" {
					t.Errorf("%v", failed)
				}
				if details, ok := failed["details"].([]any); ok {
					info := details[0].(map[string]any)
					metadata, _ := info["metadata"].(map[string]any)
					said += fmt.Sprint(" ", info["reason"], " ", info["domain"], " ", metadata)
				}
			}
			if said != test.want {
				t.Errorf("%s, not %s", said, test.want)
			}
			if r := c.last(t); r.Service != "google-artifacts" || r.Status != got.status {
				t.Errorf("%+v", r)
			}
			if challenge := got.header.Get("WWW-Authenticate"); (got.status == 401) != strings.Contains(challenge, "invalid_token") || strings.Contains(test.want, "SCOPE") != strings.Contains(challenge, "insufficient_scope") {
				t.Errorf("challenge %q", challenge)
			}
		})
	}
	c.Fail(Fault{Service: "google-artifacts", Operation: "GetRepository"})
	if got := c.send(t, http.MethodGet, "https://"+artifactsAPI+repositories+"app", "", "Authorization", "Bearer "+me); got.status != 429 || got.text("error.status") != "RESOURCE_EXHAUSTED" {
		t.Errorf("a fault: %+v", got)
	}
}

// TestPullsThatTheAPIExplains: what the API says of a repository holds for pulls from it.
func TestPullsThatTheAPIExplains(t *testing.T) {
	c := fixed(t)
	c.AddGoogleRegistry("europe-west1-docker.pkg.dev", "images", "wheels", "gone")
	c.AddGoogleRegistry("eu.gcr.io", "images")
	c.SetGoogleRepository("europe-west1-docker.pkg.dev", "images", "wheels", "PYTHON", "STANDARD_REPOSITORY")
	c.DeleteGoogleRepository("europe-west1-docker.pkg.dev", "images", "gone")
	c.GrantCustomRole("images", testAccountEmail, permissionDownload)
	pull := func(image, want string) {
		t.Helper()
		err := c.Pull(image, "oauth2accesstoken", c.AccessToken(testAccountEmail, time.Hour, scopeCloudPlatform))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", image, err, want)
		}
	}
	pull("europe-west1-docker.pkg.dev/images/wheels/a", "is of format PYTHON")
	pull("europe-west1-docker.pkg.dev/images/gone/a", "not found")
	pull("eu.gcr.io/images/a", "")
	c.SetRedirection("images", "REDIRECTION_FROM_GCR_IO_DISABLED")
	pull("eu.gcr.io/images/a", "412 DENIED: Container Registry is shut down")
}
