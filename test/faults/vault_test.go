//go:build linux

package faults

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/test/cloud"
	"github.com/credential-broker/credential-broker/test/vaultserver"
)

const (
	vaultHost  = "harbor.example"
	vaultImage = vaultHost + "/team/app"
	vaultUser  = "robot"
	vaultEmail = "node@images.iam.gserviceaccount.com"
)

// sharedVault is the Vault server of all tests that leave it as it is; each has engines and logins of its own there.
var sharedVault vaultserver.Shared

var vaultRooms atomic.Int32

// strongroom is what a test has in Vault: its canaries are the real secrets of requests there.
type strongroom struct {
	*region
	vault *vaultserver.Server
	front *vaultserver.Front // by which the broker gets there
	n     int32
	// engine has the secret at registries/HOST, and reader is the policy for it. Password is what it has; empty where an engine makes one.
	engine, reader, password string
	entry                    object
	audience                 string // of the pod's token
	secretIDs                int
}

func newStrongroom(t *testing.T) *strongroom {
	t.Helper()
	return newRegion(t).strongroom(sharedVault.Get(t))
}

// aloneInVault is one with a server of its own, which asks the region's clouds.
func aloneInVault(t *testing.T) *strongroom {
	t.Helper()
	r := newRegion(t)
	return r.strongroom(vaultserver.New(t, vaultserver.Options{Cloud: r.aws}))
}

func (r *region) strongroom(s *vaultserver.Server) *strongroom {
	r.Helper()
	v := &strongroom{region: r, vault: s, front: s.Front(), n: vaultRooms.Add(1), audience: "vault"}
	v.engine = v.called("secret")
	v.password = v.secret("password in Vault", v.core("password")+`"\<&>/+ é`)
	s.KV2(v.engine)
	v.holds(object{"username": vaultUser, "password": v.password})
	v.reader = v.policy(v.engine + "/data/registries/*")
	v.entry = object{"path": v.engine + "/registries/{host}"}
	v.settings["address"], v.settings["caFile"], v.settings["secrets"] = v.front.Address(), s.CAFile(), []object{v.entry}
	return v
}

// called is a name that no other test has.
func (v *strongroom) called(what string) string { return fmt.Sprintf("%s-%d", what, v.n) }

// holds is what the secret says.
func (v *strongroom) holds(fields object) { v.vault.Put(v.engine, "registries/"+vaultHost, fields) }

// policy is one for reading.
func (v *strongroom) policy(path string) string {
	name := fmt.Sprintf("%s-%d", v.called("reader"), vaultRooms.Add(1))
	v.vault.Policy(name, fmt.Sprintf("path %q { capabilities = [\"read\"] }", path))
	return name
}

func (v *strongroom) login(method string, settings object) {
	v.settings["auth"] = v.with(object{"method": method, "mount": v.called(method)}, settings)
}

func (v *strongroom) tokenOfVault() string {
	return v.secret("Vault token", v.vault.Token([]string{v.reader}, nil))
}

// appRole has the node log in by AppRole, with a secret ID; end is that of its file.
func (v *strongroom) appRole(policy, end string) {
	roleID, secretID := v.vault.AppRole(v.called("approle"), "node", []string{policy}, nil)
	v.secretIDs++
	file := v.write(fmt.Sprintf("secret-id-%d", v.secretIDs), v.secret("secret ID", secretID)+end, 0o600)
	v.login("approle", object{"roleID": v.secret("role ID", roleID), "secretIDFile": file})
}

// subject is a token of the cluster's for a role that takes it, or another's.
func (v *strongroom) subject(of string) string {
	issuer := v.aws.AddIssuer(ecrCluster)
	v.vault.JWT(v.called("jwt"), issuer)
	v.vault.JWTRole(v.called("jwt"), "puller", object{"bound_subject": of, "token_policies": []string{v.reader}})
	return v.jwt("subject token", issuer, "vault")
}

func (v *strongroom) byJWT(more object) {
	v.login("jwt", v.with(object{"role": "puller"}, more))
}

// podOfKubernetes is a pod's token that the API server reviews.
func (v *strongroom) podOfKubernetes() *vaultserver.APIServer {
	issuer := v.aws.AddIssuer(ecrCluster)
	api := v.vault.Kubernetes(v.called("kubernetes"), issuer)
	v.vault.KubernetesRole(v.called("kubernetes"), "puller", object{"token_policies": []string{v.reader}})
	v.token = api.Token("team-a", "builder", object{"jti": v.core("jti of the pod's token")})
	parts := strings.Split(v.token, ".")
	v.secret("pod's token's claims", parts[1])
	v.secret("pod's token's signature", parts[2])
	v.cores["pod's token's jti"] = v.core("jti of the pod's token")
	v.audience = issuer.URL()
	v.login("kubernetes", object{"role": "puller"})
	return api
}

// certificate is the node's, with its key.
func (v *strongroom) certificate(name string, cut int) {
	v.vault.Cert(v.called("cert"), v.called("node"), []string{v.reader})
	certificate, key := v.vault.ClientCertificate(name)
	for i, line := range strings.Split(strings.TrimSpace(string(key)), "\n") {
		if !strings.HasPrefix(line, "-") && i > 1 { // the first one says only what kind of key it is
			v.secret(fmt.Sprintf("private key's line %d", i), line)
		}
	}
	v.login("cert", object{"certFile": v.write("node.pem", string(certificate), 0o600), "keyFile": v.write("node.key", string(key[:len(key)-cut]), 0o600)})
}

// wrapped has the policy demand that answers are wrapped.
func (v *strongroom) wrapped() {
	name := v.called("wrapped")
	v.vault.Policy(name, fmt.Sprintf(`path "%s/data/registries/*" { capabilities = ["read"], min_wrapping_ttl = "1s", max_wrapping_ttl = "90s" }`, v.engine))
	v.appRole(name, "")
	v.entry["wrapTTL"] = "1m"
}

// made has an engine make the credentials, with leases that are so long.
func (v *strongroom) made(lease time.Duration) {
	rabbit := v.vault.RabbitMQ(v.called("rabbitmq"))
	rabbit.Role("pull", nil)
	rabbit.Lease(lease, time.Hour)
	v.appRole(v.policy(v.called("rabbitmq")+"/creds/*"), "")
	v.entry["path"], v.password = v.called("rabbitmq")+"/creds/pull", ""
}

// executable is a web identity's, which says on standard error what it knows.
func (v *strongroom) executable(end string) {
	token, key := v.subject(ecrSubject), v.secret("executable's variable", v.core("variable"))
	v.byJWT(object{"webIdentity": object{"executable": object{"command": v.printing("Authorization: Bearer "+token+", by $KEY='"+key+"'", token, end), "env": object{"KEY": key}}}})
}

// issuing is a server that gives the token to whoever knows a secret.
func (v *strongroom) issuing(status int) {
	token, key := v.subject(ecrSubject), v.secret("header", "s."+v.core("header"))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.Header.Get("X-Key") != key {
			status = http.StatusForbidden
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, `{"data":{"token":"`+token+`"}}`)
	}))
	v.Cleanup(server.Close)
	v.byJWT(object{"webIdentity": object{"url": object{"url": server.URL, "headers": object{"X-Key": key}, "tokenField": "data.token"}}})
}

// told has all looked for that came to be on the way: logins, wrapping tokens, and what engines have made.
func (v *strongroom) told() {
	for i, q := range v.front.Requests() {
		if q.Token != "" {
			v.secret(fmt.Sprintf("token %d on the way", i), q.Token)
		}
	}
	for i, lease := range v.vault.Leases(v.called("rabbitmq") + "/creds/pull") {
		v.secret(fmt.Sprintf("lease %d", i), lease[strings.LastIndex(lease, "/")+1:])
	}
}

func (v *strongroom) request() string {
	q := object{"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderRequest", "image": vaultImage}
	if v.token != "" {
		q["serviceAccountToken"] = v.token
	}
	return string(must(json.Marshal(q)))
}

func (v *strongroom) provider(name string) object {
	p := object{
		"name": name, "backend": "vault", "matchImages": []string{vaultHost}, "timeout": "40s", "config": v.settings, "env": v.environment(),
		"inheritEnv": []string{"VAULT_*", "AWS_*", "GOOGLE_*", "GCE_*", "AZURE_*"},
	}
	if v.token != "" {
		p["tokenAttributes"] = object{"serviceAccountTokenAudience": v.audience, "cacheType": "Token", "requireServiceAccount": false}
	}
	return p
}

// asks asks for the image as the kubelet does.
func (v *strongroom) asks(config string) outcome {
	v.Helper()
	o := v.run(command{args: []string{"--config", config}, stdin: v.request(), env: v.env})
	v.told()
	return o
}

// right makes sure that the answer has the credential.
func (v *strongroom) right(o outcome) {
	v.Helper()
	login := v.answered(o).Auth[vaultHost]
	if v.password != "" && (login.Username != vaultUser || login.Password != v.password) || login.Password == "" {
		v.Error("not the right credential")
	}
	v.secret("password", login.Password)
}

// vaultIdentity is a way to log in, or a kind of secret, with all the secrets that it takes.
type vaultIdentity struct {
	name    string
	prepare func(v *strongroom)
	// asks are the beginnings of paths that Vault is asked for, NAME being the test's own: those that no other identity asks, or asks so.
	asks []string
	// fails is in the log of an identity that comes to nothing.
	fails string
	// clouds: Vault asks a cloud.
	clouds bool
}

var vaultIdentities = []vaultIdentity{
	{name: "a token's file", prepare: func(v *strongroom) {
		v.login("token", object{"tokenFile": v.write("token", v.tokenOfVault()+"\n", 0o600)})
	}, asks: []string{"sys/internal/ui/mounts/secret-NAME", "secret-NAME/data"}},
	{name: "a token's file with more in it", prepare: func(v *strongroom) {
		v.login("token", object{"tokenFile": v.write("token", v.tokenOfVault()+"\nand more", 0o600)})
	}, fails: "want one line of ASCII"},
	{name: "a token's file that is a JSON object", prepare: func(v *strongroom) {
		v.login("token", object{"tokenFile": v.write("token", `{"token": "`+v.tokenOfVault()+`"}`, 0o600)})
	}, fails: "want one line of ASCII"},
	{name: "a token that Vault does not know", prepare: func(v *strongroom) {
		v.login("token", object{"tokenFile": v.write("token", v.secret("Vault token", "hvs."+v.core("unknown")), 0o600)})
	}, fails: "Vault does not know the token"},
	{name: "a token of the environment", prepare: func(v *strongroom) { v.env = append(v.env, "VAULT_TOKEN="+v.tokenOfVault()) }},
	{name: "a token of the environment where it is not heeded", prepare: func(v *strongroom) {
		v.env = append(v.env, "VAULT_TOKEN="+v.tokenOfVault(), "VAULT_HEADERS="+v.secret("header", v.core("header")))
	}, fails: "VAULT_HEADERS is set, and not heeded"},
	{name: "AppRole", prepare: func(v *strongroom) { v.appRole(v.reader, "\n") }, asks: []string{"auth/approle-NAME/login", "sys/internal/ui/mounts", "secret-NAME/data", "auth/token/revoke-self"}},
	{name: "a secret ID's file with more in it", prepare: func(v *strongroom) { v.appRole(v.reader, "\nand more") }, fails: "want one line of ASCII"},
	{name: "a secret ID that is none", prepare: func(v *strongroom) { v.appRole(v.reader, v.secret("more of it", v.core("more"))) }, fails: "the role ID or the secret ID is wrong"},
	{name: "a policy for something else", prepare: func(v *strongroom) { v.appRole(v.policy("elsewhere/*"), "") }, fails: "no policy of the login is for anything in the engine"},
	{name: "a pod, by Kubernetes", prepare: func(v *strongroom) { v.podOfKubernetes() }, asks: []string{"auth/kubernetes-NAME/login"}},
	{name: "a pod that Kubernetes does not vouch for", prepare: func(v *strongroom) {
		v.podOfKubernetes().Delete("team-a", "builder")
	}, fails: "the account may have been deleted"},
	{name: "a pod, by JWT", prepare: func(v *strongroom) { v.token = v.subject(ecrSubject); v.byJWT(nil) }, asks: []string{"auth/jwt-NAME/login"}},
	{name: "a pod that the role is not for", prepare: func(v *strongroom) { v.token = v.subject("somebody else"); v.byJWT(nil) }, fails: "the role is not for whom the token is of"},
	{name: "a token of the cluster's in a file", prepare: func(v *strongroom) {
		v.byJWT(object{"tokenFile": v.write("token", v.subject(ecrSubject), 0o600)})
	}},
	{name: "a token of the cluster's in a file with more in it", prepare: func(v *strongroom) {
		v.byJWT(object{"tokenFile": v.write("token", `{"token":"`+v.subject(ecrSubject)+`"}`, 0o600)})
	}, fails: "auth.tokenFile"},
	{name: "a web identity's executable", prepare: func(v *strongroom) { v.executable("") }},
	{name: "a web identity's executable that fails", prepare: func(v *strongroom) { v.executable("exit 3") }, fails: "exit status 3"},
	{name: "a web identity's URL", prepare: func(v *strongroom) { v.issuing(http.StatusOK) }},
	{name: "a web identity's URL that refuses", prepare: func(v *strongroom) { v.issuing(http.StatusForbidden) }, fails: "HTTP status 403"},
	{name: "a certificate", prepare: func(v *strongroom) { v.certificate(v.called("node"), 0) }, asks: []string{"auth/cert-NAME/login"}},
	{name: "a certificate whose key is cut short", prepare: func(v *strongroom) { v.certificate(v.called("node"), 60) }, fails: "want a certificate and the private key that belongs to it"},
	{name: "a certificate of somebody else's", prepare: func(v *strongroom) { v.certificate("somebody-else", 0) }, fails: "the role is not for the client certificate"},
	{name: "a wrapped answer", prepare: func(v *strongroom) { v.wrapped() }, asks: []string{"secret-NAME/data", "sys/wrapping/unwrap"}},
	{name: "credentials that are made", prepare: func(v *strongroom) { v.made(time.Hour) }, asks: []string{"rabbitmq-NAME/creds"}},
	{name: "a docker config", prepare: func(v *strongroom) { v.dockerConfig("}") }},
	{name: "a docker config cut short", prepare: func(v *strongroom) { v.dockerConfig("") }, fails: "secrets[0].dockerConfigField"},
	{name: "a password that is a list", prepare: func(v *strongroom) {
		v.appRole(v.reader, "")
		v.holds(object{"username": vaultUser, "password": []string{v.password}})
	}, fails: "is no text"},
	{name: "a password by another name", prepare: func(v *strongroom) {
		v.appRole(v.reader, "")
		v.holds(object{"username": vaultUser, "passwort": v.password, "more": object{"password": v.password}})
	}, fails: "the secret has no field"},
	{name: "an expiry that is none", prepare: func(v *strongroom) {
		v.appRole(v.reader, "")
		v.holds(object{"username": vaultUser, "password": v.password, "expires": v.password})
		v.entry["expiresField"] = "expires"
	}, fails: "says no time"},
	{name: "AWS", clouds: true, prepare: func(v *strongroom) { v.byAWS(ecrRole) }, asks: []string{"auth/aws-NAME/login"}},
	{name: "AWS, whom the role is not for", clouds: true, prepare: func(v *strongroom) { v.byAWS("arn:aws:iam::" + ecrAccount + ":role/other") }, fails: "the role is not for whom the token is of"},
	{name: "Google's key", clouds: true, prepare: func(v *strongroom) { v.byGoogle(0) }, asks: []string{"auth/gcp-NAME/login"}},
	{name: "Google's key cut short", clouds: true, prepare: func(v *strongroom) { v.byGoogle(40) }, fails: "auth.gcp.credentialsFile"},
	{name: "Azure", clouds: true, prepare: func(v *strongroom) { v.byAzure() }, asks: []string{"auth/azure-NAME/login"}},
}

// dockerConfig is one in a field; end is that of its text.
func (v *strongroom) dockerConfig(end string) {
	v.appRole(v.reader, "")
	text := string(must(json.Marshal(object{"auths": object{vaultHost: object{"username": vaultUser, "password": v.password}}})))
	v.holds(object{".dockerconfigjson": strings.TrimSuffix(text, "}") + end})
	v.entry["dockerConfigField"] = ".dockerconfigjson"
}

// byAWS logs in with the keys of a session, for a role of Vault's that is bound to an AWS role.
func (v *strongroom) byAWS(bound string) {
	keys := v.aws.Session(ecrRole, "node", time.Hour)
	v.secret("secret access key", keys.SecretAccessKey)
	v.secret("session token", keys.SessionToken)
	v.env = append(append(v.env, keys.Environ()...), "AWS_REGION=eu-west-1")
	v.vault.AWS(v.called("aws"), "puller", bound, []string{v.reader})
	v.login("aws", object{"role": "puller"})
}

// byGoogle signs with a service account's key, whose file is cut.
func (v *strongroom) byGoogle(cut int) {
	v.aws.AddServiceAccount(cloud.ServiceAccount{Email: vaultEmail})
	content := v.aws.ServiceAccountKeyFile(vaultEmail)
	var file struct {
		Key string `json:"private_key"`
	}
	if err := json.Unmarshal(content, &file); err != nil {
		v.Fatal(err)
	}
	v.privateKey(file.Key)
	v.vault.GCP(v.called("gcp"), "puller", "iam", "images", []string{v.reader}, nil)
	v.login("gcp", object{"role": "puller", "gcp": object{"type": "iam", "credentialsFile": v.write("key.json", string(content[:len(content)-cut]), 0o600)}})
}

func (v *strongroom) byAzure() {
	tenant := v.aws.AddEntraTenant(cloud.EntraTenant{}).ID
	m := v.aws.AzureInstanceIn(tenant, cloud.ManagedIdentity{System: true})
	v.env = append(v.env, m.Environ()...)
	v.vault.Azure(v.called("azure"), "puller", tenant, []string{v.reader}, object{"bound_subscription_ids": []string{m.Compute().SubscriptionID}})
	v.login("azure", object{"role": "puller"})
}

// toldByClouds has what was sent to Vault looked for, and what clouds have given meanwhile.
func (v *strongroom) toldByClouds() {
	for _, q := range v.front.Requests() {
		if !strings.HasSuffix(q.Path, "/login") {
			continue
		}
		var sent map[string]any
		_ = json.Unmarshal(q.Body, &sent) // what is none has none
		for _, name := range []string{"jwt", "iam_request_headers"} {
			text, _ := sent[name].(string)
			parts := strings.Split(text, ".")
			if text = parts[len(parts)-1]; text != "" {
				v.secret("what was sent as "+name, text)
			}
		}
	}
}

// planted is a token that is in an answer which nobody is to take for one.
func (v *strongroom) planted() string {
	return v.secret("planted token", "hvs."+strings.Repeat(v.core("access"), 3))
}

// vaultMishaps are what happens on the way; in a body ALL stands for every secret of the identity, TOKEN for a planted one, and SENT, within a text, for what was sent.
var vaultMishaps = []struct {
	name   string
	fault  vaultserver.Fault
	thief  bool // it is pointed to
	brief  bool // the provider's time ends it
	header string
}{
	{name: "a refusal that repeats what it was sent", fault: vaultserver.Fault{Status: 403, Body: `{"errors":["SENT"]}`}},
	{name: "a refusal that tells all", fault: vaultserver.Fault{Status: 400, Body: `{"errors":[ALL,"1 error occurred:\n\t* permission denied\n\n",ALL],"warnings":[ALL],"data":{"error":ALL}}`}},
	{name: "a breakdown that tells all", fault: vaultserver.Fault{Status: 500, Body: `{"errors":[ALL,"SENT"]}`}, brief: true},
	{name: "a gateway that tells all", fault: vaultserver.Fault{Status: 502, Body: `<html>ALL SENT</html>`, Header: http.Header{"Content-Type": {"text/html"}}}, brief: true},
	{name: "a Vault that is busy and tells all", fault: vaultserver.Fault{Status: 429, Body: `{"errors":["SENT",ALL]}`, Header: http.Header{"Retry-After": {"3600"}}}, brief: true},
	{name: "a sealed one that tells all", fault: vaultserver.Fault{Status: 503, Body: `{"errors":["Vault is sealed","SENT"]}`}, brief: true},
	{name: "a redirection to nowhere", fault: vaultserver.Fault{Status: 307, Body: `ALL`}},
	{name: "a redirection to a thief", thief: true},
	{name: "a redirection to a thief by another method", thief: true, fault: vaultserver.Fault{Status: 303}},
	{name: "no answer", fault: vaultserver.Fault{Hang: true}, brief: true},
	{name: "no answer to what was done", fault: vaultserver.Fault{Hang: true, After: true}, brief: true},
	{name: "a connection that is cut", fault: vaultserver.Fault{Reset: true}, brief: true},
	{name: "an answer cut half-way", fault: vaultserver.Fault{Truncate: true}, brief: true},
	{name: "nonsense", fault: vaultserver.Fault{Status: 200, Body: `"SENT" TOKEN`}},
	{name: "an answer cut short", fault: vaultserver.Fault{Status: 200, Body: `{"auth":{"client_token":TOKEN},"data":{"password":TOKEN`}},
	{name: "an answer of another type", fault: vaultserver.Fault{Status: 200, Body: `{"auth":{"client_token":[TOKEN]},"data":[TOKEN],"wrap_info":TOKEN,"lease_id":[TOKEN]}`}},
	{name: "an answer of warnings alone", fault: vaultserver.Fault{Status: 200, Body: `{"warnings":[ALL,"SENT"],"data":null}`}},
	{name: "an answer that is too long", fault: vaultserver.Fault{Oversized: true}},
}

// TestNoSecretOfVaultsIsTold: whoever logs in and whatever happens to it, what is secret is in the response and nowhere else, even at the level debug.
func TestNoSecretOfVaultsIsTold(t *testing.T) {
	for i, identity := range vaultIdentities {
		open := newStrongroom
		if identity.clouds {
			open = aloneInVault
		}
		t.Run(identity.name+"/all goes as it should", func(t *testing.T) {
			t.Parallel()
			v := open(t)
			identity.prepare(v)
			o := v.asks(v.configuration("debug", []string{"text", "json"}[i%2], v.provider("vault")))
			v.toldByClouds()
			if identity.fails != "" {
				v.failed(o)
				v.clean(o, false)
			} else {
				v.right(o)
				v.clean(o, true)
				if len(v.found(o.stdout)) == 0 {
					t.Error("even in the response no secret is seen: this test does not see")
				}
			}
			v.says(o, cmp.Or(identity.fails, "cacheKeyType"))
		})
		for j, asked := range identity.asks {
			for k, m := range vaultMishaps {
				if identity.clouds && k > 1 { // what Vault says is what can have in it what clouds gave
					break
				}
				t.Run(identity.name+"/"+asked+": "+m.name, func(t *testing.T) {
					t.Parallel()
					v := open(t)
					identity.prepare(v)
					fault := m.fault
					fault.Path = strings.ReplaceAll(asked, "NAME", fmt.Sprint(v.n))
					fault.Body = strings.NewReplacer("ALL", string(must(json.Marshal(v.all()))), "TOKEN", string(must(json.Marshal(v.planted()))), "SENT", cloud.Sent).Replace(fault.Body)
					thief := v.vault.Thief()
					if m.thief {
						fault.Redirect = thief.Address()
					}
					v.front.Fail(fault)
					p := v.provider("vault")
					// That a login is not given back spoils no answer.
					end := strings.HasSuffix(asked, "revoke-self")
					if m.brief && !end {
						p["timeout"] = short.String()
					}
					o := v.asks(v.configuration("debug", []string{"text", "json"}[(i+j+k)%2], p))
					v.toldByClouds()
					if end {
						v.right(o)
					} else {
						v.failed(o)
						v.says(o, "provider failed")
					}
					v.clean(o, end)
					v.bounded(o, grace)
					if !slices.ContainsFunc(v.front.Requests(), func(q vaultserver.Request) bool { return strings.HasPrefix(q.Path, fault.Path) }) {
						t.Errorf("%s is not asked", fault.Path)
					}
					if stolen := thief.Stolen(); len(stolen) > 0 {
						t.Errorf("stolen: %q", stolen)
					}
				})
			}
		}
	}
}

// TestARedirectToAnAddressOfTheSettings is followed, with what is secret.
func TestARedirectToAnAddressOfTheSettings(t *testing.T) {
	t.Parallel()
	v := newStrongroom(t)
	v.appRole(v.reader, "")
	active := v.vault.Front()
	v.front.Fail(vaultserver.Fault{Redirect: active.Address()})
	o := v.asks(v.configuration("debug", "text", v.provider("vault")))
	v.failed(o)
	v.clean(o, false)
	v.says(o, "name it in redirectAddresses")
	if len(active.Requests()) > 0 {
		t.Error("the other address is asked, though the settings do not have it")
	}
	v.settings["redirectAddresses"] = []string{active.Address()}
	o = v.asks(v.configuration("debug", "text", v.provider("vault")))
	for i, q := range active.Requests() {
		if q.Token != "" {
			v.secret(fmt.Sprintf("token %d at the active node", i), q.Token)
		}
	}
	v.right(o)
	v.clean(o, true)
}

// TestVaultIsSealedMeanwhile: while it is, the error says so and nothing else; afterwards all is as before.
func TestVaultIsSealedMeanwhile(t *testing.T) {
	t.Parallel()
	v := aloneInVault(t)
	v.appRole(v.reader, "")
	config := v.configuration("debug", "json", v.provider("vault"))
	for _, sealed := range []bool{false, true, false} {
		if sealed {
			v.vault.Seal()
		}
		o := v.run(command{args: []string{"--config", config}, stdin: v.request(), env: v.env})
		if !sealed {
			v.told()
			v.right(o)
			v.clean(o, true)
			continue
		}
		v.failed(o)
		v.clean(o, false)
		v.says(o, "Vault is sealed")
		if kind, _ := v.reason(o, "vault"); kind != unavailable {
			t.Errorf("it counts as %s", kind)
		}
		v.vault.Unseal()
	}
}

// TestNoSecretOfVaultsIsToldByACheck is the same for what is shown to people, which asks Vault for more.
func TestNoSecretOfVaultsIsToldByACheck(t *testing.T) {
	for _, path := range []string{"sys/health", "auth/token/lookup-self", "sys/capabilities-self"} {
		for name, fault := range map[string]vaultserver.Fault{
			"all goes as it should":                   {},
			"a refusal that repeats what it was sent": {Status: 403, Body: `{"errors":["` + cloud.Sent + `"]}`},
			"a breakdown that repeats it":             {Status: 500, Body: `{"errors":["` + cloud.Sent + `"]}`},
			"an answer of another type":               {Status: 200, Body: `{"data":["` + cloud.Sent + `"],"version":["` + cloud.Sent + `"]}`},
			"an answer with what was sent":            {Status: 200, Body: `{"initialized":true,"version":"1","data":{"display_name":"x","policies":["y"],"id":"` + cloud.Sent + `"},"auth":{"client_token":"` + cloud.Sent + `"}}`},
		} {
			t.Run(path+": "+name, func(t *testing.T) {
				t.Parallel()
				v := newStrongroom(t)
				v.appRole(v.reader, "")
				if fault.Status != 0 {
					fault.Path = path
					v.front.Fail(fault)
				}
				o := v.run(command{args: []string{"get", "--no-agent", "--config", v.configuration("debug", "text", v.provider("vault")), vaultImage}, env: v.env})
				v.told()
				v.clean(o, false)
				if !slices.ContainsFunc(v.front.Requests(), func(q vaultserver.Request) bool { return strings.HasPrefix(q.Path, path) }) && path == "sys/health" || !strings.Contains(o.stdout, "CHECK") {
					t.Errorf("nothing was checked:\n%s\n%s", o.stdout, o.stderr)
				}
			})
		}
	}
}

// hanging starts a broker whose backends hang with all their secrets in memory: by a pod's token, a secret ID's file, a certificate, a token of the environment, and a program that does not end.
func (v *strongroom) hanging(before string) *exec.Cmd {
	v.Helper()
	v.front.Fail(vaultserver.Fault{Path: v.engine + "/data", Hang: true})
	base := v.settings
	by := func(name string, prepare func()) object {
		v.settings = v.with(base, nil)
		prepare()
		return v.with(v.provider(name), object{"inheritEnv": []string{}})
	}
	v.token = v.subject(ecrSubject)
	byToken := by("by-token", func() { v.byJWT(nil) })
	bySecret := by("by-secret", func() { v.appRole(v.reader, "") })
	byCertificate := by("by-certificate", func() { v.certificate(v.called("node"), 0) })
	byProgram := by("by-program", func() {
		v.byJWT(object{"podIdentity": "Off", "webIdentity": object{"executable": object{"command": v.program("sleep 600; :"), "timeout": "50s"}}})
	})
	byVariable := by("by-variable", func() {})
	v.env, byVariable["inheritEnv"] = append(v.env, "VAULT_TOKEN="+v.tokenOfVault()), []string{"VAULT_*"}
	return v.command(command{
		args: []string{"--config", v.configuration("debug", "text", byToken, bySecret, byCertificate, byProgram, byVariable)}, stdin: v.request(), env: v.env, before: before,
	})
}

func (v *strongroom) untilAllHang(cmd *exec.Cmd) {
	v.Helper()
	if !until(grace, func() bool {
		asked := 0
		for _, q := range v.front.Requests() {
			if strings.HasPrefix(q.Path, v.engine+"/data") {
				asked++
			}
		}
		// Five backends, a guardian, its script and what that runs.
		return asked >= 4 && len(below(cmd.Process.Pid)) >= 8
	}) {
		v.Fatalf("only %v run; %d requests", below(cmd.Process.Pid), len(v.front.Requests()))
	}
	v.told()
}

// TestNoSecretOfVaultsIsInWhatOtherProcessesCanSee looks at arguments, environments and descriptors while every backend holds its secrets.
func TestNoSecretOfVaultsIsInWhatOtherProcessesCanSee(t *testing.T) {
	t.Parallel()
	v := newStrongroom(t)
	v.isSeenByNobody(v.hanging(""), v.untilAllHang, func(_ []string, text string) bool { return strings.Contains(text, "VAULT_TOKEN=") })
}

// TestNoSecretOfVaultsIsToldByADeath: backends that are ended while they hold their secrets tell none.
func TestNoSecretOfVaultsIsToldByADeath(t *testing.T) {
	for _, sig := range deaths {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			v := newStrongroom(t)
			v.dies(sig, v.hanging("ulimit -c unlimited"), v.untilAllHang, "by-secret")
		})
	}
}

// TestABrokerThatIsKilledWhileItAsksVault leaves no process, no secret on disk, and nothing that the next one stumbles over.
func TestABrokerThatIsKilledWhileItAsksVault(t *testing.T) {
	for _, path := range []string{"auth/", "sys/internal/ui/mounts", "secret", "auth/token/revoke-self"} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			v := newStrongroom(t)
			v.appRole(v.reader, "")
			v.front.Fail(vaultserver.Fault{Path: path, Hang: true})
			config := v.configuration("debug", "text", v.provider("vault"))
			cmd := v.command(command{args: []string{"--config", config}, stdin: v.request(), env: v.env, before: "ulimit -c unlimited"})
			var stdout, stderr strings.Builder
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if !until(grace, func() bool {
				return slices.ContainsFunc(v.front.Requests(), func(q vaultserver.Request) bool { return strings.HasPrefix(q.Path, path) && q.Status == 0 })
			}) {
				t.Errorf("%s is not asked", path)
			}
			v.told()
			_ = cmd.Process.Signal(syscall.SIGKILL)
			_ = cmd.Wait()
			if !until(grace, func() bool { return len(v.marked()) == 0 }) {
				t.Errorf("left: %v", v.marked())
			}
			v.clean(outcome{stdout: stdout.String(), stderr: stderr.String()}, false)
			v.front.Heal()
			o := v.asks(config)
			v.right(o)
			v.clean(o, true)
		})
	}
}

// TestNoSecretOfVaultsIsToldByTheAgent: what is lent is renewed and revoked, with Vault repeating in its refusals what it was sent, and nothing of it is told.
func TestNoSecretOfVaultsIsToldByTheAgent(t *testing.T) {
	for name, fault := range map[string]vaultserver.Fault{
		"all goes as it should":                   {},
		"a refusal that repeats what it was sent": {Status: 403, Body: `{"errors":["` + cloud.Sent + `"]}`},
		"a breakdown that repeats it":             {Status: 500, Body: `{"errors":["` + cloud.Sent + `"]}`},
		"a connection that is cut":                {Reset: true},
		"an answer of another type":               {Status: 200, Body: `{"lease_id":["` + cloud.Sent + `"],"auth":"` + cloud.Sent + `"}`},
		"a redirection to a thief":                {Redirect: "THIEF"},
	} {
		for _, path := range []string{"auth/token/renew-self", "sys/leases/renew", "auth/token/revoke-self"} {
			if fault.Status == 0 && !fault.Reset && fault.Redirect == "" && path != "sys/leases/renew" {
				continue // once is enough
			}
			t.Run(path+": "+name, func(t *testing.T) {
				t.Parallel()
				n := newNode(t)
				n.install(filepath.Join(bin, "backends", "credential-backend-vault"), filepath.Join(n.backends, "credential-backend-vault"))
				v := newStrongroom(t)
				v.bench = n.bench
				thief, fault := v.vault.Thief(), fault
				fault.Path = path
				if fault.Redirect != "" {
					fault.Redirect = thief.Address()
				}
				// The backend renews what it lent itself when it is asked again after half of its time; what ends soon anyway is not revoked.
				renews := path != "auth/token/revoke-self"
				v.made(map[bool]time.Duration{true: 4 * time.Second, false: time.Hour}[renews])
				n.conf = v.configuration("debug", "text", v.provider("vault"))
				agent := n.start(command{})
				if fault.Status != 0 || fault.Reset || fault.Redirect != "" {
					v.front.Fail(fault)
				}
				asked := func(of string) func() bool {
					return func() bool {
						return slices.ContainsFunc(v.front.Requests(), func(q vaultserver.Request) bool { return strings.HasPrefix(q.Path, of) })
					}
				}
				o := n.pull(vaultImage, "")
				if o.isCold() {
					t.Fatalf("the agent is not asked: %s", o.stderr)
				}
				v.right(o)
				v.told()
				if renews && !until(grace, func() bool {
					o = n.pull(vaultImage, "")
					return asked(path)()
				}) {
					t.Errorf("%s is not asked", path)
				}
				v.told()
				agent.end()
				v.told()
				if !renews && !asked(path)() {
					t.Error("nothing is given back")
				}
				if !strings.Contains(n.logged(), "logged in to Vault") {
					t.Error("the log lacks what is no secret: does the backend log?")
				}
				if seen := v.found(n.logged()); len(seen) > 0 {
					t.Errorf("the log tells %s", strings.Join(seen, "\n  and "))
				}
				v.clean(o, true)
				if stolen := thief.Stolen(); len(stolen) > 0 {
					t.Errorf("stolen: %q", stolen)
				}
				n.nothingLeft()
			})
		}
	}
}

// TestSecretsOfVaultsAreSeen shows that each secret would be found, and those on the way; TestSecretsOfECRAreSeen shows it for each place.
func TestSecretsOfVaultsAreSeen(t *testing.T) {
	for _, identity := range vaultIdentities {
		if identity.clouds { // whose secrets the tests of these clouds see
			continue
		}
		v := newStrongroom(t)
		identity.prepare(v)
		_ = v.planted()
		if len(v.words) < 4 {
			t.Errorf("%s: only %d secrets", identity.name, len(v.words))
		}
		v.seen(identity.name, vaultUser, vaultHost+v.engine+v.reader+v.front.Address()+ecrCluster+ecrSubject+vaultImage)
	}
	for name, prepare := range map[string]func(v *strongroom){"a login": func(v *strongroom) { v.appRole(v.reader, "") }, "a wrapping token": (*strongroom).wrapped, "a lease": func(v *strongroom) { v.made(time.Hour) }} {
		v := newStrongroom(t)
		prepare(v)
		before := len(v.words)
		o := v.asks(v.configuration("info", "text", v.provider("vault")))
		if on := len(v.words) - before; on < map[string]int{"a login": 1, "a wrapping token": 2, "a lease": 2}[name] || v.answered(o).Auth == nil {
			t.Errorf("%s: %d secrets come to be on the way", name, on)
		}
	}
}
