package acr

import (
	"net/url"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"

	"github.com/credential-broker/credential-broker/backends/internal/hosts"
)

// cloudSettings is what differs between Azure's clouds.
type cloudSettings struct {
	// name is Azure's own, as `az cloud list` has it; empty for a custom one.
	name string
	// authority is the URL of Microsoft Entra ID.
	authority string
	// exchange is the audience of identity tokens that Entra takes in the place of a secret
	// (https://learn.microsoft.com/entra/workload-id/workload-identity-federation-considerations).
	exchange string
}

// The clouds that the SDK knows.
var (
	publicCloud     = cloudSettings{"AzureCloud", cloud.AzurePublic.ActiveDirectoryAuthorityHost, "api://AzureADTokenExchange"}
	chinaCloud      = cloudSettings{"AzureChinaCloud", cloud.AzureChina.ActiveDirectoryAuthorityHost, "api://AzureADTokenExchangeChina"}
	governmentCloud = cloudSettings{"AzureUSGovernment", cloud.AzureGovernment.ActiveDirectoryAuthorityHost, "api://AzureADTokenExchangeUSGov"}
)

// custom: nobody but the settings knows it.
func (c *cloudSettings) custom() bool { return c.name == "" }

// cloudNamed finds a cloud by its name, or by one that azure.json has; nil: none.
func cloudNamed(name string) *cloudSettings {
	switch strings.ToLower(name) {
	case "azurecloud", "azurepubliccloud":
		return &publicCloud
	case "azurechinacloud":
		return &chinaCloud
	case "azureusgovernment", "azureusgovernmentcloud":
		return &governmentCloud
	}
	return nil
}

// customCloud is one that is known by the URL of its Entra ID alone, such as an Azure Stack Hub's.
func customCloud(authority string) *cloudSettings {
	for _, known := range []*cloudSettings{&publicCloud, &chinaCloud, &governmentCloud} {
		if strings.TrimSuffix(known.authority, "/") == strings.TrimSuffix(authority, "/") {
			return known
		}
	}
	return &cloudSettings{authority: authority, exchange: publicCloud.exchange}
}

// validAuthority takes the URL of an Entra ID: what is sent there are secrets and assertions.
func validAuthority(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Scheme == "https" && u.User == nil && u.RawQuery == "" && u.Fragment == "" && strings.Trim(u.Path, "/") == "" && hosts.ValidDomain(u.Hostname()) && validPort(u.Port())
}

func validPort(port string) bool {
	return hosts.ConsistsOf(port, "", 0, 5) && strings.Trim(port, "0123456789") == ""
}

// validTenant takes what may stand in a URL for a tenant: its ID, one of its domains, or adfs, which Azure Stack Hub without Entra has.
func validTenant(s string) bool {
	return hosts.IsUUID(s) || s == "adfs" || hosts.ValidDomain(strings.ToLower(s))
}
