//go:build linux

package faults

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/test/cloud"
)

const (
	garHost    = "europe-west1-docker.pkg.dev"
	garProject = "my-project"
	garImage   = garHost + "/" + garProject + "/repo/app"
	garNode    = "node@my-project.iam.gserviceaccount.com"
	garPuller  = "puller@my-project.iam.gserviceaccount.com"
	garHuman   = "somebody@example.com"
)

var (
	garCluster = cloud.GKECluster{Project: garProject, ProjectNumber: "210987654321", Location: "europe-west1", Name: "cluster-1"}
	garPool    = cloud.WorkloadProvider{ProjectNumber: "123456789012", Pool: "pool", Provider: "provider", Issuer: ecrCluster}
	garAWS     = cloud.WorkloadProvider{ProjectNumber: "123456789012", Pool: "aws", Provider: "provider", AWSAccount: ecrAccount}
)

// google is a region of Google's: its canaries are the real secrets of requests there.
type google struct {
	*region
	annotations object
}

func newGoogle(t *testing.T) *google {
	g := &google{region: newRegion(t)}
	g.aws.AddGoogleRegistry(garHost, garProject, "repo")
	g.aws.AddServiceAccount(cloud.ServiceAccount{Email: garNode})
	g.aws.AddServiceAccount(cloud.ServiceAccount{Email: garPuller})
	g.aws.AddIssuer(ecrCluster)
	g.aws.AddWorkloadPool(garPool)
	g.aws.AddWorkloadPool(garAWS)
	g.aws.AddGKECluster(garCluster)
	for _, reader := range []string{garNode, garPuller, garHuman, garPool.PrincipalSet(), garAWS.PrincipalSet(), garCluster.Principal("team-a", "builder")} {
		g.aws.GrantReader(garProject, reader)
	}
	return g
}

func (g *google) request() string {
	q := object{"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderRequest", "image": garImage}
	if g.token != "" {
		q["serviceAccountToken"], q["serviceAccountAnnotations"] = g.token, g.annotations
	}
	return string(must(json.Marshal(q)))
}

func (g *google) provider(name string) object {
	p := object{
		"name": name, "backend": "gar", "matchImages": []string{garHost}, "timeout": "40s", "inheritEnv": []string{"GOOGLE_*", "GCE_*", "AWS_*"}, "config": g.settings, "env": g.environment(),
	}
	if g.token != "" {
		p["tokenAttributes"] = object{
			"serviceAccountTokenAudience": garCluster.Pool(), "cacheType": "Token", "requireServiceAccount": false,
			"optionalServiceAccountAnnotationKeys": []string{"iam.gke.io/enable-wi-image-pull", "iam.gke.io/gcp-service-account"},
		}
	}
	return p
}

// key is a service account's key file.
func (g *google) key(email string) []byte {
	content := g.aws.ServiceAccountKeyFile(email)
	var file struct {
		Key string `json:"private_key"`
	}
	if err := json.Unmarshal(content, &file); err != nil {
		g.Fatal(err)
	}
	g.privateKey(file.Key)
	return content
}

// user is what gcloud leaves of a user's login.
func (g *google) user() []byte {
	content := g.aws.AddGoogleUser(garHuman)
	var file struct {
		Secret string `json:"client_secret"`
		Token  string `json:"refresh_token"`
	}
	if err := json.Unmarshal(content, &file); err != nil {
		g.Fatal(err)
	}
	g.secret("client secret", file.Secret)
	g.secret("refresh token", file.Token)
	return content
}

func (g *google) file(content []byte) {
	g.settings["credentialsFile"] = g.write("adc.json", string(content), 0o600)
}

func (g *google) outside() string {
	return g.jwt("subject token", g.aws.AddIssuer(ecrCluster), "https:"+garPool.Audience())
}

// external is a file for a pool.
func (g *google) external(source object) {
	g.file(must(json.Marshal(object{
		"type": "external_account", "audience": garPool.Audience(), "subject_token_type": "urn:ietf:params:oauth:token-type:jwt", "token_url": "https://sts.googleapis.com/v1/token", "credential_source": source,
	})))
}

func (g *google) webIdentity(source string, settings object) {
	g.settings["workloadIdentityProvider"] = strings.TrimPrefix(garPool.Audience(), "//iam.googleapis.com/")
	g.settings["webIdentity"] = object{"audience": "https:" + garPool.Audience(), source: settings}
}

// machine is an instance, whose access token for a scope is looked for: it goes on giving out the same one.
func (g *google) machine(scopes string) {
	i := g.aws.GoogleInstance(cloud.ServiceAccount{Email: garNode})
	g.env = append(g.env, i.Environ()...)
	q := must(http.NewRequest(http.MethodGet, i.URL()+"/computeMetadata/v1/instance/service-accounts/default/token?scopes="+scopes, nil))
	q.Header.Set("Metadata-Flavor", "Google")
	response, err := http.DefaultClient.Do(q)
	if err != nil {
		g.Fatal(err)
	}
	defer response.Body.Close()
	var answer struct {
		Token string `json:"access_token"`
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		g.Fatal(err)
	}
	g.secret("machine's access token", answer.Token)
}

const scopeAll = "https://www.googleapis.com/auth/cloud-platform"

func (g *google) gkePod(email string) {
	g.annotations = object{"iam.gke.io/enable-wi-image-pull": "true"}
	if email != "" {
		g.annotations["iam.gke.io/gcp-service-account"] = email
		g.aws.AllowImpersonation(garCluster.Principal("team-a", "builder"), email)
	}
	g.token = g.jwt("subject token", g.aws.AddGKECluster(garCluster), garCluster.Pool())
}

func (g *google) awsKeys() {
	keys := g.aws.Session(ecrRole, "node", time.Hour)
	g.secret("secret access key", keys.SecretAccessKey)
	g.secret("session token", keys.SessionToken)
	g.env = append(append(g.env, keys.Environ()...), "AWS_REGION=eu-west-1")
	g.settings["aws"], g.settings["workloadIdentityProvider"] = true, strings.TrimPrefix(garAWS.Audience(), "//iam.googleapis.com/")
}

// executable is an external account's program, that prints what it knows on standard error, and the token on standard output.
func (g *google) executable(end string) {
	token := g.outside()
	answer := string(must(json.Marshal(object{
		"version": 1, "success": true, "token_type": "urn:ietf:params:oauth:token-type:jwt", "id_token": token, "expiration_time": time.Now().Add(time.Hour).Unix(),
	})))
	g.external(object{"executable": object{"command": g.printing("Authorization: Bearer "+token, answer, end), "timeout_millis": 30000}})
}

// issuing is a server that gives the token to whoever knows a secret.
func (g *google) issuing(status int) {
	token, key := g.outside(), g.secret("header", "s."+g.core("header"))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.Header.Get("X-Vault-Token") != key {
			status = http.StatusForbidden
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, `{"token":"`+token+`"}`)
	}))
	g.Cleanup(server.Close)
	g.external(object{"url": server.URL, "headers": object{"X-Vault-Token": key}, "format": object{"type": "json", "subject_token_field_name": "token"}})
}

// garIdentity is a way to ask Google, with all the secrets that it takes.
type garIdentity struct {
	name    string
	prepare func(g *google)
	// asks are the services that are asked.
	asks []string
	// fails is in the log of an identity that comes to nothing.
	fails string
}

var garIdentities = []garIdentity{
	{"a key file", func(g *google) { g.file(g.key(garPuller)) }, []string{"oauth"}, ""},
	{"a key file of the environment", func(g *google) {
		g.env = append(g.env, "GOOGLE_APPLICATION_CREDENTIALS="+g.write("key.json", string(g.key(garPuller)), 0o600))
	}, []string{"oauth"}, ""},
	{"a key file cut short", func(g *google) { content := g.key(garPuller); g.file(content[:len(content)-40]) }, nil, "is not JSON"},
	{"a key that is none", func(g *google) {
		g.file([]byte(strings.Replace(string(g.key(garPuller)), "-----BEGIN PRIVATE KEY-----", "-----BEGIN-----", 1)))
	}, nil, "its key is none"},
	{"a key that is deleted", func(g *google) { g.file(g.key(garPuller)); g.aws.DeleteServiceAccountKeys(garPuller) }, nil, "invalid_grant"},
	{"a user's login", func(g *google) { g.file(g.user()) }, []string{"oauth"}, ""},
	{"a file that impersonates", func(g *google) {
		g.aws.AllowImpersonation(garHuman, garPuller)
		g.file(must(json.Marshal(object{
			"type": "impersonated_service_account", "source_credentials": json.RawMessage(g.user()),
			"service_account_impersonation_url": "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/" + garPuller + ":generateAccessToken",
		})))
	}, []string{"oauth", "iam"}, ""},
	{"the machine", func(g *google) {
		g.machine(scopeAll + ".read-only,https://www.googleapis.com/auth/devstorage.read_only")
	}, []string{"metadata"}, ""},
	{"an account that the machine impersonates", func(g *google) {
		g.machine(scopeAll)
		g.aws.AllowImpersonation(garNode, garPuller)
		g.settings["impersonate"] = garPuller
	}, []string{"metadata", "iam"}, ""},
	{"an account that a key impersonates", func(g *google) {
		g.file(g.key(garNode))
		g.aws.AllowImpersonation(garNode, garPuller)
		g.settings["impersonate"] = garPuller
	}, []string{"oauth", "iam"}, ""},
	{"an external account's file", func(g *google) { g.external(object{"file": g.write("token", g.outside(), 0o600)}) }, []string{"sts"}, ""},
	{"an external account's file with more in it", func(g *google) {
		g.external(object{"file": g.write("token", `{"token":"`+g.outside()+`"}`, 0o600)})
	}, nil, "provider failed"},
	{"an external account's URL", func(g *google) { g.issuing(http.StatusOK) }, []string{"sts"}, ""},
	{"an external account's URL that refuses", func(g *google) { g.issuing(http.StatusForbidden) }, nil, "provider failed"},
	{"an external account's program", func(g *google) { g.executable("") }, []string{"sts"}, ""},
	{"an external account's program that fails", func(g *google) { g.executable("exit 3") }, nil, "exit status 3"},
	{"a web identity's file", func(g *google) {
		g.webIdentity("file", object{"path": g.write("token", g.outside(), 0o600)})
	}, []string{"sts"}, ""},
	{"AWS", func(g *google) { g.awsKeys() }, []string{"sts"}, ""},
	{"a pod", func(g *google) { g.gkePod("") }, []string{"sts"}, ""},
	{"a pod as a service account", func(g *google) { g.gkePod(garPuller) }, []string{"sts", "iam"}, ""},
}

// planted is an access token that is in an answer which nobody is to take for one.
func (g *google) planted() string {
	return g.secret("planted access token", "ya29.c."+strings.Repeat(g.core("access"), 6))
}

// garMishaps are what happens on the way, by the answer's status and body; ALL stands for every secret of the identity, and TOKEN for a planted one.
var garMishaps = []struct {
	name   string
	status int
	body   string
	brief  bool // the provider's time ends it
	hang   bool
}{
	{name: "a refusal that tells all", status: 400, body: `{"error":ALL,"error_description":ALL}`},
	{name: "a refusal that tells all in another form", status: 403, body: `{"error":{"code":403,"status":ALL,"message":ALL,"details":[{"reason":ALL}]}}`},
	{name: "a breakdown that tells all", status: 500, body: `ALL`, brief: true},
	{name: "a redirection that tells all", status: 307, body: `ALL`},
	{name: "no answer", hang: true, brief: true},
	{name: "an answer cut short", status: 200, body: `{"access_token":TOKEN,"accessToken":TOKEN,"expires_in":3599`},
	{name: "an answer of another type", status: 200, body: `{"access_token":[TOKEN],"accessToken":[TOKEN],"expires_in":3599}`},
	{name: "an answer with an expiry that is none", status: 200, body: `{"access_token":TOKEN,"accessToken":TOKEN,"expires_in":TOKEN,"expireTime":TOKEN}`},
	{name: "an answer that has ended", status: 200, body: `{"access_token":TOKEN,"accessToken":TOKEN,"expires_in":-1,"expireTime":"2001-01-01T00:00:00Z","token_type":"Bearer"}`},
}

// TestNoSecretOfGooglesIsTold: whatever identity asks and whatever happens to it, what is secret is in the response and nowhere else, even at the level debug.
func TestNoSecretOfGooglesIsTold(t *testing.T) {
	for i, identity := range garIdentities {
		t.Run(identity.name+"/all goes as it should", func(t *testing.T) {
			t.Parallel()
			g := newGoogle(t)
			identity.prepare(g)
			o := g.run(command{args: []string{"--config", g.configuration("debug", []string{"text", "json"}[i%2], g.provider("gar"))}, stdin: g.request(), env: g.env})
			log := identity.fails
			if log != "" {
				g.failed(o)
				g.clean(o, false)
			} else {
				log = "cacheKeyType"
				login := g.answered(o).Auth[garHost]
				if err := g.aws.Pull(garImage, login.Username, login.Password); err != nil {
					t.Errorf("pull: %v", err)
				}
				g.secret("access token", login.Password)
				g.clean(o, true)
				if len(g.found(o.stdout)) == 0 {
					t.Error("even in the response no secret is seen: this test does not see")
				}
			}
			if file := contents(g.dir)[g.logFile]; !strings.Contains(file, log) || !strings.Contains(o.stderr, log) {
				t.Errorf("the log lacks %q, which is no secret:\n%s", log, o.stderr)
			}
		})
		for j, service := range identity.asks {
			for k, m := range garMishaps {
				t.Run(identity.name+"/"+service+": "+m.name, func(t *testing.T) {
					t.Parallel()
					g := newGoogle(t)
					identity.prepare(g)
					body := strings.NewReplacer("ALL", string(must(json.Marshal(g.all()))), "TOKEN", string(must(json.Marshal(g.planted())))).Replace(m.body)
					g.aws.Fail(cloud.Fault{Service: "google-" + service, Status: m.status, Body: body, Hang: m.hang})
					p := g.provider("gar")
					if m.brief {
						p["timeout"] = short.String()
					}
					o := g.run(command{args: []string{"--config", g.configuration("debug", []string{"text", "json"}[(i+j+k)%2], p)}, stdin: g.request(), env: g.env})
					g.failed(o)
					g.clean(o, false)
					const log = "provider failed"
					if file := contents(g.dir)[g.logFile]; !strings.Contains(file, log) || !strings.Contains(o.stderr, log) {
						t.Errorf("the log lacks %q, which is no secret:\n%s", log, o.stderr)
					}
				})
			}
		}
	}
}

// checked is a command that checks the machine's identity, whose token the backend hands to gar-check.
func (g *google) checked() command {
	g.machine(scopeAll + ".read-only,https://www.googleapis.com/auth/devstorage.read_only")
	return command{args: []string{"get", "--no-agent", "--config", g.configuration("debug", "text", g.provider("gar")), garImage}, env: g.env}
}

// TestNoSecretOfGooglesIsToldByACheck is the same for what is shown to people, by a program of its own that asks another API.
func TestNoSecretOfGooglesIsToldByACheck(t *testing.T) {
	for name, fault := range map[string]cloud.Fault{
		"all goes as it should":             {},
		"a refusal that tells all":          {Status: 403, Body: `{"error":{"code":403,"status":ALL,"message":ALL,"details":[{"reason":ALL}]}}`},
		"a breakdown that tells all":        {Status: 500, Body: "ALL"},
		"a redirection that tells all":      {Status: 307, Body: "ALL"},
		"an answer of another type":         {Status: 200, Body: `{"permissions":ALL,"format":ALL}`},
		"an answer with more than is asked": {Status: 200, Body: `{"permissions":[ALL],"format":ALL,"mode":ALL}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGoogle(t)
			c := g.checked()
			if fault.Status != 0 {
				fault.Service, fault.Body = "google-artifacts", strings.ReplaceAll(fault.Body, "ALL", string(must(json.Marshal(g.words["machine's access token"]))))
				g.aws.Fail(fault)
			}
			o := g.run(c)
			g.clean(o, false)
			if !slices.ContainsFunc(g.aws.Requests(), func(q cloud.Request) bool { return q.Service == "google-artifacts" }) || !strings.Contains(o.stdout, "CHECK") {
				t.Errorf("nothing was checked:\n%s\n%s", o.stdout, o.stderr)
			}
		})
	}
}

// TestNoSecretOfGooglesIsInWhatOtherProcessesCanSeeOfACheck looks at gar-check while it holds the token.
func TestNoSecretOfGooglesIsInWhatOtherProcessesCanSeeOfACheck(t *testing.T) {
	t.Parallel()
	g := newGoogle(t)
	cmd := g.command(g.checked())
	g.aws.Fail(cloud.Fault{Service: "google-artifacts", Hang: true})
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()
	asked := func(q cloud.Request) bool { return q.Service == "google-artifacts" }
	if !until(grace, func() bool { return slices.ContainsFunc(g.aws.Requests(), asked) }) {
		t.Fatalf("nothing is checked: %+v", g.aws.Requests())
	}
	programs := 0
	for what, text := range g.running(cmd.Process.Pid) {
		if strings.HasPrefix(what, "environ (gar-check)") {
			programs++
		}
		if seen := g.found(text); len(seen) > 0 {
			t.Errorf("%s shows %v", what, seen)
		}
	}
	if programs != 1 {
		t.Errorf("gar-check was looked at %d times, want once: does this test see?", programs)
	}
}

// hanging starts a broker whose backends hang with all their secrets in memory: by a key file, by a pod's token, by AWS keys of the environment, and by a program that does not end.
func (g *google) hanging(before string) *exec.Cmd {
	g.Helper()
	g.aws.Fail(cloud.Fault{Service: "google-oauth", Hang: true})
	g.aws.Fail(cloud.Fault{Service: "google-sts", Hang: true})
	g.gkePod("")
	byToken := g.with(g.provider("by-token"), object{"inheritEnv": []string{}})
	proxy := g.settings["proxy"]
	settings := func(more object) object { return g.with(object{"proxy": proxy, "podIdentity": "Off"}, more) }
	byKey := g.with(g.provider("by-key"), object{"inheritEnv": []string{}, "config": settings(object{"credentialsFile": g.write("key.json", string(g.key(garPuller)), 0o600)})})
	g.settings = object{}
	g.awsKeys()
	byAWS := g.with(g.provider("by-aws"), object{"config": settings(g.settings)})
	g.external(object{"executable": object{"command": g.program("sleep 600; :"), "timeout_millis": 50000}})
	byProgram := g.with(g.provider("by-program"), object{"inheritEnv": []string{}, "config": settings(object{"credentialsFile": g.settings["credentialsFile"]})})
	return g.command(command{args: []string{"--config", g.configuration("debug", "text", byToken, byKey, byAWS, byProgram)}, stdin: g.request(), env: g.env, before: before})
}

func (g *google) untilAllHang(cmd *exec.Cmd) {
	g.Helper()
	if !until(grace, func() bool {
		asked := 0
		for _, q := range g.aws.Requests() {
			if q.Operation == "token" || q.Operation == "jwt-bearer" {
				asked++
			}
		}
		// Four backends, a guardian, its script and what that runs.
		return asked >= 3 && len(below(cmd.Process.Pid)) >= 7
	}) {
		g.Fatalf("only %v run; %+v", below(cmd.Process.Pid), g.aws.Requests())
	}
}

// TestNoSecretOfGooglesIsInWhatOtherProcessesCanSee looks at arguments, environments and descriptors while every backend holds its secrets.
func TestNoSecretOfGooglesIsInWhatOtherProcessesCanSee(t *testing.T) {
	t.Parallel()
	g := newGoogle(t)
	g.isSeenByNobody(g.hanging(""), g.untilAllHang, func(seen []string, text string) bool {
		return holds(seen, "secret access key", "session token") && strings.Contains(text, "AWS_ACCESS_KEY_ID=")
	})
}

// TestNoSecretOfGooglesIsToldByADeath: backends that are ended while they hold their secrets tell none.
func TestNoSecretOfGooglesIsToldByADeath(t *testing.T) {
	for _, sig := range deaths {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			g := newGoogle(t)
			g.dies(sig, g.hanging("ulimit -c unlimited"), g.untilAllHang, "by-key")
		})
	}
}

// TestSecretsOfGooglesAreSeen shows that each secret would be found; TestSecretsOfECRAreSeen shows it for each place.
func TestSecretsOfGooglesAreSeen(t *testing.T) {
	for _, identity := range garIdentities {
		g := newGoogle(t)
		identity.prepare(g)
		_ = g.planted()
		if len(g.words) < 3 {
			t.Errorf("%s: only %d secrets", identity.name, len(g.words))
		}
		g.seen(identity.name, "oauth2accesstoken", garPuller+garPool.Audience()+garCluster.Audience()+ecrCluster+ecrSubject+garImage)
	}
}
