package cloud

import (
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/containers/azcontainerregistry"
)

func TestAzureInAll(t *testing.T) {
	c := New(t)
	tenant := c.AddEntraTenant(EntraTenant{})
	p := c.AddServicePrincipal(tenant.ID, ServicePrincipal{Secrets: []string{"s"}})
	c.AddAzureRegistry(AzureRegistry{Host: "contoso.azurecr.io", Tenant: tenant.ID, Repositories: []string{"app"}})
	c.GrantAcrPull("contoso.azurecr.io", p.ObjectID)
	options := azcore.ClientOptions{Transport: c.Client()}
	credential, err := azidentity.NewClientSecretCredential(tenant.ID, p.ClientID, "s", &azidentity.ClientSecretCredentialOptions{ClientOptions: options})
	if err != nil {
		t.Fatal(err)
	}
	token, err := credential.GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{"https://containerregistry.azure.net/.default"}})
	if err != nil {
		t.Fatal(err)
	}
	client, err := azcontainerregistry.NewAuthenticationClient("https://contoso.azurecr.io", &azcontainerregistry.AuthenticationClientOptions{ClientOptions: options})
	if err != nil {
		t.Fatal(err)
	}
	answer, err := client.ExchangeAADAccessTokenForACRRefreshToken(t.Context(), azcontainerregistry.PostContentSchemaGrantTypeAccessToken, "contoso.azurecr.io",
		&azcontainerregistry.AuthenticationClientExchangeAADAccessTokenForACRRefreshTokenOptions{AccessToken: &token.Token, Tenant: &tenant.ID})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Pull("contoso.azurecr.io/app:v1", noUser, *answer.RefreshToken); err != nil {
		t.Error(err)
	}
}
