//go:build linux

package faults

import (
	"cmp"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // see sso
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/test/cloud"
)

const (
	ecrAccount = "111111111111"
	ecrHost    = ecrAccount + ".dkr.ecr.eu-west-1.amazonaws.com"
	ecrImage   = ecrHost + "/team/app"
	ecrRole    = "arn:aws:iam::" + ecrAccount + ":role/puller"
	ecrCluster = "https://oidc.eks.eu-west-1.amazonaws.com/id/ABC"
	ecrSubject = "system:serviceaccount:team-a:builder"
)

// region is an aviary in a cloud: its canaries are the real secrets of requests to AWS.
type region struct {
	*aviary
	aws *cloud.Cloud
	// settings are the ECR provider's, env the broker's environment and token the pod's.
	settings object
	env      []string
	token    string
	// words are the secrets by name, whole.
	words map[string]string
}

func newRegion(t *testing.T) *region {
	a := newAviary(t)
	a.cores = map[string]string{} // the aviary's own are not at hand here
	r := &region{aviary: a, aws: cloud.New(t), words: map[string]string{}}
	r.aws.AddRegistry(ecrHost, cloud.Repository{Name: "team/app"})
	r.aws.AddOIDCProvider(ecrAccount, ecrCluster, "sts.amazonaws.com")
	r.aws.AddRole(cloud.Role{ARN: ecrRole, Trust: []cloud.Trust{{Federated: ecrCluster, Audience: "sts.amazonaws.com", Subject: ecrSubject}}, Policy: cloud.PullPolicy()})
	// Beside what the identity needs: a proxy that wants a password.
	user := "node:" + r.secret("proxy password", "pr0xy-"+r.core("proxy")) + "@"
	r.settings = object{"proxy": strings.Replace(r.aws.ProxyURL(), "://", "://"+user, 1)}
	r.env = r.aws.Environ()
	return r
}

func (r *region) core(name string) string {
	return "c4n4ry" + name + strings.NewReplacer("FAULTS_MARK=", "", "-", "x").Replace(r.mark) + "Zq7"
}

// secret has text looked for: by pieces, so that one that was cut is seen as well.
func (r *region) secret(name, text string) string {
	const piece = 24
	r.words[name] = text
	for i, from := range []int{0, (len(text) - piece) / 2, len(text) - piece} {
		if from = max(from, 0); len(text) < 8 {
			r.Fatalf("the %s is too short to be found", name)
		}
		r.cores[fmt.Sprintf("%s (%d)", name, i)] = text[from:min(len(text), from+piece)]
	}
	return text
}

// jwt has a token of an issuer looked for: by its claims, of which messages may tell the issuer, the subject and the audience, and by its signature.
func (r *region) jwt(name string, from *cloud.Issuer, audience string) string {
	token := from.Token(object{
		"aud": []string{audience}, "sub": ecrSubject, "jti": r.core("jti of the " + name),
		"kubernetes.io": object{"namespace": "team-a", "serviceaccount": object{"name": "builder"}},
	})
	parts := strings.Split(token, ".")
	r.secret(name+"'s claims", parts[1])
	r.secret(name+"'s signature", parts[2])
	r.cores[name+"'s jti"] = r.core("jti of the " + name)
	r.words[name] = token
	return token
}

// eksToken is one that the role takes.
func (r *region) eksToken(name string) string {
	return r.jwt(name, r.aws.AddIssuer(ecrCluster), "sts.amazonaws.com")
}

// privateKey has an RSA key in PEM (PKCS #8) looked for line by line, and as Go prints it.
func (r *region) privateKey(text string) {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for i, line := range lines[2 : len(lines)-2] { // the first line says only what kind of key it is
		r.secret(fmt.Sprintf("private key's line %d", i), line)
	}
	block, _ := pem.Decode([]byte(text))
	private := must(x509.ParsePKCS8PrivateKey(block.Bytes)).(*rsa.PrivateKey)
	r.secret("private exponent", private.D.String())
	r.secret("prime", private.Primes[0].String())
}

// all is every secret in one text.
func (r *region) all() string {
	var all []string
	for _, word := range r.words {
		all = append(all, word)
	}
	slices.Sort(all)
	return strings.Join(all, " / ") // with that, it is no code that a message might repeat
}

func (r *region) program(script string) string {
	syscall.ForkLock.RLock() // what another test has started meanwhile would have it open for writing
	defer syscall.ForkLock.RUnlock()
	return r.write("helper", "#!/bin/sh\n"+script+"\n", 0o700)
}

// run asks for the image as the kubelet does.
func (r *region) ask(config string) outcome {
	r.Helper()
	return r.run(command{args: []string{"--config", config}, stdin: r.request(), env: r.env})
}

func (r *region) request() string {
	q := object{"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderRequest", "image": ecrImage}
	if r.token != "" {
		q["serviceAccountToken"], q["serviceAccountAnnotations"] = r.token, object{"eks.amazonaws.com/ecr-role-arn": ecrRole}
	}
	return string(must(json.Marshal(q)))
}

func (r *region) provider(name string) object {
	p := object{
		"name": name, "backend": "ecr", "matchImages": []string{ecrHost}, "timeout": "40s", "inheritEnv": []string{"AWS_*"}, "config": r.settings, "env": r.environment(),
	}
	if r.token != "" {
		p["tokenAttributes"] = object{
			"serviceAccountTokenAudience": "sts.amazonaws.com", "cacheType": "ServiceAccount", "requireServiceAccount": false,
			"optionalServiceAccountAnnotationKeys": []string{"eks.amazonaws.com/ecr-role-arn"},
		}
	}
	return p
}

// identity is a way to ask AWS, with all the secrets that it takes.
type ecrIdentity struct {
	name    string
	prepare func(r *region)
	sts     bool // STS is asked
	// fails is in the log of an identity that comes to nothing.
	fails string
}

// webIdentity has a role assumed with a token from that source.
func (r *region) webIdentity(source string, settings object) {
	r.settings["roleARN"], r.settings["webIdentity"] = ecrRole, object{source: settings}
}

// issuing is a server that gives the token to whoever knows a secret.
func (r *region) issuing(status int) {
	token, key := r.eksToken("web identity token"), r.secret("header", "s."+r.core("header"))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.Header.Get("X-Vault-Token") != key {
			status = http.StatusForbidden
		}
		w.Header().Set("X-Trace", r.all())
		w.WriteHeader(status)
		_, _ = io.WriteString(w, `{"data":{"token":"`+token+`"}}`)
	}))
	r.Cleanup(server.Close)
	r.webIdentity("url", object{"url": server.URL + "/token", "headers": object{"X-Vault-Token": key}, "tokenField": "data.token"})
}

// printing is a program that prints what it knows on standard error, and the answer on standard output.
func (r *region) printing(says, answer, end string) string {
	return r.program("echo '" + says + "' >&2\necho '" + answer + "'\n" + end)
}

func (r *region) keysPrinted() string {
	r.settings["profile"] = "helped"
	keys := r.aws.Session(ecrRole, "helped", time.Hour)
	return string(must(json.Marshal(object{
		"Version": 1, "AccessKeyId": keys.AccessKeyID, "SecretAccessKey": r.secret("secret access key", keys.SecretAccessKey), "SessionToken": r.secret("session token", keys.SessionToken),
	})))
}

func (r *region) profile(program string) {
	r.env = append(r.env, "AWS_CONFIG_FILE="+r.write("aws-config", "[profile helped]\ncredential_process = "+program+" x\n", 0o600))
}

var ecrIdentities = []ecrIdentity{
	{name: "keys of the environment", prepare: func(r *region) {
		keys := r.aws.Session(ecrRole, "node", time.Hour)
		r.secret("secret access key", keys.SecretAccessKey)
		r.secret("session token", keys.SessionToken)
		r.env = append(r.env, keys.Environ()...)
	}},
	{name: "a container's endpoint", prepare: func(r *region) { r.container() }},
	{name: "a container's endpoint that is broken", prepare: func(r *region) {
		r.aws.Fail(cloud.Fault{Service: "container", Status: http.StatusOK, Body: `{"AccessKeyId":"AKIA","SecretAccessKey":"` + r.container() + `","Token":"` + r.all()})
	}, fails: "container credentials endpoint ("},
	{name: "a container's endpoint with an expiry that is none", prepare: func(r *region) {
		token := r.container()
		r.aws.Fail(cloud.Fault{Service: "container", Status: http.StatusOK, Body: `{"AccessKeyId":"ASIA","SecretAccessKey":"x","Token":"x","Expiration":"` + token + `"}`})
	}, fails: "container credentials endpoint ("},
	{name: "a container's endpoint that refuses", prepare: func(r *region) {
		r.aws.Fail(cloud.Fault{Service: "container", Status: http.StatusUnauthorized, Body: `{"code":"` + r.container() + ` no","message":"` + r.all() + `"}`})
	}, fails: "container credentials endpoint ("},
	{name: "an instance's metadata that tells all", prepare: func(r *region) {
		r.env = append(r.env, r.aws.Instance(ecrRole).Environ()...)
		secret, token := r.secret("secret access key", r.core("instance")+"/+x"), r.secret("session token", strings.Repeat(r.core("instancetoken"), 9))
		r.aws.Fail(cloud.Fault{
			Service: "imds", Operation: "GET /latest/meta-data/iam/security-credentials/puller", Status: http.StatusOK,
			Body: `{"Code":"` + r.all() + `","AccessKeyId":"ASIA","SecretAccessKey":"` + secret + `","Token":"` + token + `","Expiration":"` + token + `"}`,
		})
	}, fails: "instance metadata ("},
	{name: "SSO cache", prepare: func(r *region) { r.sso(`"}`) }},
	{name: "an SSO cache cut short", prepare: func(r *region) { r.sso("") }, fails: "SSO ("},
	{name: "an SSO cache with an expiry that is none", prepare: func(r *region) { r.sso(`","expiresAt":"TOKEN"}`) }, fails: "SSO ("},
	{name: "an SSO portal that tells all", prepare: func(r *region) {
		r.sso(`"}`)
		r.aws.Fail(cloud.Fault{Service: "sso", Status: http.StatusUnauthorized, Body: string(must(json.Marshal(object{"message": r.all(), "__type": r.all()})))})
	}, fails: "SSO ("},
	{name: "shared files that are broken", prepare: func(r *region) {
		secret := r.secret("secret access key", r.core("shared")+"/+x")
		r.env = append(r.env, "AWS_SHARED_CREDENTIALS_FILE="+r.write("credentials", "[default]\naws_access_key_id = AKIAX\naws_secret_access_key "+secret+"\n["+secret+"\n", 0o600))
	}, fails: "partial credentials"},
	{name: "a pod's token", prepare: func(r *region) { r.token = r.eksToken("pod's token") }, sts: true},
	{name: "a web identity's file", prepare: func(r *region) {
		r.webIdentity("file", object{"path": r.write("token", r.eksToken("web identity token"), 0o600)})
	}, sts: true},
	{name: "a web identity's file with more in it", prepare: func(r *region) {
		token := r.eksToken("web identity token")
		r.webIdentity("file", object{"path": r.write("token", `{"token":"`+token+`"}`, 0o600)})
	}, fails: "identity token from"},
	{name: "credential_process", prepare: func(r *region) {
		keys := r.keysPrinted()
		r.profile(r.printing(r.all(), keys, ""))
	}},
	{name: "a credential_process that fails", prepare: func(r *region) {
		keys := r.keysPrinted()
		r.profile(r.printing(r.all(), keys, "exit 3"))
	}, fails: "exit status 3"},
	{name: "a credential_process that prints half", prepare: func(r *region) {
		keys := r.keysPrinted()
		r.profile(r.printing(r.all(), strings.TrimSuffix(keys, "}"), ""))
	}, fails: "printed no JSON"},
	{name: "a web identity's executable", prepare: func(r *region) { r.executable("") }, sts: true},
	{name: "a web identity's executable that fails", prepare: func(r *region) { r.executable("exit 3") }, fails: "exit status 3"},
	{name: "a web identity's URL", prepare: func(r *region) { r.issuing(http.StatusOK) }, sts: true},
	{name: "a web identity's URL that refuses", prepare: func(r *region) { r.issuing(http.StatusForbidden) }, fails: "HTTP status 403"},
}

// executable is a web identity's, with a secret in its environment.
func (r *region) executable(end string) {
	key, token := r.secret("executable's variable", r.core("variable")), r.eksToken("web identity token")
	// The end of its standard error is shown, but for what is secret.
	r.webIdentity("executable", object{"command": r.printing("Authorization: Bearer "+token+", by $KEY='"+key+"'", token, end), "env": object{"KEY": key}})
}

// sso is a login of IAM Identity Center in the cache; end is that of the file.
func (r *region) sso(end string) {
	login := r.secret("SSO token", r.aws.SSO("eu-west-1", ecrRole))
	r.env = append(r.env, "AWS_CONFIG_FILE="+r.write("aws-config", "[default]\nsso_session=corp\nsso_account_id="+ecrAccount+"\nsso_role_name=puller\n"+
		"[sso-session corp]\nsso_region=eu-west-1\nsso_start_url=https://corp.awsapps.com/start\n", 0o600))
	name := sha1.Sum([]byte("corp")) //nolint:gosec // the SDKs name the files of their cache so
	r.write(".aws/sso/cache/"+hex.EncodeToString(name[:])+".json", `{"expiresAt":"2099-01-01T00:00:00Z","accessToken":"`+login+strings.ReplaceAll(end, "TOKEN", login), 0o600)
}

// container is an endpoint of EKS Pod Identity; its token is returned, and what it gives is looked for.
func (r *region) container() (token string) {
	k := r.aws.Container(ecrRole)
	r.env = append(r.env, k.Environ()...)
	data := must(os.ReadFile(k.TokenFile()))
	q := must(http.NewRequest(http.MethodGet, k.URL(), nil))
	q.Header.Set("Authorization", string(data))
	response, err := http.DefaultClient.Do(q)
	if err != nil {
		r.Fatal(err)
	}
	defer response.Body.Close()
	var keys struct{ SecretAccessKey, Token string }
	if err := json.NewDecoder(response.Body).Decode(&keys); err != nil {
		r.Fatal(err)
	}
	r.secret("secret access key", keys.SecretAccessKey)
	r.secret("session token", keys.Token)
	return r.secret("container's token", string(data))
}

// mishap is what happens to a request on its way.
type mishap struct {
	name  string
	fault func(r *region) cloud.Fault
	// log is said of it, and is no secret.
	log string
	sts bool // it happens at STS
	// brief: the provider's time ends it.
	brief bool
}

// password is a registry password as ECR answers it, which nobody is to take for one.
func (r *region) password() string {
	return base64.StdEncoding.EncodeToString([]byte("AWS:" + r.secret("registry password", strings.Repeat(r.core("password"), 8))))
}

func body(status int, format string, of func(r *region) string) func(*region) cloud.Fault {
	return func(r *region) cloud.Fault {
		text, _ := json.Marshal(of(r))
		return cloud.Fault{Service: "ecr", Status: status, Body: fmt.Sprintf(format, text)}
	}
}

func stsBody(status int, format string) func(*region) cloud.Fault {
	return func(r *region) cloud.Fault {
		secret, token := r.secret("assumed secret access key", r.core("assumedkey")+"/+x"), r.secret("assumed session token", strings.Repeat(r.core("assumedtoken"), 9))
		return cloud.Fault{Service: "sts", Status: status, Body: strings.NewReplacer("SECRET", secret, "TOKEN", token, "ALL", r.all()).Replace(format)}
	}
}

const assumedXML = `<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult><Credentials>` +
	`<AccessKeyId>ASIAEXAMPLE</AccessKeyId><SecretAccessKey>SECRET</SecretAccessKey><SessionToken>TOKEN</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration>`

var mishaps = []mishap{
	{name: "denied", log: "AccessDeniedException", fault: func(*region) cloud.Fault { return cloud.Fault{Service: "ecr", Code: "AccessDeniedException"} }},
	{name: "throttled", log: "throttled", brief: true, fault: func(*region) cloud.Fault { return cloud.Fault{Service: "ecr"} }},
	{name: "no answer", log: "no answer in time", brief: true, fault: func(*region) cloud.Fault { return cloud.Fault{Service: "ecr", Hang: true} }},
	{name: "a refusal that tells all", log: "status 400", fault: body(400, `{"__type":%[1]s,"message":%[1]s,"Message":%[1]s,"code":%[1]s}`, (*region).all)},
	{name: "a breakdown that tells all", log: "status 500", brief: true, fault: body(500, `%s`, (*region).all)},
	{name: "an answer cut short", log: "not what AWS documents", fault: body(200, `{"authorizationData":[{"authorizationToken":%s,"expiresAt":1`, (*region).password)},
	{name: "an answer of another type", log: "not what AWS documents", fault: body(200, `{"authorizationData":%s}`, (*region).password)},
	{name: "an answer with an expiry that is none", log: "not what AWS documents", fault: body(200, `{"authorizationData":[{"authorizationToken":%[1]s,"expiresAt":%[1]s}]}`, (*region).password)},
	{name: "a token that is none", log: "in the form that AWS documents", fault: body(200, `{"authorizationData":[{"authorizationToken":%s}]}`, (*region).all)},
	{name: "a refusal of STS that tells all", sts: true, log: "status 403", fault: stsBody(403, `<ErrorResponse><Error><Type>Sender</Type><Code>ALL</Code><Message>SECRET TOKEN ALL</Message></Error><RequestId>ALL</RequestId></ErrorResponse>`)},
	{name: "an answer of STS cut short", sts: true, log: "AssumeRoleWithWebIdentity", fault: stsBody(200, assumedXML)},
	{name: "keys of STS that nobody knows", sts: true, log: "does not know this access key", fault: stsBody(200, assumedXML+`</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`)},
}

// TestNoSecretOfECRIsTold: whatever identity asks and whatever happens to it, what is secret is in the response and nowhere else, even at the level debug.
func TestNoSecretOfECRIsTold(t *testing.T) {
	for i, identity := range ecrIdentities {
		happen := append([]mishap{{name: "all goes well"}}, mishaps...)
		if identity.fails != "" {
			happen = happen[:1]
		}
		for j, m := range happen {
			if m.sts && !identity.sts {
				continue
			}
			t.Run(identity.name+"/"+m.name, func(t *testing.T) {
				t.Parallel()
				r := newRegion(t)
				identity.prepare(r)
				if m.fault != nil {
					r.aws.Fail(m.fault(r))
				}
				p := r.provider("ecr")
				if m.brief {
					p["timeout"] = short.String()
				}
				o := r.ask(r.configuration("debug", []string{"text", "json"}[(i+j)%2], p))
				log := cmp.Or(identity.fails, m.log)
				if log != "" {
					r.failed(o)
					r.clean(o, false)
				} else {
					log = "cacheKeyType"
					login := r.answered(o).Auth[ecrHost]
					if err := r.aws.Pull(ecrImage, login.Username, login.Password); err != nil {
						t.Errorf("pull: %v", err)
					}
					r.secret("registry password", login.Password)
					r.clean(o, true)
					if len(r.found(o.stdout)) == 0 {
						t.Error("even in the response no secret is seen: this test does not see")
					}
				}
				if file := contents(r.dir)[r.logFile]; !strings.Contains(file, log) || !strings.Contains(o.stderr, log) {
					t.Errorf("the log lacks %q, which is no secret:\n%s", log, o.stderr)
				}
			})
		}
	}
}

// TestNoPasswordOfAProxyIsTold: a proxy that is not there, one that repeats in its refusal what it was sent, and one that speaks no HTTP.
func TestNoPasswordOfAProxyIsTold(t *testing.T) {
	closed := must(net.Listen("tcp", "127.0.0.1:0"))
	_ = closed.Close()
	repeating := func(format string) string {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				panic(err)
			}
			sent := q.Header.Get("Proxy-Authorization")
			user, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(sent, "Basic "))
			_, _ = fmt.Fprintf(conn, format, sent, user)
			_ = conn.Close()
		}))
		t.Cleanup(server.Close)
		return strings.TrimPrefix(server.URL, "http://")
	}
	for name, address := range map[string]string{
		"nobody there": closed.Addr().String(), "an echo": repeating("HTTP/1.1 407 %s is not %s\r\nContent-Length: 0\r\n\r\n"), "gibberish": repeating("%[2]s\r\n\r\n"), "no URL": "%zz",
	} {
		for _, where := range []string{"settings", "environment"} {
			if name == "no URL" && where == "settings" {
				continue // which are refused
			}
			t.Run(name+", by the "+where, func(t *testing.T) {
				t.Parallel()
				r := newRegion(t)
				ecrIdentities[0].prepare(r)
				proxy := "http://node:" + r.words["proxy password"] + "@" + address
				if where == "settings" {
					r.settings["proxy"] = proxy
				} else {
					delete(r.settings, "proxy")
					r.env = append(r.env, "HTTPS_PROXY="+proxy, "https_proxy="+proxy)
				}
				p := r.provider("ecr")
				p["timeout"] = short.String()
				o := r.ask(r.configuration("debug", "text", p))
				r.failed(o)
				r.clean(o, false)
				if !strings.Contains(o.stderr, "GetAuthorizationToken") {
					t.Errorf("the log does not tell what failed:\n%s", o.stderr)
				}
			})
		}
	}
}

// hanging starts a broker whose ECR backends hang with all their secrets in memory, and waits until they do: one with the keys of the environment, a second one that runs an
// executable with a secret variable, and a third backend, which is none of ECR's.
func (r *region) hanging(before string) *exec.Cmd {
	r.Helper()
	r.aws.Fail(cloud.Fault{Service: "ecr", Hang: true})
	ecrIdentities[0].prepare(r) // into the environment
	r.token = r.eksToken("pod's token")
	byToken := r.provider("by-token")
	r.settings = object{"proxy": r.settings["proxy"], "podIdentity": "Off"}
	byKeys := r.provider("by-keys")
	byKeys["config"] = object{"proxy": r.settings["proxy"], "podIdentity": "Off"}
	key := r.secret("executable's variable", r.core("variable"))
	r.webIdentity("executable", object{"command": r.program("sleep 600; :"), "env": object{"KEY": key}, "timeout": "50s"})
	byProgram := r.with(r.provider("by-program"), object{"inheritEnv": []string{}})
	other := r.with(r.misbehaves("other", "author hang"), object{"matchImages": []string{ecrHost}, "tokenAttributes": byToken["tokenAttributes"]})
	cmd := r.command(command{
		args: []string{"--config", r.configuration("debug", "text", byToken, byKeys, byProgram, other)}, stdin: r.request(),
		env: r.env, before: before,
	})
	return cmd
}

func (r *region) untilAllHang(cmd *exec.Cmd) {
	r.Helper()
	if !until(grace, func() bool {
		asked := 0
		for _, q := range r.aws.Requests() {
			if q.Operation == "GetAuthorizationToken" {
				asked++
			}
		}
		// Four backends, a guardian, its script and what that runs.
		return asked >= 2 && len(below(cmd.Process.Pid)) >= 7
	}) {
		r.Fatalf("only %v run; %+v", below(cmd.Process.Pid), r.aws.Requests())
	}
}

// TestNoSecretOfECRIsInWhatOtherProcessesCanSee looks at arguments, environments and descriptors while every backend holds its secrets.
func TestNoSecretOfECRIsInWhatOtherProcessesCanSee(t *testing.T) {
	t.Parallel()
	r := newRegion(t)
	cmd := r.hanging("")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()
	r.untilAllHang(cmd)
	var broker, backends, programs int
	for what, text := range r.running(cmd.Process.Pid) {
		seen := r.found(text)
		if len(seen) == 0 {
			continue
		}
		// Whose environment it was configured to be: secrets of the environment for those with inheritEnv, and the program's own variable for the program.
		keys, variable := holds(seen, "secret access key", "session token"), holds(seen, "executable's variable")
		switch {
		case keys && strings.HasPrefix(what, "environ (the broker)"):
			broker++
		case keys && strings.HasPrefix(what, "environ (credential-back") && strings.Contains(text, "AWS_ACCESS_KEY_ID="):
			backends++
		case variable && (strings.HasPrefix(what, "environ (helper)") || strings.HasPrefix(what, "environ (sleep)")):
			programs++
		default:
			t.Errorf("%s shows %v", what, seen)
		}
	}
	if isRoot() && (broker != 1 || backends != 2 || programs != 2) { // others may not read these environments
		t.Errorf("the secrets' owners show them in %d brokers, %d backends and %d programs, want 1, 2 and 2: does this test see?", broker, backends, programs)
	}
	r.noFileHolds()
}

// isSeenByNobody looks at arguments, environments, descriptors and files while all backends of a broker hold their secrets. One backend, and the broker that it has them from, are owners: their environments were configured to have
// what was seen in a text.
func (r *region) isSeenByNobody(cmd *exec.Cmd, untilAllHang func(*exec.Cmd), owner func(seen []string, text string) bool) {
	r.Helper()
	if err := cmd.Start(); err != nil {
		r.Fatal(err)
	}
	defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()
	untilAllHang(cmd)
	var broker, backends int
	for what, text := range r.running(cmd.Process.Pid) {
		switch seen := r.found(text); {
		case len(seen) == 0:
		case !owner(seen, text):
			r.Errorf("%s shows %v", what, seen)
		case strings.HasPrefix(what, "environ (the broker)"):
			broker++
		case strings.HasPrefix(what, "environ (credential-back"):
			backends++
		default:
			r.Errorf("%s shows %v", what, seen)
		}
	}
	if isRoot() && (broker != 1 || backends != 1) { // others may not read these environments
		r.Errorf("the secrets' owners show them in %d brokers and %d backends, want 1 and 1: does this test see?", broker, backends)
	}
	r.noFileHolds()
}

// noFileHolds looks at what is on disk while backends run.
func (r *region) noFileHolds() {
	r.Helper()
	for _, directory := range []string{r.tmp, "/run/credential-backends"} {
		for path, text := range contents(directory) {
			if seen := r.found(text); len(seen) > 0 {
				r.Errorf("%s holds %v", path, seen)
			}
		}
	}
}

// holds: all that was seen is of these secrets.
func holds(seen []string, names ...string) bool {
	return !slices.ContainsFunc(seen, func(s string) bool {
		return !slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(s, "the "+name+" (") })
	})
}

// dies ends, by a signal, the backends of a broker that hang with all their secrets in memory: they leave neither a trace with one nor a core file. Named is a provider that the log has to tell of.
func (r *region) dies(sig syscall.Signal, cmd *exec.Cmd, untilAllHang func(*exec.Cmd), named string) {
	r.Helper()
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = append(cmd.Env, "GOTRACEBACK=crash")
	if err := cmd.Start(); err != nil {
		r.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	untilAllHang(cmd)
	ended := 0
	for _, p := range below(cmd.Process.Pid) {
		if !strings.HasPrefix(p.name, "credential-back") {
			continue
		}
		if most := coreLimit(r.T, p.pid); most > 1 {
			r.Errorf("%s may write a core file of %d bytes", p.name, most)
		}
		if syscall.Kill(p.pid, sig) == nil {
			ended++
		}
	}
	if ended < 4 {
		r.Errorf("%d backends were there to be ended", ended)
	}
	_ = cmd.Wait()
	r.clean(outcome{stdout: stdout.String(), stderr: stderr.String()}, false)
	for _, file := range filesIn(r.dir) {
		if strings.HasPrefix(filepath.Base(file), "core") {
			r.Errorf("there is a core file: %s", file)
		}
	}
	if !strings.Contains(stderr.String(), named) {
		r.Errorf("the log does not tell of the death:\n%s", stderr.String())
	}
}

// deaths are the signals that end them.
var deaths = []syscall.Signal{syscall.SIGKILL, syscall.SIGABRT, syscall.SIGQUIT, syscall.SIGSEGV, syscall.SIGTERM}

// TestNoSecretOfECRIsToldByADeath: backends that are ended while they hold their secrets tell none.
func TestNoSecretOfECRIsToldByADeath(t *testing.T) {
	for _, sig := range deaths {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			r := newRegion(t)
			r.dies(sig, r.hanging("ulimit -c unlimited"), r.untilAllHang, "by-keys")
		})
	}
}

// seen shows that each secret would be found, and nothing where there is none.
func (r *region) seen(identity, username, none string) {
	r.Helper()
	for name, word := range r.words {
		for how, text := range map[string]string{
			"as it is": word, "cut": word[:min(len(word), len(word)/2+12)], "base64": base64.StdEncoding.EncodeToString([]byte(username + ":" + word)), "quoted": fmt.Sprintf("%q", "x"+word),
		} {
			if len(r.found("a text with "+text+" in it")) == 0 {
				r.Errorf("%s: the %s is not seen %s", identity, name, how)
			}
		}
	}
	if seen := r.found(none + strings.Join(r.aws.Environ(), " ")); len(seen) > 0 {
		r.Errorf("%s: seen where there is none: %v", identity, seen)
	}
}

// TestSecretsOfECRAreSeen shows for each place that a secret there would be found.
func TestSecretsOfECRAreSeen(t *testing.T) {
	for _, identity := range ecrIdentities {
		r := newRegion(t)
		identity.prepare(r)
		_ = r.password()
		r.seen(identity.name, "AWS", ecrRole+ecrCluster+ecrSubject+ecrImage)
	}
	r := newRegion(t)
	key := r.secret("key", r.core("key"))
	child := exec.Command("/bin/sh", "-c", "sleep 600; :", key)
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = child.Process.Kill(), child.Wait() }()
	seen := false
	for what, text := range r.running(child.Process.Pid) {
		seen = seen || strings.HasPrefix(what, "cmdline") && len(r.found(text)) > 0
	}
	if !seen {
		t.Error("not seen in a process's arguments")
	}
	for _, directory := range []string{r.dir, r.tmp} {
		file := filepath.Join(directory, "sub", "file")
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte("x"+key), 0o600); err != nil {
			t.Fatal(err)
		}
		if len(r.found(contents(directory)[file])) == 0 {
			t.Errorf("not seen in a file below %s", directory)
		}
	}
}
