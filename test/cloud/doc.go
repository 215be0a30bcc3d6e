// Package cloud is a fake cloud on loopback: it answers as the clouds' own services do, refuses what they refuse with their error codes, and keeps a log of what it was asked.
// Its services are reached under their real names, through an HTTP CONNECT proxy that ends TLS with certificates of a CA of its own (SDKs refuse FIPS and dual-stack
// endpoints when they are given an endpoint). It knows nothing of the product, and the product never imports it.
//
//	c := cloud.New(t)
//	c.AddRole(cloud.Role{ARN: "arn:aws:iam::111122223333:role/node", Policy: cloud.PullPolicy()})
//	c.AddRegistry("111122223333.dkr.ecr.eu-west-1.amazonaws.com", cloud.Repository{Name: "app"})
//	cmd.Env = append(c.Environ(), c.Instance("arn:aws:iam::111122223333:role/node").Environ()...)
//	…
//	err := c.Pull("111122223333.dkr.ecr.eu-west-1.amazonaws.com/app", username, password)
//
// # What is checked of AWS
//
// Host names: API endpoints of all partitions and kinds, FIPS names only where AWS documents them; a name that does not exist is a 502 of the proxy.
// Signatures: by signing again; key, session token, expiry, partition, region and service in the scope, the time (5 minutes for ECR, 15 for STS), what must be signed, the body.
// STS: GetCallerIdentity, AssumeRole and AssumeRoleWithWebIdentity, with the limits of their parameters, trust policies, both sides' policies across accounts, external
// IDs, session tags, an hour for chained roles, and tokens verified against the key set that their issuer publishes. GetWebIdentityToken: regional endpoints only, its permissions and limits,
// whether the account has enabled it, tokens by either algorithm that last no longer than the session.
// ECR: tokens for 12 hours, tied to identity, region and partition; repositories' policies, pull-through caches. ECR Public: us-east-1, keys of the aws partition only.
// Metadata: IMDSv2's tokens; the container endpoint's authorization. IAM Identity Center: GetRoleCredentials.
//
// # What is checked of Google
//
// Token endpoint (oauth2.googleapis.com): service accounts' assertions (RS256 with a key of the account, audience, an hour at most by the cloud's clock, scopes that look like Google's) for
// access and ID tokens; users' refresh tokens with their client, its secret and their scopes.
// STS: OIDC tokens for workload identity pools and for GKE clusters (issuer and its published keys, audience, times to a minute, the subject's size; the token lives no longer than its
// proof), signed GetCallerIdentity requests of AWS, which AWS judges as any other and which have to name the provider; clients' certificates (shown by mutual TLS and first in the token,
// trust anchors, times, uses, limits); disabled providers; the mapping of the subject and the condition, as functions.
// Credentials API: generateAccessToken, generateIdToken and signJwt, with delegates; the caller's token and its scopes, who may impersonate whom, lifetimes, and when signed claims end.
// Metadata: what its headers must be, scopes of the instance, one token until five minutes before its end, identity tokens, attributes.
// Registries: Artifact Registry by its host names and Container Registry's; access tokens with a scope that lets pull, those too that service accounts sign themselves (for a scope), readers by
// project (pools and allUsers too), formats, projects without redirection, their own tokens.
// Keys, in both forms (www.googleapis.com); the IAM API's look at a service account and the Compute Engine API's at an instance: the caller's token and its scopes, the permission.
// Artifact Registry API, and its regions' own: TestIamPermissions, GetRepository and GetProjectSettings; the caller's token and its scopes, whether the API is enabled, the permission for each call.
//
// # What is checked of Azure
//
// Entra ID under its names in three clouds and under others: discovery of instances and tenants; the client credentials grant for one resource of the tenant. Client secrets; assertions with a
// certificate's key (PS256, and RS256 and its like; the thumbprint, the certificate's times, issuer, subject, audience, times to five minutes); federated credentials (RS256 only; issuer, subject and
// audience to the letter; the key that the issuer publishes; times), for applications also a managed identity's token from whatever tenant. Disabled and removed service principals. HTTP statuses,
// OAuth's codes and Entra's own.
// Managed identities: the instance metadata service, App Service, Azure Machine Learning, Cloud Shell, Service Fabric with its thumbprint, Azure Arc with its file; what each asks of headers,
// versions and secrets; which of several identities is meant. Tokens as Entra's, for a day, with the resource whose they are and that on which they are. The instance metadata service tells what the machine is.
// Identity bindings of AKS: the proxy's name and CA; service accounts' tokens (the cluster's key, issuer, audience, times); who may use which identity; Entra then judges the proxy's own token by the
// identity's federated credential.
// Registries: the challenge; the exchange of Entra's tokens (form, service, tenant, signature, issuer, audience, times, a role); refresh tokens tied to a registry, and access tokens to
// repositories too, by docker's older way as well; AcrPull, or where roles are by repository Repository Reader; anonymous pulls; service principals with their secret.
// Resource Manager of the public cloud: a look at machines, scale sets (of flexible orchestration) and user-assigned identities; the caller's token (tenant, audience, times), Reader in the subscription, ids,
// a version that looks like one.
// Hostile registries and thieves keep what they are sent.
//
// # What is not
//
// Deny statements, conditions other than Trust's, permission boundaries, service control policies, VPC endpoint policies; whether a region exists or is opted into, and tokens of the
// global STS endpoint in such a region; packed sizes of policies and tags; transitive tags; source identity; MFA; managed session policies (refused); signatures in the query and SigV4a. An
// image's layers.
//
// Of Google: deny policies, conditions of roles, mapped attributes but for the subject, and sets of principals but for whole pools; how long changes of policies take; SAML and workforce
// pools, Credential Access Boundaries, JSON bodies of the STS; domain-wide delegation (refused); universes other than googleapis.com; mutual TLS but for STS and the Credentials API, kinds of
// certificates' keys; key files as passwords; the rest of the Artifact Registry API,
// and policies of single repositories. Whether Compute Engine's metadata server heeds scopes that it is asked for is not documented: here they narrow a
// token, and never widen it.
//
// Of Azure: users and what is only for them; grants but client credentials; secrets' ends (a fault of code AADSTS7000222 stands for one), client_secret_basic, mutual TLS, regional endpoints, claims and
// Conditional Access; tenants' domain names; federated credentials with expressions, and how many there may be; how long changes take to be known. Whatever matches no credential has the code of
// the first part that differs, and never the older AADSTS70021. What AKS's proxy says itself is not documented: its codes are made up. Of registries: the admin user, tokens with scope maps,
// connected registries, networks, other roles, the catalog and all but pulls. Roles hold when they are looked at: what a refresh token says of permissions is not read.
//
// Where a cloud documents a code but not the words, or neither (a token issued more than a day ago, say), the words are made up.
package cloud
