package vaultserver

import (
	"errors"
	"maps"

	"github.com/credential-broker/credential-broker/test/cloud"
)

var errNoCloud = errors.New("the Vault server was started without a cloud: set Options.Cloud")

// reachesCloud ends the test of a server that was started without a cloud.
func (s *Server) reachesCloud() {
	if s.cloud == nil {
		s.must(errNoCloud)
	}
}

// AWS enables auth/aws at a mount unless it is there, and makes a role in it that one IAM principal of the fake cloud may log in to: arn:aws:iam::ACCOUNT:role/NAME for whoever has assumed that role. The server sends the
// signed request that it is shown to https://sts.amazonaws.com, or where AWSClient says.
func (s *Server) AWS(mount, role, boundARN string, policies []string) {
	s.reachesCloud()
	s.must(s.enable(mount, "aws"))
	// Ids instead of names would have it ask IAM, with keys of its own.
	s.must(s.write("auth/"+mount+"/role/"+role, map[string]any{"auth_type": "iam", "bound_iam_principal_arn": []string{boundARN}, "resolve_aws_unique_ids": false, "token_policies": policies}, nil))
}

// AWSClient sets how auth/aws at a mount asks AWS (https://developer.hashicorp.com/vault/api-docs/auth/aws#configure-client): sts_endpoint and sts_region, iam_server_id_header_value and so on.
func (s *Server) AWSClient(mount string, settings map[string]any) {
	s.must(s.enable(mount, "aws"))
	s.must(s.write("auth/"+mount+"/config/client", map[string]any{}, settings))
}

// GCP enables auth/gcp at a mount unless it is there, and makes a role in it of kind "iam" or "gce", for the service accounts or instances of one project of the fake cloud. settings are the role's own
// (https://developer.hashicorp.com/vault/api-docs/auth/gcp#create-update-role): bound_service_accounts and so on; what they leave out: any of the project. The server asks Google with a key of an account of its own,
// which is the answer, and may look at what is in the project.
func (s *Server) GCP(mount, role, kind, project string, policies []string, settings map[string]any) cloud.ServiceAccount {
	s.reachesCloud()
	vault := s.cloud.AddServiceAccount(cloud.ServiceAccount{Email: "vault@vault-server.iam.gserviceaccount.com"})
	s.cloud.GrantCustomRole(project, vault.Email, "iam.serviceAccounts.get", "compute.instances.get")
	s.mu.Lock()
	configured := s.google[mount]
	s.google[mount] = true
	s.mu.Unlock()
	s.must(s.enable(mount, "gcp"))
	if !configured {
		s.must(s.write("auth/"+mount+"/config", map[string]any{"credentials": string(s.cloud.ServiceAccountKeyFile(vault.Email))}, nil))
	}
	all := map[string]any{"type": kind, "bound_projects": []string{project}, "token_policies": policies}
	if kind == "iam" {
		all["bound_service_accounts"] = []string{"*"}
	}
	s.must(s.write("auth/"+mount+"/role/"+role, all, settings))
	return vault
}

// Azure enables auth/azure at a mount unless it is there, for a tenant of the fake cloud, and makes a role in it. settings are the role's own (https://developer.hashicorp.com/vault/api-docs/auth/azure#create-update-role),
// which have to bind something. The server asks Azure as a service principal of its own, which is the answer, and may read in the subscriptions that bound_subscription_ids ([]string) names.
func (s *Server) Azure(mount, role, tenantID string, policies []string, settings map[string]any) cloud.ServicePrincipal {
	s.reachesCloud()
	s.mu.Lock()
	vault, known := s.azure[mount+" "+tenantID]
	s.mu.Unlock()
	if !known {
		vault = s.cloud.AddServicePrincipal(tenantID, cloud.ServicePrincipal{Secrets: []string{"the Vault server's own secret"}})
		s.must(s.enable(mount, "azure"))
		s.must(s.write("auth/"+mount+"/config", map[string]any{
			"tenant_id": tenantID, "resource": "https://management.azure.com/", "client_id": vault.ClientID, "client_secret": vault.Secrets[0],
		}, nil))
		s.mu.Lock()
		s.azure[mount+" "+tenantID] = vault
		s.mu.Unlock()
	}
	subscriptions, _ := settings["bound_subscription_ids"].([]string)
	for _, subscription := range subscriptions {
		s.cloud.GrantAzureReader(subscription, vault.ObjectID)
	}
	all := map[string]any{"token_policies": policies}
	maps.Copy(all, settings)
	s.must(s.write("auth/"+mount+"/role/"+role, all, nil))
	return vault
}
