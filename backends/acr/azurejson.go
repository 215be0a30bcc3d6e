package acr

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/files"
	"github.com/credential-broker/credential-broker/backends/internal/hosts"
	"github.com/credential-broker/credential-broker/backends/internal/settings"
)

// azureConfig is what is read of azure.json, the file of Azure's cloud provider, by the names that it has there
// (https://cloud-provider-azure.sigs.k8s.io/install/configs/). All the rest of it is not about registries.
type azureConfig struct {
	Cloud                                 string          `json:"cloud"`
	TenantID                              string          `json:"tenantId"`
	AADClientID                           string          `json:"aadClientId"`
	AADClientSecret                       backends.Secret `json:"aadClientSecret"`
	AADClientCertPath                     string          `json:"aadClientCertPath"`
	AADClientCertPassword                 backends.Secret `json:"aadClientCertPassword"`
	UseManagedIdentityExtension           bool            `json:"useManagedIdentityExtension"`
	UserAssignedIdentityID                string          `json:"userAssignedIdentityID"`
	UseFederatedWorkloadIdentityExtension bool            `json:"useFederatedWorkloadIdentityExtension"`
	AADFederatedTokenFile                 string          `json:"aadFederatedTokenFile"`
}

// managedSecret is what azure.json has for the application where there is none but a managed identity.
const managedSecret = "msi"

// inAzureConfig is how a field of azure.json is named as what names another file.
const inAzureConfig = " in "

// fromAzureConfig makes an identity of azure.json. The file is read afresh each time.
func (p proof) fromAzureConfig(ctx context.Context) (proof, error) {
	path := p.AzureConfigFile
	misconfigured := func(format string, args ...any) (proof, error) {
		return proof{}, fileProblem("azureConfigFile", path, format, args...)
	}
	content, mode, err := files.Read(path)
	if err != nil {
		return misconfigured("%w", err)
	}
	var c azureConfig
	if json.Unmarshal(content, &c) != nil {
		return misconfigured("it is not JSON of the form that Azure's cloud provider documents") // the parser's own error could quote a secret
	}
	as := p
	as.AzureConfigFile = ""
	as.TenantID, as.ClientID = c.TenantID, c.AADClientID
	if as.Cloud == "" && as.AuthorityHost == "" && c.Cloud != "" {
		if as.Cloud = c.Cloud; cloudNamed(c.Cloud) == nil {
			return misconfigured("its cloud is none that is known here: set authorityHost to the URL of that cloud's Entra ID")
		}
	}
	if c.TenantID != "" && !validTenant(c.TenantID) {
		return misconfigured("its tenantId is no ID of a tenant")
	}
	if c.UseManagedIdentityExtension {
		as.ClientID, as.ManagedIdentity = "", &ManagedIdentity{ClientID: c.UserAssignedIdentityID}
		if strings.Contains(strings.ToLower(c.UserAssignedIdentityID), "/subscriptions/") {
			as.ManagedIdentity = &ManagedIdentity{ResourceID: c.UserAssignedIdentityID}
		}
		var odd settings.Problems
		if as.ManagedIdentity.validate("userAssignedIdentityID", &odd); len(odd) > 0 {
			return misconfigured("its userAssignedIdentityID is neither a client ID nor a resource ID")
		}
		return as, nil
	}
	if !hosts.IsUUID(c.AADClientID) || c.TenantID == "" {
		return misconfigured("it has neither useManagedIdentityExtension nor an application (aadClientId, tenantId)")
	}
	switch {
	case c.UseFederatedWorkloadIdentityExtension && c.AADFederatedTokenFile != "":
		as.FederatedTokenFile, as.tokenFrom = c.AADFederatedTokenFile, "aadFederatedTokenFile"+inAzureConfig+path
	case c.AADClientSecret != "" && c.AADClientSecret != managedSecret:
		as.secret = c.AADClientSecret
		files.WarnIfReadable(ctx, path, mode)
	case c.AADClientCertPath != "":
		as.ClientCertificateFile, as.certificateFrom, as.password = c.AADClientCertPath, "aadClientCertPath"+inAzureConfig+path, c.AADClientCertPassword
	default:
		return misconfigured("it has no proof for its application: want one of aadClientSecret, aadClientCertPath and aadFederatedTokenFile")
	}
	return as, nil
}
