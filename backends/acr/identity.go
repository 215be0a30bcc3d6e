package acr

import (
	"cmp"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/files"
	"github.com/credential-broker/credential-broker/backends/internal/hosts"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
	"github.com/credential-broker/credential-broker/backends/internal/settings"
	"github.com/credential-broker/credential-broker/backends/webidentity"
	"github.com/credential-broker/credential-broker/backends/webidentity/awsprogram"
)

// The annotations of a service account that name whom its pods pull as. Azure's own provider reads the same.
const (
	clientIDAnnotation = "kubernetes.azure.com/acr-client-id"
	tenantIDAnnotation = "kubernetes.azure.com/acr-tenant-id"
)

// who is the identity whose token is asked for.
type who struct {
	// settings are those for the registry; entry is which they are, -1 those of the node.
	settings *Identity
	entry    int
	// pod is the token of the pod that pulls, if the pod's identity is used, and clientID and tenantID whom it pulls as.
	pod                backends.Secret
	clientID, tenantID string
	// until is when the pod's token expires, by what it says; zero for the node.
	until time.Time
}

// key tells identities apart without holding a secret.
func (w who) key() string {
	key := "node " + strconv.Itoa(w.entry)
	if w.pod != "" {
		sum := sha256.Sum256([]byte(w.pod))
		key = "pod " + strconv.Itoa(w.entry) + " " + hex.EncodeToString(sum[:]) + " " + w.clientID + " " + w.tenantID
	}
	return key
}

// who finds out whose identity a request is made with.
func (b *Backend) who(req backends.Request, reg registry) (who, error) {
	node := who{settings: &b.cfg.Identity, entry: -1}
	for i := range b.cfg.Identities {
		if entry := &b.cfg.Identities[i]; hosts.Match(entry.Registries, reg.name) {
			node.settings, node.entry = &entry.Identity, i
			break
		}
	}
	clientID := cmp.Or(req.Annotations[clientIDAnnotation], b.cfg.PodClientID)
	switch {
	case b.cfg.PodIdentity == settings.PodIdentityOff:
		return node, nil
	case req.Token == "" && b.cfg.PodIdentity == settings.PodIdentityRequire:
		return who{}, backends.Refused(errors.New("podIdentity is Require, and the request carries no service account token: give the provider tokenAttributes, and the kubelet an entry for its audience"))
	case req.Token == "":
		return node, nil
	case clientID == "" && b.cfg.PodIdentity == settings.PodIdentityRequire:
		return who{}, backends.Refused(fmt.Errorf("podIdentity is Require, and nothing says whom the pod pulls as: annotate its service account with %s (named in the provider's tokenAttributes), or set podClientID", clientIDAnnotation))
	case clientID == "":
		return node, nil
	}
	claims, err := webidentity.ParseClaims(string(req.Token))
	if err != nil {
		return who{}, backends.Refused(fmt.Errorf("the pod's service account token: %w", err))
	}
	pod := node
	pod.pod, pod.until, pod.clientID = req.Token, claims.Expires, clientID
	pod.tenantID = cmp.Or(req.Annotations[tenantIDAnnotation], b.cfg.PodTenantID, node.settings.TenantID)
	// Whoever may annotate a service account is not to make URLs of their own.
	for _, annotation := range []string{clientIDAnnotation, tenantIDAnnotation} {
		if value := req.Annotations[annotation]; value != "" && !hosts.IsUUID(value) {
			return who{}, backends.Refused(fmt.Errorf("the annotation %s is %q: want a UUID such as 00000000-0000-0000-0000-000000000000", annotation, remote.Cut(value)))
		}
	}
	if pod.tenantID == "" {
		return who{}, backends.Refused(fmt.Errorf("nothing says which tenant the pod's identity %s is in: annotate its service account with %s (named in the provider's tokenAttributes), or set podTenantID", clientID, tenantIDAnnotation))
	}
	return pod, nil
}

// proof is an Identity of which is known how it proves itself: what the environment or azure.json says is in it.
type proof struct {
	Identity
	// secret and password are of a file that is none of their own, or of the environment.
	secret, password backends.Secret
	// certificateFrom and tokenFrom name the variables that the paths are from, where they are.
	certificateFrom, tokenFrom string
	// tried is where else an identity was looked for.
	tried []string
	// entry is which of the settings' identities it is, -1 the node's.
	entry int
	// pod is the token of a pod, which proves its own identity.
	pod backends.Secret
}

// proof finds out how w proves itself.
func (w who) proof(ctx context.Context) (proof, error) {
	p := proof{Identity: *w.settings, entry: w.entry, pod: w.pod}
	switch {
	case w.pod != "":
		p.ClientID, p.TenantID = w.clientID, w.tenantID
	case p.AzureConfigFile != "":
		return p.fromAzureConfig(ctx)
	case len(p.proofs()) == 0:
		return p.fromEnvironment(ctx)
	}
	return p, nil
}

// fromEnvironment follows the order in which the Azure SDK looks for an identity of a server (https://learn.microsoft.com/azure/developer/go/sdk/authentication/credential-chains): an application of the
// environment, workload identity, and then the managed identity.
func (p proof) fromEnvironment(ctx context.Context) (proof, error) {
	client, tenant := os.Getenv("AZURE_CLIENT_ID"), cmp.Or(p.TenantID, os.Getenv("AZURE_TENANT_ID"))
	secret, certificate, file := os.Getenv("AZURE_CLIENT_SECRET"), os.Getenv("AZURE_CLIENT_CERTIFICATE_PATH"), os.Getenv("AZURE_FEDERATED_TOKEN_FILE")
	if authority := os.Getenv("AZURE_AUTHORITY_HOST"); authority != "" && p.Cloud == "" && p.AuthorityHost == "" {
		p.AuthorityHost = authority
	}
	switch {
	case client != "" && !hosts.IsUUID(client):
		return p, backends.InvalidConfig("", "AZURE_CLIENT_ID is no client ID, which is a UUID")
	case tenant != "" && !validTenant(tenant):
		return p, backends.InvalidConfig("", "AZURE_TENANT_ID is neither the ID of a tenant nor one of its domains")
	}
	application := client != "" && tenant != ""
	switch {
	case application && secret != "":
		p.secret = backends.Secret(secret)
	case application && certificate != "":
		p.ClientCertificateFile, p.certificateFrom = certificate, "AZURE_CLIENT_CERTIFICATE_PATH"
		p.password = backends.Secret(os.Getenv("AZURE_CLIENT_CERTIFICATE_PASSWORD"))
		send := os.Getenv("AZURE_CLIENT_SEND_CERTIFICATE_CHAIN")
		p.SendCertificateChain = send == "1" || strings.EqualFold(send, "true")
	case application && file != "":
		p.FederatedTokenFile, p.tokenFrom = file, "AZURE_FEDERATED_TOKEN_FILE"
	default:
		p.ManagedIdentity = &ManagedIdentity{ClientID: client}
		p.tried = []string{
			"the environment has no application (AZURE_TENANT_ID, AZURE_CLIENT_ID, and AZURE_CLIENT_SECRET or AZURE_CLIENT_CERTIFICATE_PATH are not all set, or not named in inheritEnv)",
			"no workload identity (AZURE_FEDERATED_TOKEN_FILE with those two)",
		}
		slog.DebugContext(ctx, "the environment names no application: the managed identity is asked for", "clientID", client)
		return p, nil
	}
	p.TenantID, p.ClientID = tenant, client
	return p, nil
}

// entraToken is an access token of Microsoft Entra ID for Azure's registries.
type entraToken struct {
	value   backends.Secret
	expires time.Time
	// tenant is what a registry is told, and object who it is there, by what the token says.
	tenant, object string
}

// entra gets w's token for the registries of the cloud that reg is in.
func (a *azure) entra(ctx context.Context, w who, reg registry) (entraToken, error) {
	p, err := w.proof(ctx)
	if err != nil {
		return entraToken{}, err
	}
	cloud, err := p.cloud(reg)
	if errors.Is(err, errNoCloud) && p.ManagedIdentity != nil && p.ClientID == "" {
		cloud, err = &publicCloud, nil // whoever gives its tokens knows
	}
	if err != nil {
		return entraToken{}, err
	}
	t, doing, err := a.ask(ctx, p, cloud, cmp.Or(p.Audience, defaultAudience)+"/.default")
	if err != nil {
		return entraToken{}, err
	}
	if t.Token == "" || !t.ExpiresOn.After(a.now()) {
		return entraToken{}, backends.Unavailable(fmt.Errorf("%s: %w", doing, errUndocumented))
	}
	got := entraToken{value: backends.Secret(t.Token), expires: t.ExpiresOn, tenant: p.TenantID}
	if claims, err := webidentity.ParseClaims(t.Token); err == nil {
		if hosts.IsUUID(claims.ObjectID) {
			got.object = claims.ObjectID
		}
		if !hosts.IsUUID(got.tenant) && hosts.IsUUID(claims.TenantID) { // registries know tenants by their IDs
			got.tenant = claims.TenantID
		}
	}
	if got.tenant == "" {
		return entraToken{}, backends.InvalidConfig("tenantID", "the token does not say which tenant it is of: name the tenant here")
	}
	return got, nil
}

// errNoCloud: without a registry, nothing says which cloud is asked.
var errNoCloud = errors.New("no cloud")

// cloud is the one whose Entra ID is asked. An identity of one cloud means nothing to a registry of another, and is none of its business.
func (p proof) cloud(reg registry) (*cloudSettings, error) {
	own := reg.cloud
	switch {
	case p.AuthorityHost != "" && !validAuthority(p.AuthorityHost): // from the environment
		return nil, backends.InvalidConfig("", "AZURE_AUTHORITY_HOST is not the https URL of an Entra ID: mend it, or set authorityHost")
	case p.AuthorityHost != "":
		own = customCloud(p.AuthorityHost)
	case p.Cloud != "":
		own = cloudNamed(p.Cloud)
	case own == nil && reg.name == "":
		return nil, errNoCloud
	case own == nil:
		return nil, backends.InvalidConfig("cloud", "%s does not say which cloud it is in: set cloud, or authorityHost", reg.name)
	}
	if reg.cloud != nil && own.name != reg.cloud.name && !own.custom() {
		return nil, backends.InvalidConfig("cloud", "%s is in %s, and the identity in %s: give the registry an identity of its own in identities", reg.name, reg.cloud.name, own.name)
	}
	return own, nil
}

// ask asks for a token of this scope. Doing says what was done, for messages.
func (a *azure) ask(ctx context.Context, p proof, cloud *cloudSettings, scope string) (t azcore.AccessToken, doing string, err error) {
	if p.ManagedIdentity != nil && p.ClientID == "" {
		return a.managed(ctx, p.ManagedIdentity, p.tried, scope)
	}
	calls := a.calls()
	defer calls.close()
	calls.as = p.TenantID + " " + p.ClientID
	doing = fmt.Sprintf("token of application %s in tenant %s", p.ClientID, p.TenantID)
	if p.pod != "" {
		doing = fmt.Sprintf("token of client ID %s in tenant %s for the pod's service account token", p.ClientID, p.TenantID)
	}
	credential, err := a.application(ctx, calls, p, cloud)
	if err != nil {
		return t, doing, err
	}
	t, err = credential.GetToken(ctx, tokenRequest(scope))
	if err != nil {
		return t, doing, calls.explain(ctx, err, doing, func(last exchange) string { return calls.entraAdvice(last, &p, cloud) })
	}
	return t, doing, nil
}

// withoutDiscovery: Microsoft is not asked whether it knows the Entra ID, which costs a round trip. Of its own clouds that is known.
func (p proof) withoutDiscovery(cloud *cloudSettings) bool {
	return p.DisableInstanceDiscovery || !cloud.custom()
}

// application makes the SDK's credential of an application.
func (a *azure) application(ctx context.Context, calls *calls, p proof, cloud *cloudSettings) (azcore.TokenCredential, error) {
	options := calls.options(cloud)
	assertion := func(get func(context.Context) (string, error)) (azcore.TokenCredential, error) {
		return azidentity.NewClientAssertionCredential(p.TenantID, p.ClientID, calls.assertion(get), &azidentity.ClientAssertionCredentialOptions{
			ClientOptions: options, DisableInstanceDiscovery: p.withoutDiscovery(cloud),
		})
	}
	var credential azcore.TokenCredential
	var err error
	switch {
	case p.pod != "":
		if err := calls.bind(a.cfg.IdentityBindings); err != nil {
			return nil, err
		}
		credential, err = assertion(func(context.Context) (string, error) { return string(p.pod), nil })
	case p.secret != "" || p.ClientSecretFile != "":
		secret := p.secret
		if secret == "" {
			if secret, err = readSecret(ctx, "clientSecretFile", p.ClientSecretFile); err != nil {
				return nil, err
			}
		}
		credential, err = azidentity.NewClientSecretCredential(p.TenantID, p.ClientID, string(secret), &azidentity.ClientSecretCredentialOptions{
			ClientOptions: options, DisableInstanceDiscovery: p.withoutDiscovery(cloud),
		})
	case p.ClientCertificateFile != "":
		credential, err = a.certificate(ctx, p, cloud, options)
	case p.FederatedTokenFile != "":
		if err := calls.bind(a.cfg.IdentityBindings); err != nil {
			return nil, err
		}
		credential, err = assertion(func(context.Context) (string, error) { return a.readToken(p) })
	case !p.WebIdentity.IsZero():
		web, problem := a.webIdentity(p, cloud)
		if problem != nil {
			return nil, problem
		}
		credential, err = assertion(func(ctx context.Context) (string, error) {
			t, err := web.Token(ctx)
			return string(t.Value), err
		})
	default: // a managed identity, which is the federated credential of an application
		credential, err = assertion(func(ctx context.Context) (string, error) {
			t, _, err := a.managed(ctx, p.ManagedIdentity, nil, cloud.exchange+"/.default")
			return t.Token, err
		})
	}
	if own, ok := errors.AsType[*backends.Error](err); ok {
		return nil, own
	}
	if err != nil { // whatever it quotes
		return nil, backends.InvalidConfig("tenantID", "the SDK does not take tenant and client ID")
	}
	return credential, nil
}

// certificate makes the credential of an application that has a certificate.
func (a *azure) certificate(ctx context.Context, p proof, cloud *cloudSettings, options azcore.ClientOptions) (azcore.TokenCredential, error) {
	from := cmp.Or(p.certificateFrom, "clientCertificateFile")
	misconfigured := func(format string, args ...any) error {
		return fileProblem(from, p.ClientCertificateFile, format, args...)
	}
	content, mode, err := files.Read(p.ClientCertificateFile)
	if err != nil {
		return nil, misconfigured("%w", err)
	}
	files.WarnIfReadable(ctx, p.ClientCertificateFile, mode)
	password := p.password
	if p.ClientCertificatePasswordFile != "" {
		if password, err = readSecret(ctx, "clientCertificatePasswordFile", p.ClientCertificatePasswordFile); err != nil {
			return nil, err
		}
	}
	certificates, key, err := azidentity.ParseCertificates(content, []byte(password))
	if err != nil || len(certificates) == 0 {
		return nil, misconfigured("want a certificate and its RSA key, as PEM without a password, or as PKCS#12 with the right one (of a kind that the SDK reads: if in doubt, make it PEM)")
	}
	if leaf := leafOf(certificates, key); leaf != nil && a.now().After(leaf.NotAfter) {
		return nil, backends.Refused(fmt.Errorf("certificate of %s (%s): it expired at %s: make a new one, and add it to the application", p.ClientCertificateFile, from, leaf.NotAfter.UTC().Format(time.RFC3339)))
	}
	credential, err := azidentity.NewClientCertificateCredential(p.TenantID, p.ClientID, certificates, key, &azidentity.ClientCertificateCredentialOptions{
		ClientOptions: options, DisableInstanceDiscovery: p.withoutDiscovery(cloud), SendCertificateChain: p.SendCertificateChain,
	})
	if err != nil {
		return nil, misconfigured("the SDK does not take the certificate and its key: want an RSA key")
	}
	return credential, nil
}

// leafOf is the certificate that the key is for, wherever it stands among its issuers; nil: none.
func leafOf(certificates []*x509.Certificate, key crypto.PrivateKey) *x509.Certificate {
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil
	}
	for _, c := range certificates {
		if public, ok := c.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); ok && public.Equal(signer.Public()) {
			return c
		}
	}
	return nil
}

// fileProblem is an error of a file. From is what names it: a setting, a variable, or a field in azure.json.
func fileProblem(from, path, format string, args ...any) error {
	field := from
	if strings.HasPrefix(from, "AZURE_") {
		field = ""
	}
	if strings.Contains(from, inAzureConfig) {
		field = "azureConfigFile"
	}
	return backends.InvalidConfig(field, "%s (%s): %w", path, from, fmt.Errorf(format, args...))
}

// readSecret reads a file that has a secret and nothing else.
func readSecret(ctx context.Context, field, path string) (backends.Secret, error) {
	content, mode, err := files.Read(path)
	if err != nil {
		return "", fileProblem(field, path, "%w", err)
	}
	files.WarnIfReadable(ctx, path, mode)
	secret := strings.TrimRight(string(content), "\r\n")
	if secret == "" || strings.ContainsAny(secret, "\r\n") {
		return "", fileProblem(field, path, "want one line, which is the secret")
	}
	return backends.Secret(secret), nil
}

// readToken reads the identity token of a file. It is renewed by somebody else.
func (a *azure) readToken(p proof) (string, error) {
	from := cmp.Or(p.tokenFrom, "federatedTokenFile")
	content, _, err := files.Read(p.FederatedTokenFile)
	if errors.Is(err, fs.ErrNotExist) {
		return "", backends.Unavailable(fmt.Errorf("%s (%s): %w", p.FederatedTokenFile, from, err))
	}
	if err != nil {
		return "", fileProblem(from, p.FederatedTokenFile, "%w", err)
	}
	token := strings.TrimSpace(string(content))
	claims, err := webidentity.ParseClaims(token)
	if err != nil {
		return "", fileProblem(from, p.FederatedTokenFile, "%w", err)
	}
	if now := a.now(); !claims.Expires.IsZero() && !now.Before(claims.Expires) {
		return "", backends.Unavailable(fmt.Errorf("%s (%s): the token expired at %s, and this machine's clock says %s: see to it that it is renewed, and that the clock is right",
			p.FederatedTokenFile, from, claims.Expires.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339)))
	}
	return token, nil
}

// webSources has AWS's tokens too, which Entra takes where AWS signs them with RS256.
var webSources = webidentity.Sources{AWS: awsprogram.New}

// webIdentity is a source of identity tokens, for what the cloud takes them for.
func (a *azure) webIdentity(p proof, cloud *cloudSettings) (webidentity.Source, error) {
	key := fmt.Sprint(p.entry, " ", cloud.exchange)
	a.mu.Lock()
	defer a.mu.Unlock()
	web := a.webs[key]
	if web == nil {
		var err error
		if web, err = webidentity.New(p.WebIdentity, cloud.exchange, webSources); err != nil {
			return nil, err
		}
		a.webs[key] = web
	}
	return web, nil
}
