package cloud

import (
	"crypto/tls"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

// only leaves these variables in the environment of those that Azure's SDK reads.
func only(t *testing.T, environ []string) {
	t.Helper()
	for _, pair := range os.Environ() {
		name, _, _ := strings.Cut(pair, "=")
		for _, prefix := range []string{"AZURE_", "MSI_", "IDENTITY_", "IMDS_", "DEFAULT_IDENTITY_"} {
			if strings.HasPrefix(name, prefix) {
				t.Setenv(name, "") // and unset, below
				_ = os.Unsetenv(name)
			}
		}
	}
	for _, pair := range environ {
		name, value, _ := strings.Cut(pair, "=")
		t.Setenv(name, value)
	}
}

// valueOf is a variable of an environment.
func valueOf(t testing.TB, environ []string, name string) string {
	t.Helper()
	for _, pair := range environ {
		if value, ok := strings.CutPrefix(pair, name+"="); ok {
			return value
		}
	}
	t.Fatalf("there is no %s", name)
	return ""
}

// arc is Azure Arc's endpoint, for who may have it.
func arc(t *testing.T, c *Cloud, id ManagedIdentity) *IdentityEndpoint {
	t.Helper()
	e, err := c.AzureArc(id)
	if err != nil {
		t.Skip(err)
	}
	return e
}

// TestIdentitiesElsewhere has Azure's SDK find each kind of managed identity by nothing but the environment.
func TestIdentitiesElsewhere(t *testing.T) {
	user := ManagedIdentity{}
	for _, test := range []struct {
		name    string
		service string
		start   func(*testing.T, *Cloud) *IdentityEndpoint
		choose  func(ManagedIdentity) azidentity.ManagedIDKind
		index   int // of the identity
		want    string
	}{
		{"App Service", "app-service", func(_ *testing.T, c *Cloud) *IdentityEndpoint {
			return c.AppServiceIdentity(ManagedIdentity{System: true}, user)
		}, nil, 0, ""},
		{
			"App Service by client id", "app-service", func(_ *testing.T, c *Cloud) *IdentityEndpoint {
				return c.AppServiceIdentity(ManagedIdentity{System: true}, user, user)
			},
			func(id ManagedIdentity) azidentity.ManagedIDKind { return azidentity.ClientID(id.ClientID) }, 2, "",
		},
		{
			"App Service by object id", "app-service", func(_ *testing.T, c *Cloud) *IdentityEndpoint { return c.AppServiceIdentity(user, user) },
			func(id ManagedIdentity) azidentity.ManagedIDKind { return azidentity.ObjectID(id.ObjectID) }, 1, "",
		},
		{
			"App Service by resource", "app-service", func(_ *testing.T, c *Cloud) *IdentityEndpoint { return c.AppServiceIdentity(user, user) },
			func(id ManagedIdentity) azidentity.ManagedIDKind { return azidentity.ResourceID(id.ResourceID) }, 1, "",
		},
		{
			"App Service by another client id", "app-service", func(_ *testing.T, c *Cloud) *IdentityEndpoint { return c.AppServiceIdentity(user) },
			func(ManagedIdentity) azidentity.ManagedIDKind { return azidentity.ClientID(testApp) }, 0, "No User Assigned or Delegated Managed Identity found",
		},
		{"App Service without any", "app-service", func(_ *testing.T, c *Cloud) *IdentityEndpoint { return c.AppServiceIdentity() }, nil, -1, "No User Assigned or Delegated Managed Identity found"},
		{"Azure ML", "azure-ml", func(_ *testing.T, c *Cloud) *IdentityEndpoint { return c.AzureMLIdentity(user) }, nil, 0, ""},
		{
			"Azure ML by client id", "azure-ml", func(_ *testing.T, c *Cloud) *IdentityEndpoint { return c.AzureMLIdentity(user) },
			func(id ManagedIdentity) azidentity.ManagedIDKind { return azidentity.ClientID(id.ClientID) }, 0, "",
		},
		{
			"Azure ML by another client id", "azure-ml", func(_ *testing.T, c *Cloud) *IdentityEndpoint { return c.AzureMLIdentity(user) },
			func(ManagedIdentity) azidentity.ManagedIDKind { return azidentity.ClientID(testApp) }, 0, "Identity not found",
		},
		{"Cloud Shell", "cloud-shell", func(_ *testing.T, c *Cloud) *IdentityEndpoint { return c.CloudShellIdentity(user) }, nil, 0, ""},
		{"Service Fabric", "service-fabric", func(_ *testing.T, c *Cloud) *IdentityEndpoint { return c.ServiceFabricIdentity(user) }, nil, 0, ""},
		{"Azure Arc", "azure-arc", func(t *testing.T, c *Cloud) *IdentityEndpoint { return arc(t, c, ManagedIdentity{System: true}) }, nil, 0, ""},
		{
			"Azure Arc by client id", "azure-arc", func(t *testing.T, c *Cloud) *IdentityEndpoint { return arc(t, c, user) },
			func(id ManagedIdentity) azidentity.ManagedIDKind { return azidentity.ClientID(id.ClientID) }, 0, "",
		},
		{
			"Azure Arc by object id", "azure-arc", func(t *testing.T, c *Cloud) *IdentityEndpoint { return arc(t, c, user) },
			func(id ManagedIdentity) azidentity.ManagedIDKind { return azidentity.ObjectID(id.ObjectID) }, 0, "",
		},
		{
			"Azure Arc by resource", "azure-arc", func(t *testing.T, c *Cloud) *IdentityEndpoint { return arc(t, c, user) },
			func(id ManagedIdentity) azidentity.ManagedIDKind { return azidentity.ResourceID(id.ResourceID) }, 0, "",
		},
		{
			"Azure Arc by another client id", "azure-arc", func(t *testing.T, c *Cloud) *IdentityEndpoint { return arc(t, c, user) },
			func(ManagedIdentity) azidentity.ManagedIDKind { return azidentity.ClientID(testApp) }, 0, "Identity not found",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := fixed(t)
			e := test.start(t, c)
			only(t, e.Environ())
			options := &azidentity.ManagedIdentityCredentialOptions{ClientOptions: azcore.ClientOptions{Retry: policy.RetryOptions{MaxRetries: -1}}}
			var id ManagedIdentity
			if test.index >= 0 {
				id = e.Identities()[test.index]
			}
			if test.choose != nil {
				options.ID = test.choose(id)
			}
			credential, err := azidentity.NewManagedIdentityCredential(options)
			if err != nil {
				t.Fatal(err)
			}
			// MSAL keeps tokens by resource for the process: each test has its own.
			resource := "api://" + strings.ReplaceAll(test.name, " ", "-")
			c.AddApplication(e.Tenant(), Application{URI: resource})
			token, err := credential.GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{resource + "/.default"}})
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("%v, not %s", err, test.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			claims, err := c.tenantUnder("", e.Tenant()).v1.verify(token.Token)
			if err != nil || claims["oid"] != id.ObjectID || claims["aud"] != resource || claims["xms_mirid"] != strings.Replace(id.ResourceID, "resourceGroups", "resourcegroups", 1) || !token.ExpiresOn.Equal(c.Now().Add(identityLife)) {
				t.Errorf("%v, %v, until %s", err, claims, token.ExpiresOn)
			}
			if r := c.last(t); r.Service != test.service || r.Operation != "token" || r.Principal != id.ClientID || r.Status != 200 {
				t.Errorf("%+v", r)
			}
		})
	}
}

// TestIdentityEndpointRefusals is about requests as no SDK makes them.
func TestIdentityEndpointRefusals(t *testing.T) {
	c := New(t)
	app, ml, shell, fabric := c.AppServiceIdentity(ManagedIdentity{}), c.AzureMLIdentity(ManagedIdentity{}), c.CloudShellIdentity(ManagedIdentity{}), c.ServiceFabricIdentity(ManagedIdentity{})
	const resource = "&resource=https://management.azure.com/"
	insecure := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}}} //nolint:gosec // the certificate is nobody's
	for _, test := range []struct {
		name    string
		at      *IdentityEndpoint
		query   string
		headers []string
		body    string
		status  int
		code    string
	}{
		{name: "App Service", at: app, query: "api-version=2019-08-01" + resource, headers: []string{"X-IDENTITY-HEADER", app.secret}, status: 200},
		{name: "App Service without its header", at: app, query: "api-version=2019-08-01" + resource, status: 401, code: "Unauthorized"},
		{name: "App Service of another version", at: app, query: "api-version=2017-09-01" + resource, headers: []string{"X-IDENTITY-HEADER", app.secret}, status: 400, code: "BadRequest"},
		{name: "App Service without a resource", at: app, query: "api-version=2019-08-01", headers: []string{"X-IDENTITY-HEADER", app.secret}, status: 400, code: "BadRequest"},
		{name: "App Service with another resource", at: app, query: "api-version=2019-08-01&resource=api://x", headers: []string{"X-IDENTITY-HEADER", app.secret}, status: 400, code: "invalid_resource"},
		{name: "Azure ML", at: ml, query: "api-version=2017-09-01&clientid=" + resource, headers: []string{"Secret", ml.secret}, status: 200},
		{name: "Azure ML without its header", at: ml, query: "api-version=2017-09-01" + resource, status: 401, code: "Unauthorized"},
		{name: "Azure ML of another version", at: ml, query: "api-version=2019-08-01" + resource, headers: []string{"Secret", ml.secret}, status: 400, code: "BadRequest"},
		{name: "Cloud Shell", at: shell, headers: []string{"Metadata", "true", "Content-Type", formType}, body: resource[1:], status: 200},
		{name: "Cloud Shell without its header", at: shell, headers: []string{"Content-Type", formType}, body: resource[1:], status: 400, code: "BadRequest"},
		{name: "Cloud Shell without a form", at: shell, headers: []string{"Metadata", "true"}, body: resource[1:], status: 400, code: "BadRequest"},
		{name: "Cloud Shell without a resource", at: shell, headers: []string{"Metadata", "true", "Content-Type", formType}, body: "x=y", status: 400, code: "BadRequest"},
		{name: "Service Fabric", at: fabric, query: "api-version=2019-07-01-preview" + resource, headers: []string{"Secret", fabric.secret}, status: 200},
		{name: "Service Fabric without its header", at: fabric, query: "api-version=2019-07-01-preview" + resource, status: 400, code: "SecretHeaderNotFound"},
		{name: "Service Fabric with another header", at: fabric, query: "api-version=2019-07-01-preview" + resource, headers: []string{"Secret", "x"}, status: 404, code: "ManagedIdentityNotFound"},
		{name: "Service Fabric of another version", at: fabric, query: "api-version=2019-08-01" + resource, headers: []string{"Secret", fabric.secret}, status: 400, code: "InvalidApiVersion"},
		{name: "Service Fabric without a resource", at: fabric, query: "api-version=2019-07-01-preview", headers: []string{"Secret", fabric.secret}, status: 400, code: "ArgumentNullOrEmpty"},
	} {
		t.Run(test.name, func(t *testing.T) {
			variable, method := "IDENTITY_ENDPOINT", http.MethodGet
			if test.at == ml || test.at == shell {
				variable = "MSI_ENDPOINT"
			}
			if test.body != "" {
				method = http.MethodPost
			}
			answer := sendBy(t, insecure, method, valueOf(t, test.at.Environ(), variable)+"?"+test.query, test.body, test.headers...)
			if r := c.last(t); answer.status != test.status || r.Code != test.code || (answer.text("access_token") == "") != (test.status != 200) {
				t.Errorf("%d, %v, %+v", answer.status, answer.fields, r)
			}
		})
	}
	c.Fail(Fault{Service: "app-service"})
	if answer := sendBy(t, insecure, http.MethodGet, valueOf(t, app.Environ(), "IDENTITY_ENDPOINT"), ""); answer.status != 429 || answer.fields["statusCode"] != 429.0 {
		t.Errorf("throttled: %d, %v", answer.status, answer.fields)
	}
}

func TestAzureArc(t *testing.T) {
	c := New(t)
	e := arc(t, c, ManagedIdentity{System: true})
	ask := func(query string, headers ...string) googleAnswer {
		return sendBy(t, &http.Client{}, http.MethodGet, valueOf(t, e.Environ(), "IDENTITY_ENDPOINT")+"?"+query, "", headers...)
	}
	usual := url.Values{"api-version": {"2020-06-01"}, "resource": {"https://management.azure.com/"}}.Encode()
	challenge := ask(usual, "Metadata", "true")
	file, ok := strings.CutPrefix(challenge.header.Get("WWW-Authenticate"), "Basic realm="+arcTokens+"/")
	if challenge.status != 401 || !ok || !strings.HasSuffix(file, ".key") {
		t.Fatalf("%d, %q", challenge.status, challenge.header)
	}
	secret, err := os.ReadFile(arcTokens + "/" + file)
	if err != nil {
		t.Fatal(err)
	}
	if answer := ask(usual, "Authorization", "Basic "+string(secret)); answer.status != 400 {
		t.Errorf("without its header: %d", answer.status)
	}
	if answer := ask(usual, "Metadata", "true", "Authorization", "Basic x"); answer.status != 401 {
		t.Errorf("another secret: %d", answer.status)
	}
	if answer := ask(usual, "Metadata", "true", "Authorization", "Basic "+string(secret)); answer.status != 200 || answer.text("access_token") == "" {
		t.Errorf("the secret: %d, %v", answer.status, answer.fields)
	}
	if answer := ask(usual, "Metadata", "true", "Authorization", "Basic "+string(secret)); answer.status != 401 {
		t.Errorf("the secret once more: %d", answer.status)
	}
	c.Close()
	if left, err := os.ReadDir(arcTokens); err == nil && len(left) > 0 {
		t.Errorf("%d files are left", len(left))
	}
}
