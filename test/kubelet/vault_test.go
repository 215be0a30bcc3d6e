//go:build unix

package kubelet

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/test/cloud"
	"github.com/credential-broker/credential-broker/test/kubelet/internal/behaviour"
	"github.com/credential-broker/credential-broker/test/vaultserver"
)

// What the tests of Vault pull from.
const (
	vaultHost  = "harbor.example"
	vaultOther = "quay.example"
	vaultImage = vaultHost + "/team/app"
	vaultUser  = "robot"
	vaultTeam  = "example.com/team" // an annotation
)

// sharedVault is the Vault server of all tests that leave it as it is; each has engines and logins of its own there.
var sharedVault vaultserver.Shared

var vaultWorlds atomic.Int32

// vaultWorld is a world with a Vault, where a secret is that the node's or the pod's login may read.
type vaultWorld struct {
	*world
	vault *vaultserver.Server
	front *vaultserver.Front // by which the broker gets there
	n     int32
	// engine has the secret at registries/HOST, and reader is the policy for it.
	engine, reader string
	// secret is its entry of the settings.
	secret   object
	password string
	// rabbit is the engine that makes credentials, if they are its.
	rabbit *vaultserver.RabbitMQ
	// given are tokens that were not got by a login, and that nobody is to revoke.
	given []string
	// narrow: what is answered holds for the image alone, or not for long.
	narrow bool
}

func newVaultWorld(t *testing.T) *vaultWorld {
	t.Helper()
	return newWorld(t).withVault(sharedVault.Get(t))
}

// newVaultOfACloud has a server of its own, which asks the clouds that the world has.
func newVaultOfACloud(t *testing.T) *vaultWorld {
	t.Helper()
	w := newWorld(t)
	return w.withVault(vaultserver.New(t, vaultserver.Options{Cloud: w.Cloud}))
}

func (w *world) withVault(s *vaultserver.Server) *vaultWorld {
	w.Helper()
	v := &vaultWorld{world: w, vault: s, front: s.Front(), n: vaultWorlds.Add(1)}
	v.engine, v.password = v.called("secret"), v.called("password")
	s.KV2(v.engine)
	v.put(v.engine, vaultHost, v.password)
	v.put(v.engine, vaultOther, "of another registry")
	v.reader = v.policy(v.engine + "/data/registries/*")
	v.secret = object{"matchImages": []string{vaultHost}, "path": v.engine + "/registries/{host}"}
	w.provider = object{"name": "vault", "matchImages": []string{vaultHost, vaultOther, "registry.example"}, "inheritEnv": []string{"VAULT_*", "AWS_*", "AZURE_*", "GOOGLE_*", "GCE_*"}, "defaultCacheDuration": "1h"}
	w.config = object{"address": v.front.Address(), "caFile": s.CAFile(), "secrets": []object{v.secret}}
	w.annotate = func(team string) map[string]string { return map[string]string{vaultTeam: team} }
	return v
}

// called is a name that no other test has.
func (v *vaultWorld) called(what string) string { return fmt.Sprintf("%s-%d", what, v.n) }

func (v *vaultWorld) put(engine, host, password string) {
	v.vault.Put(engine, "registries/"+host, object{"username": vaultUser, "password": password})
}

// policy is one that lets a path be read.
func (v *vaultWorld) policy(path string) string {
	name := fmt.Sprintf("%s-%d", v.called("policy"), vaultWorlds.Add(1))
	v.vault.Policy(name, fmt.Sprintf("path %q { capabilities = [\"read\"] }", path))
	return name
}

// token is one that may read, or is unknown where whoever asks is to be refused.
func (v *vaultWorld) token() string {
	if v.refuse {
		return "hvs.unknown"
	}
	token := v.vault.Token([]string{v.reader}, nil)
	v.given = append(v.given, token)
	return token
}

// login says how the node logs in.
func (v *vaultWorld) login(method string, settings object) {
	auth := object{"method": method, "mount": v.called(method)}
	maps.Copy(auth, settings)
	v.config["auth"] = auth
}

// appRole has the node log in by AppRole, which no test of secrets is about.
func (v *vaultWorld) appRole(policies ...string) {
	roleID, secretID := v.vault.AppRole(v.called("approle"), "node", policies, nil)
	v.login("approle", object{"roleID": roleID, "secretIDFile": v.file("secret-id", secretID, 0o600)})
}

// kubernetes makes the cluster's API server review tokens for Vault, and a role for those of one account.
func (v *vaultWorld) kubernetes(namespace, account string) *vaultserver.APIServer {
	api := v.vault.Kubernetes(v.called("kubernetes"), v.issuer)
	v.vault.KubernetesRole(v.called("kubernetes"), "puller", object{
		"bound_service_account_namespaces": []string{namespace}, "bound_service_account_names": []string{account}, "token_policies": []string{v.reader},
	})
	v.mint = func(namespace, account string, claims object) string {
		return api.Token(namespace, account, object{"aud": claims["aud"]})
	}
	return api
}

// jwt makes a role for the tokens of one subject.
func (v *vaultWorld) jwt(subject string, settings object) {
	v.vault.JWT(v.called("jwt"), v.issuer)
	role := object{"bound_subject": subject, "token_policies": []string{v.reader}}
	maps.Copy(role, settings)
	v.vault.JWTRole(v.called("jwt"), "puller", role)
}

const vaultNode = "system:serviceaccount:kube-system:node"

// nodesToken is a file with a token of the cluster's for the node itself.
func (v *vaultWorld) nodesToken() string {
	return v.file("token", v.issuer.Token(object{"aud": "vault", "sub": vaultNode}), 0o600)
}

// vaultTokens is a provider's tokenAttributes for Vault.
func vaultTokens(audience, cacheType string) object {
	return object{
		"serviceAccountTokenAudience": audience, "cacheType": cacheType, "requireServiceAccount": false, "optionalServiceAccountAnnotationKeys": []string{vaultTeam},
	}
}

// agent starts Vault's own agent or proxy, which logs in by itself and puts its token into what passes through it, and waits until it has one.
func (v *vaultWorld) agent(mode, listener, address string, client *http.Client) {
	v.Helper()
	file, err := vaultserver.Executable()
	if err != nil {
		v.Fatal(err)
	}
	policy := v.reader
	if v.refuse {
		policy = v.policy(v.engine + "/data/elsewhere")
	}
	roleID, secretID := v.vault.AppRole(v.called("approle"), "agent", []string{policy}, nil)
	config := v.file(mode+".hcl", fmt.Sprintf(`
vault { address = %q, ca_cert = %q }
auto_auth {
  method "approle" {
    mount_path = %q
    config = { role_id_file_path = %q, secret_id_file_path = %q, remove_secret_id_file_after_reading = false }
  }
}
api_proxy { use_auto_auth_token = true }
listener %s
`, v.front.Address(), v.vault.CAFile(), "auth/"+v.called("approle"), v.file("role-id", roleID, 0o600), v.file("secret-id", secretID, 0o600), listener), 0o600)
	cmd := exec.CommandContext(v.Context(), file, mode, "-config="+config)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Join(v.dir, "home")}
	said := v.file(mode+".log", "", 0o600)
	output, err := os.OpenFile(said, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		v.Fatal(err)
	}
	defer output.Close()
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		v.Fatal(err)
	}
	v.Cleanup(func() { _ = cmd.Wait() }) // which the end of the test's context has killed
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		r, err := http.NewRequestWithContext(v.Context(), http.MethodGet, address+"/v1/auth/token/lookup-self", http.NoBody)
		if err != nil {
			v.Fatal(err)
		}
		if answer, err := client.Do(r); err == nil {
			_ = answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				break
			}
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			log, _ := os.ReadFile(said)
			v.Fatalf("vault %s does not answer:\n%s", mode, log)
		}
	}
	for _, q := range v.front.Requests() {
		if q.Path == "auth/token/lookup-self" && q.Status == http.StatusOK {
			v.given = append(v.given, q.Token)
		}
	}
}

// port is an address on loopback that nobody listens on.
func (v *vaultWorld) port() string {
	l, err := (&net.ListenConfig{}).Listen(v.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		v.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// vaultRow is one way to log in, or one kind of secret.
type vaultRow struct {
	name    string
	prepare func(v *vaultWorld)
	pod     pod
	// causes are in the broker's standard error where it is refused.
	causes []string
}

const (
	vaultUnknown = "Vault does not know the token, or not any more"
	vaultNotFor  = "the role is not for whom the token is of"
)

// vaultRows is the table of logins and of secrets.
var vaultRows = []vaultRow{
	{"a token's file", func(v *vaultWorld) {
		v.config["auth"] = object{"tokenFile": v.file("token", v.token()+"\n", 0o600)}
	}, pod{}, []string{vaultUnknown, "give another one"}},

	{"the variables of the Vault CLI", func(v *vaultWorld) {
		delete(v.config, "address")
		delete(v.config, "caFile")
		v.env = []string{"VAULT_ADDR=" + v.front.Address(), "VAULT_CACERT=" + v.vault.CAFile(), "VAULT_TOKEN=" + v.token(), "VAULT_FORMAT=json"}
	}, pod{}, []string{vaultUnknown}},

	{"AppRole", func(v *vaultWorld) {
		roleID, secretID := v.vault.AppRole(v.called("approle"), "node", []string{v.reader}, nil)
		v.login("approle", object{"roleIDFile": v.file("role-id", roleID+"\n", 0o600), "secretIDFile": v.file("secret-id", v.unless(secretID, "00000000-0000-4000-8000-000000000000"), 0o600)})
	}, pod{}, []string{"login to Vault at https://127.0.0.1:", "by auth/approle-", "the role ID or the secret ID is wrong, has expired, or was used up", "secret-id` gives another one"}},

	{"AppRole without a secret ID", func(v *vaultWorld) {
		roleID, _ := v.vault.AppRole(v.called("approle"), "node", []string{v.reader}, object{"bind_secret_id": false, "token_bound_cidrs": []string{"127.0.0.1/32"}})
		v.login("approle", object{"roleID": v.unless(roleID, "00000000-0000-4000-8000-000000000000")})
	}, pod{}, []string{"the role ID or the secret ID is wrong"}},

	{"Kubernetes, the node's token", func(v *vaultWorld) {
		api := v.kubernetes("kube-system", v.unless("node", "somebody-else"))
		v.login("kubernetes", object{"role": "puller", "tokenFile": v.file("token", api.Token("kube-system", "node", nil), 0o600)})
	}, pod{}, []string{"by auth/kubernetes-", `role \"puller\"`, vaultNotFor, "shows whom it is for"}},

	{"Kubernetes, the pod's token", func(v *vaultWorld) {
		v.kubernetes(v.unless("team-a", "team-b"), "builder")
		v.login("kubernetes", object{"role": "puller"})
		v.tokens, v.accounts["team-a/builder"] = vaultTokens(ecrCluster, "Token"), ""
	}, builder, []string{vaultNotFor, "the pod's token is of team-a/builder"}},

	{"Kubernetes, the token of a pod whose account is gone", func(v *vaultWorld) {
		api := v.kubernetes("*", "*")
		v.login("kubernetes", object{"role": "puller"})
		v.tokens, v.accounts["team-a/builder"] = vaultTokens(ecrCluster, "ServiceAccount"), ""
		mint := v.mint
		v.mint = func(namespace, account string, claims object) string {
			token := mint(namespace, account, claims)
			if v.refuse {
				api.Delete(namespace, account)
			}
			return token
		}
	}, builder, []string{"the account may have been deleted", "the pod's token is of team-a/builder"}},

	{"JWT, the node's token", func(v *vaultWorld) {
		v.jwt(v.unless(vaultNode, "somebody else"), nil)
		v.login("jwt", object{"role": "puller", "tokenFile": v.nodesToken()})
	}, pod{}, []string{"by auth/jwt-", vaultNotFor}},

	{"JWT, a web identity's file", func(v *vaultWorld) {
		v.jwt(vaultNode, object{"bound_audiences": []string{v.unless("vault", "somebody else")}})
		v.login("jwt", object{"role": "puller", "webIdentity": object{"file": object{"path": v.nodesToken()}}})
	}, pod{}, []string{"the token is for another audience than the role wants"}},

	{"JWT, the pod's token", func(v *vaultWorld) {
		v.jwt(v.unless("system:serviceaccount:team-a:builder", "system:serviceaccount:team-b:builder"), nil)
		v.login("jwt", object{"role": "puller", "podIdentity": "Require"})
		v.tokens, v.accounts["team-a/builder"] = vaultTokens("vault", "Token"), ""
	}, builder, []string{vaultNotFor, "the pod's token is of team-a/builder", `for [\"vault\"]`}},

	{"JWT, the pod's token where the node has one too", func(v *vaultWorld) {
		v.jwt(v.unless("system:serviceaccount:team-a:builder", vaultNode), nil) // refused, although the node would not be
		v.login("jwt", object{"role": "puller", "tokenFile": v.nodesToken()})
		v.tokens, v.accounts["team-a/builder"] = vaultTokens("vault", "ServiceAccount"), ""
	}, builder, []string{vaultNotFor, "the pod's token is of team-a/builder"}},

	{"JWT, the node's token for a pod", func(v *vaultWorld) {
		v.jwt(v.unless(vaultNode, "system:serviceaccount:team-a:builder"), nil) // refused, although the pod would not be
		v.login("jwt", object{"role": "puller", "podIdentity": "Off", "tokenFile": v.nodesToken()})
		v.tokens, v.accounts["team-a/builder"] = vaultTokens("vault", "Token"), ""
		v.secret["path"] = v.engine + "/{namespace}/{serviceAccount}/{host}"
		v.vault.Put(v.engine, "team-a/builder/"+vaultHost, object{"username": vaultUser, "password": v.password})
		v.jwt(v.unless(vaultNode, "system:serviceaccount:team-a:builder"), object{"token_policies": []string{v.policy(v.engine + "/data/team-a/builder/*")}})
	}, builder, []string{vaultNotFor}},

	{"a certificate", func(v *vaultWorld) {
		v.vault.Cert(v.called("cert"), v.called("node"), []string{v.reader})
		cert, key := v.vault.ClientCertificate(v.unless(v.called("node"), "somebody-else"))
		v.login("cert", object{"certFile": v.file("node.pem", string(cert), 0o600), "keyFile": v.file("node.key", string(key), 0o600)})
	}, pod{}, []string{"by auth/cert-", "the role is not for the client certificate"}},

	{"none, by Vault Proxy", func(v *vaultWorld) {
		port := v.port()
		v.agent("proxy", fmt.Sprintf(`"tcp" { address = %q, tls_disable = true }`, port), "http://"+port, http.DefaultClient)
		delete(v.config, "address")
		delete(v.config, "caFile")
		v.env = []string{"VAULT_AGENT_ADDR=http://" + port, "VAULT_ADDR=https://vault.example:8200", "VAULT_TOKEN=hvs.unknown"}
	}, pod{}, []string{"permission denied", "to add to a policy of the login"}},

	{"none, by Vault Agent at a socket", func(v *vaultWorld) {
		socket := v.socket()
		v.agent("agent", fmt.Sprintf(`"unix" { address = %q, tls_disable = true }`, socket), "http://localhost", &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", socket)
			},
		}})
		v.config["address"], v.config["auth"] = "unix://"+socket, object{"method": "none"}
		delete(v.config, "caFile")
	}, pod{}, []string{"permission denied", "to add to a policy of the login"}},

	{"KV version 2, a version of it", func(v *vaultWorld) {
		v.put(v.engine, vaultHost, "a newer one")
		v.appRole(v.reader)
		v.secret["version"] = 1
		if v.refuse {
			v.secret["version"] = 3
		}
	}, pod{}, []string{"read secret-", "there is no such secret"}},

	{"KV version 2 without the question which it is", func(v *vaultWorld) {
		v.appRole(v.reader)
		v.secret["engine"] = v.unless("kv2", "kv1")
	}, pod{}, []string{"permission denied", "to add to a policy of the login: `path \\\"secret-"}},

	{"KV version 1", func(v *vaultWorld) {
		v.vault.KV1(v.called("kv"))
		v.vault.Put(v.called("kv"), "registries/"+vaultHost, object{"login": vaultUser, v.unless("password", "passwort"): v.password})
		v.appRole(v.policy(v.called("kv") + "/registries/*"))
		v.secret["path"] = v.called("kv") + "/registries/{host}"
	}, pod{}, []string{`secrets[0].passwordField: the secret has no field \"password\": it has \"login\", \"passwort\"`}},

	{"a secret of other fields, for a part of the registry", func(v *vaultWorld) {
		v.vault.Put(v.engine, "registries/"+vaultHost, object{"token": v.password})
		v.appRole(v.reader)
		v.narrow = true
		v.secret["username"], v.secret["passwordField"], v.secret["registry"] = vaultUser, v.unless("token", "password"), "{host}/team"
	}, pod{}, []string{`the secret has no field \"password\": it has \"token\"`}},

	{"a whole docker config", func(v *vaultWorld) {
		auths := object{vaultHost: object{"username": vaultUser, "password": v.password}, "elsewhere.example": object{"username": "somebody", "password": "else"}}
		text, err := json.Marshal(object{"auths": auths})
		if err != nil {
			v.Fatal(err)
		}
		v.vault.Put(v.engine, "registries/"+vaultHost, object{v.unless(".dockerconfigjson", "config.json"): string(text)})
		v.appRole(v.reader)
		v.secret["dockerConfigField"] = ".dockerconfigjson"
	}, pod{}, []string{`secrets[0].dockerConfigField: the secret has no field \".dockerconfigjson\": it has \"config.json\"`}},

	{"a wrapped answer", func(v *vaultWorld) {
		name := v.called("wrapped")
		v.vault.Policy(name, fmt.Sprintf(`path "%s/data/registries/*" { capabilities = ["read"], min_wrapping_ttl = "1s", max_wrapping_ttl = "90s" }`, v.engine))
		v.appRole(name)
		v.secret["wrapTTL"] = v.unless("1m", "5m")
	}, pod{}, []string{"permission denied"}},

	{"credentials that are made", func(v *vaultWorld) {
		v.rabbit = v.vault.RabbitMQ(v.called("rabbitmq"))
		v.rabbit.Role("pull", nil)
		v.rabbit.Lease(time.Hour, 2*time.Hour)
		v.appRole(v.policy(v.called("rabbitmq") + "/creds/*"))
		v.secret["path"] = v.called("rabbitmq") + "/creds/" + v.unless("pull", "push")
	}, pod{}, []string{"there is no such role", "is the engine's role in"}},

	{"the second secret, where all are wanted", func(v *vaultWorld) {
		v.appRole(v.reader)
		v.narrow = true // so that the first one is looked for again
		missing := object{"matchImages": []string{vaultHost}, "path": v.engine + "/registries/missing"}
		v.config["all"], v.config["secrets"] = true, []object{missing, v.secret}
		if v.refuse {
			v.config["secrets"] = []object{missing, missing}
		}
	}, pod{}, []string{"none of the 2 secrets for the image can be used", "there is no such secret: `vault kv put"}},
}

const (
	vaultGoogle  = "node@images.iam.gserviceaccount.com"
	vaultProject = "images"
)

// vaultCloudRows is the table of logins for which Vault asks a cloud.
var vaultCloudRows = []vaultRow{
	{"AWS, keys of the environment", func(v *vaultWorld) {
		v.env = append(v.AddUser(ecrUser).Environ(), "AWS_REGION=eu-west-1")
		v.vault.AWS(v.called("aws"), "puller", v.unless(ecrUser, ecrNode), []string{v.reader})
		v.login("aws", object{"role": "puller"})
	}, pod{}, []string{"login to Vault at https://127.0.0.1:", "by auth/aws-", `role \"puller\"`, vaultNotFor}},

	{"AWS, the instance", func(v *vaultWorld) {
		v.AddRole(cloud.Role{ARN: ecrNode})
		v.env = proxied(v.Instance(ecrNode).Environ())
		v.vault.AWS(v.called("aws"), "puller", ecrNode, []string{v.reader})
		v.vault.AWSClient(v.called("aws"), object{"iam_server_id_header_value": "vault.example.com"})
		v.login("aws", object{"role": "puller", "aws": object{"serverID": v.unless("vault.example.com", "vault.example.org")}})
	}, pod{}, []string{"by auth/aws-", "signed for another server", "auth.aws.serverID has to be the iam_server_id_header_value"}},

	{"Google, the instance", func(v *vaultWorld) {
		v.env = proxied(v.GoogleInstance(cloud.ServiceAccount{Email: vaultGoogle}).Environ())
		v.vault.GCP(v.called("gcp"), "puller", "gce", v.unless(vaultProject, "others"), []string{v.reader}, nil)
		v.login("gcp", object{"role": "puller"})
	}, pod{}, []string{"by auth/gcp-", vaultNotFor, "shows whom it is for"}},

	{"Google, a key", func(v *vaultWorld) {
		v.AddServiceAccount(cloud.ServiceAccount{Email: vaultGoogle})
		v.vault.GCP(v.called("gcp"), "puller", "iam", vaultProject, []string{v.reader}, object{"bound_service_accounts": []string{v.unless(vaultGoogle, "somebody@images.iam.gserviceaccount.com")}})
		v.login("gcp", object{"role": "puller", "gcp": object{"type": "iam", "credentialsFile": v.file("key.json", string(v.ServiceAccountKeyFile(vaultGoogle)), 0o600)}})
	}, pod{}, []string{"by auth/gcp-", vaultNotFor, "shows whom it is for"}},

	{"Azure, the machine", func(v *vaultWorld) {
		tenant := v.AddEntraTenant(cloud.EntraTenant{}).ID
		m := v.AzureInstanceIn(tenant, cloud.ManagedIdentity{System: true})
		v.env = proxied(m.Environ())
		v.vault.Azure(v.called("azure"), "puller", tenant, []string{v.reader}, object{"bound_subscription_ids": []string{m.Compute().SubscriptionID}, "bound_locations": []string{v.unless("westeurope", "eastus")}})
		v.login("azure", object{"role": "puller"})
	}, pod{}, []string{"by auth/azure-", vaultNotFor, "shows whom it is for"}},

	{"Azure, a managed identity by itself", func(v *vaultWorld) {
		tenant := v.AddEntraTenant(cloud.EntraTenant{}).ID
		m := v.AzureInstanceIn(tenant, cloud.ManagedIdentity{System: true}, cloud.ManagedIdentity{})
		v.env = proxied(m.Environ())
		v.vault.Azure(v.called("azure"), "puller", tenant, []string{v.reader}, object{"bound_service_principal_ids": []string{m.Identities()[1].ObjectID}})
		v.login("azure", object{"role": "puller", "azure": object{"clientID": v.unless(m.Identities()[1].ClientID, m.Identities()[0].ClientID)}})
	}, pod{}, []string{"by auth/azure-", vaultNotFor, "shows whom it is for"}},
}

// socket is a path for one, which may not be long.
func (v *vaultWorld) socket() string {
	dir, err := os.MkdirTemp("", "va-")
	if err != nil {
		v.Fatal(err)
	}
	v.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "agent.sock")
}

// right says that a credential is the one that Vault has.
func (v *vaultWorld) right(got behaviour.Value) bool {
	if v.rabbit != nil {
		password, ok := v.rabbit.Users()[got.Username]
		return ok && got.Password == password
	}
	return got == behaviour.Value{Username: vaultUser, Password: v.password}
}

// givenBack fails if a login is left that nobody will use any more. One that a lease hangs on has to be.
func (v *vaultWorld) givenBack() {
	v.Helper()
	seen := map[string]bool{}
	for _, q := range v.front.Requests() {
		if q.Token == "" || seen[q.Token] || q.Path == "sys/wrapping/unwrap" || slices.Contains(v.given, q.Token) {
			continue
		}
		seen[q.Token] = true
		_, err := v.vault.As(q.Token).Auth().Token().LookupSelf()
		if lasts := err == nil; lasts != (v.rabbit != nil && !v.refuse) {
			v.Errorf("a login is good afterwards: %t (%s)", lasts, q.Path)
		}
	}
	for _, token := range v.given {
		if _, err := v.vault.As(token).Auth().Token().LookupSelf(); err != nil {
			v.Errorf("a token that was not the broker's to revoke: %v", err)
		}
	}
}

// TestVaultIdentities: with every login and every kind of secret, the kubelet's keyring has for the image exactly the credential that Vault has, and for images elsewhere none.
func TestVaultIdentities(t *testing.T) {
	for _, r := range vaultRows {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			newVaultWorld(t).accepted(r)
		})
	}
	for _, r := range vaultCloudRows {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			newVaultOfACloud(t).accepted(r)
		})
	}
}

func (v *vaultWorld) accepted(r vaultRow) {
	v.Helper()
	r.prepare(v)
	v.start()
	found := v.lookup(vaultImage, r.pod)
	if len(found) != 1 || !v.right(found[0]) {
		v.Fatalf("the kubelet has %d credentials, or not the right one\n%s", len(found), v.read("stderr"))
	}
	// The whole registry is served from the kubelet's cache from now on, unless the answer is a narrow one.
	starts := v.starts()
	if v.narrow {
		starts++
	}
	if again := v.lookup(vaultHost+"/team/other", r.pod); len(again) != 1 || again[0] != found[0] || v.starts() != starts {
		v.Errorf("another image of the registry: %d credentials after %d starts of the broker, want %d", len(again), v.starts(), starts)
	}
	asked := len(v.front.Requests())
	for _, elsewhere := range []string{vaultOther + "/team/app", "registry.example/team/app"} {
		before := v.starts()
		if found := v.lookup(elsewhere, r.pod); len(found) != 0 || v.starts() != before+1 {
			v.Errorf("%s: the kubelet has %d credentials after %d starts of the broker", elsewhere, len(found), v.starts()-before)
		}
	}
	if more := v.front.Requests()[asked:]; slices.ContainsFunc(more, func(q vaultserver.Request) bool { return q.Path != "auth/token/renew-self" }) { // which agents do
		v.Errorf("Vault is asked for other images: %+v", more)
	}
	v.givenBack()
	v.direct()
}

// TestVaultIdentitiesRefused is the same where Vault does not trust whoever asks, or does not have what is wanted: there is no credential, whatever else the node could have asked with, and the broker says why.
func TestVaultIdentitiesRefused(t *testing.T) {
	for _, r := range vaultRows {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			v := newVaultWorld(t)
			v.refuse = true
			v.refused(r)
		})
	}
	for _, r := range vaultCloudRows {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			v := newVaultOfACloud(t)
			v.refuse = true
			v.refused(r)
		})
	}
}

func (v *vaultWorld) refused(r vaultRow) {
	v.Helper()
	r.prepare(v)
	v.start()
	if found := v.lookup(vaultImage, r.pod); len(found) != 0 || v.starts() != 1 {
		v.Errorf("the kubelet has %d credentials after %d starts of the broker", len(found), v.starts())
	}
	stderr := v.read("stderr")
	for _, cause := range r.causes {
		if !strings.Contains(stderr, cause) {
			v.Errorf("the broker does not say %q", cause)
		}
	}
	if !strings.Contains(stderr, "kind=refused") {
		v.Error("the broker does not count it as refused, and would have the kubelet ask again at once")
	}
	logins := 0
	for _, q := range v.front.Requests() {
		if q.Path == "auth/"+v.called("approle")+"/login" && len(v.given) > 0 { // an agent's
			continue
		}
		if strings.HasSuffix(q.Path, "/login") {
			logins++
		}
	}
	if logins > 1 {
		v.Errorf("%d logins", logins)
	}
	if strings.Contains(stderr, v.password) {
		v.Error("the broker tells the password")
	}
	if v.Failed() {
		v.Log(stderr)
	}
	v.givenBack()
	v.direct()
}

// TestVaultRotation: a credential that is rotated in Vault is the one that the next request gets which the kubelet's cache does not answer, and none is asked for again before.
func TestVaultRotation(t *testing.T) {
	v := newVaultWorld(t)
	v.appRole(v.reader)
	v.start()
	now := func(image string, starts int) behaviour.Value {
		t.Helper()
		found := v.lookup(image, pod{})
		if len(found) != 1 || v.starts() != starts {
			t.Fatalf("%s: %d credentials after %d starts of the broker, want %d\n%s", image, len(found), v.starts(), starts, v.read("stderr"))
		}
		return found[0]
	}
	if first := now(vaultImage, 1); first.Password != v.password {
		t.Fatal("not the right password")
	}
	v.put(v.engine, vaultHost, "rotated")
	if kept := now(vaultImage, 1); kept.Password != v.password {
		t.Error("the kubelet's cache does not answer")
	}
	v.restart()
	if rotated := now(vaultImage, 2); rotated.Password != "rotated" {
		t.Error("the password is not the one that Vault has now")
	}
	v.givenBack()
}

// TestVaultPaths: where a path depends on image and pod, each gets what is there for it, and the kubelet keeps an answer for its image alone.
func TestVaultPaths(t *testing.T) {
	v := newVaultWorld(t)
	v.vault.JWT(v.called("jwt"), v.issuer)
	v.vault.JWTRole(v.called("jwt"), "team-a", object{"bound_subject": "system:serviceaccount:team-a:builder", "token_policies": []string{v.policy(v.engine + "/data/*")}})
	v.login("jwt", object{"role": "{namespace}"})
	v.tokens, v.accounts["team-a/builder"] = vaultTokens("vault", "Token"), ""
	v.secret["matchImages"], v.secret["path"] = []string{vaultHost, vaultOther}, v.engine+"/{host}/{namespace}-{serviceAccount}/{repository}"
	images := []string{vaultHost + "/team/app", vaultHost + "/team/other", vaultOther + "/team/app", vaultOther + "/one"}
	for _, image := range images {
		host, repository, _ := strings.Cut(image, "/")
		v.vault.Put(v.engine, host+"/team-a-builder/"+repository, object{"username": vaultUser, "password": "of " + image})
	}
	v.start()
	for range 2 {
		for _, image := range images {
			if found := v.lookup(image, builder); len(found) != 1 || found[0].Password != "of "+image {
				t.Errorf("%s: %d credentials, or not the right one\n%s", image, len(found), v.read("stderr"))
			}
		}
	}
	if v.starts() != len(images) {
		t.Errorf("%d starts of the broker", v.starts())
	}
	for image, cause := range map[string]string{vaultHost + "/team/missing": "there is no such secret", vaultHost + "/team-a/app": "there is no such secret"} {
		if found := v.lookup(image, builder); len(found) != 0 || !strings.Contains(v.read("stderr"), cause) {
			t.Errorf("%s: %d credentials\n%s", image, len(found), v.read("stderr"))
		}
	}
}

// vaultApart are pods that pull at the same time, each with the secret that its annotation names.
var vaultApart = []struct {
	pod  pod
	team string // whose credential it has; empty: none
}{
	{builder, "team-a"},
	{pod{Namespace: "team-a", Name: "build-2", UID: "u3", ServiceAccount: "builder"}, "team-a"},
	{tester, "team-b"},
	{pod{Namespace: "team-a", Name: "t-1", UID: "u4", ServiceAccount: "tester"}, "team-a"},
	{pod{Namespace: "team-b", Name: "thief-1", UID: "u7", ServiceAccount: "thief"}, ""},
}

// TestVaultPodsAreKeptApart: with the kubelet's cache on and many pods at once, Vault's policy says whose credential each has. One that names another namespace's is refused by Vault, and the broker says so.
func TestVaultPodsAreKeptApart(t *testing.T) {
	for _, cacheType := range []string{"ServiceAccount", "Token"} {
		for _, method := range []string{"kubernetes", "jwt"} {
			t.Run(method+", "+cacheType, func(t *testing.T) {
				t.Parallel()
				v := newVaultWorld(t)
				// One role and one policy for all: whoever logs in reads what is its namespace's.
				v.reader = v.called("own")
				audience, namespace := ecrCluster, "service_account_namespace"
				if method == "kubernetes" {
					v.kubernetes("*", "*")
				} else {
					audience, namespace = "vault", "namespace"
					v.jwt("", object{"claim_mappings": object{"/kubernetes.io/namespace": namespace}})
				}
				mounts, err := v.vault.API().Sys().ListAuth()
				if err != nil {
					t.Fatal(err)
				}
				v.vault.Policy(v.reader, fmt.Sprintf(`path "%s/data/{{identity.entity.aliases.%s.metadata.%s}}/*" { capabilities = ["read"] }`, v.engine, mounts[v.called(method)+"/"].Accessor, namespace))
				v.login(method, object{"role": "puller", "podIdentity": "Require"})
				v.secret["path"] = v.engine + "/{annotation:" + vaultTeam + "}/{host}"
				v.tokens = vaultTokens(audience, cacheType)
				v.accounts = map[string]string{"team-a/builder": "team-a", "team-b/builder": "team-b", "team-a/tester": "team-a", "team-b/thief": "team-a"}
				for _, team := range []string{"team-a", "team-b"} {
					v.vault.Put(v.engine, team+"/"+vaultHost, object{"username": vaultUser, "password": "of " + team})
				}
				v.start()
				for round := range 3 {
					got := make([][]behaviour.Value, len(vaultApart))
					before := v.starts()
					var all sync.WaitGroup
					for i, p := range vaultApart {
						all.Go(func() { got[i] = v.lookup(vaultImage, p.pod) })
					}
					all.Wait()
					if round > 0 && v.starts() != before+1 { // for the one that is refused
						t.Errorf("round %d: the broker is started %d times, though the kubelet has the credentials", round, v.starts()-before)
					}
					for i, p := range vaultApart {
						switch {
						case p.team == "" && len(got[i]) > 0:
							t.Errorf("%+v has %d credentials", p.pod, len(got[i]))
						case p.team != "" && (len(got[i]) != 1 || got[i][0].Password != "of "+p.team):
							t.Errorf("%+v has %d credentials, or another's", p.pod, len(got[i]))
						}
					}
				}
				stderr := v.read("stderr")
				for _, said := range []string{"read " + v.engine + "/data/team-a/" + vaultHost, "permission denied", "to add to a policy of the login", "the pod's token is of team-b/thief"} {
					if !strings.Contains(stderr, said) {
						t.Errorf("the broker does not say %q of the one that is refused", said)
					}
				}
				if t.Failed() {
					t.Log(stderr)
				}
				v.givenBack()
			})
		}
	}
}
