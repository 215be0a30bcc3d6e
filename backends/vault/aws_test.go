package vault

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/test/cloud"
)

const (
	awsUser = "arn:aws:iam::111122223333:user/node"
	awsRole = "arn:aws:iam::111122223333:role/puller"
)

func TestAWSSettings(t *testing.T) {
	for name, tt := range map[string]struct {
		a    *AWS
		want map[string]string
	}{
		"none":                   {nil, nil},
		"empty ones":             {&AWS{}, nil},
		"all of them":            {&AWS{Region: "eu-west-1", STSEndpoint: "https://vpce-1.sts.eu-west-1.vpce.amazonaws.com", ServerID: "vault.example.com"}, nil},
		"the SDK's region":       {&AWS{Region: "auto", STSEndpoint: "https://sts.eu-west-1.amazonaws.com/"}, nil},
		"a region that is none":  {&AWS{Region: "eu west"}, map[string]string{"auth.x.region": `want a region such as eu-west-1, or "auto", got "eu west"`}},
		"the region of all":      {&AWS{Region: "aws-global"}, map[string]string{"auth.x.region": "want a region"}},
		"an endpoint, somewhere": {&AWS{STSEndpoint: "https://sts.eu-west-1.amazonaws.com"}, map[string]string{"auth.x.region": "want the region that stsEndpoint is in"}},
		"plain HTTP":             {&AWS{Region: "auto", STSEndpoint: "http://sts.eu-west-1.amazonaws.com"}, map[string]string{"auth.x.stsEndpoint": "want a URL such as https"}},
		"a host alone":           {&AWS{Region: "auto", STSEndpoint: "sts.eu-west-1.amazonaws.com"}, map[string]string{"auth.x.stsEndpoint": "want a URL such as https"}},
		"a path":                 {&AWS{Region: "auto", STSEndpoint: "https://sts.eu-west-1.amazonaws.com/sts"}, map[string]string{"auth.x.stsEndpoint": "nothing behind the host"}},
		"a query":                {&AWS{Region: "auto", STSEndpoint: "https://sts.eu-west-1.amazonaws.com?a"}, map[string]string{"auth.x.stsEndpoint": "nothing behind the host"}},
		"a user":                 {&AWS{Region: "auto", STSEndpoint: "https://a:" + planted + "@b"}, map[string]string{"auth.x.stsEndpoint": "want a URL"}},
		"a header in two lines":  {&AWS{ServerID: "vault\r\nX-Other: a"}, map[string]string{"auth.x.serverID": "printable ASCII"}},
	} {
		t.Run(name, func(t *testing.T) {
			found := problemsWith(t, tt.a.validate)
			finds(t, found, tt.want)
			silent(t, strings.Join(slices.Collect(func(yield func(string) bool) {
				for _, text := range found {
					yield(text)
				}
			}), " "))
		})
	}
}

// asVault does what Vault does with the parameters of a login (its endpoint is a setting there), and gives the ARN that STS tells it; empty: STS refuses.
func asVault(t *testing.T, c *cloud.Cloud, parameters map[string]any, endpoint, serverID string) string {
	t.Helper()
	part := func(name string) string {
		text, _ := parameters[name].(string)
		decoded, err := base64.StdEncoding.DecodeString(text)
		if err != nil || len(decoded) == 0 {
			t.Fatalf("%s: %v", name, err)
		}
		return string(decoded)
	}
	u, err := url.Parse(part("iam_request_url"))
	if err != nil || u.RawQuery != "" || parameters["iam_http_request_method"] != http.MethodPost || len(parameters) != 4 {
		t.Fatalf("%v, %v", u, err)
	}
	var header http.Header
	if err := json.Unmarshal([]byte(part("iam_request_headers")), &header); err != nil {
		t.Fatal(err)
	}
	body := part("iam_request_body")
	if form, err := url.ParseQuery(body); err != nil || len(form) != 2 || form.Get("Action") != "GetCallerIdentity" || !form.Has("Version") {
		t.Errorf("the body is %s", body)
	}
	signed := regexp.MustCompile(`SignedHeaders=([^,]+)`).FindStringSubmatch(header.Get("Authorization"))
	if serverID != "" && (header.Get(serverIDHeader) != serverID || signed == nil || !slices.Contains(strings.Split(signed[1], ";"), strings.ToLower(serverIDHeader))) {
		t.Errorf("the server's id is %q, and signed are %q", header.Get(serverIDHeader), signed)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, endpoint+"/"+u.RequestURI(), strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Host, r.Header = u.Host, header
	answer, err := c.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	all, _ := io.ReadAll(answer.Body)
	var said struct {
		ARN string `xml:"GetCallerIdentityResult>Arn"`
	}
	_ = xml.Unmarshal(all, &said) // a refusal has none
	return said.ARN
}

// TestAWS logs in as Vault sees it: the request is for the STS that it asks, which tells it whose it is.
func TestAWS(t *testing.T) {
	besideThis(t)
	for name, tt := range map[string]struct {
		a        *AWS
		env      func(c *cloud.Cloud) []string
		endpoint string // of Vault
		want     string
	}{
		"a Vault that was told nothing": {nil, func(c *cloud.Cloud) []string {
			return append(c.AddUser(awsUser).Environ(), "AWS_REGION=eu-west-1")
		}, "https://sts.amazonaws.com", awsUser},
		"a region": {&AWS{Region: "eu-west-1"}, func(c *cloud.Cloud) []string { return c.AddUser(awsUser).Environ() }, "https://sts.eu-west-1.amazonaws.com", awsUser},
		"the instance's, and its role": {&AWS{Region: "auto"}, func(c *cloud.Cloud) []string {
			c.AddRole(cloud.Role{ARN: awsRole})
			i := c.Instance(awsRole)
			i.SetRegion("ap-south-1")
			return i.Environ()
		}, "https://sts.ap-south-1.amazonaws.com", "arn:aws:sts::111122223333:assumed-role/puller/i-"},
		"an endpoint": {
			&AWS{Region: "us-east-2", STSEndpoint: "https://sts-fips.us-east-2.amazonaws.com"}, func(c *cloud.Cloud) []string { return c.AddUser(awsUser).Environ() },
			"https://sts-fips.us-east-2.amazonaws.com", awsUser,
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := aCloud(t)
			inEnv(t, append(c.Environ(), tt.env(c)...)...)
			a := &AWS{ServerID: "vault.example.com"}
			if tt.a != nil {
				a.Region, a.STSEndpoint = tt.a.Region, tt.a.STSEndpoint
			}
			log := heard(t)
			parameters, err := a.parameters(t.Context(), "puller")
			if err != nil {
				t.Fatal(err)
			}
			if got := asVault(t, c, parameters, tt.endpoint, a.ServerID); !strings.HasPrefix(got, tt.want) || got == "" {
				t.Errorf("Vault is told of %q, want %q", got, tt.want)
			}
			if got := asVault(t, c, parameters, "https://sts.eu-north-1.amazonaws.com", ""); got != "" && tt.a != nil {
				t.Errorf("a Vault that asks elsewhere is told of %q", got)
			}
			silent(t, log.String(), os.Getenv("AWS_SECRET_ACCESS_KEY"))
			if plain, err := tt.a.parameters(t.Context(), ""); err != nil || asVault(t, c, plain, tt.endpoint, "") == "" || strings.Contains(headersOf(plain), "Server-Id") {
				t.Errorf("without a server's id: %v", err)
			}
		})
	}
	for name, tt := range map[string]struct {
		a    *AWS
		env  func(c *cloud.Cloud) []string
		want no
	}{
		"no identity": {nil, func(*cloud.Cloud) []string { return nil }, no{backends.KindUnavailable, "", []string{
			"signing a request to AWS's STS for Vault: no AWS credentials: tried environment", "attach a role to the instance, use EKS Pod Identity or IRSA, or name the AWS_* variables in the provider's inheritEnv",
		}}},
		"no region": {
			&AWS{Region: "auto"}, func(c *cloud.Cloud) []string { return c.AddUser(awsUser).Environ() },
			no{backends.KindMisconfigured, "auth.aws.region", []string{"signing a request to AWS's STS for Vault: nothing says which region", "set it, or name AWS_REGION in the provider's inheritEnv"}},
		},
		"a role that nobody may assume": {nil, func(c *cloud.Cloud) []string {
			c.AddRole(cloud.Role{ARN: awsRole})
			keys := c.AddUser(awsUser)
			return []string{
				"AWS_PROFILE=p", "AWS_REGION=eu-west-1", "AWS_CONFIG_FILE=" + inFile(t, []byte("[profile p]\nrole_arn="+awsRole+"\nsource_profile=base\n")),
				"AWS_SHARED_CREDENTIALS_FILE=" + inFile(t, []byte("[base]\naws_access_key_id="+keys.AccessKeyID+"\naws_secret_access_key="+keys.SecretAccessKey+"\n")),
			}
		}, no{backends.KindRefused, "", []string{`profile "p"`, "AccessDenied"}}},
		"a profile that is not there": {nil, func(*cloud.Cloud) []string { return []string{"AWS_PROFILE=p"} }, no{backends.KindMisconfigured, "auth.aws", []string{"load the AWS configuration"}}},
	} {
		t.Run(name, func(t *testing.T) {
			c := aCloud(t)
			inEnv(t, append(c.Environ(), tt.env(c)...)...)
			inEnv(t, "AWS_SESSION_TOKEN="+planted)
			log := heard(t)
			parameters, err := tt.a.parameters(t.Context(), "puller")
			tt.want.judge(t, parameters, err, log.String(), os.Getenv("AWS_SECRET_ACCESS_KEY"))
		})
	}
	t.Run("no time", func(t *testing.T) {
		c := aCloud(t)
		inEnv(t, append(c.Environ(), c.AddUser(awsUser).Environ()...)...)
		ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
		defer cancel()
		parameters, err := (&AWS{}).parameters(ctx, "puller")
		no{backends.KindUnavailable, "", []string{"it did not end in time"}}.judge(t, parameters, err, "")
	})
}

// headersOf are those that were signed, as they are sent.
func headersOf(parameters map[string]any) string {
	text, _ := parameters["iam_request_headers"].(string)
	decoded, _ := base64.StdEncoding.DecodeString(text)
	return string(decoded)
}

// TestAWSWithoutItsProgram says what to install.
func TestAWSWithoutItsProgram(t *testing.T) {
	aCloud(t)
	parameters, err := (&AWS{}).parameters(t.Context(), "puller")
	no{backends.KindMisconfigured, "auth.aws", []string{"auth.method aws needs aws-identity-token beside the backend", "install it from the release"}}.judge(t, parameters, err, "")
}
