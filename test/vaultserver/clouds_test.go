package vaultserver

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/credential-broker/credential-broker/test/cloud"
)

// ask gets what a metadata server has.
func ask(t *testing.T, address string, header ...string) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set(header[0], header[1])
	w, err := (&http.Transport{}).RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Body.Close()
	body, err := io.ReadAll(w.Body)
	if err != nil || w.StatusCode != http.StatusOK {
		t.Fatalf("%s: %d %s, %v", address, w.StatusCode, body, err)
	}
	return string(body)
}

func TestGCPInstance(t *testing.T) {
	c := cloud.New(t)
	s := New(t, Options{Cloud: c})
	const node, elsewhere = "node@images.iam.gserviceaccount.com", "node@other.iam.gserviceaccount.com"
	here, there := c.GoogleInstance(cloud.ServiceAccount{Email: node}), c.GoogleInstance(cloud.ServiceAccount{Email: elsewhere})
	s.GCP("gcp", "puller", "gce", "images", []string{"default"}, map[string]any{"bound_labels": []string{"pool:web"}})
	identity := func(g *cloud.GoogleInstance, audience, format string) string {
		query := url.Values{"audience": {audience}, "format": {format}}
		return ask(t, g.URL()+"/computeMetadata/v1/instance/service-accounts/default/identity?"+query.Encode(), "Metadata-Flavor", "Google")
	}
	login := func(token string) error {
		secret, err := s.login("gcp", map[string]any{"role": "puller", "jwt": token})
		if err == nil && secret.Auth.Metadata["service_account_email"] != node {
			t.Errorf("%v", secret.Auth.Metadata)
		}
		return err
	}
	good := identity(here, "http://vault/puller", "full")
	wantRefusal(t, login(good), http.StatusBadRequest, `instance missing bound label "pool:web"`)
	here.SetLabel("pool", "web")
	if err := login(good); err != nil {
		t.Error(err)
	}
	wantRefusal(t, login(identity(here, "http://vault/other", "full")), http.StatusBadRequest, "at least one of the JWT claim 'aud'")
	wantRefusal(t, login(identity(here, "http://vault/puller", "standard")), http.StatusBadRequest, "expected JWT to have claims with GCE metadata")
	wantRefusal(t, login(identity(there, "http://vault/puller", "full")), http.StatusBadRequest, "not in bound projects")
	here.SetStatus("TERMINATED")
	wantRefusal(t, login(good), http.StatusBadRequest, "invalid status 'TERMINATED'")
}

func TestGCPServiceAccount(t *testing.T) {
	c := cloud.New(t)
	s := New(t, Options{Cloud: c})
	const puller, other, elsewhere = "puller@images.iam.gserviceaccount.com", "other@images.iam.gserviceaccount.com", "puller@other.iam.gserviceaccount.com"
	keys := map[string]jose.SigningKey{}
	for _, email := range []string{puller, other, elsewhere} {
		c.AddServiceAccount(cloud.ServiceAccount{Email: email})
		var file struct {
			ID  string `json:"private_key_id"`
			Key string `json:"private_key"`
		}
		if err := json.Unmarshal(c.ServiceAccountKeyFile(email), &file); err != nil {
			t.Fatal(err)
		}
		keys[email] = jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: privateKey(t, file.Key), KeyID: file.ID}}
	}
	sign := func(key, email, audience string, life time.Duration) string {
		signer, err := jose.NewSigner(keys[key], nil)
		if err != nil {
			t.Fatal(err)
		}
		token, err := jwt.Signed(signer).Claims(map[string]any{"sub": email, "aud": audience, "exp": time.Now().Add(life).Unix()}).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	s.GCP("gcp", "puller", "iam", "images", []string{"default"}, map[string]any{"bound_service_accounts": []string{puller}})
	s.GCP("gcp", "project", "iam", "images", []string{"default"}, nil)
	login := func(role, token string) error {
		_, err := s.login("gcp", map[string]any{"role": role, "jwt": token})
		return err
	}
	for role, email := range map[string]string{"puller": puller, "project": other} {
		if err := login(role, sign(email, email, "vault/"+role, 10*time.Minute)); err != nil {
			t.Errorf("%s: %v", role, err)
		}
	}
	for name, test := range map[string]struct{ role, token, words string }{
		"another account":   {"puller", sign(other, other, "vault/puller", time.Minute), "is not authorized for role"},
		"another project":   {"project", sign(elsewhere, elsewhere, "vault/project", time.Minute), "403"},
		"another's key":     {"puller", sign(other, puller, "vault/puller", time.Minute), "unable to get public key"},
		"another audience":  {"puller", sign(puller, puller, "vault/project", time.Minute), "at least one of the JWT claim 'aud'"},
		"for half an hour":  {"puller", sign(puller, puller, "vault/puller", 30*time.Minute), "expire within 900 seconds"},
		"no longer":         {"puller", sign(puller, puller, "vault/puller", -2*time.Minute), "JWT is expired"},
		"a role unheard of": {"none", sign(puller, puller, "vault/none", time.Minute), `role "none" not found`},
	} {
		t.Run(name, func(t *testing.T) {
			err := login(test.role, test.token)
			if _, text := refusal(err); !strings.Contains(text, test.words) {
				t.Errorf("%v, not %q", err, test.words)
			}
		})
	}
}

func TestAzure(t *testing.T) {
	c := cloud.New(t)
	s := New(t, Options{Cloud: c})
	tenant := c.AddEntraTenant(cloud.EntraTenant{}).ID
	alone, scaled, other := c.AzureInstanceIn(tenant, cloud.ManagedIdentity{System: true}), c.AzureScaleSetInstance(tenant, "pool", cloud.ManagedIdentity{}), c.AzureInstanceIn(tenant, cloud.ManagedIdentity{})
	token := func(a *cloud.AzureInstance, resource string) string {
		query := url.Values{"api-version": {"2018-02-01"}, "resource": {resource}}
		var answer struct {
			Token string `json:"access_token"`
		}
		if err := json.Unmarshal([]byte(ask(t, a.URL()+"/metadata/identity/oauth2/token?"+query.Encode(), "Metadata", "true")), &answer); err != nil {
			t.Fatal(err)
		}
		return answer.Token
	}
	const management = "https://management.azure.com/"
	subscriptions := []string{alone.Compute().SubscriptionID, scaled.Compute().SubscriptionID}
	s.Azure("azure", "machines", tenant, []string{"default"}, map[string]any{"bound_subscription_ids": subscriptions, "bound_locations": []string{"westeurope"}})
	s.Azure("azure", "identity", tenant, []string{"default"}, map[string]any{"bound_service_principal_ids": []string{alone.Identities()[0].ObjectID}})
	login := func(role, token string, a *cloud.AzureInstance, change map[string]any) error {
		data := map[string]any{"role": role, "jwt": token}
		if a != nil {
			m := a.Compute()
			data["subscription_id"], data["resource_group_name"] = m.SubscriptionID, m.ResourceGroupName
			if data["vm_name"] = m.Name; m.ScaleSet != "" {
				data["vmss_name"] = m.ScaleSet
			}
		}
		maps.Copy(data, change)
		_, err := s.login("azure", data)
		return err
	}
	for name, err := range map[string]error{
		"a machine":             login("machines", token(alone, management), alone, nil),
		"one of a scale set":    login("machines", token(scaled, management), scaled, nil),
		"an identity by itself": login("identity", token(alone, management), nil, nil),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, test := range map[string]struct {
		err   error
		words string
	}{
		"another resource's token": {login("machines", token(alone, "https://containerregistry.azure.net"), alone, nil), "expected audience"},
		"another machine's name":   {login("machines", token(alone, management), scaled, nil), "vmss_name"},
		"another machine's token":  {login("machines", token(other, management), alone, nil), "neither token object id nor token app id match"},
		"another subscription":     {login("machines", token(other, management), other, nil), "403"},
		"nothing of the machine":   {login("machines", token(alone, management), nil, nil), "subscription_id and resource_group_name are required"},
		"another identity":         {login("identity", token(other, management), nil, nil), "service principal not authorized"},
		"a role unheard of":        {login("none", token(alone, management), alone, nil), `invalid role name "none"`},
	} {
		if _, text := refusal(test.err); !strings.Contains(text, test.words) {
			t.Errorf("%s: %v, not %q", name, test.err, test.words)
		}
	}
}

// privateKey reads a key in PEM.
func privateKey(t *testing.T, text string) any {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		t.Fatal("no PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
