package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/backendtest"
	"github.com/credential-broker/credential-broker/test/cloud"
)

const (
	account = "111111111111"
	host    = account + ".dkr.ecr.eu-west-1.amazonaws.com"
	role    = "arn:aws:iam::" + account + ":role/puller"
	cluster = "https://oidc.eks.eu-west-1.amazonaws.com/id/ABC"
)

// TestConformance judges the built backend with an identity of each kind: keys of the environment, a pod's token, a web identity from a file, and keys that do not reach ECR Public.
func TestConformance(t *testing.T) {
	executable := filepath.Join(t.TempDir(), "credential-backend-ecr")
	if runtime.GOOS == "windows" {
		executable += ".exe"
	}
	if out, err := exec.Command("go", "build", "-o", executable, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, c := range []struct {
		name string
		// prepare gives settings, image, environment, token and secrets.
		prepare func(t *testing.T, c *cloud.Cloud) backendtest.Options
		asker   string // who asks for registry tokens
	}{
		{"keys", func(_ *testing.T, c *cloud.Cloud) backendtest.Options {
			keys := c.AddUser("arn:aws:iam::"+account+":user/node", cloud.PullPolicy()...)
			return backendtest.Options{Config: map[string]any{"scope": "registry"}, Image: host + "/team/app", Env: keys.Environ(), Secrets: []backends.Secret{backends.Secret(keys.SecretAccessKey)}}
		}, "arn:aws:iam::" + account + ":user/node"},
		{"a pod's token", func(_ *testing.T, c *cloud.Cloud) backendtest.Options {
			issuer := federated(c, "system:serviceaccount:team-a:builder")
			return backendtest.Options{
				Config: map[string]any{"podIdentity": "Prefer"},
				Image:  host + "/team/app",
				Token: backends.Secret(issuer.Token(map[string]any{
					"aud": []string{"sts.amazonaws.com"}, "sub": "system:serviceaccount:team-a:builder",
					"kubernetes.io": map[string]any{"namespace": "team-a", "serviceaccount": map[string]any{"name": "builder"}},
				})),
				Annotations: map[string]string{"eks.amazonaws.com/ecr-role-arn": role},
			}
		}, "arn:aws:sts::" + account + ":assumed-role/puller/team-a.builder"},
		{"a web identity from a file", func(t *testing.T, c *cloud.Cloud) backendtest.Options {
			token := federated(c, "node-1").Token(map[string]any{"aud": "sts.amazonaws.com", "sub": "node-1"})
			file := filepath.Join(t.TempDir(), "token")
			if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
				t.Fatal(err)
			}
			return backendtest.Options{
				Config:  map[string]any{"roleARN": role, "webIdentity": map[string]any{"file": map[string]any{"path": file}}},
				Image:   host + "/team/app",
				Secrets: []backends.Secret{backends.Secret(token)},
			}
		}, "arn:aws:sts::" + account + ":assumed-role/puller/credential-broker"},
		// The image that it has no credentials for is one of ECR Public here: it is pulled anonymously.
		{"keys that are worth nothing at ECR Public", func(_ *testing.T, c *cloud.Cloud) backendtest.Options {
			keys := c.AddUser("arn:aws:iam::"+account+":user/node", cloud.PullPolicy()...)
			return backendtest.Options{
				Config: map[string]any{"public": "anonymousFallback"}, Image: host + "/team/app", OtherImage: "public.ecr.aws/team/app",
				Env: keys.Environ(), Secrets: []backends.Secret{backends.Secret(keys.SecretAccessKey)},
			}
		}, "arn:aws:iam::" + account + ":user/node"},
	} {
		t.Run(c.name, func(t *testing.T) {
			aws := cloud.New(t)
			aws.AddRegistry(host, cloud.Repository{Name: "team/app"})
			o := c.prepare(t, aws)
			o.Executable = executable
			o.Env = append(append(aws.Environ(), "HOME="+t.TempDir(), "PATH="+os.Getenv("PATH")), o.Env...)
			backendtest.Run(t, o)
			// That it was this identity and no other that the rules saw at work:
			asked := map[string]int{}
			for _, r := range aws.Requests() {
				if r.Operation != "GetAuthorizationToken" {
					continue
				}
				if asked[r.Service]++; r.Principal != c.asker && r.Status != 0 {
					t.Fatalf("%q asked for a token, want %q: %+v", r.Principal, c.asker, r)
				}
				if r.Service == "ecr-public" && r.Code != "AccessDeniedException" && r.Status != 0 {
					t.Fatalf("ECR Public was to refuse: %+v", r)
				}
			}
			if asked["ecr"] == 0 || (asked["ecr-public"] > 0) != (o.OtherImage != "") {
				t.Errorf("tokens were asked for %v times", asked)
			}
		})
	}
}

// federated lets the role be assumed with tokens of the cluster's issuer for one subject.
func federated(c *cloud.Cloud, subject string) *cloud.Issuer {
	c.AddOIDCProvider(account, cluster, "sts.amazonaws.com")
	c.AddRole(cloud.Role{ARN: role, Trust: []cloud.Trust{{Federated: cluster, Audience: "sts.amazonaws.com", Subject: subject}}, Policy: cloud.PullPolicy()})
	return c.AddIssuer(cluster)
}
