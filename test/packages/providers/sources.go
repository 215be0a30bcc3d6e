//go:build linux

package main

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/credential-broker/credential-broker/test/cloud"
	"github.com/credential-broker/credential-broker/test/vaultserver"
)

type object = map[string]any

// Where things are, in the system that is thrown away.
const (
	etc       = "/etc/credential-broker"
	kept      = "/tmp/kept-by-a-provider"
	logFile   = "/var/log/credential-broker.log"
	metrics   = "127.0.0.1:9477"
	opt       = "/opt/providers" // of programs; this one is in it too
	userName  = "nobody"
	userHome  = "/home/puller"
	homeOwner = "puller" // has a home, as nobody has not
)

// Who asks whom in the clouds.
const (
	awsHost    = "111111111111.dkr.ecr.eu-west-1.amazonaws.com"
	awsUser    = "arn:aws:iam::111111111111:user/node"
	awsNode    = "arn:aws:iam::111111111111:role/node"
	awsPod     = "arn:aws:iam::111111111111:role/pod"
	awsTokens  = "sts.amazonaws.com"
	spiffeID   = "spiffe://example.org/node"
	cluster    = "https://oidc.eks.eu-west-1.amazonaws.com/id/ABC"
	node       = "system:serviceaccount:kube-system:node"
	gcpHost    = "europe-west1-docker.pkg.dev"
	gcpProject = "my-project"
	gcpNode    = "node@my-project.iam.gserviceaccount.com"
	gcpHuman   = "somebody@example.com"
	azureHost  = "contoso.azurecr.io"
	azureTo    = "api://AzureADTokenExchange"
	secret     = "Q8~not-a-real-secret"
)

// sources are what the providers take credentials from.
type sources struct {
	cloud     *cloud.Cloud
	vault     *vaultserver.Server   // nil: there is none here
	made      *vaultserver.RabbitMQ // of vault
	closers   []func()
	providers []provider
}

// provider is one that is configured, and tried with an image.
type provider struct {
	name, backend, user, image string
	env                        []string
	inherit                    []string
	config                     object
	// works says whether the answer is good for the image.
	works func(image, username, password string) error
	// filtered: it makes a call that the filter does not let through.
	filtered bool
}

// is works for an answer that is known.
func is(username, password string) func(image, u, p string) error {
	return func(_, u, p string) error {
		if u != username || p != password {
			return fmt.Errorf("user %q, want %q; the password is right: %v", u, username, p == password)
		}
		return nil
	}
}

func (s *sources) close() {
	for i := range s.closers {
		s.closers[len(s.closers)-1-i]()
	}
}

func (s *sources) add(p provider) {
	if p.works == nil {
		p.works = s.cloud.Pull
	}
	s.providers = append(s.providers, p)
}

func standUp(vault string) (*sources, error) {
	if _, err := run("useradd", "--create-home", "--home-dir", userHome, homeOwner); err != nil {
		return nil, err
	}
	s := &sources{}
	stop, err := serveDNS()
	if err != nil {
		return nil, fmt.Errorf("serve DNS: %w", err)
	}
	s.closers = append(s.closers, stop)
	if s.cloud, err = cloud.Start(cloud.Options{}); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, s.cloud.Close)
	if vault == "" {
		fmt.Fprintln(os.Stdout, "NOT RUN: backend vault under the unit: the Vault server is not built on this machine: make vault-server")
	} else {
		if s.vault, err = vaultserver.Start(vaultserver.Options{Executable: vault}); err != nil {
			return nil, err
		}
		s.closers = append(s.closers, s.vault.Close)
	}
	for _, add := range []func() error{s.onTheNode, s.aws, s.google, s.azure, s.ofVault} {
		if err := add(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// onTheNode are a docker configuration, one with a helper program, and providers of the kubelet's.
func (s *sources) onTheNode() error {
	docker, err := file(etc+"/docker.json", userName, 0o600, `{"auths":{"files.example":{"auth":"`+base64.StdEncoding.EncodeToString([]byte("node:"+legacyPassword))+`"}}}`)
	if err != nil {
		return err
	}
	helped, err := file(etc+"/helped.json", "", 0o600, `{"credHelpers":{"helper.example":"unit"}}`)
	if err != nil {
		return err
	}
	if _, err := file("/usr/local/bin/docker-credential-unit", "", 0o755, "#!/bin/sh\ncat >/dev/null\necho '{\"Username\":\"helper\",\"Secret\":\""+legacyPassword+"\"}'\n"); err != nil {
		return err
	}
	// Bash and getent are linked with glibc, whose look-up of a name goes by other ways than Go's: it asks the kernel for the addresses that the machine has (netlink).
	// Like providers that keep something, it does so in /tmp and in the home of whoever runs it.
	script, err := file(opt+"/script", "", 0o755, fmt.Sprintf(`#!/bin/bash
set -euo pipefail
read -r request
[[ $request == *'"image":"script.example/app"'* ]]
[[ $(getent ahosts %s) == 127.0.0.1* ]]
date >%s
date >~/kept
echo '%s'
`, proxyName, kept, legacyAnswer("script.example")))
	if err != nil {
		return err
	}
	s.add(provider{name: "docker-file", backend: "dockerconfig", user: userName, image: "files.example/app", config: object{"file": docker}, works: is("node", legacyPassword)})
	s.add(provider{name: "docker-helper", backend: "dockerconfig", image: "helper.example/app", config: object{"file": helped}, works: is("helper", legacyPassword)})
	legacy := is(legacyUser, legacyPassword)
	s.add(provider{name: "exec-bash", backend: "exec", user: homeOwner, image: "script.example/app", config: object{"command": script}, works: legacy})
	s.add(provider{name: "exec-makes-code", backend: "exec", image: "code.example/app", config: object{"command": opt + "/providers", "args": []string{"provide"}}, works: legacy})
	s.add(provider{name: "exec-mounts", backend: "exec", image: "mount.example/app", config: object{"command": opt + "/providers", "args": []string{"mount"}}, works: legacy, filtered: true})
	return nil
}

// aws are the metadata service, a token in a file, a SPIFFE agent's socket, and keys in root's home.
func (s *sources) aws() error {
	c := s.cloud
	c.AddRegistry(awsHost, cloud.Repository{Name: "metadata"}, cloud.Repository{Name: "web"}, cloud.Repository{Name: "spiffe"}, cloud.Repository{Name: "home"})
	pods, spiffe := c.AddIssuer(cluster), c.WorkloadAPI("example.org", spiffeID)
	var trust []cloud.Trust
	for issuer, subject := range map[string]string{cluster: node, spiffe.Issuer().URL(): spiffeID} {
		c.AddOIDCProvider("111111111111", issuer, awsTokens)
		trust = append(trust, cloud.Trust{Federated: issuer, Audience: awsTokens, Subject: subject})
	}
	c.AddRole(cloud.Role{ARN: awsPod, Trust: trust, Policy: cloud.PullPolicy()})
	c.AddRole(cloud.Role{ARN: awsNode, Policy: cloud.PullPolicy()})
	token, err := file(etc+"/token", userName, 0o400, pods.Token(object{"aud": []string{awsTokens}, "sub": node}))
	if err != nil {
		return err
	}
	keys := c.AddUser(awsUser, cloud.PullPolicy()...)
	if _, err := file("/root/.aws/credentials", "", 0o600, "[default]\naws_access_key_id = "+keys.AccessKeyID+"\naws_secret_access_key = "+keys.SecretAccessKey+"\n"); err != nil {
		return err
	}
	web := func(source string, settings object) object {
		return object{"roleARN": awsPod, "webIdentity": object{"audience": awsTokens, source: settings}}
	}
	s.add(provider{name: "ecr-metadata", backend: "ecr", user: userName, image: awsHost + "/metadata", inherit: []string{"AWS_*"}})
	s.add(provider{name: "ecr-web-identity", backend: "ecr", user: userName, image: awsHost + "/web", config: web("file", object{"path": token})})
	s.add(provider{name: "ecr-spiffe", backend: "ecr", image: awsHost + "/spiffe", config: web("spiffe", object{"socket": "unix://" + spiffe.Socket()})})
	s.add(provider{name: "ecr-home", backend: "ecr", image: awsHost + "/home", env: []string{"AWS_EC2_METADATA_DISABLED=true"}})
	return nil
}

// google are the metadata server, a token that a program prints, and a login in somebody's home.
func (s *sources) google() error {
	c := s.cloud
	c.AddGoogleRegistry(gcpHost, gcpProject, "metadata", "program", "home")
	c.AddServiceAccount(cloud.ServiceAccount{Email: gcpNode})
	pool := cloud.WorkloadProvider{ProjectNumber: "123456789012", Pool: "pool", Provider: "provider", Issuer: "https://tokens.example"}
	tokens := c.AddIssuer(pool.Issuer)
	c.AddWorkloadPool(pool)
	for _, reader := range []string{gcpNode, gcpHuman, pool.PrincipalSet()} {
		c.GrantReader(gcpProject, reader)
	}
	audience := "https:" + pool.Audience()
	program, err := file(opt+"/token", "", 0o755, "#!/bin/sh\necho "+tokens.Token(object{"aud": audience, "sub": "node-1"})+"\n")
	if err != nil {
		return err
	}
	if _, err := file(userHome+"/.config/gcloud/application_default_credentials.json", homeOwner, 0o600, string(c.AddGoogleUser(gcpHuman))); err != nil {
		return err
	}
	s.add(provider{name: "gar-metadata", backend: "gar", user: userName, image: gcpHost + "/" + gcpProject + "/metadata/app", env: c.GoogleInstance(cloud.ServiceAccount{Email: gcpNode}).Environ()})
	s.add(provider{name: "gar-program", backend: "gar", image: gcpHost + "/" + gcpProject + "/program/app", config: object{
		"workloadIdentityProvider": strings.TrimPrefix(pool.Audience(), "//iam.googleapis.com/"), "webIdentity": object{"audience": audience, "executable": object{"command": program}},
	}})
	s.add(provider{name: "gar-home", backend: "gar", user: homeOwner, image: gcpHost + "/" + gcpProject + "/home/app"})
	return nil
}

// azure are the metadata service, a secret in a file, and the AWS identity of the node, for which the backend starts aws-identity-token.
func (s *sources) azure() error {
	c := s.cloud
	tenant := c.AddEntraTenant(cloud.EntraTenant{}).ID
	c.AddAzureRegistry(cloud.AzureRegistry{Host: azureHost, Tenant: tenant, Repositories: []string{"managed", "secret", "aws"}})
	machine := c.AzureInstanceIn(tenant, cloud.ManagedIdentity{System: true})
	keys := c.AddUser(awsUser+"-of-azure", cloud.Statement{Actions: []string{"sts:GetWebIdentityToken"}})
	bySecret := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Secrets: []string{secret}})
	byAWS := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Federated: []cloud.FederatedCredential{{Issuer: c.EnableOutboundFederation("111111111111").URL(), Subject: awsUser + "-of-azure"}}})
	for _, id := range []string{machine.Identities()[0].ObjectID, bySecret.ObjectID, byAWS.ObjectID} {
		c.GrantAcrPull(azureHost, id)
	}
	secretFile, err := file(etc+"/azure-secret", userName, 0o400, secret)
	if err != nil {
		return err
	}
	as := func(p cloud.ServicePrincipal, proof string, setting any) object {
		return object{"tenantID": tenant, "clientID": p.ClientID, proof: setting}
	}
	s.add(provider{name: "acr-managed", backend: "acr", image: azureHost + "/managed", env: machine.Environ()})
	s.add(provider{name: "acr-secret", backend: "acr", user: userName, image: azureHost + "/secret", config: as(bySecret, "clientSecretFile", secretFile)})
	s.add(provider{name: "acr-by-aws", backend: "acr", user: userName, image: azureHost + "/aws", env: append(keys.Environ(), "AWS_REGION=eu-west-1"), config: as(byAWS, "webIdentity", object{"aws": object{}})})
	return nil
}

// ofVault are a secret that is kept, and one that is made and has a lease; Vault is reached by a name of /etc/hosts and has a certificate of its own CA.
func (s *sources) ofVault() error {
	if s.vault == nil {
		return nil
	}
	address, err := url.Parse(s.vault.Address())
	if err != nil {
		return err
	}
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := file("/etc/hosts", "", 0o644, string(hosts)+"\n127.0.0.1 "+vaultName+"\n"); err != nil {
		return err
	}
	content, err := os.ReadFile(s.vault.CAFile())
	if err != nil {
		return err
	}
	ca, err := file(etc+"/vault-ca.pem", "", 0o644, string(content))
	if err != nil {
		return err
	}
	s.vault.KV2("secret")
	s.vault.Put("secret", "registries/kept.example", object{"username": "robot", "password": secret})
	s.made = s.vault.RabbitMQ("rabbitmq")
	s.made.Role("pull", nil)
	s.vault.Policy("reader", `path "secret/data/registries/*" { capabilities = ["read"] }`+"\n"+`path "rabbitmq/creds/pull" { capabilities = ["read"] }`)
	roleID, secretID := s.vault.AppRole("approle", "node", []string{"reader"}, nil)
	idFile, err := file(etc+"/vault-secret-id", userName, 0o400, secretID)
	if err != nil {
		return err
	}
	reads := func(secret object) object {
		return object{
			"address": "https://" + vaultName + ":" + address.Port(), "caFile": ca, "auth": object{"method": "approle", "roleID": roleID, "secretIDFile": idFile}, "secrets": []any{secret},
		}
	}
	s.add(provider{name: "vault-kept", backend: "vault", user: userName, image: "kept.example/app", config: reads(object{"path": "secret/registries/{host}"}), works: is("robot", secret)})
	s.add(provider{name: "vault-made", backend: "vault", image: "made.example/app", config: reads(object{"path": "rabbitmq/creds/pull", "engine": "other"}), works: func(_, username, password string) error {
		if known, ok := s.made.Users()[username]; !ok || known != password {
			return fmt.Errorf("RabbitMQ does not know user %q by this password", username)
		}
		return nil
	}})
	return nil
}

// configure writes what the agent reads: its configuration, and the environment that inheritEnv takes from.
func (s *sources) configure() error {
	var all []object
	for _, p := range s.providers {
		var env []object
		for _, variable := range p.env {
			name, value, _ := strings.Cut(variable, "=")
			env = append(env, object{"name": name, "value": value})
		}
		entry := object{"name": p.name, "backend": p.backend, "matchImages": []string{p.image}, "env": env, "inheritEnv": p.inherit, "config": p.config}
		if p.user != "" {
			entry["user"] = p.user
		}
		all = append(all, entry)
	}
	config, err := json.MarshalIndent(object{
		"apiVersion": "credential-broker.io/v1alpha1", "kind": "BrokerConfig", "providers": all,
		"agent": object{"socket": "/run/credential-broker/agent.sock", "metrics": metrics}, "log": object{"file": logFile},
	}, "", " ")
	if err != nil {
		return err
	}
	content, err := os.ReadFile(s.cloud.CAFile())
	if err != nil {
		return err
	}
	ca, err := file(etc+"/ca.pem", "", 0o644, string(content))
	if err != nil {
		return err
	}
	proxy, err := url.Parse(s.cloud.ProxyURL())
	if err != nil {
		return err
	}
	environment := append(s.cloud.Instance(awsNode).Environ(), "HTTPS_PROXY=http://"+proxyName+":"+proxy.Port(), "NO_PROXY="+vaultName, "SSL_CERT_FILE="+ca, "SSL_CERT_DIR=/nonexistent")
	if _, err := file(etc+"/environment", "", 0o600, strings.Join(environment, "\n")+"\n"); err != nil {
		return err
	}
	_, err = file(etc+"/config.yaml", "", 0o600, string(config))
	return err
}

// file writes a file of a user's, root's for none, and gives its path. Folders that it makes belong to that user too.
func file(path, owner string, mode fs.FileMode, content string) (string, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		return "", err
	}
	if owner == "" {
		return path, nil
	}
	account, err := user.Lookup(owner)
	if err != nil {
		return "", err
	}
	uid, err := strconv.Atoi(account.Uid)
	if err != nil {
		return "", err
	}
	gid, err := strconv.Atoi(account.Gid)
	if err != nil {
		return "", err
	}
	for below := path; below != account.HomeDir && strings.HasPrefix(below, account.HomeDir+"/"); below = filepath.Dir(below) {
		if err := os.Chown(below, uid, gid); err != nil {
			return "", err
		}
	}
	return path, os.Chown(path, uid, gid)
}
