package ecr

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/settings"
	"github.com/credential-broker/credential-broker/backends/webidentity"
	"github.com/credential-broker/credential-broker/test/cloud"
)

// The account, region and host that most tests pull from, and what may pull there.
const (
	account  = "111111111111"
	host     = account + ".dkr.ecr.eu-west-1.amazonaws.com"
	image    = host + "/team/app"
	nodeUser = "arn:aws:iam::" + account + ":user/node"
	nodeRole = "arn:aws:iam::" + account + ":role/node"
	podRole  = "arn:aws:iam::" + account + ":role/pod"
	cluster  = "https://oidc.eks.eu-west-1.amazonaws.com/id/ABC"
)

// setUp makes a cloud with a registry, points this process's environment to it, and empties it of all else that the SDK heeds.
func setUp(t *testing.T, env ...string) *cloud.Cloud {
	t.Helper()
	c := cloud.New(t)
	c.AddRegistry(host, cloud.Repository{Name: "team/app"})
	clean(t)
	setenv(t, c.Environ()...)
	setenv(t, env...)
	return c
}

func clean(t *testing.T) {
	t.Helper()
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, "") // so that it comes back
			_ = os.Unsetenv(name)
		}
	}
	t.Setenv("HOME", t.TempDir())
}

func setenv(t *testing.T, env ...string) {
	t.Helper()
	for _, variable := range env {
		name, value, _ := strings.Cut(variable, "=")
		t.Setenv(name, value)
	}
}

// backendFor makes a backend that reaches the cloud by its proxy: net/http reads HTTPS_PROXY only once in a process.
func backendFor(t *testing.T, c *cloud.Cloud, cfg Config) *Backend {
	t.Helper()
	cfg.Proxy = backends.Secret(c.ProxyURL())
	b, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// pull asks for the image's credential and pulls with it.
func pull(t *testing.T, c *cloud.Cloud, b *Backend, req backends.Request) backends.Response {
	t.Helper()
	r, err := b.Credentials(t.Context(), req)
	if err != nil {
		t.Fatalf("%v\n%+v", err, c.Requests())
	}
	if len(r.Credentials) != 1 {
		t.Fatalf("%d credentials", len(r.Credentials))
	}
	got := r.Credentials[0]
	if err := c.Pull(string(req.Image), got.Username, string(got.Password)); err != nil {
		t.Errorf("pull: %v", err)
	}
	if left := time.Until(got.Expires); left < 11*time.Hour || left > 12*time.Hour {
		t.Errorf("it expires in %s", left)
	}
	return r
}

// principals are who asked for tokens of registries.
func principals(c *cloud.Cloud) []string {
	var all []string
	for _, r := range c.Requests() {
		if r.Operation == "GetAuthorizationToken" {
			all = append(all, r.Principal)
		}
	}
	return all
}

func operations(c *cloud.Cloud) []string {
	var all []string
	for _, r := range c.Requests() {
		all = append(all, r.Service+" "+r.Operation)
	}
	return all
}

func addNodeRole(c *cloud.Cloud, trust ...cloud.Trust) {
	c.AddRole(cloud.Role{ARN: nodeRole, Trust: trust, Policy: cloud.PullPolicy()})
}

// serviceAccountToken is a pod's, as the API server makes them.
func serviceAccountToken(i *cloud.Issuer, namespace, name string, change func(map[string]any)) string {
	claims := map[string]any{
		"aud": []string{"sts.amazonaws.com"}, "sub": "system:serviceaccount:" + namespace + ":" + name,
		"kubernetes.io": map[string]any{"namespace": namespace, "serviceaccount": map[string]any{"name": name, "uid": "6c3f1a4e"}},
	}
	if change != nil {
		change(claims)
	}
	return i.Token(claims)
}

func write(t *testing.T, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestIdentities pulls with every identity that a node or a pod can have.
func TestIdentities(t *testing.T) {
	webTrust := func(issuer, subject string) cloud.Trust {
		return cloud.Trust{Federated: issuer, Audience: "sts.amazonaws.com", Subject: subject}
	}
	session := func(role, name string) string {
		return strings.Replace(strings.Replace(role, ":iam:", ":sts:", 1), ":role/", ":assumed-role/", 1) + "/" + name
	}
	for _, c := range []struct {
		name string
		// prepare makes the identity, and gives the settings and the request.
		prepare func(t *testing.T, c *cloud.Cloud) (Config, backends.Request)
		want    string // who asks for the token
	}{
		{"environment", func(t *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			setenv(t, c.AddUser(nodeUser, cloud.PullPolicy()...).Environ()...)
			return Config{}, backends.Request{}
		}, nodeUser},
		{"environment, of a session", func(t *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			addNodeRole(c)
			setenv(t, c.Session(nodeRole, "login", time.Hour).Environ()...)
			return Config{}, backends.Request{}
		}, session(nodeRole, "login")},
		{"environment, by a web identity's file", func(t *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			issuer := c.AddIssuer(cluster)
			c.AddOIDCProvider(account, cluster, "sts.amazonaws.com")
			addNodeRole(c, webTrust(cluster, "system:serviceaccount:kube-system:node"))
			setenv(t, "AWS_ROLE_ARN="+nodeRole, "AWS_ROLE_SESSION_NAME=irsa", "AWS_WEB_IDENTITY_TOKEN_FILE="+write(t, serviceAccountToken(issuer, "kube-system", "node", nil)))
			return Config{}, backends.Request{}
		}, session(nodeRole, "irsa")},
		{"shared files, a profile of the settings", func(t *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			keys := c.AddUser(nodeUser, cloud.PullPolicy()...)
			setenv(t, "AWS_SHARED_CREDENTIALS_FILE="+write(t, "[puller]\naws_access_key_id="+keys.AccessKeyID+"\naws_secret_access_key="+keys.SecretAccessKey+"\n"))
			return Config{Profile: "puller"}, backends.Request{}
		}, nodeUser},
		{"shared files, a role with a source profile", func(t *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			keys := c.AddUser(nodeUser)
			addNodeRole(c, cloud.Trust{AWS: nodeUser, ExternalID: "x1"})
			setenv(t, "AWS_PROFILE=puller", "AWS_SHARED_CREDENTIALS_FILE="+write(t, "[base]\naws_access_key_id="+keys.AccessKeyID+"\naws_secret_access_key="+keys.SecretAccessKey+"\n"),
				"AWS_CONFIG_FILE="+write(t, "[profile puller]\nrole_arn="+nodeRole+"\nsource_profile=base\nexternal_id=x1\nrole_session_name=shared\n"))
			return Config{}, backends.Request{}
		}, session(nodeRole, "shared")},
		{"credential_process", func(t *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			keys := c.AddUser(nodeUser, cloud.PullPolicy()...)
			setenv(t, "AWS_CONFIG_FILE="+write(t, "[default]\ncredential_process = "+processPrinting(t, keys)+" \"an argument\"\n"))
			return Config{}, backends.Request{}
		}, nodeUser},
		{"credential_process below a role", func(t *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			keys := c.AddUser(nodeUser)
			addNodeRole(c, cloud.Trust{AWS: nodeUser, ExternalID: "x1"})
			setenv(t, "AWS_PROFILE=puller",
				"AWS_CONFIG_FILE="+write(t, "[profile base]\ncredential_process = "+processPrinting(t, keys)+" x\n[profile puller]\nrole_arn="+nodeRole+"\nsource_profile=base\nexternal_id=x1\nrole_session_name=process\n"))
			return Config{}, backends.Request{}
		}, session(nodeRole, "process")},
		{"container endpoint", func(t *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			addNodeRole(c)
			setenv(t, c.Container(nodeRole).Environ()...)
			return Config{}, backends.Request{}
		}, nodeRole},
		{"instance metadata", func(t *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			addNodeRole(c)
			setenv(t, c.Instance(nodeRole).Environ()...)
			return Config{}, backends.Request{}
		}, nodeRole},
		{"a role", func(t *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			setenv(t, c.AddUser(nodeUser).Environ()...)
			addNodeRole(c, cloud.Trust{AWS: nodeUser, ExternalID: "partner", Tags: true})
			return Config{RoleARN: nodeRole, ExternalID: "partner", SessionName: "node-7", SessionTags: map[string]string{"team": "a"}}, backends.Request{}
		}, session(nodeRole, "node-7")},
		{"a chain of roles", func(t *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			setenv(t, c.AddUser(nodeUser, cloud.Statement{Actions: []string{"sts:AssumeRole"}, Resources: []string{"arn:aws:iam::222222222222:role/*"}}).Environ()...)
			hop := "arn:aws:iam::222222222222:role/hop"
			c.AddRole(cloud.Role{ARN: hop, Trust: []cloud.Trust{{AWS: nodeUser}}, Policy: []cloud.Statement{{Actions: []string{"sts:AssumeRole"}}}})
			addNodeRole(c, cloud.Trust{AWS: hop})
			return Config{Via: []Role{{RoleARN: hop}}, RoleARN: nodeRole}, backends.Request{}
		}, session(nodeRole, defaultSessionName)},
		{"the role of the registry's account", func(t *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			setenv(t, c.AddUser(nodeUser).Environ()...)
			addNodeRole(c, cloud.Trust{AWS: nodeUser})
			return Config{RoleARN: podRole, Roles: []AccountRole{{Accounts: []string{"999999999999"}, RoleARN: podRole}, {Accounts: []string{account}, RoleARN: nodeRole}}}, backends.Request{}
		}, session(nodeRole, defaultSessionName)},
		{"a pod with a role of its own", func(_ *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			issuer := c.AddIssuer(cluster)
			c.AddOIDCProvider(account, cluster, "sts.amazonaws.com")
			c.AddRole(cloud.Role{ARN: podRole, Trust: []cloud.Trust{webTrust(cluster, "system:serviceaccount:team-a:builder")}, Policy: cloud.PullPolicy()})
			return Config{}, backends.Request{Token: backends.Secret(serviceAccountToken(issuer, "team-a", "builder", nil)), Annotations: map[string]string{roleAnnotation: podRole}}
		}, session(podRole, "team-a.builder")},
		{"a pod with the role of AWS_ECR_ROLE_ARN", func(t *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			issuer := c.AddIssuer(cluster)
			c.AddOIDCProvider(account, cluster, "sts.amazonaws.com")
			c.AddRole(cloud.Role{ARN: podRole, Trust: []cloud.Trust{webTrust(cluster, "system:serviceaccount:team-a:*")}, Policy: cloud.PullPolicy()})
			setenv(t, "AWS_ECR_ROLE_ARN="+podRole)
			return Config{PodIdentity: settings.PodIdentityRequire}, backends.Request{Token: backends.Secret(serviceAccountToken(issuer, "team-a", "builder", nil))}
		}, session(podRole, "team-a.builder")},
		{"a pod without a role", func(t *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			setenv(t, c.AddUser(nodeUser, cloud.PullPolicy()...).Environ()...)
			return Config{}, backends.Request{Token: backends.Secret(serviceAccountToken(c.AddIssuer(cluster), "team-a", "builder", nil))}
		}, nodeUser},
		{"a web identity, and a chain from there", func(t *testing.T, c *cloud.Cloud) (Config, backends.Request) {
			issuer := c.AddIssuer(cluster)
			c.AddOIDCProvider("222222222222", cluster, "sts.amazonaws.com")
			hop := "arn:aws:iam::222222222222:role/hop"
			c.AddRole(cloud.Role{ARN: hop, Trust: []cloud.Trust{webTrust(cluster, "node-*")}, Policy: []cloud.Statement{{Actions: []string{"sts:AssumeRole"}}}})
			addNodeRole(c, cloud.Trust{AWS: hop, ExternalID: "x1"})
			file := write(t, issuer.Token(map[string]any{"aud": "sts.amazonaws.com", "sub": "node-1"}))
			return Config{WebIdentity: webidentity.Config{File: &webidentity.File{Path: file}}, Via: []Role{{RoleARN: hop}}, RoleARN: nodeRole, ExternalID: "x1"}, backends.Request{}
		}, session(nodeRole, defaultSessionName)},
	} {
		t.Run(c.name, func(t *testing.T) {
			aws := setUp(t)
			cfg, req := c.prepare(t, aws)
			req.Image = image
			b := backendFor(t, aws, cfg)
			aws.ForgetRequests()
			r := pull(t, aws, b, req)
			if r.Scope != backends.ScopeRegistry || r.Credentials[0].Key != host {
				t.Errorf("scope %v, key %q", r.Scope, r.Credentials[0].Key)
			}
			who := principals(aws)
			if len(who) != 1 || who[0] != c.want && !strings.HasPrefix(who[0], session(c.want, "")) {
				t.Errorf("%q asked, want %s", who, c.want)
			}
			for _, r := range aws.Requests() {
				if r.Service == "proxy" || strings.Contains(r.Host, "169.254") {
					t.Errorf("a metadata service was asked through the proxy: %+v", r)
				}
				if r.Service == "sts" && r.Host != "sts.eu-west-1.amazonaws.com" {
					t.Errorf("STS was asked at %s, not in the registry's region", r.Host)
				}
			}
			before := len(aws.Requests())
			pull(t, aws, b, req)
			if again := operations(aws)[before:]; slices.ContainsFunc(again, func(s string) bool { return !strings.HasPrefix(s, "registry ") }) {
				t.Errorf("the second pull asked for %q", again)
			}
		})
	}
}

// processPrinting makes a program that prints the keys as a credential_process does.
func processPrinting(t *testing.T, keys cloud.Keys) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "process")
	script := "#!/bin/sh\n[ $# = 1 ] || exit 9\n" +
		`echo '{"Version": 1, "AccessKeyId": "` + keys.AccessKeyID + `", "SecretAccessKey": "` + keys.SecretAccessKey + `"}'` + "\n"
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return program
}

// TestEndpoints: each kind of host is asked for at the API endpoint of its kind, and STS at its own.
func TestEndpoints(t *testing.T) {
	for registry, want := range map[string]string{
		account + ".dkr.ecr.eu-west-1.amazonaws.com":                    "api.ecr.eu-west-1.amazonaws.com",
		account + ".dkr-ecr.eu-west-1.on.aws":                           "ecr.eu-west-1.api.aws",
		account + ".dkr.ecr-fips.us-east-1.amazonaws.com":               "ecr-fips.us-east-1.amazonaws.com",
		account + ".dkr-ecr-fips.us-west-2.on.aws":                      "ecr-fips.us-west-2.api.aws",
		account + ".dkr.ecr.us-gov-west-1.amazonaws.com":                "api.ecr.us-gov-west-1.amazonaws.com",
		account + ".dkr.ecr-fips.us-gov-east-1.amazonaws.com":           "ecr-fips.us-gov-east-1.amazonaws.com",
		account + ".dkr.ecr.cn-north-1.amazonaws.com.cn":                "api.ecr.cn-north-1.amazonaws.com.cn",
		account + ".dkr-ecr.cn-northwest-1.on.amazonwebservices.com.cn": "ecr.cn-northwest-1.api.amazonwebservices.com.cn",
		account + ".dkr.ecr.eusc-de-east-1.amazonaws.eu":                "api.ecr.eusc-de-east-1.amazonaws.eu",
		account + ".dkr.ecr.us-iso-east-1.c2s.ic.gov":                   "api.ecr.us-iso-east-1.c2s.ic.gov",
		account + ".dkr.ecr.us-isob-east-1.sc2s.sgov.gov":               "api.ecr.us-isob-east-1.sc2s.sgov.gov",
		account + ".dkr.ecr.eu-isoe-west-1.cloud.adc-e.uk":              "api.ecr.eu-isoe-west-1.cloud.adc-e.uk",
		account + ".dkr.ecr.us-isof-south-1.csp.hci.ic.gov":             "api.ecr.us-isof-south-1.csp.hci.ic.gov",
		account + ".dkr.ecr.xx-new-1.amazonaws.example":                 "api.ecr.xx-new-1.amazonaws.example",
		"public.ecr.aws":     "api.ecr-public.us-east-1.amazonaws.com",
		"ecr-public.aws.com": "ecr-public.us-east-1.api.aws",
	} {
		t.Run(registry, func(t *testing.T) {
			aws := setUp(t)
			partition := "aws"
			switch {
			case strings.Contains(registry, ".cn-"):
				partition = "aws-cn"
			case strings.Contains(registry, "us-gov"):
				partition = "aws-us-gov"
			case strings.Contains(registry, "eusc"):
				partition = "aws-eusc"
			case strings.Contains(registry, "us-iso-"):
				partition = "aws-iso"
			case strings.Contains(registry, "us-isob"):
				partition = "aws-iso-b"
			case strings.Contains(registry, "eu-isoe"):
				partition = "aws-iso-e"
			case strings.Contains(registry, "us-isof"):
				partition = "aws-iso-f"
			}
			if strings.Contains(registry, "xx-new-1") {
				aws.AddEndpoint("api.ecr.xx-new-1.amazonaws.example", "ecr", "xx-new-1")
			}
			setenv(t, aws.AddUser(strings.Replace(nodeUser, "arn:aws:", "arn:"+partition+":", 1), append(cloud.PullPolicy(), cloud.PublicPolicy()...)...).Environ()...)
			b := backendFor(t, aws, Config{RegistrySuffixes: []string{"amazonaws.example"}, Public: PublicRequired})
			_, err := b.Credentials(t.Context(), backends.Request{Image: backends.Image(registry + "/team/app")})
			var asked []string
			for _, r := range aws.Requests() {
				asked = append(asked, r.Host)
			}
			if diff := cmp.Diff([]string{want}, asked); diff != "" || err != nil {
				t.Errorf("asked (-want +got):\n%s%v", diff, err)
			}
		})
	}
}

func TestFIPSWhereAWSHasNone(t *testing.T) {
	aws := setUp(t)
	setenv(t, aws.AddUser(nodeUser, cloud.PullPolicy()...).Environ()...)
	b := backendFor(t, aws, Config{})
	_, err := b.Credentials(t.Context(), backends.Request{Image: account + ".dkr.ecr-fips.eu-west-1.amazonaws.com/team/app"})
	fails(t, err, backends.KindMisconfigured, "no FIPS endpoint of ECR for eu-west-1")
	if asked := operations(aws); len(asked) > 0 {
		t.Errorf("asked for %q", asked)
	}
}

// TestCustomEndpoints: an endpoint is used as it is, whatever the kind of the host or of the environment.
func TestCustomEndpoints(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  Config
		env  []string
	}{
		{"settings", Config{Endpoint: "https://vpce-1.api.ecr.us-east-1.vpce.amazonaws.com"}, nil},
		{"environment", Config{}, []string{"AWS_ENDPOINT_URL_ECR=https://vpce-1.api.ecr.us-east-1.vpce.amazonaws.com"}},
		{"environment, with kinds", Config{}, []string{"AWS_ENDPOINT_URL_ECR=https://vpce-1.api.ecr.us-east-1.vpce.amazonaws.com", "AWS_USE_FIPS_ENDPOINT=true", "AWS_USE_DUALSTACK_ENDPOINT=true"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			aws := setUp(t, c.env...)
			aws.AddEndpoint("vpce-1.api.ecr.us-east-1.vpce.amazonaws.com", "ecr", "us-east-1")
			setenv(t, aws.AddUser(nodeUser, cloud.PullPolicy()...).Environ()...)
			b := backendFor(t, aws, c.cfg)
			if _, err := b.Credentials(t.Context(), backends.Request{Image: account + ".dkr-ecr-fips.us-east-1.on.aws/team/app"}); err != nil {
				t.Error(err)
			}
			if r := aws.Requests(); len(r) != 1 || r[0].Host != "vpce-1.api.ecr.us-east-1.vpce.amazonaws.com" {
				t.Errorf("asked %+v", r)
			}
		})
	}
}

// fails wants a failure of that kind, with these words.
func fails(t *testing.T, err error, kind backends.Kind, words ...string) {
	t.Helper()
	e, ok := errors.AsType[*backends.Error](err)
	if !ok {
		t.Fatalf("got %v, want an error with a kind", err)
	}
	if e.Kind != kind {
		t.Errorf("kind %v, want %v", e.Kind, kind)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q is not in %q", word, err)
		}
	}
}
