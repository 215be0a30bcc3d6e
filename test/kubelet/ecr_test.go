//go:build unix

package kubelet

import (
	"crypto/sha1" //nolint:gosec // the SDKs name the files of their cache so
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/credential-broker/credential-broker/test/cloud"
	"github.com/credential-broker/credential-broker/test/kubelet/internal/behaviour"
)

// What the tests of ECR pull from, and who may.
const (
	ecrAccount = "111111111111"
	ecrOther   = "222222222222"
	ecrHost    = ecrAccount + ".dkr.ecr.eu-west-1.amazonaws.com"
	otherHost  = ecrOther + ".dkr.ecr.eu-west-1.amazonaws.com"
	ecrUser    = "arn:aws:iam::" + ecrAccount + ":user/node"
	ecrNode    = "arn:aws:iam::" + ecrAccount + ":role/node"
	ecrPod     = "arn:aws:iam::" + ecrAccount + ":role/pod"
	ecrCluster = "https://oidc.eks.eu-west-1.amazonaws.com/id/ABC"
	ecrRole    = "eks.amazonaws.com/ecr-role-arn"
	awsSTS     = "sts.amazonaws.com"
)

type object = map[string]any

// withClouds compiles the clouds' backends once and puts them beside the others.
var withClouds = sync.OnceValues(func() (built, error) {
	b, err := build()
	if err != nil {
		return b, err
	}
	cmd := exec.Command("go", "build", "-o", filepath.Join(filepath.Dir(b.broker), "backends")+"/", "./cmd/credential-backend-ecr", "./cmd/credential-backend-gar", "./cmd/credential-backend-acr", "./cmd/credential-backend-vault",
		"./cmd/aws-identity-token")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return b, fmt.Errorf("go build: %w\n%s", err, out)
	}
	return b, nil
})

// kubeletMutex: a node borrows the kubelet's global variables when it is started, and for each pod.
var kubeletMutex sync.Mutex

// world is a cloud, a cluster and a node of it, whose kubelet has the entries that kubelet-config prints.
type world struct {
	*testing.T
	*cloud.Cloud
	// refuse: whoever the node or the pod says to be, it is not trusted with anything.
	refuse bool
	dir    string

	provider object            // but for what follows
	config   object            // the provider's
	tokens   object            // its tokenAttributes
	env      []string          // of the broker, besides the cloud's own
	accounts map[string]string // service accounts, "namespace/name", and whom their annotations name
	annotate func(whom string) map[string]string
	issuer   *cloud.Issuer // of the cluster's tokens
	mint     func(namespace, account string, claims object) string

	mu     sync.Mutex
	issued map[string]string
	node   *node
}

func newWorld(t *testing.T) *world {
	t.Helper()
	c := cloud.New(t)
	c.AddRegistry(ecrHost, cloud.Repository{Name: "team/app"}, cloud.Repository{Name: "team/other"})
	c.AddRegistry(otherHost, cloud.Repository{Name: "team/app"})
	w := &world{
		T: t, Cloud: c, dir: t.TempDir(), config: object{}, accounts: map[string]string{}, issuer: c.AddIssuer(ecrCluster), issued: map[string]string{},
		// Two hosts are none of Amazon's, and their images are for the backend to leave alone.
		provider: object{
			"name": "ecr", "matchImages": []string{"*.dkr.ecr.*.amazonaws.com", "*.dkr.ecr.*.amazonaws.com.example", "registry.example", "public.ecr.aws"},
			"inheritEnv": []string{"AWS_*", "GCE_METADATA_HOST", "AZURE_*", "SPIFFE_*"},
		},
		annotate: func(role string) map[string]string { return map[string]string{ecrRole: role} },
	}
	w.mint = func(_, _ string, claims object) string { return w.issuer.Token(claims) }
	for _, account := range []string{ecrAccount, ecrOther} {
		c.AddOIDCProvider(account, ecrCluster, awsSTS)
	}
	return w
}

// unless is what a trust policy or the like has where all is well.
func (w *world) unless(good, refused string) string {
	if w.refuse {
		return refused
	}
	return good
}

// file writes a file below the node's home.
func (w *world) file(name, content string, mode os.FileMode) string {
	w.Helper()
	path := filepath.Join(w.dir, "home", name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		w.Fatal(err)
	}
	w.write(path, content, mode)
	return path
}

// write keeps tests that run at the same time from forking meanwhile: a program cannot be run while a child has it open for writing.
func (w *world) write(path, content string, mode os.FileMode) {
	w.Helper()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		w.Fatal(err)
	}
}

// role adds a role that can be assumed as trust says, and whose sessions may pull.
func (w *world) role(arn string, trust ...cloud.Trust) {
	w.AddRole(cloud.Role{ARN: arn, Trust: trust, Policy: cloud.PullPolicy()})
}

// user adds a user who may do nothing but assume roles that trust it, and puts its keys into the environment.
func (w *world) user() {
	w.env = append(w.env, w.AddUser(ecrUser, mayAssume).Environ()...)
}

var mayAssume = cloud.Statement{Actions: []string{"sts:AssumeRole"}}

// serviceAccountTokens is a provider's tokenAttributes for AWS.
func serviceAccountTokens(cacheType string) object {
	return object{"serviceAccountTokenAudience": awsSTS, "cacheType": cacheType, "requireServiceAccount": false, "optionalServiceAccountAnnotationKeys": []string{ecrRole}}
}

// identities are the cluster's API server, with tokens that its issuer has signed. A pod's token is the same until it is renewed.
func (w *world) identities() identities {
	return identities{
		token: func(namespace, name string, request *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			answer := request.DeepCopy()
			key := namespace + "/" + name + "/" + request.Spec.BoundObjectRef.Name
			if w.issued[key] == "" {
				w.issued[key] = w.mint(namespace, name, object{
					"aud": request.Spec.Audiences, "sub": "system:serviceaccount:" + namespace + ":" + name,
					"kubernetes.io": object{"namespace": namespace, "pod": object{"name": request.Spec.BoundObjectRef.Name}, "serviceaccount": object{"name": name}},
				})
			}
			answer.Status.Token = w.issued[key]
			return answer, nil
		},
		account: func(namespace, name string) (*corev1.ServiceAccount, error) {
			role, ok := w.accounts[namespace+"/"+name]
			if !ok {
				return nil, errors.New("not found")
			}
			account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID("uid-of-" + namespace + "-" + name)}}
			if role != "" {
				account.Annotations = w.annotate(role)
			}
			return account, nil
		},
	}
}

// start configures broker and kubelet, and has the kubelet register its providers. What the broker is told by its environment, it is told by the kubelet's entry, so that tests do not
// see one another's.
func (w *world) start() {
	w.Helper()
	b, err := withClouds()
	if err != nil {
		w.Fatal(err)
	}
	provider := object{"config": w.config}
	maps.Copy(provider, w.provider)
	if w.tokens != nil {
		provider["tokenAttributes"] = w.tokens
	}
	document, err := json.Marshal(object{"apiVersion": "credential-broker.io/v1alpha1", "kind": "BrokerConfig", "providers": []object{provider}})
	if err != nil {
		w.Fatal(err)
	}
	config, bin := filepath.Join(w.dir, "config.yaml"), filepath.Join(w.dir, "bin")
	w.write(config, string(document), 0o600)
	if err := os.Mkdir(bin, 0o700); err != nil {
		w.Fatal(err)
	}
	var printed struct {
		APIVersion string   `json:"apiVersion"`
		Kind       string   `json:"kind"`
		Providers  []object `json:"providers"`
	}
	if err := yaml.Unmarshal((&stage{built: b}).run(w, "kubelet-config", "--config", config), &printed); err != nil {
		w.Fatal(err)
	}
	environment := w.environment()
	for _, e := range printed.Providers {
		e["env"] = environment
		name, _ := e["name"].(string)
		script := fmt.Sprintf("#!/bin/sh\necho >>%[1]s/starts\nexec %[2]s \"$@\" 2>>%[1]s/stderr\n", w.dir, b.broker)
		w.write(filepath.Join(bin, name), script, 0o700)
	}
	entries, err := json.Marshal(printed)
	if err != nil {
		w.Fatal(err)
	}
	w.write(filepath.Join(w.dir, "kubelet.json"), string(entries), 0o600)
	w.restart()
}

// restart starts the kubelet, again if it runs: it has nothing in its cache then.
func (w *world) restart() {
	w.Helper()
	kubeletMutex.Lock()
	defer kubeletMutex.Unlock()
	var err error
	if w.node, err = startNode(filepath.Join(w.dir, "kubelet.json"), filepath.Join(w.dir, "bin"), w.identities()); err != nil {
		w.Fatalf("the kubelet refuses the entries: %v\n%s", err, w.read("kubelet.json"))
	}
}

// environment is the one of the broker, as the kubelet's entry has it. What of the tests' own could be an identity is emptied.
func (w *world) environment() []envVar {
	values := map[string]string{}
	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		upper := strings.ToUpper(name)
		if strings.HasSuffix(upper, "_PROXY") || slices.ContainsFunc([]string{"AWS_", "GCE_", "GOOGLE_", "AZURE_", "IDENTITY_", "MSI_", "IMDS_", "SPIFFE_", "VAULT_"}, func(prefix string) bool { return strings.HasPrefix(upper, prefix) }) {
			values[name] = ""
		}
	}
	for _, variable := range append(append(w.Environ(), "HOME="+filepath.Join(w.dir, "home"), "HTTP_PROXY="+w.ProxyURL(), "http_proxy="+w.ProxyURL()), w.env...) {
		name, value, _ := strings.Cut(variable, "=")
		values[name] = value
	}
	var all []envVar
	for name, value := range values {
		all = append(all, envVar{name, value})
	}
	return all
}

// lookup is what the kubelet tries for the pod's image.
func (w *world) lookup(image string, p pod) []behaviour.Value {
	w.Helper()
	kubeletMutex.Lock()
	keyring := w.node.keyring(p)
	kubeletMutex.Unlock()
	found, _ := keyring.Lookup(image)
	lookups.Add(1)
	return valuesOf(found)
}

// starts is how often the kubelet has started the broker.
func (w *world) starts() int { return strings.Count(w.read("starts"), "\n") }

func (w *world) read(name string) string {
	data, err := os.ReadFile(filepath.Join(w.dir, name))
	if err != nil && !os.IsNotExist(err) {
		w.Error(err)
	}
	return string(data)
}

// askers are who was given registry tokens.
func (w *world) askers() []string {
	var all []string
	for _, r := range w.Requests() {
		if (r.Operation == "GetAuthorizationToken" || r.Service == "acr" && r.Operation == "exchange") && r.Status == http.StatusOK {
			all = append(all, r.Principal)
		}
	}
	return all
}

// direct fails if a metadata service was asked by way of the proxy, or anybody that is not of the cloud.
func (w *world) direct() {
	w.Helper()
	for _, r := range w.Requests() {
		if r.Service == "proxy" {
			w.Errorf("the proxy was asked for %s %s", r.Host, r.Operation)
		}
	}
}

// proxied spells the address of a metadata service on loopback so that Go's rules do not exempt it from HTTP_PROXY. (To connect to the unspecified address is to connect to this machine.)
func proxied(env []string) []string {
	for i := range env {
		env[i] = strings.Replace(env[i], "127.0.0.1", "0.0.0.0", 1)
	}
	return env
}

// pull is what a row pulls, and as whom.
type pull struct {
	image string
	pod   pod
	asker string // a principal; or the beginning of one, if it ends with a slash
}

// isAsker: a session may have a name that is made up.
func isAsker(want, got string) bool {
	return got == want || strings.HasSuffix(want, "/") && strings.HasPrefix(got, want)
}

// row is one way to prove who one is.
type row struct {
	name    string
	prepare func(w *world)
	// asker is who pulls the usual image; pulls is for those that pull otherwise.
	asker string
	pulls []pull
	// causes are in the broker's standard error where it is refused.
	causes []string
}

// all are a row's pulls, where the usual image is this one.
func (r row) all(image string) []pull {
	if r.pulls != nil {
		return r.pulls
	}
	return []pull{{image, pod{}, r.asker}}
}

func asPod(asker string) []pull { return []pull{{ecrHost + "/team/app", builder, asker}} }

var (
	builder = pod{Namespace: "team-a", Name: "build-1", UID: "u1", ServiceAccount: "builder"}
	tester  = pod{Namespace: "team-b", Name: "test-1", UID: "u2", ServiceAccount: "builder"}
)

// assumed is the session of a role.
func assumed(role, session string) string {
	return strings.NewReplacer(":iam:", ":sts:", ":role/", ":assumed-role/").Replace(role) + "/" + session
}

// web trusts an issuer's tokens, unless they are to be refused.
func (w *world) web(issuer, audience, subject string) cloud.Trust {
	return cloud.Trust{Federated: issuer, Audience: audience, Subject: w.unless(subject, "somebody-else")}
}

// byWebIdentity sets the role and the source of tokens by which it is assumed.
func (w *world) byWebIdentity(source string, settings object) object {
	web := object{source: settings}
	w.config["roleARN"], w.config["webIdentity"] = ecrNode, web
	return web
}

const webRefused = "trust policy must allow sts:AssumeRoleWithWebIdentity to issuer"

// rows is the table of identities.
var rows = []row{
	{"environment", func(w *world) {
		policy := cloud.PullPolicy()
		if w.refuse {
			policy = nil
		}
		w.env = w.AddUser(ecrUser, policy...).Environ()
	}, ecrUser, nil, []string{"AccessDeniedException", `policy must allow ecr:GetAuthorizationToken on "*"`}},

	{"environment, by a web identity's file", func(w *world) {
		w.role(ecrNode, w.web(ecrCluster, awsSTS, "system:serviceaccount:kube-system:node"))
		file := w.file("token", w.issuer.Token(object{"aud": awsSTS, "sub": "system:serviceaccount:kube-system:node"}), 0o600)
		w.env = []string{"AWS_ROLE_ARN=" + ecrNode, "AWS_ROLE_SESSION_NAME=irsa", "AWS_WEB_IDENTITY_TOKEN_FILE=" + file}
	}, assumed(ecrNode, "irsa"), nil, []string{"AWS_WEB_IDENTITY_TOKEN_FILE", "AccessDenied"}},

	{"shared files", func(w *world) {
		keys := w.AddUser(ecrUser, cloud.PullPolicy()...)
		w.file(".aws/credentials", "[puller]\naws_access_key_id="+keys.AccessKeyID+"\naws_secret_access_key="+w.unless(keys.SecretAccessKey, "of another")+"\n", 0o600)
		w.config["profile"] = "puller"
	}, ecrUser, nil, []string{"InvalidSignatureException", "secret access key does not belong to the access key"}},

	{"shared files, a role with a source profile", func(w *world) {
		keys := w.AddUser(ecrUser)
		w.role(ecrNode, cloud.Trust{AWS: ecrUser, ExternalID: w.unless("x1", "x2")})
		w.file(".aws/credentials", "[base]\naws_access_key_id="+keys.AccessKeyID+"\naws_secret_access_key="+keys.SecretAccessKey+"\n", 0o600)
		w.file(".aws/config", "[profile puller]\nrole_arn="+ecrNode+"\nsource_profile=base\nexternal_id=x1\nrole_session_name=shared\n", 0o600)
		w.env = []string{"AWS_PROFILE=puller"}
	}, assumed(ecrNode, "shared"), nil, []string{`profile "puller"`, "AccessDenied"}},

	{"SSO cache", func(w *world) {
		w.role(ecrNode)
		login := w.unless(w.SSO("eu-west-1", ecrNode), "of-yesterday")
		w.file(".aws/config", "[default]\nsso_session=corp\nsso_account_id="+ecrAccount+"\nsso_role_name=node\n"+
			"[sso-session corp]\nsso_region=eu-west-1\nsso_start_url=https://corp.awsapps.com/start\n", 0o600)
		name := sha1.Sum([]byte("corp")) //nolint:gosec // as above
		w.file(".aws/sso/cache/"+hex.EncodeToString(name[:])+".json", `{"accessToken":"`+login+`","expiresAt":"`+time.Now().Add(time.Hour).UTC().Format(time.RFC3339)+`"}`, 0o600)
	}, assumed(ecrNode, "somebody@example.com"), nil, []string{"SSO (", "UnauthorizedException", "aws sso login"}},

	{"credential_process", func(w *world) {
		keys := w.AddUser(ecrUser, cloud.PullPolicy()...)
		program := w.file("signing-helper", "#!/bin/sh\n[ \"$1 $2\" = 'credential-process --certificate' ] || exit 9\n"+w.unless("", "exit 3\n")+
			`echo '{"Version":1,"AccessKeyId":"`+keys.AccessKeyID+`","SecretAccessKey":"`+keys.SecretAccessKey+`"}'`+"\n", 0o700)
		w.env = []string{"AWS_CONFIG_FILE=" + w.file("aws-config", "[profile roles-anywhere]\ncredential_process = "+program+" credential-process --certificate \"a b.pem\"\n", 0o600)}
		w.config["profile"] = "roles-anywhere"
	}, ecrUser, nil, []string{`credential_process of profile "roles-anywhere"`, "exit status 3"}},

	{"container endpoint of EKS Pod Identity", func(w *world) {
		w.role(ecrNode)
		w.env = w.Container(ecrNode).Environ()
		if w.refuse {
			w.env = append(w.env, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE="+w.file("token", "of another pod", 0o600))
		}
	}, assumed(ecrNode, ""), nil, []string{"container credentials endpoint (", "status 401"}},

	{"container endpoint of ECS", func(w *world) {
		w.role(ecrNode)
		k := w.Container(ecrNode)
		if w.env = k.EnvironToken(); w.refuse {
			w.env[1] += "x"
		}
	}, assumed(ecrNode, ""), nil, []string{"container credentials endpoint (", "status 401"}},

	{"IMDSv2", func(w *world) {
		w.role(ecrNode)
		w.env = proxied(w.Instance(w.unless(ecrNode, "")).Environ())
	}, assumed(ecrNode, ""), nil, []string{"no AWS credentials: tried environment", "instance metadata (", "status 404"}},

	{"a role", func(w *world) {
		w.user()
		w.role(ecrNode, cloud.Trust{AWS: ecrUser, ExternalID: w.unless("partner", "stranger"), Tags: true})
		w.config = object{"roleARN": ecrNode, "externalID": "partner", "sessionName": "node-7", "sessionTags": object{"team": "a"}}
	}, assumed(ecrNode, "node-7"), nil, []string{"assume " + ecrNode, "AccessDenied", "with this externalID"}},

	{"a chain of three roles", func(w *world) {
		w.user()
		first, second := "arn:aws:iam::"+ecrOther+":role/first", "arn:aws:iam::333333333333:role/second"
		w.AddRole(cloud.Role{ARN: first, Trust: []cloud.Trust{{AWS: ecrUser}}, Policy: []cloud.Statement{mayAssume}})
		w.AddRole(cloud.Role{ARN: second, Trust: []cloud.Trust{{AWS: first, ExternalID: "x2"}}, Policy: []cloud.Statement{mayAssume}})
		w.role(ecrNode, cloud.Trust{AWS: w.unless(second, first)})
		w.config = object{"via": []object{{"roleARN": first}, {"roleARN": second, "externalID": "x2"}}, "roleARN": ecrNode}
	}, assumed(ecrNode, "credential-broker"), nil, []string{"assume " + ecrNode, "AccessDenied"}},

	{"the role of the registry's account", func(w *world) {
		w.user()
		w.role(ecrNode, cloud.Trust{AWS: w.unless(ecrUser, ecrPod)})
		w.role("arn:aws:iam::"+ecrOther+":role/partner", cloud.Trust{AWS: w.unless(ecrUser, ecrPod), ExternalID: "x1"})
		w.config = object{"roleARN": ecrNode, "roles": []object{{"accounts": []string{ecrOther}, "roleARN": "arn:aws:iam::" + ecrOther + ":role/partner", "externalID": "x1"}}}
	}, "", []pull{
		{ecrHost + "/team/app", pod{}, assumed(ecrNode, "credential-broker")},
		{otherHost + "/team/app", pod{}, assumed("arn:aws:iam::"+ecrOther+":role/partner", "credential-broker")},
	}, []string{"assume " + ecrNode, "assume arn:aws:iam::" + ecrOther + ":role/partner", "AccessDenied"}},

	// The node's own identity could pull, and is not used in place of a pod's that may not.
	{"a pod's token, the role by annotation", func(w *world) {
		w.env = w.AddUser(ecrUser, cloud.PullPolicy()...).Environ()
		w.role(ecrPod, w.web(ecrCluster, awsSTS, "system:serviceaccount:team-a:builder"))
		w.tokens, w.accounts["team-a/builder"] = serviceAccountTokens("ServiceAccount"), ecrPod
	}, "", asPod(assumed(ecrPod, "team-a.builder")), []string{"assume " + ecrPod + " with the pod's service account token", webRefused, "system:serviceaccount:team-a:builder"}},

	{"a pod's token, the role by podRoleARN", func(w *world) {
		w.env = w.AddUser(ecrUser, cloud.PullPolicy()...).Environ()
		w.role(ecrPod, w.web(ecrCluster, awsSTS, "system:serviceaccount:team-a:*"))
		w.config = object{"podRoleARN": ecrPod, "podIdentity": "Require"}
		w.tokens, w.accounts["team-a/builder"] = serviceAccountTokens("Token"), ""
	}, "", asPod(assumed(ecrPod, "team-a.builder")), []string{"assume " + ecrPod + " with the pod's service account token", webRefused}},

	{"a pod without a role, which the node's identity is preferred for", func(w *world) {
		w.user()
		w.role(ecrNode, cloud.Trust{AWS: w.unless(ecrUser, ecrPod)})
		w.config = object{"roleARN": ecrNode, "podIdentity": "Prefer"}
		w.tokens, w.accounts["team-a/builder"] = serviceAccountTokens("ServiceAccount"), ""
	}, "", asPod(assumed(ecrNode, "credential-broker")), []string{"assume " + ecrNode, "AccessDenied"}},

	{"a pod whose own identity is required", func(w *world) {
		w.env = w.AddUser(ecrUser, cloud.PullPolicy()...).Environ()
		w.role(ecrPod, cloud.Trust{Federated: ecrCluster, Audience: awsSTS, Subject: "system:serviceaccount:team-a:builder"})
		w.config = object{"podIdentity": "Require"}
		w.tokens, w.accounts["team-a/builder"] = serviceAccountTokens("ServiceAccount"), w.unless(ecrPod, "")
	}, "", asPod(assumed(ecrPod, "team-a.builder")), []string{"podIdentity is Require, and the pod's service account names no role"}},

	{"a pod whose identity is not used", func(w *world) {
		w.user()
		w.role(ecrNode, cloud.Trust{AWS: w.unless(ecrUser, ecrPod)})
		w.role(ecrPod, cloud.Trust{Federated: ecrCluster, Audience: awsSTS, Subject: "*"})
		w.config = object{"roleARN": ecrNode, "podIdentity": "Off"}
		w.tokens, w.accounts["team-a/builder"] = serviceAccountTokens("ServiceAccount"), ecrPod
	}, "", asPod(assumed(ecrNode, "credential-broker")), []string{"assume " + ecrNode, "AccessDenied"}},

	{"web identity: file", func(w *world) {
		w.role(ecrNode, w.web(ecrCluster, awsSTS, "node-1"))
		w.byWebIdentity("file", object{"path": w.file("token", w.issuer.Token(object{"aud": awsSTS, "sub": "node-1"}), 0o600)})
	}, assumed(ecrNode, "credential-broker"), nil, []string{webRefused, `sub \"node-1\"`}},

	{"web identity: Google", func(w *world) {
		g := w.GoogleInstance(cloud.ServiceAccount{Email: "node@project.iam.gserviceaccount.com"})
		id := g.ServiceAccounts()[0].UniqueID
		w.role(ecrNode, cloud.Trust{Federated: cloud.GoogleIssuer, Audience: id, OriginalAudience: "ecr-pull.example.com", Subject: w.unless(id, "1")})
		w.env = proxied(g.Environ())
		w.byWebIdentity("googleMetadata", object{})["audience"] = "ecr-pull.example.com"
	}, assumed(ecrNode, "credential-broker"), nil, []string{webRefused, "accounts.google.com", "azp"}},

	{"web identity: Azure", func(w *world) {
		const app = "api://tenant/ecr-pull"
		a := w.AzureInstance(cloud.ManagedIdentity{}, cloud.ManagedIdentity{})
		a.AddApplication(cloud.Application{URI: app})
		id := a.Identities()[1]
		w.AddOIDCProvider(ecrAccount, a.Issuer(false), app)
		w.role(ecrNode, w.web(a.Issuer(false), app, id.ObjectID))
		w.env = proxied(a.Environ())
		w.byWebIdentity("azureManagedIdentity", object{"clientID": id.ClientID})["audience"] = app
	}, assumed(ecrNode, "credential-broker"), nil, []string{webRefused, "sts.windows.net", "api://tenant/ecr-pull"}},

	{"web identity: SPIFFE", func(w *world) {
		api := w.WorkloadAPI("example.org", "spiffe://example.org/other", "spiffe://example.org/node")
		w.AddOIDCProvider(ecrAccount, api.Issuer().URL(), awsSTS)
		w.role(ecrNode, w.web(api.Issuer().URL(), awsSTS, "spiffe://example.org/node"))
		w.env = api.Environ()
		w.byWebIdentity("spiffe", object{"id": "spiffe://example.org/node"})
	}, assumed(ecrNode, "credential-broker"), nil, []string{webRefused, "spiffe://example.org/node"}},

	{"web identity: executable", func(w *world) {
		w.role(ecrNode, w.web(ecrCluster, awsSTS, "node-2"))
		token := w.issuer.Token(object{"aud": awsSTS, "sub": "node-2"})
		program := w.file("print-token", "#!/bin/sh\n[ \"$1\" = print ] && [ \"$KEY\" = x ] && echo '{\"data\":{\"token\":\""+token+"\"}}'\n", 0o700)
		w.byWebIdentity("executable", object{"command": program, "args": []string{"print"}, "env": object{"KEY": "x"}, "tokenField": "data.token"})
	}, assumed(ecrNode, "credential-broker"), nil, []string{webRefused, `sub \"node-2\"`}},

	{"web identity: URL", func(w *world) {
		w.role(ecrNode, w.web(ecrCluster, awsSTS, "node-3"))
		token := w.issuer.Token(object{"aud": awsSTS, "sub": "node-3"})
		server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.Header.Get("X-Vault-Token") != "s.1" || r.URL.Path != "/v1/identity/oidc/token/node" {
				rw.WriteHeader(http.StatusForbidden)
				return
			}
			_ = json.NewEncoder(rw).Encode(object{"data": object{"token": token}})
		}))
		w.Cleanup(server.Close)
		w.byWebIdentity("url", object{"url": server.URL + "/v1/identity/oidc/token/node", "headers": object{"X-Vault-Token": "s.1"}, "tokenField": "data.token"})
	}, assumed(ecrNode, "credential-broker"), nil, []string{webRefused, `sub \"node-3\"`}},
}

// TestECRIdentities: with every identity, the kubelet's keyring has for the image exactly the credential with which it is pulled, and for images elsewhere none.
func TestECRIdentities(t *testing.T) {
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			r.prepare(w)
			w.start()
			w.ForgetRequests()
			pulls := r.all(ecrHost + "/team/app")
			seen := map[string]bool{}
			for i, p := range pulls {
				found := w.lookup(p.image, p.pod)
				if len(found) != 1 {
					t.Fatalf("%s: the kubelet has %d credentials\n%s", p.image, len(found), w.read("stderr"))
				}
				if err := w.Pull(p.image, found[0].Username, found[0].Password); err != nil {
					t.Errorf("pull %s: %v", p.image, err)
				}
				if seen[found[0].Password] {
					t.Errorf("%s: another identity's credential", p.image)
				}
				seen[found[0].Password] = true
				askers := w.askers()
				if len(askers) != i+1 || !isAsker(p.asker, askers[i]) {
					t.Errorf("%q have been given tokens, the last one should be %s", askers, p.asker)
				}
				// The whole registry is served from the kubelet's cache from now on.
				before := w.starts()
				host, _, _ := strings.Cut(p.image, "/")
				if again := w.lookup(host+"/team/other", p.pod); len(again) != 1 || again[0] != found[0] || w.starts() != before {
					t.Errorf("another image of %s: %d credentials after %d starts of the broker", host, len(again), w.starts()-before)
				}
			}
			for _, elsewhere := range []string{"registry.example/team/app", ecrHost + ".example/team/app"} {
				before := w.starts()
				if found := w.lookup(elsewhere, pulls[0].pod); len(found) != 0 || w.starts() != before+1 {
					t.Errorf("%s: the kubelet has %d credentials after %d starts of the broker", elsewhere, len(found), w.starts()-before)
				}
			}
			if before := w.starts(); len(w.lookup("elsewhere.example/team/app", pulls[0].pod)) != 0 || w.starts() != before {
				t.Error("credentials for a registry that is not even in matchImages")
			}
			w.direct()
		})
	}
}

// TestECRIdentitiesRefused is the same where whoever asks is not trusted: there is no credential, whatever else the node could have asked with, and the broker says why.
func TestECRIdentitiesRefused(t *testing.T) {
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.refuse = true
			r.prepare(w)
			w.start()
			pulls := r.all(ecrHost + "/team/app")
			for _, p := range pulls {
				if found := w.lookup(p.image, p.pod); len(found) != 0 {
					t.Errorf("%s: the kubelet has %d credentials", p.image, len(found))
				}
			}
			if w.starts() != len(pulls) {
				t.Errorf("the broker was started %d times", w.starts())
			}
			if given := w.askers(); len(given) != 0 {
				t.Errorf("%q were given tokens", given)
			}
			stderr := w.read("stderr")
			for _, cause := range r.causes {
				if !strings.Contains(stderr, cause) {
					t.Errorf("the broker does not say %q", cause)
				}
			}
			if t.Failed() {
				t.Log(stderr)
			}
			w.direct()
		})
	}
}

// TestECRPublic: whoever may has a token, and everybody else pulls anonymously, which is an answer that the kubelet keeps.
func TestECRPublic(t *testing.T) {
	const image = "public.ecr.aws/team/app"
	for _, c := range []struct {
		name, public, said string
		policy             []cloud.Statement
		credentials, kept  bool
	}{
		{"allowed", "anonymousFallback", "outcome=credentials", cloud.PublicPolicy(), true, true},
		{"denied", "anonymousFallback", "images are pulled anonymously", cloud.PullPolicy(), false, true},
		{"denied where it is required", "required", "ecr-public:GetAuthorizationToken and sts:GetServiceBearerToken", cloud.PullPolicy(), false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.env, w.config = w.AddUser(ecrUser, c.policy...).Environ(), object{"public": c.public}
			w.start()
			for range 2 {
				found := w.lookup(image, pod{})
				if (len(found) == 1) != c.credentials {
					t.Fatalf("the kubelet has %d credentials\n%s", len(found), w.read("stderr"))
				}
				for _, v := range found {
					if err := w.Pull(image, v.Username, v.Password); err != nil {
						t.Error(err)
					}
				}
			}
			if (w.starts() == 1) != c.kept || !strings.Contains(w.read("stderr"), c.said) {
				t.Errorf("%d starts of the broker, want %q said\n%s", w.starts(), c.said, w.read("stderr"))
			}
			if err := w.Pull(image, "", ""); err != nil {
				t.Errorf("anonymously: %v", err)
			}
		})
	}
}

// TestECRPodsAreKeptApart: with the kubelet's cache on and many pods at once, each has the credential of its own service account, which opens no other's images.
func TestECRPodsAreKeptApart(t *testing.T) {
	for _, cacheType := range []string{"ServiceAccount", "Token"} {
		t.Run(cacheType, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.tokens = serviceAccountTokens(cacheType)
			w.env = w.AddUser(ecrUser, only("node")...).Environ()
			w.AddRegistry(ecrHost, cloud.Repository{Name: "node"}, cloud.Repository{Name: "team-a"}, cloud.Repository{Name: "team-b"}, cloud.Repository{Name: "common"})
			common := "arn:aws:iam::" + ecrAccount + ":role/common"
			for role, subject := range map[string]string{"team-a": "system:serviceaccount:team-a:builder", "team-b": "system:serviceaccount:team-b:builder", "common": "system:serviceaccount:team-?:tester"} {
				w.AddRole(cloud.Role{ARN: "arn:aws:iam::" + ecrAccount + ":role/" + role, Trust: []cloud.Trust{{Federated: ecrCluster, Audience: awsSTS, Subject: subject}}, Policy: only(role)})
			}
			w.accounts = map[string]string{
				"team-a/builder": "arn:aws:iam::" + ecrAccount + ":role/team-a", "team-b/builder": "arn:aws:iam::" + ecrAccount + ":role/team-b",
				"team-a/tester": common, "team-b/tester": common, "team-a/plain": "", "team-b/thief": "arn:aws:iam::" + ecrAccount + ":role/team-a",
			}
			w.start()
			w.keptApart(ecrHost)
			for _, asker := range w.askers() {
				if name := asker[strings.LastIndex(asker, "/")+1:]; !strings.HasPrefix(name, "team-") && asker != ecrUser {
					t.Errorf("the session of %s does not name its service account", asker)
				}
			}
		})
	}
}

// apart are pods that pull at the same time.
var apart = []struct {
	pod        pod
	repository string // the one that it can pull from
	account    string // pods of one may share; empty: it has no credential
}{
	{builder, "team-a", "team-a.builder"},
	{pod{Namespace: "team-a", Name: "build-2", UID: "u3", ServiceAccount: "builder"}, "team-a", "team-a.builder"},
	{tester, "team-b", "team-b.builder"},
	{pod{Namespace: "team-a", Name: "t-1", UID: "u4", ServiceAccount: "tester"}, "common", "team-a.tester"},
	{pod{Namespace: "team-b", Name: "t-1", UID: "u5", ServiceAccount: "tester"}, "common", "team-b.tester"},
	{pod{Namespace: "team-a", Name: "p-1", UID: "u6", ServiceAccount: "plain"}, "node", "node"},
	{pod{Namespace: "team-b", Name: "thief-1", UID: "u7", ServiceAccount: "thief"}, "team-a", ""},
}

var apartFrom = []string{"node", "team-a", "team-b", "common"}

// keptApart has them pull from a registry, again and again.
func (w *world) keptApart(host string) {
	w.Helper()
	owner := map[string]string{} // of each password
	for round := range 3 {
		got := make([][]behaviour.Value, len(apart))
		before := w.starts()
		var all sync.WaitGroup
		for i, p := range apart {
			all.Go(func() { got[i] = w.lookup(host+"/"+p.repository+"/app", p.pod) })
		}
		all.Wait()
		if round > 0 && w.starts() != before+1 { // for the one that is refused
			w.Errorf("round %d: the broker is started %d times, though the kubelet has the credentials", round, w.starts()-before)
		}
		for i, p := range apart {
			if p.account == "" {
				if len(got[i]) > 0 {
					w.Errorf("%+v has %d credentials", p.pod, len(got[i]))
				}
				continue
			}
			if len(got[i]) != 1 {
				w.Fatalf("%+v has %d credentials\n%s", p.pod, len(got[i]), w.read("stderr"))
			}
			login := got[i][0]
			if was, known := owner[login.Password]; known && was != p.account {
				w.Errorf("%+v has the credential of %s", p.pod, was)
			}
			owner[login.Password] = p.account
			for _, repository := range apartFrom {
				if err := w.Pull(host+"/"+repository, login.Username, login.Password); (err == nil) != (repository == p.repository) {
					w.Errorf("%+v pulls from %s: %v", p.pod, repository, err)
				}
			}
		}
	}
	if len(owner) > len(apart)-1 {
		w.Errorf("%d credentials for %d pods", len(owner), len(apart)-1)
	}
}

// only is a policy for pulling from one repository.
func only(repository string) []cloud.Statement {
	pull := cloud.PullPolicy()[0]
	return []cloud.Statement{
		{Actions: []string{"ecr:GetAuthorizationToken"}},
		{Actions: pull.Actions[1:], Resources: []string{"arn:aws:ecr:eu-west-1:" + ecrAccount + ":repository/" + repository}},
	}
}
