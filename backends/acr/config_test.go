package acr

import (
	"strings"
	"testing"

	"github.com/credential-broker/credential-broker/backends/internal/settings"
	"github.com/credential-broker/credential-broker/backends/webidentity"
)

const (
	aTenant = "11111111-2222-3333-4444-555555555555"
	aClient = "66666666-7777-8888-9999-aaaaaaaaaaaa"
)

func TestSettingsThatAreRight(t *testing.T) {
	application := Identity{TenantID: aTenant, ClientID: aClient}
	with := func(change func(*Identity)) Config {
		own := application
		change(&own)
		return Config{Identity: own}
	}
	for name, c := range map[string]Config{
		"none":                     {},
		"a tenant for the machine": {Identity: Identity{TenantID: aTenant}},
		"a domain for a tenant":    with(func(i *Identity) { i.TenantID, i.ClientSecretFile = "contoso.onmicrosoft.com", "/etc/azure/secret" }),
		"a secret":                 with(func(i *Identity) { i.ClientSecretFile = "/etc/azure/secret" }),
		"a certificate": with(func(i *Identity) {
			i.ClientCertificateFile, i.ClientCertificatePasswordFile, i.SendCertificateChain = "/etc/azure/cert.pfx", "/etc/azure/password", true
		}),
		"a federated token":                      with(func(i *Identity) { i.FederatedTokenFile = "/run/token" }),
		"another issuer":                         with(func(i *Identity) { i.WebIdentity.File = &webidentity.File{Path: "/run/token"} }),
		"a managed identity":                     {Identity: Identity{ManagedIdentity: &ManagedIdentity{ResourceID: "/subscriptions/x/resourceGroups/y/providers/Microsoft.ManagedIdentity/userAssignedIdentities/z"}}},
		"a managed identity as an application's": with(func(i *Identity) { i.ManagedIdentity = &ManagedIdentity{} }),
		"azure.json":                             {Identity: Identity{AzureConfigFile: "/etc/kubernetes/azure.json"}},
		"nobody":                                 {Identity: Identity{Anonymous: true}},
		"another cloud":                          with(func(i *Identity) { i.ClientSecretFile, i.Cloud = "/s", "AzureUSGovernment" }),
		"a cloud of one's own": with(func(i *Identity) {
			i.ClientSecretFile, i.AuthorityHost, i.DisableInstanceDiscovery, i.Audience = "/s", "https://login.region.stack.example:8443/", true, "https://registry.stack.example/id"
		}),
		"adfs": with(func(i *Identity) {
			i.TenantID, i.ClientSecretFile, i.AuthorityHost = "adfs", "/s", "https://adfs.region.stack.example"
		}),
		"by registry":                 {Identities: []RegistryIdentity{{Registries: []string{host, "team-*.azurecr.io"}, Identity: Identity{Anonymous: true}}}},
		"pods":                        {PodIdentity: settings.PodIdentityRequire, PodClientID: aClient, PodTenantID: aTenant, IdentityBindings: &IdentityBindings{TokenProxy: "https://10.0.0.1:443/x", SNIName: "x.ests.aks", CAFile: "/ca.crt"}},
		"bindings by the environment": {IdentityBindings: &IdentityBindings{}},
		"further hosts":               {Hosts: []string{"*.azsacr.region.stack.example"}, Identity: Identity{AuthorityHost: "https://login.stack.example"}},
		"images":                      {Scope: ScopeImage},
		"a proxy":                     {Proxy: "http://user:password@proxy.example:3128"},
	} {
		if _, err := New(t.Context(), c); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSettingsThatAreWrong(t *testing.T) {
	own := func(i Identity) Config { return Config{Identity: i} }
	for name, test := range map[string]struct {
		c    Config
		want string
	}{
		"two proofs":                    {own(Identity{TenantID: aTenant, ClientID: aClient, ClientSecretFile: "/s", FederatedTokenFile: "/t"}), "federatedTokenFile: an identity is proved in one way, and clientSecretFile is one already"},
		"an application without any":    {own(Identity{TenantID: aTenant, ClientID: aClient}), "clientID: it names an application: say how that proves itself"},
		"a secret of nobody":            {own(Identity{ClientSecretFile: "/s"}), "clientID: clientSecretFile proves an application"},
		"a secret of no tenant":         {own(Identity{ClientID: aClient, ClientSecretFile: "/s"}), "tenantID: clientSecretFile proves an application"},
		"an application of no tenant":   {own(Identity{ClientID: aClient, ManagedIdentity: &ManagedIdentity{}}), "tenantID: managedIdentity with clientID proves an application"},
		"a relative file":               {own(Identity{TenantID: aTenant, ClientID: aClient, ClientSecretFile: "secret"}), "clientSecretFile: want an absolute path"},
		"no tenant":                     {own(Identity{TenantID: "../common"}), "tenantID: want the ID of a tenant"},
		"no client":                     {own(Identity{TenantID: aTenant, ClientID: "my-app", ClientSecretFile: "/s"}), "clientID: want the client ID of an application, a UUID"},
		"a password for nothing":        {own(Identity{TenantID: aTenant, ClientID: aClient, ClientSecretFile: "/s", ClientCertificatePasswordFile: "/p"}), "clientCertificatePasswordFile: there is no clientCertificateFile"},
		"a chain of nothing":            {own(Identity{SendCertificateChain: true}), "sendCertificateChain: there is no clientCertificateFile"},
		"two ids":                       {own(Identity{ManagedIdentity: &ManagedIdentity{ClientID: aClient, ObjectID: aClient}}), "managedIdentity: it names the identity by more than one"},
		"no UUID":                       {own(Identity{ManagedIdentity: &ManagedIdentity{ClientID: "node"}}), "managedIdentity.clientID: want a UUID"},
		"no resource":                   {own(Identity{ManagedIdentity: &ManagedIdentity{ResourceID: "node"}}), "managedIdentity.resourceID: want"},
		"a tenant for azure.json":       {own(Identity{AzureConfigFile: "/a.json", TenantID: aTenant}), "tenantID: azureConfigFile leaves no use for it"},
		"a client for nobody":           {own(Identity{Anonymous: true, ClientID: aClient}), "clientID: anonymous leaves no use for it"},
		"no cloud":                      {own(Identity{Cloud: "AzureGermanCloud"}), `cloud: want one of ["AzureCloud" "AzureChinaCloud" "AzureUSGovernment"]`},
		"two clouds":                    {own(Identity{Cloud: "AzureCloud", AuthorityHost: "https://login.stack.example"}), "authorityHost: cloud says whose Entra ID is asked"},
		"an authority without TLS":      {own(Identity{AuthorityHost: "http://login.stack.example"}), "authorityHost: want the https URL"},
		"an authority with a path":      {own(Identity{AuthorityHost: "https://login.stack.example/tenant"}), "authorityHost: want the https URL"},
		"a scope for an audience":       {own(Identity{Audience: "https://containerregistry.azure.net/.default"}), "audience: want the application ID URI"},
		"a token's settings":            {own(Identity{TenantID: aTenant, ClientID: aClient, WebIdentity: webidentity.Config{File: &webidentity.File{Path: "token"}}}), "webIdentity.file.path"},
		"AWS's other algorithm":         {own(Identity{TenantID: aTenant, ClientID: aClient, WebIdentity: webidentity.Config{AWS: &webidentity.AWS{SigningAlgorithm: webidentity.ES384}}}), "webIdentity.aws.signingAlgorithm: Entra takes RS256 alone"},
		"an identity for nothing":       {Config{Identities: []RegistryIdentity{{}}}, "identities[0].registries: want"},
		"a domain of registries":        {Config{Identities: []RegistryIdentity{{Registries: []string{"*"}}}}, "identities[0].registries[0]: want"},
		"an identity that nothing uses": {Config{Identities: []RegistryIdentity{{Registries: []string{"registry.example.com"}}}}, "identities[0].registries[0]: registry.example.com is no registry of Azure's that is known here"},
		"a registry twice":              {Config{Identities: []RegistryIdentity{{Registries: []string{host}}, {Registries: []string{host}}}}, "identities[1].registries[0]: contoso.azurecr.io has an identity already, by identities[0].registries[0]"},
		"an entry's own problem":        {Config{Identities: []RegistryIdentity{{Registries: []string{host}, Identity: Identity{Cloud: "x"}}}}, "identities[0].cloud: want one of"},
		"no way to use pods":            {Config{PodIdentity: "prefer"}, "podIdentity: want one of"},
		"pods, and yet not":             {Config{PodIdentity: settings.PodIdentityOff, PodClientID: aClient}, "podClientID: it is for pods' tokens, and podIdentity is Off"},
		"pods as nobody":                {Config{PodClientID: "x"}, "podClientID: want the client ID"},
		"pods of no tenant":             {Config{PodTenantID: "a/b"}, "podTenantID: want the ID of a tenant"},
		"no scope":                      {Config{Scope: "Image"}, "scope: want one of"},
		"a token proxy without TLS":     {Config{IdentityBindings: &IdentityBindings{TokenProxy: "http://10.0.0.1"}}, "identityBindings.tokenProxy: want an https URL"},
		"no name":                       {Config{IdentityBindings: &IdentityBindings{SNIName: "a b"}}, "identityBindings.sniName: want"},
		"a relative CA":                 {Config{IdentityBindings: &IdentityBindings{CAFile: "ca.crt"}}, "identityBindings.caFile: want an absolute path"},
		"a host that is a domain":       {Config{Hosts: []string{"*.example"}}, "hosts[0]: want"},
		"no proxy":                      {Config{Proxy: "proxy:secret"}, "proxy: want"},
	} {
		_, err := New(t.Context(), test.c)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v; want %s", name, err, test.want)
		} else if strings.Contains(err.Error(), "proxy:secret") {
			t.Errorf("%s: it tells a secret: %v", name, err)
		}
	}
}
