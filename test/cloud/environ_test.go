package cloud

import (
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

// TestEnvironment has the SDK's default chain find each kind of identity by nothing but the environment.
func TestEnvironment(t *testing.T) {
	for name, arrange := range map[string]func(t *testing.T, c *Cloud, home string) []string{
		"keys": func(_ *testing.T, c *Cloud, _ string) []string {
			return c.Session(testRole, "name", time.Hour).Environ()
		},
		"a pod's token": func(t *testing.T, c *Cloud, home string) []string {
			file := filepath.Join(home, "token")
			write(t, file, c.AddIssuer("https://oidc.example.com/id/1").Token(map[string]any{"sub": "pod", "aud": "sts.amazonaws.com"}))
			c.AddOIDCProvider(testAccount, "https://oidc.example.com/id/1", "sts.amazonaws.com")
			return []string{"AWS_WEB_IDENTITY_TOKEN_FILE=" + file, "AWS_ROLE_ARN=" + testRole}
		},
		"an instance":             func(_ *testing.T, c *Cloud, _ string) []string { return c.Instance(testRole).Environ() },
		"a container":             func(_ *testing.T, c *Cloud, _ string) []string { return c.Container(testRole).Environ() },
		"a container's variables": func(_ *testing.T, c *Cloud, _ string) []string { return c.Container(testRole).EnvironToken() },
		"a login by SSO": func(t *testing.T, c *Cloud, home string) []string {
			write(t, filepath.Join(home, ".aws", "config"), `[default]
sso_session = s
sso_account_id = 111122223333
sso_role_name = puller
[sso-session s]
sso_start_url = https://example.awsapps.com/start
sso_region = eu-west-1
`)
			expires := c.Now().Add(time.Hour).UTC().Format(time.RFC3339)
			write(t, filepath.Join(home, ".aws", "sso", "cache", "a0f1490a20d0211c997b44bc357e1972deab8ae3.json"),
				`{"accessToken":"`+c.SSO("eu-west-1", testRole)+`","expiresAt":"`+expires+`","region":"eu-west-1","startUrl":"https://example.awsapps.com/start"}`)
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, home := New(t), t.TempDir()
			c.AddRole(Role{ARN: testRole, Trust: []Trust{{Federated: "https://oidc.example.com/id/1", Subject: "pod"}}})
			for _, pair := range os.Environ() {
				if name, _, _ := strings.Cut(pair, "="); strings.HasPrefix(name, "AWS_") {
					t.Setenv(name, "") // and unset, below
					_ = os.Unsetenv(name)
				}
			}
			t.Setenv("HOME", home)
			t.Setenv("AWS_CONFIG_FILE", filepath.Join(home, ".aws", "config"))
			t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(home, ".aws", "credentials"))
			t.Setenv("AWS_REGION", "eu-west-1")
			for _, pair := range append(c.Environ(), arrange(t, c, home)...) {
				name, value, _ := strings.Cut(pair, "=")
				t.Setenv(name, value)
			}
			// Go reads the proxy of the environment once in a process, so each test gives its own. As from the environment, plain HTTP goes around it.
			client := awshttp.NewBuildableClient().WithTransportOptions(func(tr *http.Transport) {
				tr.Proxy = func(r *http.Request) (*url.URL, error) {
					if r.URL.Scheme == "http" {
						return nil, nil //nolint:nilnil // no proxy
					}
					return url.Parse(c.ProxyURL())
				}
				t.Cleanup(tr.CloseIdleConnections)
			})
			cfg, err := config.LoadDefaultConfig(t.Context(), config.WithHTTPClient(client))
			if err != nil {
				t.Fatal(err)
			}
			answer, err := sts.NewFromConfig(cfg).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
			if err != nil {
				t.Fatalf("%v\n%+v", err, c.Requests())
			}
			if !strings.HasPrefix(*answer.Arn, "arn:aws:sts::111122223333:assumed-role/puller/") {
				t.Errorf("%s", *answer.Arn)
			}
		})
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
