//go:build unix

package kubelet

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/test/cloud"
)

// What the tests of Azure's registries pull from, and who may: applications and managed identities by their client IDs.
const (
	acrTenant      = "0c0c0c0c-1111-4111-8111-a1a1a1a1a1a1"
	acrOtherTenant = "0d0d0d0d-2222-4222-8222-b2b2b2b2b2b2"
	acrHost        = "contoso.azurecr.io"
	acrOther       = "fabrikam.azurecr.io"
	acrClosed      = "closed.azurecr.io" // nobody has a role there
	acrImage       = acrHost + "/team/app"
	acrNode        = "1a1a1a1a-0000-4000-8000-000000000001" // the node's
	acrPuller      = "1b1b1b1b-0000-4000-8000-000000000002" // another one of its, or a pod's
	acrSecret      = "Q8~not-a-real-secret"
	acrExchange    = "api://AzureADTokenExchange"
	acrSubject     = "system:serviceaccount:kube-system:node"
)

// newAzureWorld is a world whose node pulls from Azure.
func newAzureWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.provider = object{
		"name": "acr", "matchImages": []string{"*.azurecr.io", "*.*.geo.azurecr.io", "*.azurecr.cn", "*.azurecr.us", "*.azurecr.io.example", "registry.example"},
		"inheritEnv": []string{"AZURE_*", "IDENTITY_*", "MSI_*", "IMDS_*", "AWS_*", "GCE_*"},
	}
	w.annotate = func(clientID string) map[string]string {
		return map[string]string{"kubernetes.azure.com/acr-client-id": clientID, "kubernetes.azure.com/acr-tenant-id": acrTenant}
	}
	w.AddEntraTenant(cloud.EntraTenant{ID: acrTenant})
	w.acr(acrHost, acrTenant)
	w.acr(acrClosed, acrTenant)
	return w
}

// acr is a registry in a tenant.
func (w *world) acr(host, tenant string) {
	w.AddAzureRegistry(cloud.AzureRegistry{Host: host, Tenant: tenant, Repositories: []string{"team/app", "team/other"}})
}

// application is one of a tenant's that may pull, by what proves it.
func (w *world) application(host, tenant, clientID string, p cloud.ServicePrincipal) {
	p.ClientID = clientID
	w.GrantAcrPull(host, w.AddServicePrincipal(tenant, p).ObjectID)
}

// as has the node ask as the application acrNode, which is proved by that.
func (w *world) as(proof string, setting any) {
	w.config["tenantID"], w.config["clientID"], w.config[proof] = acrTenant, acrNode, setting
}

// byEnvironment is as by variables.
func (w *world) byEnvironment(proof ...string) {
	w.env = append([]string{"AZURE_TENANT_ID=" + acrTenant, "AZURE_CLIENT_ID=" + acrNode}, proof...)
}

// withSecret is the node's application with a secret, of which the file or variable has the value; refused, it is another one's.
func (w *world) withSecret() string {
	w.application(acrHost, acrTenant, acrNode, cloud.ServicePrincipal{Secrets: []string{acrSecret}})
	return w.unless(acrSecret, "of yesterday")
}

// withCertificate is the same with the file of a certificate and its key.
func (w *world) withCertificate() string {
	known, file := w.certificate()
	if w.refuse {
		_, file = w.certificate()
	}
	w.application(acrHost, acrTenant, acrNode, cloud.ServicePrincipal{Certificates: []*x509.Certificate{known}})
	return file
}

// certificate is one that vouches for itself, and a file of it and its key.
func (w *world) certificate() (*x509.Certificate, string) {
	w.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		w.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "node"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		w.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		w.Fatal(err)
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		w.Fatal(err)
	}
	content := append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	return made, w.file("certificate.pem", string(content), 0o600)
}

// federates is what an application says of the tokens that prove it; refused, it is another subject's.
func (w *world) federates(issuer, subject string) cloud.ServicePrincipal {
	return cloud.ServicePrincipal{Federated: []cloud.FederatedCredential{{Issuer: issuer, Subject: w.unless(subject, subject+"-2")}}}
}

// withToken is the node's application with the file of a token of the cluster's.
func (w *world) withToken() string {
	w.application(acrHost, acrTenant, acrNode, w.federates(ecrCluster, acrSubject))
	return w.file("token", w.issuer.Token(object{"aud": acrExchange, "sub": acrSubject}), 0o600)
}

// azureMachine is a virtual machine with these identities, all of which may pull.
func (w *world) azureMachine(ids ...cloud.ManagedIdentity) *cloud.AzureInstance {
	m := w.AzureInstanceIn(acrTenant, ids...)
	w.env = append(w.env, proxied(m.Environ())...)
	for _, id := range m.Identities() {
		w.GrantAcrPull(acrHost, id.ObjectID)
	}
	return m
}

// ownAndAnother are a machine's identities; refused, it has the first one alone.
func (w *world) ownAndAnother() []cloud.ManagedIdentity {
	ids := []cloud.ManagedIdentity{{ClientID: acrNode, System: true}, {ClientID: acrPuller, ObjectID: acrObject, ResourceID: acrResource}}
	if w.refuse {
		return ids[:1]
	}
	return ids
}

const (
	acrObject   = "2b2b2b2b-0000-4000-8000-000000000002"
	acrResource = "/subscriptions/3c3c3c3c-0000-4000-8000-000000000003/resourceGroups/nodes/providers/Microsoft.ManagedIdentity/userAssignedIdentities/puller"
)

// azureJSON is the file of Azure's cloud provider.
func (w *world) azureJSON(content object) {
	w.config["azureConfigFile"] = w.json("azure.json", content)
}

// endpoint is what gives tokens in a service of Azure's that is no virtual machine. The registry is in its tenant.
func (w *world) endpoint(e *cloud.IdentityEndpoint) {
	w.acr(acrHost, e.Tenant())
	w.GrantAcrPull(acrHost, e.Identities()[0].ObjectID)
	w.env = proxied(e.Environ())
}

// revoked takes the role from an identity, where whoever asks is to be refused.
func (w *world) revoked(id cloud.ManagedIdentity) {
	if w.refuse {
		w.RevokeRoles(acrHost, id.ObjectID)
	}
}

// spoil appends something to a variable, where whoever asks is to be refused.
func (w *world) spoil(name string) {
	for i, variable := range w.env {
		if w.refuse && strings.HasPrefix(variable, name+"=") {
			w.env[i] += "0"
		}
	}
}

var mayIssue = cloud.Statement{Actions: []string{"sts:GetWebIdentityToken"}}

// azureTokens is a provider's tokenAttributes for Azure.
func azureTokens(audience, cacheType string) object {
	return object{
		"serviceAccountTokenAudience": audience, "cacheType": cacheType, "requireServiceAccount": false,
		"optionalServiceAccountAnnotationKeys": []string{"kubernetes.azure.com/acr-client-id", "kubernetes.azure.com/acr-tenant-id"},
	}
}

// azurePod has builder's service account name an application, which takes its tokens. The node has an identity that may pull, and that is not used in its place.
func (w *world) azurePod() {
	w.azureMachine(cloud.ManagedIdentity{ClientID: acrNode, System: true})
	w.application(acrHost, acrTenant, acrPuller, w.federates(ecrCluster, "system:serviceaccount:team-a:builder"))
	w.tokens, w.accounts["team-a/builder"] = azureTokens(acrExchange, "Token"), acrPuller
}

func asBuilder(asker string) []pull { return []pull{{acrImage, builder, asker}} }

const (
	acrNoRole       = "AcrPull is missing on contoso"
	acrNotThere     = "the machine does not have it: assign it"
	acrWrongSecret  = "the secret is wrong"
	acrNotFederated = "the application or managed identity has no federated credential for the token"
	acrShown        = `"issuer":"` + ecrCluster + `","subject":"`
)

// acrRows is the table of identities.
var acrRows = []row{
	{"the machine", func(w *world) {
		w.revoked(w.azureMachine(cloud.ManagedIdentity{ClientID: acrNode, System: true}).Identities()[0])
	}, acrNode, nil, []string{"exchange of the Entra token at registry " + acrHost, acrNoRole, "az role assignment create --assignee-object-id"}},

	{"one of the machine's identities, by client ID", func(w *world) {
		w.azureMachine(w.ownAndAnother()...)
		w.config["managedIdentity"] = object{"clientID": acrPuller}
	}, acrPuller, nil, []string{"client ID " + acrPuller, acrNotThere}},

	{"one of the machine's identities, by object ID", func(w *world) {
		w.azureMachine(w.ownAndAnother()...)
		w.config["managedIdentity"] = object{"objectID": acrObject}
	}, acrPuller, nil, []string{"object ID " + acrObject, acrNotThere}},

	{"one of the machine's identities, by resource ID", func(w *world) {
		w.azureMachine(w.ownAndAnother()...)
		w.config["managedIdentity"] = object{"resourceID": acrResource}
	}, acrPuller, nil, []string{acrResource, acrNotThere}},

	{"one of the machine's identities, by the environment", func(w *world) {
		w.env = []string{"AZURE_CLIENT_ID=" + acrPuller}
		w.azureMachine(w.ownAndAnother()...)
	}, acrPuller, nil, []string{"client ID " + acrPuller, acrNotThere}},

	{"azure.json: the machine", func(w *world) {
		w.azureMachine(cloud.ManagedIdentity{ClientID: acrNode, System: !w.refuse}, cloud.ManagedIdentity{ClientID: acrPuller})
		w.azureJSON(object{"cloud": "AzurePublicCloud", "tenantId": acrTenant, "aadClientId": "msi", "aadClientSecret": "msi", "useManagedIdentityExtension": true, "vnetName": "aks"})
	}, acrNode, nil, []string{"the machine has several managed identities: say which"}},

	{"azure.json: a secret", func(w *world) {
		w.azureJSON(object{"tenantId": acrTenant, "aadClientId": acrNode, "aadClientSecret": w.withSecret()})
	}, acrNode, nil, []string{"AADSTS7000215", acrWrongSecret}},

	{"azure.json: a certificate", func(w *world) {
		w.azureJSON(object{"tenantId": acrTenant, "aadClientId": acrNode, "aadClientCertPath": w.withCertificate()})
	}, acrNode, nil, []string{"AADSTS700027", "the application does not know the certificate"}},

	{"a secret's file", func(w *world) {
		w.as("clientSecretFile", w.file("secret", w.withSecret()+"\n", 0o600))
	}, acrNode, nil, []string{"token of application " + acrNode + " in tenant " + acrTenant, "AADSTS7000215", acrWrongSecret}},

	{"a certificate's file", func(w *world) {
		w.as("clientCertificateFile", w.withCertificate())
	}, acrNode, nil, []string{"AADSTS700027", "the application does not know the certificate"}},

	{"a secret of the environment", func(w *world) {
		w.byEnvironment("AZURE_CLIENT_SECRET="+w.withSecret(), "AZURE_FEDERATED_TOKEN_FILE=/nonexistent")
	}, acrNode, nil, []string{"AADSTS7000215", acrWrongSecret}},

	{"a certificate of the environment", func(w *world) {
		w.byEnvironment("AZURE_CLIENT_CERTIFICATE_PATH="+w.withCertificate(), "AZURE_FEDERATED_TOKEN_FILE=/nonexistent")
	}, acrNode, nil, []string{"AADSTS700027", "the application does not know the certificate"}},

	{"workload identity of the environment", func(w *world) {
		w.byEnvironment("AZURE_FEDERATED_TOKEN_FILE="+w.withToken(), "AZURE_AUTHORITY_HOST=https://login.microsoftonline.com/")
	}, acrNode, nil, []string{"AADSTS700213", acrNotFederated, acrShown}},

	{"a federated token's file", func(w *world) {
		w.as("federatedTokenFile", w.withToken())
	}, acrNode, nil, []string{"AADSTS700213", acrNotFederated, acrShown + acrSubject}},

	{"web identity: file", func(w *world) {
		w.as("webIdentity", object{"file": object{"path": w.withToken()}})
	}, acrNode, nil, []string{"AADSTS700213", acrNotFederated, acrShown + acrSubject}},

	{"web identity: Google", func(w *world) {
		g := w.GoogleInstance(cloud.ServiceAccount{Email: "node@project.iam.gserviceaccount.com"})
		w.env = proxied(g.Environ())
		w.application(acrHost, acrTenant, acrNode, w.federates(cloud.GoogleIssuer, g.ServiceAccounts()[0].UniqueID))
		w.as("webIdentity", object{"googleMetadata": object{}})
	}, acrNode, nil, []string{"AADSTS700213", acrNotFederated, `"issuer":"` + cloud.GoogleIssuer + `"`}},

	{"web identity: AWS", func(w *world) {
		w.env = append(w.AddUser(ecrUser, mayIssue).Environ(), "AWS_REGION=eu-west-1")
		w.application(acrHost, acrTenant, acrNode, w.federates(w.EnableOutboundFederation(ecrAccount).URL(), ecrUser))
		w.as("webIdentity", object{"aws": object{}})
	}, acrNode, nil, []string{"AADSTS700213", acrNotFederated, ".tokens.sts.global.api.aws", `"subject":"` + ecrUser + `"`}},

	{"web identity: AWS, an instance's role", func(w *world) {
		w.AddRole(cloud.Role{ARN: ecrNode, Policy: []cloud.Statement{mayIssue}})
		issuer := "https://nobody.example"
		if !w.refuse {
			issuer = w.EnableOutboundFederation(ecrAccount).URL()
		}
		w.application(acrHost, acrTenant, acrNode, w.federates(issuer, ecrNode))
		w.env = proxied(w.Instance(ecrNode).Environ())
		w.as("webIdentity", object{"aws": object{"region": "eu-west-1"}})
	}, acrNode, nil, []string{"aws iam enable-outbound-web-identity-federation"}},

	{"App Service", func(w *world) {
		w.endpoint(w.AppServiceIdentity(cloud.ManagedIdentity{ClientID: acrNode, System: true}))
		w.spoil("IDENTITY_HEADER")
	}, acrNode, nil, []string{"the managed identity from App Service", "HTTP status 401"}},

	{"Azure Arc", func(w *world) {
		e, err := w.AzureArc(cloud.ManagedIdentity{ClientID: acrNode, System: true})
		if err != nil {
			w.Skip(err) // only root may write where Azure Arc's agent does
		}
		w.endpoint(e)
		w.revoked(e.Identities()[0])
	}, acrNode, nil, []string{acrNoRole}},

	{"Azure Machine Learning", func(w *world) {
		w.endpoint(w.AzureMLIdentity(cloud.ManagedIdentity{ClientID: acrNode, System: true}))
		w.spoil("MSI_SECRET")
	}, acrNode, nil, []string{"the managed identity from Azure Machine Learning", "HTTP status 401"}},

	{"Azure Cloud Shell", func(w *world) {
		e := w.CloudShellIdentity(cloud.ManagedIdentity{ClientID: acrNode, System: true})
		w.endpoint(e)
		w.revoked(e.Identities()[0])
	}, acrNode, nil, []string{acrNoRole}},

	{"Service Fabric", func(w *world) {
		w.endpoint(w.ServiceFabricIdentity(cloud.ManagedIdentity{ClientID: acrNode, System: true}))
		w.spoil("IDENTITY_SERVER_THUMBPRINT")
	}, acrNode, nil, []string{"the managed identity from Service Fabric"}},

	{"a managed identity as the credential of an application in another tenant", func(w *world) {
		m := w.AzureInstance(cloud.ManagedIdentity{ClientID: acrPuller})
		w.env = proxied(m.Environ())
		w.application(acrHost, acrTenant, acrNode, w.federates(m.Issuer(true), m.Identities()[0].ObjectID))
		w.as("managedIdentity", object{"clientID": acrPuller})
	}, acrNode, nil, []string{"AADSTS700213", acrNotFederated, "az ad app federated-credential create --id " + acrNode}},

	{"a pod, by both annotations", func(w *world) { w.azurePod() }, "", asBuilder(acrPuller), []string{
		"token of client ID " + acrPuller + " in tenant " + acrTenant + " for the pod's service account token", "AADSTS700213", "az identity federated-credential create",
		acrShown + "system:serviceaccount:team-a:builder",
	}},

	{"a pod, by the settings, required", func(w *world) {
		w.azurePod()
		w.accounts["team-a/builder"] = ""
		w.config = object{"podClientID": acrPuller, "podTenantID": acrTenant, "podIdentity": "Require"}
	}, "", asBuilder(acrPuller), []string{"AADSTS700213", acrNotFederated}},

	{"a pod whose own identity is required", func(w *world) {
		w.azurePod()
		w.config["podIdentity"] = "Require"
		w.accounts["team-a/builder"] = w.unless(acrPuller, "")
	}, "", asBuilder(acrPuller), []string{"podIdentity is Require, and nothing says whom the pod pulls as"}},

	{"a pod without an annotation, which the node pulls for", func(w *world) {
		w.azurePod()
		w.accounts["team-a/builder"] = ""
		w.config["managedIdentity"] = object{"clientID": w.unless(acrNode, acrPuller)}
	}, "", asBuilder(acrNode), []string{"client ID " + acrPuller, acrNotThere}},

	{"a pod whose identity is not used", func(w *world) {
		w.azurePod()
		w.config["podIdentity"] = w.unless("Off", "Prefer")
		w.RemoveServicePrincipal(acrTenant, acrPuller)
	}, "", asBuilder(acrNode), []string{"AADSTS700016", "the tenant has no such application"}},

	{"a pod, by an identity binding", func(w *world) {
		w.application(acrHost, acrTenant, acrPuller, cloud.ServicePrincipal{})
		b := w.IdentityBinding(acrTenant, w.issuer)
		b.Bind(acrPuller, "team-a", w.unless("builder", "somebody-else"))
		w.env = b.Environ()
		w.config["identityBindings"] = object{}
		w.tokens, w.accounts["team-a/builder"] = azureTokens("api://AKSIdentityBinding", "ServiceAccount"), acrPuller
	}, "", asBuilder(acrPuller), []string{"HTTP status 403", "no identity binding of the cluster lets this service account use it"}},

	{"each registry's own identity", func(w *world) {
		w.AddEntraTenant(cloud.EntraTenant{ID: acrOtherTenant})
		w.acr(acrOther, acrOtherTenant)
		secret := w.file("secret", w.withSecret(), 0o600)
		w.application(acrOther, acrOtherTenant, acrPuller, cloud.ServicePrincipal{Secrets: []string{acrSecret}})
		w.as("clientSecretFile", secret)
		w.config["identities"] = []object{{"registries": []string{"fabri*.azurecr.io"}, "tenantID": acrOtherTenant, "clientID": acrPuller, "clientSecretFile": secret}}
	}, "", []pull{{acrImage, pod{}, acrNode}, {acrOther + "/team/app", pod{}, acrPuller}}, []string{
		"token of application " + acrNode + " in tenant " + acrTenant, "token of application " + acrPuller + " in tenant " + acrOtherTenant, "AADSTS7000215",
	}},

	{"China, as a pod", func(w *world) {
		const host, exchange = "contoso.azurecr.cn", "api://AzureADTokenExchangeChina"
		tenant := w.AddEntraTenant(cloud.EntraTenant{ID: acrOtherTenant, Authority: "login.chinacloudapi.cn"}).ID
		w.acr(host, tenant)
		w.application(host, tenant, acrPuller, cloud.ServicePrincipal{Federated: []cloud.FederatedCredential{{
			Issuer: ecrCluster, Subject: "system:serviceaccount:team-a:builder", Audience: w.unless(exchange, acrExchange),
		}}})
		w.tokens, w.accounts["team-a/builder"] = azureTokens(exchange, "Token"), ""
		w.config = object{"podClientID": acrPuller, "podTenantID": tenant}
	}, "", []pull{{"contoso.azurecr.cn/team/app", builder, acrPuller}}, []string{"login.chinacloudapi.cn", "AADSTS700212", `"audiences":["api://AzureADTokenExchangeChina"]`}},

	{"US government", func(w *world) {
		const host = "contoso.azurecr.us"
		tenant := w.AddEntraTenant(cloud.EntraTenant{ID: acrOtherTenant, Authority: w.unless("login.microsoftonline.us", "login.microsoftonline.com")}).ID
		w.acr(host, tenant)
		w.application(host, tenant, acrNode, cloud.ServicePrincipal{Secrets: []string{acrSecret}})
		w.as("clientSecretFile", w.file("secret", acrSecret, 0o600))
		w.config["tenantID"] = tenant
	}, "", []pull{{"contoso.azurecr.us/team/app", pod{}, acrNode}}, []string{"there is no such tenant at https://login.microsoftonline.us"}},

	{"a region", func(w *world) {
		const host = "contoso.westeurope.geo.azurecr.io"
		w.acr(host, acrTenant)
		m := w.azureMachine(cloud.ManagedIdentity{ClientID: acrNode, System: true})
		w.GrantAcrPull(w.unless(host, acrClosed), m.Identities()[0].ObjectID)
	}, "", []pull{{"contoso.westeurope.geo.azurecr.io/team/app", pod{}, acrNode}}, []string{"exchange of the Entra token at registry contoso.westeurope.geo.azurecr.io", "AcrPull is missing"}},
}

// TestACRIdentities: with every identity, the kubelet's keyring has for the image exactly the credential with which it is pulled, and for images elsewhere none.
func TestACRIdentities(t *testing.T) {
	for _, r := range acrRows {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			w := newAzureWorld(t)
			r.prepare(w)
			w.start()
			w.ForgetRequests()
			seen := map[string]bool{}
			for i, p := range r.all(acrImage) {
				found := w.lookup(p.image, p.pod)
				if len(found) != 1 {
					t.Fatalf("%s: the kubelet has %d credentials\n%s", p.image, len(found), w.read("stderr"))
				}
				if err := w.Pull(p.image, found[0].Username, found[0].Password); err != nil {
					t.Errorf("pull %s: %v", p.image, err)
				}
				if seen[found[0].Password] {
					t.Errorf("%s: another registry's credential", p.image)
				}
				seen[found[0].Password] = true
				if askers := w.askers(); len(askers) != i+1 || askers[i] != p.asker {
					t.Errorf("%q have been given tokens, the last one should be %s", askers, p.asker)
				}
				// The whole registry is served from the kubelet's cache from now on.
				before := w.starts()
				host, _, _ := strings.Cut(p.image, "/")
				if again := w.lookup(host+"/team/other", p.pod); len(again) != 1 || again[0] != found[0] || w.starts() != before {
					t.Errorf("another image of %s: %d credentials after %d starts of the broker", host, len(again), w.starts()-before)
				}
			}
			asked := len(w.askers())
			for _, elsewhere := range []string{"registry.example/team/app", acrHost + ".example/team/app", acrClosed + "/team/app"} {
				before := w.starts()
				if found := w.lookup(elsewhere, r.all(acrImage)[0].pod); len(found) != 0 || w.starts() != before+1 {
					t.Errorf("%s: the kubelet has %d credentials after %d starts of the broker", elsewhere, len(found), w.starts()-before)
				}
			}
			if len(w.askers()) != asked {
				t.Errorf("%q are given tokens for other images", w.askers()[asked:])
			}
			w.direct()
		})
	}
}

// TestACRIdentitiesRefused is the same where whoever asks is not trusted: there is no credential, whatever else the node could have asked with, and the broker says why.
func TestACRIdentitiesRefused(t *testing.T) {
	for _, r := range acrRows {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			w := newAzureWorld(t)
			w.refuse = true
			r.prepare(w)
			w.start()
			for _, p := range r.all(acrImage) {
				if found := w.lookup(p.image, p.pod); len(found) != 0 {
					t.Errorf("%s: the kubelet has %d credentials", p.image, len(found))
				}
			}
			if w.starts() != len(r.all(acrImage)) {
				t.Errorf("the broker was started %d times", w.starts())
			}
			if given := w.askers(); len(given) != 0 {
				t.Errorf("%q were given tokens", given)
			}
			stderr := w.read("stderr")
			for _, cause := range r.causes {
				if !strings.Contains(stderr, cause) {
					t.Errorf("the broker does not say %q", cause)
				}
			}
			if t.Failed() {
				t.Log(stderr)
			}
			w.direct()
		})
	}
}

// TestACRAnonymous: for registries from which everybody may pull there is no credential, whoever the node is, and the pod neither.
func TestACRAnonymous(t *testing.T) {
	w := newAzureWorld(t)
	w.AddAzureRegistry(cloud.AzureRegistry{Host: acrOther, Tenant: acrTenant, Anonymous: true, Repositories: []string{"team/app"}})
	w.azureMachine(cloud.ManagedIdentity{ClientID: acrNode, System: true})
	w.config["identities"] = []object{{"registries": []string{acrOther, acrClosed}, "anonymous": true}}
	w.start()
	for image, open := range map[string]bool{acrOther + "/team/app": true, acrClosed + "/team/app": false} {
		if found := w.lookup(image, builder); len(found) != 0 {
			t.Errorf("%s: the kubelet has %d credentials", image, len(found))
		}
		if err := w.Pull(image, "", ""); (err == nil) != open {
			t.Errorf("pull %s anonymously: %v", image, err)
		}
	}
	for _, r := range w.Requests() {
		if r.Service == "azure-metadata" || r.Operation == "exchange" {
			t.Errorf("asked: %+v", r)
		}
	}
	if found := w.lookup(acrImage, builder); len(found) != 1 {
		t.Errorf("elsewhere the kubelet has %d credentials\n%s", len(found), w.read("stderr"))
	}
}

// TestACRByRepository: where role assignments differ by repository and the settings say so, the kubelet keeps an answer for its image and no other.
func TestACRByRepository(t *testing.T) {
	w := newAzureWorld(t)
	w.AddAzureRegistry(cloud.AzureRegistry{Host: acrHost, Tenant: acrTenant, ABAC: true, Repositories: []string{"team/app", "team/other"}})
	m := w.AzureInstanceIn(acrTenant, cloud.ManagedIdentity{ClientID: acrNode, System: true})
	w.GrantRepositoryReader(acrHost, m.Identities()[0].ObjectID, "team/app")
	w.env, w.config["scope"] = m.Environ(), "image"
	w.start()
	for i, image := range []string{acrImage, acrImage, acrHost + "/team/other"} {
		found := w.lookup(image, pod{})
		if len(found) != 1 {
			t.Fatalf("%s: the kubelet has %d credentials\n%s", image, len(found), w.read("stderr"))
		}
		if err := w.Pull(image, found[0].Username, found[0].Password); (err == nil) != (image == acrImage) {
			t.Errorf("pull %s: %v", image, err)
		}
		if starts := []int{1, 1, 2}[i]; w.starts() != starts {
			t.Errorf("%s: the broker has been started %d times, want %d", image, w.starts(), starts)
		}
	}
}

// TestACRPodsAreKeptApart: with the kubelet's cache on and many pods at once, each has the credential of its own service account, which opens no other's images.
func TestACRPodsAreKeptApart(t *testing.T) {
	for _, cacheType := range []string{"ServiceAccount", "Token"} {
		t.Run(cacheType, func(t *testing.T) {
			t.Parallel()
			w := newAzureWorld(t)
			w.tokens = azureTokens(acrExchange, cacheType)
			w.AddAzureRegistry(cloud.AzureRegistry{Host: acrHost, Tenant: acrTenant, ABAC: true, Repositories: apartFrom})
			m := w.AzureInstanceIn(acrTenant, cloud.ManagedIdentity{ClientID: acrNode, System: true})
			w.env = m.Environ()
			w.GrantRepositoryReader(acrHost, m.Identities()[0].ObjectID, "node")
			clients := map[string]string{"node": acrNode}
			for repository, accounts := range map[string][]string{"team-a": {"team-a:builder"}, "team-b": {"team-b:builder"}, "common": {"team-a:tester", "team-b:tester"}} {
				var p cloud.ServicePrincipal
				for _, account := range accounts {
					p.Federated = append(p.Federated, cloud.FederatedCredential{Issuer: ecrCluster, Subject: "system:serviceaccount:" + account})
				}
				p = w.AddServicePrincipal(acrTenant, p)
				w.GrantRepositoryReader(acrHost, p.ObjectID, repository)
				clients[repository] = p.ClientID
			}
			w.accounts = map[string]string{
				"team-a/builder": clients["team-a"], "team-b/builder": clients["team-b"], "team-a/tester": clients["common"], "team-b/tester": clients["common"],
				"team-a/plain": "", "team-b/thief": clients["team-a"],
			}
			w.start()
			w.keptApart(acrHost)
			asked := map[string]int{}
			for _, asker := range w.askers() {
				asked[asker]++
			}
			if asked[clients["team-b"]] != 1 || asked[clients["common"]] != 2 || asked[acrNode] != 1 {
				t.Errorf("how often each identity asked: %v", asked)
			}
			if !strings.Contains(w.read("stderr"), "system:serviceaccount:team-b:thief") {
				t.Errorf("the broker does not say who is refused:\n%s", w.read("stderr"))
			}
		})
	}
}
