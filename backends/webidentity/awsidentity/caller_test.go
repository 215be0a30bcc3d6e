package awsidentity

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/webidentity/awsprogram"
	"github.com/credential-broker/credential-broker/test/cloud"
)

// sent is what STS answers whoever sends a request that has been signed, as Vault sends it: with the path of the URL below a slash of its own.
func sent(t *testing.T, c *cloud.Cloud, r *awsprogram.Request) (status int, body string) {
	t.Helper()
	u, err := url.Parse(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), r.Method, "https://"+u.Host+"/"+u.RequestURI(), strings.NewReader(r.Body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = r.Header
	answer, err := c.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	all, _ := io.ReadAll(answer.Body)
	return answer.StatusCode, string(all)
}

var signedHeaders = regexp.MustCompile(`SignedHeaders=([^,]+), `)

// TestSign: STS takes the request for its signer's, at the endpoint that it is for. Nothing was sent to it before.
func TestSign(t *testing.T) {
	for _, tt := range []struct {
		name    string
		ask     awsprogram.CallerIdentity
		prepare func(t *testing.T, c *cloud.Cloud)
		arn     string
		url     string
		asked   string // of whom the chain has had credentials
	}{
		{name: "nothing is said of a region", arn: user, url: "https://sts.amazonaws.com/", prepare: func(t *testing.T, c *cloud.Cloud) {
			setenv(t, append(c.AddUser(user).Environ(), "AWS_REGION=eu-west-1")...)
		}},
		{name: "not even by the environment", arn: user, url: "https://sts.amazonaws.com/", prepare: func(t *testing.T, c *cloud.Cloud) {
			setenv(t, c.AddUser(user).Environ()...)
		}},
		{name: "a region", ask: awsprogram.CallerIdentity{Region: "eu-central-1"}, arn: user, url: "https://sts.eu-central-1.amazonaws.com/", prepare: func(t *testing.T, c *cloud.Cloud) {
			setenv(t, append(c.AddUser(user).Environ(), "AWS_REGION=eu-west-1")...)
		}},
		{name: "the global endpoint's region", ask: awsprogram.CallerIdentity{Region: "us-east-1"}, arn: user, url: "https://sts.us-east-1.amazonaws.com/", prepare: func(t *testing.T, c *cloud.Cloud) {
			setenv(t, c.AddUser(user).Environ()...)
		}},
		{
			name: "a region of another partition", ask: awsprogram.CallerIdentity{Region: "cn-north-1"}, arn: "arn:aws-cn:iam::" + account + ":user/node", url: "https://sts.cn-north-1.amazonaws.com.cn/",
			prepare: func(t *testing.T, c *cloud.Cloud) {
				setenv(t, c.AddUser("arn:aws-cn:iam::"+account+":user/node").Environ()...)
			},
		},
		{name: "the environment's region", ask: awsprogram.CallerIdentity{Region: "auto"}, arn: user, url: "https://sts.us-west-2.amazonaws.com/", prepare: func(t *testing.T, c *cloud.Cloud) {
			setenv(t, append(c.AddUser(user).Environ(), "AWS_REGION=us-west-2")...)
		}},
		{
			name: "the instance's region, and its session", ask: awsprogram.CallerIdentity{Region: "auto"}, arn: ":assumed-role/puller/i-", url: "https://sts.ap-south-1.amazonaws.com/", asked: "imds",
			prepare: func(t *testing.T, c *cloud.Cloud) {
				i := c.Instance(role)
				i.SetRegion("ap-south-1")
				setenv(t, i.Environ()...)
			},
		},
		{
			name: "a pod's token in a file (IRSA), exchanged in its own region", arn: ":assumed-role/puller/", url: "https://sts.amazonaws.com/", asked: "sts",
			prepare: func(t *testing.T, c *cloud.Cloud) {
				setenv(t, "AWS_REGION=eu-west-1", "AWS_ROLE_ARN="+role, "AWS_WEB_IDENTITY_TOKEN_FILE="+write(t, podToken(c)))
			},
		},
		{
			name: "another endpoint", ask: awsprogram.CallerIdentity{Region: "us-east-2", Endpoint: "https://sts-fips.us-east-2.amazonaws.com"}, arn: user, url: "https://sts-fips.us-east-2.amazonaws.com/",
			prepare: func(t *testing.T, c *cloud.Cloud) { setenv(t, c.AddUser(user).Environ()...) },
		},
		{
			name: "an endpoint with a slash", ask: awsprogram.CallerIdentity{Region: "eu-west-1", Endpoint: "https://sts.eu-west-1.api.aws/"}, arn: user, url: "https://sts.eu-west-1.api.aws/",
			prepare: func(t *testing.T, c *cloud.Cloud) { setenv(t, c.AddUser(user).Environ()...) },
		},
		{
			name: "endpoints of the environment are not those of whoever sends it", arn: user, url: "https://sts.amazonaws.com/",
			prepare: func(t *testing.T, c *cloud.Cloud) {
				setenv(t, append(c.AddUser(user).Environ(), "AWS_ENDPOINT_URL_STS=https://sts.eu-west-1.amazonaws.com", "AWS_USE_FIPS_ENDPOINT=true", "AWS_USE_DUALSTACK_ENDPOINT=true")...)
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, _ := setUp(t)
			tt.prepare(t, c)
			tt.ask.Header = map[string]string{"X-Vault-AWS-IAM-Server-ID": "vault.example"}
			r, err := sign(t.Context(), tt.ask)
			if err != nil {
				t.Fatalf("%v\n%+v", err, c.Requests())
			}
			for _, asked := range c.Requests() {
				if asked.Service != tt.asked || asked.Operation == "GetCallerIdentity" || asked.Service == "sts" && asked.Host != "sts.eu-west-1.amazonaws.com" {
					t.Errorf("asked meanwhile: %+v", asked)
				}
			}
			if r.URL != tt.url || r.Method != http.MethodPost || r.Body != "Action=GetCallerIdentity&Version=2011-06-15" {
				t.Errorf("%s %s %s", r.Method, r.URL, r.Body)
			}
			signed := signedHeaders.FindStringSubmatch(r.Header.Get("Authorization"))
			if len(signed) != 2 || !slices.Contains(strings.Split(signed[1], ";"), "x-vault-aws-iam-server-id") {
				t.Error("the header is not signed")
			}
			for name := range r.Header { // of those that AWS means something by, Vault sends on no others
				if strings.HasPrefix(name, "X-Amz-") && name != "X-Amz-Date" && name != "X-Amz-Security-Token" {
					t.Errorf("there is a header %s", name)
				}
			}
			if status, body := sent(t, c, r); status != http.StatusOK || !strings.Contains(body, tt.arn) {
				t.Errorf("%d: %s", status, body)
			}
			r.Header.Set("X-Vault-AWS-IAM-Server-ID", "other.example")
			if status, _ := sent(t, c, r); status != http.StatusForbidden {
				t.Errorf("with another header: %d", status)
			}
		})
	}
}

// TestNotSigned: why there is no request, and what to do.
func TestNotSigned(t *testing.T) {
	for name, tt := range map[string]struct {
		ask     awsprogram.CallerIdentity
		prepare func(t *testing.T, c *cloud.Cloud)
		kind    backends.Kind
		field   string
		words   []string
	}{
		"no credentials": {
			prepare: func(*testing.T, *cloud.Cloud) {}, kind: backends.KindUnavailable,
			words: []string{"no AWS credentials: tried environment (no AWS_ACCESS_KEY_ID", "instance metadata (", "attach a role to the instance"},
		},
		"a pod that the role does not trust": {
			kind: backends.KindRefused, words: []string{"AWS_WEB_IDENTITY_TOKEN_FILE /", "AccessDenied"},
			prepare: func(t *testing.T, c *cloud.Cloud) {
				c.AddRole(cloud.Role{ARN: role})
				setenv(t, "AWS_ROLE_ARN="+role, "AWS_WEB_IDENTITY_TOKEN_FILE="+write(t, podToken(c)))
			},
		},
		"no region where the SDK is to find one": {
			ask: awsprogram.CallerIdentity{Region: "auto"}, kind: backends.KindMisconfigured, field: ".region", words: []string{"nothing says which region", "set it, or name AWS_REGION"},
			prepare: func(t *testing.T, c *cloud.Cloud) { setenv(t, c.AddUser(user).Environ()...) },
		},
		"a region that is none": {
			ask: awsprogram.CallerIdentity{Region: "auto"}, kind: backends.KindMisconfigured, field: ".region", words: []string{`there is no region "eu/west"`},
			prepare: func(t *testing.T, c *cloud.Cloud) {
				setenv(t, append(c.AddUser(user).Environ(), "AWS_REGION=eu/west")...)
			},
		},
		"a region that is all": {
			ask: awsprogram.CallerIdentity{Region: "auto"}, kind: backends.KindMisconfigured, field: ".region", words: []string{`there is no region "aws-global"`},
			prepare: func(t *testing.T, c *cloud.Cloud) {
				setenv(t, append(c.AddUser(user).Environ(), "AWS_REGION=aws-global")...)
			},
		},
		"an endpoint that is none": {
			ask: awsprogram.CallerIdentity{Region: "eu-west-1", Endpoint: "https://%zz"}, kind: backends.KindMisconfigured, words: []string{"want the URL of an STS"},
			prepare: func(t *testing.T, c *cloud.Cloud) { setenv(t, c.AddUser(user).Environ()...) },
		},
		"a profile that is not there": {
			kind: backends.KindMisconfigured, words: []string{"load the AWS configuration", "puller"},
			prepare: func(t *testing.T, _ *cloud.Cloud) { setenv(t, "AWS_PROFILE=puller") },
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := setUp(t)
			setenv(t, "AWS_SESSION_TOKEN="+canary)
			tt.prepare(t, c)
			r, err := sign(t.Context(), tt.ask)
			if err == nil {
				t.Fatalf("there is a request for %s", r.URL)
			}
			said := answer(t.Context(), awsprogram.Question{Caller: &tt.ask})
			if said.Request != nil || said.Refusal == nil || said.Refusal.Kind != tt.kind || said.Refusal.Field != tt.field {
				t.Errorf("%v, %+v", said.Request, said.Refusal)
			}
			for _, word := range tt.words {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%v\ndoes not say %q", err, word)
				}
			}
			if strings.Contains(err.Error(), canary) {
				t.Errorf("it tells a secret: %v", err)
			}
		})
	}
}

// TestItIsTakenForAQuarterOfAnHour: by the time of the cloud's clock, as it was signed by this machine's.
func TestItIsTakenForAQuarterOfAnHour(t *testing.T) {
	c, _ := setUp(t)
	setenv(t, c.AddUser(user).Environ()...)
	r, err := sign(t.Context(), awsprogram.CallerIdentity{})
	if err != nil {
		t.Fatal(err)
	}
	for offset, want := range map[time.Duration]int{0: 200, 14 * time.Minute: 200, 16 * time.Minute: 403, -16 * time.Minute: 403} {
		c.SetClockOffset(offset)
		if status, _ := sent(t, c, r); status != want {
			t.Errorf("%s later: %d", offset, status)
		}
	}
}

// TestARequestDoesNotPrint: whoever reads a log could send it. The program writes it, as it has to.
func TestARequestDoesNotPrint(t *testing.T) {
	r := awsprogram.Request{Method: "POST", Header: http.Header{"Authorization": {canary}}}
	if text := fmt.Sprintf("%v %+v %#v %s %q", r, &r, r, []awsprogram.Request{r}, r); strings.Contains(text, canary) || !strings.Contains(text, "[redacted]") {
		t.Errorf("%s", text)
	}
	if text := r.LogValue().String(); strings.Contains(text, canary) {
		t.Error(text)
	}
	if written, err := json.Marshal(r); err != nil || !strings.Contains(string(written), canary) {
		t.Errorf("%s, %v", written, err)
	}
}
