package vault

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/test/cloud"
)

const (
	gcpNode   = "node@my-project.iam.gserviceaccount.com"
	gcpPuller = "puller@my-project.iam.gserviceaccount.com"
)

func TestGCPSettings(t *testing.T) {
	for name, tt := range map[string]struct {
		g    *GCP
		want map[string]string
	}{
		"none":                             {nil, nil},
		"empty ones":                       {&GCP{}, nil},
		"all of the instance's":            {&GCP{Type: "gce", ServiceAccount: "default", Endpoint: "http://127.0.0.1:8080"}, nil},
		"a key":                            {&GCP{Type: "iam", ServiceAccount: gcpPuller, CredentialsFile: "/etc/key.json"}, nil},
		"Google's signature":               {&GCP{Type: "iam", ServiceAccount: gcpPuller, Endpoint: "http://127.0.0.1:8080"}, nil},
		"another type":                     {&GCP{Type: "GCE"}, map[string]string{"auth.x.type": `want one of ["gce" "iam"], got "GCE"`}},
		"an account that is none":          {&GCP{ServiceAccount: "a b"}, map[string]string{"auth.x.serviceAccount": "service account's email address"}},
		"nobody's signature":               {&GCP{Type: "iam", ServiceAccount: "default"}, map[string]string{"auth.x.serviceAccount": "service account's email address"}},
		"a signature of another's path":    {&GCP{Type: "iam", ServiceAccount: "a/../b@c.d"}, map[string]string{"auth.x.serviceAccount": "service account's email address"}},
		"a key for the instance":           {&GCP{CredentialsFile: "/etc/key.json"}, map[string]string{"auth.x.credentialsFile": "is for type iam"}},
		"a key, somewhere":                 {&GCP{Type: "iam", CredentialsFile: "key.json"}, map[string]string{"auth.x.credentialsFile": "absolute path"}},
		"a key, and whom to ask instead":   {&GCP{Type: "iam", CredentialsFile: "/etc/key.json", Endpoint: "http://127.0.0.1:8080"}, map[string]string{"auth.x.endpoint": "of no use with credentialsFile"}},
		"a metadata server that is no URL": {&GCP{Endpoint: "127.0.0.1"}, map[string]string{"auth.x.endpoint": "want a URL"}},
	} {
		t.Run(name, func(t *testing.T) { finds(t, problemsWith(t, tt.g.validate), tt.want) })
	}
}

// claimed verifies a login's token as Vault does, by the key that Google publishes of it, and gives what it says.
func claimed(t *testing.T, parameters map[string]any, key func(id string) any) (said struct {
	Sub, Aud string
	Exp      int64
	Google   struct {
		Engine struct {
			Project  string `json:"project_id"`
			Instance string `json:"instance_id"`
		} `json:"compute_engine"`
	}
},
) {
	t.Helper()
	token, _ := parameters["jwt"].(string)
	signed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil || len(parameters) != 1 {
		t.Fatalf("%d parameters, %v", len(parameters), err)
	}
	payload, err := signed.Verify(key(signed.Signatures[0].Header.KeyID))
	if err != nil || json.Unmarshal(payload, &said) != nil {
		t.Fatalf("%s, %v", payload, err)
	}
	return said
}

// TestGCE: the token is the instance's, in full, and for the role alone.
func TestGCE(t *testing.T) {
	c := aCloud(t)
	m := c.GoogleInstance(cloud.ServiceAccount{Email: gcpNode, UniqueID: "112233445566778899001"}, cloud.ServiceAccount{Email: gcpPuller, UniqueID: "112233445566778899002"})
	for name, tt := range map[string]struct {
		g    *GCP
		env  []string
		want string
	}{
		"without settings":        {nil, m.Environ(), "112233445566778899001"},
		"by its address":          {&GCP{Type: "gce", Endpoint: m.URL()}, nil, "112233445566778899001"},
		"another of its accounts": {&GCP{ServiceAccount: gcpPuller}, m.Environ(), "112233445566778899002"},
		"a key is of no interest": {&GCP{}, append(m.Environ(), credentialsVariable+"=/nonexistent"), "112233445566778899001"},
	} {
		t.Run(name, func(t *testing.T) {
			inEnv(t, tt.env...)
			log := heard(t)
			parameters, err := tt.g.parameters(t.Context(), "puller")
			if err != nil {
				t.Fatal(err)
			}
			silent(t, log.String())
			said := claimed(t, parameters, func(id string) any { return publishedKey(t, c, id) })
			if said.Sub != tt.want || said.Aud != "http://vault/puller" || said.Google.Engine.Project != "my-project" || said.Google.Engine.Instance == "" {
				t.Errorf("%+v", said)
			}
		})
	}
	gone, azure, bare := c.GoogleInstance(), c.AzureInstance(cloud.ManagedIdentity{System: true}), c.GoogleInstance()
	gone.Refuse()
	const other = "set auth.gcp.type to iam and credentialsFile, or log in with another OIDC identity by auth.method jwt and its webIdentity or tokenFile"
	for name, tt := range map[string]struct {
		g     *GCP
		role  string
		fault *cloud.Fault
		want  no
	}{
		"no role":                  {nil, "", nil, no{backends.KindMisconfigured, "auth.role", []string{"want the role to log in to"}}},
		"not on Google Cloud":      {&GCP{Endpoint: gone.URL()}, "r", nil, no{backends.KindUnavailable, "", []string{"is this machine on Google Cloud", "If not, " + other}}},
		"on another cloud":         {&GCP{Endpoint: azure.URL()}, "r", nil, no{backends.KindMisconfigured, "auth.gcp", []string{"is not it: " + other}}},
		"no account":               {&GCP{Endpoint: bare.URL()}, "r", nil, no{backends.KindRefused, "", []string{"the machine has no service account (HTTP status 404)", "attach one"}}},
		"an account of others":     {&GCP{Endpoint: m.URL(), ServiceAccount: "a@b.c"}, "r", nil, no{backends.KindMisconfigured, "auth.gcp.serviceAccount", []string{`no service account "a@b.c"`}}},
		"a role that is no part":   {&GCP{Endpoint: m.URL()}, "r", &cloud.Fault{Status: 400, Body: planted}, no{backends.KindMisconfigured, "auth.gcp", []string{`audience "http://vault/r" (HTTP status 400): set auth.role`}}},
		"a server that is broken":  {&GCP{Endpoint: m.URL()}, "r", &cloud.Fault{Status: 500, Body: planted}, no{backends.KindUnavailable, "", []string{"HTTP status 500"}}},
		"a server that says a lot": {&GCP{Endpoint: m.URL()}, "r", &cloud.Fault{Status: 200, Body: planted}, no{backends.KindMisconfigured, "auth.gcp", []string{"no JWT"}}},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.fault != nil {
				tt.fault.Service = "google-metadata"
				c.Fail(*tt.fault)
				defer c.Heal()
			}
			log := heard(t)
			parameters, err := tt.g.parameters(t.Context(), tt.role)
			tt.want.judge(t, parameters, err, log.String(), c.Secrets()...)
		})
	}
}

// publishedKey is one of Google's, as anybody can look it up; nil: there is none with this id.
func publishedKey(t *testing.T, c *cloud.Cloud, id string) any {
	t.Helper()
	get := func(url string, into any) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := c.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		if err := json.NewDecoder(answer.Body).Decode(into); err != nil {
			t.Fatal(err)
		}
	}
	var discovery struct {
		Keys string `json:"jwks_uri"`
	}
	var keys jose.JSONWebKeySet
	get(cloud.GoogleIssuer+"/.well-known/openid-configuration", &discovery)
	get(discovery.Keys, &keys)
	for _, key := range keys.Key(id) {
		return key.Key
	}
	t.Errorf("there is no key %q", id)
	return nil
}

// TestIAM: the claims are signed for the role alone, by the key that Google publishes of the account, and hold for less than the quarter of an hour that Vault takes.
func TestIAM(t *testing.T) {
	for name, tt := range map[string]struct {
		g func(t *testing.T, c *cloud.Cloud) *GCP
		// by is who asked Google to sign; empty: nobody did.
		want, by string
	}{
		"a key": {func(t *testing.T, c *cloud.Cloud) *GCP {
			return &GCP{CredentialsFile: inFile(t, c.ServiceAccountKeyFile(gcpPuller)), ServiceAccount: gcpPuller}
		}, gcpPuller, ""},
		"a key of the environment": {func(t *testing.T, c *cloud.Cloud) *GCP {
			inEnv(t, credentialsVariable+"="+inFile(t, c.ServiceAccountKeyFile(gcpPuller)))
			return &GCP{}
		}, gcpPuller, ""},
		"a key of the settings goes before it": {func(t *testing.T, c *cloud.Cloud) *GCP {
			inEnv(t, credentialsVariable+"=/nonexistent")
			return &GCP{CredentialsFile: inFile(t, c.ServiceAccountKeyFile(gcpPuller))}
		}, gcpPuller, ""},
		"Google, for the machine": {func(t *testing.T, c *cloud.Cloud) *GCP {
			inEnv(t, c.GoogleInstance(cloud.ServiceAccount{Email: gcpNode}).Environ()...)
			c.AllowImpersonation(gcpNode, gcpNode)
			return &GCP{}
		}, gcpNode, gcpNode},
		"Google, for whom the machine may ask": {func(_ *testing.T, c *cloud.Cloud) *GCP {
			c.AllowImpersonation(gcpNode, gcpPuller)
			return &GCP{ServiceAccount: gcpPuller, Endpoint: c.GoogleInstance(cloud.ServiceAccount{Email: gcpNode}).URL()}
		}, gcpPuller, gcpNode},
		"Google, after a while": {func(_ *testing.T, c *cloud.Cloud) *GCP {
			c.AllowImpersonation(gcpNode, gcpPuller)
			c.Fail(cloud.Fault{Service: "google-iam", Times: 1, Status: 503})
			c.Fail(cloud.Fault{Service: "google-metadata", Times: 1})
			return &GCP{ServiceAccount: gcpPuller, Endpoint: c.GoogleInstance(cloud.ServiceAccount{Email: gcpNode}).URL()}
		}, gcpPuller, gcpNode},
	} {
		t.Run(name, func(t *testing.T) {
			c := aCloud(t)
			c.AddServiceAccount(cloud.ServiceAccount{Email: gcpPuller})
			g := tt.g(t, c)
			g.Type, g.by = GCPTypeIAM, c.Client().Transport
			log := heard(t)
			parameters, err := g.parameters(t.Context(), "puller")
			if err != nil {
				t.Fatal(err)
			}
			silent(t, log.String(), c.Secrets()...)
			said := claimed(t, parameters, func(id string) any { return c.ServiceAccountKey(tt.want, id) })
			if left := time.Until(time.Unix(said.Exp, 0)); said.Sub != tt.want || said.Aud != "http://vault/puller" || left > 14*time.Minute || left < 4*time.Minute {
				t.Errorf("%+v, for %s", said, left)
			}
			asked := ""
			for _, r := range c.Requests() {
				if r.Operation == "signJwt" && r.Status == http.StatusOK {
					asked = r.Principal
				} else if r.Service != "google-metadata" && r.Status == http.StatusOK {
					t.Errorf("asked: %+v", r)
				}
			}
			if asked != tt.by {
				t.Errorf("%q has asked, want %q", asked, tt.by)
			}
		})
	}
}

// TestIAMKeys: files without a key that signs.
func TestIAMKeys(t *testing.T) {
	c := aCloud(t)
	c.AddServiceAccount(cloud.ServiceAccount{Email: gcpPuller})
	changed := func(name string, value any) []byte {
		var all map[string]any
		if err := json.Unmarshal(c.ServiceAccountKeyFile(gcpPuller), &all); err != nil {
			t.Fatal(err)
		}
		all[name] = value
		text, err := json.Marshal(all)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, _ := x509.MarshalPKCS8PrivateKey(ec)
	other := "log in with another OIDC identity by auth.method jwt and its webIdentity or tokenFile"
	for name, tt := range map[string]struct {
		content []byte
		account string
		field   string // credentialsFile without
		says    []string
	}{
		"no JSON":                     {[]byte(planted), "", "", []string{"it is not JSON"}},
		"no type":                     {[]byte(`{"private_key":"` + planted + `"}`), "", "", []string{"want a file of type service_account"}},
		"a type that nobody knows":    {[]byte(`{"type":"` + planted + `"}`), "", "", []string{"want a file of type service_account"}},
		"a user's":                    {c.AddGoogleUser("a@b.c"), "", "", []string{"credentials of type authorized_user have no service account's key", other}},
		"another cloud's or issuer's": {[]byte(`{"type":"external_account","credential_source":{"file":"/` + planted + `"}}`), "", "", []string{"credentials of type external_account have no", other}},
		"of somebody impersonated":    {[]byte(`{"type":"impersonated_service_account"}`), "", "", []string{"impersonated_service_account have no", other}},
		"no key":                      {changed("private_key", ""), "", "", []string{"it lacks client_email, private_key_id or private_key", "`gcloud iam service-accounts keys create`"}},
		"a key that is none":          {changed("private_key", planted), "", "", []string{"it lacks"}},
		"half a key":                  {changed("private_key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), "", "", []string{"it lacks"}},
		"a key of another kind":       {changed("private_key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))), "", "", []string{"it lacks"}},
		"no id":                       {changed("private_key_id", ""), "", "", []string{"it lacks"}},
		"nobody's":                    {changed("client_email", planted), "", "", []string{"it lacks"}},
		"somebody else's":             {c.ServiceAccountKeyFile(gcpPuller), gcpNode, "auth.gcp.serviceAccount", []string{"it is " + gcpNode, "is that of " + gcpPuller, "name that one or none"}},
	} {
		for from, field := range map[string]string{"auth.gcp.credentialsFile": "auth.gcp.credentialsFile", credentialsVariable: "auth.gcp"} {
			t.Run(name+", by "+from, func(t *testing.T) {
				g, file := &GCP{Type: GCPTypeIAM, ServiceAccount: tt.account}, inFile(t, tt.content)
				if from == credentialsVariable {
					inEnv(t, from+"="+file)
				} else {
					g.CredentialsFile = file
				}
				if tt.field != "" {
					field = tt.field
				}
				log := heard(t)
				parameters, err := g.parameters(t.Context(), "r")
				no{backends.KindMisconfigured, field, append(tt.says, file+" ("+from+")")}.judge(t, parameters, err, log.String(), "GOCSPX-", "1//0")
			})
		}
	}
	t.Run("no file", func(t *testing.T) {
		parameters, err := (&GCP{Type: GCPTypeIAM, CredentialsFile: filepath.Join(t.TempDir(), "key.json")}).parameters(t.Context(), "r")
		no{backends.KindMisconfigured, "auth.gcp.credentialsFile", []string{"no such file"}}.judge(t, parameters, err, "")
	})
	t.Run("a key of Google's older files", func(t *testing.T) {
		var all struct {
			Key string `json:"private_key"`
		}
		if err := json.Unmarshal(c.ServiceAccountKeyFile(gcpPuller), &all); err != nil {
			t.Fatal(err)
		}
		old := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rsaKey(all.Key))})
		parameters, err := (&GCP{Type: GCPTypeIAM, CredentialsFile: inFile(t, changed("private_key", string(old)))}).parameters(t.Context(), "r")
		if err != nil {
			t.Fatal(err)
		}
		claimed(t, parameters, func(string) any { return &rsaKey(all.Key).PublicKey })
	})
	t.Run("a key that everybody can read", func(t *testing.T) {
		file := inFile(t, c.ServiceAccountKeyFile(gcpPuller))
		if err := os.Chmod(file, 0o644); err != nil {
			t.Fatal(err)
		}
		log := heard(t)
		if _, err := (&GCP{Type: GCPTypeIAM, CredentialsFile: file}).parameters(t.Context(), "r"); err != nil || !strings.Contains(log.String(), "chmod 0600") {
			t.Errorf("%v, %s", err, log)
		}
		silent(t, log.String())
	})
}

// signedClaims is an answer of Google's, unsigned: nobody looks at the signature before Vault does.
func signedClaims(account, audience string) string {
	part := base64.RawURLEncoding.EncodeToString
	return `{"signedJwt":"` + part([]byte("{}")) + "." + part(claims(account, audience)) + "." + part([]byte(planted)) + `"}`
}

// TestIAMNotSigned: why Google has not signed, and what to do.
func TestIAMNotSigned(t *testing.T) {
	const api, server = "google-iam", "google-metadata"
	signature := "signature of service account " + gcpPuller + " by iamcredentials.googleapis.com: "
	fault := func(f cloud.Fault) func(*cloud.Cloud, *cloud.GoogleInstance, *GCP) {
		return func(c *cloud.Cloud, _ *cloud.GoogleInstance, _ *GCP) { c.Fail(f) }
	}
	for name, tt := range map[string]struct {
		prepare func(*cloud.Cloud, *cloud.GoogleInstance, *GCP)
		want    no
	}{
		"it may not": {func(_ *cloud.Cloud, _ *cloud.GoogleInstance, _ *GCP) {}, no{backends.KindRefused, "", []string{
			signature + "HTTP status 403", "`gcloud iam service-accounts add-iam-policy-binding " + gcpPuller + " --member=serviceAccount:EMAIL --role=roles/iam.serviceAccountTokenCreator`",
		}}},
		"not even for itself": {func(_ *cloud.Cloud, _ *cloud.GoogleInstance, g *GCP) { g.ServiceAccount = "" }, no{backends.KindRefused, "", []string{
			"add-iam-policy-binding " + gcpNode + " --member=serviceAccount:" + gcpNode + " --role=",
		}}},
		"its scopes are few": {func(_ *cloud.Cloud, m *cloud.GoogleInstance, _ *GCP) {
			m.SetScopes("https://www.googleapis.com/auth/devstorage.read_only")
		}, no{backends.KindRefused, "", []string{"HTTP status 403", "give it the scope cloud-platform, or log in by auth.gcp.type gce"}}},
		"the API is off": {
			fault(cloud.Fault{Service: api, Status: 403, Body: `{"error":{"message":"` + cloud.Sent + planted + `","details":[{"@type":"x"},{"reason":"SERVICE_DISABLED"}]}}`}),
			no{backends.KindRefused, "", []string{"`gcloud services enable iamcredentials.googleapis.com`"}},
		},
		"no such account": {func(_ *cloud.Cloud, _ *cloud.GoogleInstance, g *GCP) { g.ServiceAccount = "a@b.c" }, no{backends.KindMisconfigured, "auth.gcp.serviceAccount", []string{
			"signature of service account a@b.c", "HTTP status 404: there is no such service account",
		}}},
		"a token that was revoked": {func(c *cloud.Cloud, _ *cloud.GoogleInstance, g *GCP) {
			_, _ = g.metadata(t.Context(), "token")
			c.RevokeAccessTokens()
		}, no{backends.KindUnavailable, "", []string{"HTTP status 401", "the server may have kept one that was revoked"}}},
		"refused":                       {fault(cloud.Fault{Service: api, Status: 400, Body: cloud.Sent}), no{backends.KindRefused, "", []string{signature + "HTTP status 400: it refuses"}}},
		"busy":                          {fault(cloud.Fault{Service: api, Status: 429, Body: cloud.Sent}), no{backends.KindUnavailable, "", []string{"HTTP status 429: it is busy"}}},
		"cut off":                       {fault(cloud.Fault{Service: api, Reset: true}), no{backends.KindUnavailable, "", []string{signature, "the way there has to be open"}}},
		"an answer that is none":        {fault(cloud.Fault{Service: api, Status: 200, Body: planted}), no{backends.KindUnavailable, "", []string{"none that Google documents"}}},
		"an answer without a token":     {fault(cloud.Fault{Service: api, Status: 200, Body: `{"signedJwt":"` + planted + `"}`}), no{backends.KindUnavailable, "", []string{"none that Google documents"}}},
		"an answer for another role":    {fault(cloud.Fault{Service: api, Status: 200, Body: signedClaims(gcpPuller, "http://vault/other")}), no{backends.KindUnavailable, "", []string{"none that Google documents"}}},
		"an answer for another account": {fault(cloud.Fault{Service: api, Status: 200, Body: signedClaims(gcpNode, "http://vault/r")}), no{backends.KindUnavailable, "", []string{"none that Google documents"}}},
		"a redirection": {func(c *cloud.Cloud, _ *cloud.GoogleInstance, _ *GCP) {
			c.Fail(cloud.Fault{Service: api, Status: 307, Body: planted})
		}, no{backends.KindRefused, "", []string{"HTTP status 307: it refuses"}}},
		"a certificate that nobody trusts": {func(c *cloud.Cloud, _ *cloud.GoogleInstance, g *GCP) {
			inEnv(t, "HTTPS_PROXY="+c.ProxyURL(), "https_proxy="+c.ProxyURL(), "NO_PROXY=", "no_proxy=")
			g.by = nil
		}, no{backends.KindRefused, "", []string{signature, "x509: ", "trusts the CA"}}},

		"no metadata server": {func(_ *cloud.Cloud, m *cloud.GoogleInstance, g *GCP) { m.Refuse(); g.Endpoint = m.URL() }, no{backends.KindUnavailable, "", []string{
			"service account's token from Google's metadata server", "there is no key file (GOOGLE_APPLICATION_CREDENTIALS is not set, or not named in inheritEnv)", "name a key in auth.gcp.credentialsFile", "by auth.method jwt",
		}}},
		"another cloud's": {func(c *cloud.Cloud, _ *cloud.GoogleInstance, g *GCP) { g.Endpoint = c.AzureInstance().URL() }, no{backends.KindMisconfigured, "auth.gcp", []string{
			"who answers there (HTTP status 400) is not it", "by auth.method jwt",
		}}},
		"an address that is none": {func(_ *cloud.Cloud, _ *cloud.GoogleInstance, g *GCP) {
			g.Endpoint = ""
			inEnv(t, "GCE_METADATA_HOST=http://a")
		}, no{backends.KindMisconfigured, "auth.gcp.endpoint", []string{"GCE_METADATA_HOST"}}},
		"no service account":        {func(c *cloud.Cloud, _ *cloud.GoogleInstance, g *GCP) { g.Endpoint = c.GoogleInstance().URL() }, no{backends.KindRefused, "", []string{"HTTP status 404", "attach one"}}},
		"a server that is broken":   {fault(cloud.Fault{Service: server, Status: 500, Body: planted}), no{backends.KindUnavailable, "", []string{"busy or broken (HTTP status 500)"}}},
		"a server that refuses":     {fault(cloud.Fault{Service: server, Status: 403, Body: planted}), no{backends.KindRefused, "", []string{"it refuses (HTTP status 403)"}}},
		"a token that is none":      {fault(cloud.Fault{Service: server, Status: 200, Body: planted}), no{backends.KindUnavailable, "", []string{"access token from Google's metadata server: the answer is none"}}},
		"a token with a line's end": {fault(cloud.Fault{Service: server, Status: 200, Body: `{"access_token":"` + planted + `\r\nX: y"}`}), no{backends.KindUnavailable, "", []string{"access token from Google's metadata server: the answer is none"}}},
		"an account that is a pool": {func(c *cloud.Cloud, _ *cloud.GoogleInstance, g *GCP) {
			g.ServiceAccount = ""
			c.Fail(cloud.Fault{Service: server, Status: 200, Body: "p.svc.id.goog"})
		}, no{backends.KindMisconfigured, "auth.gcp.serviceAccount", []string{"set it"}}},
		"an account that is a path": {func(c *cloud.Cloud, _ *cloud.GoogleInstance, g *GCP) {
			g.ServiceAccount = ""
			c.Fail(cloud.Fault{Service: server, Status: 200, Body: "a@b.c/../d"})
		}, no{backends.KindMisconfigured, "auth.gcp.serviceAccount", []string{"set it"}}},
		"somebody else who answers": {func(c *cloud.Cloud, _ *cloud.GoogleInstance, g *GCP) {
			g.Endpoint = c.AzureInstance().URL()
			c.Fail(cloud.Fault{Service: "azure-metadata", Status: 200, Body: planted})
		}, no{backends.KindMisconfigured, "auth.gcp", []string{"(HTTP status 200) is not it"}}},
	} {
		t.Run(name, func(t *testing.T) {
			c := aCloud(t)
			c.AddServiceAccount(cloud.ServiceAccount{Email: gcpPuller})
			m := c.GoogleInstance(cloud.ServiceAccount{Email: gcpNode})
			g := &GCP{Type: GCPTypeIAM, ServiceAccount: gcpPuller, Endpoint: m.URL(), by: c.Client().Transport}
			tt.prepare(c, m, g)
			log := heard(t)
			parameters, err := g.parameters(t.Context(), "r")
			tt.want.judge(t, parameters, err, log.String(), c.Secrets()...)
		})
	}
}
