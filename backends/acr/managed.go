package acr

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/AzureAD/microsoft-authentication-library-for-go/apps/managedidentity"

	"github.com/credential-broker/credential-broker/backends"
)

// imdsAddress is where the SDK asks the instance metadata service of a virtual machine.
const imdsAddress = "169.254.169.254"

// imdsVariable names another address for it, as some of the Azure SDKs take it, and webIdentity.
const imdsVariable = "AZURE_POD_IDENTITY_AUTHORITY_HOST"

// tokenRequest asks for a scope.
func tokenRequest(scope string) policy.TokenRequestOptions {
	return policy.TokenRequestOptions{Scopes: []string{scope}}
}

// managed asks for a token of a managed identity, in whatever service of Azure's this runs, as the SDK finds out by the environment. Tried is where else an identity was looked for.
func (a *azure) managed(ctx context.Context, m *ManagedIdentity, tried []string, scope string) (t azcore.AccessToken, doing string, err error) {
	ctx, cancel := context.WithTimeout(ctx, managedTimeout)
	defer cancel()
	calls := a.calls()
	defer calls.close()
	calls.managed = true
	source, err := managedidentity.GetSource()
	if err != nil {
		return t, doing, backends.Unavailable(errUndocumented)
	}
	doing = "token of " + m.String() + " from " + describe(source)
	options := azidentity.ManagedIdentityCredentialOptions{ClientOptions: calls.options(&publicCloud)}
	if source == managedidentity.ServiceFabric { // the SDK pins that service's certificate, and takes no other kind of client for it
		options.Transport = &http.Client{Transport: a.link, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		options.PerRetryPolicies = []policy.Policy{watcher{calls}}
	}
	switch {
	case m.ClientID != "":
		options.ID = azidentity.ClientID(m.ClientID)
	case m.ObjectID != "":
		options.ID = azidentity.ObjectID(m.ObjectID)
	case m.ResourceID != "":
		options.ID = azidentity.ResourceID(m.ResourceID)
	}
	credential, err := azidentity.NewManagedIdentityCredential(&options)
	switch {
	case err != nil && options.ID != nil:
		return t, doing, backends.InvalidConfig("managedIdentity", "%s: that service does not let its managed identity be chosen so: remove clientID, objectID and resourceID (AZURE_CLIENT_ID, where the settings name no identity)", doing)
	case err != nil:
		return t, doing, backends.InvalidConfig("managedIdentity", "%s: the variables are not as that service sets them: see IDENTITY_ENDPOINT, IDENTITY_SERVER_THUMBPRINT and MSI_ENDPOINT", doing)
	}
	request := tokenRequest(scope)
	request.Claims = "{}" // so that the SDK gives none that it has kept itself, for all that this process ever asks: what is kept is Backend's to know
	t, err = credential.GetToken(ctx, request)
	if err != nil {
		return t, doing, calls.explain(ctx, err, doing, func(last exchange) string { return managedAdvice(last, m, source, tried) })
	}
	return t, doing, nil
}

// String names the identity in messages.
func (m *ManagedIdentity) String() string {
	switch {
	case m.ClientID != "":
		return "the managed identity with client ID " + m.ClientID
	case m.ObjectID != "":
		return "the managed identity with object ID " + m.ObjectID
	case m.ResourceID != "":
		return "the managed identity " + m.ResourceID
	}
	return "the managed identity"
}

// describe names who gives managed identities' tokens.
func describe(source managedidentity.Source) string {
	switch source {
	case managedidentity.AppService:
		return "App Service"
	case managedidentity.AzureArc:
		return "Azure Arc"
	case managedidentity.AzureML:
		return "Azure Machine Learning"
	case managedidentity.CloudShell:
		return "Azure Cloud Shell"
	case managedidentity.ServiceFabric:
		return "Service Fabric"
	case managedidentity.DefaultToIMDS:
	}
	return "Azure's metadata service"
}

// managedAdvice says what to do about a managed identity that is not to be had.
func managedAdvice(last exchange, m *ManagedIdentity, source managedidentity.Source, tried []string) string {
	chosen := m.ClientID+m.ObjectID+m.ResourceID != ""
	if len(tried) > 0 && !last.imds && source == managedidentity.DefaultToIMDS && last.status < 500 && last.status != http.StatusTooManyRequests { // nobody who is Azure's
		answers := "and no metadata service answers, as there would be one on Azure"
		if last.status > 0 {
			answers = "and who answers as the metadata service is not Azure's"
		}
		return "no identity: " + strings.Join(tried, ", ") + ", " + answers + ": name an identity in the settings"
	}
	switch {
	case last.absent:
		return "is this machine on Azure, and is the metadata service allowed here?"
	case source == managedidentity.AzureArc && last.status == http.StatusOK && chosen:
		return "the agent of Azure Arc gives the machine's own identity alone: update it, or choose none"
	case last.status == 0 || last.status == http.StatusOK || last.status == http.StatusTooManyRequests || last.status >= 500:
		return ""
	case last.hint == hintSeveral:
		return "the machine has several managed identities: say which by managedIdentity.clientID, objectID or resourceID"
	case last.hint == hintMissing && chosen:
		return "the machine does not have it: assign it (`az vm identity assign`, on AKS `az aks update --assign-kubelet-identity`), or name another"
	case last.hint == hintMissing:
		return "the machine has no managed identity: assign one (`az vm identity assign`)"
	case last.hint == hintResource:
		return "the tenant has no application of that name: see audience"
	case source == managedidentity.AzureArc && last.status == http.StatusUnauthorized:
		return "the agent of Azure Arc refuses: this user has to be in the group himds, or root, to read what the agent asks for"
	case last.code == "":
		return "who answers there is not Azure's: on a machine that is not on Azure, name another identity"
	}
	return ""
}

// imdsBase is where the metadata service is asked in the place of its own address; nil: there.
func imdsBase() (*url.URL, error) {
	value := os.Getenv(imdsVariable)
	if value == "" {
		return nil, nil //nolint:nilnil // its own address
	}
	base, err := url.Parse(value)
	if err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Host == "" || base.User != nil {
		return nil, errors.New(imdsVariable + " is no http URL")
	}
	if base.Path == "" {
		base.Path = "/" // which JoinPath needs
	}
	return base, nil
}
