package vault

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/hosts"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
	"github.com/credential-broker/credential-broker/backends/webidentity"
)

// Azure is the login by an Azure identity (https://developer.hashicorp.com/vault/docs/auth/azure): a managed identity of the machine, which also says which machine it is; or the token in a file, which does not, and
// logs in to roles that are bound to service principals or groups alone.
type Azure struct {
	// Resource is what the token is for, to the letter what the `resource` of Vault's configuration is. Default: "https://management.azure.com/". Tokens for an application of one's own do not say which machine
	// they are of, and log in as those of a file do.
	Resource string `json:"resource"`
	// ClientID, ObjectID or ResourceID say which managed identity, where the machine has several. Default: the system-assigned one, or the only one.
	ClientID   string `json:"clientID"`
	ObjectID   string `json:"objectID"`
	ResourceID string `json:"resourceID"`
	// Endpoint is the URL of the instance metadata service. Default: the environment's AZURE_POD_IDENTITY_AUTHORITY_HOST, else http://169.254.169.254.
	Endpoint string `json:"endpoint"`
	// TokenFile has a token of Entra's for the resource, in place of a managed identity's. It is read afresh each time. A token that Entra only exchanges, such as that of Azure workload identity, is none: it logs in by
	// the method jwt.
	TokenFile string `json:"tokenFile"`
}

// defaultResource is what Vault's own documentation has its tokens for.
const defaultResource = "https://management.azure.com/"

// computeVersion is the version of the metadata service's API that is asked, the oldest that tells all that there is to tell.
const computeVersion = "2021-02-01"

func (a *Azure) validate(field string, p *problems) {
	if a == nil {
		return
	}
	validateSource(webidentity.Config{AzureManagedIdentity: a.source()}, ".azureManagedIdentity", field, p)
	for _, r := range a.Resource {
		if r <= ' ' || r >= 0x7f {
			p.Add(field+".resource", "want printable ASCII without spaces, as in the resource of Vault's configuration")
			break
		}
	}
	p.Path(field+".tokenFile", a.TokenFile)
	if a.TokenFile != "" && a.ClientID+a.ObjectID+a.ResourceID+a.Endpoint != "" {
		p.Add(field+".tokenFile", "has the token of one identity: remove clientID, objectID, resourceID and endpoint, or tokenFile")
	}
}

func (a *Azure) source() *webidentity.AzureManagedIdentity {
	return &webidentity.AzureManagedIdentity{ClientID: a.ClientID, ObjectID: a.ObjectID, ResourceID: a.ResourceID, Endpoint: a.Endpoint}
}

// parameters are the token and, with a managed identity, which machine Vault is to find it on, as Vault's own agent has them.
func (a *Azure) parameters(ctx context.Context, _ string) (map[string]any, error) {
	var s Azure
	if a != nil {
		s = *a
	}
	resource := cmp.Or(s.Resource, defaultResource)
	fields := webidentity.Fields{Source: "auth.azure", Audience: "auth.azure.resource", Elsewhere: "set auth.azure.tokenFile, or " + otherIdentity}
	if s.TokenFile != "" {
		token, err := webidentity.NewFile(webidentity.File{Path: s.TokenFile}, resource, fields).Token(ctx)
		if e, ok := errors.AsType[*backends.Error](err); ok && e.Kind == backends.KindMisconfigured {
			return nil, backends.InvalidConfig(e.Field, "%w; a token that is not Entra's own logs in by auth.method jwt and its tokenFile", e.Err)
		}
		if err != nil {
			return nil, err
		}
		return map[string]any{"jwt": string(token.Value)}, nil
	}
	token, err := webidentity.NewAzureManagedIdentity(*s.source(), resource, fields).Token(ctx)
	if err != nil {
		return nil, err
	}
	m, err := s.machine(ctx)
	if err != nil {
		return nil, err
	}
	parameters := map[string]any{"jwt": string(token.Value), "subscription_id": m.SubscriptionID, "resource_group_name": m.ResourceGroup, "vm_name": m.Name}
	if m.ScaleSet != "" { // by which Vault goes then
		parameters["vmss_name"] = m.ScaleSet
	}
	return parameters, nil
}

// machine is what the metadata service tells of it.
type machine struct {
	SubscriptionID string `json:"subscriptionId"`
	ResourceGroup  string `json:"resourceGroupName"`
	Name           string `json:"name"`
	ScaleSet       string `json:"vmScaleSetName"`
}

// machine asks which machine this is (https://learn.microsoft.com/azure/virtual-machines/instance-metadata-service#instance-metadata).
func (a *Azure) machine(ctx context.Context) (machine, error) {
	base := cmp.Or(a.Endpoint, os.Getenv("AZURE_POD_IDENTITY_AUTHORITY_HOST"), metadataAddress)
	const doing = "which machine this is, from Azure's metadata service"
	u, err := webidentity.MetadataURL(base, "/metadata/instance/compute", url.Values{"api-version": {computeVersion}, "format": {"json"}})
	if err != nil {
		return machine{}, backends.InvalidConfig("auth.azure.endpoint", "%s: its address is none: %w; mend it, or AZURE_POD_IDENTITY_AUTHORITY_HOST", doing, err)
	}
	answer, err := askLink(ctx, u, "Metadata", "true", func(status int) bool {
		return busy(status) || status == http.StatusNotFound || status == http.StatusGone // as while it is being updated
	})
	if _, absent := errors.AsType[*remote.AbsentError](err); absent {
		return machine{}, backends.Unavailable(fmt.Errorf("%s: %w: is this machine on Azure, and is the metadata service allowed here? If not, set auth.azure.tokenFile, or %s", doing, err, otherIdentity))
	}
	if err != nil {
		return machine{}, backends.Unavailable(fmt.Errorf("%s: %w", doing, err))
	}
	if busy(answer.status) || answer.status == http.StatusGone {
		return machine{}, backends.Unavailable(fmt.Errorf("%s: it is busy, broken or being updated (HTTP status %d)", doing, answer.status))
	}
	var m machine
	if answer.status != http.StatusOK || json.Unmarshal(answer.body, &m) != nil || !hosts.IsUUID(m.SubscriptionID) || m.ResourceGroup == "" || m.Name == "" {
		return machine{}, backends.InvalidConfig("auth.azure", "%s: who answers at %s tells nothing of a machine (HTTP status %d), and may only be one that gives tokens: put its token into auth.azure.tokenFile, or %s",
			doing, u.Host, answer.status, otherIdentity)
	}
	return m, nil
}
