//go:build linux

package faults

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/test/cloud"
)

const (
	acrTenant   = "0c0c0c0c-1111-4111-8111-a1a1a1a1a1a1"
	acrClient   = "1a1a1a1a-0000-4000-8000-000000000001"
	acrHost     = "contoso.azurecr.io"
	acrImage    = acrHost + "/team/app"
	acrExchange = "api://AzureADTokenExchange"
	acrBinding  = "api://AKSIdentityBinding"
)

// azure is a tenant of Azure's: its canaries are the real secrets of requests there.
type azure struct {
	*region
	// audience is the pod's token's.
	audience string
}

func newAzure(t *testing.T) *azure {
	a := &azure{region: newRegion(t), audience: acrExchange}
	a.aws.AddEntraTenant(cloud.EntraTenant{ID: acrTenant})
	a.registry(acrTenant)
	return a
}

// registry puts the registry into a tenant.
func (a *azure) registry(tenant string) {
	a.aws.AddAzureRegistry(cloud.AzureRegistry{Host: acrHost, Tenant: tenant, Repositories: []string{"team/app"}})
}

func (a *azure) request() string {
	q := object{"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderRequest", "image": acrImage}
	if a.token != "" {
		q["serviceAccountToken"] = a.token
		q["serviceAccountAnnotations"] = object{"kubernetes.azure.com/acr-client-id": acrClient, "kubernetes.azure.com/acr-tenant-id": acrTenant}
	}
	return string(must(json.Marshal(q)))
}

func (a *azure) provider(name string) object {
	p := object{
		"name": name, "backend": "acr", "matchImages": []string{acrHost}, "timeout": "40s", "config": a.settings, "env": a.environment(),
		"inheritEnv": []string{"AZURE_*", "IDENTITY_*", "MSI_*", "IMDS_*", "AWS_*", "GCE_*"},
	}
	if a.token != "" {
		p["tokenAttributes"] = object{
			"serviceAccountTokenAudience": a.audience, "cacheType": "Token", "requireServiceAccount": false,
			"optionalServiceAccountAnnotationKeys": []string{"kubernetes.azure.com/acr-client-id", "kubernetes.azure.com/acr-tenant-id"},
		}
	}
	return p
}

// application is the one that asks, and may pull.
func (a *azure) application(p cloud.ServicePrincipal) {
	p.ClientID = acrClient
	a.aws.GrantAcrPull(acrHost, a.aws.AddServicePrincipal(acrTenant, p).ObjectID)
}

// as has the settings say how the application proves itself.
func (a *azure) as(proof string, setting any) {
	a.settings["tenantID"], a.settings["clientID"], a.settings[proof] = acrTenant, acrClient, setting
}

// byEnvironment has the environment say so.
func (a *azure) byEnvironment(proof ...string) {
	a.env = append(append(a.env, "AZURE_TENANT_ID="+acrTenant, "AZURE_CLIENT_ID="+acrClient), proof...)
}

func (a *azure) clientSecret() string {
	text := a.secret("client secret", "Q8~"+a.core("client"))
	a.application(cloud.ServicePrincipal{Secrets: []string{text}})
	return text
}

func (a *azure) secretFile(end string) string {
	return a.write("secret", a.clientSecret()+end, 0o600)
}

// certificate is the application's, and its key, in PEM.
func (a *azure) certificate() string {
	key := must(rsa.GenerateKey(rand.Reader, 2048))
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "node"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der := must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))
	a.application(cloud.ServicePrincipal{Certificates: []*x509.Certificate{must(x509.ParseCertificate(der))}})
	private := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(key))}))
	a.privateKey(private)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})) + private
}

func (a *azure) certificateFile() string { return a.write("certificate.pem", a.certificate(), 0o600) }

func (a *azure) azureJSON(end string, content object) {
	content["tenantId"], content["aadClientId"] = acrTenant, acrClient
	text := string(must(json.Marshal(content)))
	a.settings["azureConfigFile"] = a.write("azure.json", strings.TrimSuffix(text, "}")+end, 0o600)
}

// federated has the application take the tokens of a subject.
func (a *azure) federated(issuer, subject string) {
	a.application(cloud.ServicePrincipal{Federated: []cloud.FederatedCredential{{Issuer: issuer, Subject: subject}}})
}

// outside is a token that the application takes.
func (a *azure) outside() string {
	a.federated(ecrCluster, ecrSubject)
	return a.jwt("subject token", a.aws.AddIssuer(ecrCluster), acrExchange)
}

func (a *azure) webIdentity(source string, settings object) {
	a.as("webIdentity", object{source: settings})
}

// executable is a web identity's, with a secret in its environment.
func (a *azure) executable(end string) {
	key, token := a.secret("executable's variable", a.core("variable")), a.outside()
	a.webIdentity("executable", object{"command": a.printing("Authorization: Bearer "+token+", by $KEY='"+key+"'", token, end), "env": object{"KEY": key}})
}

// issuing is a server that gives the token to whoever knows a secret.
func (a *azure) issuing(status int) {
	token, key := a.outside(), a.secret("header", "s."+a.core("header"))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.Header.Get("X-Vault-Token") != key {
			status = http.StatusForbidden
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, `{"data":{"token":"`+token+`"}}`)
	}))
	a.Cleanup(server.Close)
	a.webIdentity("url", object{"url": server.URL, "headers": object{"X-Vault-Token": key}, "tokenField": "data.token"})
}

// awsKeys are those of a session that AWS gives identity tokens.
func (a *azure) awsKeys() {
	const role = "arn:aws:iam::" + ecrAccount + ":role/node"
	a.aws.AddRole(cloud.Role{ARN: role, Policy: []cloud.Statement{{Actions: []string{"sts:GetWebIdentityToken"}}}})
	keys := a.aws.Session(role, "node", time.Hour)
	a.secret("secret access key", keys.SecretAccessKey)
	a.secret("session token", keys.SessionToken)
	a.env = append(a.env, keys.Environ()...)
	a.federated(a.aws.EnableOutboundFederation(ecrAccount).URL(), role)
	a.webIdentity("aws", object{"region": "eu-west-1"})
}

// machine is a virtual machine in the tenant, with an identity of its own that may pull.
func (a *azure) machine() cloud.ManagedIdentity {
	m := a.aws.AzureInstanceIn(acrTenant, cloud.ManagedIdentity{System: true})
	a.env = append(a.env, m.Environ()...)
	a.aws.GrantAcrPull(acrHost, m.Identities()[0].ObjectID)
	return m.Identities()[0]
}

// elsewhere is what gives managed identities' tokens where there is no virtual machine. What it wants to be shown is looked for.
func (a *azure) elsewhere(e *cloud.IdentityEndpoint) {
	a.env = append(a.env, e.Environ()...)
	for _, variable := range e.Environ() {
		if name, value, _ := strings.Cut(variable, "="); name == "IDENTITY_HEADER" || name == "MSI_SECRET" {
			a.secret("identity header", value)
		}
	}
	a.registry(e.Tenant())
	a.aws.GrantAcrPull(acrHost, e.Identities()[0].ObjectID)
}

func (a *azure) arc() {
	e, err := a.aws.AzureArc(cloud.ManagedIdentity{System: true})
	if err != nil {
		a.Skip(err) // only root may write where Azure Arc's agent does
	}
	a.elsewhere(e)
}

// pod is one whose own token is exchanged.
func (a *azure) pod() {
	a.token = a.outside()
}

// boundPod is one whose token the cluster takes in Entra's place.
func (a *azure) boundPod() {
	a.application(cloud.ServicePrincipal{})
	b := a.aws.IdentityBinding(acrTenant, a.aws.AddIssuer(ecrCluster))
	b.Bind(acrClient, "team-a", "builder")
	a.env = append(a.env, b.Environ()...)
	a.settings["identityBindings"], a.audience = object{}, acrBinding
	a.token = a.jwt("subject token", a.aws.AddIssuer(ecrCluster), acrBinding)
}

// told has all looked for that came to be on the way: Entra's tokens and the registry's, assertions, keys of Azure Arc's.
func (a *azure) told() {
	for i, text := range a.aws.Secrets() {
		name := fmt.Sprintf("secret %d on the way", i)
		if parts := strings.Split(text, "."); len(parts) == 3 { // whose first part says only how it is signed
			a.secret(name+", its claims", parts[1])
			text = parts[2]
		}
		a.secret(name, text)
	}
}

// asks asks for the image as the kubelet does.
func (a *azure) asks(config string) outcome {
	a.Helper()
	o := a.run(command{args: []string{"--config", config}, stdin: a.request(), env: a.env})
	a.told()
	return o
}

// acrIdentity is a way to ask Azure, with all the secrets that it takes.
type acrIdentity struct {
	name    string
	prepare func(a *azure)
	// asks are services with their operations: those that no other identity asks, or asks so.
	asks []string
	// fails is in the log of an identity that comes to nothing.
	fails string
}

var acrIdentities = []acrIdentity{
	{"a secret's file", func(a *azure) { a.as("clientSecretFile", a.secretFile("\n")) }, []string{"entra discovery", "entra token", "acr challenge", "acr exchange"}, ""},
	{"a secret's file with more in it", func(a *azure) { a.as("clientSecretFile", a.secretFile("\nand more")) }, nil, "want one line"},
	{"a secret that Entra does not know", func(a *azure) {
		a.as("clientSecretFile", a.secretFile(""))
		a.application(cloud.ServicePrincipal{Secrets: []string{"another"}})
	}, nil, "AADSTS7000215"},
	{"a secret of the environment", func(a *azure) { a.byEnvironment("AZURE_CLIENT_SECRET=" + a.clientSecret()) }, nil, ""},
	{"a certificate's file", func(a *azure) { a.as("clientCertificateFile", a.certificateFile()) }, []string{"entra token"}, ""},
	{"a certificate's file cut short", func(a *azure) {
		content := a.certificate()
		a.as("clientCertificateFile", a.write("certificate.pem", content[:len(content)-60], 0o600))
		a.settings["clientCertificatePasswordFile"] = a.write("password", a.secret("certificate's password", a.core("password")), 0o600)
	}, nil, "want a certificate and its RSA key"},
	{"a certificate that Entra does not know", func(a *azure) {
		a.as("clientCertificateFile", a.certificateFile())
		a.application(cloud.ServicePrincipal{})
	}, nil, "AADSTS700027"},
	{"a certificate of the environment", func(a *azure) {
		a.byEnvironment("AZURE_CLIENT_CERTIFICATE_PATH=" + a.certificateFile())
	}, nil, ""},
	{"azure.json", func(a *azure) { a.azureJSON("}", object{"aadClientSecret": a.clientSecret()}) }, nil, ""},
	{"azure.json cut short", func(a *azure) { a.azureJSON("", object{"aadClientSecret": a.clientSecret()}) }, nil, "it is not JSON"},
	{"azure.json of another type", func(a *azure) { a.azureJSON("}", object{"aadClientSecret": []string{a.clientSecret()}}) }, nil, "it is not JSON"},
	{"a federated token's file", func(a *azure) { a.as("federatedTokenFile", a.write("token", a.outside(), 0o600)) }, nil, ""},
	{"a federated token's file with more in it", func(a *azure) {
		a.as("federatedTokenFile", a.write("token", `{"token":"`+a.outside()+`"}`, 0o600))
	}, nil, "it is no JWT"},
	{"a federated token that Entra does not take", func(a *azure) {
		a.as("federatedTokenFile", a.write("token", a.outside(), 0o600))
		a.federated(ecrCluster, "somebody else")
	}, nil, "AADSTS700213"},
	{"workload identity of the environment", func(a *azure) { a.byEnvironment("AZURE_FEDERATED_TOKEN_FILE=" + a.write("token", a.outside(), 0o600)) }, nil, ""},
	{"a web identity's file", func(a *azure) { a.webIdentity("file", object{"path": a.write("token", a.outside(), 0o600)}) }, nil, ""},
	{"a web identity's executable", func(a *azure) { a.executable("") }, nil, ""},
	{"a web identity's executable that fails", func(a *azure) { a.executable("exit 3") }, nil, "exit status 3"},
	{"a web identity's URL", func(a *azure) { a.issuing(http.StatusOK) }, nil, ""},
	{"a web identity's URL that refuses", func(a *azure) { a.issuing(http.StatusForbidden) }, nil, "HTTP status 403"},
	{"AWS", func(a *azure) { a.awsKeys() }, []string{"sts GetWebIdentityToken", "entra token"}, ""},
	{"the machine", func(a *azure) { a.machine() }, []string{"azure-metadata token"}, ""},
	{"a machine that may not", func(a *azure) { a.aws.RevokeRoles(acrHost, a.machine().ObjectID) }, nil, "AcrPull is missing"},
	{"a managed identity as an application's credential", func(a *azure) {
		m := a.aws.AzureInstance(cloud.ManagedIdentity{})
		a.env = append(a.env, m.Environ()...)
		a.federated(m.Issuer(true), m.Identities()[0].ObjectID)
		a.as("managedIdentity", object{})
	}, []string{"azure-metadata token", "entra token"}, ""},
	{"App Service", func(a *azure) { a.elsewhere(a.aws.AppServiceIdentity(cloud.ManagedIdentity{System: true})) }, []string{"app-service token"}, ""},
	{"Azure Arc", func(a *azure) { a.arc() }, []string{"azure-arc token"}, ""},
	{"Azure Machine Learning", func(a *azure) { a.elsewhere(a.aws.AzureMLIdentity(cloud.ManagedIdentity{System: true})) }, []string{"azure-ml token"}, ""},
	{"Azure Cloud Shell", func(a *azure) { a.elsewhere(a.aws.CloudShellIdentity(cloud.ManagedIdentity{System: true})) }, nil, ""},
	{"Service Fabric", func(a *azure) { a.elsewhere(a.aws.ServiceFabricIdentity(cloud.ManagedIdentity{System: true})) }, []string{"service-fabric token"}, ""},
	{"a pod", func(a *azure) { a.pod() }, []string{"entra token", "acr exchange"}, ""},
	{"a pod that Entra does not take", func(a *azure) { a.pod(); a.federated(ecrCluster, "somebody else") }, nil, "AADSTS700213"},
	{"a pod by an identity binding", func(a *azure) { a.boundPod() }, []string{"identity-binding token"}, ""},
}

// planted is a token that is in an answer which nobody is to take for one.
func (a *azure) planted() string {
	return a.secret("planted token", "eyJ0."+strings.Repeat(a.core("access"), 6)+"."+a.core("signature"))
}

// acrMishaps are what happens on the way, by the answer's status and body; ALL stands for every secret of the identity, TOKEN for a planted one, and SENT, within a text, for what was sent.
var acrMishaps = []struct {
	name   string
	status int
	body   string
	wait   time.Duration
	brief  bool // the provider's time ends it
	hang   bool
	reset  bool
}{
	{name: "a refusal that tells all", status: 400, body: `{"error":ALL,"error_description":ALL,"error_codes":[ALL],"message":ALL}`},
	{name: "a refusal that repeats what it was sent", status: 401, body: `{"error":"SENT","error_description":"AADSTSSENT: SENT","message":"SENT"}`},
	{name: "a refusal of a registry's form that repeats it", status: 403, body: `{"errors":[{"code":"SENT","message":"SENT","detail":ALL}]}`},
	{name: "a breakdown that tells all", status: 500, body: `ALL "SENT"`, brief: true},
	{name: "a service that is busy and tells all", status: 429, body: `{"error":ALL,"error_description":"SENT"}`, wait: time.Hour, brief: true},
	{name: "a redirection that tells all", status: 307, body: `ALL`},
	{name: "no answer", hang: true, brief: true},
	{name: "a connection that is cut", reset: true, brief: true},
	{name: "nonsense", status: 200, body: `"SENT" TOKEN`},
	{name: "an answer cut short", status: 200, body: `{"access_token":TOKEN,"refresh_token":TOKEN,"expires_in":3599`},
	{name: "an answer of another type", status: 200, body: `{"access_token":[TOKEN],"refresh_token":[TOKEN],"expires_in":TOKEN,"expires_on":TOKEN,"token_endpoint":TOKEN,"issuer":"SENT"}`},
	{name: "an answer that has ended", status: 200, body: `{"access_token":TOKEN,"expires_in":"-1","expires_on":"1","token_type":"Bearer"}`},
	{name: "an answer that is too long", status: 200, body: `{"access_token":TOKEN,"refresh_token":TOKEN,"more":"LONG"}`},
}

// TestNoSecretOfAzuresIsTold: whatever identity asks and whatever happens to it, what is secret is in the response and nowhere else, even at the level debug.
func TestNoSecretOfAzuresIsTold(t *testing.T) {
	long := strings.Repeat("x", 2<<20)
	for i, identity := range acrIdentities {
		t.Run(identity.name+"/all goes as it should", func(t *testing.T) {
			t.Parallel()
			a := newAzure(t)
			identity.prepare(a)
			o := a.asks(a.configuration("debug", []string{"text", "json"}[i%2], a.provider("acr")))
			log := identity.fails
			if log != "" {
				a.failed(o)
				a.clean(o, false)
			} else {
				log = "cacheKeyType"
				login := a.answered(o).Auth[acrHost]
				if err := a.aws.Pull(acrImage, login.Username, login.Password); err != nil {
					t.Errorf("pull: %v", err)
				}
				a.clean(o, true)
				if len(a.found(o.stdout)) == 0 {
					t.Error("even in the response no secret is seen: this test does not see")
				}
			}
			a.says(o, log)
		})
		for j, asked := range identity.asks {
			service, operation, _ := strings.Cut(asked, " ")
			for k, m := range acrMishaps {
				t.Run(identity.name+"/"+asked+": "+m.name, func(t *testing.T) {
					t.Parallel()
					a := newAzure(t)
					identity.prepare(a)
					body := strings.NewReplacer("ALL", string(must(json.Marshal(a.all()))), "TOKEN", string(must(json.Marshal(a.planted()))), "SENT", cloud.Sent, "LONG", long).Replace(m.body)
					a.aws.Fail(cloud.Fault{Service: service, Operation: operation, Status: m.status, Body: body, RetryAfter: m.wait, Hang: m.hang, Reset: m.reset})
					p := a.provider("acr")
					if m.brief {
						p["timeout"] = short.String()
					}
					o := a.asks(a.configuration("debug", []string{"text", "json"}[(i+j+k)%2], p))
					a.failed(o)
					a.clean(o, false)
					a.bounded(o, grace)
					a.says(o, "provider failed")
					if !a.asked(service, operation) {
						t.Errorf("%s is not asked: %+v", asked, a.aws.Requests())
					}
				})
			}
		}
	}
}

// says makes sure that a text, which is no secret, is in the log.
func (r *region) says(o outcome, text string) {
	r.Helper()
	if file := contents(r.dir)[r.logFile]; !strings.Contains(file, text) || !strings.Contains(o.stderr, text) {
		r.Errorf("the log lacks %q, which is no secret:\n%s", text, o.stderr)
	}
}

// asked: a service was.
func (r *region) asked(service, operation string) bool {
	return slices.ContainsFunc(r.aws.Requests(), func(q cloud.Request) bool { return q.Service == service && q.Operation == operation })
}

// TestAHostileRegistryOfAzures: whoever answers in a registry's name gets no token that is good elsewhere, costs no memory, and makes nothing be told.
func TestAHostileRegistryOfAzures(t *testing.T) {
	const thief = "thief.example"
	for name, hostile := range map[string]struct {
		cloud.HostileRegistry
		// own: it is sent what is for it, and for nobody else.
		own bool
		log string
	}{
		"it wants logins elsewhere":        {cloud.HostileRegistry{Challenge: `Bearer realm="https://` + thief + `/oauth2/token",service="` + acrHost + `"`}, false, "is not its own address"},
		"it points elsewhere":              {cloud.HostileRegistry{Redirect: "https://" + thief + "/v2/"}, false, "it points elsewhere"},
		"it points elsewhere with a token": {cloud.HostileRegistry{RedirectExchange: "https://" + thief + "/oauth2/exchange"}, true, "it points elsewhere"},
		"its answers are 64 MiB":           {cloud.HostileRegistry{Oversized: true}, false, "the answer is too long"},
		"its answers do not end":           {cloud.HostileRegistry{Endless: true}, false, "the answer is too long"},
		"its challenge is full of realms":  {cloud.HostileRegistry{Challenge: `Bearer ` + strings.Repeat(`realm="x",`, 5000)}, false, "is not its own address"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAzure(t)
			a.as("clientSecretFile", a.secretFile(""))
			hostile.Host = acrHost
			a.aws.AddHostileRegistry(hostile.HostileRegistry)
			a.aws.AddThief(thief)
			o := a.asks(a.configuration("debug", "text", a.provider("acr")))
			a.failed(o)
			a.clean(o, false)
			a.bounded(o, grace)
			a.says(o, hostile.log)
			if stolen := a.aws.Stolen(); (len(stolen) > 0) != hostile.own {
				t.Errorf("it got %d tokens", len(stolen))
			}
			for _, q := range a.aws.Requests() {
				if q.Host == thief {
					t.Errorf("asked: %+v", q)
				}
			}
		})
	}
}

// TestNoSecretOfAzuresIsToldByACheck is the same for what is shown to people, which asks the registry for one thing more.
func TestNoSecretOfAzuresIsToldByACheck(t *testing.T) {
	for name, fault := range map[string]cloud.Fault{
		"all goes as it should":                   {},
		"a refusal that repeats what it was sent": {Status: 401, Body: `{"errors":[{"code":"` + cloud.Sent + `","message":"` + cloud.Sent + `"}]}`},
		"a breakdown that repeats it":             {Status: 500, Body: cloud.Sent},
		"a redirection that repeats it":           {Status: 307, Body: cloud.Sent},
		"an answer of another type":               {Status: 200, Body: `{"access_token":["` + cloud.Sent + `"]}`},
		"an answer with what was sent":            {Status: 200, Body: `{"access_token":"` + cloud.Sent + `"}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAzure(t)
			a.as("clientSecretFile", a.secretFile(""))
			if fault.Status != 0 {
				fault.Service, fault.Operation = "acr", "token"
				a.aws.Fail(fault)
			}
			o := a.run(command{args: []string{"get", "--no-agent", "--config", a.configuration("debug", "text", a.provider("acr")), acrImage}, env: a.env})
			a.told()
			a.clean(o, false)
			if !a.asked("acr", "token") || !strings.Contains(o.stdout, "CHECK") {
				t.Errorf("nothing was checked:\n%s\n%s", o.stdout, o.stderr)
			}
		})
	}
}

// hanging starts a broker whose backends hang with all their secrets in memory: by a pod's token, a secret's file, a certificate, App Service's header in the environment, and a program that does not end.
// The first four have their Entra tokens, too.
func (a *azure) hanging(before string) *exec.Cmd {
	a.Helper()
	a.aws.Fail(cloud.Fault{Service: "acr", Operation: "exchange", Hang: true})
	proxy := a.settings["proxy"]
	by := func(name string, prepare func()) object {
		a.settings = object{"proxy": proxy, "podIdentity": "Off"}
		prepare()
		return a.with(a.provider(name), object{"inheritEnv": []string{}})
	}
	a.pod()
	byToken := by("by-token", func() { a.settings = object{"proxy": proxy} })
	// All of them are one application, of which Entra is to know each proof.
	secret, certificate := a.clientSecret(), a.certificate()
	block, _ := pem.Decode([]byte(certificate))
	a.application(cloud.ServicePrincipal{
		Secrets: []string{secret}, Certificates: []*x509.Certificate{must(x509.ParseCertificate(block.Bytes))},
		Federated: []cloud.FederatedCredential{{Issuer: ecrCluster, Subject: ecrSubject}},
	})
	bySecret := by("by-secret", func() { a.as("clientSecretFile", a.write("secret", secret, 0o600)) })
	byCertificate := by("by-certificate", func() { a.as("clientCertificateFile", a.write("certificate.pem", certificate, 0o600)) })
	byProgram := by("by-program", func() {
		a.webIdentity("executable", object{"command": a.program("sleep 600; :"), "timeout": "50s"})
	})
	byHeader := by("by-header", func() { a.elsewhere(a.aws.AppServiceIdentity(cloud.ManagedIdentity{System: true})) })
	byHeader["inheritEnv"] = []string{"IDENTITY_*"}
	return a.command(command{
		args: []string{"--config", a.configuration("debug", "text", byToken, bySecret, byCertificate, byProgram, byHeader)}, stdin: a.request(), env: a.env, before: before,
	})
}

func (a *azure) untilAllHang(cmd *exec.Cmd) {
	a.Helper()
	if !until(grace, func() bool {
		asked := 0
		for _, q := range a.aws.Requests() {
			if q.Operation == "exchange" {
				asked++
			}
		}
		// Five backends, a guardian, its script and what that runs.
		return asked >= 4 && len(below(cmd.Process.Pid)) >= 8
	}) {
		a.Fatalf("only %v run; %+v", below(cmd.Process.Pid), a.aws.Requests())
	}
	a.told()
}

// TestNoSecretOfAzuresIsInWhatOtherProcessesCanSee looks at arguments, environments and descriptors while every backend holds its secrets.
func TestNoSecretOfAzuresIsInWhatOtherProcessesCanSee(t *testing.T) {
	t.Parallel()
	a := newAzure(t)
	a.isSeenByNobody(a.hanging(""), a.untilAllHang, func(_ []string, text string) bool { return strings.Contains(text, "IDENTITY_HEADER=") })
}

// TestNoSecretIsInWhatOtherProcessesCanSeeOfTheProgramThatAsksAWS looks at aws-identity-token while it holds AWS's keys, which the backend's environment has.
func TestNoSecretIsInWhatOtherProcessesCanSeeOfTheProgramThatAsksAWS(t *testing.T) {
	t.Parallel()
	a := newAzure(t)
	a.awsKeys()
	a.aws.Fail(cloud.Fault{Service: "sts", Operation: "GetWebIdentityToken", Hang: true})
	cmd := a.command(command{args: []string{"--config", a.configuration("debug", "text", a.provider("acr"))}, stdin: a.request(), env: a.env})
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()
	if !until(grace, func() bool { return a.asked("sts", "GetWebIdentityToken") }) {
		t.Fatalf("AWS is not asked: %+v", a.aws.Requests())
	}
	var programs, backends int
	for what, text := range a.running(cmd.Process.Pid) {
		seen := a.found(text)
		switch {
		case strings.HasPrefix(what, "environ (aws-identity-"): // as far as the kernel keeps a name
			programs++
			fallthrough
		case !strings.HasPrefix(what, "environ ("):
			if len(seen) > 0 {
				t.Errorf("%s shows %v", what, seen)
			}
		case strings.HasPrefix(what, "environ (credential-back") && len(seen) > 0: // whose environment it was configured to be
			backends++
		}
	}
	if isRoot() && (programs != 1 || backends == 0) { // others may not read these environments
		t.Errorf("%d programs were looked at, want 1, and the keys seen in %d backends, want some: does this test see?", programs, backends)
	}
}

// TestNoSecretOfAzuresIsToldByADeath: backends that are ended while they hold their secrets tell none.
func TestNoSecretOfAzuresIsToldByADeath(t *testing.T) {
	for _, sig := range deaths {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			a := newAzure(t)
			a.dies(sig, a.hanging("ulimit -c unlimited"), a.untilAllHang, "by-secret")
		})
	}
}

// TestSecretsOfAzuresAreSeen shows that each secret would be found, and those on the way; TestSecretsOfECRAreSeen shows it for each place.
func TestSecretsOfAzuresAreSeen(t *testing.T) {
	for _, identity := range acrIdentities {
		t.Run(identity.name, func(t *testing.T) {
			a := newAzure(t)
			identity.prepare(a)
			_ = a.planted()
			a.told()
			if len(a.words) < 2 {
				t.Errorf("only %d secrets", len(a.words))
			}
			a.seen(identity.name, "00000000-0000-0000-0000-000000000000", acrTenant+acrClient+acrHost+acrExchange+ecrCluster+ecrSubject+acrImage)
		})
	}
	a := newAzure(t)
	a.as("clientCertificateFile", a.certificateFile())
	before := len(a.aws.Secrets())
	o := a.asks(a.configuration("info", "text", a.provider("acr")))
	if on := len(a.aws.Secrets()) - before; on < 3 || len(a.found(a.answered(o).Auth[acrHost].Password)) == 0 {
		t.Errorf("%d secrets come to be on the way: an assertion, Entra's token and the registry's are wanted", on)
	}
}
