package cloud

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"maps"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// TestGoogleKeys is about the keys that verify what Google and service accounts sign, in both forms.
func TestGoogleKeys(t *testing.T) {
	c := New(t)
	c.AddServiceAccount(ServiceAccount{Email: testAccountEmail})
	var file struct {
		ID string `json:"private_key_id"`
	}
	if err := json.Unmarshal(c.ServiceAccountKeyFile(testAccountEmail), &file); err != nil {
		t.Fatal(err)
	}
	google := c.AddIssuer(GoogleIssuer)
	google.Rotate() // the older key goes on being published
	for base, want := range map[string]map[string]*rsa.PublicKey{
		"/oauth2/v":                      {google.Keys().Keys[0].KeyID: google.Keys().Keys[0].Key.(*rsa.PublicKey), google.Keys().Keys[1].KeyID: google.Keys().Keys[1].Key.(*rsa.PublicKey)},
		"/service_accounts/v1/metadata/": {file.ID: c.ServiceAccountKey(testAccountEmail, file.ID)},
		"/robot/v1/metadata/":            {file.ID: c.ServiceAccountKey(testAccountEmail, file.ID)},
	} {
		certificates, keys := base+"x509/"+testAccountEmail, base+"jwk/"+testAccountEmail
		if base == "/oauth2/v" {
			certificates, keys = "/oauth2/v1/certs", "/oauth2/v3/certs"
		}
		got := map[string]*rsa.PublicKey{}
		for id, text := range c.send(t, http.MethodGet, "https://www.googleapis.com"+certificates, "").fields {
			block, _ := pem.Decode([]byte(text.(string)))
			certificate, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			got[id] = certificate.PublicKey.(*rsa.PublicKey)
		}
		if !maps.EqualFunc(got, want, func(a, b *rsa.PublicKey) bool { return a.Equal(b) }) {
			t.Errorf("%s: %v", certificates, slices.Collect(maps.Keys(got)))
		}
		var set jose.JSONWebKeySet
		if err := into(c.send(t, http.MethodGet, "https://www.googleapis.com"+keys, "").fields, &set); err != nil {
			t.Fatal(err)
		}
		for _, key := range set.Keys {
			if want[key.KeyID] == nil || !want[key.KeyID].Equal(key.Key) || len(set.Keys) != len(want) {
				t.Errorf("%s: %s", keys, key.KeyID)
			}
		}
	}
	c.DeleteServiceAccountKeys(testAccountEmail)
	for path, want := range map[string]int{
		"/service_accounts/v1/metadata/x509/" + testAccountEmail: 200, "/service_accounts/v1/metadata/raw/" + testAccountEmail: 404, "/service_accounts/v1/metadata/x509/nobody@example.com": 404, "/oauth2/v2/certs": 404,
	} {
		if answer := c.send(t, http.MethodGet, "https://www.googleapis.com"+path, ""); answer.status != want || len(answer.fields) > 1 {
			t.Errorf("%s: %d %v", path, answer.status, answer.fields)
		}
	}
}

// TestGoogleLooks is about who may look at a service account and at an instance.
func TestGoogleLooks(t *testing.T) {
	const asker, node = "asker@elsewhere.iam.gserviceaccount.com", "node@images.iam.gserviceaccount.com"
	c := New(t)
	c.AddServiceAccount(ServiceAccount{Email: asker})
	c.GoogleInstance(ServiceAccount{Email: node}) // is hidden by the next one
	g := c.GoogleInstance(ServiceAccount{Email: node})
	g.SetLabel("pool", "web")
	account, instance := "https://iam.googleapis.com/v1/projects/images/serviceAccounts/"+node, "https://compute.googleapis.com/compute/v1/projects/images/zones/europe-west1-b/instances/node-1"
	look := func(address string, scopes ...string) googleAnswer {
		return c.send(t, http.MethodGet, address, "", "Authorization", "Bearer "+c.AccessToken(asker, time.Hour, scopes...))
	}
	if a := look(account, scopeCloudPlatform); a.status != http.StatusForbidden || a.text("error.status") != "PERMISSION_DENIED" {
		t.Errorf("an account without permission: %v", a.fields)
	}
	if a := look(instance, scopeCloudPlatform); a.status != http.StatusForbidden || a.text("error.message") != "Required 'compute.instances.get' permission for 'projects/images/zones/europe-west1-b/instances/node-1'" {
		t.Errorf("an instance without permission: %v", a.fields)
	}
	c.GrantCustomRole("images", asker, "iam.serviceAccounts.get", "compute.instances.get")
	number := g.ServiceAccounts()[0].UniqueID
	for _, address := range []string{account, "https://iam.googleapis.com/v1/projects/-/serviceAccounts/" + number} {
		if a := look(address, scopeIAM); a.status != http.StatusOK || a.text("email") != node || a.text("uniqueId") != number || a.text("projectId") != "images" {
			t.Errorf("%s: %v", address, a.fields)
		}
		if r := c.last(t); r.Service != "google-iam" || r.Operation != "GetServiceAccount" || r.Principal != asker {
			t.Errorf("%+v", r)
		}
	}
	a := look(instance, scopePrefix+"compute.readonly")
	if a.status != http.StatusOK || a.text("name") != "node-1" || a.text("id") != g.id || a.text("labels.pool") != "web" || a.text("status") != "RUNNING" {
		t.Errorf("an instance: %v", a.fields)
	}
	if r := c.last(t); r.Service != "google-compute" || r.Operation != "GetInstance" || r.Principal != asker {
		t.Errorf("%+v", r)
	}
	for address, want := range map[string]int{
		"https://iam.googleapis.com/v1/projects/images/serviceAccounts/nobody@images.iam.gserviceaccount.com": 404,
		"https://iam.googleapis.com/v1/projects/-/serviceAccounts/nobody@images.iam.gserviceaccount.com":      403,
		"https://iam.googleapis.com/v1/projects/images/serviceAccounts/" + asker:                              404,
		"https://iam.googleapis.com/v1/projects/images/serviceAccounts":                                       404,
		instance + "2": 404,
		"https://compute.googleapis.com/compute/v1/projects/elsewhere/zones/europe-west1-b/instances/node-1": 403,
		"https://compute.googleapis.com/compute/v1/projects/images/zones/europe-west1-c/instances/node-1":    404,
	} {
		if a := look(address, scopeCloudPlatform); a.status != want {
			t.Errorf("%s: %d, not %d", address, a.status, want)
		}
	}
	for _, address := range []string{account, instance} {
		if a := look(address, scopePrefix+"devstorage.read_only"); a.status != http.StatusForbidden {
			t.Errorf("without the scope: %v", a.fields)
		}
		if a := c.send(t, http.MethodGet, address, ""); a.status != http.StatusUnauthorized {
			t.Errorf("without a token: %v", a.fields)
		}
		if a := c.send(t, http.MethodPost, address, "", "Authorization", "Bearer "+c.AccessToken(asker, time.Hour, scopeCloudPlatform)); a.status != http.StatusNotFound {
			t.Errorf("a POST: %v", a.fields)
		}
	}
	c.Fail(Fault{Service: "google-compute", Times: 1})
	if a := look(instance, scopeCloudPlatform); a.status != http.StatusTooManyRequests {
		t.Errorf("a fault: %v", a.fields)
	}
}
