package acr

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/webidentity"
	"github.com/credential-broker/credential-broker/test/cloud"
)

// planted is what stands in every answer that must not be repeated.
const planted = "eyJ0-planted-secret"

const (
	unavailable   = backends.KindUnavailable
	refused       = backends.KindRefused
	misconfigured = backends.KindMisconfigured
)

// failed judges an error: its kind, what it says, and that it tells no secret.
func failed(t *testing.T, err error, kind backends.Kind, wants ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range wants {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nlacks %q", err, want)
		}
	}
	for _, hidden := range []string{planted, secret, "PRIVATE KEY", "eyJ", "hunter", "0123456789abcdef"} {
		if strings.Contains(err.Error(), hidden) {
			t.Errorf("it tells %q: %v", hidden, err)
		}
	}
	if marked, ok := errors.AsType[*backends.Error](err); !ok || marked.Kind != kind {
		t.Errorf("its kind is not %d: %#v", kind, err)
	}
}

// TestFailures: what is said of each, and what of it is not.
func TestFailures(t *testing.T) {
	type setting = func(t *testing.T, c *cloud.Cloud, tenant string) Config
	application := func(t *testing.T, c *cloud.Cloud, tenant string) Config {
		t.Helper()
		p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Secrets: []string{secret}})
		c.GrantAcrPull(host, p.ObjectID)
		return Config{Identity: Identity{TenantID: tenant, ClientID: p.ClientID, ClientSecretFile: write(t, "secret", []byte(secret))}}
	}
	changed := func(change func(*Identity)) setting {
		return func(t *testing.T, c *cloud.Cloud, tenant string) Config {
			cfg := application(t, c, tenant)
			change(&cfg.Identity)
			return cfg
		}
	}
	faulty := func(f cloud.Fault) setting {
		return func(t *testing.T, c *cloud.Cloud, tenant string) Config {
			c.Fail(f)
			return application(t, c, tenant)
		}
	}
	machine := func(ids ...cloud.ManagedIdentity) setting {
		return func(t *testing.T, c *cloud.Cloud, tenant string) Config {
			setenv(t, c.AzureInstanceIn(tenant, ids...).Environ()...)
			return Config{}
		}
	}
	azureFile := func(content string) setting {
		return func(t *testing.T, _ *cloud.Cloud, _ string) Config {
			return Config{Identity: Identity{AzureConfigFile: write(t, "azure.json", []byte(content))}}
		}
	}
	certified := func(issue func(t *testing.T) (*x509.Certificate, string), known bool) setting {
		return func(t *testing.T, c *cloud.Cloud, tenant string) Config {
			made, file := issue(t)
			p := cloud.ServicePrincipal{}
			if known {
				p.Certificates = []*x509.Certificate{made}
			}
			p = c.AddServicePrincipal(tenant, p)
			return Config{Identity: Identity{TenantID: tenant, ClientID: p.ClientID, ClientCertificateFile: file}}
		}
	}
	federatedBy := func(change func(*cloud.FederatedCredential)) setting {
		return func(t *testing.T, c *cloud.Cloud, tenant string) Config {
			trusted := federated("kube-system", "node")
			change(&trusted[0])
			p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Federated: trusted})
			return Config{Identity: Identity{TenantID: tenant, ClientID: p.ClientID, FederatedTokenFile: write(t, "token", []byte(podToken(c, "kube-system", "node")))}}
		}
	}
	for name, test := range map[string]struct {
		prepare setting
		kind    backends.Kind
		want    []string
	}{
		"nobody anywhere": {func(t *testing.T, c *cloud.Cloud, _ string) Config {
			m := c.AzureInstance()
			m.Refuse()
			setenv(t, m.Environ()...)
			return Config{}
		}, unavailable, []string{"no identity: the environment has no application (AZURE_TENANT_ID", "no workload identity (AZURE_FEDERATED_TOKEN_FILE", "and no metadata service answers"}},
		"off Azure": {func(t *testing.T, c *cloud.Cloud, _ string) Config {
			m := c.AzureInstance()
			m.Absent()
			setenv(t, m.Environ()...)
			return Config{Identity: Identity{ManagedIdentity: &ManagedIdentity{}}}
		}, unavailable, []string{"Azure's metadata service", "is this machine on Azure"}},
		"somebody else in its place": {func(t *testing.T, c *cloud.Cloud, _ string) Config {
			t.Setenv(imdsVariable, c.GoogleInstance().URL())
			return Config{}
		}, refused, []string{"Azure's metadata service", "no identity: the environment has no application", "and who answers as the metadata service is not Azure's"}},
		"somebody else in the place of one that is named": {func(t *testing.T, c *cloud.Cloud, _ string) Config {
			t.Setenv(imdsVariable, c.GoogleInstance().URL())
			return Config{Identity: Identity{ManagedIdentity: &ManagedIdentity{}}}
		}, refused, []string{"who answers there is not Azure's: on a machine that is not on Azure, name another identity"}},
		"an address of the metadata service that is none": {func(t *testing.T, _ *cloud.Cloud, _ string) Config {
			t.Setenv(imdsVariable, "169.254.169.254")
			return Config{}
		}, unavailable, []string{imdsVariable + " is no http URL"}},
		"a client of the environment that is none": {func(t *testing.T, _ *cloud.Cloud, _ string) Config {
			t.Setenv("AZURE_CLIENT_ID", "$(id)")
			return Config{}
		}, misconfigured, []string{"AZURE_CLIENT_ID is no client ID, which is a UUID"}},
		"a tenant of the environment that is none": {func(t *testing.T, _ *cloud.Cloud, _ string) Config {
			setenv(t, "AZURE_CLIENT_ID="+aClient, "AZURE_TENANT_ID=a/b")
			return Config{}
		}, misconfigured, []string{"AZURE_TENANT_ID is neither the ID of a tenant nor one of its domains"}},
		"a machine without an identity": {machine(), refused, []string{"the machine has no managed identity: assign one"}},
		"a machine with several":        {machine(cloud.ManagedIdentity{}, cloud.ManagedIdentity{}), refused, []string{"the machine has several managed identities: say which by managedIdentity.clientID"}},
		"a machine without this one": {func(t *testing.T, c *cloud.Cloud, tenant string) Config {
			setenv(t, c.AzureInstanceIn(tenant, cloud.ManagedIdentity{System: true}).Environ()...)
			return Config{Identity: Identity{ManagedIdentity: &ManagedIdentity{ClientID: aClient}}}
		}, refused, []string{"the managed identity with client ID " + aClient, "the machine does not have it: assign it"}},
		"a metadata service that is broken": {func(t *testing.T, c *cloud.Cloud, tenant string) Config {
			c.Fail(cloud.Fault{Service: "azure-metadata", Status: 500, Body: planted})
			return machine(cloud.ManagedIdentity{System: true})(t, c, tenant)
		}, unavailable, []string{"HTTP status 500"}},
		"a metadata service that talks nonsense": {func(t *testing.T, c *cloud.Cloud, tenant string) Config {
			c.Fail(cloud.Fault{Service: "azure-metadata", Status: 200, Body: planted})
			return machine(cloud.ManagedIdentity{System: true})(t, c, tenant)
		}, unavailable, []string{"the answer is none that Azure documents"}},
		"a metadata service that is busy": {func(t *testing.T, c *cloud.Cloud, tenant string) Config {
			c.Fail(cloud.Fault{Service: "azure-metadata", RetryAfter: 100 * time.Second})
			return machine(cloud.ManagedIdentity{System: true})(t, c, tenant)
		}, unavailable, []string{"HTTP status 429", "it wants to be asked again in 1m40s"}},
		"no secret":   {changed(func(i *Identity) { i.ClientSecretFile = "/nonexistent/secret" }), misconfigured, []string{"/nonexistent/secret (clientSecretFile): no such file"}},
		"a directory": {changed(func(i *Identity) { i.ClientSecretFile = os.TempDir() }), misconfigured, []string{"it is no regular file"}},
		"an empty secret": {func(t *testing.T, c *cloud.Cloud, tenant string) Config {
			cfg := application(t, c, tenant)
			cfg.ClientSecretFile = write(t, "secret", []byte("\n"))
			return cfg
		}, misconfigured, []string{"want one line, which is the secret"}},
		"another secret": {func(t *testing.T, c *cloud.Cloud, tenant string) Config {
			cfg := application(t, c, tenant)
			cfg.ClientSecretFile = write(t, "secret", []byte(planted))
			return cfg
		}, refused, []string{"invalid_client AADSTS7000215 (HTTP status 401): the secret is wrong"}},
		"no application": {changed(func(i *Identity) { i.ClientID = aClient }), refused, []string{"AADSTS700016", "the tenant has no such application"}},
		"no tenant":      {changed(func(i *Identity) { i.TenantID = aTenant }), refused, []string{"AADSTS90002", "there is no such tenant at https://login.microsoftonline.com/"}},
		"no audience":    {changed(func(i *Identity) { i.Audience = "https://nothing.example" }), refused, []string{"AADSTS500011", "see audience"}},
		"another cloud":  {changed(func(i *Identity) { i.Cloud = "AzureChinaCloud" }), misconfigured, []string{"contoso.azurecr.io is in AzureCloud, and the identity in AzureChinaCloud: give the registry an identity of its own"}},
		"a disabled one": {func(t *testing.T, c *cloud.Cloud, tenant string) Config {
			p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Secrets: []string{secret}, Disabled: true})
			return Config{Identity: Identity{TenantID: tenant, ClientID: p.ClientID, ClientSecretFile: write(t, "secret", []byte(secret))}}
		}, refused, []string{"AADSTS7000112", "the application is disabled"}},
		"an authority of the environment": {func(t *testing.T, _ *cloud.Cloud, _ string) Config {
			t.Setenv("AZURE_AUTHORITY_HOST", "http://login.microsoftonline.com")
			return Config{}
		}, misconfigured, []string{"AZURE_AUTHORITY_HOST is not the https URL of an Entra ID"}},
		"a certificate that is not known": {certified(func(t *testing.T) (*x509.Certificate, string) { return certificate(t, time.Now().Add(time.Hour)) }, false), refused, []string{"AADSTS700027", "the application does not know the certificate"}},
		"a certificate that has expired":  {certified(func(t *testing.T) (*x509.Certificate, string) { return certificate(t, time.Now().Add(-time.Hour)) }, true), refused, []string{"it expired at", "make a new one, and add it to the application"}},
		"a certificate of another kind": {certified(func(t *testing.T) (*x509.Certificate, string) {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			return certificateOf(t, time.Now().Add(time.Hour), key)
		}, true), misconfigured, []string{"want a", "RSA key"}},
		"a certificate that is none": {certified(func(t *testing.T) (*x509.Certificate, string) { return nil, write(t, "cert.pem", []byte(planted)) }, false), misconfigured, []string{"(clientCertificateFile): want a certificate and its RSA key"}},
		"a certificate of the environment": {func(t *testing.T, _ *cloud.Cloud, tenant string) Config {
			setenv(t, "AZURE_TENANT_ID="+tenant, "AZURE_CLIENT_ID="+aClient, "AZURE_CLIENT_CERTIFICATE_PATH=/nonexistent/cert.pem")
			return Config{}
		}, misconfigured, []string{"/nonexistent/cert.pem (AZURE_CLIENT_CERTIFICATE_PATH): no such file"}},
		"another issuer's credential":   {federatedBy(func(f *cloud.FederatedCredential) { f.Issuer = clusterIssuer + "/" }), refused, []string{"AADSTS70021", "federated-credential create", `"issuer":"` + clusterIssuer + `"`, `"subject":"system:serviceaccount:kube-system:node"`}},
		"another subject's credential":  {federatedBy(func(f *cloud.FederatedCredential) { f.Subject = "system:serviceaccount:kube-system:other" }), refused, []string{"AADSTS70021", "the application or managed identity has no federated credential"}},
		"another audience's credential": {federatedBy(func(f *cloud.FederatedCredential) { f.Audience = "api://other" }), refused, []string{"AADSTS70021", "compared to the letter"}},
		"a token that is not there": {func(_ *testing.T, _ *cloud.Cloud, tenant string) Config {
			return Config{Identity: Identity{TenantID: tenant, ClientID: aClient, FederatedTokenFile: "/nonexistent/token"}}
		}, unavailable, []string{"/nonexistent/token (federatedTokenFile): no such file"}},
		"a token that is none": {func(t *testing.T, _ *cloud.Cloud, tenant string) Config {
			return Config{Identity: Identity{TenantID: tenant, ClientID: aClient, FederatedTokenFile: write(t, "token", []byte(planted))}}
		}, misconfigured, []string{"(federatedTokenFile): it is no JWT"}},
		"a token that has expired": {func(t *testing.T, c *cloud.Cloud, tenant string) Config {
			token := c.AddIssuer(clusterIssuer).Token(map[string]any{"exp": time.Now().Add(-time.Minute).Unix()})
			return Config{Identity: Identity{TenantID: tenant, ClientID: aClient, FederatedTokenFile: write(t, "token", []byte(token))}}
		}, unavailable, []string{"the token expired at"}},
		"another's token that is not there": {func(_ *testing.T, _ *cloud.Cloud, tenant string) Config {
			return Config{Identity: Identity{TenantID: tenant, ClientID: aClient, WebIdentity: webidentity.Config{File: &webidentity.File{Path: "/nonexistent/token"}}}}
		}, unavailable, []string{"identity token from"}},
		"AWS's account that issues no tokens": {func(t *testing.T, c *cloud.Cloud, tenant string) Config {
			keys := c.AddUser("arn:aws:iam::111122223333:user/node", cloud.Statement{Actions: []string{"sts:GetWebIdentityToken"}})
			setenv(t, append(keys.Environ(), "AWS_REGION=eu-west-1")...)
			return Config{Identity: Identity{TenantID: tenant, ClientID: aClient, WebIdentity: webidentity.Config{AWS: &webidentity.AWS{}}}}
		}, refused, []string{"the account issues no tokens", "aws iam enable-outbound-web-identity-federation"}},
		"a clock that is wrong": {func(t *testing.T, c *cloud.Cloud, tenant string) Config {
			c.SetClockOffset(2 * time.Hour)
			cfg := certified(func(t *testing.T) (*x509.Certificate, string) { return certificate(t, time.Now().Add(time.Hour)) }, true)(t, c, tenant)
			return cfg
		}, refused, []string{"clock is 2h0m", "timedatectl"}},
		"Entra, throttled":                {faulty(cloud.Fault{Service: "entra", RetryAfter: time.Minute}), unavailable, []string{"login.microsoftonline.com", "HTTP status 429", "it wants to be asked again in 1m0s, and is not asked before"}},
		"Entra, broken":                   {faulty(cloud.Fault{Service: "entra", Status: 503, Body: planted}), unavailable, []string{"HTTP status 503"}},
		"Entra, talking nonsense":         {faulty(cloud.Fault{Service: "entra", Operation: "token", Status: 200, Body: planted}), unavailable, []string{"the answer is none that Azure documents"}},
		"Entra, granting nothing":         {faulty(cloud.Fault{Service: "entra", Operation: "token", Status: 200, Body: `{"token_type": "Bearer", "expires_in": 3599}`}), unavailable, []string{"the answer is none that Azure documents"}},
		"Entra, saying too much":          {faulty(cloud.Fault{Service: "entra", Operation: "token", Status: 400, Body: `{"error": "` + planted + `", "error_description": "AADSTS` + planted + `"}`}), refused, []string{"refused without a code that is known"}},
		"Entra, saying a secret in words": {faulty(cloud.Fault{Service: "entra", Operation: "token", Status: 400, Body: `{"error": "the password is hunter two and the key 0123456789abcdef", "error_description": "AADSTS7000215hunter"}`}), refused, []string{"refused without a code that is known (HTTP status 400)"}},
		"Entra, hanging up":               {faulty(cloud.Fault{Service: "entra", Reset: true}), unavailable, []string{"login.microsoftonline.com: "}},
		"Entra, pointing elsewhere":       {faulty(cloud.Fault{Service: "entra", Operation: "token", Status: 307, Body: planted}), refused, []string{"it points elsewhere (HTTP status 307)"}},
		"the registry, throttled":         {faulty(cloud.Fault{Service: "acr", Operation: "exchange", RetryAfter: time.Minute}), unavailable, []string{"exchange of the Entra token at registry contoso.azurecr.io", "HTTP status 429", "asked again in 1m0s"}},
		"the registry, broken":            {faulty(cloud.Fault{Service: "acr", Operation: "exchange", Status: 500, Body: planted}), unavailable, []string{"HTTP status 500"}},
		"the registry, talking nonsense":  {faulty(cloud.Fault{Service: "acr", Operation: "exchange", Status: 200, Body: planted}), unavailable, []string{"the answer is none that Azure documents"}},
		"the registry, granting nothing":  {faulty(cloud.Fault{Service: "acr", Operation: "exchange", Status: 200, Body: `{}`}), unavailable, []string{"the answer is none that Azure documents"}},
		"the registry, behind a firewall": {faulty(cloud.Fault{Service: "acr", Operation: "challenge", Status: 403, Body: planted}), refused, []string{"the registry's firewall refuses this machine"}},
		"the registry, open to all":       {faulty(cloud.Fault{Service: "acr", Operation: "challenge", Status: 200, Body: planted}), unavailable, []string{"is no Azure Container Registry that takes logins by Entra", "dockerconfig and vault"}},
		"the registry, without exchange":  {faulty(cloud.Fault{Service: "acr", Operation: "exchange", Status: 404, Body: planted}), refused, []string{"a connected registry, or another's, takes users and passwords of its own"}},
		"the registry, with an old token": {func(t *testing.T, c *cloud.Cloud, tenant string) Config {
			c.SetRefreshTokenLife(host, -time.Minute)
			return application(t, c, tenant)
		}, unavailable, []string{"its token has expired at"}},
		"no registry": {func(t *testing.T, c *cloud.Cloud, tenant string) Config { return application(t, c, tenant) }, unavailable, []string{"the proxy does not connect"}},
		"azure.json that is not there": {func(*testing.T, *cloud.Cloud, string) Config {
			return Config{Identity: Identity{AzureConfigFile: "/nonexistent/azure.json"}}
		}, misconfigured, []string{"/nonexistent/azure.json (azureConfigFile): no such file"}},
		"azure.json that is none":                         {azureFile(planted), misconfigured, []string{"it is not JSON"}},
		"azure.json of another cloud":                     {azureFile(`{"cloud": "AzureStackCloud", "useManagedIdentityExtension": true}`), misconfigured, []string{"its cloud is none that is known here: set authorityHost"}},
		"azure.json without an identity":                  {azureFile(`{"tenantId": "` + aTenant + `"}`), misconfigured, []string{"it has neither useManagedIdentityExtension nor an application"}},
		"azure.json without a proof":                      {azureFile(`{"tenantId": "` + aTenant + `", "aadClientId": "` + aClient + `", "aadClientSecret": "msi"}`), misconfigured, []string{"it has no proof for its application"}},
		"azure.json of no tenant":                         {azureFile(`{"tenantId": "a/b", "useManagedIdentityExtension": true}`), misconfigured, []string{"its tenantId is no ID of a tenant"}},
		"azure.json with a certificate that is not there": {azureFile(`{"tenantId": "` + aTenant + `", "aadClientId": "` + aClient + `", "aadClientCertPath": "/nonexistent/cert.pfx"}`), misconfigured, []string{"/nonexistent/cert.pfx (aadClientCertPath in /"}},
		"azure.json of an odd identity":                   {azureFile(`{"tenantId": "` + aTenant + `", "useManagedIdentityExtension": true, "userAssignedIdentityID": "x"}`), misconfigured, []string{"its userAssignedIdentityID is neither a client ID nor a resource ID"}},
	} {
		t.Run(name, func(t *testing.T) {
			c, tenant := setUp(t)
			b := backendFor(t, c, test.prepare(t, c, tenant))
			b.azure.sleep = func(ctx context.Context, _ time.Duration) bool { return ctx.Err() == nil }
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			req := backends.Request{Image: image}
			if name == "no registry" {
				req.Image = "nobody.azurecr.io/app"
			}
			_, err := b.Credentials(ctx, req)
			failed(t, err, test.kind, test.want...)
		})
	}
}

func TestFilesThatOthersCanReadAreWarnedOf(t *testing.T) {
	var log bytes.Buffer
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	defer slog.SetDefault(before)
	c, tenant := setUp(t)
	made, pemFile := certificate(t, time.Now().Add(time.Hour))
	p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Secrets: []string{secret}, Certificates: []*x509.Certificate{made}})
	c.GrantAcrPull(host, p.ObjectID)
	secretFile := write(t, "secret", []byte(secret))
	config := write(t, "azure.json", object(t, map[string]any{"tenantId": tenant, "aadClientId": p.ClientID, "aadClientSecret": secret}))
	for file, own := range map[string]Identity{
		secretFile: {TenantID: tenant, ClientID: p.ClientID, ClientSecretFile: secretFile}, pemFile: {TenantID: tenant, ClientID: p.ClientID, ClientCertificateFile: pemFile}, config: {AzureConfigFile: config},
	} {
		for mode, want := range map[os.FileMode]bool{0o600: false, 0o640: false, 0o644: true} {
			if err := os.Chmod(file, mode); err != nil {
				t.Fatal(err)
			}
			log.Reset()
			pull(t, c, backendFor(t, c, Config{Identity: own}), backends.Request{Image: image})
			if got := strings.Contains(log.String(), "can be read by every user") && strings.Contains(log.String(), file); got != want && !isWindows {
				t.Errorf("%s, mode %o: %s", file, mode, log.String())
			}
		}
	}
}

func TestNotAzures(t *testing.T) {
	c, _ := setUp(t)
	b := backendFor(t, c, Config{})
	got, err := b.Credentials(t.Context(), backends.Request{Image: "registry.example/app"})
	if err != nil || len(got.Credentials) != 0 || len(c.Requests()) != 0 {
		t.Errorf("%+v, %v, %+v", got, err, c.Requests())
	}
}

// TestAClockThatIsOffIsNotAllThatIsWrong: a refusal that has nothing to do with the time keeps its remedy.
func TestAClockThatIsOffIsNotAllThatIsWrong(t *testing.T) {
	c, tenant := setUp(t)
	p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Secrets: []string{secret}})
	b := backendFor(t, c, Config{Identity: Identity{TenantID: tenant, ClientID: p.ClientID, ClientSecretFile: write(t, "secret", []byte(secret))}})
	c.SetClockOffset(-6 * time.Minute)
	_, err := b.Credentials(t.Context(), backends.Request{Image: image})
	failed(t, err, refused, "AcrPull is missing on contoso", "besides, this machine's clock is 6m0s off Azure's")
}

// TestWhatATokenSaysIsNoCommand: whoever answers as the metadata service does not put words into a command that is to be pasted.
func TestWhatATokenSaysIsNoCommand(t *testing.T) {
	c, tenant := setUp(t)
	claims := object(t, map[string]any{"tid": tenant, "oid": "$(touch /tmp/owned)", "exp": time.Now().Add(time.Hour).Unix()})
	token := "e30." + base64.RawURLEncoding.EncodeToString(claims) + ".c2ln"
	c.Fail(cloud.Fault{Service: "azure-metadata", Status: 200, Body: string(object(t, map[string]any{"access_token": token, "expires_in": "3600", "expires_on": strconv.FormatInt(time.Now().Add(time.Hour).Unix(), 10), "resource": defaultAudience, "token_type": "Bearer"}))})
	setenv(t, c.AzureInstanceIn(tenant, cloud.ManagedIdentity{System: true}).Environ()...)
	_, err := backendFor(t, c, Config{}).Credentials(t.Context(), backends.Request{Image: image})
	failed(t, err, refused, "--assignee-object-id OBJECT_ID ")
	if strings.Contains(err.Error(), "touch") {
		t.Errorf("it says %v", err)
	}
}

// TestALeafBehindItsIssuer: the certificate that is the key's is judged, wherever it stands.
func TestALeafBehindItsIssuer(t *testing.T) {
	c, tenant := setUp(t)
	_, other := certificate(t, time.Now().Add(-time.Hour))
	made, file := certificate(t, time.Now().Add(time.Hour))
	p := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Certificates: []*x509.Certificate{made}})
	c.GrantAcrPull(host, p.ObjectID)
	before, err := os.ReadFile(other)
	if err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, issuer, _ := bytes.Cut(before, []byte("-----END PRIVATE KEY-----\n"))
	both := write(t, "both.pem", append(issuer, after...))
	pull(t, c, backendFor(t, c, Config{Identity: Identity{TenantID: tenant, ClientID: p.ClientID, ClientCertificateFile: both}}), backends.Request{Image: image})
}
